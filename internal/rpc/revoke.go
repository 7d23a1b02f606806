package rpc

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/big"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/homeiac/homelab/internal/durable"
)

// revocationsLast is how long after its signing a list says that it is of use. Ours
// are of use until there is a newer one, but the format wants a date.
const revocationsLast = 20 * 365 * 24 * time.Hour

// maxRevocations bounds a list's file in bytes: about ten thousand certificates.
const maxRevocations = 1 << 20

// Revocations are the certificates of a fleet that count no more, by serial number:
// a CRL (RFC 5280) with the certificates of the CA that signed it after it, all PEM:
// several while roots change, for who knows only one of those.
// Any CA of the fleet may sign. Serial numbers are random and so unique over all of
// them. A list never changes; nil is the empty list with number 0.
type Revocations struct {
	text    []byte
	number  int64
	revoked map[string]time.Time
	crl     *x509.RevocationList
	signers []*x509.Certificate // one at least
}

// Serial is a certificate's serial number as lists and people have it: in hex.
func Serial(cert *x509.Certificate) string { return cert.SerialNumber.Text(16) }

// TypedSerial is a serial number as Serial writes it, of one that a person typed: with
// colons, capitals or leading zeros. Whether it is one is for the caller to see.
func TypedSerial(typed string) string {
	return strings.TrimLeft(strings.ToLower(strings.ReplaceAll(typed, ":", "")), "0")
}

// Number orders lists; the higher one is the newer.
func (r *Revocations) Number() int64 {
	if r == nil {
		return 0
	}
	return r.number
}

// PEM is the list as it is kept and sent; nil for the empty list.
func (r *Revocations) PEM() []byte {
	if r == nil {
		return nil
	}
	return r.text
}

// Serials are the revoked certificates, and when each was revoked.
func (r *Revocations) Serials() map[string]time.Time {
	if r == nil {
		return map[string]time.Time{}
	}
	return maps.Clone(r.revoked)
}

// Has says whether a certificate is revoked.
func (r *Revocations) Has(serial string) bool {
	if r == nil {
		return false
	}
	_, ok := r.revoked[serial]
	return ok
}

// SignRevocations makes a list. Its number must be higher than that of all before it.
func (ca *CA) SignRevocations(number int64, revoked map[string]time.Time, now time.Time) (*Revocations, error) {
	template := &x509.RevocationList{
		Number: big.NewInt(number), ThisUpdate: now, NextUpdate: now.Add(revocationsLast),
	}
	for serial, at := range revoked {
		n, ok := new(big.Int).SetString(serial, 16)
		if !ok || n.Sign() <= 0 {
			return nil, Errorf(ErrInvalid, "%q is no serial number of a certificate; see: hlctl trust", serial)
		}
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: n, RevocationTime: at})
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, ca.cert, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign the list of revoked certificates: %w", err)
	}
	return ParseRevocations(append(encodePEM("X509 CRL", der), EncodeCertificates(ca.Certificates())...))
}

// ParseRevocations reads a list. It does not verify it: that is for those who take
// it from others, see Credentials.Revoke.
func ParseRevocations(data []byte) (*Revocations, error) {
	if len(data) > maxRevocations {
		return nil, Errorf(ErrInvalid, "list of revoked certificates: %d bytes, %d is the limit", len(data), maxRevocations)
	}
	r := &Revocations{text: bytes.Clone(data), revoked: make(map[string]time.Time)}
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		var err error
		switch {
		case block.Type == "X509 CRL" && r.crl == nil:
			r.crl, err = x509.ParseRevocationList(block.Bytes)
		case block.Type == "CERTIFICATE" && r.crl != nil && len(r.signers) < maxRoots:
			var signer *x509.Certificate
			if signer, err = x509.ParseCertificate(block.Bytes); err == nil {
				r.signers = append(r.signers, signer)
			}
		default:
			err = fmt.Errorf("a %s is out of place", block.Type)
		}
		if err != nil {
			return nil, Errorf(ErrInvalid, "list of revoked certificates: %w", err)
		}
	}
	if r.crl == nil || len(r.signers) == 0 || r.crl.Number == nil || !r.crl.Number.IsInt64() || r.crl.Number.Sign() <= 0 {
		return nil, Errorf(ErrInvalid, "list of revoked certificates: it is not a numbered CRL with the certificate of its CA")
	}
	r.number = r.crl.Number.Int64()
	for _, e := range r.crl.RevokedCertificateEntries {
		r.revoked[e.SerialNumber.Text(16)] = e.RevocationTime
	}
	return r, nil
}

