package guest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/homeiac/homelab/agent/guest"
	"github.com/homeiac/homelab/agent/guest/guesttest"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/sshexec/sshtest"
)

// server is a guest into which the key of the target may log in.
func server(t *testing.T) (*sshtest.Server, guest.Target) {
	s := sshtest.Start(t)
	key := sshtest.NewKey(t)
	s.User, s.Authorized = "ubuntu", []ssh.PublicKey{key.PublicKey()}
	s.Run = func(c sshtest.Command) int {
		_, _ = io.WriteString(c.Stdout, c.Line)
		return 0
	}
	return s, guest.Target{User: "ubuntu", Addresses: []string{"127.0.0.1"}, Port: s.Port(), HostKeys: []string{sshtest.Line(s.HostKey())}, Key: key}
}

func TestWhyAGuestIsNotReached(t *testing.T) {
	for _, tc := range []struct {
		name string
		want guest.Why
		kind rpc.Kind
		turn func(*sshtest.Server, *guest.Target)
	}{
		{"refused", guest.Refused, rpc.ErrUnavailable, func(s *sshtest.Server, _ *guest.Target) { s.Stop() }},
		{"another machine", guest.WrongHostKey, rpc.ErrDenied, func(_ *sshtest.Server, g *guest.Target) {
			g.HostKeys = []string{sshtest.Line(sshtest.NewKey(t).PublicKey())}
		}},
		{"our key is not known there", guest.Auth, rpc.ErrUnavailable, func(_ *sshtest.Server, g *guest.Target) { g.Key = sshtest.NewKey(t) }},
		{"no host key is known", guest.NoHostKey, rpc.ErrUnavailable, func(_ *sshtest.Server, g *guest.Target) { g.HostKeys = nil }},
		{"no address is known", guest.NoAddress, rpc.ErrUnavailable, func(_ *sshtest.Server, g *guest.Target) { g.Addresses = nil }},
		{"nothing answers", guest.Filtered, rpc.ErrUnavailable, func(_ *sshtest.Server, g *guest.Target) {
			g.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, context.DeadlineExceeded }
		}},
		{"something else than SSH", guest.Broken, rpc.ErrUnavailable, func(_ *sshtest.Server, g *guest.Target) {
			g.Dial = func(context.Context, string, string) (net.Conn, error) {
				a, b := net.Pipe()
				go func() { _, _ = io.Copy(io.Discard, b) }()
				go func() {
					_, _ = io.WriteString(b, "HTTP/1.1 400 Bad Request\r\n\r\n")
					_ = b.Close()
				}()
				return a, nil
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, target := server(t)
			tc.turn(s, &target)
			_, err := guest.Dial(t.Context(), target)
			var se *guest.SSHError
			if !errors.As(err, &se) || se.Why != tc.want {
				t.Fatalf("got %v, want %s", err, tc.want)
			}
			if rpc.KindOf(err) != tc.kind {
				t.Errorf("kind %q, want %q: %v", rpc.KindOf(err), tc.kind, err)
			}
		})
	}
}

func TestAServerThatTakesTheConnectionAndKeepsSilentIsATimeout(t *testing.T) {
	s, target := server(t)
	s.Lock()
	s.Mute = true
	s.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := guest.Dial(ctx, target)
	var se *guest.SSHError
	if !errors.As(err, &se) || se.Why != guest.Timeout {
		t.Fatalf("got %v, want %s", err, guest.Timeout)
	}
}

