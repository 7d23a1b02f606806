package rpc_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/homeiac/homelab/internal/rpc"
)

// denied fails unless err is Denied, one line, and has all the parts.
func denied(t *testing.T, err error, parts ...string) {
	t.Helper()
	if !errors.Is(err, rpc.ErrDenied) {
		t.Fatalf("not denied: %q: %v", rpc.KindOf(err), err)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("%q does not say %q", err, p)
		}
	}
	if strings.ContainsAny(err.Error(), "\n") {
		t.Errorf("%q is not one sentence", err)
	}
}

func TestWhoMayConnect(t *testing.T) {
	f, other := newFleet(t, "home"), newFleet(t, "home")
	agent := f.creds(rpc.RoleAgent, "pve1")
	addr := serve(t, agent, echoing(), quiet)
	admin := f.creds(rpc.RoleAdmin, "me")

	t.Run("one of the fleet may", func(t *testing.T) {
		conn := dial(t, rpc.Target{Address: addr, Name: "pve1", Credentials: admin})
		if got, err := call(t, conn, echo, "hello"); got != "hello" || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
	})
	t.Run("our certificate expired", func(t *testing.T) {
		creds := f.expired(rpc.RoleAdmin, "late")
		creds.Renew = "hlctl trust"
		_, err := call(t, dial(t, rpc.Target{Address: addr, Credentials: creds}), echo, "")
		denied(t, err, "admin-late.pem of admin@late expired on", "get a new one with: hlctl trust")
	})
	t.Run("our certificate is of another CA", func(t *testing.T) {
		// It trusts the fleet's CA, but was issued by another.
		other.issue(rpc.RoleAdmin, "stranger", time.Now())
		creds, err := rpc.LoadTLS(f.path("ca.pem"), other.path("admin-stranger.pem"), other.path("admin-stranger-key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		for range 20 { // the server's refusal comes after our handshake: no luck involved
			_, err = call(t, dial(t, rpc.Target{Address: addr, Credentials: creds}), echo, "")
			denied(t, err, "agent at "+addr+" refuses the certificate", "unknown certificate authority", "openssl x509")
		}
	})
	t.Run("the server is of another CA", func(t *testing.T) {
		_, err := call(t, dial(t, rpc.Target{Address: addr, Credentials: other.creds(rpc.RoleAdmin, "me")}), echo, "")
		denied(t, err, "has a certificate that the CA in "+other.path("ca.pem")+" did not issue", "openssl x509")
	})
	t.Run("the server has another role", func(t *testing.T) {
		_, err := call(t, dial(t, rpc.Target{Address: addr, Role: rpc.RoleController, Credentials: admin}), echo, "")
		denied(t, err, "should be controller but is agent@pve1", "openssl s_client")
	})
	t.Run("the server has another name", func(t *testing.T) {
		_, err := call(t, dial(t, rpc.Target{Address: addr, Name: "pve2", Credentials: admin}), echo, "")
		denied(t, err, "should be agent@pve2 but is agent@pve1", "openssl s_client")
	})
	t.Run("the server's certificate expired", func(t *testing.T) {
		addr := serve(t, f.expired(rpc.RoleAgent, "old"), echoing(), quiet)
		_, err := call(t, dial(t, rpc.Target{Address: addr, Name: "old", Credentials: admin}), echo, "")
		denied(t, err, "has a certificate that is not valid now", "give agent@old a new one", "openssl s_client")
	})
	t.Run("a person's certificate does not make a server", func(t *testing.T) {
		addr := serve(t, f.creds(rpc.RoleAdmin, "posing"), echoing(), quiet)
		_, err := call(t, dial(t, rpc.Target{Address: addr, Role: rpc.RoleAdmin, Credentials: admin}), echo, "")
		denied(t, err, "its certificate is not accepted")
	})
}

// What gRPC's client of ours would not send: no certificate, an expired one,
// an older TLS.
func TestServerRefusesByItself(t *testing.T) {
	f := newFleet(t, "home")
	log := new(buffer)
	creds := f.creds(rpc.RoleAgent, "pve1")
	creds.Log = log.logger()
	addr := serve(t, creds, echoing(), quiet)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(f.ca.Cert())
	f.expired(rpc.RoleAdmin, "late")
	late, err := tls.LoadX509KeyPair(f.path("admin-late.pem"), f.path("admin-late-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	f.creds(rpc.RoleAdmin, "me")
	good, err := tls.LoadX509KeyPair(f.path("admin-me.pem"), f.path("admin-me-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		cfg  *tls.Config
		want string
	}{
		{"no certificate", &tls.Config{MinVersion: tls.VersionTLS13}, "certificate required"},
		{"expired certificate", &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{late}}, "expired certificate"},
		{"TLS 1.2", &tls.Config{MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12, Certificates: []tls.Certificate{good}}, "protocol version not supported"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.cfg.RootCAs, c.cfg.ServerName, c.cfg.NextProtos = pool, "agent.homelab.internal", []string{"h2"}
			d := &tls.Dialer{Config: c.cfg}
			conn, err := d.DialContext(t.Context(), "tcp", addr)
			if err == nil {
				_, err = conn.Read(make([]byte, 1))
				_ = conn.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
	if !strings.Contains(log.String(), "caller refused") {
		t.Errorf("refusals are not logged: %q", log)
	}
}

func TestNewFilesAreUsedWithoutRestart(t *testing.T) {
	f := newFleet(t, "home")
	addr := serve(t, f.expired(rpc.RoleAgent, "pve1"), echoing(), quiet)
	creds := f.expired(rpc.RoleAdmin, "me")
	if _, err := call(t, dial(t, rpc.Target{Address: addr, Credentials: creds}), echo, ""); !errors.Is(err, rpc.ErrDenied) {
		t.Fatal(err)
	}
	f.issue(rpc.RoleAdmin, "me", time.Now())
	f.issue(rpc.RoleAgent, "pve1", time.Now())
	if _, err := call(t, dial(t, rpc.Target{Address: addr, Credentials: creds}), echo, ""); err != nil {
		t.Fatal(err)
	}
	// A broken file does not end what works.
	if err := os.WriteFile(f.path("admin-me.pem"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := call(t, dial(t, rpc.Target{Address: addr, Credentials: creds}), echo, ""); err != nil {
		t.Fatal(err)
	}
	if got, want := creds.Identity(), (rpc.Identity{Fleet: "home", Role: rpc.RoleAdmin, Name: "me"}); got != want {
		t.Errorf("identity %v, want %v", got, want)
	}
}

func TestLoadTLSNamesTheFile(t *testing.T) {
	f := newFleet(t, "home")
	f.creds(rpc.RoleAdmin, "me")
	ca, cert, key := f.path("ca.pem"), f.path("admin-me.pem"), f.path("admin-me-key.pem")
	for _, c := range []struct{ ca, cert, key, want string }{
		{f.path("none.pem"), cert, key, "none.pem"},
		{key, cert, key, "holds no CA certificate"},
		{ca, cert, f.path("ca-key.pem"), "admin-me.pem"},
		{ca, ca, f.path("ca-key.pem"), "no certificate of a fleet"},
	} {
		_, err := rpc.LoadTLS(c.ca, c.cert, c.key)
		if !errors.Is(err, rpc.ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
}

func TestFilesAreForTheirOwnerOnly(t *testing.T) {
	f := newFleet(t, "home")
	f.creds(rpc.RoleAdmin, "me")
	for _, name := range []string{"ca.pem", "ca-key.pem", "admin-me.pem", "admin-me-key.pem"} {
		st, err := os.Stat(f.path(name))
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode() != fs.FileMode(0o600) {
			t.Errorf("%s has mode %s", name, st.Mode())
		}
	}
	ca, err := rpc.LoadCA(f.path("ca.pem"), f.path("ca-key.pem"), nil)
	if err != nil || ca.Fleet() != "home" {
		t.Errorf("CA read back: %v, %v", ca, err)
	}
}

func TestCAIssuesOnlySoundNamesOfItsFleet(t *testing.T) {
	f := newFleet(t, "home")
	for _, id := range []rpc.Identity{
		{Fleet: "other", Role: rpc.RoleAdmin, Name: "me"},
		{Role: "root", Name: "me"},
		{Role: rpc.RoleAdmin, Name: ""},
		{Role: rpc.RoleAdmin, Name: "a/b"},
		{Role: rpc.RoleAdmin, Name: "../x"},
		{Role: rpc.RoleAgent, Name: "pve1?x"},
	} {
		if _, err := f.ca.Issue(id, time.Hour, time.Now()); !errors.Is(err, rpc.ErrInvalid) {
			t.Errorf("%+v: %v", id, err)
		}
	}
}
