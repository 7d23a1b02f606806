package pve

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/homeiac/homelab/lab/disk"
)

func snapshotName(v string) string {
	if !configID.MatchString(v) {
		return fmt.Sprintf("invalid configuration ID '%s'", v)
	}
	return ""
}

// snapshottable says whether a volume's storage and format know snapshots.
func (v *volume) snapshottable() bool { return v.store.typ != "dir" || v.format == "qcow2" }

// disksOf are the volumes of a VM that a snapshot holds.
func (r *run) disksOf(s section) (disks []drive, volumes []*volume, err error) {
	for _, d := range s.drives() {
		if d.cdrom() {
			continue
		}
		v, err := r.existing(d.file)
		if err != nil {
			return nil, nil, err
		}
		disks, volumes = append(disks, d), append(volumes, v)
	}
	return disks, volumes, nil
}

// snapshot is qm snapshot.
func (r *run) snapshot(p params) error {
	vmid, name := p["vmid"], p["snapname"]
	if name == "current" || name == "pending" {
		return fail(2, "unable to use snapshot name '%s' (reserved name)", name)
	}
	if _, err := r.load(vmid); err != nil {
		return err
	}
	return r.task("qmsnapshot", vmid, func(t *run) error {
		return t.withLock(vmid, func() error { return t.snapshotLocked(vmid, name, p) })
	})
}

func (r *run) snapshotLocked(vmid, name string, p params) error {
	c, err := r.load(vmid)
	if err != nil {
		return err
	}
	if c.main["template"] == "1" {
		return fail(255, "you can't take a snapshot if it's a template")
	}
	if err := c.checkLock(); err != nil {
		return err
	}
	if c.snapshots[name] != nil {
		return fail(255, "snapshot name '%s' already used", name)
	}
	disks, volumes, err := r.disksOf(c.main)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(volumes, func(v *volume) bool { return !v.snapshottable() }) {
		return fail(255, "snapshot feature is not available")
	}
	snap := snapshotOf(c.main)
	snap["snaptime"] = ctime(r.clock.Now())
	if parent := c.main["parent"]; parent != "" {
		snap["parent"] = parent
	}
	if d := p["description"]; d != "" {
		snap["description"] = d
	}
	running := r.running(vmid) != 0
	if running && p.on("vmstate") {
		if err := r.saveState(vmid, name, c.main, snap); err != nil {
			return err
		}
		r.printf("saving VM state and RAM using storage 'local'\n11.65 MiB in 0s\ncompleted saving the VM state in 1s, saved 95.98 MiB\n")
	}
	for i, v := range volumes {
		r.printf("snapshotting 'drive-%s' (%s)\n", disks[i].key, disks[i].file)
		if running && v.store.typ == "dir" {
			r.printf("internal qemu snapshot\n")
		}
		if err := disk.Snapshot(r.path(v.path()), name); err != nil {
			return err
		}
	}
	c.snapshots[name], c.main["parent"] = snap, name
	return r.store(vmid, c)
}

// snapshotOf copies what a snapshot keeps of a configuration.
func snapshotOf(s section) section {
	snap := section{}
	for k, v := range s {
		switch {
		case unusedKey.MatchString(k), k == "lock", k == "description", k == "parent", k == "snaptime", k == "vmstate", strings.HasPrefix(k, "running"):
		default:
			snap[k] = v
		}
	}
	return snap
}

// saveState allocates the volume that holds a VM's memory, and notes what the
// state needs to be loaded again. The lab's guests cannot be frozen into a
// file: the volume stays empty, and a guest brought back from it boots.
func (r *run) saveState(vmid, name string, s, to section) error {
	store := s["vmstatestorage"]
	if store == "" {
		store = "local"
	}
	file := "vm-" + vmid + "-state-" + name
	if st, err := r.storage(store); err == nil && st.typ == "dir" {
		file += ".raw"
	}
	v, err := r.alloc(store, vmid, "raw", file, (memoryMiB(s)*2+500)<<20)
	if err != nil {
		return err
	}
	to["vmstate"] = v.id
	to["runningcpu"] = cpuArg(s)
	to["runningmachine"] = "pc-i440fx-10.0"
	var mtus []string
	for _, n := range nics(s) {
		if mtu := r.nicMTU(n.opts); mtu > 0 {
			mtus = append(mtus, fmt.Sprintf("net%d=%d", n.index, mtu))
		}
	}
	if len(mtus) > 0 {
		to["running-nets-host-mtu"] = strings.Join(mtus, ",")
	}
	return nil
}

// delSnapshot is qm delsnapshot.
func (r *run) delSnapshot(p params) error {
	vmid, name := p["vmid"], p["snapname"]
	if _, err := r.load(vmid); err != nil {
		return err
	}
	return r.task("qmdelsnapshot", vmid, func(t *run) error {
		return t.withLock(vmid, func() error {
			c, snap, err := t.loadSnapshot(vmid, name)
			if err != nil {
				return err
			}
			if v := snap["vmstate"]; v != "" {
				if err := t.free(v); err != nil {
					return err
				}
			}
			_, volumes, err := t.disksOf(snap)
			if err != nil {
				return err
			}
			for _, v := range volumes {
				if err := disk.DropSnapshot(t.path(v.path()), name); err != nil {
					return err
				}
			}
			delete(c.snapshots, name)
			for _, s := range c.sections() {
				if s["parent"] == name {
					if delete(s, "parent"); snap["parent"] != "" {
						s["parent"] = snap["parent"]
					}
				}
			}
			return t.store(vmid, c)
		})
	})
}

