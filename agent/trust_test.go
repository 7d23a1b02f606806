package agent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	trustv1 "github.com/homeiac/homelab/gen/homelab/trust/v1"
	"github.com/homeiac/homelab/internal/config"
	"github.com/homeiac/homelab/internal/gossip"
	"github.com/homeiac/homelab/internal/rpc"
)

// trusting is an agent's trust with files of its own.
func (p *fleetCA) trusting(creds *rpc.Credentials) (*trust, Config) {
	p.t.Helper()
	dir := p.t.TempDir()
	cfg := Config{Daemon: config.Daemon{State: dir, GossipKeys: filepath.Join(dir, "gossip.keys")}}
	if err := gossip.WriteKeys(cfg.GossipKeys, [][]byte{gossip.NewKey()}); err != nil {
		p.t.Fatal(err)
	}
	tr, err := openTrust(cfg, creds, slog.New(slog.DiscardHandler))
	if err != nil {
		p.t.Fatal(err)
	}
	return tr, cfg
}

func (p *fleetCA) list(number int64, serials ...string) []byte {
	p.t.Helper()
	revoked := make(map[string]time.Time)
	for _, s := range serials {
		revoked[s] = time.Now()
	}
	list, err := p.ca.SignRevocations(number, revoked, time.Now())
	if err != nil {
		p.t.Fatal(err)
	}
	return list.PEM()
}

func TestAnAgentKeepsWhoIsTrustedAndAppliesIt(t *testing.T) {
	p, w := newFleet(t), newWorld(t)
	creds := p.of(rpc.RoleAgent, "pve1")
	tr, cfg := p.trusting(creds)
	w.svc.trust = tr
	address := w.listen(creds)
	call := func(as string, told *trustv1.Trust) (*agentv1.SetTrustResponse, error) {
		conn, err := rpc.Dial(rpc.Target{Address: address, Role: rpc.RoleAgent, Credentials: p.of(as, "one")})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return agentv1.NewAgentServiceClient(conn).SetTrust(t.Context(), &agentv1.SetTrustRequest{Trust: told})
	}
	keys := [][]byte{gossip.NewKey(), gossip.NewKey()}
	var ring [][]byte
	tr.setRing(func(k [][]byte) error { ring = k; return nil })
	resp, err := call(rpc.RoleController, &trustv1.Trust{Revocations: p.list(3, "abc"), Roots: p.ca.Cert(), GossipKeys: keys})
	if err != nil {
		t.Fatal(err)
	}
	if list, err := rpc.ParseRevocations(resp.GetRevocations()); err != nil || list.Number() != 3 {
		t.Errorf("%v, %v", list.Number(), err)
	}
	kept, err := gossip.ReadKeys(cfg.GossipKeys)
	if err != nil || len(kept) != 2 || !bytes.Equal(kept[0], keys[0]) || len(ring) != 2 {
		t.Errorf("%d keys kept, %d in the ring, %v", len(kept), len(ring), err)
	}
	// An older list is left aside, and the teller sees by the answer.
	resp, err = call(rpc.RoleController, &trustv1.Trust{Revocations: p.list(2)})
	if list, _ := rpc.ParseRevocations(resp.GetRevocations()); err != nil || list.Number() != 3 {
		t.Errorf("%v, %v", list.Number(), err)
	}
	stranger := newFleet(t)
	for name, told := range map[string]*trustv1.Trust{
		"a list of strangers":  {Revocations: stranger.list(9)},
		"roots of strangers":   {Roots: stranger.ca.Cert()},
		"a key of three bytes": {GossipKeys: [][]byte{{1, 2, 3}}},
		"no list":              {Revocations: []byte("x")},
	} {
		if _, err := call(rpc.RoleController, told); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	for _, role := range []string{rpc.RoleAdmin, rpc.RoleViewer, rpc.RoleAgent} {
		if _, err := call(role, &trustv1.Trust{}); !errors.Is(err, rpc.ErrDenied) {
			t.Errorf("%s: %v", role, err)
		}
	}
	again, err := openTrust(cfg, p.of(rpc.RoleAgent, "pve1"), tr.log)
	if err != nil || again.creds.Revocations().Number() != 3 {
		t.Errorf("after a restart: %d, %v", again.creds.Revocations().Number(), err)
	}
}

// presenter is a controller that tells who is trusted.
type presenter struct {
	trustv1.UnimplementedTrustServiceServer
	told *trustv1.Trust
}

func (p *presenter) Present(context.Context, *trustv1.PresentRequest) (*trustv1.PresentResponse, error) {
	return &trustv1.PresentResponse{Trust: p.told}, nil
}

func (p *fleetCA) serve(creds *rpc.Credentials, told *trustv1.Trust) string {
	p.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	srv, err := rpc.Listen(ctx, rpc.ServerConfig{
		Address: "127.0.0.1:0", Credentials: creds, Log: slog.New(slog.DiscardHandler), Grace: time.Millisecond,
		Allow: rpc.Allow{trustv1.TrustService_Present_FullMethodName: {rpc.RoleAgent}},
	}, func(r grpc.ServiceRegistrar) { trustv1.RegisterTrustServiceServer(r, &presenter{told: told}) })
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

func TestAnAgentThatWasOffAsksWhoIsTrustedBeforeItServes(t *testing.T) {
	p := newFleet(t)
	tr, _ := p.trusting(p.of(rpc.RoleAgent, "pve1"))
	_ = tr.ask(t.Context()) // it knows nobody: nothing to wait for
	good := p.serve(p.of(rpc.RoleController, "c1"), &trustv1.Trust{Revocations: p.list(4, "abc")})
	// What claims to be a controller in the gossip and is none is not believed.
	liar := p.serve(p.of(rpc.RoleAgent, "pve9"), &trustv1.Trust{Revocations: p.list(9)})
	// A plain port that closes: refused at once.
	gone := "127.0.0.1:1"
	for _, peers := range [][]gossip.Peer{
		{{Role: rpc.RoleController, Name: "c1", Address: good, Alive: true}, {Role: rpc.RoleController, Name: "c2", Address: liar, Alive: true}},
		{{Role: rpc.RoleController, Name: "c3", Address: gone, Alive: true}, {Role: rpc.RoleAgent, Name: "pve2", Address: gone, Alive: true}},
	} {
		if err := tr.rememberAll(peers); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := tr.remembered(); err != nil || len(all) != 3 || all[0].Name != "c3" {
		t.Errorf("%v, %v", all, err)
	}
	_ = tr.ask(t.Context())
	if n := tr.creds.Revocations().Number(); n != 4 {
		t.Errorf("list %d", n)
	}
	if err := os.WriteFile(tr.controllers, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	_ = tr.ask(t.Context()) // what is lost is not fatal
	if err := tr.rememberAll([]gossip.Peer{{Role: rpc.RoleController, Name: "c1", Address: good, Alive: true}}); err != nil {
		t.Error(err)
	}
}
