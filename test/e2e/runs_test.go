//go:build e2e

package e2e

import (
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Ctrl-C begins nothing new and lets running steps finish; the same command
// goes on from there.
func TestCtrlCBeginsNothingNew(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{real: true})
	spec := l.edited(l.spec, oneServer)
	hit := make(chan struct{})
	var once sync.Once
	a := l.startApply(l.config, spec, func(e eventDoc) {
		if e.Kind == "step-started" && e.Step == "create/pve1/k3s-1" {
			once.Do(func() { close(hit) })
		}
	})
	select {
	case <-hit:
	case <-a.done:
		t.Fatalf("nothing was created\n%s", a.wait())
	}
	if err := a.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	out := a.wait()
	if out.exit != 1 || !strings.Contains(out.stderr, "interrupted") || out.summary != nil {
		t.Errorf("interrupted is exit 1 and says so\n%s", out)
	}
	l.eventually(30*time.Second, "the run ends", func() (bool, string) {
		r := l.hlctl("runs")
		return strings.Contains(r.stdout, "interrupted"), r.String()
	})
	for _, c := range l.calls() {
		if c.mutating() && c.Argv[1] == "start" {
			t.Errorf("a step was begun after the interrupt: %q", c.Argv)
		}
	}
	if got := l.confOf("k3s-1"); !strings.Contains(got.text, "scsi0") {
		t.Errorf("the running create did not finish:\n%s", got.text)
	}
	l.mustApply(spec, 0)
	l.mustBeHealthy(names(3)...)
	l.mustBeClean("k3s-1")
}

// Of two applies at once the second is refused, and says who is at work.
func TestTwoAppliesAtOnce(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{})
	spec := l.edited(l.spec, oneServer)
	going := make(chan struct{})
	var once sync.Once
	first := l.startApply(l.config, spec, func(eventDoc) { once.Do(func() { close(going) }) })
	<-going
	second := l.apply(spec)
	if second.exit != 1 || !strings.Contains(second.stderr, "admin") || len(second.events) > 0 {
		t.Errorf("the second apply is refused, naming whose run goes on\n%s", second)
	}
	if out := first.wait(); out.exit != 0 {
		t.Errorf("the first apply\n%s", out)
	}
	l.mustBeHealthy(names(3)...)
	l.mustBeClean("k3s-1")
}

// The example of the documentation is right but for the key file that nobody
// has: a warning for who only validates, a fault for who wants to do something.
func TestTheExampleSpecValidates(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	const example = "../../docs/examples/homelab.yaml"
	if r := run(t, "hlctl", "validate", "-f", example); r.exit != 0 || !strings.Contains(r.stdout+r.stderr, "id_ed25519.pub") {
		t.Errorf("the key file that is missing is a warning\n%s", r)
	}
	l := newLab(t, options{hosts: 1})
	for _, command := range []string{"plan", "apply"} {
		if r := l.hlctl(command, "-f", example); r.exit != 1 || !strings.Contains(r.stderr, "id_ed25519.pub") {
			t.Errorf("the key file that is missing is a fault of %s\n%s", command, r)
		}
	}
}
