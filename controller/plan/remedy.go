package plan

import (
	"fmt"
	"slices"
	"time"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/spec"
)

// remedy is what is done about an unwell guest.
type remedy string

const (
	remedyNone     remedy = ""
	remedyStart    remedy = "start"
	remedyResume   remedy = "resume"
	remedyReset    remedy = "reset"
	remedyRecreate remedy = "recreate"
)

// Back-off of rule 11, for recreations that did not end well.
const (
	backOffFirst = 5 * time.Minute
	parkAfter    = 3
)

// adopted says that the VM was made elsewhere and taken over.
func (g *guestView) adopted() bool { return g.vm != nil && g.owner.Ours && g.owner.Generation == 0 }

// policy is what may be done to the guest when it is unwell. An adopted one is
// only reported, unless its own entry says otherwise.
func (g *guestView) policy() spec.Policy {
	if g.adopted() && !g.want.Own["onUnhealthy"] {
		return spec.PolicyReport
	}
	return g.want.OnUnhealthy
}

// onceWell says that this very VM is known to have been well once. Only of such
// a one it can be said that it became unwell; any other one is started first.
func (g *guestView) onceWell() bool {
	if g.vm == nil || g.mem.UUID != g.vm.GetUuid() || g.mem.Generation != g.owner.Generation {
		return false
	}
	return !g.mem.ReadyAt.IsZero() || g.remembered() && (g.mem.Joined || g.mem.MachineID != "")
}

// remedy chooses what is done about a guest that is unwell, by its policy. The
// verdict is why nothing is done, or not yet.
func (m *model) remedy(g *guestView) (remedy, verdict) {
	r, v := m.choose(g)
	if r != remedyStart {
		return r, v
	}
	switch why := m.outcast(g); {
	case why != "" && g.mem.Recreating:
		return remedyRecreate, v // what was begun is ended
	case why != "":
		return remedyNone, refused(why)
	}
	return r, v
}

func (m *model) choose(g *guestView) (remedy, verdict) {
	c := m.condition(g)
	// A VM that was made elsewhere may have been stopped for a reason before it was adopted.
	unborn := !g.onceWell() && (!g.adopted() || g.policy() != spec.PolicyReport)
	if g.situation == Stopped && (g.host.fresh() || g.mem.Resting || unborn) {
		return remedyStart, verdict{}
	}
	if c.health != Unwell || g.situation == Booted && !actionable(c.signal) {
		return remedyNone, verdict{} // what there is to say of its membership is said where members join
	}
	if g.want.IsMember() && m.spec.K3s != nil && !m.existing() {
		if g.situation == Stopped {
			return remedyStart, verdict{}
		}
		if g.situation == Booting {
			return remedyNone, verdict{} // it is waited for
		}
		return remedyNone, skipped(m.unwellText(c) + "; there is no cluster yet that it could come back to")
	}
	if c.signal == "" {
		return remedyNone, verdict{}
	}
	policy := g.policy()
	if m.want.Destroy[g.name] {
		policy = spec.PolicyRecreate
	}
	text := m.unwellText(c)
	switch {
	case !actionable(c.signal):
		return remedyNone, refused(text + "\n" + m.advice(g, c))
	case policy == spec.PolicyReport:
		return remedyNone, refused(fmt.Sprintf("%s; its policy is report, so nothing is done by itself\nlook at it: hlctl why %s; then hlctl guests start %[2]s, or hlctl guests recreate %[2]s", text, g.name))
	case !c.ripe && (c.signal == SignalK3sDown || c.signal == SignalNotReady):
		return remedyNone, skipped(fmt.Sprintf("%s; it is waited for until %s (timeouts.join)", text, c.ripens.Format("15:04:05")))
	case !c.ripe && c.ripens.IsZero():
		return remedyNone, skipped(fmt.Sprintf("%s; so it lives and is left alone\nlook at its address, its firewall and the bridge of %s: hlctl why %s", text, g.host.name, g.name))
	case !c.ripe:
		return remedyNone, verdict{homelabv1.NoteKind_NOTE_KIND_WAITING, fmt.Sprintf("%s; that must last %s before anything is done (timeouts.unwellAfter)", text, g.want.Timeouts.UnwellAfter)}
	case policy == spec.PolicyRestart:
		return m.rung(g, c)
	}
	return remedyRecreate, verdict{}
}

// outcast is why a server that is stopped must not be started any more: it was in the
// cluster, has been taken out, and still holds what it was there. Started it would
// come back as it likes, and the first server of all might start a second cluster.
func (m *model) outcast(g *guestView) string {
	c := m.cluster
	if g.situation != Stopped || !g.want.IsServer() || !g.want.IsMember() || m.spec.K3s == nil || !m.existing() || !g.onceWell() || g.mem.ReadyAt.IsZero() {
		return ""
	}
	if !yes(c.API) || !yes(c.Etcd) || c.Split != "" || c.Voters == 0 {
		return ""
	}
	if node, member := m.held(g); node != nil || member != nil {
		return ""
	}
	return fmt.Sprintf("it has left the cluster and still holds its data, so it is not started: it might start a cluster of its own\nto make it anew: hlctl guests recreate %s", g.name)
}

// actionable says whether a signal may lead to more than being shown.
func actionable(s Signal) bool {
	switch s {
	case SignalStopped, SignalPaused, SignalIOError, SignalInternalError, SignalPanicked, SignalSilent, SignalK3sDown, SignalNotReady:
		return true
	}
	return false
}

