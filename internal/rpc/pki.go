package rpc

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/homeiac/homelab/internal/durable"
)

// backdate is how far before now certificates start to be valid: machines whose
// clocks disagree a little must accept a fresh one.
const backdate = time.Hour

// CA is a certificate authority of a fleet: the root, whose key stays with the
// admin, or an issuing CA that the root signed, which a controller holds. There is
// no third level. Its private key never leaves it but through Write.
type CA struct {
	cert *x509.Certificate
	key  crypto.Signer
	// also are certificates of the same key and name below other roots: an issuing CA
	// keeps both while a new root takes an old one's place.
	also []*x509.Certificate
}

// Pair is a certificate and its private key, both PEM. After the certificate comes
// that of the issuing CA which signed it, if one did.
type Pair struct {
	Cert []byte
	Key  []byte
}

// NewCA makes a fleet's root, valid for lifetime from now.
func NewCA(fleet string, lifetime time.Duration, now time.Time) (*CA, error) {
	if err := (Identity{Fleet: fleet, Role: RoleAdmin, Name: "ca"}).Check(); err != nil {
		return nil, err
	}
	key, err := newKey("the CA")
	if err != nil {
		return nil, err
	}
	template := caTemplate("homelab CA of fleet "+fleet, fleet, lifetime, now)
	// One level of issuing CAs may be below it, and they may not go on.
	template.MaxPathLen = 1
	return newCA(template, template, key, key)
}

// IssuingName is what the certificate of a controller's issuing CA is called.
func IssuingName(controller, fleet string) string {
	return "homelab issuing CA of " + controller + " of fleet " + fleet
}

// NewIssuing makes an issuing CA that this root signs, for the controller of that
// name. Its certificate ends with the root's at the latest. What is no root, or a
// root that was made before there were issuing CAs, is ErrRefused.
func (ca *CA) NewIssuing(name string, lifetime time.Duration, now time.Time) (*CA, error) {
	if err := (Identity{Fleet: ca.Fleet(), Role: RoleController, Name: name}).Check(); err != nil {
		return nil, err
	}
	if !ca.IsRoot() || ca.cert.MaxPathLen == 0 {
		return nil, Errorf(ErrRefused, "%q may sign no CA below it: only a root may that was made for it", ca.cert.Subject.CommonName)
	}
	key, err := newKey("the issuing CA of " + name)
	if err != nil {
		return nil, err
	}
	template := caTemplate(IssuingName(name, ca.Fleet()), ca.Fleet(), lifetime, now)
	template.MaxPathLenZero = true
	if template.NotAfter.After(ca.cert.NotAfter) {
		template.NotAfter = ca.cert.NotAfter
	}
	return newCA(template, ca.cert, key, ca.key)
}

