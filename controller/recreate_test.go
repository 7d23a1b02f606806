package controller

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/homeiac/homelab/controller/plan"
	"github.com/homeiac/homelab/controller/store"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/mark"
)

// withDisk is a Spec of three servers that are made anew when they are unwell, the
// second with a data disk.
func withDisk() []byte {
	text := strings.Replace(string(specOf(3)), "  user: ubuntu\n", "  user: ubuntu\n  onUnhealthy: recreate\n", 1)
	return []byte(strings.Replace(text, "    vmid: 202\n", "    vmid: 202\n    dataDisks: [{slot: scsi1, storage: disks, size: 1GiB}]\n", 1))
}

// whole makes the three servers of withDisk, and has them remembered.
func whole(t *testing.T, f *fleet) *running {
	t.Helper()
	c := f.up()
	if o := c.apply(t.Context(), withDisk(), "", true); o.err != nil || o.summary.GetFailed()+o.summary.GetSkipped()+o.summary.GetRefused() != 0 {
		t.Fatalf("%v, %v\n%s", o.err, o.summary, o.texts(homelabv1.EventKind_EVENT_KIND_STEP_FAILED))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.agents["pve2"].vms[202].disks["scsi1"] = "the photos"
	f.steps = nil
	return c
}

// stopped has somebody stop the second server.
func (f *fleet) stopped() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.powerOff(f.agents["pve2"].vms[202])
}

// anew fails the test unless the second server was made anew: the same machine to
// everybody, with its data, and nothing left behind.
func (f *fleet) anew(before store.Guest, after store.Guest) {
	f.t.Helper()
	f.mu.Lock()
	vm := f.agents["pve2"].vms[202]
	f.mu.Unlock()
	if after.UUID != before.UUID || after.VMID != before.VMID || after.Host != before.Host || !cmp.Equal(after.MACs, before.MACs) {
		f.t.Errorf("it became another one: %+v, was %+v", after, before)
	}
	generation, err := mark.Verify(f.key(), fleetName, "k3s-2", 202, before.UUID, vm.id.GetMark())
	if err != nil || generation != before.Generation+1 || after.Generation != generation {
		f.t.Errorf("generation %d, remembered %d, %v", generation, after.Generation, err)
	}
	if vm.disks["scsi1"] != "the photos" {
		f.t.Errorf("its data disk holds %q", vm.disks["scsi1"])
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.agents["pve2"].vms) != 1 {
		f.t.Errorf("left behind: %v", slices.Collect(maps.Keys(f.agents["pve2"].vms)))
	}
	if n := f.nodes["k3s-2"]; n.GetUid() == "uid-2" || !yes(n.GetReady()) {
		f.t.Errorf("Node %v", n)
	}
	if after.Holder != (store.HolderVM{}) || after.Recreating || !after.Joined || after.ReadyAt.IsZero() || after.Failures != 0 || len(after.Attempts) != 0 {
		f.t.Errorf("remembered %+v", after)
	}
}

