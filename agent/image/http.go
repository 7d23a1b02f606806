package image

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/homeiac/homelab/internal/rpc"
)

// newClient makes the client for addresses of a Spec. Proxies come from the
// agent's environment, which its unit sets.
func newClient() *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	// A disk image is not text; asking for gzip would hide its length.
	transport.DisableCompression = true
	// One connection for one answer: only then can be told whether a server goes on
	// past the length that it states. HTTP/2 would bring nothing to a single file.
	transport.DisableKeepAlives = true
	transport.ForceAttemptHTTP2 = false
	transport.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	transport.ReadBufferSize = 64 << 10
	dial := transport.DialContext
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return newLine(conn), nil
	}
	// Without a proxy in between; with one net/http encrypts by itself.
	transport.DialTLSContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		cfg := transport.TLSClientConfig.Clone()
		if cfg == nil {
			cfg = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		if cfg.ServerName == "" {
			cfg.ServerName, _, _ = net.SplitHostPort(address)
		}
		secure := tls.Client(conn, cfg)
		ctx, cancel := context.WithTimeout(ctx, transport.TLSHandshakeTimeout)
		defer cancel()
		if err := secure.HandshakeContext(ctx); err != nil {
			_ = conn.Close()
			return nil, err
		}
		return newLine(secure), nil
	}
	return &http.Client{Transport: transport, CheckRedirect: noWayDown}
}

// noWayDown keeps an https: address from ending at an http: one, where anybody on
// the way could change what is then run as root.
func noWayDown(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return rpc.Errorf(rpc.ErrUnavailable, "ten redirections")
	}
	if via[len(via)-1].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return rpc.Errorf(rpc.ErrRefused, "it redirects from https: to %s:", req.URL.Scheme)
	}
	return nil
}

// incoming is a file as a source sends it.
type incoming struct {
	body io.ReadCloser
	// from is the first byte that is sent.
	from int64
	// total is the size of the whole in bytes, 0 when not known.
	total int64
	// etag is the strong ETag, or empty.
	etag string
	// goesOn says, after the end of body, whether more was sent than was stated.
	goesOn func() bool
}

// get asks for a file from an offset on. The answer may begin at 0 all the same,
// when the server cannot do that or the file is not the one of that ETag any more
// (which may be empty: then whatever the server has is taken).
func (s *Store) get(ctx context.Context, address string, offset int64, etag string) (*incoming, error) {
	if !strings.HasPrefix(address, "http://") && !strings.HasPrefix(address, "https://") {
		return nil, rpc.Errorf(rpc.ErrUnsupported, "address %s: only file:, http: and https: are known", Masked(address))
	}
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watched{ctx: ctx, cancel: cancel, limit: s.stall}
	var conn *line
	trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { conn, _ = i.Conn.(*line) }}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), http.MethodGet, address, nil)
	if err != nil {
		cancel(nil)
		return nil, rpc.Errorf(rpc.ErrInvalid, "address %s: %w", Masked(address), cause(err))
	}
	if offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
		if etag != "" {
			req.Header.Set("If-Range", etag)
		}
	}
	w.start()
	resp, err := s.client.Do(req) //nolint:bodyclose // w closes it
	w.timer.Stop()
	if err != nil {
		if c := context.Cause(ctx); c != nil {
			err = c
		}
		cancel(nil)
		kind := rpc.ErrUnavailable
		if errors.Is(err, rpc.ErrRefused) {
			kind = rpc.ErrRefused
		}
		return nil, rpc.Errorf(kind, "get %s: %w", Masked(address), cause(err))
	}
	w.body = resp.Body
	in, err := answered(resp, offset)
	if err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("get %s: %w", Masked(address), err)
	}
	in.body = w
	in.goesOn = func() bool { return conn != nil && resp.ContentLength > 0 && conn.wentOn(resp.ContentLength) }
	return in, nil
}

// answered reads the header of an answer.
func answered(resp *http.Response, offset int64) (*incoming, error) {
	in := &incoming{total: max(resp.ContentLength, 0)}
	if e := resp.Header.Get("ETag"); strings.HasPrefix(e, `"`) {
		in.etag = e
	}
	switch code := resp.StatusCode; {
	case code == http.StatusOK:
		return in, nil
	case code == http.StatusPartialContent && offset > 0:
		from, to, total, err := contentRange(resp.Header.Get("Content-Range"))
		if err != nil || from != offset || resp.ContentLength >= 0 && resp.ContentLength != to-from+1 || total > 0 && to >= total {
			return nil, errOtherRange
		}
		in.from, in.total = from, total
		return in, nil
	case code == http.StatusRequestedRangeNotSatisfiable && offset > 0:
		return nil, errOtherRange
	case code == http.StatusNotFound || code == http.StatusGone:
		return nil, rpc.Errorf(rpc.ErrNotFound, "the server answers %s", resp.Status)
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		return nil, &statusError{text: "the server answers " + resp.Status}
	case code == http.StatusRequestTimeout || code == http.StatusTooManyRequests || code >= 500:
		return nil, rpc.Errorf(rpc.ErrUnavailable, "the server answers %s", resp.Status)
	}
	return nil, &statusError{text: "the server answers " + resp.Status}
}

