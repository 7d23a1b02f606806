package onhost

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/homeiac/homelab/cli/remote"
)

// What the package has on a host, and its two services.
const (
	AgentConfig      = "/etc/homelab/agent.yaml"
	ControllerConfig = "/etc/homelab/controller.yaml"
	// AgentKey is where enrol makes the key of an agent that is not configured yet.
	AgentKey          = "/var/lib/hl-agent/agent.key"
	AgentService      = "hl-agent.service"
	ControllerService = "hl-controller.service"
)

const (
	// LookLimit bounds one look; pveversion alone takes a second of CPU.
	LookLimit = 30 * time.Second
	// ServiceLimit bounds a systemctl that starts or ends a service: until it is ready, or
	// has let its qm end.
	ServiceLimit = 3 * time.Minute
	// journalTold is how many of a daemon's last lines are shown when it does not come.
	journalTold = 8
)

// Root runs programs on a host, in English.
type Root struct {
	*remote.Host
	poll time.Duration // how often dpkg's lock is tried; 0 is lockPoll
}

// Do runs a program within a limit and gives what it printed, without blanks around it.
func (r Root) Do(ctx context.Context, limit time.Duration, stdin io.Reader, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out, err := r.Run(ctx, stdin, append([]string{"env", "LC_ALL=C"}, argv...)...)
	var exit *remote.ExitError
	if errors.As(err, &exit) {
		exit.Program = strings.Join(argv[:min(2, len(argv))], " ")
	}
	return strings.TrimSpace(string(out)), err
}

// Look runs a program that changes nothing, within LookLimit.
func (r Root) Look(ctx context.Context, argv ...string) (string, error) {
	return r.Do(ctx, LookLimit, nil, argv...)
}

// Failed says whether a program ran and did not end well. Of any other error it is not
// known how it ended.
func Failed(err error) bool {
	var exit *remote.ExitError
	return errors.As(err, &exit)
}

// ReadFile gives a file; one that is not there is empty.
func (r Root) ReadFile(ctx context.Context, file string) (string, error) {
	text, err := r.Look(ctx, "cat", "--", file)
	if Failed(err) && strings.Contains(err.Error(), "No such file or directory") {
		return "", nil
	}
	return text, err
}

// Unit is what systemd says of a service.
type Unit struct{ Active, Enabled bool }

// UnitState asks systemd. One that is not installed is neither active nor enabled.
func (r Root) UnitState(ctx context.Context, name string) (Unit, error) {
	out, err := r.Look(ctx, "systemctl", "show", "--property=ActiveState,UnitFileState", name)
	if err != nil {
		return Unit{}, err
	}
	lines := strings.Fields(out)
	return Unit{slices.Contains(lines, "ActiveState=active"), slices.Contains(lines, "UnitFileState=enabled")}, nil
}

// Journal is how an error goes on that tells of a service: its last lines, if they can
// be had.
func (r Root) Journal(ctx context.Context, unit string) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), LookLimit)
	defer cancel()
	out, err := r.Look(ctx, "journalctl", "--unit="+unit, fmt.Sprintf("--lines=%d", journalTold), "--no-pager", "--quiet", "--output=short-iso")
	if err != nil || out == "" {
		return ""
	}
	return "\n    " + strings.ReplaceAll(clean(out), "\n", "\n    ")
}

// clean takes out what would do something to a terminal.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && (r < ' ' || r >= 0x7f && r < 0xa0) {
			return '?'
		}
		return r
	}, text)
}

// Package is the version of our package; empty when it is not there, or only its
// configuration is.
func (r Root) Package(ctx context.Context) (version string, broken bool, err error) {
	out, err := r.Look(ctx, "dpkg-query", "--show", "--showformat=${db:Status-Status} ${Version}", "homelab")
	if Failed(err) {
		return "", false, nil
	}
	state, version, _ := strings.Cut(out, " ")
	switch {
	case err != nil:
		return "", false, err
	case state == "config-files" || state == "not-installed":
		return "", false, nil
	}
	return version, state != "installed", nil
}
