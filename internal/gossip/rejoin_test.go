package gossip

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTheSilentAreAskedEverMoreSeldom(t *testing.T) {
	addr := netip.MustParseAddrPort("127.0.0.9:7946")
	attempts := make(map[netip.AddrPort]*attempt)
	now := time.Unix(0, 0)
	var pauses []time.Duration
	last := now
	for range 8 {
		for len(due([]netip.AddrPort{addr}, attempts, now)) == 0 {
			now = now.Add(rejoinTick)
		}
		pauses = append(pauses, now.Sub(last))
		last = now
		if again := due([]netip.AddrPort{addr}, attempts, now.Add(time.Hour)); len(again) != 0 {
			t.Fatal("asked twice at a time")
		}
		attempts[addr].ended(now)
	}
	s := time.Second
	want := []time.Duration{0, s / 2, s, 2 * s, 4 * s, 8 * s, 10 * s, 10 * s}
	if diff := cmp.Diff(want, pauses); diff != "" {
		t.Error(diff)
	}
	due(nil, attempts, now)
	if len(attempts) != 0 {
		t.Error("an address that is alive again is not forgotten")
	}
}
