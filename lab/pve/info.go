package pve

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/homeiac/homelab/lab/disk"
)

// list is qm list.
func (r *run) list(params) error {
	ids, err := r.guests()
	if err != nil || len(ids) == 0 {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%10s %-20s %-10s %-10s %12s %-10s\n", "VMID", "NAME", "STATUS", "MEM(MB)", "BOOTDISK(GB)", "PID")
	for _, vmid := range ids {
		c, err := r.load(vmid)
		if err != nil {
			continue // destroyed meanwhile
		}
		r.warnAll(c)
		s := r.vmStatus(vmid, c, false)
		fmt.Fprintf(&b, "%10s %-20s %-10s %-10d %12.2f %-10d\n", vmid, s["name"], s["status"],
			s["maxmem"].(int64)>>20, float64(s["maxdisk"].(int64))/(1<<30), pidOf(s))
	}
	r.printf("%s", b.String())
	return nil
}

func pidOf(s map[string]any) int {
	pid, _ := s["pid"].(int)
	return pid
}

// vmStatus is what PVE::QemuServer's vmstatus gives; full asks QEMU.
func (h *Host) vmStatus(vmid string, c *conf, full bool) map[string]any {
	m := c.main
	name := m["name"]
	if name == "" {
		name = "VM " + vmid
	}
	id, _ := strconv.Atoi(vmid)
	s := map[string]any{
		"vmid": id, "name": name, "status": "stopped", "uptime": 0, "cpu": 0, "mem": int64(0), "memhost": int64(0),
		"netin": 0, "netout": 0, "disk": 0, "cpus": min(intOr(m["cores"], 1)*intOr(m["sockets"], 1), int64(h.cfg.CPUs)),
		"maxmem": memoryMiB(m) << 20, "maxdisk": h.bootDiskSize(m),
	}
	for _, k := range []string{"lock", "tags"} {
		if v, ok := m[k]; ok {
			s[k] = v
		}
	}
	if m["template"] == "1" {
		s["template"] = 1
	}
	if m["serial0"] == "socket" {
		s["serial"] = 1
	}
	if full {
		s["qmpstatus"] = "stopped"
	}
	pid := h.running(vmid)
	if pid == 0 {
		return s
	}
	s["status"], s["pid"] = "running", pid
	s["mem"], s["memhost"] = memoryOf(pid), memoryOf(pid)
	s["uptime"] = h.processAge(pid)
	for _, k := range []string{"cpufull", "cpusome", "iofull", "iosome", "memoryfull", "memorysome"} {
		s["pressure"+k] = 0
	}
	if full {
		s["qmpstatus"] = h.qmpStatus(vmid)
		taps := map[string]any{}
		for _, n := range nics(m) {
			taps[fmt.Sprintf("tap%si%d", vmid, n.index)] = map[string]any{"netin": 0, "netout": 0}
		}
		if len(taps) > 0 {
			s["nics"] = taps
		}
	}
	return s
}

// processAge is how long a process runs, in seconds.
func (h *Host) processAge(pid int) int {
	info, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	if err != nil {
		return 0
	}
	return max(int(h.clock.Now().Sub(info.ModTime()).Seconds()), 0)
}

// bootDiskSize is the size of the first disk of the boot order, from the
// configuration.
func (h *Host) bootDiskSize(s section) int64 {
	order, _ := strings.CutPrefix(s["boot"], "order=")
	for _, key := range strings.FieldsFunc(order, listSeparator) {
		if v, ok := s[key]; ok && isDrive(key) {
			d := parseDrive(key, v)
			if d.cdrom() {
				continue
			}
			n, _ := parseSize(d.opts["size"])
			return n
		}
	}
	return 0
}

// status is qm status.
func (r *run) status(p params) error {
	vmid := p["vmid"]
	c, err := r.load(vmid)
	if err != nil {
		return err
	}
	if p.on("verbose") {
		r.printf("%s", statusText(r.vmStatus(vmid, c, true), 0))
		return nil
	}
	state := "stopped"
	if r.running(vmid) != 0 {
		state = r.qmpStatus(vmid)
	}
	r.printf("status: %s\n", state)
	return nil
}

// statusText prints a status as qm status --verbose does.
func statusText(s map[string]any, depth int) string {
	var b strings.Builder
	indent := strings.Repeat("\t", depth)
	for _, k := range slices.Sorted(maps.Keys(s)) {
		switch v := s[k].(type) {
		case map[string]any:
			fmt.Fprintf(&b, "%s%s:\n%s", indent, k, statusText(v, depth+1))
		default:
			if k != "cpu" {
				fmt.Fprintf(&b, "%s%s: %v\n", indent, k, v)
			}
		}
	}
	return b.String()
}

// shown is a configuration as the API gives it: pending values in force unless
// current.
func (c *conf) shown(current bool) section {
	s := maps.Clone(c.main)
	if !current {
		for _, k := range c.deleting {
			delete(s, k)
		}
		maps.Copy(s, c.pending)
	}
	if _, ok := s["cipassword"]; ok {
		s["cipassword"] = "**********"
	}
	return s
}

// config is qm config.
func (r *run) config(p params) error {
	c, err := r.load(p["vmid"])
	if err != nil {
		return err
	}
	r.warnAll(c)
	s := c.shown(p.on("current"))
	if name := p["snapshot"]; name != "" {
		snap, ok := c.snapshots[name]
		if !ok {
			return fail(2, "snapshot '%s' does not exist", name)
		}
		s = maps.Clone(snap)
	}
	for _, k := range slices.Sorted(maps.Keys(s)) {
		v := s[k]
		if k == "description" {
			v = encodeText(v)
		}
		r.printf("%s: %s\n", k, v)
	}
	return nil
}

// pending is qm pending.
func (r *run) pending(p params) error {
	c, err := r.load(p["vmid"])
	if err != nil {
		return err
	}
	keys := map[string]bool{}
	for _, s := range []section{c.main, c.pending} {
		for k := range s {
			keys[k] = true
		}
	}
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		show := func(v string) string {
			switch k {
			case "cipassword":
				return "**********"
			case "description":
				return encodeText(v)
			}
			return v
		}
		if v, ok := c.main[k]; ok {
			word := "cur"
			if slices.Contains(c.deleting, k) {
				word = "del"
			}
			r.printf("%s %s: %s\n", word, k, show(v))
		}
		if v, ok := c.pending[k]; ok {
			r.printf("new %s: %s\n", k, show(v))
		}
	}
	return nil
}

