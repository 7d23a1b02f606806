package cli

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// trusting is a fleet with a host that is enrolled and one that was revoked.
func trusting(f *fake) {
	at := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(noon.Add(d)) }
	const days = 24 * time.Hour
	cert := func(role, name, serial string, end time.Duration, how string) *controllerv1.CertificateStatus {
		return &controllerv1.CertificateStatus{
			Role: role, Name: name, Serial: serial, NotBefore: at(end - 90*days), NotAfter: at(end), How: how, Issuer: "homelab issuing CA of controller-1 of fleet home",
		}
	}
	root := cert("root", "homelab CA of fleet home", "1a", 3650*days, "")
	root.Issuer, root.Sha256 = root.Name, "00ff"
	gone := cert("agent", "pve2", "2c", 80*days, "token 0123456789ab")
	gone.Revoked = at(-days)
	f.trust = &controllerv1.TrustResponse{
		Authorities: []*controllerv1.CertificateStatus{root},
		Certificates: []*controllerv1.CertificateStatus{
			cert("admin", "laptop", "2a", -days, "seen"), cert("agent", "pve1", "2b", 10*days, "token 0123456789aa"), gone,
		},
		Revocations: 3,
	}
	f.tokens = []*controllerv1.TokenStatus{
		{Id: "0123456789ac", Name: "pve3", Role: "agent", By: "admin@laptop", Created: at(0), Expires: at(15 * time.Minute), Addresses: []string{"192.0.2.3"}},
		{Id: "0123456789ab", Name: "pve2", Role: "agent", By: "admin@laptop", Created: at(-time.Hour), Expires: at(-time.Minute), Used: at(-50 * time.Minute), Serial: "2c"},
		{Id: "0123456789aa", Name: "pve9", Role: "agent", By: "admin@laptop", Created: at(-time.Hour), Expires: at(-time.Minute)},
	}
}

func (f *fake) Trust(context.Context, *controllerv1.TrustRequest) (*controllerv1.TrustResponse, error) {
	if f.registry != nil {
		return f.registry.trust(), nil
	}
	return f.trust, nil
}

func (f *fake) ListTokens(context.Context, *controllerv1.ListTokensRequest) (*controllerv1.ListTokensResponse, error) {
	if f.registry != nil {
		return f.registry.list(), nil
	}
	return &controllerv1.ListTokensResponse{Tokens: f.tokens}, nil
}

func (f *fake) CreateToken(_ context.Context, req *controllerv1.CreateTokenRequest) (*controllerv1.CreateTokenResponse, error) {
	if f.registry != nil {
		return f.registry.create(req)
	}
	if req.GetName() == "pve1" && !req.GetReplace() {
		return nil, rpc.Errorf(rpc.ErrExists, "agent@pve1 has a certificate")
	}
	return &controllerv1.CreateTokenResponse{
		Token: "hl1_abc", Enrol: "192.0.2.10:8402",
		Status: &controllerv1.TokenStatus{Id: "0123456789ac", Name: req.GetName(), Role: req.GetRole(), Expires: timestamppb.New(noon.Add(req.GetTtl().AsDuration()))},
	}, nil
}

func (f *fake) RevokeToken(_ context.Context, req *controllerv1.RevokeTokenRequest) (*controllerv1.RevokeTokenResponse, error) {
	if req.GetId() != "0123456789ac" {
		return nil, rpc.Errorf(rpc.ErrNotFound, "there is no token %s; see: hlctl token ls", req.GetId())
	}
	return new(controllerv1.RevokeTokenResponse), nil
}

func (f *fake) RevokeCertificate(_ context.Context, req *controllerv1.RevokeCertificateRequest) (*controllerv1.RevokeCertificateResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.revoked = append(f.revoked, req.GetHolder())
	if serials := f.revokes(req.GetHolder()); len(serials) > 0 {
		return &controllerv1.RevokeCertificateResponse{Serials: serials, Number: 4}, nil
	}
	if req.GetHolder() == "agent@pve1" || req.GetSerial() == "2b" {
		return &controllerv1.RevokeCertificateResponse{Serials: []string{"2b"}, Number: 4}, nil
	}
	return &controllerv1.RevokeCertificateResponse{Number: 3}, nil
}

func (f *fake) RotateGossip(context.Context, *controllerv1.RotateGossipRequest) (*controllerv1.RotateGossipResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rotated++
	return &controllerv1.RotateGossipResponse{Late: []string{"pve4"}}, nil
}

func TestAnAdminsCertificateIsMadeAnewWithTheRootsKey(t *testing.T) {
	r := newRig(t)
	r.issue("admin", rpc.Identity{Role: rpc.RoleAdmin, Name: "laptop"}, -time.Minute)
	if err := r.ca.Seal(r.path("root-ca.pem"), r.path("root-ca.key"), []byte("correct horse")); err != nil {
		t.Fatal(err)
	}
	if got := r.run("version"); !strings.Contains(got.out+got.err, "hlctl trust renew") || !strings.Contains(got.out+got.err, "hl-controller issue-admin") {
		t.Errorf("%+v", got)
	}
	if got := r.runWith(t.Context(), strings.NewReader("wrong\n"), nil, "trust", "renew"); got.code != 1 || !strings.Contains(got.err, "passphrase is not the right one") {
		t.Errorf("%+v", got)
	}
	if got := r.runWith(t.Context(), strings.NewReader("correct horse\n"), nil, "trust", "renew"); got.code != 0 || !strings.Contains(got.out, "admin@laptop has a new certificate until") {
		t.Fatalf("%+v", got)
	}
	trusting(r.fake)
	if got := r.run("trust"); got.code != 0 {
		t.Errorf("%+v", got)
	}
	// Lost altogether: whose it was has to be said.
	for _, name := range []string{"admin.pem", "admin.key"} {
		if err := os.Remove(r.path(name)); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.run("trust"); got.code != 1 || !strings.Contains(got.err, "hlctl trust renew") {
		t.Errorf("%+v", got)
	}
	again := func(args ...string) ran {
		return r.runWith(t.Context(), strings.NewReader("correct horse\n"), nil, append([]string{"trust", "renew"}, args...)...)
	}
	if got := again(); got.code != 1 || !strings.Contains(got.err, "--name NAME") {
		t.Errorf("%+v", got)
	}
	if got := again("--name", "pve1", "--role", "agent"); got.code != 1 || !strings.Contains(got.err, "this is for people") {
		t.Errorf("%+v", got)
	}
	if got := again("--name", "laptop"); got.code != 0 {
		t.Errorf("%+v", got)
	}
	if got := r.run("trust"); got.code != 0 {
		t.Errorf("%+v", got)
	}
}