func (r *run) loadSnapshot(vmid, name string) (*conf, section, error) {
	c, err := r.load(vmid)
	if err != nil {
		return nil, nil, err
	}
	if c.snapshots[name] == nil {
		return nil, nil, fail(255, "snapshot '%s' does not exist", name)
	}
	return c, c.snapshots[name], c.checkLock()
}

// rollback is qm rollback. It stops a running VM; a snapshot with memory
// starts it.
func (r *run) rollback(p params) error {
	vmid, name := p["vmid"], p["snapname"]
	if _, err := r.load(vmid); err != nil {
		return err
	}
	return r.task("qmrollback", vmid, func(t *run) error {
		return t.withLock(vmid, func() error { return t.rollbackLocked(vmid, name) })
	})
}

func (r *run) rollbackLocked(vmid, name string) error {
	c, snap, err := r.loadSnapshot(vmid, name)
	if err != nil {
		return err
	}
	_, volumes, err := r.disksOf(snap)
	if err != nil {
		return err
	}
	if r.running(vmid) != 0 {
		if err := r.end(vmid, stopOptions{force: true, timeout: 5 * time.Second}); err != nil {
			return err
		}
	}
	for _, v := range volumes {
		if err := disk.Rollback(r.path(v.path()), name); err != nil {
			return err
		}
	}
	main := snapshotOf(snap)
	for k, v := range c.main {
		if k == "description" || unusedKey.MatchString(k) {
			main[k] = v
		}
	}
	main["parent"], main["vmgenid"] = name, r.newUUID()
	c.main = main
	if err := r.store(vmid, c); err != nil || snap["vmstate"] == "" {
		return err
	}
	if err := r.makeISO(vmid, c); err != nil {
		return err
	}
	r.migrationNotes(snap)
	return r.boot(vmid, c.main)
}

// migrationNotes says what is kept for the sake of a saved state.
func (r *run) migrationNotes(s section) {
	for part := range strings.SplitSeq(s["running-nets-host-mtu"], ",") {
		if nic, mtu, ok := strings.Cut(part, "="); ok {
			r.printf("netdev %s: using 'host_mtu=%s' for migration compat\n", nic, mtu)
		}
	}
}

// suspendToDisk is qm suspend --todisk 1.
func (r *run) suspendToDisk(p params) error {
	vmid := p["vmid"]
	return r.task("qmsuspend", vmid, func(t *run) error {
		return t.withLock(vmid, func() error {
			c, err := t.load(vmid)
			if err != nil {
				return err
			}
			if err := c.lockUnless(p.on("skiplock")); err != nil {
				return err
			}
			name := "suspend-" + t.clock.Now().UTC().Format("2006-01-02")
			if err := t.saveState(vmid, name, c.main, c.main); err != nil {
				return err
			}
			c.main["lock"] = "suspended"
			if err := t.store(vmid, c); err != nil {
				return err
			}
			t.printf("State saved, quitting\n")
			return t.end(vmid, stopOptions{force: true, skiplock: true, timeout: 5 * time.Second})
		})
	})
}

// resumeSuspended starts a VM that was suspended to disk, under its lock.
func (r *run) resumeSuspended(vmid string, c *conf) error {
	if err := r.makeISO(vmid, c); err != nil {
		return err
	}
	r.printf("Resuming suspended VM\n")
	r.migrationNotes(c.main)
	state := c.main["vmstate"]
	r.printf("activating and using '%s' as vmstate\n", state)
	main := maps.Clone(c.main)
	for _, k := range []string{"lock", "vmstate", "runningcpu", "runningmachine", "running-nets-host-mtu"} {
		delete(main, k)
	}
	if err := r.boot(vmid, main); err != nil {
		return err
	}
	r.printf("Resumed VM, removing state\n")
	if err := r.free(state); err != nil {
		r.warnf("%v\n", err)
	}
	c.main = main
	if err := r.store(vmid, c); err != nil {
		// A guest whose configuration still says suspended must not run.
		if pid := r.running(vmid); pid != 0 {
			_ = r.terminate(pid, syscall.SIGKILL)
		}
		return err
	}
	return nil
}

// listSnapshots is qm listsnapshot: the tree, then the present state.
func (r *run) listSnapshots(p params) error {
	c, err := r.load(p["vmid"])
	if err != nil {
		return err
	}
	var show func(parent string, depth int)
	show = func(parent string, depth int) {
		names := slices.Sorted(maps.Keys(c.snapshots))
		slices.SortStableFunc(names, func(a, b string) int {
			return int(intOr(c.snapshots[a]["snaptime"], 0) - intOr(c.snapshots[b]["snaptime"], 0))
		})
		for _, name := range names {
			s := c.snapshots[name]
			if s["parent"] != parent {
				continue
			}
			descr, _, _ := strings.Cut(s["description"], "\n")
			if descr == "" {
				descr = "no-description"
			}
			when := time.Unix(intOr(s["snaptime"], 0), 0).UTC().Format("2006-01-02 15:04:05")
			r.printf("%-32s%-24s%s\n", strings.Repeat(" ", depth)+"`-> "+name, when, descr)
			show(name, depth+1)
		}
		if c.main["parent"] == parent {
			r.printf("%-56s%s\n", strings.Repeat(" ", depth)+"`-> current", "You are here!")
		}
	}
	show("", 0)
	return nil
}
