package cli

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
)

// planned is what the controller was asked last to plan.
func (r *rig) planned() *controllerv1.PlanRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.asked) == 0 {
		return nil
	}
	return r.asked[len(r.asked)-1]
}

func TestOperationsAskForWhatTheyAreNamedAfter(t *testing.T) {
	op := func(kind controllerv1.OperationKind, guest string) *controllerv1.Operation {
		return &controllerv1.Operation{Kind: kind, Guest: guest}
	}
	for command, want := range map[string]*controllerv1.Operation{
		"guests recreate k3s-2":                     op(controllerv1.OperationKind_OPERATION_KIND_RECREATE, "k3s-2"),
		"guests delete k3s-2":                       op(controllerv1.OperationKind_OPERATION_KIND_DELETE, "k3s-2"),
		"guests adopt media":                        op(controllerv1.OperationKind_OPERATION_KIND_ADOPT, "media"),
		"guests adopt media --host pve2 --vmid 117": {Kind: controllerv1.OperationKind_OPERATION_KIND_ADOPT, Guest: "media", Host: "pve2", Vmid: 117},
		"guests start k3s-2":                        op(controllerv1.OperationKind_OPERATION_KIND_START, "k3s-2"),
		"guests stop k3s-2":                         op(controllerv1.OperationKind_OPERATION_KIND_STOP, "k3s-2"),
		"guests restart k3s-2":                      op(controllerv1.OperationKind_OPERATION_KIND_RESTART, "k3s-2"),
		"k3s join k3s-2":                            op(controllerv1.OperationKind_OPERATION_KIND_JOIN, "k3s-2"),
		"k3s remove k3s-2":                          op(controllerv1.OperationKind_OPERATION_KIND_REMOVE, "k3s-2"),
		"k3s rejoin k3s-2":                          op(controllerv1.OperationKind_OPERATION_KIND_REJOIN, "k3s-2"),
		"k3s snapshot":                              op(controllerv1.OperationKind_OPERATION_KIND_SNAPSHOT, ""),
		"orphans --delete":                          op(controllerv1.OperationKind_OPERATION_KIND_CLEAR_ORPHANS, ""),
	} {
		t.Run(command, func(t *testing.T) {
			r := newRig(t)
			r.plan = stopped()
			r.hold = func(context.Context, *controllerv1.ApplyResponse) {
				t.Error("it was carried out without being confirmed")
			}
			wants(t, r.run(strings.Fields(command)...), 1, "nothing was done", "--yes")
			wants(t, r.run(append(strings.Fields(command), "-o", "json")...), 1, "nothing was done", "--yes")
			r.hold = nil
			wants(t, r.run(append(strings.Fields(command), "--yes", "--destroy", "a,b")...), 0, "1 done")
			got := r.planned()
			if diff := cmp.Diff(want, got.GetOperation(), protocmp.Transform()); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if len(got.GetSpec()) != 0 || !cmp.Equal(got.GetDestroy(), []string{"a", "b"}) {
				t.Errorf("spec %q, destroy %q", got.GetSpec(), got.GetDestroy())
			}
		})
	}
}

func TestApplyAndPlanTellWhoIsConfirmedByName(t *testing.T) {
	r := newRig(t)
	scenes["by name"](r.fake)
	for _, command := range []string{"plan", "apply"} {
		r.run(command, "--destroy", "k3s-2")
		if got := r.planned(); !cmp.Equal(got.GetDestroy(), []string{"k3s-2"}) || got.GetOperation() != nil || len(got.GetSpec()) == 0 {
			t.Errorf("%s asked for %v", command, got)
		}
	}
}

func TestUnconfirmedNameReachesNobody(t *testing.T) {
	r := newRig(t)
	scenes["by name"](r.fake)
	r.plan.ByName = []string{"k3s-2", "media"}
	r.hold = func(context.Context, *controllerv1.ApplyResponse) { t.Error("apply was called") }
	wants(t, r.run("apply", "--yes"), 1, "--yes does not confirm that k3s-2 and media are destroyed", "--destroy k3s-2 --destroy media")
	wants(t, r.run("apply", "--yes", "--destroy", "k3s-2"), 1, "--yes does not confirm that media is destroyed")
	typed := func(text string) ran {
		return r.runWith(t.Context(), strings.NewReader(text), func(a *app) { a.inIsTerm = true }, "apply")
	}
	wants(t, typed("k3s-2\nk3s-2\n"), 1, `nothing was done: "k3s-2" is not media`)
	wants(t, typed("k3s-2\n"), 1, `nothing was done: "" is not media`)
	wants(t, typed("yes\n"), 1, `nothing was done: "yes" is not k3s-2`)
	r.hold = nil
	wants(t, typed("k3s-2\nmedia\n"), 3, "recreated and joined")
}

