package plan

import (
	"strings"
	"time"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/spec"
)

// Health is what people are shown of a guest; the words are those of the JSON
// contract.
type Health string

// The healths.
const (
	Healthy  Health = "healthy" // booted and, as a member, Ready with the right version
	OnItsWay Health = "booting"
	Unwell   Health = "unwell"
	Standby  Health = "standby"
	Unknown  Health = "unknown" // could not be seen, or absent (the reason then is Absence)
)

// Absence is the reason of a guest that was seen not to exist.
const Absence = "absent"

// condition is how a guest is, with the evidence for it.
type condition struct {
	health Health
	reason string // empty for healthy
	signal Signal // of an unwell one; empty for what no signal says
	since  time.Time
	until  time.Time // of one on its way: how long that may take
	// ripe says that the evidence is enough to do something about it; else ripens
	// is when it will be, zero for never by itself (rule 6).
	ripe   bool
	ripens time.Time
	// doubt is a warning about a guest that is healthy as far as can be told.
	doubt string
}

// condition tells how a guest is (rule 6). It is decided once a plan.
func (m *model) condition(g *guestView) condition {
	if g.cond == nil {
		c := m.judgeHealth(g)
		g.cond = &c
	}
	return *g.cond
}

func (m *model) judgeHealth(g *guestView) condition {
	switch g.situation {
	case HostDisabled, Unseen, Foreign, Elsewhere, Twice, Unreadable:
		return condition{health: Unknown, reason: g.why.text}
	case Absent:
		return condition{health: Unknown, reason: Absence}
	case HalfBuilt:
		return condition{health: Unwell, signal: SignalHalfBuilt, reason: "half-built"}
	case Unfinished:
		return condition{health: Unwell, signal: SignalHalfBuilt, reason: "its creation was not seen to end"}
	case InFlight:
		return condition{health: OnItsWay, reason: g.why.text}
	case Stopped, Paused, Booting, Booted:
	}
	if g.want.Standby() {
		c := condition{health: Standby}
		if g.situation != Stopped {
			c.reason = "it runs"
		}
		return c
	}
	seen, _ := m.sense(g)
	for _, s := range seen {
		if s.Signal != SignalWell && s.Signal != SignalK3sDown && s.Signal != SignalNotReady {
			return m.evidence(g, s)
		}
	}
	switch g.situation {
	case Booting:
		if c, over := m.booting(g); over {
			return c
		}
	case Booted, Stopped, Paused:
	default:
	}
	return m.member(g, seen)
}

// grace is why a guest that shows nothing good is booting and not unwell, and
// until when that may take; empty for no grace.
func (m *model) grace(g *guestView) (why string, until time.Time) {
	h := g.host
	waits := h.obs
	switch {
	case h.fresh():
		return "its host booted a short while ago", m.now.Add(bootGrace - time.Duration(waits.GetUptimeSeconds())*time.Second)
	case yes(waits.GetShuttingDown()):
		return "its host is shutting down", time.Time{}
	case len(g.vm.GetTasks()) > 0:
		return "a task runs on it: " + g.vm.GetTasks()[0], time.Time{}
	}
	return "", time.Time{}
}

// young is until when a guest whose process was started, or that was reset, a
// short while ago may still boot; zero when it is not young. Of a process of
// which nobody knows since when it runs, its silence must last that long.
func (m *model) young(g *guestView, silent time.Time) time.Time {
	limit := g.want.Timeouts.Boot
	started := silent
	if at := g.host.told(g.vm.GetProcessStarted()); !at.IsZero() {
		started = at
	}
	if n := len(g.mem.Attempts); n > 0 && g.mem.Attempts[n-1].At.After(started) {
		started = g.mem.Attempts[n-1].At
	}
	if until := started.Add(limit); until.After(m.now) && !m.bootedSince(g, started) {
		return until
	}
	return time.Time{}
}

