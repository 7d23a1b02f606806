package parse_test

import (
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/homeiac/homelab/agent/driver/proxmox/parse"
	"github.com/homeiac/homelab/internal/rpc"
)

// TestConfigurationsGolden reads every configuration that the real qm left in a
// transcript.
func TestConfigurationsGolden(t *testing.T) {
	var b strings.Builder
	for _, tr := range allTranscripts(t) {
		for i, text := range []*string{tr.After.Conf, tr.After.Conf2} {
			if text == nil {
				continue
			}
			c := parse.VM([]byte(*text))
			fmt.Fprintf(&b, "%s #%d: name=%s uuid=%s mark=%s lock=%s half-built=%v template=%v protection=%v onboot=%v agent=%v memory=%d cpus=%d tags=%v snapshots=%v pending=%v description=%q\n",
				tr.Name, i+1, c.Name(), c.UUID(), c.Mark(), c.Lock(), c.HalfBuilt(), c.Template(), c.Protection(), c.OnBoot(), c.Agent(),
				c.MemoryBytes()>>20, c.CPUs(), c.Tags(), c.SnapshotNames(), c.Pending.Keys, c.Main.Description)
			for _, d := range c.Main.Drives() {
				fmt.Fprintf(&b, "  %s %s size=%d cdrom=%v owner=%d base=%q\n", d.Slot, d.Volid, d.SizeBytes, d.CDROM, parse.Owner(d.Volid), parse.Base(d.Volid))
			}
			for _, n := range c.NICs() {
				fmt.Fprintf(&b, "  net%d %s %s %s\n", n.Index, n.Model, n.MAC, n.Bridge)
			}
			fmt.Fprintf(&b, "  all volumes: %v\n", c.Volumes())
		}
	}
	golden(t, "configurations.golden", b.String())
}

// TestFailuresGolden says of every recorded failure what kind it is and why.
func TestFailuresGolden(t *testing.T) {
	var b strings.Builder
	for _, tr := range allTranscripts(t) {
		if tr.Exit == nil || (*tr.Exit == 0 && strings.TrimSpace(tr.Stderr) == "") || (tr.Argv[0] != "qm" && tr.Argv[0] != "pvesm") {
			continue
		}
		kind := string(parse.Kind(tr.Stdout, tr.Stderr))
		if kind == "" {
			kind = "-"
		}
		fmt.Fprintf(&b, "%s exit %d: %s: %s\n", tr.Name, *tr.Exit, kind, parse.Reason(tr.Stdout, tr.Stderr))
	}
	golden(t, "failures.golden", b.String())
}

func TestTheDigestIsTheSHA1OfTheFile(t *testing.T) {
	before := *recorded(t, "724").After.Conf
	sum := sha1.Sum([]byte(before))
	if got := parse.VM([]byte(before)).Digest; got != hex.EncodeToString(sum[:]) {
		t.Errorf("digest %s", got)
	}
}

func TestADescriptionKeepsItsMarkThroughProxmoxsEncoding(t *testing.T) {
	c := parse.VM([]byte(*recorded(t, "724").After.Conf))
	if got := c.Mark(); got != "hl1:fleet:guest:1:abcd" {
		t.Errorf("mark %q", got)
	}
	c = parse.VM([]byte("#made by hl-agent, see docs\n#hl1%3Af%3Ag%3A2%3A00ff and more\nname: x\n"))
	if got := c.Mark(); got != "hl1:f:g:2:00ff" {
		t.Errorf("mark among other words: %q", got)
	}
	c = parse.VM([]byte("[snap]\n#hl1%3Af%3Ag%3A2%3A00ff\n"))
	if got := c.Mark(); got != "" {
		t.Errorf("a snapshot's description is not the VM's: %q", got)
	}
}

