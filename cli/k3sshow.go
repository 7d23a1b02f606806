package cli

import (
	"fmt"
	"slices"

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
	if rows := sideBySide(resp); len(rows) > 0 {
		fmt.Fprintln(a.out)
		heading := []string{"GUEST", "NODE", "READY", "VERSION", "ROLE", "ETCD"}
		// Where no Node bears another name, the column would only take room.
		if !slices.ContainsFunc(rows, func(r []cell) bool { return r[1].text != r[0].text && r[1].text != "-" }) {
			heading = slices.Delete(heading, 1, 2)
			for i := range rows {
				rows[i] = slices.Delete(rows[i], 1, 2)
			}
		}
		a.table(heading, rows)
	}
	gap := "\n"
	for _, f := range c.GetFindings() {
		if noAnswer(f) {
			continue // said above
		}
		mark, colour := "-", yellow
		if f.GetBad() {
			mark, colour = "!", red
		}
		fmt.Fprintf(a.out, "%s%s %s\n", gap, a.paint(colour, mark), a.wrap(findingText(f), 2))
		gap = ""
	}
	fmt.Fprintf(a.out, "\n%s\n", a.wrap(quorumText(c), 0))
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
	if c.GetMayFail() < 0 {
		return text + " (no quorum)"
	}
	return text + fmt.Sprintf(" (%d may fail)", c.GetMayFail())
}

// quorumText is the arithmetic of the quorum, and what the next loss means.
func quorumText(c *controllerv1.ClusterStatus) string {
	if c.GetVoters() == 0 {
		return "The voters are not known, so whether one may fail is not either."
	}
	text := fmt.Sprintf("%s, %d healthy, %d needed: ", plural(int(c.GetVoters()), "voter", "voters"), c.GetHealthyVoters(), c.GetQuorum())
	switch left := c.GetMayFail(); {
	case left < 0:
		return text + fmt.Sprintf("the quorum is lost; nothing in the cluster can change until %d more %s back.", -left, isAre(int(-left)))
	case left == 0 && c.GetVoters() == 1:
		return text + "none may fail; with the only server the cluster stops."
	case left == 0:
		return text + "none may fail; the next loss of a voter stops the cluster."
	case left == 1:
		return text + "1 may fail; after that the next loss stops the cluster."
	default:
		return text + fmt.Sprintf("%d may fail; after the next loss %d still may.", left, left-1)
	}
}

// showClusterTroubles tells what could not be asked; what does not agree are the
// findings.
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
}

// sideBySide are the guests of the Spec, each with its Node and its etcd member,
// and then the Nodes and members that belong to no guest.
func sideBySide(resp *controllerv1.StatusResponse) [][]cell {
	c := resp.GetCluster()
	known := c.GetApi().GetTruth() == homelabv1.Truth_TRUTH_YES
	nodes, members := map[string]*homelabv1.Node{}, map[string]*controllerv1.MemberStatus{}
	for _, n := range c.GetNodes() {
		nodes[n.GetName()] = n
	}
	for _, m := range c.GetMembers() {
		if m.GetGuest() != "" {
			members[m.GetGuest()] = m
		}
	}
	var rows [][]cell
	for _, g := range resp.GetGuests() {
		n, m := nodes[g.GetNodeName()], members[g.GetName()]
		if g.GetRole() == homelabv1.Role_ROLE_UNSPECIFIED || n == nil && m == nil && g.GetHealth() == controllerv1.Health_HEALTH_STANDBY {
			continue
		}
		row := nodeCells(n, known)
		if n == nil {
			row[3] = plain(roleWord(g.GetRole()))
		}
		expected := g.GetRole() == homelabv1.Role_ROLE_SERVER && c.GetEtcd().GetTruth() == homelabv1.Truth_TRUTH_YES
		rows = append(rows, slices.Concat([]cell{plain(g.GetName())}, row, []cell{etcdCell(m, expected)}))
	}
	ghost := cell{"none (ghost)", red}
	for _, n := range c.GetNodes() {
		if guestOfNode(resp, n.GetName()) != "" {
			continue
		}
		var own *controllerv1.MemberStatus
		for _, m := range c.GetMembers() {
			if m.GetGuest() == "" && m.GetNode() == n.GetName() {
				own = m
			}
		}
		rows = append(rows, slices.Concat([]cell{ghost}, nodeCells(n, known), []cell{etcdCell(own, false)}))
	}
	for _, m := range c.GetMembers() {
		if m.GetGuest() == "" && (m.GetNode() == "" || nodes[m.GetNode()] == nil) {
			rows = append(rows, []cell{ghost, plain("-"), plain("-"), plain("-"), plain("-"), etcdCell(m, false)})
		}
	}
	return rows
}

// nodeCells are NODE, READY, VERSION and ROLE of a Node, or of none.
func nodeCells(n *homelabv1.Node, known bool) []cell {
	if n == nil {
		none := cell{"unknown", yellow}
		if known {
			none = cell{"no Node", red}
		}
		return []cell{plain("-"), none, plain("-"), plain("-")}
	}
	ready := cell{"unknown", yellow}
	switch n.GetReady().GetTruth() {
	case homelabv1.Truth_TRUTH_YES:
		ready = cell{"Ready", green}
	case homelabv1.Truth_TRUTH_NO:
		ready = cell{"NotReady", red}
	}
	return []cell{plain(n.GetName()), ready, plain(n.GetVersion()), plain(nodeRole(n))}
}

// etcdCell is what a guest is in etcd, and how that member is.
func etcdCell(m *controllerv1.MemberStatus, expected bool) cell {
	switch e := m.GetMember(); {
	case m == nil && expected:
		return cell{"no member", red}
	case m == nil:
		return plain("-")
	case e.GetHealthy().GetTruth() != homelabv1.Truth_TRUTH_YES:
		return cell{voteWord(e) + ", unwell", red}
	case e.GetLearner():
		return cell{"learner, healthy", yellow}
	default:
		return cell{"voter, healthy", green}
	}
}

func voteWord(e *homelabv1.EtcdMember) string {
	if e.GetLearner() {
		return "learner"
	}
	return "voter"
}
