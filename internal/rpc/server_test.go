package rpc_test

import (
	"context"
	"errors"
	"io"
	"path"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/homeiac/homelab/internal/rpc"
)

func TestOnlyTheTableAllows(t *testing.T) {
	f := newFleet(t, "home")
	h := echoing()
	h.unary = func(ctx context.Context, _, _ string) (string, error) {
		id, err := rpc.PeerIdentity(ctx)
		return id.String(), err
	}
	h.stream = func(ctx context.Context, send func(string) error) error {
		id, err := rpc.PeerIdentity(ctx)
		if err != nil {
			return err
		}
		return send(id.String())
	}
	addr := serve(t, f.creds(rpc.RoleAgent, "pve1"), h, quiet)
	for _, c := range []struct {
		role, method string
		may          bool
	}{
		{rpc.RoleAdmin, echo, true},
		{rpc.RoleAdmin, look, true},
		{rpc.RoleAdmin, flow, true},
		{rpc.RoleViewer, echo, false},
		{rpc.RoleViewer, look, true},
		{rpc.RoleViewer, flow, false},
		{rpc.RoleAgent, echo, false},
		{rpc.RoleAgent, look, false},
		{rpc.RoleController, flow, true},
		{rpc.RoleAdmin, secret, false}, // served, but in no table
	} {
		t.Run(c.role+c.method, func(t *testing.T) {
			conn := dial(t, rpc.Target{Address: addr, Credentials: f.creds(c.role, "x")})
			var got string
			var err error
			if c.method == flow {
				var s grpc.ClientStream
				if s, err = open(t.Context(), conn, ""); err == nil {
					got, err = receive(s)
				}
			} else {
				got, err = call(t, conn, c.method, "")
			}
			if c.may && (err != nil || got != c.role+"@x") {
				t.Errorf("%q, %v", got, err)
			}
			if !c.may {
				denied(t, err, c.role+"@x may not call "+path.Base(c.method)+":")
			}
		})
	}
}

