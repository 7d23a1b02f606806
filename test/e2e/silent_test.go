//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// mustTimeOut dials and wants silence: no connection, and no refusal either.
func (l *lab) mustTimeOut(address string) {
	l.t.Helper()
	conn, err := net.DialTimeout("tcp", address, 700*time.Millisecond)
	if err == nil {
		_ = conn.Close()
		l.t.Errorf("%s of a host that is off takes connections", address)
		return
	}
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() || errors.Is(err, syscall.ECONNREFUSED) {
		l.t.Errorf("%s of a host that is off: %v; want a timeout", address, err)
	}
}

// skippedAsSilent wants an apply to name a silent host with since when.
func (l *lab) skippedAsSilent(a applied, guest string) {
	l.t.Helper()
	if text := a.notes("skipped", guest); !strings.Contains(text, "silent since") {
		l.t.Errorf("%s is not said to be skipped with since when: %q\n%s", guest, text, a)
	}
}

func TestAHostThatIsOffBeforeTheFirstApplyIsMadeLater(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{})
	spec := l.edited(l.spec, oneServer)
	l.fault("host-off", "pve3")
	h := l.awaitState("pve3", "silent", 10*time.Second)
	if h.Since == nil {
		t.Errorf("silent since when? %+v", h)
	}
	l.mustTimeOut(l.net + ".3:8400")
	l.mustTimeOut(l.net + ".3:8006")
	if p, exit := l.plan(spec); exit != 2 {
		t.Errorf("plan with something to do and something skipped: exit %d\n%+v", exit, p)
	}
	a := l.mustApply(spec, 3)
	l.skippedAsSilent(a, "k3s-3")
	l.mustBeHealthy("k3s-1", "k3s-2")
	if again := l.mustApply(spec, 3); again.summary.MutatingCalls != 0 {
		t.Errorf("the same again changed something\n%s", again)
	}
	l.fault("host-on", "pve3", "20m", "0s")
	l.awaitState("pve3", "online", 20*time.Second)
	l.mustApply(spec, 0)
	l.mustBeHealthy(names(3)...)
	l.mustBeClean("k3s-1")
	l.mustChangeNothing(spec)
}

func TestTheFirstServersHostGoesOffAndComesBack(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{})
	l.mustApply(l.spec, 0)
	uuids := map[string]string{}
	for name, g := range l.guests() {
		uuids[name] = g.UUID
	}
	l.fault("host-off", "pve1")
	l.mustTimeOut(l.net + ".1:8400")
	l.mustTimeOut(l.net + ".101:2222")
	l.mustTimeOut(l.net + ".101:6443")
	if h := l.awaitState("pve1", "silent", 10*time.Second); h.Since == nil {
		t.Errorf("silent since when? %+v", h)
	}
	a := l.mustApply(l.spec, 3)
	l.skippedAsSilent(a, "k3s-1")
	if a.summary.MutatingCalls != 0 || a.summary.Unchanged != 2 {
		t.Errorf("the others are well and stay as they are\n%s", a)
	}
	if m := l.members(); len(m) != 3 {
		t.Errorf("a silent server stays a member: %+v", m)
	}
	l.fault("host-on", "pve1", "20m", "0s")
	l.awaitState("pve1", "online", 20*time.Second)
	l.completesWhatCameBack(l.spec)
	l.mustBeHealthy(names(3)...)
	l.mustBeClean(names(3)...)
	for name, g := range l.guests() {
		if g.UUID != uuids[name] {
			t.Errorf("%s is another VM than before", name)
		}
	}
	l.mustChangeNothing(l.spec)
}

