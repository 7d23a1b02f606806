package rpc

import (
	"context"
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
func MakePlain(m proto.Message) { makePlain(m.ProtoReflect()) }

func makePlain(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
			plainMap(f, v.Map())
		case f.IsList():
			list := v.List()
			for i := range list.Len() {
				if fixed, changed := plainValue(f, list.Get(i)); changed {
					list.Set(i, fixed)
				}
			}
		default:
			if fixed, changed := plainValue(f, v); changed {
				m.Set(f, fixed)
			}
		}
		return true
	})
}

func plainMap(f protoreflect.FieldDescriptor, all protoreflect.Map) {
	var bad []protoreflect.MapKey
	all.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		if fixed, changed := plainValue(f.MapValue(), v); changed {
			all.Set(k, fixed)
		}
		if f.MapKey().Kind() == protoreflect.StringKind && !isPlain(k.String()) {
			bad = append(bad, k)
		}
		return true
	})
	for _, k := range bad {
		v := all.Get(k)
		all.Clear(k)
		all.Set(protoreflect.ValueOfString(plain(k.String())).MapKey(), v)
	}
}

// plainValue mends one value; a message is mended in its place.
func plainValue(f protoreflect.FieldDescriptor, v protoreflect.Value) (fixed protoreflect.Value, changed bool) {
	switch f.Kind() {
	case protoreflect.StringKind:
		if s := v.String(); !isPlain(s) {
			return protoreflect.ValueOfString(plain(s)), true
		}
	case protoreflect.MessageKind, protoreflect.GroupKind:
		makePlain(v.Message())
	default:
	}
	return v, false
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
