package proxmox_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/homeiac/homelab/agent/driver/drivertest"
	"github.com/homeiac/homelab/agent/driver/proxmox"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// side writes a file beside the host's root, read by the stand-in for kvm.
func (h *host) side(name, text string) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.lab, "hosts", h.name, name), []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

// started is a running VM of ours.
func started(t *testing.T, h *host) *proxmox.Driver {
	t.Helper()
	d := h.driver()
	create(t, h, d)
	if _, err := d.Start(t.Context(), &driverv1.StartRequest{Identity: drivertest.Identity(201)}, quiet); err != nil {
		t.Fatal(err)
	}
	return d
}

func (h *host) pid() int {
	h.t.Helper()
	pid, err := strconv.Atoi(strings.TrimSpace(h.read("run/qemu-server/201.pid")))
	if err != nil {
		h.t.Fatal(err)
	}
	return pid
}

// ran tells whether a program was run whose line begins so.
func (h *host) ran(line string) bool {
	return slices.ContainsFunc(h.calls(), func(c string) bool { return strings.HasPrefix(c, line) })
}

func TestAHungGuestIsReset(t *testing.T) {
	h := newHost(t)
	d := started(t, h)
	h.side("mute-qga-201", "yes")
	h.side("deaf-201", "yes")
	vm, err := d.Reset(t.Context(), &driverv1.ResetRequest{Identity: drivertest.Identity(201)}, quiet)
	if err != nil || vm.GetPower() != homelabv1.Power_POWER_RUNNING {
		t.Errorf("%v, %v", vm, err)
	}
	if data, err := os.ReadFile(filepath.Join(h.lab, "hosts", h.name, "resets-201")); err != nil || string(data) != "r" {
		t.Errorf("the button was pressed %q times, %v", data, err)
	}
}

func TestAResetOfAVMWhoseQEMUIsMuteSaysSo(t *testing.T) {
	h := newHost(t)
	d := started(t, h)
	h.side("mute-qmp-201", "yes")
	// What the real one says after five seconds.
	h.wrap("qm", `if [ "$1" = reset ]; then echo "VM 201 qmp command 'system_reset' failed - unable to connect to VM 201 qmp socket - timeout after 51 retries" >&2; exit 255; fi`)
	_, err := d.Reset(t.Context(), &driverv1.ResetRequest{Identity: drivertest.Identity(201)}, quiet)
	if !errors.Is(err, rpc.ErrUnavailable) || !strings.Contains(err.Error(), "unable to connect to VM 201 qmp socket") {
		t.Errorf("error %v", err)
	}
	vm := only(t, h.driver())
	if vm.GetProcess().GetTruth() != homelabv1.Truth_TRUTH_YES || vm.GetPower() != homelabv1.Power_POWER_UNSPECIFIED ||
		vm.GetQemuStatus() != "" || vm.GetPowerReason() == "" || vm.GetProcessStarted() == nil {
		t.Errorf("a mute VM is not a stopped one: %v", vm)
	}
}

func TestAVMThatPausesAgainIsNotResumed(t *testing.T) {
	h := newHost(t)
	d := started(t, h)
	h.side("status-201", "io-error")
	h.side("sticky-201", "io-error")
	_, err := d.Start(t.Context(), &driverv1.StartRequest{Identity: drivertest.Identity(201), Resume: true}, quiet)
	if !errors.Is(err, rpc.ErrUnavailable) || !strings.Contains(err.Error(), "paused again") || !strings.Contains(err.Error(), "io-error") {
		t.Errorf("error %v", err)
	}
	if err := os.Remove(filepath.Join(h.lab, "hosts", h.name, "sticky-201")); err != nil {
		t.Fatal(err)
	}
	vm, err := d.Start(t.Context(), &driverv1.StartRequest{Identity: drivertest.Identity(201), Resume: true}, quiet)
	if err != nil || vm.GetPower() != homelabv1.Power_POWER_RUNNING {
		t.Errorf("once its cause is gone: %v, %v", vm, err)
	}
}

