package controller

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/homeiac/homelab/controller/plan"
	"github.com/homeiac/homelab/controller/store"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/mark"
	"github.com/homeiac/homelab/internal/rpc"
)

func TestARecreatedGuestIsTheSameMachineInTheNextGeneration(t *testing.T) {
	ready := store.Guest{
		Name: "k3s-1", Host: "pve1", VMID: 201, UUID: "u-1", Generation: 2, MACs: []string{"BC:24:11:00:00:01"}, HostKeys: []string{"k"},
		MachineID: "m", Addresses: []string{"10.0.0.11"}, Joined: true, Made: true, ReadyAt: noon, Failures: 1, Recreating: true,
		Attempts: []store.Attempt{{Action: homelabv1.Action_ACTION_RESET, At: noon}}, Holder: store.HolderVM{VMID: 250, UUID: "h", Generation: 2},
	}
	later := noon.Add(time.Hour)
	next := store.Guest{
		Name: "k3s-1", Host: "pve1", VMID: 201, UUID: "u-1", Generation: 3, MACs: ready.MACs, Addresses: ready.Addresses,
		Holder: ready.Holder, Began: later, Recreating: true,
	}
	never, adopted, first := ready, ready, ready
	never.ReadyAt = time.Time{}
	adopted.Generation, adopted.ReadyAt = 0, time.Time{}
	first.Generation, first.ReadyAt = 1, time.Time{}
	failed, ofAdopted, ofFirst := next, next, next
	failed.Failures = 2
	ofAdopted.Generation, ofFirst.Generation = 1, 2
	step := func(uuid string, generation int32) *homelabv1.Step {
		return &homelabv1.Step{Host: "pve1", Vmid: 201, Uuid: uuid, Generation: generation}
	}
	for _, c := range []struct {
		name  string
		rec   store.Guest
		step  *homelabv1.Step
		drawn string
		want  store.Guest
		err   error
	}{
		{"recreated", ready, step("u-1", 3), "", next, nil},
		{"its second attempt", next, step("u-1", 3), "", next, nil},
		{"recreated, its uuid left to us", ready, step("", 3), "", next, nil},
		{"one that never was well", never, step("u-1", 3), "", failed, nil},
		{"an adopted one", adopted, step("u-1", 1), "", ofAdopted, nil},
		{"a first one that never was well is no failed recreation", first, step("u-1", 2), "", ofFirst, nil},
		{"a number that this run gave", store.Guest{Name: "k3s-1", Host: "pve1", VMID: 201, UUID: "u-9", Generation: 4}, step("", 1), "u-9", store.Guest{Name: "k3s-1", Host: "pve1", VMID: 201, UUID: "u-9", Generation: 4}, nil},
		{"two generations on", ready, step("u-1", 4), "", store.Guest{}, rpc.ErrRefused},
		{"a generation back", ready, step("u-1", 1), "", store.Guest{}, rpc.ErrRefused},
		{"another VM", ready, step("u-2", 3), "", store.Guest{}, rpc.ErrRefused},
		{"nobody remembered", store.Guest{Name: "k3s-1", Generation: 1}, step("u-1", 1), "", store.Guest{}, rpc.ErrRefused},
	} {
		got, err := making(c.rec, c.step, c.drawn, later)
		if !errors.Is(err, c.err) || err == nil && !cmp.Equal(got, c.want) {
			t.Errorf("%s: %v\n%s", c.name, err, cmp.Diff(c.want, got))
		}
	}
}

func TestANewGuestIsAnotherMachine(t *testing.T) {
	gone := store.Guest{Name: "k3s-1", Generation: 4, Holder: store.HolderVM{VMID: 250, UUID: "h", Generation: 3}}
	got, err := making(gone, &homelabv1.Step{Host: "pve1", Vmid: 201, Generation: 1}, "", noon)
	if err != nil || got.UUID == "" || got.Generation != 4 || got.Holder != gone.Holder || !got.Began.Equal(noon) {
		t.Errorf("one that was forgotten: %+v, %v", got, err)
	}
	old := store.Guest{Name: "k3s-1", Host: "pve2", VMID: 201, UUID: "u-1", Generation: 1, MACs: []string{"BC:24:11:00:00:01"}, MachineID: "m", Joined: true}
	got, err = making(old, &homelabv1.Step{Host: "pve1", Vmid: 201, Generation: 2}, "", noon)
	if err != nil || got.UUID == "" || got.UUID == old.UUID || got.Joined || got.MachineID != "" || !cmp.Equal(got.MACs, old.MACs) {
		t.Errorf("one that was on another host: %+v, %v", got, err)
	}
}

