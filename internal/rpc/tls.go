package rpc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// serverName is what a certificate's DNS name says of the role. Clients verify
// it in place of a host name: peers are found by address, addresses change, and
// what matters is what the other side may claim to be.
func serverName(role string) string { return role + ".homelab.internal" }

// Credentials are one process's certificate, key and CA, read from files and
// read again when a file changes. Safe for use by several goroutines.
type Credentials struct {
	// Renew is the command that gives a new certificate, named in errors. Empty:
	// the error names the command that shows what is wrong with the file.
	Renew string
	// Log is told about files that changed into something unusable (the old
	// ones stay in use) and about refused callers; nil is slog.Default().
	Log *slog.Logger
	// Now is the clock that certificates are judged by; LoadTLS gives time.Now.
	Now func() time.Time

	ca, cert, key string

	refused    Repeats
	revocation revocation

	mu      sync.Mutex
	seen    [3]fileMark
	loaded  *loaded
	between []*x509.Certificate // see SetBetween
}

// loaded is one consistent reading of the three files.
type loaded struct {
	pool  *x509.CertPool
	roots [][]byte // of the pool, DER
	pair  tls.Certificate
	id    Identity
}

// fileMark changes whenever the file is written or replaced.
type fileMark struct {
	size    int64
	changed time.Time
}

// LoadTLS reads the certificates of the fleet's roots (one, or several while one
// takes another's place), this process's certificate and its key, all PEM files. ErrInvalid names the file that cannot
// be used. That a certificate has expired is found when it is used: a new one may be put
// in its place while the process runs.
func LoadTLS(ca, cert, key string) (*Credentials, error) {
	c := &Credentials{ca: ca, cert: cert, key: key, Now: time.Now}
	marks, err := c.marks()
	if err != nil {
		return nil, err
	}
	l, err := c.read()
	if err != nil {
		return nil, err
	}
	c.seen, c.loaded = marks, l
	return c, nil
}

// Identity is whose certificate it is.
func (c *Credentials) Identity() Identity { return c.current().id }

// NotAfter is when the certificate ends.
func (c *Credentials) NotAfter() time.Time { return c.current().pair.Leaf.NotAfter }

func (c *Credentials) log() *slog.Logger {
	if c.Log != nil {
		return c.Log
	}
	return slog.Default()
}

func (c *Credentials) marks() (m [3]fileMark, err error) {
	for i, name := range []string{c.ca, c.cert, c.key} {
		st, err := os.Stat(name)
		if err != nil {
			return m, Errorf(ErrInvalid, "credentials: %w", err)
		}
		m[i] = fileMark{size: st.Size(), changed: st.ModTime()}
	}
	return m, nil
}

func (c *Credentials) read() (*loaded, error) {
	caPEM, err := os.ReadFile(c.ca)
	if err != nil {
		return nil, Errorf(ErrInvalid, "credentials: %w", err)
	}
	pool := x509.NewCertPool()
	var roots [][]byte
	for rest := caPEM; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			pool.AddCert(cert)
			roots = append(roots, cert.Raw)
		}
	}
	if len(roots) == 0 {
		return nil, Errorf(ErrInvalid, "credentials: %s holds no CA certificate", c.ca)
	}
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return nil, Errorf(ErrInvalid, "credentials: %s with %s: %w", c.cert, c.key, err)
	}
	id, err := identityOf(pair.Leaf)
	if err != nil {
		return nil, Errorf(ErrInvalid, "credentials: %s is no certificate of a fleet: %w", c.cert, err)
	}
	return &loaded{pool: pool, roots: roots, pair: pair, id: id}, nil
}

// current gives what the files hold now. Files that became unusable (half
// written, say) do not end a process that works: the last good ones stay.
func (c *Credentials) current() *loaded {
	c.mu.Lock()
	defer c.mu.Unlock()
	marks, err := c.marks()
	if err == nil && marks == c.seen {
		return c.loaded
	}
	var l *loaded
	if err == nil {
		l, err = c.read()
	}
	if err != nil {
		c.log().Warn("changed credentials not used", "error", err)
		return c.loaded
	}
	c.seen, c.loaded = marks, l
	return l
}

