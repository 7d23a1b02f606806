package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/homeiac/homelab/cli/discover"
	"github.com/homeiac/homelab/internal/spec"
)

// recorded is a host that says what stands in a file.
type recorded map[string][]byte

type exit int

func (e exit) Error() string   { return fmt.Sprintf("exit status %d", int(e)) }
func (e exit) ExitStatus() int { return int(e) }

func (r recorded) Run(_ context.Context, _ io.Reader, argv ...string) ([]byte, error) {
	if out, ok := r[strings.Join(argv, " ")]; ok {
		return out, nil
	}
	return nil, exit(127)
}

func (recorded) Close() error { return nil }

// scene is an archive: .env, what hosts say (TARGET: COMMAND), and homelab.yaml.
type scene struct {
	env   []byte
	want  []byte
	from  fromHosts
	hosts map[string]recorded
	asked []netip.Addr
}

func readScene(archive *txtar.Archive) *scene {
	s := &scene{hosts: map[string]recorded{}}
	for _, f := range archive.Files {
		target, command, ok := strings.Cut(f.Name, ": ")
		switch {
		case f.Name == ".env":
			s.env = f.Data
		case f.Name == "homelab.yaml":
			s.want = f.Data
		case ok && target != "":
			if s.hosts[target] == nil {
				s.hosts[target] = recorded{}
				s.from.targets = append(s.from.targets, target)
			}
			s.hosts[target][command] = f.Data
		}
	}
	s.from.dial = func(_ context.Context, target, _ string) (rootShell, netip.Addr, error) {
		_, host, _ := strings.Cut(target, "@")
		address, _ := netip.ParseAddr(host)
		return s.hosts[target], address, nil
	}
	s.from.listening = func(_ context.Context, all []netip.Addr) (answers []discover.Answer) {
		s.asked = all
		for _, a := range all {
			if a == netip.MustParseAddr("192.168.4.210") && len(answers) == 0 {
				answers = append(answers, discover.Answer{Address: a, K3s: true})
			}
		}
		return answers
	}
	return s
}

func (s *scene) text(t testing.TB) []byte {
	t.Helper()
	d := parseDotenv(s.env)
	f, err := s.from.look(t.Context(), d, func(string) {})
	if err != nil {
		return nil
	}
	return startingSpec("home", d, f)
}

// takeIn is the Spec with a section that is commented out taken in.
func takeIn(text []byte, sections ...string) []byte {
	var b bytes.Buffer
	in := false
	for line := range strings.Lines(string(text)) {
		bare, off := strings.CutPrefix(line, "# ")
		if off && slices.Contains(sections, strings.TrimSpace(bare)) {
			in = true
		} else if !off {
			in = false
		}
		if in {
			line = bare
		}
		b.WriteString(line)
	}
	return b.Bytes()
}

// Each file of testdata/hosts is what hosts said, and the Spec that is made of it.
func TestWhatIsFoundOnHostsBecomesASpecThatFits(t *testing.T) {
	files, err := filepath.Glob("testdata/hosts/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no goldens", err)
	}
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		s := readScene(archive)
		got := s.text(t)
		if _, faults := spec.Parse("homelab.yaml", got); len(faults) > 0 {
			t.Errorf("%s: %v\n%s", file, faults, got)
		}
		if *update {
			archive.Files = append(slices.DeleteFunc(archive.Files, func(f txtar.File) bool { return f.Name == "homelab.yaml" }), txtar.File{Name: "homelab.yaml", Data: got})
			if err := os.WriteFile(file, txtar.Format(archive), 0o600); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if diff := cmp.Diff(string(s.want), string(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", file, diff)
		}
	}
}

var _ = errors.New
var _ = regexp.MustCompile
