package cli

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/rpc/rpctest"
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
	f.status = &controllerv1.StatusResponse{Fleet: "home", Hosts: fleet().GetHosts(), Ending: []*controllerv1.CertificateStatus{
		cert("root", "homelab CA of fleet home", "1a", 300*days, ""), cert("admin", "laptop", "2a", 10*days, "seen"),
		cert("agent", "pve1", "2b", 10*days, ""), cert("agent", "pve3", "2d", -2*days, ""), cert("controller", "controller-1", "2e", 3*days, ""),
	}}
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
	f.takenBack = append(f.takenBack, req.GetHolder())
	if f.cut != nil {
		f.cut()
	}
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

func TestWhoRevokesAControllerIsToldOfItsIssuingCA(t *testing.T) {
	r := newRig(t)
	trusting(r.fake)
	ca := &controllerv1.CertificateStatus{Serial: "1b", Role: "issuing", Name: "homelab issuing CA of controller-1 of fleet home"}
	r.fake.trust.Authorities = append(r.fake.trust.Authorities, ca)
	wants(t, r.run("trust", "revoke", "controller@controller-1"), 0, "signed the certificates of admin@laptop and agent@pve1.", "hlctl trust rotate-ca", "hlctl trust revoke controller@controller-1")
	if got := r.run("trust", "revoke", "agent@pve1"); strings.Contains(got.out, "issuing") {
		t.Errorf("%+v", got)
	}
	ca.Revoked = timestamppb.New(noon)
	if got := r.run("trust", "revoke", "controller@controller-1"); got.code != 0 || strings.Contains(got.out, "issuing") {
		t.Errorf("%+v", got)
	}
}

