//go:build e2e

package e2e

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// moment is a point in the making of one guest: the first event that is it.
type moment struct {
	name string
	// step is the step's verb; with text, what its progress says then. A step
	// may be too fast to say it, and its end counts as well.
	step, kind, text string
}

func (m moment) is(e eventDoc, guest, host string) bool {
	id := m.step + "/" + host + "/" + guest
	switch {
	case m.step == "fetch":
		id = "fetch/" + host + "/lab"
	case m.step == "join" && guest == "k3s-1":
		id = "init/" + host + "/" + guest // the first one joins nobody
	}
	if e.Step != id {
		return false
	}
	if m.text != "" {
		return strings.Contains(e.Text, m.text) || e.Kind == "step-done"
	}
	return e.Kind == m.kind
}

// story is a part of a guest's making, as moments in their order.
type story struct {
	name    string
	options options
	// servers makes every guest a server.
	servers bool
	moments []moment
}

var stories = []story{
	{"while guests are made", options{hosts: 4, real: true}, false, []moment{
		{name: "fetch begins", step: "fetch", kind: "step-started"},
		{name: "create begins", step: "create", kind: "step-started"},
		{name: "qm create is at work", step: "create", text: "creating VM"},
		{name: "create is done", step: "create", kind: "step-done"},
	}},
	{"while guests boot and join", options{hosts: 6}, false, []moment{
		{name: "start begins", step: "start", kind: "step-started"},
		{name: "boot begins", step: "boot", kind: "step-started"},
		{name: "cloud-init runs", step: "boot", text: "cloud-init is running"},
		{name: "join begins", step: "join", kind: "step-started"},
		{name: "k3s is installed", step: "join", text: "k3s is being installed and started"},
		{name: "join is done", step: "join", kind: "step-done"},
	}},
	{"while servers join", options{hosts: 5, tick: time.Second}, true, []moment{
		{name: "cluster-init begins", step: "join", kind: "step-started"},
		{name: "join begins", step: "join", kind: "step-started"},
		{name: "the configuration is written", step: "join", text: "writing k3s's configuration"},
		{name: "the learner waits", step: "join", text: "waiting to be promoted"},
		{name: "the API is waited for", step: "join", text: "waiting for the k3s API"},
	}},
}

// victims are whom kill -9 hits; each gives the function that does it at once,
// looked up before the apply begins.
var victims = map[string]func(l *lab, host string, a *applying) func(){
	"controller": func(l *lab, _ string, _ *applying) func() { return l.killer(l.controllerPID("controller-1")) },
	"agent":      func(l *lab, host string, _ *applying) func() { return l.killer(l.agentPID(host)) },
	"driver":     func(l *lab, host string, _ *applying) func() { return l.killer(l.driverPID(host)) },
	"hlctl":      func(_ *lab, _ string, a *applying) func() { return a.kill },
}

func (l *lab) killer(pid int, ok bool) func() {
	l.t.Helper()
	if !ok {
		l.t.Fatal("it does not run, so it cannot be killed")
	}
	return func() { _ = syscall.Kill(pid, syscall.SIGKILL) } // one that ended by itself is as dead
}

// Killed at each moment in the making of a guest, everything is made all the
// same by the same command: one guest of a name, no volume left, one etcd member
// for each server. A lab goes through all moments of a story, one guest each.
func TestKilledInTheMiddleOfAnApply(t *testing.T) {
	t.Parallel()
	for victim, aim := range victims {
		for _, s := range stories {
			t.Run(victim+" "+s.name, func(t *testing.T) {
				t.Parallel()
				l := newLab(t, s.options)
				var servers []string
				for i, m := range s.moments {
					guest, host := fmt.Sprintf("k3s-%d", i+1), fmt.Sprintf("pve%d", i+1)
					if s.servers || i == 0 {
						servers = append(servers, guest)
					}
					spec := l.firstGuests(i+1, len(servers))
					began := time.Now()
					killed := l.killAt(spec, guest, host, m, aim)
					tries := l.convergeWithin(spec, 40*time.Second, victim+" killed when "+m.name)
					t.Logf("%s killed when %s of %s: that apply ended with %d after %.1f s; all was done by %d more after %.1f s",
						victim, m.name, guest, killed.exit, killed.took.Seconds(), tries, time.Since(began).Seconds())
					l.mustBeHealthy(names(i + 1)...)
					l.mustBeClean(slices.Clone(servers)...)
					if t.Failed() {
						t.Fatalf("after %s was killed when %s (%s)", victim, m.name, guest)
					}
				}
				l.mustChangeNothing(l.firstGuests(len(s.moments), len(servers)))
			})
		}
	}
}

// firstGuests is a Spec of the first n guests, of which the first are servers.
func (l *lab) firstGuests(n, servers int) string {
	l.t.Helper()
	return l.edited(l.spec, func(d doc) {
		all := at(d, "guests")
		for i := range len(all) {
			name := fmt.Sprintf("k3s-%d", i+1)
			switch {
			case i >= n:
				delete(all, name)
			case i < servers:
				at(all, name)["k3s"] = doc{"role": "server"}
			default:
				at(all, name)["k3s"] = doc{"role": "agent"}
			}
		}
	})
}

