package controller

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/homeiac/homelab/controller/store"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	trustv1 "github.com/homeiac/homelab/gen/homelab/trust/v1"
	"github.com/homeiac/homelab/internal/gossip"
	"github.com/homeiac/homelab/internal/rpc"
)

// SetTrust is what an agent does with the list; it keeps it over a restart.
func (a *fakeAgent) SetTrust(_ context.Context, req *agentv1.SetTrustRequest) (*agentv1.SetTrustResponse, error) {
	if err := a.follow(req.GetTrust()); err != nil {
		return nil, err
	}
	if list := req.GetTrust().GetRevocations(); len(list) > 0 {
		if _, err := a.goesBy().Revoke(list); err != nil && !errors.Is(err, rpc.ErrRefused) {
			return nil, err
		}
	}
	if ring := req.GetTrust().GetGossipKeys(); len(ring) > 0 {
		a.f.mu.Lock()
		if n := len(a.rings); n == 0 || !slices.EqualFunc(a.rings[n-1], ring, bytes.Equal) {
			a.rings = append(a.rings, ring)
		}
		a.f.mu.Unlock()
	}
	select {
	case a.f.told <- a.name:
	default:
	}
	return &agentv1.SetTrustResponse{Revocations: a.goesBy().Revocations().PEM()}, nil
}

// revoking makes the controllers of a fleet able to revoke.
func (f *fleet) revoking() {
	issuing, err := f.ca.NewIssuing("controller-1", time.Hour, time.Now())
	if err != nil {
		f.t.Fatal(err)
	}
	f.tune = func(c *Controller) { c.useIssuing(issuing) }
	f.told = make(chan string, 1000)
}

// unknown is the serial number of a certificate that nobody has seen.
const unknown = "abcabcabcabcabcabcabcabcabc"

// toldUntil waits for what holds some time after an agent was told the trust in force, and
// the controller has learned from its answer.
func (c *Controller) toldUntil(holds func() bool) {
	for {
		c.pusher.mu.Lock()
		took := c.pusher.took
		c.pusher.mu.Unlock()
		if holds() {
			return
		}
		<-took
	}
}

func (c *Controller) useIssuing(ca *rpc.CA) {
	if err := c.setIssuing(ca); err != nil {
		panic(err)
	}
}

// serial is that of a certificate of the fleet.
func (f *fleet) serial(name string) string {
	block, _ := pem.Decode(must(os.ReadFile(filepath.Join(f.dir, name+".pem"))))
	return rpc.Serial(must(x509.ParseCertificate(block.Bytes)))
}

// within waits until all named agents have the number, and fails after 5 s.
func (f *fleet) within(number int64, names ...string) {
	f.t.Helper()
	limit := time.After(5 * time.Second)
	for _, name := range names {
		for {
			f.mu.Lock()
			creds := f.agents[name].creds
			f.mu.Unlock()
			if creds.Revocations().Number() >= number {
				break
			}
			select {
			case <-f.told:
			case <-limit:
				f.t.Fatalf("%s has list %d, want %d", name, creds.Revocations().Number(), number)
			}
		}
	}
}

func (r *running) revokeNow(t *testing.T, serial string) *controllerv1.RevokeCertificateResponse {
	t.Helper()
	resp, err := r.client.RevokeCertificate(t.Context(), &controllerv1.RevokeCertificateRequest{Serial: serial})
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func TestWhatIsRevokedIsCutOffEverywhereWithinFiveSeconds(t *testing.T) {
	f := newFleet(t, "pve1", "pve2", "pve3")
	f.revoking()
	c := f.up()
	if _, err := c.viewer.Version(t.Context(), &controllerv1.VersionRequest{}); err != nil {
		t.Fatal(err)
	}
	resp := c.revokeNow(t, f.serial("viewer-1"))
	if resp.GetNumber() != 1 || len(resp.GetSerials()) != 1 {
		t.Errorf("%v", resp)
	}
	// The controller itself, at once.
	_, err := c.viewer.Version(t.Context(), &controllerv1.VersionRequest{})
	for range 20 { // the first may still be on the connection that was cut
		if !errors.Is(err, rpc.ErrUnavailable) {
			break
		}
		_, err = c.viewer.Version(t.Context(), &controllerv1.VersionRequest{})
	}
	if !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("the revoked viewer: %v", err)
	}
	f.within(1, "pve1", "pve2", "pve3")
	if resp := c.revokeNow(t, f.serial("viewer-1")); resp.GetNumber() != 1 || len(resp.GetSerials()) != 0 {
		t.Errorf("again: %v", resp)
	}
	if _, err := c.client.RevokeCertificate(t.Context(), &controllerv1.RevokeCertificateRequest{Serial: "no number"}); !errors.Is(err, rpc.ErrInvalid) {
		t.Errorf("%v", err)
	}
	// Nobody is to believe that a mistyped number has locked somebody out.
	if _, err := c.client.RevokeCertificate(t.Context(), &controllerv1.RevokeCertificateRequest{Serial: "abc"}); !errors.Is(err, rpc.ErrNotFound) {
		t.Errorf("%v", err)
	}
	// An agent that is revoked is spoken to no more.
	c.revokeNow(t, strings.ToUpper(f.serial("pve3")[:10]))
	f.within(2, "pve1", "pve2")
	client, err := c.agents.client("pve3", f.agents["pve3"].address)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Observe(t.Context(), &agentv1.ObserveRequest{}); !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("the revoked agent: %v", err)
	}
}

