package agent

import (
	"encoding/binary"
	"sync"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
)

// dataField is the number of PullResponse.data.
const dataField = 2

// piece is a PullResponse with data, whose bytes are not copied on their way.
type piece struct {
	data mem.Buffer  // to be sent
	in   *mem.Reader // of what came
}

// Encode gives what the generated code would.
func (p *piece) Encode() mem.BufferSlice {
	head := protowire.AppendTag(nil, dataField, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(p.data.Len())) //nolint:gosec // a length
	return mem.BufferSlice{mem.SliceBuffer(head), p.data}
}

// Decode takes any PullResponse.
func (p *piece) Decode(message mem.BufferSlice) error {
	in := message.Reader()
	tag, err := binary.ReadUvarint(in)
	n, err2 := binary.ReadUvarint(in)
	if err == nil && err2 == nil && tag == protowire.EncodeTag(dataField, protowire.BytesType) && n == uint64(in.Remaining()) { //nolint:gosec // a length
		p.in = in
		return nil
	}
	_ = in.Close()
	m := new(agentv1.PullResponse)
	if err := proto.Unmarshal(message.Materialize(), m); err != nil {
		return err
	}
	p.in = mem.BufferSlice{mem.SliceBuffer(m.GetData())}.Reader()
	return nil
}

// pieces are buffers of pullBytes. gRPC's own pool has no such size and clears
// each before it gives it.
var pieces mem.BufferPool = &piecePool{sync.Pool{New: func() any {
	b := make([]byte, pullBytes)
	return &b
}}}

type piecePool struct{ free sync.Pool }

func (p *piecePool) Get(n int) *[]byte {
	b, _ := p.free.Get().(*[]byte)
	*b = (*b)[:n]
	return b
}

func (p *piecePool) Put(b *[]byte) { p.free.Put(b) }