// advice is what a person can do about what is only shown.
func (m *model) advice(g *guestView, c condition) string {
	switch c.signal {
	case SignalSSHRefused:
		return fmt.Sprintf("that alone is no reason to destroy it; through its guest agent: hlctl exec %s -- systemctl status ssh", g.name)
	case SignalWrongMachine:
		return "nothing is run there; look which machine has its address, then hlctl plan"
	case SignalCloudInit:
		return fmt.Sprintf("that alone is no reason to destroy it; after a correction: hlctl guests recreate %s", g.name)
	case SignalWrongAddress:
		return fmt.Sprintf("that alone is no reason to destroy it; look at its bridge and at guests.%s.networks (%s)", g.name, m.at("guests."+g.name))
	}
	return "look at it: hlctl why " + g.name
}

// rung is the next thing that the policy restart tries: start (or resume), then
// reset, then recreate. Each has its time: what was tried last is waited for as
// long as a boot may take (condition, young).
func (m *model) rung(g *guestView, c condition) (remedy, verdict) {
	first := remedyReset
	switch c.signal {
	case SignalStopped:
		first = remedyStart
	case SignalPaused, SignalIOError:
		first = remedyResume
	}
	tried := map[homelabv1.Action]bool{}
	for _, a := range g.mem.Attempts {
		tried[a.Action] = true
	}
	gentle := tried[homelabv1.Action_ACTION_START] || tried[homelabv1.Action_ACTION_RESUME]
	switch {
	case first != remedyReset && !gentle:
		return first, verdict{}
	case c.signal != SignalStopped && !tried[homelabv1.Action_ACTION_RESET] && !g.mute():
		return remedyReset, verdict{}
	}
	return remedyRecreate, verdict{}
}

// mute says that QEMU itself hangs: it presses no reset button.
func (g *guestView) mute() bool {
	return g.vm.GetPower() == homelabv1.Power_POWER_UNSPECIFIED && yes(g.vm.GetProcess())
}

// toll is how much is wrong in the fleet at once, counted once a plan.
type toll struct {
	unwell  []string // guests, by name
	enabled int      // guests of the Spec on enabled hosts, without standbys
	silent  []string // hosts that do not answer, by name
	hosts   int      // enabled ones
	counted bool
}

func (m *model) count() *toll {
	if m.toll.counted {
		return &m.toll
	}
	t := &m.toll
	t.counted = true
	for _, g := range m.guests {
		if g.host == nil || !g.host.want.Enabled || g.want.Standby() {
			continue
		}
		t.enabled++
		if m.troubled(g) {
			t.unwell = append(t.unwell, g.name)
		}
	}
	for _, h := range m.order {
		if !h.want.Enabled {
			continue
		}
		t.hosts++
		if h.obs == nil {
			t.silent = append(t.silent, h.name)
		}
	}
	return t
}

// brake is why nothing is destroyed while much is wrong at once (rule 7). The
// guest in question counts as unwell.
func (m *model) brake(g *guestView) verdict {
	const shown = 6
	t := m.count()
	unwell := t.unwell
	if _, found := slices.BinarySearch(unwell, g.name); !found {
		unwell = append(slices.Clone(unwell), g.name)
		slices.Sort(unwell)
	}
	if most := max(1, t.enabled/3); len(unwell) > most {
		return refused(fmt.Sprintf("nothing is destroyed while %d of %d guests are unwell (%s), more than %d (the brake)", len(unwell), t.enabled, few(unwell, shown), most))
	}
	if most := max(1, t.hosts/3); len(t.silent) > most {
		return refused(fmt.Sprintf("nothing is destroyed while %d of %d hosts do not answer (%s), more than %d (the brake)", len(t.silent), t.hosts, few(t.silent, shown), most))
	}
	return verdict{}
}

// troubled says whether a guest counts as unwell for the brake: by a signal that
// is seen now, or was when it was seen last. A guest that was well on a host that
// does not answer now is the host's trouble, which is counted apart.
func (m *model) troubled(g *guestView) bool {
	switch c := m.condition(g); c.health {
	case Unwell:
		return slices.Contains(allSignals, c.signal)
	case Unknown, OnItsWay:
		if c.health == OnItsWay && (g.look != nil || g.vm == nil) {
			return false
		}
		return c.reason != Absence && slices.ContainsFunc(m.want.History[g.name], func(s Sighting) bool { return slices.Contains(allSignals, s.Signal) })
	case Healthy, Standby:
	}
	return false
}

// parked is why nothing is done about a guest any more after repeated failure,
// empty when it is not so (rule 11).
func (m *model) parked(g *guestView) string {
	if n := g.failures(); n >= parkAfter {
		return fmt.Sprintf("parked: it was made %d times in a row and never was well; look why with hlctl why %s, then hlctl resume %[2]s, or hlctl guests recreate %[2]s", n, g.name)
	}
	return ""
}

// failures counts the recreations in a row that did not end well, this one
// included.
func (g *guestView) failures() int {
	if g.mem.Generation <= 1 || !g.mem.ReadyAt.IsZero() || g.mem.Began.IsZero() {
		return 0
	}
	return g.mem.Failures + 1
}

// backOff is why a guest is not made anew yet, or not any more (rule 11).
func (m *model) backOff(g *guestView) verdict {
	if why := m.parked(g); why != "" {
		return refused(why)
	}
	n := g.failures()
	if n == 0 {
		return verdict{}
	}
	until := g.mem.Began.Add(backOffFirst << (n - 1))
	if !until.After(m.now) {
		return verdict{}
	}
	return skipped(fmt.Sprintf("it was made anew at %s and never was well; the next try is not before %s (back-off)", g.mem.Began.Format("15:04:05"), until.Format("15:04:05")))
}
