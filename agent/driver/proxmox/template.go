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
	"github.com/homeiac/homelab/internal/rpc"
)

// CreateTemplate implements driver.Powers: one pvesm status, one qm create, one qm
// template.
func (d *Driver) CreateTemplate(ctx context.Context, req *driverv1.CreateTemplateRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	call, err := args.CreateTemplate(req)
	if err != nil {
		return nil, err
	}
	return d.change(ctx, "creating", req.GetIdentity(), req.GetDeadline().AsDuration(), report,
		func(ctx context.Context, s *session) (*homelabv1.VirtualMachine, error) {
			err := s.make(ctx, call, "from "+req.GetImagePath(), s.there, func() error { return d.templatePreflight(ctx, req, report) })
			if err != nil {
				return nil, err
			}
			if err := s.convert(ctx); err != nil {
				return nil, err
			}
			return d.look(ctx, s.id.GetVmid())
		})
}

// convert makes a template of the session's VM, and sees that its disk is a base
// volume.
func (s *session) convert(ctx context.Context) error {
	vmid := s.id.GetVmid()
	out, failed := s.attempt(ctx, func() (args.Call, bool, error) {
		c, err := s.convertible()
		switch {
		case err != nil:
			return args.Call{}, true, err
		case !c.Template():
			s.report(progress(s.phase, fmt.Sprintf("making a template of VM %d", vmid), remaining(ctx)))
			return args.Template(vmid), false, nil
		}
		return args.TemplateDisk(vmid, args.SystemSlot), based(c), nil
	})
	if ctx.Err() != nil && failed != nil {
		return failed
	}
	c, err := s.mine()
	switch {
	case errors.Is(err, rpc.ErrNotFound):
		return rpc.Errorf(rpc.ErrUnavailable, "qm create said that it was done, but there is no VM %d", vmid)
	case err != nil:
		return err
	case c.Template() && based(c):
		return nil
	case failed != nil:
		return failed
	}
	return rpc.Errorf(rpc.ErrUnavailable, "VM %d is no template after qm template: %s", vmid, parse.Reason(out.stdout, out.stderr))
}

// convertible reads the VM and refuses what is not to become a template.
func (s *session) convertible() (*parse.Config, error) {
	vmid := s.id.GetVmid()
	c, err := s.mine()
	if err != nil {
		return nil, err
	}
	if drive, ok := c.Drive(args.SystemSlot); !ok || !drive.Disk() || drive.SizeBytes == 0 {
		return nil, rpc.Errorf(rpc.ErrRefused, "VM %d was created but lacks disk %s (qm config %d)", vmid, args.SystemSlot, vmid)
	}
	switch pid, _, err := s.d.anyProcess(vmid); {
	case err != nil:
		return nil, rpc.Errorf(rpc.ErrUnavailable, "VM %d: %w", vmid, err)
	case pid != 0:
		return nil, rpc.Errorf(rpc.ErrRefused, "VM %d runs (process %d), so it is made no template; stop it first", vmid, pid)
	}
	return c, nil
}

// based tells whether the system disk of a template is what its clones can stand on.
// A conversion that was broken off has marked the VM, and has not renamed the volume
// or not said so.
func based(c *parse.Config) bool {
	drive, ok := c.Drive(args.SystemSlot)
	return ok && isBase(drive.Volid)
}

// isBase tells whether a volume is one that clones stand on. Nobody's rollback frees
// one but its template's own.
func isBase(volid string) bool {
	name := baseName(volid)
	return strings.HasPrefix(name, "base-") || strings.HasPrefix(name, "basevol-")
}

// templatePreflight is preflight for a template.
func (d *Driver) templatePreflight(ctx context.Context, req *driverv1.CreateTemplateRequest, report driver.Report) error {
	size, fault := d.importable(req.GetImagePath())
	node, faults, _, err := d.storageCheck(ctx, map[string]int64{req.GetStorage(): size}, report)
	if err != nil {
		return err
	}
	if fault != "" {
		faults = append(faults, fault)
	}
	if len(faults) > 0 {
		return rpc.Errorf(rpc.ErrRefused, "template %d cannot be created on %s: %s", req.GetIdentity().GetVmid(), node, strings.Join(faults, "; "))
	}
	return nil
}

// Storages implements driver.Powers.
func (d *Driver) Storages(ctx context.Context) ([]*homelabv1.Storage, error) {
	m, err := d.members()
	if err != nil {
		return nil, err
	}
	configs, err := d.storages(m.NodeName)
	if err != nil {
		return nil, err
	}
	out, err := d.exec(ctx, args.Storages(), nil, func(*homelabv1.Event) {})
	if err != nil {
		return nil, err
	}
	status := parse.PvesmStatus(out.stdout)
	var all []*homelabv1.Storage
	for _, c := range configs {
		st := &homelabv1.Storage{Name: c.Name, Type: c.Type, Content: c.Content, Shared: c.Shared, Path: c.Path}
		i := slices.IndexFunc(status, func(s parse.StorageStatus) bool { return s.Name == c.Name })
		switch {
		case i < 0:
			st.Active, st.SpaceKnown = unknown("pvesm status does not tell of it"), unknown("pvesm status does not tell of it")
		case status[i].Status != "active":
			why := status[i].Status
			if said := parse.Reason("", out.stderr); said != "" {
				why += ": " + said
			}
			st.Active, st.SpaceKnown = no("%s", why), unknown("%s", why)
		default:
			st.Active, st.SpaceKnown = yes(), yes()
			st.TotalBytes, st.FreeBytes = status[i].TotalBytes, status[i].AvailableBytes
		}
		all = append(all, st)
	}
	return all, nil
}
