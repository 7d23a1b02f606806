package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/spf13/cobra"
)

// status asks the controller for everything at once.
func (a *app) status(ctx context.Context, fresh, looks bool) (*controllerv1.StatusResponse, error) {
	c, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer c.close()
	return ask(ctx, c.Status, &controllerv1.StatusRequest{Fresh: fresh, Looks: looks})
}

// statusDoc is the whole fleet in JSON.
type statusDoc struct {
	Fleet   string      `json:"fleet"`
	At      *string     `json:"at"`
	Run     *int64      `json:"run"`
	Hosts   []hostDoc   `json:"hosts"`
	Guests  []guestDoc  `json:"guests"`
	Cluster *clusterDoc `json:"cluster"`
	// Paused is why all changes are paused; empty when they are not.
	Paused string `json:"paused"`
	// Ending are certificates that should have been renewed by now.
	Ending []certDoc `json:"ending"`
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show everything on one screen, what is wrong first", Args: cobra.NoArgs,
		Long: `status has the controller look at everything now and shows it on one screen: what is
wrong first (a pause, hosts, guests with why and since when, what does not agree in
the cluster), then the hosts and the guests of the last Spec that was applied.

Exit code 0, whatever it shows; 1 when no controller answers.`,
		Example: "  hlctl status\n  hlctl status -o json | jq '.cluster.healthyVoters'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := a.status(cmd.Context(), true, true)
			if err != nil {
				return err
			}
			doc := statusDoc{
				Fleet: resp.GetFleet(), At: timeOrNull(timeOf(resp.GetAt())), Hosts: hostsJSON(resp.GetHosts()),
				Guests: guestsJSON(resp.GetGuests()), Cluster: clusterJSON(resp),
				Paused: resp.GetPaused(), Run: numberOrNull(resp.GetRun()), Ending: certJSON(resp.GetEnding()),
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
		name = "No Spec was applied yet"
	}
	fmt.Fprintf(a.out, "%s   %d of %s online, %s", name, online, plural(enabled, "host", "hosts"), plural(len(resp.GetGuests()), "guest", "guests"))
	if c := resp.GetCluster(); c != nil {
		fmt.Fprint(a.out, ", "+votersText(c))
	}
	fmt.Fprintln(a.out)
	if resp.GetRun() != 0 {
		fmt.Fprintf(a.out, "%s run %d is going on   hlctl runs follow\n", a.paint(yellow, "-"), resp.GetRun())
	}
	if resp.GetPaused() != "" {
		a.trouble("paused: "+withNext(resp.GetPaused(), "hlctl resume"), "")
	}
	a.showTroubles(resp)
	a.showEnding(resp)
	a.showFleet(resp)
}

// showEnding tells of certificates that should have been renewed, one line for each kind
// of them, with what to do.
func (a *app) showEnding(resp *controllerv1.StatusResponse) {
	silent := map[string]bool{}
	for _, h := range resp.GetHosts() {
		silent[h.GetName()] = !answers(h)
	}
	kinds := []struct{ what, do string }{
		{"CA ends", "hlctl trust rotate-ca"},
		{"certificate of a person ends", renewHint},
		{"certificate not renewed", "on the host: journalctl -u hl-agent -u hl-controller"},
		{"certificate not renewed while off", "it is when the host is back; if it is gone for good: hlctl trust revoke agent@HOST"},
	}
	list := make([][]string, len(kinds))
	for _, s := range resp.GetEnding() {
		kind, name := 1, s.GetRole()+"@"+s.GetName()
		switch role := s.GetRole(); {
		case role == "root" || role == "issuing":
			kind, name = 0, s.GetName()
		case role == rpc.RoleAgent && silent[s.GetName()]:
			kind = 3
		case role == rpc.RoleAgent || role == rpc.RoleController:
			kind = 2
		}
		list[kind] = append(list[kind], name+" "+day(timeOf(s.GetNotAfter()), false))
	}
	for i, kind := range kinds {
		if len(list[i]) > 0 {
			a.trouble(kind.what+": "+strings.Join(list[i], ", "), kind.do)
		}
	}
}

// trouble is one line of what is wrong, with more about it or what to do.
func (a *app) trouble(text, more string) {
	const column = 34 // where more begins beside a short text
	switch {
	case more == "":
		fmt.Fprintf(a.out, "%s %s\n", a.paint(red, "!"), a.wrap(text, 2))
	case len([]rune(text)) <= column:
		fmt.Fprintf(a.out, "%s %-*s  %s\n", a.paint(red, "!"), column, text, a.wrap(more, column+4))
	default:
		fmt.Fprintf(a.out, "%s %s\n", a.paint(red, "!"), a.wrap(text+"; "+more, 2))
	}
}

