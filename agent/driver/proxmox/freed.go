package proxmox

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/homeiac/homelab/agent/driver/proxmox/args"
	"github.com/homeiac/homelab/agent/driver/proxmox/parse"
	"github.com/homeiac/homelab/internal/rpc"
)

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
// VM's base volumes. Without such volumes nothing is read.
func (d *Driver) linkedClones(vmid int32, c *parse.Config, read func(path string) (*parse.Config, error)) ([]string, error) {
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
		other, err := read(d.pve("nodes", g.Node, "qemu-server", fmt.Sprintf("%d.conf", g.VMID)))
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
