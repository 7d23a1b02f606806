package controller

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/homeiac/homelab/controller/store"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	"github.com/homeiac/homelab/internal/pause"
	"github.com/homeiac/homelab/internal/rpc"
)

const (
	// rotateEvery is how often what is waited for is looked at.
	rotateEvery = 100 * time.Millisecond
	// newRootFile in the state folder holds a root that is to be trusted without a word of
	// the old one, whose key is lost: only root on this host can put it there.
	newRootFile = "new-root.pem"
)

// OfferRoot shows a new root to all controllers.
func (s *service) OfferRoot(ctx context.Context, req *controllerv1.OfferRootRequest) (*controllerv1.OfferRootResponse, error) {
	c := s.c
	if c.issuing.inUse() == nil {
		return nil, rpc.Errorf(rpc.ErrUnsupported, "this controller has no issuing CA; a fleet of one level keeps its root")
	}
	given, err := rpc.ParseRoots(req.GetRoot(), c.fleet)
	if err != nil {
		return nil, err
	}
	root, key := given[0], c.signer.key.Derive(introduction)
	if !hmac.Equal(rpc.OfferProof(key, root), req.GetProof()) {
		return nil, rpc.Errorf(rpc.ErrDenied, "the root is not offered by somebody with this fleet's key; say the right file with --fleet-key")
	}
	if err := c.vouchedFor(root, req.GetVoucher()); err != nil {
		return nil, err
	}
	o := offer{ID: rand.Text(), Root: rpc.EncodeCertificates([]*x509.Certificate{root})}
	plain, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	sealed, err := seal(c.signer.key, offerPurpose, plain)
	if err != nil {
		return nil, err
	}
	if err := c.store.PutOffer(ctx, sealed); err != nil {
		return nil, err
	}
	if err := c.syncTrust(ctx); err != nil {
		return nil, err
	}
	all, err := c.awaitControllers(ctx, func(i store.Issuing) bool { return i.Offer == o.ID })
	if err != nil {
		return nil, err
	}
	resp, issuing := new(controllerv1.OfferRootResponse), make(map[string][]byte)
	for _, i := range all {
		certs := certificatesIn(i.Certificates)
		if len(certs) == 0 {
			return nil, rpc.Errorf(rpc.ErrRefused, "controller %s has no issuing CA, and would be shut out", i.Controller)
		}
		text := rpc.EncodeCertificates(certs[:1])
		issuing[i.Controller] = text
		resp.Issuing = append(resp.Issuing, &controllerv1.IssuingCertificate{Controller: i.Controller, Certificate: text})
	}
	resp.Proof = rpc.IssuingProof(key, root, issuing)
	return resp, nil
}

// vouchedFor says what is missing before a root may be trusted: the word of an old one, or
// of root on this host.
func (c *Controller) vouchedFor(root *x509.Certificate, voucher []byte) error {
	roots, err := c.roots()
	if err != nil {
		return err
	}
	for _, old := range roots {
		if old.Equal(root) || rpc.Vouched(old, root, voucher) {
			return nil
		}
	}
	file := filepath.Join(c.cfg.State, newRootFile)
	text, err := os.ReadFile(file)
	if err == nil {
		if given, err := rpc.ParseRoots(text, c.fleet); err == nil && given[0].Equal(root) {
			return nil
		}
	}
	return rpc.Errorf(rpc.ErrDenied, "no root that is trusted vouches for the new one; if its key is lost, put the new certificate on this controller's host as %s", file)
}