// TestAStartIsNoLessDoneWhenQEMUIsBusy and lets the last question wait for too long, as
// on a host under load.
func TestAStartIsNoLessDoneWhenQEMUIsBusy(t *testing.T) {
	h := newHost(t)
	d := started(t, h)
	h.side("busy-201", "1") // that it runs is answered, the look at the whole of it is not
	vm, err := d.Start(t.Context(), &driverv1.StartRequest{Identity: drivertest.Identity(201)}, quiet)
	if err != nil || vm.GetPower() != homelabv1.Power_POWER_RUNNING {
		t.Errorf("start: %v %v", vm, err)
	}
	h.side("busy-201", "1")
	vm, err = d.Reset(t.Context(), &driverv1.ResetRequest{Identity: drivertest.Identity(201)}, quiet)
	if err != nil || vm.GetPower() != homelabv1.Power_POWER_RUNNING {
		t.Errorf("reset: %v %v", vm, err)
	}
}

func TestAGuestThatDoesNotShutDownRunsOn(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := started(t, h)
	h.side("deaf-201", "yes")
	req := &driverv1.StopRequest{Identity: drivertest.Identity(201), Deadline: durationpb.New(6 * time.Second)}
	_, err := d.Stop(t.Context(), req, quiet)
	if !errors.Is(err, rpc.ErrUnavailable) || !strings.Contains(err.Error(), "still runs") {
		t.Errorf("error %v", err)
	}
	if vm := only(t, d); vm.GetPower() != homelabv1.Power_POWER_RUNNING {
		t.Errorf("%v", vm)
	}
	if h.ran("qm stop") {
		t.Error("its power was cut without being asked")
	}
	req.Force = true
	vm, err := d.Stop(t.Context(), req, quiet)
	if err != nil || vm.GetPower() != homelabv1.Power_POWER_STOPPED {
		t.Errorf("with force: %v, %v", vm, err)
	}
}

// TestAForcedStopOverrulesAShutdownAtWork: it holds the VM's lock until its timeout.
func TestAForcedStopOverrulesAShutdownAtWork(t *testing.T) {
	h := newHost(t)
	d := started(t, h)
	h.side("deaf-201", "yes")
	ctx, cancel := context.WithCancel(t.Context())
	asked := make(chan error, 1)
	go func() {
		_, err := d.Stop(ctx, &driverv1.StopRequest{Identity: drivertest.Identity(201), Deadline: durationpb.New(2 * time.Minute)}, quiet)
		asked <- err
	}()
	eventually(t, "the shutdown is at work", func() bool {
		return strings.Contains(h.read("var/log/pve/tasks/active"), "qmshutdown")
	})
	cancel()
	if err := <-asked; !errors.Is(err, rpc.ErrUnavailable) {
		t.Errorf("the one that was left: %v", err)
	}
	// Not forced it is waited for.
	_, err := d.Stop(t.Context(), &driverv1.StopRequest{Identity: drivertest.Identity(201), Deadline: durationpb.New(300 * time.Millisecond)}, quiet)
	if !errors.Is(err, rpc.ErrBusy) || !strings.Contains(err.Error(), "qm shutdown 201") {
		t.Errorf("another one that asks: %v", err)
	}
	began := time.Now()
	vm, err := h.driver().Stop(t.Context(), &driverv1.StopRequest{Identity: drivertest.Identity(201), Force: true}, quiet)
	if err != nil || vm.GetPower() != homelabv1.Power_POWER_STOPPED || time.Since(began) > 30*time.Second {
		t.Errorf("%v, %v after %s", vm, err, time.Since(began))
	}
	if !h.ran("qm stop 201 --overrule-shutdown 1") {
		t.Errorf("calls %v", h.calls())
	}
}

func TestAProxmoxThatCannotOverruleWaitsForTheShutdown(t *testing.T) {
	h := newHost(t)
	d := started(t, h)
	h.side("deaf-201", "yes")
	ctx, cancel := context.WithCancel(t.Context())
	asked := make(chan error, 1)
	go func() {
		_, err := d.Stop(ctx, &driverv1.StopRequest{Identity: drivertest.Identity(201), Deadline: durationpb.New(6500 * time.Millisecond)}, quiet)
		asked <- err
	}()
	eventually(t, "the shutdown is at work", func() bool {
		return strings.Contains(h.read("var/log/pve/tasks/active"), "qmshutdown")
	})
	cancel()
	if err := <-asked; !errors.Is(err, rpc.ErrUnavailable) {
		t.Errorf("the one that was left: %v", err)
	}
	h.wrap("qm", `if [ "$3" = --overrule-shutdown ]; then echo "Unknown option: overrule-shutdown" >&2; echo "400 unable to parse option" >&2; exit 255; fi`)
	vm, err := d.Stop(t.Context(), &driverv1.StopRequest{Identity: drivertest.Identity(201), Force: true}, quiet)
	if err != nil || vm.GetPower() != homelabv1.Power_POWER_STOPPED {
		t.Errorf("%v, %v", vm, err)
	}
}

