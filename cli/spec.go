package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/homeiac/homelab/internal/spec"
	"github.com/spf13/cobra"
)

// specFile is a Spec as read from disk, with the files it names inlined.
type specFile struct {
	name    string
	text    []byte
	spec    *spec.Spec
	missing []spec.Fault
}

// readSpec reads and checks a Spec without asking anybody. All faults are one error.
func readSpec(path string) (*specFile, error) {
	if path == "" {
		return nil, errors.New("which Spec? -f homelab.yaml")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f := &specFile{name: path}
	inlined, missing, faults := spec.InlineFiles(path, data, readKeyFile)
	f.missing = missing
	// Both are told at once: the text is parsed as it was written when a file
	// could not be inlined.
	if inlined == nil {
		inlined = data
	}
	s, more := spec.Parse(path, inlined)
	f.text, f.spec = inlined, s
	return f, faultsErr(append(faults, unlessSame(more, faults)...))
}

// faultsError are faults of a Spec, which are printed as they are: each line
// begins with its place.
type faultsError struct{ faults spec.Faults }

func (e *faultsError) Error() string { return e.faults.String() }

func faultsErr(faults spec.Faults) error {
	if len(faults) == 0 {
		return nil
	}
	return &faultsError{faults}
}

// unlessSame leaves out of more what first says already.
func unlessSame(more, first spec.Faults) spec.Faults {
	seen := map[string]bool{}
	for _, f := range first {
		seen[f.String()] = true
	}
	var out spec.Faults
	for _, f := range more {
		if !seen[f.String()] {
			out = append(out, f)
		}
	}
	return out
}

// readKeyFile reads a file that the Spec names; ~ is the user's home.
func readKeyFile(path string) ([]byte, error) {
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, err
		}
		path = filepath.Join(home, rest)
	}
	return os.ReadFile(path)
}

func (a *app) validateCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "validate -f homelab.yaml", Short: "Check a Spec; asks nobody", Args: cobra.NoArgs,
		Long: `validate checks a Spec and tells all its faults at once, with line and column. It
asks no controller. A key file that is missing is a warning here, and a fault for
plan and apply.`,
		RunE: func(*cobra.Command, []string) error {
			f, err := readSpec(file)
			if err != nil {
				return err
			}
			for _, m := range f.missing {
				fmt.Fprintln(a.errw, "warning:", m.String())
			}
			for _, w := range f.spec.Warnings {
				fmt.Fprintln(a.errw, "warning:", w.String())
			}
			result := struct {
				Name     string   `json:"name"`
				Hosts    int      `json:"hosts"`
				Guests   int      `json:"guests"`
				Warnings []string `json:"warnings"`
			}{f.spec.Name, len(f.spec.Hosts), len(f.spec.Guests), []string{}}
			for _, m := range append(append([]spec.Fault{}, f.missing...), f.spec.Warnings...) {
				result.Warnings = append(result.Warnings, m.String())
			}
			return a.print(result, func() {
				fmt.Fprintf(a.out, "%s is well: %s, %s.\n", file, plural(len(f.spec.Hosts), "host", "hosts"), plural(len(f.spec.Guests), "guest", "guests"))
			})
		},
	}
	specFlag(cmd, &file)
	return cmd
}

func specFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVarP(file, "file", "f", "homelab.yaml", "the Spec")
}

// specForController is a Spec that can be sent: a key file that is missing is a fault.
func specForController(path string) (*specFile, error) {
	f, err := readSpec(path)
	if err != nil {
		return nil, err
	}
	return f, faultsErr(f.missing)
}
