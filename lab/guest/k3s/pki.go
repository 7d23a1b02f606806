package k3s

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"

	"github.com/homeiac/homelab/lab/guest/tree"
)

const tlsDir = dataDir + "/server/tls"

// caFiles are the certificate authorities that all servers of a cluster share,
// by their names in the bootstrap data.
var caFiles = map[string]string{
	"ServerCA": tlsDir + "/server-ca.crt", "ServerCAKey": tlsDir + "/server-ca.key",
	"ClientCA": tlsDir + "/client-ca.crt", "ClientCAKey": tlsDir + "/client-ca.key",
	"ETCDServerCA": tlsDir + "/etcd/server-ca.crt", "ETCDServerCAKey": tlsDir + "/etcd/server-ca.key",
	"ETCDPeerCA": tlsDir + "/etcd/peer-ca.crt", "ETCDPeerCAKey": tlsDir + "/etcd/peer-ca.key",
}

// authority is a CA that can sign.
type authority struct {
	cert *x509.Certificate
	pem  []byte
	key  *ecdsa.PrivateKey
}

func serial() (*big.Int, error) { return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)) }

// newCA makes an authority's certificate and key in PEM.
func newCA(name string) (cert, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	n, err := serial()
	if err != nil {
		return nil, nil, err
	}
	t := &x509.Certificate{
		SerialNumber: n, Subject: pkix.Name{CommonName: fmt.Sprintf("%s@%d", name, time.Now().Unix())},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, k.Public(), k)
	if err != nil {
		return nil, nil, err
	}
	return encode(der, k)
}

func encode(der []byte, k *ecdsa.PrivateKey) (cert, key []byte, err error) {
	kb, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: kb}), nil
}

func loadCA(v *tree.View, name string) (*authority, error) {
	cp, err := v.ReadFile(caFiles[name])
	if err != nil {
		return nil, err
	}
	kp, err := v.ReadFile(caFiles[name+"Key"])
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cp, kp)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", caFiles[name], err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: not an ECDSA key", caFiles[name+"Key"])
	}
	cert, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return nil, err
	}
	return &authority{cert: cert, pem: cp, key: key}, nil
}

// sign makes a certificate and its key in PEM, for a year, good for both ends of
// a connection.
func (a *authority) sign(cn string, orgs, names []string) (cert, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	n, err := serial()
	if err != nil {
		return nil, nil, err
	}
	t := &x509.Certificate{
		SerialNumber: n, Subject: pkix.Name{CommonName: cn, Organization: orgs},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, s := range names {
		if ip := net.ParseIP(s); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, s)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, k.Public(), a.key)
	if err != nil {
		return nil, nil, err
	}
	return encode(der, k)
}

// makeCAs makes the authorities of a new cluster; those that an administrator
// put there are kept.
func makeCAs(v *tree.View) error {
	for name, cn := range map[string]string{
		"ServerCA": "k3s-server-ca", "ClientCA": "k3s-client-ca", "ETCDServerCA": "etcd-server-ca", "ETCDPeerCA": "etcd-peer-ca",
	} {
		if _, err := v.Stat(caFiles[name]); err == nil {
			continue
		}
		cert, key, err := newCA(cn)
		if err != nil {
			return err
		}
		if err := errors.Join(v.Put(caFiles[name], cert, 0o644), v.Put(caFiles[name+"Key"], key, 0o600)); err != nil {
			return err
		}
	}
	return nil
}

// leaf signs a certificate into a file pair.
func leaf(v *tree.View, ca, file, cn string, orgs, names []string) error {
	a, err := loadCA(v, ca)
	if err != nil {
		return err
	}
	cert, key, err := a.sign(cn, orgs, names)
	if err != nil {
		return err
	}
	return errors.Join(v.Put(file+".crt", cert, 0o644), v.Put(file+".key", key, 0o600))
}

func pool(pemBytes []byte) *x509.CertPool {
	p := x509.NewCertPool()
	p.AppendCertsFromPEM(pemBytes)
	return p
}
