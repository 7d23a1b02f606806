package rpc

import (
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
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/homeiac/homelab/internal/durable"
)

// backdate is how far before now certificates start to be valid: machines whose
// clocks disagree a little must accept a fresh one.
const backdate = time.Hour

// CA is a fleet's own certificate authority. Its private key never leaves it
// but through Write.
type CA struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// Pair is a certificate and its private key, both PEM.
type Pair struct {
	Cert []byte
	Key  []byte
}

// NewCA makes a certificate authority for the fleet, valid for lifetime from now.
func NewCA(fleet string, lifetime time.Duration, now time.Time) (*CA, error) {
	if err := (Identity{Fleet: fleet, Role: RoleAdmin, Name: "ca"}).Check(); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the CA's key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "homelab CA of fleet " + fleet, Organization: []string{fleet}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(lifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the CA's certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read the CA's certificate: %w", err)
	}
	return &CA{cert: cert, key: key}, nil
}

// LoadCA reads a CA that was written by Write.
func LoadCA(certFile, keyFile string) (*CA, error) {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("load the CA: %w", err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !pair.Leaf.IsCA || len(pair.Leaf.Subject.Organization) != 1 {
		return nil, Errorf(ErrInvalid, "%s is not a CA of ours", certFile)
	}
	return &CA{cert: pair.Leaf, key: key}, nil
}

// Fleet is the fleet the CA speaks for.
func (ca *CA) Fleet() string { return ca.cert.Subject.Organization[0] }

// Cert is the CA's certificate in PEM: public, what every peer needs.
func (ca *CA) Cert() []byte { return encodePEM("CERTIFICATE", ca.cert.Raw) }

// Write stores certificate and private key, both with mode 0600.
func (ca *CA) Write(certFile, keyFile string) error {
	key, err := encodeKey(ca.key)
	if err != nil {
		return err
	}
	return (&Pair{Cert: ca.Cert(), Key: key}).Write(certFile, keyFile)
}

// Issue makes a key and a certificate for id, valid for lifetime from now (and
// for the hour before, for clocks that are behind). An empty fleet is the CA's;
// another fleet is ErrInvalid.
func (ca *CA) Issue(id Identity, lifetime time.Duration, now time.Time) (*Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key for %s: %w", id, err)
	}
	cert, err := ca.Sign(key.Public(), id, lifetime, now)
	if err != nil {
		return nil, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return &Pair{Cert: cert, Key: keyPEM}, nil
}

// Sign makes a certificate (PEM) for a key whose private half stays with its
// owner. Otherwise as Issue.
func (ca *CA) Sign(public crypto.PublicKey, id Identity, lifetime time.Duration, now time.Time) ([]byte, error) {
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
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, public, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign for %s: %w", id, err)
	}
	return encodePEM("CERTIFICATE", der), nil
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

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a private key: %w", err)
	}
	return encodePEM("PRIVATE KEY", der), nil
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
