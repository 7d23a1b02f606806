package pve

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/homeiac/homelab/lab/disk"
)

// clone is qm clone: full, or linked to a template's volumes.
func (r *run) clone(p params) error {
	vmid, newid := p["vmid"], p["newid"]
	c, err := r.load(vmid)
	if err != nil {
		return err
	}
	if err := c.checkLock(); err != nil {
		return err
	}
	s := c.main
	if name := p["snapname"]; name != "" {
		var ok bool
		if s, ok = c.snapshots[name]; !ok {
			return fail(2, "snapshot '%s' does not exist", name)
		}
	}
	full := s["template"] != "1"
	if v, ok := p["full"]; ok {
		full = v == "1"
	}
	if !full && s["template"] != "1" {
		for _, d := range s.drives() {
			if !d.cdrom() {
				return fail(2, "Linked clone feature is not supported for '%s' (%s)", d.file, d.key)
			}
		}
	}
	if !full && p["storage"] != "" {
		return fail(2, "parameter 'storage' not allowed for linked clones")
	}
	if st := p["storage"]; st != "" {
		if _, err := r.storage(st); err != nil {
			return err
		}
	}
	if p["target"] != "" && p["target"] != r.cfg.NodeName || p["pool"] != "" {
		return notSimulated("clones to another node or into a pool")
	}
	if _, taken := r.whereIs(newid); taken {
		return fail(2, "unable to create VM %s: config file already exists", newid)
	}
	return r.task("qmclone", vmid, func(t *run) error {
		return t.withLock(vmid, func() error {
			return t.withLock(newid, func() error { return t.cloneLocked(s, p, full) })
		})
	})
}

func (r *run) cloneLocked(s section, p params, full bool) error {
	vmid, newid := p["vmid"], p["newid"]
	r.printf("creating a clone of VM %s with ID %s\n", vmid, newid)
	// Not what the real parser would write: this one is put there as it is
	// (PVE/API2/Qemu.pm).
	if err := r.writePVE("nodes/"+r.cfg.NodeName+"/qemu-server/"+newid+".conf", []byte("# qmclone temporary file\nlock: clone\n")); err != nil {
		return err
	}
	r.reached("clone reserved")
	n := newConf()
	n.main["lock"] = "clone"
	r.cloneSettings(s, n.main, p)
	m, err := r.cloneDrives(s, n, p, full)
	if err == nil {
		delete(n.main, "lock")
		err = r.store(newid, n)
	}
	if err == nil {
		r.reached("clone done")
		return nil
	}
	r.freeAll(m)
	if rerr := r.removePVE("nodes/" + r.cfg.NodeName + "/qemu-server/" + newid + ".conf"); rerr != nil {
		r.warnf("%v\n", rerr)
	}
	return fail(255, "clone failed: %v", err)
}

// cloneDrives copies the drives. After each the configuration is written, with all
// settings and its lock.
func (r *run) cloneDrives(s section, n *conf, p params, full bool) (made, error) {
	var m made
	for _, d := range s.drives() {
		id, _ := splitVolume(d.file)
		if id != "" {
			if _, err := r.usable(id); err != nil {
				return nil, err
			}
		}
		if id == "" || d.cdrom() && !d.cloudInit() {
			n.main[d.key] = s[d.key]
		}
	}
	for _, d := range s.drives() {
		id, _ := splitVolume(d.file)
		if id == "" || d.cdrom() && !d.cloudInit() {
			continue
		}
		var err error
		if full || d.cloudInit() {
			err = r.cloneFull(&d, p, &m)
		} else {
			err = r.cloneLinked(&d, p["newid"], &m)
		}
		if err != nil {
			return m, err
		}
		r.reached("clone copied")
		n.main[d.key] = d.String()
		if err := r.store(p["newid"], n); err != nil {
			return m, err
		}
		r.reached("clone drive")
	}
	return m, nil
}

// cloneSettings copies what is not a drive; identities are made anew, the
// description stays.
func (r *run) cloneSettings(s, main section, p params) {
	for k, v := range s {
		switch {
		case isDrive(k), unusedKey.MatchString(k):
		case k == "lock", k == "template", k == "parent", k == "snaptime", k == "vmstate", k == "protection":
		case strings.HasPrefix(k, "running"):
		case busOf(k) == "net":
			nic, _ := parseNet(k, v)
			nic["macaddr"] = r.newMAC()
			main[k] = formatNet(nic)
		default:
			main[k] = v
		}
	}
	main["vmgenid"] = r.newUUID()
	uuid := "uuid=" + r.newUUID()
	for part := range strings.SplitSeq(s["smbios1"], ",") {
		if part != "" && !strings.HasPrefix(part, "uuid=") {
			uuid += "," + part
		}
	}
	main["smbios1"] = uuid
	switch {
	case p["name"] != "":
		main["name"] = p["name"]
	case s["name"] != "":
		main["name"] = "Copy-of-VM-" + s["name"]
	default:
		main["name"] = "Copy-of-VM-" + p["vmid"]
	}
	if d, ok := p["description"]; ok {
		main["description"] = d
	}
}

