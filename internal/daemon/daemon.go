// Package daemon is the outside of a daemon: its command line, its log, and how
// it ends. What it does, and what its configuration means, it leaves to the
// daemon.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/homeiac/homelab/internal/config"
	"github.com/homeiac/homelab/internal/manual"
	"github.com/homeiac/homelab/internal/rpc"
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
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level}))
			return watched(cmd.Context(), name, log, func(ctx context.Context) error { return run(ctx, file, log) })
		},
	}
	root.Flags().StringVar(&file, "config", file, "configuration file")
	root.Flags().BoolVarP(&verbose, "verbose", "v", false, "log every call")
	root.AddCommand(&cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), version.String()) },
	})
	root.CompletionOptions.HiddenDefaultCmd = true // the package brings them
	manual.Add(root, "8")
	return root
}

// watched runs a daemon and logs why it ends, as soon as that is known: what it still
// waits for can take more than a minute. How it failed is its caller's to print.
func watched(ctx context.Context, name string, log *slog.Logger, run func(context.Context) error) error {
	told := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(told)
		log.Info("stopping", "program", name, "version", version.String(), "reason", context.Cause(ctx).Error())
	})
	err := run(ctx)
	if !stop() {
		<-told
	}
	if err == nil {
		log.Info("stopped", "program", name)
	}
	return err
}

// exitUnusable is the exit code for a configuration, certificate or key that is missing or
// cannot be used (EX_CONFIG of sysexits.h). The units do not start again after it:
// what is wrong does not mend itself.
const exitUnusable = 78

// Main runs the command until SIGTERM or SIGINT, and ends the process: with 0, or
// with the error and 1, or 78 when what it was given to start with is unusable.
func Main(cmd *cobra.Command) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends it where it stands
	err := cmd.ExecuteContext(ctx)
	stop()
	if err != nil {
		text, code := verdict(err)
		fmt.Fprintf(os.Stderr, "%s: %s\n", cmd.Name(), text)
		os.Exit(code)
	}
}

// verdict is what is said of the error that ended a daemon, and the exit code.
func verdict(err error) (text string, code int) {
	text = err.Error()
	switch {
	case !errors.Is(err, rpc.ErrInvalid):
		return text, 1
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, config.ErrEmpty):
		text += "\n  if this host is not enrolled yet: hlctl hosts add root@HOST"
	}
	return text, exitUnusable
}
