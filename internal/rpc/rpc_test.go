package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/homeiac/homelab/internal/rpc"
)

// The service of these tests, written by hand so that internal/rpc depends on
// no proto of ours.
const (
	echo   = "/test.Test/Echo"
	look   = "/test.Test/Look"
	secret = "/test.Test/Secret"
	flow   = "/test.Test/Flow"
)

type text = wrapperspb.StringValue

// handlers is the behaviour of one test's server.
type handlers struct {
	unary  func(ctx context.Context, method, in string) (string, error)
	stream func(ctx context.Context, send func(string) error) error
}

func (h handlers) register(r grpc.ServiceRegistrar) {
	method := func(name string) grpc.MethodDesc {
		full := "/test.Test/" + name
		return grpc.MethodDesc{MethodName: name, Handler: func(
			_ any, ctx context.Context, dec func(any) error, icpt grpc.UnaryServerInterceptor,
		) (any, error) {
			in := new(text)
			if err := dec(in); err != nil {
				return nil, err
			}
			return icpt(ctx, in, &grpc.UnaryServerInfo{FullMethod: full}, func(ctx context.Context, req any) (any, error) {
				out, err := h.unary(ctx, full, req.(*text).GetValue())
				return wrapperspb.String(out), err
			})
		}}
	}
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Test", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{method("Echo"), method("Look"), method("Secret")},
		Streams: []grpc.StreamDesc{{StreamName: "Flow", ServerStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
			if err := s.RecvMsg(new(text)); err != nil {
				return err
			}
			return h.stream(s.Context(), func(v string) error { return s.SendMsg(wrapperspb.String(v)) })
		}}},
	}, h)
}

func echoing() handlers {
	return handlers{unary: func(_ context.Context, _, in string) (string, error) { return in, nil }}
}

// fleet is a CA with a folder.
type fleet struct {
	t   *testing.T
	ca  *rpc.CA
	dir string
}

func newFleet(t *testing.T, name string) *fleet {
	t.Helper()
	ca, err := rpc.NewCA(name, 24*time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	f := &fleet{t: t, ca: ca, dir: t.TempDir()}
	if err := ca.Write(f.path("ca.pem"), f.path("ca-key.pem")); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fleet) path(name string) string { return filepath.Join(f.dir, name) }

func (f *fleet) issue(role, name string, now time.Time) {
	f.t.Helper()
	pair, err := f.ca.Issue(rpc.Identity{Role: role, Name: name}, time.Hour, now)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := pair.Write(f.path(role+"-"+name+".pem"), f.path(role+"-"+name+"-key.pem")); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fleet) load(role, name string) *rpc.Credentials {
	f.t.Helper()
	c, err := rpc.LoadTLS(f.path("ca.pem"), f.path(role+"-"+name+".pem"), f.path(role+"-"+name+"-key.pem"))
	if err != nil {
		f.t.Fatal(err)
	}
	c.Log = quiet
	return c
}

func (f *fleet) creds(role, name string) *rpc.Credentials {
	f.t.Helper()
	f.issue(role, name, time.Now())
	return f.load(role, name)
}

// expired has a certificate that ended long ago.
func (f *fleet) expired(role, name string) *rpc.Credentials {
	f.t.Helper()
	f.issue(role, name, time.Now().Add(-48*time.Hour))
	return f.load(role, name)
}

var quiet = slog.New(slog.DiscardHandler)

var everyone = rpc.Allow{
	echo: {rpc.RoleAdmin, rpc.RoleController},
	look: {rpc.RoleAdmin, rpc.RoleController, rpc.RoleViewer},
	flow: {rpc.RoleAdmin, rpc.RoleController},
}

// serve runs a server until the test ends and returns its address.
func serve(t *testing.T, creds *rpc.Credentials, h handlers, log *slog.Logger) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s, err := rpc.Listen(ctx, rpc.ServerConfig{
		Address: "127.0.0.1:0", Credentials: creds, Allow: everyone, Log: log, Grace: 50 * time.Millisecond,
	}, h.register)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error("server:", err)
		}
	})
	return s.Addr().String()
}

func dial(t *testing.T, target rpc.Target) *grpc.ClientConn {
	t.Helper()
	if target.Log == nil {
		target.Log = quiet
	}
	if target.Role == "" {
		target.Role = rpc.RoleAgent
	}
	conn, err := rpc.Dial(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn
}

func call(t *testing.T, conn *grpc.ClientConn, method, in string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	out := new(text)
	err := conn.Invoke(ctx, method, wrapperspb.String(in), out)
	return out.GetValue(), err
}

// open starts Flow.
func open(ctx context.Context, conn *grpc.ClientConn, in string) (grpc.ClientStream, error) {
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, flow)
	if err != nil {
		return nil, err
	}
	if err := s.SendMsg(wrapperspb.String(in)); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return s, s.CloseSend()
}

func receive(s grpc.ClientStream) (string, error) {
	out := new(text)
	err := s.RecvMsg(out)
	return out.GetValue(), err
}

// buffer is a log that can be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *buffer) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// muffle is a TCP relay whose far side can be made to fall silent without
// closing anything, as a host that lost power does.
type muffle struct {
	net.Listener
	to     string
	silent chan struct{}
}

func newMuffle(t *testing.T, to string) *muffle {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &muffle{Listener: l, to: to, silent: make(chan struct{})}
	var all sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { m.relay(ctx, c) })
		}
	})
	t.Cleanup(func() { cancel(); _ = l.Close(); all.Wait() })
	return m
}

func (m *muffle) relay(ctx context.Context, near net.Conn) {
	far, err := new(net.Dialer).DialContext(ctx, "tcp", m.to)
	if err != nil {
		_ = near.Close()
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = near.Close(); _ = far.Close() })
	defer stop()
	var both sync.WaitGroup
	pipe := func(to, from net.Conn) {
		b := make([]byte, 4096)
		for {
			n, err := from.Read(b)
			if err != nil {
				break
			}
			select {
			case <-m.silent:
				continue // swallowed
			default:
			}
			if _, err := to.Write(b[:n]); err != nil {
				break
			}
		}
		_ = to.Close()
		_ = from.Close()
	}
	both.Go(func() { pipe(far, near) })
	both.Go(func() { pipe(near, far) })
	both.Wait()
}

func (m *muffle) hush() { close(m.silent) }
