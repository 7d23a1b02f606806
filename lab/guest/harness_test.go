package guest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/homeiac/homelab/lab/disk"
	"github.com/homeiac/homelab/lab/guest/k3s"
	"github.com/homeiac/homelab/lab/guest/system"
	"github.com/homeiac/homelab/lab/pve"
)

func TestMain(m *testing.M) {
	// The kvm process of a test is this test binary under another name.
	if filepath.Base(os.Args[0]) == "kvm" {
		pve.Exit(KVM(os.Args))
	}
	os.Exit(m.Run())
}

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// testLab is a network of guests in this process.
type testLab struct {
	t      *testing.T
	dir    string
	prefix string // "127.X.Y"
	key    ssh.Signer
	pub    string
	set    system.Settings
}

func newLab(t *testing.T) *testLab {
	t.Helper()
	octet := func() int64 {
		n, err := rand.Int(rand.Reader, big.NewInt(200))
		if err != nil {
			t.Fatal(err)
		}
		return n.Int64() + 20
	}
	// t.TempDir has the test's name in it, which is too long for socket paths.
	dir, err := os.MkdirTemp("", "hl") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	l := &testLab{t: t, dir: dir, prefix: fmt.Sprintf("127.%d.%d", octet(), octet())}
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if l.key, err = ssh.NewSignerFromKey(priv); err != nil {
		t.Fatal(err)
	}
	l.pub = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(l.key.PublicKey())))
	l.set = system.Defaults()
	l.set.Subnet = l.prefix + ".0/24"
	l.set.BootMs, l.set.CloudInitMs, l.set.ShutdownMs, l.set.K3sStartMs = 5, 5, 5, 5
	l.set.LearnerTickMs, l.set.HeartbeatMs, l.set.NodeGraceMs, l.set.RestartMs, l.set.RetryMs = 200, 150, 2000, 100, 100
	l.set.ElectionMs = 1000
	return l
}

// testGuest is one guest of a lab.
type testGuest struct {
	*testLab
	t       *testing.T
	name    string
	addr    string
	machine system.Machine
	hostKey ssh.PublicKey

	cancel context.CancelFunc
	done   chan struct{}
	os     *system.OS
	agent  net.Conn
}

// userData is a usual guest's, with a host key of its own.
func (l *testLab) userData(name string) (text string, host ssh.PublicKey) {
	l.t.Helper()
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		l.t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(priv, "")
	if err != nil {
		l.t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		l.t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "#cloud-config\nhostname: %s\npreserve_hostname: false\nusers:\n- name: ubuntu\n  sudo: ALL=(ALL) NOPASSWD:ALL\n  ssh_authorized_keys: [%q]\n", name, l.pub)
	fmt.Fprintf(&b, "ssh_deletekeys: true\nssh_keys:\n  ed25519_private: |\n%s  ed25519_public: %q\n",
		indent(string(pem.EncodeToMemory(block))), strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.PublicKey()))))
	b.WriteString("packages: [qemu-guest-agent]\nruncmd:\n- [systemctl, start, qemu-guest-agent]\n")
	return b.String(), s.PublicKey()
}

func indent(s string) string {
	return "    " + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n    ") + "\n"
}

func networkConfig(mac, addr string) string {
	return fmt.Sprintf("version: 1\nconfig:\n    - type: physical\n      name: eth0\n      mac_address: '%s'\n      subnets:\n      - type: static\n        address: '%s'\n        netmask: '255.255.255.0'\n    - type: nameserver\n      address:\n      - '127.0.0.53'\n", mac, addr)
}

// guest makes a guest; start boots it.
func (l *testLab) guest(n int, name string) *testGuest {
	ud, host := l.userData(name)
	addr := fmt.Sprintf("%s.%d", l.prefix, 100+n)
	mac := fmt.Sprintf("bc:24:11:00:00:%02x", n)
	return &testGuest{
		testLab: l, t: l.t, name: name, addr: addr, hostKey: host,
		machine: system.Machine{
			Host: "pve1", LabDir: l.dir, VMID: 200 + n, Name: name, UUID: "a22884e0-7ce6-4c5e-acf9-e783ab708af8", CPUs: 2, Memory: 2 << 30,
			Tree: filepath.Join(l.dir, fmt.Sprintf("disk-%d.raw.fs", n)), Settings: l.set,
			NICs:      []system.NIC{{MAC: mac, Bridge: "vmbr0", Net: netip.MustParsePrefix(l.set.Subnet)}},
			CloudInit: &disk.CloudInit{InstanceID: fmt.Sprintf("i-%d-%s", n, name), UserData: ud, NetworkConfig: networkConfig(mac, addr)},
		},
	}
}

