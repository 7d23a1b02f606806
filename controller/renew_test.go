package controller

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	trustv1 "github.com/homeiac/homelab/gen/homelab/trust/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// aged gives a name of the fleet a certificate that ends when it is said.
func (f *fleet) aged(role, name string, now time.Time, life time.Duration) *rpc.Credentials {
	f.t.Helper()
	pair := must(must(f.ca.NewIssuing("c9", 3*365*24*time.Hour, now)).Issue(rpc.Identity{Role: role, Name: name}, life, now))
	if err := pair.Write(filepath.Join(f.dir, name+".pem"), filepath.Join(f.dir, name+".key")); err != nil {
		f.t.Fatal(err)
	}
	return f.creds(name)
}

func renew(t *testing.T, at string, creds *rpc.Credentials) (*trustv1.RenewResponse, error) {
	t.Helper()
	conn := must(rpc.DialEnrol(at, nil, creds))
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	return trustv1.NewEnrolServiceClient(conn).Renew(ctx, &trustv1.RenewRequest{})
}

func TestAnExpiredCertificateIsRenewedForAYearAndForThatCallOnly(t *testing.T) {
	f := newFleet(t, "pve1")
	f.enrolling(&clock{t: time.Now()})
	c := f.up()
	now := time.Now()
	const day = 24 * time.Hour
	for _, r := range []struct {
		name, role string
		issued     time.Duration // before now
		life       time.Duration
		kind       rpc.Kind
	}{
		{"in time", rpc.RoleAgent, time.Minute, time.Hour, ""},
		{"expired", rpc.RoleAgent, 100 * day, 90 * day, ""},
		{"expired long ago", rpc.RoleAgent, 500 * day, 90 * day, rpc.ErrDenied},
		{"of a person", rpc.RoleAdmin, time.Minute, time.Hour, rpc.ErrDenied},
		{"of a viewer", rpc.RoleViewer, time.Minute, time.Hour, rpc.ErrDenied},
	} {
		t.Run(r.name, func(t *testing.T) {
			creds := f.aged(r.role, "pve8", now.Add(-r.issued), r.life)
			resp, err := renew(t, c.enrolAt, creds)
			if rpc.KindOf(err) != r.kind {
				t.Fatalf("%v", err)
			}
			if err != nil {
				return
			}
			// The main port does not take it, unless it is still good.
			conn := must(rpc.Dial(rpc.Target{Address: c.address, Role: rpc.RoleController, Credentials: creds}))
			_, err = trustv1.NewTrustServiceClient(conn).Present(t.Context(), &trustv1.PresentRequest{})
			if errors.Is(err, rpc.ErrDenied) != (r.life < r.issued) {
				t.Errorf("the main port: %v", err)
			}
			_ = conn.Close()
			key := creds.Leaf().PublicKey
			if err := creds.SetCertificate(resp.GetCertificate()); err != nil {
				t.Fatal(err)
			}
			if !creds.NotAfter().After(now) || keyHash(creds.Leaf().PublicKey) != keyHash(key) || creds.Identity().Name != "pve8" {
				t.Errorf("renewed until %s for %s", creds.NotAfter(), creds.Identity())
			}
			if len(resp.GetTrust().GetGossipKeys()) == 0 || len(resp.GetTrust().GetRoots()) == 0 {
				t.Error("keys and roots do not come along")
			}
		})
	}
}

func TestARevokedCertificateIsNotRenewed(t *testing.T) {
	f := newFleet(t, "pve1")
	f.enrolling(&clock{t: time.Now()})
	c := f.up()
	creds := f.aged(rpc.RoleAgent, "pve8", time.Now(), time.Hour)
	resp, err := renew(t, c.enrolAt, creds)
	if err != nil {
		t.Fatal(err)
	}
	old := rpc.Serial(creds.Leaf())
	c.revokeNow(t, old)
	if _, err := renew(t, c.enrolAt, creds); !errors.Is(err, rpc.ErrDenied) || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("%v", err)
	}
	// By its holder, the one that it was renewed to goes too.
	if err := creds.SetCertificate(resp.GetCertificate()); err != nil {
		t.Fatal(err)
	}
	got, err := c.client.RevokeCertificate(t.Context(), &controllerv1.RevokeCertificateRequest{Holder: "agent@pve8"})
	if err != nil || len(got.GetSerials()) != 1 {
		t.Fatalf("%v, %v", got, err)
	}
	if _, err := renew(t, c.enrolAt, creds); !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("the renewed one: %v", err)
	}
	if _, err := c.client.RevokeCertificate(t.Context(), &controllerv1.RevokeCertificateRequest{Holder: "agent@pve8"}); !errors.Is(err, rpc.ErrNotFound) {
		t.Errorf("again: %v", err)
	}
}

