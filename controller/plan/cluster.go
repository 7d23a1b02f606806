package plan

import (
	"fmt"
	"slices"
	"strings"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// Cluster is the k3s cluster as all servers that could be asked told it.
type Cluster struct {
	API *homelabv1.Fact // yes when at least one server's API listed the Nodes
	// Etcd is yes when at least one server's etcd listed its members, no when none
	// did and one says that the quorum is lost.
	Etcd    *homelabv1.Fact
	Nodes   []*homelabv1.Node
	Members []*homelabv1.EtcdMember
	Voters  int // members that are no learners
	Healthy int // voters seen to be healthy
	Quorum  int // healthy voters needed: Voters/2+1; 0 without voters
	// Split is why the servers do not tell of one cluster; empty when they do.
	Split string

	nodes map[string]*homelabv1.Node
	found []string // who holds k3s data or an API: a cluster was seen
}

// ClusterOf merges what the looks into server guests, and an existing server,
// told. A Node is Ready only when nobody says otherwise; a member is healthy
// when anybody saw it answer; it is a learner when anybody says so.
func ClusterOf(want Want, seen Seen) *Cluster {
	var order []*hostView
	for _, name := range want.Spec.HostNames() {
		order = append(order, newHostView(want.Spec.Hosts[name], seen.Hosts[name], want.Paused))
	}
	return clusterOf(seen, order)
}

func clusterOf(seen Seen, hosts []*hostView) *Cluster {
	c := &Cluster{
		nodes: map[string]*homelabv1.Node{},
		API:   &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_UNKNOWN, Reason: "no server could be asked"},
		Etcd:  &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_UNKNOWN, Reason: "no server could be asked"},
	}
	members, ids := map[string]*homelabv1.EtcdMember{}, map[string]bool{}
	looks := map[string][]*homelabv1.GuestLook{}
	for _, h := range hosts {
		if h.obs == nil {
			continue
		}
		for name, l := range h.seen.Looked {
			looks[name] = append(looks[name], l)
		}
		for _, l := range h.obs.GetLooks() {
			if name := l.GetIdentity().GetGuest(); h.seen.Looked[name] == nil {
				looks[name] = append(looks[name], l)
			}
		}
	}
	for _, name := range sorted(looks) {
		for _, l := range looks[name] {
			c.merge(name, l.GetK3S(), members, ids)
		}
	}
	if seen.External != nil {
		c.merge("the existing server", seen.External, members, ids)
	}
	if !yes(c.Etcd) && yes(seen.External.GetNodes().GetKnown()) {
		c.guess(seen.External.GetNodes().GetNodes(), members)
	}
	c.finish(members, ids)
	return c
}

func (c *Cluster) merge(who string, k *homelabv1.K3SLook, members map[string]*homelabv1.EtcdMember, ids map[string]bool) {
	if yes(k.GetServerData()) || yes(k.GetServerActive()) || yes(k.GetAgentData()) || yes(k.GetAgentActive()) ||
		len(k.GetNodes().GetNodes()) > 0 || len(k.GetEtcd().GetMembers()) > 0 {
		c.found = append(c.found, who)
	}
	told(&c.API, k.GetNodes().GetKnown(), who)
	if yes(k.GetNodes().GetKnown()) {
		for _, n := range k.GetNodes().GetNodes() {
			if old := c.nodes[n.GetName()]; old == nil || worse(n.GetReady(), old.GetReady()) {
				c.nodes[n.GetName()] = n
			}
		}
	}
	told(&c.Etcd, k.GetEtcd().GetKnown(), who)
	if !yes(k.GetEtcd().GetKnown()) {
		return
	}
	if id := k.GetEtcd().GetClusterId(); id != "" {
		ids[id] = true
	}
	for _, e := range k.GetEtcd().GetMembers() {
		old := members[e.GetId()]
		if old == nil {
			old = &homelabv1.EtcdMember{Id: e.GetId(), Name: e.GetName(), PeerUrls: slices.Clone(e.GetPeerUrls()), Learner: e.GetLearner(), Healthy: e.GetHealthy()}
			members[e.GetId()] = old
			continue
		}
		old.Learner = old.GetLearner() || e.GetLearner()
		if old.GetName() == "" {
			old.Name = e.GetName()
		}
		if worse(old.GetHealthy(), e.GetHealthy()) {
			old.Healthy = e.GetHealthy()
		}
	}
}

