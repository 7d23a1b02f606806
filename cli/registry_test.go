package cli

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/homeiac/homelab/cli/onhost/onhosttest"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// registry is the part of a fake controller that gives certificates, as the real one
// does: for tokens, once, to one holder of a name.
type registry struct {
	mu     sync.Mutex
	ca     *rpc.CA
	root   string // its hash
	made   []*given
	issued []*controllerv1.CertificateStatus
	// alone is a controller with a store of its own.
	alone bool
}

// given is a token.
type given struct {
	status *controllerv1.TokenStatus
	token  rpc.Token
}

func newRegistry(t *testing.T, ca *rpc.CA) *registry {
	t.Helper()
	roots, err := rpc.ParseRoots(ca.Cert(), ca.Fleet())
	if err != nil {
		t.Fatal(err)
	}
	return &registry{ca: ca, root: rpc.RootHash(roots[0])}
}

// held are the certificates of a name that count.
func (r *registry) held(role, name string) (list []*controllerv1.CertificateStatus) {
	for _, c := range r.issued {
		if c.GetRole() == role && c.GetName() == name && c.GetRevoked() == nil {
			list = append(list, c)
		}
	}
	return list
}

func (r *registry) create(req *controllerv1.CreateTokenRequest) (*controllerv1.CreateTokenResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	role := req.GetRole()
	if role == "" {
		role = rpc.RoleAgent
	}
	if role == rpc.RoleController && r.alone {
		return nil, rpc.Errorf(rpc.ErrRefused, "this controller keeps what it knows in an etcd of its own")
	}
	if len(r.held(role, req.GetName())) > 0 && !req.GetReplace() {
		return nil, rpc.Errorf(rpc.ErrExists, "%s@%s has a certificate", role, req.GetName())
	}
	token, err := rpc.NewToken(rpc.Identity{Fleet: r.ca.Fleet(), Role: role, Name: req.GetName()}, r.root)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	s := &controllerv1.TokenStatus{
		Id: rpc.TokenID(rpc.SecretHash(token.Secret)), Name: req.GetName(), Role: role, Addresses: req.GetAddresses(), Replace: req.GetReplace(),
		Created: timestamppb.New(now), Expires: timestamppb.New(now.Add(req.GetTtl().AsDuration())),
	}
	r.made = append(r.made, &given{s, token})
	return &controllerv1.CreateTokenResponse{Token: token.Text(), Status: s, Enrol: "192.0.2.10:8402"}, nil
}

// enrol gives a certificate for a token's text and a key.
func (r *registry) enrol(text string, key crypto.PublicKey) ([]byte, rpc.Token, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	asked, err := rpc.ParseToken(text)
	if err != nil {
		return nil, asked, err
	}
	i := slices.IndexFunc(r.made, func(g *given) bool { return g.token.Text() == asked.Text() })
	if i < 0 || r.made[i].status.GetUsed() != nil {
		return nil, asked, rpc.Errorf(rpc.ErrDenied, "the token is not good here")
	}
	s := r.made[i].status
	var ips []netip.Addr
	for _, a := range s.GetAddresses() {
		ips = append(ips, netip.MustParseAddr(a))
	}
	now := time.Now()
	cert, err := r.ca.Sign(key, asked.Identity, ips, time.Hour, now)
	if err != nil {
		return nil, asked, err
	}
	if s.GetReplace() {
		for _, old := range r.held(asked.Role, asked.Name) {
			old.Revoked = timestamppb.New(now)
		}
	}
	block, _ := pem.Decode(cert)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, asked, err
	}
	s.Used, s.Serial = timestamppb.New(now), rpc.Serial(leaf)
	r.issued = append(r.issued, &controllerv1.CertificateStatus{
		Serial: s.GetSerial(), Name: asked.Name, Role: asked.Role, NotBefore: timestamppb.New(leaf.NotBefore), NotAfter: timestamppb.New(leaf.NotAfter),
	})
	return cert, asked, nil
}

func (r *registry) trust() *controllerv1.TrustResponse {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &controllerv1.TrustResponse{Certificates: slices.Clone(r.issued)}
}

func (r *registry) list() *controllerv1.ListTokensResponse {
	r.mu.Lock()
	defer r.mu.Unlock()
	resp := new(controllerv1.ListTokensResponse)
	for _, g := range r.made {
		resp.Tokens = append(resp.Tokens, g.status)
	}
	return resp
}

// texts are all tokens that there ever were.
func (r *registry) texts() (list []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, g := range r.made {
		list = append(list, g.token.Text())
	}
	return list
}

// counts says whether an agent has the certificate of its name.
func (r *registry) counts(agent onhosttest.Daemon) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.held(rpc.RoleAgent, agent.Name), func(c *controllerv1.CertificateStatus) bool { return c.GetSerial() == agent.Serial })
}
