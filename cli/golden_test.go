package cli

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/homeiac/homelab/internal/spec"
)

var update = flag.Bool("update", false, "write the goldens anew")

func TestMain(m *testing.M) {
	time.Local = time.UTC // goldens show local times
	flag.Parse()
	os.Exit(m.Run())
}

// TestGoldens runs the command lines of testdata/*.txtar. Each file begins with
// the scene; a section "$ args" holds what was printed: standard output, then
// "stderr:" and standard error, then the exit code where it is not 0. Other
// sections are files that hlctl finds in its folder. Answers to questions are
// written as "$ args < text".
func TestGoldens(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no goldens", err)
	}
	for _, file := range files {
		abs, err := filepath.Abs(file)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(abs)
			if err != nil {
				t.Fatal(err)
			}
			name, _, _ := strings.Cut(strings.TrimPrefix(string(archive.Comment), "scene: "), "\n")
			scene, ok := scenes[name]
			if !ok {
				t.Fatalf("no scene %q", name)
			}
			r := newRig(t)
			scene(r.fake)
			var got txtar.Archive
			got.Comment = archive.Comment
			for _, f := range archive.Files {
				line, isCommand := strings.CutPrefix(f.Name, "$ ")
				if !isCommand {
					r.write(f.Name, string(f.Data))
					got.Files = append(got.Files, f)
					continue
				}
				got.Files = append(got.Files, txtar.File{Name: f.Name, Data: []byte(r.shown(line))})
			}
			want, have := string(txtar.Format(archive)), string(txtar.Format(&got))
			if want == have {
				return
			}
			if *update {
				if err := os.WriteFile(abs, []byte(have), 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
			t.Errorf("-want +got (go test ./cli -update):\n%s", cmp.Diff(want, have))
		})
	}
}

// shown runs one command line and writes down what came of it.
func (r *rig) shown(line string) string {
	line, input, asked := strings.Cut(line, " < ")
	res := r.runWith(r.t.Context(), strings.NewReader(input+"\n"), func(a *app) { a.inIsTerm = asked }, strings.Fields(line)...)
	text := res.out
	if res.err != "" {
		text += "stderr:\n" + res.err
		if !strings.HasSuffix(text, "\n") {
			text += "\n"
		}
	}
	if res.code != 0 {
		text += fmt.Sprintf("exit %d\n", res.code)
	}
	return text
}

// specGoldens makes a Spec of each archive that fits the pattern, and compares it with the
// homelab.yaml at its end.
func specGoldens(t *testing.T, pattern string, of func(*txtar.Archive) []byte) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatal("no goldens", err)
	}
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		got := of(archive)
		if _, faults := spec.Parse("homelab.yaml", got); len(faults) > 0 {
			t.Errorf("%s: %v\n%s", file, faults, got)
		}
		var want []byte
		if last := len(archive.Files) - 1; last >= 0 && archive.Files[last].Name == "homelab.yaml" {
			want, archive.Files = archive.Files[last].Data, archive.Files[:last]
		}
		if *update {
			archive.Files = append(archive.Files, txtar.File{Name: "homelab.yaml", Data: got})
			if err := os.WriteFile(file, txtar.Format(archive), 0o600); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", file, diff)
		}
	}
}
