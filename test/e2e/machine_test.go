//go:build e2e

package e2e

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// labOnMachine is where the lab's folder lies on the machines: agents take files only
// from there.
const labOnMachine = "/var/lib/homelab"

// machine is one host of a site: a container with a systemd and an sshd, and the lab's
// programs where Proxmox's are.
type machine struct {
	s       *site
	name    string
	number  int
	address string
}

//go:embed testdata/machine.sh
var machineScript string

func (s *site) newMachine(number int) *machine {
	s.t.Helper()
	m := &machine{s, fmt.Sprintf("pve%d", number), number, fmt.Sprintf("%s.%d", siteNet, number)}
	for _, dir := range []string{"upper", "work", "root"} {
		if err := os.MkdirAll(s.path(m.name, dir), 0o755); err != nil {
			s.t.Fatal(err)
		}
	}
	public, err := os.ReadFile(s.key() + ".pub")
	if err != nil {
		s.t.Fatal(err)
	}
	m.write("etc/hostname", 0o644, m.name+"\n")
	m.write("etc/hosts", 0o644, "127.0.0.1 localhost\n"+m.address+" "+m.name+"\n")
	m.write("etc/machine-id", 0o444, fmt.Sprintf("%032x\n", 0xabc0+number))
	m.write("root/.ssh/authorized_keys", 0o600, string(public))
	// Its guest's SSH port is on the same machine.
	m.write("etc/ssh/sshd_config.d/here.conf", 0o644, "ListenAddress "+m.address+"\n")
	m.write("etc/systemd/system/pve.service", 0o644, `[Unit]
Description=the rest of a simulated Proxmox VE host
Before=ssh.service
[Service]
Type=exec
# Its guests are in scopes of their own.
ExecStart=/opt/lab/hl-lab host --own --dir `+labOnMachine+" "+m.name+`
[Install]
WantedBy=multi-user.target
`)
	m.link("/etc/systemd/system/pve.service", "etc/systemd/system/multi-user.target.wants/pve.service")
	// So that the journal outlives a reboot.
	if err := os.MkdirAll(m.file("var/log/journal"), 0o755); err != nil {
		s.t.Fatal(err)
	}
	key := m.file("etc/ssh/ssh_host_ed25519_key")
	if out, err := exec.CommandContext(s.t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", m.name, "-f", key).CombinedOutput(); err != nil {
		s.t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	host, err := os.ReadFile(key + ".pub")
	if err != nil {
		s.t.Fatal(err)
	}
	known, err := os.OpenFile(s.path("home", ".ssh", "known_hosts"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer known.Close()
	fmt.Fprintf(known, "%s %s", m.address, host)
	m.powerOn()
	return m
}

// file is a file of the machine, in the layer that is its own.
func (m *machine) file(name string) string { return m.s.path(m.name, "upper", name) }

func (m *machine) write(name string, mode os.FileMode, text string) {
	m.s.t.Helper()
	file := m.file(name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		m.s.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), mode); err != nil {
		m.s.t.Fatal(err)
	}
}

func (m *machine) link(target, name string) {
	m.s.t.Helper()
	if err := os.MkdirAll(filepath.Dir(m.file(name)), 0o755); err != nil {
		m.s.t.Fatal(err)
	}
	if err := os.Symlink(target, m.file(name)); err != nil {
		m.s.t.Fatal(err)
	}
}

// powerOn switches the machine on.
func (m *machine) powerOn() {
	m.s.t.Helper()
	log, err := os.OpenFile(m.s.path(m.name, "console.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		m.s.t.Fatal(err)
	}
	defer log.Close()
	cmd := m.s.inside("sh", "-euc", machineScript, "machine", m.name, strconv.Itoa(m.number), siteNet, filepath.Base(m.s.top))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		m.s.t.Fatal(err)
	}
	go func() { _ = cmd.Wait() }() // it ends with the site, or with its power
}

// powerOff takes its power away: everything in it is gone at once, and nobody answers.
func (m *machine) powerOff() {
	m.s.t.Helper()
	if out, err := m.s.inside("ip", "link", "set", m.name, "down").CombinedOutput(); err != nil {
		m.s.t.Fatalf("ip link: %v\n%s", err, out)
	}
	for _, group := range groups(m.s.top) {
		text, _ := os.ReadFile(filepath.Join(group, m.name, "payload", "init.scope", "cgroup.procs"))
		for pid := range strings.FieldsSeq(string(text)) {
			n, err := strconv.Atoi(pid)
			if err != nil {
				m.s.t.Fatal(err)
			}
			if err := syscall.Kill(n, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				m.s.t.Fatal(err)
			}
		}
	}
}

// awaitUp waits until root can log in.
func (m *machine) awaitUp() {
	m.s.t.Helper()
	m.s.eventually(30*time.Second, m.name+" to boot", func() (bool, string) {
		out, err := m.shell("true").CombinedOutput()
		console, _ := os.ReadFile(m.s.path(m.name, "console.log"))
		return err == nil, fmt.Sprintf("%v %s\n%s", err, out, console)
	})
}

// sshArgs are the options of ssh and scp.
func (s *site) sshArgs() []string {
	return []string{"-F", "none", "-i", s.key(), "-o", "BatchMode=yes", "-o", "UserKnownHostsFile=" + s.path("home", ".ssh", "known_hosts"),
		"-o", "ConnectTimeout=2", "-o", "LogLevel=ERROR", "-o", "ControlPath=none"}
}

// shell is a command of root's, logged in by SSH.
func (m *machine) shell(command string) *exec.Cmd {
	argv := append(append([]string{}, m.s.enter...), "--net", "--", "ssh")
	argv = append(append(argv, m.s.sshArgs()...), "root@"+m.address, command)
	return exec.Command(argv[0], argv[1:]...)
}

// try runs a command of root's and gives its output and whether it succeeded.
func (m *machine) try(command string) (string, bool) {
	out, err := m.shell(command).CombinedOutput()
	return strings.TrimSpace(string(out)), err == nil
}

// root runs a command of root's, which must succeed; stdin is what it reads.
func (m *machine) root(command string, stdin ...string) string {
	m.s.t.Helper()
	cmd := m.shell(command)
	cmd.Stdin = strings.NewReader(strings.Join(stdin, ""))
	out, err := cmd.CombinedOutput()
	if err != nil {
		m.s.t.Fatalf("%s: %s: %v\n%s", m.name, command, err, out)
	}
	return strings.TrimSpace(string(out))
}

// copy is scp -r.
func (m *machine) copy(from, to string) {
	m.s.t.Helper()
	argv := append(append([]string{}, m.s.enter...), "--net", "--", "scp", "-r")
	argv = append(append(argv, m.s.sshArgs()...), from, "root@"+m.address+":"+to)
	if out, err := exec.CommandContext(m.s.t.Context(), argv[0], argv[1:]...).CombinedOutput(); err != nil {
		m.s.t.Fatalf("scp to %s: %v\n%s", m.name, err, out)
	}
}

// journal is what the units' journal holds of a unit.
func (m *machine) journal(unit string) string {
	m.s.t.Helper()
	return m.root("journalctl --no-pager -o cat -u " + unit)
}
