package rpc

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A root gives way to another in three steps: the issuing CAs get a second certificate,
// which the new root signs, of the same key, name and serial number; both roots are
// trusted, and everybody shows both certificates; the old root is trusted no more. So
// what an issuing CA signed before is good below the new root too, for who has both
// certificates: nothing of the old root is needed to know a host that was off all the
// while.

// NextCA makes the root that takes old's place.
func NextCA(old *x509.Certificate, lifetime time.Duration, now time.Time) (*CA, error) {
	if !isRoot(old) || len(old.Subject.Organization) != 1 {
		return nil, Errorf(ErrInvalid, "%q is no root of a fleet", old.Subject.CommonName)
	}
	fleet := old.Subject.Organization[0]
	key, err := newKey("the CA")
	if err != nil {
		return nil, err
	}
	// Another name than the old one's, so that people can tell them apart.
	template := caTemplate(fmt.Sprintf("homelab CA of fleet %s since %s", fleet, now.UTC().Format("2006-01-02 15:04")), fleet, lifetime, now)
	template.MaxPathLen = 1
	return newCA(template, template, key, key)
}

// Certificate is the CA's certificate.
func (ca *CA) Certificate() *x509.Certificate { return ca.cert }

// Certificates are all that it has, the one that is used first.
func (ca *CA) Certificates() []*x509.Certificate {
	return append([]*x509.Certificate{ca.cert}, ca.also...)
}

// Recertify signs an issuing CA of another root: a certificate of the same key, name
// and serial number. With the same number, who revokes one revokes both.
func (ca *CA) Recertify(issuing *x509.Certificate, lifetime time.Duration, now time.Time) (*x509.Certificate, error) {
	if !ca.IsRoot() || ca.cert.MaxPathLen == 0 {
		return nil, Errorf(ErrRefused, "%q may sign no CA below it: only a root may that was made for it", ca.cert.Subject.CommonName)
	}
	if !issuing.IsCA || isRoot(issuing) || !slices.Equal(issuing.Subject.Organization, []string{ca.Fleet()}) {
		return nil, Errorf(ErrInvalid, "%q is no issuing CA of fleet %s", issuing.Subject.CommonName, ca.Fleet())
	}
	template := caTemplate("", ca.Fleet(), lifetime, now)
	template.SerialNumber, template.RawSubject, template.SubjectKeyId = issuing.SerialNumber, issuing.RawSubject, issuing.SubjectKeyId
	template.MaxPathLenZero = true
	if template.NotAfter.After(ca.cert.NotAfter) {
		template.NotAfter = ca.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, issuing.PublicKey, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign %q: %w", issuing.Subject.CommonName, err)
	}
	return x509.ParseCertificate(der)
}

// With is the CA with one more certificate, after the others. What is not of the same key, name and
// serial number is ErrRefused.
func (ca *CA) With(cert *x509.Certificate) (*CA, error) {
	key, ok := ca.cert.PublicKey.(*ecdsa.PublicKey)
	switch {
	case ca.IsRoot() || !cert.IsCA || !cert.MaxPathLenZero || cert.KeyUsage&x509.KeyUsageCertSign == 0,
		!ok || !key.Equal(cert.PublicKey),
		!bytes.Equal(cert.RawSubject, ca.cert.RawSubject) || !bytes.Equal(cert.SubjectKeyId, ca.cert.SubjectKeyId),
		cert.SerialNumber.Cmp(ca.cert.SerialNumber) != 0:
		return nil, Errorf(ErrRefused, "a certificate of %q is none of the issuing CA %q", cert.Subject.CommonName, ca.cert.Subject.CommonName)
	case slices.ContainsFunc(ca.Certificates(), cert.Equal):
		return ca, nil
	}
	all := append(ca.Certificates(), cert)
	all = all[max(0, len(all)-maxRoots):] // nobody was off for so many
	return &CA{cert: all[0], key: ca.key, also: all[1:]}, nil
}

// Below is the issuing CA with those of its certificates that are below the roots, the
// latest root's first; nil when there is none.
func (ca *CA) Below(roots []*x509.Certificate) *CA {
	var certs []*x509.Certificate
	for _, root := range slices.Backward(roots) {
		for _, cert := range ca.Certificates() {
			if cert.CheckSignatureFrom(root) == nil {
				certs = append(certs, cert)
			}
		}
	}
	if len(certs) == 0 {
		return nil
	}
	return &CA{cert: certs[0], key: ca.key, also: certs[1:]}
}

// EncodeCertificates gives certificates in PEM, one after the other.
func EncodeCertificates(certs []*x509.Certificate) []byte {
	var out []byte
	for _, cert := range certs {
		out = append(out, encodePEM("CERTIFICATE", cert.Raw)...)
	}
	return out
}

// RootsAbove are those of the roots that a certificate is below, given certificates of
// CAs that may be in between: their hashes. Times are left aside.
func RootsAbove(leaf *x509.Certificate, between, roots []*x509.Certificate) []string {
	var above []string
	for _, root := range roots {
		if leaf.CheckSignatureFrom(root) == nil || slices.ContainsFunc(between, func(ca *x509.Certificate) bool {
			return leaf.CheckSignatureFrom(ca) == nil && ca.CheckSignatureFrom(root) == nil
		}) {
			above = append(above, RootHash(root))
		}
	}
	return above
}

// Vouch signs a new root, so that who trusts this one may trust that.
func (ca *CA) Vouch(next *x509.Certificate) ([]byte, error) {
	sum := sha256.Sum256(vouched(next))
	return ca.key.Sign(rand.Reader, sum[:], crypto.SHA256)
}

// Vouched says whether the key of an old root has signed a new one.
func Vouched(old, next *x509.Certificate, voucher []byte) bool {
	key, ok := old.PublicKey.(*ecdsa.PublicKey)
	sum := sha256.Sum256(vouched(next))
	return ok && ecdsa.VerifyASN1(key, sum[:], voucher)
}

// vouched begins as no certificate does: the key signs those too.
func vouched(next *x509.Certificate) []byte {
	return append([]byte("homelab: this root takes my place\n"), next.Raw...)
}

// OfferProof is what shows that a root was offered by somebody with the key, and
// IssuingProof that these are the controllers' issuing CAs: who stole a root's key could
// pose as either, and has not the fleet's, from which the key is derived.
func OfferProof(key []byte, root *x509.Certificate) []byte {
	return proof(key, "offer", root, nil)
}

// IssuingProof is told with OfferProof. The issuing CAs are by the controllers' names.
func IssuingProof(key []byte, root *x509.Certificate, issuing map[string][]byte) []byte {
	return proof(key, "issuing", root, issuing)
}

func proof(key []byte, what string, root *x509.Certificate, issuing map[string][]byte) []byte {
	names := make([]string, 0, len(issuing))
	for name := range issuing {
		names = append(names, name)
	}
	slices.Sort(names)
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s\n%s\n%s\n", what, RootHash(root), strings.Join(names, " "))
	for _, name := range names {
		fmt.Fprintf(mac, "%x\n", sha256.Sum256(issuing[name]))
	}
	return mac.Sum(nil)
}
