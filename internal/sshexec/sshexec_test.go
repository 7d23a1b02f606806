package sshexec

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/sshexec/sshtest"
)

var say = Words{Slow: "slow", NotBegun: "not begun", Late: "late", Lost: "lost"}

// connect gives a client of s over a pipe, which a bubble of synctest can wait for. Once
// off is set nothing comes from the server any more, as when its power is cut.
func connect(t *testing.T, s *sshtest.Server) (client *ssh.Client, off *atomic.Bool) {
	t.Helper()
	key := sshtest.NewKey(t)
	s.Authorized = []ssh.PublicKey{key.PublicKey()}
	near, far := net.Pipe()
	off = new(atomic.Bool)
	go s.Serve(unhurried(far, off))
	conn, chans, reqs, err := ssh.NewClientConn(unhurried(near, new(atomic.Bool)), "pipe", &ssh.ClientConfig{
		User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, HostKeyCallback: ssh.FixedHostKey(s.HostKey()),
	})
	if err != nil {
		t.Fatal(err)
	}
	client = ssh.NewClient(conn, chans, reqs)
	t.Cleanup(func() { _ = client.Close() })
	return client, off
}

// buffered is a pipe on which both ends may write at once, as SSH does at first.
type buffered struct {
	net.Conn
	out   chan []byte
	over  chan struct{}
	close func() // once
}

func unhurried(c net.Conn, off *atomic.Bool) net.Conn {
	b := buffered{Conn: c, out: make(chan []byte, 1000), over: make(chan struct{})}
	b.close = sync.OnceFunc(func() { close(b.over) })
	go func() {
		for {
			select {
			case p := <-b.out:
				if !off.Load() {
					_, _ = c.Write(p)
				}
			case <-b.over:
				return
			}
		}
	}()
	return b
}

func (b buffered) Write(p []byte) (int, error) {
	b.out <- bytes.Clone(p)
	return len(p), nil
}

func (b buffered) Close() error {
	b.close()
	return b.Conn.Close()
}

func TestACommandHasItsInputOutputAndExitCode(t *testing.T) {
	s := sshtest.Start(t)
	s.Run = func(c sshtest.Command) int {
		_, _ = io.Copy(c.Stdout, c.Stdin)
		_, _ = io.WriteString(c.Stderr, c.Line)
		return 7
	}
	var out, errs Output
	client, _ := connect(t, s)
	code, err := Run(t.Context(), client, Command{Line: "a 'b'", Stdin: strings.NewReader("in"), Stdout: &out, Stderr: &errs}, say)
	if err != nil || code != 7 || string(out.Bytes()) != "in" || string(errs.Bytes()) != "a 'b'" {
		t.Error(code, err, out, errs)
	}
}

// x/crypto/ssh gives a signal's number; if it ceased to, a command that was killed would
// have ended well.
func TestASignalIsAnExitCodeAsInAShell(t *testing.T) {
	for name, want := range map[string]int{"TERM": 143, "KILL": 137, "unheard of": 128} {
		s := sshtest.Start(t)
		s.Signal = name
		client, _ := connect(t, s)
		if code, err := Run(t.Context(), client, Command{Line: "x"}, say); err != nil || code != want {
			t.Error(name, code, err)
		}
	}
}

func TestNobodyWaitsLongerThanWasSaid(t *testing.T) {
	for name, tc := range map[string]struct {
		before, during bool // its power is cut
		limit, takes   time.Duration
		word           string
		closed         bool
	}{
		"a machine that hangs begins nothing":   {before: true, limit: time.Minute, takes: time.Minute, word: "slow", closed: true},
		"a command that does not end":           {limit: time.Minute, takes: time.Minute, word: "late"},
		"a machine that hangs while it runs it": {during: true, limit: time.Hour, takes: pulseEvery + pulseTimeout, word: "lost", closed: true},
		"and does not let go":                   {during: true, limit: 12 * time.Second, takes: 12*time.Second + closeTimeout, word: "late", closed: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := sshtest.Start(t) // its port is none of the bubble's
			synctest.Test(t, func(t *testing.T) {
				over := make(chan struct{})
				defer close(over)
				client, off := connect(t, s)
				off.Store(tc.before)
				s.Run = func(c sshtest.Command) int {
					_, _ = io.WriteString(c.Stdout, "begun")
					<-over
					return 0
				}
				begun := writer(func() { off.Store(tc.during) })
				ctx, cancel := context.WithTimeout(t.Context(), tc.limit)
				defer cancel()
				began := time.Now()
				_, err := Run(ctx, client, Command{Line: "x", Stdout: begun}, say)
				if took := time.Since(began); !errors.Is(err, rpc.ErrUnavailable) || !strings.HasPrefix(err.Error(), tc.word+": ") || took != tc.takes {
					t.Errorf("%v after %s, want %s after %s", err, took, tc.word, tc.takes)
				}
				if want := tc.word != "lost"; errors.Is(err, context.DeadlineExceeded) != want {
					t.Errorf("%v: the time was over %v", err, want)
				}
				if _, _, err := client.SendRequest("keepalive@openssh.com", true, nil); (err != nil) != tc.closed {
					t.Errorf("the connection after it: %v", err)
				}
			})
		})
	}
}

type writer func()

func (w writer) Write(p []byte) (int, error) { w(); return len(p), nil }

func TestOutputKeepsTheFirstBytesAndTakesAll(t *testing.T) {
	var o Output
	for range 5 {
		if n, err := o.Write(bytes.Repeat([]byte("x"), 1<<20)); n != 1<<20 || err != nil {
			t.Fatal(n, err)
		}
	}
	if len(o.Bytes()) != outputLimit {
		t.Error(len(o.Bytes()))
	}
}

// deaf is a connection that has ended and never says so, also when it is closed.
type deaf struct{ ssh.Conn }

func (deaf) OpenChannel(string, []byte) (ssh.Channel, <-chan *ssh.Request, error) { select {} }
func (deaf) Close() error                                                         { return net.ErrClosed }

func TestASessionThatNobodyAnswersIsGivenUpInTime(t *testing.T) {
	client := &ssh.Client{Conn: deaf{}}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, client, Command{Line: "true"}, say); !errors.Is(err, rpc.ErrUnavailable) || !strings.Contains(err.Error(), say.Slow) {
		t.Error(err)
	}
}
