// Command hl-agent is the agent on a Proxmox host, and in a process of its own
// the driver that it manages VMs with.
package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"

	"github.com/spf13/cobra"

	"github.com/homeiac/homelab/agent"
	"github.com/homeiac/homelab/agent/driver"
	"github.com/homeiac/homelab/agent/driver/proxmox"
	"github.com/homeiac/homelab/internal/daemon"
	"github.com/homeiac/homelab/internal/rpc"
)

func main() {
	cmd := daemon.Command("hl-agent", "The homelab agent on a Proxmox host", "/etc/homelab/agent.yaml", run)
	cmd.AddCommand(driverCommand())
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
