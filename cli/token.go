package cli

import (
	"fmt"
	"strings"
	"time"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
)

// tokenDoc is a token in JSON; token is only there when it was just made.
type tokenDoc struct {
	ID        string   `json:"id"`
	Name      string   `json:"name"`
	Role      string   `json:"role"`
	Addresses []string `json:"addresses"`
	By        string   `json:"by"`
	Created   *string  `json:"created"`
	Expires   *string  `json:"expires"`
	Replace   bool     `json:"replace"`
	Used      *string  `json:"used"`
	Serial    string   `json:"serial"`
}

func tokenJSON(s *controllerv1.TokenStatus) tokenDoc {
	return tokenDoc{
		ID: s.GetId(), Name: s.GetName(), Role: s.GetRole(), Addresses: append([]string{}, s.GetAddresses()...), By: s.GetBy(),
		Created: timeOrNull(timeOf(s.GetCreated())), Expires: timeOrNull(timeOf(s.GetExpires())), Replace: s.GetReplace(),
		Used: timeOrNull(timeOf(s.GetUsed())), Serial: s.GetSerial(),
	}
}

func (a *app) tokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "token", Short: "Let a host without SSH enrol: tokens",
		Long: `A token lets one host get its certificate, once: it is for one name, and for 15 minutes
unless said. It is shown when it is made and kept nowhere; used, it is worthless.`,
		Example: "  hlctl token create pve4\n  hlctl token ls\n  hlctl token revoke 1a2b3c4d5e6f",
	}
	cmd.AddCommand(a.tokenCreateCommand(), a.tokenListCommand(), a.tokenRevokeCommand())
	return cmd
}

func (a *app) tokenCreateCommand() *cobra.Command {
	var req controllerv1.CreateTokenRequest
	var ttl time.Duration
	cmd := &cobra.Command{
		Use: "create HOST", Short: "Make a token for a host", Args: cobra.ExactArgs(1),
		Long: `create makes a token and prints the line that is to be pasted on the host, as root. HOST
is its name in the Spec. A host that has a certificate needs --replace, which takes
that certificate back when the token is used.`,
		Example: "  hlctl token create pve4\n  hlctl token create pve4 --replace --ttl 1h",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.close()
			req.Name, req.Ttl = args[0], durationpb.New(ttl)
			resp, err := ask(cmd.Context(), c.CreateToken, &req)
			if err != nil {
				return err
			}
			line, before := fmt.Sprintf("echo %s | hl-agent enrol --controller %s --token -", resp.GetToken(), resp.GetEnrol()), ""
			start := " && systemctl enable --now hl-agent"
			if req.GetRole() == rpc.RoleController {
				line = fmt.Sprintf("echo %s | hl-controller enrol --controller %s --token - --etcd-endpoints https://IP:PORT", resp.GetToken(), resp.GetEnrol())
				start = " && systemctl enable --now hl-controller"
				before = "\nIts keys must be there before (hl-controller enrol --help); hlctl hosts add --controller does all of it.\n"
			}
			doc := struct {
				tokenDoc
				Token   string `json:"token"`
				Enrol   string `json:"enrol"`
				Command string `json:"command"`
			}{tokenJSON(resp.GetStatus()), resp.GetToken(), resp.GetEnrol(), line}
			return a.print(doc, func() {
				fmt.Fprintf(a.out, "On %s, as root, until %s:\n\n  %s\n%s", args[0], day(timeOf(resp.GetStatus().GetExpires()), true), line+start, before)
			})
		},
	}
	cmd.Flags().DurationVar(&ttl, "ttl", 15*time.Minute, "how long it is good for")
	cmd.Flags().BoolVar(&req.Replace, "replace", false, "take back the certificate that the host has")
	cmd.Flags().StringSliceVar(&req.Addresses, "address", nil, "IP address of the host, which it advertises")
	cmd.Flags().StringVar(&req.Role, "role", "agent", "agent or controller")
	return cmd
}

func (a *app) tokenListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List tokens", Args: cobra.NoArgs,
		Long:    "ls lists the tokens, without their secrets, until a day after they ended.",
		Example: "  hlctl token ls",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.close()
			resp, err := ask(cmd.Context(), c.ListTokens, &controllerv1.ListTokensRequest{})
			if err != nil {
				return err
			}
			docs := []tokenDoc{}
			for _, t := range resp.GetTokens() {
				docs = append(docs, tokenJSON(t))
			}
			return a.print(docs, func() { a.showTokens(resp.GetTokens()) })
		},
	}
}

func (a *app) showTokens(tokens []*controllerv1.TokenStatus) {
	if len(tokens) == 0 {
		fmt.Fprintln(a.out, "There is no token.  hlctl token create HOST")
		return
	}
	var rows [][]cell
	for _, t := range tokens {
		state := cell{"open", green}
		switch {
		case t.GetUsed() != nil:
			state = plain("used")
		case !a.now().Before(timeOf(t.GetExpires())):
			state = cell{"expired", yellow}
		}
		rows = append(rows, []cell{
			plain(t.GetId()), plain(t.GetRole() + "@" + t.GetName()), state, plain(day(timeOf(t.GetExpires()), true)), plain(t.GetBy()),
			plain(strings.Join(t.GetAddresses(), " ")),
		})
	}
	a.table([]string{"ID", "FOR", "STATE", "ENDS", "BY", "ADDRESSES"}, rows)
}

func (a *app) tokenRevokeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "revoke ID", Short: "Take a token back", Args: cobra.ExactArgs(1),
		Long: `revoke takes a token back, so that nobody enrols with it any more. A certificate that
was given for it stays: hlctl trust revoke takes that back.`,
		Example: "  hlctl token revoke 1a2b3c4d5e6f",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.close()
			if _, err := ask(cmd.Context(), c.RevokeToken, &controllerv1.RevokeTokenRequest{Id: args[0]}); err != nil {
				return err
			}
			return a.print(map[string]string{"revoked": args[0]}, func() { fmt.Fprintf(a.out, "Token %s is gone.\n", args[0]) })
		},
	}
}

// day is a time for people, by the minute or by the day.
func day(t time.Time, minutes bool) string {
	if minutes {
		return t.Local().Format("2006-01-02 15:04")
	}
	return t.Local().Format(time.DateOnly)
}
