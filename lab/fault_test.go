package lab

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/homeiac/homelab/lab/disk"
	"github.com/homeiac/homelab/lab/guest/system"
	"github.com/homeiac/homelab/lab/pve"
)

// testLab is one host with a running VM named k3s-1, and no agent: its programs and
// processes are this test binary under their names.
func testLab(t *testing.T) *Lab {
	t.Helper()
	dir, err := os.MkdirTemp("", "hl") //nolint:usetesting // sockets need a short path
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	prefix, err := freeNet(dir)
	if err != nil {
		t.Fatal(err)
	}
	l := &Lab{Dir: dir, bin: filepath.Join(dir, "bin"), Config: Config{
		Fleet: "test", Net: prefix, Subnet: prefix + ".0/24", Hosts: 1, Controllers: 1, Cluster: true, QMCost: "none", SSHPort: guestSSHPort,
		BootMs: 5, CloudInitMs: 5, LearnerTickMs: 500,
	}}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Error(err)
		}
		if left, err := l.processes(l.Dir); err != nil || len(left) > 0 {
			t.Errorf("left running: %v %v", left, err)
		}
		if err := removeAll(dir); err != nil {
			t.Error(err)
		}
	})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(l.save())
	must(os.MkdirAll(l.bin, 0o755))
	must(os.Symlink(exe, filepath.Join(l.bin, "hl-lab")))
	must(pve.NewHost(pve.HostConfig{
		Name: "pve1", LabDir: dir, Address: l.hostAddress(1), Cluster: "lab", Binary: exe, MemoryBytes: hostMemory, CPUs: 4,
		Bridges:  []pve.BridgeConfig{{Name: "vmbr0", Ports: []string{"eno1"}}},
		Storages: []pve.StorageConfig{{Name: "local", Type: "dir", Path: "/var/lib/vz", TotalBytes: localBytes}, {Name: "data", Type: "dir", Path: "/mnt/data", TotalBytes: localBytes}},
	}))
	root := l.hostRoot("pve1")
	must(disk.MakeGuestImage(filepath.Join(root, "root/img.raw"), 4<<20))
	must(os.WriteFile(filepath.Join(root, "var/lib/vz/snippets/u.yaml"), []byte("#cloud-config\nhostname: k3s-1\npackages: [qemu-guest-agent]\nruncmd:\n- [systemctl, start, qemu-guest-agent]\n"), 0o600))
	l.mustQM(t, "create", "201", "--name", "k3s-1", "--memory", "512", "--scsi0", "local:0,import-from=/root/img.raw", "--ide2", "local:cloudinit",
		"--net0", "virtio=BC:24:11:00:00:01,bridge=vmbr0", "--ipconfig0", "ip="+l.guestAddress(1)+"/24,gw="+l.address(254),
		"--cicustom", "user=local:snippets/u.yaml", "--agent", "1")
	l.mustQM(t, "start", "201")
	l.answers(t, system.WireOpen)
	return l
}

func (l *Lab) mustQM(t *testing.T, args ...string) string {
	t.Helper()
	var out, stderr bytes.Buffer
	if code := l.QM(t.Context(), "pve1", args, nil, &out, &stderr); code != 0 {
		t.Fatalf("qm %v: exit %d %s%s", args, code, out.String(), stderr.String())
	}
	return out.String()
}

// answers waits until the guest's SSH port is in that mode.
func (l *Lab) answers(t *testing.T, mode string) {
	t.Helper()
	if err := await(10*time.Second, "SSH to be "+mode, func() bool { return reach(l.guestAddress(1), l.SSHPort) == mode }); err != nil {
		t.Fatal(err)
	}
}

func (l *Lab) must(t *testing.T, kind, target string, values ...string) {
	t.Helper()
	if err := l.Fault(kind, target, values...); err != nil {
		t.Fatal(err)
	}
}

