package rpc

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"github.com/homeiac/homelab/internal/durable"
)

const (
	// lookAgain is the longest that nobody looks at a certificate's end: clocks are
	// set, and files replaced.
	lookAgain = time.Hour
	// renewAgain and renewRarely are how soon a renewal that failed is tried again,
	// at first and at last.
	renewAgain  = time.Second
	renewRarely = time.Minute
)

// RenewAt is when a certificate is to be renewed: two thirds of its life after it was
// issued, which is later than its beginning since that is dated back.
func RenewAt(cert *x509.Certificate) time.Time {
	issued := cert.NotBefore.Add(backdate)
	return issued.Add(cert.NotAfter.Sub(issued) * 2 / 3)
}

// OverdueAt is when a certificate with these times should have been renewed long since:
// in the last sixth of its life.
func OverdueAt(notBefore, notAfter time.Time) time.Time {
	return notAfter.Add(-notAfter.Sub(notBefore.Add(backdate)) / 6)
}

// Renewal keeps one process's certificate from expiring.
type Renewal struct {
	Credentials *Credentials
	// Renew gets a new certificate and puts it in its place.
	Renew func(ctx context.Context) error
	// Wait waits, or says no when ctx ended; nil is pause.For, which Wake ends early.
	Wait func(ctx context.Context, d time.Duration) bool
	// Wake has it look again whether the certificate is below all roots; may be nil.
	Wake <-chan struct{}
	Log  *slog.Logger
}

// Run renews in time until ctx ends, and at once when the certificate is not below all
// roots that we trust: they are about to change. A renewal that fails, or does not change
// that, is tried again and again, also when the certificate has expired.
func (r *Renewal) Run(ctx context.Context) error {
	wait := r.Wait
	if wait == nil {
		wait = r.pause
	}
	failed := renewAgain
	for {
		left := RenewAt(r.Credentials.Leaf()).Sub(r.Credentials.Now())
		if left <= 0 || !r.Credentials.BelowAll() {
			err := r.Renew(ctx)
			if err != nil {
				r.Log.Warn("certificate not renewed", "ends", r.Credentials.NotAfter(), "error", err)
			} else {
				r.Log.Info("certificate renewed", "ends", r.Credentials.NotAfter())
			}
			switch {
			case err != nil:
				left, failed = failed, min(2*failed, renewRarely)
			case !r.Credentials.BelowAll():
				// Whoever renewed it knew less of the roots than we do; maybe it never knows more.
				left, failed = failed, min(2*failed, lookAgain)
			default:
				failed = renewAgain
				// One whose life is too short to be of use must not make us spin.
				left = max(RenewAt(r.Credentials.Leaf()).Sub(r.Credentials.Now()), renewAgain)
			}
		}
		if !wait(ctx, min(left, lookAgain)) {
			return nil
		}
	}
}

func (r *Renewal) pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-r.Wake:
	case <-timer.C:
	}
	return ctx.Err() == nil
}

// Leaf is our certificate.
func (c *Credentials) Leaf() *x509.Certificate { return c.current().pair.Leaf }

// Public is our public key.
func (c *Credentials) Public() crypto.PublicKey { return c.Leaf().PublicKey }

// SetCertificate puts a new certificate in the place of ours: for the same key, of
// the same holder, and below a root that we trust; else it is ErrRefused.
func (c *Credentials) SetCertificate(data []byte) error {
	keyPEM, err := os.ReadFile(c.key)
	if err != nil {
		return Errorf(ErrInvalid, "credentials: %w", err)
	}
	l := c.current()
	if err := checkNew(data, keyPEM, l.id, l.pool, c.Now()); err != nil {
		return err
	}
	if err := durable.Write(c.cert, data); err != nil {
		return err
	}
	// Not left to the file's time, which is too coarse for two in a row.
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = [3]fileMark{}
	return nil
}

// checkNew checks a certificate that somebody gave us.
func checkNew(data, keyPEM []byte, want Identity, roots *x509.CertPool, now time.Time) error {
	pair, err := tls.X509KeyPair(data, keyPEM)
	if err != nil {
		return Errorf(ErrRefused, "new certificate: not for our key: %w", err)
	}
	if id, err := identityOf(pair.Leaf); err != nil || id != want {
		return Errorf(ErrRefused, "new certificate: it is of %s, this is %s", id, want)
	}
	above := x509.NewCertPool()
	for _, der := range pair.Certificate[1:] {
		if ca, err := x509.ParseCertificate(der); err == nil {
			above.AddCert(ca)
		}
	}
	_, err = pair.Leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: above, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return Errorf(ErrRefused, "new certificate: %w", err)
	}
	return nil
}

// CheckEnrolled checks what a controller gave for a token: the bundle has the root
// that the token names, and the certificate is for our key and the token's name.
func (t Token) CheckEnrolled(cert, bundle []byte, key crypto.Signer, now time.Time) error {
	roots, err := ParseRoots(bundle, t.Fleet)
	if err != nil {
		return err
	}
	pool, named := x509.NewCertPool(), false
	for _, root := range roots {
		pool.AddCert(root)
		named = named || RootHash(root) == t.Root
	}
	if !named {
		return Errorf(ErrRefused, "the bundle of roots has not the one that the token names")
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return err
	}
	return checkNew(cert, keyPEM, t.Identity, pool, now)
}

// KeyFile gives the private key in a file, and makes it (0600) when there is none.
func KeyFile(file string) (crypto.Signer, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		key, err := newKey(file)
		if err != nil {
			return nil, err
		}
		if data, err = encodeKey(key); err != nil {
			return nil, err
		}
		return key, writeFile(file, data)
	}
	if err != nil {
		return nil, err
	}
	key, err := parseKey(data)
	if err != nil {
		return nil, Errorf(ErrInvalid, "%s: %w; move it away, then a new one is made", file, err)
	}
	return key, nil
}

// Request makes a certificate request for a key (PKCS #10, DER): it proves that the
// caller has it, and says nothing else.
func Request(key crypto.Signer) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, new(x509.CertificateRequest), key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return der, nil
}

// RequestKey is the public key of a request whose signature is right. All else in it
// is left aside.
func RequestKey(der []byte) (crypto.PublicKey, error) {
	req, err := x509.ParseCertificateRequest(der)
	if err == nil {
		err = req.CheckSignature()
	}
	if err != nil {
		return nil, Errorf(ErrInvalid, "certificate request: %w", err)
	}
	// Ours are all of one kind; large ones of others cost time.
	if key, ok := req.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		return nil, Errorf(ErrInvalid, "certificate request: the key must be ECDSA P-256")
	}
	return req.PublicKey, nil
}
