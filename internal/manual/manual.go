//go:build !manual

// Package manual writes man pages and shell completions from the commands
// themselves. Only a build with the tag manual can: what it takes to write them is of
// no use in the programs that are shipped.
package manual

import "github.com/spf13/cobra"

// Add gives a program the hidden command that writes its manual, in a build with the
// tag manual; in any other it does nothing.
func Add(*cobra.Command, string) {}