// fix is how an error about our own certificate ends.
func (c *Credentials) fix() string {
	if c.Renew != "" {
		return "get a new one with: " + c.Renew
	}
	return "put a new one there; it shows itself with: openssl x509 -noout -text -in " + c.cert
}

func (c *Credentials) config(l *loaded) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{l.pair},
		Time:         c.Now,
	}
}

// serverConfig requires and verifies the caller's certificate: of our CA, in
// time, of our fleet, not revoked. What the caller may do is for the table of Authorize.
func (c *Credentials) serverConfig() *tls.Config {
	l := c.current()
	cfg := c.config(l)
	cfg.ClientAuth = tls.RequireAndVerifyClientCert
	cfg.ClientCAs = l.pool
	cfg.VerifyConnection = func(s tls.ConnectionState) error { return c.checkPeer(s, l.id.Fleet) }
	return cfg
}

// clientConfig verifies the server as the role it must have in place of its
// host name, then its fleet and name.
func (c *Credentials) clientConfig(l *loaded, role, name string) *tls.Config {
	cfg := c.config(l)
	cfg.RootCAs = l.pool
	cfg.ServerName = serverName(role)
	cfg.VerifyConnection = func(s tls.ConnectionState) error {
		if err := c.checkPeer(s, l.id.Fleet); err != nil {
			return err
		}
		id, err := identityOf(s.PeerCertificates[0])
		if err != nil {
			return err
		}
		if id.Role != role || (name != "" && id.Name != name) {
			return &wrongPeerError{id: id}
		}
		return nil
	}
	return cfg
}

// checkPeer is all that is to be said against a peer but its role and name.
func (c *Credentials) checkPeer(s tls.ConnectionState, fleet string) error {
	if len(s.VerifiedChains) == 0 {
		return errors.New("no certificate of this fleet was shown")
	}
	if err := checkChain(s.VerifiedChains[0], fleet); err != nil {
		return err
	}
	return c.revokedIn(s.VerifiedChains[0])
}

// checkChain is what x509 does not check of a verified chain: that it is of this
// fleet all the way up, and that no CA poses as somebody. A root that vouches for
// several fleets does not make them one.
func checkChain(chain []*x509.Certificate, fleet string) error {
	id, err := identityOf(chain[0])
	switch {
	case err != nil:
		return err
	case chain[0].IsCA:
		return fmt.Errorf("certificate of %s is a CA's", id)
	case id.Fleet != fleet:
		return fmt.Errorf("certificate of %s of fleet %s, this is fleet %s", id, id.Fleet, fleet)
	case len(chain) > maxChain:
		return fmt.Errorf("certificate of %s has %d CAs above it, %d may be", id, len(chain)-1, maxChain-1)
	}
	for _, ca := range chain[1:] {
		if len(ca.Subject.Organization) != 1 || ca.Subject.Organization[0] != fleet {
			return fmt.Errorf("certificate of %s was issued by %q, which is no CA of fleet %s", id, ca.Subject.CommonName, fleet)
		}
	}
	return nil
}

// maxChain is a leaf, an issuing CA and a root.
const maxChain = 3

type wrongPeerError struct{ id Identity }

func (e *wrongPeerError) Error() string { return "it is " + e.id.String() }

// serverCreds is the server's side for gRPC. It makes its configuration anew
// for every connection, so changed files need no restart.
type serverCreds struct {
	credentials.TransportCredentials
	c *Credentials
}

func newServerCreds(c *Credentials) credentials.TransportCredentials {
	return &serverCreds{TransportCredentials: credentials.NewTLS(c.serverConfig()), c: c}
}

func (s *serverCreds) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := credentials.NewTLS(s.c.serverConfig()).ServerHandshake(raw)
	if err == nil {
		var tracked net.Conn
		if tracked, err = s.c.track(conn, raw, info, nil); err != nil {
			_ = conn.Close()
		}
		conn = tracked
	}
	if err != nil {
		s.c.refuse(hostOf(raw.RemoteAddr()), err)
	}
	return conn, info, err
}

