//go:build e2e

package e2e

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/homeiac/homelab/internal/rpc"
)

// serial is that of the certificate that a daemon has on disk now.
func (l *lab) serial(name string) string {
	l.t.Helper()
	data, err := os.ReadFile(l.path("pki", name+".pem"))
	if err != nil {
		l.t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		l.t.Fatal(err)
	}
	return rpc.Serial(cert)
}

// state is what hlctl hosts says of a host.
func (l *lab) state(host string) (string, result) {
	r := l.hlctl("hosts", "-o", "json")
	var hosts []struct{ Name, State string }
	if err := json.Unmarshal([]byte(r.stdout), &hosts); err != nil {
		return "", r
	}
	for _, h := range hosts {
		if h.Name == host {
			return h.State, r
		}
	}
	return "", r
}

func TestCertificatesOfSixSecondsAreRenewedTwentyTimesUnderFourCallers(t *testing.T) {
	t.Parallel()
	const life, renewals, callers = 6 * time.Second, 20, 4
	l := newLab(t, options{hosts: 1})
	l.eventually(10*time.Second, "pve1 to be told where certificates are renewed", func() (bool, string) {
		data, _ := os.ReadFile(l.host("pve1", "..", "agent", "state", "controllers.json"))
		return strings.Contains(string(data), "8402"), string(data)
	})
	file := l.path("controllers", "controller-1", "controller.yaml")
	config, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(config, "certificateLife: 6s\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	l.fault("controller-kill", "controller-1")
	l.fault("agent-kill", "pve1")
	dir := l.path("pki", "controller-1")
	ca, err := rpc.LoadCA(filepath.Join(dir, "issuing-ca.pem"), filepath.Join(dir, "issuing-ca.key"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []rpc.Identity{{Role: rpc.RoleAgent, Name: "pve1"}, {Role: rpc.RoleController, Name: "controller-1"}} {
		pair, err := ca.Issue(id, life, time.Now())
		if err == nil {
			err = pair.Write(l.path("pki", id.Name+".pem"), l.path("pki", id.Name+".key"))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	l.fault("controller-start", "controller-1")
	l.fault("agent-start", "pve1")
	l.eventually(20*time.Second, "pve1 to be online", func() (bool, string) {
		state, r := l.state("pve1")
		return state == "online", r.String()
	})
	var over atomic.Bool
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			for !over.Load() {
				if state, r := l.state("pve1"); state != "online" {
					t.Errorf("pve1 is %q: %s", state, r)
					return
				}
			}
		})
	}
	agent, controller := map[string]bool{}, map[string]bool{}
	l.eventually(4*time.Minute, "both to be renewed often enough", func() (bool, string) {
		agent[l.serial("pve1")], controller[l.serial("controller-1")] = true, true
		return t.Failed() || min(len(agent), len(controller)) > renewals, ""
	})
	over.Store(true)
	all.Wait()
}

func TestARevokedHostIsOutWithinFiveSecondsAndStaysOut(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{hosts: 2})
	l.eventually(10*time.Second, "the certificate of pve2 to be known", func() (bool, string) {
		r := l.hlctl("trust", "-o", "json")
		return strings.Contains(r.stdout, l.serial("pve2")), r.String()
	})
	if r := l.hlctl("trust", "revoke", "agent@pve2"); r.exit != 0 {
		t.Fatal(r)
	}
	began := time.Now()
	lists := func(host string) (bool, string) {
		data, err := os.ReadFile(l.host(host, "..", "agent", "state", "revocations.pem"))
		if err != nil {
			return false, err.Error()
		}
		list, err := rpc.ParseRevocations(data)
		return err == nil && list.Has(l.serial("pve2")), ""
	}
	l.eventually(5*time.Second, "pve1 to go by the list", func() (bool, string) { return lists("pve1") })
	l.eventually(5*time.Second-time.Since(began), "pve2 to be spoken to no more", func() (bool, string) {
		state, r := l.state("pve2")
		return state != "online", r.String()
	})
	// A restart of any of them lets it in as little as waiting does.
	l.fault("controller-kill", "controller-1")
	l.fault("controller-start", "controller-1")
	l.fault("agent-kill", "pve2")
	l.fault("agent-start", "pve2")
	l.eventually(20*time.Second, "the controller to answer", func() (bool, string) {
		state, r := l.state("pve1")
		return state == "online", r.String()
	})
	if state, r := l.state("pve2"); state == "online" {
		t.Errorf("pve2 is back: %s", r)
	}
}

func TestAHostThatWasRemovedWhileItWasOffDoesNotComeBack(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{hosts: 3})
	l.awaitState("pve3", "online", 10*time.Second)
	l.eventually(10*time.Second, "the certificate of pve3 to be known", func() (bool, string) {
		r := l.hlctl("trust", "-o", "json")
		return strings.Contains(r.stdout, l.serial("pve3")), r.String()
	})
	l.fault("host-off", "pve3")
	r := l.hlctl("hosts", "remove", "pve3", "--no-ssh", "--yes")
	if r.exit != 0 || !strings.Contains(r.stdout, "only locked out") {
		t.Fatal(r)
	}
	// The Spec was not applied: nobody asks for it any more.
	if state, r := l.state("pve3"); state != "" {
		t.Errorf("pve3 is %s: %s", state, r)
	}
	if r := l.hlctl("status", "-o", "json"); !strings.Contains(r.stdout, `"paused": ""`) {
		t.Errorf("changes are paused still: %s", r)
	}
	l.fault("host-on", "pve3")
	l.eventually(10*time.Second, "the agent of pve3 to serve", func() (bool, string) {
		conn, err := net.DialTimeout("tcp", l.net+".3:8400", time.Second)
		if err != nil {
			return false, err.Error()
		}
		return conn.Close() == nil, ""
	})
	// The others have the new gossip key and go on without it.
	for range 20 {
		for host, want := range map[string]string{"pve1": "online", "pve2": "online", "pve3": ""} {
			if state, r := l.state(host); state != want {
				t.Fatalf("%s is %q: %s", host, state, r)
			}
		}
	}
	if r := l.hlctl("hosts", "remove", "pve3", "--no-ssh", "--yes"); r.exit != 0 {
		t.Errorf("again: %s", r)
	}
}
