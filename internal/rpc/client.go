package rpc

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/homeiac/homelab/internal/pause"
)

// readWaits are the pauses before a read is repeated; their number bounds the
// attempts.
var readWaits = []time.Duration{100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond}

// client holds the interceptors of one Dial.
type client struct {
	target  Target
	lines   *lines
	trouble *trouble
	pulse   *pulse
}

// whom names the other side for people.
func (c *client) whom() string {
	if c.target.Name == "" {
		return c.target.Role + " at " + c.target.Address
	}
	return c.target.Role + " " + c.target.Name + " at " + c.target.Address
}

func (c *client) unary(
	ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption,
) error {
	if method == grpc_health_v1.Health_Check_FullMethodName {
		return next(ctx, method, req, reply, cc, opts...)
	}
	start := time.Now()
	leave := c.pulse.enter()
	defer leave()
	var far peer.Peer
	opts = append(opts, grpc.Peer(&far))
	err := c.judge(next(ctx, method, req, reply, cc, opts...), &far)
	if slices.Contains(c.target.Reads, method) {
		for _, wait := range readWaits {
			if !errors.Is(err, ErrUnavailable) || !pause.For(ctx, wait) {
				break
			}
			err = c.judge(next(ctx, method, req, reply, cc, opts...), &far)
		}
	}
	c.note(ctx, method, start, err)
	return err
}

func (c *client) stream(
	ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption,
) (grpc.ClientStream, error) {
	start := time.Now()
	leave := c.pulse.enter()
	s, err := next(ctx, desc, cc, method, opts...)
	if err != nil {
		leave()
		err = c.judge(err, nil)
		c.note(ctx, method, start, err)
		return nil, err
	}
	// A caller may drop a stream by ending its context, without a last read.
	context.AfterFunc(ctx, leave)
	judge := func(err error) error {
		far, _ := peer.FromContext(s.Context())
		return c.judge(err, far)
	}
	return &clientStream{ClientStream: s, judge: judge, single: !desc.ServerStreams, ended: func(err error) {
		leave()
		c.note(ctx, method, start, err)
	}}, nil
}

// judge gives a call's error its kind, and the better text where the connection
// is why it failed. An answer of one whose certificate is revoked by now is none.
func (c *client) judge(err error, far *peer.Peer) error {
	if far != nil {
		if why := c.target.Credentials.revokedIn(chainOf(far.AuthInfo)); why != nil {
			return Errorf(ErrDenied, "the answer of %s does not count: %w", c.whom(), why)
		}
	}
	if err == nil {
		return nil
	}
	if status.Code(err) == codes.Unavailable {
		if t := c.trouble.get(); t != nil {
			return t
		}
	}
	return FromStatus(err)
}

func (c *client) note(ctx context.Context, method string, start time.Time, err error) {
	c.target.Log.LogAttrs(ctx, slog.LevelDebug, "called", slog.String("method", method),
		slog.String("peer", c.target.Name), slog.String("role", c.target.Role),
		slog.Duration("duration", time.Since(start)), slog.String("kind", kindName(err)))
}

// clientStream maps the errors of a stream and notices its end.
type clientStream struct {
	grpc.ClientStream
	judge  func(error) error
	ended  func(error)
	single bool // one answer only: after it the stream has ended
	over   bool // used by the receiving goroutine alone
}

func (s *clientStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if !errors.Is(err, io.EOF) {
		err = s.judge(err)
	}
	if err == nil && !s.single {
		return nil
	}
	if !s.over {
		s.over = true
		if errors.Is(err, io.EOF) {
			s.ended(nil)
		} else {
			s.ended(err)
		}
	}
	return err
}

// SendMsg leaves io.EOF alone: it means that the reason comes from RecvMsg.
func (s *clientStream) SendMsg(m any) error { return s.judge(s.ClientStream.SendMsg(m)) }

func (s *clientStream) CloseSend() error { return s.judge(s.ClientStream.CloseSend()) }

// MapClientErrors gives the options that turn errors of calls into kinds, for
// connections that are not made by Dial (those to driver plugins).
func MapClientErrors() []grpc.DialOption {
	unary := func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		return FromStatus(next(ctx, method, req, reply, cc, opts...))
	}
	stream := func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		s, err := next(ctx, desc, cc, method, opts...)
		if err != nil {
			return nil, FromStatus(err)
		}
		return &clientStream{ClientStream: s, judge: FromStatus, ended: func(error) {}}, nil
	}
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(unary), grpc.WithChainStreamInterceptor(stream)}
}
