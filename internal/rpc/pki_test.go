package rpc_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/homeiac/homelab/internal/rpc"
)

// issuing makes an issuing CA of the fleet's root.
func (f *fleet) issuing(name string) *rpc.CA {
	f.t.Helper()
	ca, err := f.ca.NewIssuing(name, time.Hour, time.Now())
	if err != nil {
		f.t.Fatal(err)
	}
	return ca
}

// by gives credentials that a CA issued.
func (f *fleet) by(ca *rpc.CA, role, name string) *rpc.Credentials {
	f.t.Helper()
	pair, err := ca.Issue(rpc.Identity{Role: role, Name: name}, time.Hour, time.Now())
	if err != nil {
		f.t.Fatal(err)
	}
	if err := pair.Write(f.path(role+"-"+name+".pem"), f.path(role+"-"+name+"-key.pem")); err != nil {
		f.t.Fatal(err)
	}
	return f.load(role, name)
}

func TestCertificatesOfAllControllersAreOfOneFleet(t *testing.T) {
	f := newFleet(t, "home")
	one, two := f.issuing("c1"), f.issuing("c2")
	addr := serve(t, f.by(one, rpc.RoleAgent, "pve1"), echoing(), quiet)
	for _, creds := range []*rpc.Credentials{
		f.by(two, rpc.RoleController, "c2"),
		f.creds(rpc.RoleAdmin, "me"), // of the root itself, as before there were two levels
	} {
		if got, err := call(t, dial(t, rpc.Target{Address: addr, Name: "pve1", Credentials: creds}), echo, "hello"); got != "hello" || err != nil {
			t.Errorf("%s: %q, %v", creds.Identity(), got, err)
		}
	}
}

