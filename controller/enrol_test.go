package controller

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/homeiac/homelab/agent"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	trustv1 "github.com/homeiac/homelab/gen/homelab/trust/v1"
	"github.com/homeiac/homelab/internal/enrol"
	"github.com/homeiac/homelab/internal/gossip"
	"github.com/homeiac/homelab/internal/rpc"
)

// clock is a time that tests set, for a controller and its certificates.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// enrolling makes the controllers of a fleet give certificates, by the clock.
func (f *fleet) enrolling(clk *clock) {
	f.revoking()
	keys := filepath.Join(f.dir, "gossip.keys")
	if err := gossip.WriteKeys(keys, [][]byte{gossip.NewKey()}); err != nil {
		f.t.Fatal(err)
	}
	issuing := f.tune
	f.tune = func(c *Controller) {
		issuing(c)
		c.cfg.GossipKeys = keys
		c.now, c.creds.Now = clk.now, clk.now
	}
}

func (r *running) token(t *testing.T, req *controllerv1.CreateTokenRequest) *controllerv1.CreateTokenResponse {
	t.Helper()
	resp, err := r.client.CreateToken(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// stranger is somebody with a key and perhaps a token.
type stranger struct {
	t   *testing.T
	key crypto.Signer
}

func newStranger(t *testing.T) stranger {
	return stranger{t, must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))}
}

func (s stranger) enrol(at string, text string, secret []byte) (*trustv1.EnrolResponse, error) {
	s.t.Helper()
	token := must(rpc.ParseToken(text))
	if secret == nil {
		secret = token.Secret
	}
	conn := must(rpc.DialEnrol(at, &token, nil))
	defer conn.Close()
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	return trustv1.NewEnrolServiceClient(conn).Enrol(ctx, &trustv1.EnrolRequest{Secret: secret, Csr: must(rpc.Request(s.key))})
}

func TestAnEmptyHostEnrolsWithOnePastedToken(t *testing.T) {
	f := newFleet(t, "pve1")
	f.enrolling(&clock{t: time.Now()})
	c := f.up()
	dir := t.TempDir()
	token := c.token(t, &controllerv1.CreateTokenRequest{Name: "pve7", Addresses: []string{"192.0.2.7"}})
	e := enrol.Request{
		Controller: token.GetEnrol(), Token: token.GetToken() + "\n", Config: filepath.Join(dir, "etc", "agent.yaml"), State: filepath.Join(dir, "state"), Out: new(bytes.Buffer),
	}
	if err := agent.Enrol(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	cfg, err := agent.LoadConfig(e.Config)
	if err != nil || cfg.Advertise != "192.0.2.7" || len(cfg.Seeds) != 1 {
		t.Fatalf("%+v, %v", cfg, err)
	}
	creds, err := rpc.LoadTLS(cfg.CA, cfg.Cert, cfg.Key)
	if err != nil || creds.Identity() != (rpc.Identity{Fleet: fleetName, Role: rpc.RoleAgent, Name: "pve7"}) {
		t.Fatalf("%v, %v", creds.Identity(), err)
	}
	if ips := creds.Leaf().IPAddresses; len(ips) != 1 || ips[0].String() != "192.0.2.7" {
		t.Errorf("addresses %v", ips)
	}
	for _, file := range []string{cfg.Key, cfg.GossipKeys, cfg.Cert} {
		if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, fi.Mode(), err)
		}
	}
	// What it knows now is enough to be told more.
	conn := must(rpc.Dial(rpc.Target{Address: c.address, Role: rpc.RoleController, Credentials: creds}))
	defer conn.Close()
	if _, err := trustv1.NewTrustServiceClient(conn).Present(t.Context(), &trustv1.PresentRequest{}); err != nil {
		t.Error(err)
	}
	// Again, the answer being lost: the same certificate, the same key.
	before := string(must(os.ReadFile(cfg.Cert))) + string(must(os.ReadFile(cfg.Key)))
	if err := agent.Enrol(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	if after := string(must(os.ReadFile(cfg.Cert))) + string(must(os.ReadFile(cfg.Key))); after != before {
		t.Error("another certificate for the same key and token")
	}
	trust, err := c.client.Trust(t.Context(), &controllerv1.TrustRequest{})
	if err != nil || !strings.Contains(trust.String(), `"pve7"`) || strings.Contains(trust.String(), must(rpc.ParseToken(token.GetToken())).Text()) {
		t.Errorf("%v, %v", trust, err)
	}
}