func TestOnlyTheLockOfACreateOrNothingIsHalfBuilt(t *testing.T) {
	for text, want := range map[string]bool{
		"lock: create\n":                    true,
		"":                                  true, // what qm unlock leaves of it
		"lock: destroyed\n":                 true,
		"lock: destroyed\nname: x\n":        false,
		"lock: backup\n":                    false,
		"lock: create\nname: x\n":           false,
		"name: x\n":                         false,
		"#hl1%3Aa%3Ab%3A1%3Ac\n":            false,
		"lock: create\n\n[snap]\nname: x\n": false,
		"lock: create\n\n[PENDING]\nmemory: 300\n": false,
		"\x00\x01damaged\n":                        false,
	} {
		if got := parse.VM([]byte(text)).HalfBuilt(); got != want {
			t.Errorf("%q: half-built %v", text, got)
		}
	}
}

func TestPendingValuesAreNotInForce(t *testing.T) {
	c := parse.VM([]byte(*recorded(t, "457").After.Conf))
	if c.MemoryBytes() != 64<<20 || c.Pending.Keys["memory"] != "128" {
		t.Errorf("memory %d, pending %v", c.MemoryBytes(), c.Pending.Keys)
	}
	next := c.AtNextStart()
	if next.MemoryBytes() != 128<<20 || next.Name() != "" {
		t.Errorf("at the next start: memory %d, name %q", next.MemoryBytes(), next.Name())
	}
}

func TestPVE8AndOddSettingsAreRead(t *testing.T) {
	c := parse.VM([]byte("memory: current=2048\nagent: enabled=1,fstrim_cloned_disks=1\ncores: 2\nsockets: 2\n" +
		"net1: model=virtio,macaddr=bc:24:11:00:00:02,bridge=vmbr1,tag=30\nnet0: virtio=BC:24:11:00:00:01,bridge=vmbr0\n" +
		"scsi0: file=local-zfs:vm-9-disk-0,size=1.5G\nide2: none,media=cdrom\nsata0: /dev/sdb,size=10G\n" +
		"smbios1: base64=1,uuid=AE0E5A9C-50F7-42B1-BA0E-D9372582BAC3\ntags: b;a,c\n"))
	if c.MemoryBytes() != 2048<<20 || !c.Agent() || c.CPUs() != 4 {
		t.Errorf("memory %d agent %v cpus %d", c.MemoryBytes(), c.Agent(), c.CPUs())
	}
	if diff := cmp.Diff([]parse.NIC{{Index: 0, Model: "virtio", MAC: "BC:24:11:00:00:01", Bridge: "vmbr0"},
		{Index: 1, Model: "virtio", MAC: "BC:24:11:00:00:02", Bridge: "vmbr1"}}, c.NICs()); diff != "" {
		t.Error(diff)
	}
	if d, ok := c.Drive("scsi0"); !ok || d.SizeBytes != 3<<29 || d.Volid != "local-zfs:vm-9-disk-0" {
		t.Errorf("scsi0 %+v", d)
	}
	if diff := cmp.Diff([]string{"local-zfs:vm-9-disk-0"}, c.Volumes()); diff != "" {
		t.Error(diff)
	}
	if c.UUID() != "ae0e5a9c-50f7-42b1-ba0e-d9372582bac3" {
		t.Errorf("uuid %s", c.UUID())
	}
	if diff := cmp.Diff([]string{"a", "b", "c"}, c.Tags()); diff != "" {
		t.Error(diff)
	}
}

func TestVolumesTellTheirOwner(t *testing.T) {
	for volid, want := range map[string]int32{
		"local:201/vm-201-disk-0.raw":                             201,
		"local:201/vm-201-cloudinit.qcow2":                        201,
		"local:110/base-110-disk-0.qcow2/114/vm-114-disk-0.qcow2": 114,
		"local-zfs:vm-7-disk-12":                                  7,
		"local-zfs:base-9-disk-0/vm-201-disk-0":                   201,
		"local:120/vm-120-state-liveram.raw":                      120,
		"local:iso/small.iso":                                     0,
		"local:100/foo.raw":                                       0,
		"none":                                                    0,
	} {
		if got := parse.Owner(volid); got != want {
			t.Errorf("%s: owner %d", volid, got)
		}
	}
}

