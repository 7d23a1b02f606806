package proxmox_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/homeiac/homelab/agent/driver/drivertest"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// creates counts the creates that were run, by the lab's own log.
func (h *host) creates() int {
	n := 0
	for _, c := range h.calls() {
		if strings.HasPrefix(c, "qm create ") {
			n++
		}
	}
	return n
}

func quiet(*homelabv1.Event) {}

func request(h *host) *driverv1.CreateRequest {
	return drivertest.Request(h.world(nil, "local"), 201)
}

func TestACancelledCallLeavesQMAlone(t *testing.T) {
	h := newHost(t)
	d := h.driver()
	held, release := h.hold("create")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	var events []*homelabv1.Event
	go func() {
		_, err := d.Create(ctx, request(h), func(e *homelabv1.Event) { events = append(events, e) })
		ended <- err
	}()
	pid := held()
	cancel()
	err := <-ended
	if !errors.Is(err, rpc.ErrUnavailable) || !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "still at work") {
		t.Errorf("the cancelled call: %v", err)
	}
	last := events[len(events)-1].GetCall()
	if !last.GetMutating() || !slices.Contains(last.GetArgs(), "create") || last.GetError() == "" {
		t.Errorf("the call that was left at work was not reported: %v", events)
	}
	if sid, err := sessionOf(pid); err != nil || sid != pid {
		t.Errorf("qm has the session %d, %v; want one of its own, %d", sid, err, pid)
	}
	// Another call finds it and waits.
	req := request(h)
	req.Deadline = durationpb.New(time.Second)
	if _, err := d.Create(t.Context(), req, quiet); !errors.Is(err, rpc.ErrBusy) || !strings.Contains(err.Error(), "qm create 201") {
		t.Errorf("a call meanwhile: %v", err)
	}
	release()
	vm, err := d.Create(t.Context(), request(h), quiet)
	if err != nil || vm.GetUuid() != drivertest.Identity(201).GetUuid() {
		t.Fatalf("a call afterwards: %v, %v", vm, err)
	}
	if n := h.creates(); n != 1 {
		t.Errorf("%d creates were run", n)
	}
	eventually(t, "nothing is left in the state folder", func() bool {
		left, _ := os.ReadDir(filepath.Join(h.lab, "state", "calls"))
		return len(left) == 0
	})
}