func TestWhoGetsNoCertificate(t *testing.T) {
	f := newFleet(t, "pve1")
	clk := &clock{t: time.Now()}
	f.enrolling(clk)
	c := f.up()
	one := newStranger(t)
	token := c.token(t, &controllerv1.CreateTokenRequest{Name: "pve7"})
	if _, err := one.enrol(token.GetEnrol(), token.GetToken(), []byte("guessed")); !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("a guessed secret: %v", err)
	}
	if _, err := one.enrol(token.GetEnrol(), token.GetToken(), nil); err != nil {
		t.Fatal(err)
	}
	_, err := newStranger(t).enrol(token.GetEnrol(), token.GetToken(), nil)
	if !errors.Is(err, rpc.ErrDenied) || !strings.Contains(err.Error(), "hlctl token create") {
		t.Errorf("a used token with another key: %v", err)
	}
	late := c.token(t, &controllerv1.CreateTokenRequest{Name: "pve8", Ttl: durationpb.New(time.Minute)})
	clk.add(time.Minute)
	if _, err := newStranger(t).enrol(late.GetEnrol(), late.GetToken(), nil); !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("an expired token: %v", err)
	}
	back := c.token(t, &controllerv1.CreateTokenRequest{Name: "pve8"})
	if _, err := c.client.RevokeToken(t.Context(), &controllerv1.RevokeTokenRequest{Id: back.GetStatus().GetId()}); err != nil {
		t.Fatal(err)
	}
	if _, err := newStranger(t).enrol(back.GetEnrol(), back.GetToken(), nil); !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("a token that was taken back: %v", err)
	}
	// A key of another kind, and no key at all.
	sound := c.token(t, &controllerv1.CreateTokenRequest{Name: "pve8"})
	if _, err := (stranger{t, must(rsa.GenerateKey(rand.Reader, 2048))}).enrol(sound.GetEnrol(), sound.GetToken(), nil); !errors.Is(err, rpc.ErrInvalid) {
		t.Errorf("an RSA key: %v", err)
	}
	parsed := must(rpc.ParseToken(sound.GetToken()))
	conn := must(rpc.DialEnrol(sound.GetEnrol(), &parsed, nil))
	defer conn.Close()
	client := trustv1.NewEnrolServiceClient(conn)
	if _, err := client.Enrol(t.Context(), &trustv1.EnrolRequest{Secret: parsed.Secret, Csr: []byte("x")}); !errors.Is(err, rpc.ErrInvalid) {
		t.Errorf("no request: %v", err)
	}
	if _, err := client.Enrol(t.Context(), &trustv1.EnrolRequest{Secret: parsed.Secret, Csr: make([]byte, 17<<10)}); err == nil {
		t.Error("17 KiB were taken")
	}
	if _, err := client.Renew(t.Context(), &trustv1.RenewRequest{}); !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("renewal without a certificate: %v", err)
	}
	// Nothing else is there.
	if _, err := controllerv1.NewControllerServiceClient(conn).Version(t.Context(), &controllerv1.VersionRequest{}); err == nil {
		t.Error("another service answers strangers")
	}
	if _, err := trustv1.NewTrustServiceClient(conn).Present(t.Context(), &trustv1.PresentRequest{}); err == nil {
		t.Error("the trust service answers strangers")
	}
}