// A list that its own signer is on would be taken by nobody, and none after it.
func TestAControllerTakesNothingBackThatItStandsOn(t *testing.T) {
	f := newFleet(t, "pve1")
	f.revoking()
	c := f.up()
	for _, r := range []struct {
		name string
		req  *controllerv1.RevokeCertificateRequest
		next string
	}{
		{"the root", &controllerv1.RevokeCertificateRequest{Serial: rpc.Serial(f.ca.Certificate())}, "hlctl trust rotate-ca"},
		{"its issuing CA", &controllerv1.RevokeCertificateRequest{Serial: rpc.Serial(c.issuing.inUse().Certificate())}, "hlctl hosts remove"},
		{"its own certificate", &controllerv1.RevokeCertificateRequest{Serial: f.serial("controller-1")}, "hlctl hosts remove"},
		{"itself by name", &controllerv1.RevokeCertificateRequest{Holder: "controller@controller-1"}, "hlctl hosts remove"},
	} {
		_, err := c.client.RevokeCertificate(t.Context(), r.req)
		if !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), r.next) {
			t.Errorf("%s: %v", r.name, err)
		}
	}
	if n := c.creds.Revocations().Number(); n != 0 {
		t.Errorf("list %d", n)
	}
	c.revokeNow(t, unknown)
	f.within(1, "pve1")
}

// Its connection is cut in the middle, and the call with it.
func TestWhoRevokesItselfIsTakenBackToTheEndAndTheAuditSaysSo(t *testing.T) {
	f := newFleet(t, "pve1")
	f.revoking()
	c := f.up()
	if _, err := c.client.Trust(t.Context(), &controllerv1.TrustRequest{}); err != nil {
		t.Fatal(err)
	}
	_, _ = c.client.RevokeCertificate(t.Context(), &controllerv1.RevokeCertificateRequest{Holder: "admin@admin-1"})
	if !c.creds.Revocations().Has(f.serial("admin-1")) {
		t.Error("it was not taken back")
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		acts := must(c.store.Acts(t.Context(), 1, time.Time{}, ""))
		if len(acts) == 1 && acts[0].Result == store.ResultRunning && time.Now().Before(deadline) {
			continue
		}
		if len(acts) != 1 || acts[0].Result != store.ResultOK {
			t.Errorf("the audit: %+v", acts)
		}
		return
	}
}

