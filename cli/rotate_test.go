package cli

import (
	"context"
	"crypto/hmac"
	"crypto/x509"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	"github.com/homeiac/homelab/internal/mark"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/rpc/rpctest"
)

// change is how the fake controller goes from one root to another.
type change struct {
	r       *rig
	key     []byte // for the proofs
	issuing *rpc.CA
	next    *x509.Certificate // the root that was offered
	vouched bool
	fail    error // what the next AddRoot ends with
	waits   []*controllerv1.TrustHolder
	forced  bool
}

// rotating is a fleet with a root beside hlctl's configuration, and a fleet's key.
func (r *rig) rotating(passphrase string) *change {
	r.t.Helper()
	fleet := strings.TrimSpace(string(randomKey()))
	r.write(fleetKeyFile, fleet)
	key, err := mark.ParseKey([]byte(fleet))
	if err != nil {
		r.t.Fatal(err)
	}
	c := &change{r: r, key: key.Derive(introduction)}
	if c.issuing, err = r.ca.NewIssuing("controller-1", time.Hour, time.Now()); err != nil {
		r.t.Fatal(err)
	}
	if err := r.ca.Write(r.path(rootCertFile), r.path(rootKeyFile)); err != nil {
		r.t.Fatal(err)
	}
	if passphrase != "" {
		rpctest.Seal(r.t, r.path(rootKeyFile), []byte(passphrase))
	}
	r.change = c
	c.tell(r.ca.Certificate())
	return c
}

// tell has hlctl trust show these roots.
func (c *change) tell(roots ...*x509.Certificate) {
	c.r.trust = new(controllerv1.TrustResponse)
	for _, root := range roots {
		c.r.trust.Authorities = append(c.r.trust.Authorities, &controllerv1.CertificateStatus{Role: "root", Name: root.Subject.CommonName, Sha256: rpc.RootHash(root)})
	}
}

// show gives the controller a certificate below the roots, and has it trust them.
func (c *change) show(number int64, roots ...*x509.Certificate) []byte {
	pair, err := c.issuing.Below(roots).Issue(rpc.Identity{Role: rpc.RoleController, Name: "controller-1"}, time.Hour, time.Now())
	if err == nil {
		err = pair.Write(c.r.path("controller.pem"), c.r.path("controller.key"))
	}
	bundle := rpc.EncodeBundle(number, roots)
	if err == nil {
		err = os.WriteFile(c.r.path("server.pem"), bundle, 0o600)
	}
	if err != nil {
		c.r.t.Error(err)
	}
	c.tell(roots...)
	return bundle
}

func (f *fake) OfferRoot(_ context.Context, req *controllerv1.OfferRootRequest) (*controllerv1.OfferRootResponse, error) {
	c := f.change
	roots, err := rpc.ParseRoots(req.GetRoot(), "homelab")
	if err != nil {
		return nil, err
	}
	c.next = roots[0]
	if !hmac.Equal(req.GetProof(), rpc.OfferProof(c.key, c.next)) {
		return nil, rpc.Errorf(rpc.ErrDenied, "not with the fleet's key")
	}
	c.vouched = rpc.Vouched(c.r.ca.Certificate(), c.next, req.GetVoucher())
	cert := rpc.EncodeCertificates(c.issuing.Certificates()[:1])
	return &controllerv1.OfferRootResponse{
		Issuing: []*controllerv1.IssuingCertificate{{Controller: "controller-1", Certificate: cert}},
		Proof:   rpc.IssuingProof(c.key, c.next, map[string][]byte{"controller-1": cert}),
	}, nil
}

func (f *fake) AddRoot(_ context.Context, req *controllerv1.AddRootRequest) (*controllerv1.AddRootResponse, error) {
	c := f.change
	if err := c.fail; err != nil {
		c.fail = nil
		return nil, err
	}
	cert, err := parseCert(req.GetIssuing()[0].GetCertificate())
	if err == nil && len(c.issuing.Certificates()) == 1 {
		c.issuing, err = c.issuing.With(cert)
	}
	if err != nil {
		return nil, err
	}
	return &controllerv1.AddRootResponse{Roots: c.show(1, c.r.ca.Certificate(), c.next), Holders: []*controllerv1.TrustHolder{
		{Holder: "admin@laptop", State: controllerv1.TrustState_TRUST_STATE_PERSON},
		{Holder: "agent@pve1", State: controllerv1.TrustState_TRUST_STATE_RENEWED},
		{Holder: "agent@pve2", State: controllerv1.TrustState_TRUST_STATE_OFF},
	}}, nil
}

