package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/homeiac/homelab/internal/rpc"
)

var kinds = []rpc.Kind{
	rpc.ErrInvalid, rpc.ErrNotFound, rpc.ErrExists, rpc.ErrBusy,
	rpc.ErrUnavailable, rpc.ErrRefused, rpc.ErrDenied, rpc.ErrUnsupported,
}

func TestKindAndTextSurviveTheWire(t *testing.T) {
	f := newFleet(t, "home")
	var fail error
	h := echoing()
	h.unary = func(context.Context, string, string) (string, error) { return "", fail }
	addr := serve(t, f.creds(rpc.RoleAgent, "pve1"), h, quiet)
	conn := dial(t, rpc.Target{Address: addr, Credentials: f.creds(rpc.RoleAdmin, "me")})
	for _, k := range kinds {
		fail = fmt.Errorf("create k3s-2: %w", rpc.Errorf(k, "qm: %d%% ünüsual\nsecond line", 7))
		_, err := call(t, conn, echo, "")
		if !errors.Is(err, k) || rpc.KindOf(err) != k {
			t.Errorf("%s came back as %q", k, rpc.KindOf(err))
		}
		if err == nil || err.Error() != fail.Error() {
			t.Errorf("text of %s: %q, want %q", k, err, fail)
		}
	}
}

func TestStatusRoundTrip(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		is   error
		kind rpc.Kind
		code codes.Code
	}{
		{"nothing", nil, nil, "", codes.OK},
		{"deadline", fmt.Errorf("wait for k3s-1: %w", context.DeadlineExceeded), context.DeadlineExceeded, "", codes.DeadlineExceeded},
		{"canceled", fmt.Errorf("wait for k3s-1: %w", context.Canceled), context.Canceled, "", codes.Canceled},
		{"no kind", errors.New("odd"), nil, "", codes.Unknown},
		{"kind over context", rpc.Errorf(rpc.ErrBusy, "locked: %w", context.DeadlineExceeded), rpc.ErrBusy, rpc.ErrBusy, codes.Aborted},
		{"kind over kind", rpc.Errorf(rpc.ErrRefused, "not now: %w", rpc.Errorf(rpc.ErrBusy, "locked")), rpc.ErrRefused, rpc.ErrRefused, codes.FailedPrecondition},
		{"foreign status", status.Error(codes.ResourceExhausted, "too large"), nil, "", codes.ResourceExhausted},
		{"joined", errors.Join(errors.New("a"), rpc.Errorf(rpc.ErrNotFound, "b")), rpc.ErrNotFound, rpc.ErrNotFound, codes.NotFound},
	} {
		t.Run(c.name, func(t *testing.T) {
			wire := rpc.ToStatus(c.err)
			if got := status.Code(wire); got != c.code {
				t.Errorf("code %s, want %s", got, c.code)
			}
			back := rpc.FromStatus(wire)
			if rpc.KindOf(back) != c.kind {
				t.Errorf("kind %q, want %q", rpc.KindOf(back), c.kind)
			}
			if c.is != nil && !errors.Is(back, c.is) {
				t.Errorf("%v is not %v", back, c.is)
			}
			if c.err != nil && c.name != "foreign status" && back.Error() != c.err.Error() {
				t.Errorf("text %q, want %q", back, c.err)
			}
		})
	}
}

func TestFromStatusLeavesOthersAlone(t *testing.T) {
	for _, err := range []error{nil, io.EOF, errors.New("plain"), rpc.Errorf(rpc.ErrBusy, "x")} {
		if got := rpc.FromStatus(err); !errors.Is(got, err) || (err != nil && got.Error() != err.Error()) {
			t.Errorf("%v became %v", err, got)
		}
	}
}

func TestErrorfKeepsTheCause(t *testing.T) {
	err := rpc.Errorf(rpc.ErrUnavailable, "read %s: %w", "x", io.ErrUnexpectedEOF)
	if !errors.Is(err, io.ErrUnexpectedEOF) || !errors.Is(err, rpc.ErrUnavailable) || errors.Is(err, rpc.ErrBusy) {
		t.Errorf("%v lost its cause or kind", err)
	}
	if got, want := err.Error(), "read x: unexpected EOF"; got != want {
		t.Errorf("text %q, want %q", got, want)
	}
}