func TestWhoRevokesItselfIsToldThatItWasDone(t *testing.T) {
	for _, asked := range []string{"admin@laptop", "serial"} {
		t.Run(asked, func(t *testing.T) {
			r := newRig(t)
			cert, err := readCert(r.path("admin.pem"))
			if err != nil {
				t.Fatal(err)
			}
			own := rpc.Serial(cert)
			list, err := r.ca.SignRevocations(1, map[string]time.Time{own: time.Now()}, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			r.cut = func() {
				if _, err := r.goesBy.Revoke(list.PEM()); err != nil {
					t.Error(err)
				}
			}
			if asked == "serial" {
				asked = own[:12]
			}
			// Another one that is off has no say in it.
			conf, err := os.ReadFile(r.path("hlctl.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			r.write("hlctl.yaml", strings.Replace(string(conf), `"]`, `", "127.0.0.1:9"]`, 1))
			succeeds(t, r.run("trust", "revoke", asked), "with your own certificate: "+own, "hlctl trust renew")
			fails(t, r.run("trust", "revoke", "agent@pve1"), "hlctl trust renew")
		})
	}
}

func TestATokenIsForTheProgramOfItsRole(t *testing.T) {
	r := newRig(t)
	wants(t, r.run("token", "create", "pve4"), 0, "| hl-agent enrol --controller 192.0.2.10:8402 --token - && systemctl enable --now hl-agent\n")
	wants(t, r.run("token", "create", "c2", "--role", "controller"), 0, "| hl-controller enrol --controller 192.0.2.10:8402 --token - --etcd-endpoints https://IP:PORT && systemctl enable --now hl-controller\n", "hlctl hosts add --controller")
}

func TestAnAdminsCertificateIsMadeAnewWithTheRootsKey(t *testing.T) {
	r := newRig(t)
	r.issue("admin", rpc.Identity{Role: rpc.RoleAdmin, Name: "laptop"}, -time.Minute)
	if err := r.ca.Write(r.path("root-ca.pem"), r.path("root-ca.key")); err != nil {
		t.Fatal(err)
	}
	rpctest.Seal(t, r.path("root-ca.key"), []byte("correct horse"))
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

func TestACertificateThatIsOfNoUseTakesNoOnesPlace(t *testing.T) {
	r := newRig(t)
	const day = 24 * time.Hour
	gone, err := rpc.NewCA("homelab", 20*365*day, time.Now().Add(-30*day))
	if err != nil {
		t.Fatal(err)
	}
	for name, ca := range map[string]*rpc.CA{"root-ca": r.ca, "gone": gone} {
		if err := ca.Write(r.path(name+".pem"), r.path(name+".key")); err != nil {
			t.Fatal(err)
		}
	}
	files := func() (all string) {
		for _, name := range []string{"admin.pem", "admin.key", "ca.pem"} {
			data, err := os.ReadFile(r.path(name))
			if err != nil {
				t.Fatal(err)
			}
			all += string(data)
		}
		return all
	}
	before := files()
	for _, life := range []string{"0s", "-5h"} {
		fails(t, r.run("trust", "renew", "--life", life), "--life "+life, "would have ended already")
	}
	// It may have been stolen: not even its certificate is taken up again.
	fails(t, r.run("trust", "renew", "--root-cert", r.path("gone.pem"), "--root-key", r.path("gone.key")), "gave way to", "--root-cert", "hl-controller issue-admin")
	if files() != before {
		t.Error("files have changed")
	}
	wants(t, r.run("version"), 0)
}

// Of before the root changed: what its key signs is believed no more.
func TestWithANewRootsCertificateTheOldRootIsTrustedNoMore(t *testing.T) {
	r := newRig(t)
	old, err := rpc.NewCA("homelab", time.Hour, time.Now().Add(-30*24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.ca.Write(r.path("root-ca.pem"), r.path("root-ca.key")); err != nil {
		t.Fatal(err)
	}
	r.write("ca.pem", string(old.Cert()))
	succeeds(t, r.run("trust", "renew"))
	if roots := r.roots("ca.pem"); len(roots) != 1 || !roots[0].Equal(r.ca.Certificate()) {
		t.Errorf("%d roots are trusted", len(roots))
	}
	succeeds(t, r.run("version"))
}

func TestARoleThatIsSaidIsTheOneThatIsGiven(t *testing.T) {
	r := newRig(t)
	if err := r.ca.Write(r.path("root-ca.pem"), r.path("root-ca.key")); err != nil {
		t.Fatal(err)
	}
	succeeds(t, r.run("trust", "renew", "--role", "viewer"), "viewer@")
	succeeds(t, r.run("trust", "renew"), "viewer@")
	fails(t, r.run("trust", "renew", "--role", "controller"), "this is for people")
}

func TestHlctlSpeaksToNoControllerThatIsRevoked(t *testing.T) {
	r := newRig(t)
	list := func(number int64, serials ...string) *rpc.Revocations {
		revoked := make(map[string]time.Time)
		for _, s := range serials {
			revoked[s] = time.Now()
		}
		l, err := r.ca.SignRevocations(number, revoked, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	cert, err := readCert(r.path("controller.pem"))
	if err != nil {
		t.Fatal(err)
	}
	const kept = "revocations-homelab.pem"
	r.revoked = list(3, "abc")
	wants(t, r.run("version"), 0, "controller-1")
	// It is kept over the end of hlctl, and never an older one.
	r.revoked = list(2)
	wants(t, r.run("version"), 0, "controller-1")
	data, err := os.ReadFile(r.path(kept))
	if err != nil {
		t.Fatal(err)
	}
	if l, err := rpc.ParseRevocations(data); err != nil || l.Number() != 3 {
		t.Errorf("list %d, %v", l.Number(), err)
	}
	// One that is on the list which it tells itself, and one that another told of.
	r.revoked = list(4, rpc.Serial(cert))
	wants(t, r.run("version"), 1, "was revoked")
	r.revoked = nil
	wants(t, r.run("version"), 1, "was revoked")
	if err := os.Remove(r.path(kept)); err != nil {
		t.Fatal(err)
	}
	// What cannot be kept holds for this command, and hinders none.
	r.revoked = list(5, "abc")
	if err := os.Mkdir(r.path(kept), 0o700); err != nil {
		t.Fatal(err)
	}
	if got := r.run("version"); got.code != 1 || !strings.Contains(got.err, kept) {
		t.Errorf("%+v", got)
	}
	other, err := rpc.NewCA("homelab", time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if r.revoked, err = other.SignRevocations(9, nil, time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(r.path(kept)); err != nil {
		t.Fatal(err)
	}
	wants(t, r.run("version"), 1, "list of revoked certificates")
}

func TestHlctlSaysThatItsOwnCertificateEndsSoon(t *testing.T) {
	r := newRig(t)
	const day = 24 * time.Hour
	for name, c := range map[string]struct {
		ago, life time.Duration
		warned    bool
	}{
		"a year, 15 days left":   {350 * day, 365 * day, false},
		"a year, 13 days left":   {352 * day, 365 * day, true},
		"a day, 12 hours left":   {12 * time.Hour, day, false},
		"three days, 2 hours ed": {70 * time.Hour, 3 * day, true},
	} {
		t.Run(name, func(t *testing.T) {
			root, err := rpc.NewCA("homelab", 20*365*day, time.Now().Add(-400*day))
			if err != nil {
				t.Fatal(err)
			}
			pair, err := root.Issue(rpc.Identity{Role: rpc.RoleAdmin, Name: "laptop"}, c.life, time.Now().Add(-c.ago))
			if err == nil {
				err = pair.Write(r.path("admin.pem"), r.path("admin.key"))
			}
			if err != nil {
				t.Fatal(err)
			}
			got := r.run("version") // the controller does not know it, which is no matter here
			if strings.Contains(got.err, "warning: the certificate of admin@laptop ends on") != c.warned {
				t.Errorf("%+v", got)
			}
			if c.warned && (!strings.Contains(got.err, "hlctl trust renew") || !strings.Contains(got.err, "hl-controller issue-admin") || strings.Contains(got.out, "warning")) {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestRenewWithoutTheRootSaysWhereToSayItAndTheOtherWay(t *testing.T) {
	r := newRig(t)
	fails(t, r.run("trust", "renew", "--root-cert", r.path("gone.pem")), "gone.pem: no such file", "--root-cert", "--root-key", "hl-controller issue-admin --out DIR")
}

func TestInitWithoutAControllerSaysHowItIsUsed(t *testing.T) {
	r := newRig(t)
	fails(t, r.run("init", "home"), `"controller" not set`, "hlctl init --help")
}