func (r *running) guest(t *testing.T, name string) store.Guest {
	t.Helper()
	guests, err := r.store.Guests(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return guests[name]
}

func TestAStoppedServerIsMadeAnewWithItsIdentityAndItsData(t *testing.T) {
	f := newFleet(t, hostNames(3)...)
	c := whole(t, f)
	before := c.guest(t, "k3s-2")
	f.stopped()
	o := c.apply(t.Context(), withDisk(), "", true)
	if o.err != nil || o.summary.GetFailed()+o.summary.GetSkipped()+o.summary.GetRefused() != 0 {
		t.Fatalf("%v, %v\n%s%s", o.err, o.summary, o.texts(homelabv1.EventKind_EVENT_KIND_STEP_FAILED), o.texts(homelabv1.EventKind_EVENT_KIND_NOTE))
	}
	f.well(3, 3)
	after := c.guest(t, "k3s-2")
	f.anew(before, after)
	if after.SavedConfig == "" || after.SavedAt.IsZero() || len(after.Volumes) != 1 {
		t.Errorf("what was saved: %q at %s, volumes %v", after.SavedConfig, after.SavedAt, after.Volumes)
	}
	a := f.agents["pve2"].asked
	stop, destroy, create := a["stop/pve2/k3s-2"], a["destroy/pve2/k3s-2"], a["create/pve2/k3s-2"]
	detach, attach := a["detach/pve2/k3s-2"], a["attach/pve2/k3s-2"]
	if !stop.GetForce() || destroy.GetNamed() || destroy.GetPurge() || len(destroy.GetDataDisks()) != 1 {
		t.Errorf("stop %v\ndestroy %v", stop, destroy)
	}
	if destroy.GetWant().GetIdentity().GetGeneration() != 1 || create.GetWant().GetIdentity().GetGeneration() != 2 || len(create.GetWant().GetHardware().GetDataDisks()) != 0 {
		t.Errorf("destroys %v\ncreates %v", destroy.GetWant().GetIdentity(), create.GetWant())
	}
	if h := detach.GetHolder(); h.GetGuest() != "holder@k3s-2" || h.GetUuid() == before.UUID || !cmp.Equal(h.GetMark(), attach.GetHolder().GetMark()) {
		t.Errorf("holder %v, then %v", h, attach.GetHolder())
	}
	if d := attach.GetDataDisks(); len(d) != 1 || d[0].GetStorage() != "local" || d[0].GetSizeBytes() != 1<<30 {
		t.Errorf("disks %v", d)
	}
	leave := f.agents["pve1"].asked["leave/pve1/k3s-2"]
	if m := leave.GetMember(); leave.GetThrough().GetIdentity().GetGuest() != "k3s-1" || m.GetNodeUid() != "uid-2" || m.GetEtcdId() == "" || m.GetNeeded() == 0 {
		t.Errorf("leave %v", leave)
	}
	calls := f.calls
	if o := c.apply(t.Context(), withDisk(), "", true); o.err != nil || len(o.plan.GetSteps()) != 0 || f.calls != calls {
		t.Errorf("again: %v, %v", o.err, o.plan)
	}
}

func TestAGuestThatIsMuteIsWaitedForAndThenMadeAnew(t *testing.T) {
	f := newFleet(t, hostNames(3)...)
	c := whole(t, f)
	before := c.guest(t, "k3s-2")
	text := []byte(strings.Replace(string(withDisk()), "  user: ubuntu\n", "  user: ubuntu\n  timeouts: {unwellAfter: 1s}\n", 1))
	if o := c.apply(t.Context(), text, "", true); o.err != nil || len(o.plan.GetSteps()) != 0 {
		t.Fatalf("%v, %v", o.err, o.plan)
	}
	f.mu.Lock()
	vm := f.agents["pve2"].vms[202]
	vm.mute = true
	f.unserved(vm)
	f.mu.Unlock()
	o := c.apply(t.Context(), text, "", true)
	o.did(t)
	if waiting := o.texts(homelabv1.EventKind_EVENT_KIND_WAITING); strings.Count(waiting, "\n") != 1 || !strings.Contains(waiting, "unwellAfter") {
		t.Errorf("told %q", waiting)
	}
	if !f.agents["pve2"].asked["stop/pve2/k3s-2"].GetForce() {
		t.Error("a guest that hangs was asked to shut down")
	}
	f.well(3, 3)
	f.anew(before, c.guest(t, "k3s-2"))
	if h, err := c.store.Histories(t.Context()); err != nil || slices.ContainsFunc(h["k3s-2"], func(s plan.Sighting) bool { return s.Signal == plan.SignalSilent }) {
		t.Errorf("what was seen of the one before is held against it: %v, %v", h["k3s-2"], err)
	}
}

func TestARecreationKilledAtAnyStepBoundaryIsFinishedByTheNextApply(t *testing.T) {
	var boundaries []string
	{
		f := newFleet(t, hostNames(3)...)
		c := whole(t, f)
		f.stopped()
		c.apply(t.Context(), withDisk(), "", true)
		for _, s := range f.steps {
			if !strings.HasPrefix(s, "takeback/") {
				// An agent ends its step also when nobody waits for it: its answer is lost.
				boundaries = append(boundaries, "after "+s)
			}
		}
	}
	if len(boundaries) < 11 {
		t.Fatalf("boundaries %v", boundaries)
	}
	for _, boundary := range boundaries {
		t.Run(strings.ReplaceAll(boundary, "/", "-"), func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, hostNames(3)...)
			c := whole(t, f)
			before := c.guest(t, "k3s-2")
			f.stopped()
			killed := make(chan struct{})
			f.at = func(when, _ string, s *homelabv1.Step) {
				if when+" "+s.GetId() == boundary {
					select {
					case <-killed:
					default:
						close(killed)
						c.end()
					}
				}
			}
			o := c.apply(t.Context(), withDisk(), "", true)
			select {
			case <-killed:
			default:
				t.Fatalf("never came to it: %v, %v", o.err, o.summary)
			}
			c.kill()
			c = f.up()
			o = c.apply(t.Context(), withDisk(), "", true)
			if o.err != nil || o.summary.GetFailed()+o.summary.GetSkipped()+o.summary.GetRefused() != 0 {
				t.Fatalf("next apply: %v, %v\n%s%s", o.err, o.summary, o.texts(homelabv1.EventKind_EVENT_KIND_STEP_FAILED), o.texts(homelabv1.EventKind_EVENT_KIND_NOTE))
			}
			f.well(3, 3)
			f.anew(before, c.guest(t, "k3s-2"))
			calls := f.calls
			if o := c.apply(t.Context(), withDisk(), "", true); o.err != nil || len(o.plan.GetSteps()) != 0 || f.calls != calls {
				t.Errorf("the one after: %v, %v", o.err, o.plan)
			}
		})
	}
}

