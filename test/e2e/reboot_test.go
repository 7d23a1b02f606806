//go:build e2e

package e2e

import (
	"strings"
	"testing"
	"time"
)

// A host that reboots takes its time until its guests come up by themselves. An
// apply in between makes nobody anew.
func TestAHostThatRebootsGetsItsGuestsBackAsTheyWere(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{})
	spec := l.impatient("k3s-2")
	l.mustApply(spec, 0)
	l.writeData("k3s-2")
	cluster := l.openEtcd("k3s-1")
	through := cluster.through(1)
	before, uid, all := l.portrait("k3s-2"), cluster.nodeUIDs(through)["k3s-2"], l.still(names(3)...)
	l.fault("host-off", "pve2")
	l.awaitState("pve2", "silent", 10*time.Second)
	a := l.mustApply(spec, 3)
	l.skippedAsSilent(a, "k3s-2")
	if a.summary.MutatingCalls != 0 {
		t.Errorf("while pve2 is off something was changed\n%s", a)
	}
	l.fault("host-on", "pve2", "0s", "15s")
	l.awaitState("pve2", "online", 20*time.Second)
	if out := l.qm("pve2", "status", before.vmid); strings.TrimSpace(out) != "status: stopped" {
		t.Fatalf("the guest came up with its host: %s", out)
	}
	between := l.apply(spec)
	l.completesWhatCameBack(spec)
	for _, a := range []applied{a, between} {
		for _, s := range a.steps() {
			if verb, _, _ := strings.Cut(s, "/"); verb != "start" && verb != "boot" && verb != "join" {
				t.Errorf("after a reboot %s was carried out\n%s", s, a)
			}
		}
	}
	for _, c := range l.calls() {
		if !c.byHand() && len(c.Argv) > 1 && c.Argv[1] == "destroy" {
			t.Errorf("%s was called: %q", c.Host, c.Argv)
		}
	}
	l.mustBeHealthy(names(3)...)
	l.mustBeClean(names(3)...)
	l.mustBeStill(all, names(3)...)
	if now := cluster.nodeUIDs(through)["k3s-2"]; now != uid || l.portrait("k3s-2").generation != before.generation {
		t.Errorf("k3s-2 was made anew: Node %s, was %s", now, uid)
	}
	l.mustChangeNothing(spec)
}
