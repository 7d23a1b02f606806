package rpc

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// kindCodes is the one table between kinds and gRPC codes. It is part of the
// wire protocol: add, do not change.
var kindCodes = map[Kind]codes.Code{
	ErrInvalid:     codes.InvalidArgument,
	ErrNotFound:    codes.NotFound,
	ErrExists:      codes.AlreadyExists,
	ErrBusy:        codes.Aborted,
	ErrUnavailable: codes.Unavailable,
	ErrRefused:     codes.FailedPrecondition,
	ErrDenied:      codes.PermissionDenied,
	ErrUnsupported: codes.Unimplemented,
}

var codeKinds = func() map[codes.Code]Kind {
	m := make(map[codes.Code]Kind, len(kindCodes)+1)
	for k, c := range kindCodes {
		m[c] = k
	}
	// Nothing of ours says Unauthenticated; a proxy or another gRPC server may.
	m[codes.Unauthenticated] = ErrDenied
	return m
}()

// ToStatus turns an error into what gRPC sends: the code of its kind and its
// whole text. Context errors keep their own codes; what has no kind is Unknown,
// unless it carries a gRPC status already.
func ToStatus(err error) error {
	if err == nil {
		return nil
	}
	text := plain(err.Error())
	if c, ok := kindCodes[KindOf(err)]; ok {
		return status.Error(c, text)
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, text)
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, text)
	}
	if s, ok := status.FromError(err); ok {
		return s.Err()
	}
	return status.Error(codes.Unknown, text)
}

// FromStatus turns what a gRPC call returned into an error of its kind with the
// text alone. Deadline and cancellation are the context's errors again for
// errors.Is, also when they happened on the other side. io.EOF, nil and errors
// that never were a status come back as they are.
func FromStatus(err error) error {
	if err == nil || errors.Is(err, io.EOF) || KindOf(err) != "" {
		return err
	}
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	text := s.Message()
	if k, ok := codeKinds[s.Code()]; ok {
		return &kindError{kind: k, err: errors.New(text)}
	}
	switch s.Code() {
	case codes.DeadlineExceeded:
		return &remoteError{text: text, cause: context.DeadlineExceeded}
	case codes.Canceled:
		return &remoteError{text: text, cause: context.Canceled}
	case codes.OK:
		return nil
	}
	return &remoteError{text: text, cause: err}
}

// remoteError is a text that is something else for errors.Is.
type remoteError struct {
	text  string
	cause error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.cause }