// A token that somebody else's controller gets to see must stay secret.
func TestASecretIsNotSentToWhoIsNotBelowTheTokensRoot(t *testing.T) {
	f, other := newFleet(t, "pve1"), newFleet(t, "pve1")
	f.enrolling(&clock{t: time.Now()})
	other.enrolling(&clock{t: time.Now()})
	ours, theirs := f.up(), other.up()
	token := ours.token(t, &controllerv1.CreateTokenRequest{Name: "pve7"})
	_, err := newStranger(t).enrol(theirs.enrolAt, token.GetToken(), nil)
	if !errors.Is(err, rpc.ErrDenied) || !strings.Contains(err.Error(), "nothing was sent to it") {
		t.Errorf("%v", err)
	}
	// An agent that listens there is below the root and no controller.
	_, err = newStranger(t).enrol(f.agents["pve1"].address, token.GetToken(), nil)
	if !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("%v", err)
	}
}

func TestANameThatHasACertificateIsReplacedOnlyOnPurpose(t *testing.T) {
	f := newFleet(t, "pve1")
	f.enrolling(&clock{t: time.Now()})
	c := f.up()
	first := c.token(t, &controllerv1.CreateTokenRequest{Name: "pve7"})
	second := c.token(t, &controllerv1.CreateTokenRequest{Name: "pve7"}) // made before the first was used
	old := newStranger(t)
	if _, err := old.enrol(first.GetEnrol(), first.GetToken(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := newStranger(t).enrol(second.GetEnrol(), second.GetToken(), nil); !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("the second: %v", err)
	}
	if _, err := c.client.CreateToken(t.Context(), &controllerv1.CreateTokenRequest{Name: "pve7"}); !errors.Is(err, rpc.ErrExists) {
		t.Errorf("%v", err)
	}
	third := c.token(t, &controllerv1.CreateTokenRequest{Name: "pve7", Replace: true})
	if n := c.creds.Revocations().Number(); n != 0 {
		t.Error("revoked before it is used")
	}
	fresh := newStranger(t)
	for range 2 {
		if _, err := fresh.enrol(third.GetEnrol(), third.GetToken(), nil); err != nil {
			t.Fatal(err)
		}
	}
	list, err := c.client.ListTokens(t.Context(), &controllerv1.ListTokensRequest{})
	if err != nil || len(list.GetTokens()) != 3 {
		t.Fatalf("%v, %v", list, err)
	}
	serials := map[string]string{}
	for _, token := range list.GetTokens() {
		serials[token.GetId()] = token.GetSerial()
	}
	in := c.creds.Revocations()
	if !in.Has(serials[first.GetStatus().GetId()]) || in.Has(serials[third.GetStatus().GetId()]) || len(in.Serials()) != 1 {
		t.Errorf("revoked %v of %v", in.Serials(), serials)
	}
	for _, req := range []*controllerv1.CreateTokenRequest{
		{Name: "../pve"}, {Name: "pve9", Role: rpc.RoleAdmin}, {Name: "pve9", Role: rpc.RoleViewer}, {Name: "pve9", Role: "root"}, {},
		{Name: "pve9", Addresses: []string{"pve9.lan"}}, {Name: "pve9", Addresses: []string{"0.0.0.0"}}, {Name: "pve9", Ttl: durationpb.New(365 * 24 * time.Hour)},
		{Name: "pve9", Ttl: durationpb.New(-time.Hour)},
	} {
		if _, err := c.client.CreateToken(t.Context(), req); !errors.Is(err, rpc.ErrInvalid) {
			t.Errorf("%v: %v", req, err)
		}
	}
	if _, err := c.viewer.CreateToken(t.Context(), &controllerv1.CreateTokenRequest{Name: "pve9"}); !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("a viewer: %v", err)
	}
}