// awaitControllers waits until all controllers are as they should be. ErrUnavailable
// names those that are not in time.
func (c *Controller) awaitControllers(ctx context.Context, done func(store.Issuing) bool) ([]store.Issuing, error) {
	var missing []string
	for began := time.Now(); ; {
		known, err := c.controllers(ctx)
		if err != nil {
			return nil, err
		}
		told, err := c.store.Issuing(ctx)
		if err != nil {
			return nil, err
		}
		var all []store.Issuing
		missing = nil
		for _, name := range known {
			i := slices.IndexFunc(told, func(t store.Issuing) bool { return t.Controller == name })
			if i < 0 || !done(told[i]) {
				missing = append(missing, name)
			} else {
				all = append(all, told[i])
			}
		}
		if len(missing) == 0 {
			return all, nil
		}
		if time.Since(began) > c.pace.agree || !pause.For(ctx, rotateEvery) {
			break
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return nil, rpc.Errorf(rpc.ErrUnavailable, "not all controllers answer: %s; start hl-controller there, or if one is gone for good: hlctl trust revoke controller@%s",
		strings.Join(missing, ", "), missing[0])
}

// awaitBelow waits until the issuing CAs of all controllers are below a root too.
func (c *Controller) awaitBelow(ctx context.Context, root *x509.Certificate) error {
	_, err := c.awaitControllers(ctx, func(i store.Issuing) bool { return anyBelow(certificatesIn(i.Certificates), root) })
	return err
}

// controllers are the names of all that are known and not revoked.
func (c *Controller) controllers(ctx context.Context) ([]string, error) {
	all, err := c.inForce(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, i := range all {
		if i.Role == rpc.RoleController && !slices.Contains(names, i.Name) {
			names = append(names, i.Name)
		}
	}
	return names, nil
}

// AddRoot has the root that was offered trusted beside those before.
func (s *service) AddRoot(ctx context.Context, req *controllerv1.AddRootRequest) (*controllerv1.AddRootResponse, error) {
	c := s.c
	if err := c.noteSeen(ctx); err != nil {
		return nil, err
	}
	_, root, err := c.offered(ctx)
	if err != nil {
		return nil, err
	}
	if root == nil || rpc.RootHash(root) != req.GetSha256() {
		return nil, rpc.Errorf(rpc.ErrRefused, "another root was offered in the meantime; again: hlctl trust rotate-ca")
	}
	for _, i := range req.GetIssuing() {
		cert, err := certificateIn(i.GetCertificate())
		if err != nil || cert.CheckSignatureFrom(root) != nil {
			return nil, rpc.Errorf(rpc.ErrInvalid, "the certificate for the issuing CA of controller %s is not one of the new root", i.GetController())
		}
	}
	for _, i := range req.GetIssuing() {
		if err := c.store.PutGiven(ctx, i.GetController(), i.GetCertificate()); err != nil {
			return nil, err
		}
	}
	if err := c.syncTrust(ctx); err != nil {
		return nil, err
	}
	// Before anybody trusts the new root: what is renewed from here on is below both.
	if err := c.awaitBelow(ctx, root); err != nil {
		return nil, err
	}
	err = c.changeRoots(ctx, func(roots []*x509.Certificate) []*x509.Certificate {
		if slices.ContainsFunc(roots, root.Equal) {
			return roots
		}
		return append(roots, root)
	})
	if err != nil {
		return nil, err
	}
	// The list in force is signed below the old root, and there are people from here on who
	// know the new one only.
	if err := c.resign(ctx); err != nil {
		return nil, err
	}
	if _, err := c.pusher.await(ctx, ringTimeout); err != nil {
		return nil, err
	}
	resp := new(controllerv1.AddRootResponse)
	for began := time.Now(); ; {
		if resp.Holders, err = c.standings(ctx, root); err != nil {
			return nil, err
		}
		late := slices.ContainsFunc(resp.GetHolders(), func(h *controllerv1.TrustHolder) bool {
			return h.GetState() == controllerv1.TrustState_TRUST_STATE_LATE
		})
		if !late || time.Since(began) > c.pace.below || !pause.For(ctx, rotateEvery) {
			break
		}
	}
	resp.Roots, err = c.creds.Roots()
	return resp, err
}

// changeRoots has all controllers go by another bundle.
func (c *Controller) changeRoots(ctx context.Context, change func([]*x509.Certificate) []*x509.Certificate) error {
	for range revocationAttempts {
		if err := c.syncTrust(ctx); err != nil {
			return err
		}
		_, version, err := c.storedRoots(ctx)
		if err != nil {
			return err
		}
		bundle, err := c.creds.Roots()
		if err != nil {
			return err
		}
		roots, err := rpc.ParseRoots(bundle, c.fleet)
		if err != nil {
			return err
		}
		next := change(slices.Clone(roots))
		if slices.EqualFunc(next, roots, (*x509.Certificate).Equal) {
			return nil
		}
		changed := rpc.EncodeBundle(rpc.BundleNumber(bundle)+1, next)
		if _, err := rpc.ParseRoots(changed, c.fleet); err != nil {
			return err // too many
		}
		ok, err := c.putRoots(ctx, changed, version)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if err := c.syncTrust(ctx); err != nil {
			return err
		}
		number := rpc.BundleNumber(changed)
		_, err = c.awaitControllers(ctx, func(i store.Issuing) bool { return i.Bundle >= number })
		return err
	}
	return rpc.Errorf(rpc.ErrBusy, "other controllers keep changing the roots; try again")
}

// DropRoots ends the trust in all roots but one.
func (s *service) DropRoots(ctx context.Context, req *controllerv1.DropRootsRequest) (*controllerv1.DropRootsResponse, error) {
	c := s.c
	if err := c.noteSeen(ctx); err != nil {
		return nil, err
	}
	roots, err := c.roots()
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(roots, func(r *x509.Certificate) bool { return rpc.RootHash(r) == req.GetSha256() })
	if i < 0 {
		return nil, rpc.Errorf(rpc.ErrNotFound, "the root that is to stay is not trusted; see: hlctl trust")
	}
	// Until it is gone, whoever stole the old root's key may ask for anything.
	if i != len(roots)-1 {
		return nil, rpc.Errorf(rpc.ErrRefused, "only the latest root can stay, which is %q", roots[len(roots)-1].Subject.CommonName)
	}
	root := roots[i]
	resp := new(controllerv1.DropRootsResponse)
	if resp.Holders, err = c.standings(ctx, root); err != nil {
		return nil, err
	}
	needed := slices.ContainsFunc(resp.GetHolders(), func(h *controllerv1.TrustHolder) bool {
		return h.GetState() == controllerv1.TrustState_TRUST_STATE_LATE || h.GetState() == controllerv1.TrustState_TRUST_STATE_PERSON
	})
	if len(roots) > 1 && (req.GetForce() || !needed) {
		if err := c.dropRoots(ctx, root); err != nil {
			return nil, err
		}
		if resp.Holders, err = c.standings(ctx, root); err != nil {
			return nil, err
		}
	}
	if roots, err = c.roots(); err != nil {
		return nil, err
	}
	resp.Dropped = len(roots) == 1
	resp.Roots, err = c.creds.Roots()
	return resp, err
}

func (c *Controller) dropRoots(ctx context.Context, but *x509.Certificate) error {
	// Connections to those who have not connected since they have a certificate below the
	// new root are cut.
	if run, err := c.goingOn(ctx); err != nil || run != 0 {
		return cmp.Or(err, rpc.Errorf(rpc.ErrBusy, "run %d is going on; the old root goes when it has ended: hlctl trust rotate-ca", run))
	}
	if err := c.awaitBelow(ctx, but); err != nil {
		return err
	}
	// One that a controller without the new root's word has signed meanwhile.
	if err := c.resign(ctx); err != nil {
		return err
	}
	err := c.changeRoots(ctx, func([]*x509.Certificate) []*x509.Certificate { return []*x509.Certificate{but} })
	if err != nil {
		return err
	}
	_, err = c.pusher.await(ctx, ringTimeout)
	return err
}

// resign signs the list of revoked certificates anew, below the roots that are trusted now.
func (c *Controller) resign(ctx context.Context) error {
	number := c.creds.Revocations().Number()
	if number == 0 {
		return nil // there is none
	}
	_, err := c.extend(ctx, nil, number)
	return err
}

// standings are all whose certificates are known, and how far they are.
func (c *Controller) standings(ctx context.Context, root *x509.Certificate) ([]*controllerv1.TrustHolder, error) {
	all, err := c.inForce(ctx)
	if err != nil {
		return nil, err
	}
	alive := make(map[string]bool)
	for name, p := range c.seeing.agentPeers() {
		alive[name] = p.Alive
	}
	return standing(all, rpc.RootHash(root), alive, c.now()), nil
}

// standing says of each holder of the certificates, which are by role and name, how far
// it is with a new root. A person's that has expired is nobody's any more; a host's can
// still be renewed.
func standing(all []store.Issued, root string, alive map[string]bool, now time.Time) []*controllerv1.TrustHolder {
	var holders []*controllerv1.TrustHolder
	for _, i := range all {
		person := i.Role != rpc.RoleAgent && i.Role != rpc.RoleController
		if person && !now.Before(i.NotAfter) {
			continue
		}
		name := i.Role + "@" + i.Name
		if n := len(holders); n == 0 || holders[n-1].GetHolder() != name {
			h := &controllerv1.TrustHolder{Holder: name, State: controllerv1.TrustState_TRUST_STATE_OFF, NotAfter: timestamppb.New(i.NotAfter)}
			switch {
			case person:
				h.State = controllerv1.TrustState_TRUST_STATE_PERSON
			case i.Role == rpc.RoleController || alive[i.Name]:
				h.State = controllerv1.TrustState_TRUST_STATE_LATE
			}
			holders = append(holders, h)
		}
		if h := holders[len(holders)-1]; slices.Contains(i.Roots, root) && h.GetState() != controllerv1.TrustState_TRUST_STATE_RENEWED {
			h.State, h.NotAfter = controllerv1.TrustState_TRUST_STATE_RENEWED, timestamppb.New(i.NotAfter)
		}
	}
	return holders
}