// tlsWords is how many words of crypto/tls's own errors tell them apart.
const tlsWords = 5

// refuse logs a caller that got no connection.
func (c *Credentials) refuse(from string, err error) {
	reason := err.Error()
	var (
		op        *net.OpError
		invalid   x509.CertificateInvalidError
		authority x509.UnknownAuthorityError
	)
	// What tells one refusal from another of its sort is left out: the caller's port,
	// the time, and what a certificate that is not ours says of itself.
	sort := reason
	switch {
	case errors.As(err, &op):
		reason = op.Op + ": " + op.Err.Error()
		sort = reason
	case errors.As(err, &invalid):
		sort = fmt.Sprintf("invalid %d", invalid.Reason)
	case errors.As(err, &authority):
		sort = "unknown authority"
	case strings.HasPrefix(reason, "tls: "):
		// What comes after may be the caller's: "oversized record received with length 20000".
		if words := strings.Fields(reason); len(words) > tlsWords {
			sort = strings.Join(words[:tlsWords], " ")
		}
	}
	c.refused.Note(from+" "+sort,
		func(n int) { c.log().Warn("caller refused", "address", from, "error", reason, "count", n) },
		func(n int) { c.log().Warn("callers refused", "count", n) })
}

// chainOf is the verified chain of the other side, nil without one.
func chainOf(info credentials.AuthInfo) []*x509.Certificate {
	tlsInfo, ok := info.(credentials.TLSInfo)
	// VerifiedChains and not PeerCertificates: the latter is only a claim.
	if !ok || len(tlsInfo.State.VerifiedChains) == 0 {
		return nil
	}
	return tlsInfo.State.VerifiedChains[0]
}

// shownOf are the certificates that the other side has shown.
func shownOf(info credentials.AuthInfo) []*x509.Certificate {
	if tlsInfo, ok := info.(credentials.TLSInfo); ok {
		return tlsInfo.State.PeerCertificates
	}
	return nil
}

func (s *serverCreds) Clone() credentials.TransportCredentials { return newServerCreds(s.c) }

// clientCreds is the client's side for one Dial. gRPC turns what goes wrong in
// a handshake into a text of its own and the kind Unavailable; trouble keeps the
// plain sentence for the call that fails because of it.
type clientCreds struct {
	credentials.TransportCredentials
	c          *Credentials
	role, name string
	trouble    *trouble
}

func newClientCreds(c *Credentials, role, name string, t *trouble) credentials.TransportCredentials {
	base := credentials.NewTLS(c.clientConfig(c.current(), role, name))
	return &clientCreds{TransportCredentials: base, c: c, role: role, name: name, trouble: t}
}

func (s *clientCreds) Clone() credentials.TransportCredentials {
	return newClientCreds(s.c, s.role, s.name, s.trouble)
}

func (s *clientCreds) ClientHandshake(
	ctx context.Context, authority string, raw net.Conn,
) (net.Conn, credentials.AuthInfo, error) {
	l := s.c.current()
	at := raw.RemoteAddr().String()
	if err := s.c.ownFault(l); err != nil {
		s.trouble.set(err)
		return nil, nil, err
	}
	conn, info, err := credentials.NewTLS(s.c.clientConfig(l, s.role, s.name)).ClientHandshake(ctx, authority, raw)
	if err != nil {
		if fault := s.peerFault(at, err); fault != nil {
			s.trouble.set(fault)
			return nil, nil, fault
		}
		return nil, nil, err
	}
	first, err := firstBytes(ctx, conn)
	var op *net.OpError
	switch {
	case errors.As(err, &op) && op.Op == "remote error":
		_ = conn.Close()
		err = Errorf(ErrDenied, "%s at %s refuses the certificate %s (%s): %w; %s",
			s.role, at, s.c.cert, l.id, op.Err, s.c.fix())
		s.trouble.set(err)
		return nil, nil, err
	case err != nil:
		_ = conn.Close()
		s.trouble.set(nil)
		return nil, nil, err
	}
	s.trouble.set(nil)
	tracked, err := s.c.track(conn, raw, info, func(why error) { s.trouble.set(s.peerFault(at, why)) })
	if err != nil {
		_ = conn.Close()
		fault := s.peerFault(at, err)
		s.trouble.set(fault)
		return nil, nil, fault
	}
	return &begunConn{Conn: tracked, first: first}, info, nil
}

