package controller

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc"

	"github.com/homeiac/homelab/controller/store"
	trustv1 "github.com/homeiac/homelab/gen/homelab/trust/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// forgiven is how long after its end a certificate still gets its holder a new one.
const forgiven = 365 * 24 * time.Hour

// enrolAttempts bounds how often a token is tried to be used because other certificates
// were given meanwhile.
const enrolAttempts = 32

// enrolService is what those call who have no certificate, or one that has expired.
type enrolService struct {
	trustv1.UnimplementedEnrolServiceServer
	c *Controller
}

// listenEnrol opens the port of its own for that; nil when this controller cannot
// issue anything.
func (c *Controller) listenEnrol(ctx context.Context) (*rpc.Server, error) {
	if c.issuing.inUse() == nil {
		return nil, nil
	}
	limits := &limiter{now: c.now}
	return rpc.ListenEnrol(ctx, rpc.EnrolConfig{
		Address: net.JoinHostPort(c.cfg.Advertise, strconv.Itoa(c.cfg.EnrolPort)), Credentials: c.creds, Log: c.log,
		Admit: func(source string) error {
			err := limits.admit(source)
			if err != nil {
				c.refused(refusal{source: source, call: "any", reason: "too many attempts"})
			}
			return err
		},
	}, func(r grpc.ServiceRegistrar) { trustv1.RegisterEnrolServiceServer(r, &enrolService{c: c}) })
}

// errToken is all that a stranger is told: whether a token never was, was used by
// another or has expired is for the log.
func errToken() error {
	return rpc.Errorf(rpc.ErrDenied, "the token is not good here: it was used, taken back, or has expired; make another with: hlctl token create HOST")
}

// Enrol gives a certificate for a token.
func (s *enrolService) Enrol(ctx context.Context, req *trustv1.EnrolRequest) (*trustv1.EnrolResponse, error) {
	c := s.c
	key, err := rpc.RequestKey(req.GetCsr())
	if err != nil {
		c.refused(refusal{source: rpc.Source(ctx), call: "Enrol", reason: "no sound certificate request"})
		return nil, err
	}
	token, why, err := c.useToken(ctx, req.GetSecret(), key)
	if err != nil {
		return nil, err
	}
	if why != "" {
		c.refused(refusal{source: rpc.Source(ctx), call: "Enrol", who: token.Role + "@" + token.Name, reason: why})
		return nil, errToken()
	}
	if token.Replace {
		if _, err := c.revokeHolder(ctx, token.Role, token.Name, token.Serial); err != nil {
			return nil, err
		}
	}
	t, err := c.trust()
	if err != nil {
		return nil, err
	}
	c.enrolled(token.Role+"@"+token.Name, "enrol", fmt.Sprintf("certificate %s for token %s, from %s", token.Serial, token.ID, rpc.Source(ctx)))
	return &trustv1.EnrolResponse{Certificate: token.Certificate, Trust: t, Addresses: token.Addresses, Seeds: c.seeds()}, nil
}

// useToken finds the token of a secret and has it used by the key. why is for the
// log when it cannot be.
func (c *Controller) useToken(ctx context.Context, secret []byte, key crypto.PublicKey) (t store.Token, why string, err error) {
	hash, by := rpc.SecretHash(secret), keyHash(key)
	for range enrolAttempts {
		t, err = c.store.Token(ctx, rpc.TokenID(hash))
		if errors.Is(err, rpc.ErrNotFound) || err == nil && t.Hash != hash {
			return store.Token{}, "unknown token", nil
		}
		if err != nil {
			return t, "", err
		}
		switch {
		case !c.now().Before(t.Expires):
			return t, "token " + t.ID + " has expired", nil
		case t.UsedBy == by: // again, perhaps because the answer was lost
			if err := c.syncTrust(ctx); err != nil {
				return t, "", err
			}
			if c.creds.Revocations().Has(t.Serial) {
				// With the answer goes the gossip's key, which was changed because of it.
				return t, "the certificate for token " + t.ID + " was taken back", nil
			}
			return t, "", nil
		case t.UsedBy != "":
			return t, "token " + t.ID + " was used by another key", nil
		}
		if !t.Replace {
			held, err := c.valid(ctx, t.Role, t.Name)
			if err != nil {
				return t, "", err
			}
			if len(held) > 0 {
				return t, t.Role + "@" + t.Name + " has a certificate and token " + t.ID + " does not replace it", nil
			}
		}
		cert, given, err := c.sign(key, rpc.Identity{Role: t.Role, Name: t.Name}, t.Addresses, "token "+t.ID)
		if err != nil {
			return t, "", err
		}
		t.UsedBy, t.At, t.Serial, t.Certificate = by, c.now().UTC(), given.Serial, cert
		if ok, err := c.store.UseToken(ctx, t, given); ok || err != nil {
			return t, "", err
		}
	}
	return t, "", rpc.Errorf(rpc.ErrBusy, "the token is being used at this moment; try again")
}

