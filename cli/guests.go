package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/spf13/cobra"
)

// guestDoc is one guest in JSON; its fields are a contract.
type guestDoc struct {
	Name      string   `json:"name"`
	Host      string   `json:"host"`
	VMID      *int32   `json:"vmid"`
	UUID      string   `json:"uuid"`
	Power     *string  `json:"power"`
	Health    string   `json:"health"`
	Reason    string   `json:"reason"`
	Addresses []string `json:"addresses"`
	// Beyond the contract:
	Role       string `json:"role"`
	Node       string `json:"node"`
	Generation *int32 `json:"generation"`
	// Since when it is unwell and by which signal, and until when a guest on its
	// way may take.
	Since   *string `json:"since"`
	Signal  string  `json:"signal"`
	Until   *string `json:"until"`
	Parked  string  `json:"parked"`
	Policy  string  `json:"policy"`
	Adopted bool    `json:"adopted"`
}

func guestJSON(g *controllerv1.GuestStatus) guestDoc {
	return guestDoc{
		Name: g.GetName(), Host: g.GetHost(), VMID: numberOrNull(g.GetVmid()), UUID: g.GetUuid(),
		Power: powerWord(g.GetPower()), Health: healthWord(g.GetHealth()), Reason: g.GetReason(), Addresses: list(g.GetAddresses()),
		Role: roleWord(g.GetRole()), Node: g.GetNodeName(), Generation: numberOrNull(g.GetGeneration()),
		Since: timeOrNull(timeOf(g.GetSince())), Signal: g.GetSignal(), Until: timeOrNull(timeOf(g.GetUntil())),
		Parked: g.GetParked(), Policy: g.GetPolicy(), Adopted: g.GetAdopted(),
	}
}

func guestsJSON(guests []*controllerv1.GuestStatus) []guestDoc {
	docs := []guestDoc{}
	for _, g := range guests {
		docs = append(docs, guestJSON(g))
	}
	return docs
}

// powerWord is null when the power is not known.
func powerWord(p homelabv1.Power) *string {
	if p == homelabv1.Power_POWER_UNSPECIFIED {
		return nil
	}
	s := enumWord(p.String(), "POWER_")
	return &s
}

func healthWord(h controllerv1.Health) string {
	if h == controllerv1.Health_HEALTH_UNSPECIFIED {
		return "unknown"
	}
	return enumWord(h.String(), "HEALTH_")
}

var healthColours = map[string]string{"healthy": green, "booting": yellow, "unwell": red, "standby": dim, "unknown": yellow}