func TestAnAgentKilledAtAnyStepBoundaryOfARecreationIsWaitedFor(t *testing.T) {
	for _, verb := range []string{"snapshot", "save", "stop", "leave", "detach", "destroy", "create", "attach", "start", "boot", "join"} {
		t.Run(verb, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, hostNames(3)...)
			c := whole(t, f)
			before := c.guest(t, "k3s-2")
			f.stopped()
			restarted := make(chan struct{})
			f.at = func(when, host string, s *homelabv1.Step) {
				if when == "after" && verbOf(s) == verb {
					select {
					case <-restarted:
					default:
						close(restarted)
						f.stop(host) // the answer is lost
						f.start(host)
					}
				}
			}
			c.apply(t.Context(), withDisk(), "", true).did(t)
			select {
			case <-restarted:
			default:
				t.Fatal("never came to it")
			}
			f.well(3, 3)
			f.anew(before, c.guest(t, "k3s-2"))
		})
	}
}

func TestWhatSpeaksAgainstAStepIsSeenRightBeforeIt(t *testing.T) {
	f := newFleet(t, hostNames(3)...)
	c := whole(t, f)
	f.stopped()
	f.at = func(when, _ string, s *homelabv1.Step) {
		if when == "after" && s.GetAction() == homelabv1.Action_ACTION_STOP {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.members["k3s-3"].Healthy = noFact() // the quorum is gone by now
		}
	}
	o := c.apply(t.Context(), withDisk(), "", true)
	if o.err != nil || o.summary.GetFailed() != 1 {
		t.Fatalf("%v, %v\n%s", o.err, o.summary, o.texts(homelabv1.EventKind_EVENT_KIND_STEP_FAILED))
	}
	if failed := o.texts(homelabv1.EventKind_EVENT_KIND_STEP_FAILED); !strings.Contains(failed, "quorum") {
		t.Errorf("failed: %s", failed)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if vm := f.agents["pve2"].vms[202]; vm == nil || vm.disks["scsi1"] != "the photos" || len(f.members) != 3 {
		t.Errorf("VM %v, members %v", vm, f.members)
	}
}

// A stop whose answer was lost is not sent again before it was looked once more: the
// guest may have got well meanwhile, or be needed.
func TestWhatSpeaksAgainstAStopIsSeenAgainWhenItIsRepeated(t *testing.T) {
	f := newFleet(t, hostNames(3)...)
	c := whole(t, f)
	sent := 0
	f.at = func(when, host string, s *homelabv1.Step) {
		if when == "before" && s.GetAction() == homelabv1.Action_ACTION_STOP {
			if sent++; sent == 1 {
				f.mu.Lock()
				f.members["k3s-3"].Healthy = noFact()
				f.mu.Unlock()
				f.stop(host) // its answer is lost
				f.start(host)
			}
		}
	}
	o := c.operate(t, opRecreate, "k3s-2")
	f.mu.Lock()
	defer f.mu.Unlock()
	if failed := o.texts(homelabv1.EventKind_EVENT_KIND_STEP_FAILED); sent != 1 || !strings.Contains(failed, "quorum") {
		t.Errorf("sent %d times: %v, failed: %s", sent, o.err, failed)
	}
}

func TestAPauseInTheMiddleBeginsNoNewStep(t *testing.T) {
	f := newFleet(t, hostNames(3)...)
	c := whole(t, f)
	f.stopped()
	var paused string
	f.at = func(when, _ string, s *homelabv1.Step) {
		if when == "before" && s.GetAction() == homelabv1.Action_ACTION_SAVE {
			paused = c.pauseNow(t, "the cat is on the rack")
		}
	}
	o := c.apply(t.Context(), withDisk(), "", true)
	skipped := o.texts(homelabv1.EventKind_EVENT_KIND_STEP_SKIPPED)
	if o.err != nil || o.summary.GetFailed() != 0 || o.summary.GetSkipped() == 0 || !strings.Contains(skipped, "paused: the cat is on the rack (by admin@admin-1") || !strings.Contains(skipped, "hlctl resume") {
		t.Fatalf("%v, %v\n%s", o.err, o.summary, skipped)
	}
	f.at = func(string, string, *homelabv1.Step) {}
	if slices.Contains(f.steps, "stop/pve2/k3s-2") || !slices.Contains(f.steps, "save/pve2/k3s-2") {
		t.Errorf("did %v", f.steps)
	}
	calls := f.calls
	if o := c.apply(t.Context(), withDisk(), "", true); o.err != nil || len(o.plan.GetSteps()) != 0 || f.calls != calls {
		t.Errorf("while paused: %v, %v", o.err, o.plan)
	}
	status, err := c.viewer.Status(t.Context(), &statusRequest{})
	if err != nil || status.GetPaused() != paused {
		t.Errorf("status says %q, the pause %q; %v", status.GetPaused(), paused, err)
	}
	c.resumeNow(t, "")
	if o := c.apply(t.Context(), withDisk(), "", true); o.err != nil || o.summary.GetFailed()+o.summary.GetSkipped()+o.summary.GetRefused() != 0 {
		t.Errorf("resumed: %v, %v", o.err, o.summary)
	}
	f.well(3, 3)
}
