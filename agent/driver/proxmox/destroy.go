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

// Destroy implements driver.Driver. A whole VM is claimed first: Proxmox writes the
// description that is there already, if the configuration is still the one that was
// looked at. Then it is read once more, and destroyed.
func (d *Driver) Destroy(ctx context.Context, req *driverv1.DestroyRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	return d.change(ctx, "destroying", req.GetIdentity(), req.GetDeadline().AsDuration(), report,
		func(ctx context.Context, s *session) (*homelabv1.VirtualMachine, error) {
			var err error
			if req.GetHalfBuilt() {
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
		for _, v := range c.Volumes() {
			if parse.Owner(v) == vmid {
				own = append(own, v)
			}
		}
		s.report(progress(s.phase, fmt.Sprintf("destroying VM %d (%s)", vmid, c.Name()), remaining(ctx)))
		return args.Destroy(vmid, false), false, nil
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
		_, err := s.attemptOnce(ctx, func() (args.Call, bool, error) {
			c, err := s.destroyable(req)
			seen = c
			if c == nil || err != nil {
				return args.Call{}, true, err
			}
			if err := s.active(ctx, c); err != nil {
				return args.Call{}, true, err
			}
			return args.Claim(vmid, c.Main.Description, c.Digest), false, nil
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
func (s *session) attemptOnce(ctx context.Context, next func() (args.Call, bool, error)) (output, error) {
	if err := s.idle(ctx); err != nil {
		return output{}, err
	}
	call, done, err := next()
	if done || err != nil {
		return output{}, err
	}
	return s.d.exec(ctx, call, nil, s.report)
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
	switch pid, err := s.d.process(vmid); {
	case err != nil:
		return nil, rpc.Errorf(rpc.ErrUnavailable, "VM %d: %w", vmid, err)
	case pid != 0:
		return nil, refuse("it runs; stop it first")
	case ha[vmid]:
		return nil, refuse("Proxmox HA manages it")
	case c.Protection():
		return nil, refuse("its protection is on (qm set %d --protection 0)", vmid)
	case len(c.Snapshots) > 0:
		return nil, refuse("it has snapshots: %s", strings.Join(c.SnapshotNames(), ", "))
	case len(c.Pending.Keys) > 0:
		return nil, refuse("changes of it wait for its next start: %s (qm pending %d)", strings.Join(sortedKeys(c.Pending.Keys), ", "), vmid)
	}
	for _, v := range c.Volumes() {
		if slices.Contains(req.GetKeep(), v) {
			return nil, refuse("it still holds %s, which is to be kept", v)
		}
	}
	clones, err := s.d.linkedClones(vmid, c)
	if err != nil {
		return nil, err
	}
	if len(clones) > 0 {
		return nil, refuse("other VMs stand on its disks: %s", strings.Join(clones, ", "))
	}
	return c, nil
}

func (s *session) refuse(c *parse.Config, format string, a ...any) error {
	return rpc.Errorf(rpc.ErrRefused, "VM %d (%s) is not destroyed: %s", s.id.GetVmid(), c.Name(), fmt.Sprintf(format, a...))
}

// active refuses when a volume lies on a storage that is not active: Proxmox would
// destroy the VM, leave the volume, and call it well done.
func (s *session) active(ctx context.Context, c *parse.Config) error {
	var used []string
	for _, v := range c.Volumes() {
		if parse.Owner(v) != 0 {
			used = append(used, parse.Storage(v))
		}
	}
	if len(used) == 0 {
		return nil
	}
	out, err := s.d.exec(ctx, args.Storages(), nil, s.report)
	if err != nil {
		return err
	}
	status := map[string]string{}
	for _, st := range parse.PvesmStatus(out.stdout) {
		status[st.Name] = st.Status
	}
	slices.Sort(used)
	for _, name := range slices.Compact(used) {
		switch status[name] {
		case "active":
		case "":
			return s.refuse(c, "its storage %s does not exist on this host", name)
		default:
			return s.refuse(c, "its storage %s is %s", name, status[name])
		}
	}
	return nil
}

// linkedClones names the VMs anywhere in the PVE cluster whose disks stand on this
// VM's base volumes.
func (d *Driver) linkedClones(vmid int32, c *parse.Config) ([]string, error) {
	bases := map[string]bool{}
	for _, v := range c.Volumes() {
		if name := baseName(v); strings.HasPrefix(name, "base-") && parse.Owner(v) == vmid {
			bases[name] = true
		}
	}
	if len(bases) == 0 {
		return nil, nil
	}
	guests, err := d.vmlist()
	if err != nil {
		return nil, err
	}
	var clones []string
	for _, g := range guests {
		if g.Type != "qemu" || g.VMID == vmid {
			continue
		}
		other, err := fresh(parse.VM, d.pve("nodes", g.Node, "qemu-server", fmt.Sprintf("%d.conf", g.VMID)))
		if err != nil {
			return nil, rpc.Errorf(rpc.ErrUnavailable, "look for linked clones of VM %d: %w", vmid, err)
		}
		for _, v := range other.Volumes() {
			if bases[parse.Base(v)] {
				clones = append(clones, fmt.Sprintf("%d (%s)", g.VMID, other.Name()))
				break
			}
		}
	}
	return clones, nil
}

// freed looks whether a destroyed VM's own volumes are gone, frees by name those
// that are not, and looks again.
func (s *session) freed(ctx context.Context, own, warnings []string) error {
	left, err := s.still(ctx, own)
	if err != nil || len(left) == 0 {
		return err
	}
	for _, v := range left {
		if _, err := s.d.exec(ctx, args.Free(v, s.id.GetVmid()), nil, s.report); err != nil {
			warnings = append(warnings, err.Error())
		}
	}
	if left, err = s.still(ctx, left); err != nil || len(left) == 0 {
		return err
	}
	return rpc.Errorf(rpc.ErrUnavailable, "VM %d is destroyed, but its volumes %s are still there: %s (pvesm free %s)",
		s.id.GetVmid(), strings.Join(left, ", "), strings.Join(warnings, "; "), left[0])
}

// still gives those of the volumes that are there.
func (s *session) still(ctx context.Context, volumes []string) ([]string, error) {
	if len(volumes) == 0 {
		return nil, nil
	}
	m, err := s.d.members()
	if err != nil {
		return nil, err
	}
	storages, err := s.d.storages(m.NodeName)
	if err != nil {
		return nil, err
	}
	var left []string
	for _, st := range storages {
		if !slices.ContainsFunc(volumes, func(v string) bool { return parse.Storage(v) == st.Name }) {
			continue
		}
		there, err := s.d.volumesOn(ctx, st, s.id.GetVmid(), s.report)
		if err != nil {
			return nil, err
		}
		for _, l := range there {
			for _, v := range volumes {
				if v == l.Volid || namedAs(map[string]bool{v: true}, l.Volid) {
					left = append(left, v)
				}
			}
		}
	}
	return left, nil
}
