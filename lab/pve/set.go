package pve

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

// readInput reads a file named on the command line: one on the host, or the
// program's standard input.
func (r *run) readInput(file string) ([]byte, error) {
	if file == "/dev/stdin" || file == "-" {
		return io.ReadAll(r.stdin)
	}
	return os.ReadFile(r.path(file))
}

// set is qm set: PVE::API2::Qemu's update_vm_api.
func (r *run) set(p params) error {
	vmid := p["vmid"]
	options := maps.Clone(p)
	for _, k := range []string{"vmid", "digest"} {
		delete(options, k)
	}
	if len(options) == 0 {
		return fail(2, "no options specified")
	}
	r.reached("set begun")
	if err := r.readKeys(p); err != nil {
		return err
	}
	if _, ok := p["sshkeys"]; ok {
		options["sshkeys"] = p["sshkeys"]
	}
	for _, list := range []string{"delete", "revert"} {
		for opt := range strings.FieldsFuncSeq(p[list], listSeparator) {
			if _, ok := lookup(opt); !ok {
				return badParam(255, list, "unknown option '%s'", opt)
			}
		}
	}
	if err := r.checkDrives(p); err != nil {
		return err
	}
	if err := r.checkHookscript(p); err != nil {
		return err
	}
	return r.withLock(vmid, func() error { return r.setLocked(vmid, p, options) })
}

func (r *run) setLocked(vmid string, p, options params) error {
	c, err := r.load(vmid)
	if err != nil {
		return err
	}
	r.warnAll(c)
	if d := p["digest"]; d != "" && d != c.digest {
		return fail(255, "checksum mismatch (file change by other user?)")
	}
	if !p.on("skiplock") {
		if err := c.checkLock(); err != nil {
			return err
		}
	}
	r.printf("update VM %s:%s\n", vmid, echo(options))
	return r.update(vmid, c, p)
}

func (r *run) warnAll(c *conf) {
	for _, w := range c.warnings {
		r.warnf("%s\n", w)
	}
	c.warnings = nil
}

// echo shows parameters as qm set does.
func echo(p params) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(p)) {
		v := p[k]
		if k == "cipassword" {
			v = "<hidden>"
		}
		fmt.Fprintf(&b, " -%s %s", k, v)
	}
	return b.String()
}

// update makes the changes of p to a configuration that was read under the
// lock: first all into [PENDING], written, then what can be applied now.
func (r *run) update(vmid string, c *conf, p params) error {
	running := r.running(vmid) != 0
	if err := r.registerDeletes(vmid, c, p); err != nil {
		return err
	}
	for opt := range strings.FieldsFuncSeq(p["revert"], listSeparator) {
		delete(c.pending, opt)
		c.deleting = without(c.deleting, opt)
	}
	var m made
	values, m, cloudInit, err := r.createDisks(vmid, c.main, p)
	if err != nil {
		r.freeAll(m)
		return err
	}
	r.reached("set disks")
	r.giveMACs(p)
	for k, v := range p {
		if slices.Contains(notStored, k) {
			continue
		}
		if values[k] != "" {
			v = values[k]
		} else {
			v = stored(k, v)
		}
		c.pending[k] = v
		c.deleting = without(c.deleting, k)
	}
	if err := r.store(vmid, c); err != nil {
		return err
	}
	if running {
		err = r.hotplug(vmid, c, p)
	} else {
		err = r.applyPending(vmid, c, p.on("force"))
	}
	if err == nil && cloudInit {
		with := &conf{main: maps.Clone(c.main)}
		maps.Copy(with.main, c.pending)
		err = r.makeISO(vmid, with)
	}
	return err
}

func without(list []string, opt string) []string {
	return slices.DeleteFunc(list, func(s string) bool { return s == opt })
}

// registerDeletes notes what is to be deleted; unusedN volumes go at once.
func (r *run) registerDeletes(vmid string, c *conf, p params) error {
	for opt := range strings.FieldsFuncSeq(p["delete"], listSeparator) {
		_, set := c.main[opt]
		if _, pending := c.pending[opt]; pending {
			if d := parseDrive(opt, c.pending[opt]); isDrive(opt) {
				r.keepOrFree(vmid, c, d, p.on("force"))
			}
			delete(c.pending, opt)
			if !set {
				continue
			}
		}
		if !set {
			r.warnf("cannot delete '%s' - not set in current configuration!\n", opt)
			continue
		}
		switch {
		case unusedKey.MatchString(opt):
			volid := parseDrive(opt, c.main[opt]).file
			delete(c.main, opt)
			if err := r.free(volid); err != nil {
				r.warnf("%v\n", err)
			}
			continue
		case isDrive(opt) && c.main["protection"] == "1":
			return fail(255, "can't remove drive '%s' - protection mode enabled", opt)
		}
		if !slices.Contains(c.deleting, opt) {
			c.deleting = append(c.deleting, opt)
		}
		if isDrive(opt) || strings.HasPrefix(opt, "net") {
			r.dropFromBoot(c, opt)
		}
	}
	return nil
}

// dropFromBoot takes a device out of the boot order.
func (r *run) dropFromBoot(c *conf, opt string) {
	boot, ok := c.pending["boot"]
	if !ok {
		boot = c.main["boot"]
	}
	order, ok := strings.CutPrefix(boot, "order=")
	if !ok {
		return
	}
	devices := strings.Split(order, ";")
	if !slices.Contains(devices, opt) {
		return
	}
	if devices = without(devices, opt); len(devices) == 0 {
		c.pending["boot"] = ""
		return
	}
	c.pending["boot"] = "order=" + strings.Join(devices, ";")
}

// keepOrFree deals with the volume of a drive that leaves the VM: it becomes
// unusedN; a cloud-init volume is freed, and others with force.
func (r *run) keepOrFree(vmid string, c *conf, d drive, force bool) {
	id, _ := splitVolume(d.file)
	if id == "" {
		return
	}
	if d.cloudInit() || force && !d.cdrom() {
		if d.cloudInit() {
			c.cloudinit = section{}
		}
		if err := r.free(d.file); err != nil {
			r.warnf("%v\n", err)
		}
		return
	}
	if v, err := r.parseVolume(d.file); err == nil && !d.cdrom() && v.vmid == vmid {
		c.main.addUnused(d.file)
	}
}

// applyPending puts everything pending in force: the VM is stopped.
func (r *run) applyPending(vmid string, c *conf, force bool) error {
	if len(c.pending) == 0 && len(c.deleting) == 0 {
		return r.store(vmid, c)
	}
	for _, opt := range c.deleting {
		r.applyDelete(vmid, c, opt, force)
	}
	c.deleting = nil
	for _, opt := range slices.Sorted(maps.Keys(c.pending)) {
		r.applyValue(vmid, c, opt, c.pending[opt])
	}
	c.pending = section{}
	return r.store(vmid, c)
}

func (r *run) applyDelete(vmid string, c *conf, opt string, force bool) {
	old, ok := c.main[opt]
	delete(c.main, opt)
	if ok && isDrive(opt) {
		r.keepOrFree(vmid, c, parseDrive(opt, old), force)
	}
}

func (r *run) applyValue(vmid string, c *conf, opt, value string) {
	old, had := c.main[opt]
	c.main[opt] = value
	if !isDrive(opt) {
		return
	}
	now := parseDrive(opt, value)
	for _, u := range c.main.unused() {
		if u.file == now.file {
			delete(c.main, u.key)
		}
	}
	if had {
		if d := parseDrive(opt, old); d.file != now.file {
			r.keepOrFree(vmid, c, d, false)
		}
	}
}
