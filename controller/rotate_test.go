package controller

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/homeiac/homelab/controller/store"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	trustv1 "github.com/homeiac/homelab/gen/homelab/trust/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// twoLevels gives each agent and the controller a bundle of its own and a certificate of
// the issuing CA, which lies in files, as in a fleet that init made.
func (f *fleet) twoLevels(clk *clock) {
	f.enrolling(clk)
	cert, key := filepath.Join(f.dir, "issuing-ca.pem"), filepath.Join(f.dir, "issuing-ca.key")
	issuing := must(f.ca.NewIssuing("controller-1", 3*365*24*time.Hour, clk.now()))
	if err := issuing.Write(cert, key); err != nil {
		f.t.Fatal(err)
	}
	f.tune = func(c *Controller) {
		c.cfg.GossipKeys, c.cfg.IssuingCA, c.cfg.IssuingKey = filepath.Join(f.dir, "gossip.keys"), cert, key
		c.now, c.creds.Now = clk.now, clk.now
		c.useIssuing(must(loadIssuing(c.cfg, fleetName)))
	}
	own := func(role, name string) {
		pair := must(issuing.Issue(rpc.Identity{Role: role, Name: name}, time.Hour, clk.now()))
		if err := pair.Write(filepath.Join(f.dir, name+".pem"), filepath.Join(f.dir, name+".key")); err != nil {
			f.t.Fatal(err)
		}
		f.write(name+".roots", f.ca.Cert())
	}
	own(rpc.RoleController, "controller-1")
	for name := range f.agents {
		f.stop(name)
		own(rpc.RoleAgent, name)
		f.start(name)
	}
	for _, name := range []string{"admin-1", "viewer-1"} {
		f.write(name+".roots", f.ca.Cert())
	}
}

// follow is what an agent does when it is told of other roots.
func (a *fakeAgent) follow(told *trustv1.Trust) error {
	if _, err := a.goesBy().SetRoots(told.GetRoots()); err != nil {
		return err
	}
	if a.goesBy().BelowAll() || told.GetController().GetEnrol() == "" {
		return nil
	}
	return a.renew(context.Background(), told.GetController().GetEnrol())
}

func (a *fakeAgent) renew(ctx context.Context, at string) error {
	conn, err := rpc.DialEnrol(at, nil, a.goesBy())
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	resp, err := trustv1.NewEnrolServiceClient(conn).Renew(ctx, &trustv1.RenewRequest{})
	if err == nil {
		_, err = a.goesBy().Adopt(resp.GetCertificate(), resp.GetTrust().GetRoots())
	}
	return err
}

// admin carries a rotation out, as hlctl does.
type admin struct {
	f    *fleet
	next *rpc.CA
	key  []byte // for the proofs
}

func (f *fleet) rotating(clk *clock) admin {
	old := f.ca.Certificate()
	return admin{f, must(rpc.NextCA(old, 10*365*24*time.Hour, clk.now())), f.key().Derive(introduction)}
}

func (a admin) hash() string { return rpc.RootHash(a.next.Certificate()) }

func (a admin) offer(c controllerv1.ControllerServiceClient) (*controllerv1.OfferRootResponse, error) {
	root := a.next.Certificate()
	return c.OfferRoot(a.f.t.Context(), &controllerv1.OfferRootRequest{
		Root: a.next.Cert(), Voucher: must(a.f.ca.Vouch(root)), Proof: rpc.OfferProof(a.key, root),
	})
}

// give is the new root's certificate for an issuing CA that was offered.
func (a admin) give(issuing *controllerv1.IssuingCertificate, clk *clock) []byte {
	cert := must(a.next.Recertify(must(certificateIn(issuing.GetCertificate())), 365*24*time.Hour, clk.now()))
	return rpc.EncodeCertificates([]*x509.Certificate{cert})
}

