package rpc

import (
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that messages have but for bare ones
	"google.golang.org/grpc/mem"
)

// Bare is a message that encodes and decodes itself, for streams of bytes: the
// generated code copies each several times, which is half the work of sending a
// large file. It goes over the wire as the message in whose place it is. To be used
// with SendMsg and RecvMsg.
type Bare interface {
	// Encode gives the message. Its buffers are let go of when they were sent, some
	// time after SendMsg returned.
	Encode() mem.BufferSlice
	// Decode takes the message. The buffers are let go of when it returns, but for
	// those that it refers to.
	Decode(mem.BufferSlice) error
}

// codec is gRPC's own but for bare messages.
type codec struct{ encoding.CodecV2 }

func newCodec() encoding.CodecV2 { return codec{encoding.GetCodecV2("proto")} }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if b, ok := v.(Bare); ok {
		return b.Encode(), nil
	}
	return c.CodecV2.Marshal(v)
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if b, ok := v.(Bare); ok {
		return b.Decode(data)
	}
	return c.CodecV2.Unmarshal(data, v)
}
