package agent

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

func TestAnOlderRunIsRefusedAlsoAfterARestart(t *testing.T) {
	w := newWorld(t)
	w.run = 7
	w.must(fetchStep)
	w.must(fetchStep) // an equal run is the same one
	w.relaunch()
	for _, f := range []*homelabv1.Fence{{Fleet: "home", Epoch: 1, Run: 6}, {Fleet: "home", Epoch: 0, Run: 99}} {
		req := w.request(fetchStep)
		req.Fence = f
		if _, err := w.do(req); !errors.Is(err, rpc.ErrRefused) {
			t.Errorf("%v: %v", f, err)
		}
	}
	req := w.request(fetchStep)
	req.Fence = &homelabv1.Fence{Fleet: "home", Epoch: 2, Run: 1}
	if _, err := w.do(req); err != nil {
		t.Errorf("a later epoch counts more than the run: %v", err)
	}
	if got := w.svc.fence.seen(); got.GetEpoch() != 2 || got.GetRun() != 1 {
		t.Errorf("highest %v", got)
	}
}

func TestRequestsForOthersAreNotCarriedOut(t *testing.T) {
	w := newWorld(t)
	for name, tc := range map[string]struct {
		kind rpc.Kind
		turn func(*homelabv1.Step, *homelabv1.Fence, *homelabv1.GuestWant)
	}{
		"another host":      {rpc.ErrInvalid, func(s *homelabv1.Step, _ *homelabv1.Fence, _ *homelabv1.GuestWant) { s.Host = "pve2" }},
		"another fleet":     {rpc.ErrRefused, func(_ *homelabv1.Step, f *homelabv1.Fence, _ *homelabv1.GuestWant) { f.Fleet = "work" }},
		"a guest of theirs": {rpc.ErrRefused, func(_ *homelabv1.Step, _ *homelabv1.Fence, g *homelabv1.GuestWant) { g.Identity.Fleet = "work" }},
		"another guest":     {rpc.ErrInvalid, func(s *homelabv1.Step, _ *homelabv1.Fence, _ *homelabv1.GuestWant) { s.Guest = "k3s-2" }},
		"no uuid":           {rpc.ErrInvalid, func(_ *homelabv1.Step, _ *homelabv1.Fence, g *homelabv1.GuestWant) { g.Identity.Uuid = "" }},
		"no action":         {rpc.ErrInvalid, func(s *homelabv1.Step, _ *homelabv1.Fence, _ *homelabv1.GuestWant) { s.Action = 0 }},
		"a new action":      {rpc.ErrUnsupported, func(s *homelabv1.Step, _ *homelabv1.Fence, _ *homelabv1.GuestWant) { s.Action = 99 }},
	} {
		req := w.request(startStep)
		tc.turn(req.GetStep(), req.GetFence(), req.GetWant())
		if _, err := w.do(req); rpc.KindOf(err) != tc.kind {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAPausedHostChangesNothing(t *testing.T) {
	w := newWorld(t)
	if err := os.WriteFile(w.cfg.PauseFile, []byte("disk swap\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := w.do(w.request(fetchStep)); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "disk swap") {
		t.Errorf("got %v", err)
	}
}

func TestAGuestHasOneStepAtATimeAndItOutlivesItsCaller(t *testing.T) {
	w := newWorld(t)
	w.must(fetchStep)
	entered, leave := make(chan struct{}), make(chan struct{})
	w.hyp.at = func(where string) error {
		if where == "half-built" {
			close(entered)
			<-leave
		}
		return nil
	}
	ctx, hangUp := context.WithCancel(t.Context())
	first := &stream{ctx: ctx}
	ended := make(chan error, 1)
	go func() { ended <- w.svc.Run(w.request(createStep), first) }()
	<-entered
	if _, err := w.do(w.request(createStep)); !errors.Is(err, rpc.ErrBusy) || !strings.Contains(err.Error(), "ACTION_CREATE/pve1/k3s-1 of run 1") {
		t.Errorf("the same step: %v", err)
	}
	if _, err := w.do(w.request(startStep)); !errors.Is(err, rpc.ErrBusy) {
		t.Errorf("another step of the guest: %v", err)
	}
	w.must(fetchStep) // is no guest's
	steps := w.svc.flights.list()
	if len(steps) != 1 || steps[0].GetGuest() != "k3s-1" || steps[0].GetRun() != 1 {
		t.Errorf("in flight: %v", steps)
	}
	hangUp()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the caller: %v", err)
	}
	if len(w.svc.flights.list()) != 1 {
		t.Fatal("the step ended with its caller")
	}
	close(leave)
	for {
		// The step ends by itself; the next one for the guest is then taken.
		if _, err := w.do(w.request(startStep)); !errors.Is(err, rpc.ErrBusy) {
			if err != nil {
				t.Error(err)
			}
			break
		}
	}
	if vm := w.hyp.vms[201]; vm.GetHalfBuilt() {
		t.Error("the create was not finished")
	}
}

func TestAStepThatPanicsFailsAlone(t *testing.T) {
	w := newWorld(t)
	w.must(fetchStep)
	w.hyp.at = func(string) error { panic("bug") }
	_, err := w.do(w.request(createStep))
	if err == nil || strings.Contains(err.Error(), "bug") || !strings.Contains(err.Error(), "internal error") {
		t.Errorf("got %v", err)
	}
	w.hyp.at = func(string) error { return nil }
	w.must(createStep)
}

func TestWhenTheAgentEndsItsStepsEnd(t *testing.T) {
	w := newWorld(t)
	w.hyp.vms[201] = running(w)
	w.svc.sshPort = 1 // nothing listens there
	s := &stream{ctx: t.Context()}
	ended := make(chan error, 1)
	go func() { ended <- w.svc.Run(w.request(bootStep), s) }()
	for len(w.svc.flights.list()) == 0 {
		select {
		case err := <-ended:
			t.Fatal(err)
		default:
		}
	}
	w.stop()
	if err := <-ended; err == nil {
		t.Error("the step ended well")
	}
	if _, err := w.do(w.request(bootStep)); !errors.Is(err, rpc.ErrUnavailable) {
		t.Errorf("after the end: %v", err)
	}
}

// running is guest k3s-1's VM, running.
func running(w *world) *homelabv1.VirtualMachine {
	id := w.want().GetIdentity()
	return &homelabv1.VirtualMachine{
		Vmid: 201, Name: "k3s-1", Uuid: id.GetUuid(), Mark: id.GetMark(), Power: homelabv1.Power_POWER_RUNNING, Readable: factYes(""), GuestAgent: factNo("no answer"),
	}
}

func TestAHostWithoutQuorumIsNotChangedInTheMiddleOfARun(t *testing.T) {
	w := newWorld(t)
	newBareGuest(t, w)
	w.put("etc/pve/.members", `{"nodename": "pve1","version": 4,"cluster": {"name": "home","version": 3,"nodes": 2,"quorate": 0},"nodelist": {}}`)
	for _, req := range []*agentv1.RunRequest{w.request(fetchStep), w.joinRequest(joinStep)} {
		s, err := w.do(req)
		if !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "no quorum") || len(s.calls()) != 0 {
			t.Errorf("%s: got %v, calls %v", req.GetStep().GetId(), err, s.calls())
		}
	}
}
