package gossip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
)

func TestClassify(t *testing.T) {
	for _, c := range []struct {
		err  error
		want State
	}{
		{nil, Online},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, AgentGone},
		{errors.New(`connection error: desc = "transport: Error while dialing: dial tcp 10.0.0.7:7443: connect: connection refused"`), AgentGone},
		{fmt.Errorf("observe: %w", syscall.ECONNRESET), AgentGone},
		{os.ErrDeadlineExceeded, Silent},
		{context.DeadlineExceeded, Silent},
		{syscall.EHOSTUNREACH, Silent},
		{errors.New("whatever"), Silent},
	} {
		if got := Classify(c.err); got != c.want {
			t.Errorf("%v: %s, want %s", c.err, got, c.want)
		}
	}
}

// The real thing: a port that is closed, one that is open, and one whose accept
// queue is full, as that of a process that was stopped.
func TestKnock(t *testing.T) {
	listen := func(backlog int) (int, string) {
		fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, backlog)); err != nil {
			t.Fatal(err)
		}
		name, err := syscall.Getsockname(fd)
		if err != nil {
			t.Fatal(err)
		}
		in, ok := name.(*syscall.SockaddrInet4)
		if !ok {
			t.Fatalf("%T", name)
		}
		return fd, fmt.Sprintf("127.0.0.1:%d", in.Port)
	}
	fd, addr := listen(8)
	if got := Classify(Knock(t.Context(), addr)); got != Online {
		t.Errorf("open: %s", got)
	}
	if err := syscall.Close(fd); err != nil {
		t.Fatal(err)
	}
	if got := Classify(Knock(t.Context(), addr)); got != AgentGone {
		t.Errorf("closed: %s", got)
	}
	fd, addr = listen(0)
	defer func() { _ = syscall.Close(fd) }()
	for range 3 {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if Classify(Knock(t.Context(), addr)) == Silent {
			return
		}
	}
	t.Error("a full accept queue is not silent")
}
