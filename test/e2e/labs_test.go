//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestTwoLabsAtOnceDoNotDisturbEachOther(t *testing.T) {
	t.Parallel()
	one, two := newLab(t, options{}), newLab(t, options{})
	if one.net == two.net {
		t.Fatalf("both labs have network %s", one.net)
	}
	var wg sync.WaitGroup
	var results [2]applied
	for i, l := range []*lab{one, two} {
		spec := l.edited(l.spec, oneServer)
		l.spec = spec
		a := l.startApply(l.config, spec, nil)
		wg.Go(func() {
			<-a.done
			results[i] = a.out
		})
	}
	wg.Wait()
	for i, l := range []*lab{one, two} {
		if results[i].exit != 0 {
			t.Fatalf("lab %d\n%s", i+1, results[i])
		}
		l.mustBeHealthy(names(3)...)
	}
	if r := run(t, "hl-lab", "down", "--dir", one.dir); r.exit != 0 {
		t.Error(r)
	}
	two.mustBeHealthy(names(3)...)
	two.mustChangeNothing(two.spec)
	for host, h := range two.hosts() {
		if h.State != "online" {
			t.Errorf("%s of the other lab: %+v", host, h)
		}
	}
}

func TestSeveralControllersShareOneFleet(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{controllers: 3})
	spec := l.edited(l.spec, oneServer)
	if a := l.startApply(l.through(3), spec, nil).wait(); a.exit != 0 {
		t.Fatalf("through the third controller\n%s", a)
	}
	for i := 1; i <= 3; i++ {
		a := l.startApply(l.through(i), spec, nil).wait()
		if a.exit != 0 || a.summary == nil || a.summary.MutatingCalls != 0 || a.summary.Unchanged != 3 {
			t.Errorf("through controller %d it is the same fleet\n%s", i, a)
		}
	}
	l.fault("controller-kill", "controller-1")
	l.mustBeHealthy(names(3)...)
	l.mustChangeNothing(spec)
	l.fault("controller-start", "controller-1")
	l.eventually(15*time.Second, "the first controller answers again", func() (bool, string) {
		r := run(t, "hlctl", "--config", l.through(1), "plan", "-f", spec)
		return r.exit == 0, r.String()
	})
}

// through is a configuration of hlctl that knows one controller alone.
func (l *lab) through(i int) string {
	l.t.Helper()
	text := l.read("hlctl.yaml")
	_, rest, ok := strings.Cut(text, "controllers: [")
	if !ok {
		l.t.Fatalf("hlctl.yaml: %s", text)
	}
	list, _, _ := strings.Cut(rest, "]")
	config := l.path(fmt.Sprintf("hlctl-%d.yaml", i))
	text = strings.Replace(text, list, fmt.Sprintf(`"%s.%d:8401"`, l.net, 200+i), 1)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		l.t.Fatal(err)
	}
	return config
}

func TestHostsThatAreNoPVECluster(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{standalone: true})
	spec := l.edited(l.spec, oneServer)
	l.mustApply(spec, 0)
	l.mustBeHealthy(names(3)...)
	l.mustBeClean("k3s-1")
	l.mustChangeNothing(spec)
}

func TestUpAgainStartsOnlyWhatDoesNotRun(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{})
	spec := l.edited(l.spec, oneServer)
	l.mustApply(spec, 0)
	before := map[int]string{}
	for _, p := range l.processes() {
		before[p.pid] = strings.Join(p.argv, " ")
	}
	agent, _ := l.agentPID("pve2")
	controller, _ := l.controllerPID("controller-1")
	driver, _ := l.driverPID("pve2")
	l.kill(agent)
	l.kill(controller)
	l.up()
	now := map[int]bool{}
	for _, p := range l.processes() {
		now[p.pid] = true
	}
	for pid, argv := range before {
		if gone := pid == agent || pid == controller || pid == driver; now[pid] == gone {
			t.Errorf("process %d (%s) runs: %v", pid, argv, now[pid])
		}
	}
	l.mustBeHealthy(names(3)...)
	l.mustChangeNothing(spec)
}

func TestHostsThatAreAddedGetTheirGuestsAndNobodyElseIsTouched(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{hosts: 5})
	l.mustApply(l.spec, 0)
	before := map[string]string{}
	for _, c := range l.confs() {
		before[c.name] = c.text
	}
	first := l.read("homelab.yaml")
	l.up("--hosts", "7")
	if l.read("homelab.yaml") != first {
		t.Error("the first Spec was changed")
	}
	l.awaitState("pve7", "online", 15*time.Second)
	calls := len(l.calls())
	a := l.mustApply(l.path("homelab-7.yaml"), 0)
	for _, s := range a.steps() {
		if !strings.Contains(s, "/pve6/") && !strings.Contains(s, "/pve7/") {
			t.Errorf("step %s was carried out", s)
		}
	}
	for _, c := range l.calls()[calls:] {
		if c.Host != "pve6" && c.Host != "pve7" {
			t.Errorf("%s was called: %q", c.Host, c.Argv)
		}
	}
	for _, c := range l.confs() {
		if old, ok := before[c.name]; ok && old != c.text {
			t.Errorf("%s was changed", c.name)
		}
	}
	l.mustBeHealthy(names(7)...)
	l.mustBeClean(names(3)...)
	l.mustChangeNothing(l.path("homelab-7.yaml"))
}
