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
	"github.com/homeiac/homelab/internal/mark"
	"github.com/homeiac/homelab/internal/rpc"
)

// Destroy implements driver.Driver. A whole VM is claimed first: Proxmox writes the
// description that is there already, if the configuration is still the one that was
// looked at. Then it is read once more, and destroyed.
func (d *Driver) Destroy(ctx context.Context, req *driverv1.DestroyRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	return d.change(ctx, "destroying", req.GetIdentity(), req.GetDeadline().AsDuration(), report,
		func(ctx context.Context, s *session) (*homelabv1.VirtualMachine, error) {
			var err error
			if s.from = req.GetClonedFrom(); req.GetHalfBuilt() {
				err = s.rollback(ctx, req)
			} else {
				err = s.destroy(ctx, req)
			}
			if err != nil {
				return nil, err
			}
			return d.look(ctx, s.id.GetVmid())
		})
}

func (s *session) destroy(ctx context.Context, req *driverv1.DestroyRequest) error {
	vmid := s.id.GetVmid()
	claimed, err := s.claim(ctx, req)
	if claimed == nil || err != nil {
		return err
	}
	var own []string
	out, err := s.attempt(ctx, func() (args.Call, bool, error) {
		c, err := s.destroyable(req)
		if c == nil || err != nil {
			return args.Call{}, true, err
		}
		if !slices.Equal(c.Volumes(), claimed.Volumes()) || len(c.Snapshots) != len(claimed.Snapshots) {
			return args.Call{}, true, rpc.Errorf(rpc.ErrRefused, "VM %d changed while it was to be destroyed; look at it and try again (qm config %d)", vmid, vmid)
		}
		own = nil
		for _, v := range c.Volumes() {
			if parse.Owner(v) == vmid {
				own = append(own, v)
			}
		}
		s.report(progress(s.phase, fmt.Sprintf("destroying VM %d (%s)", vmid, c.Name()), remaining(ctx)))
		return args.Destroy(vmid, req.GetPurge()), false, nil
	})
	if ctx.Err() != nil && err != nil {
		return err
	}
	if _, lookErr := s.d.read(vmid); !errors.Is(lookErr, rpc.ErrNotFound) {
		switch {
		case err != nil:
			return err
		case lookErr != nil:
			return lookErr
		}
		return rpc.Errorf(rpc.ErrUnavailable, "VM %d is still there after its destroy: %s", vmid, parse.Reason(out.stdout, out.stderr))
	}
	return s.freed(ctx, own, parse.Warnings(out.stdout))
}

// claim proves that the VM is still the one that was looked at, by Proxmox's own
// compare-and-swap, and gives its configuration as it is then. Gone: nil.
func (s *session) claim(ctx context.Context, req *driverv1.DestroyRequest) (*parse.Config, error) {
	vmid := s.id.GetVmid()
	for tries := 0; ; tries++ {
		var seen *parse.Config
		err := s.attemptOnce(ctx, func() (args.Call, bool, error) {
			c, err := s.destroyable(req)
			seen = c
			if c == nil || err != nil {
				return args.Call{}, true, err
			}
			if err := s.active(ctx, c); err != nil {
				return args.Call{}, true, err
			}
			return args.Describe(vmid, c.Main.Description, c.Digest), false, nil
		})
		if seen == nil {
			return nil, err
		}
		// The file changed between the look and the claim: look again.
		if errors.Is(err, rpc.ErrBusy) && tries < 3 {
			continue
		}
		return seen, err
	}
}

// attemptOnce is attempt without a second try: the caller must look again.
func (s *session) attemptOnce(ctx context.Context, next func() (args.Call, bool, error)) error {
	if err := s.idle(ctx); err != nil {
		return err
	}
	call, done, err := next()
	if done || err != nil {
		return err
	}
	_, err = s.d.exec(ctx, call, nil, s.report)
	return err
}

