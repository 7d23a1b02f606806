package proxmox

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/homeiac/homelab/agent/driver/proxmox/parse"
	"github.com/homeiac/homelab/internal/rpc"
)

// naming is what the configurations of the PVE cluster name, as it is now.
type naming struct {
	volumes map[string]bool
	paths   map[string]bool
	// storages are all of storage.cfg, those that are off too: one place may be
	// known by several names.
	storages map[string]parse.StorageConfig
}

// naming reads all configurations of the PVE cluster past the cache, but for the VM
// except (0: none). One that cannot be read is an error.
func (d *Driver) naming(except int32) (*naming, error) {
	text, err := d.storageText()
	if err != nil {
		return nil, err
	}
	n := &naming{volumes: map[string]bool{}, paths: map[string]bool{}, storages: map[string]parse.StorageConfig{}}
	for _, s := range parse.Storages(text) {
		n.storages[s.Name] = s
	}
	guests, err := d.vmlist()
	if err != nil {
		return nil, err
	}
	for _, g := range guests {
		if g.VMID == except {
			continue
		}
		var volumes, paths []string
		if g.Type == "lxc" {
			ct, err := fresh(parse.LXC, d.pve("nodes", g.Node, "lxc", fmt.Sprintf("%d.conf", g.VMID)))
			if err != nil {
				return nil, rpc.Errorf(rpc.ErrUnavailable, "read the configuration of container %d: %w", g.VMID, err)
			}
			volumes, paths = ct.Volumes, ct.Paths
		} else {
			c, err := freshVM(d.pve("nodes", g.Node, "qemu-server", fmt.Sprintf("%d.conf", g.VMID)))
			if err != nil {
				return nil, rpc.Errorf(rpc.ErrUnavailable, "read the configuration of VM %d: %w", g.VMID, err)
			}
			volumes, paths = c.Volumes(), c.Paths()
		}
		for _, v := range volumes {
			n.volumes[v] = true
			if base := parse.BaseVolume(v); base != "" {
				n.volumes[base] = true // a linked clone's name holds the volume it stands on
			}
		}
		for _, p := range paths {
			n.paths[filepath.Clean(p)] = true
		}
	}
	return n, nil
}

// has tells whether a configuration names the volume: as it is, by a linked clone's
// longer name, by another storage that shows the same place, or by its path.
func (n *naming) has(volid string) bool {
	if n.volumes[volid] || namedAs(n.volumes, volid) || n.atPath(volid) {
		return true
	}
	here, name, _ := strings.Cut(volid, ":")
	for other := range n.storages {
		if other == here || !samePlace(n.storages[here], n.storages[other]) {
			continue
		}
		if same := other + ":" + name; n.volumes[same] || namedAs(n.volumes, same) {
			return true
		}
	}
	return false
}

// atPath tells whether a configuration names the file or device that the volume is.
func (n *naming) atPath(volid string) bool {
	storage, name, _ := strings.Cut(volid, ":")
	s := n.storages[storage]
	base, _ := folder(s)
	if base == "" {
		return false
	}
	mapper := func(s string) string { return strings.ReplaceAll(s, "-", "--") }
	return n.paths[filepath.Join(base, name)] || s.VG != "" && n.paths["/dev/mapper/"+mapper(s.VG)+"-"+mapper(name)]
}

// samePlace tells whether two storages may show the same volumes. Of kinds that
// are not looked into it is assumed of any two.
func samePlace(a, b parse.StorageConfig) bool {
	switch {
	case a.Path != "" && b.Path != "":
		return filepath.Clean(a.Path) == filepath.Clean(b.Path) || a.Shared && b.Shared && a.Type == b.Type
	case a.Pool != "" && b.Pool != "" && a.Type == "zfspool":
		return a.Pool == b.Pool
	case a.VG != "" && b.VG != "":
		return a.VG == b.VG
	}
	return a.Type == b.Type
}
