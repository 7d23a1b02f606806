package controller

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/config"
	"github.com/homeiac/homelab/internal/rpc"
)

func TestTheNewestFenceIsThatOfThisFleet(t *testing.T) {
	at := func(fleet string, epoch, run int64) sight {
		return sight{obs: &homelabv1.Observation{Fence: &homelabv1.Fence{Fleet: fleet, Epoch: epoch, Run: run}}}
	}
	got := newest("lab", map[string]sight{"a": at("lab", 2, 9), "b": at("lab", 3, 1), "c": at("other", 99, 99), "d": {}})
	if got.GetEpoch() != 3 || got.GetRun() != 1 {
		t.Errorf("newest %v", got)
	}
}

func TestEveryStartOfAControllerIsANewEpoch(t *testing.T) {
	f := newFleet(t, "pve1")
	for want := int64(1); want <= 3; want++ {
		c := f.up()
		if got, err := c.store.Epoch(t.Context()); err != nil || got != want {
			t.Errorf("epoch %d, %v, want %d", got, err, want)
		}
		c.kill()
	}
}

func TestAControllerThatLostItsMemoryRecoversFromTheMarksAndDoesNothing(t *testing.T) {
	f := newFleet(t, hostNames(3)...)
	c := f.up()
	if o := c.apply(t.Context(), specOf(3), "", true); o.err != nil || o.summary.GetFailed() != 0 {
		t.Fatalf("%v, %v", o.err, o.summary)
	}
	for range 3 { // runs that the agents remember and the new store will not
		c.kill()
		c = f.up()
		c.apply(t.Context(), specOf(3), "", true)
	}
	c.kill()
	f.mu.Lock()
	a := f.agents["pve1"]
	a.fence = &homelabv1.Fence{Fleet: fleetName, Epoch: 7, Run: 40}
	a.vms[201].power = homelabv1.Power_POWER_STOPPED // so that there is a step to send
	a.vms[201].booted = false
	f.mu.Unlock()
	if err := os.RemoveAll(filepath.Join(f.dir, "state")); err != nil {
		t.Fatal(err)
	}

	c = f.up()
	o := c.apply(t.Context(), specOf(3), "", true)
	if o.err != nil || o.summary.GetFailed()+o.summary.GetRefused()+o.summary.GetSkipped() != 0 {
		t.Fatalf("%v, %v\n%s%s", o.err, o.summary, o.texts(homelabv1.EventKind_EVENT_KIND_STEP_FAILED), o.texts(homelabv1.EventKind_EVENT_KIND_NOTE))
	}
	if epoch, err := c.store.Epoch(t.Context()); err != nil || epoch != 8 {
		t.Errorf("epoch %d, %v", epoch, err)
	}
	f.well(3, 3)
	if o := c.apply(t.Context(), specOf(3), "", true); o.err != nil || len(o.plan.GetSteps()) != 0 {
		t.Errorf("second: %v, %v", o.err, o.plan)
	}
	guests, err := c.store.Guests(t.Context())
	if err != nil || len(guests) != 3 || guests["k3s-1"].UUID == "" || guests["k3s-1"].Made {
		t.Errorf("remembered again: %v, %v", guests, err)
	}
}

func TestAFreshControllerShowsTheAgentsInTheGossip(t *testing.T) {
	f := newFleet(t, hostNames(2)...)
	c := f.up()
	status, err := c.viewer.Status(t.Context(), &controllerv1.StatusRequest{Fresh: true})
	if err != nil || len(status.GetHosts()) != 2 || status.GetFleet() != "" {
		t.Fatalf("%v, %v", status, err)
	}
	for _, h := range status.GetHosts() {
		if h.GetState() != homelabv1.HostState_HOST_STATE_ONLINE || h.GetObservation() == nil {
			t.Errorf("%s is %s: %s", h.GetName(), h.GetState(), h.GetReason())
		}
	}
}

func TestTheLockOfADeadControllerIsWaitedForAndThatOfALiveOneIsNot(t *testing.T) {
	f := newFleet(t, "pve1")
	c := f.up()
	lock, err := c.store.Lock(t.Context(), "admin@laptop", noon)
	if err != nil {
		t.Fatal(err)
	}
	patient := c.pace
	patient.lock = time.Minute
	asks := func(name string) *Controller {
		return &Controller{cfg: Config{Daemon: config.Daemon{Name: name}}, store: c.store, seeing: c.seeing, pace: patient, now: c.now}
	}
	if _, err := asks("controller-1").takeLock(t.Context(), "admin@admin-1"); !errors.Is(err, rpc.ErrBusy) {
		t.Errorf("held by a live one: %v", err)
	}
	// For another one the holder is nobody in the gossip.
	time.AfterFunc(20*time.Millisecond, lock.Unlock)
	taken, err := asks("controller-2").takeLock(t.Context(), "admin@admin-1")
	if err != nil {
		t.Fatal(err)
	}
	taken.Unlock()
}

func TestNothingIsSentOnceTheRunLockIsLost(t *testing.T) {
	f := newFleet(t, "pve1")
	c := f.up()
	lock, err := c.takeLock(t.Context(), "admin@laptop")
	if err != nil {
		t.Fatal(err)
	}
	sp := must(parseSpec("", specOf(1)))
	r := &run{c: c.Controller, req: request{sp: sp}, lock: lock, began: c.now(), send: func(*controllerv1.ApplyResponse) error { return nil }}
	w, p, err := r.settle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.begin(t.Context()), r.prepare(t.Context(), w, p)); err != nil {
		t.Fatal(err)
	}
	lock.Unlock()
	if _, v := r.attempts(p.GetSteps()[0]); !errors.Is(v.err, errLockLost) {
		t.Errorf("got %v", v.err)
	}
	if f.mu.Lock(); len(f.steps) > 0 {
		t.Errorf("carried out: %v", f.steps)
	}
	f.mu.Unlock()
	r.journal.close()
}
