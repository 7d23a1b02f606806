package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"golang.org/x/tools/txtar"

	"github.com/homeiac/homelab/cli/discover"
	"github.com/homeiac/homelab/cli/remote"
	"github.com/homeiac/homelab/internal/spec"
)

// recorded is a host that says what stands in a file.
type recorded map[string][]byte

func (r recorded) Run(_ context.Context, _ io.Reader, argv ...string) ([]byte, error) {
	if out, ok := r[strings.Join(argv, " ")]; ok {
		return out, nil
	}
	return nil, &remote.ExitError{Program: argv[0], Code: 127, Stderr: argv[0] + ": not found\n"}
}

func (recorded) Close() error     { return nil }
func (r recorded) IP() netip.Addr { a, _ := netip.ParseAddr(string(r["at"])); return a }

// scene is an archive: .env, what hosts say (TARGET: COMMAND), and homelab.yaml.
type scene struct {
	env   []byte
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
		case ok && target != "":
			if s.hosts[target] == nil {
				_, at, _ := strings.Cut(target, "@")
				s.hosts[target] = recorded{"at": []byte(at)}
				s.from.targets = append(s.from.targets, target)
			}
			s.hosts[target][command] = f.Data
		}
	}
	s.from.dial = func(_ context.Context, target remote.Target, _ remote.Options) (rootShell, error) {
		return s.hosts[target.String()], nil
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
	specGoldens(t, "testdata/hosts/*.txtar", func(a *txtar.Archive) []byte { return readScene(a).text(t) })
}

// A VM that is taken in as it is written fits the rest of the Spec.
func TestGuestsThatWereFoundAreASpecOnceTheyAreTakenIn(t *testing.T) {
	archive, err := txtar.ParseFile("testdata/hosts/cluster.txtar")
	if err != nil {
		t.Fatal(err)
	}
	s := readScene(archive)
	s.env = nil
	text := string(takeIn(s.text(t), "images:", "guests:")) + "k3s: {version: v1.35.0+k3s1}\n"
	for _, key := range []string{"image", "sshKeys", "disk"} {
		text = strings.Replace(text, "\n  # "+key+":", "\n  "+key+":", 1)
	}
	got, faults := spec.Parse("homelab.yaml", []byte(text))
	if len(faults) > 0 {
		t.Fatalf("%v\n%s", faults, text)
	}
	guest := got.Guests["k3s-vm-pve"]
	if guest == nil || guest.VMID != 107 || guest.Memory.Bytes != 8<<30 || guest.CPUs != 4 || len(guest.DataDisks) != 2 || len(guest.NICs) != 2 ||
		guest.NICs[0].Address != netip.MustParsePrefix("192.168.4.210/24") || guest.OnUnhealthy != spec.PolicyReport {
		t.Errorf("%+v", guest)
	}
	if host := got.Hosts["pve"]; guest != nil && host.Storages[guest.DataDisks[0].Storage] != "local-zfs" && host.Storages[guest.DataDisks[1].Storage] != "tank" {
		t.Errorf("%+v of %v", guest.DataDisks, host.Storages)
	}
	if other := got.Guests["media-server"]; other == nil || !other.Standby() {
		t.Errorf("a VM that was found stopped is to be started: %+v", other)
	}
}

// What guests say of themselves is not where hlctl connects to, unless it is near.
func TestOnlyAddressesNearTheHostsAreAskedForAnAPI(t *testing.T) {
	archive, err := txtar.ParseFile("testdata/hosts/fresh.txtar")
	if err != nil {
		t.Fatal(err)
	}
	s := readScene(archive)
	far := s.hosts["root@192.168.4.11"]
	far["pvesh get /cluster/resources --type vm --output-format json"] = []byte(`[
		{"vmid":100,"type":"qemu","node":"pve1"},{"vmid":101,"type":"qemu","node":"pve1"},{"vmid":102,"type":"lxc","node":"pve1"}]`)
	far["cat /etc/pve/qemu-server/100.conf"] = []byte("net0: virtio=BC:24:11:00:00:01,bridge=vmbr0\nipconfig0: ip=203.0.113.7/24\nnet1: x\nipconfig1: ip=127.0.0.1/8\n")
	far["cat /etc/pve/qemu-server/101.conf"] = []byte("net0: virtio=BC:24:11:00:00:02,bridge=vmbr0\nnet1: virtio=BC:24:11:00:00:03\nipconfig1: ip=10.9.9.9/8\n")
	far["cat /etc/pve/lxc/102.conf"] = []byte("net0: name=eth0,ip=192.168.4.53/24\n")
	far["ip -j neigh"] = []byte(`[{"dst":"192.168.4.80","lladdr":"bc:24:11:00:00:02","state":["STALE"]},{"dst":"fe80::1","lladdr":"bc:24:11:00:00:03"}]`)
	s.env = []byte("K3S_EXISTING_NODE_IP=198.51.100.7\n")
	s.text(t)
	if got, want := fmt.Sprint(s.asked), "[198.51.100.7 192.168.4.80 10.9.9.9 192.168.4.53]"; got != want {
		t.Errorf("asked %s, want %s", got, want)
	}
}

// FuzzFromHosts: whatever a host says, the Spec that is made of it is a Spec, has that
// host only and no guest, and holds nothing but printable text.
func FuzzFromHosts(f *testing.F) {
	files, err := filepath.Glob("testdata/hosts/*.txtar")
	if err != nil || len(files) == 0 {
		f.Fatal("no goldens", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s := readScene(txtar.Parse(data))
		if len(s.from.targets) == 0 || s.from.check() != nil {
			return
		}
		d := parseDotenv(s.env)
		found, err := s.from.look(t.Context(), d, func(string) {})
		if err != nil {
			if i := strings.IndexFunc(err.Error(), func(r rune) bool { return r != '\n' && (r < ' ' || r == 0x7f) }); i >= 0 {
				t.Fatalf("an error holds what a terminal obeys: %q", err)
			}
			return
		}
		text := startingSpec("home", d, found)
		got, faults := spec.Parse("homelab.yaml", text)
		if len(faults) > 0 {
			t.Fatalf("%v\n%s", faults, text)
		}
		nodes, _ := d.hosts()
		want := map[string]bool{}
		for _, h := range found.hosts {
			want[h.Name] = true
		}
		for _, n := range nodes {
			want[n.name] = true
		}
		if len(got.Guests) > 0 || got.K3s != nil || got.Heal != spec.HealOff || len(got.Hosts) != len(want) {
			t.Fatalf("it says more than was found:\n%s", text)
		}
		var taken struct {
			Guests map[string]struct{ Host string }
			Hosts  map[string]any
			K3s    map[string]any
		}
		if err := yaml.Unmarshal(takeIn(text, "networks:", "guests:", "k3s:"), &taken); err != nil {
			t.Fatalf("taken in: %v\n%s", err, text)
		}
		there := 1 + len(nodes) // the example, or the predecessor's
		for _, h := range found.hosts {
			there += len(h.Guests)
		}
		if len(taken.Hosts) != len(want) || len(taken.Guests) > there || len(taken.K3s) > 2 {
			t.Fatalf("taken in, it says more than was found:\n%s", text)
		}
		for name, g := range taken.Guests {
			if !want[g.Host] {
				t.Fatalf("guest %s is on %q:\n%s", name, g.Host, text)
			}
		}
		for i, r := range string(text) {
			if (r < ' ' || r > '~') && r != '\n' && r != '…' {
				t.Fatalf("%q at %d:\n%s", r, i, text)
			}
		}
	})
}
