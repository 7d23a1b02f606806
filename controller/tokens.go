package controller

import (
	"cmp"
	"context"
	"crypto/x509"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/homeiac/homelab/controller/store"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/spec"
)

const (
	// tokenLife is how long a token is good for unless it is said, longestToken what
	// may be said, and tokenKept how long it is shown after its end.
	tokenLife    = 15 * time.Minute
	longestToken = 7 * 24 * time.Hour
	tokenKept    = 24 * time.Hour
	// maxTokens bounds the tokens that there are at once.
	maxTokens = 1000
)

// CreateToken makes a token for one name.
func (s *service) CreateToken(ctx context.Context, req *controllerv1.CreateTokenRequest) (*controllerv1.CreateTokenResponse, error) {
	c := s.c
	by, err := rpc.PeerIdentity(ctx)
	if err != nil {
		return nil, err
	}
	if c.issuing.inUse() == nil {
		return nil, rpc.Errorf(rpc.ErrUnsupported, "this controller has no issuing CA, and nobody can enrol with it")
	}
	id := rpc.Identity{Fleet: c.fleet, Role: cmp.Or(req.GetRole(), rpc.RoleAgent), Name: req.GetName()}
	if id.Role != rpc.RoleAgent && id.Role != rpc.RoleController {
		return nil, rpc.Errorf(rpc.ErrInvalid, "role %q: a token is for agent or controller; people get their certificates with: hlctl trust renew", id.Role)
	}
	if !spec.IsName(id.Name) {
		// Who enrolled with it could be in no Spec.
		return nil, rpc.Errorf(rpc.ErrInvalid, "%q cannot be the name of a host in the Spec: lower-case letters, digits and inner hyphens, 63 at most", id.Name)
	}
	if id.Role == rpc.RoleController && len(c.cfg.Etcd.Endpoints) == 0 {
		return nil, rpc.Errorf(rpc.ErrRefused, "this controller keeps what it knows in an etcd of its own, which no other controller sees; several controllers need one etcd outside of them (etcd.endpoints in the configuration of each)")
	}
	for _, a := range req.GetAddresses() {
		if ip, err := netip.ParseAddr(a); err != nil || ip.IsUnspecified() || ip.Zone() != "" {
			return nil, rpc.Errorf(rpc.ErrInvalid, "address %q is no IP address of a host", a)
		}
	}
	if len(req.GetAddresses()) > 16 {
		return nil, rpc.Errorf(rpc.ErrInvalid, "%d addresses, 16 is the limit", len(req.GetAddresses()))
	}
	ttl := tokenLife
	if req.GetTtl() != nil {
		ttl = req.GetTtl().AsDuration()
	}
	if ttl <= 0 || ttl > longestToken {
		return nil, rpc.Errorf(rpc.ErrInvalid, "a token that is good for %s: more than 0s and up to %s may be said (--ttl 1h)", ttl, longestToken)
	}
	if held, err := c.valid(ctx, id.Role, id.Name); err != nil {
		return nil, err
	} else if len(held) > 0 && !req.GetReplace() {
		again := "hlctl token create " + id.Name + " --replace"
		if id.Role == rpc.RoleController {
			again += " --role controller"
		}
		return nil, rpc.Errorf(rpc.ErrExists, "%s has a certificate until %s; to give it another and take that one back: %s",
			id, held[0].NotAfter.Format(time.DateOnly), again)
	}
	return c.createToken(ctx, id, store.Token{
		Addresses: req.GetAddresses(), Replace: req.GetReplace(), By: by.String(), Created: c.now().UTC(), Expires: c.now().Add(ttl).UTC(),
	})
}

func (c *Controller) createToken(ctx context.Context, id rpc.Identity, t store.Token) (*controllerv1.CreateTokenResponse, error) {
	tokens, err := c.tokens(ctx)
	if err != nil {
		return nil, err
	}
	if len(tokens) >= maxTokens {
		return nil, rpc.Errorf(rpc.ErrRefused, "there are %d tokens; take some back: hlctl token ls", len(tokens))
	}
	root, err := c.ownRoot()
	if err != nil {
		return nil, err
	}
	token, err := rpc.NewToken(id, rpc.RootHash(root))
	if err != nil {
		return nil, err
	}
	t.Hash = rpc.SecretHash(token.Secret)
	t.ID, t.Name, t.Role = rpc.TokenID(t.Hash), id.Name, id.Role
	if err := c.store.PutToken(ctx, t); err != nil {
		return nil, err
	}
	return &controllerv1.CreateTokenResponse{Token: token.Text(), Status: tokenStatus(t), Enrol: c.enrolAddress()}, nil
}