func (a admin) add(c controllerv1.ControllerServiceClient, offered *controllerv1.OfferRootResponse, clk *clock) (*controllerv1.AddRootResponse, error) {
	req := &controllerv1.AddRootRequest{Sha256: a.hash()}
	for _, i := range offered.GetIssuing() {
		req.Issuing = append(req.Issuing, &controllerv1.IssuingCertificate{Controller: i.GetController(), Certificate: a.give(i, clk)})
	}
	return c.AddRoot(a.f.t.Context(), req)
}

func states(all []*controllerv1.TrustHolder) map[string]string {
	m := make(map[string]string)
	for _, h := range all {
		m[h.GetHolder()] = strings.ToLower(strings.TrimPrefix(h.GetState().String(), "TRUST_STATE_"))
	}
	return m
}

// people gives a person a certificate of a root, and the bundle.
func (f *fleet) person(ca *rpc.CA, role, name string, roots []byte, now time.Time) {
	pair := must(ca.Issue(rpc.Identity{Role: role, Name: name}, time.Hour, now))
	if err := pair.Write(filepath.Join(f.dir, name+".pem"), filepath.Join(f.dir, name+".key")); err != nil {
		f.t.Fatal(err)
	}
	f.write(name+".roots", roots)
}

func TestARootGivesWayToAnotherAndNobodyIsLost(t *testing.T) {
	f := newFleet(t, "pve1", "pve2", "pve3")
	clk := &clock{t: time.Now()}
	f.twoLevels(clk)
	c := f.up()
	c.revokeNow(t, unknown)
	f.within(1, "pve1", "pve2", "pve3")
	f.stop("pve3")
	lost := f.creds("pve3")
	if _, err := c.viewer.Version(t.Context(), &controllerv1.VersionRequest{}); err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(must(c.client.Trust(t.Context(), &controllerv1.TrustRequest{})).String(), `"viewer-1"`) {
	}
	a := f.rotating(clk)
	offered, err := a.offer(c.client)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(offered.GetProof(), rpc.IssuingProof(a.key, a.next.Certificate(), map[string][]byte{"controller-1": offered.GetIssuing()[0].GetCertificate()})) {
		t.Error("the controllers' CAs are not vouched for")
	}
	if n := len(must(c.roots())); n != 1 {
		t.Errorf("%d roots before one was added", n)
	}
	for range 2 { // again, the answer being lost
		added, err := a.add(c.client, offered, clk)
		if err != nil {
			t.Fatal(err)
		}
		got := states(added.GetHolders())
		want := map[string]string{"controller@controller-1": "renewed", "agent@pve1": "renewed", "agent@pve2": "renewed", "agent@pve3": "off", "admin@admin-1": "person", "viewer@viewer-1": "person"}
		for who, state := range want {
			if got[who] != state {
				t.Errorf("%s is %q, want %q: %v", who, got[who], state, got)
			}
		}
	}
	// The old admin certificate is good as long as the old root is, which is not dropped
	// while somebody would be shut out.
	dropped, err := c.client.DropRoots(t.Context(), &controllerv1.DropRootsRequest{Sha256: a.hash()})
	if err != nil || dropped.GetDropped() {
		t.Fatalf("dropped %v, %v", dropped.GetDropped(), err)
	}
	f.person(a.next, rpc.RoleAdmin, "admin-1", a.next.Cert(), clk.now())
	me := c.dial("admin-1", f)
	dropped, err = me.DropRoots(t.Context(), &controllerv1.DropRootsRequest{Sha256: a.hash()})
	if err != nil || dropped.GetDropped() || states(dropped.GetHolders())["admin@admin-1"] != "renewed" {
		t.Fatalf("with a viewer left: dropped %v, %v: %v", dropped.GetDropped(), err, states(dropped.GetHolders()))
	}
	dropped, err = me.DropRoots(t.Context(), &controllerv1.DropRootsRequest{Sha256: a.hash(), Force: true})
	if err != nil || !dropped.GetDropped() {
		t.Fatalf("dropped %v, %v: %v", dropped.GetDropped(), err, states(dropped.GetHolders()))
	}
	if err := errors.Join(f.reach(c, "pve1"), f.reach(c, "pve2")); err != nil {
		t.Error(err)
	}
	if _, err := c.dial("viewer-1", f).Version(t.Context(), &controllerv1.VersionRequest{}); !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("a viewer below the old root: %v", err)
	}
	// Back after all that, and after the end of its certificate.
	clk.add(40 * 24 * time.Hour)
	if err := c.renewOwn(t.Context()); err != nil {
		t.Fatal(err)
	}
	lost.Now = clk.now
	late := &fakeAgent{f: f, name: "pve3", creds: lost}
	if err := late.renew(t.Context(), c.enrolAt); err != nil {
		t.Fatal(err)
	}
	if !lost.BelowAll() || len(must(rpc.ParseRoots(must(lost.Roots()), fleetName))) != 1 {
		t.Error("it is not below the new root alone")
	}
	if changed, err := lost.Revoke(c.creds.Revocations().PEM()); err != nil || !changed {
		t.Errorf("the list of revoked certificates: %v", err)
	}
	conn := must(rpc.Dial(rpc.Target{Address: c.address, Role: rpc.RoleController, Credentials: lost}))
	defer conn.Close()
	if _, err := trustv1.NewTrustServiceClient(conn).Present(t.Context(), &trustv1.PresentRequest{}); err != nil {
		t.Errorf("with what it was given: %v", err)
	}
}

