package guest

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/homeiac/homelab/lab/guest/system"
)

// wires writes the guest's wire file; nil takes it away.
func (g *testGuest) wires(modes map[string]string) {
	g.t.Helper()
	file := system.WireFile(g.dir, g.machine.Host, g.name)
	if modes == nil {
		if err := os.Remove(file); err != nil {
			g.t.Fatal(err)
		}
		return
	}
	b, err := json.Marshal(modes)
	if err != nil {
		g.t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		g.t.Fatal(err)
	}
	if err := os.WriteFile(file+".new", b, 0o644); err != nil {
		g.t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		g.t.Fatal(err)
	}
}

// reach says how a connection to a port of the guest ends: "open", "refused" or
// "timeout".
func (g *testGuest) reach(port int) string {
	c, err := net.DialTimeout("tcp", fmt.Sprintf("%s:%d", g.addr, port), 250*time.Millisecond)
	var timeout net.Error
	switch {
	case err == nil:
		c.Close()
		return "open"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	}
	return err.Error()
}

func TestAPortCanBeSilencedAndRefused(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	g := l.guest(1, "k3s-1").start().booted()
	old, err := g.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	answers := func() <-chan error {
		done := make(chan error, 1)
		go func() {
			_, _, err := old.SendRequest("keepalive@openssh.com", true, nil)
			done <- err
		}()
		return done
	}
	if err := <-answers(); err != nil {
		t.Fatal(err)
	}
	g.wires(map[string]string{"2222": "drop"})
	eventually(t, "silence", func() bool { return g.reach(2222) == "timeout" })
	for range 3 {
		if got := g.reach(2222); got != "timeout" {
			t.Fatalf("a silent port gave %s", got)
		}
	}
	late := answers()
	select {
	case err := <-late:
		t.Fatalf("an open connection was heard: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	// What is not about that port goes on.
	if out := g.o().Hostname(); out != "k3s-1" {
		t.Errorf("hostname %q", out)
	}
	g.wires(nil)
	if err := <-late; err != nil {
		t.Errorf("the old connection did not go on: %v", err)
	}
	g.booted()

	g.wires(map[string]string{"2222": "refuse"})
	eventually(t, "refusal", func() bool { return g.reach(2222) == "refused" })
	if err := <-answers(); err == nil {
		t.Error("an open connection survived")
	}
	g.wires(nil)
	eventually(t, "sshd", func() bool { return g.reach(2222) == "open" })
	g.booted()

	// A restart changes nothing about the wire.
	g.wires(map[string]string{"2222": "refuse"})
	g.kill()
	g.start()
	eventually(t, "the end of cloud-init", func() bool {
		return g.reach(2222) == "refused" && g.agentSays(`{"execute":"guest-ping"}`) == `{"return":{}}`
	})
	g.wires(nil)
	g.booted()
}

func (g *testGuest) o() *system.OS { return g.os }

// agentSays asks the guest agent over its channel.
func (g *testGuest) agentSays(cmd string) string {
	if err := g.agent.SetDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		g.t.Fatal(err)
	}
	defer func() { _ = g.agent.SetDeadline(time.Time{}) }()
	if _, err := io.WriteString(g.agent, cmd); err != nil {
		return ""
	}
	b := make([]byte, 4096)
	n, err := g.agent.Read(b)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b[:n]))
}

