package rpc

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	trustv1 "github.com/homeiac/homelab/gen/homelab/trust/v1"
)

const (
	// maxEnrolMessage bounds what somebody without a certificate may send, in bytes.
	maxEnrolMessage = 16 << 10
	// enrolConnections and enrolPerSource bound who may hold a connection at once.
	enrolConnections = 64
	enrolPerSource   = 8
)

// EnrolConfig says where to listen for those who have no certificate, or an old one.
type EnrolConfig struct {
	// Address is IP:PORT; port 0 takes any.
	Address string
	// Credentials are ours.
	Credentials *Credentials
	// Admit says whether a call from an IP address may be made now.
	Admit func(source string) error
	// Log is told each call (never its contents); nil is slog.Default().
	Log *slog.Logger
}

// ListenEnrol is Listen for the one service that is not for certificates of the
// fleet: a server of its own, so that no other call can be reached there by a
// mistake in a table. Who calls is unknown; see Lapsed.
func ListenEnrol(ctx context.Context, cfg EnrolConfig, register func(grpc.ServiceRegistrar)) (*Server, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	admit := func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if err := cfg.Admit(Source(ctx)); err != nil {
			return nil, err
		}
		return next(ctx, req)
	}
	s := &Server{grace: time.Second, grpc: grpc.NewServer(append(append(MapServerErrors(cfg.Log), PlainAnswers()...),
		grpc.Creds(&enrolServerCreds{TransportCredentials: credentials.NewTLS(cfg.Credentials.enrolConfig()), c: cfg.Credentials}),
		grpc.ConnectionTimeout(connectTimeout),
		// One call is all that anybody needs.
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: 10 * time.Second, MaxConnectionAge: 30 * time.Second, MaxConnectionAgeGrace: 5 * time.Second}),
		grpc.MaxConcurrentStreams(2), grpc.MaxHeaderListSize(maxEnrolMessage),
		grpc.MaxRecvMsgSize(maxEnrolMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.ChainUnaryInterceptor(admit),
	)...)}
	register(s.grpc)
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", cfg.Address, err)
	}
	s.listener = &turnstile{Listener: l, open: make(map[string]int), full: func(source string) {
		cfg.Credentials.refuse(source, errTooMany)
	}}
	return s, nil
}

// Source is the IP address that a call comes from.
func Source(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ""
	}
	return hostOf(p.Addr)
}

var errTooMany = errors.New("too many connections at once")

// turnstile bounds the connections of one source and of all: a handshake costs us more
// than it costs a stranger.
type turnstile struct {
	net.Listener
	full func(source string) // told of whom is turned away; waits for nothing

	mu   sync.Mutex
	open map[string]int // by source
	all  int
}

func (g *turnstile) Accept() (net.Conn, error) {
	for {
		conn, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if source := hostOf(conn.RemoteAddr()); g.enter(source) {
			return &gated{Conn: conn, leave: sync.OnceFunc(func() { g.leave(source) })}, nil
		}
		_ = conn.Close()
		g.full(hostOf(conn.RemoteAddr()))
	}
}

func (g *turnstile) enter(source string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.all >= enrolConnections || g.open[source] >= enrolPerSource {
		return false
	}
	g.open[source]++
	g.all++
	return true
}

func (g *turnstile) leave(source string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all--
	if g.open[source]--; g.open[source] == 0 {
		delete(g.open, source)
	}
}

type gated struct {
	net.Conn
	leave func()
}

func (c *gated) Close() error {
	c.leave()
	return c.Conn.Close()
}

// enrolConfig asks for a certificate and takes any or none. The roots go along, so
// that who has nothing but a root's hash can find it, and certificates of our CA below
// older roots, for who knows no other.
func (c *Credentials) enrolConfig() *tls.Config {
	l := c.current()
	cfg := c.config(l)
	pair := l.pair
	pair.Certificate = slices.Clip(pair.Certificate)
	for _, ca := range c.known() {
		pair.Certificate = append(pair.Certificate, ca.Raw)
	}
	pair.Certificate = append(pair.Certificate, l.roots...)
	cfg.Certificates = []tls.Certificate{pair}
	cfg.ClientAuth = tls.RequestClientCert
	return cfg
}

// enrolServerCreds makes its configuration anew for every connection.
type enrolServerCreds struct {
	credentials.TransportCredentials
	c *Credentials
}

func (s *enrolServerCreds) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := credentials.NewTLS(s.c.enrolConfig()).ServerHandshake(raw)
	if err != nil {
		s.c.refuse(hostOf(raw.RemoteAddr()), err)
	}
	return conn, info, err
}

func (s *enrolServerCreds) Clone() credentials.TransportCredentials {
	return &enrolServerCreds{TransportCredentials: s.TransportCredentials.Clone(), c: s.c}
}

