package cli

import (
	"fmt"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/spf13/cobra"
)

// memberDoc is one member in JSON; its fields are a contract.
type memberDoc struct {
	Name    string `json:"name"`
	ID      string `json:"id"`
	Guest   string `json:"guest"`
	Role    string `json:"role"`
	Voter   bool   `json:"voter"`
	Learner bool   `json:"learner"`
	Healthy bool   `json:"healthy"`
}

// nodeDoc is one Kubernetes Node in JSON.
type nodeDoc struct {
	Name    string `json:"name"`
	Guest   string `json:"guest"`
	Role    string `json:"role"`
	Ready   *bool  `json:"ready"`
	Version string `json:"version"`
	Address string `json:"address"`
}

// clusterDoc is the cluster in JSON.
type clusterDoc struct {
	API           string      `json:"api"`
	Etcd          string      `json:"etcd"`
	Version       string      `json:"version"`
	Voters        int32       `json:"voters"`
	HealthyVoters int32       `json:"healthyVoters"`
	Quorum        int32       `json:"quorum"`
	Nodes         []nodeDoc   `json:"nodes"`
	Members       []memberDoc `json:"members"`
}

func (a *app) k3sCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "k3s", Short: "The k3s cluster: status, members, kubeconfig", Args: cobra.NoArgs}
	cmd.AddCommand(
		&cobra.Command{
			Use: "status", Short: "Show nodes, members and the Spec side by side", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				resp, err := a.status(cmd.Context(), true, true)
				if err != nil {
					return err
				}
				if err := a.print(clusterJSON(resp), func() { a.showCluster(resp) }); err != nil {
					return err
				}
				return clusterExit(resp)
			},
		},
		&cobra.Command{
			Use: "members", Short: "Show the cluster's members: etcd's, and agents", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				resp, err := a.status(cmd.Context(), true, true)
				if err != nil {
					return err
				}
				docs := membersJSON(resp)
				if err := a.print(docs, func() { a.showMembers(docs) }); err != nil {
					return err
				}
				return clusterExit(resp)
			},
		},
		&cobra.Command{
			Use: "kubeconfig", Short: "Print the cluster's admin kubeconfig (a secret)", Args: cobra.NoArgs,
			Example: "  hlctl k3s kubeconfig > ~/.kube/homelab && chmod 600 ~/.kube/homelab",
			RunE: func(cmd *cobra.Command, _ []string) error {
				c, err := a.connect(cmd.Context())
				if err != nil {
					return err
				}
				defer c.close()
				resp, err := c.Kubeconfig(cmd.Context(), &controllerv1.KubeconfigRequest{})
				if err != nil {
					return err
				}
				_, err = a.out.Write(resp.GetKubeconfig())
				return err
			},
		},
	)
	return cmd
}

// clusterExit is 3 when the k3s API is silent although there should be a cluster.
func clusterExit(resp *controllerv1.StatusResponse) error {
	c := resp.GetCluster()
	if c == nil || c.GetApi().GetTruth() == homelabv1.Truth_TRUTH_YES {
		return nil
	}
	return &ExitError{Code: exitPartial, Err: fmt.Errorf("the k3s API did not answer: %s", c.GetApi().GetReason())}
}

func truthWord(f *homelabv1.Fact) string {
	switch f.GetTruth() {
	case homelabv1.Truth_TRUTH_YES:
		return "yes"
	case homelabv1.Truth_TRUTH_NO:
		return "no"
	}
	return "unknown"
}

func clusterJSON(resp *controllerv1.StatusResponse) *clusterDoc {
	c := resp.GetCluster()
	if c == nil {
		return nil
	}
	doc := &clusterDoc{
		API: truthWord(c.GetApi()), Etcd: truthWord(c.GetEtcd()), Version: c.GetVersion(), Voters: c.GetVoters(),
		HealthyVoters: c.GetHealthyVoters(), Quorum: c.GetQuorum(), Nodes: []nodeDoc{}, Members: membersJSON(resp),
	}
	for _, n := range c.GetNodes() {
		node := nodeDoc{Name: n.GetName(), Guest: guestOfNode(resp, n.GetName()), Role: nodeRole(n), Version: n.GetVersion(), Address: n.GetAddress()}
		if t := n.GetReady().GetTruth(); t == homelabv1.Truth_TRUTH_YES || t == homelabv1.Truth_TRUTH_NO {
			ready := t == homelabv1.Truth_TRUTH_YES
			node.Ready = &ready
		}
		doc.Nodes = append(doc.Nodes, node)
	}
	return doc
}

