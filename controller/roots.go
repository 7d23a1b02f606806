package controller

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"slices"
	"sync"

	"github.com/homeiac/homelab/controller/store"
	"github.com/homeiac/homelab/internal/durable"
	"github.com/homeiac/homelab/internal/rpc"
)

const (
	// rootsPurpose and offerPurpose derive the keys that the bundle of roots and the root
	// that is offered are sealed with in the store, and introduction that of the proofs.
	rootsPurpose = "bundle of roots"
	offerPurpose = "root on offer"
	introduction = "introduction of a root"
)

// issuing is this controller's issuing CA.
type issuing struct {
	mu sync.Mutex
	// all has every certificate that it was ever given, use those below roots; nil when
	// there is none.
	all, use *rpc.CA
	// roots are those that we trust, or are about to.
	roots []*x509.Certificate
}

// inUse is the CA as it signs now; nil when there is none.
func (i *issuing) inUse() *rpc.CA {
	ca, _ := i.signing()
	return ca
}

// signing is inUse with the roots that it is below.
func (i *issuing) signing() (*rpc.CA, []*x509.Certificate) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.use, i.roots
}

// signWith has what is signed from now on be below those roots.
func (i *issuing) signWith(use *rpc.CA, roots []*x509.Certificate) (undo func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	wasUse, wasRoots := i.use, i.roots
	i.use, i.roots = use, roots
	return func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.use, i.roots = wasUse, wasRoots
	}
}

func (i *issuing) whole() *rpc.CA {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.all
}

// setIssuing has a CA signed with, by what of it is below the roots that we trust.
func (c *Controller) setIssuing(ca *rpc.CA) error {
	if ca == nil {
		return nil
	}
	roots, err := c.roots()
	if err != nil {
		return err
	}
	use := ca.Below(roots)
	if use == nil {
		return rpc.Errorf(rpc.ErrInvalid, "no root in the bundle has signed this controller's issuing CA; correct issuingCA in its configuration")
	}
	c.issuing.mu.Lock()
	defer c.issuing.mu.Unlock()
	c.issuing.all, c.issuing.use, c.issuing.roots = ca, use, roots
	return nil
}

// roots are those that we trust, the latest last.
func (c *Controller) roots() ([]*x509.Certificate, error) {
	bundle, err := c.creds.Roots()
	if err != nil {
		return nil, err
	}
	return rpc.ParseRoots(bundle, c.fleet)
}

// storedRoots is the bundle that all controllers go by; nothing when it was never changed.
func (c *Controller) storedRoots(ctx context.Context) (bundle []byte, version int64, err error) {
	sealed, version, err := c.store.Roots(ctx)
	if err != nil || len(sealed) == 0 {
		return nil, version, err
	}
	bundle, err = unseal(c.signer.key, rootsPurpose, sealed)
	return bundle, version, err
}

func (c *Controller) putRoots(ctx context.Context, bundle []byte, version int64) (bool, error) {
	sealed, err := seal(c.signer.key, rootsPurpose, bundle)
	if err != nil {
		return false, err
	}
	return c.store.PutRoots(ctx, sealed, version)
}

// offer is a root that an admin wants to be trusted.
type offer struct {
	ID   string `json:"id"`
	Root []byte `json:"root"` // PEM
}

// offered is the root that was offered last; nil when there was none.
func (c *Controller) offered(ctx context.Context) (offer, *x509.Certificate, error) {
	var o offer
	sealed, err := c.store.Offer(ctx)
	if err != nil || len(sealed) == 0 {
		return o, nil, err
	}
	plain, err := unseal(c.signer.key, offerPurpose, sealed)
	if err != nil {
		return o, nil, err
	}
	if err := json.Unmarshal(plain, &o); err != nil {
		return o, nil, err
	}
	roots, err := rpc.ParseRoots(o.Root, c.fleet)
	if err != nil {
		return o, nil, err
	}
	return o, roots[0], nil
}

// syncRoots makes roots and issuing CA what all controllers agreed on, and tells the
// others how far we are. The store may be new, and we the only one who knows.
func (c *Controller) syncRoots(ctx context.Context) error {
	c.rooting.Lock()
	defer c.rooting.Unlock()
	o, root, err := c.offered(ctx)
	if err != nil {
		return err
	}
	if err := c.takeGiven(ctx, root); err != nil {
		return err
	}
	for range revocationAttempts {
		stored, version, err := c.storedRoots(ctx)
		if err != nil {
			return err
		}
		mine, err := c.creds.Roots()
		if err != nil {
			return err
		}
		is, have := rpc.BundleNumber(stored), rpc.BundleNumber(mine)
		if is > have {
			if err := c.takeRoots(ctx, stored); err != nil {
				return err
			}
		}
		if is >= have {
			return c.tellIssuing(ctx, o.ID)
		}
		if _, err := c.putRoots(ctx, mine, version); err != nil {
			return err
		}
	}
	return nil // somebody else is at it; the watch tells
}

