//go:build manual

package manual

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// Add gives a program the command manual DIR: it writes a man page of the section for
// each command into DIR/man, and what completes them for each shell into
// DIR/completions. Pages are dated SOURCE_DATE_EPOCH.
func Add(root *cobra.Command, section string) {
	root.AddCommand(&cobra.Command{
		Use: "manual DIR", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return write(root, section, args[0]) },
	})
}

func write(root *cobra.Command, section, dir string) error {
	man, completions := filepath.Join(dir, "man"), filepath.Join(dir, "completions")
	for _, d := range []string{man, completions} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	name, _, _ := strings.Cut(root.Use, " ")
	root.DisableAutoGenTag = true
	if err := doc.GenManTree(root, &doc.GenManHeader{Section: section, Source: "homelab", Manual: "homelab"}, man); err != nil {
		return err
	}
	if err := root.GenBashCompletionFileV2(filepath.Join(completions, name+".bash"), true); err != nil {
		return err
	}
	if err := root.GenZshCompletionFile(filepath.Join(completions, "_"+name)); err != nil {
		return err
	}
	return root.GenFishCompletionFile(filepath.Join(completions, name+".fish"), true)
}
