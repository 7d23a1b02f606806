package proxmox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/homeiac/homelab/agent/driver"
	"github.com/homeiac/homelab/agent/driver/proxmox/args"
	"github.com/homeiac/homelab/agent/driver/proxmox/parse"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/human"
	"github.com/homeiac/homelab/internal/rpc"
)

// clone is Create from a template: one pvesm status, one qm clone, one qm set that
// gives the clone its identity and all the rest, and a resize. Between clone and set
// the VM has our mark and nothing else that is ours; only this call, which saw it
// being made, goes on from there. To any other it is half-built.
func (d *Driver) clone(ctx context.Context, req *driverv1.CreateRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	call, err := args.Clone(req, req.GetHardware().GetSystemDisk().GetStorage())
	if err != nil {
		return nil, err
	}
	return d.change(ctx, "creating", req.GetIdentity(), req.GetDeadline().AsDuration(), report,
		func(ctx context.Context, s *session) (*homelabv1.VirtualMachine, error) {
			s.from = req.GetTemplate()
			begun := false // by this call: from then on the bare clone is what was asked for
			there := func() (bool, error) {
				if begun {
					if c, err := s.d.read(s.id.GetVmid()); err == nil && halfCloned(s.id, c) && c.Lock() == "" && !c.CloneBegun() {
						return true, nil
					}
				}
				return s.there()
			}
			how := fmt.Sprintf("as a full clone of template %d", s.from.GetVmid())
			if req.GetLinked() {
				how = fmt.Sprintf("as a linked clone of template %d", s.from.GetVmid())
			}
			err := s.make(ctx, call, how, there, func() error {
				if err := d.preflight(ctx, req, report); err != nil {
					return err
				}
				begun = true
				return nil
			})
			if err != nil && !s.cloned(ctx, begun) {
				return nil, err
			}
			if err := s.configure(ctx, req, begun); err != nil {
				return nil, err
			}
			return s.finish(ctx, req)
		})
}

// cloned tells whether a clone that said it failed is there all the same, whole and
// unlocked: what is seen counts.
func (s *session) cloned(ctx context.Context, begun bool) bool {
	if !begun || ctx.Err() != nil {
		return false
	}
	c, err := s.d.read(s.id.GetVmid())
	return err == nil && halfCloned(s.id, c) && c.Lock() == "" && !c.CloneBegun()
}

// configure gives the clone its identity and everything that the template does not
// have, in one change that Proxmox makes only of the configuration that was seen.
func (s *session) configure(ctx context.Context, req *driverv1.CreateRequest, begun bool) error {
	vmid, slot := s.id.GetVmid(), req.GetHardware().GetSystemDisk().GetSlot()
	_, err := s.attempt(ctx, func() (args.Call, bool, error) {
		c, err := s.d.read(vmid)
		switch {
		case errors.Is(err, rpc.ErrNotFound):
			return args.Call{}, true, rpc.Errorf(rpc.ErrUnavailable, "qm clone said that it was done, but there is no VM %d", vmid)
		case err != nil:
			return args.Call{}, true, err
		case ours(s.id, c) == nil:
			return args.Call{}, true, nil
		case !begun || !halfCloned(s.id, c) || c.Lock() != "" || c.CloneBegun():
			_, err := s.mine()
			return args.Call{}, true, err
		}
		drive, ok := c.Drive(slot)
		if !ok || !drive.Disk() || parse.Owner(drive.Volid) != vmid {
			return args.Call{}, true, rpc.Errorf(rpc.ErrRefused, "VM %d was cloned but lacks disk %s of its own (qm config %d)", vmid, slot, vmid)
		}
		return args.Configure(req, drive.Volid, c.Digest), false, nil
	})
	if err == nil {
		return nil
	}
	c, lookErr := s.d.read(vmid)
	switch {
	case lookErr == nil && ours(s.id, c) == nil:
		return nil
	case lookErr == nil && begun && halfCloned(s.id, c):
		// Not Refused, whatever it was: the clone is there.
		return rpc.Errorf(rpc.ErrUnavailable, "VM %d is cloned but has not got its identity; the next hlctl apply removes it and tries again: %w", vmid, err)
	}
	return err
}

// halfCloned tells whether a VM is a clone that was begun for this identity and has
// not got it: what qm clone writes first, or our mark, alone, on a VM with another
// uuid. A clone that anybody makes of a VM of ours looks the same, so that it is ours
// an open intent must say.
func halfCloned(id *homelabv1.Identity, c *parse.Config) bool {
	if c.CloneBegun() {
		return true
	}
	return !c.Template() && len(c.Snapshots) == 0 && (c.Lock() == "" || c.Lock() == "clone") &&
		id.GetMark() != "" && c.Main.Description == id.GetMark() && c.UUID() != strings.ToLower(id.GetUuid())
}

// linking are the types of storage on which a clone can stand on its template's disk
// (PVE/Storage/*Plugin.pm).
var linking = []string{"dir", "nfs", "cifs", "cephfs", "glusterfs", "btrfs", "zfspool", "zfs", "lvmthin", "rbd"}

// templateFaults says why a VM cannot be cloned from its template, which is looked at
// now.
func (d *Driver) templateFaults(req *driverv1.CreateRequest, storages []parse.StorageConfig) ([]string, error) {
	id, system := req.GetTemplate(), req.GetHardware().GetSystemDisk()
	c, err := d.read(id.GetVmid())
	if errors.Is(err, rpc.ErrNotFound) {
		return []string{fmt.Sprintf("there is no template %d", id.GetVmid())}, nil
	}
	if err != nil {
		return nil, err
	}
	if other := ours(id, c); other != nil {
		return []string{other.Error()}, nil //nolint:nilerr // it is one of the faults
	}
	drive, ok := c.Drive(system.GetSlot())
	switch {
	case !c.Template():
		return []string{fmt.Sprintf("VM %d is no template", id.GetVmid())}, nil
	case !ok || !isBase(drive.Volid):
		return []string{fmt.Sprintf("template %d has no disk %s that clones can be made of", id.GetVmid(), system.GetSlot())}, nil
	}
	var faults []string
	for _, other := range c.Main.Drives() {
		if other.Slot != system.GetSlot() && other.Volume() && !parse.ISO(other.Volid) {
			faults = append(faults, fmt.Sprintf("template %d has another disk, %s at %s, which each clone would get too", id.GetVmid(), other.Volid, other.Slot))
		}
	}
	if drive.SizeBytes > system.GetSizeBytes() {
		faults = append(faults, fmt.Sprintf("the system disk is to have %s, but that of template %d has %s",
			human.Size(system.GetSizeBytes()), id.GetVmid(), human.Size(drive.SizeBytes)))
	}
	if !req.GetLinked() {
		return faults, nil
	}
	on := parse.Storage(drive.Volid)
	i := slices.IndexFunc(storages, func(s parse.StorageConfig) bool { return s.Name == on })
	switch {
	case on != system.GetStorage():
		faults = append(faults, fmt.Sprintf("the system disk is to be on storage %s, but a linked clone of template %d is on %s", system.GetStorage(), id.GetVmid(), on))
	case i >= 0 && !slices.Contains(linking, storages[i].Type):
		faults = append(faults, fmt.Sprintf("storage %s, of type %s, has no linked clones", on, storages[i].Type))
	}
	return faults, nil
}
