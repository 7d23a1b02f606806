package pve

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/homeiac/homelab/lab/disk"
)

// NewHost lays out a host's folder (DIR/hosts/NAME) and its part of the cluster
// file system. On a folder that is there already it keeps what guests,
// administrators and programs made and rewrites the rest.
func NewHost(cfg HostConfig) error {
	if cfg.Name == "" || cfg.LabDir == "" {
		return errors.New("new host: no name or no lab folder")
	}
	if cfg.NodeName == "" {
		cfg.NodeName = cfg.Name
	}
	if cfg.PVEVersion == "" {
		cfg.PVEVersion = "9.2.11"
	}
	if cfg.CPUs == 0 {
		cfg.CPUs = 4
	}
	if cfg.MemoryBytes == 0 {
		cfg.MemoryBytes = 32 << 30
	}
	if cfg.Boot.IsZero() {
		cfg.Boot = time.Now().Add(-24 * time.Hour)
	}
	if cfg.Address == "" {
		cfg.Address = "127.0.0.1"
	}
	if cfg.Binary == "" {
		exe, err := os.Executable()
		if err != nil {
			return err
		}
		cfg.Binary = exe
	}
	lab, err := filepath.Abs(cfg.LabDir)
	if err != nil {
		return err
	}
	cfg.LabDir = lab
	dir := filepath.Join(lab, "hosts", cfg.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(dir, "host.json"), cfg); err != nil {
		return err
	}
	h, err := Open(dir)
	if err != nil {
		return err
	}
	for _, step := range []func() error{
		h.makeFolders, h.joinPmxcfs, h.MountPmxcfs, h.linkPrograms, h.writeStorageCfg,
		h.writeBridges, h.writeRelease, func() error { return h.writeProc(time.Now()) },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("lay out host %s: %w", cfg.Name, err)
		}
	}
	return nil
}

func (h *Host) makeFolders() error {
	for _, d := range []string{
		"etc/pve", "etc/network", "run/qemu-server", "run/lock/qemu-server", "run/lock/pve-manager",
		"var/log/pve/tasks", "var/lib/vz/images", "var/lib/vz/snippets", "var/lib/vz/import",
		"var/lib/vz/template/iso", "var/lib/vz/template/cache", "var/lib/vz/dump", "var/lib/lab/taps",
		"var/log/kvm", "usr/sbin", "usr/bin", "sys/class/net", "proc", "tmp", "root",
	} {
		if h.cfg.Own && strings.HasPrefix(d, "sys/") {
			continue
		}
		if err := os.MkdirAll(h.path(d), 0o755); err != nil {
			return err
		}
	}
	if h.cfg.Own {
		return errors.Join(link("/", filepath.Join(h.dir, "root")), link(h.dir, disk.OwnHost))
	}
	// As on Debian: /var/run and /var/lock lead to /run.
	return errors.Join(link("../run", h.path("var/run")), link("../run/lock", h.path("var/lock")))
}