func TestACertificateOfStrangersIsNotRenewed(t *testing.T) {
	f, other := newFleet(t, "pve1"), newFleet(t, "pve1")
	f.enrolling(&clock{t: time.Now()})
	c := f.up()
	other.aged(rpc.RoleAgent, "pve8", time.Now(), time.Hour)
	// It knows our root, and has a certificate of another of the same fleet's name.
	creds := must(rpc.LoadTLS(filepath.Join(f.dir, "ca.pem"), filepath.Join(other.dir, "pve8.pem"), filepath.Join(other.dir, "pve8.key")))
	if _, err := renew(t, c.enrolAt, creds); !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("%v", err)
	}
}

// A certificate with 6 s of life, by a clock that only moves when all callers have
// made a call since it moved last.
func TestACertificateIsRenewedTwentyTimesUnderFourCallersWithoutAFailure(t *testing.T) {
	const life, renewals, callers = 6 * time.Second, 20, 4
	f := newFleet(t, "pve1")
	clk := &clock{t: time.Now()}
	f.enrolling(clk)
	tune := f.tune
	f.tune = func(c *Controller) {
		tune(c)
		c.cfg.CertificateLife = 24 * time.Hour // its own does not change
	}
	c := f.up()
	c.cfg.CertificateLife = life
	server := f.aged(rpc.RoleAgent, "pve8", clk.now(), life)
	server.Now = clk.now
	ctx, cancel := context.WithCancel(context.Background())
	s := must(rpc.Listen(ctx, rpc.ServerConfig{
		Address: "127.0.0.1:0", Credentials: server, Grace: time.Millisecond,
		Allow: rpc.Allow{trustv1.TrustService_Present_FullMethodName: {rpc.RoleController}},
	}, func(r grpc.ServiceRegistrar) { trustv1.RegisterTrustServiceServer(r, &trustService{c: c.Controller}) }))
	var all sync.WaitGroup
	all.Go(func() { _ = s.Run(ctx) })
	defer all.Wait()
	defer cancel()

	var made [callers]atomic.Int64
	moved := make(chan struct{}, 1000)
	failed := make(chan error, callers)
	client := f.creds("controller-1")
	client.Now = clk.now
	for i := range callers {
		all.Go(func() {
			kept := must(rpc.Dial(rpc.Target{Address: s.Addr().String(), Role: rpc.RoleAgent, Name: "pve8", Credentials: client, Log: c.log}))
			defer kept.Close()
			for ctx.Err() == nil {
				// Half of the callers connect anew each time.
				conn := kept
				if i%2 == 0 {
					conn = must(rpc.Dial(rpc.Target{Address: s.Addr().String(), Role: rpc.RoleAgent, Name: "pve8", Credentials: client, Log: c.log}))
				}
				_, err := trustv1.NewTrustServiceClient(conn).Present(ctx, &trustv1.PresentRequest{})
				if conn != kept {
					_ = conn.Close()
				}
				if err != nil && ctx.Err() == nil {
					failed <- fmt.Errorf("caller %d: %w", i, err)
					return
				}
				made[i].Add(1)
				select {
				case moved <- struct{}{}:
				default:
				}
			}
		})
	}
	serials := map[string]bool{}
	count := 0
	renewal := &rpc.Renewal{
		Credentials: server, Log: c.log,
		Renew: func(context.Context) error {
			resp, err := renew(t, c.enrolAt, server)
			if err == nil {
				err = server.SetCertificate(resp.GetCertificate())
			}
			if err != nil {
				t.Error(err)
				return err
			}
			serials[rpc.Serial(server.Leaf())] = true
			count++
			return nil
		},
		Wait: func(_ context.Context, d time.Duration) bool {
			if count == renewals || t.Failed() {
				return false
			}
			// Each caller has begun and ended a call since the clock moved.
			var before [callers]int64
			for i := range before {
				before[i] = made[i].Load()
			}
			for i := range before {
				for made[i].Load() < before[i]+2 {
					select {
					case <-moved:
					case err := <-failed:
						t.Error(err)
						return false
					}
				}
			}
			clk.add(d)
			return true
		},
	}
	if err := renewal.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(serials) != renewals {
		t.Errorf("%d certificates", len(serials))
	}
	select {
	case err := <-failed:
		t.Error(err)
	default:
	}
	if n := must(os.ReadFile(filepath.Join(f.dir, "pve8.key"))); len(n) == 0 {
		t.Error("the key is gone")
	}
}
