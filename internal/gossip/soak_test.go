//go:build soak

package gossip

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"github.com/homeiac/homelab/internal/rpc"
)

// Nobody may be called silent because the machines are busy: five hosts and a
// controller beside twice as many burning processes as there are processors.
// HOMELAB_SOAK is how long, an hour unless said.
func TestSoakGossip(t *testing.T) {
	length := time.Hour
	if s := os.Getenv("HOMELAB_SOAK"); s != "" {
		var err error
		if length, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	n := newNetwork(t)
	all := []*process{n.start(10, rpc.RoleController, "controller-1")}
	for i := 1; i <= 5; i++ {
		all = append(all, n.start(i, rpc.RoleAgent, fmt.Sprintf("pve%d", i)))
	}
	since := make(map[string]time.Time)
	for _, p := range all {
		for _, peer := range p.eventually(t, "all", alive(5)) {
			since[p.cfg.Name+peer.Role+peer.Name] = peer.Since
		}
	}
	for range 2 * runtime.NumCPU() {
		burner := exec.CommandContext(t.Context(), "/bin/sh", "-c", "while :; do :; done")
		if err := burner.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = burner.Process.Kill(); _ = burner.Wait() }()
	}
	time.Sleep(length)
	alarms := 0
	for _, p := range all {
		for _, peer := range p.Peers() {
			if since[p.cfg.Name+peer.Role+peer.Name] != peer.Since {
				alarms++
				t.Errorf("%s took %s for silent", p.cfg.Name, peer.Name)
			}
		}
	}
	fmt.Printf("gossip: false alarms in %s under CPU load: %d (bound 0)\n", length, alarms)
}
