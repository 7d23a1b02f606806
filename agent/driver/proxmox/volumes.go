package proxmox

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/homeiac/homelab/agent/driver"
	"github.com/homeiac/homelab/agent/driver/proxmox/args"
	"github.com/homeiac/homelab/agent/driver/proxmox/parse"
	"github.com/homeiac/homelab/internal/rpc"
)

// folder is where a storage's volumes lie as files or devices of this host; empty
// when they can only be asked for. nested tells that each VMID has a folder of its
// own. Network file systems are left out: a look may hang.
func folder(s parse.StorageConfig) (path string, nested bool) {
	switch s.Type {
	case "dir", "btrfs":
		if s.Path != "" {
			return filepath.Join(s.Path, "images"), true
		}
	case "zfspool":
		if s.Pool != "" {
			return filepath.Join("/dev/zvol", s.Pool), false
		}
	case "lvm", "lvmthin":
		if s.VG != "" {
			return filepath.Join("/dev", s.VG), false
		}
	}
	return "", false
}

// visible lists the volumes of a VMID (0: of all) that a storage's folder shows.
func (d *Driver) visible(s parse.StorageConfig, vmid int32) ([]parse.ListedVolume, error) {
	path, nested := folder(s)
	if !nested {
		return d.visibleIn(s, path, "", vmid)
	}
	if vmid != 0 {
		id := strconv.Itoa(int(vmid))
		return d.visibleIn(s, filepath.Join(path, id), id+"/", vmid)
	}
	entries, err := os.ReadDir(d.host(path))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []parse.ListedVolume
	for _, e := range entries {
		id, err := strconv.ParseInt(e.Name(), 10, 32)
		if err != nil || !e.IsDir() {
			continue
		}
		some, err := d.visibleIn(s, filepath.Join(path, e.Name()), e.Name()+"/", int32(id))
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	return all, nil
}

func (d *Driver) visibleIn(s parse.StorageConfig, path, prefix string, vmid int32) ([]parse.ListedVolume, error) {
	entries, err := os.ReadDir(d.host(path))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []parse.ListedVolume
	for _, e := range entries {
		volid := s.Name + ":" + prefix + e.Name()
		owner := parse.Owner(volid)
		switch {
		case e.IsDir():
			continue
		case prefix != "":
			// In a VMID's folder every image is that VMID's, whatever it is called.
			if !slices.Contains([]string{".raw", ".qcow2", ".vmdk"}, filepath.Ext(e.Name())) {
				continue
			}
			owner = vmid
		case owner == 0 || vmid != 0 && owner != vmid:
			continue
		}
		all = append(all, parse.ListedVolume{Volid: volid, Type: "images", VMID: owner})
	}
	return all, nil
}

// volumes lists the volumes of a VMID on all storages that hold disk images: by
// eye on directory storages, and by asking Proxmox on the others (a logical volume
// that is not activated has no device to be seen). Any storage that cannot be
// listed is an error: what lies there would be taken for not there.
func (d *Driver) volumes(ctx context.Context, vmid int32, report driver.Report) ([]parse.ListedVolume, error) {
	m, err := d.members()
	if err != nil {
		return nil, err
	}
	storages, err := d.storages(m.NodeName)
	if err != nil {
		return nil, err
	}
	var all []parse.ListedVolume
	for _, s := range storages {
		if !s.Holds("images") {
			continue
		}
		some, err := d.volumesOn(ctx, s, vmid, report)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	slices.SortFunc(all, func(a, b parse.ListedVolume) int { return strings.Compare(a.Volid, b.Volid) })
	return all, nil
}

// volumesOn lists the disk images of a VMID (0: of all) on one storage.
func (d *Driver) volumesOn(ctx context.Context, s parse.StorageConfig, vmid int32, report driver.Report) ([]parse.ListedVolume, error) {
	if s.Type == "dir" && s.MountPoint == "" {
		if info, err := os.Stat(d.host(s.Path)); err != nil || !info.IsDir() {
			return nil, rpc.Errorf(rpc.ErrUnavailable, "storage %s: its folder %s is not there", s.Name, s.Path)
		}
		all, err := d.visible(s, vmid)
		if err != nil {
			return nil, rpc.Errorf(rpc.ErrUnavailable, "storage %s: %w", s.Name, err)
		}
		for i := range all {
			all[i].SizeBytes, _ = imageSize(d.host(s.Path, "images", strings.TrimPrefix(all[i].Volid, s.Name+":")))
		}
		return all, nil
	}
	out, err := d.exec(ctx, args.Volumes(s.Name, vmid), nil, report)
	if err != nil {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "storage %s: %w", s.Name, err)
	}
	var all []parse.ListedVolume
	for _, v := range parse.PvesmList(out.stdout) {
		if vmid == 0 && (v.Type == "images" || v.Type == "rootdir") || vmid != 0 && (v.VMID == vmid || parse.Owner(v.Volid) == vmid) {
			all = append(all, v)
		}
	}
	return all, nil
}

// imageSize is the size that a disk image gives a VM: of a qcow2 or a vmdk the one in
// its header, of others the file's.
func imageSize(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	head := make([]byte, 32)
	if n, _ := f.ReadAt(head, 0); n == len(head) {
		switch string(head[:4]) {
		case "QFI\xfb":
			return int64(binary.BigEndian.Uint64(head[24:])), nil
		case "KDMV":
			return int64(binary.LittleEndian.Uint64(head[12:])) * 512, nil // in sectors
		}
	}
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// leftovers is the latest list of VMIDs with volumes that no configuration names.
type leftovers struct {
	mu      sync.Mutex
	looking bool
	ids     []int32
}

// leftoverLimit is how long an observation waits for folders to be listed.
const leftoverLimit = 500 * time.Millisecond

// leftoverVMIDs lists VMIDs with volumes here that no configuration names. The
// folders may lie on a mount that hangs: then it tells what it knew before, and
// does not look again until the hanging look ends.
func (d *Driver) leftoverVMIDs(node string, configs map[int32]*parse.Config, guests []parse.ClusterGuest) []int32 {
	d.leftover.mu.Lock()
	known, looking := d.leftover.ids, d.leftover.looking
	d.leftover.looking = true
	d.leftover.mu.Unlock()
	if looking {
		return known
	}
	named := map[string]bool{}
	unfinished := map[int32]bool{}
	for id, c := range configs {
		// What a create works on, or left, is told as a half-built VM.
		unfinished[id] = building(c)
		for _, v := range c.Volumes() {
			named[v] = true
		}
	}
	elsewhere := map[int32]bool{}
	for _, g := range guests {
		// Volumes of other nodes' guests lie here too when a storage is shared.
		elsewhere[g.VMID] = configs[g.VMID] == nil
		if g.Type == "lxc" {
			if ct, err := d.containers.read(d.pve("nodes", g.Node, "lxc", fmt.Sprintf("%d.conf", g.VMID))); err == nil {
				for _, v := range ct.Volumes {
					named[v] = true
				}
			}
		}
	}
	done := make(chan []int32, 1)
	go func() {
		ids := d.findLeftovers(node, named, unfinished, elsewhere)
		d.leftover.mu.Lock()
		d.leftover.ids, d.leftover.looking = ids, false
		d.leftover.mu.Unlock()
		done <- ids
	}()
	late := time.NewTimer(leftoverLimit)
	defer late.Stop()
	select {
	case ids := <-done:
		return ids
	case <-late.C:
		return known
	}
}

func (d *Driver) findLeftovers(node string, named map[string]bool, unfinished, elsewhere map[int32]bool) []int32 {
	storages, err := d.storages(node)
	if err != nil {
		return nil
	}
	var ids []int32
	for _, s := range storages {
		if path, _ := folder(s); path == "" || !s.Holds("images") {
			continue
		}
		all, err := d.visible(s, 0)
		if err != nil {
			continue
		}
		for _, v := range all {
			if named[v.Volid] || unfinished[v.VMID] || s.Shared && elsewhere[v.VMID] {
				continue
			}
			// A linked clone's name holds its base too.
			if namedAs(named, v.Volid) {
				continue
			}
			ids = append(ids, v.VMID)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// namedAs tells whether a configuration names the volume as a linked clone
// (local:9/base-9-disk-0.raw/201/vm-201-disk-0.qcow2 is local:201/vm-201-disk-0.qcow2).
func namedAs(named map[string]bool, volid string) bool {
	storage, name, _ := strings.Cut(volid, ":")
	for n := range named {
		if strings.HasPrefix(n, storage+":") && strings.HasSuffix(n, "/"+name) && parse.Base(n) != "" {
			return true
		}
	}
	return false
}