// link makes a symbolic link, replacing another one.
func link(target, path string) error {
	if got, err := os.Readlink(path); err == nil && got == target {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Symlink(target, path)
}

func (h *Host) linkPrograms() error {
	for _, p := range []string{"usr/sbin/qm", "usr/sbin/pvesm", "usr/bin/pvesh", "usr/bin/kvm", "usr/bin/pveversion"} {
		if err := link(h.cfg.Binary, h.path(p)); err != nil {
			return err
		}
	}
	return nil
}

// pveFiles are the names in /etc/pve that are the cluster's, not the host's.
var pveFiles = []string{
	"nodes", "storage.cfg", "priv", "ha", "firewall", "mapping", "virtual-guest", "corosync.conf",
	"datacenter.cfg", "user.cfg", "jobs.cfg", "replication.cfg", "vzdump.cron",
	".vmlist", ".version", ".rrd", ".clusterlog",
}

// MountPmxcfs fills the host's /etc/pve, as pmxcfs does when it starts.
func (h *Host) MountPmxcfs() error {
	pve := h.path("etc/pve")
	rel, err := filepath.Rel(pve, h.pmxcfs())
	if err != nil {
		return err
	}
	for _, name := range pveFiles {
		if err := link(filepath.Join(rel, name), filepath.Join(pve, name)); err != nil {
			return err
		}
	}
	node := filepath.Join("nodes", h.cfg.NodeName)
	for name, target := range map[string]string{
		"local": node, "qemu-server": filepath.Join(node, "qemu-server"), "lxc": filepath.Join(node, "lxc"),
		".members": filepath.Join(rel, ".members."+h.cfg.NodeName),
	} {
		if err := link(target, filepath.Join(pve, name)); err != nil {
			return err
		}
	}
	return nil
}

// UnmountPmxcfs empties the host's /etc/pve, as when pve-cluster is down: the
// folder is still there.
func (h *Host) UnmountPmxcfs() error {
	entries, err := os.ReadDir(h.path("etc/pve"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Remove(h.path("etc/pve", e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// joinPmxcfs makes the node's folders in the cluster file system and tells the
// cluster of it.
func (h *Host) joinPmxcfs() error {
	for _, d := range []string{
		filepath.Join("nodes", h.cfg.NodeName, "qemu-server"), filepath.Join("nodes", h.cfg.NodeName, "lxc"),
		"priv/lock", "ha", "firewall", "mapping", "virtual-guest",
	} {
		if err := os.MkdirAll(filepath.Join(h.pmxcfs(), d), 0o755); err != nil {
			return err
		}
	}
	unlock, err := lockFile(filepath.Join(h.pmxcfs(), ".lab.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	state, err := readClusterState(h.pmxcfs())
	if err != nil {
		return err
	}
	if state.Start == 0 {
		state.Start = time.Now().Unix()
	}
	i := slices.IndexFunc(state.Nodes, func(n clusterNode) bool { return n.Name == h.cfg.NodeName })
	if i < 0 {
		i = len(state.Nodes)
		state.Nodes = append(state.Nodes, clusterNode{Name: h.cfg.NodeName, Online: true})
		state.Config++
	}
	state.Nodes[i].IP = h.cfg.Address
	state.Cluster, state.Quorate = h.cfg.Cluster, true
	if err := state.write(h.pmxcfs()); err != nil {
		return err
	}
	if err := state.writeMembers(h.pmxcfs()); err != nil {
		return err
	}
	return state.refresh(h.pmxcfs())
}

// writeStorageCfg puts the host's storages into storage.cfg. One that is there
// stays; its list of nodes grows. Only local is on every node.
func (h *Host) writeStorageCfg() error {
	unlock, err := lockFile(filepath.Join(h.pmxcfs(), ".lab.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	path := filepath.Join(h.pmxcfs(), "storage.cfg")
	list, err := readStorageCfg(path)
	if err != nil {
		return err
	}
	for _, s := range h.cfg.Storages {
		i := slices.IndexFunc(list, func(st *storage) bool { return st.id == s.Name })
		if i < 0 {
			st := s.storage()
			if h.cfg.Cluster != "" && s.Name != "local" {
				st.set("nodes", h.cfg.NodeName)
			}
			list = append(list, st)
		} else if nodes := list[i].get("nodes"); nodes != "" && !slices.Contains(strings.Split(nodes, ","), h.cfg.NodeName) {
			list[i].set("nodes", nodes+","+h.cfg.NodeName)
		}
		if s.Type == "dir" {
			for _, d := range []string{"images", "snippets", "import", "template/iso"} {
				if err := os.MkdirAll(h.path(s.Path, d), 0o755); err != nil {
					return err
				}
			}
		}
	}
	return replaceFile(path, []byte(formatStorageCfg(list)), 0o640)
}

func (s StorageConfig) storage() *storage {
	st := &storage{id: s.Name, typ: s.Type}
	switch s.Type {
	case "dir":
		st.set("path", s.Path)
	case "zfspool":
		st.set("pool", s.Pool)
	case "lvmthin":
		st.set("thinpool", s.ThinPool)
		st.set("vgname", s.VG)
	}
	content := s.Content
	if len(content) == 0 {
		content = []string{"images", "rootdir"}
		if s.Type == "dir" {
			content = []string{"images", "rootdir", "iso", "vztmpl", "snippets", "import", "backup"}
		}
	}
	st.set("content", strings.Join(content, ","))
	return st
}
