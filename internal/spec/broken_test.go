package spec

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "write the goldens anew")

// golden runs each testdata/DIR/*.txtar: homelab.yaml in, what print says out.
func golden(t *testing.T, dir, section string, print func(t *testing.T, data []byte) string) {
	paths, err := filepath.Glob(filepath.Join("testdata", dir, "*.txtar"))
	if err != nil || len(paths) == 0 {
		t.Fatal("no goldens in", dir, err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			files := map[string]string{}
			for _, f := range archive.Files {
				files[f.Name] = string(f.Data)
			}
			got := print(t, []byte(files["homelab.yaml"]))
			if strings.Contains(got, "hunter") {
				t.Errorf("a password is shown:\n%s", got)
			}
			if *update {
				archive.Files = []txtar.File{
					{Name: "homelab.yaml", Data: []byte(files["homelab.yaml"])},
					{Name: section, Data: []byte(got)},
				}
				if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(files[section], got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestABrokenSpecShowsAllItsFaultsAtOnce(t *testing.T) {
	golden(t, "broken", "faults", func(t *testing.T, data []byte) string {
		s, faults := Parse("homelab.yaml", data)
		if s != nil || len(faults) == 0 {
			t.Fatal("it has no faults")
		}
		for _, f := range faults {
			if f.File != "homelab.yaml" || f.Message == "" || (f.Line == 0) != (f.Column == 0) {
				t.Errorf("fault without a place: %+v", f)
			}
		}
		return faults.String() + "\n"
	})
}

func TestADoubtIsAWarningAndNoFault(t *testing.T) {
	golden(t, "warnings", "warnings", func(t *testing.T, data []byte) string {
		s, faults := Parse("homelab.yaml", data)
		if err := faults.Err(); err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		for _, w := range s.Warnings {
			b.WriteString(w.String() + "\n")
		}
		return b.String()
	})
}