func (f *fake) DropRoots(_ context.Context, req *controllerv1.DropRootsRequest) (*controllerv1.DropRootsResponse, error) {
	c := f.change
	if req.GetSha256() != rpc.RootHash(c.next) {
		return nil, rpc.Errorf(rpc.ErrNotFound, "the root that is to stay is not trusted")
	}
	c.forced = req.GetForce()
	if len(c.waits) > 0 && !c.forced {
		return &controllerv1.DropRootsResponse{Holders: c.waits}, nil
	}
	return &controllerv1.DropRootsResponse{Dropped: true, Roots: c.show(2, c.next), Holders: c.waits}, nil
}

// roots are those in a file.
func (r *rig) roots(name string) []*x509.Certificate {
	r.t.Helper()
	data, err := os.ReadFile(r.path(name))
	if err != nil {
		r.t.Fatal(err)
	}
	roots, err := rpc.ParseRoots(data, "homelab")
	if err != nil {
		r.t.Fatal(err)
	}
	return roots
}

func TestTheRootGivesWayToAnotherStepByStep(t *testing.T) {
	r := newRig(t)
	c := r.rotating("")
	old := r.ca.Certificate()
	// Signed below the old root until that goes.
	var err error
	if r.revoked, err = r.ca.SignRevocations(3, map[string]time.Time{"abc": time.Now()}, time.Now()); err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(r.path("admin.key"))
	if err != nil {
		t.Fatal(err)
	}
	got := r.run("trust", "rotate-ca")
	wants(t, got, 0, "1. The new root is", "2. All controllers answer: controller-1", "have a certificate of the new root: agent@pve1",
		"are off; they get one when they come back: agent@pve2", "4. You have a new certificate", "5. The old root is trusted no more")
	if strings.Contains(got.out, "must be given one") {
		t.Errorf("it gives itself one: %s", got.out)
	}
	if !c.vouched || c.forced {
		t.Errorf("vouched %v, forced %v", c.vouched, c.forced)
	}
	kept := "root-ca-" + rpc.RootHash(old)[:8]
	if root, was := r.roots(rootCertFile), r.roots(kept+".pem"); !root[0].Equal(c.next) || !was[0].Equal(old) {
		t.Error("the root's files are not the new one's, or the old one's are gone")
	}
	for _, name := range []string{rootKeyFile, kept + ".key", "admin.pem", "admin-old.pem", "ca.pem"} {
		if fi, err := os.Stat(r.path(name)); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, fi, err)
		}
	}
	if left, _ := filepath.Glob(r.path("*-next*")); len(left) > 0 {
		t.Errorf("left: %s", left)
	}
	if roots := r.roots("ca.pem"); len(roots) != 1 || !roots[0].Equal(c.next) {
		t.Errorf("%d roots are trusted", len(roots))
	}
	if now, err := os.ReadFile(r.path("admin.key")); err != nil || string(now) != string(key) {
		t.Error("the key changed")
	}
	wants(t, r.run("version"), 0, "controller-1")
}

func TestARotationThatWasCutOffGoesOnWithTheSameRoot(t *testing.T) {
	r := newRig(t)
	c := r.rotating("")
	c.fail = rpc.Errorf(rpc.ErrUnavailable, "not all controllers answer: controller-2")
	wants(t, r.run("trust", "rotate-ca"), 1, "controller-2")
	first := c.next
	// A viewer, who has to get a certificate.
	c.waits = []*controllerv1.TrustHolder{{Holder: "viewer@tv", State: controllerv1.TrustState_TRUST_STATE_PERSON}}
	got := r.run("trust", "rotate-ca", "-o", "json")
	var doc rotationDoc
	if err := json.Unmarshal([]byte(got.out), &doc); err != nil || got.code != 3 {
		t.Fatalf("%+v, %v", got, err)
	}
	if !c.next.Equal(first) || doc.Root.SHA256 != rpc.RootHash(first) || doc.Dropped || len(doc.WaitsFor) != 1 || doc.WaitsFor[0] != "viewer@tv" || len(doc.Kept) != 2 {
		t.Errorf("%+v", doc)
	}
	if n := len(r.roots("ca.pem")); n != 2 {
		t.Errorf("%d roots are trusted meanwhile", n)
	}
	// What is made meanwhile is of the new root.
	wants(t, r.run("trust", "renew"), 0, "new certificate")
	wants(t, r.run("trust", "rotate-ca"), 3, "The old root is trusted still", "must be given one: viewer@tv", "--finish")
	// Another machine of an admin's, whose certificate is of before.
	r.issue("admin", rpc.Identity{Role: rpc.RoleAdmin, Name: "laptop"}, time.Hour)
	wants(t, r.run("trust", "rotate-ca", "--finish"), 1, "would shut you out", "hlctl trust renew")
	wants(t, r.run("trust", "renew"), 0, "new certificate")
	if c.forced {
		t.Error("it was ended")
	}
	wants(t, r.run("trust", "rotate-ca", "--finish"), 0, "trusted no more")
	// Said twice, or when the answer was lost.
	root := r.roots(rootCertFile)[0]
	succeeds(t, r.run("trust", "rotate-ca", "--finish"), "trusted no more", "nothing to finish")
	if !r.roots(rootCertFile)[0].Equal(root) {
		t.Error("another root was made")
	}
	if !c.forced || len(r.roots("ca.pem")) != 1 {
		t.Error("it was not ended")
	}
}

