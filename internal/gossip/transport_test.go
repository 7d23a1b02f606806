package gossip

import (
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

// listen is a transport of that host's.
func (n *network) listen(host int) *transport {
	n.t.Helper()
	ring, err := keyring(n.keys)
	if err != nil {
		n.t.Fatal(err)
	}
	at := netip.AddrPortFrom(netip.MustParseAddr(n.ip(host)), DefaultPort)
	t, err := listen(n.t.Context(), at, ring, newLogBridge(slogTo(io.Discard)))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = t.Shutdown() })
	return t
}

func TestAPacketHasMemoryOfItsOwnAndNoMoreThanItNeeds(t *testing.T) {
	n := newNetwork(t)
	one, two := n.listen(1), n.listen(2)
	address := two.udp.LocalAddr().String()
	var got []*memberlist.Packet
	for _, text := range []string{"first", "other", strings.Repeat("x", 60000)} {
		if _, err := one.WriteToAddress([]byte(text), memberlist.Address{Addr: address}); err != nil {
			t.Fatal(err)
		}
		got = append(got, <-two.PacketCh())
	}
	if string(got[0].Buf) != "first" || string(got[1].Buf) != "other" || len(got[2].Buf) != 60000 {
		t.Errorf("%q, %q, %d bytes", got[0].Buf, got[1].Buf, len(got[2].Buf))
	}
	if held := cap(got[0].Buf); held > 64 {
		t.Errorf("%d bytes are held for %q", held, got[0].Buf)
	}
	if from := got[0].From.String(); from != one.udp.LocalAddr().String() {
		t.Errorf("from %s", from)
	}
}

func TestATransportThatIsShutLetsNobodyWaitAndFreesItsPort(t *testing.T) {
	tr := newNetwork(t).listen(1)
	address := tr.udp.LocalAddr().String()
	// Somebody sends, and nobody reads.
	conn, err := tr.DialTimeout(address, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := tr.WriteTo([]byte("packet"), address); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := tr.Shutdown(); err != nil {
			t.Fatal(err)
		}
	}
	again, err := listen(t.Context(), netip.MustParseAddrPort(address), tr.keys, tr.log)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = again.Shutdown() }()
	if _, err := listen(t.Context(), netip.MustParseAddrPort(address), tr.keys, tr.log); err == nil {
		t.Error("two listen on one port")
	}
}
