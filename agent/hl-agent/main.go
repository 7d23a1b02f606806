// Command hl-agent is the agent on a Proxmox host, and in a process of its own
// the driver that it manages VMs with.
package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/homeiac/homelab/agent"
	"github.com/homeiac/homelab/agent/driver"
	"github.com/homeiac/homelab/agent/driver/proxmox"
	"github.com/homeiac/homelab/internal/daemon"
	"github.com/homeiac/homelab/internal/enrol"
	"github.com/homeiac/homelab/internal/rpc"
)

func main() {
	// A host's memory is its guests': what lives here is small, and collecting it twice as
	// often costs less than a thousandth of a core.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	cmd := daemon.Command("hl-agent", "The homelab agent on a Proxmox host", "/etc/homelab/agent.yaml", run)
	cmd.AddCommand(driverCommand(), enrolCommand())
	daemon.Main(cmd)
}

func run(ctx context.Context, file string, log *slog.Logger) error {
	cfg, err := agent.LoadConfig(file)
	if err != nil {
		return rpc.Errorf(rpc.ErrInvalid, "%w", err)
	}
	return agent.New(cfg, log).Run(ctx)
}

func driverCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "driver NAME", Short: "Serve a driver to the agent (started by it)", Hidden: true}
	var cfg proxmox.Config
	one := &cobra.Command{
		Use: "proxmox", Short: "The driver for Proxmox VE", Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			// A Ctrl-C in the agent's terminal is the agent's to act on.
			signal.Ignore(os.Interrupt)
			cfg.Log = driver.PluginLog()
			d := proxmox.New(cfg)
			// SIGTERM, from the agent.
			context.AfterFunc(cmd.Context(), d.End)
			driver.Serve(d)
		},
	}
	one.Flags().StringVar(&cfg.Root, "root", "/", "where the host's file system lies")
	one.Flags().StringVar(&cfg.Proc, "proc", "/proc", "where processes are looked up")
	one.Flags().StringVar(&cfg.State, "state", "/var/lib/hl-agent/driver", "the driver's own folder")
	cmd.AddCommand(one)
	return cmd
}

func enrolCommand() *cobra.Command {
	var q enrol.Request
	var token string
	cmd := &cobra.Command{
		Use: "enrol --controller IP:PORT --token -", Short: "Get this host its certificate, for a token", Args: cobra.NoArgs,
		Long: `enrol asks a controller for this host's certificate. The token is read from standard
input, so that it is in no list of processes; hlctl token create HOST prints it and the
whole line. The key is made here and does not leave the host. enrol is safe to repeat.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := enrol.ReadToken(token, cmd.InOrStdin())
			if err != nil {
				return err
			}
			q.Token, q.Out = text, cmd.OutOrStdout()
			return agent.Enrol(cmd.Context(), q)
		},
	}
	cmd.Flags().StringVar(&q.Controller, "controller", "", "IP:PORT of a controller's enrolment (port 8402)")
	cmd.Flags().StringVar(&token, "token", "", "- reads the token from standard input")
	cmd.Flags().StringVar(&q.Config, "config", "/etc/homelab/agent.yaml", "the agent's configuration; written when it says nothing")
	cmd.Flags().StringVar(&q.Advertise, "advertise", "", "this host's IP address, for a configuration that is written")
	cmd.Flags().StringVar(&q.State, "state", "", "the agent's state folder, for a configuration that is written")
	_ = cmd.MarkFlagRequired("controller")
	_ = cmd.MarkFlagRequired("token")
	return cmd
}
