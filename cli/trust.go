package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/spf13/cobra"
)

// soon is how long before its end a certificate is shown in yellow: daemons have
// renewed theirs by then.
const soon = 14 * 24 * time.Hour

// trustDoc is who is trusted, in JSON.
type trustDoc struct {
	Authorities  []certDoc `json:"authorities"`
	Certificates []certDoc `json:"certificates"`
	Revocations  int64     `json:"revocations"`
}

type certDoc struct {
	Serial    string  `json:"serial"`
	Name      string  `json:"name"`
	Role      string  `json:"role"`
	Issuer    string  `json:"issuer"`
	NotBefore *string `json:"notBefore"`
	NotAfter  *string `json:"notAfter"`
	Revoked   *string `json:"revoked"`
	How       string  `json:"how"`
	SHA256    string  `json:"sha256"`
	// Roots are those in force that it was seen to be below, by their sha256.
	Roots []string `json:"roots"`
}

func certJSON(all []*controllerv1.CertificateStatus) []certDoc {
	docs := []certDoc{}
	for _, s := range all {
		docs = append(docs, certDoc{
			Serial: s.GetSerial(), Name: s.GetName(), Role: s.GetRole(), Issuer: s.GetIssuer(), How: s.GetHow(), SHA256: s.GetSha256(), Roots: append([]string{}, s.GetRoots()...),
			NotBefore: timeOrNull(timeOf(s.GetNotBefore())), NotAfter: timeOrNull(timeOf(s.GetNotAfter())), Revoked: timeOrNull(timeOf(s.GetRevoked())),
		})
	}
	return docs
}

func (a *app) trustCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "trust", Short: "Show who is trusted, and until when", Args: cobra.NoArgs,
		Long: `trust lists the roots, the controllers' issuing CAs, and every certificate that was
issued or seen, with its serial number and its end. Agents and controllers renew theirs
by themselves at two thirds of their life.`,
		Example: "  hlctl trust\n  hlctl trust revoke agent@pve4",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.close()
			resp, err := ask(cmd.Context(), c.Trust, &controllerv1.TrustRequest{})
			if err != nil {
				return err
			}
			doc := trustDoc{certJSON(resp.GetAuthorities()), certJSON(resp.GetCertificates()), resp.GetRevocations()}
			return a.print(doc, func() { a.showTrust(resp) })
		},
	}
	cmd.AddCommand(a.trustRevokeCommand(), a.trustRenewCommand(), a.rotateGossipCommand(), a.rotateCACommand())
	return cmd
}

func (a *app) showTrust(resp *controllerv1.TrustResponse) {
	var rows [][]cell
	for _, s := range append(resp.GetAuthorities(), resp.GetCertificates()...) {
		rows = append(rows, []cell{plain(s.GetRole()), plain(shortName(s)), plain(shortSerial(s.GetSerial())), a.ends(s), plain(s.GetHow())})
	}
	a.table([]string{"ROLE", "NAME", "SERIAL", "ENDS", "KNOWN BY"}, rows)
	if n := resp.GetRevocations(); n > 0 {
		fmt.Fprintf(a.out, "\nThe list of revoked certificates has number %d.\n", n)
	}
}

// shortName is the name of a holder, and of a CA what tells it from the others: with the
// fleet's name in each of them the table would be wider than 80 columns.
func shortName(s *controllerv1.CertificateStatus) string {
	if s.GetRole() == "root" || s.GetRole() == "issuing" {
		name, _, _ := strings.Cut(strings.TrimPrefix(s.GetName(), "homelab "), " of fleet ")
		return name
	}
	return s.GetName()
}

// shownDigits are those of a serial number that a table shows: revoke takes as many, and the
// whole is in the JSON.
const shownDigits = 12

func shortSerial(serial string) string { return serial[:min(len(serial), shownDigits)] }

func (a *app) ends(s *controllerv1.CertificateStatus) cell {
	end := timeOf(s.GetNotAfter())
	switch left := end.Sub(a.now()); {
	case s.GetRevoked() != nil:
		return cell{"revoked " + day(timeOf(s.GetRevoked()), false), red}
	case left <= 0:
		return cell{"expired " + day(end, false), red}
	case left < soon && left < end.Sub(timeOf(s.GetNotBefore()))/3:
		return cell{day(end, true), yellow}
	}
	return plain(day(end, false))
}