func (f *fleet) reach(c *running, host string) error {
	client, err := c.agents.client(host, f.agents[host].address)
	if err != nil {
		return err
	}
	_, err = client.Observe(f.t.Context(), &agentv1.ObserveRequest{}, grpc.WaitForReady(true))
	return err
}

func TestARotationGoesOnWhereverTheControllerWasKilled(t *testing.T) {
	f := newFleet(t, "pve1", "pve2")
	clk := &clock{t: time.Now()}
	f.twoLevels(clk)
	a := f.rotating(clk)
	c := f.up()
	again := func() { c.kill(); c = f.up() }
	offered := must(a.offer(c.client))
	again()
	// The certificate of the issuing CA is given, and nothing more.
	if err := c.store.PutGiven(t.Context(), "controller-1", a.give(offered.GetIssuing()[0], clk)); err != nil {
		t.Fatal(err)
	}
	again()
	if n := len(c.issuing.whole().Certificates()); n != 2 {
		t.Errorf("the issuing CA has %d certificates", n)
	}
	// It has another certificate by the next time.
	if _, err := a.add(c.client, must(a.offer(c.client)), clk); err != nil {
		t.Fatal(err)
	}
	f.person(a.next, rpc.RoleAdmin, "admin-1", must(c.creds.Roots()), clk.now())
	again()
	if !c.creds.BelowAll() || len(must(c.roots())) != 2 {
		t.Error("the controller is not below both roots")
	}
	for range 2 {
		resp, err := c.client.DropRoots(t.Context(), &controllerv1.DropRootsRequest{Sha256: a.hash(), Force: true})
		if err != nil || !resp.GetDropped() {
			t.Fatalf("%v, %v", resp, err)
		}
		f.person(a.next, rpc.RoleAdmin, "admin-1", a.next.Cert(), clk.now())
		again()
	}
	if err := errors.Join(f.reach(c, "pve1"), f.reach(c, "pve2")); err != nil {
		t.Error(err)
	}
	// A store of before, or of somebody else, brings the old root back as little as a lost one.
	c.kill()
	if err := os.RemoveAll(filepath.Join(f.dir, "state", "store")); err != nil {
		t.Fatal(err)
	}
	c = f.up()
	if roots := must(c.roots()); len(roots) != 1 || !roots[0].Equal(a.next.Certificate()) {
		t.Errorf("%d roots", len(roots))
	}
	if _, err := c.putRoots(t.Context(), rpc.EncodeBundle(1, []*x509.Certificate{f.ca.Certificate(), a.next.Certificate()}), must2(c.store.Roots(t.Context()))); err != nil {
		t.Fatal(err)
	}
	if err := c.syncTrust(t.Context()); err != nil || len(must(c.roots())) != 1 {
		t.Errorf("an older bundle in the store: %d roots, %v", len(must(c.roots())), err)
	}
}