// The answer for a token has the gossip's keys with it, which are changed to be rid of
// somebody.
func TestWhoWasTakenBackGetsNoSecondAnswerForTheTokenThatItHas(t *testing.T) {
	f := newFleet(t, "pve1")
	f.enrolling(&clock{t: time.Now()})
	c := f.up()
	token := c.token(t, &controllerv1.CreateTokenRequest{Name: "pve7", Ttl: durationpb.New(time.Hour)})
	host := newStranger(t)
	if _, err := host.enrol(token.GetEnrol(), token.GetToken(), nil); err != nil {
		t.Fatal(err)
	}
	open := c.token(t, &controllerv1.CreateTokenRequest{Name: "pve7", Replace: true})
	other := c.token(t, &controllerv1.CreateTokenRequest{Name: "pve8"})
	if _, err := c.client.RevokeCertificate(t.Context(), &controllerv1.RevokeCertificateRequest{Holder: "agent@pve7"}); err != nil {
		t.Fatal(err)
	}
	if _, err := newStranger(t).enrol(open.GetEnrol(), open.GetToken(), nil); !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("with a token from before: %v", err)
	}
	if _, err := newStranger(t).enrol(other.GetEnrol(), other.GetToken(), nil); err != nil {
		t.Errorf("another host: %v", err)
	}
	again := c.token(t, &controllerv1.CreateTokenRequest{Name: "pve7"})
	if _, err := newStranger(t).enrol(again.GetEnrol(), again.GetToken(), nil); err != nil {
		t.Errorf("with a token from after: %v", err)
	}
	if _, err := host.enrol(token.GetEnrol(), token.GetToken(), nil); !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("%v", err)
	}
}

