// Package cli is hlctl: it reads the Spec and what a person types, asks a
// controller, and shows the answer. It decides nothing and changes nothing
// itself.
package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// Exit codes of hlctl, relied on by scripts.
const (
	exitFailed  = 1
	exitSteps   = 2
	exitPartial = 3
	exitExec    = 255
)

// ExitError ends hlctl with a code. Its text is printed unless it is empty.
type ExitError struct {
	Code int
	Err  error
}

func (e *ExitError) Error() string {
	if e.Err == nil {
		return ""
	}
	return e.Err.Error()
}

func (e *ExitError) Unwrap() error { return e.Err }

// ExitCode is the code for an error of the command: 0 for none, 1 unless it
// says otherwise.
func ExitCode(err error) int {
	var e *ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e.Code
	}
	return exitFailed
}

// Explain is what people are told of an error; empty when everything was said.
func Explain(err error) string {
	var faults *faultsError
	switch {
	case errors.As(err, &faults):
		return faults.Error()
	case err.Error() == "":
		return ""
	}
	return "error: " + err.Error()
}

// app is what all commands share: where they print and whom they ask.
type app struct {
	in         io.Reader
	out, errw  io.Writer
	config     string
	context    string
	format     string
	now        func() time.Time
	outIsTerm  bool
	inIsTerm   bool
	colour     bool
	columns    int
	workingDir string
}

// Command is the hlctl command line, on the process's own streams.
func Command() *cobra.Command {
	return newApp(os.Stdin, os.Stdout, os.Stderr).command()
}

func newApp(in *os.File, out, errw *os.File) *app {
	a := &app{in: in, out: out, errw: errw, now: time.Now, columns: 80}
	a.outIsTerm = term.IsTerminal(int(out.Fd()))
	a.inIsTerm = term.IsTerminal(int(in.Fd()))
	if a.outIsTerm {
		if w, _, err := term.GetSize(int(out.Fd())); err == nil && w > 0 {
			a.columns = w
		}
		a.colour = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	}
	return a
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "hlctl",
		Short: "k3s on Proxmox: one file says what should be, one command makes it so",
		Long: `hlctl makes what a Spec (homelab.yaml) asks for: VMs on Proxmox hosts that form one
k3s cluster. The same command again does nothing.

  hlctl validate -f homelab.yaml    is the file right? asks nobody
  hlctl plan -f homelab.yaml        what would be done, and why
  hlctl apply -f homelab.yaml       do it
  hlctl status                      how is everything

Exit codes: 0 done or nothing to do, 1 failed, 2 (plan) there are steps, 3 partial.`,
		SilenceUsage: true, SilenceErrors: true,
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.errw)
	f := root.PersistentFlags()
	f.StringVar(&a.config, "config", "", "client configuration (default "+defaultConfigText()+")")
	f.StringVar(&a.context, "context", "", "which context of it (default its current one)")
	f.StringVarP(&a.format, "output", "o", "table", "table, json or yaml")
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		switch a.format {
		case "table", "json", "yaml":
			return nil
		}
		return fmt.Errorf("-o %s: table, json or yaml", a.format)
	}
	root.AddCommand(
		a.validateCommand(), a.planCommand(), a.applyCommand(), a.statusCommand(), a.hostsCommand(),
		a.guestsCommand(), a.k3sCommand(), a.runsCommand(), a.execCommand(), a.versionCommand(),
	)
	return root
}
