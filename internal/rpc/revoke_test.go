package rpc_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/homeiac/homelab/internal/rpc"
)

// serialOf is the serial number of the certificate that f.load finds.
func (f *fleet) serialOf(role, name string) string {
	f.t.Helper()
	cert, _ := readPair(f.t, f.path(role+"-"+name+".pem"), f.path(role+"-"+name+"-key.pem"))
	return rpc.Serial(cert)
}

// list signs a list of revoked certificates.
func list(t *testing.T, ca *rpc.CA, number int64, serials ...string) []byte {
	t.Helper()
	revoked := make(map[string]time.Time)
	for _, s := range serials {
		revoked[s] = time.Now().Truncate(time.Second)
	}
	r, err := ca.SignRevocations(number, revoked, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return r.PEM()
}

func revoke(t *testing.T, c *rpc.Credentials, data []byte) {
	t.Helper()
	if changed, err := c.Revoke(data); err != nil || !changed {
		t.Fatalf("changed %v, %v", changed, err)
	}
}

// flowing is a server whose streams go on until their caller is gone.
func flowing(ended chan<- struct{}) handlers {
	h := echoing()
	h.stream = func(ctx context.Context, send func(string) error) error {
		if err := send("first"); err != nil {
			return err
		}
		<-ctx.Done()
		ended <- struct{}{}
		return ctx.Err()
	}
	return h
}

func TestAServerCutsOffACallerThatIsRevoked(t *testing.T) {
	f := newFleet(t, "home")
	ca := f.issuing("c1")
	server := f.by(ca, rpc.RoleAgent, "pve1")
	ended := make(chan struct{}, 1)
	addr := serve(t, server, flowing(ended), quiet)
	conn := dial(t, rpc.Target{Address: addr, Credentials: f.by(ca, rpc.RoleController, "bad")})
	other := dial(t, rpc.Target{Address: addr, Credentials: f.by(ca, rpc.RoleController, "good")})
	s, err := open(t.Context(), conn, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := receive(s); err != nil {
		t.Fatal(err)
	}
	if _, err := call(t, other, echo, ""); err != nil {
		t.Fatal(err)
	}
	revoke(t, server, list(t, f.issuing("c2"), 1, f.serialOf(rpc.RoleController, "bad"))) // any CA of the fleet signs
	<-ended
	if _, err := receive(s); err == nil {
		t.Error("the stream goes on")
	}
	_, err = call(t, conn, echo, "")
	for range 20 { // the first may still be on the connection that was cut
		if !errors.Is(err, rpc.ErrUnavailable) {
			break
		}
		_, err = call(t, conn, echo, "")
	}
	denied(t, err, "refuses the certificate")
	if _, err := call(t, other, echo, ""); err != nil {
		t.Errorf("others are cut off too: %v", err)
	}
}

func TestAClientSpeaksToNoServerThatIsRevoked(t *testing.T) {
	f := newFleet(t, "home")
	ca := f.issuing("c1")
	addr := serve(t, f.by(ca, rpc.RoleAgent, "pve1"), flowing(make(chan struct{}, 1)), quiet)
	client := f.by(ca, rpc.RoleController, "c1")
	conn := dial(t, rpc.Target{Address: addr, Credentials: client})
	s, err := open(t.Context(), conn, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := receive(s); err != nil {
		t.Fatal(err)
	}
	revoke(t, client, list(t, ca, 1, f.serialOf(rpc.RoleAgent, "pve1")))
	if _, err := receive(s); !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("the stream: %v", err)
	}
	_, err = call(t, conn, echo, "")
	denied(t, err, "certificate of agent@pve1 (", "was revoked", "hlctl token create pve1 --replace")
}

func TestAllOfAnIssuingCAGoWithIt(t *testing.T) {
	f := newFleet(t, "home")
	lost, kept := f.issuing("c1"), f.issuing("c2")
	server := f.by(kept, rpc.RoleAgent, "pve1")
	addr := serve(t, server, echoing(), quiet)
	conn := dial(t, rpc.Target{Address: addr, Credentials: f.by(lost, rpc.RoleController, "c1")})
	if _, err := call(t, conn, echo, ""); err != nil {
		t.Fatal(err)
	}
	if err := lost.Write(f.path("lost.pem"), f.path("lost-key.pem")); err != nil {
		t.Fatal(err)
	}
	cert, _ := readPair(t, f.path("lost.pem"), f.path("lost-key.pem"))
	revoke(t, server, list(t, kept, 1, rpc.Serial(cert)))
	_, err := call(t, conn, echo, "")
	for range 20 { // the first may still be on the connection that was cut
		if !errors.Is(err, rpc.ErrUnavailable) {
			break
		}
		_, err = call(t, conn, echo, "")
	}
	denied(t, err, "refuses the certificate")
	// Nor does a list that the lost one signs count from now on.
	if _, err := server.Revoke(list(t, lost, 9)); !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("a list of the lost CA: %v", err)
	}
}

func TestWhichListsAreTaken(t *testing.T) {
	f, other := newFleet(t, "home"), newFleet(t, "home")
	ca := f.issuing("c1")
	creds := f.by(ca, rpc.RoleAgent, "pve1")
	if err := creds.KeepRevocations(f.path("revocations.pem")); err != nil {
		t.Fatal(err)
	}
	seven := list(t, ca, 7, "abc", "def")
	revoke(t, creds, seven)
	if changed, err := creds.Revoke(list(t, f.issuing("c2"), 7, "def", "abc")); changed || err != nil {
		t.Errorf("the same again: %v, %v", changed, err)
	}
	foreign, err := rpc.NewCA("away", time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	// Signed with our CA's name by somebody who has not its key.
	swapped := list(t, other.issuing("c1"), 9)
	block, _ := pem.Decode(swapped)
	swapped = append(pem.EncodeToMemory(block), ca.Cert()...)
	for _, c := range []struct {
		name string
		data []byte
		kind rpc.Kind
	}{
		{"an older one", list(t, ca, 6, "abc", "def", "123"), rpc.ErrRefused},
		{"another of the same number", list(t, ca, 7, "abc"), rpc.ErrRefused},
		{"of another root", list(t, other.issuing("c1"), 8), rpc.ErrDenied},
		{"of another fleet", list(t, foreign, 8), rpc.ErrDenied},
		{"of somebody without the key", swapped, rpc.ErrDenied},
		{"nothing", nil, rpc.ErrInvalid},
		{"half of it", seven[:len(seven)/2], rpc.ErrInvalid},
		{"twice", append(append([]byte{}, seven...), seven...), rpc.ErrInvalid},
		{"a key beside it", append([]byte("-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"), seven...), rpc.ErrInvalid},
		{"far too large", []byte(strings.Repeat("x", 2<<20)), rpc.ErrInvalid},
	} {
		if changed, err := creds.Revoke(c.data); changed || !errors.Is(err, c.kind) {
			t.Errorf("%s: %v, %v", c.name, changed, err)
		}
	}
	if got := creds.Revocations(); got.Number() != 7 || !got.Has("abc") || !got.Has("def") || got.Has("123") {
		t.Errorf("in force: %d %v", got.Number(), got.Serials())
	}
	if fi, err := os.Stat(f.path("revocations.pem")); err != nil || fi.Mode() != fs.FileMode(0o600) {
		t.Errorf("%v, %v", fi, err)
	}
}

func TestTheListIsInForceBeforeTheFirstCallAfterAStart(t *testing.T) {
	f := newFleet(t, "home")
	ca := f.issuing("c1")
	creds := f.by(ca, rpc.RoleAgent, "pve1")
	if err := creds.KeepRevocations(f.path("revocations.pem")); err != nil {
		t.Fatal(err)
	}
	bad := f.by(ca, rpc.RoleAdmin, "bad")
	revoke(t, creds, list(t, ca, 1, f.serialOf(rpc.RoleAdmin, "bad")))

	again := f.load(rpc.RoleAgent, "pve1")
	if err := again.KeepRevocations(f.path("revocations.pem")); err != nil {
		t.Fatal(err)
	}
	_, err := call(t, dial(t, rpc.Target{Address: serve(t, again, echoing(), quiet), Credentials: bad}), echo, "")
	denied(t, err, "refuses the certificate")

	// A list that cannot be read is not taken for an empty one.
	if err := os.WriteFile(f.path("revocations.pem"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := again.KeepRevocations(f.path("revocations.pem")); !errors.Is(err, rpc.ErrInvalid) {
		t.Errorf("%v", err)
	}
}

func TestRootsChangeOnlyWithOneOverlapping(t *testing.T) {
	f, next := newFleet(t, "home"), newFleet(t, "home")
	creds := f.by(f.issuing("c1"), rpc.RoleAgent, "pve1")
	both := append(f.ca.Cert(), next.ca.Cert()...)
	foreign, err := rpc.NewCA("away", time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		data    []byte
		changed bool
		kind    rpc.Kind
	}{
		{"the same", f.ca.Cert(), false, ""},
		{"only the new one", next.ca.Cert(), false, rpc.ErrRefused},
		{"one of another fleet", append(f.ca.Cert(), foreign.Cert()...), false, rpc.ErrInvalid},
		{"an issuing CA", append(f.ca.Cert(), f.issuing("c1").Cert()...), false, rpc.ErrInvalid},
		{"nothing", nil, false, rpc.ErrInvalid},
		{"both", both, true, ""},
		{"ours is of the old one still", next.ca.Cert(), false, rpc.ErrRefused},
	} {
		changed, err := creds.SetRoots(c.data)
		if changed != c.changed || rpc.KindOf(err) != c.kind {
			t.Errorf("%s: %v, %v", c.name, changed, err)
		}
	}
	if got, err := creds.Roots(); err != nil || string(got) != string(both) {
		t.Errorf("in force: %v, %v", string(got), err)
	}
}

// Lists and bundles come from agents and controllers, before it is known who signed them.
func FuzzTrust(f *testing.F) {
	ca, err := rpc.NewCA("home", time.Hour, time.Now())
	if err != nil {
		f.Fatal(err)
	}
	list, err := ca.SignRevocations(3, map[string]time.Time{"2a": time.Now()}, time.Now())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(list.PEM())
	f.Add(append(list.PEM(), ca.Cert()...))
	f.Add(rpc.EncodeBundle(7, []*x509.Certificate{ca.Certificate()}))
	f.Add([]byte("-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if list, err := rpc.ParseRevocations(data); err == nil {
			if again, err := rpc.ParseRevocations(list.PEM()); err != nil || again.Number() != list.Number() || list.Number() <= 0 {
				t.Errorf("list %d reads as %d again: %v", list.Number(), again.Number(), err)
			}
		}
		if roots, err := rpc.ParseRoots(data, "home"); err == nil {
			again, err := rpc.ParseRoots(rpc.EncodeBundle(rpc.BundleNumber(data), roots), "home")
			if err != nil || len(again) != len(roots) {
				t.Errorf("%d roots read as %d again: %v", len(roots), len(again), err)
			}
		}
	})
}
