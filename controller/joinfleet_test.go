package controller

import (
	"bytes"
	"context"
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

// giver gives everybody the certificate of c2.
type giver struct {
	trustv1.UnimplementedEnrolServiceServer
	ca    *rpc.CA
	trust *trustv1.Trust
}

func (g giver) Enrol(_ context.Context, req *trustv1.EnrolRequest) (*trustv1.EnrolResponse, error) {
	id := rpc.Identity{Fleet: fleetName, Role: rpc.RoleController, Name: "c2"}
	cert, err := g.ca.Sign(must(rpc.RequestKey(req.GetCsr())), id, nil, time.Hour, time.Now())
	return &trustv1.EnrolResponse{Certificate: cert, Trust: g.trust, Addresses: []string{"192.0.2.8"}, Seeds: []string{"192.0.2.7:7946"}}, err
}

func TestAFurtherControllerEnrolsAndFindsItsConfigurationWhole(t *testing.T) {
	f := newFleet(t)
	g := giver{ca: f.ca, trust: &trustv1.Trust{Roots: f.ca.Cert(), GossipKeys: [][]byte{gossip.NewKey()}}}
	ctx, cancel := context.WithCancel(t.Context())
	srv := must(rpc.ListenEnrol(ctx, rpc.EnrolConfig{
		Address: "127.0.0.1:0", Credentials: f.creds("controller-1"), Log: slog.New(slog.DiscardHandler), Admit: func(string) error { return nil },
	}, func(r grpc.ServiceRegistrar) { trustv1.RegisterEnrolServiceServer(r, g) }))
	over := make(chan struct{})
	go func() {
		defer close(over)
		_ = srv.Run(ctx)
	}()
	defer func() { cancel(); <-over }()

	id := rpc.Identity{Fleet: fleetName, Role: rpc.RoleController, Name: "c2"}
	token := must(rpc.NewToken(id, rpc.RootHash(f.ca.Certificate())))
	state, file := filepath.Join(f.dir, "state"), filepath.Join(f.dir, "etc", "controller.yaml")
	packaged := must(os.ReadFile("../deploy/packages/controller.yaml"))
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"state/fleet.key", "state/issuing-ca.pem", "state/issuing-ca.key"} {
		f.write(name, []byte("x"))
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	f.write("etc/controller.yaml", packaged)
	var out bytes.Buffer
	q := enrol.Request{Controller: srv.Addr().String(), Token: token.Text(), Config: file, State: state, Out: &out}
	for range 2 {
		if err := Enrol(t.Context(), q, []string{"https://192.0.2.1:2379", "https://192.0.2.2:2379"}); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(out.String(), "configuration written"); n != 1 {
		t.Errorf("written %d times:\n%s", n, out.String())
	}
	text := must(os.ReadFile(file))
	if !bytes.HasPrefix(text, packaged) || must(os.Stat(file)).Mode().Perm() != 0o644 {
		t.Errorf("%s", text)
	}
	cfg, err := LoadConfig(file)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if cfg.Name != "c2" || cfg.Advertise != "192.0.2.8" || cfg.GossipPort != 7947 || len(cfg.Seeds) != 1 || cfg.State != state ||
		cfg.FleetKey != filepath.Join(state, "fleet.key") || len(cfg.Etcd.Endpoints) != 2 || cfg.Etcd.Key != filepath.Join(state, "etcd.key") {
		t.Errorf("%+v", cfg)
	}
	if creds, err := rpc.LoadTLS(cfg.CA, cfg.Cert, cfg.Key); err != nil || creds.Identity() != id {
		t.Errorf("%v, %v", creds, err)
	}
	if keys, err := gossip.ReadKeys(cfg.GossipKeys); err != nil || !bytes.Equal(keys[0], g.trust.GetGossipKeys()[0]) {
		t.Error(err)
	}
}