func TestNamesAreAskedAgainForAnotherPlan(t *testing.T) {
	r := newRig(t)
	scenes["by name"](r.fake)
	other := byName(recreation())
	other.Digest = "another"
	r.drifts = []*homelabv1.Plan{other}
	got := r.runWith(t.Context(), strings.NewReader("k3s-2\n\n"), func(a *app) { a.inIsTerm = true }, "apply")
	wants(t, got, 1, "The world changed", `nothing was done: "" is not k3s-2`)
}

func TestYesPlansAgainOnce(t *testing.T) {
	r := newRig(t)
	one, two, three := recreation(), recreation(), recreation()
	two.Digest, three.Digest = "second", "third"
	r.plan, r.drifts = one, []*homelabv1.Plan{two}
	wants(t, r.run("apply", "--yes"), 3, "The world changed", "recreated and joined")
	r.plan, r.drifts = one, []*homelabv1.Plan{two, three}
	wants(t, r.run("apply", "--yes"), 1, "it changed again and again")
	r.plan, r.drifts = ripening(), []*homelabv1.Plan{two, three}
	wants(t, r.run("apply", "--yes"), 3, "The wait is over", "The world changed", "recreated and joined")
	r.plan, r.drifts = ripening(), []*homelabv1.Plan{two, three, one}
	wants(t, r.run("apply", "--yes"), 1, "it changed again and again")
}

// A controller that begins what was not confirmed is left before it is shown.
func TestRunThatDestroysMoreIsLeft(t *testing.T) {
	r := newRig(t)
	r.plan, r.drifts, r.rash = partial(), []*homelabv1.Plan{recreation()}, true
	left := make(chan struct{})
	r.hold = func(ctx context.Context, part *controllerv1.ApplyResponse) {
		switch {
		case part.GetPlan() != nil:
			context.AfterFunc(ctx, func() { close(left) }) // maybe before any step is told
		case part.GetEvent().GetKind() == homelabv1.EventKind_EVENT_KIND_STEP_STARTED:
			<-ctx.Done()
		}
	}
	wants(t, r.run("apply", "--yes"), 1, "destroys more than the one that was confirmed (of k3s-2)")
	<-left
}