func TestAKVMThatHangsIsStoppedByForce(t *testing.T) {
	h := newHost(t)
	d := started(t, h)
	pid := h.pid()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it hangs", func() bool { return only(t, h.driver()).GetPower() == homelabv1.Power_POWER_UNSPECIFIED })
	vm := only(t, h.driver())
	if vm.GetProcess().GetTruth() != homelabv1.Truth_TRUTH_YES {
		t.Errorf("while it hangs: %v", vm)
	}
	// The real one comes to this after seventy seconds.
	h.wrap("qm", `if [ "$1" = stop ]; then echo "VM still running - terminating now with SIGKILL"; kill -9 $(cat $HOST/root/run/qemu-server/$2.pid); exit 0; fi`)
	vm, err := d.Stop(t.Context(), &driverv1.StopRequest{Identity: drivertest.Identity(201), Force: true}, quiet)
	if err != nil || vm.GetPower() != homelabv1.Power_POWER_STOPPED {
		t.Errorf("%v, %v", vm, err)
	}
}

func TestADestroyThatWasCutOffAtItsLastStepIsEnded(t *testing.T) {
	h := newHost(t)
	d := h.driver()
	create(t, h, d)
	seen, err := d.Inspect(t.Context(), 201)
	if err != nil {
		t.Fatal(err)
	}
	// Proxmox frees the volumes, leaves this to keep the VMID taken, and then dies.
	h.write(h.conf(201), "lock: destroyed\n")
	if vm := only(t, d); !vm.GetHalfBuilt() {
		t.Errorf("%v", vm)
	}
	wantRefused(t, destroy(t, d), "rolled back first")
	req := &driverv1.DestroyRequest{Identity: drivertest.Identity(201), HalfBuilt: true, Keep: []string{seen.GetVolumes()[0].GetVolid()},
		Deadline: durationpb.New(20 * time.Second)}
	if _, err := d.Destroy(t.Context(), req, quiet); err != nil {
		t.Fatal(err)
	}
	left, err := d.Inspect(t.Context(), 201)
	if err != nil || left.GetVm().GetPower() != homelabv1.Power_POWER_ABSENT || len(left.GetVolumes()) != 1 {
		t.Errorf("%v, %v", left, err)
	}
}

// TestAVMWithoutAPidFileMayRun: Proxmox takes it for stopped.
func TestAVMWithoutAPidFileMayRun(t *testing.T) {
	h := newHost(t)
	d := started(t, h)
	if _, err := d.CreateHolder(t.Context(), &driverv1.CreateHolderRequest{Identity: drivertest.Holder(), Name: "hl-holder-g-201"}, quiet); err != nil {
		t.Fatal(err)
	}
	pid := h.read("run/qemu-server/201.pid")
	if err := os.Remove(h.path("run/qemu-server/201.pid")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.write("run/qemu-server/201.pid", pid) }) // by it the process is ended
	before := h.read(h.conf(201))
	wantRefused(t, destroy(t, d), "pid file is gone", strings.TrimSpace(pid))
	_, err := d.MoveDisk(t.Context(), &driverv1.MoveDiskRequest{From: drivertest.Identity(201), To: drivertest.Holder(), Slot: "scsi1"}, quiet)
	wantRefused(t, err, "runs")
	if h.read(h.conf(201)) != before {
		t.Error("it was changed")
	}
}

