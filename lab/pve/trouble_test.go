package pve

import (
	"os"
	"strings"
	"testing"
	"time"
)

// trouble changes what is wrong with the world's host.
func (w *world) trouble(change func(*Trouble)) {
	w.Helper()
	h, err := Open(w.Host.dir)
	if err != nil {
		w.Fatal(err)
	}
	if err := h.Update(func(c *HostConfig) { change(&c.Trouble) }); err != nil {
		w.Fatal(err)
	}
	w.cfg = h.cfg
}

func TestAHungProgramGoesOnWhenItMay(t *testing.T) {
	w := newWorld(t)
	w.trouble(func(tr *Trouble) { tr.Hang = true })
	done := make(chan result, 1)
	go func() { done <- w.try("qm", "create", "201", "--name", "late") }()
	select {
	case r := <-done:
		t.Fatalf("it did not hang: %+v", r)
	case <-time.After(50 * time.Millisecond):
	}
	if w.conf("201") != "" {
		t.Error("it changed something while it hung")
	}
	w.trouble(func(tr *Trouble) { tr.Hang = false })
	if r := <-done; r.code != 0 || w.conf("201") == "" {
		t.Errorf("it did not go on: %+v", r)
	}
}

func TestAHungHostWritesNoStatistics(t *testing.T) {
	w := newWorld(t)
	w.trouble(func(tr *Trouble) { tr.Hang = true })
	if err := w.WriteStat(time.Now()); err != nil {
		t.Fatal(err)
	}
	if w.exists("etc/pve/.rrd") {
		if b, err := os.ReadFile(w.path("etc/pve/.rrd")); err == nil {
			t.Errorf("pvestatd wrote %s", b)
		}
	}
}

func TestChangingCommandsFailAtOnceAndOthersDoNot(t *testing.T) {
	w := madeByAgent(t)
	for _, c := range []struct {
		fail string
		argv string
		code int
	}{
		{"*", "qm start 201", 255},
		{"*", "qm set 201 --memory 512", 28},
		{"*", "qm destroy 201", 255},
		{"*", "qm config 201", 0},
		{"*", "qm list", 0},
		{"destroy", "qm destroy 201", 255},
		{"destroy", "qm set 201 --memory 512", 0},
		{"disk move", "qm disk move 201 scsi0 --target-vmid 202", 255},
	} {
		w.trouble(func(tr *Trouble) { tr.Fail = nil })
		if strings.Contains(c.argv, "disk move") {
			w.must("qm", "create", "202")
		}
		w.trouble(func(tr *Trouble) { tr.Fail = []string{c.fail} })
		got := w.try(strings.Fields(c.argv)...)
		if got.code != c.code {
			t.Errorf("%s: exit %d, want %d: %s%s", c.argv, got.code, c.code, got.out, got.stderr)
		}
		if c.code != 0 && !strings.Contains(got.stderr, "can't lock file '/var/lock/qemu-server/lock-201.conf' - can't open file - No space left on device") {
			t.Errorf("%s says %q", c.argv, got.stderr)
		}
	}
	if !strings.Contains(w.conf("201"), "scsi0: local:201/vm-201-disk-0.raw") {
		t.Error("something was changed all the same")
	}
}

// threeStorages is a host with one storage of each kind.
func threeStorages(c *HostConfig) {
	c.Storages = append(c.Storages,
		StorageConfig{Name: "data", Type: "dir", Path: "/mnt/data", TotalBytes: 1 << 40},
		StorageConfig{Name: "local-zfs", Type: "zfspool", Pool: "rpool/data", TotalBytes: 1 << 40},
		StorageConfig{Name: "local-lvm", Type: "lvmthin", VG: "pve", ThinPool: "data", TotalBytes: 1 << 40})
}

func TestAStorageThatIsAwayComesBackWhole(t *testing.T) {
	for _, id := range []string{"data", "local-zfs", "local-lvm"} {
		t.Run(id, func(t *testing.T) {
			w := newWorld(t, threeStorages)
			w.must("qm", "create", "201", "--scsi0", "local:1", "--scsi1", id+":1")
			before, conf := w.must("pvesm", "list", id), w.conf("201")
			if err := w.WriteStat(w.Now()); err != nil {
				t.Fatal(err)
			}
			if err := w.TakeStorage(id, true); err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(w.must("pvesm", "status")) {
				if f := strings.Fields(line); f[0] == id && f[2] != "inactive" {
					t.Errorf("status: %s", line)
				}
			}
			if got := w.try("pvesm", "list", id); got.code == 0 {
				t.Errorf("its volumes are listed: %s", got.out)
			}
			rrd, err := os.ReadFile(w.path("etc/pve/.rrd"))
			if err != nil || strings.Contains(string(rrd), "/"+id+":") || !strings.Contains(string(rrd), "/local:") {
				t.Errorf(".rrd: %v\n%s", err, rrd)
			}
			if got := w.try("qm", "start", "201"); got.code == 0 {
				t.Error("a VM with a disk on it was started")
			}
			// A write to its mount point lands below it.
			w.write("/mnt/data/stray", "x")
			if err := w.TakeStorage(id, false); err != nil {
				t.Fatal(err)
			}
			if got := w.must("pvesm", "list", id); got != before {
				t.Errorf("it came back as\n%swas\n%s", got, before)
			}
			if w.conf("201") != conf || id == "data" && w.exists("/mnt/data/stray") {
				t.Error("something changed meanwhile")
			}
			if rrd, err := os.ReadFile(w.path("etc/pve/.rrd")); err != nil || !strings.Contains(string(rrd), "/"+id+":") {
				t.Errorf(".rrd after: %v\n%s", err, rrd)
			}
			w.must("qm", "start", "201")
		})
	}
}