// A host that falls silent in the middle of an apply takes only its own guest
// along.
func TestAHostThatGoesOffInTheMiddleOfAnApply(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{cloudInit: 3 * time.Second})
	spec := l.edited(l.spec, oneServer)
	hit := make(chan struct{})
	var once sync.Once
	a := l.startApply(l.config, spec, func(e eventDoc) {
		if e.Step == "boot/pve3/k3s-3" && strings.Contains(e.Text, "cloud-init is running") {
			once.Do(func() { close(hit) })
		}
	})
	select {
	case <-hit:
		l.fault("host-off", "pve3")
	case <-a.done:
		t.Fatalf("it ended before k3s-3 booted\n%s", a.wait())
	}
	out := a.wait()
	if out.exit != 3 || !slices.ContainsFunc(out.events, func(e eventDoc) bool {
		return e.Kind == "step-failed" && e.Step == "boot/pve3/k3s-3"
	}) {
		t.Errorf("partial, since pve3 went off\n%s", out)
	}
	l.mustBeHealthy("k3s-1", "k3s-2")
	l.fault("host-on", "pve3", "20m", "0s")
	l.awaitState("pve3", "online", 20*time.Second)
	l.converge(spec)
	l.mustBeHealthy(names(3)...)
	l.mustBeClean("k3s-1")
}

func TestAnAgentThatIsGoneIsToldFromAHostThatIsSilent(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{})
	spec := l.edited(l.spec, oneServer)
	l.fault("agent-kill", "pve2")
	h := l.awaitState("pve2", "agent-gone", 10*time.Second)
	if h.Since == nil {
		t.Errorf("gone since when? %+v", h)
	}
	a := l.mustApply(spec, 3)
	if text := a.notes("skipped", "k3s-2"); !strings.Contains(text, "agent gone since") {
		t.Errorf("k3s-2 is skipped since its agent is gone: %q\n%s", text, a)
	}
	l.mustBeHealthy("k3s-1", "k3s-3")
	l.fault("agent-start", "pve2")
	if h := l.awaitState("pve2", "online", 15*time.Second); h.Since != nil {
		t.Errorf("online has no since: %+v", h)
	}
	l.mustApply(spec, 0)
	l.mustBeHealthy(names(3)...)
}

// completesWhatCameBack applies until all is well. Guests start with their host
// by themselves, and until their kubelet has spoken again an apply may leave
// them as not known; it must not fail at anything.
func (l *lab) completesWhatCameBack(spec string) {
	l.t.Helper()
	l.eventually(30*time.Second, "apply completes what came back", func() (bool, string) {
		a := l.apply(spec)
		if a.summary == nil || a.summary.Failed+a.summary.Refused > 0 {
			l.t.Fatalf("something failed\n%s", a)
		}
		return a.exit == 0, a.String()
	})
}

// Any host may go off after the first apply: a server's, an agent's.
func TestAnyHostGoesOffAndComesBack(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{hosts: 5})
	l.mustApply(l.spec, 0)
	for _, i := range []int{2, 5} {
		host, guest := fmt.Sprintf("pve%d", i), fmt.Sprintf("k3s-%d", i)
		l.fault("host-off", host)
		l.awaitState(host, "silent", 10*time.Second)
		a := l.mustApply(l.spec, 3)
		l.skippedAsSilent(a, guest)
		if a.summary.MutatingCalls != 0 || a.summary.Unchanged != 4 {
			t.Errorf("with %s off the others are well and stay as they are\n%s", host, a)
		}
		l.fault("host-on", host, "20m", "0s")
		l.awaitState(host, "online", 20*time.Second)
		l.completesWhatCameBack(l.spec)
		l.mustBeHealthy(names(5)...)
	}
	l.mustBeClean(names(3)...)
	l.mustChangeNothing(l.spec)
}

// converge applies until everything is done, a bounded number of times.
func (l *lab) converge(spec string) applied {
	l.t.Helper()
	var a applied
	for range 6 {
		if a = l.apply(spec); a.exit == 0 {
			return a
		}
		time.Sleep(500 * time.Millisecond)
	}
	l.t.Fatalf("it does not converge\n%s", a)
	return a
}
