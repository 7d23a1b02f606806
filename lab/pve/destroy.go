package pve

import (
	"os"
	"slices"
	"strings"
)

// destroy is qm destroy.
func (r *run) destroy(p params) error {
	vmid := p["vmid"]
	c, err := r.load(vmid)
	if err != nil {
		return err
	}
	if c.main["protection"] == "1" {
		return fail(255, "can't remove VM %s - protection mode enabled", vmid)
	}
	if r.running(vmid) != 0 {
		return fail(25, "VM %s is running - destroy failed", vmid)
	}
	if _, configured, err := r.haManaged(vmid); err != nil {
		return err
	} else if configured && !p.on("purge") {
		return fail(255, "unable to remove VM %s - used in HA resources and purge parameter not set.", vmid)
	}
	return r.task("qmdestroy", vmid, func(t *run) error {
		return t.withLock(vmid, func() error { return t.destroyLocked(vmid, p) })
	})
}

func (r *run) destroyLocked(vmid string, p params) error {
	c, err := r.load(vmid)
	if err != nil {
		return err
	}
	if r.running(vmid) != 0 {
		return fail(255, "VM %s is running - destroy failed", vmid)
	}
	if c.main["lock"] != "suspended" {
		if err := c.lockUnless(p.on("skiplock")); err != nil {
			return err
		}
	}
	if err := r.checkClones(c); err != nil {
		return err
	}
	r.freeVolumes(vmid, c)
	if p.on("destroy-unreferenced-disks") {
		r.freeUnreferenced(vmid)
	}
	// The VMID stays taken until the last step; of the VM nothing is left.
	left := newConf()
	left.main["lock"] = "destroyed"
	if err := r.store(vmid, left); err != nil {
		return err
	}
	if p.on("purge") {
		r.printf("purging VM %s from related configurations..\n", vmid)
		if err := r.purge(vmid); err != nil {
			return err
		}
	}
	return r.removePVE("nodes/" + r.cfg.NodeName + "/qemu-server/" + vmid + ".conf")
}

// checkClones refuses to destroy a template whose disks have linked clones.
func (r *run) checkClones(c *conf) error {
	if c.main["template"] != "1" {
		return nil
	}
	for _, d := range c.main.drives() {
		v, err := r.existing(d.file)
		if err != nil || !strings.HasPrefix(v.name, "base-") {
			continue
		}
		if used, err := r.linked(v); err != nil {
			return err
		} else if used {
			return fail(255, "base volume '%s' is still in use by linked cloned", v.id)
		}
	}
	return nil
}

// volumes are the volumes a configuration names, snapshots' and unused ones
// too, each once.
func (c *conf) volumes() []string {
	var list []string
	add := func(volid string) {
		if id, _ := splitVolume(volid); id != "" && !slices.Contains(list, volid) {
			list = append(list, volid)
		}
	}
	for _, s := range c.sections() {
		for _, d := range append(s.drives(), s.unused()...) {
			if !d.cdrom() || d.cloudInit() {
				add(d.file)
			}
		}
		add(s["vmstate"])
	}
	for key, value := range c.pending {
		if isDrive(key) {
			if d := parseDrive(key, value); !d.cdrom() || d.cloudInit() {
				add(d.file)
			}
		}
	}
	return list
}

func (c *conf) sections() []section {
	list := []section{c.main}
	for _, s := range c.snapshots {
		list = append(list, s)
	}
	return list
}

// freeVolumes frees what the configuration names and the VM owns; what cannot
// be freed is a warning, and stays.
func (r *run) freeVolumes(vmid string, c *conf) {
	for _, volid := range c.volumes() {
		v, err := r.parseVolume(volid)
		if err != nil {
			r.taskWarn("failed to get path and owner of volume '%s': %v", volid, err)
			continue
		}
		if v.vmid != vmid {
			continue // another VM's, attached here
		}
		if err := r.free(volid); err != nil {
			r.taskWarn("Could not remove disk '%s', check manually: %v", volid, err)
		}
	}
}

// freeUnreferenced frees every volume of the VMID, on all usable storages.
func (r *run) freeUnreferenced(vmid string) {
	list, err := r.storages()
	if err != nil {
		return
	}
	for _, s := range list {
		if _, err := r.usable(s.id); err != nil || !s.holds("images") {
			continue
		}
		volumes, _ := r.images(s, vmid)
		for _, v := range volumes {
			if _, err := os.Lstat(r.path(v.path())); err != nil {
				continue
			}
			if err := r.free(v.id); err != nil {
				r.taskWarn("Could not remove disk '%s', check manually: %v", v.id, err)
			}
		}
	}
}
