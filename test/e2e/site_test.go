//go:build e2e

package e2e

import (
	"bytes"
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// site is a lab whose hosts are machines: Debian in containers, with a systemd, an sshd
// and a network of their own. hlctl runs in that network too.
//
// All of it is in one process namespace, which ends with the pipe that its first process
// reads from: nothing is left running or mounted, however the test ends. Its mounts and
// its network are in namespaces as well, so the machine has none of them.
type site struct {
	*lab
	// top is the site's folder; the lab's is below it.
	top      string
	machines []*machine
}

// siteNet is the same for each site: their networks do not meet.
const siteNet = "10.77.0"

//go:embed testdata/site.sh
var siteScript string

// newSite makes the site, with its machines switched on. more are flags of hl-lab furnish.
func newSite(t *testing.T, hosts int, more ...string) *site {
	t.Helper()
	base := debianBase(t)
	for _, p := range []string{"systemd-nspawn", "nsenter", "ip", "ssh", "ssh-keygen"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("no %s here", p)
		}
	}
	top, err := os.MkdirTemp("", "hl") //nolint:usetesting // the sockets in it need a short path
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(undertaker, top)
	t.Cleanup(func() { buryGroups(t, top); removeAll(top); fmt.Fprintln(undertaker, "-"+top) })
	s := &site{top: top, lab: &lab{t: t, dir: filepath.Join(top, "lab"), net: siteNet, home: filepath.Join(top, "home")}}
	for _, dir := range []string{"lab", "bin", "base", "home", "home/.ssh"} {
		if err := os.Mkdir(filepath.Join(top, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s.must("hl-lab", append([]string{"furnish", "--dir", s.dir, "--net", siteNet, "--hosts", strconv.Itoa(hosts), "--learner-tick", "500ms"}, more...)...)
	s.spec = filepath.Join(top, "homelab.yaml")
	text := strings.NewReplacer(s.dir, labOnMachine, "local-zfs", "local", "local-lvm", "local").Replace(s.read("homelab.yaml"))
	if err := os.WriteFile(s.spec, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.config = filepath.Join(top, "home", "hlctl.yaml")
	s.open(base)
	if out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", s.key()).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	for i := range hosts {
		s.machines = append(s.machines, s.newMachine(i+1))
	}
	for _, m := range s.machines {
		m.awaitUp()
	}
	return s
}

// open makes the namespaces of the site.
func (s *site) open(base string) {
	s.t.Helper()
	cmd := exec.Command("sh", "-euc", siteScript, "site", s.top, base, bin, siteNet)
	var said bytes.Buffer
	cmd.Stderr = &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID}
	in, err := cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Skipf("no namespaces can be made here: %v", err)
	}
	s.t.Cleanup(func() {
		if s.t.Failed() {
			s.tell()
		}
		_ = in.Close()
		_ = cmd.Wait() // its end is what was asked for
	})
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		s.t.Skipf("no network of its own can be made here: %s", said.String())
	}
	s.enter = []string{"nsenter", "--target", strconv.Itoa(cmd.Process.Pid)}
}

// inside is a command in the site's namespaces, where its folder is /run/site.
func (s *site) inside(args ...string) *exec.Cmd {
	argv := append(append([]string{}, s.enter...), append([]string{"--mount", "--net", "--pid", "--"}, args...)...)
	return exec.CommandContext(s.t.Context(), argv[0], argv[1:]...)
}

// must runs one of our programs, which must succeed.
func (s *site) must(program string, args ...string) string {
	s.t.Helper()
	r := run(s.t, program, args...)
	if r.exit != 0 {
		s.t.Fatal(r)
	}
	return r.stdout
}

// mustHlctl is hlctl, which must succeed.
func (s *site) mustHlctl(args ...string) string {
	s.t.Helper()
	r := s.hlctl(args...)
	if r.exit != 0 {
		s.t.Fatal(r)
	}
	return r.stdout
}

func (s *site) path(elem ...string) string { return filepath.Join(append([]string{s.top}, elem...)...) }

// key is the SSH key of whoever administers the site.
func (s *site) key() string { return s.path("home", ".ssh", "id_ed25519") }

// tell shows how the machines were, after a failure.
func (s *site) tell() {
	for _, m := range s.machines {
		out, err := m.shell("systemctl --no-pager --full status hl-agent hl-controller; journalctl --no-pager -n 60 -o cat -u hl-agent -u hl-controller -u pve; tail -n 20 /var/log/kvm/*.log").CombinedOutput()
		s.t.Logf("%s: %v\n%s", m.name, err, out)
	}
}

// groups are the control groups that the machines of a site are in.
func groups(top string) []string {
	var list []string
	for _, tree := range []string{"", "systemd", "unified"} {
		list = append(list, filepath.Join("/sys/fs/cgroup", tree, filepath.Base(top)))
	}
	return list
}

// buryGroups removes the control groups of a site that has ended: the kernel keeps them.
func buryGroups(t *testing.T, top string) {
	for _, group := range groups(top) {
		deadline := time.Now().Add(5 * time.Second)
		for exec.Command("find", group, "-depth", "-type", "d", "-delete").Run() != nil {
			if _, err := os.Stat(group); err != nil {
				break
			}
			if time.Now().After(deadline) {
				if t != nil {
					t.Errorf("%s cannot be removed", group)
				}
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
}