func TestAServerStoppedBeforeItServesEndsWell(t *testing.T) {
	f := newFleet(t, "home")
	creds := f.creds(rpc.RoleAgent, "pve1")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 50 { // which of its goroutines comes first is chance
		s, err := rpc.Listen(t.Context(), rpc.ServerConfig{Address: "127.0.0.1:0", Credentials: creds})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Run(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

func TestATableWithAnUnknownMethodIsRefused(t *testing.T) {
	f := newFleet(t, "home")
	_, err := rpc.Listen(t.Context(), rpc.ServerConfig{
		Address: "127.0.0.1:0", Credentials: f.creds(rpc.RoleAgent, "pve1"), Allow: rpc.Allow{"/test.Test/Ecko": {rpc.RoleAdmin}},
	}, echoing().register)
	if !errors.Is(err, rpc.ErrInvalid) || !strings.Contains(err.Error(), "/test.Test/Ecko") {
		t.Error(err)
	}
}

func TestNothingOfACallIsLoggedButItsNames(t *testing.T) {
	const token = "K10deadbeef"
	f := newFleet(t, "home")
	served, called := new(buffer), new(buffer)
	h := handlers{
		unary: func(_ context.Context, method, in string) (string, error) {
			switch method {
			case echo:
				panic("bad token " + in)
			default:
				return in, rpc.Errorf(rpc.ErrRefused, "token %s is wrong", in)
			}
		},
		stream: func(_ context.Context, send func(string) error) error {
			if err := send(token); err != nil {
				return err
			}
			var none []int
			_ = none[len(token)]
			return nil
		},
	}
	addr := serve(t, f.creds(rpc.RoleAgent, "pve1"), h, served.logger())
	conn := dial(t, rpc.Target{Address: addr, Name: "pve1", Credentials: f.creds(rpc.RoleAdmin, "me"), Log: called.logger()})

	_, err := call(t, conn, echo, token)
	if err == nil || rpc.KindOf(err) != "" || !strings.Contains(err.Error(), "internal error") || strings.Contains(err.Error(), token) {
		t.Errorf("panic came back as %v", err)
	}
	if _, err := call(t, conn, look, token); !errors.Is(err, rpc.ErrRefused) {
		t.Error(err)
	}
	s, err := open(t.Context(), conn, token)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := receive(s); got != token || err != nil {
		t.Fatal(got, err)
	}
	if _, err := receive(s); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("panic in a stream came back as %v", err)
	}
	// The server writes its line after the answer: wait for the last one.
	for deadline := time.Now().Add(5 * time.Second); strings.Count(served.String(), "msg=served") < 3 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	for name, log := range map[string]string{"server": served.String(), "client": called.String()} {
		if strings.Contains(log, token) {
			t.Errorf("the %s's log holds the request:\n%s", name, log)
		}
	}
	for _, want := range []string{
		"msg=served method=/test.Test/Look peer=me role=admin duration=", "kind=refused", `msg="panic in a call" method=/test.Test/Echo`,
		"server_test.go", "index out of range",
	} {
		if !strings.Contains(served.String(), want) {
			t.Errorf("the server's log lacks %q:\n%s", want, served)
		}
	}
	if want := "msg=called method=/test.Test/Look peer=pve1 role=agent duration="; !strings.Contains(called.String(), want) {
		t.Errorf("the client's log lacks %q:\n%s", want, called)
	}
}

func TestOnlyReadsAreRepeated(t *testing.T) {
	f := newFleet(t, "home")
	var calls atomic.Int32
	h := handlers{unary: func(context.Context, string, string) (string, error) {
		if calls.Add(1) < 3 {
			return "", rpc.Errorf(rpc.ErrUnavailable, "starting")
		}
		return "here", nil
	}}
	addr := serve(t, f.creds(rpc.RoleAgent, "pve1"), h, quiet)
	conn := dial(t, rpc.Target{Address: addr, Credentials: f.creds(rpc.RoleAdmin, "me"), Reads: []string{look}})
	if got, err := call(t, conn, look, ""); got != "here" || err != nil || calls.Load() != 3 {
		t.Errorf("read: %q, %v after %d calls", got, err, calls.Load())
	}
	calls.Store(0)
	if _, err := call(t, conn, echo, ""); !errors.Is(err, rpc.ErrUnavailable) || calls.Load() != 1 {
		t.Errorf("mutation: %v after %d calls", err, calls.Load())
	}
	calls.Store(-100)
	if _, err := call(t, conn, look, ""); !errors.Is(err, rpc.ErrUnavailable) || calls.Load() != -96 {
		t.Errorf("read without end: %v after %d calls", err, calls.Load()+100)
	}
}

func TestNobodyThereIsUnavailable(t *testing.T) {
	f := newFleet(t, "home")
	s, err := rpc.Listen(t.Context(), rpc.ServerConfig{Address: "127.0.0.1:0", Credentials: f.creds(rpc.RoleAgent, "pve1")})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = call(t, dial(t, rpc.Target{Address: s.Addr().String(), Credentials: f.creds(rpc.RoleAdmin, "me")}), echo, "")
	if !errors.Is(err, rpc.ErrUnavailable) || !strings.Contains(err.Error(), "connection refused") {
		t.Error(err)
	}
}

func TestASilentPeerEndsAStream(t *testing.T) {
	f := newFleet(t, "home")
	h := handlers{stream: func(ctx context.Context, send func(string) error) error {
		if err := send("first"); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	}}
	relay := newMuffle(t, serve(t, f.creds(rpc.RoleAgent, "pve1"), h, quiet))
	conn := dial(t, rpc.Target{
		Address: relay.Addr().String(), Name: "pve1", Credentials: f.creds(rpc.RoleAdmin, "me"), Silence: 500 * time.Millisecond,
	})
	s, err := open(t.Context(), conn, "")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := receive(s); got != "first" || err != nil {
		t.Fatal(got, err)
	}
	relay.hush()
	start := time.Now()
	_, err = receive(s)
	if !errors.Is(err, rpc.ErrUnavailable) || !strings.Contains(err.Error(), "agent pve1 at "+relay.Addr().String()+" has not answered for 500ms") {
		t.Error(err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("noticed after %s", d)
	}
}

func TestAQuietStreamOfALivingPeerGoesOn(t *testing.T) {
	f := newFleet(t, "home")
	h := handlers{stream: func(_ context.Context, send func(string) error) error {
		time.Sleep(time.Second) // quiet for twice the silence allowed
		return send("late")
	}}
	addr := serve(t, f.creds(rpc.RoleAgent, "pve1"), h, quiet)
	conn := dial(t, rpc.Target{Address: addr, Credentials: f.creds(rpc.RoleAdmin, "me"), Silence: 500 * time.Millisecond})
	s, err := open(t.Context(), conn, "")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := receive(s); got != "late" || err != nil {
		t.Fatal(got, err)
	}
	if _, err := receive(s); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

func TestStoppingCutsWhatDoesNotEnd(t *testing.T) {
	f := newFleet(t, "home")
	ended := make(chan struct{})
	h := handlers{stream: func(ctx context.Context, send func(string) error) error {
		defer close(ended)
		if err := send("on"); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	}}
	ctx, stop := context.WithCancel(t.Context())
	srv, err := rpc.Listen(ctx, rpc.ServerConfig{
		Address: "127.0.0.1:0", Credentials: f.creds(rpc.RoleAgent, "pve1"), Allow: everyone, Grace: 20 * time.Millisecond,
	}, h.register)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	s, err := open(t.Context(), dial(t, rpc.Target{Address: srv.Addr().String(), Credentials: f.creds(rpc.RoleAdmin, "me")}), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := receive(s); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	<-ended
	if _, err := receive(s); !errors.Is(err, rpc.ErrUnavailable) {
		t.Error(err)
	}
}
