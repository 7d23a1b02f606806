package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// hostDoc is one host in JSON; its fields are a contract.
type hostDoc struct {
	Name    string  `json:"name"`
	State   string  `json:"state"`
	Since   *string `json:"since"`
	Address string  `json:"address"`
	Version string  `json:"version"`
	// Beyond the contract:
	Reason  string `json:"reason"`
	Proxmox string `json:"proxmoxVersion"`
	Clock   *int64 `json:"clockOffsetMs"`
}

func hostsJSON(hosts []*homelabv1.HostStatus) []hostDoc {
	docs := []hostDoc{}
	for _, h := range hosts {
		doc := hostDoc{
			Name: h.GetName(), State: hostState(h), Since: timeOrNull(troubledSince(h)), Address: h.GetAddress(),
			Version: h.GetVersion(), Reason: h.GetReason(), Proxmox: h.GetObservation().GetPveVersion(),
		}
		if answers(h) {
			ms := h.GetClockOffsetMs()
			doc.Clock = &ms
		}
		docs = append(docs, doc)
	}
	return docs
}

func hostState(h *homelabv1.HostStatus) string {
	if h.GetState() == homelabv1.HostState_HOST_STATE_UNSPECIFIED {
		return "unknown"
	}
	return enumWord(h.GetState().String(), "HOST_STATE_")
}

// answers says whether a host's agent was reached.
func answers(h *homelabv1.HostStatus) bool {
	return h.GetState() == homelabv1.HostState_HOST_STATE_ONLINE || h.GetState() == homelabv1.HostState_HOST_STATE_DEGRADED
}

// troubledSince is since when a host is silent, agent-gone or degraded; zero for
// one that is online, disabled or was never seen, as the contract has it.
func troubledSince(h *homelabv1.HostStatus) time.Time {
	switch h.GetState() {
	case homelabv1.HostState_HOST_STATE_SILENT, homelabv1.HostState_HOST_STATE_AGENT_GONE, homelabv1.HostState_HOST_STATE_DEGRADED:
		return timeOf(h.GetSince())
	}
	return time.Time{}
}

// timeOf is the zero time for a timestamp that is not set.
func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

var hostColours = map[string]string{
	"online": green, "silent": red, "agent-gone": red, "degraded": yellow, "unknown": yellow, "disabled": dim,
}

func (a *app) hostsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "hosts", Short: "Show the hosts and whether their agents answer", Args: cobra.NoArgs,
		Long: `hosts shows each host of the last Spec, and others that were found by gossip, as the
controller knows them at this moment.

  online      its agent answers and its Proxmox works
  silent      nothing answers at its address
  agent-gone  the host answers, its agent does not
  degraded    the agent answers; /etc/pve or the driver does not work
  disabled    enabled: false in the Spec
  unknown     never seen

Exit code 0, whatever it shows.`,
		Example: "  hlctl hosts\n  hlctl hosts -o json | jq -r '.[] | select(.state != \"online\") | .name'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := a.status(cmd.Context(), false, false)
			if err != nil {
				return err
			}
			return a.print(hostsJSON(resp.GetHosts()), func() { a.showHosts(resp) })
		},
	}
	cmd.AddCommand(a.hostsAddCommand(), a.hostsRemoveCommand(), a.hostsUpgradeCommand())
	return cmd
}

func (a *app) showHosts(resp *controllerv1.StatusResponse) {
	var rows [][]cell
	for _, h := range resp.GetHosts() {
		state := hostState(h)
		since := ago(troubledSince(h), a.now())
		if state == "online" && h.GetOnlineSince() != nil {
			since = short(a.now().Sub(h.GetOnlineSince().AsTime()))
		}
		rows = append(rows, []cell{
			plain(h.GetName()), {state, hostColours[state]}, plain(since), plain(h.GetAddress()), plain(h.GetVersion()),
			plain(h.GetObservation().GetPveVersion()), plain(clockOffset(h)), plain(h.GetReason()),
		})
	}
	if len(rows) == 0 {
		fmt.Fprintln(a.out, "No host has been found yet, and no Spec was applied.  hlctl apply -f homelab.yaml")
		return
	}
	a.table([]string{"HOST", "STATE", "SINCE", "ADDRESS", "AGENT", "PROXMOX", "CLOCK", ""}, rows)
}

// clockOffset is how far the host's clock is off, when that is worth saying.
func clockOffset(h *homelabv1.HostStatus) string {
	const worthSaying = 100 // ms; the measurement itself is off by half a round trip
	switch ms := h.GetClockOffsetMs(); {
	case !answers(h):
		return ""
	case ms > -worthSaying && ms < worthSaying:
		return "ok"
	default:
		return fmt.Sprintf("%+.1f s", float64(ms)/1000)
	}
}
