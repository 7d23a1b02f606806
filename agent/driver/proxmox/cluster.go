package proxmox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/homeiac/homelab/agent/driver/proxmox/parse"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

func yes() *homelabv1.Fact { return &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_YES} }

func no(format string, a ...any) *homelabv1.Fact {
	return &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_NO, Reason: fmt.Sprintf(format, a...)}
}

func unknown(format string, a ...any) *homelabv1.Fact {
	return &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_UNKNOWN, Reason: fmt.Sprintf(format, a...)}
}

// members reads .members, which pmxcfs always has. An /etc/pve without it is an
// empty mount point: pmxcfs is down, and nothing can be said of VMs.
func (d *Driver) members() (parse.Members, error) {
	text, err := os.ReadFile(d.pve(".members"))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return parse.Members{}, rpc.Errorf(rpc.ErrUnavailable, "/etc/pve is empty: pve-cluster does not run (systemctl status pve-cluster)")
		}
		return parse.Members{}, rpc.Errorf(rpc.ErrUnavailable, "read /etc/pve: %w", err)
	}
	m, err := parse.ReadMembers(text)
	if err != nil {
		return parse.Members{}, rpc.Errorf(rpc.ErrUnavailable, "read /etc/pve: %w", err)
	}
	return m, nil
}

// quorate says whether /etc/pve can be written and tells of other nodes as they
// are now. A node with a corosync.conf whose .members knows no cluster has lost
// corosync altogether.
func (d *Driver) quorate(m parse.Members) error {
	if m.Cluster == "" {
		if _, err := os.Stat(d.pve("corosync.conf")); err == nil {
			return rpc.Errorf(rpc.ErrUnavailable, "/etc/pve has no quorum: corosync does not run (systemctl status corosync)")
		}
		return nil
	}
	if !m.Quorate {
		return rpc.Errorf(rpc.ErrUnavailable, "/etc/pve has no quorum: cluster %s sees too few of its nodes (pvecm status)", m.Cluster)
	}
	return nil
}

// vmlist reads the VMIDs of the whole PVE cluster.
func (d *Driver) vmlist() ([]parse.ClusterGuest, error) {
	text, err := os.ReadFile(d.pve(".vmlist"))
	if err != nil {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "read /etc/pve: %w", err)
	}
	guests, err := parse.VMList(text)
	if err != nil {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "read /etc/pve: %w", err)
	}
	return guests, nil
}

// haManaged reads which VMIDs the HA manager manages; a host without HA has no
// such file.
func (d *Driver) haManaged() (map[int32]bool, error) {
	text, err := os.ReadFile(d.pve("ha/resources.cfg"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "read /etc/pve/ha/resources.cfg: %w", err)
	}
	return parse.HAManaged(text), nil
}

// storages reads storage.cfg, the storages that are for this node.
func (d *Driver) storages(node string) ([]parse.StorageConfig, error) {
	text, err := d.storageText()
	if err != nil {
		return nil, err
	}
	var here []parse.StorageConfig
	for _, s := range parse.Storages(text) {
		if s.For(node) {
			here = append(here, s)
		}
	}
	return here, nil
}

func (d *Driver) storageText() ([]byte, error) {
	text, err := os.ReadFile(d.pve("storage.cfg"))
	if err != nil {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "read /etc/pve/storage.cfg: %w", err)
	}
	return text, nil
}

// confIDs lists the VMIDs with a configuration in a folder of /etc/pve.
func (d *Driver) confIDs(elem ...string) ([]int32, error) {
	entries, err := os.ReadDir(d.pve(elem...))
	if err != nil {
		return nil, err
	}
	var ids []int32
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".conf")
		if n, err := strconv.ParseInt(name, 10, 32); ok && err == nil && n > 0 {
			ids = append(ids, int32(n))
		}
	}
	return ids, nil
}

// read reads a VM's configuration now, past the cache. NotFound says that there
// is none, with /etc/pve seen to be there; all else is Unavailable.
func (d *Driver) read(vmid int32) (*parse.Config, error) {
	text, err := d.text(vmid)
	if err != nil {
		return nil, err
	}
	return parse.VM(text), nil
}

// text is what read parses.
func (d *Driver) text(vmid int32) ([]byte, error) {
	text, err := os.ReadFile(d.pve("qemu-server", strconv.Itoa(int(vmid))+".conf"))
	if err == nil {
		return text, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "read the configuration of VM %d: %w", vmid, err)
	}
	if _, err := d.members(); err != nil {
		return nil, err
	}
	if _, err := os.ReadDir(d.pve("qemu-server")); err != nil {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "list the VMs of this host: %w", err)
	}
	return nil, rpc.Errorf(rpc.ErrNotFound, "there is no VM %d on this host", vmid)
}

// elsewhere tells who has a VMID that is free on this host; empty when nobody has.
func (d *Driver) elsewhere(vmid int32) (string, error) {
	m, err := d.members()
	if err != nil {
		return "", err
	}
	guests, err := d.vmlist()
	if err != nil {
		return "", err
	}
	for _, g := range guests {
		if g.VMID != vmid {
			continue
		}
		if g.Type == "lxc" {
			name := ""
			if ct, err := d.containers.read(d.pve("nodes", g.Node, "lxc", fmt.Sprintf("%d.conf", vmid))); err == nil {
				name = " " + ct.Name
			}
			return fmt.Sprintf("container%s on node %s", name, g.Node), nil
		}
		if g.Node == m.NodeName {
			continue // this host's own file was just seen not to be there
		}
		name := ""
		if c, err := d.configs.read(d.pve("nodes", g.Node, "qemu-server", fmt.Sprintf("%d.conf", vmid))); err == nil {
			name = " " + c.Name()
		}
		return fmt.Sprintf("VM%s on node %s", name, g.Node), nil
	}
	return "", nil
}
