package daemon

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestADaemonKnowsWhyItWasStarted(t *testing.T) {
	was := record{Version: "1.0", Boot: "a", Up: time.Hour, Ended: "terminated signal received"}
	is := record{Version: "1.0", Boot: "a", Up: 2 * time.Hour}
	with := func(r record, change func(*record)) record { change(&r); return r }
	killed := with(was, func(r *record) { r.Ended = "" })
	for _, c := range []struct {
		name    string
		was     *record
		is      record
		because []string
	}{
		{"nothing was there", nil, is, []string{"first start"}},
		{"it was restarted", &was, is, []string{"was ended: terminated signal received"}},
		{"it was killed", &killed, is, []string{"without a word"}},
		{"it was upgraded", &was, with(is, func(r *record) { r.Version = "1.1" }), []string{"version 1.1 in the place of 1.0", "terminated"}},
		{"the machine was booted", &was, with(is, func(r *record) { r.Boot = "b" }), []string{"the machine booted", "terminated"}},
		{"the machine lost its power", &killed, with(is, func(r *record) { r.Boot = "b" }), []string{"the machine booted", "without a word"}},
		{"the boot's name is not to be seen", &was, record{Version: "1.0", Up: time.Minute}, []string{"the machine booted"}},
	} {
		got := because(c.was, c.is)
		for _, want := range c.because {
			if !strings.Contains(got, want) {
				t.Errorf("%s: %q", c.name, got)
			}
		}
	}
}

func TestALifeIsToldOfByTheNext(t *testing.T) {
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	if got := Begin(dir, log).Because; !strings.Contains(got, "first start") {
		t.Error(got)
	}
	second := Begin(dir, log) // the first one never ended
	if !strings.Contains(second.Because, "without a word") {
		t.Error(second.Because)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("terminated signal received"))
	second.End(ctx, nil)
	third := Begin(dir, log)
	if !strings.Contains(third.Because, "terminated signal received") {
		t.Error(third.Because)
	}
	third.End(t.Context(), errors.New("the disk is full"))
	if got := Begin(dir, log).Because; !strings.Contains(got, "the disk is full") {
		t.Error(got)
	}
	// What cannot be read or written down ends nobody.
	if err := os.WriteFile(filepath.Join(dir, lifeFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := Begin(dir, log).Because; !strings.Contains(got, "first start") {
		t.Error(got)
	}
	Begin(filepath.Join(dir, "gone"), log).End(t.Context(), nil)
}