// What was seen with two controllers: one told an agent of the new root, and the other,
// which had not heard of it, renewed the agent's certificate below the old one alone.
func TestWhoComesToRenewKnowsOfANewRootBeforeTheControllerDoes(t *testing.T) {
	f := newFleet(t, "pve1")
	clk := &clock{t: time.Now()}
	f.twoLevels(clk)
	c := f.up()
	f.stop("pve1")
	a := f.rotating(clk)
	given := a.give(must(a.offer(c.client)).GetIssuing()[0], clk)
	if err := errors.Join(c.store.PutGiven(t.Context(), "controller-1", given), c.syncTrust(t.Context())); err != nil {
		t.Fatal(err)
	}
	both := []*x509.Certificate{f.ca.Certificate(), a.next.Certificate()}
	host := &fakeAgent{f: f, name: "pve1", creds: f.creds("pve1")}
	func() {
		c.rooting.Lock() // it does not hear of it yet
		defer c.rooting.Unlock()
		if ok, err := c.putRoots(t.Context(), rpc.EncodeBundle(1, both), must2(c.store.Roots(t.Context()))); !ok || err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if err := host.renew(ctx, c.enrolAt); err == nil {
			t.Error("it is renewed by who does not know what is in the store")
		}
		for _, i := range must(c.store.Issued(t.Context())) {
			if strings.HasPrefix(i.How, "renewal") {
				t.Errorf("%s: %s, below %d roots", i.Name, i.How, len(i.Roots))
			}
		}
	}()
	if err := host.renew(t.Context(), c.enrolAt); err != nil {
		t.Fatal(err)
	}
	if !host.creds.BelowAll() || len(must(rpc.ParseRoots(must(host.creds.Roots()), fleetName))) != 2 {
		t.Error("the agent is not below both roots")
	}
}

func TestACertificateThatIsSignedWhileTheRootsChangeIsRememberedBelowBoth(t *testing.T) {
	f := newFleet(t, "pve1")
	clk := &clock{t: time.Now()}
	f.twoLevels(clk)
	c := f.up()
	a := f.rotating(clk)
	given := must(a.next.Recertify(c.issuing.whole().Certificate(), 365*24*time.Hour, clk.now()))
	both := []*x509.Certificate{f.ca.Certificate(), a.next.Certificate()}
	undo := c.issuing.signWith(must(c.issuing.whole().With(given)).Below(both), both)
	id := rpc.Identity{Role: rpc.RoleAgent, Name: "pve1"}
	if _, i, err := c.sign(c.creds.Public(), id, nil, "test"); err != nil || !slices.Contains(i.Roots, a.hash()) || len(i.Roots) != 2 {
		t.Errorf("below %q, %v", i.Roots, err)
	}
	undo()
	if _, i, err := c.sign(c.creds.Public(), id, nil, "test"); err != nil || !slices.Equal(i.Roots, []string{rpc.RootHash(both[0])}) {
		t.Errorf("when it came to nothing: below %q, %v", i.Roots, err)
	}
}

func must2[A, B any](_ A, b B, err error) B { return must(b, err) }

