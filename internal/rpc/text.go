package rpc

import (
	"context"
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// MakePlain makes all texts of a message plain text. Answers hold what guests,
// programs and configuration files say: protobuf refuses to send a whole observation
// for one byte that is not UTF-8, so that a guest could hide its host, and with
// control characters it could write what it likes on the terminal of whoever reads
// them. Bytes fields stay as they are.
func MakePlain(m proto.Message) { eachText(m.ProtoReflect(), isPlain, plain) }

// FirstLines leaves of each text in a message its first line.
func FirstLines(m proto.Message) {
	one := func(s string) bool { return !strings.Contains(s, "\n") }
	eachText(m.ProtoReflect(), one, func(s string) string {
		first, _, _ := strings.Cut(s, "\n")
		return first
	})
}

// eachText mends the texts of a message that are not well.
func eachText(m protoreflect.Message, well func(string) bool, mend func(string) string) {
	value := func(f protoreflect.FieldDescriptor, v protoreflect.Value) (fixed protoreflect.Value, changed bool) {
		switch f.Kind() {
		case protoreflect.StringKind:
			if s := v.String(); !well(s) {
				return protoreflect.ValueOfString(mend(s)), true
			}
		case protoreflect.MessageKind, protoreflect.GroupKind:
			eachText(v.Message(), well, mend) // in its place
		default:
		}
		return v, false
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
			all := v.Map()
			var bad []protoreflect.MapKey
			all.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				if fixed, changed := value(f.MapValue(), v); changed {
					all.Set(k, fixed)
				}
				if f.MapKey().Kind() == protoreflect.StringKind && !well(k.String()) {
					bad = append(bad, k)
				}
				return true
			})
			for _, k := range bad {
				v := all.Get(k)
				all.Clear(k)
				all.Set(protoreflect.ValueOfString(mend(k.String())).MapKey(), v)
			}
		case f.IsList():
			list := v.List()
			for i := range list.Len() {
				if fixed, changed := value(f, list.Get(i)); changed {
					list.Set(i, fixed)
				}
			}
		default:
			if fixed, changed := value(f, v); changed {
				m.Set(f, fixed)
			}
		}
		return true
	})
}

// PlainAnswers gives the options by which a server's answers hold plain text only. Listen
// uses them already; they are for servers built otherwise (driver plugins).
func PlainAnswers() []grpc.ServerOption {
	unary := func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		reply, err := next(ctx, req)
		if m, ok := reply.(proto.Message); ok && err == nil {
			MakePlain(m)
		}
		return reply, err
	}
	stream := func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		return next(srv, plainStream{ss})
	}
	return []grpc.ServerOption{grpc.ChainUnaryInterceptor(unary), grpc.ChainStreamInterceptor(stream)}
}

func isPlain(s string) bool { return utf8.ValidString(s) && strings.IndexFunc(s, control) < 0 }

// control says whether a character does something to a terminal.
func control(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' }

// plain drops carriage returns, and puts U+FFFD for whatever else is not plain.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\r':
			return -1
		case control(r):
			return utf8.RuneError
		}
		return r
	}, strings.ToValidUTF8(s, string(utf8.RuneError)))
}

// plainStream mends what a server's stream sends.
type plainStream struct{ grpc.ServerStream }

func (s plainStream) SendMsg(m any) error {
	if m, ok := m.(proto.Message); ok {
		MakePlain(m)
	}
	return s.ServerStream.SendMsg(m)
}

// forViewers are interceptors that give a viewer the first line of each text only, of
// answers and errors. What comes after one was said in a guest or by it: the end of a log,
// a line of a journal. They come after those of Authorize.
func forViewers() (grpc.UnaryServerInterceptor, grpc.StreamServerInterceptor) {
	unary := func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		reply, err := next(ctx, req)
		if !isViewer(ctx) {
			return reply, err
		}
		if m, ok := reply.(proto.Message); ok && err == nil {
			reply = firstLines(m)
		}
		return reply, firstLine(err)
	}
	stream := func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		if !isViewer(ss.Context()) {
			return next(srv, ss)
		}
		return firstLine(next(srv, viewersStream{ss}))
	}
	return unary, stream
}

func isViewer(ctx context.Context) bool {
	id, err := PeerIdentity(ctx)
	return err != nil || id.Role == RoleViewer
}

// firstLines does so with a copy: the message may be what the server remembers.
func firstLines(m proto.Message) proto.Message {
	m = proto.Clone(m)
	FirstLines(m)
	return m
}

// firstLine keeps an error's kind.
func firstLine(err error) error {
	if err == nil || !strings.Contains(err.Error(), "\n") {
		return err
	}
	first, _, _ := strings.Cut(err.Error(), "\n")
	if kind := KindOf(err); kind != "" {
		return Errorf(kind, "%s", first)
	}
	return errors.New(first)
}

type viewersStream struct{ grpc.ServerStream }

func (s viewersStream) SendMsg(m any) error {
	if m, ok := m.(proto.Message); ok {
		return s.ServerStream.SendMsg(firstLines(m))
	}
	return s.ServerStream.SendMsg(m)
}
