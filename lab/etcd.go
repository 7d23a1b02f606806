package lab

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// EtcdEndpoint is where the controllers' shared etcd listens.
func (l *Lab) EtcdEndpoint() string { return net.JoinHostPort(l.etcdAddress(), fmt.Sprint(etcdPort)) }

// RunEtcd is the external etcd that several controllers share, until ctx ends.
// Clients need a certificate.
func (l *Lab) RunEtcd(ctx context.Context) error {
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = "lab", l.path("etcd")
	client := url.URL{Scheme: "https", Host: l.EtcdEndpoint()}
	peer := url.URL{Scheme: "http", Host: net.JoinHostPort(l.etcdAddress(), fmt.Sprint(etcdPeerPort))}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.LogLevel = "warn"
	cfg.ClientTLSInfo.CertFile, cfg.ClientTLSInfo.KeyFile = l.path("pki", "etcd-server.pem"), l.path("pki", "etcd-server.key")
	cfg.ClientTLSInfo.TrustedCAFile, cfg.ClientTLSInfo.ClientCertAuth = l.path("pki", "etcd-ca.pem"), true
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return fmt.Errorf("start the controllers' etcd: %w", err)
	}
	defer e.Close()
	select {
	case <-ctx.Done():
		return nil
	case err := <-e.Err():
		return err
	}
}

// makeEtcdTrust makes the etcd's own CA with a server and a client certificate,
// which name addresses as etcd's clients expect it.
func (l *Lab) makeEtcdTrust(now time.Time) error {
	if _, err := os.Stat(l.path("pki", "etcd-client.key")); err == nil {
		return nil
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "lab etcd CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(certLifetime),
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return err
	}
	if err := writeFile(l.path("pki", "etcd-ca.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}), 0o600); err != nil {
		return err
	}
	for i, name := range []string{"etcd-server", "etcd-client"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		t := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 2)), Subject: pkix.Name{CommonName: name},
			NotBefore: now.Add(-time.Hour), NotAfter: now.Add(certLifetime),
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			IPAddresses: []net.IP{net.ParseIP(l.etcdAddress())},
		}
		der, err := x509.CreateCertificate(rand.Reader, t, ca, key.Public(), caKey)
		if err != nil {
			return err
		}
		keyDER, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return err
		}
		err = errors.Join(
			writeFile(l.path("pki", name+".pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
			writeFile(l.path("pki", name+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600),
		)
		if err != nil {
			return err
		}
	}
	return nil
}
