//go:build e2e

package e2e

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/homeiac/homelab/cli/remote/remotetest"
)

// sshHost lends a lab's host to hlctl hosts add: its sshd is in this process, enrolment
// and daemons are the real programs, and dpkg and systemctl are played, since there is
// neither here.
type sshHost struct {
	*remotetest.Server
	l        *lab
	identity string
	name     string
	has      []string // addresses
	root     string   // where the host's files lie
	daemons  []string // that were started
	mu       sync.Mutex
	version  string
}

func newSSHHost(l *lab, name string, has ...string) *sshHost {
	h := &sshHost{Server: remotetest.Start(l.t), l: l, root: l.path("fresh"), name: name, has: has}
	for _, dir := range []string{"etc/homelab", "var/lib", "var/cache"} {
		if err := os.MkdirAll(filepath.Join(h.root, dir), 0o755); err != nil {
			l.t.Fatal(err)
		}
	}
	h.identity = h.Identity(l.t, "")
	h.Run = h.run
	return h
}

// at is where a file of the host lies.
func (h *sshHost) at(file string) string {
	if strings.HasPrefix(file, h.root) || strings.HasPrefix(file, "--") {
		return file
	}
	return h.root + file
}

func (h *sshHost) run(c remotetest.Command) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	argv := c.Argv
	if file, _, _, ok := c.Put(); ok {
		argv[4] = h.at(file)
		return h.really(c, argv...)
	}
	argv = argv[2:] // env LC_ALL=C
	last := argv[len(argv)-1]
	switch line := strings.Join(argv, " "); {
	case line == "hostname":
		fmt.Fprintln(c.Stdout, h.name)
	case line == "hostname -I":
		fmt.Fprintln(c.Stdout, strings.Join(h.has, " "))
	case line == "dpkg --print-architecture":
		fmt.Fprintln(c.Stdout, "amd64")
	case line == "pveversion":
		fmt.Fprintln(c.Stdout, "pve-manager/9.2.11/1234abcd (running kernel: 6.17.2-1-pve)")
	case line == "sh -c command -v qm", line == "systemctl --version":
	case argv[0] == "dpkg-query" && h.version == "":
		return 1
	case argv[0] == "dpkg-query":
		fmt.Fprint(c.Stdout, "installed "+h.version)
	case strings.Contains(line, "dpkg --install"):
		h.version = strings.Split(filepath.Base(last), "_")[1]
		for _, name := range []string{"agent.yaml", "controller.yaml"} {
			text, err := os.ReadFile("../../deploy/packages/" + name)
			if err == nil {
				err = os.WriteFile(h.at("/etc/homelab/"+name), text, 0o644)
			}
			if err != nil {
				fmt.Fprintln(c.Stderr, err)
				return 1
			}
		}
	case strings.HasPrefix(line, "systemctl show"):
		state := "inactive\nUnitFileState=disabled"
		if slices.Contains(h.daemons, last) {
			state = "active\nUnitFileState=enabled"
		}
		fmt.Fprintln(c.Stdout, "ActiveState="+state)
	case strings.HasPrefix(line, "systemctl enable --now"):
		h.begin(last)
	case argv[0] == "/usr/sbin/hl-agent", argv[0] == "/usr/sbin/hl-controller":
		name := filepath.Base(argv[0])
		argv[0] = filepath.Join(bin, name)
		return h.really(c, append(argv, "--config", h.at("/etc/homelab/"+strings.TrimPrefix(name, "hl-")+".yaml"), "--state", h.at("/var/lib/"+name))...)
	case slices.Contains([]string{"cat", "ls", "mkdir", "sha256sum", "test", "chown"}, argv[0]):
		for i, word := range argv {
			if strings.HasPrefix(word, "/") {
				argv[i] = h.at(word)
			}
			argv[i] = strings.Replace(argv[i], "--reference=/", "--reference="+h.root+"/", 1)
		}
		return h.really(c, argv...)
	default:
		fmt.Fprintln(c.Stderr, "not played:", line)
		return 1
	}
	return 0
}

func (h *sshHost) really(c remotetest.Command, argv ...string) int {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, c.Stdout, c.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		_, _ = io.WriteString(c.Stderr, err.Error())
		return 127
	}
	return 0
}

// begin starts a daemon with its files where this host has them.
func (h *sshHost) begin(service string) {
	name := strings.TrimSuffix(service, ".service")
	config := h.at("/etc/homelab/" + strings.TrimPrefix(name, "hl-") + ".yaml")
	text, err := os.ReadFile(config)
	switch {
	case err != nil:
		h.l.t.Error(err)
	case name == "hl-agent": // whose Proxmox is the lab's
		err = os.WriteFile(config, append(text, "root: "+h.l.host("pve1")+"\n"...), 0o600)
	case !strings.Contains(string(text), h.root):
		replace(h.l.t, config, "/var/lib/hl-controller", h.at("/var/lib/hl-controller"))
	}
	if err != nil {
		h.l.t.Error(err)
	}
	h.l.start("fresh-"+name, name, "--config", config)
	h.daemons = append(h.daemons, service)
}