func TestASilentK3sOfAGuestThatIsWell(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	s1, s2, s3 := l.guest(1, "k3s-1"), l.guest(2, "k3s-2"), l.guest(3, "k3s-3")
	boot(s1, s2, s3)
	s1.installed("server", "cluster-init: true\ntls-san: [10.9.8.7, k3s.lan]\n")
	s2.installed("server", serverConfig(s1, s1.token()))
	s3.installed("server", serverConfig(s1, s1.token()))
	etcd := s1.etcd()

	t.Run("the certificate has the names of tls-san", func(t *testing.T) {
		c, err := tls.Dial("tcp", s1.addr+":6443", &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		cert := c.ConnectionState().PeerCertificates[0]
		if !slices.Contains(cert.DNSNames, "k3s.lan") || cert.VerifyHostname("10.9.8.7") != nil || cert.VerifyHostname("10.9.8.8") == nil {
			t.Errorf("names %v %v", cert.DNSNames, cert.IPAddresses)
		}
		if out := s2.must("sudo cat /etc/rancher/k3s/config.yaml"); strings.Contains(out, "tls-san") {
			t.Errorf("another server's configuration has them: %s", out)
		}
	})
	t.Run("etcd gives a snapshot to a client", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		r, err := etcd.Snapshot(ctx)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, r)
		if err = errors.Join(err, r.Close()); err != nil || n < 16<<10 {
			t.Errorf("%d bytes, %v", n, err)
		}
	})
	t.Run("API and etcd time out, SSH answers, the others keep their quorum", func(t *testing.T) {
		s2.wires(map[string]string{"6443": "drop", "2379": "drop"})
		for _, port := range []int{6443, 2379} {
			eventually(t, "silence", func() bool { return s2.reach(port) == "timeout" })
		}
		if got := s2.reach(2380); got != "open" {
			t.Errorf("etcd's peers: %s", got)
		}
		if got := strings.TrimSpace(s2.must("systemctl is-active k3s")); got != "active" {
			t.Errorf("k3s is %s", got)
		}
		out, code := s2.run("timeout 5 sudo k3s kubectl get nodes --request-timeout=500ms")
		if code != 1 || !strings.Contains(out, "Unable to connect to the server") {
			t.Errorf("kubectl: %d %s", code, out)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if _, err := s2.etcd().MemberList(ctx); err == nil {
			t.Error("its etcd answered")
		}
		if got := members(t, etcd); !slices.Equal(got, []string{"k3s-1 voter", "k3s-2 voter", "k3s-3 voter"}) {
			t.Errorf("members %v", got)
		}
		s2.wires(nil)
		eventually(t, "k3s-2 Ready", func() bool { return slices.Contains(s1.ready(), "k3s-2") })
		s2.must("sudo k3s kubectl get nodes")
	})
	t.Run("a Node of another version is shown with it", func(t *testing.T) {
		a := l.guest(4, "k3s-4").start().booted()
		a.must("sudo sh -c 'echo \"#!hl-lab-k3s v1.34.1+k3s1\" > /usr/local/bin/k3s; chmod 755 /usr/local/bin/k3s'")
		a.must("sudo mkdir -p /etc/rancher/k3s")
		a.must("echo server: https://" + s1.addr + ":6443 | sudo tee /etc/rancher/k3s/config.yaml; echo token: " + s1.token() + " | sudo tee -a /etc/rancher/k3s/config.yaml")
		c, err := a.dial()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		session, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		if err := session.Start("sudo k3s agent"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "k3s-4 Ready", func() bool { return slices.Contains(s1.ready(), "k3s-4") })
		if out := s1.must("sudo k3s kubectl get node k3s-4"); !strings.Contains(out, "v1.34.1+k3s1") {
			t.Errorf("node: %s", out)
		}
		out, code := s1.run("sudo k3s kubectl cordon k3s-4 && sudo k3s kubectl uncordon k3s-4 && sudo k3s kubectl delete secret -n kube-system k3s-4.node-password.k3s")
		if code != 0 || !strings.Contains(out, "node/k3s-4 uncordoned") {
			t.Errorf("%d %s", code, out)
		}
	})
}

func TestADiskWhoseStorageIsGoneStopsTheGuest(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	v := l.vm(1, "k3s-1").on()
	v.booted()
	vz := filepath.Join(v.root, "var/lib/vz")
	if err := os.Rename(vz, vz+".away"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the I/O error", func() bool { return v.status() == "io-error" })
	if err := os.Rename(vz+".away", vz); err != nil {
		t.Fatal(err)
	}
	if got := v.status(); got != "io-error" {
		t.Errorf("it went on by itself: %s", got)
	}
	v.monitor("cont")
	v.booted()
}

func TestTheGuestAgentCutsLongOutput(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.set.AgentOutputBytes = 1000
	g := l.guest(1, "k3s-1").start().booted()
	run := func(script string) map[string]any {
		cmd, err := json.Marshal(map[string]any{"execute": "guest-exec", "arguments": map[string]any{
			"path": "/bin/sh", "arg": []string{"-c", script}, "capture-output": true}})
		if err != nil {
			t.Fatal(err)
		}
		var pid struct{ Return struct{ PID int } }
		eventually(t, "the guest agent", func() bool {
			return json.Unmarshal([]byte(g.agentSays(string(cmd))), &pid) == nil && pid.Return.PID > 0
		})
		var st struct{ Return map[string]any }
		eventually(t, "the command's end", func() bool {
			said := g.agentSays(fmt.Sprintf(`{"execute":"guest-exec-status","arguments":{"pid":%d}}`, pid.Return.PID))
			return json.Unmarshal([]byte(said), &st) == nil && st.Return["exited"] == true
		})
		return st.Return
	}
	if got := run("echo short"); got["out-truncated"] != false || got["exitcode"] != 0.0 {
		t.Errorf("short: %v", got)
	}
	if got := run("yes x | head -c 5000"); got["out-truncated"] != true || len(got["out-data"].(string)) != 1336 {
		t.Errorf("long: %v", got)
	}
}
