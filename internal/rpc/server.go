package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// maxHeader bounds the headers of one call in bytes; ours have a few hundred, and
// gRPC takes 16 MiB from anybody.
const maxHeader = 16 << 10

// defaultGrace is how long open calls may go on once a server should end.
const defaultGrace = 5 * time.Second

// ServerConfig says who serves what to whom.
type ServerConfig struct {
	// Address is IP:PORT; port 0 takes any, see Server.Addr.
	Address string
	// Credentials are ours; callers must have certificates of the same CA and fleet.
	Credentials *Credentials
	// Allow says which roles may call which method; all others may not.
	Allow Allow
	// Grace is how long open calls may go on when Run's context ends, 0 is 5 s;
	// then they are cut off.
	Grace time.Duration
	// Audit is told of calls of audited methods; nil keeps none.
	Audit *Auditor
	// Log is told each call (never its contents); nil is slog.Default().
	Log *slog.Logger
}

// Server is a listening gRPC server.
type Server struct {
	listener net.Listener
	grpc     *grpc.Server
	grace    time.Duration
}

// Listen opens the address and registers the services; Run serves them. The
// address is open from here on, so it can be told to others before Run. A
// method in the table that no service has is ErrInvalid.
func Listen(ctx context.Context, cfg ServerConfig, register ...func(grpc.ServiceRegistrar)) (*Server, error) {
	if cfg.Credentials == nil {
		return nil, Errorf(ErrInvalid, "listen on %s: no credentials, and there is no way without", cfg.Address)
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Grace == 0 {
		cfg.Grace = defaultGrace
	}
	unary, stream := Authorize(cfg.Allow, cfg.Credentials)
	door := &gate{table: cfg.Allow, creds: cfg.Credentials, log: cfg.Log, audit: cfg.Audit}
	opts := append(append(MapServerErrors(cfg.Log), PlainAnswers()...),
		grpc.Creds(newServerCreds(cfg.Credentials)),
		grpc.ConnectionTimeout(connectTimeout),
		// Notices callers that vanished, so that what they held is free again.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 5 * time.Second, Timeout: 5 * time.Second}),
		// Half of what Dial does, so that its pings are never taken for abuse.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.InitialWindowSize(window), grpc.InitialConnWindowSize(window),
		grpc.ReadBufferSize(bufferBytes), grpc.WriteBufferSize(bufferBytes),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage), grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxHeaderListSize(maxHeader), grpc.InTapHandle(door.enter),
		grpc.ChainUnaryInterceptor(unary), grpc.ChainStreamInterceptor(stream),
	)
	if cfg.Audit != nil {
		unary, stream := cfg.Audit.interceptors()
		opts = append(opts, grpc.ChainUnaryInterceptor(unary), grpc.ChainStreamInterceptor(stream))
	}
	unary, stream = forViewers()
	opts = append(opts, grpc.ChainUnaryInterceptor(unary), grpc.ChainStreamInterceptor(stream))
	s := &Server{grpc: grpc.NewServer(opts...), grace: cfg.Grace}
	grpc_health_v1.RegisterHealthServer(s.grpc, health.NewServer())
	for _, r := range register {
		r(s.grpc)
	}
	if names := cfg.Allow.unknown(s.grpc.GetServiceInfo()); len(names) > 0 {
		return nil, Errorf(ErrInvalid, "listen on %s: allowed but not served: %s", cfg.Address, strings.Join(names, ", "))
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", cfg.Address, err)
	}
	s.listener = l
	return s, nil
}

// Addr is where it listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Close gives the address up; for when Run was never called.
func (s *Server) Close() error { return s.listener.Close() }

// Run serves until ctx ends. Open calls may then end by themselves for the
// grace period; their contexts end after it. It returns nil when ctx was why.
func (s *Server) Run(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- s.grpc.Serve(s.listener) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve on %s: %w", s.Addr(), err)
	case <-ctx.Done():
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		s.grpc.GracefulStop()
	}()
	timer := time.NewTimer(s.grace)
	defer timer.Stop()
	select {
	case <-stopped:
	case <-timer.C:
		s.grpc.Stop()
	}
	// Stopped before it served anybody: a daemon that ends as soon as it began.
	if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve on %s: %w", s.Addr(), err)
	}
	return nil
}

// MapServerErrors gives the options that turn errors of handlers into gRPC
// codes with their text, panics into Internal with the stack in the log, and
// that log each call without its contents. Listen uses them already; they are
// for servers built otherwise (driver plugins).
func MapServerErrors(log *slog.Logger) []grpc.ServerOption {
	unary := func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (reply any, err error) {
		start := time.Now()
		defer func() {
			if p := recover(); p != nil {
				reply, err = nil, panicked(ctx, log, info.FullMethod, p)
			}
			served(ctx, log, info.FullMethod, start, err)
			err = ToStatus(err)
		}()
		return next(ctx, req)
	}
	stream := func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
		start, ctx := time.Now(), ss.Context()
		defer func() {
			if p := recover(); p != nil {
				err = panicked(ctx, log, info.FullMethod, p)
			}
			served(ctx, log, info.FullMethod, start, err)
			err = ToStatus(err)
		}()
		return next(srv, ss)
	}
	return []grpc.ServerOption{grpc.ChainUnaryInterceptor(unary), grpc.ChainStreamInterceptor(stream)}
}

// panicked tells the log where it was, and the caller only that it was. A
// panic's value could hold parts of the request, except for the runtime's own.
func panicked(ctx context.Context, log *slog.Logger, method string, value any) error {
	cause := fmt.Sprintf("a value of type %T", value)
	var re runtime.Error
	if err, ok := value.(error); ok && errors.As(err, &re) {
		cause = re.Error()
	}
	log.ErrorContext(ctx, "panic in a call", "method", method, "cause", cause, "stack", string(debug.Stack()))
	return status.Errorf(codes.Internal, "%s: internal error, its place is in the log of the process called", shortName(method))
}

func served(ctx context.Context, log *slog.Logger, method string, start time.Time, err error) {
	if method == grpc_health_v1.Health_Check_FullMethodName {
		return
	}
	level := slog.LevelDebug
	if err != nil && !errors.Is(err, context.Canceled) {
		level = slog.LevelInfo
	}
	id, _ := PeerIdentity(ctx) // unknown is empty
	log.LogAttrs(ctx, level, "served", slog.String("method", method), slog.String("peer", id.Name),
		slog.String("role", id.Role), slog.Duration("duration", time.Since(start)), slog.String("kind", kindName(err)))
}

// kindName is a kind for the log; the text of an error is not logged here, it
// may quote the request.
func kindName(err error) string {
	switch k := KindOf(err); {
	case err == nil:
		return "ok"
	case k != "":
		return string(k)
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.Is(err, context.DeadlineExceeded):
		return "deadline"
	}
	return "unknown"
}
