package plan

import (
	"slices"
	"time"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// Blocked is why a step that takes something away must not be carried out now;
// empty when it may. The controller asks with a fresh observation right before it
// sends one: the plan is as old as the steps before it. It is for the actions
// STOP, HALT, LEAVE, DETACH, DESTROY and RESET; of others it says nothing.
func Blocked(want Want, seen Seen, s *homelabv1.Step, now time.Time) string {
	return blocked(want, seen, s, now).text
}

// BlockedAgain is Blocked for a step that was sent before and did not end: what is
// at work on the VM is what it began.
func BlockedAgain(want Want, seen Seen, s *homelabv1.Step, now time.Time) string {
	v := blocked(want, seen, s, now)
	if v.kind == homelabv1.NoteKind_NOTE_KIND_BUSY {
		return ""
	}
	return v.text
}

func blocked(want Want, seen Seen, s *homelabv1.Step, now time.Time) verdict {
	switch s.GetAction() {
	case homelabv1.Action_ACTION_STOP, homelabv1.Action_ACTION_HALT, homelabv1.Action_ACTION_LEAVE,
		homelabv1.Action_ACTION_DETACH, homelabv1.Action_ACTION_DESTROY, homelabv1.Action_ACTION_RESET:
	default:
		return verdict{}
	}
	m := newModel(want, seen, now)
	g := m.view(s.GetGuest())
	if g == nil {
		return refused("nothing is known of " + s.GetGuest() + " any more")
	}
	return m.blocks(g, s)
}

func (m *model) blocks(g *guestView, s *homelabv1.Step) verdict {
	op := OperationKind("")
	if m.want.Operation != nil {
		op = m.want.Operation.Kind
	}
	leaves := s.GetAction() == homelabv1.Action_ACTION_LEAVE
	switch {
	case leaves && (g.vm == nil || g.situation != Stopped || op == OpRemove || op == OpRejoin):
		return m.blocksLeave(g, s)
	case s.GetAction() == homelabv1.Action_ACTION_DESTROY && g.vm == nil && g.situation == Absent:
		return verdict{} // gone is destroyed
	case g.vm == nil && g.why.against():
		return g.why
	case g.vm == nil:
		return refused("its VM is not there any more")
	case s.GetUuid() != "" && g.vm.GetUuid() != s.GetUuid(), g.owner.Generation != s.GetGeneration():
		return refused("its VM is another one than was planned for")
	}
	switch op {
	case OpStop:
		return m.allowed(g)
	case OpRestart, OpRemove, OpRejoin:
		v := m.allowed(g)
		if !v.against() && m.inCluster(g) {
			_, v = m.leave(g)
		}
		return v
	}
	if s.GetAction() == homelabv1.Action_ACTION_RESET {
		return m.allowed(g)
	}
	what := makeAnew
	if op == OpDelete {
		what = makeNever
	}
	_, v := m.mayDestroy(g, what, m.want.Destroy[g.name] || op == OpRecreate || op == OpDelete)
	if !v.against() && op == "" && s.GetAction() == homelabv1.Action_ACTION_STOP && !m.stillSick(g) && (g.situation != Stopped || !g.mem.Recreating) {
		v = skipped("it is well again: " + m.unwellText(m.condition(g)))
	}
	return v
}

// stillSick says whether what a recreation was planned for is so still. Once its
// VM is stopped by us it is.
func (m *model) stillSick(g *guestView) bool {
	r, _ := m.remedy(g)
	return r == remedyRecreate
}

// blocksLeave is about what the cluster holds of a guest whose VM is not there,
// is stopped, or has its k3s stopped.
func (m *model) blocksLeave(g *guestView, s *homelabv1.Step) verdict {
	l, v := m.leave(g)
	switch {
	case v.against():
		return v
	case !l.in():
		return verdict{}
	case s.GetMemberId() != "" && l.member != nil && l.member.GetId() != s.GetMemberId():
		return refused("its etcd member is another one than was planned for")
	case m.want.Operation != nil && (m.want.Operation.Kind == OpRemove || m.want.Operation.Kind == OpRejoin):
		return m.strangeLearner(g) // its k3s was stopped for that
	}
	// Else what leaves is of an earlier VM of it, or its VM was stopped and runs again.
	if state, why := m.membership(g); g.vm != nil && state != memberStale {
		return skipped("its VM runs, and what the cluster holds of it may be its own" + because(&homelabv1.Fact{Reason: why}))
	}
	if !l.vacant() {
		return skipped("what the cluster holds of it is served still: another machine may have its name")
	}
	return m.strangeLearner(g)
}

// onlyHealing leaves of a plan what unwell guests need, and what such steps wait
// for.
func (m *model) onlyHealing() {
	needed := map[string]bool{}
	byID := map[string]*homelabv1.Step{}
	for _, s := range m.steps {
		byID[s.GetId()] = s
	}
	var need func(s *homelabv1.Step)
	need = func(s *homelabv1.Step) {
		if s == nil || needed[s.GetId()] {
			return
		}
		needed[s.GetId()] = true
		for _, id := range s.GetAfter() {
			need(byID[id])
		}
	}
	for _, s := range m.steps {
		if g := m.byName[s.GetGuest()]; g != nil && g.heals() {
			need(s)
		}
	}
	m.steps = slices.DeleteFunc(m.steps, func(s *homelabv1.Step) bool { return !needed[s.GetId()] })
}

// heals says whether what a plan does for a guest brings back one that was well:
// its remedy, its start, or the end of a recreation that was begun.
func (g *guestView) heals() bool {
	switch g.situation {
	case Absent, HalfBuilt, Unfinished:
		return g.mem.Recreating || len(g.held) > 0
	case Stopped, Paused, Booting, Booted:
		return g.healed || g.onceWell() || g.mem.Recreating
	}
	return false
}
