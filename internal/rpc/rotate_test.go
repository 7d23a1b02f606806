package rpc_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/wrapperspb"
	"pgregory.net/rapid"

	"github.com/homeiac/homelab/internal/rpc"
)

const days = 24 * time.Hour

// member is a process with files of its own.
func member(t interface{ Fatal(...any) }, dir string, cert, key, bundle []byte) *rpc.Credentials {
	file := func(name string) string { return filepath.Join(dir, name) }
	for name, data := range map[string][]byte{"ca.pem": bundle, "cert.pem": cert, "key.pem": key} {
		if err := os.WriteFile(file(name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := rpc.LoadTLS(file("ca.pem"), file("cert.pem"), file("key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	c.Log = quiet
	return c
}

// recertified is an issuing CA with a certificate of another root too.
func recertified(t interface{ Fatal(...any) }, ca, root *rpc.CA, now time.Time) *rpc.CA {
	cert, err := root.Recertify(ca.Certificate(), 3650*days, now)
	if err == nil {
		ca, err = ca.With(cert)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func TestWhoKnowsWhomWhileARootChanges(t *testing.T) {
	now := time.Now()
	f := newFleet(t, "home")
	next, err := rpc.NextCA(f.ca.Certificate(), 3650*days, now)
	if err != nil {
		t.Fatal(err)
	}
	old, new := f.ca.Certificate(), next.Certificate()
	issuing := recertified(t, f.issuing("c1"), next, now)
	stages := []struct {
		name         string
		trusts, show []*x509.Certificate
	}{
		{"before", []*x509.Certificate{old}, []*x509.Certificate{old}},
		{"trusts both", []*x509.Certificate{old, new}, []*x509.Certificate{old}},
		{"renewed", []*x509.Certificate{old, new}, []*x509.Certificate{old, new}},
		{"after", []*x509.Certificate{new}, []*x509.Certificate{new}},
	}
	of := func(i int, role string) *rpc.Credentials {
		pair, err := issuing.Below(stages[i].show).Issue(rpc.Identity{Role: role, Name: "one"}, time.Hour, now)
		if err != nil {
			t.Fatal(err)
		}
		return member(t, t.TempDir(), pair.Cert, pair.Key, rpc.EncodeBundle(int64(i), stages[i].trusts))
	}
	for i, server := range stages {
		addr := serve(t, of(i, rpc.RoleAgent), echoing(), quiet)
		for j, client := range stages {
			// Who has not renewed and who has dropped the old root do not meet on this port.
			want := max(i, j) < 3 || min(i, j) >= 2
			_, err := call(t, dial(t, rpc.Target{Address: addr, Credentials: of(j, rpc.RoleController)}), echo, "")
			if (err == nil) != want || err != nil && !errors.Is(err, rpc.ErrDenied) {
				t.Errorf("server %s, client %s: %v", server.name, client.name, err)
			}
		}
	}
	for i, want := range []bool{true, false, true, true} {
		if got := of(i, rpc.RoleAgent).BelowAll(); got != want {
			t.Errorf("%s: below all roots: %v", stages[i].name, got)
		}
	}
}

func TestWhichBundlesTakeThePlaceOfAnother(t *testing.T) {
	now := time.Now()
	f := newFleet(t, "home")
	next, err := rpc.NextCA(f.ca.Certificate(), 3650*days, now)
	if err != nil {
		t.Fatal(err)
	}
	old, new := f.ca.Certificate(), next.Certificate()
	issuing := recertified(t, f.issuing("c1"), next, now)
	both := func(n int64) []byte { return rpc.EncodeBundle(n, []*x509.Certificate{old, new}) }
	only := func(n int64, root *x509.Certificate) []byte { return rpc.EncodeBundle(n, []*x509.Certificate{root}) }
	id := rpc.Identity{Role: rpc.RoleAgent, Name: "pve1"}
	for _, c := range []struct {
		name      string
		show      []*x509.Certificate
		have, new []byte
		changed   bool
		kind      rpc.Kind
	}{
		{"another root comes", []*x509.Certificate{old}, f.ca.Cert(), both(1), true, ""},
		{"the same again", []*x509.Certificate{old}, both(1), both(1), false, ""},
		{"an older one", []*x509.Certificate{old, new}, only(2, new), both(1), false, rpc.ErrRefused},
		{"another of the same number", []*x509.Certificate{old, new}, both(2), only(2, new), false, rpc.ErrRefused},
		{"the old root goes", []*x509.Certificate{old, new}, both(1), only(2, new), true, ""},
		{"the old root goes too soon", []*x509.Certificate{old}, both(1), only(2, new), false, rpc.ErrRefused},
		{"a root that is not known", []*x509.Certificate{old, new}, only(1, old), only(2, new), false, rpc.ErrRefused},
	} {
		t.Run(c.name, func(t *testing.T) {
			pair, err := issuing.Below(c.show).Issue(id, time.Hour, now)
			if err != nil {
				t.Fatal(err)
			}
			creds := member(t, t.TempDir(), pair.Cert, pair.Key, c.have)
			changed, err := creds.SetRoots(c.new)
			if changed != c.changed || rpc.KindOf(err) != c.kind {
				t.Errorf("changed %v, %v", changed, err)
			}
		})
	}
	// With a certificate that a controller gave along, a root may be new altogether.
	pair, err := issuing.Below([]*x509.Certificate{old}).Issue(id, time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	creds := member(t, t.TempDir(), pair.Cert, pair.Key, f.ca.Cert())
	if _, err := creds.Adopt(pair.Cert, only(2, new)); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("its own certificate: %v", err)
	}
	cert, err := issuing.Below([]*x509.Certificate{new}).Sign(creds.Public(), id, nil, time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := creds.Adopt(cert, only(0, new)); err != nil {
		t.Error(err)
	}
	if !creds.BelowAll() {
		t.Error("not below what it trusts")
	}
}

func TestARenewalBelowTheOldRootAloneIsNotTheLast(t *testing.T) {
	now := time.Now()
	f := newFleet(t, "home")
	next, err := rpc.NextCA(f.ca.Certificate(), 3650*days, now)
	if err != nil {
		t.Fatal(err)
	}
	old := []*x509.Certificate{f.ca.Certificate()}
	both := append(old, next.Certificate())
	issuing := recertified(t, f.issuing("c1"), next, now)
	id := rpc.Identity{Role: rpc.RoleAgent, Name: "pve1"}
	pair, err := issuing.Below(old).Issue(id, 90*days, now)
	if err != nil {
		t.Fatal(err)
	}
	creds := member(t, t.TempDir(), pair.Cert, pair.Key, rpc.EncodeBundle(1, both))
	known := [][]*x509.Certificate{old, old, both} // to whom it asks, one time after the other
	var waits []time.Duration
	renewal := rpc.Renewal{
		Credentials: creds, Log: quiet,
		Renew: func(context.Context) error {
			cert, err := issuing.Below(known[0]).Sign(creds.Public(), id, nil, 90*days, now)
			known = known[1:]
			return errors.Join(err, creds.SetCertificate(cert))
		},
		Wait: func(_ context.Context, d time.Duration) bool {
			waits = append(waits, d)
			return len(known) > 0
		},
	}
	if err := renewal.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := []time.Duration{time.Second, 2 * time.Second, time.Hour}; !slices.Equal(waits, want) || !creds.BelowAll() {
		t.Errorf("waits %v, want %v; below both: %v", waits, want, creds.BelowAll())
	}
}

func TestAnIssuingCATakesOnlyCertificatesOfItsOwn(t *testing.T) {
	now := time.Now()
	f := newFleet(t, "home")
	next, err := rpc.NextCA(f.ca.Certificate(), 3650*days, now)
	if err != nil {
		t.Fatal(err)
	}
	ca, other := f.issuing("c1"), f.issuing("c1")
	for name, bad := range map[string]*rpc.CA{"of another key": other, "a root": next} {
		if _, err := ca.With(bad.Certificate()); !errors.Is(err, rpc.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ca.Recertify(other.Certificate(), time.Hour, now); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("signed by an issuing CA: %v", err)
	}
	if _, err := next.Recertify(f.ca.Certificate(), time.Hour, now); !errors.Is(err, rpc.ErrInvalid) {
		t.Errorf("a root signed: %v", err)
	}
	both := recertified(t, ca, next, now)
	if rpc.Serial(both.Certificates()[1]) != rpc.Serial(ca.Certificate()) {
		t.Error("who revokes one does not revoke the other")
	}
	// Its file has all, and a list that it signs is below the latest root.
	if err := both.Write(f.path("issuing.pem"), f.path("issuing.key")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.path("issuing.pem"), rpc.EncodeCertificates(both.Certificates()), 0o600); err != nil {
		t.Fatal(err)
	}
	read, err := rpc.LoadCA(f.path("issuing.pem"), f.path("issuing.key"), nil)
	if err != nil || len(read.Certificates()) != 2 {
		t.Fatalf("%v", err)
	}
	use := read.Below([]*x509.Certificate{f.ca.Certificate(), next.Certificate()})
	if len(use.Certificates()) != 2 || use.Certificate().CheckSignatureFrom(next.Certificate()) != nil {
		t.Error("the latest root's is not the first")
	}
	if read.Below([]*x509.Certificate{other.Certificate()}) != nil {
		t.Error("below a root that never signed it")
	}
}

func TestARootVouchesForTheNextAndTheFleetsKeyForBoth(t *testing.T) {
	f := newFleet(t, "home")
	next, err := rpc.NextCA(f.ca.Certificate(), time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	voucher, err := f.ca.Vouch(next.Certificate())
	if err != nil {
		t.Fatal(err)
	}
	if !rpc.Vouched(f.ca.Certificate(), next.Certificate(), voucher) {
		t.Error("the word of the old root does not count")
	}
	if rpc.Vouched(f.ca.Certificate(), f.ca.Certificate(), voucher) || rpc.Vouched(next.Certificate(), next.Certificate(), voucher) ||
		rpc.Vouched(f.ca.Certificate(), next.Certificate(), nil) {
		t.Error("it counts for another")
	}
	root, key := next.Certificate(), []byte("k")
	a := rpc.IssuingProof(key, root, map[string][]byte{"c1": []byte("x"), "c2": []byte("y")})
	for name, b := range map[string][]byte{
		"names swapped": rpc.IssuingProof(key, root, map[string][]byte{"c1": []byte("y"), "c2": []byte("x")}),
		"one fewer":     rpc.IssuingProof(key, root, map[string][]byte{"c1": []byte("x")}),
		"another root":  rpc.IssuingProof(key, f.ca.Certificate(), map[string][]byte{"c1": []byte("x"), "c2": []byte("y")}),
		"another key":   rpc.IssuingProof([]byte("l"), root, map[string][]byte{"c1": []byte("x"), "c2": []byte("y")}),
		"an offer":      rpc.OfferProof(key, root),
	} {
		if bytes.Equal(a, b) {
			t.Errorf("%s: the same proof", name)
		}
	}
	if strings.Contains(root.Subject.CommonName, f.ca.Certificate().Subject.CommonName) == root.Equal(f.ca.Certificate()) {
		t.Errorf("%q and %q", root.Subject.CommonName, f.ca.Certificate().Subject.CommonName)
	}
}

// TestAHostThatWasOffComesBackWhateverHappenedMeanwhile: any number of rotations, with
// any pauses between them, before and after the end of its certificate. It is not let in
// when it is revoked or too late; and whoever has the keys of former roots never is.
func TestAHostThatWasOffComesBackWhateverHappenedMeanwhile(t *testing.T) {
	folder, n := t.TempDir(), 0
	rapid.Check(t, func(t *rapid.T) {
		dir := func() string {
			n++
			name := filepath.Join(folder, fmt.Sprint(n))
			if err := os.Mkdir(name, 0o700); err != nil {
				t.Fatal(err)
			}
			return name
		}
		now := time.Now()
		root, err := rpc.NewCA("home", 7300*days, now)
		if err != nil {
			t.Fatal(err)
		}
		var former []*rpc.CA
		var issuing [2]*rpc.CA // of two controllers; the first is asked
		for i := range issuing {
			if issuing[i], err = root.NewIssuing(fmt.Sprintf("c%d", i), 3650*days, now); err != nil {
				t.Fatal(err)
			}
		}
		id := rpc.Identity{Role: rpc.RoleAgent, Name: "pve1"}
		pair, err := issuing[rapid.IntRange(0, 1).Draw(t, "issuer")].Issue(id, time.Duration(rapid.IntRange(1, 90).Draw(t, "life"))*days, now)
		if err != nil {
			t.Fatal(err)
		}
		host := member(t, dir(), pair.Cert, pair.Key, root.Cert())
		number := int64(0)
		for range rapid.IntRange(1, 4).Draw(t, "rotations") {
			now = now.Add(time.Duration(rapid.IntRange(0, 120).Draw(t, "days")) * days)
			next, err := rpc.NextCA(root.Certificate(), 7300*days, now)
			if err != nil {
				t.Fatal(err)
			}
			for i := range issuing {
				issuing[i] = recertified(t, issuing[i], next, now)
			}
			former, root = append(former, root), next
			number += 2
		}
		now = now.Add(time.Duration(rapid.IntRange(0, 300).Draw(t, "days")) * days)
		clock := func() time.Time { return now }

		bundle := rpc.EncodeBundle(number, []*x509.Certificate{root.Certificate()})
		use := issuing[0].Below([]*x509.Certificate{root.Certificate()})
		pair, err = use.Issue(rpc.Identity{Role: rpc.RoleController, Name: "c0"}, 90*days, now)
		if err != nil {
			t.Fatal(err)
		}
		controller := member(t, dir(), pair.Cert, pair.Key, bundle)
		controller.Now, host.Now = clock, clock
		controller.SetBetween(slices.Concat(issuing[0].Certificates(), issuing[1].Certificates()))
		revoked := rapid.Bool().Draw(t, "revoked")
		if revoked {
			list, err := use.SignRevocations(1, map[string]time.Time{rpc.Serial(host.Leaf()): now}, now)
			if err == nil {
				_, err = controller.Revoke(list.PEM())
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		const year = 365 * days
		ctx, cancel := context.WithCancel(context.Background())
		server, err := rpc.ListenEnrol(ctx, rpc.EnrolConfig{
			Address: "127.0.0.1:0", Credentials: controller, Log: quiet, Admit: func(string) error { return nil },
		}, handlers{unary: func(ctx context.Context, _, _ string) (string, error) {
			old, id, err := controller.Lapsed(ctx, year)
			if err != nil {
				return "", err
			}
			cert, err := use.Sign(old.PublicKey, id, nil, 90*days, now)
			return string(cert), err
		}}.register)
		if err != nil {
			t.Fatal(err)
		}
		over := make(chan struct{})
		go func() {
			defer close(over)
			_ = server.Run(ctx)
		}()
		defer func() { cancel(); <-over }()
		renew := func(creds *rpc.Credentials) (string, error) {
			conn, err := rpc.DialEnrol(server.Addr().String(), nil, creds)
			if err != nil {
				return "", err
			}
			defer conn.Close()
			ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
			defer cancel()
			out := new(text)
			err = conn.Invoke(ctx, echo, wrapperspb.String(""), out)
			return out.GetValue(), rpc.FromStatus(err)
		}

		cert, err := renew(host)
		if want := !revoked && now.Sub(host.NotAfter()) <= year; (err == nil) != want || err != nil && !errors.Is(err, rpc.ErrDenied) {
			t.Fatalf("revoked %v, %s after its end: %v", revoked, now.Sub(host.NotAfter()), err)
		} else if want {
			if _, err := host.Adopt([]byte(cert), bundle); err != nil || !host.BelowAll() {
				t.Fatalf("what it was given: %v", err)
			}
		}
		// The thief has a former root and can make all that this could; his client trusts
		// whoever answers.
		thief := former[rapid.IntRange(0, len(former)-1).Draw(t, "stolen")]
		forged, err := thief.NewIssuing("c0", 3650*days, now)
		if err != nil {
			t.Fatal(err)
		}
		for _, ca := range []*rpc.CA{thief, forged} {
			pair, err := ca.Issue(id, 90*days, now)
			if err != nil {
				t.Fatal(err)
			}
			creds := member(t, dir(), pair.Cert, pair.Key, bundle)
			creds.Now = clock
			if _, err := renew(creds); !errors.Is(err, rpc.ErrDenied) {
				t.Fatalf("forged below a former root: %v", err)
			}
		}
	})
}
