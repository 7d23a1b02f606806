//go:build e2e && bench

package e2e

import (
	"fmt"
	"testing"
	"time"
)

// addLimit is how long hosts add may take on a host.
const addLimit = 60 * time.Second

// The whole of hosts add, on machines with a real systemd, sshd and dpkg; their network
// is this machine's memory.
func TestBenchHostsAdd(t *testing.T) {
	s := newSite(t, 2)
	pack := s.pack("1.0")
	s.mustHlctl("init", "homelab", "--controller", "c1@"+s.machines[0].address, "--out", s.path("home", "homelab.yaml"))
	for i, what := range []string{"of the first host, with the controller", "of another host"} {
		began := time.Now()
		s.add(s.machines[i], pack...)
		took, word := time.Since(began), "ok"
		if took >= addLimit {
			word = "MISSED"
		}
		fmt.Printf("%-6s  hosts add %s: %.1f s (under %.0f s)\n", word, what, took.Seconds(), addLimit.Seconds())
	}
}