func TestTheAuditTellsWhoEnrolledAndWhoWasRefused(t *testing.T) {
	f := newFleet(t, "pve1")
	f.enrolling(&clock{t: time.Now()})
	c := f.up()
	token := c.token(t, &controllerv1.CreateTokenRequest{Name: "pve7"})
	if _, err := newStranger(t).enrol(token.GetEnrol(), token.GetToken(), nil); err != nil {
		t.Fatal(err)
	}
	for range 3 { // told once a minute
		if _, err := newStranger(t).enrol(token.GetEnrol(), token.GetToken(), nil); !errors.Is(err, rpc.ErrDenied) {
			t.Fatal(err)
		}
	}
	resp, err := c.client.ListAudit(t.Context(), &controllerv1.ListAuditRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, e := range resp.GetEntries() {
		told = append(told, strings.Join([]string{e.GetWho(), e.GetMethod(), e.GetResult()}, " "))
		if strings.Contains(e.String(), token.GetToken()) {
			t.Error("the audit holds the token")
		}
	}
	want := []string{"stranger at 127.0.0.1 enrol denied", "agent@pve7 enrol ok", "admin@admin-1 createtoken ok"} // the latest first
	if !slices.Equal(told, want) {
		t.Errorf("%q, want %q", told, want)
	}
}

func TestTheStoreKeepsNoSecretOfAToken(t *testing.T) {
	f := newFleet(t, "pve1")
	f.enrolling(&clock{t: time.Now()})
	c := f.up()
	token := must(rpc.ParseToken(c.token(t, &controllerv1.CreateTokenRequest{Name: "pve7"}).GetToken()))
	c.kill()
	err := filepath.WalkDir(filepath.Join(f.dir, "state"), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, token.Secret) || bytes.Contains(data, []byte(token.Text())) {
			t.Errorf("%s holds the secret", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestWhoAsksTooOftenIsSentAway(t *testing.T) {
	clk := &clock{t: time.Now()}
	l := &limiter{now: clk.now}
	for i := range sourceBurst {
		if err := l.admit("192.0.2.1"); err != nil {
			t.Fatalf("call %d: %v", i+1, err)
		}
	}
	if err := l.admit("192.0.2.1"); !errors.Is(err, rpc.ErrBusy) {
		t.Errorf("%v", err)
	}
	if err := l.admit("192.0.2.2"); err != nil {
		t.Errorf("another source: %v", err)
	}
	clk.add(sourceEvery)
	if err := l.admit("192.0.2.1"); err != nil {
		t.Errorf("later: %v", err)
	}
	many := 0
	for i := range 10 * maxSources {
		if l.admit(string(rune('a'+i%26))+strings.Repeat("x", i%50)+string(rune(i))) == nil {
			many++
		}
	}
	if many > allBurst || len(l.by) > maxSources {
		t.Errorf("%d calls, %d sources are kept", many, len(l.by))
	}
}

func TestARefusalIsLoggedOnceAMinuteWithACount(t *testing.T) {
	var s seldom
	now := time.Now()
	var got []int
	for _, after := range []time.Duration{0, time.Second, 59 * time.Second, time.Minute, 61 * time.Second, 2 * time.Minute} {
		got = append(got, s.note("x", now.Add(after)))
	}
	if want := []int{1, 0, 0, 3, 0, 2}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	for i := range 2 * maxSources {
		s.note(string(rune(i)), now)
	}
	if len(s.seen) > maxSources {
		t.Errorf("%d are kept", len(s.seen))
	}
}

func TestATokenForAControllerIsForStoresThatAreShared(t *testing.T) {
	f := newFleet(t, "pve1")
	f.enrolling(&clock{t: time.Now()})
	c := f.up()
	if _, err := c.client.CreateToken(t.Context(), &controllerv1.CreateTokenRequest{Name: "c2", Role: rpc.RoleController}); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "etcd.endpoints") {
		t.Error(err)
	}
	token := c.token(t, &controllerv1.CreateTokenRequest{Name: "pve7"}).GetToken()
	dir := t.TempDir()
	var endpoints []string
	e := enrol.Request{Controller: "127.0.0.1:1", Token: token, Config: filepath.Join(dir, "c.yaml"), State: dir, Out: io.Discard}
	if err := Enrol(t.Context(), e, endpoints); !errors.Is(err, rpc.ErrInvalid) || !strings.Contains(err.Error(), "agent@pve7") {
		t.Error(err)
	}
	id := rpc.Identity{Fleet: fleetName, Role: rpc.RoleController, Name: "c2"}
	mine := must(rpc.NewToken(id, strings.Repeat("00", 32)))
	e.Token = mine.Text()
	if err := Enrol(t.Context(), e, endpoints); !errors.Is(err, rpc.ErrInvalid) || !strings.Contains(err.Error(), "--etcd-endpoints") {
		t.Error(err)
	}
	// Without the keys that nobody gives it, it does not even ask.
	endpoints = []string{"https://192.0.2.1:2379"}
	if err := Enrol(t.Context(), e, endpoints); !errors.Is(err, rpc.ErrInvalid) || !strings.Contains(err.Error(), "fleet.key") {
		t.Error(err)
	}
}

func TestOneOfTwoTokensForANameGivesACertificate(t *testing.T) {
	clk := &clock{t: time.Now()}
	f := newFleet(t, "pve1")
	f.enrolling(clk)
	c := f.up()
	for i := range 8 {
		clk.add(10 * time.Minute) // nobody asks too often
		name := fmt.Sprintf("pve-new%d", i)
		var tokens []*controllerv1.CreateTokenResponse
		for range 3 {
			tokens = append(tokens, c.token(t, &controllerv1.CreateTokenRequest{Name: name}))
		}
		var all sync.WaitGroup
		var got atomic.Int32
		for _, token := range tokens {
			who := newStranger(t)
			all.Go(func() {
				_, err := who.enrol(token.GetEnrol(), token.GetToken(), nil)
				switch {
				case err == nil:
					got.Add(1)
				case !errors.Is(err, rpc.ErrDenied):
					t.Error(err)
				}
			})
		}
		all.Wait()
		if got.Load() != 1 {
			t.Errorf("%d hosts are %s", got.Load(), name)
		}
	}
}

func TestATokenIsForANameThatASpecCanHave(t *testing.T) {
	f := newFleet(t, "pve1")
	f.enrolling(&clock{t: time.Now()})
	c := f.up()
	for _, name := range []string{"PVE4", "pve_4", "pve4.lan", "", "../pve4"} {
		if _, err := c.client.CreateToken(t.Context(), &controllerv1.CreateTokenRequest{Name: name}); !errors.Is(err, rpc.ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
}