// evidence judges one signal that speaks against a guest.
func (m *model) evidence(g *guestView, s Sighting) condition {
	c := condition{health: Unwell, signal: s.Signal, reason: s.Text, since: m.since(g, s)}
	if why, until := m.grace(g); why != "" {
		return condition{health: OnItsWay, reason: s.Text + "; " + why, until: until}
	}
	switch s.Signal {
	case SignalStopped, SignalPaused, SignalIOError, SignalInternalError, SignalPanicked:
		c.ripe = true
	case SignalSilent:
		if until := m.young(g, c.since); !until.IsZero() {
			return condition{health: OnItsWay, reason: s.Text, until: until}
		}
		heard, lag := m.heard(g)
		c.ripens = c.since.Add(max(g.want.Timeouts.UnwellAfter, lag))
		c.ripe = !m.now.Before(c.ripens)
		if c.ripe && heard != "" {
			c.ripe, c.ripens, c.reason = false, time.Time{}, s.Text+", but "+heard
		}
	default: // shown, and never a reason to do anything by itself
	}
	return c
}

// heard is who hears of a guest that is mute to its host: then it lives, and what
// is broken is the way from the host into it. Empty when nobody does. lag is how
// old the news may be.
func (m *model) heard(g *guestView) (who string, lag time.Duration) {
	if !g.want.IsMember() || m.spec.K3s == nil || m.cluster.Split != "" {
		return "", 0
	}
	if e := m.cluster.Member(g.want.NodeName(), g.addresses()); g.want.IsServer() && yes(m.cluster.Etcd) && yes(e.GetHealthy()) {
		return "its etcd member answers the other servers", 0
	}
	if node := m.cluster.Node(g.want.NodeName()); yes(m.cluster.API) && yes(node.GetReady()) {
		return "its Node is Ready", nodeLag
	}
	return "", 0
}

// nodeLag is longer than Kubernetes takes to see that a kubelet is silent: 40 s,
// and 50 s in newer releases.
const nodeLag = time.Minute

// booting is how a guest is that runs and was not seen to have booted, without a
// signal that says why; over says whether that is all there is to say.
func (m *model) booting(g *guestView) (c condition, over bool) {
	waits := g.look.GetBooted().GetReason()
	why, until := m.grace(g)
	switch {
	case g.vm.GetPower() != homelabv1.Power_POWER_RUNNING:
		return condition{health: Unknown, reason: g.powerUnknown()}, true
	case g.neverBooted(), why != "":
		if waits == "" {
			waits = "not seen to have booted yet"
		}
		if until.IsZero() && g.vm.GetProcessStarted() != nil {
			until = g.host.told(g.vm.GetProcessStarted()).Add(g.want.Timeouts.Boot + g.want.Timeouts.CloudInit)
		}
		return condition{health: OnItsWay, reason: waits, until: until}, true
	case g.look == nil:
		return condition{health: Unknown, reason: "not looked into"}, true
	case no(g.look.GetBooted()):
		if waits == "" {
			waits = "not booted"
		}
		if until := m.young(g, m.now); !until.IsZero() {
			return condition{health: OnItsWay, reason: waits, until: until}, true
		}
		return condition{health: Unwell, reason: waits}, true
	case m.halfMute(g) != "":
		return condition{}, false
	}
	return condition{health: Unknown, reason: "whether it has booted is not known" + because(g.look.GetBooted())}, true
}

// halfMute is what is said of a guest of which one of guest agent and SSH is
// mute: it lives, and what is in it is told by others. Empty when it is not so.
func (m *model) halfMute(g *guestView) string {
	switch {
	case g.look == nil || g.neverBooted() || m.justStarted(g): // what the host tells of it may be some seconds old
	case yes(g.look.GetBooted()) && no(g.look.GetGuestAgent()) && g.vm.GetPower() == homelabv1.Power_POWER_RUNNING:
		return "its guest agent is mute, SSH answers" + because(g.look.GetGuestAgent())
	case no(g.look.GetSsh()) && muteSSH(g.look.GetSshWhy()) && yes(g.vm.GetGuestAgent()):
		return "SSH is mute, its guest agent answers" + because(g.look.GetSsh())
	}
	return ""
}

