package proxmox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/homeiac/homelab/agent/driver"
	"github.com/homeiac/homelab/agent/driver/proxmox/args"
	"github.com/homeiac/homelab/agent/driver/proxmox/parse"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/pause"
	"github.com/homeiac/homelab/internal/rpc"
)

const (
	// settleLimit is how long after a start or stop the VM is looked for in its new
	// state, and failedLimit when the program said that it failed.
	settleLimit = 10 * time.Second
	failedLimit = time.Second
	// steadyFor is how long a resumed VM must go on.
	steadyFor = time.Second
)

// Start implements driver.Driver. A paused VM goes on only when it is asked for:
// why it is paused (io-error, a person) is not the driver's to judge.
func (d *Driver) Start(ctx context.Context, req *driverv1.StartRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	return d.change(ctx, "starting", req.GetIdentity(), req.GetDeadline().AsDuration(), report,
		func(ctx context.Context, s *session) (*homelabv1.VirtualMachine, error) {
			if err := s.start(ctx, req.GetResume()); err != nil {
				return nil, err
			}
			return d.lookKnown(ctx, s.id.GetVmid())
		})
}

func (s *session) start(ctx context.Context, resume bool) error {
	vmid := s.id.GetVmid()
	var ran args.Call
	var paused string
	out, err := s.attempt(ctx, func() (args.Call, bool, error) {
		if _, err := s.mine(); err != nil {
			return args.Call{}, true, err
		}
		now := s.d.living(ctx, vmid)
		switch {
		case now.power == homelabv1.Power_POWER_RUNNING:
			return args.Call{}, true, nil
		case now.power == homelabv1.Power_POWER_PAUSED && !resume:
			return args.Call{}, true, rpc.Errorf(rpc.ErrRefused, "VM %d is paused: %s (qm resume %d)", vmid, now.reason, vmid)
		case now.power != homelabv1.Power_POWER_STOPPED && now.power != homelabv1.Power_POWER_PAUSED:
			return args.Call{}, true, rpc.Errorf(rpc.ErrUnavailable, "VM %d: %s", vmid, now.reason)
		}
		if _, err := s.changeable(); err != nil {
			return args.Call{}, true, err
		}
		if now.power == homelabv1.Power_POWER_PAUSED {
			s.report(progress(s.phase, fmt.Sprintf("resuming VM %d (%s)", vmid, now.reason), remaining(ctx)))
			ran, paused = args.Resume(vmid), now.status
			return ran, false, nil
		}
		s.report(progress(s.phase, fmt.Sprintf("starting VM %d", vmid), remaining(ctx)))
		ran = args.Start(vmid)
		return ran, false, nil
	})
	if ran.Program == "" {
		return err
	}
	if errors.Is(err, rpc.ErrUnavailable) && ctx.Err() != nil {
		return err
	}
	// What counts is whether it runs, whatever qm said.
	now, lookErr := s.settled(ctx, homelabv1.Power_POWER_RUNNING, err)
	if now.power == homelabv1.Power_POWER_RUNNING && paused != "" {
		now = s.steady(ctx, now)
	}
	switch {
	case now.power == homelabv1.Power_POWER_RUNNING:
		return nil
	case paused != "" && now.power == homelabv1.Power_POWER_PAUSED && err == nil:
		return rpc.Errorf(rpc.ErrUnavailable, "VM %d paused again after it was resumed: %s (before: %s); mend what stops it first, then: qm resume %d",
			vmid, now.reason, paused, vmid)
	case err != nil:
		return err
	case lookErr != nil:
		return lookErr
	}
	why := parse.Reason(out.stdout, out.stderr)
	if why == "" {
		why = words(ran) + " said nothing"
	}
	if now.reason != "" {
		why += "; " + now.reason
	}
	return rpc.Errorf(rpc.ErrUnavailable, "VM %d does not run after its start: %s (%s)", vmid, why, words(ran))
}

// lookKnown looks at a VM that was seen to run until QEMU says how it is: on a busy
// host it may let one question wait for too long, and the VM runs no less.
func (d *Driver) lookKnown(ctx context.Context, vmid int32) (*homelabv1.VirtualMachine, error) {
	for limit := time.Now().Add(settleLimit); ; {
		vm, err := d.look(ctx, vmid)
		if err != nil || vm.GetPower() != homelabv1.Power_POWER_UNSPECIFIED || time.Now().After(limit) || !pause.For(ctx, lookAgain) {
			return vm, err
		}
	}
}

// steady looks for steadyFor whether a resumed VM goes on: one that was paused for a
// failed write does until its next.
func (s *session) steady(ctx context.Context, now life) life {
	for limit := time.Now().Add(steadyFor); now.power == homelabv1.Power_POWER_RUNNING && time.Now().Before(limit); {
		if !pause.For(ctx, lookAgain) {
			return now
		}
		now = s.d.living(ctx, s.id.GetVmid())
	}
	return now
}