// cloneFull copies one drive's volume into a volume of the new VM.
func (r *run) cloneFull(d *drive, p params, m *made) error {
	r.printf("create full clone of drive %s (%s)\n", d.key, d.file)
	src, err := r.existing(d.file)
	if err != nil {
		return err
	}
	store := p["storage"]
	if store == "" {
		store = src.store.id
	}
	target, err := r.usable(store)
	if err != nil {
		return err
	}
	format := p["format"]
	if target.typ != "dir" {
		format = "raw"
	} else if format == "" {
		format = src.format
	}
	name, size := "", r.volumeSize(src)
	if d.cloudInit() {
		name, size = "vm-"+p["newid"]+"-cloudinit", disk.CloudInitSize
		if target.typ == "dir" {
			name += "." + format
		}
	}
	v, err := r.alloc(store, p["newid"], format, name, size)
	if err != nil {
		return err
	}
	*m = append(*m, v.id)
	r.printf("allocated target volume '%s'\n", v.id)
	if !d.cloudInit() {
		from := src.path()
		if snap := p["snapname"]; snap != "" {
			from = filepath.Join(from+".snap-"+snap, src.name)
		}
		if err := r.copyInto(v, from, src.format); err != nil {
			return err
		}
		if err := disk.CopyTree(r.path(from), r.path(v.path())); err != nil {
			return err
		}
	}
	d.file, d.opts["size"] = v.id, formatSize(size)
	return nil
}

// cloneLinked makes a volume that stands on a template's.
func (r *run) cloneLinked(d *drive, newid string, m *made) error {
	base, err := r.existing(d.file)
	if err != nil {
		return err
	}
	if base.store.typ != "dir" {
		return notSimulated("linked clones on storages of type %s; with clone: off in the Spec guests are made without", base.store.typ)
	}
	r.printf("create linked clone of drive %s (%s)\n", d.key, d.file)
	name := r.freeName(base.store, newid, "disk") + ".qcow2"
	below := "../" + base.vmid + "/" + base.name
	_, baseName := splitVolume(base.id)
	r.printf("clone %s: images, %s, %s to %s (base=%s)\n", baseName, name, newid, name, below)
	v, err := base.store.parse(baseName + "/" + newid + "/" + name)
	if err != nil {
		return err
	}
	size := r.volumeSize(base)
	r.announce(base.store, v, size, below)
	if err := os.MkdirAll(filepath.Dir(r.path(v.path())), 0o750); err != nil {
		return err
	}
	*m = append(*m, v.id)
	if err := disk.Create(r.path(v.path()), "qcow2", size, below); err != nil {
		return err
	}
	d.file = v.id
	return disk.CopyTree(r.path(base.path()), r.path(v.path()))
}

// template is qm template: the VM's volumes become base volumes.
func (r *run) template(p params) error {
	vmid := p["vmid"]
	c, err := r.load(vmid)
	if err != nil {
		return err
	}
	if err := c.checkLock(); err != nil {
		return err
	}
	switch {
	case len(c.snapshots) > 0:
		return fail(255, "unable to create template, because VM contains snapshots")
	case c.main["template"] == "1" && p["disk"] == "":
		return fail(255, "you can't convert a template to a template")
	case r.running(vmid) != 0:
		return fail(25, "you can't convert a VM to template if VM is running")
	}
	return r.task("qmtemplate", vmid, func(t *run) error {
		return t.withLock(vmid, func() error { return t.templateLocked(vmid, p["disk"], c) })
	})
}

// templateLocked marks the VM first and renames its volumes then, one after the other
// (PVE::QemuServer::template_create).
func (r *run) templateLocked(vmid, only string, c *conf) error {
	c.main["template"] = "1"
	if err := r.store(vmid, c); err != nil {
		return err
	}
	r.reached("template marked")
	for _, d := range c.main.drives() {
		if d.cdrom() || only != "" && d.key != only {
			continue
		}
		v, err := r.existing(d.file)
		if err != nil {
			return err
		}
		base := *v
		base.name = "base-" + strings.TrimPrefix(v.name, "vm-")
		base.id = strings.TrimSuffix(v.id, v.name) + base.name
		if err := disk.Rename(r.path(v.path()), r.path(base.path())); err != nil {
			return err
		}
		r.reached("template renamed")
		d.file = base.id
		c.main[d.key] = d.String()
		if err := r.store(vmid, c); err != nil {
			return err
		}
	}
	return nil
}
