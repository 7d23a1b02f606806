package cli

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/homeiac/homelab/internal/spec"
)

// Each file of testdata/env is a .env file and the Spec that is made of it.
func TestWhatAPredecessorsEnvFileBecomes(t *testing.T) {
	specGoldens(t, "testdata/env/*.txtar", func(a *txtar.Archive) []byte {
		got := startingSpec("home", parseDotenv(a.Files[0].Data), nil)
		if strings.Contains(string(got), "hunter") {
			t.Errorf("a secret is shown:\n%s", got)
		}
		return got
	})
}

func TestADotenvFileIsReadAndNotRun(t *testing.T) {
	for _, c := range []struct {
		text, key, want string
		unread          []int
	}{
		{"A=b", "A", "b", nil},
		{"\ufeffexport A = b # c\r\n", "A", "b", nil},
		{"A=b#c", "A", "b#c", nil},
		{"A=#c", "A", "", nil},
		{"A=1\nA=2", "A", "2", nil},
		{`A="b # \"c\" \\ \n"`, "A", "b # \"c\" \\ \n", nil},
		{`A='b\n' # c`, "A", `b\n`, nil},
		{"A='b\nB=x\nc'\nC=d", "C", "d", nil},
		{"A='b\nB=x\nc'\nC=d", "B", "", nil},
		{"A='b\nB=x", "B", "x", []int{1}},
		{"A='b' c\nB=x", "B", "x", []int{1}},
		{"A=$(reboot)`reboot`${B}", "A", "$(reboot)`reboot`${B}", nil},
		{"exportA=b", "exportA", "b", nil},
		{"\n# c\nA\nA B=c\n=d", "A", "", []int{3, 4, 5}},
	} {
		d := parseDotenv([]byte(c.text))
		if d.values[c.key] != c.want || !slices.Equal(d.unread, c.unread) {
			t.Errorf("%q: %q, unread %v", c.text, d.values, d.unread)
		}
	}
}

// FuzzDotenv: whatever is in a .env file, the Spec that is made of it is a Spec, and
// holds nothing of a key that has no meaning there.
func FuzzDotenv(f *testing.F) {
	files, err := filepath.Glob("testdata/env/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(archive.Files[0].Data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d := parseDotenv(data)
		text := startingSpec("home", d, nil)
		if _, faults := spec.Parse("homelab.yaml", text); len(faults) > 0 {
			t.Fatalf("%v\n%s", faults, text)
		}
		for key := range d.values {
			if !envIndexed.MatchString(key) && !slices.Contains(envSingle, key) {
				d.values[key] = "another"
			}
		}
		if string(startingSpec("home", d, nil)) != string(text) {
			t.Fatalf("it depends on a key that means nothing:\n%s", text)
		}
	})
}