// Nobody speaks to a controller whose list cannot be verified: not even the admin whose
// rotation was cut off before step 4, and who could go on with it no more.
func TestWhatIsRevokedWhileTheRootChangesIsForThoseOfEitherRoot(t *testing.T) {
	f := newFleet(t, "pve1", "pve2")
	clk := &clock{t: time.Now()}
	f.twoLevels(clk)
	c := f.up()
	a := f.rotating(clk)
	c.revokeNow(t, unknown)
	known := func(when string) {
		t.Helper()
		for who, creds := range map[string]*rpc.Credentials{"the old root": f.creds("admin-1"), "the new one": f.creds("viewer-1")} {
			if _, err := creds.Revoke(c.creds.Revocations().PEM()); err != nil {
				t.Errorf("%s: who knows %s only: %v", when, who, err)
			}
		}
	}
	if _, err := a.add(c.client, must(a.offer(c.client)), clk); err != nil {
		t.Fatal(err)
	}
	f.person(a.next, rpc.RoleViewer, "viewer-1", a.next.Cert(), clk.now())
	known("what was revoked before")
	c.revokeNow(t, f.serial("pve2"))
	known("what was revoked meanwhile")
}

// It has its issuing CA still, and a change of roots has every controller renew.
func TestAControllerThatIsTakenBackStaysSoWhileTheRootChanges(t *testing.T) {
	f := newFleet(t, "pve1")
	clk := &clock{t: time.Now()}
	f.twoLevels(clk)
	f.write("controller-1.roots", f.ca.Cert())
	before := make(map[string][]byte)
	for _, name := range []string{"controller-1.pem", "controller-1.roots"} {
		before[name] = must(os.ReadFile(filepath.Join(f.dir, name)))
	}
	revoked := f.serial("controller-1")
	c := f.up()
	a := f.rotating(clk)
	if _, err := a.add(c.client, must(a.offer(c.client)), clk); err != nil {
		t.Fatal(err)
	}
	other := must(f.ca.NewIssuing("controller-2", time.Hour, clk.now()))
	list := must(other.SignRevocations(1, map[string]time.Time{revoked: clk.now()}, clk.now()))
	if ok, err := c.store.PutRevocations(t.Context(), list.PEM(), 0); !ok || err != nil {
		t.Fatal(ok, err)
	}
	c.kill()
	// As one that was off all the while.
	for name, data := range before {
		f.write(name, data)
	}
	again := newController(c.cfg, "test", c.log, f.creds("controller-1"), f.key(), f)
	f.tune(again)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- again.Run(ctx) }()
	select {
	case err := <-ended:
		if !errors.Is(err, rpc.ErrInvalid) || !strings.Contains(err.Error(), "was taken back") {
			t.Error(err)
		}
	case <-again.listens:
		t.Errorf("it serves, with certificate %s in the place of %s", rpc.Serial(again.creds.Leaf()), revoked)
		cancel()
		t.Log(<-ended)
	}
	if f.serial("controller-1") != revoked {
		t.Error("it has renewed its certificate")
	}
}

