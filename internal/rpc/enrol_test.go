package rpc_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/homeiac/homelab/internal/rpc"
)

// Who is turned away before a call is made must be seen by somebody too.
func TestWhoIsTurnedAwayAtTheEnrolmentsDoorIsLoggedOnceForEachReason(t *testing.T) {
	f := newFleet(t, "home")
	f.issue(rpc.RoleController, "c1", time.Now())
	said, log := io.Pipe()
	creds := f.load(rpc.RoleController, "c1")
	creds.Log = slog.New(slog.NewTextHandler(log, nil))
	ctx, cancel := context.WithCancel(context.Background())
	s, err := rpc.ListenEnrol(ctx, rpc.EnrolConfig{
		Address: "127.0.0.1:0", Credentials: creds, Admit: func(string) error { return nil }, Log: slog.New(slog.DiscardHandler),
	}, func(grpc.ServiceRegistrar) {})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = s.Run(ctx) }()
	defer func() { _ = said.Close(); cancel(); <-ended }()

	lines := make(chan string)
	go func() {
		for scan := bufio.NewScanner(said); scan.Scan(); {
			lines <- scan.Text()
		}
	}()
	told := func(reason string) {
		t.Helper()
		select {
		case line := <-lines:
			if !strings.Contains(line, "caller refused") || !strings.Contains(line, "127.0.0.1") || !strings.Contains(line, reason) {
				t.Errorf("%s: %s", reason, line)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: nothing was logged", reason)
		}
	}
	old := &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12} //nolint:gosec // is to be refused
	for range 3 {
		if conn, err := tls.Dial("tcp", s.Addr().String(), old); err == nil {
			t.Error("the older TLS is taken")
			_ = conn.Close()
		}
	}
	told("unsupported versions")
	for range 20 {
		conn, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	told("too many connections")
}
