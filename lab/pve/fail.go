package pve

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// failure ends a program: a text for stderr and an exit code. Proxmox's codes
// are whatever errno was left, so each place states the one that was seen.
type failure struct {
	code int
	text string
}

func (f *failure) Error() string { return f.text }

func fail(code int, format string, a ...any) error {
	return &failure{code: code, text: fmt.Sprintf(format, a...)}
}

// badParams is a failed check of parameters, by parameter. Its text ends with
// the usage line of the program, which only that knows.
type badParams struct {
	code   int
	faults map[string]string
}

func (b *badParams) Error() string {
	keys := make([]string, 0, len(b.faults))
	for k := range b.faults {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	var s strings.Builder
	s.WriteString("400 Parameter verification failed.\n")
	for _, k := range keys {
		fmt.Fprintf(&s, "%s: %s\n", k, b.faults[k])
	}
	return s.String()
}

func badParam(code int, key, format string, a ...any) error {
	return &badParams{code: code, faults: map[string]string{key: fmt.Sprintf(format, a...)}}
}

// notSimulated refuses what the lab does not do. No real program says this.
func notSimulated(format string, a ...any) error {
	return fail(255, "the lab does not simulate %s", fmt.Sprintf(format, a...))
}

// codeOf is the exit code of an error: 255 is Perl's die without an errno.
func codeOf(err error) int {
	var f *failure
	var b *badParams
	switch {
	case err == nil:
		return 0
	case errors.As(err, &f):
		return f.code
	case errors.As(err, &b):
		return b.code
	}
	return 255
}