func TestTheSecondAddressIsTriedAndTheErrorIsOfTheOneThatCameFurthest(t *testing.T) {
	s, target := server(t)
	var tried []string
	target.Addresses = []string{"192.0.2.1", "127.0.0.1"}
	target.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		tried = append(tried, address)
		if strings.HasPrefix(address, "192.0.2.1") {
			return nil, context.DeadlineExceeded
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	c, err := guest.Dial(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if len(tried) != 2 {
		t.Errorf("tried %v", tried)
	}
	target.Key = sshtest.NewKey(t)
	_, err = guest.Dial(t.Context(), target)
	var se *guest.SSHError
	if !errors.As(err, &se) || se.Why != guest.Auth {
		t.Errorf("got %v, want the failure of the second address (%d)", err, s.Port())
	}
}

func TestScriptsRunAsRootAndKeepInputOutputAndExitCode(t *testing.T) {
	s, target := server(t)
	const script = `printf '%s' "it's"; exit 7`
	s.Run = func(c sshtest.Command) int {
		got, ok := guesttest.Script(c)
		if !ok || got != script {
			_, _ = io.WriteString(c.Stderr, "unexpected: "+c.Line)
			return 99
		}
		_, _ = io.Copy(c.Stdout, c.Stdin)
		_, _ = io.WriteString(c.Stderr, "oops\n")
		return 7
	}
	sh, err := guest.Open(t.Context(), target, nil, nil, guest.Who{})
	if err != nil {
		t.Fatal(err)
	}
	defer sh.Close()
	res, err := sh.Run(t.Context(), script, strings.NewReader("secret"))
	if err != nil {
		t.Fatal(err)
	}
	if string(res.Stdout) != "secret" || string(res.Stderr) != "oops\n" || res.Exit != 7 {
		t.Errorf("got %+v", res)
	}
	if err := res.Check("run it"); err == nil || err.Error() != "run it: exit 7: oops" {
		t.Errorf("check: %v", err)
	}
}

func TestArgumentsReachACommandAsTheyAre(t *testing.T) {
	s, target := server(t)
	sh, err := guest.Open(t.Context(), target, nil, nil, guest.Who{})
	if err != nil {
		t.Fatal(err)
	}
	defer sh.Close()
	var out bytes.Buffer
	argv := []string{"A=b", "-x", "two words", "it's", "$HOME;rm *", ""}
	exit, err := sh.Command(t.Context(), argv, nil, &out, io.Discard)
	if err != nil || exit != 0 {
		t.Fatal(exit, err)
	}
	want := `sudo -n sh -c 'exec "$@"' sh 'A=b' '-x' 'two words' 'it'\''s' '$HOME;rm *' ''`
	if out.String() != want {
		t.Errorf("got  %s\nwant %s", out.String(), want)
	}
	_ = s
}

func TestAHungCommandEndsWithItsContext(t *testing.T) {
	s, target := server(t)
	hang := make(chan struct{})
	defer close(hang)
	s.Run = func(c sshtest.Command) int {
		_, _ = io.WriteString(c.Stdout, "so far\n")
		<-hang
		return 0
	}
	sh, err := guest.Open(t.Context(), target, nil, nil, guest.Who{})
	if err != nil {
		t.Fatal(err)
	}
	defer sh.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	res, err := sh.Run(ctx, "sleep 1000", nil)
	if !errors.Is(err, rpc.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if string(res.Stdout) != "so far\n" {
		t.Errorf("output until then: %q", res.Stdout)
	}
}

func TestACommandThatAHungGuestDoesNotBeginEndsWithItsContext(t *testing.T) {
	s, target := server(t)
	sh, err := guest.Open(t.Context(), target, nil, nil, guest.Who{})
	if err != nil {
		t.Fatal(err)
	}
	defer sh.Close()
	s.Lock()
	s.Deaf = true
	s.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := sh.Run(ctx, ":", nil); !errors.Is(err, rpc.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// agent is a guest agent whose commands a function answers.
type agent struct {
	calls [][]string
	exec  func(*driverv1.ExecRequest) (*driverv1.ExecResponse, error)
}

func (a *agent) Exec(_ context.Context, req *driverv1.ExecRequest) (*driverv1.ExecResponse, error) {
	a.calls = append(a.calls, req.GetArgv())
	return a.exec(req)
}

func TestTheGuestAgentIsTheWayInWhenSSHFails(t *testing.T) {
	s, target := server(t)
	s.Stop()
	id := &homelabv1.Identity{Vmid: 201}
	a := &agent{exec: func(req *driverv1.ExecRequest) (*driverv1.ExecResponse, error) {
		if req.GetIdentity().GetVmid() != 201 {
			t.Errorf("identity %v", req.GetIdentity())
		}
		return &driverv1.ExecResponse{Stdout: append([]byte("k3s-1\nabc\n"), req.GetStdin()...)}, nil
	}}
	sh, err := guest.Open(t.Context(), target, a, id, guest.Who{Hostname: "k3s-1", MachineID: "abc"})
	if err != nil {
		t.Fatal(err)
	}
	if sh.Way() != "guest agent" || sh.SSHError() == nil || sh.Conn() != nil {
		t.Errorf("way %s, ssh %v", sh.Way(), sh.SSHError())
	}
	if _, err := sh.Run(t.Context(), "x", bytes.NewReader(make([]byte, 2<<20))); !errors.Is(err, rpc.ErrUnsupported) {
		t.Errorf("2 MiB through the guest agent: %v", err)
	}
	a.exec = func(*driverv1.ExecRequest) (*driverv1.ExecResponse, error) {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "QEMU guest agent is not running")
	}
	_, err = guest.Open(t.Context(), target, a, id, guest.Who{})
	if err == nil || !strings.Contains(err.Error(), "refused") || !strings.Contains(err.Error(), "guest agent: QEMU guest agent is not running") {
		t.Errorf("the error must tell both ways: %v", err)
	}
}

func TestNothingRunsOnTheWrongMachine(t *testing.T) {
	t.Run("host key", func(t *testing.T) {
		s, target := server(t)
		s.Run = func(c sshtest.Command) int { t.Errorf("ran %s", c.Line); return 0 }
		target.HostKeys = []string{sshtest.Line(sshtest.NewKey(t).PublicKey())}
		if _, err := guest.Open(t.Context(), target, nil, nil, guest.Who{}); !errors.Is(err, rpc.ErrDenied) {
			t.Errorf("got %v", err)
		}
		// The guest agent is the VM's own: it is the way in then, and tells who it is.
		a := &agent{exec: func(*driverv1.ExecRequest) (*driverv1.ExecResponse, error) {
			return &driverv1.ExecResponse{Stdout: []byte("k3s-1\nabc\n")}, nil
		}}
		sh, err := guest.Open(t.Context(), target, a, nil, guest.Who{Hostname: "k3s-1", MachineID: "abc"})
		if err != nil {
			t.Fatal(err)
		}
		if sh.Way() != "guest agent" || !errors.Is(sh.SSHError(), rpc.ErrDenied) {
			t.Errorf("way %s, ssh %v", sh.Way(), sh.SSHError())
		}
		for _, who := range []guest.Who{{Hostname: "k3s-2"}, {MachineID: "other"}} {
			if _, err := guest.Open(t.Context(), target, a, nil, who); !errors.Is(err, rpc.ErrDenied) || !strings.Contains(err.Error(), "another machine") {
				t.Errorf("%v: got %v", who, err)
			}
		}
		a.exec = func(*driverv1.ExecRequest) (*driverv1.ExecResponse, error) {
			return nil, rpc.Errorf(rpc.ErrUnavailable, "QEMU guest agent is not running")
		}
		if _, err := guest.Open(t.Context(), target, a, nil, guest.Who{}); rpc.KindOf(err) != rpc.ErrDenied || !strings.Contains(err.Error(), "is not running") {
			t.Errorf("both ways shut: %v", err)
		}
	})
	for name, who := range map[string]guest.Who{"hostname": {Hostname: "k3s-2"}, "machine-id": {MachineID: "other"}} {
		t.Run(name, func(t *testing.T) {
			s, target := server(t)
			s.Run = func(c sshtest.Command) int {
				if script, _ := guesttest.Script(c); script != "cat /proc/sys/kernel/hostname /etc/machine-id" {
					t.Errorf("ran %s", c.Line)
				}
				_, _ = io.WriteString(c.Stdout, "k3s-1\nabc\n")
				return 0
			}
			if _, err := guest.Open(t.Context(), target, nil, nil, who); !errors.Is(err, rpc.ErrDenied) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestATunnelLeadsThroughTheGuest(t *testing.T) {
	s, target := server(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, _ = io.WriteString(c, "hello")
			_ = c.Close()
		}
	}()
	s.Forward = map[string]string{"10.0.0.7": l.Addr().String()}
	c, err := guest.Dial(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	conn, err := c.DialContext(t.Context(), "tcp", "10.0.0.7:2379")
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != "hello" {
		t.Errorf("%q %v", got, err)
	}
}
