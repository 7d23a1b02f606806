package cli

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

// onHost is a host of the fleet whose root's shell is open, and what of ours is on it.
type onHost struct {
	rootOn
	dial func(context.Context) (*remote.Host, error)
	// installed is the package's version, empty when it is not; broken is one that dpkg
	// did not get to its end.
	installed string
	broken    bool
	program   string // the version that hl-agent on its disk says it is
	// services are those of ours that are set up on it, the agent first: they run, or are
	// to at each boot.
	services []string
	// controller is the name of the controller that is set up on it; empty is none.
	controller string
}

// lookAt opens a host's shell and looks what of ours is there; it changes nothing.
func (a *app) lookAt(ctx context.Context, target string, flags sshFlags) (*onHost, error) {
	t, err := remote.ParseTarget(target)
	if err != nil {
		return nil, err
	}
	h := &onHost{dial: func(ctx context.Context) (*remote.Host, error) { return remote.Dial(ctx, t, a.sshOptions(flags)) }}
	if h.Host, err = h.dial(ctx); err != nil {
		return nil, err
	}
	if err := h.look(ctx); err != nil {
		_ = h.Close()
		return nil, err
	}
	return h, nil
}

func (h *onHost) look(ctx context.Context) (err error) {
	if h.installed, h.broken, err = h.rootOn.installed(ctx); err != nil || h.installed == "" {
		return err
	}
	if h.program, err = h.programNow(ctx); err != nil && !failed(err) {
		return err // one that does not even run may be why we are here
	}
	h.services = nil
	for _, service := range []string{agentService, controllerService} {
		unit, err := h.unit(ctx, service)
		if err != nil {
			return err
		}
		if unit.active || unit.enabled {
			h.services = append(h.services, service)
		}
	}
	if !slices.Contains(h.services, controllerService) {
		return nil
	}
	text, err := h.read(ctx, controllerConfigFile)
	if err != nil {
		return err
	}
	var config struct{ Name string }
	if err := yaml.Unmarshal([]byte(text), &config); err != nil || config.Name == "" {
		return rpc.Errorf(rpc.ErrInvalid, "%s on it says no name; correct it there", controllerConfigFile)
	}
	h.controller = config.Name
	return nil
}

func (h *onHost) programNow(ctx context.Context) (string, error) {
	return h.rootOn.look(ctx, "/usr/sbin/hl-agent", "version")
}

// reconnect opens the shell again, in the place of one that was lost.
func (h *onHost) reconnect(ctx context.Context) error {
	shell, err := h.dial(ctx)
	if err != nil {
		return err
	}
	_ = h.Close()
	h.Host = shell
	return nil
}

// lost says whether an error is the connection's, and not a program's.
func lost(err error) bool { return err != nil && !failed(err) && errors.Is(err, rpc.ErrUnavailable) }

// ready is an error unless systemd says that a service is there and ready.
func (h *onHost) ready(ctx context.Context, service string) error {
	out, err := h.rootOn.look(ctx, "systemctl", "is-active", service)
	if failed(err) {
		return fmt.Errorf("%s is %s; on the host: journalctl -u %s", service, cmp.Or(out, "not there"), service)
	}
	return err
}

// later says whether one version of a package is later than another, as dpkg counts.
func (h *onHost) later(ctx context.Context, one, other string) (bool, error) {
	_, err := h.rootOn.look(ctx, "dpkg", "--compare-versions", one, "gt", other)
	if failed(err) {
		return false, nil
	}
	return err == nil, err
}

// revive starts those of its services that do not run, and does not wait for them. dpkg
// leaves them alone: the scripts of the package exchange only what runs, and one that its
// last program ended for good (exit code 78), or kept starting, does not.
func (h *onHost) revive(ctx context.Context) error {
	for _, service := range h.services {
		unit, err := h.unit(ctx, service)
		if err != nil {
			return err
		}
		if unit.active {
			continue
		}
		// A start would wait for the pause before the next attempt.
		if _, err := h.rootOn.look(ctx, "systemctl", "restart", "--no-block", service); err != nil {
			return err
		}
	}
	return nil
}

// disable ends both daemons for good. A qm at work is waited for.
func (h *onHost) disable(ctx context.Context) error {
	_, err := h.do(ctx, serviceLimit, nil, "systemctl", "disable", "--now", controllerService, agentService)
	return err
}