func TestAClockThatIsOff(t *testing.T) {
	w := newWorld(t)
	w.trouble(func(tr *Trouble) { tr.ClockSkew = time.Hour })
	h, err := Open(w.Host.dir)
	if err != nil {
		t.Fatal(err)
	}
	if d := time.Until(h.Now()); d < 59*time.Minute || d > time.Hour {
		t.Errorf("the host's clock is %v ahead", d)
	}
	if up := h.uptime(h.Now()); up < 86000 || up > 87000 {
		t.Errorf("its uptime became %d s", up)
	}
}

func TestADiskTravelsThroughAHolder(t *testing.T) {
	for id, names := range map[string][2]string{
		"data":      {"data:900/vm-900-disk-0.raw", "data:201/vm-201-disk-0.raw"},
		"local-zfs": {"local-zfs:vm-900-disk-0", "local-zfs:vm-201-disk-0"},
		"local-lvm": {"local-lvm:vm-900-disk-0", "local-lvm:vm-201-disk-0"},
	} {
		t.Run(id, func(t *testing.T) {
			w := newWorld(t, threeStorages)
			w.must("qm", "create", "201", "--scsi0", "local:1", "--scsi1", id+":1,backup=0")
			w.must("qm", "create", "900", "--name", "hl-holder-k3s-1")
			move := func(from, to string) []string {
				return []string{"qm", "disk", "move", from, "scsi1", "--target-vmid", to, "--target-disk", "scsi1"}
			}
			w.must("qm", "start", "201")
			if got := w.try(move("201", "900")...); got.code == 0 || !strings.Contains(got.stderr, "while the source VM is running") {
				t.Errorf("while it runs: %+v", got)
			}
			w.must("qm", "stop", "201")
			w.must(move("201", "900")...)
			if c := w.conf("201"); strings.Contains(c, "scsi1") || strings.Contains(c, "unused") {
				t.Errorf("the source still has it:\n%s", c)
			}
			if c := w.conf("900"); !strings.Contains(c, "scsi1: "+names[0]+",backup=0,size=1G\n") {
				t.Errorf("the holder:\n%s", c)
			}
			w.must("qm", "destroy", "201")
			w.must("qm", "create", "201", "--scsi0", "local:1")
			w.must("qm", "set", "201", "--scsi1", "local:1")
			if got := w.try(move("900", "201")...); got.code == 0 || !strings.Contains(got.stderr, "Target disk key 'scsi1' is already in use for VM '201'") {
				t.Errorf("into a slot that is taken: %+v", got)
			}
			w.must("qm", "set", "201", "--delete", "scsi1")
			w.must(move("900", "201")...)
			if c := w.conf("201"); !strings.Contains(c, "scsi1: "+names[1]+",backup=0,size=1G\n") {
				t.Errorf("it came back as\n%s", c)
			}
			w.must("qm", "destroy", "900")
			if list := w.must("pvesm", "list", id); !strings.Contains(list, names[1]) {
				t.Errorf("the holder took it along:\n%s", list)
			}
		})
	}
}

func TestWhatHAOwnsIsNotDestroyedWithoutPurge(t *testing.T) {
	w := madeByAgent(t)
	w.write("/etc/pve/ha/resources.cfg", "vm: 200\n\tstate started\n\nvm: 201\n\tgroup big\n\tstate stopped\n\nct: 201\n\tstate started\n")
	w.write("/etc/pve/jobs.cfg", "vzdump: nightly\n\tvmid 100,201\n")
	if out := w.must("qm", "start", "201"); !strings.Contains(out, "Requesting HA start for VM 201") || w.running("201") == 0 {
		t.Errorf("start: %s", out)
	}
	if out := w.must("qm", "stop", "201"); !strings.Contains(out, "Requesting HA stop for VM 201") || w.running("201") != 0 {
		t.Errorf("stop: %s", out)
	}
	if got := w.try("qm", "destroy", "201"); got.code == 0 || got.stderr != "unable to remove VM 201 - used in HA resources and purge parameter not set.\n" {
		t.Errorf("destroy: %+v", got)
	}
	w.must("qm", "destroy", "201", "--purge", "1")
	ha, err := os.ReadFile(w.path("etc/pve/ha/resources.cfg"))
	if err != nil || string(ha) != "vm: 200\n\tstate started\n\nct: 201\n\tstate started\n" {
		t.Errorf("resources.cfg: %v %q", err, ha)
	}
	if jobs, err := os.ReadFile(w.path("etc/pve/jobs.cfg")); err != nil || string(jobs) != "vzdump: nightly\n\tvmid 100\n" {
		t.Errorf("jobs.cfg: %v %q", err, jobs)
	}
}

func TestTheTaskLogSaysWhoStoppedAVM(t *testing.T) {
	w := madeByAgent(t)
	w.must("qm", "start", "201")
	w.must("qm", "suspend", "201")
	w.must("qm", "resume", "201")
	w.must("qm", "stop", "201")
	index, err := os.ReadFile(w.path("var/log/pve/tasks/index"))
	if err != nil {
		t.Fatal(err)
	}
	for _, typ := range []string{"qmstart", "qmpause", "qmresume", "qmstop"} {
		found := false
		for line := range strings.Lines(string(index)) {
			f := strings.Fields(line)
			if strings.Contains(f[0], ":"+typ+":201:root@pam:") && f[2] == "OK" {
				found = w.exists("var/log/pve/tasks/" + strings.Split(f[0], ":")[4][7:] + "/" + f[0])
			}
		}
		if !found {
			t.Errorf("no task %s with its log in\n%s", typ, index)
		}
	}
}