func TestWhatAStepFoundOutIsRemembered(t *testing.T) {
	holder := store.HolderVM{VMID: 250, UUID: "h", Generation: 1}
	for _, c := range []struct {
		name   string
		action homelabv1.Action
		before store.Guest
		found  *agentv1.Learned
		member bool
		want   store.Guest
	}{
		{"save", homelabv1.Action_ACTION_SAVE, store.Guest{Volumes: []string{"x"}}, &agentv1.Learned{Config: []byte("cores: 2"), Volumes: []*homelabv1.Volume{{Volid: "v"}}}, true, store.Guest{SavedConfig: "cores: 2", SavedAt: noon, Volumes: []string{"v"}}},
		{"leave", homelabv1.Action_ACTION_LEAVE, store.Guest{Joined: true, ReadyAt: noon}, nil, true, store.Guest{ReadyAt: noon}},
		{"attach", homelabv1.Action_ACTION_ATTACH, store.Guest{Holder: holder}, nil, true, store.Guest{}},
		{"detach", homelabv1.Action_ACTION_DETACH, store.Guest{Holder: holder}, nil, true, store.Guest{Holder: holder}},
		{"a member boots", homelabv1.Action_ACTION_BOOT, store.Guest{Recreating: true}, &agentv1.Learned{MachineId: "m"}, true, store.Guest{MachineID: "m", Recreating: true}},
		{"no member boots", homelabv1.Action_ACTION_BOOT, store.Guest{Recreating: true}, &agentv1.Learned{MachineId: "m"}, false, store.Guest{MachineID: "m", ReadyAt: noon}},
		{"join", homelabv1.Action_ACTION_JOIN, store.Guest{Recreating: true}, nil, true, store.Guest{Joined: true, ReadyAt: noon}},
		{"a later join", homelabv1.Action_ACTION_JOIN, store.Guest{ReadyAt: noon.Add(-time.Hour)}, nil, true, store.Guest{Joined: true, ReadyAt: noon.Add(-time.Hour)}},
		{"start", homelabv1.Action_ACTION_START, store.Guest{Resting: true}, nil, true, store.Guest{}},
		{"addresses", homelabv1.Action_ACTION_ADOPT, store.Guest{}, &agentv1.Learned{Addresses: []string{"10.0.0.9/24"}, User: "debian"}, false, store.Guest{Addresses: []string{"10.0.0.9"}, User: "debian"}},
	} {
		got := c.before
		learn(&got, c.action, c.found, c.member, noon)
		if !cmp.Equal(got, c.want) {
			t.Errorf("%s:\n%s", c.name, cmp.Diff(c.want, got))
		}
	}
}

func TestAHolderBearsTheGenerationThatItWasMadeIn(t *testing.T) {
	s := testSigner(t)
	rec := store.Guest{Name: "k3s-1", VMID: 201, UUID: "u-1", Generation: 2, Holder: store.HolderVM{VMID: 250, UUID: "u-2", Generation: 1}}
	id := s.holder(rec)
	generation, err := mark.Verify(s.key, fleetName, plan.HolderName("k3s-1"), 250, "u-2", id.GetMark())
	if err != nil || generation != 1 || id.GetVmid() != 250 || id.GetGeneration() != 1 {
		t.Errorf("%v: %d, %v", id, generation, err)
	}
}

func TestAVMIsForcedToStopOnlyWhenNothingInItAnswers(t *testing.T) {
	running := func(agent, ssh *homelabv1.Fact) world {
		return world{sights: map[string]sight{"pve1": {
			obs:   &homelabv1.Observation{Vms: []*homelabv1.VirtualMachine{{Vmid: 201, Uuid: "u", Power: homelabv1.Power_POWER_RUNNING, GuestAgent: agent}}},
			looks: map[string]*homelabv1.GuestLook{"k3s-1": {Ssh: ssh}},
		}}}
	}
	paused := running(yesFact(), yesFact())
	paused.sights["pve1"].obs.Vms[0].Power = homelabv1.Power_POWER_PAUSED
	step := &homelabv1.Step{Guest: "k3s-1", Host: "pve1", Vmid: 201, Uuid: "u"}
	byPerson := &plan.Operation{Kind: plan.OpStop, Guest: "k3s-1"}
	for _, c := range []struct {
		name string
		w    world
		op   *plan.Operation
		want bool
	}{
		{"both answer", running(yesFact(), yesFact()), nil, false},
		{"SSH alone", running(noFact(), yesFact()), nil, false},
		{"guest agent alone", running(yesFact(), nil), nil, false},
		{"mute", running(noFact(), noFact()), nil, true},
		{"mute, and a person asks", running(noFact(), noFact()), byPerson, false},
		{"paused", paused, nil, true},
		{"paused, and a person asks", paused, byPerson, true},
	} {
		d := &dispatch{world: world{recollection: recollection{asked: asked{op: c.op}}}}
		if got := d.force(step, c.w); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
	}
}

