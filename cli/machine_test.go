package cli

import (
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/homeiac/homelab/cli/onhost"
	"github.com/homeiac/homelab/cli/remote/remotetest"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// machine is a host that behaves, as far as packages and units go: what is installed on
// it is what its agent says of itself to the rig's controller.
type machine struct {
	*remotetest.Server
	t    *testing.T
	rig  *rig
	name string

	// Under the server's lock:
	installed  string // the package's version; empty is none
	leftovers  bool   // its configuration is there still
	controller string // the name of the one that runs on it; empty is none
	runs       bool
	failed     bool // it ended with 78, and systemd does not start it again
	files      map[string]string
	done       []string // what changed anything, in order
	// breaks are versions with which the daemons end with 78, and breaksDpkg those that dpkg
	// cannot put in.
	breaks, breaksDpkg map[string]bool
	// at is called before each program, without the lock.
	at func(argv []string)
}

// program is the version that the programs of a package say they are.
func program(deb string) string { return "v" + deb }

// machine starts a host that the controller shows online, with a package of that version.
func (r *rig) machine(name, deb string) *machine {
	m := &machine{
		Server: remotetest.Start(r.t), t: r.t, rig: r, name: name, installed: deb, runs: true,
		files: map[string]string{"/etc/homelab/controller.yaml": "#name: controller-1\n", onhost.KeptAt(deb): deb}, breaks: map[string]bool{}, breaksDpkg: map[string]bool{},
	}
	r.identify(m)
	m.Lock()
	m.Server.Run = m.run
	m.Unlock()
	r.status.Hosts = append(r.status.Hosts, &homelabv1.HostStatus{Name: name, Address: "192.0.2.9:8400"})
	m.tell()
	return m
}

// identify has the host's key known, and ours let in.
func (r *rig) identify(m *machine) {
	r.t.Setenv("HOME", r.dir)
	r.t.Setenv("SSH_AUTH_SOCK", "")
	if err := os.MkdirAll(r.path(".ssh"), 0o700); err != nil {
		r.t.Fatal(err)
	}
	known, err := os.OpenFile(r.path(".ssh/known_hosts"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = fmt.Fprintln(known, knownhosts.Line([]string{m.At()}, m.HostKey()))
		_ = known.Close()
	}
	if err != nil {
		r.t.Fatal(err)
	}
	if r.lets != nil {
		m.Lock()
		defer m.Unlock()
		m.Authorized = r.lets
		return
	}
	key, err := os.ReadFile(m.Identity(r.t, ""))
	if err != nil {
		r.t.Fatal(err)
	}
	r.write(".ssh/id_ed25519", string(key))
	m.Lock()
	defer m.Unlock()
	r.lets = m.Authorized
}

// ssh is where it is reached, as --ssh says it.
func (m *machine) ssh() string { return m.name + "=root@" + m.At() }

// tell has the controller show the host as it is. The lock is held, or not needed yet.
func (m *machine) tell() {
	f := m.rig.fake
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, h := range f.status.GetHosts() {
		if h.GetName() != m.name {
			continue
		}
		h.State, h.Reason = homelabv1.HostState_HOST_STATE_AGENT_GONE, "192.0.2.9:8400 refuses the connection"
		if m.runs && !m.failed {
			h.State, h.Reason, h.Version = homelabv1.HostState_HOST_STATE_ONLINE, "", program(m.installed)
		}
	}
	if m.controller != "" && m.runs && !m.failed {
		f.version = program(m.installed)
	}
}

func (m *machine) run(c remotetest.Command) int {
	if len(c.Argv) > 2 && c.Argv[0] == "env" {
		c.Argv = c.Argv[2:]
	}
	if m.at != nil {
		m.at(c.Argv)
	}
	if path, _, _, ok := c.Put(); ok {
		data, err := io.ReadAll(c.Stdin)
		if err != nil {
			return 1
		}
		m.Lock()
		defer m.Unlock()
		m.files[path] = string(data)
		return 0
	}
	m.Lock()
	defer m.Unlock()
	say := func(format string, args ...any) int {
		fmt.Fprintf(c.Stdout, format+"\n", args...)
		return 0
	}
	fail := func(code int, text string) int {
		fmt.Fprintln(c.Stderr, text)
		return code
	}
	switch line := strings.Join(c.Argv, " "); {
	case c.Argv[0] == "dpkg-query" && m.installed != "":
		return say("installed %s", m.installed)
	case c.Argv[0] == "dpkg-query" && m.leftovers:
		return say("config-files 1.0.0")
	case c.Argv[0] == "dpkg-query":
		return fail(1, "dpkg-query: no packages found matching homelab")
	case line == "/usr/sbin/hl-agent version":
		return say("%s", program(m.installed))
	case strings.HasPrefix(line, "systemctl show "):
		switch {
		case !m.runs, m.controller == "" && strings.HasSuffix(line, onhost.ControllerService):
			return say("ActiveState=inactive\nUnitFileState=disabled")
		case m.failed:
			return say("ActiveState=failed\nUnitFileState=enabled")
		}
		return say("ActiveState=active\nUnitFileState=enabled")
	case strings.HasPrefix(line, "systemctl restart --no-block "):
		m.failed = m.breaks[m.installed]
		m.tell()
		return 0
	case strings.HasPrefix(line, "systemctl disable --now "):
		m.runs = false
		m.did("disable")
		return 0
	case strings.HasPrefix(line, "dpkg --compare-versions "):
		if c.Argv[2] > c.Argv[4] {
			return 0
		}
		return 1
	case c.Argv[0] == "dpkg-deb":
		if deb, ok := m.files[c.Argv[2]]; ok {
			return say("Package: homelab\nVersion: %s", deb)
		}
		return fail(2, "dpkg-deb: error: failed to read archive")
	case c.Argv[0] == "cat":
		if text, ok := m.files[c.Argv[2]]; ok {
			return say("%s", text)
		}
		return fail(1, "cat: "+c.Argv[2]+": No such file or directory")
	case c.Argv[0] == "mkdir":
		return 0
	case line == "ls -A -- "+onhost.PackageFolder+"/":
		for _, path := range slices.Sorted(maps.Keys(m.files)) {
			if filepath.Dir(path) == onhost.PackageFolder {
				say("%s", filepath.Base(path))
			}
		}
		return 0
	case c.Argv[0] == "rm":
		for _, path := range c.Argv[3:] {
			delete(m.files, path)
		}
		return 0
	case c.Argv[0] == "journalctl":
		return say("Mar 01 14:02:11 %s hl-agent[71]: hl-agent: the words of %s", m.name, m.installed)
	case c.Argv[0] == "sh" && strings.Contains(c.Argv[2], "dpkg --force"):
		return m.dpkg(c, c.Argv[4], c.Argv[5])
	}
	return fail(127, "sh: "+c.Argv[0]+": not found")
}

// dpkg is dpkg with the package's scripts: what runs is started anew, and nothing else.
func (m *machine) dpkg(c remotetest.Command, verb, what string) int {
	switch verb {
	case "--install":
		deb := m.files[what]
		if deb == "" || m.breaksDpkg[deb] {
			fmt.Fprintln(c.Stdout, "dpkg: error: the archive is damaged")
			return 2
		}
		m.installed = deb
		m.failed = m.failed || m.breaks[deb]
	case "--remove", "--purge":
		if m.breaksDpkg[verb] {
			fmt.Fprintln(c.Stdout, "dpkg: error: the archive is damaged")
			return 2
		}
		m.installed, m.leftovers = "", verb == "--remove"
		if verb == "--purge" {
			fmt.Fprintln(c.Stdout, "homelab: kept, because it cannot be made again:\n  /var/lib/homelab-keep/1/agent/ssh_key\n  delete /var/lib/homelab-keep/1 when no guest of this fleet is left")
		}
	}
	m.did(strings.TrimPrefix(verb, "--") + " " + filepath.Base(what))
	m.tell()
	return 0
}

func (m *machine) did(what string) { m.done = append(m.done, what) }

// changed is what was done to it, and forgets it.
func (m *machine) changed() string {
	m.Lock()
	defer m.Unlock()
	text := strings.Join(m.done, ", ")
	m.done = nil
	return text
}

// guestsOn puts guests on a host, as Status shows them.
func (r *rig) guestsOn(host string, names ...string) {
	for i, name := range names {
		r.status.Guests = append(r.status.Guests, &controllerv1.GuestStatus{
			Name: name, Host: host, Vmid: int32(201 + i), Uuid: "u", Power: homelabv1.Power_POWER_RUNNING, //nolint:gosec // small
		})
	}
}
