package cli

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/homeiac/homelab/cli/onhost"
	"github.com/homeiac/homelab/cli/remote/remotetest"
	"github.com/homeiac/homelab/internal/rpc"
)

// proxmoxHost is a host behind a real SSH server. Its programs are functions that keep
// its state, as far as installing goes.
type proxmoxHost struct {
	*remotetest.Server
	registry *registry
	identity string // the key file that opens it

	mu        sync.Mutex
	hostname  string
	arch      string
	missing   []string // programs that are not there
	files     map[string]string
	modes     map[string]string
	installed string // version of our package
	units     map[string]*onhost.Unit
	calls     [][]string
	// fails has a program end with this text and exit code 1, by its first words.
	fails map[string]string
	// cutAt cuts the connection when the program with these first words has worked.
	cutAt string
	// onStart is called when a service begins; nil is that it does.
	onStart func(service string) error
}

// newHost gives an empty Proxmox host at 127.0.0.1 that the fleet may find.
func newHost(t *testing.T, reg *registry) *proxmoxHost {
	t.Helper()
	h := &proxmoxHost{
		Server: remotetest.Start(t), registry: reg, hostname: "pve1", arch: "amd64",
		files: map[string]string{}, modes: map[string]string{}, fails: map[string]string{},
		units: map[string]*onhost.Unit{onhost.AgentService: {}, onhost.ControllerService: {}},
	}
	h.identity = h.Identity(t, "")
	h.Run = h.run
	reg.mu.Lock()
	reg.known = append(reg.known, h)
	reg.mu.Unlock()
	return h
}

func (h *proxmoxHost) target() string { return "root@" + h.At() }

