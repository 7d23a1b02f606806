package agent

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	trustv1 "github.com/homeiac/homelab/gen/homelab/trust/v1"
	"github.com/homeiac/homelab/internal/gossip"
	"github.com/homeiac/homelab/internal/rpc"
)

// rotated is a fleet whose root gave way to another while a host was off.
type rotated struct {
	p          *fleetCA
	next       *rpc.CA
	old, fresh *rpc.CA // the issuing CA below either root
	bundle     []byte
}

func (p *fleetCA) rotated() rotated {
	p.t.Helper()
	now := time.Now()
	next, err := rpc.NextCA(p.ca.Certificate(), 24*time.Hour, now)
	if err != nil {
		p.t.Fatal(err)
	}
	old, err := p.ca.NewIssuing("c1", time.Hour, now)
	if err != nil {
		p.t.Fatal(err)
	}
	cert, err := next.Recertify(old.Certificate(), time.Hour, now)
	if err != nil {
		p.t.Fatal(err)
	}
	both, err := old.With(cert)
	if err != nil {
		p.t.Fatal(err)
	}
	roots := []*x509.Certificate{next.Certificate()}
	return rotated{p, next, both.Below([]*x509.Certificate{p.ca.Certificate()}), both.Below(roots), rpc.EncodeBundle(2, roots)}
}

// of is a certificate of an issuing CA, and the bundle that its holder goes by.
func (r rotated) of(ca *rpc.CA, role, name string, bundle []byte) *rpc.Credentials {
	r.p.t.Helper()
	pair, err := ca.Issue(rpc.Identity{Fleet: "home", Role: role, Name: name}, time.Hour, time.Now())
	file := filepath.Join(r.p.t.TempDir(), name)
	if err == nil {
		err = pair.Write(file+".crt", file+".key")
	}
	if err == nil {
		err = os.WriteFile(file+".ca", bundle, 0o600)
	}
	if err != nil {
		r.p.t.Fatal(err)
	}
	creds, err := rpc.LoadTLS(file+".ca", file+".crt", file+".key")
	if err != nil {
		r.p.t.Fatal(err)
	}
	return creds
}

func TestAHostThatWasOffWhileTheRootChangedIsToldByARenewal(t *testing.T) {
	p := newFleet(t)
	r := p.rotated()
	list, err := r.fresh.SignRevocations(7, map[string]time.Time{"abc": time.Now()}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	// The controller's main port knows nothing of the old root; the other one can show
	// itself to who knows nothing else.
	e := &enroller{roots: r.bundle, list: list.PEM(), issuing: r.fresh}
	at := p.enrols(e, func() *rpc.Credentials {
		creds := r.of(r.fresh, rpc.RoleController, "c1", r.bundle)
		creds.SetBetween(append(r.old.Certificates(), r.fresh.Certificates()...))
		return creds
	})
	main := p.serve(r.of(r.fresh, rpc.RoleController, "c1", r.bundle), &trustv1.Trust{Roots: r.bundle, Revocations: list.PEM()})
	creds := r.of(r.old, rpc.RoleAgent, "pve1", p.ca.Cert())
	tr, cfg := p.trusting(creds)
	if err := tr.remember(known{Name: "c1", Address: main, Enrol: at}); err != nil {
		t.Fatal(err)
	}
	tr.begin(t.Context())
	if roots, err := creds.Roots(); err != nil || string(roots) != string(r.bundle) || !creds.BelowAll() {
		t.Fatalf("%s, %v", roots, err)
	}
	if creds.Revocations().Number() != 7 || !tr.wasTold() {
		t.Errorf("list %d", creds.Revocations().Number())
	}
	if keys, err := gossip.ReadKeys(cfg.GossipKeys); err != nil || keys[0][0] != 7 {
		t.Errorf("the gossip's keys did not come along: %v", err)
	}
	// From now on the main port is enough.
	before := rpc.Serial(creds.Leaf())
	if err := tr.settle(t.Context()); err != nil || rpc.Serial(creds.Leaf()) != before {
		t.Errorf("asked again: %v", err)
	}
}

func TestAnAgentThatIsToldOfAnotherRootRenewsAtOnce(t *testing.T) {
	p := newFleet(t)
	r := p.rotated()
	creds := r.of(r.old, rpc.RoleAgent, "pve1", p.ca.Cert())
	tr, _ := p.trusting(creds)
	both := rpc.EncodeBundle(1, []*x509.Certificate{p.ca.Certificate(), r.next.Certificate()})
	if err := tr.take(&trustv1.Trust{Roots: both}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-tr.roots:
	default:
		t.Error("nobody is told")
	}
	if creds.BelowAll() {
		t.Error("it has nothing to renew")
	}
	// Without a certificate below it the new root alone is not taken: nobody would know us.
	if err := tr.take(&trustv1.Trust{Roots: r.bundle}); rpc.KindOf(err) != rpc.ErrRefused {
		t.Errorf("%v", err)
	}
}
