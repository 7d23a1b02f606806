package spec

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// A Fault is one thing wrong with a Spec and where it stands.
type Fault struct {
	File    string
	Line    int    // from 1; 0 when the whole file is meant
	Column  int    // from 1, in characters
	Path    string // as guests.k3s-2.networks[0].ip, "" for the whole file
	Message string
}

// Faults are sorted by place.
type Faults []Fault

// String is the fault on one line, as compilers print it.
func (f Fault) String() string {
	var b strings.Builder
	b.WriteString(f.File)
	if f.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", f.Line, f.Column)
	}
	b.WriteString(": ")
	if f.Path != "" {
		b.WriteString(f.Path)
		b.WriteString(": ")
	}
	b.WriteString(f.Message)
	return b.String()
}

// String is one line a fault and their number, "" when there are none.
func (f Faults) String() string {
	if len(f) == 0 {
		return ""
	}
	var b strings.Builder
	for _, one := range f {
		b.WriteString(one.String())
		b.WriteByte('\n')
	}
	if len(f) == 1 {
		b.WriteString("1 fault.")
	} else {
		fmt.Fprintf(&b, "%d faults.", len(f))
	}
	return b.String()
}

// Err is nil when there are no faults, else an error with the text of String.
func (f Faults) Err() error {
	if len(f) == 0 {
		return nil
	}
	return errors.New(f.String())
}

func (f Faults) sort() {
	slices.SortStableFunc(f, func(a, b Fault) int {
		return cmp.Or(
			cmp.Compare(a.Line, b.Line),
			cmp.Compare(a.Column, b.Column),
			cmp.Compare(a.Path, b.Path),
			cmp.Compare(a.Message, b.Message),
		)
	})
}