func TestWhoStoleTheOldRootsKeyGetsNothingAfterwards(t *testing.T) {
	f := newFleet(t, "pve1")
	clk := &clock{t: time.Now()}
	f.twoLevels(clk)
	c := f.up()
	// Before, the thief is whoever they like, but no rotation is theirs.
	thief := admin{f, must(rpc.NextCA(f.ca.Certificate(), time.Hour, clk.now().Add(time.Minute))), []byte("guessed")}
	if _, err := thief.offer(c.client); !errors.Is(err, rpc.ErrDenied) || !strings.Contains(err.Error(), "fleet's key") {
		t.Errorf("a root offered without the fleet's key: %v", err)
	}
	known := f.serial("pve1")
	a := f.rotating(clk)
	if _, err := a.add(c.client, must(a.offer(c.client)), clk); err != nil {
		t.Fatal(err)
	}
	was := &controllerv1.DropRootsRequest{Sha256: rpc.RootHash(f.ca.Certificate()), Force: true}
	if _, err := c.client.DropRoots(t.Context(), was); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("the new root is dropped: %v", err)
	}
	f.person(a.next, rpc.RoleAdmin, "admin-1", a.next.Cert(), clk.now())
	if resp, err := c.dial("admin-1", f).DropRoots(t.Context(), &controllerv1.DropRootsRequest{Sha256: a.hash(), Force: true}); err != nil || !resp.GetDropped() {
		t.Fatal(err)
	}
	forge := func(ca *rpc.CA, role, name string) *rpc.Credentials {
		pair := must(ca.Issue(rpc.Identity{Role: role, Name: name}, time.Hour, clk.now()))
		file := filepath.Join(t.TempDir(), "forged")
		if err := errors.Join(pair.Write(file+".pem", file+".key"), os.WriteFile(file+".roots", append(f.ca.Cert(), a.next.Cert()...), 0o600)); err != nil {
			t.Fatal(err)
		}
		return must(rpc.LoadTLS(file+".roots", file+".pem", file+".key"))
	}
	// An issuing CA that looks like the controller's in all but its key.
	posing := must(f.ca.NewIssuing("controller-1", time.Hour, clk.now()))
	for name, creds := range map[string]*rpc.Credentials{
		"an agent of the root":           forge(f.ca, rpc.RoleAgent, "pve1"),
		"an agent of a forged CA":        forge(posing, rpc.RoleAgent, "pve1"),
		"a controller of a forged CA":    forge(posing, rpc.RoleController, "controller-1"),
		"a controller with another name": forge(f.ca, rpc.RoleController, "controller-9"),
	} {
		if _, err := renew(t, c.enrolAt, creds); !errors.Is(err, rpc.ErrDenied) {
			t.Errorf("%s is renewed: %v", name, err)
		}
	}
	admin := forge(f.ca, rpc.RoleAdmin, "admin-1")
	conn := must(rpc.Dial(rpc.Target{Address: c.address, Role: rpc.RoleController, Credentials: admin}))
	defer conn.Close()
	if _, err := controllerv1.NewControllerServiceClient(conn).Version(t.Context(), &controllerv1.VersionRequest{}); !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("an admin of the old root: %v", err)
	}
	// The agent does not take it back, nor a controller below it.
	agent := f.agents["pve1"]
	if _, err := agent.creds.SetRoots(append(f.ca.Cert(), a.next.Cert()...)); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("the old root, told again: %v", err)
	}
	controller := forge(f.ca, rpc.RoleController, "controller-1")
	there := must(rpc.Dial(rpc.Target{Address: agent.address, Role: rpc.RoleAgent, Credentials: controller}))
	defer there.Close()
	if _, err := agentv1.NewAgentServiceClient(there).Observe(t.Context(), &agentv1.ObserveRequest{}); !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("a controller of the old root: %v", err)
	}
	if known == f.serial("pve1") {
		t.Error("pve1 has its old certificate")
	}
}

func TestARootWhoseKeyIsLostGivesWayByAFileOnTheControllersHost(t *testing.T) {
	f := newFleet(t, "pve1")
	clk := &clock{t: time.Now()}
	f.twoLevels(clk)
	c := f.up()
	a := f.rotating(clk)
	root := a.next.Certificate()
	req := &controllerv1.OfferRootRequest{Root: a.next.Cert(), Proof: rpc.OfferProof(a.key, root)}
	if _, err := c.client.OfferRoot(t.Context(), req); !errors.Is(err, rpc.ErrDenied) || !strings.Contains(err.Error(), newRootFile) {
		t.Fatalf("%v", err)
	}
	req.Voucher = must(a.next.Vouch(root))
	if _, err := c.client.OfferRoot(t.Context(), req); !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("it vouches for itself: %v", err)
	}
	f.write(filepath.Join("state", newRootFile), f.ca.Cert())
	if _, err := c.client.OfferRoot(t.Context(), req); !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("another root lies there: %v", err)
	}
	f.write(filepath.Join("state", newRootFile), a.next.Cert())
	if _, err := c.client.OfferRoot(t.Context(), req); err != nil {
		t.Error(err)
	}
}