// ownFault finds what the other side would refuse anyway, with a better text.
func (c *Credentials) ownFault(l *loaded) error {
	leaf, now := l.pair.Leaf, c.Now()
	switch {
	case now.After(leaf.NotAfter):
		return Errorf(ErrDenied, "the certificate %s of %s expired on %s; %s",
			c.cert, l.id, leaf.NotAfter.UTC().Format("2006-01-02 15:04 MST"), c.fix())
	case now.Before(leaf.NotBefore):
		return Errorf(ErrDenied, "the certificate %s of %s is valid only from %s on; set this machine's clock, see: date -u",
			c.cert, l.id, leaf.NotBefore.UTC().Format("2006-01-02 15:04 MST"))
	}
	return nil
}

// peerFault judges a failed handshake: a sentence of kind ErrDenied when the
// other side's certificate is why, nil when it is the connection.
func (s *clientCreds) peerFault(at string, err error) error {
	var (
		authority x509.UnknownAuthorityError
		invalid   x509.CertificateInvalidError
		host      x509.HostnameError
		wrong     *wrongPeerError
		revoked   *revokedError
	)
	want := s.role
	if s.name != "" {
		want += "@" + s.name
	}
	look := "look at it with: openssl s_client -connect " + at + " -showcerts"
	switch {
	case errors.As(err, &authority):
		return Errorf(ErrDenied, "%s has a certificate that the CA in %s did not issue; compare with: openssl x509 -noout -subject -fingerprint -in %s",
			at, s.c.ca, s.c.ca)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return Errorf(ErrDenied, "%s has a certificate that is not valid now (%s to %s): give %s a new one, or set the clock; %s",
			at, invalid.Cert.NotBefore.UTC().Format(time.RFC3339), invalid.Cert.NotAfter.UTC().Format(time.RFC3339), want, look)
	case errors.As(err, &revoked):
		return Errorf(ErrDenied, "%s is not spoken to: %w; give it a new certificate with: hlctl token create %s --replace", at, revoked, revoked.id.Name)
	case errors.As(err, &wrong):
		return Errorf(ErrDenied, "%s should be %s but is %s: the address is another's; %s", at, want, wrong.id, look)
	case errors.As(err, &host):
		who := "something else"
		if id, err := identityOf(host.Certificate); err == nil {
			who = id.String()
		}
		return Errorf(ErrDenied, "%s should be %s but is %s: the address is another's; %s", at, want, who, look)
	}
	var verify *tls.CertificateVerificationError
	if errors.As(err, &verify) {
		return Errorf(ErrDenied, "%s should be %s, but its certificate is not accepted: %w; %s", at, want, verify.Err, look)
	}
	return nil
}

// firstBytes reads what the server says first. A TLS 1.3 server refuses the
// client's certificate only after the client's handshake has succeeded, as an
// alert that the first read gives. gRPC would write before it reads, and the
// refusal would be a broken pipe as often as not. Nothing is waited for in vain:
// a gRPC server begins with its settings, without being asked.
func firstBytes(ctx context.Context, conn net.Conn) ([]byte, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	b := make([]byte, 512)
	n, err := conn.Read(b)
	if !stop() && err == nil {
		err = ctx.Err() // the deadline is set or about to be
	}
	if err != nil {
		return nil, fmt.Errorf("wait for the first answer: %w", err)
	}
	return b[:n], nil
}

// begunConn is a connection of which some was read already.
type begunConn struct {
	net.Conn
	first []byte
}

func (c *begunConn) Read(b []byte) (int, error) {
	if len(c.first) > 0 {
		n := copy(b, c.first)
		c.first = c.first[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

// trouble is the last judged fault of one Dial's connections, nil since the
// last sign that the peer talks to us.
type trouble struct {
	mu  sync.Mutex
	err error
}

func (t *trouble) set(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.err = err
}

func (t *trouble) get() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}