// killAt is killWhen at a moment in the making of a guest.
func (l *lab) killAt(spec, guest, host string, m moment, aim func(*lab, string, *applying) func()) applied {
	l.t.Helper()
	return l.killWhen(spec, fmt.Sprintf("%q of %s", m.name, guest), func(e eventDoc) bool { return m.is(e, guest, host) },
		func(a *applying) func(eventDoc) {
			shoot := aim(l, host, a)
			return func(eventDoc) { shoot() }
		})
}

// killWhen applies, kills at the first event that is it, and starts at once what
// was killed, as systemd would. It returns when the apply has ended, and that is
// its to say how.
func (l *lab) killWhen(spec, what string, is func(eventDoc) bool, aim func(*applying) func(eventDoc)) applied {
	l.t.Helper()
	var once sync.Once
	var shoot func(eventDoc)
	aimed, shot := make(chan struct{}), make(chan struct{})
	a := l.startApply(l.config, spec, func(e eventDoc) {
		if is(e) {
			<-aimed
			once.Do(func() { shoot(e); close(shot) })
		}
	})
	shoot = aim(a)
	close(aimed)
	select {
	case <-shot:
	case <-a.done:
	}
	select {
	case <-shot:
	default:
		l.t.Fatalf("the moment %s never came\n%s\nsteps %q", what, a.wait(), a.out.steps())
	}
	l.up()
	return a.wait()
}

// convergeWithin applies until everything is done. While the run of a killed
// hlctl ends, another is refused; beside that three applies must do. It gives
// how many it took.
func (l *lab) convergeWithin(spec string, limit time.Duration, after string) int {
	l.t.Helper()
	deadline := time.Now().Add(limit)
	var story []string
	for tries := 0; tries < 3; {
		a := l.apply(spec)
		if a.exit == 0 {
			return len(story) + 1
		}
		story = append(story, a.String())
		if a.summary != nil {
			tries++
		}
		if time.Now().After(deadline) {
			break
		}
		time.Sleep(300 * time.Millisecond)
	}
	l.t.Fatalf("%s: it does not converge\n%s", after, strings.Join(story, "\n"))
	return 0
}

// An agent that dies in the middle of an apply and stays away takes only its own
// guest along; the apply gives it some time to come back.
func TestAnAgentThatDiesInTheMiddleAndStaysAway(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{})
	spec := l.edited(l.spec, oneServer)
	pid, ok := l.agentPID("pve3")
	shoot := l.killer(pid, ok)
	var once sync.Once
	a := l.startApply(l.config, spec, func(e eventDoc) {
		if e.Kind == "step-started" && e.Step == "boot/pve3/k3s-3" {
			once.Do(shoot)
		}
	}).wait()
	if text := a.failures(); a.exit != 3 || !strings.Contains(text, "k3s-3") || !strings.Contains(text, "pve3") {
		t.Errorf("partial, naming k3s-3 on pve3\n%s", a)
	}
	l.mustBeHealthy("k3s-1", "k3s-2")
	again := l.mustApply(spec, 3)
	if text := again.notes("skipped", "k3s-3"); !strings.Contains(text, "agent gone since") || again.summary.MutatingCalls != 0 {
		t.Errorf("k3s-3 is skipped since its agent is gone: %q\n%s", text, again)
	}
	l.fault("agent-start", "pve3")
	l.awaitState("pve3", "online", 15*time.Second)
	l.mustApply(spec, 0)
	l.mustBeHealthy(names(3)...)
	l.mustBeClean("k3s-1")
}

// Killed at random moments, from fixed seeds.
func TestKilledAtRandomMoments(t *testing.T) {
	t.Parallel()
	for seed := range uint64(3) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(seed, 2))
			l := newLab(t, options{real: seed == 0})
			kinds := []string{"controller", "agent", "driver", "hlctl"}
			var history []string
			for range 5 {
				victim := kinds[random.IntN(len(kinds))]
				host := fmt.Sprintf("pve%d", 1+random.IntN(3))
				after := time.Duration(random.IntN(5000)) * time.Millisecond
				a := l.startApply(l.config, l.spec, nil)
				shoot := victims[victim](l, host, a)
				select {
				case <-time.After(after - time.Since(a.began)):
					shoot()
					history = append(history, fmt.Sprintf("%s (%s) after %s", victim, host, after))
				case <-a.done:
				}
				l.up()
				a.wait()
			}
			l.convergeWithin(l.spec, 40*time.Second, "killed "+strings.Join(history, ", "))
			l.mustBeHealthy(names(3)...)
			l.mustBeClean(names(3)...)
			l.mustChangeNothing(l.spec)
			if t.Failed() {
				t.Logf("killed %s", strings.Join(history, ", "))
			}
		})
	}
}
