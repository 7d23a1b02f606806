package discover

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Answer is an address at which something answers on the port of the Kubernetes API.
type Answer struct {
	Address netip.Addr
	// K3s says that it shows a certificate as k3s makes them.
	K3s bool
}

const (
	apiPort = 6443
	// What is known of guests may be much, and wrong.
	mostAsked = 512
	askedOnce = 32
	askedLong = time.Second
)

// dialer is net.Dialer's method.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// Listening asks which of the addresses answer on 6443, in their order. It connects and
// says the hello of TLS, nothing more, and believes nothing of what it is shown.
func Listening(ctx context.Context, addresses []netip.Addr) []Answer {
	return listening(ctx, (&net.Dialer{}).DialContext, addresses)
}

func listening(ctx context.Context, dial dialer, addresses []netip.Addr) []Answer {
	var distinct []netip.Addr
	for _, a := range addresses {
		if len(distinct) < mostAsked && !slices.Contains(distinct, a) {
			distinct = append(distinct, a)
		}
	}
	found := make([]*Answer, len(distinct))
	slots := make(chan struct{}, askedOnce)
	var all sync.WaitGroup
	for i, a := range distinct {
		all.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			found[i] = answer(ctx, dial, a)
		})
	}
	all.Wait()
	var answers []Answer
	for _, f := range found {
		if f != nil {
			answers = append(answers, *f)
		}
	}
	return answers
}

// errSeen ends a handshake when the certificate was seen.
var errSeen = errors.New("seen")

func answer(ctx context.Context, dial dialer, a netip.Addr) *Answer {
	ctx, cancel := context.WithTimeout(ctx, askedLong)
	defer cancel()
	conn, err := dial(ctx, "tcp", net.JoinHostPort(a.String(), strconv.Itoa(apiPort)))
	if err != nil {
		return nil
	}
	defer func() { _ = conn.Close() }()
	got := &Answer{Address: a}
	hello := tls.Client(conn, &tls.Config{
		InsecureSkipVerify: true, //nolint:gosec // nobody is trusted: it is only seen who says to be there
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			if len(raw) > 0 {
				if cert, err := x509.ParseCertificate(raw[0]); err == nil {
					got.K3s = slices.Contains(cert.Subject.Organization, "k3s")
				}
			}
			return errSeen
		},
	})
	_ = hello.HandshakeContext(ctx) // whatever comes of it, something answers
	return got
}
