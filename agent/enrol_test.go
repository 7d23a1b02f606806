package agent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	trustv1 "github.com/homeiac/homelab/gen/homelab/trust/v1"
	"github.com/homeiac/homelab/internal/enrol"
	"github.com/homeiac/homelab/internal/gossip"
	"github.com/homeiac/homelab/internal/rpc"
)

// enroller is a controller's service for those without a certificate.
type enroller struct {
	trustv1.UnimplementedEnrolServiceServer
	p *fleetCA
	// as is whose certificate is given, whatever was asked for.
	as    rpc.Identity
	life  time.Duration
	roots []byte
	list  []byte
	creds *rpc.Credentials
	// issuing signs what is renewed; nil is the fleet's root.
	issuing *rpc.CA
}

func (e *enroller) Enrol(_ context.Context, req *trustv1.EnrolRequest) (*trustv1.EnrolResponse, error) {
	key, err := rpc.RequestKey(req.GetCsr())
	if err != nil {
		return nil, err
	}
	cert, err := e.p.ca.Sign(key, e.as, nil, e.life, time.Now())
	return &trustv1.EnrolResponse{Certificate: cert, Trust: e.trust(), Seeds: []string{"127.0.0.1:7946"}}, err
}

func (e *enroller) Renew(ctx context.Context, _ *trustv1.RenewRequest) (*trustv1.RenewResponse, error) {
	old, id, err := e.creds.Lapsed(ctx, time.Hour)
	if err != nil {
		return nil, err
	}
	ca := e.p.ca
	if e.issuing != nil {
		ca = e.issuing
	}
	cert, err := ca.Sign(old.PublicKey, id, nil, e.life, time.Now())
	return &trustv1.RenewResponse{Certificate: cert, Trust: e.trust()}, err
}

func (e *enroller) trust() *trustv1.Trust {
	return &trustv1.Trust{Roots: e.roots, Revocations: e.list, GossipKeys: [][]byte{bytes.Repeat([]byte{7}, 32)}}
}

// enrols serves e and returns where; as says with what, instead of a certificate of the
// root.
func (p *fleetCA) enrols(e *enroller, as ...func() *rpc.Credentials) string {
	p.t.Helper()
	e.p, e.life, e.creds = p, time.Hour, p.of(rpc.RoleController, "c1")
	for _, creds := range as {
		e.creds = creds()
	}
	e.as.Fleet = "home"
	if e.roots == nil {
		e.roots = p.ca.Cert()
	}
	ctx, cancel := context.WithCancel(context.Background())
	srv, err := rpc.ListenEnrol(ctx, rpc.EnrolConfig{
		Address: "127.0.0.1:0", Credentials: e.creds, Log: slog.New(slog.DiscardHandler), Admit: func(string) error { return nil },
	}, func(r grpc.ServiceRegistrar) { trustv1.RegisterEnrolServiceServer(r, e) })
	if err != nil {
		p.t.Fatal(err)
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		_ = srv.Run(ctx)
	}()
	p.t.Cleanup(func() { cancel(); <-over })
	return srv.Addr().String()
}

func (p *fleetCA) token(role string) string {
	p.t.Helper()
	roots, err := rpc.ParseRoots(p.ca.Cert(), "home")
	if err != nil {
		p.t.Fatal(err)
	}
	token, err := rpc.NewToken(rpc.Identity{Fleet: "home", Role: role, Name: "pve1"}, rpc.RootHash(roots[0]))
	if err != nil {
		p.t.Fatal(err)
	}
	return token.Text()
}

// A controller that gives something else than the token is for is not believed: what
// is written is what the token says, or nothing.
func TestWhatAnEnrolmentDoesNotTake(t *testing.T) {
	p := newFleet(t)
	stranger := newFleet(t)
	good := rpc.Identity{Role: rpc.RoleAgent, Name: "pve1"}
	for _, c := range []struct {
		name, token string
		e           *enroller
		kind        rpc.Kind
	}{
		{"another's certificate", p.token(rpc.RoleAgent), &enroller{as: rpc.Identity{Role: rpc.RoleAgent, Name: "pve2"}}, rpc.ErrRefused},
		{"roots without the token's", p.token(rpc.RoleAgent), &enroller{as: good, roots: stranger.ca.Cert()}, rpc.ErrRefused},
		{"a token for a controller", p.token(rpc.RoleController), &enroller{as: good}, rpc.ErrInvalid},
		{"no token", "x", &enroller{as: good}, rpc.ErrInvalid},
		{"a token of strangers", stranger.token(rpc.RoleAgent), &enroller{as: good}, rpc.ErrDenied},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			e := enrol.Request{Controller: p.enrols(c.e), Token: c.token, Config: filepath.Join(dir, "agent.yaml"), State: filepath.Join(dir, "state"), Out: new(bytes.Buffer)}
			if err := Enrol(t.Context(), e); !errors.Is(err, c.kind) {
				t.Errorf("%v", err)
			}
			for _, name := range []string{"agent.yaml", "state/agent.crt", "state/ca.crt", "state/gossip.keys"} {
				if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
					t.Errorf("%s was written", name)
				}
			}
		})
	}
}

