// Command hl-controller is the controller's process: it reads the
// configuration, and ends on SIGTERM or SIGINT.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/homeiac/homelab/controller"
	"github.com/homeiac/homelab/internal/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "hl-controller:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var file string
	var verbose bool
	root := &cobra.Command{
		Use:           "hl-controller --config FILE",
		Short:         "Finds the agents of a fleet and carries out what a Spec asks for",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := controller.LoadConfig(file)
			if err != nil {
				return err
			}
			level := slog.LevelInfo
			if verbose {
				level = slog.LevelDebug
			}
			log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
			c, err := controller.New(cfg, version.String(), log)
			if err != nil {
				return err
			}
			return c.Run(cmd.Context())
		},
	}
	root.Flags().StringVar(&file, "config", "/etc/homelab/controller.yaml", "configuration file")
	root.Flags().BoolVarP(&verbose, "verbose", "v", false, "log every call")
	root.AddCommand(&cobra.Command{
		Use: "version", Short: "Prints the version", Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), version.String()) },
	})
	return root
}
