//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// Data disks on each kind of storage, moved to a holder VM and back while their
// guest is made anew: what was written on them is there afterwards.
func TestAGuestIsMadeAnewWithItsData(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{})
	spec := l.impatient(names(3)...)
	l.mustApply(spec, 0)
	for _, guest := range names(3) {
		l.writeData(guest)
	}
	for i, guest := range names(3) {
		before, rest := l.portrait(guest), l.still(l.others(guest)...)
		l.fault([]string{"guest-stop", "guest-crash", "guest-pause"}[i], guest)
		l.agreeOnALeader(l.others(guest)...)
		a := l.mustApply(spec, 0)
		for _, verb := range []string{"detach", "destroy", "create", "attach"} {
			if !strings.Contains(strings.Join(a.steps(), " "), fmt.Sprintf("%s/%s/%s", verb, before.host, guest)) {
				t.Errorf("%s was made anew without %s: %q", guest, verb, a.steps())
			}
		}
		before.mustBeMadeAnew(l, guest, false)
		l.mustHoldData(names(3)...)
		l.mustHoldNoHolder()
		l.mustBeStill(rest, l.others(guest)...)
		l.mustBeHealthy(names(3)...)
		l.mustBeClean(names(3)...)
		l.mustChangeNothing(spec)
	}
}

// With the storage of the data disk away nothing of the guest is touched; with
// the storage back it goes on.
func TestWithoutTheStorageOfItsDataNothingIsDestroyed(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{})
	// The data of k3s-2 is on another storage than its system.
	spec := l.edited(l.impatient(), func(d doc) {
		oneServer(d)
		at(d, "hosts", "pve2", "storage")["bulk"] = "local"
		at(d, "guests", "k3s-2")["dataDisks"] = []any{doc{"slot": "scsi1", "storage": "bulk", "size": "1GiB"}}
	})
	l.mustApply(spec, 0)
	l.writeData("k3s-2")
	before := l.portrait("k3s-2")
	l.qm("pve2", "stop", before.vmid)
	all := l.still(names(3)...)
	l.fault("storage-off", "pve2/local-zfs")
	l.refusedForStorage(spec, "local-zfs")
	l.fault("storage-off", "pve2/local-zfs", "off")
	l.mustBeStill(all, names(3)...)
	l.fault("storage-off", "pve2/local")
	l.refusedForStorage(spec, "local")
	l.fault("storage-off", "pve2/local", "off")
	l.mustBeStill(all, names(3)...)
	l.eventually(20*time.Second, "the storage is seen again", func() (bool, string) {
		p, exit := l.plan(spec)
		return exit == 2, fmt.Sprintf("%+v", p)
	})
	l.mustApply(spec, 0)
	before.mustBeMadeAnew(l, "k3s-2", false)
	l.mustHoldData("k3s-2")
	l.mustHoldNoHolder()
	l.mustBeHealthy(names(3)...)
	l.mustBeClean("k3s-1")
	l.mustChangeNothing(spec)
}

// refusedForStorage wants an apply to leave k3s-2 alone since its storage is away.
func (l *lab) refusedForStorage(spec, storage string) {
	l.t.Helper()
	calls := len(l.calls())
	a := l.mustApply(spec, 3)
	text := a.notes("refused", "k3s-2") + a.notes("skipped", "k3s-2")
	if !strings.Contains(text, storage) || !strings.Contains(text, "stopped") {
		l.t.Errorf("with %s away k3s-2 is left alone for: %q\n%s", storage, text, a)
	}
	if a.summary.MutatingCalls != 0 || len(a.steps()) != 0 {
		l.t.Errorf("with %s away something was done: %q\n%s", storage, a.steps(), a)
	}
	for _, c := range l.calls()[calls:] {
		if !c.byHand() && c.mutating() {
			l.t.Errorf("%s was called: %q", c.Host, c.Argv)
		}
	}
}

// recreation are the steps in which a stopped agent with a data disk is made anew.
var recreation = []string{"save", "stop", "leave", "detach", "destroy", "create", "attach", "start", "boot", "join"}

// boundaries are those between the steps of recreations: all of an agent's, and of
// a server's those that are about etcd.
var boundaries = []struct {
	name, kind string
	servers    bool
	verbs      []string
}{
	{"an agent's steps begin", "step-started", false, recreation},
	{"an agent's steps end", "step-done", false, recreation},
	{"a server's steps begin", "step-started", true, []string{"snapshot", "stop", "leave", "detach", "join"}},
}

// Killed at each boundary between the steps of a recreation, the controller or the
// agent that carries out the step: the next applies finish it, with all data.
func TestKilledAtAnyStepBoundaryOfARecreation(t *testing.T) {
	t.Parallel()
	for _, victim := range []string{"controller", "agent"} {
		for _, b := range boundaries {
			t.Run(victim+" when "+b.name, func(t *testing.T) {
				t.Parallel()
				l := newLab(t, options{})
				spec, servers, guests := l.impatient(names(3)...), names(3), names(3)
				if !b.servers {
					spec, servers, guests = l.edited(spec, oneServer), names(1), names(3)[1:]
				}
				l.mustApply(spec, 0)
				for _, guest := range names(3) {
					l.writeData(guest)
				}
				for i, verb := range b.verbs {
					l.killedInRecreation(spec, victim, verb, b.kind, guests[i%len(guests)])
					l.mustBeClean(servers...)
					if t.Failed() {
						t.Fatalf("after %s was killed at %s of %s", victim, b.kind, verb)
					}
				}
			})
		}
	}
}

// killedInRecreation stops the guest, kills the victim at the boundary while it is
// made anew, and wants the applies after it to finish that.
func (l *lab) killedInRecreation(spec, victim, verb, kind, guest string) {
	l.t.Helper()
	before, rest := l.portrait(guest), l.still(l.others(guest)...)
	l.qm(before.host, "stop", before.vmid)
	shoot := map[string]func(){}
	for _, host := range l.hostNames() {
		if victim == "agent" {
			shoot[host] = l.killer(l.agentPID(host))
		} else {
			shoot[host] = l.killer(l.controllerPID("controller-1"))
		}
	}
	began := time.Now()
	a := l.killWhen(spec, kind+" of "+verb+" of "+guest, func(e eventDoc) bool {
		return e.Kind == kind && strings.HasPrefix(e.Step, verb+"/") && strings.HasSuffix(e.Step, "/"+guest)
	}, func(*applying) func(eventDoc) {
		return func(e eventDoc) { shoot[strings.Split(e.Step, "/")[1]]() }
	})
	tries := l.convergeWithin(spec, 60*time.Second, victim+" killed at "+kind+" of "+verb)
	l.t.Logf("%s killed at %s of %s of %s: that apply ended with %d after %.1f s; all was done by %d more after %.1f s",
		victim, kind, verb, guest, a.exit, a.took.Seconds(), tries, time.Since(began).Seconds())
	before.mustBeMadeAnew(l, guest, true)
	l.mustHoldData(names(3)...)
	l.mustHoldNoHolder()
	l.mustBeStill(rest, l.others(guest)...)
	l.mustBeHealthy(names(3)...)
	l.mustChangeNothing(spec)
}
