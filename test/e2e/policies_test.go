//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// hangBooting carries something out and hangs a guest while it boots: SSH answers
// already, so that it is mute from then on.
func (l *lab) hangBooting(guest string, args ...string) applied {
	l.t.Helper()
	var once sync.Once
	var hung sync.WaitGroup
	a := l.startRun(l.config, func(e eventDoc) {
		if e.Guest == guest && strings.HasPrefix(e.Step, "boot/") && strings.Contains(e.Text, "cloud-init is running") {
			once.Do(func() { hung.Go(func() { l.fault("guest-hang", guest) }) })
		}
	}, args...)
	out := a.wait()
	hung.Wait()
	return out
}

// generationOf is the generation in the mark of a guest's VM.
func (l *lab) generationOf(guest string) string {
	l.t.Helper()
	_, rest, _ := strings.Cut(l.confOf(guest).text, "%3A"+guest+"%3A")
	generation, _, _ := strings.Cut(rest, "%3A")
	return generation
}

func TestAPolicySaysWhatIsDoneAboutAnUnwellGuest(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{cloudInit: 1500 * time.Millisecond})
	spec := l.hasty(l.spec, oneServer, func(d doc) {
		at(d, "defaults", "timeouts")["cloudInit"] = "4s"
		at(d, "defaults", "timeouts")["boot"] = "4s"
		at(d, "guests", "k3s-2")["onUnhealthy"] = "restart"
		at(d, "guests", "k3s-3")["onUnhealthy"] = "report"
	})
	l.mustApply(spec, 0)
	l.mustBeHealthy(names(3)...)
	t.Run("restart starts, resets and then makes anew", func(t *testing.T) {
		l := l.in(t)
		did := func(a applied, want string) {
			t.Helper()
			for _, verb := range []string{"start", "reset", "destroy"} {
				if slices.Contains(a.steps(), verb+"/pve2/k3s-2") != strings.Contains(want, verb) {
					t.Errorf("%q is wanted, begun were %q\n%s", want, a.steps(), a)
				}
			}
		}
		l.fault("guest-stop", "k3s-2")
		did(l.mustApply(spec, 0), "start")
		l.mustBeHealthy(names(3)...)
		l.fault("guest-hang", "k3s-2")
		did(l.hangBooting("k3s-2", "apply", "-f", spec), "reset")
		if g := l.generationOf("k3s-2"); g != "1" {
			t.Errorf("generation %s after a reset", g)
		}
		a := l.apply(spec)
		did(a, "start destroy")
		if a.exit != 0 {
			t.Errorf("made anew\n%s", a)
		}
		if g := l.generationOf("k3s-2"); g != "2" {
			t.Errorf("generation %s after it was made anew", g)
		}
		l.mustBeHealthy(names(3)...)
	})
	t.Run("report only tells, until the guest is named", func(t *testing.T) {
		l := l.in(t)
		l.fault("guest-stop", "k3s-3")
		before := l.keep("203")
		a := l.mustApply(spec, 3)
		l.mustTouchNothing(a)
		if text := a.notes("refused", "k3s-3"); !strings.Contains(text, "its policy is report") || !strings.Contains(text, "hlctl guests start k3s-3") {
			t.Errorf("%q\n%s", text, a)
		}
		if out := l.byName("guests", "recreate", "k3s-3"); out.exit != 1 || !strings.Contains(out.stderr, "--destroy k3s-3") {
			t.Errorf("--yes alone does not confirm that\n%s", out)
		}
		l.mustBeAsBefore(before, "policy report", "203")
		l.mustDo(0, "apply", "-f", spec, "--destroy", "k3s-3")
		if g := l.generationOf("k3s-3"); g != "2" {
			t.Errorf("generation %s after it was made anew by name", g)
		}
		l.mustBeHealthy(names(3)...)
	})
}

