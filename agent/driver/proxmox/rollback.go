package proxmox

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/homeiac/homelab/agent/driver/proxmox/args"
	"github.com/homeiac/homelab/agent/driver/proxmox/parse"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// rollback undoes a create that was broken off, or ends a destroy that was. A half-built VM carries no
// identity, or a clone's mark alone; that it is ours is the caller's to know, who wrote down before the
// create what he was about to do. Destroying it leaves the image that was being
// filled, so the volumes are freed by name: those of the VMID that were not there
// before and that no configuration names. Broken off itself it may be repeated: it
// finds the lock gone, or the configuration gone, and goes on from there.
func (s *session) rollback(ctx context.Context, req *driverv1.DestroyRequest) error {
	vmid := s.id.GetVmid()
	if err := s.idle(ctx); err != nil {
		return err
	}
	// Before anything is removed it must be sure that all of it can be seen.
	c, err := s.remains(req)
	if err != nil {
		return err
	}
	if _, err := s.d.volumes(ctx, vmid, s.report); err != nil {
		return rpc.Errorf(rpc.ErrRefused, "half-built VM %d is not rolled back before all its volumes can be seen: %w", vmid, err)
	}
	if c != nil && c.Lock() != "" {
		s.report(progress(s.phase, fmt.Sprintf("rolling half-built VM %d back", vmid), remaining(ctx)))
		if _, err := s.attempt(ctx, func() (args.Call, bool, error) {
			c, err := s.remains(req)
			return args.Unlock(vmid), c == nil || err != nil || c.Lock() == "", err
		}); err != nil {
			return err
		}
	}
	_, err = s.attempt(ctx, func() (args.Call, bool, error) {
		c, err := s.remains(req)
		return args.Destroy(vmid, false), c == nil || err != nil, err
	})
	if ctx.Err() != nil && err != nil {
		return err
	}
	c, lookErr := s.remains(req)
	switch {
	case lookErr != nil:
		return lookErr
	case c != nil && err != nil:
		return err
	case c != nil:
		return rpc.Errorf(rpc.ErrUnavailable, "half-built VM %d is still there after its destroy", vmid)
	}
	return s.freeNew(ctx, req)
}

// remains reads what is left of a half-built VM; nil is nothing. A whole VM, ours
// too, and anybody's use of the VMID elsewhere are Refused.
func (s *session) remains(req *driverv1.DestroyRequest) (*parse.Config, error) {
	vmid := s.id.GetVmid()
	c, err := s.d.read(vmid)
	switch {
	case errors.Is(err, rpc.ErrNotFound):
		who, err := s.d.elsewhere(vmid)
		if err != nil {
			return nil, err
		}
		if who != "" {
			return nil, rpc.Errorf(rpc.ErrRefused, "VMID %d is taken by %s: its volumes are not ours to free", vmid, who)
		}
		return nil, nil
	case err != nil:
		return nil, err
	case c.HalfBuilt():
		return c, nil
	case s.from != nil && halfCloned(s.id, c), req.GetTemplate() && torn(s.id, c):
		return c, s.removable(c, req)
	}
	if err := ours(s.id, c); err != nil {
		return nil, err
	}
	return nil, rpc.Errorf(rpc.ErrRefused, "VM %d is whole, not half-built: it is finished by creating it again, not rolled back", vmid)
}

// torn tells whether a VM is what qm template leaves that is killed: marked as a
// template, while its disk is not the base volume of one yet, or not called so.
func torn(id *homelabv1.Identity, c *parse.Config) bool {
	return ours(id, c) == nil && c.Template() && !slices.ContainsFunc(c.Volumes(), isBase)
}

// removable refuses what of a half-built VM that has a configuration is not to be
// destroyed: qm destroy takes each volume of that VMID that it names.
func (s *session) removable(c *parse.Config, req *driverv1.DestroyRequest) error {
	vmid := s.id.GetVmid()
	switch pid, _, err := s.d.anyProcess(vmid); {
	case err != nil:
		return rpc.Errorf(rpc.ErrUnavailable, "VM %d: %w", vmid, err)
	case pid != 0:
		return s.refuse(c, "it is half-built, but runs; stop it first")
	case c.Protection():
		return s.refuse(c, "its protection is on (qm set %d --protection 0)", vmid)
	}
	others, err := s.d.naming(vmid)
	if err != nil {
		return err
	}
	for _, v := range c.Volumes() {
		switch {
		case parse.Owner(v) != vmid:
		case slices.Contains(req.GetVolumesBefore(), v), slices.Contains(req.GetKeep(), v):
			return s.refuse(c, "its %s was there before it (qm config %d)", v, vmid)
		case isBase(v), others.has(v):
			return s.refuse(c, "others stand on its %s, or name it", v)
		}
	}
	return nil
}

// freeNew frees the VMID's volumes that were not there before the create.
func (s *session) freeNew(ctx context.Context, req *driverv1.DestroyRequest) error {
	vmid := s.id.GetVmid()
	listed, err := s.d.volumes(ctx, vmid, s.report)
	if err != nil {
		return err
	}
	named, err := s.d.naming(0)
	if err != nil {
		return err
	}
	var free []string
	for _, v := range listed {
		// Only volumes of a name that Proxmox gives: a file that a person put into
		// the folder is not from a create.
		if parse.Owner(v.Volid) != vmid || slices.Contains(req.GetVolumesBefore(), v.Volid) ||
			slices.Contains(req.GetKeep(), v.Volid) || named.has(v.Volid) {
			continue
		}
		// Only the rollback of a template frees what clones could stand on.
		if isBase(v.Volid) && !req.GetTemplate() {
			continue
		}
		free = append(free, v.Volid)
	}
	for _, v := range free {
		if _, err := s.attempt(ctx, func() (args.Call, bool, error) {
			_, err := s.remains(req)
			return args.Free(v, vmid), err != nil, err
		}); err != nil {
			return err
		}
	}
	left, err := s.still(ctx, free)
	if err != nil || len(left) == 0 {
		return err
	}
	return rpc.Errorf(rpc.ErrUnavailable, "half-built VM %d is rolled back, but its volume %s is still there (pvesm free %s)", vmid, left[0], left[0])
}
