package plan

import (
	"fmt"
	"strings"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// membership is what a member guest is to the cluster.
type membership string

const (
	memberUnknown membership = "unknown" // it cannot be told
	memberHealthy membership = "healthy" // Ready, of the right version, a healthy voter if a server
	memberNot     membership = "not"     // seen not to be there, or its join not ended
	memberUnwell  membership = "unwell"  // a member, and not as it should be
	memberStale   membership = "stale"   // the cluster still holds what an earlier VM of it was
)

// membership tells what the guest is to the cluster, and why. An API that did
// not answer never makes it memberNot.
func (m *model) membership(g *guestView) (membership, string) {
	c := m.cluster
	if !yes(c.API) {
		return memberUnknown, "membership unknown: k3s API does not answer" + because(c.API)
	}
	if c.Split != "" {
		return memberUnknown, "membership unknown: " + c.Split
	}
	if g.want.IsServer() && !yes(c.Etcd) {
		return memberUnknown, "membership unknown: etcd does not answer" + because(c.Etcd)
	}
	name := g.want.NodeName()
	node := c.Node(name)
	var etcd *homelabv1.EtcdMember
	if g.want.IsServer() {
		etcd = c.Member(name, g.addresses())
	}
	voter := etcd != nil && !etcd.GetLearner() && etcd.GetName() != ""
	switch {
	case node == nil && etcd != nil && !voter:
		return memberNot, "its join did not end: its etcd member has no vote yet"
	case node == nil && !voter:
		return memberNot, ""
	}
	if !g.holdsK3s() {
		what := "Node " + name
		if node == nil {
			what = "etcd member " + etcd.GetName()
		}
		return memberStale, what + " of an earlier VM of it is still in the cluster"
	}
	switch {
	case etcd.GetLearner() || node == nil && g.unended():
		return memberNot, "its join did not end"
	case node == nil:
		return memberUnwell, "its etcd member " + etcd.GetName() + " is there, its Node is not"
	case etcd == nil && g.want.IsServer() && g.unended():
		return memberNot, "its join did not end"
	case etcd == nil && g.want.IsServer():
		return memberUnwell, "Node " + name + " is there, its etcd member is not"
	}
	return m.judge(g, node, etcd)
}

// unended says that no join of it has ended, as far as anybody knows. Of a guest
// that was not remembered from its creation on, nothing is known of its join.
func (g *guestView) unended() bool { return g.remembered() && !g.mem.Joined }

// remembered says that what is remembered is of this very VM, from its creation
// on.
func (g *guestView) remembered() bool {
	return g.vm != nil && g.mem.Made && g.mem.UUID == g.vm.GetUuid() && g.mem.Generation == g.owner.Generation
}

// judge is how a guest with a Node, and a voter if it is a server, does.
func (m *model) judge(g *guestView, node *homelabv1.Node, etcd *homelabv1.EtcdMember) (membership, string) {
	name := node.GetName()
	switch {
	case no(node.GetReady()) && g.unended():
		return memberNot, "its join did not end: Node " + name + " is not Ready"
	case no(node.GetReady()):
		return memberUnwell, "Node " + name + " is not Ready" + because(node.GetReady())
	case !yes(node.GetReady()):
		return memberUnknown, "whether Node " + name + " is Ready is not known" + because(node.GetReady())
	case m.spec.K3s != nil && node.GetVersion() != "" && node.GetVersion() != m.spec.K3s.Version:
		return memberUnwell, fmt.Sprintf("Node %s runs k3s %s, the Spec pins %s", name, node.GetVersion(), m.spec.K3s.Version)
	case etcd == nil || yes(etcd.GetHealthy()):
		return memberHealthy, ""
	case no(etcd.GetHealthy()):
		return memberUnwell, "its etcd member " + etcd.GetName() + " is not healthy" + because(etcd.GetHealthy())
	}
	return memberUnknown, "whether its etcd member " + etcd.GetName() + " is healthy is not known" + because(etcd.GetHealthy())
}

// holdsK3s says whether the VM that there is can be the one that the cluster
// knows by the guest's name. A VM still to be made, or seen to hold no k3s
// data, is not.
func (g *guestView) holdsK3s() bool {
	if g.vm == nil {
		return false
	}
	k := g.look.GetK3S()
	if g.neverBooted() && !yes(k.GetServerData()) && !yes(k.GetAgentData()) {
		return false
	}
	if g.want.IsServer() {
		return !no(k.GetServerData())
	}
	return !no(k.GetAgentData())
}

// addresses are those at which the guest is known, without prefix length.
func (g *guestView) addresses() []string {
	var all []string
	for _, nic := range g.want.NICs {
		if nic.Address.IsValid() {
			all = append(all, nic.Address.Addr().String())
		}
	}
	all = append(all, g.mem.Addresses...)
	all = append(all, g.vm.GetAddresses()...)
	for _, a := range g.look.GetAddresses() {
		a, _, _ = strings.Cut(a, "/")
		all = append(all, a)
	}
	return all
}

// neverBooted says whether what is remembered proves that the VM has not booted
// yet, so that there can be no k3s in it: k3s comes after BOOT, and what BOOT
// learns is remembered before. Without memory nothing is proved.
func (g *guestView) neverBooted() bool {
	return g.remembered() && g.mem.MachineID == "" && !g.mem.Joined
}
