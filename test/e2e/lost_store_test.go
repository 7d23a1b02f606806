//go:build e2e

package e2e

import (
	"os"
	"strings"
	"sync"
	"testing"
)

// loseStore kills the controller, removes all that it remembers, and starts it.
func (l *lab) loseStore() {
	l.t.Helper()
	l.fault("controller-kill", "controller-1")
	store := l.path("controllers/controller-1/state/store")
	if _, err := os.Stat(store); err != nil {
		l.t.Fatal(err)
	}
	if err := os.RemoveAll(store); err != nil {
		l.t.Fatal(err)
	}
	l.fault("controller-start", "controller-1")
}

// What a controller remembered is lost: all guests are still ours, by their marks,
// and nothing is changed.
func TestALostStoreCostsNothing(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{})
	spec := l.impatient(names(3)...)
	l.mustApply(spec, 0)
	for _, guest := range names(3) {
		l.writeData(guest)
	}
	all := l.still(names(3)...)
	l.loseStore()
	l.mustChangeNothing(spec)
	l.mustBeHealthy(names(3)...)
	l.mustBeStill(all, names(3)...)
	l.mustBeClean(names(3)...)
	before := l.portrait("k3s-2")
	l.fault("guest-crash", "k3s-2")
	l.mustApply(spec, 0)
	before.mustBeMadeAnew(l, "k3s-2", false)
	l.mustHoldData(names(3)...)
	l.mustBeHealthy(names(3)...)
	l.mustBeClean(names(3)...)
	l.mustChangeNothing(spec)
}

// A recreation that was cut off with the data in the holder VM, then the guest
// destroyed by hand, then the store lost: the holder is found by its mark, and the
// guest is made again with its data.
func TestAHolderVMIsFoundByItsMark(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{})
	spec := l.edited(l.impatient(names(3)...), oneServer)
	l.mustApply(spec, 0)
	for _, guest := range names(3) {
		l.writeData(guest)
	}
	before, rest := l.portrait("k3s-2"), l.still("k3s-1", "k3s-3")
	l.qm("pve2", "stop", before.vmid)
	pid, ok := l.controllerPID("controller-1")
	shoot := l.killer(pid, ok)
	var once sync.Once
	l.startApply(l.config, spec, func(e eventDoc) {
		if e.Kind == "step-done" && strings.HasPrefix(e.Step, "detach/") {
			once.Do(shoot)
		}
	}).wait()
	l.qm("pve2", "destroy", before.vmid, "--purge")
	l.confOf("hl-holder-k3s-2")
	l.loseStore()
	l.convergeWithin(spec, commandLimit, "the store was lost and k3s-2 destroyed by hand")
	if now := l.portrait("k3s-2"); now.vmid != before.vmid || now.host != before.host {
		t.Errorf("k3s-2 was made again as %+v, was %+v", now, before)
	}
	l.mustHoldData(names(3)...)
	l.mustHoldNoHolder()
	l.mustBeStill(rest, "k3s-1", "k3s-3")
	l.mustBeHealthy(names(3)...)
	l.mustBeClean("k3s-1")
	l.mustChangeNothing(spec)
}