func TestARotationWithoutAllControllersIsRefusedBeforeAnything(t *testing.T) {
	f := newFleet(t, "pve1")
	clk := &clock{t: time.Now()}
	f.twoLevels(clk)
	tune := f.tune
	f.tune = func(c *Controller) { tune(c); c.pace.agree = 300 * time.Millisecond }
	c := f.up()
	two := store.Issued{Serial: "2c", Name: "controller-2", Role: rpc.RoleController, NotBefore: clk.now(), NotAfter: clk.now().Add(time.Hour)}
	if err := c.store.PutIssued(t.Context(), two); err != nil {
		t.Fatal(err)
	}
	a := f.rotating(clk)
	_, err := a.offer(c.client)
	if !errors.Is(err, rpc.ErrUnavailable) || !strings.Contains(err.Error(), "controller-2") || strings.Contains(err.Error(), "controller-1") {
		t.Errorf("%v", err)
	}
	if n := len(must(c.roots())); n != 1 {
		t.Errorf("%d roots", n)
	}
	c.revokeNow(t, "2c")
	if _, err := a.offer(c.client); err != nil {
		t.Errorf("without the one that is gone for good: %v", err)
	}
	if _, err := c.client.AddRoot(t.Context(), &controllerv1.AddRootRequest{Sha256: "00"}); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("a root that nobody offered: %v", err)
	}
	if _, err := c.client.AddRoot(t.Context(), &controllerv1.AddRootRequest{Sha256: a.hash()}); !errors.Is(err, rpc.ErrUnavailable) {
		t.Errorf("no certificate for controller-1: %v", err)
	}
	if _, err := c.client.DropRoots(t.Context(), &controllerv1.DropRootsRequest{Sha256: a.hash(), Force: true}); !errors.Is(err, rpc.ErrNotFound) {
		t.Errorf("the only root that is trusted: %v", err)
	}
	if n := len(must(c.roots())); n != 1 {
		t.Errorf("%d roots", n)
	}
}

func TestHowFarEachHolderIsWithANewRoot(t *testing.T) {
	now := time.Now()
	cert := func(role, name string, ends time.Duration, roots ...string) store.Issued {
		return store.Issued{Role: role, Name: name, NotAfter: now.Add(ends), Roots: roots}
	}
	got := standing([]store.Issued{
		cert(rpc.RoleAdmin, "gone", -time.Hour), cert(rpc.RoleAdmin, "me", time.Hour, "new"), cert(rpc.RoleAdmin, "me", time.Minute, "old"),
		cert(rpc.RoleAgent, "pve1", time.Hour, "old"), cert(rpc.RoleAgent, "pve2", time.Minute, "old"), cert(rpc.RoleAgent, "pve2", time.Hour, "old", "new"),
		cert(rpc.RoleAgent, "pve3", -time.Hour), cert(rpc.RoleController, "c1", time.Hour), cert(rpc.RoleViewer, "me", time.Hour, "old"),
	}, "new", map[string]bool{"pve1": true, "pve2": true}, now)
	var lines []string
	for _, h := range got {
		lines = append(lines, fmt.Sprintf("%s %s %s", h.GetHolder(), states(got)[h.GetHolder()], h.GetNotAfter().AsTime().Sub(now.UTC()).Round(time.Minute)))
	}
	want := []string{"admin@me renewed 1h0m0s", "agent@pve1 late 1h0m0s", "agent@pve2 renewed 1h0m0s", "agent@pve3 off -1h0m0s", "controller@c1 late 1h0m0s", "viewer@me person 1h0m0s"}
	if !slices.Equal(lines, want) {
		t.Errorf("%q", lines)
	}
}
