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
	"strconv"
	"time"

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

// numberLine stands before the roots of a bundle with a number. What reads PEM skips it.
const numberLine = "# roots of the fleet, number "

// BundleNumber orders bundles; the higher one is the newer. Those that were never
// changed have no number, which is 0.
func BundleNumber(data []byte) int64 {
	line, _, _ := bytes.Cut(data, []byte("\n"))
	text, ok := bytes.CutPrefix(line, []byte(numberLine))
	n, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64)
	if !ok || err != nil || n < 0 {
		return 0
	}
	return n
}

// EncodeBundle writes a bundle with its number.
func EncodeBundle(number int64, roots []*x509.Certificate) []byte {
	return append(fmt.Appendf(nil, "%s%d\n", numberLine, number), EncodeCertificates(roots)...)
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
// one. It must hold a root that we trust already and one above our own certificate: else
// it is ErrRefused, since we would know nobody, or nobody us. So is one with a lower
// number: with it a root would be trusted again that is not any more. Connections to
// whom the new bundle does not know are cut.
func (c *Credentials) SetRoots(data []byte) (changed bool, err error) {
	l := c.current()
	old, roots, err := c.checkBundle(data, l)
	if err != nil || roots == nil {
		return false, err
	}
	have, err := ParseRoots(old, l.id.Fleet)
	if err != nil {
		return false, fmt.Errorf("%s: %w", c.ca, err)
	}
	if !slices.ContainsFunc(roots, func(r *x509.Certificate) bool { return slices.ContainsFunc(have, r.Equal) }) {
		return false, Errorf(ErrRefused, "bundle of roots: none of them is one of those in %s", c.ca)
	}
	if err := below(l.pair.Leaf, parsed(l.pair.Certificate[1:]), poolOf(roots), c.Now()); err != nil {
		return false, Errorf(ErrRefused, "bundle of roots: our certificate %s is of none of them: %w", c.cert, err)
	}
	return true, c.putRoots(data, roots)
}

// checkBundle reads a bundle that is to take the place of ours; roots are nil when it is
// ours.
func (c *Credentials) checkBundle(data []byte, l *loaded) (old []byte, roots []*x509.Certificate, err error) {
	if old, err = c.Roots(); err != nil {
		return nil, nil, err
	}
	if bytes.Equal(bytes.TrimSpace(old), bytes.TrimSpace(data)) {
		return old, nil, nil
	}
	if roots, err = ParseRoots(data, l.id.Fleet); err != nil {
		return nil, nil, err
	}
	is, was := BundleNumber(data), BundleNumber(old)
	if is < was || is == was && is > 0 {
		return nil, nil, Errorf(ErrRefused, "bundle of roots: it has number %d, the one in %s has %d", is, c.ca, was)
	}
	return old, roots, nil
}

func (c *Credentials) putRoots(data []byte, roots []*x509.Certificate) error {
	if err := durable.Write(c.ca, data); err != nil {
		return err
	}
	c.mu.Lock()
	c.seen = [3]fileMark{} // read again
	c.mu.Unlock()
	c.cutUnknown(poolOf(roots))
	return nil
}

// Adopt puts a new certificate and a bundle of roots in the place of ours, as a
// controller below a root that we trust gave them: our root may be trusted no more by
// anybody else. The certificate must be as for SetCertificate, below the new bundle.
func (c *Credentials) Adopt(cert, bundle []byte) (changed bool, err error) {
	l := c.current()
	if len(bundle) == 0 {
		return false, c.SetCertificate(cert)
	}
	_, roots, err := c.checkBundle(bundle, l)
	if err != nil {
		return false, err
	}
	if roots == nil {
		return false, c.SetCertificate(cert)
	}
	keyPEM, err := os.ReadFile(c.key)
	if err != nil {
		return false, Errorf(ErrInvalid, "credentials: %w", err)
	}
	if err := checkNew(cert, keyPEM, l.id, poolOf(roots), c.Now()); err != nil {
		return false, err
	}
	// Cut off in between, the next one is asked for with both listeners as they are: the
	// new root vouches for the controller, and our old certificate is known there.
	if err := c.putRoots(bundle, roots); err != nil {
		return false, err
	}
	return true, c.SetCertificate(cert)
}

// BelowAll says whether our certificate, as others see it, is below each of the roots
// that we trust: some may trust only one of them.
func (c *Credentials) BelowAll() bool {
	l := c.current()
	var roots []*x509.Certificate
	for _, root := range parsed(l.roots) {
		if isRoot(root) {
			roots = append(roots, root)
		}
	}
	return len(RootsAbove(l.pair.Leaf, parsed(l.pair.Certificate[1:]), roots)) == len(roots)
}

// RootsAbove are those of the roots that we trust which a certificate is below, as it
// was shown with those after it: their hashes.
func (c *Credentials) RootsAbove(shown []*x509.Certificate) []string {
	if len(shown) == 0 {
		return nil
	}
	return RootsAbove(shown[0], shown[1:], parsed(c.current().roots))
}

// Shown are our certificate and what we show after it.
func (c *Credentials) Shown() []*x509.Certificate { return parsed(c.current().pair.Certificate) }

// SetBetween tells of certificates of issuing CAs that others may not have at hand.
// They are trusted for nothing, but show the way from a certificate to a root: to those
// who come to renew, and to us of who comes.
func (c *Credentials) SetBetween(certs []*x509.Certificate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.between = certs
}

func (c *Credentials) known() []*x509.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.between
}