// Lapsed is who makes a call by the certificate that was shown, which may have
// expired up to forgive ago, and for that call only. The handshake has proved that
// the caller has its key. All else is as for any other call: it must be below a root
// of the fleet, and not be revoked. For the way to the root see SetBetween.
func (c *Credentials) Lapsed(ctx context.Context, forgive time.Duration) (*x509.Certificate, Identity, error) {
	var shown []*x509.Certificate
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			shown = info.State.PeerCertificates
		}
	}
	if len(shown) == 0 {
		return nil, Identity{}, Errorf(ErrDenied, "no certificate was shown; a host without one needs a token: hlctl token create HOST")
	}
	leaf, now := shown[0], c.Now()
	if now.After(leaf.NotAfter) {
		if now.Sub(leaf.NotAfter) > forgive {
			return nil, Identity{}, Errorf(ErrDenied, "the certificate expired on %s, too long ago; a new token is needed: hlctl token create HOST --replace",
				leaf.NotAfter.UTC().Format(time.DateOnly))
		}
		now = leaf.NotAfter
	}
	l := c.current()
	between := append(shown[1:len(shown):len(shown)], c.known()...)
	chain, err := chainTo(leaf, between, l.pool, now, x509.ExtKeyUsageClientAuth)
	if err != nil && now.Equal(leaf.NotAfter) {
		// The root, and with it what our CAs have of it, may be younger than its end.
		chain, err = chainOfLapsed(leaf, between, l.pool, c.Now())
	}
	if err != nil {
		return nil, Identity{}, Errorf(ErrDenied, "the certificate that was shown is not of this fleet: %w", err)
	}
	err = checkChain(chain, l.id.Fleet)
	if err == nil {
		err = c.revokedIn(chain)
	}
	id, _ := identityOf(leaf) // checkChain has looked
	if err != nil {
		return nil, id, Errorf(ErrDenied, "%w", err)
	}
	return leaf, id, nil
}

// enrolTimeout bounds an enrolment.
const enrolTimeout = 20 * time.Second

// Enrol gets a certificate for a key from a controller's enrolment at IP:PORT, and
// checks that it is what the token promised.
func Enrol(ctx context.Context, at string, token Token, key crypto.Signer) (*trustv1.EnrolResponse, error) {
	csr, err := Request(key)
	if err != nil {
		return nil, err
	}
	conn, err := DialEnrol(at, &token, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	bounded, cancel := context.WithTimeout(ctx, enrolTimeout)
	defer cancel()
	resp, err := trustv1.NewEnrolServiceClient(conn).Enrol(bounded, &trustv1.EnrolRequest{Secret: token.Secret, Csr: csr})
	if err == nil {
		err = token.CheckEnrolled(resp.GetCertificate(), resp.GetTrust().GetRoots(), key, time.Now())
	}
	if err != nil {
		return nil, fmt.Errorf("enrol at %s: %w", at, err)
	}
	return resp, nil
}

// DialEnrol prepares calls to a controller's EnrolService. With a token the
// controller must show that it is below the root in it, before anything is sent;
// without one creds are ours, perhaps expired, and it must be below a root that we
// know.
func DialEnrol(address string, token *Token, creds *Credentials) (*grpc.ClientConn, error) {
	if _, _, err := net.SplitHostPort(address); err != nil {
		return nil, Errorf(ErrInvalid, "dial %s: %w", address, err)
	}
	t := new(trouble)
	c := &enrolClientCreds{address: address, token: token, creds: creds, trouble: t}
	c.TransportCredentials = credentials.NewTLS(c.config())
	unary := func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		err := next(ctx, method, req, reply, cc, opts...)
		if status.Code(err) == codes.Unavailable {
			if why := t.get(); why != nil {
				return why
			}
		}
		return FromStatus(err)
	}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(c), grpc.WithNoProxy(),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: connectTimeout}),
		grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(), grpc.WithChainUnaryInterceptor(unary),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxRevocations+(1<<20))))
	if err != nil {
		return nil, Errorf(ErrInvalid, "dial %s: %w", address, err)
	}
	return conn, nil
}

// enrolClientCreds is the client's side of DialEnrol.
type enrolClientCreds struct {
	credentials.TransportCredentials
	address string
	token   *Token
	creds   *Credentials
	trouble *trouble
}

func (s *enrolClientCreds) config() *tls.Config {
	if s.token == nil {
		return s.creds.clientConfig(s.creds.current(), RoleController, "")
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: serverName(RoleController),
		// The usual check wants the roots beforehand; below is the same with the one
		// that the token names.
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection verifies
		VerifyConnection:   func(cs tls.ConnectionState) error { return s.token.verify(cs, time.Now()) },
	}
}

// verify checks that a server is a controller of the token's fleet below its root.
func (t *Token) verify(cs tls.ConnectionState, now time.Time) error {
	roots, above := x509.NewCertPool(), x509.NewCertPool()
	found := false
	for _, cert := range cs.PeerCertificates[1:] {
		if RootHash(cert) == t.Root {
			roots.AddCert(cert)
			found = true
		} else {
			above.AddCert(cert)
		}
	}
	if !found {
		return errors.New("it does not show the root that the token names")
	}
	chains, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: above, CurrentTime: now, DNSName: serverName(RoleController),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return err
	}
	if err := checkChain(chains[0], t.Fleet); err != nil {
		return err
	}
	if id, err := identityOf(chains[0][0]); err != nil || id.Role != RoleController {
		return fmt.Errorf("it is no controller but %s", id)
	}
	return nil
}

func (s *enrolClientCreds) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := credentials.NewTLS(s.config()).ClientHandshake(ctx, authority, raw)
	if err == nil {
		s.trouble.set(nil)
		return conn, info, nil
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op != "remote error" {
		s.trouble.set(nil) // the connection, and no judgement of anybody
		return nil, nil, err
	}
	err = Errorf(ErrDenied, "%s is not a controller that may be trusted: %w; nothing was sent to it", s.address, err)
	s.trouble.set(err)
	return nil, nil, err
}

func (s *enrolClientCreds) Clone() credentials.TransportCredentials {
	c := *s
	c.TransportCredentials = s.TransportCredentials.Clone()
	return &c
}
