package pve

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/homeiac/homelab/lab/disk"
)

// createArgs is one qm create as an agent makes it.
var createArgs = []string{"qm", "create", "201", "--name", "k3s-1", "--memory", "1024", "--cores", "2", "--scsihw", "virtio-scsi-single",
	"--scsi0", "local:0,import-from=/root/img.raw,discard=on,backup=0", "--ide2", "local:cloudinit", "--net0", "virtio=BC:24:11:00:00:01,bridge=vmbr0",
	"--ipconfig0", "ip=127.9.9.101/24,gw=127.9.9.1", "--nameserver", "127.9.9.1", "--cicustom", "user=local:snippets/u.yaml", "--agent", "1",
	"--onboot", "1", "--description", "hl1:fleet:k3s-1:1:abcd", "--tags", "k3s;homelab", "--smbios1", "uuid=11111111-2222-4333-8444-555555555555",
	"--serial0", "socket", "--vga", "serial0", "--cpu", "host", "--ostype", "l26", "--startup", "order=3,up=60", "--balloon", "0"}

func madeByAgent(t *testing.T, change ...func(*HostConfig)) *world {
	w := newWorld(t, change...)
	w.image("/root/img.raw", 64<<20)
	w.write("/var/lib/vz/snippets/u.yaml", "#cloud-config\nhostname: k3s-1\n")
	w.must(createArgs...)
	return w
}

