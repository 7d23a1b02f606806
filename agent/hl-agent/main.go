// Command hl-agent is the agent on a Proxmox host, and in a process of its own
// the driver that it manages VMs with.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/homeiac/homelab/agent"
	"github.com/homeiac/homelab/agent/driver"
	"github.com/homeiac/homelab/agent/driver/proxmox"
	"github.com/homeiac/homelab/internal/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "hl-agent:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var file string
	root := &cobra.Command{
		Use:           "hl-agent --config FILE",
		Short:         "The homelab agent on a Proxmox host",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := agent.LoadConfig(file)
			if err != nil {
				return err
			}
			log := slog.New(slog.NewTextHandler(os.Stderr, nil))
			return agent.New(cfg, log).Run(cmd.Context())
		},
	}
	root.Flags().StringVar(&file, "config", "/etc/homelab/agent.yaml", "configuration file")
	root.AddCommand(driverCommand(), &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), version.String()) },
	})
	return root
}

func driverCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "driver NAME", Short: "Serve a driver to the agent (started by it)"}
	var cfg proxmox.Config
	one := &cobra.Command{
		Use: "proxmox", Short: "The driver for Proxmox VE", Args: cobra.NoArgs,
		Run: func(*cobra.Command, []string) {
			// A Ctrl-C in the agent's terminal is the agent's to act on.
			signal.Ignore(os.Interrupt)
			cfg.Log = driver.PluginLog()
			driver.Serve(proxmox.New(cfg))
		},
	}
	one.Flags().StringVar(&cfg.Root, "root", "/", "where the host's file system lies")
	one.Flags().StringVar(&cfg.Proc, "proc", "/proc", "where processes are looked up")
	one.Flags().StringVar(&cfg.State, "state", "/var/lib/hl-agent/driver", "the driver's own folder")
	cmd.AddCommand(one)
	return cmd
}
