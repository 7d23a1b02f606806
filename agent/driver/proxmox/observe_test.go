package proxmox_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/homeiac/homelab/agent/driver/drivertest"
	"github.com/homeiac/homelab/agent/driver/proxmox"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/lab/pve"
)

func observe(t testing.TB, d *proxmox.Driver) *driverv1.ObserveResponse {
	t.Helper()
	seen, err := d.Observe(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	return seen
}

// only gives the one VM of an observation.
func only(t *testing.T, d *proxmox.Driver) *homelabv1.VirtualMachine {
	t.Helper()
	seen := observe(t, d)
	if len(seen.GetVms()) != 1 || seen.GetVmsKnown().GetTruth() != homelabv1.Truth_TRUTH_YES {
		t.Fatalf("observed %v", seen)
	}
	return seen.GetVms()[0]
}

// guests makes n VMs with the guest agent configured; running of them run.
func (h *host) guests(n, running int) {
	for i := range n {
		id := fmt.Sprint(201 + i)
		h.qm("create", id, "--name", "g-"+id, "--memory", "64", "--agent", "1", "--scsi0", "local:1", "--ide2", "local:cloudinit",
			"--net0", fmt.Sprintf("virtio=BC:24:11:00:00:%02X,bridge=vmbr0", i))
		if i < running {
			h.qm("start", id)
		}
	}
}

func TestAnObservationOfTwentyGuestsStartsNoProcess(t *testing.T) {
	h := newHost(t)
	h.guests(20, 3)
	d := h.driver()
	before := h.calls()
	children := childrenOf(t)
	for range 3 {
		if seen := observe(t, d); len(seen.GetVms()) != 20 || seen.GetVmsKnown().GetTruth() != homelabv1.Truth_TRUTH_YES {
			t.Fatalf("observed %d VMs, known %v", len(seen.GetVms()), seen.GetVmsKnown())
		}
	}
	if after := h.calls(); len(after) != len(before) {
		t.Errorf("programs were run: %v", after[len(before):])
	}
	if now := childrenOf(t); !slices.Equal(now, children) {
		t.Errorf("children were %v and are %v", children, now)
	}
	if entries, err := os.ReadDir(filepath.Join(h.lab, "state", "calls")); err == nil {
		t.Errorf("the driver has run %d programs", len(entries))
	}
}

// childrenOf lists the processes that this one ever started and still are: a
// zombie too would tell.
func childrenOf(t *testing.T) []string {
	t.Helper()
	var all []string
	tasks, _ := filepath.Glob("/proc/self/task/*/children")
	for _, f := range tasks {
		data, _ := os.ReadFile(f)
		all = append(all, strings.Fields(string(data))...)
	}
	slices.Sort(all)
	return all
}

func TestPowerIsWhatProcessAndQEMUSay(t *testing.T) {
	h := newHost(t)
	h.guests(1, 1)
	side := func(name, text string) { // beside the host's root, read by the stand-in for kvm
		if err := os.WriteFile(filepath.Join(h.lab, "hosts", h.name, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	vm := only(t, h.driver())
	if vm.GetPower() != homelabv1.Power_POWER_RUNNING || vm.GetPowerReason() != "" {
		t.Errorf("running: %v %q", vm.GetPower(), vm.GetPowerReason())
	}
	if vm.GetGuestAgent().GetTruth() != homelabv1.Truth_TRUTH_YES || !slices.Equal(vm.GetAddresses(), []string{"192.168.4.212"}) {
		t.Errorf("guest agent: %v %v", vm.GetGuestAgent(), vm.GetAddresses())
	}
	for _, status := range []string{"paused", "io-error", "internal-error", "guest-panicked"} {
		side("status-201", status)
		if vm := only(t, h.driver()); vm.GetPower() != homelabv1.Power_POWER_PAUSED || !strings.Contains(vm.GetPowerReason(), status) {
			t.Errorf("%s: %v %q", status, vm.GetPower(), vm.GetPowerReason())
		}
	}
	side("status-201", "running")
	side("mute-qga-201", "yes")
	if vm := only(t, h.driver()); vm.GetPower() != homelabv1.Power_POWER_RUNNING || vm.GetGuestAgent().GetTruth() != homelabv1.Truth_TRUTH_NO {
		t.Errorf("guest agent mute: %v, agent %v", vm.GetPower(), vm.GetGuestAgent())
	}
	text := h.read(h.conf(201))
	h.write(h.conf(201), strings.Replace(text, "agent: ", "#agent: ", 1))
	if vm := only(t, h.driver()); vm.GetGuestAgent().GetTruth() != homelabv1.Truth_TRUTH_UNKNOWN || vm.GetGuestAgent().GetReason() == "" {
		t.Errorf("a guest agent that is not configured is not mute: %v", vm.GetGuestAgent())
	}
	h.write(h.conf(201), text)
	side("mute-qmp-201", "yes")
	if vm := only(t, h.driver()); vm.GetPower() != homelabv1.Power_POWER_UNSPECIFIED || !strings.Contains(vm.GetPowerReason(), "no answer in 300 ms") {
		t.Errorf("QEMU mute: %v %q", vm.GetPower(), vm.GetPowerReason())
	}
	// Killed: the pid file stays behind and means nothing.
	pid, err := strconv.Atoi(strings.TrimSpace(h.read("run/qemu-server/201.pid")))
	if err != nil {
		t.Fatal(err)
	}
	d := h.driver()
	only(t, d) // remembers the process
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the killed VM is seen to be stopped, though it was asked a moment ago", func() bool {
		return only(t, d).GetPower() == homelabv1.Power_POWER_STOPPED
	})
	// And when the number is given to another process, neither.
	h.write("run/qemu-server/201.pid", strconv.Itoa(os.Getpid()))
	if vm := only(t, h.driver()); vm.GetPower() != homelabv1.Power_POWER_STOPPED {
		t.Errorf("a pid that is somebody else's: %v", vm.GetPower())
	}
}

func TestSocketsAreAskedAtMostEveryTenSeconds(t *testing.T) {
	h := newHost(t)
	h.guests(1, 1)
	d := h.driver()
	only(t, d)
	if err := os.WriteFile(filepath.Join(h.lab, "hosts", h.name, "status-201"), []byte("paused"), 0o644); err != nil {
		t.Fatal(err)
	}
	if vm := only(t, d); vm.GetPower() != homelabv1.Power_POWER_RUNNING {
		t.Errorf("asked again at once: %v", vm.GetPower())
	}
	seen, err := d.Inspect(t.Context(), 201)
	if err != nil || seen.GetVm().GetPower() != homelabv1.Power_POWER_PAUSED {
		t.Errorf("an inspection asks: %v %v", seen.GetVm().GetPower(), err)
	}
	if vm := only(t, d); vm.GetPower() != homelabv1.Power_POWER_PAUSED {
		t.Errorf("what an inspection was told is known: %v", vm.GetPower())
	}
}

func TestSocketsWithLongPathsAreReached(t *testing.T) {
	h := newHost(t, func(cfg *pve.HostConfig) {
		cfg.LabDir = filepath.Join(cfg.LabDir, strings.Repeat("long", 30))
	})
	h.guests(1, 1)
	if vm := only(t, h.driver()); vm.GetPower() != homelabv1.Power_POWER_RUNNING || vm.GetGuestAgent().GetTruth() != homelabv1.Truth_TRUTH_YES {
		t.Errorf("%v %q, agent %v", vm.GetPower(), vm.GetPowerReason(), vm.GetGuestAgent())
	}
}

func TestTheWholeClusterIsSeenThroughEtcPve(t *testing.T) {
	h := newHost(t, func(cfg *pve.HostConfig) { cfg.Cluster = "lab" })
	h.guests(1, 0)
	id := drivertest.Identity(301)
	h.write("etc/pve/nodes/pve2/qemu-server/301.conf", "#"+strings.ReplaceAll(id.GetMark(), ":", "%3A")+"\nmemory: 64\nname: g-301\nsmbios1: uuid="+id.GetUuid()+"\n")
	h.write("etc/pve/lxc/400.conf", "hostname: dns\nmemory: 1024\nonboot: 1\nrootfs: local:400/vm-400-disk-0.raw,size=4G\n")
	h.write("etc/pve/lxc/401.conf", "hostname: idle\nmemory: 2048\n")
	h.alloc("local", 400)
	h.write("etc/pve/ha/resources.cfg", "vm: 201\n\tstate started\n")
	h.program("pvesm", "status") // brings .vmlist up to date
	seen := observe(t, h.driver())
	if seen.GetClusterVmidsKnown().GetTruth() != homelabv1.Truth_TRUTH_YES || len(seen.GetClusterVmids()) != 4 {
		t.Fatalf("cluster: %v %v", seen.GetClusterVmidsKnown(), seen.GetClusterVmids())
	}
	other := seen.GetClusterVmids()[1]
	if other.GetNode() != "pve2" || other.GetName() != "g-301" || other.GetMark() != id.GetMark() || other.GetUuid() != id.GetUuid() {
		t.Errorf("another node's guest: %v", other)
	}
	if ct := seen.GetClusterVmids()[2]; ct.GetType() != "lxc" || ct.GetName() != "dns" {
		t.Errorf("a container: %v", ct)
	}
	if len(seen.GetVms()) != 1 || !seen.GetVms()[0].GetHaManaged() {
		t.Errorf("VMs: %v", seen.GetVms())
	}
	if got := seen.GetGuestsMemoryBytes(); got != 1<<30 {
		t.Errorf("memory: %d, want the starting container's 1 GiB", got)
	}
	if len(seen.GetLeftoverVmids()) != 0 {
		t.Errorf("leftovers: %v; a container's volume is named", seen.GetLeftoverVmids())
	}
	if err := pve.SetMembers(filepath.Join(h.lab, "pmxcfs"), nil, false); err != nil {
		t.Fatal(err)
	}
	seen = observe(t, h.driver())
	if seen.GetClusterVmidsKnown().GetTruth() != homelabv1.Truth_TRUTH_UNKNOWN || seen.GetVmsKnown().GetTruth() != homelabv1.Truth_TRUTH_YES {
		t.Errorf("without quorum: cluster %v, own VMs %v", seen.GetClusterVmidsKnown(), seen.GetVmsKnown())
	}
}

func TestAnUnreadableConfigurationIsNotAnAbsentVM(t *testing.T) {
	h := newHost(t)
	h.guests(1, 0)
	if err := os.Mkdir(h.path(h.conf(202)), 0o755); err != nil { // reading it fails, for root too
		t.Fatal(err)
	}
	seen := observe(t, h.driver())
	if len(seen.GetVms()) != 2 || seen.GetVms()[1].GetReadable().GetTruth() != homelabv1.Truth_TRUTH_UNKNOWN {
		t.Errorf("observed %v", seen.GetVms())
	}
	if seen.GetVms()[0].GetReadable().GetTruth() != homelabv1.Truth_TRUTH_YES {
		t.Errorf("the other one: %v", seen.GetVms()[0])
	}
}

func TestAChangedConfigurationIsSeenAtOnce(t *testing.T) {
	h := newHost(t)
	h.guests(1, 0)
	d := h.driver()
	before := only(t, d)
	h.qm("set", "201", "--memory", "65")
	after := only(t, d)
	if after.GetMemoryBytes() != 65<<20 || after.GetDigest() == before.GetDigest() {
		t.Errorf("%v", after)
	}
}

func TestLeftoversAreVolumesThatNobodyNames(t *testing.T) {
	h := newHost(t)
	h.guests(1, 0)
	h.alloc("local", 500)
	h.alloc("local-zfs", 501)
	h.alloc("local-lvm", 502)
	h.alloc("local", 201) // one too many of a VM that is there
	h.write("var/lib/vz/images/503/notes.txt", "no volume")
	h.write("var/lib/vz/images/504/vm-504-disk-0.raw", "")
	h.write(h.conf(504), "lock: create\n") // told as a half-built VM
	if got := observe(t, h.driver()).GetLeftoverVmids(); !slices.Equal(got, []int32{201, 500, 501, 502}) {
		t.Errorf("leftovers: %v", got)
	}
}

func BenchmarkObserveTwentyGuests(b *testing.B) {
	h := newHost(b)
	for i := range 20 {
		id := 201 + i
		path := h.path(h.conf(int32(id)))
		text := fmt.Sprintf("agent: 1\nboot: order=scsi0\ncores: 4\nmemory: 4096\nname: g-%d\nnet0: virtio=BC:24:11:00:00:%02X,bridge=vmbr0\n"+
			"scsi0: local:%d/vm-%d-disk-0.raw,size=40G\nsmbios1: uuid=0c5a1c9e-5b0a-4a51-9d8e-%012d\n", id, i, id, id, id)
		if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
			b.Fatal(err)
		}
	}
	d := proxmox.New(proxmox.Config{Root: h.path(), Proc: "/proc", State: filepath.Join(h.lab, "state")})
	for b.Loop() {
		if len(observe(b, d).GetVms()) != 20 {
			b.Fatal("not all VMs were seen")
		}
	}
}
