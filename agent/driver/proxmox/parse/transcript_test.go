package parse_test

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// transcript is one recorded call of a real program.
type transcript struct {
	Name   string
	Argv   []string `json:"argv"`
	Exit   *int     `json:"exit"`
	Stdout string   `json:"stdout"`
	Stderr string   `json:"stderr"`
	After  struct {
		Conf       *string  `json:"conf"`
		Conf2      *string  `json:"conf2"`
		KVMCmdline []string `json:"kvm_cmdline"`
	} `json:"after"`
}

// recorded reads the transcript of that number.
func recorded(t *testing.T, number string) transcript {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "transcripts", number+"-*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcript %s", number)
	}
	return readTranscript(t, files[0])
}

func readTranscript(t *testing.T, path string) transcript {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	tr := transcript{Name: strings.TrimSuffix(filepath.Base(path), ".json")}
	if err := json.Unmarshal(data, &tr); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return tr
}

func allTranscripts(t *testing.T) []transcript {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "transcripts", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	var all []transcript
	for _, f := range files {
		all = append(all, readTranscript(t, f))
	}
	return all
}

// golden compares text with a file, or writes it with -update.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got == string(want) {
		return
	}
	g, w := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range max(len(g), len(w)) {
		var a, b string
		if i < len(g) {
			a = g[i]
		}
		if i < len(w) {
			b = w[i]
		}
		if a != b {
			t.Errorf("%s line %d:\n got %s\nwant %s", path, i+1, a, b)
		}
	}
}
