// Package onhosttest is a Proxmox VE host for tests, as far as what of ours is on it goes:
// package, services, files and journal. It behaves: what one program changes the next one
// finds. Our daemons it does not run; it says as whom and how they would be seen.
package onhosttest

import (
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/homeiac/homelab/cli/onhost"
	"github.com/homeiac/homelab/cli/remote/remotetest"
	"github.com/homeiac/homelab/internal/rpc"
)

// PowerFails is where the power can fail: the controller has given a certificate, and it
// is not written yet.
const PowerFails = "power"

// Host is a host behind a real SSH server. Its fields may be changed under Lock, and
// without it while nothing runs there.
type Host struct {
	*remotetest.Server
	Hostname, Arch string
	Missing        []string          // programs that are not there
	Files, Modes   map[string]string // by path
	Units          map[string]*Unit
	// Installed is the package's version, empty when it is not; Half is one that dpkg did
	// not get to its end.
	Installed string
	Half      bool
	// Off is a host without power.
	Off bool
	// Calls are what was run on it: a file that is put as put PATH MODE, dpkg without what
	// is around it.
	Calls [][]string

	// Fails are programs that do nothing and say why, by the first words of their line.
	Fails map[string]string
	// Sick are versions whose daemons end for good as soon as they begin (exit code 78).
	Sick map[string]bool
	// CutAt cuts the connection when the program with these first words has worked, or has
	// the power fail there.
	CutAt string
	// Before is called before each program, without the lock.
	Before func(argv []string)
	// Enrol is the controller that gives certificates.
	Enrol func(token string, key crypto.PublicKey) (cert []byte, is rpc.Token, err error)

	leftovers string // the version of which only the configuration is there
	journal   map[string][]string
	done      []string
}

// Unit is a service.
type Unit struct{ Active, Enabled, Failed bool }

// Start begins a host at 127.0.0.1 on which nothing of ours is. It ends with the test.
func Start(t testing.TB, hostname string) *Host {
	t.Helper()
	h := &Host{
		Server: remotetest.Start(t), Hostname: hostname, Arch: "amd64", Files: map[string]string{}, Modes: map[string]string{},
		Units: map[string]*Unit{onhost.AgentService: {}, onhost.ControllerService: {}},
		Fails: map[string]string{}, Sick: map[string]bool{}, journal: map[string][]string{},
	}
	h.Lock()
	defer h.Unlock()
	h.Run = h.run
	return h
}

// Target is root@IP:PORT.
func (h *Host) Target() string { return "root@" + h.At() }

