package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/homeiac/homelab/cli/onhost"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/pause"
)

// one brings one host to the new package, or back to the old one. It is not cut off:
// every part of it is bounded. The error is why no other host is touched.
func (u *upgrade) one(ctx context.Context, h *upgraded) error {
	if err := u.held.check(ctx); err != nil {
		return err
	}
	u.say("%s: %s -> %s", h.name, h.on.Installed, u.pkg.Version)
	if err := h.on.PutPackage(ctx, u.pkg); err != nil {
		h.result, h.reason = resultFailed, err.Error()
		return fmt.Errorf("host %s: nothing was changed on it: %w", h.name, err)
	}
	began := u.a.now()
	var why string
	if err := u.install(ctx, h, onhost.KeptAt(u.pkg.Version)); err != nil {
		if now, broken, lookErr := h.on.Root.Package(ctx); lookErr == nil && !broken && now == h.on.Installed && now != u.pkg.Version {
			h.result, h.reason = resultFailed, err.Error()
			return fmt.Errorf("host %s: its package could not be exchanged, and it has %s as before: %w", h.name, now, err)
		}
		why = err.Error()
	} else if why = u.becomesReady(ctx, h); why == "" {
		h.result = resultUpgraded
		u.say("  online with it after %s", short(u.a.now().Sub(began)))
		if err := h.on.DropPackages(ctx, u.pkg.Version, h.on.Installed); err != nil {
			u.say("  packages that are of no use any more were not removed from %s: %v", onhost.PackageFolder, err)
		}
		return nil
	}
	return u.back(ctx, h, why)
}

// install has dpkg put in a package that is on the host. A connection that is lost
// meanwhile is made again, since dpkg goes on without it.
func (u *upgrade) install(ctx context.Context, h *upgraded, file string) error {
	_, err := h.on.Dpkg(ctx, "--install", file)
	if !onhost.Lost(err) {
		return err
	}
	u.say("  %v; connecting again", err)
	if again := h.on.Reconnect(ctx); again != nil {
		return fmt.Errorf("%w; and again: %w", err, again)
	}
	_, err = h.on.Dpkg(ctx, "--install", file) // one that is in already is put in again
	return err
}

// becomesReady waits until a host is online with what is installed on it, and stays so
// for some looks. It returns why it is not.
func (u *upgrade) becomesReady(ctx context.Context, h *upgraded) string {
	program, err := h.on.ProgramNow(ctx)
	if err != nil {
		return err.Error()
	}
	if err := h.on.Revive(ctx); err != nil {
		return err.Error()
	}
	until, cancel := context.WithTimeout(ctx, u.a.ready.limit)
	defer cancel()
	for well := 0; ; {
		// A look has a time of its own: what it says when it is cut off is only that.
		look, cancel := context.WithTimeout(ctx, onhost.LookLimit)
		why := u.notReady(look, h, program)
		cancel()
		if well++; why != "" {
			well = 0
		}
		if well == u.a.ready.looks {
			return ""
		}
		if !pause.For(until, u.a.ready.poll) {
			return fmt.Sprintf("it was not Ready within %.0f s: %s", u.a.ready.limit.Seconds(), cmp.Or(why, "it came late"))
		}
	}
}

// notReady is why a host is not online with a version, as its controllers see it now;
// empty when it is.
func (u *upgrade) notReady(ctx context.Context, h *upgraded, program string) string {
	if why := u.controllerNotReady(ctx, h, program); why != "" {
		return why
	}
	status, err := u.a.status(ctx, true, false)
	if err != nil {
		text, _, _ := strings.Cut(err.Error(), "\n")
		return text
	}
	for _, s := range status.GetHosts() {
		if s.GetName() == h.name {
			return agentNotReady(h.was, s, program)
		}
	}
	return "no host of that name is known to the controller"
}

// agentNotReady is why an agent is not online with a version; empty when it is. One that
// was degraded before may be for reasons of its host's: no quorum.
func agentNotReady(was, now *homelabv1.HostStatus, program string) string {
	const degraded = homelabv1.HostState_HOST_STATE_DEGRADED
	switch {
	case !answers(now), now.GetState() == degraded && was.GetState() != degraded:
		return hostState(now) + ": " + now.GetReason()
	case now.GetVersion() != program:
		return fmt.Sprintf("its agent says that it is version %s, and not %s", now.GetVersion(), program)
	}
	return ""
}

// controllerNotReady is the same of the controller on a host. Where hlctl's configuration
// does not name it, systemd's word has to do.
func (u *upgrade) controllerNotReady(ctx context.Context, h *upgraded, program string) string {
	switch {
	case h.on.Controller == "":
		return ""
	case h.at == "":
		if err := h.on.Ready(ctx, onhost.ControllerService); err != nil {
			return err.Error()
		}
		return ""
	}
	c, err := u.a.controllerAt(ctx, h.at)
	if err != nil {
		return fmt.Sprintf("controller %s does not answer at %s: %s", h.on.Controller, h.at, cause(err))
	}
	defer c.close()
	if v := c.version.GetVersion(); v != program {
		return fmt.Sprintf("controller %s says that it is version %s, and not %s", h.on.Controller, v, program)
	}
	return ""
}

// back puts the old package in again. It returns what people are to know of it all.
func (u *upgrade) back(ctx context.Context, h *upgraded, why string) error {
	// Now: the old one's words would stand after them.
	journal := h.on.Journal(ctx, onhost.AgentService)
	if h.on.Controller != "" {
		journal += h.on.Journal(ctx, onhost.ControllerService)
	}
	text := fmt.Sprintf("host %s with package %s: %s\n", h.name, u.pkg.Version, why)
	h.result, h.reason = resultFailed, why
	if h.old == "" {
		text += "  there is no old package on it to go back to"
	} else {
		u.say("  not well with it; going back to %s", h.on.Installed)
		text += "  " + u.goBack(ctx, h)
	}
	if journal != "" {
		text += "\n  the last of its journal with " + u.pkg.Version + ":" + journal
	}
	return errors.New(text)
}

// goBack gives a host its old package, and tells how that went.
func (u *upgrade) goBack(ctx context.Context, h *upgraded) string {
	if err := u.install(ctx, h, h.old); err != nil {
		return fmt.Sprintf("it could NOT be brought back to %s: %v\n  on the host: dpkg -i %s", h.on.Installed, err, h.old)
	}
	if why := u.becomesReady(ctx, h); why != "" {
		return fmt.Sprintf("it has %s again, and is not well with it either: %s", h.on.Installed, why)
	}
	h.result = resultReverted
	return fmt.Sprintf("it has %s again, and is online with it", h.on.Installed)
}
