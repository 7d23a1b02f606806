package cli

import (
	"fmt"
	"time"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// hostDoc is one host in JSON; its fields are a contract.
type hostDoc struct {
	Name    string  `json:"name"`
	State   string  `json:"state"`
	Since   *string `json:"since"`
	Address string  `json:"address"`
	Version string  `json:"version"`
}

func hostsJSON(hosts []*homelabv1.HostStatus) []hostDoc {
	docs := []hostDoc{}
	for _, h := range hosts {
		docs = append(docs, hostDoc{
			Name: h.GetName(), State: hostState(h), Since: timeOrNull(timeOf(h.GetSince())),
			Address: h.GetAddress(), Version: h.GetVersion(),
		})
	}
	return docs
}

func hostState(h *homelabv1.HostStatus) string {
	if h.GetState() == homelabv1.HostState_HOST_STATE_UNSPECIFIED {
		return "unknown"
	}
	return enumWord(h.GetState().String(), "HOST_STATE_")
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
	return &cobra.Command{
		Use: "hosts", Short: "Show the hosts and whether their agents answer", Args: cobra.NoArgs,
		Long: `hosts shows each host of the Spec, and others that were found by gossip.

  online      its agent answers and its Proxmox works
  silent      nothing answers at its address
  agent-gone  the host answers, its agent does not
  degraded    the agent answers; /etc/pve or the driver does not work
  disabled    enabled: false in the Spec
  unknown     never seen`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := a.status(cmd.Context(), false, false)
			if err != nil {
				return err
			}
			return a.print(hostsJSON(resp.GetHosts()), func() { a.showHosts(resp) })
		},
	}
}

func (a *app) showHosts(resp *controllerv1.StatusResponse) {
	var rows [][]cell
	for _, h := range resp.GetHosts() {
		state := hostState(h)
		since := ago(timeOf(h.GetSince()), a.now())
		if state == "online" && h.GetOnlineSince() != nil {
			since = span(a.now().Sub(h.GetOnlineSince().AsTime()))
		}
		rows = append(rows, []cell{
			plain(h.GetName()), {state, hostColours[state]}, plain(since), plain(h.GetAddress()), plain(h.GetVersion()),
			plain(pveVersion(h)), plain(clockOffset(h)), plain(h.GetReason()),
		})
	}
	if len(rows) == 0 {
		fmt.Fprintln(a.out, "No host has been found yet, and no Spec was applied.  hlctl apply -f homelab.yaml")
		return
	}
	a.table(a.out, []string{"HOST", "STATE", "SINCE", "ADDRESS", "AGENT", "PROXMOX", "CLOCK", ""}, rows)
}

func pveVersion(h *homelabv1.HostStatus) string { return h.GetObservation().GetPveVersion() }

// clockOffset is how far the host's clock is off, when that is worth saying.
func clockOffset(h *homelabv1.HostStatus) string {
	const worthSaying = 100 // ms; the measurement itself is off by half a round trip
	switch ms := h.GetClockOffsetMs(); {
	case h.GetState() != homelabv1.HostState_HOST_STATE_ONLINE && h.GetState() != homelabv1.HostState_HOST_STATE_DEGRADED:
		return ""
	case ms > -worthSaying && ms < worthSaying:
		return "ok"
	default:
		return fmt.Sprintf("%+.1f s", float64(ms)/1000)
	}
}