// unlock is qm unlock.
func (r *run) unlock(p params) error {
	vmid := p["vmid"]
	if _, err := r.load(vmid); err != nil {
		return err
	}
	return r.withLock(vmid, func() error {
		c, err := r.load(vmid)
		if err != nil {
			return err
		}
		if c.main["lock"] == "" {
			return nil
		}
		delete(c.main, "lock")
		return r.store(vmid, c)
	})
}

// showcmd is qm showcmd.
func (r *run) showcmd(p params) error {
	c, err := r.load(p["vmid"])
	if err != nil {
		return err
	}
	args, err := r.kvmArgs(p["vmid"], c.main)
	if err != nil {
		return err
	}
	sep := " "
	if p.on("pretty") {
		sep = " \\\n  "
	}
	out := args[0]
	for i := 1; i < len(args); i++ {
		if strings.HasPrefix(args[i], "-") && len(args[i]) > 1 && !strings.ContainsAny(args[i], "=,") {
			out += sep + shellQuote(args[i])
		} else {
			out += " " + shellQuote(args[i])
		}
	}
	r.printf("%s\n", out)
	return nil
}

// shellQuote quotes as Perl's String::ShellQuote does.
func shellQuote(s string) string {
	plain := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("!%+,-./:@^_", c)
	}
	if s != "" && strings.IndexFunc(s, func(c rune) bool { return !plain(c) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// pveversion is the program of that name.
func (r *run) pveversion(args []string) error {
	if len(args) > 0 {
		return notSimulated("pveversion %s", strings.Join(args, " "))
	}
	r.printf("pve-manager/%s/%s (running kernel: %s)\n", r.cfg.PVEVersion, repoID, r.kernel())
	return nil
}

// repoID is the source revision that pve-manager 9.2.11 gives.
const repoID = "14a22df35955d97d"

func (h *Host) kernel() string {
	if strings.HasPrefix(h.cfg.PVEVersion, "8.") {
		return "6.8.12-11-pve"
	}
	return "6.17.2-1-pve"
}

// volumeSize is a volume's virtual size, 0 when it cannot be read.
func (h *Host) volumeSize(v *volume) int64 {
	_, size, err := disk.Info(h.path(v.path()))
	if err != nil {
		return 0
	}
	return size
}

// compactJSON is JSON as Perl's canonical JSON prints it: sorted, no spaces,
// no escapes for HTML.
func compactJSON(v any) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(v)
	return strings.TrimSuffix(b.String(), "\n")
}