func TestDestroysMore(t *testing.T) {
	destroy := func(host, guest string, vmid int32) *homelabv1.Step {
		s := step("destroy/"+host+"/"+guest, "stopped")
		s.Vmid = vmid
		return s
	}
	forget := destroy("pve1", "gone", 0)
	forget.Destroys = false
	undo := step("rollback/pve1/a", "cut off")
	undo.Vmid = 201
	flagged := &homelabv1.Step{Id: "x", Action: homelabv1.Action_ACTION_CLEAN, Guest: "b", Host: "pve1", Vmid: 202, Destroys: true}
	waiting := &homelabv1.Plan{Notes: []*homelabv1.Note{note(homelabv1.NoteKind_NOTE_KIND_WAITING, "a", "pve1", "silent")}}
	for name, c := range map[string]struct {
		shown, now *homelabv1.Plan
		want       string
	}{
		"nothing":                 {named(""), named(""), ""},
		"the same":                {named("", destroy("pve1", "a", 201)), named("", destroy("pve1", "a", 201)), ""},
		"less":                    {named("", destroy("pve1", "a", 201)), named(""), ""},
		"the rest of the same VM": {named("", destroy("pve1", "a", 201)), named("", undo), ""},
		"one more":                {named("", destroy("pve1", "a", 201)), named("", destroy("pve1", "a", 201), destroy("pve1", "b", 202)), "b"},
		"another instead":         {named("", destroy("pve1", "a", 201)), named("", destroy("pve1", "b", 202)), "b"},
		"another VM of the guest": {named("", destroy("pve1", "a", 201)), named("", destroy("pve1", "a", 301)), "a"},
		"on another host":         {named("", destroy("pve1", "a", 201)), named("", destroy("pve2", "a", 201)), "a"},
		"any step that destroys":  {named(""), named("", flagged), "b"},
		"what a wait announced":   {waiting, named("", destroy("pve1", "a", 201)), ""},
		"what no wait announced":  {waiting, named("", destroy("pve1", "a", 201), destroy("pve1", "b", 202)), "b"},
		"what is only forgotten":  {named(""), named("", forget), ""},
		"what somebody works on":  {&homelabv1.Plan{Notes: []*homelabv1.Note{note(homelabv1.NoteKind_NOTE_KIND_BUSY, "a", "pve1", "in flight")}}, named("", destroy("pve1", "a", 201)), ""},
		"what is only skipped":    {&homelabv1.Plan{Notes: []*homelabv1.Note{silentNote("a", "pve1")}}, named("", destroy("pve1", "a", 201)), "a"},
		"two":                     {named(""), named("", destroy("pve1", "b", 202), destroy("pve1", "a", 201)), "a and b"},
	} {
		if got := destroysMore(c.shown, c.now); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestEveryActionHasWords(t *testing.T) {
	for number, name := range homelabv1.Action_name {
		act := homelabv1.Action(number)
		if act == homelabv1.Action_ACTION_UNSPECIFIED {
			continue
		}
		words := actions[act]
		if words.word == "" || words.doing == "" || words.done == "" || len(words.word) > 11 || len(words.doing) > phaseWidth {
			t.Errorf("%s has the words %+v", name, words)
		}
		d := deedOf([]*homelabv1.Step{{Action: act}})
		if d == nil || d.mark == "" || d.did == "" || len(d.word) > 11 {
			t.Errorf("%s alone is the deed %+v", name, d)
		}
	}
	for number, name := range homelabv1.NoteKind_name {
		kind := homelabv1.NoteKind(number)
		if kind == homelabv1.NoteKind_NOTE_KIND_UNSPECIFIED || kind == homelabv1.NoteKind_NOTE_KIND_UNCHANGED {
			continue
		}
		if notes[kind].word == "" {
			t.Errorf("%s has no word", name)
		}
	}
}

func TestWhatHappensToAGuestAsAWhole(t *testing.T) {
	for _, c := range []struct{ verbs, word, did string }{
		{"destroy create start boot", "recreate", "recreated"},
		{"snapshot save drain stop leave destroy create start boot join soak", "recreate", "recreated and joined"},
		{"stop destroy", "delete", "deleted"},
		{"snapshot drain stop leave detach destroy", "delete", "deleted"},
		{"rollback create start boot", "roll back", "created"},
		{"rollback", "roll back", "rolled back"},
		{"fetch create start boot init", "create", "created, new cluster"},
		{"create start boot join verify", "create", "created and joined"},
		{"leave create start boot join", "create", "created and joined"},
		{"drain halt leave clean", "leave", "left the cluster"},
		{"leave", "leave", "left the cluster"},
		{"drain halt leave clean join", "rejoin", "rejoined"},
		{"clean join", "join", "cleaned of k3s and joined"},
		{"join verify", "join", "joined"},
		{"stop start boot", "restart", "restarted"},
		{"stop start boot join", "restart", "restarted and joined"},
		{"stop", "stop", "stopped"},
		{"reset boot join", "reset", "reset and joined"},
		{"resume boot", "resume", "resumed"},
		{"adopt", "adopt", "adopted"},
		{"snapshot", "snapshot", "snapshot taken"},
		{"attach start boot", "start", "started"},
		{"attach", "attach", "data disks attached"},
	} {
		g := &progress{guest: "a"}
		for _, verb := range strings.Fields(c.verbs) {
			s := step(verb+"/pve1/a", "")
			g.steps = append(g.steps, s)
			if s.GetAction() != homelabv1.Action_ACTION_FETCH {
				g.done = append(g.done, s.GetAction())
			}
		}
		if got := deedOf(g.steps).word; got != c.word {
			t.Errorf("%s: %s, want %s", c.verbs, got, c.word)
		}
		if got := g.deeds(); got != c.did {
			t.Errorf("%s: %s, want %s", c.verbs, got, c.did)
		}
	}
}

// A snapshot may be a step of no guest, and an empty holder one that goes.
func TestStepsOfNoGuest(t *testing.T) {
	r := newRig(t)
	r.plan = snapshotPlan()
	r.plan.Steps[0].Guest = ""
	wants(t, r.run("k3s", "snapshot", "--yes"), 0, "pve1\n  + snapshot    asked for", "1 snapshot to take.", "pve1  snapshot taken  0:02")

	holder := step("destroy/pve3/k3s-3", "it holds nothing")
	holder.Vmid, holder.HolderVmid = 9003, 9003
	r.plan = named("holder", holder)
	got := r.run("orphans", "--delete")
	wants(t, got, 1, "destroys the empty holder VM 9003")
	if strings.Contains(got.out, "system disk") {
		t.Errorf("a holder has none:\n%s", got.out)
	}
}

// A guest that is gone is forgotten, and nothing is destroyed.
func TestDeletionOfWhatIsGone(t *testing.T) {
	r := newRig(t)
	s := step("destroy/pve2/k3s-2", "there is no VM of it; what is remembered of it is forgotten")
	s.Destroys = false
	r.plan = byName(named("gone", s))
	got := r.run("guests", "delete", "k3s-2", "--yes", "--destroy", "k3s-2")
	wants(t, got, 0, "! delete      there is no VM of it", "k3s-2  deleted")
	if strings.Contains(got.out, "destroys") {
		t.Errorf("nothing is destroyed:\n%s", got.out)
	}
}

func TestOperationThatIsNothingToDoSaysWhy(t *testing.T) {
	r := newRig(t)
	r.plan = &homelabv1.Plan{Digest: "x", Notes: []*homelabv1.Note{note(homelabv1.NoteKind_NOTE_KIND_INFO, "k3s-2", "pve2", "it runs already")}}
	got := r.run("guests", "start", "k3s-2")
	wants(t, got, 0, "k3s-2: it runs already\nNothing to do.")
	if strings.Contains(got.out, "healthy") {
		t.Errorf("nobody said so:\n%s", got.out)
	}
}

// A plan without steps is not shown before it is carried out.
func TestApplyWithNothingToDoSaysWhatIsLeftAsItIs(t *testing.T) {
	const drift, told = "differs from the Spec: memory 4 GiB, wanted 5 GiB", "k3s-2: differs from the Spec: memory 4 GiB, wanted 5 GiB\n"
	r := newRig(t)
	r.plan = healthyPlan()
	r.plan.Notes = append(r.plan.Notes, note(homelabv1.NoteKind_NOTE_KIND_INFO, "k3s-2", "pve2", drift))
	wants(t, r.run("apply", "--yes"), 0, told+"All 5 guests healthy, nothing to do.")

	r.plan.Notes = append(r.plan.Notes, silentNote("k3s-6", "pve6"))
	wants(t, r.run("apply", "--yes"), 3, told+"k3s-6  skipped")

	// Where there are steps the plan has said so already.
	r.plan = partial()
	r.plan.Notes = append(r.plan.Notes, note(homelabv1.NoteKind_NOTE_KIND_INFO, "k3s-2", "pve2", drift))
	got := r.run("apply", "--yes")
	wants(t, got, 3, drift)
	if strings.Count(got.out, drift) != 1 {
		t.Errorf("said twice:\n%s", got.out)
	}
}

func TestQuorumText(t *testing.T) {
	for _, c := range []struct {
		voters, healthy, quorum, left int32
		want                          string
	}{
		{0, 0, 0, 0, "The voters are not known, so whether one may fail is not either."},
		{1, 1, 1, 0, "1 voter, 1 healthy, 1 needed: none may fail; with the only server the cluster stops."},
		{2, 2, 2, 0, "2 voters, 2 healthy, 2 needed: none may fail; the next loss of a voter stops the cluster."},
		{3, 3, 2, 1, "3 voters, 3 healthy, 2 needed: 1 may fail; after that the next loss stops the cluster."},
		{5, 5, 3, 2, "5 voters, 5 healthy, 3 needed: 2 may fail; after the next loss 1 still may."},
		{5, 1, 3, -2, "5 voters, 1 healthy, 3 needed: the quorum is lost; nothing in the cluster can change until 2 more are back."},
	} {
		got := quorumText(&controllerv1.ClusterStatus{Voters: c.voters, HealthyVoters: c.healthy, Quorum: c.quorum, MayFail: c.left})
		if got != c.want {
			t.Errorf("%d of %d: %q\nwant %q", c.healthy, c.voters, got, c.want)
		}
	}
}

func TestPausedIsToldFirst(t *testing.T) {
	r := newRig(t)
	scenes["sick"](r.fake)
	r.status = proto.CloneOf(r.status)
	wants(t, r.run("pause"), 0, "Paused: by admin@laptop since 14:02", "hlctl resume")
	lines := strings.Split(r.run("status").out, "\n")
	if !strings.HasPrefix(lines[1], "! paused: by admin@laptop since 14:02") || !strings.Contains(lines[1], "hlctl resume") {
		t.Errorf("second line: %s", lines[1])
	}
	wants(t, r.run("resume"), 0, "Changes go on.")
	if got := r.run("status"); strings.Contains(got.out, "paused") {
		t.Errorf("it is still said:\n%s", got.out)
	}
}

func TestSilentAPIIsExitThree(t *testing.T) {
	r := newRig(t)
	scenes["api silent"](r.fake)
	for _, command := range []string{"k3s status", "k3s members", "k3s status -o json"} {
		wants(t, r.run(strings.Fields(command)...), 3, "the k3s API did not answer: no server could be asked")
	}
	wants(t, r.run("status"), 0, "the k3s API did not answer")
}
