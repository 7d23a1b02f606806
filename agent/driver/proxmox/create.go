package proxmox

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/homeiac/homelab/agent/driver"
	"github.com/homeiac/homelab/agent/driver/proxmox/args"
	"github.com/homeiac/homelab/agent/driver/proxmox/parse"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/human"
	"github.com/homeiac/homelab/internal/rpc"
)

// Create implements driver.Driver: one pvesm status, one qm create, and a resize
// when the image is smaller than the system disk.
func (d *Driver) Create(ctx context.Context, req *driverv1.CreateRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	if req.GetTemplate() != nil {
		return d.clone(ctx, req, report)
	}
	call, err := args.Create(req)
	if err != nil {
		return nil, err
	}
	return d.change(ctx, "creating", req.GetIdentity(), req.GetDeadline().AsDuration(), report,
		func(ctx context.Context, s *session) (*homelabv1.VirtualMachine, error) {
			if err := s.create(ctx, req, call); err != nil {
				return nil, err
			}
			return s.finish(ctx, req)
		})
}

// create makes the VM unless it is there.
func (s *session) create(ctx context.Context, req *driverv1.CreateRequest, call args.Call) error {
	return s.make(ctx, call, "from "+req.GetImagePath(), s.there, func() error { return s.d.preflight(ctx, req, s.report) })
}

// make runs the call that makes the VM, unless isThere says that there is one
// already, once check has nothing against it.
func (s *session) make(ctx context.Context, call args.Call, how string, isThere func() (bool, error), check func() error) error {
	checked := false
	_, err := s.attempt(ctx, func() (args.Call, bool, error) {
		there, err := isThere()
		if there || err != nil {
			return call, true, err
		}
		if !checked {
			if err := check(); err != nil {
				return call, true, err
			}
			checked = true
			// Looking took a second; somebody may have taken the VMID meanwhile.
			if there, err := isThere(); there || err != nil {
				return call, true, err
			}
		}
		s.report(progress(s.phase, fmt.Sprintf("creating VM %d %s", s.id.GetVmid(), how), remaining(ctx)))
		return call, false, nil
	})
	if err == nil {
		return nil // the caller looks whether it is so
	}
	if errors.Is(err, rpc.ErrExists) {
		// Somebody was faster: this says who, and whether it was an earlier try of ours.
		there, lookErr := isThere()
		if there && lookErr == nil {
			return nil
		}
		if lookErr != nil {
			return lookErr
		}
		return rpc.Errorf(rpc.ErrRefused, "VM %d: %w", s.id.GetVmid(), err)
	}
	return err
}

// there tells whether the VM is there and ours. Anybody else's VM, container or
// half-built VM at its VMID is Refused.
func (s *session) there() (bool, error) {
	_, err := s.mine()
	if err == nil {
		return true, nil
	}
	if !errors.Is(err, rpc.ErrNotFound) {
		return false, err
	}
	who, err := s.d.elsewhere(s.id.GetVmid())
	if err != nil {
		return false, err
	}
	if who != "" {
		return false, rpc.Errorf(rpc.ErrRefused, "VMID %d is taken by %s; give the guest another VMID in the Spec", s.id.GetVmid(), who)
	}
	return false, nil
}

// finish makes the system disk as large as wanted and checks that the VM has what
// was asked for, by what its configuration says now.
func (s *session) finish(ctx context.Context, req *driverv1.CreateRequest) (*homelabv1.VirtualMachine, error) {
	c, err := s.mine()
	if errors.Is(err, rpc.ErrNotFound) {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "qm create said that it was done, but there is no VM %d", s.id.GetVmid())
	}
	if err != nil {
		return nil, err
	}
	hw := req.GetHardware()
	if missing := missingParts(c, req); missing != "" {
		return nil, rpc.Errorf(rpc.ErrRefused, "VM %d was created but lacks %s (qm config %d)", s.id.GetVmid(), missing, s.id.GetVmid())
	}
	if err := s.grow(ctx, hw.GetSystemDisk()); err != nil {
		return nil, err
	}
	return s.d.look(ctx, s.id.GetVmid())
}

// missingParts says what a VM lacks of what it was created with; empty is nothing.
func missingParts(c *parse.Config, req *driverv1.CreateRequest) string {
	hw := req.GetHardware()
	var missing []string
	for _, want := range append([]*homelabv1.Disk{hw.GetSystemDisk()}, hw.GetDataDisks()...) {
		if drive, ok := c.Drive(want.GetSlot()); !ok || !drive.Disk() {
			missing = append(missing, "disk "+want.GetSlot())
		} else if drive.SizeBytes == 0 {
			missing = append(missing, "a size of disk "+want.GetSlot())
		}
	}
	if drive, ok := c.Drive(args.CloudInitSlot); !ok || !strings.Contains(drive.Volid, "cloudinit") {
		missing = append(missing, "the cloud-init drive "+args.CloudInitSlot)
	}
	if want := req.GetCdrom(); want != "" {
		if drive, ok := c.Drive(args.CDROMSlot); !ok || drive.Volid != want || !drive.CDROM {
			missing = append(missing, fmt.Sprintf("%s in its drive %s", want, args.CDROMSlot))
		}
	}
	nics := c.NICs()
	for i, want := range hw.GetNics() {
		if i >= len(nics) || nics[i].MAC != want.GetMac() {
			missing = append(missing, fmt.Sprintf("net%d with %s", i, want.GetMac()))
		}
	}
	return strings.Join(missing, ", ")
}

// grow makes a disk at least as large as wanted. A resize that fails exits 0, so
// its size is read again.
func (s *session) grow(ctx context.Context, want *homelabv1.Disk) error {
	var had int64
	out, err := s.attempt(ctx, func() (args.Call, bool, error) {
		drive, err := s.disk(want.GetSlot())
		if err != nil || drive.SizeBytes >= want.GetSizeBytes() {
			return args.Call{}, true, err
		}
		if _, err := s.changeable(); err != nil {
			return args.Call{}, true, err
		}
		had = drive.SizeBytes
		s.report(progress("resizing", fmt.Sprintf("disk %s of VM %d: %s to %s", want.GetSlot(), s.id.GetVmid(),
			human.Size(had), human.Size(want.GetSizeBytes())), remaining(ctx)))
		return args.Resize(s.id.GetVmid(), want.GetSlot(), want.GetSizeBytes()), false, nil
	})
	if err != nil {
		return err
	}
	drive, err := s.disk(want.GetSlot())
	if err != nil {
		return err
	}
	if drive.SizeBytes < want.GetSizeBytes() {
		why := parse.Reason(out.stdout, out.stderr)
		kind := parse.Kind(out.stdout, out.stderr)
		if kind == "" {
			kind = rpc.ErrRefused
		}
		return rpc.Errorf(kind, "disk %s of VM %d has %s after the resize to %s: %s", want.GetSlot(), s.id.GetVmid(),
			human.Size(drive.SizeBytes), human.Size(want.GetSizeBytes()), why)
	}
	return nil
}

// disk reads one of the VM's disks now.
func (s *session) disk(slot string) (parse.Drive, error) {
	c, err := s.mine()
	if err != nil {
		return parse.Drive{}, err
	}
	drive, ok := c.Drive(slot)
	if !ok || !drive.Disk() {
		return parse.Drive{}, rpc.Errorf(rpc.ErrRefused, "VM %d has no disk %s", s.id.GetVmid(), slot)
	}
	return drive, nil
}
