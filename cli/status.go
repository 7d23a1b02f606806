package cli

import (
	"context"
	"fmt"
	"slices"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/spf13/cobra"
)

// status asks the controller for everything at once.
func (a *app) status(ctx context.Context, fresh, looks bool) (*controllerv1.StatusResponse, error) {
	c, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer c.close()
	return c.Status(ctx, &controllerv1.StatusRequest{Fresh: fresh, Looks: looks})
}

// statusDoc is the whole fleet in JSON.
type statusDoc struct {
	Fleet   string      `json:"fleet"`
	At      *string     `json:"at"`
	Run     *int64      `json:"run"`
	Hosts   []hostDoc   `json:"hosts"`
	Guests  []guestDoc  `json:"guests"`
	Cluster *clusterDoc `json:"cluster"`
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show everything on one screen, what is wrong first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := a.status(cmd.Context(), true, true)
			if err != nil {
				return err
			}
			doc := statusDoc{
				Fleet: resp.GetFleet(), At: timeOrNull(timeOf(resp.GetAt())), Hosts: hostsJSON(resp.GetHosts()),
				Guests: guestsJSON(resp.GetGuests()), Cluster: clusterJSON(resp),
			}
			if resp.GetRun() != 0 {
				run := resp.GetRun()
				doc.Run = &run
			}
			return a.print(doc, func() { a.showStatus(resp) })
		},
	}
}

func (a *app) showStatus(resp *controllerv1.StatusResponse) {
	enabled, online := 0, 0
	for _, h := range resp.GetHosts() {
		if hostState(h) == "disabled" {
			continue
		}
		enabled++
		if hostState(h) == "online" {
			online++
		}
	}
	name := resp.GetFleet()
	if name == "" {
		name = "no Spec was applied yet"
	}
	fmt.Fprintf(a.out, "%s   %d of %s online, %s", name, online, plural(enabled, "host", "hosts"), plural(len(resp.GetGuests()), "guest", "guests"))
	if c := resp.GetCluster(); c.GetVoters() > 0 {
		fmt.Fprintf(a.out, ", %s (%s)", plural(int(c.GetVoters()), "voter", "voters"), mayFail(c))
	}
	fmt.Fprintln(a.out)
	if resp.GetRun() != 0 {
		fmt.Fprintf(a.out, "%s run %d is going on   hlctl runs follow\n", a.paint(yellow, "!"), resp.GetRun())
	}
	a.showTroubles(resp)
	fmt.Fprintln(a.out)
	a.showFleet(resp)
}

// mayFail says how many voters may fail from now.
func mayFail(c *controllerv1.ClusterStatus) string {
	n := int(c.GetHealthyVoters()) - int(c.GetQuorum())
	if n < 0 {
		return "no quorum"
	}
	return fmt.Sprintf("%d may fail", n)
}

// showTroubles tells what is wrong, one line each.
func (a *app) showTroubles(resp *controllerv1.StatusResponse) {
	trouble := func(text, more string) {
		fmt.Fprintf(a.out, "%s %-42s %s\n", a.paint(red, "!"), text, more)
	}
	for _, h := range resp.GetHosts() {
		state := hostState(h)
		if state == "online" || state == "disabled" {
			continue
		}
		text := h.GetName() + " " + state
		if h.GetSince() != nil {
			text += " since " + ago(h.GetSince().AsTime(), a.now())
		}
		trouble(text, h.GetReason())
	}
	for _, g := range resp.GetGuests() {
		if h := healthWord(g.GetHealth()); h == "unwell" || h == "unknown" || h == "booting" {
			trouble(g.GetName()+" "+h, g.GetReason())
		}
	}
	c := resp.GetCluster()
	if c != nil && c.GetApi().GetTruth() != homelabv1.Truth_TRUTH_YES && len(resp.GetGuests()) > 0 {
		trouble("the k3s API did not answer", c.GetApi().GetReason())
	}
	if c.GetVoters() == 2 {
		trouble("two servers: the loss of either stops the cluster", "add a third")
	}
	for _, m := range c.GetMembers() {
		if m.GetGuest() == "" {
			trouble("etcd member "+m.GetMember().GetName()+" belongs to no guest", "hlctl k3s members")
		}
	}
}

func (a *app) showFleet(resp *controllerv1.StatusResponse) {
	var rows [][]cell
	for _, h := range resp.GetHosts() {
		state, o := hostState(h), h.GetObservation()
		cpu, memory, since := "", "", ""
		if o.GetMemoryBytes() > 0 {
			memory = size(o.GetMemoryUsedBytes()) + " / " + size(o.GetMemoryBytes())
		}
		if o != nil && o.GetCpuLoad() >= 0 {
			cpu = fmt.Sprintf("%.0f%%", o.GetCpuLoad()*100)
		}
		if h.GetOnlineSince() != nil && state == "online" {
			since = span(a.now().Sub(h.GetOnlineSince().AsTime()))
		} else if h.GetSince() != nil {
			since = span(a.now().Sub(h.GetSince().AsTime()))
		}
		if state != "online" && state != "degraded" {
			cpu, memory = "", ""
		}
		rows = append(rows, []cell{plain(h.GetName()), {state, hostColours[state]}, plain(since), plain(cpu), plain(memory), plain(guestsOf(resp, h.GetName()))})
	}
	if len(rows) == 0 {
		return
	}
	a.table(a.out, []string{"HOST", "STATE", "SINCE", "CPU", "MEMORY", "GUESTS"}, rows)
	if len(resp.GetGuests()) > 0 {
		fmt.Fprintln(a.out)
		a.showGuests(resp.GetGuests())
	}
}

func guestsOf(resp *controllerv1.StatusResponse, host string) string {
	var names []string
	for _, g := range resp.GetGuests() {
		if g.GetHost() == host {
			names = append(names, g.GetName())
		}
	}
	slices.Sort(names)
	const shown = 3
	text := ""
	for i, n := range names {
		if i == shown {
			return fmt.Sprintf("%s and %d more", text, len(names)-shown)
		}
		if i > 0 {
			text += ", "
		}
		text += n
	}
	return text
}
