package proxmox

import (
	"context"
	"fmt"

	"github.com/homeiac/homelab/agent/driver"
	"github.com/homeiac/homelab/agent/driver/proxmox/args"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// Reset implements driver.Powers. QEMU presses the button, so the guest need not
// answer, but QEMU must. Asked again it is pressed again: nothing tells one boot
// from another. A paused VM stays paused.
func (d *Driver) Reset(ctx context.Context, req *driverv1.ResetRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	return d.change(ctx, "resetting", req.GetIdentity(), req.GetDeadline().AsDuration(), report,
		func(ctx context.Context, s *session) (*homelabv1.VirtualMachine, error) {
			vmid := s.id.GetVmid()
			if _, err := s.attempt(ctx, func() (args.Call, bool, error) {
				if _, err := s.changeable(); err != nil {
					return args.Call{}, true, err
				}
				pid, err := d.process(vmid)
				switch {
				case err != nil:
					return args.Call{}, true, rpc.Errorf(rpc.ErrUnavailable, "VM %d: %w", vmid, err)
				case pid == 0:
					return args.Call{}, true, rpc.Errorf(rpc.ErrRefused, "VM %d is stopped and has nothing to reset (qm start %d)", vmid, vmid)
				}
				s.report(progress(s.phase, fmt.Sprintf("resetting VM %d", vmid), remaining(ctx)))
				return args.Reset(vmid), false, nil
			}); err != nil {
				return nil, err
			}
			if pid, err := d.process(vmid); err != nil || pid == 0 {
				return nil, rpc.Errorf(rpc.ErrUnavailable, "VM %d does not run after its reset (qm start %d)", vmid, vmid)
			}
			return d.lookKnown(ctx, vmid)
		})
}