// verify checks who signed: a CA of the fleet that was in time then and is not
// itself revoked, by this list or the one in force. One of its certificates is enough.
func (r *Revocations) verify(roots *x509.CertPool, fleet string, inForce *Revocations) error {
	var err error
	for _, signer := range r.signers {
		if err = r.verifyBy(signer, roots, fleet, inForce); err == nil {
			return nil
		}
	}
	return err
}

func (r *Revocations) verifyBy(signer *x509.Certificate, roots *x509.CertPool, fleet string, inForce *Revocations) error {
	// The time of signing, since a list outlives the CA that signed it.
	chains, err := signer.Verify(x509.VerifyOptions{
		Roots: roots, CurrentTime: r.crl.ThisUpdate, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return Errorf(ErrDenied, "list of revoked certificates: signed by %q: %w", signer.Subject.CommonName, err)
	}
	for _, ca := range chains[0] {
		switch {
		case len(ca.Subject.Organization) != 1 || ca.Subject.Organization[0] != fleet:
			return Errorf(ErrDenied, "list of revoked certificates: signed by %q, which is no CA of fleet %s", ca.Subject.CommonName, fleet)
		case r.Has(Serial(ca)) || inForce.Has(Serial(ca)):
			return Errorf(ErrDenied, "list of revoked certificates: signed by %q, which is revoked", ca.Subject.CommonName)
		}
	}
	if err := r.crl.CheckSignatureFrom(signer); err != nil {
		return Errorf(ErrDenied, "list of revoked certificates: signature of %q: %w", signer.Subject.CommonName, err)
	}
	return nil
}

// replaces says whether a list takes the other's place. An older one is ErrRefused:
// with it somebody who was revoked would count again.
func (r *Revocations) replaces(inForce *Revocations) (bool, error) {
	switch {
	case r.number < inForce.Number():
		return false, Errorf(ErrRefused, "the list of revoked certificates with number %d is older than the one in force, %d", r.number, inForce.Number())
	case r.number > inForce.Number():
		return true, nil
	case maps.EqualFunc(r.revoked, inForce.revoked, time.Time.Equal):
		return false, nil
	}
	return false, Errorf(ErrRefused, "there are two lists of revoked certificates with number %d; revoke a certificate again for a new one: hlctl trust", r.number)
}

// revocation is a process's list in force, and the open connections by whom they
// are with, so that those of a certificate that is revoked end at once.
type revocation struct {
	mu   sync.Mutex
	file string
	list *Revocations
	open map[*peerConn]struct{}
}

// peerConn is a connection whose other side has shown its certificate.
type peerConn struct {
	net.Conn
	raw   net.Conn // below TLS: closing it waits for nobody
	chain []*x509.Certificate
	shown []*x509.Certificate // its own first
	of    *revocation
	cut   func(error) // told why it is cut; may be nil
}

func (p *peerConn) Close() error {
	p.of.mu.Lock()
	delete(p.of.open, p)
	p.of.mu.Unlock()
	return p.Conn.Close()
}

// revokedError is the fault of a certificate that is on the list.
type revokedError struct {
	id     Identity
	serial string
	ca     string // whose certificate is revoked, if it is a CA's above id's
}

func (e *revokedError) Error() string {
	if e.ca != "" {
		return fmt.Sprintf("certificate of %s was issued by %q, whose own (%s) was revoked", e.id, e.ca, e.serial)
	}
	return fmt.Sprintf("certificate of %s (%s) was revoked", e.id, e.serial)
}

// chainError finds a revoked certificate in a verified chain.
func (r *Revocations) chainError(chain []*x509.Certificate) error {
	for i, cert := range chain {
		serial := Serial(cert)
		if !r.Has(serial) {
			continue
		}
		id, _ := identityOf(chain[0]) // was checked before
		e := &revokedError{id: id, serial: serial}
		if i > 0 {
			e.ca = cert.Subject.CommonName
		}
		return e
	}
	return nil
}

// KeepRevocations has the list of revoked certificates kept in a file, and takes
// the one that is there. What is on our own disk was verified before it was written,
// and is not again: its CA's root may be gone from the bundle since.
func (c *Credentials) KeepRevocations(file string) error {
	c.revocation.mu.Lock()
	defer c.revocation.mu.Unlock()
	data, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return Errorf(ErrInvalid, "list of revoked certificates: %w", err)
	default:
		list, err := ParseRevocations(data)
		if err != nil {
			// Without it those who were revoked would count: better to stop.
			return Errorf(ErrInvalid, "%s: %w; a controller sends it again when it is removed", file, err)
		}
		c.revocation.list = list
	}
	c.revocation.file = file
	return nil
}

