package pve

import (
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
)

// create is qm create. It is not atomic: the configuration, with lock: create
// alone, is there before the disks are made.
func (r *run) create(p params) error {
	vmid := p["vmid"]
	if err := r.checkQuorum(); err != nil {
		return err
	}
	if a := p["archive"]; a != "" {
		if _, err := os.Stat(r.path(a)); err != nil {
			return fail(2, "can't find file '%s'", a)
		}
		return notSimulated("restoring backups")
	}
	for _, k := range []string{"live-restore", "force"} {
		if p.on(k) {
			return notSimulated("qm create --%s", k)
		}
	}
	if pool := p["pool"]; pool != "" {
		return fail(255, "403 Permission check failed (pool '%s' does not exist)", pool)
	}
	if err := r.checkDrives(p); err != nil {
		return err
	}
	if err := r.readKeys(p); err != nil {
		return err
	}
	if err := r.checkHookscript(p); err != nil {
		return err
	}
	if err := r.withLock(vmid, func() error { return r.reserve(vmid) }); err != nil {
		return err
	}
	return r.task("qmcreate", vmid, func(t *run) error {
		if err := t.withLock(vmid, func() error { return t.build(vmid, p) }); err != nil {
			return err
		}
		if p.on("start") {
			t.printf("Execute autostart\n")
			return t.start(params{"vmid": vmid})
		}
		return nil
	})
}

// reserve writes the configuration that claims the VMID.
func (r *run) reserve(vmid string) error {
	if err := Refresh(r.pmxcfs()); err != nil {
		return err
	}
	if g, taken := r.whereIs(vmid); taken {
		what := map[string]string{"qemu": "VM", "lxc": "CT"}[g.Type]
		return fail(255, "unable to create VM %s - %s %s already exists on node '%s'", vmid, what, vmid, g.Node)
	}
	c := newConf()
	c.main["lock"] = "create"
	return r.store(vmid, c)
}

func (r *run) build(vmid string, p params) error {
	values, m, _, err := r.createDisks(vmid, section{}, p)
	if err == nil {
		r.reached("create disks")
		err = r.finish(vmid, p, values)
	}
	if err == nil {
		return nil
	}
	r.freeAll(m)
	if rerr := r.removePVE("nodes/" + r.cfg.NodeName + "/qemu-server/" + vmid + ".conf"); rerr != nil {
		r.warnf("%v\n", rerr)
	}
	return fail(255, "unable to create VM %s - %v", vmid, err)
}

// notStored are parameters of create, set and clone that are no settings.
var notStored = strings.Fields("vmid archive force live-restore pool start storage unique bwlimit delete revert digest skiplock background_delay import-working-storage ha-managed")

func (r *run) finish(vmid string, p params, drives section) error {
	r.giveMACs(p)
	c := newConf()
	for k, v := range p {
		switch {
		case slices.Contains(notStored, k):
		case drives[k] != "":
			c.main[k] = drives[k]
		default:
			c.main[k] = stored(k, v)
		}
	}
	if _, ok := c.main["boot"]; !ok {
		c.main["boot"] = bootDefault(c.main)
	}
	if c.main["smbios1"] == "" {
		c.main["smbios1"] = "uuid=" + r.newUUID()
	}
	if v := c.main["vmgenid"]; v == "" || v == "1" {
		c.main["vmgenid"] = r.newUUID()
	}
	c.main["meta"] = "creation-qemu=" + r.qemuVersion() + ",ctime=" + ctime(r.clock.Now())
	return r.store(vmid, c)
}

// qemuVersion is the QEMU that comes with the host's Proxmox.
func (h *Host) qemuVersion() string {
	if strings.HasPrefix(h.cfg.PVEVersion, "8.") {
		return "9.2.0"
	}
	return "10.0.2"
}

// stored is a setting's value as Proxmox keeps it.
func stored(key, value string) string {
	switch key {
	case "tags":
		return normalTags(value)
	case "cipassword":
		if !strings.HasPrefix(value, "$") {
			return cryptSHA256(value, salt())
		}
	case "cores", "sockets", "balloon", "vcpus", "cpuunits", "shares":
		if n, err := strconv.ParseInt(value, 10, 64); err == nil {
			return strconv.FormatInt(n, 10)
		}
	}
	return value
}

// normalTags sorts tags, lower-cased, each once.
func normalTags(v string) string {
	tags := strings.FieldsFunc(strings.ToLower(v), func(c rune) bool { return c == ',' || c == ';' })
	slices.Sort(tags)
	return strings.Join(slices.Compact(tags), ";")
}

// readKeys replaces sshkeys, which names a file, by its content.
func (r *run) readKeys(p params) error {
	file, ok := p["sshkeys"]
	if !ok || file == "" {
		return nil
	}
	data, err := r.readInput(file)
	if err != nil {
		return fail(2, "can't open '%s' - %s", file, errnoText(err))
	}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if !slices.ContainsFunc([]string{"ssh-", "ecdsa-", "sk-"}, func(s string) bool { return strings.HasPrefix(line, s) }) {
			return fail(255, "SSH public key validation error")
		}
	}
	p["sshkeys"] = strings.ReplaceAll(url.QueryEscape(string(data)), "+", "%20")
	return nil
}

// checkHookscript refuses a snippet that is not there.
func (r *run) checkHookscript(p params) error {
	hook := p["hookscript"]
	if hook == "" {
		return nil
	}
	v, err := r.parseVolume(hook)
	if err != nil {
		return badParam(2, "hookscript", "%v\n", err)
	}
	if _, err := os.Stat(r.path(v.path())); err != nil {
		return badParam(2, "hookscript", "script '%s' does not exist\n", hook)
	}
	return nil
}