func sessionOf(pid int) (int, error) {
	sid, _, errno := syscall.RawSyscall(syscall.SYS_GETSID, uintptr(pid), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(sid), nil
}

func TestAKilledPluginLeavesQMAliveAndItIsFoundAgain(t *testing.T) {
	h := newHost(t)
	p := h.plugin()
	held, release := h.hold("create")
	ended := make(chan error, 1)
	go func() {
		_, err := p.Create(t.Context(), request(h), quiet)
		ended <- err
	}()
	qm := held()
	plugin := p.PID()
	if err := syscall.Kill(plugin, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, rpc.ErrUnavailable) {
		t.Errorf("the call in flight: %v", err)
	}
	eventually(t, "the driver is relaunched", func() bool { return p.PID() != 0 && p.PID() != plugin })
	if err := syscall.Kill(qm, 0); err != nil {
		t.Fatalf("qm died with the plugin: %v", err)
	}
	// It has not registered with Proxmox yet: only the record tells.
	if seen, err := p.Observe(t.Context(), false); err != nil || len(seen.GetVms()) != 1 || !seen.GetVms()[0].GetHalfBuilt() || len(seen.GetVms()[0].GetTasks()) != 1 {
		t.Errorf("observed %v, %v; want somebody at work on VMID 201", seen, err)
	}
	waited := make(chan struct{})
	created := make(chan error, 1)
	go func() {
		told := false
		_, err := p.Create(t.Context(), request(h), func(e *homelabv1.Event) {
			if !told && strings.Contains(e.GetText(), "qm create 201") && strings.Contains(e.GetText(), fmt.Sprint(qm)) {
				told = true
				close(waited)
			}
		})
		created <- err
	}()
	select {
	case <-waited:
	case err := <-created:
		t.Fatalf("the next call did not wait: %v", err)
	case <-time.After(20 * time.Second):
		t.Fatal("the next call did not say what it waits for")
	}
	release()
	if err := <-created; err != nil {
		t.Fatal(err)
	}
	if n := h.creates(); n != 1 {
		t.Errorf("%d creates were run", n)
	}
}

func TestATaskOfProxmoxIsWaitedForOnlyWhileItsWorkerLives(t *testing.T) {
	h := newHost(t)
	h.guests(1, 0)
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	var start int64
	if _, err := fmt.Sscan(strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))[19], &start); err != nil {
		t.Fatal(err)
	}
	task := func(start int64) string {
		return fmt.Sprintf("UPID:pve1:%08X:%08X:%08X:vzdump:201:root@pam: 0\n", os.Getpid(), start, time.Now().Unix())
	}
	d := h.driver()
	h.write("var/log/pve/tasks/active", task(start))
	if vm := only(t, d); len(vm.GetTasks()) != 1 {
		t.Errorf("tasks: %v", vm.GetTasks())
	}
	// The identity is not even looked at before the task has ended.
	_, err = d.Start(t.Context(), &driverv1.StartRequest{Identity: drivertest.Identity(201), Deadline: durationpb.New(500 * time.Millisecond)}, quiet)
	if !errors.Is(err, rpc.ErrBusy) || !strings.Contains(err.Error(), "vzdump") {
		t.Errorf("with a live worker: %v", err)
	}
	h.write("var/log/pve/tasks/active", task(start+1))
	_, err = d.Start(t.Context(), &driverv1.StartRequest{Identity: drivertest.Identity(201), Deadline: durationpb.New(5 * time.Second)}, quiet)
	if !errors.Is(err, rpc.ErrRefused) { // it is not ours
		t.Errorf("with a dead worker: %v", err)
	}
	if vm := only(t, d); len(vm.GetTasks()) != 0 {
		t.Errorf("tasks: %v", vm.GetTasks())
	}
}

func TestAHeldLockFileIsWaitedFor(t *testing.T) {
	h := newHost(t)
	d := h.driver()
	if _, err := d.Create(t.Context(), request(h), quiet); err != nil {
		t.Fatal(err)
	}
	unlock := h.flock(201)
	req := &driverv1.StartRequest{Identity: drivertest.Identity(201), Deadline: durationpb.New(500 * time.Millisecond)}
	if _, err := d.Start(t.Context(), req, quiet); !errors.Is(err, rpc.ErrBusy) || !strings.Contains(err.Error(), "lock file") {
		t.Errorf("while it is held: %v", err)
	}
	if slices.ContainsFunc(h.calls(), func(c string) bool { return strings.HasPrefix(c, "qm start") }) {
		t.Error("qm was run although the lock was held")
	}
	req.Deadline = durationpb.New(20 * time.Second)
	vm, err := d.Start(t.Context(), req, func(e *homelabv1.Event) {
		if strings.Contains(e.GetText(), "lock file") {
			unlock()
		}
	})
	if err != nil || vm.GetPower() != homelabv1.Power_POWER_RUNNING {
		t.Errorf("once it is free: %v, %v", vm, err)
	}
}

func TestProgramsGetACleanEnvironment(t *testing.T) {
	t.Setenv("LC_ALL", "de_DE.bogus")
	t.Setenv("SECRET_TOKEN", "x")
	h := newHost(t)
	if _, err := h.driver().Create(t.Context(), request(h), quiet); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(h.lab, "calls.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root"}
	for line := range strings.Lines(string(data)) {
		var c struct{ Argv, Environment []string }
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(c.Environment, want) {
			t.Errorf("%v got %v", c.Argv[:2], c.Environment)
		}
	}
}