// It has the key of an issuing CA, and would sign itself a certificate that is on no list.
func TestAControllerThatIsTakenBackEndsAndStaysSo(t *testing.T) {
	f := newFleet(t, "pve1")
	f.revoking()
	c := f.up()
	// As another controller does it, with the store that they share.
	other := must(f.ca.NewIssuing("controller-2", time.Hour, time.Now()))
	list := must(other.SignRevocations(1, map[string]time.Time{f.serial("controller-1"): time.Now()}, time.Now()))
	if ok, err := c.store.PutRevocations(t.Context(), list.PEM(), 0); !ok || err != nil {
		t.Fatal(ok, err)
	}
	ended := func(when string, err error) {
		if !errors.Is(err, rpc.ErrInvalid) || !strings.Contains(err.Error(), "hlctl hosts add --controller") {
			t.Errorf("%s: %v", when, err)
		}
	}
	select {
	case err := <-c.done:
		c.done = nil
		ended("at work", err)
	case <-time.After(5 * time.Second):
		t.Fatal("it goes on")
	}
	again := newController(c.cfg, "test", c.log, f.creds("controller-1"), f.key(), f)
	f.tune(again)
	ended("after a start", again.Run(t.Context()))
	// The root has changed without it, so that it knows none of those in the store.
	st := must(store.Open(t.Context(), store.Config{Dir: filepath.Join(c.cfg.State, "store"), Fleet: fleetName, Controller: "controller-2", Log: c.log}))
	next := must(rpc.NextCA(f.ca.Certificate(), time.Hour, time.Now()))
	sealed := must(seal(f.key(), rootsPurpose, rpc.EncodeBundle(1, []*x509.Certificate{next.Certificate()})))
	if ok, err := st.PutRoots(t.Context(), sealed, 0); !ok || err != nil {
		t.Fatal(ok, err)
	}
	st.Close()
	again = newController(c.cfg, "test", c.log, f.creds("controller-1"), f.key(), f)
	f.tune(again)
	ended("after a start below another root", again.Run(t.Context()))
}