func TestAnotherRootsIssuingCAIsNotBelieved(t *testing.T) {
	f, other := newFleet(t, "home"), newFleet(t, "home")
	addr := serve(t, f.by(f.issuing("c1"), rpc.RoleAgent, "pve1"), echoing(), quiet)
	other.by(other.issuing("c1"), rpc.RoleAdmin, "me")
	creds, err := rpc.LoadTLS(f.path("ca.pem"), other.path("admin-me.pem"), other.path("admin-me-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = call(t, dial(t, rpc.Target{Address: addr, Credentials: creds}), echo, "")
	denied(t, err, "refuses the certificate", "unknown certificate authority")
}

func TestTheBundleHoldsTheOldRootAndTheNew(t *testing.T) {
	f, next := newFleet(t, "home"), newFleet(t, "home")
	both := append(f.ca.Cert(), next.ca.Cert()...)
	for _, g := range []*fleet{f, next} {
		if err := os.WriteFile(g.path("ca.pem"), both, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	addr := serve(t, f.by(f.issuing("c1"), rpc.RoleAgent, "pve1"), echoing(), quiet)
	conn := dial(t, rpc.Target{Address: addr, Credentials: next.by(next.issuing("c1"), rpc.RoleAdmin, "me")})
	if _, err := call(t, conn, echo, ""); err != nil {
		t.Fatal(err)
	}
}

func TestAnIssuingCASignsNoFurtherCA(t *testing.T) {
	f := newFleet(t, "home")
	one := f.issuing("c1")
	if _, err := one.NewIssuing("c2", time.Hour, time.Now()); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("%v", err)
	}
	if _, err := f.ca.NewIssuing("../c2", time.Hour, time.Now()); !errors.Is(err, rpc.ErrInvalid) {
		t.Errorf("%v", err)
	}
}

// forge signs a certificate with a CA's files, as somebody with the key could, and
// puts it with its chain where f.load finds it.
func (f *fleet) forge(ca *rpc.CA, template *x509.Certificate, role, name string) *rpc.Credentials {
	f.t.Helper()
	if err := ca.Write(f.path("stolen.pem"), f.path("stolen-key.pem")); err != nil {
		f.t.Fatal(err)
	}
	parent, signer := readPair(f.t, f.path("stolen.pem"), f.path("stolen-key.pem"))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		f.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		f.t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if !ca.IsRoot() {
		cert = append(cert, ca.Cert()...)
	}
	pair := rpc.Pair{Cert: cert, Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})}
	if err := pair.Write(f.path(role+"-"+name+".pem"), f.path(role+"-"+name+"-key.pem")); err != nil {
		f.t.Fatal(err)
	}
	return f.load(role, name)
}

func readPair(t *testing.T, certFile, keyFile string) (*x509.Certificate, any) {
	t.Helper()
	certPEM, err := os.ReadFile(certFile)
	if err != nil {
		t.Fatal(err)
	}
	keyPEM, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	certBlock, _ := pem.Decode(certPEM)
	keyBlock, _ := pem.Decode(keyPEM)
	cert, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func admin(fleet string) *url.URL {
	return rpc.Identity{Fleet: fleet, Role: rpc.RoleAdmin, Name: "me"}.URI()
}

// What X.509 lets pass and a fleet must not.
func TestChainsThatAreSoundButNotOurs(t *testing.T) {
	f := newFleet(t, "home")
	addr := serve(t, f.by(f.issuing("c1"), rpc.RoleAgent, "pve1"), echoing(), quiet)
	client := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	leaf := func() *x509.Certificate {
		return &x509.Certificate{URIs: []*url.URL{admin("home")}, ExtKeyUsage: client, DNSNames: []string{"admin.homelab.internal"}}
	}
	t.Run("an issuing CA of another fleet", func(t *testing.T) {
		f.forge(f.ca, &x509.Certificate{
			Subject: pkix.Name{CommonName: "x", Organization: []string{"other"}}, URIs: []*url.URL{admin("home")},
			IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
		}, rpc.RoleAdmin, "other-ca")
		ca, err := rpc.LoadCA(f.path("admin-other-ca.pem"), f.path("admin-other-ca-key.pem"), nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = call(t, dial(t, rpc.Target{Address: addr, Credentials: f.forge(ca, leaf(), rpc.RoleAdmin, "me")}), echo, "")
		denied(t, err, "refuses the certificate")
	})
	t.Run("a CA that poses as somebody", func(t *testing.T) {
		template := leaf()
		template.IsCA, template.BasicConstraintsValid, template.MaxPathLenZero = true, true, true
		_, err := call(t, dial(t, rpc.Target{Address: addr, Credentials: f.forge(f.ca, template, rpc.RoleAdmin, "me")}), echo, "")
		denied(t, err, "refuses the certificate")
	})
}

func TestTheRootsKeyMayHaveAPassphrase(t *testing.T) {
	f := newFleet(t, "home")
	cert, key := f.path("sealed.pem"), f.path("sealed-key.pem")
	if err := f.ca.Seal(cert, key, nil); !errors.Is(err, rpc.ErrInvalid) {
		t.Errorf("empty passphrase: %v", err)
	}
	if err := f.ca.Seal(cert, key, []byte("correct horse")); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(key)
	if err != nil || !bytes.HasPrefix(data, []byte("-----BEGIN ENCRYPTED PRIVATE KEY-----")) {
		t.Errorf("%.40q, %v", data, err)
	}
	for _, passphrase := range []string{"", "wrong horse"} {
		if _, err := rpc.LoadCA(cert, key, []byte(passphrase)); !errors.Is(err, rpc.ErrDenied) {
			t.Errorf("%q: %v", passphrase, err)
		}
	}
	ca, err := rpc.LoadCA(cert, key, []byte("correct horse"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ca.NewIssuing("c1", time.Hour, time.Now()); err != nil {
		t.Error(err)
	}
}

// A root as they were made before there were issuing CAs.
func TestAnOldRootGoesOnWithOneLevel(t *testing.T) {
	f := newFleet(t, "home")
	f.forge(f.ca, &x509.Certificate{
		Subject: pkix.Name{CommonName: "old", Organization: []string{"home"}}, URIs: []*url.URL{admin("home")},
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}, rpc.RoleAdmin, "old")
	ca, err := rpc.LoadCA(f.path("admin-old.pem"), f.path("admin-old-key.pem"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ca.NewIssuing("c1", time.Hour, time.Now()); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("%v", err)
	}
	if _, err := ca.Issue(rpc.Identity{Role: rpc.RoleAgent, Name: "pve1"}, time.Hour, time.Now()); err != nil {
		t.Error(err)
	}
}