func TestAHistoryIsWrittenDownWhenItChangesAndNowAndThen(t *testing.T) {
	tr := newTracker()
	since := func(signal plan.Signal, last time.Time) plan.History {
		return plan.History{{Signal: signal, Since: noon, Last: last, UUID: "u"}}
	}
	look := func(h plan.History, now time.Time) map[string]plan.History {
		_, changed := tr.carryOn(func(map[string]plan.History) map[string]plan.History {
			return map[string]plan.History{"k3s-1": h}
		}, []string{"k3s-1"}, now)
		return changed
	}
	for _, c := range []struct {
		name  string
		after time.Duration
		see   plan.History
		wrote bool
	}{
		{"well from the first", 0, nil, false},
		{"unwell", 10 * time.Second, since(plan.SignalStopped, noon.Add(10*time.Second)), true},
		{"still", 20 * time.Second, since(plan.SignalStopped, noon.Add(20*time.Second)), false},
		{"for a minute", 75 * time.Second, since(plan.SignalStopped, noon.Add(75*time.Second)), true},
		{"otherwise unwell", 80 * time.Second, since(plan.SignalPaused, noon.Add(80*time.Second)), true},
		{"well", 90 * time.Second, nil, true},
	} {
		if changed := look(c.see, noon.Add(c.after)); (len(changed) == 1) != c.wrote {
			t.Errorf("%s: wrote %v", c.name, changed)
		}
		if now := tr.histories()["k3s-1"]; !cmp.Equal(now, c.see) {
			t.Errorf("%s: tracked %v", c.name, now)
		}
	}
	look(since(plan.SignalSilent, noon), noon.Add(2*time.Minute))
	if _, changed := tr.carryOn(func(map[string]plan.History) map[string]plan.History { return nil }, nil, noon.Add(3*time.Minute)); len(changed) != 1 || len(tr.histories()) != 0 {
		t.Errorf("one that the Spec dropped: wrote %v, tracked %v", changed, tr.histories())
	}
	look(since(plan.SignalSilent, noon), noon.Add(4*time.Minute))
	if tr.forget("k3s-1"); len(tr.histories()) != 0 {
		t.Errorf("not forgotten: %v", tr.histories())
	}
}

func TestEveryActionHasWords(t *testing.T) {
	for number := range homelabv1.Action_name {
		a := homelabv1.Action(number)
		if a != homelabv1.Action_ACTION_UNSPECIFIED && (verbs[a] == "" || phases[a] == "") {
			t.Errorf("%s has no words", a)
		}
	}
	for _, c := range []struct {
		step *homelabv1.Step
		want string
	}{
		{&homelabv1.Step{Action: homelabv1.Action_ACTION_LEAVE, Guest: "k3s-2", Host: "pve1", Through: "k3s-1"}, "take k3s-2 out of the cluster through k3s-1 on pve1"},
		{&homelabv1.Step{Action: homelabv1.Action_ACTION_SNAPSHOT, Host: "pve1", Through: "k3s-1"}, "take an etcd snapshot through k3s-1 on pve1"},
		{&homelabv1.Step{Action: homelabv1.Action_ACTION_SNAPSHOT, Guest: "k3s-2", Host: "pve1", Through: "k3s-1"}, "take an etcd snapshot before k3s-2 changes, through k3s-1 on pve1"},
		{&homelabv1.Step{Action: homelabv1.Action_ACTION_FETCH, Image: "noble", Host: "pve1"}, "fetch image noble on pve1"},
	} {
		if got := sentence(c.step); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

// What is left of a VM that a person cleared away is freed only when that is what
// was asked for: the VMID may have been used since.
func TestLeftoversAreNamedOnlyByWhoClearsOrphans(t *testing.T) {
	sp, err := parseSpec("", specOf(1))
	if err != nil {
		t.Fatal(err)
	}
	step := &homelabv1.Step{Id: "rollback/pve1/k3s-1", Action: homelabv1.Action_ACTION_ROLLBACK, Guest: "k3s-1", Host: "pve1", Vmid: 201, Uuid: "u"}
	for op, named := range map[plan.OperationKind]bool{"": false, plan.OpRecreate: false, plan.OpClearOrphans: true} {
		d := &dispatch{c: &Controller{signer: testSigner(t)}, sp: sp, guests: map[string]store.Guest{}, allowed: map[string]bool{}}
		d.world.sights = map[string]sight{"pve1": {obs: &homelabv1.Observation{Intents: []*homelabv1.Intent{{
			Identity: &homelabv1.Identity{Guest: "k3s-1", Vmid: 201, Uuid: "u", Generation: 1},
		}}}}}
		if op != "" {
			d.world.asked.op = &plan.Operation{Kind: op, Guest: "k3s-1"}
		}
		req, err := d.request(t.Context(), step)
		if err != nil || req.GetNamed() != named {
			t.Errorf("%q: %v, %v", op, req, err)
		}
	}
}
