package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/homeiac/homelab/internal/rpc"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// renewHint is how an error about our own certificate ends: both ways out.
const renewHint = "hlctl trust renew (with the root's key), or as root on a controller's host: hl-controller issue-admin --out DIR"

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
			c, err := a.loadContext()
			if err != nil {
				return err
			}
			dir := filepath.Dir(c.where)
			if root == "" {
				root = filepath.Join(dir, rootCertFile)
			}
			if key == "" {
				key = filepath.Join(dir, rootKeyFile)
			}
			ca, err := a.loadRoot(cmd.Context(), root, key)
			if err != nil {
				return err
			}
			id := rpc.Identity{Role: role, Name: name}
			if old, err := rpc.LoadTLS(c.CA, c.Cert, c.Key); err == nil && name == "" {
				id = old.Identity()
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
	cmd.Flags().StringVar(&role, "role", rpc.RoleAdmin, "admin or viewer, with --name")
	cmd.Flags().DurationVar(&life, "life", 365*24*time.Hour, "how long it lasts")
	return cmd
}

// loadRoot reads the root, and asks for its passphrase when it has one.
func (a *app) loadRoot(ctx context.Context, cert, key string) (*rpc.CA, error) {
	ca, err := rpc.LoadCA(cert, key, nil)
	if !errors.Is(err, rpc.ErrDenied) {
		return ca, err
	}
	fmt.Fprintf(a.errw, "Passphrase of %s: ", key)
	var passphrase string
	if in, ok := a.in.(*os.File); ok && a.inIsTerm {
		passphrase, err = patiently(ctx, func() (string, error) {
			text, err := term.ReadPassword(int(in.Fd()))
			return string(text), err
		})
	} else {
		passphrase, err = a.readLine(ctx)
	}
	fmt.Fprintln(a.errw)
	if err != nil {
		return nil, err
	}
	return rpc.LoadCA(cert, key, []byte(passphrase))
}

func (a *app) renewWith(ca *rpc.CA, id rpc.Identity, life time.Duration, c clientContext) error {
	if id.Role != rpc.RoleAdmin && id.Role != rpc.RoleViewer {
		return fmt.Errorf("role %q: this is for people, admin or viewer; hosts renew their certificates by themselves", id.Role)
	}
	// It may have been lost along with the certificate.
	if _, err := os.Stat(c.CA); errors.Is(err, os.ErrNotExist) && ca.IsRoot() {
		if err := os.WriteFile(c.CA, ca.Cert(), 0o600); err != nil {
			return err
		}
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