func nodeRole(n *homelabv1.Node) string {
	if n.GetServer() {
		return "server"
	}
	return "agent"
}

// guestOfNode is the guest whose node name it is; empty for a node of none.
func guestOfNode(resp *controllerv1.StatusResponse, node string) string {
	for _, g := range resp.GetGuests() {
		if g.GetNodeName() == node && g.GetRole() != homelabv1.Role_ROLE_UNSPECIFIED {
			return g.GetName()
		}
	}
	return ""
}

// membersJSON lists etcd's members and, without id and vote, the agents.
func membersJSON(resp *controllerv1.StatusResponse) []memberDoc {
	docs := []memberDoc{}
	for _, m := range resp.GetCluster().GetMembers() {
		e := m.GetMember()
		docs = append(docs, memberDoc{
			Name: e.GetName(), ID: e.GetId(), Guest: m.GetGuest(), Role: "server", Voter: !e.GetLearner(), Learner: e.GetLearner(),
			Healthy: e.GetHealthy().GetTruth() == homelabv1.Truth_TRUTH_YES,
		})
	}
	for _, n := range resp.GetCluster().GetNodes() {
		if !n.GetServer() {
			docs = append(docs, memberDoc{
				Name: n.GetName(), Guest: guestOfNode(resp, n.GetName()), Role: "agent",
				Healthy: n.GetReady().GetTruth() == homelabv1.Truth_TRUTH_YES,
			})
		}
	}
	return docs
}

func (a *app) showMembers(docs []memberDoc) {
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
	a.table(a.out, []string{"GUEST", "ROLE", "ETCD", "HEALTH", "NAME", "ID"}, rows)
}

func (a *app) showCluster(resp *controllerv1.StatusResponse) {
	c := resp.GetCluster()
	if c == nil {
		fmt.Fprintln(a.out, "The Spec has no k3s cluster, or none was applied yet.")
		return
	}
	fmt.Fprintf(a.out, "k3s %s   API %s, etcd %s, %s, %d healthy, quorum %d (%s)\n\n", c.GetVersion(), fact(c.GetApi()), fact(c.GetEtcd()),
		plural(int(c.GetVoters()), "voter", "voters"), c.GetHealthyVoters(), c.GetQuorum(), mayFail(c))
	var rows [][]cell
	seen := map[string]bool{}
	for _, n := range c.GetNodes() {
		seen[n.GetName()] = true
		ready := cell{"Ready", green}
		if n.GetReady().GetTruth() != homelabv1.Truth_TRUTH_YES {
			ready = cell{"NotReady", red}
		}
		version := plain(n.GetVersion())
		if n.GetVersion() != c.GetVersion() {
			version.colour = yellow
		}
		guest := plain(guestOfNode(resp, n.GetName()))
		if guest.text == "" {
			guest = cell{"none (ghost)", red}
		}
		rows = append(rows, []cell{guest, plain(n.GetName()), plain(nodeRole(n)), ready, version, plain(n.GetAddress()), plain(etcdOf(c, n.GetName()))})
	}
	for _, g := range resp.GetGuests() {
		if g.GetRole() != homelabv1.Role_ROLE_UNSPECIFIED && !seen[g.GetNodeName()] && g.GetHealth() != controllerv1.Health_HEALTH_STANDBY {
			rows = append(rows, []cell{plain(g.GetName()), plain(g.GetNodeName()), plain(roleWord(g.GetRole())), {"no Node", red}, plain(""), plain(""), plain(etcdOf(c, g.GetNodeName()))})
		}
	}
	a.table(a.out, []string{"GUEST", "NODE", "ROLE", "READY", "VERSION", "ADDRESS", "ETCD"}, rows)
	for _, m := range c.GetMembers() {
		if m.GetGuest() == "" {
			fmt.Fprintf(a.out, "%s etcd member %s (%s) belongs to no guest\n", a.paint(red, "!"), m.GetMember().GetName(), m.GetMember().GetId())
		}
	}
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
