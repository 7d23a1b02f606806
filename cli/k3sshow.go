package cli

import (
	"fmt"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

func (a *app) showMembers(docs []memberDoc) {
	if len(docs) == 0 {
		fmt.Fprintln(a.out, "No member is known.  hlctl k3s status")
		return
	}
	var rows [][]cell
	for _, m := range docs {
		vote, health := "-", cell{"unwell", red}
		switch {
		case m.Voter:
			vote = "voter"
		case m.Learner:
			vote = "learner"
		}
		if m.Healthy {
			health = cell{"healthy", green}
		}
		guest := plain(m.Guest)
		if m.Guest == "" {
			guest = cell{"none (ghost)", red}
		}
		rows = append(rows, []cell{guest, plain(m.Role), plain(vote), health, plain(m.Name), plain(m.ID)})
	}
	a.table([]string{"GUEST", "ROLE", "ETCD", "HEALTH", "NAME", "ID"}, rows)
}

func (a *app) showCluster(resp *controllerv1.StatusResponse) {
	c := resp.GetCluster()
	if c == nil {
		fmt.Fprintln(a.out, "The Spec has no k3s cluster, or none was applied yet.  hlctl apply -f homelab.yaml")
		return
	}
	fmt.Fprintf(a.out, "k3s %s   %s\n", c.GetVersion(), votersText(c))
	a.showClusterTroubles(resp)
	rows := nodeRows(resp)
	if len(rows) == 0 {
		return
	}
	fmt.Fprintln(a.out)
	a.table([]string{"GUEST", "NODE", "ROLE", "READY", "VERSION", "ADDRESS", "ETCD"}, rows)
}

// votersText is the state of etcd in half a line: 3 voters (1 may fail).
func votersText(c *controllerv1.ClusterStatus) string {
	if c.GetVoters() == 0 {
		return "voters unknown"
	}
	text := plural(int(c.GetVoters()), "voter", "voters")
	if c.GetHealthyVoters() != c.GetVoters() {
		text += fmt.Sprintf(", %d healthy", c.GetHealthyVoters())
	}
	spare := int(c.GetHealthyVoters()) - int(c.GetQuorum())
	if spare < 0 {
		return text + fmt.Sprintf(" (no quorum: %d are needed)", c.GetQuorum())
	}
	return text + fmt.Sprintf(" (%d may fail)", spare)
}

// showClusterTroubles tells what is wrong with the cluster, one line each.
func (a *app) showClusterTroubles(resp *controllerv1.StatusResponse) {
	c := resp.GetCluster()
	if c == nil {
		return
	}
	if c.GetApi().GetTruth() != homelabv1.Truth_TRUTH_YES {
		a.trouble(silentAPI(c), "hlctl guests")
	}
	if e := c.GetEtcd(); e.GetTruth() != homelabv1.Truth_TRUTH_YES && e.GetReason() != c.GetApi().GetReason() {
		a.trouble("etcd did not answer", e.GetReason())
	}
	if c.GetVoters() == 2 {
		a.trouble("two voters: the loss of either stops the cluster", "add a third server")
	}
	for _, n := range c.GetNodes() {
		if n.GetVersion() != c.GetVersion() {
			a.trouble("node "+n.GetName()+" runs "+n.GetVersion(), "the Spec pins "+c.GetVersion())
		}
		if guestOfNode(resp, n.GetName()) == "" {
			a.trouble("node "+n.GetName()+" belongs to no guest (ghost)", "")
		}
	}
	for _, m := range c.GetMembers() {
		e := m.GetMember()
		switch {
		case m.GetGuest() == "":
			a.trouble(fmt.Sprintf("etcd member %s (%s) belongs to no guest (ghost)", e.GetName(), e.GetId()), "")
		case e.GetLearner():
			a.trouble("etcd member of "+m.GetGuest()+" is a learner, without a vote", "")
		case e.GetHealthy().GetTruth() != homelabv1.Truth_TRUTH_YES:
			a.trouble("etcd member of "+m.GetGuest()+" is unwell", e.GetHealthy().GetReason())
		}
	}
}

// nodeRows are the Nodes, and the guests that should be Nodes and are not.
func nodeRows(resp *controllerv1.StatusResponse) [][]cell {
	c := resp.GetCluster()
	var rows [][]cell
	seen := map[string]bool{}
	for _, n := range c.GetNodes() {
		seen[n.GetName()] = true
		ready := cell{"unknown", yellow}
		switch n.GetReady().GetTruth() {
		case homelabv1.Truth_TRUTH_YES:
			ready = cell{"Ready", green}
		case homelabv1.Truth_TRUTH_NO:
			ready = cell{"NotReady", red}
		}
		guest := plain(guestOfNode(resp, n.GetName()))
		if guest.text == "" {
			guest = cell{"none (ghost)", red}
		}
		rows = append(rows, []cell{
			guest, plain(n.GetName()), plain(nodeRole(n)), ready, plain(n.GetVersion()), plain(n.GetAddress()), plain(etcdOf(c, n.GetName())),
		})
	}
	known := c.GetApi().GetTruth() == homelabv1.Truth_TRUTH_YES
	for _, g := range resp.GetGuests() {
		if g.GetRole() == homelabv1.Role_ROLE_UNSPECIFIED || seen[g.GetNodeName()] || g.GetHealth() == controllerv1.Health_HEALTH_STANDBY {
			continue
		}
		ready := cell{"unknown", yellow}
		if known {
			ready = cell{"no Node", red}
		}
		rows = append(rows, []cell{
			plain(g.GetName()), plain(g.GetNodeName()), plain(roleWord(g.GetRole())), ready, plain("-"), plain("-"), plain(etcdOf(c, g.GetNodeName())),
		})
	}
	return rows
}

// etcdOf is what a node is in etcd.
func etcdOf(c *controllerv1.ClusterStatus, node string) string {
	for _, m := range c.GetMembers() {
		if m.GetNode() == node {
			if m.GetMember().GetLearner() {
				return "learner"
			}
			return "voter"
		}
	}
	return "-"
}