// packaged makes the package that hlctl finds, and gives its checksum.
func (h *sshHost) packaged() string {
	data := []byte("!<arch>\n")
	err := os.Mkdir(h.l.path("dist"), 0o700)
	if err == nil {
		err = os.WriteFile(h.l.path("dist", "homelab_1.2.3_amd64.deb"), data, 0o600)
	}
	if err != nil {
		h.l.t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(data))
}

// add is hlctl hosts add for this host.
func (h *sshHost) add(more ...string) result {
	h.l.t.Helper()
	// Whoever runs the tests keeps their known hosts.
	config := h.l.path("ssh_config")
	if err := os.WriteFile(config, []byte("UserKnownHostsFile "+h.l.path("known_hosts")+"\n"), 0o600); err != nil {
		h.l.t.Fatal(err)
	}
	return h.l.hlctl(append([]string{
		"hosts", "add", "root@" + h.At(), "--ssh-config", config, "--identity", h.identity, "--host-key", remotetest.Print(h.HostKey()),
		"--address", h.has[0], "--from", h.l.path("dist"),
	}, more...)...)
}

// From a fleet that init has made to a host that is online, with the controller on it,
// by one command; and the second time it does nothing.
func TestAnEmptyHostIsAddedWithOneCommand(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{hosts: 1})
	l.fault("agent-kill", "pve1")
	l.config = l.path("home", "hlctl.yaml")
	if r := l.hlctl("init", "home", "--controller", "c1@"+l.net+".210", "--out", l.path("home.yaml")); r.exit != 0 {
		t.Fatal(r)
	}
	h := newSSHHost(l, "pve1", l.net+".1", l.net+".210")
	sum := h.packaged()
	add := func(sum string, more ...string) result { return h.add(append(more, "--checksum", sum)...) }
	wrong := strings.Repeat("0a", 32)
	if r := add(wrong); r.exit != 1 || !strings.Contains(r.stderr, "no package in") {
		t.Fatal(r)
	}
	if r := add(sum); r.exit != 0 || !strings.Contains(r.stdout, "c1, answers at "+l.net+".210:8401") || !strings.Contains(r.stdout, "pve1 is online.") {
		t.Fatal(r)
	}
	if state, r := l.state("pve1"); state != "online" {
		t.Error(r)
	}
	var docs []struct{ Name, Address, Result string }
	if r := add(sum, "-o", "json"); r.exit != 0 || json.Unmarshal([]byte(r.stdout), &docs) != nil || len(docs) != 1 ||
		docs[0].Name != "pve1" || docs[0].Address != l.net+".1" || docs[0].Result != "unchanged" {
		t.Error(r)
	}
	if r := l.hlctl("trust"); r.exit != 0 || !strings.Contains(r.stdout, "pve1") {
		t.Error(r)
	}
	if !slices.Equal(h.daemons, []string{"hl-controller.service", "hl-agent.service"}) {
		t.Error(h.daemons)
	}
}

// A further controller, in a fleet whose controllers share an etcd.
func TestAFurtherControllerIsAddedWithItsHost(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{hosts: 1, controllers: 2})
	l.fault("agent-kill", "pve1")
	h := newSSHHost(l, "spare", l.net+".220")
	sum := h.packaged()
	pki := func(name string) string { return l.path("pki", name) }
	further := func() result {
		return h.add("--checksum", sum, "--controller", "--root-cert", pki("ca.pem"), "--root-key", pki("ca.key"),
			"--etcd-endpoints", "https://"+l.net+".250:2379", "--etcd-ca", pki("etcd-ca.pem"), "--etcd-cert", pki("etcd-client.pem"), "--etcd-key", pki("etcd-client.key"))
	}
	if r := further(); r.exit != 0 || !strings.Contains(r.stdout, "spare, answers at "+l.net+".220:8401") || !strings.Contains(r.stdout, "spare is online.") {
		t.Fatal(r)
	}
	if r := further(); r.exit != 0 || !strings.Contains(r.stdout, "nothing to do") {
		t.Error(r)
	}
	// It is one of them: it knows what they know, and gives certificates.
	l.fault("controller-kill", "controller-1")
	l.fault("controller-kill", "controller-2")
	if r := l.hlctl("version"); r.exit != 0 || !strings.Contains(r.stdout, "(spare)") {
		t.Error(r)
	}
	if r := l.hlctl("trust"); r.exit != 0 || !strings.Contains(r.stdout, "pve1") {
		t.Error(r)
	}
	if r := l.hlctl("token", "create", "pve9"); r.exit != 0 {
		t.Error(r)
	}
}