func TestAnEnrolmentKeepsTheConfigurationAndTheKeyThatAreThere(t *testing.T) {
	p := newFleet(t)
	at := p.enrols(&enroller{as: rpc.Identity{Role: rpc.RoleAgent, Name: "pve1"}, list: p.list(5, "abc")})
	_, dir, err := load(t, goodConfig)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "agent.yaml")
	text := strings.Replace(goodConfig, "/etc/homelab/agent.key", "agent.key", 1)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var keys []string
	for range 2 {
		if err := Enrol(t.Context(), enrol.Request{Controller: at, Token: p.token(rpc.RoleAgent), Config: file, Out: new(bytes.Buffer)}); err != nil {
			t.Fatal(err)
		}
		key, err := os.ReadFile(filepath.Join(dir, "agent.key"))
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, string(key))
	}
	if kept, err := os.ReadFile(file); err != nil || string(kept) != text || keys[0] != keys[1] {
		t.Errorf("configuration or key changed: %v", err)
	}
	// It knows who is revoked before it ever starts.
	creds, err := rpc.LoadTLS(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "agent.pem"), filepath.Join(dir, "agent.key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := creds.KeepRevocations(filepath.Join(dir, "state", "revocations.pem")); err != nil || creds.Revocations().Number() != 5 {
		t.Errorf("list %d, %v", creds.Revocations().Number(), err)
	}
	other := strings.Replace(text, "name: pve1", "name: pve2", 1)
	if err := os.WriteFile(file, []byte(other), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Enrol(t.Context(), enrol.Request{Controller: at, Token: p.token(rpc.RoleAgent), Config: file, Out: new(bytes.Buffer)}); !errors.Is(err, rpc.ErrInvalid) {
		t.Errorf("a token for another host: %v", err)
	}
}

// The package brings a configuration in which everything is a comment.
func TestAnEnrolmentFillsInThePackagesConfiguration(t *testing.T) {
	p := newFleet(t)
	at := p.enrols(&enroller{as: rpc.Identity{Role: rpc.RoleAgent, Name: "pve1"}, list: p.list(5, "abc")})
	packaged, err := os.ReadFile("../deploy/packages/agent.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file, state := filepath.Join(dir, "agent.yaml"), filepath.Join(dir, "state")
	if err := os.WriteFile(file, packaged, 0o600); err != nil {
		t.Fatal(err)
	}
	var texts []string
	for range 2 {
		e := enrol.Request{Controller: at, Token: p.token(rpc.RoleAgent), Config: file, State: state, Advertise: "127.9.1.1", Out: new(bytes.Buffer)}
		if err := Enrol(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, string(text))
	}
	if texts[0] != texts[1] || !strings.HasPrefix(texts[0], string(packaged)) {
		t.Errorf("%s\n%s", texts[0], texts[1])
	}
	cfg, err := LoadConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Name != "pve1" || cfg.Advertise != "127.9.1.1" || cfg.State != state || cfg.Cert != filepath.Join(state, "agent.crt") {
		t.Errorf("%+v", cfg)
	}
	if _, err := rpc.LoadTLS(cfg.CA, cfg.Cert, cfg.Key); err != nil {
		t.Error(err)
	}
}

func TestAHostThatWasOffOverItsCertificatesEndRenewsItFirst(t *testing.T) {
	p := newFleet(t)
	// It ended twenty minutes ago.
	pair, err := p.ca.Issue(rpc.Identity{Fleet: "home", Role: rpc.RoleAgent, Name: "pve1"}, 10*time.Minute, time.Now().Add(-30*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	ca, cert, key := filepath.Join(p.dir, "ca.crt"), filepath.Join(p.dir, "old.crt"), filepath.Join(p.dir, "old.key")
	if err := pair.Write(cert, key); err != nil {
		t.Fatal(err)
	}
	creds, err := rpc.LoadTLS(ca, cert, key)
	if err != nil {
		t.Fatal(err)
	}
	tr, cfg := p.trusting(creds)
	at := p.enrols(&enroller{list: p.list(3, "abc")})
	tr.begin(t.Context()) // it knows nobody yet
	const gone = "127.0.0.1:1"
	if err := tr.remember(known{Name: "c0", Address: gone}, known{Name: "c9", Address: gone, Enrol: gone}, known{Name: "c1", Address: gone, Enrol: at}); err != nil {
		t.Fatal(err)
	}
	before := rpc.Serial(creds.Leaf())
	tr.begin(t.Context())
	if !creds.NotAfter().After(time.Now()) || rpc.Serial(creds.Leaf()) == before || creds.Revocations().Number() != 3 {
		t.Errorf("not renewed, or list %d", creds.Revocations().Number())
	}
	if keys, err := gossip.ReadKeys(cfg.GossipKeys); err != nil || keys[0][0] != 7 {
		t.Errorf("the gossip's keys did not come along: %v", err)
	}
	// Nobody to ask is an error, and no wait.
	lonely, _ := p.trusting(p.of(rpc.RoleAgent, "pve2"))
	if err := lonely.renew(t.Context()); !errors.Is(err, rpc.ErrUnavailable) {
		t.Errorf("%v", err)
	}
}