// Know makes the host's key known to who has that home.
func (h *Host) Know(t testing.TB, home string) {
	t.Helper()
	file := filepath.Join(home, ".ssh", "known_hosts")
	err := os.MkdirAll(filepath.Dir(file), 0o700)
	var known *os.File
	if err == nil {
		known, err = os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600) //nolint:gosec // a test's own
	}
	if err == nil {
		_, err = fmt.Fprintln(known, knownhosts.Line([]string{h.At()}, h.HostKey()))
		_ = known.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// PowerOff takes the host's power away.
func (h *Host) PowerOff() {
	h.Lock()
	h.Off = true
	h.Unlock()
	h.Stop()
}

// Deb is the package of a version.
func Deb(version string) string { return "!<arch>\nhomelab " + version }

// Program is the version that the programs of a package say they are.
func Program(version string) string { return "v" + version }

// Have has the package of a version on the host, and an agent of the host's name at work.
func (h *Host) Have(version string) {
	h.Lock()
	defer h.Unlock()
	kept := onhost.KeptAt(version)
	h.Files[kept] = Deb(version)
	_, _ = h.dpkg("--install", kept)
	h.done = nil
	h.Files[onhost.AgentConfig], h.Files["/var/lib/hl-agent/ssh_key"] = "name: "+h.Hostname+"\n", "a key"
	*h.Units[onhost.AgentService] = Unit{Active: true, Enabled: true}
}

// HaveController has a controller at work on it.
func (h *Host) HaveController(name string) {
	h.Lock()
	defer h.Unlock()
	h.Files[onhost.ControllerConfig] = "name: " + name + "\nadvertise: 127.0.0.1\n"
	*h.Units[onhost.ControllerService] = Unit{Active: true, Enabled: true}
}

// Daemon is one of our daemons as others see it. Its version is empty unless it runs, its
// serial number is that of its certificate.
type Daemon struct{ Name, Serial, Version string }

// Daemon says how the daemon of a service is seen.
func (h *Host) Daemon(service string) (d Daemon) {
	h.Lock()
	defer h.Unlock()
	role := strings.TrimSuffix(strings.TrimPrefix(service, "hl-"), ".service")
	_ = yaml.Unmarshal([]byte(h.Files["/etc/homelab/"+role+".yaml"]), &d)
	if cert, _ := onhost.CertificateIn(h.Files[stateOf(role)+role+".crt"]); cert != nil {
		d.Serial = rpc.Serial(cert)
	}
	if h.Units[service].Active && !h.Off {
		d.Version = Program(h.Installed)
	}
	return d
}

// Ran are the programs that were run and change something, since the last time.
func (h *Host) Ran() (list []string) {
	h.Lock()
	defer h.Unlock()
	looks := []string{
		"hostname", "dpkg --print-architecture", "dpkg --compare-versions", "dpkg-deb", "dpkg-query", "pveversion", "sh -c command -v qm",
		"systemctl show", "systemctl is-active", "systemctl --version", "cat", "ls", "sha256sum", "journalctl", "test", "/usr/sbin/hl-agent version",
	}
	for _, argv := range h.Calls {
		line := strings.Join(argv, " ")
		if !slices.ContainsFunc(looks, func(l string) bool { return strings.HasPrefix(line, l) }) {
			list = append(list, line)
		}
	}
	h.Calls = nil
	return list
}

// Done is what became of the package since the last time, and that its daemons were ended
// for good.
func (h *Host) Done() string {
	h.Lock()
	defer h.Unlock()
	text := strings.Join(h.done, ", ")
	h.done = nil
	return text
}

// Everything is all that the host was asked, and all that is in its files.
func (h *Host) Everything() string {
	h.Lock()
	defer h.Unlock()
	return fmt.Sprint(h.Calls, h.Files)
}

func (h *Host) run(c remotetest.Command) int {
	argv, err := words(c)
	if err != nil {
		fmt.Fprintln(c.Stderr, err)
		return 1
	}
	if h.Before != nil {
		h.Before(argv)
	}
	var input []byte
	if argv[0] == "put" || slices.Contains(argv, "enrol") {
		if input, err = io.ReadAll(c.Stdin); err != nil {
			return 1
		}
	}
	h.Lock()
	h.Calls = append(h.Calls, argv)
	line := strings.Join(argv, " ")
	cut := h.CutAt != "" && strings.HasPrefix(line, h.CutAt)
	out, err := h.answer(line, argv, string(input))
	if _, _, size, ok := c.Put(); ok && err == nil && fmt.Sprint(len(input)) == size {
		h.Files[argv[1]], h.Modes[argv[1]] = string(input), argv[2]
	} else if ok {
		err = fault{1, "it is not all of it"}
	}
	h.Unlock()
	if cut {
		h.Cut()
	}
	fmt.Fprint(c.Stdout, out)
	if err == nil {
		return 0
	}
	var f fault
	if !errors.As(err, &f) {
		f = fault{1, err.Error()}
	}
	to := c.Stderr
	if argv[0] == "dpkg" {
		to = c.Stdout // into its log, which is shown
	}
	fmt.Fprintln(to, f.text)
	return f.code
}

// fault is a program's end with another code than 1.
type fault struct {
	code int
	text string
}

func (f fault) Error() string { return f.text }

// words are a command line as it is remembered. One that depends on the host's language is
// an error, and a dpkg that ends with the connection.
func words(c remotetest.Command) ([]string, error) {
	if file, mode, _, ok := c.Put(); ok {
		return []string{"put", file, mode}, nil
	}
	argv, script := c.Argv, onhost.DpkgArgv()
	if len(argv) < 3 || argv[0] != "env" || argv[1] != "LC_ALL=C" {
		return nil, fmt.Errorf("it speaks another language: %q", argv)
	}
	argv = argv[2:]
	if len(argv) > len(script) && slices.Equal(argv[:len(script)], script) {
		return argv[len(script)-1:], nil
	}
	if argv[0] == "dpkg" && argv[1] != "--print-architecture" && argv[1] != "--compare-versions" {
		return nil, fmt.Errorf("it would leave half a package: %q", argv)
	}
	return argv, nil
}

func (h *Host) answer(line string, argv []string, input string) (string, error) {
	for first, text := range h.Fails {
		if strings.HasPrefix(line, first) && argv[0] == "dpkg" {
			return "", fault{2, text}
		} else if strings.HasPrefix(line, first) {
			return "", fault{1, text}
		}
	}
	if slices.Contains(h.Missing, argv[0]) || slices.Contains(h.Missing, strings.TrimPrefix(line, "sh -c command -v ")) {
		return "", fault{127, "env: '" + argv[0] + "': No such file or directory"}
	}
	return h.program(line, argv, input)
}