func keyHash(key crypto.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "" // of no kind that RequestKey lets pass
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// sign issues a certificate and gives what is to be remembered of it.
func (c *Controller) sign(key crypto.PublicKey, id rpc.Identity, addresses []string, how string) ([]byte, store.Issued, error) {
	var ips []netip.Addr
	for _, a := range addresses {
		ip, err := netip.ParseAddr(a)
		if err != nil {
			return nil, store.Issued{}, rpc.Errorf(rpc.ErrInvalid, "address %q: %w", a, err)
		}
		ips = append(ips, ip)
	}
	ca, roots := c.issuing.signing()
	cert, err := ca.Sign(key, id, ips, c.cfg.CertificateLife, c.now())
	if err != nil {
		return nil, store.Issued{}, err
	}
	block, _ := pem.Decode(cert)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, store.Issued{}, fmt.Errorf("read what was signed: %w", err)
	}
	// Not of those that we trust: an agent that another controller told of a new root may
	// ask while we are about to trust it, and does not ask again.
	return cert, issuedBelow(rpc.RootsAbove(leaf, ca.Certificates(), roots), leaf, id, how), nil
}

// issuedOf is what is remembered of a certificate, with those that are shown after it.
func (c *Controller) issuedOf(shown []*x509.Certificate, id rpc.Identity, how string) store.Issued {
	return issuedBelow(c.creds.RootsAbove(shown), shown[0], id, how)
}

// issuedBelow is what is remembered of a certificate below those roots, by their hashes.
func issuedBelow(roots []string, cert *x509.Certificate, id rpc.Identity, how string) store.Issued {
	return store.Issued{
		Roots:  roots,
		Serial: rpc.Serial(cert), Name: id.Name, Role: id.Role, Issuer: cert.Issuer.CommonName,
		NotBefore: cert.NotBefore.UTC(), NotAfter: cert.NotAfter.UTC(), How: how,
	}
}

// Renew gives a new certificate for one that may have expired.
func (s *enrolService) Renew(ctx context.Context, _ *trustv1.RenewRequest) (*trustv1.RenewResponse, error) {
	c := s.c
	old, id, err := c.creds.Lapsed(ctx, forgiven)
	if err == nil && id.Role != rpc.RoleAgent && id.Role != rpc.RoleController {
		// What a person's stolen laptop holds must end some day.
		err = rpc.Errorf(rpc.ErrDenied, "%s is a person's certificate and not renewed here; make another with: hlctl trust renew", id)
	}
	if err != nil {
		r := refusal{source: rpc.Source(ctx), call: "Renew", reason: err.Error()}
		if id.Name != "" {
			r.who = id.String() // else what was shown is nobody's
		}
		c.refused(r)
		return nil, err
	}
	// Who comes may have been told of a new root by another controller, which is the very
	// reason.
	if err := c.syncTrust(ctx); err != nil {
		return nil, err
	}
	var addresses []string
	for _, ip := range old.IPAddresses {
		addresses = append(addresses, ip.String())
	}
	cert, given, err := c.sign(old.PublicKey, id, addresses, "renewal of "+rpc.Serial(old))
	if err != nil {
		return nil, err
	}
	if err := c.store.PutIssued(ctx, given); err != nil {
		return nil, err
	}
	// Whoever revokes the old one finds the new one from here on; and if that was
	// done before, it is seen now.
	if err := c.syncTrust(ctx); err != nil {
		return nil, err
	}
	if _, _, err := c.creds.Lapsed(ctx, forgiven); err != nil {
		c.refused(refusal{source: rpc.Source(ctx), call: "Renew", who: id.String(), reason: err.Error()})
		return nil, err
	}
	t, err := c.trust()
	if err != nil {
		return nil, err
	}
	c.enrolled(id.String(), "renew", fmt.Sprintf("certificate %s in the place of %s", given.Serial, rpc.Serial(old)))
	return &trustv1.RenewResponse{Certificate: cert, Trust: t}, nil
}

// renewOwn renews this controller's own certificate.
func (c *Controller) renewOwn(ctx context.Context) error { return c.renewOwnBelow(ctx, nil) }

// renewOwnBelow does so together with another bundle of roots; nil is the one we have.
func (c *Controller) renewOwnBelow(ctx context.Context, bundle []byte) error {
	if err := c.takenBack(ctx); err != nil {
		return err
	}
	leaf := c.creds.Leaf()
	var addresses []string
	for _, ip := range leaf.IPAddresses {
		addresses = append(addresses, ip.String())
	}
	cert, given, err := c.sign(c.creds.Public(), c.creds.Identity(), addresses, "renewal of "+rpc.Serial(leaf))
	if err != nil {
		return err
	}
	if err := c.store.PutIssued(ctx, given); err != nil {
		return err
	}
	_, err = c.creds.Adopt(cert, bundle)
	return err
}

// standAlone has this controller's certificate signed by its own issuing CA, where it is
// from another controller's with which it enrolled: that one may be removed some day, and
// its CA with it.
func (c *Controller) standAlone(ctx context.Context) error {
	leaf, ca := c.creds.Leaf(), c.issuing.inUse()
	if ca == nil || leaf.CheckSignatureFrom(ca.Certificate()) == nil {
		return nil
	}
	roots, err := c.roots()
	if err != nil || slices.ContainsFunc(roots, func(r *x509.Certificate) bool { return leaf.CheckSignatureFrom(r) == nil }) {
		return err
	}
	return c.renewOwn(ctx)
}

// seeds are gossip addresses for somebody new: ours.
func (c *Controller) seeds() []string {
	return []string{net.JoinHostPort(c.cfg.Advertise, strconv.Itoa(c.cfg.GossipPort))}
}