func TestFaultsOfAGuestAreMendedByOff(t *testing.T) {
	l := testLab(t)
	for _, c := range []struct {
		fault, status, ssh string
	}{
		{"guest-pause", "status: paused", ""},
		{"guest-hang", "status: running", system.WireDrop},
		{"ssh-refuse", "status: running", system.WireRefuse},
		{"ssh-filter", "status: running", system.WireDrop},
		{"ssh-wrong", "status: running", system.WireOpen},
	} {
		t.Run(c.fault, func(t *testing.T) {
			l.must(t, c.fault, "k3s-1")
			if got := strings.TrimSpace(l.mustQM(t, "status", "201")); got != c.status {
				t.Errorf("qm says %q", got)
			}
			if c.ssh != "" || c.fault == "ssh-wrong" {
				if got := reach(l.guestAddress(1), l.SSHPort); got != c.ssh {
					t.Errorf("SSH is %q, want %q", got, c.ssh)
				}
			}
			if strings.HasPrefix(c.fault, "ssh-") {
				l.mustQM(t, "guest", "cmd", "201", "ping")
			}
			l.must(t, c.fault, "k3s-1", "off")
			l.answers(t, system.WireOpen)
			if got := strings.TrimSpace(l.mustQM(t, "status", "201")); got != "status: running" {
				t.Errorf("after off qm says %q", got)
			}
			l.mustQM(t, "guest", "cmd", "201", "ping")
		})
	}
	t.Run("kvm-hang", func(t *testing.T) {
		l.must(t, "kvm-hang", "k3s-1")
		m, err := l.runningGuest("k3s-1")
		if err != nil || !stopped(m.kvm) || !stopped(m.os) {
			t.Fatalf("%+v %v", m, err)
		}
		if got := reach(l.guestAddress(1), l.SSHPort); got != system.WireDrop {
			t.Errorf("SSH is %q", got)
		}
		l.must(t, "kvm-hang", "k3s-1", "off")
		l.answers(t, system.WireOpen)
		l.mustQM(t, "guest", "cmd", "201", "ping")
	})
	t.Run("a hung guest is stopped by qm at once", func(t *testing.T) {
		l.must(t, "guest-hang", "k3s-1")
		l.mustQM(t, "stop", "201")
		l.answers(t, system.WireRefuse)
		l.mustQM(t, "start", "201")
		l.answers(t, system.WireOpen)
	})
	t.Run("a paused guest is stopped by qm", func(t *testing.T) {
		l.must(t, "guest-pause", "k3s-1")
		l.mustQM(t, "stop", "201")
		l.mustQM(t, "start", "201")
		l.answers(t, system.WireOpen)
	})
	t.Run("guest-crash", func(t *testing.T) {
		l.must(t, "guest-crash", "k3s-1")
		if got := strings.TrimSpace(l.mustQM(t, "status", "201")); got != "status: stopped" {
			t.Errorf("qm says %q", got)
		}
		if err := l.Fault("guest-hang", "k3s-1"); err == nil || !strings.Contains(err.Error(), "does not run") {
			t.Errorf("a dead guest hangs: %v", err)
		}
		l.mustQM(t, "start", "201")
		l.answers(t, system.WireOpen)
	})
}