// justStarted says that the guest's process is younger than what counts as
// silence.
func (m *model) justStarted(g *guestView) bool {
	at := g.host.told(g.vm.GetProcessStarted())
	return !at.IsZero() && m.now.Sub(at) < g.want.Timeouts.UnwellAfter
}

// member is how a guest is that has booted, by what the cluster says of it.
func (m *model) member(g *guestView, seen []Sighting) condition {
	doubt := m.halfMute(g)
	if !g.want.IsMember() {
		return condition{health: Healthy, doubt: doubt}
	}
	state, why := m.membership(g)
	c := condition{health: Unwell, signal: SignalMember, reason: why}
	switch {
	case state == memberHealthy:
		return condition{health: Healthy, doubt: doubt}
	case state == memberUnknown:
		return condition{health: Unknown, reason: why}
	case state == memberNot && why == "":
		c.reason = "not a member of the cluster"
		return c
	case state == memberNot, state == memberStale:
		return c
	}
	if grace, until := m.grace(g); grace != "" {
		return condition{health: OnItsWay, reason: why, until: until}
	}
	for _, s := range seen { // memberUnwell
		if s.Signal == SignalK3sDown || s.Signal == SignalNotReady {
			c.signal, c.since, c.reason = s.Signal, m.since(g, s), s.Text
			c.ripe = m.now.Sub(c.since) >= g.want.Timeouts.Join
			if !c.ripe {
				c.ripens = c.since.Add(g.want.Timeouts.Join)
			}
			break
		}
	}
	return c
}

// GuestState is one guest of the Spec as it was seen.
type GuestState struct {
	Name       string
	Want       *spec.Guest
	Situation  Situation
	VM         *homelabv1.VirtualMachine // nil unless a VM of ours was seen on its host
	Generation int32                     // of that VM; else the one remembered
	Look       *homelabv1.GuestLook      // nil unless it was looked into
	Health     Health
	Reason     string    // empty for healthy
	Signal     Signal    // what makes it unwell; empty otherwise
	Since      time.Time // since when; zero when it is not unwell, or that is not known
	Until      time.Time // until when one that is on its way may take; zero when not known
	Parked     string    // why nothing is done about it any more; empty when it is not parked
	Policy     spec.Policy
	Adopted    bool // it was made elsewhere and taken over
}

// Survey tells how every guest of the Spec does, by name.
func Survey(want Want, seen Seen, now time.Time) []GuestState {
	m := newModel(want, seen, now)
	states := make([]GuestState, 0, len(m.guests))
	for _, g := range m.guests {
		c := m.condition(g)
		s := GuestState{
			Name: g.name, Want: g.want, Situation: g.situation, VM: g.vm, Generation: g.mem.Generation, Look: g.look,
			Health: c.health, Reason: c.reason, Signal: c.signal, Since: c.since, Until: c.until,
			Policy: g.policy(), Adopted: g.adopted(),
		}
		if g.vm != nil {
			s.Generation = g.owner.Generation
		}
		if c.health == Unwell {
			s.Parked = m.parked(g)
		}
		states = append(states, s)
	}
	return states
}

// Target is a VM of ours that is worth a look inside.
type Target struct {
	Guest, Host string
	VM          *homelabv1.VirtualMachine
	Generation  int32
}

// Targets are the guests of the Spec whose VM is ours and runs on its host, by
// name: also those that are not remembered, known by their mark.
func Targets(want Want, seen Seen, now time.Time) []Target {
	var targets []Target
	for _, g := range newModel(want, seen, now).guests {
		if g.vm.GetPower() == homelabv1.Power_POWER_RUNNING {
			targets = append(targets, Target{Guest: g.name, Host: g.host.name, VM: g.vm, Generation: g.owner.Generation})
		}
	}
	return targets
}

// unwellText is how a guest is in one sentence, with since when where that is
// known: stopped since 14:02 (4 min): qmstop by root@pam.
func (m *model) unwellText(c condition) string {
	if c.since.IsZero() || !c.since.Before(m.now) {
		return c.reason
	}
	what, why, ok := strings.Cut(c.reason, ": ")
	if ok {
		why = ": " + why
	}
	return what + since(c.since, m.now) + why
}