// Revocations is the list in force.
func (c *Credentials) Revocations() *Revocations {
	c.revocation.mu.Lock()
	defer c.revocation.mu.Unlock()
	return c.revocation.list
}

// Revoke takes a list from somebody: it is verified, kept, and then applied, to open
// connections too. It says whether it is another one than before. One that no CA of
// the fleet signed is ErrDenied; an older one, or another of the same number, is
// ErrRefused.
func (c *Credentials) Revoke(data []byte) (changed bool, err error) {
	list, err := ParseRevocations(data)
	if err != nil {
		return false, err
	}
	l := c.current()
	r := &c.revocation
	r.mu.Lock()
	if changed, err = list.replaces(r.list); !changed {
		r.mu.Unlock()
		return false, err
	}
	if err = list.verify(l.pool, l.id.Fleet, r.list); err == nil && r.file != "" {
		err = durable.Write(r.file, list.text)
	}
	if err != nil {
		r.mu.Unlock()
		return false, err
	}
	r.list = list
	var cut []*peerConn
	for p := range r.open {
		if list.chainError(p.chain) != nil {
			cut = append(cut, p)
			delete(r.open, p)
		}
	}
	r.mu.Unlock()
	for _, p := range cut {
		why := list.chainError(p.chain)
		c.log().Warn("connection cut", "address", p.raw.RemoteAddr().String(), "error", why)
		if p.cut != nil {
			p.cut(why)
		}
		_ = p.raw.Close()
	}
	return true, nil
}

// VerifyRevocations checks who signed a list, and takes it not: ErrDenied when it
// was no CA of the fleet.
func (c *Credentials) VerifyRevocations(list *Revocations) error {
	l := c.current()
	return list.verify(l.pool, l.id.Fleet, c.Revocations())
}

// revokedIn is why a peer with that chain does not count; nil when it does.
func (c *Credentials) revokedIn(chain []*x509.Certificate) error {
	return c.Revocations().chainError(chain)
}

// track gives the connection to use in conn's place, which a later list can end. A
// list that came while it was made has its say here.
func (c *Credentials) track(conn, raw net.Conn, info credentials.AuthInfo, cut func(error)) (net.Conn, error) {
	r, chain := &c.revocation, chainOf(info)
	p := &peerConn{Conn: conn, raw: raw, chain: chain, shown: shownOf(info), of: r, cut: cut}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.list.chainError(chain); err != nil {
		return nil, err
	}
	if r.open == nil {
		r.open = make(map[*peerConn]struct{})
	}
	r.open[p] = struct{}{}
	return p, nil
}