// know makes the host's key known to who has that home.
func (h *proxmoxHost) know(t *testing.T, home string) {
	t.Helper()
	file := filepath.Join(home, ".ssh", "known_hosts")
	err := os.MkdirAll(filepath.Dir(file), 0o700)
	var old []byte
	if err == nil {
		old, _ = os.ReadFile(file)
		err = os.WriteFile(file, append(old, knownhosts.Line([]string{h.At()}, h.HostKey())+"\n"...), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// agent says as whom the host's agent would be seen.
func (h *proxmoxHost) agent() (name, serial string, up bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	cert, id := onhost.CertificateIn(h.files["/var/lib/hl-agent/agent.crt"])
	if cert == nil {
		return "", "", false
	}
	return id.Name, rpc.Serial(cert), h.units[onhost.AgentService].Active
}

// ran are the programs that were run and change something, since the last time.
func (h *proxmoxHost) ran() (list []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	looks := []string{"hostname", "dpkg --print-architecture", "pveversion", "sh -c command -v qm", "systemctl show", "systemctl --version", "dpkg-query", "cat", "ls", "sha256sum", "journalctl", "test"}
	for _, argv := range h.calls {
		line := strings.Join(argv, " ")
		if !slices.ContainsFunc(looks, func(l string) bool { return strings.HasPrefix(line, l) }) {
			list = append(list, line)
		}
	}
	h.calls = nil
	return list
}

// everything is all that the host was asked, and all that is in its files.
func (h *proxmoxHost) everything() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return fmt.Sprint(h.calls, h.files)
}

func (h *proxmoxHost) run(c remotetest.Command) int {
	if file, mode, size, ok := c.Put(); ok {
		data, err := io.ReadAll(c.Stdin)
		if err != nil || fmt.Sprint(len(data)) != size {
			return 1
		}
		h.mu.Lock()
		h.calls = append(h.calls, []string{"put", file, mode})
		h.files[file], h.modes[file] = string(data), mode
		cut := h.cutAt == "put "+file
		h.mu.Unlock()
		if cut {
			h.Cut()
		}
		return 0
	}
	argv := c.Argv
	if len(argv) < 3 || argv[0] != "env" || argv[1] != "LC_ALL=C" {
		fmt.Fprintf(c.Stderr, "it speaks another language: %q\n", argv)
		return 1
	}
	argv = argv[2:]
	line := strings.Join(argv, " ")
	h.mu.Lock()
	h.calls = append(h.calls, argv)
	for words, text := range h.fails {
		if strings.HasPrefix(line, words) {
			h.mu.Unlock()
			fmt.Fprintln(c.Stderr, text)
			return 1
		}
	}
	missing := slices.Contains(h.missing, argv[0]) || strings.HasPrefix(line, "sh -c command -v") && slices.Contains(h.missing, strings.TrimPrefix(line, "sh -c command -v "))
	cut := h.cutAt != "" && strings.HasPrefix(line, h.cutAt)
	h.mu.Unlock()
	if missing {
		fmt.Fprintf(c.Stderr, "env: '%s': No such file or directory\n", argv[0])
		return 127
	}
	out, err := h.program(argv, c.Stdin)
	if cut {
		h.Cut()
	}
	fmt.Fprint(c.Stdout, out)
	if err != nil {
		fmt.Fprintln(c.Stderr, err)
		return 1
	}
	return 0
}

func (h *proxmoxHost) program(argv []string, stdin io.Reader) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	last := argv[len(argv)-1]
	switch line := strings.Join(argv, " "); {
	case line == "hostname":
		return h.hostname + ".example.org\n", nil
	case line == "hostname -I":
		return "127.0.0.1 10.9.9.9 fe80::1 \n", nil
	case line == "dpkg --print-architecture":
		return h.arch + "\n", nil
	case line == "pveversion":
		return "pve-manager/9.2.11/1234abcd (running kernel: 6.17.2-1-pve)\n", nil
	case line == "sh -c command -v qm":
		return "/usr/sbin/qm\n", nil
	case line == "systemctl --version":
		return "systemd 257 (257.9-1~deb13u1)\n", nil
	case argv[0] == "dpkg-query":
		if h.installed == "" {
			return "", fmt.Errorf("dpkg-query: no packages found matching homelab")
		}
		return "installed " + h.installed, nil
	case strings.HasPrefix(line, "systemctl show"):
		state := map[bool]string{true: "active", false: "inactive"}[h.units[last].Active]
		enabled := map[bool]string{true: "enabled", false: "disabled"}[h.units[last].Enabled]
		if h.installed == "" {
			enabled = ""
		}
		return "ActiveState=" + state + "\nUnitFileState=" + enabled + "\n", nil
	case argv[0] == "systemctl":
		return "", h.systemctl(argv[1:])
	case argv[0] == "cat":
		return h.read(last)
	case argv[0] == "test":
		if h.files[last] == "" {
			return "", errors.New("")
		}
		return "", nil
	case argv[0] == "ls":
		var names []string
		for f := range h.files {
			if path.Dir(f)+"/" == last {
				names = append(names, path.Base(f))
			}
		}
		if names == nil {
			return "", fmt.Errorf("ls: cannot access '%s': No such file or directory", last)
		}
		return strings.Join(names, "\n"), nil
	case argv[0] == "sha256sum":
		text, err := h.read(last)
		sum := sha256.Sum256([]byte(text))
		return hex.EncodeToString(sum[:]) + "  " + last + "\n", err
	case argv[0] == "mkdir", argv[0] == "chown":
		return "", nil
	case argv[0] == "journalctl":
		return "2026-03-01T14:02:00+00:00 pve1 hl-agent[12]: it went \x1b[31mwrong\n", nil
	case len(argv) > 5 && argv[2] == onhost.DpkgArgv()[2]:
		return h.dpkg(argv[4:])
	case argv[0] == "/usr/sbin/hl-controller" && argv[1] == "enrol":
		return h.enrolController(argv[2:], stdin)
	case argv[0] == "/usr/sbin/hl-agent" && argv[1] == "enrol":
		return h.enrol(argv[2:], stdin)
	}
	return "", fmt.Errorf("%s: not simulated", argv)
}

func (h *proxmoxHost) read(file string) (string, error) {
	text, ok := h.files[file]
	if !ok {
		return "", fmt.Errorf("cat: %s: No such file or directory", file)
	}
	return text, nil
}

func (h *proxmoxHost) dpkg(args []string) (string, error) {
	if args[0] != "--install" {
		return "", fmt.Errorf("dpkg: unknown option %s", args[0])
	}
	m := onhost.PackageName.FindStringSubmatch(path.Base(args[1]))
	if text, ok := h.files[args[1]]; !ok || m == nil || !strings.HasPrefix(text, "!<arch>") {
		return "", fmt.Errorf("dpkg: error: cannot access archive '%s'", args[1])
	}
	h.installed = m[1]
	for _, conf := range []string{onhost.AgentConfig, onhost.ControllerConfig} {
		if _, ok := h.files[conf]; !ok {
			h.files[conf] = "# nothing is set\n#name: pve1\n"
		}
	}
	return "Setting up homelab (" + m[1] + ") ...\n", nil
}

func (h *proxmoxHost) systemctl(args []string) error {
	u := h.units[args[len(args)-1]]
	if h.installed == "" {
		return fmt.Errorf("Failed to enable unit: Unit %s does not exist", args[len(args)-1])
	}
	start := slices.Contains(args, "--now") || args[0] == "restart"
	u.Enabled = u.Enabled || args[0] == "enable"
	if start && h.onStart != nil {
		if err := h.onStart(args[len(args)-1]); err != nil {
			return err
		}
	}
	u.Active = u.Active || start
	return nil
}

// enrol is hl-agent enrol: the key that is there is kept, the certificate comes last.
func (h *proxmoxHost) enrol(args []string, stdin io.Reader) (string, error) {
	if h.installed == "" || !slices.Equal(args, []string{"--controller", "192.0.2.10:8402", "--token", "-"}) {
		return "", fmt.Errorf("hl-agent: usage: %q", args)
	}
	text, err := io.ReadAll(stdin)
	if err != nil {
		return "", err
	}
	const dir = "/var/lib/hl-agent/"
	if h.files[dir+"agent.key"] == "" {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return "", err
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return "", err
		}
		h.files[dir+"agent.key"] = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	}
	block, _ := pem.Decode([]byte(h.files[dir+"agent.key"]))
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return "", err
	}
	cert, token, err := h.registry.enrol(strings.TrimSpace(string(text)), key.(*ecdsa.PrivateKey).Public())
	if err != nil {
		return "", fmt.Errorf("hl-agent: enrol: %w", err)
	}
	if h.cutAt == "power" {
		return "", fmt.Errorf("the lights went out")
	}
	h.files[onhost.AgentConfig] += "name: " + token.Name + "\nadvertise: \"127.0.0.1\"\ncert: " + dir + "agent.crt\n"
	h.files[dir+"agent.crt"] = string(cert)
	return "enrolled as " + token.String() + "\n", nil
}

// enrolController is hl-controller enrol, as far as files go.
func (h *proxmoxHost) enrolController(args []string, stdin io.Reader) (string, error) {
	const dir = "/var/lib/hl-controller/"
	for _, name := range []string{"fleet.key", "issuing-ca.pem", "issuing-ca.key"} {
		if h.files[dir+name] == "" {
			return "", fmt.Errorf("hl-controller: stat %s: no such file or directory", dir+name)
		}
	}
	text, err := io.ReadAll(stdin)
	if err != nil {
		return "", err
	}
	h.files[dir+"controller.key"] = "a key"
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	cert, token, err := h.registry.enrol(strings.TrimSpace(string(text)), key.Public())
	if err != nil {
		return "", fmt.Errorf("hl-controller: enrol: %w", err)
	}
	if h.cutAt == "power" {
		return "", errors.New("the lights went out")
	}
	h.files[onhost.ControllerConfig] += "name: " + token.Name + "\n# " + strings.Join(args, " ") + "\n"
	h.files[dir+"controller.crt"] = string(cert)
	return "enrolled as " + token.String() + "\n", nil
}