func TestTheWrongMachineNotesWhatItIsTold(t *testing.T) {
	l := testLab(t)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	tell := func(user, command, input string) (out string, host string) {
		c, err := ssh.Dial("tcp", net.JoinHostPort(l.guestAddress(1), fmt.Sprint(l.SSHPort)), &ssh.ClientConfig{
			User: user, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, Timeout: 5 * time.Second,
			HostKeyCallback: func(_ string, _ net.Addr, k ssh.PublicKey) error { host = ssh.FingerprintSHA256(k); return nil },
		})
		if err != nil {
			return err.Error(), host
		}
		defer c.Close()
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		s.Stdin = strings.NewReader(input)
		b, err := s.Output(command)
		if err != nil {
			t.Fatal(err)
		}
		return string(b), host
	}
	denied, right := tell("ubuntu", "id", "")
	if !strings.Contains(denied, "unable to authenticate") {
		t.Fatalf("the guest itself let anybody in: %s", denied)
	}
	l.must(t, "ssh-wrong", "k3s-1")
	out, wrong := tell("root", "cat /proc/sys/kernel/hostname /etc/machine-id", "")
	if wrong == right || !strings.HasPrefix(out, "printer\n") || len(strings.Fields(out)) != 2 {
		t.Errorf("host key %s, was %s; it says %q", wrong, right, out)
	}
	tell("ubuntu", "sudo sh -s", "echo secret\n")
	data, err := os.ReadFile(l.path("impostors", "k3s-1.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var last told
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || last.Command != "sudo sh -s" || last.Input != "echo secret\n" || last.User != "ubuntu" {
		t.Errorf("it noted %s (%v)", data, err)
	}
	// It is another machine: it answers while the guest is off.
	l.mustQM(t, "stop", "201")
	l.answers(t, system.WireOpen)
	l.mustQM(t, "start", "201")
	l.must(t, "ssh-wrong", "k3s-1", "off")
	l.answers(t, system.WireOpen)
	if _, now := tell("ubuntu", "id", ""); now != right {
		t.Errorf("host key %s, was %s", now, right)
	}
}

func TestFaultsOfAHostAreMendedByOff(t *testing.T) {
	l := testLab(t)
	list := func(limit time.Duration) (string, int) {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		var out bytes.Buffer
		code := l.QM(ctx, "pve1", []string{"list"}, nil, &out, &out)
		return out.String(), code
	}
	t.Run("qm-hang", func(t *testing.T) {
		l.must(t, "qm-hang", "pve1")
		if out, code := list(300 * time.Millisecond); code == 0 {
			t.Errorf("qm list: %s", out)
		}
		l.must(t, "qm-hang", "pve1", "off")
		if out, code := list(10 * time.Second); code != 0 {
			t.Errorf("qm list: %d %s", code, out)
		}
	})
	t.Run("qm-fail", func(t *testing.T) {
		if err := l.Fault("qm-fail", "pve1", "explode"); err == nil || !strings.Contains(err.Error(), "qm has no command") {
			t.Errorf("%v", err)
		}
		l.must(t, "qm-fail", "pve1", "stop")
		if err := l.Fault("guest-stop", "k3s-1"); err == nil || !strings.Contains(err.Error(), "No space left on device") {
			t.Errorf("qm stop: %v", err)
		}
		l.must(t, "qm-fail", "pve1", "off")
		l.mustQM(t, "set", "201", "--onboot", "1")
	})
	t.Run("pve-cluster-down", func(t *testing.T) {
		l.must(t, "pve-cluster-down", "pve1")
		if out, code := list(10 * time.Second); code != 111 || strings.Count(out, "\n") != 4 || !strings.HasPrefix(out, "ipcc_send_rec[1] failed: Connection refused\n") {
			t.Errorf("qm list: %d %s", code, out)
		}
		if e, err := os.ReadDir(filepath.Join(l.hostRoot("pve1"), "etc/pve")); err != nil || len(e) > 0 {
			t.Errorf("/etc/pve: %v %v", e, err)
		}
		if m, err := l.runningGuest("k3s-1"); err != nil || m.kvm == 0 {
			t.Errorf("its guest is not found any more: %+v %v", m, err)
		}
		l.must(t, "pve-cluster-down", "pve1", "off")
		if out, code := list(10 * time.Second); code != 0 || !strings.Contains(out, "k3s-1") {
			t.Errorf("qm list: %d %s", code, out)
		}
	})
	t.Run("clock-skew", func(t *testing.T) {
		if err := l.Fault("clock-skew", "pve1", "soon"); err == nil {
			t.Error("a wrong duration was taken")
		}
		for value, want := range map[string]string{"3s": "3s\n", "-1h": "-1h0m0s\n", "off": "0s\n"} {
			l.must(t, "clock-skew", "pve1", value)
			if b, err := os.ReadFile(l.clockFile("pve1")); err != nil || string(b) != want {
				t.Errorf("%s: %q %v", value, b, err)
			}
		}
	})
	t.Run("storage-off", func(t *testing.T) {
		l.must(t, "storage-off", "pve1/data")
		if _, err := os.Stat(filepath.Join(l.hostRoot("pve1"), "mnt/data")); !os.IsNotExist(err) {
			t.Errorf("its folder: %v", err)
		}
		l.must(t, "storage-off", "pve1/data", "off")
		l.mustQM(t, "set", "201", "--scsi1", "data:1")
		if err := l.Fault("storage-off", "pve1/none"); err == nil || !strings.Contains(err.Error(), "does not exist") {
			t.Errorf("%v", err)
		}
	})
	t.Run("api-close", func(t *testing.T) {
		m, err := NewMachine(l, "pve1", slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		for _, closed := range []bool{false, true, false} {
			if closed {
				l.must(t, "api-close", "pve1")
			} else {
				l.must(t, "api-close", "pve1", "off")
			}
			if err := await(5*time.Second, "the API port", func() bool { return portFree(l.hostAddress(1), apiPort) == closed }); err != nil {
				t.Error(err)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestDownEndsWhatFaultsLeft(t *testing.T) {
	for _, kinds := range [][]string{{"ssh-wrong", "guest-hang"}, {"kvm-hang"}, {"ssh-filter", "guest-pause"}} {
		t.Run(strings.Join(kinds, " "), func(t *testing.T) {
			l := testLab(t) // which looks at what is left running
			for _, k := range kinds {
				l.must(t, k, "k3s-1")
			}
		})
	}
}
