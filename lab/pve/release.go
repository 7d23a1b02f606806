package pve

import (
	"fmt"
	"os"
	"path/filepath"
)

// writeRelease writes the Perl module in which pve-manager keeps its version; a
// program that must not start pveversion reads it there.
func (h *Host) writeRelease() error {
	path := h.path("usr/share/perl5/PVE/pvecfg.pm")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	text := fmt.Sprintf("package PVE::pvecfg;\n\nsub version {\n    return '%s';\n}\n\n1;\n", h.cfg.PVEVersion)
	return replaceFile(path, []byte(text), 0o644)
}
