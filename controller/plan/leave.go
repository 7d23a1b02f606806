package plan

import (
	"fmt"
	"slices"
	"strings"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// through is the healthy server guest through which the cluster is asked to let
// another one go: a voter, Ready, looked into over SSH, on a host that may do etcd
// work. The verdict is why there is none.
func (m *model) through(g *guestView) (*guestView, verdict) {
	var f findings
	for _, s := range m.servers {
		if s == g || s.vm == nil || s.host.obs == nil {
			continue
		}
		switch {
		case s.host.blocked.against():
			f.add(s.host.blocked)
		case s.host.clock().against():
			f.add(s.host.clock())
		case !yes(s.look.GetSsh()) || !yes(s.look.GetBooted()):
			f.unknown("%s cannot be looked into%s", s.name, because(s.look.GetSsh()))
		case !yes(s.look.GetK3S().GetEtcd().GetKnown()) || !yes(s.look.GetK3S().GetNodes().GetKnown()):
			f.unknown("k3s on %s does not answer%s", s.name, because(s.look.GetK3S().GetNodes().GetKnown()))
		case m.healthyVoter(s) == nil:
			f.unknown("%s is no healthy voter", s.name)
		default:
			return s, verdict{}
		}
	}
	v := f.verdict()
	if v.text != "" {
		v.text = ": " + strings.ReplaceAll(v.text, "\n", "; ")
	}
	return nil, skipped("no other server could be asked to let it go" + v.text)
}

// healthyVoter is the guest's etcd member when it has a vote and is well.
func (m *model) healthyVoter(g *guestView) *homelabv1.EtcdMember {
	e := m.cluster.Member(g.want.NodeName(), g.addresses())
	if e == nil || e.GetLearner() || !yes(e.GetHealthy()) || !yes(m.cluster.Node(g.want.NodeName()).GetReady()) {
		return nil
	}
	return e
}

// held is what the cluster holds of a guest: its Node and its etcd member.
func (m *model) held(g *guestView) (*homelabv1.Node, *homelabv1.EtcdMember) {
	node := m.cluster.Node(g.want.NodeName())
	if !g.want.IsServer() {
		return node, nil
	}
	return node, m.cluster.Member(g.want.NodeName(), g.addresses())
}

// leaving is what speaks against a guest's leaving the cluster (rule 4), with
// the arithmetic that goes into the reason.
type leaving struct {
	node     *homelabv1.Node
	member   *homelabv1.EtcdMember
	voters   int // without it
	healthy  int // of those
	needed   int // of those
	sentence string
}

// in says whether there is anything of the guest in the cluster.
func (l leaving) in() bool { return l.node != nil || l.member != nil }

// leave judges whether a guest may leave: its VM will be stopped by us first.
func (m *model) leave(g *guestView) (leaving, verdict) {
	c := m.cluster
	switch {
	case m.spec.K3s == nil:
		return leaving{}, verdict{}
	case c.Split != "":
		return leaving{}, refused(c.Split + ": look at them with hlctl k3s status")
	case no(c.Etcd):
		return leaving{}, refused(c.Etcd.GetReason() + "; without it nobody can leave")
	case !yes(c.API):
		return leaving{}, skipped("membership unknown: k3s API does not answer" + because(c.API))
	case !yes(c.Etcd) && (g.want.IsServer() || c.Voters > 0):
		return leaving{}, skipped("membership unknown: etcd does not answer" + because(c.Etcd))
	}
	var l leaving
	l.node, l.member = m.held(g)
	if why := m.ambiguous(g); why != "" {
		return l, refused(why + "\nlook at them with: hlctl k3s members")
	}
	if l.member == nil || l.member.GetLearner() {
		l.needed = c.Quorum
		return l, m.mayRemoveNode(l)
	}
	l.voters, l.healthy = c.Voters-1, c.Healthy
	if yes(l.member.GetHealthy()) {
		l.healthy--
	}
	if l.voters < 1 {
		return l, refused("it is the only server of its cluster, which is never destroyed: it holds all that the cluster knows")
	}
	l.needed = l.voters/2 + 1
	l.sentence = fmt.Sprintf("%s -> %d of %d stay healthy, %d needed", c.counts(), l.healthy, l.voters, l.needed)
	switch {
	case c.Healthy < c.Quorum:
		return l, refused(fmt.Sprintf("no quorum: %s; without it nobody can leave", c.arithmetic()))
	case l.healthy < l.needed:
		return l, refused("that would cost the cluster its quorum: " + l.sentence)
	case l.healthy < c.Quorum:
		// It is stopped before it leaves, and as long as it has not left it counts.
		return l, refused(fmt.Sprintf("that would cost the cluster its quorum: %s; it must be stopped before it can leave, and then %d of %d are healthy, %d needed\nadd another server first, then hlctl plan",
			c.counts(), l.healthy, c.Voters, c.Quorum))
	}
	return l, verdict{}
}

// ambiguous is why it cannot be told which etcd member a server is: two voters
// have its name, or one at its address has a name that is no guest's. Counted as
// none, or as the wrong one, it would cost a vote that nobody reckons with.
func (m *model) ambiguous(g *guestView) string {
	if !g.want.IsServer() {
		return ""
	}
	var named, strange []string
	for _, e := range m.cluster.Members {
		switch {
		case e.GetName() == "":
		case memberOf(e, g.want.NodeName(), nil):
			if !e.GetLearner() {
				named = append(named, e.GetName())
			}
		case peerAt(e, g.addresses()) && !m.guestsMember(e):
			strange = append(strange, e.GetName())
		}
	}
	switch {
	case len(named) > 1:
		return "two etcd members have its name: " + strings.Join(named, ", ")
	case len(named) == 0 && len(strange) > 0:
		return "etcd member " + strange[0] + " is at its address and has another name"
	}
	return ""
}

// guestsMember says whether a member has the name of a guest of the Spec.
func (m *model) guestsMember(e *homelabv1.EtcdMember) bool {
	return slices.ContainsFunc(m.guests, func(g *guestView) bool { return memberOf(e, g.want.NodeName(), nil) })
}

// mayRemoveNode is about what has no vote: it needs a quorum all the same, to be
// written down.
func (m *model) mayRemoveNode(l leaving) verdict {
	if c := m.cluster; l.in() && c.Voters > 0 && c.Healthy < c.Quorum {
		return refused(fmt.Sprintf("no quorum: %s; without it nobody can leave", c.arithmetic()))
	}
	return verdict{}
}

// counts is "3 voters, 2 healthy".
func (c *Cluster) counts() string {
	voters := "voters"
	if c.Voters == 1 {
		voters = "voter"
	}
	return fmt.Sprintf("%d %s, %d healthy", c.Voters, voters, c.Healthy)
}

// MayFail is how many healthy voters may be lost from now on without the quorum
// being lost; negative when it is lost already.
func MayFail(c *Cluster) int {
	if c.Voters == 0 {
		return 0
	}
	return c.Healthy - c.Quorum
}

// vacant says whether nobody serves what the cluster holds of a guest: its Node
// is not Ready and its etcd member does not answer. What is not known is served.
func (l leaving) vacant() bool {
	quiet := l.node == nil || no(l.node.GetReady()) || strings.Contains(l.node.GetReady().GetReason(), nodeStatusUnknown)
	return quiet && (l.member == nil || no(l.member.GetHealthy()))
}

// nodeStatusUnknown is what Kubernetes itself says of a Node whose kubelet has
// been silent for its grace period.
const nodeStatusUnknown = "NodeStatusUnknown"

// planLeave adds the step that takes what the cluster holds of a guest out of it,
// through another server.
func (m *model) planLeave(g *guestView, l leaving, server *guestView, after []string, reason string) {
	if l.sentence != "" {
		reason += " (" + l.sentence + ")"
	}
	s := m.stepOn(server.host, g, homelabv1.Action_ACTION_LEAVE, "leave", after, reason)
	s.Through, s.MemberId = server.name, l.member.GetId()
}

// planSnapshot adds an etcd snapshot before a server goes.
func (m *model) planSnapshot(g, server *guestView, after []string) {
	s := m.stepOn(server.host, g, homelabv1.Action_ACTION_SNAPSHOT, "snapshot", after, "etcd's state is kept on "+server.host.name+", taken through "+server.name)
	s.Through = server.name
}

// planDrain adds the draining of a Node that is Ready and whose guest runs; one
// whose kubelet is silent cannot be drained.
func (m *model) planDrain(g *guestView, l leaving, server *guestView) {
	if !yes(l.node.GetReady()) || g.situation == Stopped || g.situation == Paused {
		return
	}
	s := m.stepOn(server.host, g, homelabv1.Action_ACTION_DRAIN, "drain", nil, "its workloads move first")
	s.Through = server.name
}

// remains judges whether what an earlier VM of a guest left in the cluster may be
// taken out: a new one cannot join beside it. Somebody who still serves it may be
// another machine of that name, and is left alone.
func (m *model) remains(g *guestView, why string) (leaving, verdict) {
	l, v := m.leave(g)
	if v.against() {
		return l, prefixed(why+"\n", v)
	}
	if !l.vacant() {
		return l, skipped(why + ", and it is served still: another machine may have its name\nlook at it: hlctl k3s status; then run it again")
	}
	if _, v := m.through(g); v.against() {
		return l, prefixed(why+"\n", v)
	}
	return l, m.strangeLearner(g)
}

// MemberOf is what the cluster holds of a guest, for its removal.
func MemberOf(want Want, seen Seen, guest string) *homelabv1.MemberRef {
	m := newModel(want, seen, maxTime)
	g := m.view(guest)
	if g == nil {
		return &homelabv1.MemberRef{}
	}
	l, _ := m.leave(g)
	addresses := g.addresses()
	slices.Sort(addresses)
	return &homelabv1.MemberRef{
		Node: g.want.NodeName(), NodeUid: l.node.GetUid(), EtcdId: l.member.GetId(), EtcdName: l.member.GetName(),
		Addresses: slices.Compact(addresses), Needed: int32(l.needed), //nolint:gosec // a count of members
	}
}