// guess takes the members of an existing cluster from its Nodes, as long as no
// server of ours has joined it whose etcd could be asked: k3s writes the
// member's name into the Node, and a server that is Ready has a healthy one.
func (c *Cluster) guess(nodes []*homelabv1.Node, members map[string]*homelabv1.EtcdMember) {
	for _, n := range nodes {
		if n.GetServer() && n.GetEtcdName() != "" {
			members["node/"+n.GetName()] = &homelabv1.EtcdMember{Id: "node/" + n.GetName(), Name: n.GetEtcdName(), Healthy: n.GetReady()}
		}
	}
	c.Etcd = &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_YES, Reason: "from the Nodes of the existing server"}
}

// told keeps the best answer to whether a list was readable.
func told(have **homelabv1.Fact, f *homelabv1.Fact, who string) {
	switch {
	case yes(*have):
	case yes(f):
		*have = &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_YES}
	case no(*have):
	case no(f):
		*have = &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_NO, Reason: who + ": " + f.GetReason()}
	case f.GetReason() != "":
		*have = &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_UNKNOWN, Reason: who + ": " + f.GetReason()}
	}
}

// worse orders facts: no is worse than unknown, unknown worse than yes.
func worse(a, b *homelabv1.Fact) bool {
	rank := func(f *homelabv1.Fact) int {
		switch {
		case no(f):
			return 0
		case yes(f):
			return 2
		}
		return 1
	}
	return rank(a) < rank(b)
}

func (c *Cluster) finish(members map[string]*homelabv1.EtcdMember, ids map[string]bool) {
	for _, name := range sorted(c.nodes) {
		c.Nodes = append(c.Nodes, c.nodes[name])
	}
	for _, id := range sorted(members) {
		e := members[id]
		c.Members = append(c.Members, e)
		if e.GetLearner() {
			continue
		}
		c.Voters++
		if yes(e.GetHealthy()) {
			c.Healthy++
		}
	}
	if c.Voters > 0 {
		c.Quorum = c.Voters/2 + 1
	}
	if len(ids) > 1 {
		c.Split = "the servers tell of " + fmt.Sprint(len(ids)) + " etcd clusters (" + strings.Join(sorted(ids), ", ") + ")"
	}
}

// Node is the Node of that name, nil when there is none.
func (c *Cluster) Node(name string) *homelabv1.Node { return c.nodes[name] }

// Member is the etcd member of the Node of that name. k3s names its members
// <node>-<8 hex digits>; one that never started has no name yet and is known by
// its peer address, of which addresses are the guest's, without prefix length.
func (c *Cluster) Member(node string, addresses []string) *homelabv1.EtcdMember {
	var found *homelabv1.EtcdMember
	for _, e := range c.Members {
		if memberOf(e, node, addresses) && (found == nil || found.GetLearner()) {
			found = e
		}
	}
	return found
}

// peerAt says whether a member's peers reach it at one of the addresses.
func peerAt(e *homelabv1.EtcdMember, addresses []string) bool {
	return slices.ContainsFunc(e.GetPeerUrls(), func(url string) bool {
		return slices.ContainsFunc(addresses, func(a string) bool {
			return strings.Contains(url, "//"+a+":") || strings.Contains(url, "//["+a+"]:")
		})
	})
}

func memberOf(e *homelabv1.EtcdMember, node string, addresses []string) bool {
	if e.GetName() == "" {
		return peerAt(e, addresses)
	}
	suffix, ok := strings.CutPrefix(e.GetName(), node+"-")
	return ok && len(suffix) == 8 && strings.Trim(suffix, "0123456789abcdef") == ""
}

// quorum is why nothing may join now (rule 4), with the arithmetic.
func (m *model) quorum() verdict {
	c := m.cluster
	switch {
	case c.Split != "":
		return refused(c.Split + ": look at them with hlctl k3s status")
	case !yes(c.API):
		return skipped("membership unknown: k3s API does not answer" + because(c.API))
	case !yes(c.Etcd):
		return skipped("membership unknown: etcd does not answer" + because(c.Etcd))
	case c.Voters == 0:
		return refused("the cluster has no embedded etcd that servers could join")
	case c.Healthy < c.Quorum:
		return skipped(fmt.Sprintf("no quorum: %s", c.arithmetic()))
	}
	return verdict{}
}

func (c *Cluster) arithmetic() string {
	return fmt.Sprintf("%s, %d needed", c.counts(), c.Quorum)
}

// version is why a join with the Spec's version is refused.
func (m *model) version() verdict {
	for _, n := range m.cluster.Nodes {
		if n.GetServer() && n.GetVersion() != "" && n.GetVersion() != m.spec.K3s.Version {
			return refused(fmt.Sprintf("server %s runs k3s %s, the Spec pins %s: a join with another version than the cluster's is refused\n  correct k3s.version in %s, then hlctl plan",
				n.GetName(), n.GetVersion(), m.spec.K3s.Version, m.at("k3s.version")))
		}
	}
	return verdict{}
}