func TestEveryCallIsReportedAsTheHostSawIt(t *testing.T) {
	h := newHost(t)
	d := h.driver()
	var told []string
	report := func(e *homelabv1.Event) {
		if c := e.GetCall(); c != nil {
			told = append(told, c.GetProgram()+" "+strings.Join(c.GetArgs(), " "))
			if c.GetTook().AsDuration() <= 0 || e.GetTime() == nil {
				t.Errorf("a call without its time: %v", e)
			}
		}
	}
	id := drivertest.Identity(201)
	for _, call := range []func() (*homelabv1.VirtualMachine, error){
		func() (*homelabv1.VirtualMachine, error) { return d.Create(t.Context(), request(h), report) },
		func() (*homelabv1.VirtualMachine, error) {
			return d.Start(t.Context(), &driverv1.StartRequest{Identity: id}, report)
		},
		func() (*homelabv1.VirtualMachine, error) {
			return d.Stop(t.Context(), &driverv1.StopRequest{Identity: id}, report)
		},
		func() (*homelabv1.VirtualMachine, error) {
			return d.Destroy(t.Context(), &driverv1.DestroyRequest{Identity: id}, report)
		},
	} {
		if _, err := call(); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(told, h.calls()) {
		t.Errorf("reported\n%s\nrun\n%s", strings.Join(told, "\n"), strings.Join(h.calls(), "\n"))
	}
	var verbs []string
	for _, c := range told {
		f := strings.Fields(c)
		verbs = append(verbs, f[0]+" "+f[1])
	}
	want := []string{"pvesm status", "qm create", "qm disk", "qm start", "qm shutdown", "pvesm status", "qm set", "qm destroy"}
	if !slices.Equal(verbs, want) {
		t.Errorf("calls %v, want %v", verbs, want)
	}
}

// TestAConfigurationThatIsNotUTF8DoesNotBlindTheHost: anybody may edit one by hand.
func TestAConfigurationThatIsNotUTF8DoesNotBlindTheHost(t *testing.T) {
	h := newHost(t)
	h.qm("create", "300", "--name", "other", "--memory", "512")
	h.write(h.conf(300), "#hl1%3Acaf%E9\nname: caf\xe9\nscsi0: local:300/vm-300-disk-0.raw,size=1G\n")
	p := h.plugin()
	seen, err := p.Observe(t.Context(), false)
	if err != nil || len(seen.GetVms()) != 1 || seen.GetVms()[0].GetName() != "caf\uFFFD" {
		t.Errorf("observed %v, %v", seen, err)
	}
}

func TestADriverThatIsToEndWaitsForItsQMAndForNothingElse(t *testing.T) {
	h := newHost(t)
	d := h.driver()
	held, release := h.hold("create")
	first, second := make(chan error, 1), make(chan error, 1)
	waits := make(chan struct{})
	go func() {
		_, err := d.Create(t.Context(), request(h), quiet)
		first <- err
	}()
	held()
	// Another driver, as of an agent that was started again: it waits for the same VM.
	other := h.driver()
	go func() {
		told := false
		_, err := other.Create(t.Context(), request(h), func(e *homelabv1.Event) {
			if !told && strings.Contains(e.GetText(), "waiting for VM 201") {
				told = true
				close(waits)
			}
		})
		second <- err
	}()
	<-waits
	other.End()
	if err := <-second; !errors.Is(err, rpc.ErrUnavailable) || !strings.Contains(err.Error(), "the agent is ending") {
		t.Errorf("the call that waits: %v", err)
	}
	d.End()
	d.End()
	select {
	case err := <-first:
		t.Fatalf("the call with a qm at work ended: %v", err)
	default:
	}
	release()
	if err := <-first; err != nil && (!errors.Is(err, rpc.ErrUnavailable) || !strings.Contains(err.Error(), "the agent is ending")) {
		t.Errorf("the call with a qm at work: %v", err)
	}
	if _, err := d.Start(t.Context(), &driverv1.StartRequest{Identity: drivertest.Identity(201)}, quiet); !errors.Is(err, rpc.ErrUnavailable) {
		t.Errorf("a call afterwards: %v", err)
	}
	var verbs []string
	for _, c := range h.calls() {
		if strings.HasPrefix(c, "qm ") {
			verbs = append(verbs, strings.Fields(c)[1])
		}
	}
	if !slices.Equal(verbs, []string{"create"}) {
		t.Errorf("run were %v", verbs)
	}
}
