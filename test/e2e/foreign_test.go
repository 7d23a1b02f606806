//go:build e2e

package e2e

import (
	"fmt"
	"testing"
)

// A VM that somebody else made at a VMID that was ours survives everything that is
// asked for by the name of the guest that was there.
func TestTheVMOfSomebodyElseAtAVMIDThatWasOursSurvives(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{})
	spec := l.hasty(l.spec)
	l.mustApply(spec, 0)
	l.mustBeHealthy(names(3)...)
	const host, vmid, guest = "pve3", "203", "k3s-3"
	l.qm(host, "stop", vmid)
	l.qm(host, "destroy", vmid)
	// The name too: somebody makes a VM in place of the one that was there.
	l.qm(host, "create", vmid, "--name", guest, "--memory", "512", "--scsi0", "local-lvm:1", "--ide2", "none,media=cdrom")
	before := l.keep(vmid)
	for _, args := range [][]string{
		{"guests", "delete", guest, "--destroy", guest},
		{"guests", "recreate", guest, "--destroy", guest},
		{"guests", "stop", guest},
		{"orphans", "--delete", "--destroy", guest},
		{"k3s", "rejoin", guest},
		{"k3s", "remove", guest},
	} {
		a := l.byName(args...)
		if args[0] == "orphans" {
			if a.exit != 0 {
				t.Errorf("hlctl %q: exit %d\n%s", args, a.exit, a)
			}
		} else if a.exit != 3 && a.exit != 1 {
			t.Errorf("hlctl %q is refused, exit %d\n%s", args, a.exit, a)
		} else {
			l.mustTell(a, "VM "+vmid)
		}
		l.mustBeAsBefore(before, fmt.Sprint(args), vmid)
	}
	r := l.hlctl("apply", "-f", spec, "--yes", "--destroy", guest, "-o", "json")
	if r.exit != 3 {
		t.Errorf("apply with that guest named: exit 3 expected\n%s", r)
	}
	l.mustBeAsBefore(before, "apply --destroy "+guest, vmid)
	for _, call := range l.calls() {
		if call.byHand() || !call.mutating() || call.Host != host {
			continue
		}
		if verb := call.Argv[1]; verb == "destroy" || verb == "stop" || verb == "shutdown" || verb == "unlock" {
			t.Errorf("somebody called %q", call.Argv)
		}
	}
	l.mustBeHealthy("k3s-1", "k3s-2")
}