func (a *app) trustRevokeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "revoke SERIAL|ROLE@NAME", Short: "Take certificates back, for good", Args: cobra.ExactArgs(1),
		Long: `revoke takes back one certificate by its serial number, of which the beginning is enough
where no other has it, or all of a holder (agent@pve4).
Within seconds nobody of the fleet that is online speaks to it any more, open
connections are cut, and those that are off know before they serve. It cannot be undone:
a host gets in again with hlctl token create HOST. With a holder go the tokens for its
name that were made before and nobody has used.

With a controller goes its issuing CA, unless somebody's certificate is of it; then it
is said what to do. The only controller, and a root, cannot be taken back: hlctl trust
rotate-ca puts another root in the old one's place.`,
		Example: "  hlctl trust revoke agent@pve4\n  hlctl trust revoke 3f2a9c41d07e",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.close()
			req := &controllerv1.RevokeCertificateRequest{Serial: args[0]}
			if strings.Contains(args[0], "@") {
				req = &controllerv1.RevokeCertificateRequest{Holder: args[0]}
			}
			resp, err := ask(cmd.Context(), c.RevokeCertificate, req)
			if err != nil {
				own, gone := a.lostOwn(cmd.Context(), c, args[0], err)
				if !gone {
					return err
				}
				return a.print(map[string]any{"serials": []string{own}, "number": nil}, func() {
					fmt.Fprintf(a.out, "Revoked, with your own certificate: %s. You get a new one with: %s\n", own, renewHint)
				})
			}
			doc := map[string]any{"serials": append([]string{}, resp.GetSerials()...), "number": resp.GetNumber()}
			var needed string
			if name, ok := strings.CutPrefix(args[0], rpc.RoleController+"@"); ok {
				trust, err := ask(cmd.Context(), c.Trust, &controllerv1.TrustRequest{})
				if err != nil {
					return err
				}
				needed = stillIssuing(trust, name)
			}
			return a.print(doc, func() {
				if needed != "" {
					defer fmt.Fprintln(a.out, needed)
				}
				if len(resp.GetSerials()) == 0 {
					fmt.Fprintln(a.out, "It was revoked before.")
					return
				}
				fmt.Fprintf(a.out, "Revoked: %s. The list has number %d now.\n", strings.Join(resp.GetSerials(), ", "), resp.GetNumber())
			})
		},
	}
}

// lostOwn says whether what was asked to be taken back was our own certificate, and was:
// the connection is cut then before the answer. own is its serial number.
func (a *app) lostOwn(ctx context.Context, c *controller, asked string, err error) (own string, gone bool) {
	_, creds, load := a.credentials()
	if load != nil || !errors.Is(err, rpc.ErrUnavailable) {
		return "", false
	}
	own = rpc.Serial(creds.Leaf())
	id := creds.Identity()
	if asked != id.Role+"@"+id.Name && !strings.HasPrefix(own, rpc.TypedSerial(asked)) {
		return own, false
	}
	// The controller that was asked says it, whatever is the matter with others.
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	_, err = c.Version(ctx, &controllerv1.VersionRequest{Revocations: creds.Revocations().Number()})
	return own, errors.Is(err, rpc.ErrDenied)
}

// stillIssuing says what to do about the issuing CA of a controller that is gone, which
// others' certificates are of; empty for nothing.
func stillIssuing(trust *controllerv1.TrustResponse, controller string) string {
	for _, ca := range trust.GetAuthorities() {
		if ca.GetRevoked() != nil || !strings.HasPrefix(ca.GetName(), rpc.IssuingName(controller, "")) {
			continue
		}
		var holders []string
		last := ""
		for _, s := range trust.GetCertificates() { // of each the latest first
			holder := s.GetRole() + "@" + s.GetName()
			if holder == last || s.GetRevoked() != nil {
				continue
			}
			if last = holder; s.GetIssuer() == ca.GetName() {
				holders = append(holders, holder)
			}
		}
		return fmt.Sprintf("Its issuing CA stays good, since it signed the certificates of %s. If others may have its key: hlctl trust rotate-ca\nElse, when they were renewed: hlctl trust revoke controller@%s",
			enumerate(holders), controller)
	}
	return ""
}

func (a *app) rotateGossipCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rotate-gossip", Short: "Give the fleet a new gossip key", Args: cobra.NoArgs,
		Long: `rotate-gossip puts a new gossip key in the place of those there are, in three steps, so
that nobody who answers loses the others. A host that is off gets the key when it comes
back. A host that was revoked gets none, and hears nothing from then on.`,
		Example: "  hlctl trust rotate-gossip",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.close()
			resp, err := ask(cmd.Context(), c.RotateGossip, &controllerv1.RotateGossipRequest{})
			if err != nil {
				return err
			}
			return a.print(map[string][]string{"late": append([]string{}, resp.GetLate()...)}, func() {
				fmt.Fprintln(a.out, "The gossip key is a new one.")
				if len(resp.GetLate()) > 0 {
					fmt.Fprintf(a.out, "Not told yet, and told again: %s\n", strings.Join(resp.GetLate(), ", "))
				}
			})
		},
	}
}
