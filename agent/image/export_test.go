package image

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
)

// Trust lets a Store believe a test's server.
func (s *Store) Trust(cert *x509.Certificate) {
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	s.client.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
}