func TestStorageConfiguration(t *testing.T) {
	got := parse.Storages([]byte(`# comment
dir: local
	path /var/lib/vz
	content iso,vztmpl,images,snippets

zfspool: local-zfs
	pool rpool/data
	sparse
	content images,rootdir

lvmthin: local-lvm
	thinpool data
	vgname pve
	nodes pve1,pve2

nfs: backup
	server 10.0.0.9
	export /x
	disable

dir: usb
	path /mnt/usb
	is_mountpoint 1
	shared 1
`))
	want := []parse.StorageConfig{
		{Name: "local", Type: "dir", Path: "/var/lib/vz", Content: []string{"iso", "vztmpl", "images", "snippets"}},
		{Name: "local-zfs", Type: "zfspool", Pool: "rpool/data", Content: []string{"images", "rootdir"}},
		{Name: "local-lvm", Type: "lvmthin", VG: "pve", Content: []string{"images", "rootdir"}, Nodes: []string{"pve1", "pve2"}},
		{Name: "backup", Type: "nfs", Path: "/mnt/pve/backup", Content: []string{"images", "rootdir"}, Disabled: true, Shared: true},
		{Name: "usb", Type: "dir", Path: "/mnt/usb", MountPoint: "/mnt/usb", Content: []string{"images", "rootdir"}, Shared: true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if local := parse.Storages(nil); len(local) != 1 || local[0].Path != "/var/lib/vz" || !local[0].Holds("snippets") {
		t.Errorf("Proxmox has a storage local also when the file names none: %+v", local)
	}
	if got[2].For("pve3") || !got[2].For("pve1") || got[3].For("pve1") {
		t.Error("a storage is for the nodes it names, and for none when it is disabled")
	}
}

func TestStorageStatus(t *testing.T) {
	got := parse.PvesmStatus(recorded(t, "570").Stdout)
	want := []parse.StorageStatus{
		{Name: "local", Type: "dir", Status: "active", TotalBytes: 264212084 << 10, UsedBytes: 26022068 << 10, AvailableBytes: 69479196 << 10},
		{Name: "offline", Type: "dir", Status: "inactive"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got := parse.PvesmStatus(recorded(t, "135").Stdout); len(got) != 2 || got[1].Status != "disabled" {
		t.Errorf("%+v", got)
	}
	// The header of PVE 8.
	got = parse.PvesmStatus("Name             Type     Status           Total            Used       Available        %\n" +
		"local-zfs     zfspool     active       100000000        40000000        60000000   40.00%\n")
	if len(got) != 1 || got[0].AvailableBytes != 60000000<<10 {
		t.Errorf("%+v", got)
	}
}

func TestVolumeList(t *testing.T) {
	got := parse.PvesmList(recorded(t, "112").Stdout)
	if len(got) != 8 {
		t.Fatalf("%d volumes", len(got))
	}
	if diff := cmp.Diff(parse.ListedVolume{Volid: "local:100/vm-101-disk-0.raw", Format: "raw", Type: "images", SizeBytes: 67108864, VMID: 100}, got[4]); diff != "" {
		t.Error(diff)
	}
	if got[6].VMID != 0 {
		t.Errorf("an ISO has no owner: %+v", got[6])
	}
}

func TestClusterFiles(t *testing.T) {
	guests, err := parse.VMList([]byte(recorded(t, "018").Stdout))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]parse.ClusterGuest{{VMID: 100, Node: "pve1", Type: "qemu"}}, guests); diff != "" {
		t.Error(diff)
	}
	if guests, err := parse.VMList([]byte(recorded(t, "002").Stdout)); err != nil || len(guests) != 0 {
		t.Errorf("without guests: %v %v", guests, err)
	}
	for _, bad := range []string{"", "{}", "null", "[]", `{"version": 1, "ids": {"x": {}}}`} {
		if _, err := parse.VMList([]byte(bad)); err == nil {
			t.Errorf("%q is no empty list", bad)
		}
	}
	m, err := parse.ReadMembers([]byte(recorded(t, "019").Stdout))
	if err != nil || m.NodeName != "pve1" || m.Cluster != "" {
		t.Errorf("%+v %v", m, err)
	}
	m, err = parse.ReadMembers([]byte(`{"nodename": "pve2","version": 5,"cluster": { "name": "lab", "version": 3, "nodes": 2, "quorate": 0 },
		"nodelist": { "pve2": { "id": 2, "online": 1, "ip": "10.0.0.2"}, "pve1": { "id": 1, "online": 0, "ip": "10.0.0.1"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := parse.Members{NodeName: "pve2", Cluster: "lab", Nodes: []parse.Member{{Name: "pve1", Address: "10.0.0.1"}, {Name: "pve2", Online: true, Address: "10.0.0.2"}}}
	if diff := cmp.Diff(want, m); diff != "" {
		t.Error(diff)
	}
	ha := parse.HAManaged([]byte("vm: 201\n\tgroup all\n\tstate started\n\nct: 300\n"))
	if !ha[201] || !ha[300] || ha[202] {
		t.Errorf("%v", ha)
	}
	if running := parse.RunningGuests([]byte(recorded(t, "727").Stdout + "pve2-vm/9:50:x:running:0:1\n")); !running[9] || running[172] {
		t.Errorf("%v", running)
	}
}

func TestTasks(t *testing.T) {
	_, active, _ := strings.Cut(recorded(t, "568").Stdout, "--active\n")
	running := "UPID:pve1:00006210:0006A864:6B034342:qmcreate:120:root@pam: 0\nUPID:pve1:00006211:10006A864:6B034342:imgdel:121@local:root@pam:\n"
	got := parse.ActiveTasks([]byte(running + active))
	if len(got) != 2 {
		t.Fatalf("%d tasks run: %+v", len(got), got)
	}
	if got[0].PID != 0x6210 || got[0].PStart != 0x6A864 || got[0].Type != "qmcreate" || !slices.Equal(got[0].VMIDs(), []int32{120}) || !slices.Equal(got[1].VMIDs(), []int32{121}) {
		t.Errorf("%+v", got)
	}
	if ticks, ok := parse.StartTime("12 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 434276 20\n"); !ok || ticks != 434276 {
		t.Errorf("%d %v", ticks, ok)
	}
	if _, ok := parse.StartTime("12 (x) Z 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 434276 20\n"); ok {
		t.Error("a zombie is dead")
	}
}

func TestTheKVMOfAVM(t *testing.T) {
	cmdline := []byte(strings.Join(recorded(t, "322").After.KVMCmdline, "\x00"))
	if !parse.KVM(cmdline, 120) {
		t.Error("it is the kvm of VM 120")
	}
	if parse.KVM(cmdline, 20) || parse.KVM([]byte("sleep\x00100\x00"), 120) || parse.KVM(nil, 120) {
		t.Error("it is the kvm of no other VM")
	}
}

func TestProgressAndCreatedDisks(t *testing.T) {
	out := recorded(t, "167").Stdout
	var last string
	for line := range strings.Lines(out) {
		if done, whole, percent, ok := parse.Progress(line); ok {
			last = fmt.Sprintf("%s of %s %.2f", done, whole, percent)
		}
	}
	if last != "64.0 MiB of 64.0 MiB 100.00" {
		t.Errorf("last progress %q", last)
	}
	want := map[string]parse.Drive{"scsi0": {Slot: "scsi0", Volid: "local:100/vm-100-disk-0.raw", SizeBytes: 64 << 20}}
	if diff := cmp.Diff(want, parse.Created(out)); diff != "" {
		t.Error(diff)
	}
	if got := parse.Created(recorded(t, "188").Stdout)["ide2"]; got.Volid != "local:100/vm-100-cloudinit.qcow2" || !got.CDROM {
		t.Errorf("%+v", got)
	}
}

func TestGuestExecAnswers(t *testing.T) {
	got, err := parse.GuestExec(recorded(t, "347").Stdout)
	if err != nil || got != (parse.GuestResult{Stdout: "hello\n"}) {
		t.Errorf("%+v %v", got, err)
	}
	if got, err = parse.GuestExec(recorded(t, "348").Stdout); err != nil || got.Exit == 0 {
		t.Errorf("a command that failed: %+v %v", got, err)
	}
	if got, err = parse.GuestExec(recorded(t, "352").Stdout); err != nil || got != (parse.GuestResult{Running: true, PID: 152}) {
		t.Errorf("a command that did not end: %+v %v", got, err)
	}
	if _, err = parse.GuestExec(""); !errors.Is(err, rpc.ErrUnavailable) {
		t.Errorf("no answer: %v", err)
	}
}

func TestGuestOutputIsKeptByteForByte(t *testing.T) {
	for text, want := range map[string]string{
		"caf\xe9 \xc3\xa9 \xff\x80": "caf\xe9 \xc3\xa9 \xff\x80",
		`\u2019\u003c\n\t\"`:        "\u2019<\n\t\"",
		"日本":                        "日本",
	} {
		got, err := parse.GuestExec(`{"exited":1,"exitcode":0,"out-data":"` + text + `","err-data":"` + text + `"}`)
		if err != nil || got.Stdout != want || got.Stderr != want {
			t.Errorf("%q: %q %q %v", text, got.Stdout, got.Stderr, err)
		}
	}
	if got, err := parse.GuestExec(`{"exited":1,"signal":9,"err-truncated":1}`); err != nil || got.Exit != 137 || !got.Truncated {
		t.Errorf("%+v %v", got, err)
	}
}

func TestTasksNameTheirVMs(t *testing.T) {
	for id, want := range map[string][]int32{
		"120": {120}, "121@local": {121}, "171-scsi1": {171}, "171-scsi1>172-scsi1": {171, 172}, "171-scsi1%3E172-scsi1": {171, 172}, "": nil, "storage": nil,
	} {
		u, ok := parse.ReadUPID("UPID:pve1:00006210:0006A864:6B034342:qmmove:" + id + ":root@pam:")
		if !ok || !slices.Equal(u.VMIDs(), want) || u.User != "root@pam" {
			t.Errorf("%q: %v %v %+v", id, u.VMIDs(), ok, u)
		}
	}
}

func TestTheLatestTaskThatStoppedAVM(t *testing.T) {
	index, _, _ := strings.Cut(recorded(t, "568").Stdout, "--active\n")
	ended := parse.EndedTasks([]byte(index + "torn line\nUPID:pve1:1:2:3 OK\n"))
	last := parse.LastStops(ended)
	if got := last[100]; got.Type != "qmstop" || got.Status != "OK" || got.End.Unix() != 0x6B0338BF || got.User != "root@pam" {
		t.Errorf("VM 100: %+v", got)
	}
	task := func(kind string, id int, status string) string {
		return fmt.Sprintf("UPID:pve1:00006210:0006A864:6B034342:%s:%d:admin@pve!token: 6B034400 %s\n", kind, id, status)
	}
	old := parse.EndedTasks([]byte(task("qmshutdown", 7, "OK") + task("qmstop", 8, "OK") + task("qmstop", 9, "OK")))
	now := parse.EndedTasks([]byte(task("qmstart", 8, "OK") + task("qmstart", 9, "start failed: QEMU exited with code 1") +
		task("qmsuspend", 6, "WARNINGS: 1") + task("vzdump", 5, "OK") + task("qmshutdown", 5, "VM quit/powerdown failed - got timeout")))
	last = parse.LastStops(old, now)
	var got []string
	for _, id := range []int32{5, 6, 7, 8, 9} {
		got = append(got, last[id].Type+" "+last[id].Status)
	}
	want := []string{"qmshutdown VM quit/powerdown failed - got timeout", "qmsuspend WARNINGS: 1", "qmshutdown OK", " ", "qmstop OK"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestTheTimeOfTheBoot(t *testing.T) {
	if at, ok := parse.BootTime([]byte("cpu  1 2 3\nintr 5\nbtime 1795374472\nprocesses 9\n")); !ok || at.Unix() != 1795374472 {
		t.Errorf("%v %v", at, ok)
	}
	if _, ok := parse.BootTime([]byte("cpu 1\n")); ok {
		t.Error("there is none")
	}
}

func TestWhatADescriptionSaysIsDecodedAsProxmoxDoes(t *testing.T) {
	c := parse.VM([]byte("#100% sure %3A %zz%C3%BC\n#hl1%3Aa%3Ab%3A1%3Ac hl1:d:e:0:f\n"))
	if got, want := c.Main.Description, "100% sure : %zzü\nhl1:a:b:1:c hl1:d:e:0:f"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := c.Marks(); !slices.Equal(got, []string{"hl1:a:b:1:c", "hl1:d:e:0:f"}) {
		t.Errorf("marks %q", got)
	}
}

func FuzzVM(f *testing.F) {
	f.Add([]byte("#x%\nname: a\nscsi0: ,\n[PENDING]\ndelete: \n[s]\nnet0: ,,=\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c := parse.VM(text)
		_, _, _, _ = c.Main.Drives(), c.NICs(), c.Volumes(), c.HalfBuilt()
		_, _, _ = c.AtNextStart(), c.Paths(), c.Marks()
		_ = parse.LastStops(parse.EndedTasks(text))
		_ = parse.LXC(text)
		_ = parse.Storages(text)
		_ = parse.ActiveTasks(text)
	})
}

// FuzzOutputs: what Proxmox's programs write, other files of it, and what a guest agent
// answers.
func FuzzOutputs(f *testing.F) {
	for _, s := range []string{
		"Name Type Status Total Used Available %\nlocal dir active 100 1 99 1.00%\n", "Volid Format Type Size VMID\nlocal:1/x.raw raw images 1 100\n",
		`{"exitcode":0,"out-data":"x","exited":1}`, `{"pid":7}`, `{"version":1,"ids":{"100":{"node":"a","type":"qemu","version":1}}}`,
		`{"nodename":"pve1","cluster":{"quorate":1},"nodelist":{}}`, "transferred 1.0 GiB of 2.0 GiB (50.00%)", "scsi0: successfully created disk 'local:1/x,size=1G'\n",
		"TASK ERROR: VM is locked (backup)\nWARN: x\n", "btime 1\n", "1 (a) S 1", "/usr/bin/kvm\x00-id\x00201\x00", "UPID:pve1:0000:0000:65000000:qmstop:201:root@pam:",
	} {
		f.Add(s)
	}
	f.Fuzz(func(_ *testing.T, s string) {
		_, _ = parse.PvesmStatus(s), parse.PvesmList(s)
		_, _ = parse.GuestExec(s)
		_, _ = parse.VMList([]byte(s))
		_, _ = parse.ReadMembers([]byte(s))
		_, _ = parse.HAManaged([]byte(s)), parse.RunningGuests([]byte(s))
		_, _, _, _ = parse.Progress(s)
		_, _, _, _ = parse.Reason(s, s), parse.Warnings(s), parse.Kind(s, s), parse.Created(s)
		_, _ = parse.ReadUPID(s)
		_, _ = parse.BootTime([]byte(s))
		_, _ = parse.StartTime(s)
		_, _ = parse.KVM([]byte(s), 201), parse.Options(s, "x")
		_, _, _, _ = parse.Storage(s), parse.Owner(s), parse.Base(s), parse.BaseVolume(s)
		_, _ = parse.Size(s)
	})
}