// errOtherRange: the server has no such range, or sent another one.
var errOtherRange = rpc.Errorf(rpc.ErrUnavailable, "the server sends another range of the file than was asked for")

// statusError is an answer that asking again will not change.
type statusError struct{ text string }

func (e *statusError) Error() string { return e.text }
func (e *statusError) Unwrap() error { return rpc.ErrUnavailable }

// contentRange reads "bytes FROM-TO/TOTAL"; TOTAL may be * and is 0 then.
func contentRange(s string) (from, to, total int64, err error) {
	rest, ok := strings.CutPrefix(s, "bytes ")
	span, size, ok2 := strings.Cut(rest, "/")
	a, b, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return 0, 0, 0, errors.New("no range of bytes")
	}
	from, err1 := strconv.ParseInt(a, 10, 64)
	to, err2 := strconv.ParseInt(b, 10, 64)
	if size != "*" {
		total, err = strconv.ParseInt(size, 10, 64)
	}
	if err = errors.Join(err, err1, err2); err == nil && (from < 0 || to < from || to == 1<<63-1) {
		err = errors.New("no range of bytes")
	}
	return from, to, total, err
}

// cause is an error of net/http or net/url without the address that it quotes,
// which may hold a password or a signature.
func cause(err error) error {
	var ue *url.Error
	if !errors.As(err, &ue) {
		return err
	}
	// Of these two net/http quotes the whole address in the text.
	switch text := ue.Err.Error(); {
	case strings.HasPrefix(text, "failed to parse Location header"):
		return errors.New("it redirects to an address that does not parse")
	case strings.HasPrefix(text, "invalid proxy address"):
		return errors.New("the proxy in the agent's environment is no address (systemctl show -p Environment hl-agent)")
	}
	return ue.Err
}

// watched ends a transfer that stands still. Only reading counts: who reads may
// take its time.
type watched struct {
	body   io.ReadCloser
	ctx    context.Context // of this one request, to tell why it ended
	cancel context.CancelCauseFunc
	timer  *time.Timer
	limit  time.Duration
}

func (w *watched) start() {
	stalled := rpc.Errorf(rpc.ErrUnavailable, "it sent nothing for %s", w.limit)
	w.timer = time.AfterFunc(w.limit, func() { w.cancel(stalled) })
}

func (w *watched) Read(p []byte) (int, error) {
	w.timer.Reset(w.limit)
	n, err := w.body.Read(p)
	w.timer.Stop()
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, rpc.ErrRefused) { // a peer takes back what it sent
		if cause := context.Cause(w.ctx); cause != nil {
			err = cause
		}
		// Also a connection that was cut: io.ReadFull must not take it for the end.
		err = rpc.Errorf(rpc.ErrUnavailable, "after a part of it: %v", err)
	}
	return n, err
}

func (w *watched) Close() error {
	w.timer.Stop()
	err := w.body.Close()
	w.cancel(nil)
	return err
}

// line counts what comes over a connection that carries one answer, because
// net/http hides what a server sends past its stated length.
type line struct {
	net.Conn
	mu     sync.Mutex
	begin  []byte // the answer's header so far, nil when it was seen whole
	header int64  // its length
	got    int64
	closed chan struct{}
	once   sync.Once
}

func newLine(c net.Conn) *line { return &line{Conn: c, begin: []byte{}, closed: make(chan struct{})} }

func (l *line) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	l.count(p[:n])
	return n, err
}

func (l *line) count(p []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.got += int64(len(p))
	if l.begin == nil {
		return
	}
	l.begin = append(l.begin, p...)
	for {
		i := bytes.Index(l.begin, []byte("\r\n\r\n"))
		if i < 0 {
			return
		}
		l.header += int64(i) + 4
		interim := bytes.HasPrefix(l.begin, []byte("HTTP/1.1 1")) // "103 Early Hints": another header follows
		if l.begin = l.begin[i+4:]; !interim {
			l.begin = nil
			return
		}
	}
}

// lastLook is how long a connection is listened to after the last byte that was
// stated. A server that keeps its word has closed it by then.
const lastLook = 200 * time.Millisecond

// Close listens once more before it closes.
func (l *line) Close() error {
	l.once.Do(func() {
		defer close(l.closed)
		if l.Conn.SetReadDeadline(time.Now().Add(lastLook)) == nil {
			var b [1]byte
			n, _ := l.Conn.Read(b[:])
			l.count(b[:n])
		}
	})
	return l.Conn.Close()
}

// wentOn says whether more came than the answer's header and a body of that length.
func (l *line) wentOn(body int64) bool {
	select {
	case <-l.closed: // net/http closes it after the last byte of the body
	case <-time.After(5 * lastLook):
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.begin == nil && l.got > l.header+body
}
