package image

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"time"
)

// Trust lets a Store believe a test's server.
func (s *Store) Trust(cert *x509.Certificate) {
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	s.client.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
}

// Hurry lets a Store wait less than a person would: for who sends nothing, for
// peers that have nothing yet, and before it asks again.
func (s *Store) Hurry(stall, patience time.Duration) *Store {
	s.stall, s.patience, s.retry, s.every = stall, patience, time.Millisecond, 0
	return s
}

// Dry lets a Store wait less for who has no more than is there.
func (s *Store) Dry(dry, lull time.Duration) *Store {
	s.dry, s.lull = dry, lull
	return s
}

// For fuzzing.
var (
	ReadHead  = readHead
	FromList  = fromList
	Unpacker  = unpacker
	HeadBytes = headBytes
)
