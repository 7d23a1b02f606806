// Package rpc is how processes of a fleet call each other: mutual TLS with the
// role in the certificate, a table of who may call what, and errors whose kind
// survives the wire. It is all that the rest of the code knows of TLS and of
// gRPC codes. What is called, and what it means, it leaves to its users.
package rpc

import (
	"errors"
	"fmt"
)

// Kind says what sort of failure an error is, so that code can decide without
// reading the text: errors.Is(err, rpc.ErrBusy). A Kind is itself an error, but
// a bare one tells people nothing; return Errorf(kind, ...) instead.
type Kind string

// The kinds. Their gRPC codes are in status.go.
const (
	// ErrInvalid: what was asked makes no sense, and never will.
	ErrInvalid Kind = "invalid"
	// ErrNotFound: what was asked for was looked for and is not there. A look
	// that did not succeed is ErrUnavailable, never this.
	ErrNotFound Kind = "not found"
	// ErrExists: what should be made is there already.
	ErrExists Kind = "exists"
	// ErrBusy: somebody else holds it (a lock, a run, a step in flight); later
	// it may work.
	ErrBusy Kind = "busy"
	// ErrUnavailable: the other side did not answer, or cannot know now. What
	// was asked may have been done or not.
	ErrUnavailable Kind = "unavailable"
	// ErrRefused: understood and allowed, but not safe or not possible as
	// things are; nothing was changed.
	ErrRefused Kind = "refused"
	// ErrDenied: the caller (or the peer called) is not who it must be.
	ErrDenied Kind = "denied"
	// ErrUnsupported: this driver, host or version has no such power.
	ErrUnsupported Kind = "unsupported"
)

// Error is the kind's name.
func (k Kind) Error() string { return string(k) }

// kindError is a text with a kind. The kind comes first in Unwrap so that the
// outermost one is what KindOf finds.
type kindError struct {
	kind Kind
	err  error
}

func (e *kindError) Error() string   { return e.err.Error() }
func (e *kindError) Unwrap() []error { return []error{e.kind, e.err} }

// Errorf is fmt.Errorf (with %w) for an error of that kind. The kind is not
// part of the text. Where kinds are nested the outermost is what KindOf gives
// and what crosses the wire.
func Errorf(kind Kind, format string, args ...any) error {
	return &kindError{kind: kind, err: fmt.Errorf(format, args...)}
}

// KindOf gives the outermost kind of err, empty when it has none (and for nil):
// that is a bug or an error nobody has judged, not a kind of its own.
func KindOf(err error) Kind {
	var k Kind
	if errors.As(err, &k) {
		return k
	}
	return ""
}
