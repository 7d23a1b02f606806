//go:build bench

package gossip

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/homeiac/homelab/internal/rpc"
)

// The gossip's share of "host off -> shown silent": five hosts and a
// controller, one host loses power, until the last of the others knows.
func TestBenchDetection(t *testing.T) {
	const rounds = 20
	n := newNetwork(t)
	all := []*process{n.start(10, rpc.RoleController, "controller-1")}
	for i := 1; i <= 5; i++ {
		all = append(all, n.start(i, rpc.RoleAgent, fmt.Sprintf("pve%d", i)))
	}
	for _, p := range all {
		p.eventually(t, "all", alive(5))
	}
	var took []time.Duration
	for range rounds {
		off := all[5]
		start := time.Now()
		off.cable.cut.Store(true)
		for _, p := range all[:5] {
			p.eventually(t, "pve5 silent", dead("pve5"))
		}
		took = append(took, time.Since(start))
		off.end(t)
		all[5] = n.start(5, rpc.RoleAgent, "pve5")
		for _, p := range all {
			p.eventually(t, "all again", alive(5))
		}
	}
	slices.Sort(took)
	median, worst := took[rounds/2], took[rounds-1]
	fmt.Printf("gossip: host off -> known to all, 5 hosts, %d times: median %.1f s (bound 3), worst %.1f s (bound 5)\n",
		rounds, median.Seconds(), worst.Seconds())
	if median > 3*time.Second || worst > 5*time.Second {
		t.Error("slower than the bound")
	}
}
