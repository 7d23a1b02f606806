package gossip

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"testing"

	"github.com/hashicorp/memberlist"

	"github.com/homeiac/homelab/internal/rpc"
)

// FuzzMeta: whoever has the key chooses a peer's name and what it tells of itself.
// What comes of it is nobody, or somebody that a certificate could be of, with an
// address that can be dialled or none.
func FuzzMeta(f *testing.F) {
	good, err := meta{RPC: "10.0.0.7:8400", Version: "v1.2.3", Started: 1795374472000}.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add("agent/pve1", good, []byte{10, 0, 0, 7})
	f.Add("agent/../pve1", []byte(`{"a":"unix:///run/x.sock"}`), []byte{})
	f.Add("root/x", []byte(`{"a":"10.0.0.7:0","s":-9223372036854775808,"l":true}`), []byte{1})
	f.Add("controller/c\x1b[2J", []byte(`{"a":"[fe80::1%eth0]:1","v":"\u001b[2J"}`), []byte{0xfe})
	f.Add("agent", []byte(`{`), []byte(nil))
	f.Fuzz(func(t *testing.T, name string, told, address []byte) {
		p := newPeers("controller/self", slog.New(slog.DiscardHandler))
		n := &memberlist.Node{Name: name, Meta: told, Addr: net.IP(address), Port: 7946}
		p.NotifyJoin(n)
		p.NotifyUpdate(n)
		p.NotifyConflict(n, n)
		p.NotifyLeave(n)
		for _, peer := range p.list() {
			if err := (rpc.Identity{Fleet: "home", Role: peer.Role, Name: peer.Name}).Check(); err != nil {
				t.Fatalf("%+v: %v", peer, err)
			}
			if peer.Address != "" {
				if _, err := netip.ParseAddrPort(peer.Address); err != nil {
					t.Fatal(err)
				}
			}
			for _, r := range peer.Version {
				if r < ' ' || r > '~' {
					t.Fatalf("version %q", peer.Version)
				}
			}
		}
	})
}

func TestOnlySoManyPeersAreRemembered(t *testing.T) {
	p := newPeers("controller/self", slog.New(slog.DiscardHandler))
	for i := range maxPeers + 100 {
		p.NotifyJoin(&memberlist.Node{Name: fmt.Sprintf("agent/pve%d", i), Meta: []byte(`{}`)})
	}
	if n := len(p.list()); n != maxPeers {
		t.Errorf("%d", n)
	}
}
