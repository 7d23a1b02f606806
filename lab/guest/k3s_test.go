package guest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// etcd connects as an agent of the real thing does: through the guest's SSH,
// with the certificates found there.
func (g *testGuest) etcd() *clientv3.Client {
	g.t.Helper()
	read := func(f string) []byte {
		return []byte(g.must("sudo cat /var/lib/rancher/k3s/server/tls/etcd/" + f))
	}
	pair, err := tls.X509KeyPair(read("client.crt"), read("client.key"))
	if err != nil {
		g.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(read("server-ca.crt"))
	conn, err := g.dial()
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { conn.Close() })
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"https://127.0.0.1:2379"}, TLS: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return conn.DialContext(ctx, "tcp", addr) })},
	})
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { c.Close() })
	return c
}

// members gives name and kind of each etcd member, sorted; the suffix of a name
// is cut off.
func members(t *testing.T, c *clientv3.Client) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := c.MemberList(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, m := range r.Members {
		name := m.Name
		if i := strings.LastIndex(name, "-"); i > 0 {
			name = name[:i]
		}
		kind := "voter"
		if m.IsLearner {
			kind = "learner"
		}
		out = append(out, name+" "+kind)
	}
	slices.Sort(out)
	return out
}

// ready gives the names of the nodes that are Ready.
func (g *testGuest) ready() []string {
	g.t.Helper()
	out, code := g.run("sudo k3s kubectl get nodes -o json")
	if code != 0 {
		g.t.Fatalf("kubectl: %d %s", code, out)
	}
	var list struct {
		Kind  string
		Items []struct {
			Metadata struct{ Name string }
			Status   struct {
				Conditions []struct{ Type, Status string }
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		g.t.Fatalf("%v\n%s", err, out)
	}
	names := []string{}
	for _, n := range list.Items {
		for _, c := range n.Status.Conditions {
			if c.Type == "Ready" && c.Status == "True" {
				names = append(names, n.Metadata.Name)
			}
		}
	}
	return names
}

func (g *testGuest) installed(role, config string) *testGuest {
	g.t.Helper()
	if out, code := g.install(role, config); code != 0 {
		log, _ := g.run("sudo journalctl -u k3s -n 30 --no-pager")
		g.t.Fatalf("%s: install %s: exit %d\n%s\n%s", g.name, role, code, out, log)
	}
	return g
}

// joined installs a server while another one may join. etcd drops one of two changes of
// its members that come at once (raft's pending configuration change), and tells nobody:
// k3s then ends after 10 s, and has to be started again.
func (g *testGuest) joined(config string) {
	g.t.Helper()
	if out, code := g.install("server", config); code != 0 {
		log := g.must("sudo journalctl -u k3s --no-pager -o cat")
		if !strings.Contains(log, "ETCD join failed: context deadline exceeded") {
			g.t.Fatalf("%s: install server: exit %d\n%s\n%s", g.name, code, out, log)
		}
		g.must("sudo systemctl restart k3s")
	}
}

func (g *testGuest) token() string {
	g.t.Helper()
	return strings.TrimSpace(g.must("sudo cat /var/lib/rancher/k3s/server/node-token"))
}

func serverConfig(first *testGuest, token string) string {
	return "server: https://" + first.addr + ":6443\ntoken: " + token + "\n"
}

// boot starts several guests at once.
func boot(gs ...*testGuest) {
	var wg sync.WaitGroup
	for _, g := range gs {
		g.start()
	}
	for _, g := range gs {
		wg.Go(func() { g.booted() })
	}
	wg.Wait()
}

func TestAClusterOfThreeServersAndAnAgent(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	s1, s2, s3, a1 := l.guest(1, "k3s-1"), l.guest(2, "k3s-2"), l.guest(3, "k3s-3"), l.guest(4, "k3s-4")
	boot(s1, s2, s3, a1)
	s1.installed("server", "cluster-init: true\ntoken: sesame\nwrite-kubeconfig-mode: \"0644\"\n")
	token := s1.token()
	if !strings.HasPrefix(token, "K10") || !strings.HasSuffix(token, "::server:sesame") {
		t.Fatalf("token %q", token)
	}
	// Both servers at once: the second waits for the first one's promotion.
	var wg sync.WaitGroup
	for _, g := range []*testGuest{s2, s3} {
		wg.Go(func() { g.joined(serverConfig(s1, token)) })
	}
	wg.Go(func() { a1.installed("agent", serverConfig(s1, token)) })
	wg.Wait()
	etcd := s1.etcd()
	if got, want := members(t, etcd), []string{"k3s-1 voter", "k3s-2 voter", "k3s-3 voter"}; !slices.Equal(got, want) {
		t.Fatalf("members %v", got)
	}
	if got := s2.ready(); !slices.Equal(got, []string{"k3s-1", "k3s-2", "k3s-3", "k3s-4"}) {
		t.Fatalf("ready %v", got)
	}
	// Readable without root as the mode says; an agent has no kubeconfig.
	s1.must("kubectl get nodes")
	if out, code := a1.run("sudo kubectl get nodes"); code != 1 || !strings.Contains(out, "was refused") {
		t.Errorf("kubectl on an agent: %d %s", code, out)
	}

	t.Run("the same install again changes nothing", func(t *testing.T) {
		out, code := s2.install("server", serverConfig(s1, token))
		if code != 0 || !strings.Contains(out, "No change detected so skipping service start") {
			t.Fatalf("%d %s", code, out)
		}
	})
	t.Run("a server's name can be used once", func(t *testing.T) {
		twin := l.guest(5, "k3s-2").start().booted()
		out, code := twin.install("server", serverConfig(s1, token))
		if code != 1 {
			t.Fatalf("exit %d\n%s", code, out)
		}
		if log := twin.must("sudo journalctl -u k3s --no-pager -o cat"); !strings.Contains(log, "ETCD join failed: duplicate node name found") {
			t.Fatalf("journal: %s", log)
		}
		twin.kill()
	})
	t.Run("an agent's name is guarded by its password", func(t *testing.T) {
		twin := l.guest(6, "k3s-4").start().booted()
		twin.must("echo server: https://" + s1.addr + ":6443 | sudo install -D /dev/stdin /etc/rancher/k3s/config.yaml; echo token: " + token + " | sudo tee -a /etc/rancher/k3s/config.yaml")
		twin.must("sudo sh -c 'echo \"#!hl-lab-k3s " + testVersion + "\" > /usr/local/bin/k3s; chmod 755 /usr/local/bin/k3s'")
		// It hangs, as in life, until it is told to stop.
		for limit := 1; ; limit *= 2 { // longer where a loaded machine needs it
			out, code := twin.run(fmt.Sprintf("timeout %d sudo k3s agent", limit))
			if code == 124 && strings.Contains(out, "Node password rejected, duplicate hostname") {
				break
			}
			if code != 124 || limit > 16 {
				t.Fatalf("%d %s", code, out)
			}
		}
		twin.kill()
	})
	t.Run("a wrong token and another CA are told apart", func(t *testing.T) {
		g := l.guest(7, "k3s-7").start().booted()
		out, code := g.install("server", serverConfig(s1, strings.Replace(token, "sesame", "barley", 1)))
		log := g.must("sudo journalctl -u k3s --no-pager -o cat")
		if code != 1 || !strings.Contains(log, "401 Unauthorized") {
			t.Fatalf("%d %s\n%s", code, out, log)
		}
		g.must("sudo systemctl stop k3s")
		_, code = g.install("server", serverConfig(s1, "K10"+strings.Repeat("0", 64)+"::server:sesame"))
		log = g.must("sudo journalctl -u k3s --no-pager -o cat -n 20; sudo systemctl stop k3s")
		if code != 0 && !strings.Contains(log, "token CA hash does not match the Cluster CA certificate hash") {
			t.Fatalf("%d\n%s", code, log)
		}
		g.kill()
	})
	t.Run("a stopped server that is deleted is no member any more, and can come back", func(t *testing.T) {
		s3.must("sudo systemctl stop k3s")
		eventually(t, "k3s-3 NotReady", func() bool { return !slices.Contains(s1.ready(), "k3s-3") })
		s1.must("kubectl drain k3s-3 --ignore-daemonsets --delete-emptydir-data --timeout=5s")
		if out := s1.must("kubectl get node k3s-3"); !strings.Contains(out, "NotReady,SchedulingDisabled") {
			t.Errorf("drained: %s", out)
		}
		s1.must("sudo kubectl get secret -n kube-system k3s-3.node-password.k3s")
		s1.must("kubectl delete node k3s-3 --timeout=15s")
		if got, want := members(t, etcd), []string{"k3s-1 voter", "k3s-2 voter"}; !slices.Equal(got, want) {
			t.Fatalf("members %v", got)
		}
		if out, code := s1.run("sudo kubectl get secret -n kube-system k3s-3.node-password.k3s"); code != 1 || !strings.Contains(out, "NotFound") {
			t.Errorf("secret: %d %s", code, out)
		}
		s3.must("sudo k3s-uninstall.sh")
		if out := s3.must("ls /etc/rancher; ls /var/lib/rancher; ls /usr/local/bin"); strings.TrimSpace(out) != "node" {
			t.Errorf("left behind: %q", out)
		}
		s3.must("sudo rm -f /etc/rancher/node/password") // a fresh disk
		s3.installed("server", serverConfig(s2, token))
		if got, want := members(t, etcd), []string{"k3s-1 voter", "k3s-2 voter", "k3s-3 voter"}; !slices.Equal(got, want) {
			t.Fatalf("members %v", got)
		}
	})
	t.Run("a guest that lost its power comes back by itself", func(t *testing.T) {
		s2.kill()
		eventually(t, "k3s-2 NotReady", func() bool { return !slices.Contains(s1.ready(), "k3s-2") })
		s2.start().booted()
		eventually(t, "k3s-2 Ready", func() bool { return slices.Contains(s1.ready(), "k3s-2") })
		if got := len(members(t, etcd)); got != 3 {
			t.Errorf("%d members", got)
		}
	})
	t.Run("snapshots", func(t *testing.T) {
		s1.must("sudo k3s etcd-snapshot save --name test")
		if out := s1.must("sudo k3s etcd-snapshot ls"); !strings.Contains(out, "test-k3s-1-") {
			t.Errorf("ls: %s", out)
		}
	})
	t.Run("without quorum nothing is deleted", func(t *testing.T) {
		s2.kill()
		s3.kill()
		out, code := s1.run("timeout 2 kubectl delete node k3s-4 --timeout=1s")
		if code == 0 {
			t.Fatalf("deleted without quorum: %s", out)
		}
		if out, code := s1.run("timeout 2 kubectl get --raw /readyz"); code == 0 {
			t.Errorf("readyz: %s", out)
		}
	})
}

// A server whose k3s still runs when it is removed goes down, and joins again as
// another member.
func TestARunningServerThatIsRemovedRejoins(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	s1, s2 := l.guest(1, "k3s-1"), l.guest(2, "k3s-2")
	boot(s1, s2)
	s1.installed("server", "cluster-init: true\n")
	s2.installed("server", serverConfig(s1, s1.token()))
	name := s2.must("sudo cat /var/lib/rancher/k3s/server/db/etcd/name")
	s1.must("sudo kubectl delete node k3s-2 --timeout=15s")
	eventually(t, "another member", func() bool {
		out, code := s2.run("sudo cat /var/lib/rancher/k3s/server/db/etcd/name")
		return code == 0 && out != name && slices.Contains(s1.ready(), "k3s-2")
	})
	if log := s2.must("sudo journalctl -u k3s --no-pager -o cat"); !strings.Contains(log, "etcdserver: server stopped") || !strings.Contains(log, "tombstone") {
		t.Errorf("journal: %s", log)
	}
}

// A learner whose guest has gone is dropped when it has made no progress for the
// time that k3s gives it.
func TestAStalledLearnerIsRemoved(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.set.LearnerStallMs = 600
	s1 := l.guest(1, "k3s-1")
	boot(s1)
	s1.installed("server", "cluster-init: true\n")
	c := s1.etcd()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := c.MemberAddAsLearner(ctx, []string{fmt.Sprintf("https://%s.250:2380", l.prefix)}); err != nil {
		t.Fatal(err)
	}
	if got := len(members(t, c)); got != 2 {
		t.Fatalf("%d members", got)
	}
	start := time.Now()
	eventually(t, "the learner's removal", func() bool { return len(members(t, c)) == 1 })
	if d := time.Since(start); d < 600*time.Millisecond {
		t.Errorf("removed after %v", d)
	}
}
