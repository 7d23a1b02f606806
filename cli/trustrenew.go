package cli

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/homeiac/homelab/internal/durable"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/spf13/cobra"
)

// renewHint is how an error about our own certificate ends: both ways out.
const renewHint = "hlctl trust renew (with the root's key), or " + issueHint

const issueHint = "as root on a controller's host: hl-controller issue-admin --out DIR"

// rootHint is how an error about the root's files ends.
const rootHint = "with --root-cert and --root-key, or " + issueHint

// rootFiles are where the root lies unless it is said: beside hlctl's configuration.
const (
	rootCertFile = "root-ca.pem"
	rootKeyFile  = "root-ca.key"
)

func (a *app) trustRenewCommand() *cobra.Command {
	var root, key, name, role string
	var life time.Duration
	cmd := &cobra.Command{
		Use: "renew", Short: "Make your certificate anew, with the root's key", Args: cobra.NoArgs,
		Long: `renew makes a new key and certificate for the context's cert and key, signed with the
root's key. It asks no controller, and works when the old ones are lost or have expired.
The root's passphrase is asked for where it has one; without a terminal it is the first
line of standard input.

Who has no root key gets a certificate as root on a controller's host, with
hl-controller issue-admin.`,
		Example: "  hlctl trust renew\n  hlctl trust renew --root-key /media/usb/root-ca.key --root-cert /media/usb/root-ca.pem",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if life <= 0 {
				// Its key would take the place of one that may still be good.
				return fmt.Errorf("--life %s: it would have ended already; say how long it lasts, as --life 8760h", life)
			}
			c, err := a.loadContext()
			if err != nil {
				return err
			}
			ca, err := a.loadRoot(cmd.Context(), cmp.Or(root, c.beside(rootCertFile)), cmp.Or(key, c.beside(rootKeyFile)))
			if errors.Is(err, os.ErrNotExist) {
				err = fmt.Errorf("%w; say where the root's files are "+rootHint, err)
			}
			if err != nil {
				return err
			}
			id := rpc.Identity{Role: role, Name: name}
			if old, err := rpc.LoadTLS(c.CA, c.Cert, c.Key); err == nil && name == "" {
				id = old.Identity()
				if cmd.Flags().Changed("role") {
					id.Role = role
				}
			}
			if id.Name == "" {
				return fmt.Errorf("%s cannot be read, so it is not known whose certificate it was; say it with --name NAME", c.Cert)
			}
			return a.renewWith(ca, id, life, c)
		},
	}
	cmd.Flags().StringVar(&root, "root-cert", "", "the root's certificate (default "+rootCertFile+" beside the configuration)")
	cmd.Flags().StringVar(&key, "root-key", "", "the root's key (default "+rootKeyFile+" beside the configuration)")
	cmd.Flags().StringVar(&name, "name", "", "whose certificate it is (default as before)")
	cmd.Flags().StringVar(&role, "role", rpc.RoleAdmin, "admin or viewer (default as before, where its name is not said)")
	cmd.Flags().DurationVar(&life, "life", 365*24*time.Hour, "how long it lasts")
	return cmd
}

// loadRoot reads the root, and asks for its passphrase when it has one.
func (a *app) loadRoot(ctx context.Context, cert, key string) (*rpc.CA, error) {
	ca, _, err := a.openRoot(ctx, cert, key)
	return ca, err
}

// openRoot is loadRoot, and gives the passphrase; nil is none.
func (a *app) openRoot(ctx context.Context, cert, key string) (*rpc.CA, []byte, error) {
	ca, err := rpc.LoadCA(cert, key, nil)
	if !errors.Is(err, rpc.ErrDenied) {
		return ca, nil, err
	}
	question, ask := "Passphrase of "+key+": ", a.secret()
	if ask == nil {
		ask = func(ctx context.Context, question string) (string, error) {
			fmt.Fprint(a.errw, question)
			defer fmt.Fprintln(a.errw)
			return a.readLine(ctx)
		}
	}
	passphrase, err := ask(ctx, question)
	if err != nil {
		return nil, nil, err
	}
	ca, err = rpc.LoadCA(cert, key, []byte(passphrase))
	return ca, []byte(passphrase), err
}

func (a *app) renewWith(ca *rpc.CA, id rpc.Identity, life time.Duration, c clientContext) error {
	if id.Role != rpc.RoleAdmin && id.Role != rpc.RoleViewer {
		return fmt.Errorf("role %q: this is for people, admin or viewer; hosts renew their certificates by themselves", id.Role)
	}
	if err := trustRoot(c.CA, ca); err != nil {
		return err
	}
	pair, err := ca.Issue(rpc.Identity{Role: id.Role, Name: id.Name}, life, time.Now())
	if err != nil {
		return err
	}
	if err := pair.Write(c.Cert, c.Key); err != nil {
		return err
	}
	creds, err := rpc.LoadTLS(c.CA, c.Cert, c.Key)
	if err != nil {
		return err
	}
	until := timeOrNull(creds.NotAfter())
	return a.print(map[string]any{"cert": c.Cert, "key": c.Key, "notAfter": until}, func() {
		fmt.Fprintf(a.out, "%s has a new certificate until %s: %s\n", id, day(creds.NotAfter(), false), c.Cert)
	})
}

// trustRoot makes a root one that is trusted: the bundle may have been lost along with the
// certificate, or be of before the root changed.
func trustRoot(bundle string, ca *rpc.CA) error {
	if !ca.IsRoot() {
		return nil
	}
	have, err := os.ReadFile(bundle)
	if errors.Is(err, os.ErrNotExist) {
		return os.WriteFile(bundle, ca.Cert(), 0o600)
	}
	if err != nil {
		return err
	}
	roots, err := rpc.ParseRoots(have, ca.Fleet())
	if err != nil {
		return fmt.Errorf("%s: %w", bundle, err)
	}
	if slices.ContainsFunc(roots, ca.Certificate().Equal) {
		return nil
	}
	// One that gave way to another is trusted by nobody else, and its key may be a thief's.
	for _, root := range roots {
		if ca.Certificate().NotBefore.Before(root.NotBefore) {
			return fmt.Errorf("the root %q gave way to %q, and what it signs counts no more; say where that one's files are "+rootHint+" (if the new one was never in force, remove %s first)",
				ca.Certificate().Subject.CommonName, root.Subject.CommonName, bundle)
		}
	}
	// In their place, not beside them: why they gave way may be that their key was stolen, and
	// controllers are known by the new one from the moment on that it is trusted.
	return durable.Write(bundle, rpc.EncodeBundle(rpc.BundleNumber(have), []*x509.Certificate{ca.Certificate()}))
}
