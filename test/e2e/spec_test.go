//go:build e2e

package e2e

import (
	"fmt"
	"os"

	"go.yaml.in/yaml/v3"
)

// doc is a part of a Spec.
type doc = map[string]any

// edited writes a copy of a Spec with changes and gives its path.
func (l *lab) edited(spec string, change func(doc)) string {
	l.t.Helper()
	data, err := os.ReadFile(spec)
	if err != nil {
		l.t.Fatal(err)
	}
	var d doc
	if err := yaml.Unmarshal(data, &d); err != nil {
		l.t.Fatal(err)
	}
	change(d)
	if data, err = yaml.Marshal(d); err != nil {
		l.t.Fatal(err)
	}
	l.mu.Lock()
	l.specs++
	path := l.path(fmt.Sprintf("spec-%d.yaml", l.specs))
	l.mu.Unlock()
	if err := os.WriteFile(path, data, 0o644); err != nil {
		l.t.Fatal(err)
	}
	return path
}

// at is a part of a Spec by its keys.
func at(d doc, keys ...string) doc {
	for _, k := range keys {
		d = d[k].(doc)
	}
	return d
}

// oneServer makes all guests but the first agents, which join faster.
func oneServer(d doc) {
	for name := range at(d, "guests") {
		if name != "k3s-1" {
			at(d, "guests", name)["k3s"] = doc{"role": "agent"}
		}
	}
}