func caTemplate(name, fleet string, lifetime time.Duration, now time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: name, Organization: []string{fleet}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(lifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
}

func newCA(template, parent *x509.Certificate, key, signer crypto.Signer) (*CA, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("make the certificate of %q: %w", template.Subject.CommonName, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read the certificate of %q: %w", template.Subject.CommonName, err)
	}
	return &CA{cert: cert, key: key}, nil
}

// LoadCA reads a CA that was written by Write, or by Seal with that passphrase; nil
// is none. A key that needs one, or another one, is ErrDenied.
func LoadCA(certFile, keyFile string, passphrase []byte) (*CA, error) {
	certPEM, err := os.ReadFile(certFile)
	if err != nil {
		return nil, Errorf(ErrInvalid, "load the CA: %w", err)
	}
	keyPEM, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, Errorf(ErrInvalid, "load the CA: %w", err)
	}
	if keyPEM, err = openKey(keyPEM, passphrase); err != nil {
		return nil, fmt.Errorf("load the CA: %s: %w", keyFile, err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, Errorf(ErrInvalid, "load the CA: %s with %s: %w", certFile, keyFile, err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !pair.Leaf.IsCA || len(pair.Leaf.Subject.Organization) != 1 {
		return nil, Errorf(ErrInvalid, "%s is not a CA of ours", certFile)
	}
	ca := &CA{cert: pair.Leaf, key: key}
	for _, der := range pair.Certificate[1:] {
		cert, err := x509.ParseCertificate(der)
		if err == nil {
			ca, err = ca.With(cert)
		}
		if err != nil {
			return nil, fmt.Errorf("load the CA: %s: %w", certFile, err)
		}
	}
	return ca, nil
}

// Fleet is the fleet the CA speaks for.
func (ca *CA) Fleet() string { return ca.cert.Subject.Organization[0] }

// IsRoot says whether it is a root, and no issuing CA.
func (ca *CA) IsRoot() bool { return isRoot(ca.cert) }

func isRoot(cert *x509.Certificate) bool { return bytes.Equal(cert.RawIssuer, cert.RawSubject) }

// Cert is the CA's certificate in PEM: public, and of a root what every peer needs.
func (ca *CA) Cert() []byte { return encodePEM("CERTIFICATE", ca.cert.Raw) }

// chain is what comes after a certificate that this CA signed: peers have the roots
// only. While roots change, some have the old one and some the new one.
func (ca *CA) chain() []byte {
	if ca.IsRoot() {
		return nil
	}
	return EncodeCertificates(ca.Certificates())
}

// Write stores certificate and private key, both with mode 0600.
func (ca *CA) Write(certFile, keyFile string) error {
	key, err := encodeKey(ca.key)
	if err != nil {
		return err
	}
	return (&Pair{Cert: ca.Cert(), Key: key}).Write(certFile, keyFile)
}

// Seal is Write with the key encrypted by a passphrase.
func (ca *CA) Seal(certFile, keyFile string, passphrase []byte) error {
	key, err := sealKey(ca.key, passphrase)
	if err != nil {
		return err
	}
	return (&Pair{Cert: ca.Cert(), Key: key}).Write(certFile, keyFile)
}

// Issue makes a key and a certificate for id, valid for lifetime from now (and
// for the hour before, for clocks that are behind). An empty fleet is the CA's;
// another fleet is ErrInvalid.
func (ca *CA) Issue(id Identity, lifetime time.Duration, now time.Time) (*Pair, error) {
	key, err := newKey(id.String())
	if err != nil {
		return nil, err
	}
	cert, err := ca.Sign(key.Public(), id, nil, lifetime, now)
	if err != nil {
		return nil, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return &Pair{Cert: cert, Key: keyPEM}, nil
}

// Sign makes a certificate (PEM, with the issuing CA's after it) for a key whose
// private half stays with its owner. The addresses are for people and other
// programs: peers of the fleet go by the identity. It ends with the CA's own at the
// latest. Otherwise as Issue.
func (ca *CA) Sign(public crypto.PublicKey, id Identity, addresses []netip.Addr, lifetime time.Duration, now time.Time) ([]byte, error) {
	if id.Fleet == "" {
		id.Fleet = ca.Fleet()
	}
	if err := id.Check(); err != nil {
		return nil, err
	}
	if id.Fleet != ca.Fleet() {
		return nil, Errorf(ErrInvalid, "the CA of fleet %s cannot issue for fleet %s", ca.Fleet(), id.Fleet)
	}
	// People's certificates cannot be used to pose as a server.
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if id.Role == RoleAgent || id.Role == RoleController {
		usage = append(usage, x509.ExtKeyUsageServerAuth)
	}
	template := &x509.Certificate{
		SerialNumber: serial(),
		Subject: pkix.Name{
			CommonName: id.Name, OrganizationalUnit: []string{id.Role}, Organization: []string{id.Fleet},
		},
		NotBefore:   now.Add(-backdate),
		NotAfter:    now.Add(lifetime),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: usage,
		URIs:        []*url.URL{id.URI()},
		// What a client verifies in place of a host name, see serverName.
		DNSNames: []string{serverName(id.Role)},
	}
	for _, a := range addresses {
		template.IPAddresses = append(template.IPAddresses, a.AsSlice())
	}
	if template.NotAfter.After(ca.cert.NotAfter) {
		template.NotAfter = ca.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, public, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign for %s: %w", id, err)
	}
	return append(encodePEM("CERTIFICATE", der), ca.chain()...), nil
}

// Write stores certificate and private key, both with mode 0600, making their
// folders (0700) where needed. Each file is replaced whole; the key comes first.
func (p *Pair) Write(certFile, keyFile string) error {
	if err := writeFile(keyFile, p.Key); err != nil {
		return err
	}
	return writeFile(certFile, p.Cert)
}

func serial() *big.Int {
	// 127 random bits, never zero: RFC 5280 allows 20 octets, positive.
	limit := new(big.Int).Lsh(big.NewInt(1), 127)
	n, err := rand.Int(rand.Reader, limit)
	if err != nil {
		panic(err) // crypto/rand does not fail since Go 1.24
	}
	return n.Add(n, big.NewInt(1))
}

func newKey(of string) (crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key for %s: %w", of, err)
	}
	return key, nil
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a private key: %w", err)
	}
	return encodePEM("PRIVATE KEY", der), nil
}

// parseKey reads a private key as encodeKey writes it.
func parseKey(data []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, Errorf(ErrInvalid, "it holds no key")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, Errorf(ErrInvalid, "%w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, Errorf(ErrInvalid, "its key cannot sign")
	}
	return signer, nil
}

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func writeFile(name string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	if err := durable.Write(name, data); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}
