package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/homeiac/homelab/internal/durable"
	"github.com/homeiac/homelab/internal/version"
)

// lifeFile in the state folder says how the last life of a daemon went, so that the next
// one can tell why there is a next one. It may be lost.
const lifeFile = "life.json"

// Life is one life of a daemon, from its start to its end.
type Life struct {
	// Because is why it was started, for the log: how the last one ended.
	Because string

	file string
	log  *slog.Logger
	is   record
}

type record struct {
	Version string `json:"version"`
	// Boot is the kernel's name of this boot; empty where /proc does not show it, as
	// under the controller's unit.
	Boot string `json:"boot,omitempty"`
	// Up is how long the machine was up at the start.
	Up time.Duration `json:"up"`
	// Ended is why it ended; empty as long as it lives, and when it could not say.
	Ended string `json:"ended,omitempty"`
}

// Begin notes in the state folder that a life has begun, and finds out why. That it
// cannot be noted is logged, and no reason not to live.
func Begin(state string, log *slog.Logger) *Life {
	l := &Life{file: filepath.Join(state, lifeFile), log: log, is: record{Version: version.String()}}
	if id, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		l.is.Boot = strings.TrimSpace(string(id))
	}
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err == nil {
		l.is.Up = time.Duration(up.Nano())
	}
	var was *record
	if text, err := os.ReadFile(l.file); err == nil && json.Unmarshal(text, &was) != nil {
		was = nil
	}
	l.Because = because(was, l.is)
	l.write()
	return l
}

// End notes why the life ends: err, or what ended ctx.
func (l *Life) End(ctx context.Context, err error) {
	if err == nil {
		err = context.Cause(ctx)
	}
	l.is.Ended = "done"
	if err != nil {
		l.is.Ended = err.Error()
	}
	l.write()
}

func (l *Life) write() {
	text, err := json.Marshal(l.is)
	if err == nil {
		err = durable.Write(l.file, text)
	}
	if err != nil {
		l.log.Warn("why this ends will not be known at the next start", "error", err)
	}
}

// because says why there is a life, by the one before it.
func because(was *record, is record) string {
	if was == nil {
		return "first start with this state folder"
	}
	ended := "the last one was ended: " + was.Ended
	if was.Ended == "" {
		ended = "the last one ended without a word: killed, crashed, or without power"
	}
	switch {
	case was.Boot != "" && is.Boot != "" && was.Boot != is.Boot, is.Up < was.Up:
		return "the machine booted; " + ended
	case was.Version != is.Version:
		return fmt.Sprintf("version %s in the place of %s; %s", is.Version, was.Version, ended)
	}
	return ended
}