// destroyable reads the VM and gives its configuration when it is ours and nothing
// speaks against its end. Gone: nil.
func (s *session) destroyable(req *driverv1.DestroyRequest) (*parse.Config, error) {
	vmid := s.id.GetVmid()
	c, err := s.mine()
	if errors.Is(err, rpc.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	refuse := func(format string, a ...any) error { return s.refuse(c, format, a...) }
	ha, err := s.d.haManaged()
	if err != nil {
		return nil, err
	}
	switch pid, stray, err := s.d.anyProcess(vmid); {
	case err != nil:
		return nil, rpc.Errorf(rpc.ErrUnavailable, "VM %d: %w", vmid, err)
	case stray:
		return nil, refuse("it runs, though its pid file is gone; end process %d first (kill %d)", pid, pid)
	case pid != 0:
		return nil, refuse("it runs; stop it first")
	case ha[vmid]:
		return nil, refuse("Proxmox HA manages it")
	case c.Protection():
		return nil, refuse("its protection is on (qm set %d --protection 0)", vmid)
	case len(c.Snapshots) > 0 && !req.GetNamed():
		return nil, refuse("it has snapshots: %s", strings.Join(c.SnapshotNames(), ", "))
	case len(c.Pending.Keys) > 0 && !req.GetNamed():
		return nil, refuse("changes of it wait for its next start: %s (qm pending %d)", strings.Join(sortedKeys(c.Pending.Keys), ", "), vmid)
	}
	if kept := keeps(c, req); kept != "" {
		return nil, refuse("it still holds %s, which is to be kept", kept)
	}
	if holds(s.id, c) && len(c.Volumes()) > 0 {
		return nil, refuse("it is a holder VM and still holds %s", strings.Join(c.Volumes(), ", "))
	}
	clones, err := s.d.linkedClones(vmid, c, freshVM)
	if err != nil {
		return nil, err
	}
	if len(clones) > 0 {
		return nil, refuse("other VMs stand on its disks: %s", strings.Join(clones, ", "))
	}
	switch {
	case c.Template() && !req.GetTemplate():
		return nil, refuse("it is a template")
	case req.GetTemplate() && !c.Template():
		return nil, refuse("it is no template")
	case req.GetTemplate() && c.Lock() != "":
		return nil, rpc.Errorf(rpc.ErrBusy, "template %d is locked (%s)", vmid, c.Lock())
	}
	others, err := s.d.naming(vmid)
	if err != nil {
		return nil, err
	}
	for _, v := range c.Volumes() {
		if parse.Owner(v) == vmid && others.has(v) {
			return nil, refuse("another guest's configuration names its %s too", v)
		}
	}
	return c, nil
}

// keeps says what to be kept stands in the configuration, in any part of it; empty
// is nothing.
func keeps(c *parse.Config, req *driverv1.DestroyRequest) string {
	for _, v := range c.Volumes() {
		if slices.Contains(req.GetKeep(), v) {
			return v
		}
	}
	for _, section := range c.Sections() {
		for _, drive := range section.Drives() {
			if slices.Contains(req.GetKeepSlots(), drive.Slot) && !drive.CDROM {
				return fmt.Sprintf("%s at %s", drive.Volid, drive.Slot)
			}
		}
	}
	return ""
}

// holds tells whether a VM only holds the disks of others, by its mark.
func holds(id *homelabv1.Identity, c *parse.Config) bool {
	m, err := mark.Parse(c.Mark())
	return strings.HasPrefix(id.GetGuest(), holderPrefix) || err == nil && strings.HasPrefix(m.Guest, holderPrefix)
}

// holderPrefix begins the guest's name in a holder VM's mark.
const holderPrefix = "holder@"

func (s *session) refuse(c *parse.Config, format string, a ...any) error {
	return rpc.Errorf(rpc.ErrRefused, "VM %d (%s) is not destroyed: %s", s.id.GetVmid(), c.Name(), fmt.Sprintf(format, a...))
}
