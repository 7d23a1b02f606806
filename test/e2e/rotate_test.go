//go:build e2e

package e2e

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/homeiac/homelab/internal/rpc"
)

// rotateCA is hlctl trust rotate-ca with the lab's files.
func (l *lab) rotateCA(args ...string) result {
	l.t.Helper()
	return l.hlctl(append([]string{
		"trust", "rotate-ca", "--root-cert", l.path("pki", "ca.pem"), "--root-key", l.path("pki", "ca.key"), "--fleet-key", l.path("pki", "fleet.key"),
	}, args...)...)
}

// rootsOf are the roots in a file.
func (l *lab) rootsOf(elem ...string) []*x509.Certificate {
	l.t.Helper()
	data, err := os.ReadFile(l.path(elem...))
	if err != nil {
		l.t.Fatal(err)
	}
	roots, err := rpc.ParseRoots(data, "homelab")
	if err != nil {
		l.t.Fatal(err)
	}
	return roots
}

func pves(n int) []string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("pve%d", i+1))
	}
	return all
}

// online waits until hlctl hosts says so.
func (l *lab) online(limit time.Duration, hosts ...string) {
	l.t.Helper()
	for _, host := range hosts {
		l.eventually(limit, host+" to be online", func() (bool, string) {
			state, r := l.state(host)
			return state == "online", r.String()
		})
	}
}