// cutUnknown ends the open connections to those whom the roots do not know any more.
// They come again with a newer certificate, if they have one.
func (c *Credentials) cutUnknown(roots *x509.CertPool) {
	l, between := c.current(), c.known()
	// A controller that has not connected anew since it has another certificate is known
	// by what we show ourselves.
	between = append(parsed(l.pair.Certificate[1:]), between...)
	c.revocation.mu.Lock()
	var cut []*peerConn
	for p := range c.revocation.open {
		if below(p.shown[0], append(p.shown[1:len(p.shown):len(p.shown)], between...), roots, c.Now()) != nil {
			cut = append(cut, p)
			delete(c.revocation.open, p)
		}
	}
	c.revocation.mu.Unlock()
	for _, p := range cut {
		c.log().Info("connection cut", "address", p.raw.RemoteAddr().String(), "error", "its root is not trusted any more")
		_ = p.raw.Close()
	}
}

// below says why a certificate is not below the roots. Its own time is left aside.
func below(leaf *x509.Certificate, between []*x509.Certificate, roots *x509.CertPool, now time.Time) error {
	at := now
	if at.After(leaf.NotAfter) {
		at = leaf.NotAfter
	}
	_, err := chainTo(leaf, between, roots, at, x509.ExtKeyUsageAny)
	if err == nil || at.Equal(now) {
		return err
	}
	// The CAs above it may be younger than its end.
	_, err = chainOfLapsed(leaf, between, roots, now)
	return err
}

func chainTo(leaf *x509.Certificate, between []*x509.Certificate, roots *x509.CertPool, at time.Time, usage x509.ExtKeyUsage) ([]*x509.Certificate, error) {
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: poolOf(between), CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return nil, err
	}
	return chains[0], nil
}

// chainOfLapsed finds the issuing CA of a certificate that has expired and its way to
// the roots now.
func chainOfLapsed(leaf *x509.Certificate, between []*x509.Certificate, roots *x509.CertPool, now time.Time) ([]*x509.Certificate, error) {
	err := error(x509.UnknownAuthorityError{Cert: leaf})
	for _, ca := range between {
		if leaf.CheckSignatureFrom(ca) != nil {
			continue
		}
		var chain []*x509.Certificate
		if chain, err = chainTo(ca, nil, roots, now, x509.ExtKeyUsageAny); err == nil {
			return append([]*x509.Certificate{leaf}, chain...), nil
		}
	}
	return nil, err
}

func poolOf(certs []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, cert := range certs {
		pool.AddCert(cert)
	}
	return pool
}

// parsed leaves out what is no certificate.
func parsed(ders [][]byte) []*x509.Certificate {
	var certs []*x509.Certificate
	for _, der := range ders {
		if cert, err := x509.ParseCertificate(der); err == nil {
			certs = append(certs, cert)
		}
	}
	return certs
}