func (g *testGuest) start() *testGuest {
	g.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel, g.done = cancel, make(chan struct{})
	mine, theirs := net.Pipe()
	g.agent = mine
	up := make(chan *system.OS, 1)
	go func() {
		defer close(g.done)
		if _, err := Boot(ctx, g.machine, theirs, func(o *system.OS) { up <- o }); err != nil {
			g.t.Errorf("%s: %v", g.name, err)
		}
	}()
	select {
	case g.os = <-up:
	case <-g.done:
		g.t.Fatalf("%s did not start", g.name)
	}
	g.t.Cleanup(g.kill)
	return g
}

// kill takes the power away.
func (g *testGuest) kill() {
	g.cancel()
	<-g.done
	g.agent.Close()
}

func (g *testGuest) dial() (*ssh.Client, error) {
	return ssh.Dial("tcp", g.addr+":2222", &ssh.ClientConfig{
		User: "ubuntu", Auth: []ssh.AuthMethod{ssh.PublicKeys(g.key)}, HostKeyCallback: ssh.FixedHostKey(g.hostKey), Timeout: 2 * time.Second,
	})
}

// eventually polls until fn is true.
func eventually(t *testing.T, what string, fn func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !fn() {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting for %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// booted waits for SSH and the end of cloud-init.
func (g *testGuest) booted() *testGuest {
	g.t.Helper()
	eventually(g.t, g.name+" to answer SSH", func() bool {
		c, err := g.dial()
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
	if out, code := g.run("cloud-init status --wait"); code != 0 {
		g.t.Fatalf("%s: cloud-init: %d %s", g.name, code, out)
	}
	return g
}

// run runs a command over SSH and gives both streams together and its code.
func (g *testGuest) run(cmd string) (string, int) { g.t.Helper(); return g.runIn(cmd, "") }

func (g *testGuest) runIn(cmd, stdin string) (string, int) {
	g.t.Helper()
	c, err := g.dial()
	if err != nil {
		g.t.Fatalf("%s: ssh: %v", g.name, err)
	}
	defer c.Close()
	s, err := c.NewSession()
	if err != nil {
		g.t.Fatalf("%s: ssh: %v", g.name, err)
	}
	defer s.Close()
	out := &safeBuffer{}
	s.Stdin, s.Stdout, s.Stderr = strings.NewReader(stdin), out, out
	// One that never ends is told with what it said, before the limit of all tests.
	late := time.AfterFunc(3*patience, func() { c.Close() })
	defer late.Stop()
	err = s.Run(cmd)
	var ee *ssh.ExitError
	switch {
	case err == nil:
		return out.String(), 0
	case errors.As(err, &ee):
		return out.String(), ee.ExitStatus()
	}
	g.t.Fatalf("%s: %q: %v\n%s", g.name, cmd, err, out.String())
	return "", 0
}

// must is run that must succeed.
func (g *testGuest) must(cmd string) string {
	g.t.Helper()
	out, code := g.run(cmd)
	if code != 0 {
		g.t.Fatalf("%s: %q: exit %d\n%s", g.name, cmd, code, out)
	}
	return out
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}
func (s *safeBuffer) String() string { s.mu.Lock(); defer s.mu.Unlock(); return s.b.String() }

const testVersion = "v1.35.0+k3s1"

// install puts k3s on the guest as an agent of the real thing does: files
// first, then the script with nothing but the role.
func (g *testGuest) install(role, config string) (string, int) {
	g.t.Helper()
	if out, code := g.runIn("sudo install -D -m 755 /dev/stdin /usr/local/bin/k3s", string(k3s.StandInBinary(testVersion))); code != 0 {
		g.t.Fatalf("binary: %d %s", code, out)
	}
	if out, code := g.runIn("sudo install -D -m 600 /dev/stdin /etc/rancher/k3s/config.yaml", config); code != 0 {
		g.t.Fatalf("config: %d %s", code, out)
	}
	return g.runIn("sudo INSTALL_K3S_SKIP_DOWNLOAD=true sh -s - "+role, string(k3s.InstallScript))
}
