package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/homeiac/homelab/internal/spec"
	"github.com/spf13/cobra"
)

// specFile is a Spec as read from disk, with the files it names inlined.
type specFile struct {
	name    string
	text    []byte
	spec    *spec.Spec
	missing spec.Faults // key files that are not there
	faults  spec.Faults // everything else
}

// readSpec reads and checks a Spec without asking anybody. The error is only of
// reading it; what is wrong with it is in the answer, all at once.
func readSpec(path string) (*specFile, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no Spec %s; say which with -f FILE", path)
	}
	if err != nil {
		return nil, err
	}
	f := &specFile{name: path}
	inlined, missing, faults := spec.InlineFiles(path, data, func(name string) ([]byte, error) {
		return os.ReadFile(besideFile(path, name))
	})
	// A file that could not be inlined leaves its name in the text, and Parse
	// says again that this is no key: one line a place is enough.
	said := map[[2]int]bool{}
	for _, fault := range append(slices.Clone(faults), missing...) {
		said[[2]int{fault.Line, fault.Column}] = true
	}
	s, more := spec.Parse(path, inlined)
	for _, fault := range more {
		if !said[[2]int{fault.Line, fault.Column}] {
			faults = append(faults, fault)
		}
	}
	f.text, f.spec, f.missing, f.faults = inlined, s, missing, sorted(faults)
	return f, nil
}

// sorted is in the order of the file.
func sorted(faults spec.Faults) spec.Faults {
	slices.SortStableFunc(faults, func(a, b spec.Fault) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return faults
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

// specForController is a Spec that can be sent: a key file that is missing is a
// fault like any other.
func specForController(path string) (*specFile, error) {
	f, err := readSpec(path)
	if err != nil {
		return nil, err
	}
	return f, faultsErr(sorted(append(slices.Clone(f.faults), f.missing...)))
}

// validateDoc is what validate found, in JSON.
type validateDoc struct {
	File     string     `json:"file"`
	Name     string     `json:"name"`
	Hosts    int        `json:"hosts"`
	Guests   int        `json:"guests"`
	Faults   []faultDoc `json:"faults"`
	Warnings []faultDoc `json:"warnings"`
}

// faultDoc is one fault; line and column are null for one of the whole file.
type faultDoc struct {
	File    string `json:"file"`
	Line    *int32 `json:"line"`
	Column  *int32 `json:"column"`
	Path    string `json:"path"`
	Message string `json:"message"`
}

func faultsJSON(faults spec.Faults) []faultDoc {
	docs := []faultDoc{}
	for _, f := range faults {
		docs = append(docs, faultDoc{f.File, numberOrNull(int32(f.Line)), numberOrNull(int32(f.Column)), f.Path, f.Message}) //nolint:gosec // places in a file of at most 16 MiB
	}
	return docs
}

func (a *app) validateCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "validate -f homelab.yaml", Short: "Check a Spec; asks nobody", Args: cobra.NoArgs,
		Long: `validate checks a Spec and tells all its faults at once, with line and column. It
asks no controller. A key file that is missing is a warning here, and a fault for
plan and apply.

Exit codes: 0 it is well (perhaps with warnings), 1 it has faults.`,
		Example: "  hlctl validate -f homelab.yaml\n  hlctl validate -f homelab.yaml -o json | jq '.faults[].message'",
		RunE:    func(*cobra.Command, []string) error { return a.validate(file) },
	}
	specFlag(cmd, &file)
	return cmd
}

func (a *app) validate(file string) error {
	f, err := readSpec(file)
	if err != nil {
		return err
	}
	doc := validateDoc{File: file}
	warnings := slices.Clone(f.missing)
	if f.spec != nil && len(f.faults) == 0 {
		doc.Name, doc.Hosts, doc.Guests = f.spec.Name, len(f.spec.Hosts), len(f.spec.Guests)
		warnings = sorted(append(warnings, f.spec.Warnings...))
	}
	doc.Faults, doc.Warnings = faultsJSON(f.faults), faultsJSON(warnings)
	for _, w := range warnings {
		fmt.Fprintln(a.errw, "warning:", w.String())
	}
	err = a.print(doc, func() {
		if len(f.faults) == 0 {
			fmt.Fprintf(a.out, "%s is well: %s, %s.   hlctl plan -f %s\n", file, plural(doc.Hosts, "host", "hosts"), plural(doc.Guests, "guest", "guests"), file)
		}
	})
	if err != nil {
		return err
	}
	return faultsErr(f.faults)
}

func specFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVarP(file, "file", "f", "homelab.yaml", "the Spec")
	_ = cmd.MarkFlagFilename("file", "yaml", "yml")
}
