package rpc

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"os"
	"slices"

	"github.com/homeiac/homelab/internal/durable"
)

// maxRoots bounds a bundle: one root, and one more while they change.
const maxRoots = 8

// ParseRoots reads a bundle of a fleet's roots, PEM. Anything else in it, and a root
// of another fleet, is ErrInvalid.
func ParseRoots(data []byte, fleet string) ([]*x509.Certificate, error) {
	var roots []*x509.Certificate
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, Errorf(ErrInvalid, "bundle of roots: it holds a %s", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, Errorf(ErrInvalid, "bundle of roots: %w", err)
		}
		if !cert.IsCA || !isRoot(cert) || !slices.Equal(cert.Subject.Organization, []string{fleet}) {
			return nil, Errorf(ErrInvalid, "bundle of roots: %q is no root of fleet %s", cert.Subject.CommonName, fleet)
		}
		roots = append(roots, cert)
	}
	if len(roots) == 0 || len(roots) > maxRoots {
		return nil, Errorf(ErrInvalid, "bundle of roots: it holds %d roots, 1 to %d may be", len(roots), maxRoots)
	}
	return roots, nil
}

// RootHash is what a token holds of a root: the SHA-256 of its certificate, in hex.
func RootHash(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// Roots is the bundle in force.
func (c *Credentials) Roots() ([]byte, error) {
	data, err := os.ReadFile(c.ca)
	if err != nil {
		return nil, Errorf(ErrInvalid, "credentials: %w", err)
	}
	return data, nil
}

// SetRoots puts another bundle in the place of ours and says whether it is another
// one. It must hold a root that we trust already and the one above our own
// certificate: else it is ErrRefused, since we would know nobody, or nobody us.
func (c *Credentials) SetRoots(data []byte) (changed bool, err error) {
	old, err := c.Roots()
	if err != nil {
		return false, err
	}
	if bytes.Equal(bytes.TrimSpace(old), bytes.TrimSpace(data)) {
		return false, nil
	}
	l := c.current()
	roots, err := ParseRoots(data, l.id.Fleet)
	if err != nil {
		return false, err
	}
	have, err := ParseRoots(old, l.id.Fleet)
	if err != nil {
		return false, fmt.Errorf("%s: %w", c.ca, err)
	}
	if !slices.ContainsFunc(roots, func(r *x509.Certificate) bool { return slices.ContainsFunc(have, r.Equal) }) {
		return false, Errorf(ErrRefused, "bundle of roots: none of them is one of those in %s", c.ca)
	}
	pool, above := x509.NewCertPool(), x509.NewCertPool()
	for _, r := range roots {
		pool.AddCert(r)
	}
	for _, der := range l.pair.Certificate[1:] {
		if ca, err := x509.ParseCertificate(der); err == nil {
			above.AddCert(ca)
		}
	}
	_, err = l.pair.Leaf.Verify(x509.VerifyOptions{
		Roots: pool, Intermediates: above, CurrentTime: l.pair.Leaf.NotBefore, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return false, Errorf(ErrRefused, "bundle of roots: our certificate %s is of none of them: %w", c.cert, err)
	}
	if err := durable.Write(c.ca, data); err != nil {
		return false, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = [3]fileMark{} // read again
	return true, nil
}
