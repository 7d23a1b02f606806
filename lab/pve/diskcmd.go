package pve

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/homeiac/homelab/lab/disk"
)

// resize is qm disk resize. Whatever goes wrong in its task, the program's
// exit code is 0: CLI/qm.pm does not look at it.
func (r *run) resize(p params) error {
	if err := r.resizeTask(p); err != nil {
		fmt.Fprintln(r.stderr, err)
	}
	return nil
}

func (r *run) resizeTask(p params) error {
	return r.task("resize", p["vmid"], func(t *run) error {
		return t.withLock(p["vmid"], func() error { return t.resizeLocked(p) })
	})
}

func (r *run) resizeLocked(p params) error {
	vmid, key := p["vmid"], p["disk"]
	c, err := r.load(vmid)
	if err != nil {
		return err
	}
	if d := p["digest"]; d != "" && d != c.digest {
		return fail(255, "checksum mismatch (file change by other user?)")
	}
	if err := c.lockUnless(p.on("skiplock")); err != nil {
		return err
	}
	if c.main[key] == "" {
		return fail(255, "disk '%s' does not exist", key)
	}
	d := parseDrive(key, c.main[key])
	if d.cdrom() {
		return fail(255, "you can't resize a cdrom")
	}
	v, err := r.existing(d.file)
	if err != nil {
		return err
	}
	size := r.volumeSize(v)
	want, ok := parseSize(strings.TrimPrefix(p["size"], "+"))
	if !ok {
		return fail(255, "internal error")
	}
	if strings.HasPrefix(p["size"], "+") {
		want += size
	}
	want = roundUp(want, 1024)
	switch {
	case want < size:
		return fail(255, "shrinking disks is not supported")
	case want == size:
		return nil
	}
	if err := r.grow(vmid, d, v, want); err != nil {
		return err
	}
	d.opts["size"] = formatSize(want)
	c.main[key] = d.String()
	return r.store(vmid, c)
}

// grow gives the volume its new size; of a running VM QEMU does it.
func (r *run) grow(vmid string, d drive, v *volume, want int64) error {
	path := v.path()
	if strings.HasPrefix(v.name, "base-") {
		r.printf("qemu-img: Could not open '%s': Could not open '%s': Operation not permitted\n", path, path)
		return fail(255, "command '/usr/bin/qemu-img resize '--preallocation=%s' -f %s %s %d' failed: exit code 1",
			map[bool]string{true: "metadata", false: "off"}[v.format == "qcow2"], v.format, path, want)
	}
	if err := disk.Resize(r.path(path), want); err != nil {
		return err
	}
	if r.running(vmid) != 0 {
		return r.device(vmid, "block_resize", map[string]any{"node-name": "drive-" + d.key, "size": want})
	}
	if v.store.typ == "dir" {
		r.printf("Image resized.\n")
	}
	return nil
}

// importDisk is qm disk import. It is no task; the volume lands on unusedN.
func (r *run) importDisk(p params) error {
	vmid, src := p["vmid"], p["source"]
	if st, err := os.Stat(r.hostFile(src)); err != nil {
		return fail(2, "%s: non-existent or non-regular file", src)
	} else if !st.Mode().IsRegular() {
		return fail(255, "%s: non-existent or non-regular file", src)
	}
	c, err := r.load(vmid)
	if err != nil {
		return err
	}
	if err := c.checkLock(); err != nil {
		return err
	}
	if _, err := r.storage(p["storage"]); err != nil {
		return err
	}
	r.printf("importing disk '%s' to VM %s ...\n", src, vmid)
	return r.withLock(vmid, func() error { return r.importLocked(vmid, p) })
}

// hostFile is where a file named on the command line lies: a relative one is
// beside where the program was started.
func (r *run) hostFile(name string) string {
	if strings.HasPrefix(name, "/") {
		return r.path(name)
	}
	return name
}

func (r *run) importLocked(vmid string, p params) error {
	file := r.hostFile(p["source"])
	srcFormat, size, err := disk.Info(file)
	if err != nil {
		return err
	}
	v, err := r.alloc(p["storage"], vmid, p["format"], "", size)
	if err != nil {
		return err
	}
	if err := r.copyFile(v, file, p["source"], srcFormat); err != nil {
		r.freeAll(made{v.id})
		return err
	}
	c, err := r.load(vmid)
	if err != nil {
		return err
	}
	key := p["target-disk"]
	if key != "" && c.main[key] != "" {
		r.freeAll(made{v.id})
		return fail(39, "cowardly refusing to overwrite existing entry: %s", key)
	}
	if key == "" {
		key = c.main.addUnused(v.id)
	} else {
		c.main[key] = v.id
	}
	r.printf("%s: successfully imported disk '%s'\n", key, v.id)
	return r.store(vmid, c)
}

// unlink is qm disk unlink, which is a qm set --delete.
func (r *run) unlink(p params) error {
	if p["idlist"] == "" {
		return badParam(2, "idlist", "property is missing and it is not optional")
	}
	q := params{"vmid": p["vmid"], "delete": p["idlist"]}
	if p["force"] != "" {
		q["force"] = p["force"]
	}
	return r.set(q)
}

// rescan is qm disk rescan: it corrects sizes and lists what no configuration
// names as unusedN.
func (r *run) rescan(p params) error {
	r.printf("rescan volumes...\n")
	ids := []string{p["vmid"]}
	if p["vmid"] == "" {
		var err error
		if ids, err = r.guests(); err != nil {
			return err
		}
	}
	var errs error
	for _, vmid := range ids {
		errs = errors.Join(errs, r.withLock(vmid, func() error { return r.rescanVM(vmid, p.on("dryrun")) }))
	}
	return errs
}

func (r *run) rescanVM(vmid string, dry bool) error {
	c, err := r.load(vmid)
	if err != nil {
		return err
	}
	if err := c.checkLock(); err != nil {
		return err
	}
	changed := false
	for _, d := range c.main.drives() {
		v, err := r.existing(d.file)
		if err != nil || d.cdrom() || d.opts["size"] == "" {
			continue
		}
		if size := formatSize(r.volumeSize(v)); d.opts["size"] != size {
			r.printf("VM %s (%s): size of disk '%s' updated from %s to %s\n", vmid, d.key, d.file, d.opts["size"], size)
			d.opts["size"] = size
			c.main[d.key], changed = d.String(), true
		}
	}
	known := c.volumes()
	list, err := r.storages()
	if err != nil {
		return err
	}
	for _, s := range list {
		if _, err := r.usable(s.id); err != nil || !s.holds("images") {
			continue
		}
		volumes, err := r.images(s, vmid)
		if err != nil {
			return err
		}
		slices.SortFunc(volumes, func(a, b *volume) int { return strings.Compare(a.id, b.id) })
		for _, v := range volumes {
			if slices.Contains(known, v.id) || strings.Contains(v.name, "-cloudinit") {
				continue
			}
			key := c.main.addUnused(v.id)
			r.printf("VM %s add unreferenced volume '%s' as '%s' to config\n", vmid, v.id, key)
			changed = true
		}
	}
	if !changed || dry {
		return nil
	}
	return r.store(vmid, c)
}