// takeGiven keeps the certificate that a new root gave our issuing CA: beside the others,
// since who knows only the old root must be able to know us.
func (c *Controller) takeGiven(ctx context.Context, offered *x509.Certificate) error {
	ca := c.issuing.whole()
	if ca == nil {
		return nil
	}
	text, err := c.store.Given(ctx, c.cfg.Name)
	if err != nil || len(text) == 0 {
		return err
	}
	cert, err := certificateIn(text)
	if err != nil {
		return err
	}
	roots, err := c.roots()
	if err != nil {
		return err
	}
	if offered != nil {
		roots = append(roots, offered)
	}
	by := issuerIn(cert, roots)
	if by < 0 || anyBelow(ca.Certificates(), roots[by]) {
		return nil // of another time, or it has one
	}
	more, err := ca.With(cert)
	if err != nil {
		return err
	}
	if c.cfg.IssuingCA != "" {
		if err := durable.Write(c.cfg.IssuingCA, rpc.EncodeCertificates(more.Certificates())); err != nil {
			return err
		}
	}
	c.log.Info("the issuing CA has a certificate of another root", "issuer", cert.Issuer.CommonName)
	return c.setIssuing(more)
}

// takeRoots goes by another bundle from now on, with a certificate of our own that fits.
func (c *Controller) takeRoots(ctx context.Context, bundle []byte) error {
	roots, err := rpc.ParseRoots(bundle, c.fleet)
	if err != nil {
		return err
	}
	ca := c.issuing.whole()
	if ca == nil {
		_, err = c.creds.SetRoots(bundle)
	} else {
		use := ca.Below(roots)
		if use == nil {
			return rpc.Errorf(rpc.ErrRefused, "none of the roots in the store has signed this controller's issuing CA")
		}
		undo := c.issuing.signWith(use, roots)
		if err = c.renewOwnBelow(ctx, bundle); err != nil {
			undo()
		}
	}
	if err != nil {
		return err
	}
	c.log.Info("the bundle of roots changed", "roots", len(roots), "number", rpc.BundleNumber(bundle))
	c.pusher.wake()
	return nil
}

// tellIssuing tells the other controllers of our issuing CA, and how far we are; and
// has theirs known here.
func (c *Controller) tellIssuing(ctx context.Context, offer string) error {
	mine, err := c.creds.Roots()
	if err != nil {
		return err
	}
	own := store.Issuing{Controller: c.cfg.Name, Offer: offer, Bundle: rpc.BundleNumber(mine)}
	ca := c.issuing.whole()
	if ca != nil {
		own.Certificates = rpc.EncodeCertificates(ca.Certificates())
	}
	if err := c.store.PutIssuing(ctx, own); err != nil {
		return err
	}
	if err := c.store.PutIssued(ctx, c.issuedOf(c.creds.Shown(), c.creds.Identity(), "own")); err != nil {
		return err
	}
	between, err := c.issuingWith(ctx, ca)
	if err != nil {
		return err
	}
	c.creds.SetBetween(between)
	return nil
}

// issuerIn is which of the CAs has signed a certificate; -1 is none.
func issuerIn(cert *x509.Certificate, cas []*x509.Certificate) int {
	return slices.IndexFunc(cas, func(ca *x509.Certificate) bool { return cert.CheckSignatureFrom(ca) == nil })
}

// anyBelow says whether a root has signed any of the certificates.
func anyBelow(certs []*x509.Certificate, root *x509.Certificate) bool {
	return slices.ContainsFunc(certs, func(cert *x509.Certificate) bool { return cert.CheckSignatureFrom(root) == nil })
}

func certificateIn(text []byte) (*x509.Certificate, error) {
	certs := certificatesIn(text)
	if len(certs) != 1 {
		return nil, rpc.Errorf(rpc.ErrInvalid, "%d certificates instead of one", len(certs))
	}
	return certs[0], nil
}

// certificatesIn leaves out what is none.
func certificatesIn(text []byte) []*x509.Certificate {
	var certs []*x509.Certificate
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return certs
		}
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			certs = append(certs, cert)
		}
	}
}