func TestOneCreateMakesAGuestThatStartsAndLeavesNothing(t *testing.T) {
	w := madeByAgent(t)
	volume := w.path("/var/lib/vz/images/201/vm-201-disk-0.raw")
	if ok, err := disk.HasGuest(volume); err != nil || !ok {
		t.Errorf("the imported volume lost its marker: %v", err)
	}
	want := "#hl1%3Afleet%3Ak3s-1%3A1%3Aabcd\nagent: 1\nballoon: 0\nboot: order=scsi0;ide2;net0\ncicustom: user=local:snippets/u.yaml\n"
	if got := w.conf("201"); !strings.HasPrefix(got, want) || !strings.Contains(got, "scsi0: local:201/vm-201-disk-0.raw,backup=0,discard=on,size=64M\n") {
		t.Errorf("configuration:\n%s", got)
	}
	w.must("qm", "disk", "resize", "201", "scsi0", "1G")
	w.must("qm", "start", "201")
	ci, err := disk.ReadCloudInit(w.path("/var/lib/vz/images/201/vm-201-cloudinit.qcow2"))
	if err != nil || ci.UserData != "#cloud-config\nhostname: k3s-1\n" || !strings.Contains(ci.NetworkConfig, "address: '127.9.9.101'") || len(ci.InstanceID) != 40 {
		t.Errorf("cloud-init volume %+v, %v", ci, err)
	}
	if !w.exists("/sys/class/net/vmbr0/brif/tap201i0") {
		t.Error("no tap on the bridge")
	}
	if err := os.MkdirAll(filepath.Join(disk.Tree(volume), "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	w.must("qm", "stop", "201")
	w.must("qm", "destroy", "201")
	for _, gone := range []string{"var/lib/vz/images/201", "run/qemu-server/201.pid", "sys/class/net/tap201i0", "etc/pve/qemu-server/201.conf"} {
		if w.exists(gone) {
			t.Errorf("%s is still there", gone)
		}
	}
}

func TestKVMIsStartedInASessionOfItsOwn(t *testing.T) {
	w := madeByAgent(t)
	w.must("qm", "start", "201")
	pid := w.running("201")
	if pid == 0 {
		t.Fatal("not running")
	}
	if sid, err := sessionOf(pid); err != nil || sid != pid {
		t.Errorf("session %d of process %d, %v", sid, pid, err)
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil || strings.Count(string(env), "=") != 1 {
		t.Errorf("environment %q, %v", env, err)
	}
}

func sessionOf(pid int) (int, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, after, _ := strings.Cut(string(data), ") ")
	var state string
	var ppid, pgrp, sid int
	_, err = fmt.Sscan(after, &state, &ppid, &pgrp, &sid)
	return sid, err
}

func TestCallsAreLoggedWithoutSecrets(t *testing.T) {
	w := newWorld(t)
	w.must("qm", "create", "101", "--cipassword", "hunter2")
	w.must("qm", "set", "101", "--cipassword=hunter2")
	w.try("qm", "frobnicate")
	data, err := os.ReadFile(filepath.Join(w.dir, "calls.jsonl"))
	if err != nil || strings.Contains(string(data), "hunter2") {
		t.Errorf("calls.jsonl: %v\n%s", err, data)
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	var last struct {
		Host string
		Argv []string
		Exit int
	}
	if err := json.Unmarshal([]byte(lines[2]), &last); err != nil || last.Host != "pve1" || last.Exit != 255 || last.Argv[1] != "frobnicate" {
		t.Errorf("last call %+v, %v", last, err)
	}
}

func TestRealCostTakesTheMeasuredTime(t *testing.T) {
	w := newWorld(t, func(c *HostConfig) { c.QMCost = "real" })
	begin := w.clock.Now()
	w.must("qm", "list")
	if took := w.clock.Now().Sub(begin); took != 705*time.Millisecond {
		t.Errorf("qm list took %v", took)
	}
	begin = w.clock.Now()
	w.must("qm", "create", "101")
	if took := w.clock.Now().Sub(begin); took != 813*time.Millisecond {
		t.Errorf("qm create took %v", took)
	}
	data, err := os.ReadFile(filepath.Join(w.dir, "waits.jsonl"))
	if err != nil || strings.Count(string(data), "cost of qm") != 4 {
		t.Errorf("waits.jsonl: %v\n%s", err, data)
	}
}

func TestWhatIsNotSimulatedIsRefusedLoudly(t *testing.T) {
	w := newWorld(t)
	for _, argv := range [][]string{
		{"qm", "importovf", "100", "x", "local"}, {"pvesh", "get", "/access/users"}, {"pvesm", "scan", "zfs"}, {"pveversion", "--verbose"},
		{"qm", "create", "100", "--live-restore", "1"},
	} {
		got := w.try(argv...)
		if got.code == 0 || !strings.Contains(got.stderr, "the lab does not simulate") {
			t.Errorf("%v: exit %d, %q", argv, got.code, got.stderr)
		}
	}
}

func TestBlockStoragesNameVolumesWithoutExtension(t *testing.T) {
	w := madeByAgent(t, func(c *HostConfig) {
		c.Storages = append(c.Storages,
			StorageConfig{Name: "local-zfs", Type: "zfspool", Pool: "rpool/data", TotalBytes: 100 << 30},
			StorageConfig{Name: "local-lvm", Type: "lvmthin", VG: "pve", ThinPool: "data", TotalBytes: 100 << 30})
	})
	for i, st := range []string{"local-zfs", "local-lvm"} {
		id := fmt.Sprint(301 + i)
		w.must("qm", "create", id, "--bios", "ovmf", "--scsi0", st+":0,import-from=/root/img.raw", "--ide2", st+":cloudinit",
			"--efidisk0", st+":1,efitype=4m,pre-enrolled-keys=0")
		want := []string{"scsi0: " + st + ":vm-" + id + "-disk-0,size=64M", "ide2: " + st + ":vm-" + id + "-cloudinit,media=cdrom",
			"efidisk0: " + st + ":vm-" + id + "-disk-1,efitype=4m,pre-enrolled-keys=0,size=" + []string{"1M", "4M"}[i]}
		for _, line := range want {
			if !strings.Contains(w.conf(id), line+"\n") {
				t.Errorf("no %q in\n%s", line, w.conf(id))
			}
		}
		w.must("qm", "disk", "resize", id, "scsi0", "+1G")
		w.must("qm", "start", id)
		w.must("qm", "stop", id)
		path := strings.TrimSpace(w.must("pvesm", "path", st+":vm-"+id+"-disk-0"))
		if wantPath := []string{"/dev/zvol/rpool/data/", "/dev/pve/"}[i] + "vm-" + id + "-disk-0"; path != wantPath || !w.exists(path) {
			t.Errorf("path %s, want %s", path, wantPath)
		}
		w.must("qm", "create", "40"+fmt.Sprint(i), "--name", "holder")
		w.must("qm", "disk", "move", id, "scsi0", "--target-vmid", "40"+fmt.Sprint(i), "--target-disk", "scsi1")
		w.must("qm", "destroy", id)
		if got := w.must("pvesm", "list", st); strings.Contains(got, "vm-"+id) || !strings.Contains(got, "vm-40"+fmt.Sprint(i)+"-disk-0") {
			t.Errorf("volumes left:\n%s", got)
		}
	}
}

func TestAFullStorageFailsACreateThatCleansUp(t *testing.T) {
	w := newWorld(t)
	w.write("/root/data.raw", strings.Repeat("data", 1<<18))
	if err := w.Update(func(c *HostConfig) { c.Storages[0].ForeignBytes = c.Storages[0].TotalBytes }); err != nil {
		t.Fatal(err)
	}
	got := w.try("qm", "create", "101", "--scsi0", "local:0,import-from=/root/data.raw")
	if got.code != 255 || !strings.Contains(got.stderr, "No space left on device") {
		t.Errorf("exit %d: %s", got.code, got.stderr)
	}
	if w.conf("101") != "" || w.exists("var/lib/vz/images/101") {
		t.Error("something is left")
	}
}

func TestVMIDsAreUniqueOverTheClusterAndContainers(t *testing.T) {
	w := newWorld(t, func(c *HostConfig) { c.Cluster = "lab" })
	other := w.cfg
	other.Name, other.NodeName = "pve2", ""
	if err := NewHost(other); err != nil {
		t.Fatal(err)
	}
	w2 := openWorld(t, w.dir, "pve2")
	w2.must("qm", "create", "201", "--name", "there")
	w.write("etc/pve/lxc/105.conf", "memory: 64\n")
	for id, where := range map[string]string{"201": "VM 201 already exists on node 'pve2'", "105": "CT 105 already exists on node 'pve1'"} {
		if got := w.try("qm", "create", id); got.code != 255 || !strings.Contains(got.stderr, where) {
			t.Errorf("create %s: exit %d %s", id, got.code, got.stderr)
		}
	}
	data, _ := os.ReadFile(w.path("etc/pve/.vmlist"))
	if !strings.Contains(string(data), `"105": { "node": "pve1", "type": "lxc"`) || !strings.Contains(string(data), `"201": { "node": "pve2", "type": "qemu"`) {
		t.Errorf(".vmlist:\n%s", data)
	}
	if err := SetMembers(w.pmxcfs(), map[string]bool{"pve2": false}, true); err != nil {
		t.Fatal(err)
	}
	data, _ = os.ReadFile(w.path("etc/pve/.members"))
	var m struct {
		Nodename string
		Cluster  struct{ Quorate, Nodes int }
		Nodelist map[string]struct{ Online int }
	}
	if err := json.Unmarshal(data, &m); err != nil || m.Nodename != "pve1" || m.Cluster.Quorate != 1 || m.Nodelist["pve2"].Online != 0 || m.Nodelist["pve1"].Online != 1 {
		t.Errorf(".members %v\n%s", err, data)
	}
}

func TestRRDLines(t *testing.T) {
	for version, want := range map[string][]string{
		"9.2.11": {`^pve-node-9\.0/pve1:\d+::1795374091:[\d.]+:2:[\d.]+:[\d.]+:25769803776:\d+:0:0:270553174016:\d+:\d+:\d+:\d+(:[\d.]+){6}$`,
			`^pve-storage-9\.0/pve1/local:1795374091:270553174016:\d+$`,
			`^pve-vm-9\.0/101:0:a:stopped:0:1795374091:1:U:67108864:U:0:0(:U){11}$`,
			`^pve-vm-9\.0/201:\d+:k3s-1:running:0:1795374091:2:[\d.]+:1073741824:1073741824:67108864:0(:\d+){11}$`},
		"8.4.1": {`^pve2-node/pve1:\d+::1795374091:[\d.]+:2:[\d.]+:[\d.]+:25769803776:\d+:0:0:270553174016:\d+:\d+:\d+$`,
			`^pve2-storage/pve1/local:1795374091:270553174016:\d+$`,
			`^pve2-vm/101:0:a:stopped:0:1795374091:1:U:67108864:U:0:0(:U){4}$`,
			`^pve2-vm/201:\d+:k3s-1:running:0:1795374091:2:[\d.]+:1073741824:1073741824:67108864:0(:\d+){4}$`},
	} {
		w := madeByAgent(t, func(c *HostConfig) { c.PVEVersion = version })
		w.must("qm", "create", "101", "--name", "a", "--memory", "64")
		w.must("qm", "start", "201")
		if err := w.WriteStat(time.Unix(1795374091, 0)); err != nil {
			t.Fatal(err)
		}
		data, _ := os.ReadFile(w.path("etc/pve/.rrd"))
		for _, line := range want {
			if !regexp.MustCompile("(?m)" + line).Match(data) {
				t.Errorf("%s: no line %s in\n%s", version, line, data)
			}
		}
		w.must("qm", "destroy", "101")
		_ = w.WriteStat(time.Unix(1795374101, 0))
		if data, _ = os.ReadFile(w.path("etc/pve/.rrd")); !strings.Contains(string(data), "/101:0:a:") {
			t.Errorf("the line of the destroyed VM did not stay for a while")
		}
		_ = w.WriteStat(time.Unix(1795375000, 0))
		if data, _ = os.ReadFile(w.path("etc/pve/.rrd")); strings.Contains(string(data), "/101:0:a:") {
			t.Errorf("the line of the destroyed VM stayed for good")
		}
	}
}

func TestVersionFileCounts(t *testing.T) {
	w := newWorld(t)
	read := func() (v struct {
		VMList  int `json:"vmlist"`
		Storage int `json:"storage.cfg"`
	}) {
		data, err := os.ReadFile(w.path("etc/pve/.version"))
		if err == nil {
			err = json.Unmarshal(data, &v)
		}
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	before := read()
	w.must("qm", "create", "101")
	w.must("pvesm", "add", "dir", "second", "--path", "/mnt/second")
	if after := read(); after.VMList <= before.VMList || after.Storage <= before.Storage {
		t.Errorf("before %+v, after %+v", before, after)
	}
}

func TestLockFilesStay(t *testing.T) {
	w := newWorld(t)
	w.must("qm", "create", "101", "--scsi0", "local:1")
	w.must("qm", "destroy", "101")
	for _, f := range []string{"var/lock/qemu-server/lock-101.conf", "var/lock/pve-manager/pve-storage-local"} {
		if !w.exists(f) {
			t.Errorf("%s is gone", f)
		}
	}
}

func TestAHookscriptRunsBeforeTheStart(t *testing.T) {
	w := newWorld(t)
	w.write("/var/lib/vz/snippets/hook.sh", "#!/bin/sh\necho hook $1 $2\ntouch /tmp/never\n[ $2 != pre-start ] || exit ${FAIL:-0}\n")
	w.must("qm", "create", "101", "--hookscript", "local:snippets/hook.sh")
	if out := w.must("qm", "start", "101"); !strings.Contains(out, "hook 101 pre-start\n") || !strings.Contains(out, "hook 101 post-start\n") {
		t.Errorf("start said %q", out)
	}
	w.must("qm", "stop", "101")
	w.write("/var/lib/vz/snippets/hook.sh", "exit 3\n")
	if got := w.try("qm", "start", "101"); got.code != 255 || !strings.Contains(got.stderr, "failed: exit code 3") || w.running("101") != 0 {
		t.Errorf("exit %d: %s", got.code, got.stderr)
	}
}

func TestTwoCreatesOfOneVMID(t *testing.T) {
	w := newWorld(t)
	var wg sync.WaitGroup
	results := make([]result, 2)
	for i := range results {
		wg.Go(func() { results[i] = w.try("qm", "create", "130", "--scsi0", "local:1") })
	}
	wg.Wait()
	ok, exists := 0, 0
	for _, r := range results {
		switch {
		case r.code == 0:
			ok++
		case r.code == 255 && strings.Contains(r.stderr, "unable to create VM 130 - VM 130 already exists on node 'pve1'"):
			exists++
		}
	}
	if ok != 1 || exists != 1 {
		t.Errorf("%+v", results)
	}
	if got := w.must("pvesm", "list", "local"); strings.Count(got, "130/") != 1 {
		t.Errorf("volumes:\n%s", got)
	}
}

// process starts a program of the host as one, with the storage's lock held, so
// that it waits in the middle of its create.
func (w *world) process(argv ...string) (*exec.Cmd, func()) {
	w.Helper()
	unlock, err := lockFile(w.path("var/lock/pve-manager/pve-storage-local"))
	if err != nil {
		w.Fatal(err)
	}
	cmd := exec.Command(w.path("usr/sbin/qm"), argv...)
	cmd.Env = []string{}
	if err := cmd.Start(); err != nil {
		w.Fatal(err)
	}
	w.until("the create has claimed its VMID", func() bool { return strings.Contains(w.conf("138"), "lock: create") })
	return cmd, unlock
}

func (w *world) until(what string, done func() bool) {
	w.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.Fatal("never: ", what)
		}
	}
}

func TestAKilledCreateLeavesItsLock(t *testing.T) {
	w := newWorld(t)
	cmd, unlock := w.process("create", "138", "--scsi0", "local:1")
	w.until("its task is active", func() bool {
		list, _ := w.activeTasks()
		return len(list) == 1 && list[0].running()
	})
	list, _ := w.activeTasks()
	if pid, start := list[0].pid(); pid != cmd.Process.Pid || start != w.processStart(pid) {
		t.Errorf("active names process %d, it is %d", pid, cmd.Process.Pid)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	unlock()
	if got := w.conf("138"); got != "lock: create\n" {
		t.Errorf("configuration %q", got)
	}
	if got := w.try("qm", "create", "138"); !strings.Contains(got.stderr, "already exists") {
		t.Errorf("create again: %s", got.stderr)
	}
	if got := w.try("qm", "destroy", "138"); !strings.Contains(got.stderr, "VM is locked (create)") {
		t.Errorf("destroy: %s", got.stderr)
	}
	data, _ := os.ReadFile(w.path("var/log/pve/tasks/active"))
	if !strings.Contains(string(data), "qmcreate:138:root@pam: 1 ") || !strings.Contains(string(data), "unexpected status") {
		t.Errorf("the dead task was not buried:\n%s", data)
	}
	w.must("qm", "unlock", "138")
	w.must("qm", "destroy", "138")
}

func TestATerminatedCreateCleansUp(t *testing.T) {
	w := newWorld(t)
	cmd, unlock := w.process("create", "138", "--scsi0", "local:1")
	_ = cmd.Process.Signal(syscall.SIGTERM)
	err := cmd.Wait()
	unlock()
	if err == nil || w.conf("138") != "" {
		t.Errorf("exit %v, configuration %q", err, w.conf("138"))
	}
}

func TestAProgramOutlivesItsReader(t *testing.T) {
	w := newWorld(t)
	unlock, err := lockFile(w.path("var/lock/pve-manager/pve-storage-local"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(w.path("usr/sbin/qm"), "create", "138", "--scsi0", "local:1")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	out.Close()
	unlock()
	if err := cmd.Wait(); err != nil || !strings.Contains(w.conf("138"), "vm-138-disk-0.raw") {
		t.Errorf("exit %v, configuration %q", err, w.conf("138"))
	}
}
