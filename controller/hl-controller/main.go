// Command hl-controller finds the agents of a fleet and carries out what a Spec
// asks for.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/homeiac/homelab/controller"
	"github.com/homeiac/homelab/internal/daemon"
	"github.com/homeiac/homelab/internal/durable"
	"github.com/homeiac/homelab/internal/enrol"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/version"
)

func main() {
	cmd := daemon.Command("hl-controller", "Finds the agents of a fleet and carries out what a Spec asks for", configFile, run)
	cmd.AddCommand(issueAdminCommand(), enrolCommand())
	daemon.Main(cmd)
}

const configFile = "/etc/homelab/controller.yaml"

func run(ctx context.Context, file string, log *slog.Logger) error {
	cfg, err := controller.LoadConfig(file)
	if err != nil {
		return rpc.Errorf(rpc.ErrInvalid, "%w", err)
	}
	c, err := controller.New(cfg, version.String(), log)
	if err != nil {
		return err
	}
	return c.Run(ctx)
}

func issueAdminCommand() *cobra.Command {
	var file, name, dir string
	cmd := &cobra.Command{
		Use: "issue-admin --out DIR", Short: "Make an admin's certificate, for who lost theirs", Args: cobra.NoArgs,
		Long: `issue-admin makes a certificate with which hlctl may do everything, signed by this
host's issuing CA, and writes it into DIR with its key: NAME.pem, NAME.key and ca.pem.
Take them to where hlctl runs, and delete them here. The controller may run or not.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := controller.LoadConfig(file)
			if err != nil {
				return err
			}
			pair, err := controller.IssueAdmin(cfg, name, time.Now())
			if err != nil {
				return err
			}
			roots, err := os.ReadFile(cfg.CA)
			if err != nil {
				return err
			}
			cert, key, ca := filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key"), filepath.Join(dir, "ca.pem")
			if err := pair.Write(cert, key); err != nil {
				return err
			}
			if err := durable.Write(ca, roots); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "ca: %s\ncert: %s\nkey: %s\n", ca, cert, key)
			return nil
		},
	}
	cmd.Flags().StringVar(&file, "config", configFile, "the controller's configuration")
	cmd.Flags().StringVar(&name, "name", "admin", "whose certificate it is")
	cmd.Flags().StringVar(&dir, "out", "", "the folder to write into")
	_ = cmd.MarkFlagRequired("out")
	return cmd
}

func enrolCommand() *cobra.Command {
	var q enrol.Request
	var token string
	var endpoints []string
	cmd := &cobra.Command{
		Use: "enrol --controller IP:PORT --token -", Short: "Get a further controller its certificate, for a token", Args: cobra.NoArgs,
		Long: `enrol asks another controller for this one's certificate, the roots and the gossip keys.
The token is read from standard input; hlctl token create NAME --role controller prints
it. The fleet's key and an issuing CA of its own, and the etcd's CA, certificate and key
must be in the state folder already: hlctl hosts add --controller does all of it.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := enrol.ReadToken(token, cmd.InOrStdin())
			if err != nil {
				return err
			}
			q.Token, q.Out = text, cmd.OutOrStdout()
			return controller.Enrol(cmd.Context(), q, endpoints)
		},
	}
	f := cmd.Flags()
	f.StringVar(&q.Controller, "controller", "", "IP:PORT of another controller's enrolment (port 8402)")
	f.StringVar(&token, "token", "", "- reads the token from standard input")
	f.StringVar(&q.Config, "config", configFile, "the controller's configuration; written when it says nothing")
	f.StringVar(&q.Advertise, "advertise", "", "this controller's IP address, for a configuration that is written")
	f.StringVar(&q.State, "state", "", "the state folder, for a configuration that is written")
	f.StringSliceVar(&endpoints, "etcd-endpoints", nil, "https://IP:PORT of the etcd that all controllers share")
	_ = cmd.MarkFlagRequired("controller")
	_ = cmd.MarkFlagRequired("token")
	return cmd
}