// It may not have heard yet, and be asked at that moment.
func TestAControllerThatIsTakenBackSignsNoList(t *testing.T) {
	f := newFleet(t, "pve1")
	f.revoking()
	c := f.up()
	c.kill()
	c.store = must(store.Open(t.Context(), store.Config{Dir: filepath.Join(c.cfg.State, "store"), Fleet: fleetName, Controller: "controller-1", Log: c.log}))
	defer c.store.Close()
	now := time.Now()
	other := must(f.ca.NewIssuing("controller-2", time.Hour, now))
	gone := map[string]time.Time{f.serial("controller-1"): now, rpc.Serial(c.issuing.inUse().Certificate()): now}
	list := must(other.SignRevocations(1, gone, now))
	if ok, err := c.store.PutRevocations(t.Context(), list.PEM(), 0); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if _, err := c.revoke(t.Context(), unknown); !errors.Is(err, rpc.ErrInvalid) || !strings.Contains(err.Error(), "was taken back") {
		t.Error(err)
	}
	text, _, err := c.store.Revocations(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := f.creds("admin-1").VerifyRevocations(must(rpc.ParseRevocations(text))); err != nil {
		t.Errorf("nobody can take the list any more: %v", err)
	}
}

// Whoever has the key of a removed controller's issuing CA makes certificates for anybody.
func TestTheIssuingCAOfARemovedControllerGoesWhenNobodyNeedsIt(t *testing.T) {
	f := newFleet(t, "pve1")
	f.revoking()
	c := f.up()
	other := must(f.ca.NewIssuing("controller-2", time.Hour, time.Now()))
	ca := rpc.Serial(other.Certificate())
	told := store.Issuing{Controller: "controller-2", Certificates: other.Cert()}
	now := time.Now().UTC()
	issued := func(serial, role, name, by string, at time.Time) {
		t.Helper()
		err := c.store.PutIssued(t.Context(), store.Issued{Serial: serial, Role: role, Name: name, Issuer: rpc.IssuingName(by, fleetName), NotBefore: at, NotAfter: at.Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := c.store.PutIssuing(t.Context(), told); err != nil {
		t.Fatal(err)
	}
	issued("2c", rpc.RoleController, "controller-2", "controller-2", now)
	issued("1a", rpc.RoleAgent, "pve1", "controller-2", now)
	trust, err := c.client.Trust(t.Context(), &controllerv1.TrustRequest{})
	if err != nil || !slices.ContainsFunc(trust.GetAuthorities(), func(s *controllerv1.CertificateStatus) bool { return s.GetSerial() == ca }) {
		t.Errorf("it is not shown: %v, %v", trust.GetAuthorities(), err)
	}
	remove := func() ([]string, error) {
		resp, err := c.client.RevokeCertificate(t.Context(), &controllerv1.RevokeCertificateRequest{Holder: "controller@controller-2"})
		return resp.GetSerials(), err
	}
	if got, err := remove(); err != nil || !slices.Equal(got, []string{"2c"}) {
		t.Errorf("while pve1 needs it: %v, %v", got, err)
	}
	if _, err := remove(); !errors.Is(err, rpc.ErrNotFound) || !strings.Contains(err.Error(), "agent@pve1") || !strings.Contains(err.Error(), "hlctl trust revoke "+ca) {
		t.Errorf("again: %v", err)
	}
	issued("1b", rpc.RoleAgent, "pve1", "controller-1", now.Add(time.Minute))
	if got, err := remove(); err != nil || !slices.Equal(got, []string{ca}) {
		t.Errorf("when nobody needs it: %v, %v", got, err)
	}
	if _, err := remove(); !errors.Is(err, rpc.ErrNotFound) {
		t.Errorf("again: %v", err)
	}
}

func TestAControllerThatEnrolledWithAnotherStandsOnItsOwnIssuingCA(t *testing.T) {
	f := newFleet(t, "pve1")
	f.revoking()
	id := rpc.Identity{Role: rpc.RoleController, Name: "controller-1"}
	other := must(f.ca.NewIssuing("controller-2", time.Hour, time.Now()))
	if err := must(other.Issue(id, time.Hour, time.Now())).Write(filepath.Join(f.dir, "controller-1.pem"), filepath.Join(f.dir, "controller-1.key")); err != nil {
		t.Fatal(err)
	}
	c := f.up()
	if by := c.creds.Leaf().Issuer.CommonName; by != rpc.IssuingName("controller-1", fleetName) {
		t.Errorf("issued by %q", by)
	}
}

func TestAnAgentThatWasOffIsToldAsSoonAsItAnswers(t *testing.T) {
	f := newFleet(t, "pve1", "pve2")
	f.revoking()
	c := f.up()
	f.stop("pve2")
	c.revokeNow(t, f.serial("viewer-1"))
	f.within(1, "pve1")
	f.start("pve2")
	f.within(1, "pve2")
}

func TestTheListOutlivesTheLossOfTheStore(t *testing.T) {
	for _, c := range []struct{ name, lost string }{{"of the store", "state/store"}, {"of all its state", "state"}} {
		t.Run(c.name, func(t *testing.T) {
			f := newFleet(t, "pve1")
			f.revoking()
			one := f.up()
			one.revokeNow(t, f.serial("viewer-1"))
			f.within(1, "pve1")
			one.kill()
			if err := os.RemoveAll(filepath.Join(f.dir, c.lost)); err != nil {
				t.Fatal(err)
			}
			two := f.up()
			two.toldUntil(func() bool { return two.creds.Revocations().Number() > 0 }) // its own file, or the agent's answer
			// What is revoked next is beside what was.
			two.revokeNow(t, unknown)
			if got := two.creds.Revocations(); !got.Has(unknown) || !got.Has(f.serial("viewer-1")) {
				t.Errorf("list %d: %v", got.Number(), got.Serials())
			}
			f.within(two.creds.Revocations().Number(), "pve1")
		})
	}
}

func TestAControllerThatLostItsListAddsToWhatTheAgentsHave(t *testing.T) {
	f := newFleet(t, "pve1")
	f.revoking()
	issuing := must(f.ca.NewIssuing("controller-2", time.Hour, time.Now()))
	theirs := must(issuing.SignRevocations(7, map[string]time.Time{"def": time.Now()}, time.Now()))
	must(f.agents["pve1"].creds.Revoke(theirs.PEM()))
	f.stop("pve1")
	c := f.up()
	c.revokeNow(t, unknown) // number 1, older than what the agent goes by
	f.start("pve1")
	f.within(8, "pve1")
	if got := f.agents["pve1"].creds.Revocations(); !got.Has(unknown) || !got.Has("def") {
		t.Errorf("list %d: %v", got.Number(), got.Serials())
	}
}

func TestOnlyAgentsAreToldTheGossipKeys(t *testing.T) {
	f := newFleet(t, "pve1")
	f.revoking()
	c := f.up()
	for _, name := range []string{"admin-1", "viewer-1", "controller-1"} {
		conn := must(rpc.Dial(rpc.Target{Address: c.address, Role: rpc.RoleController, Credentials: f.creds(name)}))
		if _, err := trustv1.NewTrustServiceClient(conn).Present(t.Context(), &trustv1.PresentRequest{}); !errors.Is(err, rpc.ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
		_ = conn.Close()
	}
	if _, err := c.viewer.RevokeCertificate(t.Context(), &controllerv1.RevokeCertificateRequest{Serial: "abc"}); !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("viewer revokes: %v", err)
	}
}

func TestARotationOfTheGossipKeyLosesNobodyWhoIsThere(t *testing.T) {
	f := newFleet(t, "pve1", "pve2", "pve3")
	f.enrolling(&clock{t: time.Now()})
	c := f.up()
	f.within(0, "pve1")
	old := must(gossip.ReadKeys(c.cfg.GossipKeys))
	f.stop("pve3")
	for range 2 {
		resp, err := c.client.RotateGossip(t.Context(), &controllerv1.RotateGossipRequest{})
		if err != nil || len(resp.GetLate()) != 0 {
			t.Fatalf("%v, %v", resp, err)
		}
	}
	now := must(gossip.ReadKeys(c.cfg.GossipKeys))
	if len(now) != 1 || bytes.Equal(now[0], old[0]) {
		t.Errorf("%d keys", len(now))
	}
	f.mu.Lock()
	for _, name := range []string{"pve1", "pve2"} {
		rings := f.agents[name].rings
		// From one ring to the next nobody sends with what another cannot receive.
		for i := 1; i < len(rings); i++ {
			has := func(ring [][]byte, key []byte) bool {
				return slices.ContainsFunc(ring, func(k []byte) bool { return bytes.Equal(k, key) })
			}
			if !has(rings[i-1], rings[i][0]) || !has(rings[i], rings[i-1][0]) {
				t.Errorf("%s: ring %d and the one before cannot hear each other", name, i)
			}
		}
		if !slices.EqualFunc(rings[len(rings)-1], now, bytes.Equal) {
			t.Errorf("%s has another ring at the end", name)
		}
	}
	f.mu.Unlock()
	// One that was off gets it when it is back, and so does a controller from the store.
	f.start("pve3")
	for done := false; !done; {
		<-f.told
		f.mu.Lock()
		rings := f.agents["pve3"].rings
		done = len(rings) > 0 && slices.EqualFunc(rings[len(rings)-1], now, bytes.Equal)
		f.mu.Unlock()
	}
	c.kill()
	if err := gossip.WriteKeys(c.cfg.GossipKeys, old); err != nil {
		t.Fatal(err)
	}
	c = f.up()
	if got := must(gossip.ReadKeys(c.cfg.GossipKeys)); !slices.EqualFunc(got, now, bytes.Equal) {
		t.Error("the controller goes by the old key")
	}
	if _, err := c.viewer.RotateGossip(t.Context(), &controllerv1.RotateGossipRequest{}); !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("a viewer: %v", err)
	}
}

func TestARotationDoesNotWaitForWhoIsRevoked(t *testing.T) {
	f := newFleet(t, "pve1", "pve2")
	f.enrolling(&clock{t: time.Now()})
	c := f.up()
	f.within(0, "pve1", "pve2")
	c.revokeNow(t, f.serial("pve2")) // it is alive in the gossip still
	f.within(1, "pve1")
	began := time.Now()
	resp, err := c.client.RotateGossip(t.Context(), &controllerv1.RotateGossipRequest{})
	if err != nil || len(resp.GetLate()) != 0 || time.Since(began) > ringTimeout {
		t.Errorf("%v, %v, after %s", resp, err, time.Since(began))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	now := must(gossip.ReadKeys(c.cfg.GossipKeys))
	for _, ring := range f.agents["pve2"].rings {
		if bytes.Equal(ring[0], now[0]) {
			t.Error("who is revoked was given the new key")
		}
	}
}

func TestTheGossipKeysInTheStoreAreSealed(t *testing.T) {
	f := newFleet(t)
	keys := [][]byte{gossip.NewKey()}
	sealed := must(sealRing(f.key(), keys))
	if bytes.Contains(sealed, keys[0]) {
		t.Error("a key is there to be read")
	}
	if got := must(openRing(f.key(), sealed)); !slices.EqualFunc(got, keys, bytes.Equal) {
		t.Error("another ring came back")
	}
	sealed[len(sealed)-1]++
	for _, bad := range [][]byte{sealed, sealed[:5], nil} {
		if _, err := openRing(f.key(), bad); !errors.Is(err, rpc.ErrInvalid) {
			t.Errorf("%v", err)
		}
	}
}