// short gives a daemon that is not running a certificate of its controller's issuing CA.
func (l *lab) short(role, name string, life time.Duration) {
	l.t.Helper()
	dir := l.path("pki", "controller-1")
	ca, err := rpc.LoadCA(dir+"/issuing-ca.pem", dir+"/issuing-ca.key", nil)
	if err != nil {
		l.t.Fatal(err)
	}
	pair, err := ca.Issue(rpc.Identity{Role: role, Name: name}, life, time.Now())
	if err == nil {
		err = pair.Write(l.path("pki", name+".pem"), l.path("pki", name+".key"))
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) ends(name string) time.Time {
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
	return cert.NotAfter
}

// knowsEnrolment waits until hosts know where certificates are renewed: a lab makes its
// own, and nobody has told them when it is ready.
func (l *lab) knowsEnrolment(hosts ...string) {
	l.t.Helper()
	for _, host := range hosts {
		l.eventually(10*time.Second, host+" to be told where certificates are renewed", func() (bool, string) {
			data, _ := os.ReadFile(l.host(host, "..", "agent", "state", "controllers.json"))
			return strings.Contains(string(data), "8402"), string(data)
		})
	}
}

func TestARootGivesWayToAnotherWithAHostOffAndEveryGuestIsStillOurs(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{hosts: 5})
	spec := l.edited(l.spec, oneServer)
	if a := l.startApply(l.config, spec, nil).wait(); a.exit != 0 {
		t.Fatal(a)
	}
	l.knowsEnrolment(pves(5)...)
	old, guests := l.rootsOf("pki", "ca.pem")[0], l.guests()
	l.fault("host-off", "pve5")
	r := l.rotateCA("-o", "json")
	if r.exit != 0 {
		t.Fatal(r)
	}
	var doc struct {
		Root    struct{ SHA256 string }
		Holders []struct{ Holder, State string }
		Kept    []string
		Dropped bool
	}
	if err := json.Unmarshal([]byte(r.stdout), &doc); err != nil {
		t.Fatal(err)
	}
	states := map[string]string{}
	for _, h := range doc.Holders {
		states[h.Holder] = h.State
	}
	for who, want := range map[string]string{
		"agent@pve1": "renewed", "agent@pve2": "renewed", "agent@pve3": "renewed", "agent@pve4": "renewed", "agent@pve5": "off",
		"controller@controller-1": "renewed", "admin@admin": "renewed",
	} {
		if states[who] != want {
			t.Errorf("%s is %q, want %q", who, states[who], want)
		}
	}
	if !doc.Dropped || len(doc.Kept) != 2 {
		t.Errorf("%s", r)
	}
	for _, file := range [][]string{{"pki", "trusted.pem"}, {"controllers", "controller-1", "ca.pem"}, {"hosts", "pve1", "agent", "ca.pem"}} {
		if roots := l.rootsOf(file...); len(roots) != 1 || rpc.RootHash(roots[0]) != doc.Root.SHA256 {
			t.Errorf("%s has %d roots", file, len(roots))
		}
	}
	if roots := l.rootsOf("hosts", "pve5", "agent", "ca.pem"); len(roots) != 1 || !roots[0].Equal(old) {
		t.Error("pve5 knows of it although it is off")
	}
	l.online(5*time.Second, pves(4)...)
	// Whoever has the old root's key is nobody.
	stolen, err := rpc.LoadCA(doc.Kept[1], doc.Kept[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := stolen.Issue(rpc.Identity{Role: rpc.RoleAdmin, Name: "thief"}, time.Hour, time.Now())
	if err == nil {
		err = pair.Write(l.path("thief.pem"), l.path("thief.key"))
	}
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(l.config)
	if err == nil {
		err = os.WriteFile(l.path("thief.yaml"), []byte(strings.ReplaceAll(string(text), "pki/admin.", "thief.")), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if r := run(t, "hlctl", "--config", l.path("thief.yaml"), "version"); r.exit != 1 || !strings.Contains(r.stderr, "refuses the certificate") {
		t.Errorf("with the old root's key: %s", r)
	}

	l.fault("host-on", "pve5")
	l.online(30*time.Second, "pve5")
	if roots := l.rootsOf("hosts", "pve5", "agent", "ca.pem"); len(roots) != 1 || rpc.RootHash(roots[0]) != doc.Root.SHA256 {
		t.Error("pve5 does not go by the new root")
	}
	// Its guest is started, and that is all: each is known by its mark.
	l.eventually(2*time.Minute, "the apply to have nothing to wait for", func() (bool, string) {
		a := l.apply(spec)
		return a.exit == 0, a.String()
	})
	l.mustBeHealthy(names(5)...)
	l.mustChangeNothing(spec)
	for name, g := range l.guests() {
		if was := guests[name]; g.UUID != was.UUID || *g.VMID != *was.VMID {
			t.Errorf("%s is %+v, was %+v", name, g, was)
		}
	}
	// And once more, with a host that is added afterwards.
	if r := l.rotateCA(); r.exit != 0 {
		t.Fatal(r)
	}
	l.up("--hosts", "6")
	l.online(10*time.Second, pves(6)...)
	l.mustChangeNothing(spec)
}

func TestAHostThatWasOffOverBothRotationsAndItsCertificatesEndIsBackByItselfUnlessRevoked(t *testing.T) {
	t.Parallel()
	const life = 20 * time.Second
	l := newLab(t, options{hosts: 3})
	l.knowsEnrolment(pves(3)...)
	for _, host := range []string{"pve2", "pve3"} {
		l.fault("agent-kill", host)
		l.short(rpc.RoleAgent, host, life)
		l.fault("agent-start", host)
	}
	l.online(20*time.Second, pves(3)...)
	l.eventually(10*time.Second, "the certificates to be known", func() (bool, string) {
		r := l.hlctl("trust", "-o", "json")
		return strings.Contains(r.stdout, l.serial("pve2")) && strings.Contains(r.stdout, l.serial("pve3")), r.String()
	})
	gone := l.serial("pve3")
	for _, host := range []string{"pve2", "pve3"} {
		l.fault("host-off", host)
	}
	for _, r := range []result{l.hlctl("trust", "revoke", "agent@pve3"), l.hlctl("trust", "rotate-gossip"), l.rotateCA()} {
		if r.exit != 0 {
			t.Fatal(r)
		}
	}
	keys := func(host string) string {
		data, err := os.ReadFile(l.host(host, "..", "agent", "gossip.keys"))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	if keys("pve1") == keys("pve2") {
		t.Fatal("pve2 was told the gossip's key although it is off")
	}
	l.eventually(time.Until(l.ends("pve2"))+10*time.Second, "the certificates to end", func() (bool, string) {
		return time.Now().After(l.ends("pve2")) && time.Now().After(l.ends("pve3")), ""
	})
	for _, host := range []string{"pve2", "pve3"} {
		l.fault("host-on", host)
	}
	l.online(30*time.Second, "pve2")
	if keys("pve1") != keys("pve2") || !l.ends("pve2").After(time.Now()) {
		t.Error("pve2 is there without the gossip's key or a certificate")
	}
	// The one that was removed has asked too, and got nothing.
	l.eventually(30*time.Second, "pve3 to be refused", func() (bool, string) {
		r := l.hlctl("audit")
		return strings.Contains(inOneLine(r.stdout), "as agent@pve3"), r.String()
	})
	if state, r := l.state("pve3"); state == "online" {
		t.Errorf("pve3 is back: %s", r)
	}
	if l.serial("pve3") != gone || keys("pve3") == keys("pve1") || !l.ends("pve3").Before(time.Now()) {
		t.Error("pve3 was given something")
	}
}

func TestARotationTakesAllControllersOrNone(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{hosts: 2, controllers: 2, standalone: true})
	l.knowsEnrolment(pves(2)...)
	l.eventually(10*time.Second, "both controllers to be known", func() (bool, string) {
		r := l.hlctl("trust")
		return strings.Contains(r.stdout, "controller-2"), r.String()
	})
	l.fault("controller-kill", "controller-2")
	r := l.rotateCA()
	if r.exit != 1 || !strings.Contains(r.stderr, "controller-2") || len(l.rootsOf("controllers", "controller-1", "ca.pem")) != 1 {
		t.Fatalf("with a controller off: %s", r)
	}
	l.fault("controller-start", "controller-2")
	l.fault("host-off", "pve2")
	if r := l.rotateCA(); r.exit != 0 {
		t.Fatal(r)
	}
	for i := 1; i <= 2; i++ {
		if r := run(t, "hlctl", "--config", l.through(i), "hosts"); r.exit != 0 || !strings.Contains(r.stdout, "online") {
			t.Errorf("through controller %d: %s", i, r)
		}
	}
	l.fault("controller-kill", "controller-1")
	l.fault("host-on", "pve2")
	l.online(40*time.Second, "pve2")
	if _, err := os.Stat(l.path("pki", "ca-next.pem")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the new root's file has its first name still: %v", err)
	}
}
