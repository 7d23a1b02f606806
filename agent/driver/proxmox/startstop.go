package proxmox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/homeiac/homelab/agent/driver"
	"github.com/homeiac/homelab/agent/driver/proxmox/args"
	"github.com/homeiac/homelab/agent/driver/proxmox/parse"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/pause"
	"github.com/homeiac/homelab/internal/rpc"
)

// settleLimit is how long after a start or stop the VM's process is looked for.
const settleLimit = 10 * time.Second

// Start implements driver.Driver. A paused VM is not resumed: why it is paused
// (io-error, a person) is not the driver's to judge.
func (d *Driver) Start(ctx context.Context, req *driverv1.StartRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	return d.change(ctx, "starting", req.GetIdentity(), req.GetDeadline().AsDuration(), report,
		func(ctx context.Context, s *session) (*homelabv1.VirtualMachine, error) {
			if err := s.start(ctx); err != nil {
				return nil, err
			}
			return d.look(ctx, s.id.GetVmid())
		})
}

func (s *session) start(ctx context.Context) error {
	vmid := s.id.GetVmid()
	ran := false
	out, err := s.attempt(ctx, func() (args.Call, bool, error) {
		if _, err := s.mine(); err != nil {
			return args.Call{}, true, err
		}
		switch now := s.d.living(ctx, vmid); {
		case now.power == homelabv1.Power_POWER_RUNNING:
			return args.Call{}, true, nil
		case now.power == homelabv1.Power_POWER_PAUSED:
			return args.Call{}, true, rpc.Errorf(rpc.ErrRefused, "VM %d is paused: %s (qm resume %d)", vmid, now.reason, vmid)
		case now.power != homelabv1.Power_POWER_STOPPED:
			return args.Call{}, true, rpc.Errorf(rpc.ErrUnavailable, "VM %d: %s", vmid, now.reason)
		}
		if _, err := s.changeable(); err != nil {
			return args.Call{}, true, err
		}
		ran = true
		s.report(progress(s.phase, fmt.Sprintf("starting VM %d", vmid), remaining(ctx)))
		return args.Start(vmid), false, nil
	})
	if !ran {
		return err
	}
	if errors.Is(err, rpc.ErrUnavailable) && ctx.Err() != nil {
		return err
	}
	// What counts is whether it runs, whatever qm said.
	now, lookErr := s.settled(ctx, homelabv1.Power_POWER_RUNNING)
	switch {
	case now.power == homelabv1.Power_POWER_RUNNING:
		return nil
	case err != nil:
		return err
	case lookErr != nil:
		return lookErr
	}
	why := parse.Reason(out.stdout, out.stderr)
	if why == "" {
		why = "qm start said nothing"
	}
	if now.reason != "" {
		why += "; " + now.reason
	}
	return rpc.Errorf(rpc.ErrUnavailable, "VM %d does not run after its start: %s (qm start %d)", vmid, why, vmid)
}

// settled looks at the VM until it is as wanted, for settleLimit at most.
func (s *session) settled(ctx context.Context, want homelabv1.Power) (life, error) {
	limit := time.Now().Add(settleLimit)
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

// Stop implements driver.Driver.
func (d *Driver) Stop(ctx context.Context, req *driverv1.StopRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	return d.change(ctx, "stopping", req.GetIdentity(), req.GetDeadline().AsDuration(), report,
		func(ctx context.Context, s *session) (*homelabv1.VirtualMachine, error) {
			if err := s.stop(ctx, req.GetForce()); err != nil {
				return nil, err
			}
			return d.look(ctx, s.id.GetVmid())
		})
}

func (s *session) stop(ctx context.Context, force bool) error {
	vmid := s.id.GetVmid()
	ran := false
	out, err := s.attempt(ctx, func() (args.Call, bool, error) {
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
		ran = true
		if force {
			s.report(progress(s.phase, fmt.Sprintf("cutting the power of VM %d", vmid), remaining(ctx)))
			return args.Stop(vmid), false, nil
		}
		// It holds the VM's lock until then: a little before our own deadline.
		seconds := int((remaining(ctx) - 5*time.Second) / time.Second)
		s.report(progress(s.phase, fmt.Sprintf("asking VM %d to shut down", vmid), remaining(ctx)))
		return args.Shutdown(vmid, seconds), false, nil
	})
	if !ran {
		return err
	}
	if errors.Is(err, rpc.ErrUnavailable) && ctx.Err() != nil {
		return err
	}
	now, lookErr := s.settled(ctx, homelabv1.Power_POWER_STOPPED)
	switch {
	case now.power == homelabv1.Power_POWER_STOPPED:
		return nil
	case err != nil:
		return err
	case lookErr != nil:
		return lookErr
	}
	return rpc.Errorf(rpc.ErrUnavailable, "VM %d still runs (process %d): %s", vmid, now.pid, parse.Reason(out.stdout, out.stderr))
}