// With heal: auto the controller makes an unwell guest anew by itself; while changes
// are paused neither it nor apply does anything.
func TestTheControllerHealsByItselfUnlessPaused(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{})
	spec := l.hasty(l.spec, oneServer, func(d doc) { d["heal"] = "auto" })
	l.mustApply(spec, 0)
	l.mustBeHealthy(names(3)...)
	l.fault("guest-stop", "k3s-2")
	healed := func(guest string) {
		l.t.Helper()
		l.eventually(60*time.Second, guest+" is made anew", func() (bool, string) {
			g := l.guests()[guest]
			return g.Health == "healthy" && l.generationOf(guest) == "2", fmt.Sprintf("%+v\n%s", g, l.hlctl("runs").stdout)
		})
	}
	healed("k3s-2")
	if r := l.hlctl("runs"); !strings.Contains(r.stdout, "heal") {
		t.Errorf("whose run was it?\n%s", r)
	}
	if r := l.hlctl("pause", "replacing", "the", "switch"); r.exit != 0 {
		t.Fatal(r)
	}
	l.fault("guest-stop", "k3s-3")
	before := l.keep("203")
	l.awaitHealth(10*time.Second, "k3s-3", "unwell")
	a := l.mustApply(spec, 3)
	l.mustTouchNothing(a)
	l.mustTell(a, "replacing the switch", "hlctl resume")
	runs := l.hlctl("runs", "-o", "json").stdout
	time.Sleep(4 * time.Second) // it looks several times meanwhile
	if now := l.hlctl("runs", "-o", "json").stdout; now != runs {
		t.Errorf("it began a run although it is paused:\n%s", now)
	}
	l.mustBeAsBefore(before, "while paused", "203")
	if r := l.hlctl("resume"); r.exit != 0 {
		t.Fatal(r)
	}
	healed("k3s-3")
	l.mustBeClean("k3s-1")
	l.mustChangeNothing(spec)
}

// A guest that never gets well is left alone for longer and longer, and after three
// times for good, with one notice; a person takes it out of its park.
func TestAGuestThatNeverGetsWellIsParked(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{hosts: 2, cloudInit: 1500 * time.Millisecond})
	spec := l.hasty(l.spec, func(d doc) {
		at(d, "defaults", "timeouts")["boot"], at(d, "defaults", "timeouts")["cloudInit"] = "4s", "4s"
	})
	l.mustApply(spec, 0)
	l.mustBeHealthy(names(2)...)
	l.fault("guest-stop", "k3s-2")
	if a := l.hangBooting("k3s-2", "apply", "-f", spec); a.exit != 3 || !strings.Contains(a.failures(), "boot/pve2/k3s-2") {
		t.Fatalf("it does not boot\n%s", a)
	}
	backsOff := func(words string) {
		t.Helper()
		before := l.keep("202")
		a := l.mustApply(spec, 3)
		l.mustTouchNothing(a)
		l.mustTell(a, words)
		l.mustBeAsBefore(before, words, "202")
	}
	backsOff("(back-off)")
	for range 2 {
		if a := l.hangBooting("k3s-2", "guests", "recreate", "k3s-2"); a.exit != 3 && a.exit != 1 {
			t.Fatalf("it does not boot again\n%s", a)
		}
	}
	if g := l.generationOf("k3s-2"); g != "4" {
		t.Errorf("generation %s after three times", g)
	}
	backsOff("parked: it was made 3 times in a row and never was well")
	backsOff("hlctl resume k3s-2")
	story := l.why("k3s-2")
	if n := strings.Count(story, "\nparked: "); n != 1 {
		t.Errorf("%d notices of its park in its story:\n%s", n, story)
	}
	for _, w := range []string{"qmstop by root@pam", "created VM 202", "boot"} {
		if !strings.Contains(story, w) {
			t.Errorf("its story does not tell %q:\n%s", w, story)
		}
	}
	if r := l.hlctl("guests"); !strings.Contains(r.stdout, "parked") {
		t.Errorf("guests does not show that it is parked\n%s", r)
	}
	if r := l.hlctl("resume", "k3s-2"); r.exit != 0 {
		t.Fatal(r)
	}
	l.mustDo(0, "guests", "recreate", "k3s-2")
	l.mustBeHealthy(names(2)...)
	l.mustChangeNothing(spec)
}
