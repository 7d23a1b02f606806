package controller

import (
	"errors"
	"slices"
	"strings"
	"testing"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

const (
	opRecreate = controllerv1.OperationKind_OPERATION_KIND_RECREATE
	opDelete   = controllerv1.OperationKind_OPERATION_KIND_DELETE
	opAdopt    = controllerv1.OperationKind_OPERATION_KIND_ADOPT
	opStart    = controllerv1.OperationKind_OPERATION_KIND_START
	opStop     = controllerv1.OperationKind_OPERATION_KIND_STOP
	opRejoin   = controllerv1.OperationKind_OPERATION_KIND_REJOIN
	opSnapshot = controllerv1.OperationKind_OPERATION_KIND_SNAPSHOT
)

// operate asks for one operation, with the destruction of the named confirmed.
func (r *running) operate(t *testing.T, kind controllerv1.OperationKind, guest string, destroy ...string) outcome {
	t.Helper()
	return r.ask(t.Context(), &controllerv1.ApplyRequest{Operation: &controllerv1.Operation{Kind: kind, Guest: guest}, Yes: true, Destroy: destroy})
}

// did fails the test unless all of a run was done.
func (o outcome) did(t *testing.T) {
	t.Helper()
	if o.err != nil || o.summary.GetDone() == 0 || o.summary.GetFailed()+o.summary.GetSkipped()+o.summary.GetRefused() != 0 {
		t.Fatalf("%v, %v\n%s%s", o.err, o.summary, o.texts(homelabv1.EventKind_EVENT_KIND_STEP_FAILED), o.texts(homelabv1.EventKind_EVENT_KIND_NOTE))
	}
}

func TestAnOperationNeedsASpecAndAGuestThatIsKnown(t *testing.T) {
	f := newFleet(t, hostNames(3)...)
	c := f.up()
	for _, what := range []struct {
		name string
		op   *controllerv1.Operation
		kind error
		says string
	}{
		{"no Spec yet", &controllerv1.Operation{Kind: opStart, Guest: "k3s-1"}, rpc.ErrNotFound, "hlctl apply -f homelab.yaml"},
		{"no guest", &controllerv1.Operation{Kind: opStart}, rpc.ErrInvalid, "hlctl guests"},
		{"no such operation", &controllerv1.Operation{Kind: 99, Guest: "k3s-1"}, rpc.ErrUnsupported, "hlctl version"},
	} {
		_, err := c.client.Plan(t.Context(), &controllerv1.PlanRequest{Operation: what.op})
		if !errors.Is(err, what.kind) || !strings.Contains(err.Error(), what.says) {
			t.Errorf("%s: %v", what.name, err)
		}
		if o := c.ask(t.Context(), &controllerv1.ApplyRequest{Operation: what.op, Yes: true}); !errors.Is(o.err, what.kind) {
			t.Errorf("%s: apply: %v", what.name, o.err)
		}
	}
	c.apply(t.Context(), specOf(3), "", true)
	if o := c.operate(t, opStart, "nobody"); !errors.Is(o.err, rpc.ErrNotFound) || !strings.Contains(o.err.Error(), "k3s-1, k3s-2, k3s-3") {
		t.Errorf("unknown guest: %v", o.err)
	}
	if runs, err := c.client.ListRuns(t.Context(), &controllerv1.ListRunsRequest{}); err != nil || len(runs.GetRuns()) != 1 {
		t.Errorf("runs %v, %v", runs, err)
	}
}

func TestAnOperationIsOfTheLastSpecAndLeavesItAsItIs(t *testing.T) {
	f := newFleet(t, hostNames(3)...)
	c := whole(t, f)
	before, _, err := c.store.Spec(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.operate(t, opStop, "k3s-2").did(t)
	if rec := c.guest(t, "k3s-2"); !rec.Resting {
		t.Errorf("remembered %+v", rec)
	}
	if f.agents["pve2"].asked["stop/pve2/k3s-2"].GetForce() {
		t.Error("it was not asked to shut down")
	}
	c.operate(t, opStart, "k3s-2")
	if rec := c.guest(t, "k3s-2"); rec.Resting || len(rec.Attempts) != 1 {
		t.Errorf("remembered %+v", rec)
	}
	if after, _, err := c.store.Spec(t.Context()); err != nil || !after.At.Equal(before.At) || string(after.Text) != string(before.Text) {
		t.Errorf("the Spec became %v, %v", after, err)
	}
}

func TestAGuestIsMadeAnewByName(t *testing.T) {
	f := newFleet(t, hostNames(3)...)
	c := whole(t, f)
	before := c.guest(t, "k3s-2")
	c.operate(t, opRecreate, "k3s-2").did(t)
	f.well(3, 3)
	f.anew(before, c.guest(t, "k3s-2"))
	if !f.agents["pve2"].asked["destroy/pve2/k3s-2"].GetNamed() {
		t.Error("it was not named")
	}
	if f.agents["pve2"].asked["stop/pve2/k3s-2"].GetForce() {
		t.Error("a guest that answers was not asked to shut down")
	}
}

func TestAGuestIsDeletedOnlyWhenItIsConfirmedByName(t *testing.T) {
	f := newFleet(t, hostNames(3)...)
	c := whole(t, f)
	o := c.operate(t, opDelete, "k3s-2")
	if !errors.Is(o.err, rpc.ErrRefused) || !strings.Contains(o.err.Error(), "--destroy k3s-2") || len(f.steps) != 0 {
		t.Fatalf("%v, did %v", o.err, f.steps)
	}
	before := c.guest(t, "k3s-2")
	c.operate(t, opDelete, "k3s-2", "k3s-2").did(t)
	if destroy := f.agents["pve2"].asked["destroy/pve2/k3s-2"]; !destroy.GetPurge() || !destroy.GetNamed() {
		t.Errorf("%v", destroy)
	}
	f.mu.Lock()
	holders := f.agents["pve2"].vms
	if len(f.nodes) != 2 || len(f.members) != 2 || len(holders) != 1 {
		t.Errorf("nodes %v, members %v, VMs %v", f.nodes, f.members, holders)
	}
	for _, vm := range holders {
		if vm.disks["scsi1"] != "the photos" {
			t.Errorf("left: %v", vm)
		}
	}
	f.mu.Unlock()
	if rec := c.guest(t, "k3s-2"); rec.UUID != "" {
		t.Errorf("still remembered: %+v", rec)
	}
	orphans, err := c.viewer.Orphans(t.Context(), &controllerv1.OrphansRequest{})
	if err != nil || len(orphans.GetHolders()) != 1 || orphans.GetHolders()[0].GetGuest() != "k3s-2" || len(orphans.GetHolders()[0].GetDisks()) != 1 {
		t.Errorf("%v, %v", orphans.GetHolders(), err)
	}

	// It is still in the Spec: made again it is another VM, with its data.
	c.apply(t.Context(), withDisk(), "", true).did(t)
	f.well(3, 3)
	after := c.guest(t, "k3s-2")
	if after.UUID == before.UUID || after.Generation <= before.Generation || after.Holder.UUID != "" || f.agents["pve2"].vms[202].disks["scsi1"] != "the photos" {
		t.Errorf("made again as %+v, was %+v; disks %v", after, before, f.agents["pve2"].vms[202].disks)
	}
}

func TestAGuestThatTheSpecDroppedCanBeDeleted(t *testing.T) {
	f := newFleet(t, hostNames(4)...)
	c := f.up()
	c.apply(t.Context(), specOf(4), "", true).did(t)
	text := string(specOf(4))
	text = text[:strings.Index(text, "  k3s-4:")] + text[strings.Index(text, "k3s: {version"):]
	if o := c.apply(t.Context(), []byte(text), "", true); o.err != nil || len(o.plan.GetSteps()) != 0 {
		t.Fatalf("%v, %v", o.err, o.plan)
	}
	c.operate(t, opDelete, "k3s-4", "k3s-4").did(t)
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.agents["pve4"].vms) != 0 || f.nodes["k3s-4"] != nil {
		t.Errorf("left: %v, Node %v", f.agents["pve4"].vms, f.nodes["k3s-4"])
	}
	want := f.agents["pve4"].asked["destroy/pve4/k3s-4"].GetWant()
	if want.GetNodeName() != "k3s-4" || want.GetUser() != "ubuntu" || !want.GetK3S() || len(want.GetHostKeys()) == 0 || want.GetSnippetsStorage() != "local" {
		t.Errorf("asked with %v", want)
	}
}

func TestAVMOfElsewhereIsAdoptedAndNotCountedAsOurs(t *testing.T) {
	f := newFleet(t, "pve1")
	c := f.up()
	f.agents["pve1"].vms[201] = &fakeVM{
		id: &homelabv1.Identity{Vmid: 201, Uuid: "99999999-2222-4333-8444-555555555555"}, name: "k3s-1", power: homelabv1.Power_POWER_RUNNING,
		hw: &homelabv1.Hardware{Cpus: 2, MemoryBytes: 2 << 30}, address: "10.0.0.11",
	}
	if o := c.apply(t.Context(), specOf(1), "", true); o.err != nil || o.summary.GetRefused() == 0 || f.calls != 0 {
		t.Fatalf("%v, %v", o.err, o.summary)
	}
	c.operate(t, opAdopt, "k3s-1").did(t)
	rec := c.guest(t, "k3s-1")
	if rec.Generation != 0 || rec.UUID != "99999999-2222-4333-8444-555555555555" || rec.Made || rec.User != "debian" || len(rec.HostKeys) != 1 || rec.NodeName != "k3s-1" {
		t.Errorf("remembered %+v", rec)
	}
	status, err := c.viewer.Status(t.Context(), &statusRequest{Fresh: true, Looks: true})
	if err != nil || !status.GetGuests()[0].GetAdopted() || status.GetGuests()[0].GetPolicy() != "report" {
		t.Errorf("%v, %v", status.GetGuests(), err)
	}
}

func TestAnAdoptedVMThatIsMadeAnewIsOursFromThen(t *testing.T) {
	f := newFleet(t, "pve1")
	c := f.up()
	c.apply(t.Context(), standalone(), "", true).did(t)
	if err := c.store.ForgetGuest(t.Context(), nil, "k3s-1"); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	f.agents["pve1"].vms[201].id = &homelabv1.Identity{Vmid: 201, Uuid: "99999999-2222-4333-8444-555555555555"}
	f.mu.Unlock()
	c.operate(t, opAdopt, "k3s-1").did(t)
	c.operate(t, opRecreate, "k3s-1", "k3s-1").did(t)
	rec := c.guest(t, "k3s-1")
	if rec.Generation != 1 || rec.UUID != "99999999-2222-4333-8444-555555555555" || !rec.Made || rec.User != "ubuntu" || rec.Recreating {
		t.Errorf("remembered %+v", rec)
	}
	if o := c.apply(t.Context(), standalone(), "", true); o.err != nil || len(o.plan.GetSteps()) != 0 || o.summary.GetUnchanged() != 1 {
		t.Errorf("again: %v, %v", o.err, o.plan)
	}
}

// standalone is a Spec of one guest that is no member of any cluster.
func standalone() []byte {
	text := strings.Replace(string(specOf(1)), "    k3s: {role: server}\n", "", 1)
	return []byte(strings.Replace(text, "k3s: {version: v1.35.0+k3s1}\n", "", 1))
}

func TestAMemberLeavesAndJoinsAgain(t *testing.T) {
	f := newFleet(t, hostNames(3)...)
	c := whole(t, f)
	c.operate(t, opRejoin, "k3s-2").did(t)
	f.well(3, 3)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.nodes["k3s-2"].GetUid() == "uid-2" || f.agents["pve2"].vms[202].disks["scsi1"] != "the photos" {
		t.Errorf("Node %v", f.nodes["k3s-2"])
	}
	if i := slices.Index(f.steps, "halt/pve2/k3s-2"); i < 0 || slices.Index(f.steps, "leave/pve1/k3s-2") < i {
		t.Errorf("did %v", f.steps)
	}
}

func TestSnapshotsOfAllHostsAreListedNewestFirst(t *testing.T) {
	f := newFleet(t, hostNames(3)...)
	c := whole(t, f)
	for range 2 {
		c.operate(t, opSnapshot, "").did(t)
	}
	f.stop("pve3")
	list, err := c.viewer.ListSnapshots(t.Context(), &controllerv1.ListSnapshotsRequest{})
	if err != nil || len(list.GetSnapshots()) != 2 || list.GetSnapshots()[0].GetName() != "snapshot-1" || list.GetSnapshots()[0].GetHost() != "pve1" {
		t.Fatalf("%v, %v", list, err)
	}
	if u := list.GetUnknown(); len(u) != 1 || u[0].GetHost() != "pve3" || !strings.Contains(u[0].GetText(), "agent-gone") {
		t.Errorf("not asked: %v", u)
	}
	orphans, err := c.viewer.Orphans(t.Context(), &controllerv1.OrphansRequest{})
	if err != nil || len(orphans.GetOrphans()) != 2 || orphans.GetOrphans()[1].GetHost() != "pve2" || len(orphans.GetUnknown()) != 1 {
		t.Errorf("%v, %v", orphans, err)
	}
}

func TestAnOperationWhileARunGoesOnIsRefused(t *testing.T) {
	f := newFleet(t, hostNames(3)...)
	c := whole(t, f)
	f.stopped()
	working, goOn := make(chan struct{}), make(chan struct{})
	f.at = func(when, _ string, s *homelabv1.Step) {
		if when == "before" && s.GetAction() == homelabv1.Action_ACTION_DESTROY {
			close(working)
			<-goOn
		}
	}
	first := make(chan outcome, 1)
	go func() { first <- c.apply(t.Context(), withDisk(), "", true) }()
	select {
	case <-working:
	case o := <-first:
		t.Fatalf("first ended: %v, %v", o.err, o.summary)
	}
	if o := c.operate(t, opStart, "k3s-1"); !errors.Is(o.err, rpc.ErrBusy) || !strings.Contains(o.err.Error(), "admin@admin-1") {
		t.Errorf("operation: %v", o.err)
	}
	close(goOn)
	(<-first).did(t)
	f.well(3, 3)
}

func TestAServerComesBackThroughOnesThatWereNotHealthyBeforeIt(t *testing.T) {
	f := newFleet(t, hostNames(3)...)
	c := whole(t, f)
	quorum := func(there bool) {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, name := range []string{"k3s-1", "k3s-3"} {
			f.nodes[name].Ready, f.members[name].Healthy = truth(there), truth(there)
		}
	}
	c.operate(t, opStop, "k3s-2").did(t)
	quorum(false)
	f.at = func(when, _ string, s *homelabv1.Step) {
		if when == "after" && s.GetId() == "boot/pve2/k3s-2" {
			quorum(true)
		}
	}
	c.operate(t, opStart, "k3s-2").did(t)
}