// ownRoot is the root above this controller's own certificate: whoever enrols will
// have to find it in the handshake.
func (c *Controller) ownRoot() (*x509.Certificate, error) {
	bundle, err := c.creds.Roots()
	if err != nil {
		return nil, err
	}
	roots, err := rpc.ParseRoots(bundle, c.fleet)
	if err != nil {
		return nil, err
	}
	// The latest: the others may be gone when the token is used.
	for _, root := range slices.Backward(roots) {
		if c.issuing.inUse().Certificate().CheckSignatureFrom(root) == nil {
			return root, nil
		}
	}
	return nil, rpc.Errorf(rpc.ErrInvalid, "no root in the bundle has signed this controller's issuing CA; correct issuingCA in its configuration")
}

// tokens are those that are not long gone; the others are forgotten.
func (c *Controller) tokens(ctx context.Context) ([]store.Token, error) {
	all, err := c.store.Tokens(ctx)
	if err != nil {
		return nil, err
	}
	var kept []store.Token
	for _, t := range all {
		if c.now().Sub(t.Expires) < tokenKept {
			kept = append(kept, t)
			continue
		}
		if err := c.store.DropToken(ctx, t.ID); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(kept, func(a, b store.Token) int { return b.Created.Compare(a.Created) })
	return kept, nil
}

func tokenStatus(t store.Token) *controllerv1.TokenStatus {
	s := &controllerv1.TokenStatus{
		Id: t.ID, Name: t.Name, Role: t.Role, Addresses: t.Addresses, By: t.By, Replace: t.Replace, Serial: t.Serial,
		Created: timestamppb.New(t.Created), Expires: timestamppb.New(t.Expires),
	}
	if !t.At.IsZero() {
		s.Used = timestamppb.New(t.At)
	}
	return s
}

// ListTokens tells the tokens.
func (s *service) ListTokens(ctx context.Context, _ *controllerv1.ListTokensRequest) (*controllerv1.ListTokensResponse, error) {
	tokens, err := s.c.tokens(ctx)
	if err != nil {
		return nil, err
	}
	resp := new(controllerv1.ListTokensResponse)
	for _, t := range tokens {
		resp.Tokens = append(resp.Tokens, tokenStatus(t))
	}
	return resp, nil
}

// RevokeToken takes a token back.
func (s *service) RevokeToken(ctx context.Context, req *controllerv1.RevokeTokenRequest) (*controllerv1.RevokeTokenResponse, error) {
	if _, err := s.c.store.Token(ctx, req.GetId()); err != nil {
		return nil, err
	}
	return new(controllerv1.RevokeTokenResponse), s.c.store.DropToken(ctx, req.GetId())
}

// Trust tells who is trusted.
func (s *service) Trust(ctx context.Context, _ *controllerv1.TrustRequest) (*controllerv1.TrustResponse, error) {
	c := s.c
	if err := c.noteSeen(ctx); err != nil {
		return nil, err
	}
	roots, err := c.roots()
	if err != nil {
		return nil, err
	}
	list := c.creds.Revocations()
	revoked := list.Serials()
	resp := &controllerv1.TrustResponse{Revocations: list.Number()}
	add := func(to *[]*controllerv1.CertificateStatus, s *controllerv1.CertificateStatus) {
		if at, ok := revoked[s.GetSerial()]; ok {
			s.Revoked = timestamppb.New(at)
		}
		*to = append(*to, s)
	}
	for _, root := range roots {
		add(&resp.Authorities, authorityStatus(root, "root"))
	}
	issuing, err := c.allIssuing(ctx)
	if err != nil {
		return nil, err
	}
	for _, cert := range issuing {
		add(&resp.Authorities, authorityStatus(cert, "issuing"))
	}
	issued, err := c.issued(ctx)
	if err != nil {
		return nil, err
	}
	for _, i := range issued {
		add(&resp.Certificates, certificateStatus(i, roots))
	}
	return resp, nil
}

func certificateStatus(i store.Issued, roots []*x509.Certificate) *controllerv1.CertificateStatus {
	s := &controllerv1.CertificateStatus{
		Serial: i.Serial, Name: i.Name, Role: i.Role, Issuer: i.Issuer, How: i.How,
		NotBefore: timestamppb.New(i.NotBefore), NotAfter: timestamppb.New(i.NotAfter),
	}
	for _, root := range roots {
		if slices.Contains(i.Roots, rpc.RootHash(root)) {
			s.Roots = append(s.Roots, rpc.RootHash(root))
		}
	}
	return s
}

func authorityStatus(ca *x509.Certificate, role string) *controllerv1.CertificateStatus {
	return &controllerv1.CertificateStatus{
		Serial: rpc.Serial(ca), Name: ca.Subject.CommonName, Role: role, Issuer: ca.Issuer.CommonName, Sha256: rpc.RootHash(ca),
		NotBefore: timestamppb.New(ca.NotBefore), NotAfter: timestamppb.New(ca.NotAfter),
	}
}

// noteSeen remembers the certificates of the caller and of this controller, which
// may have come from the root.
func (c *Controller) noteSeen(ctx context.Context) error {
	if err := c.store.PutIssued(ctx, c.issuedOf(c.creds.Shown(), c.creds.Identity(), "own")); err != nil {
		return err
	}
	p, ok := peer.FromContext(ctx)
	if !ok || rpc.CertificateOf(p) == nil {
		return nil // a call within the process
	}
	id, err := rpc.PeerIdentity(ctx)
	if err != nil {
		return err
	}
	return c.store.PutIssued(ctx, c.issuedOf(rpc.ShownBy(p), id, "seen"))
}

// noteCaller remembers a caller's certificate, once, and waits for nothing: the caller
// wants something else.
func (c *Controller) noteCaller(ctx context.Context) {
	p, ok := peer.FromContext(ctx)
	if !ok || rpc.CertificateOf(p) == nil {
		return
	}
	id, err := rpc.PeerIdentity(ctx)
	if err != nil {
		return
	}
	seen := c.issuedOf(rpc.ShownBy(p), id, "seen")
	key := seen.Serial + " " + strings.Join(seen.Roots, " ")
	c.mu.Lock()
	known := c.callers[key]
	c.callers[key] = true
	c.mu.Unlock()
	if known {
		return
	}
	c.runs.Go(func() {
		if err := c.store.PutIssued(c.life, seen); err != nil {
			c.log.Debug("caller not remembered", "error", err)
			c.mu.Lock()
			delete(c.callers, key)
			c.mu.Unlock()
		}
	})
}

// issued are the certificates that are remembered, by role and name, the latest
// first; those that are of no use to anybody any more are forgotten.
func (c *Controller) issued(ctx context.Context) ([]store.Issued, error) {
	all, err := c.store.Issued(ctx)
	if err != nil {
		return nil, err
	}
	var kept []store.Issued
	for _, i := range all {
		if c.now().Sub(i.NotAfter) <= forgiven {
			kept = append(kept, i)
			continue
		}
		if err := c.store.DropIssued(ctx, i.Serial); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(kept, func(a, b store.Issued) int {
		return cmp.Or(cmp.Compare(a.Role, b.Role), cmp.Compare(a.Name, b.Name), b.NotBefore.Compare(a.NotBefore), cmp.Compare(a.Serial, b.Serial))
	})
	return kept, nil
}

// inForce are those of them that are not revoked.
func (c *Controller) inForce(ctx context.Context) ([]store.Issued, error) {
	all, err := c.issued(ctx)
	if err != nil {
		return nil, err
	}
	list := c.creds.Revocations()
	return slices.DeleteFunc(all, func(i store.Issued) bool { return list.Has(i.Serial) }), nil
}

// valid are the certificates with which a name can still get in, one that has
// expired too: it can be renewed.
func (c *Controller) valid(ctx context.Context, role, name string) ([]store.Issued, error) {
	all, err := c.inForce(ctx)
	return slices.DeleteFunc(all, func(i store.Issued) bool { return i.Role != role || i.Name != name }), err
}