func TestNamedLiftsOnlySnapshotsAndPendingChanges(t *testing.T) {
	named := func(d *proxmox.Driver, keepSlots ...string) error {
		_, err := d.Destroy(t.Context(), &driverv1.DestroyRequest{Identity: drivertest.Identity(201), Named: true, KeepSlots: keepSlots,
			Deadline: durationpb.New(20 * time.Second)}, quiet)
		return err
	}
	for name, c := range map[string]struct {
		spoil func(h *host)
		says  string
	}{
		"HA":         {func(h *host) { h.write("etc/pve/ha/resources.cfg", "vm: 201\n") }, "HA"},
		"protection": {func(h *host) { h.qm("set", "201", "--protection", "1") }, "protection"},
		"clones": {func(h *host) {
			h.qm("template", "201")
			h.qm("clone", "201", "300", "--name", "clone")
		}, "300 (clone)"},
		"another that names its disk": {func(h *host) {
			h.qm("create", "300", "--name", "thief")
			h.write(h.conf(300), h.read(h.conf(300))+"scsi1: local:201/vm-201-disk-1.raw,size=2G\n")
		}, "names its local:201/vm-201-disk-1.raw too"},
		"a slot to keep in a snapshot": {func(h *host) {
			h.write(h.conf(201), strings.Replace(h.read(h.conf(201)), "scsi1:", "unused0:", 1)+"\n[a]\nscsi5: local:201/vm-201-disk-1.raw,size=2G\n")
		}, "scsi5"},
	} {
		h := newHost(t)
		d := h.driver()
		create(t, h, d)
		c.spoil(h)
		before := h.read(h.conf(201))
		err := named(d, "scsi5")
		if !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
		if h.read(h.conf(201)) != before || h.ran("qm destroy") {
			t.Errorf("%s: it was changed", name)
		}
	}
	h := newHost(t)
	d := h.driver()
	create(t, h, d)
	h.write(h.conf(201), h.read(h.conf(201))+"\n[PENDING]\nmemory: 300\n")
	wantRefused(t, destroy(t, d), "memory")
	if err := named(d); err != nil || h.read(h.conf(201)) != "" {
		t.Errorf("with pending changes, named: %v", err)
	}
}

func TestWhoStoppedAVMAndSinceWhenItRuns(t *testing.T) {
	h := newHost(t)
	d := started(t, h)
	vm := only(t, d)
	if since := time.Since(vm.GetProcessStarted().AsTime()); since < -2*time.Second || since > time.Minute {
		t.Errorf("it runs since %s", since)
	}
	if vm.GetQemuStatus() != "running" || vm.GetLastStop() != nil {
		t.Errorf("running: %v", vm)
	}
	if _, err := d.Inspect(t.Context(), 201); err != nil {
		t.Fatal(err)
	}
	if again := only(t, d); !again.GetProcessStarted().AsTime().Equal(vm.GetProcessStarted().AsTime()) {
		t.Errorf("the same process was started at %v and at %v", vm.GetProcessStarted(), again.GetProcessStarted())
	}
	h.qm("stop", "201")
	vm = only(t, d)
	stop := vm.GetLastStop()
	if stop.GetType() != "qmstop" || stop.GetUser() != "root@pam" || stop.GetStatus() != "OK" || !strings.HasPrefix(stop.GetUpid(), "UPID:pve1:") ||
		time.Since(stop.GetEnded().AsTime()) > time.Minute {
		t.Errorf("stopped by %v", stop)
	}
	if vm.GetProcess().GetTruth() != homelabv1.Truth_TRUTH_NO || vm.GetProcessStarted() != nil || vm.GetQemuStatus() != "" {
		t.Errorf("stopped: %v", vm)
	}
	if err := os.Rename(h.path("var/log/pve/tasks/index"), h.path("var/log/pve/tasks/index.1")); err != nil {
		t.Fatal(err)
	}
	if vm := only(t, d); vm.GetLastStop().GetUpid() != stop.GetUpid() {
		t.Errorf("once the index was rotated: %v", vm.GetLastStop())
	}
	h.qm("start", "201")
	if err := syscall.Kill(h.pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is seen to be stopped", func() bool { return only(t, d).GetPower() == homelabv1.Power_POWER_STOPPED })
	if vm := only(t, d); vm.GetLastStop() != nil {
		t.Errorf("killed, and not stopped by %v", vm.GetLastStop())
	}
}

func TestATemplateNamesItsLinkedClones(t *testing.T) {
	h := newHost(t)
	d := h.driver()
	create(t, h, d)
	h.qm("template", "201")
	h.qm("clone", "201", "300", "--name", "clone")
	seen := observe(t, d).GetVms()
	if got := seen[0].GetLinkedClones(); !slices.Equal(got, []string{"300 (clone)"}) {
		t.Errorf("linked clones %v", got)
	}
	if got := seen[1].GetLinkedClones(); len(got) != 0 || !seen[1].GetLinkedClone() {
		t.Errorf("the clone: %v", seen[1])
	}
	h.write("etc/pve/nodes/pve2/qemu-server/301.conf", "")
	if err := os.Remove(h.path("etc/pve/nodes/pve2/qemu-server/301.conf")); err != nil {
		t.Fatal(err)
	}
	if vm, err := d.Inspect(t.Context(), 201); err != nil || fmt.Sprint(vm.GetVm().GetLinkedClones()) != "[300 (clone)]" {
		t.Errorf("inspected: %v, %v", vm, err)
	}
}
