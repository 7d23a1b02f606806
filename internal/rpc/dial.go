package rpc

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
)

const (
	// connectTimeout bounds one attempt to connect, handshake included.
	connectTimeout = 3 * time.Second
	// maxMessage bounds one message, in bytes: a plan for ten thousand guests is
	// larger than gRPC's 4 MiB.
	maxMessage = 64 << 20
	// window is how many bytes of a stream may be on their way: image files go over
	// the same connections as everything else, and gRPC's 64 KiB would have them wait
	// for an answer after each message. Buffers are of a few TLS records.
	window      = 4 << 20
	bufferBytes = 128 << 10
	// defaultSilence is how long a peer may leave a ping unanswered while a call
	// is open.
	defaultSilence = 5 * time.Second
)

// Target says whom to call and how.
type Target struct {
	// Address is IP:PORT.
	Address string
	// Role is the role that the other side's certificate must have.
	Role string
	// Name is the name in it; empty accepts any of that role.
	Name string
	// Credentials are ours.
	Credentials *Credentials
	// Reads are the full names of the methods that change nothing: unary ones
	// are repeated a few times while the answer is Unavailable. No other call
	// is ever repeated here.
	Reads []string
	// Silence is after how long without any answer the connection is given up
	// while calls are open, which then fail as ErrUnavailable; 0 is 5 s. gRPC's
	// own keepalive cannot go below 10 s.
	Silence time.Duration
	// Log is told each call (never its contents); nil is slog.Default().
	Log *slog.Logger
}

// Dial prepares calls to one peer; it connects with the first call, and again
// after a loss. Errors of calls have kinds: ErrUnavailable when nobody answers,
// ErrDenied when the other side's certificate or ours is the trouble. Calls need
// a deadline of their own. Close the connection when done.
func Dial(t Target) (*grpc.ClientConn, error) {
	switch {
	case t.Credentials == nil:
		return nil, Errorf(ErrInvalid, "dial %s: no credentials, and there is no way without", t.Address)
	case t.Role == "":
		return nil, Errorf(ErrInvalid, "dial %s: the role to expect is not given", t.Address)
	}
	if _, _, err := net.SplitHostPort(t.Address); err != nil {
		return nil, Errorf(ErrInvalid, "dial %s: %w", t.Address, err)
	}
	if t.Silence == 0 {
		t.Silence = defaultSilence
	}
	if t.Log == nil {
		t.Log = slog.Default()
	}
	c := &client{target: t, trouble: new(trouble)}
	c.lines = &lines{open: make(map[net.Conn]struct{}), unreached: func() { c.trouble.set(nil) }}
	conn, err := grpc.NewClient("passthrough:///"+t.Address,
		grpc.WithTransportCredentials(newClientCreds(t.Credentials, t.Role, t.Name, c.trouble)),
		grpc.WithNoProxy(),
		grpc.WithContextDialer(c.lines.dial),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: connectTimeout,
		}),
		// Notices a dead peer on connections without calls; the pulse is for
		// the others.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(window),
		grpc.WithReadBufferSize(bufferBytes), grpc.WithWriteBufferSize(bufferBytes),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage), grpc.ForceCodecV2(newCodec())),
		grpc.WithChainUnaryInterceptor(c.unary),
		grpc.WithChainStreamInterceptor(c.stream),
		// The service configuration could come from DNS otherwise.
		grpc.WithDisableServiceConfig(),
		// Retries are ours alone: gRPC's transparent ones are for calls that
		// were never sent, but nobody should have to know that.
		grpc.WithDisableRetry(),
	)
	if err != nil {
		return nil, Errorf(ErrInvalid, "dial %s: %w", t.Address, err)
	}
	c.pulse = &pulse{
		silence: t.Silence,
		ping: func(ctx context.Context) error {
			var reply grpc_health_v1.HealthCheckResponse
			return conn.Invoke(ctx, grpc_health_v1.Health_Check_FullMethodName, new(grpc_health_v1.HealthCheckRequest), &reply)
		},
		lost: func() {
			c.trouble.set(Errorf(ErrUnavailable, "%s has not answered for %s", c.whom(), t.Silence))
			c.lines.cut()
		},
	}
	return conn, nil
}

// lines are the open TCP connections of one Dial, so that a silent peer's can
// be cut: gRPC then ends their calls and connects afresh.
type lines struct {
	mu   sync.Mutex
	open map[net.Conn]struct{}
	// unreached is told that nobody was reached: what was wrong with the last
	// connection is not what is wrong now.
	unreached func()
}

func (l *lines) dial(ctx context.Context, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		l.unreached()
		return nil, err
	}
	tracked := &line{Conn: conn, of: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[tracked] = struct{}{}
	return tracked, nil
}

func (l *lines) cut() {
	l.mu.Lock()
	var all []net.Conn
	for c := range l.open {
		all = append(all, c)
	}
	l.mu.Unlock()
	for _, c := range all {
		_ = c.Close()
	}
}

type line struct {
	net.Conn
	of *lines
}

func (l *line) Close() error {
	l.of.mu.Lock()
	delete(l.of.open, l)
	l.of.mu.Unlock()
	return l.Conn.Close()
}

// pulse asks the peer for a sign of life while calls are open. A host that was
// switched off resets nothing: without this a stream to it would look merely
// quiet for as long as TCP retransmits.
type pulse struct {
	silence time.Duration
	ping    func(context.Context) error
	lost    func()

	mu      sync.Mutex
	calls   int
	beating bool
}

// enter says that a call begins; the function it returns, that it ended.
func (p *pulse) enter() (leave func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls++
	if !p.beating {
		p.beating = true
		go p.beat()
	}
	return sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.calls--
	})
}

// beat runs while there are calls. It waits before it first pings, so short
// calls cost nothing but a sleeping goroutine.
func (p *pulse) beat() {
	for {
		time.Sleep(p.silence / 5)
		p.mu.Lock()
		if p.calls == 0 {
			p.beating = false
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), p.silence)
		// Any answer is a sign of life, an error of the other side too.
		silent := p.ping(ctx) != nil && ctx.Err() != nil
		cancel()
		if silent {
			p.lost()
		}
	}
}
