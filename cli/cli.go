// Package cli is hlctl: it reads the Spec and what a person types, asks a
// controller, and shows the answer. It decides nothing and changes nothing
// itself.
package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/homeiac/homelab/internal/manual"
)

// Exit codes of hlctl, relied on by scripts.
const (
	exitFailed  = 1
	exitSteps   = 2
	exitPartial = 3
	exitExec    = 255
)

// exitError ends hlctl with a code. Its text is printed unless it has none.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// exitCode is the code for an error of a command: 0 for none, 1 unless it says
// otherwise.
func exitCode(err error) int {
	var e *exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e.code
	}
	return exitFailed
}

// app is what all commands share: where they print and whom they ask.
type app struct {
	in        io.Reader
	out, errw io.Writer
	config    string
	context   string
	format    string
	now       func() time.Time
	outIsTerm bool // and its cursor can be moved
	inIsTerm  bool
	colour    bool
	columns   int
	ready     readiness
	warned    bool // of the end of our certificate
	began     bool // a command's own work began: what fails now is no misuse
	lines     *bufio.Reader
}

// Main is hlctl: it carries out one command line and gives the exit code. When
// ctx ends (Ctrl-C) it stops waiting; what a controller has begun goes on.
func Main(ctx context.Context, args []string, in, out, errw *os.File) int {
	return newApp(in, out, errw).main(ctx, args)
}

func newApp(in, out, errw *os.File) *app {
	a := &app{in: in, out: out, errw: errw, now: time.Now, columns: 80, ready: usualReadiness}
	a.inIsTerm = term.IsTerminal(int(in.Fd()))
	if term.IsTerminal(int(out.Fd())) {
		w, rows, err := term.GetSize(int(out.Fd()))
		if err == nil && w > 0 {
			a.columns = w
		}
		able := os.Getenv("TERM") != "dumb"
		// A serial line has no size: of a picture that is redrawn nothing would be seen.
		a.outIsTerm = able && err == nil && w > 0 && rows > 0
		a.colour = able && os.Getenv("NO_COLOR") == ""
	}
	return a
}

func (a *app) main(ctx context.Context, args []string) int {
	root := a.command()
	root.InitDefaultCompletionCmd()
	refuseUnknown(root)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil {
		if text := a.explain(cmd, err); text != "" {
			fmt.Fprintln(a.errw, text)
		}
	}
	var e *exitError
	if err != nil && cmd.Name() == "exec" && !errors.As(err, &e) {
		return exitExec // never to be taken for the command's own
	}
	return exitCode(err)
}

// explain is what people are told of an error; empty when everything was said.
func (a *app) explain(cmd *cobra.Command, err error) string {
	var faults *faultsError
	text := strings.TrimSpace(err.Error())
	switch {
	case errors.As(err, &faults):
		return faults.Error()
	case text == "":
		return ""
	// cobra looks at what must be said after all else.
	case !a.began, strings.HasPrefix(text, "required flag(s)"):
		// cobra's guess stands on lines of its own.
		if misuse, guess, ok := strings.Cut(text, "\n\nDid you mean this?"); ok {
			text = misuse + "; did you mean " + strings.Join(strings.Fields(guess), " or ") + "?"
		}
		return fmt.Sprintf("error: %s\n  how it is used: %s --help", text, cmd.CommandPath())
	case errors.Is(err, context.Canceled):
		return "interrupted"
	}
	return "error: " + text
}

// readLine reads a line that a person types. It does not outlast ctx: without
// that, Ctrl-C at a question would do nothing.
func (a *app) readLine(ctx context.Context) (string, error) {
	if a.lines == nil {
		a.lines = bufio.NewReader(a.in)
	}
	return patiently(ctx, func() (string, error) {
		line, err := a.lines.ReadString('\n')
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return strings.TrimSpace(line), err
	})
}

// patiently waits for what cannot be interrupted, or for the end of ctx; what
// was begun is then left to the end of the process.
func patiently[T any](ctx context.Context, do func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := do()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "hlctl",
		Short: "k3s on Proxmox: one file says what should be, one command makes it so",
		Long: `hlctl makes what a Spec (homelab.yaml) asks for: VMs on Proxmox hosts that form one
k3s cluster. The same command again does nothing.

Exit codes: 0 done or nothing to do, 1 failed, 2 (plan) there are steps, 3 partial:
something was skipped, refused or failed, and something else was done or is healthy.`,
		Example: `  hlctl validate -f homelab.yaml    is the file right? asks nobody
  hlctl plan -f homelab.yaml        what would be done, and why
  hlctl apply -f homelab.yaml       do it
  hlctl status                      how is everything
  hlctl why k3s-2                   what happened to this guest`,
		SilenceUsage: true, SilenceErrors: true,
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.errw)
	f := root.PersistentFlags()
	f.StringVar(&a.config, "config", "", "client configuration (default "+defaultConfigText()+")")
	f.StringVar(&a.context, "context", "", "which context of it (default its current one)")
	f.StringVarP(&a.format, "output", "o", "table", "table, json or yaml")
	_ = root.MarkPersistentFlagFilename("config", "yaml", "yml")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		switch a.format {
		case "table", "json", "yaml":
			a.began = true
			return nil
		}
		return fmt.Errorf("-o %s: there are table, json and yaml", a.format)
	}
	root.AddCommand(
		a.validateCommand(), a.planCommand(), a.applyCommand(), a.statusCommand(), a.hostsCommand(),
		a.guestsCommand(), a.k3sCommand(), a.runsCommand(), a.execCommand(), a.versionCommand(),
		a.whyCommand(), a.orphansCommand(), a.imagesCommand(), a.pauseCommand(), a.resumeCommand(), a.auditCommand(),
		a.trustCommand(), a.tokenCommand(), a.initCommand(),
	)
	manual.Add(root, "1")
	return root
}

// refuseUnknown makes a mistyped command below one that only groups others the misuse that
// it is: cobra shows the group's help then, and ends with 0.
func refuseUnknown(root *cobra.Command) {
	for _, group := range root.Commands() {
		if group.HasSubCommands() && !group.Runnable() {
			group.Args = cobra.NoArgs
			group.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		}
		refuseUnknown(group)
	}
}
