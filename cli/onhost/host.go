package onhost

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/homeiac/homelab/cli/remote"
	"github.com/homeiac/homelab/internal/rpc"
)

// Host is a host of the fleet whose root's shell is open, and what of ours is on it.
type Host struct {
	Root
	dial func(context.Context) (*remote.Host, error)
	// Name is the one that its agent's configuration says; empty while that says nothing.
	Name string
	// Installed is the package's version, empty when it is not; broken is one that dpkg
	// did not get to its end.
	Installed string
	Broken    bool
	Program   string // the version that hl-agent on its disk says it is
	// Services are those of ours that are set up on it, the agent first: they run, or are
	// to at each boot.
	Services []string
	// Controller is the name of the Controller that is set up on it; empty is none.
	Controller string
}

// Open opens a host's shell, as dial does, and looks what of ours is there; it changes
// nothing.
func Open(ctx context.Context, dial func(context.Context) (*remote.Host, error)) (*Host, error) {
	shell, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	h := &Host{Root: Root{Host: shell}, dial: dial}
	if err := h.inspect(ctx); err != nil {
		_ = h.Close()
		return nil, err
	}
	return h, nil
}

func (h *Host) inspect(ctx context.Context) (err error) {
	// Also where the package is not there any more: a purge takes what is.
	if h.Name, err = h.nameIn(ctx, AgentConfig); err != nil {
		return err
	}
	if h.Installed, h.Broken, err = h.Root.Package(ctx); err != nil || h.Installed == "" {
		return err
	}
	if h.Program, err = h.ProgramNow(ctx); err != nil && !Failed(err) {
		return err // one that does not even run may be why we are here
	}
	h.Services = nil
	for _, service := range []string{AgentService, ControllerService} {
		unit, err := h.UnitState(ctx, service)
		if err != nil {
			return err
		}
		if unit.Active || unit.Enabled {
			h.Services = append(h.Services, service)
		}
	}
	if !slices.Contains(h.Services, ControllerService) {
		return nil
	}
	h.Controller, err = h.nameIn(ctx, ControllerConfig)
	if err == nil && h.Controller == "" {
		err = rpc.Errorf(rpc.ErrInvalid, "%s on it says no name; correct it there", ControllerConfig)
	}
	return err
}

// nameIn is the name in a configuration; empty when it says none.
func (h *Host) nameIn(ctx context.Context, file string) (string, error) {
	text, err := h.ReadFile(ctx, file)
	if err != nil {
		return "", err
	}
	var config struct{ Name string }
	if err := yaml.Unmarshal([]byte(text), &config); err != nil {
		return "", rpc.Errorf(rpc.ErrInvalid, "%s on it: %w; correct it there", file, err)
	}
	return config.Name, nil
}

// ProgramNow is the version that hl-agent on its disk says it is.
func (h *Host) ProgramNow(ctx context.Context) (string, error) {
	return h.Root.Look(ctx, "/usr/sbin/hl-agent", "version")
}

// Reconnect opens the shell again, in the place of one that was lost.
func (h *Host) Reconnect(ctx context.Context) error {
	shell, err := h.dial(ctx)
	if err != nil {
		return err
	}
	_ = h.Close()
	h.Host = shell
	return nil
}

// Lost says whether an error is the connection's, and not a program's.
func Lost(err error) bool { return err != nil && !Failed(err) && errors.Is(err, rpc.ErrUnavailable) }

// Ready is an error unless systemd says that a service is there and ready.
func (h *Host) Ready(ctx context.Context, service string) error {
	out, err := h.Root.Look(ctx, "systemctl", "is-active", service)
	if Failed(err) {
		return fmt.Errorf("%s is %s; on the host: journalctl -u %s", service, cmp.Or(out, "not there"), service)
	}
	return err
}

// Later says whether one version of a package is later than another, as dpkg counts.
func (h *Host) Later(ctx context.Context, one, other string) (bool, error) {
	_, err := h.Root.Look(ctx, "dpkg", "--compare-versions", one, "gt", other)
	if Failed(err) {
		return false, nil
	}
	return err == nil, err
}

// Revive starts those of its services that do not run, and does not wait for them. dpkg
// leaves them alone: the scripts of the package exchange only what runs, and one that its
// last program ended for good (exit code 78), or kept starting, does not.
func (h *Host) Revive(ctx context.Context) error {
	for _, service := range h.Services {
		unit, err := h.UnitState(ctx, service)
		if err != nil {
			return err
		}
		if unit.Active {
			continue
		}
		// A start would wait for the pause before the next attempt.
		if _, err := h.Root.Look(ctx, "systemctl", "restart", "--no-block", service); err != nil {
			return err
		}
	}
	return nil
}

// Disable ends both daemons for good. A qm at work is waited for.
func (h *Host) Disable(ctx context.Context) error {
	_, err := h.Do(ctx, ServiceLimit, nil, "systemctl", "disable", "--now", ControllerService, AgentService)
	return err
}
