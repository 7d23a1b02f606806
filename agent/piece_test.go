package agent

import (
	"bytes"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
)

func encoded(t *testing.T, m *agentv1.PullResponse) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestAPieceIsAPullResponse on the wire, both ways, however it was cut on its way.
func TestAPieceIsAPullResponse(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789abcdef"), 100)
	message := encoded(t, &agentv1.PullResponse{Part: &agentv1.PullResponse_Data{Data: data}})
	if got := (&piece{data: mem.SliceBuffer(data)}).Encode().Materialize(); !bytes.Equal(got, message) {
		t.Errorf("encoded as %.20q, should be %.20q", got, message)
	}
	for cut := range len(message) {
		var p piece
		if err := p.Decode(mem.BufferSlice{mem.SliceBuffer(message[:cut]), mem.SliceBuffer(message[cut:])}); err != nil {
			t.Fatal(err)
		}
		if got, _ := io.ReadAll(p.in); !bytes.Equal(got, data) {
			t.Fatalf("cut at %d: %s", cut, cmp.Diff(data, got))
		}
	}
}

// TestAPieceTakesWhatAnotherAgentSends in another form, or nothing.
func TestAPieceTakesWhatAnotherAgentSends(t *testing.T) {
	data := encoded(t, &agentv1.PullResponse{Part: &agentv1.PullResponse_Data{Data: []byte("abc")}})
	newer := protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1)
	for name, c := range map[string]struct {
		message []byte
		want    string
	}{
		"a field that it does not know, before": {append(bytes.Clone(newer), data...), "abc"},
		"and after":                             {append(bytes.Clone(data), newer...), "abc"},
		"a second head":                         {encoded(t, &agentv1.PullResponse{Part: &agentv1.PullResponse_Head{Head: &agentv1.PullHead{Bytes: 3}}}), ""},
		"nothing":                               {nil, ""},
		"no data":                               {encoded(t, &agentv1.PullResponse{Part: &agentv1.PullResponse_Data{}}), ""},
	} {
		var p piece
		if err := p.Decode(mem.BufferSlice{mem.SliceBuffer(c.message)}); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got, err := io.ReadAll(p.in); string(got) != c.want || err != nil {
			t.Errorf("%s: %q %v", name, got, err)
		}
	}
	var p piece
	if err := p.Decode(mem.BufferSlice{mem.SliceBuffer(data[:len(data)-1])}); err == nil {
		t.Error("half a message is taken")
	}
}