func TestARotationGoesOnWhereTheFilesWereBeingRenamed(t *testing.T) {
	for _, cut := range []string{"after the key", "before its certificate was written"} {
		t.Run(cut, func(t *testing.T) {
			r := newRig(t)
			c := r.rotating("")
			if cut == "after the key" {
				c.waits = []*controllerv1.TrustHolder{{Holder: "viewer@tv", State: controllerv1.TrustState_TRUST_STATE_PERSON}}
				wants(t, r.run("trust", "rotate-ca"), 3, "trusted still")
				c.waits = nil
				// The certificate as it was before, and the new one under its first name.
				if err := os.Rename(r.path(rootCertFile), r.path("root-ca-next.pem")); err != nil {
					t.Fatal(err)
				}
				r.write(rootCertFile, string(r.ca.Cert()))
			} else {
				r.write("root-ca-next.key", "half")
			}
			wants(t, r.run("trust", "rotate-ca"), 0, "trusted no more")
			if root := r.roots(rootCertFile); !root[0].Equal(c.next) {
				t.Error("the root's certificate is not the new one's")
			}
			if _, err := rpc.LoadCA(r.path(rootCertFile), r.path(rootKeyFile), nil); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestWhoHasNotTheFleetsKeyGetsNothingSignedByTheNewRoot(t *testing.T) {
	r := newRig(t)
	c := r.rotating("")
	wants(t, r.run("trust", "rotate-ca", "--fleet-key", r.path("elsewhere")), 1, "elsewhere is not there", "--fleet-key")
	c.key = []byte("guessed")
	wants(t, r.run("trust", "rotate-ca"), 1, "not with the fleet's key")
	if len(c.issuing.Certificates()) != 1 {
		t.Error("the issuing CA was signed")
	}
}

func TestTheNewRootHasThePassphraseOfTheOldOne(t *testing.T) {
	r := newRig(t)
	r.rotating("correct horse")
	got := r.runWith(t.Context(), strings.NewReader("correct horse\n"), nil, "trust", "rotate-ca")
	wants(t, got, 0, "trusted no more")
	if _, err := rpc.LoadCA(r.path(rootCertFile), r.path(rootKeyFile), nil); rpc.KindOf(err) != rpc.ErrDenied {
		t.Errorf("without a passphrase: %v", err)
	}
	if _, err := rpc.LoadCA(r.path(rootCertFile), r.path(rootKeyFile), []byte("correct horse")); err != nil {
		t.Error(err)
	}
}

func TestARootWhoseKeyIsLostIsReplacedWithoutItsWord(t *testing.T) {
	r := newRig(t)
	c := r.rotating("")
	if err := os.Remove(r.path(rootKeyFile)); err != nil {
		t.Fatal(err)
	}
	wants(t, r.run("trust", "rotate-ca"), 0, "root-ca.key is not there", "trusted no more")
	if c.vouched {
		t.Error("vouched for without the key")
	}
}

// The root changes at another machine, whose files this one has not.
func TestWhoHasTheOldRootIsNotToldThatItIsTheOnlyOne(t *testing.T) {
	r := newRig(t)
	c := r.rotating("")
	next, err := rpc.NextCA(r.ca.Certificate(), time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c.next = next.Certificate()
	c.tell(r.ca.Certificate(), c.next)
	got := r.run("trust", "rotate-ca", "--finish")
	fails(t, got, "the root that is to stay is not trusted")
	if strings.Contains(got.out, "only root") {
		t.Error(got.out)
	}
}

// It was taken back and not removed, so that nobody took its address out.
func TestARotationNamesTheAddressThatNobodyAnswersAt(t *testing.T) {
	r := newRig(t)
	r.rotating("")
	const gone = "127.0.0.1:9" // discard: nothing listens there
	conf, err := os.ReadFile(r.path("hlctl.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	r.write("hlctl.yaml", strings.ReplaceAll(string(conf), `["`, `["`+gone+`", "`))
	fails(t, r.run("trust", "rotate-ca"), "at "+gone, "nothing of yours was changed", "take the address out of DIR/hlctl.yaml")
	r.write("hlctl.yaml", string(conf))
	succeeds(t, r.run("trust", "rotate-ca"), "The old root is trusted no more.")
}
