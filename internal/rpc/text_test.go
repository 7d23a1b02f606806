package rpc_test

import (
	"context"
	"errors"
	"testing"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/homeiac/homelab/internal/rpc"
)

// TestATextThatIsNotPlainIsSentAllTheSame: what a guest or a program prints goes into
// answers; protobuf refuses the whole answer for one bad byte, and a terminal obeys
// what is no text.
func TestATextThatIsNotPlainIsSentAllTheSame(t *testing.T) {
	f := newFleet(t, "home")
	h := echoing()
	h.unary = func(context.Context, string, string) (string, error) { return "caf\xe9\r\n\ttea", nil }
	h.stream = func(_ context.Context, send func(string) error) error { return send("caf\x1b[2J") }
	conn := dial(t, rpc.Target{Address: serve(t, f.creds(rpc.RoleAgent, "pve1"), h, quiet), Credentials: f.creds(rpc.RoleAdmin, "x")})
	if got, err := call(t, conn, echo, ""); err != nil || got != "caf\uFFFD\n\ttea" {
		t.Errorf("answer %q, %v", got, err)
	}
	s, err := open(t.Context(), conn, "")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := receive(s); err != nil || got != "caf\uFFFD[2J" {
		t.Errorf("stream %q, %v", got, err)
	}
}

func TestAllTextsOfAMessageAreMadePlain(t *testing.T) {
	bad := func() *structpb.Value { return structpb.NewStringValue("\xff") }
	m := &structpb.Struct{Fields: map[string]*structpb.Value{
		"list": structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{bad(), structpb.NewNumberValue(1)}}),
		"\xfe": bad(),
	}}
	rpc.MakePlain(m)
	if got := m.GetFields()["list"].GetListValue().GetValues()[0].GetStringValue(); got != "\uFFFD" {
		t.Errorf("in a list: %q", got)
	}
	if got := m.GetFields()["\uFFFD"].GetStringValue(); got != "\uFFFD" || len(m.GetFields()) != 2 {
		t.Errorf("in a map: %q of %v", got, m)
	}
}

func TestTheTextOfAnErrorIsMadePlain(t *testing.T) {
	got := rpc.FromStatus(rpc.ToStatus(rpc.Errorf(rpc.ErrRefused, "caf\xe9")))
	if !errors.Is(got, rpc.ErrRefused) || got.Error() != "caf\uFFFD" {
		t.Errorf("got %v", got)
	}
}