// showTroubles tells what is wrong, one line each: hosts first, with the guests
// that cannot be seen because of them.
func (a *app) showTroubles(resp *controllerv1.StatusResponse) {
	dark := map[string]bool{}
	for _, h := range resp.GetHosts() {
		state := hostState(h)
		if state == "online" || state == "disabled" {
			continue
		}
		dark[h.GetName()] = !answers(h)
		text := h.GetName() + " " + state
		if t := troubledSince(h); !t.IsZero() {
			text += " since " + ago(t, a.now())
		}
		var more []string
		switch {
		case h.GetReason() != "":
			more = append(more, h.GetReason())
		case state == "unknown":
			more = append(more, "never seen")
		}
		if on := guestsOf(resp, h.GetName()); on != "" && !answers(h) {
			more = append(more, on+" cannot be seen")
		}
		a.trouble(text, strings.Join(more, "; "))
	}
	for _, g := range resp.GetGuests() {
		h := healthWord(g.GetHealth())
		switch {
		case h == "healthy" || h == "standby" || h == "unknown" && dark[g.GetHost()] || off(resp, g.GetHost()):
		case g.GetPower() == homelabv1.Power_POWER_ABSENT:
			a.trouble(g.GetName()+" absent", "not made yet; hlctl apply makes it")
		case h == "unwell" && g.GetSince() != nil && !strings.Contains(g.GetReason(), "since "):
			a.trouble(g.GetName()+" unwell since "+ago(g.GetSince().AsTime(), a.now()), g.GetReason())
		default:
			a.trouble(g.GetName()+" "+h, a.condition(g))
		}
		if g.GetParked() != "" {
			a.trouble(g.GetName()+" parked", parkedText(g))
		}
	}
	a.showClusterTroubles(resp)
	if c := resp.GetCluster(); c != nil {
		for _, f := range c.GetFindings() {
			if f.GetBad() && !told(resp, f) {
				a.trouble(findingText(f), "")
			}
		}
	}
}

// findingText is a finding's sentence with the guest that it is about.
func findingText(f *controllerv1.ClusterFinding) string {
	if g := f.GetGuest(); g != "" && (!strings.Contains(f.GetText(), g) || strings.HasPrefix(f.GetText(), "it")) {
		return g + ": " + f.GetText()
	}
	return f.GetText()
}

// told says whether another line tells the same as a finding: that of its guest,
// or that of what did not answer.
func told(resp *controllerv1.StatusResponse, f *controllerv1.ClusterFinding) bool {
	switch f.GetKind() {
	case "unknown", "not-ready", "not-member":
	default:
		return false
	}
	if f.GetGuest() == "" {
		return noAnswer(f)
	}
	for _, g := range resp.GetGuests() {
		if g.GetName() == f.GetGuest() {
			return g.GetHealth() != controllerv1.Health_HEALTH_HEALTHY
		}
	}
	return false
}

// noAnswer says whether a finding is that something did not answer.
func noAnswer(f *controllerv1.ClusterFinding) bool {
	return f.GetKind() == "unknown" && f.GetGuest() == ""
}

// off says whether a host is disabled: what is on it is nobody's trouble.
func off(resp *controllerv1.StatusResponse, host string) bool {
	for _, h := range resp.GetHosts() {
		if h.GetName() == host {
			return hostState(h) == "disabled"
		}
	}
	return false
}

func (a *app) showFleet(resp *controllerv1.StatusResponse) {
	var rows [][]cell
	for _, h := range resp.GetHosts() {
		state, o := hostState(h), h.GetObservation()
		cpu, memory, since := "", "", ""
		if o.GetMemoryBytes() > 0 {
			memory = used(o.GetMemoryUsedBytes(), o.GetMemoryBytes())
		}
		if o != nil && o.GetCpuLoad() >= 0 {
			cpu = fmt.Sprintf("%.0f%%", o.GetCpuLoad()*100)
		}
		if t := troubledSince(h); !t.IsZero() {
			since = short(a.now().Sub(t))
		} else if h.GetOnlineSince() != nil && state == "online" {
			since = short(a.now().Sub(h.GetOnlineSince().AsTime()))
		}
		if !answers(h) {
			cpu, memory = "", "" // what it was once
		}
		rows = append(rows, []cell{plain(h.GetName()), {state, hostColours[state]}, plain(since), plain(cpu), plain(memory), plain(guestsOf(resp, h.GetName()))})
	}
	if len(rows) == 0 {
		return
	}
	fmt.Fprintln(a.out)
	a.table([]string{"HOST", "STATE", "SINCE", "CPU", "MEMORY", "GUESTS"}, rows)
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