func (a *app) guestsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "guests", Short: "Show the guests of the Spec, and change one by its name", Args: cobra.NoArgs,
		Long: `guests shows each guest of the last Spec that was applied, looked at now.

  healthy  booted and, as a member, Ready
  booting  on its way
  unwell   not as it should be; the reason says why
  standby  stopped on purpose
  unknown  could not be seen, or absent: not made yet

With GUEST and a verb one guest is changed: see the commands below.

Exit code 0, whatever it shows.`,
		Example: "  hlctl guests\n  hlctl guests show k3s-1\n  hlctl guests recreate k3s-1\n  ssh ubuntu@$(hlctl guests ip k3s-1)",
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := a.status(cmd.Context(), true, true)
			if err != nil {
				return err
			}
			return a.print(guestsJSON(resp.GetGuests()), func() { a.showGuests(resp.GetGuests()) })
		},
	}
	cmd.AddCommand(a.guestOperations()...)
	cmd.AddCommand(
		&cobra.Command{
			Use: "show GUEST", Short: "Show all that is known of one guest", Args: cobra.ExactArgs(1),
			Long: `show tells what is known of one guest: where and what it is, how it is, since when and
why, what is done about it, and what was seen inside it. Its story: hlctl why GUEST.`,
			Example: "  hlctl guests show k3s-1\n  hlctl guests show k3s-1 -o yaml",
			RunE: func(cmd *cobra.Command, args []string) error {
				g, err := a.oneGuest(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return a.print(guestJSON(g), func() { a.showGuest(g) })
			},
		},
		&cobra.Command{
			Use: "ip GUEST", Short: "Print a guest's first address", Args: cobra.ExactArgs(1),
			Long: `ip prints the first address of a guest and nothing else, for use in scripts. With
-o json or yaml it prints all of them as a list.`,
			Example: "  ssh ubuntu@$(hlctl guests ip k3s-1)",
			RunE: func(cmd *cobra.Command, args []string) error {
				g, err := a.oneGuest(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if len(g.GetAddresses()) == 0 {
					return fmt.Errorf("no address of %s is known%s; hlctl guests show %s", g.GetName(), bracketed(g.GetReason()), g.GetName())
				}
				return a.print(g.GetAddresses(), func() { fmt.Fprintln(a.out, g.GetAddresses()[0]) })
			},
		},
	)
	return cmd
}

// bracketed is " (text)", empty for no text.
func bracketed(text string) string {
	if text == "" {
		return ""
	}
	return " (" + text + ")"
}

func (a *app) oneGuest(ctx context.Context, name string) (*controllerv1.GuestStatus, error) {
	resp, err := a.status(ctx, true, true)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, g := range resp.GetGuests() {
		if g.GetName() == name {
			return g, nil
		}
		names = append(names, g.GetName())
	}
	if len(names) == 0 {
		return nil, errors.New("no Spec was applied yet; begin with hlctl apply -f homelab.yaml")
	}
	return nil, fmt.Errorf("the Spec has no guest %s (it has: %s); hlctl guests", name, strings.Join(names, ", "))
}

func (a *app) showGuests(guests []*controllerv1.GuestStatus) {
	if len(guests) == 0 {
		fmt.Fprintln(a.out, "No Spec was applied yet.  hlctl apply -f homelab.yaml")
		return
	}
	var rows [][]cell
	for _, g := range guests {
		rows = append(rows, a.guestRow(g))
	}
	a.table([]string{"GUEST", "HOST", "VMID", "POWER", "HEALTH", "ROLE", "ADDRESS", ""}, rows)
}

func (a *app) guestRow(g *controllerv1.GuestStatus) []cell {
	vmid, power, health := "-", "-", healthWord(g.GetHealth())
	if g.GetVmid() != 0 {
		vmid = fmt.Sprint(g.GetVmid())
	}
	if p := powerWord(g.GetPower()); p != nil {
		power = *p
	}
	address := "-"
	if len(g.GetAddresses()) > 0 {
		address = g.GetAddresses()[0]
	}
	text := a.condition(g)
	if g.GetParked() != "" {
		text = strings.TrimPrefix(text+"\nparked: "+parkedText(g), "\n")
	}
	return []cell{
		plain(g.GetName()), plain(g.GetHost()), plain(vmid), plain(power), {health, healthColours[health]},
		plain(roleWord(g.GetRole())), plain(address), plain(text),
	}
}

// condition is why a guest is not healthy, since when, and until when it may take.
func (a *app) condition(g *controllerv1.GuestStatus) string {
	text := strings.TrimSpace(g.GetReason())
	// A reason may tell the time itself, as "host silent since 13:58" does.
	if g.GetSince() != nil && !strings.Contains(text, "since ") {
		text = strings.TrimSuffix("since "+ago(g.GetSince().AsTime(), a.now())+": "+text, ": ")
	}
	if g.GetUntil() != nil {
		text = strings.TrimPrefix(text+"; may take until "+upTo(g.GetUntil().AsTime(), a.now()), "; ")
	}
	return text
}

func roleWord(r homelabv1.Role) string {
	if r == homelabv1.Role_ROLE_UNSPECIFIED {
		return ""
	}
	return enumWord(r.String(), "ROLE_")
}

func (a *app) showGuest(g *controllerv1.GuestStatus) {
	power := "not known"
	if p := powerWord(g.GetPower()); p != nil {
		power = *p
	}
	line := func(name, text string) {
		if text != "" {
			fmt.Fprintf(a.out, "  %-12s %s\n", name, a.wrap(text, 15))
		}
	}
	health := healthWord(g.GetHealth())
	fmt.Fprintf(a.out, "%s  on %s\n", g.GetName(), g.GetHost())
	line("health", strings.TrimSuffix(a.paint(healthColours[health], health)+": "+g.GetReason(), ": "))
	line("signal", g.GetSignal())
	line("since", ago(timeOf(g.GetSince()), a.now()))
	if g.GetUntil() != nil {
		line("until", upTo(g.GetUntil().AsTime(), a.now())+" at most")
	}
	line("policy", policyText(g))
	if g.GetParked() != "" {
		line("parked", parkedText(g))
	}
	line("power", power)
	if g.GetVmid() != 0 {
		made := fmt.Sprintf("generation %d", g.GetGeneration())
		if g.GetAdopted() {
			made = "adopted, not made by us"
		}
		line("VMID", fmt.Sprintf("%d, %s", g.GetVmid(), made))
	}
	line("uuid", g.GetUuid())
	line("addresses", strings.Join(g.GetAddresses(), ", "))
	if g.GetNodeName() != "" {
		line("node", g.GetNodeName()+", "+roleWord(g.GetRole()))
	}
	look := g.GetLook()
	if look == nil {
		return
	}
	line("hostname", look.GetHostname())
	line("machine-id", look.GetMachineId())
	line("ssh", fact(look.GetSsh()))
	line("guest agent", fact(look.GetGuestAgent()))
	line("cloud-init", fact(look.GetCloudInit()))
	line("k3s", look.GetK3S().GetVersion())
}

// parkedText is why a guest is parked, ending in how that is ended.
func parkedText(g *controllerv1.GuestStatus) string {
	return withNext(strings.TrimPrefix(g.GetParked(), "parked: "), "hlctl resume "+g.GetName())
}

// withNext is a text with what to type next, unless it says so itself.
func withNext(text, next string) string {
	if strings.Contains(text, next) {
		return text
	}
	return text + "; " + next
}

// policyText is what is done about a guest when it is unwell.
func policyText(g *controllerv1.GuestStatus) string {
	switch g.GetPolicy() {
	case "report":
		return "report: nothing is done about it by itself"
	case "restart":
		return "restart: start, then reset, then recreate"
	}
	return g.GetPolicy()
}

// fact is a Fact for people.
func fact(f *homelabv1.Fact) string {
	word := "unknown"
	switch f.GetTruth() {
	case homelabv1.Truth_TRUTH_YES:
		word = "yes"
	case homelabv1.Truth_TRUTH_NO:
		word = "no"
	}
	if f.GetReason() != "" {
		word += ", " + f.GetReason()
	}
	return word
}