// settled looks at the VM until it is as wanted, after a program that ended with
// failed.
func (s *session) settled(ctx context.Context, want homelabv1.Power, failed error) (life, error) {
	limit := time.Now().Add(settleLimit)
	if failed != nil {
		limit = time.Now().Add(failedLimit)
	}
	for {
		now := s.d.living(ctx, s.id.GetVmid())
		if now.power == want || time.Now().After(limit) {
			return now, nil
		}
		// A process that is gone does not come back by itself.
		if want == homelabv1.Power_POWER_RUNNING && now.power == homelabv1.Power_POWER_STOPPED {
			return now, nil
		}
		if !pause.For(ctx, lookAgain) {
			return now, rpc.Errorf(rpc.ErrUnavailable, "VM %d: %s: %w", s.id.GetVmid(), now.reason, ctx.Err())
		}
	}
}

// Stop implements driver.Driver. A guest that does not shut down in time still
// runs: to cut its power is for the caller to ask, with force.
func (d *Driver) Stop(ctx context.Context, req *driverv1.StopRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	return d.change(ctx, "stopping", req.GetIdentity(), req.GetDeadline().AsDuration(), report,
		func(ctx context.Context, s *session) (*homelabv1.VirtualMachine, error) {
			// An earlier shutdown holds the VM's lock until its timeout.
			s.overrule = req.GetForce()
			if err := s.stop(ctx, req.GetForce()); err != nil {
				return nil, err
			}
			return d.look(ctx, s.id.GetVmid())
		})
}

func (s *session) stop(ctx context.Context, force bool) error {
	vmid := s.id.GetVmid()
	ran := false
	next := func() (args.Call, bool, error) {
		if _, err := s.mine(); err != nil {
			if errors.Is(err, rpc.ErrNotFound) {
				err = nil // gone is stopped
			}
			return args.Call{}, true, err
		}
		pid, err := s.d.process(vmid)
		if err != nil {
			return args.Call{}, true, rpc.Errorf(rpc.ErrUnavailable, "VM %d: %w", vmid, err)
		}
		if pid == 0 {
			return args.Call{}, true, nil
		}
		if _, err := s.changeable(); err != nil {
			return args.Call{}, true, err
		}
		call, err := s.stopping(ctx, force)
		ran = err == nil
		return call, err != nil, err
	}
	out, err := s.attempt(ctx, next)
	if s.overrule && errors.Is(err, rpc.ErrInvalid) && strings.Contains(err.Error(), "overrule-shutdown") {
		s.overrule = false // a Proxmox that does not know it yet: wait for the shutdown
		out, err = s.attempt(ctx, next)
	}
	if !ran {
		return err
	}
	if errors.Is(err, rpc.ErrUnavailable) && ctx.Err() != nil {
		return err
	}
	now, lookErr := s.settled(ctx, homelabv1.Power_POWER_STOPPED, err)
	switch {
	case now.power == homelabv1.Power_POWER_STOPPED:
		return nil
	case !force && (rpc.KindOf(err) == "" && err != nil || errors.Is(err, rpc.ErrUnavailable)):
		return rpc.Errorf(rpc.ErrUnavailable, "VM %d was asked to shut down and still runs (process %d): %w (to cut its power: qm stop %d)", vmid, now.pid, err, vmid)
	case err != nil:
		return err
	case lookErr != nil:
		return lookErr
	}
	return rpc.Errorf(rpc.ErrUnavailable, "VM %d still runs (process %d): %s", vmid, now.pid, parse.Reason(out.stdout, out.stderr))
}

// stopping is the call that stops a VM whose process lives.
func (s *session) stopping(ctx context.Context, force bool) (args.Call, error) {
	vmid := s.id.GetVmid()
	if !force {
		if now := s.d.living(ctx, vmid); now.power == homelabv1.Power_POWER_PAUSED {
			return args.Call{}, rpc.Errorf(rpc.ErrRefused, "VM %d is paused and cannot shut down: %s (to cut its power: qm stop %d)", vmid, now.reason, vmid)
		}
		// It holds the VM's lock until then: a little before our own deadline.
		seconds := int((remaining(ctx) - 5*time.Second) / time.Second)
		s.report(progress(s.phase, fmt.Sprintf("asking VM %d to shut down", vmid), remaining(ctx)))
		return args.Shutdown(vmid, seconds), nil
	}
	who, err := s.d.worker(vmid)
	if err != nil {
		return args.Call{}, err
	}
	s.report(progress(s.phase, fmt.Sprintf("cutting the power of VM %d", vmid), remaining(ctx)))
	if s.overrule && who.shutdown {
		return args.StopOverruling(vmid), nil
	}
	return args.Stop(vmid), nil
}
