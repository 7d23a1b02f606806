//go:build e2e

package e2e

import (
	"strings"
	"testing"
	"time"
)

// With the k3s API mute nobody knows who is a member, so nothing is changed, not
// even about a guest that is down. With two servers of three down the cluster has no
// quorum and the brake is on: nothing is destroyed, and started they are well again.
func TestNothingIsDestroyedWhileTheClusterCannotBearIt(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{})
	spec := l.hasty(l.spec)
	l.mustApply(spec, 0)
	l.mustBeHealthy(names(3)...)
	members := l.members()

	for _, name := range names(3) {
		l.fault("k3s-silent", name)
	}
	a := l.mustApply(spec, 3)
	l.mustTouchNothing(a)
	l.mustTell(a, "membership unknown")
	if r := l.hlctl("k3s", "members"); r.exit != 3 {
		t.Errorf("members that cannot be asked are exit 3\n%s", r)
	}
	if r := l.hlctl("k3s", "status"); r.exit != 3 || !strings.Contains(r.stdout+r.stderr, "did not answer") {
		t.Errorf("a silent k3s API is exit 3 and is said\n%s", r)
	}
	l.qm("pve3", "stop", "203")
	before := l.keep("203")
	a = l.mustApply(spec, 3)
	l.mustTouchNothing(a)
	if text := a.notes("skipped", "k3s-3"); !strings.Contains(text, "stopped") || !strings.Contains(text, "membership unknown: k3s API does not answer") {
		t.Errorf("k3s-3 is left alone since its membership is unknown: %q\n%s", text, a)
	}
	l.mustBeAsBefore(before, "with the k3s API silent", "203")
	for _, name := range names(3) {
		l.fault("k3s-silent", name, "off")
	}
	l.mustDo(0, "guests", "start", "k3s-3")
	l.awaitHealthy(20*time.Second, names(3)...)
	l.mustChangeNothing(spec)

	l.qm("pve2", "stop", "202")
	l.qm("pve3", "stop", "203")
	before = l.keep("202", "203")
	a = l.mustApply(spec, 3)
	l.mustTouchNothing(a)
	for _, name := range []string{"k3s-2", "k3s-3"} {
		text := a.notes("refused", name)
		for _, w := range []string{"stopped", "2 of 3 guests are unwell (k3s-2, k3s-3), more than 1 (the brake)", "hlctl guests start " + name} {
			if !strings.Contains(text, w) {
				t.Errorf("%s: the refusal does not say %q: %s\n%s", name, w, text, a)
			}
		}
		if !strings.Contains(text, "no quorum: 3 voters, 1 answering, 2 needed") {
			t.Errorf("%s: the refusal lacks the arithmetic of the quorum: %s\n%s", name, text, a)
		}
	}
	// Naming them does not help: neither rule asks whether one is named.
	l.mustTouchNothing(l.mustDo(3, "guests", "recreate", "k3s-2", "--destroy", "k3s-2"))
	l.mustBeAsBefore(before, "with two servers of three down", "202", "203")
	for _, name := range []string{"k3s-2", "k3s-3"} {
		l.mustDo(0, "guests", "start", name)
	}
	l.awaitHealthy(30*time.Second, names(3)...)
	l.mustBeClean(names(3)...)
	for i, m := range l.members() {
		if m != members[i] {
			t.Errorf("member %+v was %+v", m, members[i])
		}
	}
	l.mustChangeNothing(spec)
}
