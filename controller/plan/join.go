package plan

import (
	"fmt"
	"slices"
	"strings"
	"time"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// planCluster adds the inits and joins, after all guests have their steps up to
// the boot: servers one at a time in a chain, agents beside each other.
// previous is the last change of membership that is planned already.
func (m *model) planCluster(previous string) {
	var members []*guestView
	for _, g := range m.guests {
		if g.want.IsMember() && g.host != nil && g.host.want.Enabled {
			members = append(members, g)
		}
	}
	if len(members) == 0 || m.spec.K3s == nil {
		return
	}
	if m.existing() {
		m.planJoins(members, nil, previous)
		return
	}
	first, v := m.planInit(members)
	if first == nil {
		for _, g := range members {
			if !g.noted || g.last != "" {
				m.tell(g, v)
			}
		}
		return
	}
	m.planJoins(members, first, previous)
}

// existing says whether there is a cluster already: one that was made elsewhere,
// one that is remembered, or one of which anybody was seen. Only when all three
// are no may a cluster be started. A cluster-init that was begun and is not
// known to have ended goes on as one as long as nobody else has any k3s.
func (m *model) existing() bool {
	r := m.want.Cluster
	begun := r != nil && r.GetCaHash() == ""
	if m.spec.K3s.Existing != nil || r != nil && !begun {
		return true
	}
	for _, who := range m.cluster.found {
		if !begun || who != r.GetFirstGuest() {
			return true
		}
	}
	if !begun || len(m.cluster.found) == 0 {
		return false
	}
	g := m.byName[r.GetFirstGuest()]
	if g == nil || !g.want.IsMember() {
		return true
	}
	state, _ := m.membership(g)
	return state == memberHealthy || g.mem.Joined
}

// planInit plans the start of a cluster on one guest, or says why none may be
// started (rule 4).
func (m *model) planInit(members []*guestView) (*guestView, verdict) {
	after, v := m.mayInit()
	if v.against() {
		return nil, prefixed("no cluster is started: ", v)
	}
	var f findings
	for _, g := range members {
		if begun := m.want.Cluster; begun != nil && begun.GetFirstGuest() != g.name || !g.want.IsServer() {
			continue
		}
		v := m.mayJoin(g)
		if !v.against() && m.want.Cluster != nil && !m.initEnded(g) {
			v = skipped("its cluster-init was begun, and how it stands cannot be seen: run it again")
		}
		if v.against() {
			f.add(skipped("first server " + g.name + ": " + v.text))
			continue
		}
		reason := "the first server: no cluster is remembered, and none was seen"
		if m.want.Cluster != nil {
			reason = "its cluster-init was begun and not seen to end"
		}
		m.rank[m.step(g, homelabv1.Action_ACTION_INIT, "init", after, reason).GetId()] = 0
		return g, verdict{}
	}
	if len(f.list) > 0 {
		return nil, skipped("there is no cluster yet, and none can be started: " + strings.ReplaceAll(f.list[0].text, "\n", "\n  "))
	}
	if m.want.Cluster != nil {
		return nil, refused("cluster-init was begun on " + m.want.Cluster.GetFirstGuest() + ", which is no server of the Spec now")
	}
	return nil, skipped("there is no cluster yet, and no server to start one")
}

// initEnded says whether a cluster-init that was begun was seen to have come to
// nothing yet, so that it may be done again: it left no data, its k3s does not
// run, or its API answers and the guest is not a whole member.
func (m *model) initEnded(g *guestView) bool {
	k := g.look.GetK3S()
	if g.vm == nil || g.neverBooted() || no(k.GetServerData()) || no(k.GetServerActive()) {
		return true
	}
	state, _ := m.membership(g)
	return state == memberNot
}

// InitBlocked is why no cluster may be started now, empty when one may. The
// controller asks again with a fresh observation right before it has an INIT
// carried out. made are the guests whose VMs this very run has made: there can be
// no k3s in them, and they need not have booted yet.
func InitBlocked(want Want, seen Seen, made map[string]bool, now time.Time) string {
	m := newModel(want, seen, now)
	m.made = made
	if m.spec.K3s == nil {
		return "the Spec has no k3s section"
	}
	if m.existing() {
		return "there is a cluster already: " + m.whoHas()
	}
	_, v := m.mayInit()
	return v.text
}

func (m *model) whoHas() string {
	switch {
	case m.spec.K3s.Existing != nil:
		return "the Spec names an existing server"
	case len(m.cluster.found) > 0:
		return "k3s was seen on " + strings.Join(m.cluster.found, ", ")
	}
	return "it is remembered, first server " + m.want.Cluster.GetFirstGuest()
}

// mayInit says whether every server guest was seen to hold no k3s. A server
// that is there and was never booted, by what is remembered, holds none either;
// its boot is waited for, and InitBlocked then looks into it.
func (m *model) mayInit() (after []string, v verdict) {
	var f findings
	for _, g := range m.guests {
		if !g.want.IsServer() || g.host == nil || !g.host.want.Enabled {
			continue
		}
		if m.made[g.name] {
			continue
		}
		if m.want.Cluster != nil && m.want.Cluster.GetFirstGuest() == g.name {
			continue // what it holds is of the init that goes on
		}
		step, why := m.holdsNone(g)
		if why != "" {
			f.unknown("%s", why)
		}
		if step != "" {
			after = append(after, step)
		}
	}
	for _, name := range sorted(m.ours) {
		if NoGuest(name) {
			continue
		}
		if why := m.droppedMayHold(name); why != "" {
			f.unknown("%s", why)
		}
	}
	if v := f.verdict(); v.against() {
		v.text, _, _ = strings.Cut(v.text, "\n")
		return nil, v
	}
	return after, verdict{}
}

// droppedMayHold is why a guest that the Spec no longer names, or not by this
// name, may hold the cluster: nobody looks into it. Only what is remembered of it
// from its creation on proves that it never was in one.
func (m *model) droppedMayHold(name string) string {
	if m.spec.Guests[name] != nil {
		return ""
	}
	r := m.want.Guests[name]
	for _, p := range m.ours[name] {
		if r.Made && !r.Joined && r.UUID == p.vm.GetUuid() && r.Generation == p.owner.Generation {
			continue
		}
		return fmt.Sprintf("VM %d on %s is guest %s of ours, which the Spec no longer names, and it may be a server: put it back into the Spec, or remove it", p.vm.GetVmid(), p.host, name)
	}
	return ""
}

// holdsNone is why a server guest may hold a cluster's data, or the step after
// which it can be looked into.
func (m *model) holdsNone(g *guestView) (step, why string) {
	k := g.look.GetK3S()
	switch {
	case g.host.obs == nil || !yes(g.host.obs.GetVmsKnown()):
		return "", "the host of server " + g.name + ", " + g.host.name + ", was not seen: " + g.host.silence(m.now)
	case g.vm == nil && len(g.besides(m.named[g.name])) > 0:
		p := g.besides(m.named[g.name])[0]
		return "", fmt.Sprintf("VM %d on %s has the name of server %s and cannot be looked into", p.vm.GetVmid(), p.host, g.name)
	case g.vm == nil && len(g.besides(m.copies[g.name])) > 0: // a VM that was restored, or the fleet's key is another one
		p := g.besides(m.copies[g.name])[0]
		return "", fmt.Sprintf("VM %d%s on %s carries the mark of server %s and cannot be looked into: %s", p.vm.GetVmid(), quoted(p.vm.GetName()), p.host, g.name, p.not())
	case g.vm == nil && (len(m.ours[g.name]) > 0 || g.situation == Unseen):
		return "", "server " + g.name + " cannot be looked into: " + g.why.text
	case g.vm == nil && len(m.unseen) > 0 && g.situation == Absent:
		return "", "server " + g.name + " may exist where nobody can look: " + firstLines(m.unseen, 1)
	case g.vm == nil, g.want.Standby():
		return "", ""
	case yes(k.GetLooked()) && no(k.GetServerData()):
		return "", ""
	case yes(k.GetServerData()):
		return "", "server " + g.name + " holds data of a k3s server"
	case g.neverBooted():
		return g.booted, ""
	case g.booted != "":
		return "", "server " + g.name + " exists and must be looked into first: it is booted now, run it again"
	}
	return "", "server " + g.name + " exists and could not be looked into" + because(k.GetLooked())
}

// mayJoin is why k3s must not be installed in a guest now, whatever the cluster
// says: it cannot be reached, or its host must not do etcd work (rule 10).
func (m *model) mayJoin(g *guestView) verdict {
	var f findings
	switch {
	case g.noted && g.why.against():
		f.add(g.why)
	case g.noted:
		f.add(skipped("it is not running"))
	case g.vm != nil:
		f.add(m.allowed(g))
	}
	if g.situation != Booted && g.booted == "" && len(f.list) == 0 {
		f.unknown("it will not be running")
	}
	if g.want.IsServer() {
		f.add(g.host.clock())
	}
	return f.verdict()
}

// planJoins joins who is not a member. first is the guest that starts the
// cluster in this plan, nil when there is one already.
func (m *model) planJoins(members []*guestView, first *guestView, previous string) {
	var servers, agents []*guestView
	for _, g := range members {
		if g == first || g.remade {
			continue
		}
		if m.wantsJoin(g, first) {
			if g.want.IsServer() {
				servers = append(servers, g)
			} else {
				agents = append(agents, g)
			}
		}
	}
	begun := "" // agents wait for the cluster alone
	if first != nil {
		previous, begun = first.last, first.last
	} else {
		servers = m.learnersFirst(servers)
	}
	for i, g := range agents {
		m.rank[m.join(g, begun, "as agent", first).GetId()] = len(m.guests) + i + 1
	}
	for i, g := range servers {
		s := m.join(g, previous, "as server", first)
		m.rank[s.GetId()] = i + 1
		previous = s.GetId()
	}
}

func (m *model) join(g *guestView, previous, reason string, first *guestView) *homelabv1.Step {
	var after []string
	if previous != "" {
		after = append(after, previous)
		reason += ", after " + previous[strings.LastIndexByte(previous, '/')+1:]
	}
	if g.stale != nil {
		if server, v := m.through(g); !v.against() {
			m.planLeave(g, *g.stale, server, after, "its "+g.stale.what()+" of an earlier VM must be gone before it joins")
			return m.step(g, homelabv1.Action_ACTION_JOIN, "join", nil, reason)
		}
	}
	if first == nil {
		switch state, why := m.membership(g); {
		case g.mem.Joined, state == memberUnwell, state == memberHealthy:
			reason = "wait until its Node is Ready again"
		case why != "":
			reason += ": " + why
		}
		if g.want.IsServer() {
			reason += " (" + m.cluster.arithmetic() + ")"
		}
	}
	return m.step(g, homelabv1.Action_ACTION_JOIN, "join", after, reason)
}

// wantsJoin says whether a guest gets a join, and notes why not when it should
// have one.
func (m *model) wantsJoin(g *guestView, first *guestView) bool {
	v := m.mayJoin(g)
	if first != nil {
		if v.against() && !g.noted {
			m.tell(g, prefixed("does not join: ", v))
		}
		return !v.against()
	}
	state, why := m.membership(g)
	if g.noted && g.last == "" { // why it is left alone is said
		return false
	}
	switch {
	case state == memberHealthy && (g.situation == Booted || g.situation == Booting):
		return false
	case state == memberStale:
		l, r := m.remains(g, why)
		if r.against() {
			m.tell(g, prefixed("does not join: ", r))
			return false
		}
		g.stale = &l
	case state == memberUnwell && g.healed: // its remedy is to bring it back
	case state == memberUnknown && m.settling(g):
		m.tellUntil(g, verdict{homelabv1.NoteKind_NOTE_KIND_WAITING, why}, m.settledBy(g))
		return false
	case state == memberUnwell && g.situation != Stopped && m.condition(g).health != OnItsWay && !g.host.fresh():
		m.tell(g, skipped(why))
		return false
	case state == memberUnknown && g.situation != Stopped:
		m.tell(g, skipped(why))
		return false
	}
	var f findings
	f.add(v)
	if !v.against() {
		f.add(m.quorum())
		if !f.verdict().against() {
			f.add(m.version())
		}
	}
	if v := f.verdict(); v.against() {
		m.tell(g, prefixed("does not join: ", v))
		return false
	}
	return true
}

// settling says whether a member that runs since a short while only is not known
// to be Ready yet, with an API that answers: it is waited for.
func (m *model) settling(g *guestView) bool {
	return m.settledBy(g).After(m.now) && yes(m.cluster.API) && m.cluster.Split == "" && (!g.want.IsServer() || yes(m.cluster.Etcd))
}

// settledBy is when a member that was started is Ready again at the latest.
func (m *model) settledBy(g *guestView) time.Time {
	at := g.host.told(g.vm.GetProcessStarted())
	if at.IsZero() || g.situation != Booted {
		return time.Time{}
	}
	return at.Add(g.want.Timeouts.Boot)
}

func prefixed(prefix string, v verdict) verdict {
	v.text = prefix + v.text
	return v
}

// learnersFirst orders the joining servers: etcd takes one learner at a time,
// so whoever left one behind goes first, and nobody joins beside a learner that
// is not one of theirs.
func (m *model) learnersFirst(servers []*guestView) []*guestView {
	owner := map[string]int{}
	for _, e := range m.cluster.Members {
		if !e.GetLearner() {
			continue
		}
		i := slices.IndexFunc(servers, func(g *guestView) bool { return memberOf(e, g.want.NodeName(), g.addresses()) })
		if i < 0 {
			for _, g := range servers {
				m.tell(g, skipped(fmt.Sprintf("does not join: learner %s is still in etcd, and only one can be at a time; k3s drops a stalled one after 5 min: run it again", learnerName(e))))
			}
			return nil
		}
		owner[servers[i].name] = -1
	}
	slices.SortStableFunc(servers, func(a, b *guestView) int { return owner[a.name] - owner[b.name] })
	return servers
}

func learnerName(e *homelabv1.EtcdMember) string {
	if e.GetName() != "" {
		return e.GetName()
	}
	return e.GetId()
}
