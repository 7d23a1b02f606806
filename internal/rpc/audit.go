package rpc

import (
	"context"
	"errors"
	"path"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// maxAbout bounds how many things one call is noted to be about.
const maxAbout = 100

// Call is one call of an audited method (see Rules).
type Call struct {
	// Who makes it, as the certificate says.
	Who Identity
	// Method is its full name.
	Method string
	// Request is what was asked. It can hold secrets: what is kept of it is for the
	// auditor to choose. Nil for a call that was denied before it was read.
	Request proto.Message
}

// Auditor keeps who did what. Its functions may be called at once by several calls.
type Auditor struct {
	// Begin is told of a call before its handler sees it. With its error the call is
	// refused: nothing is changed that cannot be written down. The function that it
	// returns is told the end, and what the handler said of it by About and Sum; for
	// every call that was begun, once.
	Begin func(ctx context.Context, c Call) (end func(o Outcome), err error)
	// Denied is told of calls of audited methods by somebody whose role may not: the
	// first one, then once a minute how many more there were. May be nil.
	Denied func(c Call, err error, n int)
}

// Outcome is how a call ended.
type Outcome struct {
	// Err is its error; nil when it ended well.
	Err error
	// About are the things that it was about (guest k3s-1, host pve1), each once.
	About []string
	// Result is how it ended in a word, where that is not the kind of Err: partial.
	Result string
	// Sum is what came of it in words; may be empty.
	Sum string
}

// KindName is a kind of error in one word: ok for none.
func KindName(err error) string { return kindName(err) }

// notes are what a handler says of its call.
type notes struct {
	mu          sync.Mutex
	about       []string
	result, sum string
}

type notesKey struct{}

// About notes for the audit what the call that ctx belongs to is about: guest k3s-1,
// host pve1. Nothing happens when it is not audited.
func About(ctx context.Context, what ...string) {
	n, ok := ctx.Value(notesKey{}).(*notes)
	if !ok {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range what {
		if len(n.about) < maxAbout && !slices.Contains(n.about, w) {
			n.about = append(n.about, w)
		}
	}
}

// Sum notes for the audit what came of the call that ctx belongs to: in a word, where
// without an error not all is well, and in words.
func Sum(ctx context.Context, result, text string) {
	if n, ok := ctx.Value(notesKey{}).(*notes); ok {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.result, n.sum = result, text
	}
}

// Program is all of a command that is written down: its arguments and its input are
// where people put secrets. Of sh -c SCRIPT, and of a command line given whole, it is the
// first word, and of PASSWORD=secret before a program, which is no program, only the name.
func Program(argv []string) string {
	if len(argv) == 0 {
		return ""
	}
	f := strings.Fields(argv[0])
	if len(f) == 0 {
		return ""
	}
	if name, _, ok := strings.Cut(f[0], "="); ok {
		return name + "=…"
	}
	return path.Base(f[0])
}

// Noting is a context in which About and Sum note, and gives what they noted: for what
// a process does without being called.
func Noting(ctx context.Context) (context.Context, func(err error) Outcome) {
	n := new(notes)
	return context.WithValue(ctx, notesKey{}, n), n.outcome
}

func (n *notes) outcome(err error) Outcome {
	n.mu.Lock()
	defer n.mu.Unlock()
	return Outcome{Err: err, About: slices.Clone(n.about), Result: n.result, Sum: n.sum}
}

var errPanicked = errors.New("internal error, its place is in the log")

// interceptors have the calls of audited methods begun and ended at the auditor.
// They come after those of Authorize.
func (a *Auditor) interceptors() (grpc.UnaryServerInterceptor, grpc.StreamServerInterceptor) {
	unary := func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (reply any, err error) {
		if !Rules[info.FullMethod].Audited {
			return next(ctx, req)
		}
		ctx, outcome := Noting(ctx)
		end, err := a.begin(ctx, info.FullMethod, req)
		if err != nil {
			return nil, err
		}
		err = errPanicked
		defer func() { end(outcome(err)) }()
		reply, err = next(ctx, req)
		return reply, err
	}
	stream := func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
		if !Rules[info.FullMethod].Audited {
			return next(srv, ss)
		}
		ctx, outcome := Noting(ss.Context())
		s := &auditedStream{ServerStream: ss, ctx: ctx, a: a, method: info.FullMethod}
		err = errPanicked
		defer func() {
			if s.end != nil {
				s.end(outcome(err))
			}
		}()
		err = next(srv, s)
		return err
	}
	return unary, stream
}

func (a *Auditor) begin(ctx context.Context, method string, req any) (func(Outcome), error) {
	who, err := PeerIdentity(ctx)
	if err != nil {
		return nil, err
	}
	m, _ := req.(proto.Message)
	return a.Begin(ctx, Call{Who: who, Method: method, Request: m})
}

// auditedStream begins at the auditor when the request was read; the handler reads
// it first, and has done nothing before.
type auditedStream struct {
	grpc.ServerStream
	ctx    context.Context
	a      *Auditor
	method string
	end    func(Outcome) // nil until it was begun; used by the handler's goroutine alone
}

func (s *auditedStream) Context() context.Context { return s.ctx }

func (s *auditedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil || s.end != nil {
		return err
	}
	end, err := s.a.begin(s.ctx, s.method, m)
	if err != nil {
		return err
	}
	s.end = end
	return nil
}
