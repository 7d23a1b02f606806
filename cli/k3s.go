package cli

import (
	"errors"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
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
	API           string `json:"api"`
	Etcd          string `json:"etcd"`
	Version       string `json:"version"`
	Voters        int32  `json:"voters"`
	HealthyVoters int32  `json:"healthyVoters"`
	Quorum        int32  `json:"quorum"`
	// MayFail is negative when the quorum is lost, null when it is not known.
	MayFail  *int32       `json:"mayFail"`
	Nodes    []nodeDoc    `json:"nodes"`
	Members  []memberDoc  `json:"members"`
	Findings []findingDoc `json:"findings"`
}

// findingDoc is one thing that does not agree, in JSON.
type findingDoc struct {
	Kind  string `json:"kind"`
	Guest string `json:"guest"`
	Name  string `json:"name"`
	Text  string `json:"text"`
	Bad   bool   `json:"bad"`
}

func (a *app) k3sCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "k3s", Short: "The k3s cluster: how it is, who is in it, its snapshots", Args: cobra.NoArgs,
		Long: `k3s shows the cluster that the guests form, as its servers tell it, and has guests
join and leave it in the safe order.

status and members end with exit code 3 when the k3s API does not answer.`,
		Example: "  hlctl k3s status\n  hlctl k3s members -o json\n  hlctl k3s rejoin k3s-3\n  hlctl k3s snapshot\n  hlctl k3s kubeconfig",
	}
	cmd.AddCommand(a.k3sOperations()...)
	cmd.AddCommand(
		&cobra.Command{
			Use: "status", Short: "Show nodes, members and the Spec side by side", Args: cobra.NoArgs,
			Long: `status shows the Spec's guests, the Kubernetes nodes and the etcd members side by
side. Below them stands what does not agree: nodes and members that belong to no guest
(ghosts), learners, other versions than the Spec pins, addresses, names missing in
certificates, server flags that differ. Last comes the quorum: how many voters there
are, how many are needed, and what the next loss means.

Exit code 3 when the k3s API does not answer.`,
			Example: "  hlctl k3s status\n  hlctl k3s status -o json | jq '.nodes[] | select(.ready != true)'",
			RunE: func(cmd *cobra.Command, _ []string) error {
				resp, err := a.status(cmd.Context(), true, true)
				if err != nil {
					return err
				}
				doc := clusterJSON(resp)
				if doc == nil {
					doc = &clusterDoc{API: "unknown", Etcd: "unknown", Nodes: []nodeDoc{}, Members: []memberDoc{}, Findings: []findingDoc{}}
				}
				if err := a.print(doc, func() { a.showCluster(resp) }); err != nil {
					return err
				}
				return clusterExit(resp)
			},
		},
		&cobra.Command{
			Use: "members", Short: "Show the cluster's members: etcd's, and agents", Args: cobra.NoArgs,
			Long: `members shows the members of the cluster: servers as etcd knows them, agents as
Kubernetes does. A member of no guest is a ghost. Healthy is an etcd member that
answers and knows its leader, or an agent whose Node is Ready.

Exit code 3 when the k3s API does not answer.`,
			Example: "  hlctl k3s members\n  hlctl k3s members -o json | jq -r '.[] | select(.guest == \"\") | .id'",
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
			Long: `kubeconfig prints the admin kubeconfig of the cluster, its server address made
reachable: the Spec's endpoint, or a healthy server. It is a secret: whoever has it
is the cluster's admin.`,
			Example: "  (umask 077; hlctl k3s kubeconfig > ~/.kube/homelab)\n  KUBECONFIG=~/.kube/homelab kubectl get nodes",
			RunE: func(cmd *cobra.Command, _ []string) error {
				c, err := a.connect(cmd.Context())
				if err != nil {
					return err
				}
				defer c.close()
				resp, err := ask(cmd.Context(), c.Kubeconfig, &controllerv1.KubeconfigRequest{})
				if err != nil {
					return err
				}
				if a.format == "json" {
					var v any
					if err := yaml.Unmarshal(resp.GetKubeconfig(), &v); err != nil {
						return errors.New("the kubeconfig is not YAML; look at it with: hlctl k3s kubeconfig") // its text is secret
					}
					return a.print(v, nil)
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
	return &exitError{code: exitPartial, err: errors.New(silentAPI(c) + "; see the guests: hlctl guests")}
}

func silentAPI(c *controllerv1.ClusterStatus) string {
	if r := c.GetApi().GetReason(); r != "" {
		return "the k3s API did not answer: " + r
	}
	return "the k3s API did not answer"
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
	if c.GetVoters() > 0 {
		n := c.GetMayFail()
		doc.MayFail = &n
	}
	doc.Findings = []findingDoc{}
	for _, f := range c.GetFindings() {
		doc.Findings = append(doc.Findings, findingDoc{f.GetKind(), f.GetGuest(), f.GetName(), f.GetText(), f.GetBad()})
	}
	for _, n := range c.GetNodes() {
		node := nodeDoc{Name: n.GetName(), Guest: guestOfNode(resp, n.GetName()), Role: nodeRole(n), Version: n.GetVersion(), Address: n.GetAddress(), Ready: truthOrNull(n.GetReady())}
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
