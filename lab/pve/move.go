package pve

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/homeiac/homelab/lab/disk"
)

// move is qm disk move: to another storage or format, or to another VM.
func (r *run) move(p params) error {
	switch {
	case p["target-vmid"] != "" && p["storage"] != "":
		return badParam(2, "target-vmid", "either set 'storage' or 'target-vmid', but not both")
	case p["target-vmid"] != "":
		return r.reassign(p)
	case p["storage"] == "":
		return badParam(2, "storage", "'storage' or 'target-vmid' is missing")
	}
	return r.moveStorage(p)
}

// moveStorage copies a volume and leaves the old one as unusedN, or frees it.
func (r *run) moveStorage(p params) error {
	vmid, key := p["vmid"], p["disk"]
	c, err := r.load(vmid)
	if err != nil {
		return err
	}
	if err := c.checkLock(); err != nil {
		return err
	}
	if d := p["digest"]; d != "" && d != c.digest {
		return fail(255, "checksum mismatch (file change by other user?)")
	}
	if c.main[key] == "" {
		return fail(255, "disk '%s' does not exist", key)
	}
	target, err := r.storage(p["storage"])
	if err != nil {
		return err
	}
	d := parseDrive(key, c.main[key])
	v, err := r.parseVolume(d.file)
	if err != nil {
		return err
	}
	if target.id == v.store.id && (p["format"] == "" || p["format"] == v.format) {
		return fail(255, "you can't move to the same storage with same format")
	}
	if r.running(vmid) != 0 {
		return notSimulated("moving the disk of a running VM")
	}
	return r.task("qmmove", vmid, func(t *run) error {
		return t.withLock(vmid, func() error { return t.moveLocked(c, d, v, p) })
	})
}

func (r *run) moveLocked(c *conf, d drive, old *volume, p params) error {
	vmid := p["vmid"]
	r.printf("copying volume '%s' from current storage '%s' to target storage '%s'\n", old.id, old.store.id, p["storage"])
	m := made{}
	if err := r.cloneFull(&d, params{"newid": vmid, "storage": p["storage"], "format": p["format"]}, &m); err != nil {
		r.freeAll(m)
		return fail(255, "storage migration failed: %v", err)
	}
	c.main[d.key] = d.String()
	if !p.on("delete") {
		c.main.addUnused(old.id)
	}
	if err := r.store(vmid, c); err != nil {
		return err
	}
	if !p.on("delete") {
		return nil
	}
	r.printf("removing source volume '%s' after successful copy\n", old.id)
	if err := r.free(old.id); err != nil {
		r.warnf("%v\n", err)
	}
	return nil
}

// reassign renames a volume into another VM of the node.
func (r *run) reassign(p params) error {
	if _, _, _, err := r.checkReassign(p); err != nil {
		return err
	}
	vmid, to := p["vmid"], p["target-vmid"]
	ids := []string{vmid, to}
	slices.Sort(ids)
	return r.task("qmmove", vmid+"-"+p["disk"], func(t *run) error {
		return t.withLock(ids[0], func() error {
			return t.withLock(ids[1], func() error { return t.reassignLocked(p) })
		})
	})
}

// targetKey is the slot a reassigned disk gets: its own unless another is named.
func targetKey(p params) string {
	if k := p["target-disk"]; k != "" {
		return k
	}
	return p["disk"]
}

func (r *run) checkReassign(p params) (src, dst *conf, d drive, err error) {
	vmid, to, key := p["vmid"], p["target-vmid"], p["disk"]
	if _, ok := r.whereIs(vmid); !ok {
		return nil, nil, d, fail(255, "could not find VM %s", vmid)
	}
	g, ok := r.whereIs(to)
	switch {
	case !ok:
		return nil, nil, d, fail(255, "could not find target VM %s", to)
	case g.Node != r.cfg.NodeName:
		return nil, nil, d, fail(255, "Both VMs need to be on the same node (%s) but target VM is on %s.", r.cfg.NodeName, g.Node)
	}
	if src, err = r.load(vmid); err != nil {
		return nil, nil, d, err
	}
	if dst, err = r.load(to); err != nil {
		return nil, nil, d, err
	}
	for _, c := range []*conf{src, dst} {
		if err := c.checkLock(); err != nil {
			return nil, nil, d, err
		}
		if c.main["template"] == "1" {
			return nil, nil, d, fail(255, "Can't move disks from or to template VMs")
		}
	}
	for _, x := range []struct{ c, want, id string }{{src.digest, p["digest"], vmid}, {dst.digest, p["target-digest"], to}} {
		if x.want != "" && x.want != x.c {
			return nil, nil, d, fail(255, "VM %s: checksum mismatch (file change by other user?)", x.id)
		}
	}
	if src.main[key] == "" {
		return nil, nil, d, fail(255, "Disk '%s' for VM '%s' does not exist", key, vmid)
	}
	if dst.main[targetKey(p)] != "" {
		return nil, nil, d, fail(255, "Target disk key '%s' is already in use for VM '%s'", targetKey(p), to)
	}
	d = parseDrive(key, src.main[key])
	for _, s := range src.snapshots {
		for _, sd := range s.drives() {
			if sd.file == d.file {
				return nil, nil, d, fail(255, "Can't move disk used by a snapshot to another VM")
			}
		}
	}
	switch {
	case d.cdrom():
		return nil, nil, d, fail(255, "CD drive contents can't be moved to another VM")
	case r.running(vmid) != 0 && !unusedKey.MatchString(key):
		return nil, nil, d, fail(255, "Cannot move disk to another VM while the source VM is running - detach first")
	}
	return src, dst, d, nil
}

func (r *run) reassignLocked(p params) error {
	vmid, to, key, slot := p["vmid"], p["target-vmid"], p["disk"], targetKey(p)
	src, dst, d, err := r.checkReassign(p)
	if err != nil {
		return err
	}
	v, err := r.existing(d.file)
	if err != nil {
		return err
	}
	r.printf("reassign disk '%s' from VM '%s' as '%s' to VM '%s'\n", key, vmid, slot, to)
	name := r.freeName(v.store, to, "disk")
	if v.store.typ == "dir" {
		name = to + "/" + name + "." + v.format
	}
	moved, err := v.store.parse(name)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(r.path(moved.path())), 0o750); err != nil {
		return err
	}
	if err := disk.Rename(r.path(v.path()), r.path(moved.path())); err != nil {
		return fmt.Errorf("rename '%s' to '%s' failed - %w", v.path(), moved.path(), err)
	}
	r.printf("removing disk '%s' from VM '%s' config\n", key, vmid)
	delete(src.main, key)
	if err := r.store(vmid, src); err != nil {
		return err
	}
	d.file = moved.id
	if unusedKey.MatchString(slot) {
		dst.main[slot] = moved.id
		return r.store(to, dst)
	}
	value := d.String()
	if !strings.Contains(value, "size=") {
		d.opts["size"] = formatSize(r.volumeSize(moved))
		value = d.String()
	}
	q := params{slot: value}
	r.printf("update VM %s:%s\n", to, echo(q))
	return r.update(to, dst, q)
}
