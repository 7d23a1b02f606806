package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/homeiac/homelab/internal/rpc"
)

// kept is an auditor that keeps what it is told, as lines.
type kept struct {
	mu    sync.Mutex
	lines []string
	more  chan struct{}
	full  error // nothing more can be written
}

func newKept() *kept { return &kept{more: make(chan struct{}, 100)} }

func (k *kept) add(line string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.lines = append(k.lines, line)
	k.more <- struct{}{}
}

func (k *kept) auditor() *rpc.Auditor {
	return &rpc.Auditor{
		Begin: func(_ context.Context, c rpc.Call) (func(rpc.Outcome), error) {
			if k.full != nil {
				return nil, k.full
			}
			asked := c.Request.(*text).GetValue()
			k.add(fmt.Sprintf("begin %s %s", c.Who, asked))
			return func(o rpc.Outcome) {
				k.add(fmt.Sprintf("end %s %s %v %s", asked, rpc.KindName(o.Err), o.About, strings.TrimSpace(o.Result+" "+o.Sum)))
			}, nil
		},
		Denied: func(c rpc.Call, _ error, n int) { k.add(fmt.Sprintf("denied %s %d", c.Who, n)) },
	}
}

// audited makes the tests' own methods audited ones.
func audited(t *testing.T) {
	t.Helper()
	for _, m := range []string{echo, flow} {
		rpc.Rules[m] = rpc.Rule{Audited: true}
	}
	t.Cleanup(func() {
		delete(rpc.Rules, echo)
		delete(rpc.Rules, flow)
	})
}

func auditing(t *testing.T, f *fleet, h handlers, k *kept) string {
	t.Helper()
	s, err := rpc.Listen(t.Context(), rpc.ServerConfig{
		Address: "127.0.0.1:0", Credentials: f.creds(rpc.RoleAgent, "pve1"), Allow: everyone, Log: quiet, Audit: k.auditor(),
	}, h.register)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return s.Addr().String()
}

func TestACallIsAuditedFromItsBeginningToItsEnd(t *testing.T) {
	audited(t)
	f, k := newFleet(t, "home"), newKept()
	addr := auditing(t, f, handlers{
		unary: func(ctx context.Context, _, in string) (string, error) {
			switch in {
			case "no":
				return "", rpc.Errorf(rpc.ErrRefused, "not now")
			case "bang":
				panic("bang")
			}
			rpc.About(ctx, "guest k3s-1", "guest k3s-1")
			return in, nil
		},
		stream: func(ctx context.Context, send func(string) error) error {
			rpc.Sum(ctx, "partial", "half of it")
			return send("x")
		},
	}, k)
	conn := dial(t, rpc.Target{Address: addr, Credentials: f.creds(rpc.RoleAdmin, "me")})
	for _, in := range []string{"yes", "no", "bang"} {
		_, _ = call(t, conn, echo, in)
	}
	if _, err := call(t, conn, look, "a look is not audited"); err != nil {
		t.Error(err)
	}
	s, err := open(t.Context(), conn, "flow")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = receive(s)
	for range 8 {
		<-k.more
	}
	want := []string{
		"begin admin@me yes", "end yes ok [guest k3s-1] ", "begin admin@me no", "end no refused [] ", "begin admin@me bang", "end bang unknown [] ",
		"begin admin@me flow", "end flow ok [] partial half of it",
	}
	if !slices.Equal(k.lines, want) {
		t.Errorf("%s", strings.Join(k.lines, "\n"))
	}
}

func TestWhatCannotBeWrittenDownIsNotDone(t *testing.T) {
	audited(t)
	f, k := newFleet(t, "home"), newKept()
	k.full = rpc.Errorf(rpc.ErrUnavailable, "the store is away")
	done := false
	addr := auditing(t, f, handlers{
		unary:  func(context.Context, string, string) (string, error) { done = true; return "", nil },
		stream: func(context.Context, func(string) error) error { done = true; return nil },
	}, k)
	conn := dial(t, rpc.Target{Address: addr, Credentials: f.creds(rpc.RoleAdmin, "me")})
	if _, err := call(t, conn, echo, "x"); !errors.Is(err, rpc.ErrUnavailable) {
		t.Error(err)
	}
	s, err := open(t.Context(), conn, "x")
	if err == nil {
		_, err = receive(s)
	}
	if !errors.Is(err, rpc.ErrUnavailable) || done {
		t.Errorf("%v, done %v", err, done)
	}
}

func TestDeniedCallsAreAuditedOnceAMinute(t *testing.T) {
	audited(t)
	f, k := newFleet(t, "home"), newKept()
	addr := auditing(t, f, echoing(), k)
	conn := dial(t, rpc.Target{Address: addr, Credentials: f.creds(rpc.RoleViewer, "v")})
	for range 20 {
		_, err := call(t, conn, echo, "x")
		denied(t, err, "viewer@v may not call Echo:")
	}
	<-k.more
	// One of somebody else is told at once; it comes after all of the first.
	other := dial(t, rpc.Target{Address: addr, Credentials: f.creds(rpc.RoleAgent, "pve2")})
	_, err := call(t, other, echo, "x")
	denied(t, err, "")
	<-k.more
	if want := []string{"denied viewer@v 1", "denied agent@pve2 1"}; !slices.Equal(k.lines, want) {
		t.Errorf("%v", k.lines)
	}
}

func TestOfACommandOnlyTheProgramIsWrittenDown(t *testing.T) {
	for _, c := range []struct {
		want string
		argv []string
	}{
		{"", nil},
		{"", []string{" ", "--password=hunter2"}},
		{"psql", []string{"/usr/bin/psql", "--password=hunter2"}},
		{"sh", []string{"sh", "-c", "echo hunter2"}},
		{"mysql", []string{"mysql -phunter2"}},
		{"PASSWORD=…", []string{"PASSWORD=hunter2 mysql"}},
		{"TOKEN=…", []string{"TOKEN=/hunter2", "k3s"}},
	} {
		if got := rpc.Program(c.argv); got != c.want {
			t.Errorf("%q: %q, want %q", c.argv, got, c.want)
		}
	}
}
