// Package sh writes words for a POSIX shell. What is run, and where, it leaves to
// others.
package sh

import "strings"

// Quote makes one word of s.
func Quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// Line is a command line of which each argument arrives as it is.
func Line(argv []string) string {
	words := make([]string, len(argv))
	for i, a := range argv {
		words[i] = Quote(a)
	}
	return strings.Join(words, " ")
}
