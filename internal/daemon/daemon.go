// Package daemon is the outside of a daemon: its command line, its log, and how
// it ends. What it does, and what its configuration means, it leaves to the
// daemon.
package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/homeiac/homelab/internal/version"
)

// Command is a daemon's command line: --config FILE (file when not said),
// --verbose and version. run is given the file's name; it returns nil when ctx
// was why it ended.
func Command(name, short, file string, run func(ctx context.Context, file string, log *slog.Logger) error) *cobra.Command {
	var verbose bool
	root := &cobra.Command{
		Use:           name + " --config FILE",
		Short:         short,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			level := slog.LevelInfo
			if verbose {
				level = slog.LevelDebug
			}
			return run(cmd.Context(), file, slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level})))
		},
	}
	root.Flags().StringVar(&file, "config", file, "configuration file")
	root.Flags().BoolVarP(&verbose, "verbose", "v", false, "log every call")
	root.AddCommand(&cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), version.String()) },
	})
	return root
}

// Main runs the command until SIGTERM or SIGINT, and ends the process: with 0,
// or with 1 and the error.
func Main(cmd *cobra.Command) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := cmd.ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", cmd.Name(), err)
		os.Exit(1)
	}
}
