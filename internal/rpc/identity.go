package rpc

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/grpc/peer"
)

// The roles a certificate can give its holder.
const (
	// RoleAdmin may do everything that hlctl can ask.
	RoleAdmin = "admin"
	// RoleViewer may look.
	RoleViewer = "viewer"
	// RoleAgent is an agent's, named as its host is in the Spec.
	RoleAgent = "agent"
	// RoleController is a controller's.
	RoleController = "controller"
)

var roles = []string{RoleAdmin, RoleViewer, RoleAgent, RoleController}

// Identity is who holds a certificate. It stands in the certificate as the URI
// homelab://FLEET/ROLE/NAME, and nothing else in there matters.
type Identity struct {
	Fleet string
	Role  string
	Name  string
}

// String is role@name, as people read it in logs, runs and errors.
func (id Identity) String() string { return id.Role + "@" + id.Name }

// URI is the form in the certificate.
func (id Identity) URI() *url.URL {
	return &url.URL{Scheme: "homelab", Host: id.Fleet, Path: "/" + id.Role + "/" + id.Name}
}

// Names are kept to what needs no escaping anywhere: URIs, file names, logs.
var nameRE = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)

// Check returns ErrInvalid when a part is missing, has characters other than
// letters, digits, dot, dash and underscore, or is no role.
func (id Identity) Check() error {
	switch {
	case !nameRE.MatchString(id.Fleet):
		return Errorf(ErrInvalid, "fleet name %q: letters, digits, dot, dash and underscore only, 63 at most", id.Fleet)
	case !nameRE.MatchString(id.Name):
		return Errorf(ErrInvalid, "name %q: letters, digits, dot, dash and underscore only, 63 at most", id.Name)
	case !slices.Contains(roles, id.Role):
		return Errorf(ErrInvalid, "role %q is none of %s", id.Role, strings.Join(roles, ", "))
	}
	return nil
}

// identityOf reads the identity in a certificate. Two of them would let a
// certificate be two people, so there must be exactly one.
func identityOf(cert *x509.Certificate) (Identity, error) {
	var found []Identity
	for _, u := range cert.URIs {
		if u.Scheme != "homelab" {
			continue
		}
		role, name, ok := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
		id := Identity{Fleet: u.Host, Role: role, Name: name}
		if !ok || id.Check() != nil {
			return Identity{}, fmt.Errorf("its name %s is not homelab://FLEET/ROLE/NAME", u)
		}
		found = append(found, id)
	}
	if len(found) != 1 {
		return Identity{}, fmt.Errorf("it holds %d homelab:// names instead of one", len(found))
	}
	return found[0], nil
}

// IdentityOf is the identity that a certificate says. Nothing is verified: it is for
// telling what lies somewhere, not for letting anybody in.
func IdentityOf(cert *x509.Certificate) (Identity, error) { return identityOf(cert) }

type identityKey struct{}

// WithIdentity marks ctx as a call by id, for a handler that is called within
// the process (and in tests). It has no effect on what leaves the process.
func WithIdentity(ctx context.Context, id Identity) context.Context {
	return context.WithValue(ctx, identityKey{}, id)
}

// PeerIdentity is who makes the call that ctx belongs to, as the verified
// certificate says. ErrDenied when ctx is no such call.
func PeerIdentity(ctx context.Context) (Identity, error) {
	if id, ok := ctx.Value(identityKey{}).(Identity); ok {
		return id, nil
	}
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Identity{}, Errorf(ErrDenied, "the caller is not known: this is no remote call")
	}
	chain := chainOf(p.AuthInfo)
	if len(chain) == 0 {
		return Identity{}, Errorf(ErrDenied, "the caller at %s showed no certificate of this fleet", p.Addr)
	}
	id, err := identityOf(chain[0])
	if err != nil {
		return Identity{}, Errorf(ErrDenied, "certificate of the caller at %s: %w", p.Addr, err)
	}
	return id, nil
}

// PeerCertificate is the verified certificate of who makes the call; nil when there
// is none, as in a call within the process.
func PeerCertificate(ctx context.Context) *x509.Certificate {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	return CertificateOf(p)
}

// CertificateOf is the verified certificate of a peer; nil when there is none.
func CertificateOf(p *peer.Peer) *x509.Certificate {
	if chain := chainOf(p.AuthInfo); len(chain) > 0 {
		return chain[0]
	}
	return nil
}

// ShownBy are the certificates that a peer has shown, its own first.
func ShownBy(p *peer.Peer) []*x509.Certificate { return shownOf(p.AuthInfo) }
