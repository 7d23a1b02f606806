package config

import (
	"path/filepath"
	"strings"
	"testing"
)

// FuzzParse: a file is read, or its faults are told with their lines; never both
// nothing and wrong.
func FuzzParse(f *testing.F) {
	for _, text := range []string{
		"", "name: pve1\nadvertise: 10.0.0.7\n", "name: [a\n", "a: &a [*a, *a]\n", "name: x\n---\nname: y\n", "unknown: 1\n", "port: 99999\nseeds: [x, 10.0.0.1:1]\n",
		"name: !!binary aGk=\n", "ca: ../../etc/shadow\n", "name: {a: b}\n", "\xff\xfe", "<<: *x\n", "name: a\nname: b\n", "advertise: 0.0.0.0\n",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		d := Daemon{Port: 8400, GossipPort: 7946}
		file := Parse("/etc/homelab/agent.yaml", text, &d)
		d.Check(file)
		err := file.Err()
		switch {
		case err != nil && !strings.Contains(err.Error(), "/etc/homelab/agent.yaml"):
			t.Fatalf("the error names no file: %v", err)
		case err == nil && (d.Name == "" || d.Advertise == "" || d.Port < 1 || d.Port > 65535 || !filepath.IsAbs(d.Key)):
			t.Fatalf("let through: %+v", d)
		}
	})
}
