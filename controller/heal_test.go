package controller

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/homeiac/homelab/controller/plan"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/pause"
)

// healing is withDisk with heal: auto.
func healing() []byte {
	return []byte(strings.Replace(string(withDisk()), "name: lab\n", "name: lab\nheal: auto\n", 1))
}

// until polls, and fails the test when what is waited for does not come.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); {
		if time.Now().After(end) || !pause.For(t.Context(), 5*time.Millisecond) {
			t.Fatalf("%s: it did not come", what)
		}
	}
}

func (r *running) listed(t *testing.T) []*controllerv1.RunRecord {
	t.Helper()
	list, err := r.client.ListRuns(t.Context(), &controllerv1.ListRunsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return list.GetRuns()
}

func TestAControllerThatMayHealBeginsARunByItself(t *testing.T) {
	f := newFleet(t, hostNames(3)...)
	// A look that was under way when all was paused begins a run that finds it so, and
	// the controller rests after it.
	f.tune = func(c *Controller) {
		c.pace.watch, c.pace.look, c.pace.heal = 20*time.Millisecond, 20*time.Millisecond, 20*time.Millisecond
	}
	c := f.up()
	c.apply(t.Context(), healing(), "", true).did(t)
	f.mu.Lock()
	f.agents["pve2"].vms[202].disks["scsi1"] = "the photos"
	f.mu.Unlock()
	before := c.guest(t, "k3s-2")
	paused := c.pauseNow(t, "not now")
	f.stopped()
	until(t, "seen", func() bool { _, now := c.story(t, "k3s-2"); return now.GetSignal() == "stopped" })
	if runs := c.listed(t); len(runs) != 1 {
		t.Fatalf("a run while paused (%s): %v", paused, runs)
	}
	c.resumeNow(t, "")
	until(t, "healed", func() bool { runs := c.listed(t); return len(runs) > 1 && runs[0].GetState() != "running" })
	if run := c.listed(t)[0]; run.GetBy() != healedBy || run.GetState() != "done" {
		t.Fatalf("run %v", run)
	}
	f.well(3, 3)
	f.anew(before, c.guest(t, "k3s-2"))
	entries, _ := c.story(t, "k3s-2")
	inOrder(t, entries, "seen unwell (stopped)", "planned run 2 by heal: ", "seen healthy")
	if text, _, err := c.store.Spec(t.Context()); err != nil || text.By != "admin@admin-1" {
		t.Errorf("the Spec is by %s, %v", text.By, err)
	}
}

func TestHealingRestsAfterARunThatFailed(t *testing.T) {
	f := newFleet(t, "pve1")
	var later atomic.Int64
	f.tune = func(c *Controller) {
		c.pace.watch = time.Hour
		c.now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
		c.make = func(want plan.Want, seen plan.Seen, now time.Time) *homelabv1.Plan {
			if !want.HealOnly {
				return plan.Make(want, seen, now)
			}
			return &homelabv1.Plan{Digest: "d", Steps: []*homelabv1.Step{{
				Id: "reset/pve1/k3s-1", Action: homelabv1.Action_ACTION_RESET, Guest: "k3s-1", Host: "pve1", Vmid: 999, Reason: "it is mute",
			}}}
		}
	}
	c := f.up()
	text := []byte(strings.Replace(string(specOf(1)), "name: lab\n", "name: lab\nheal: auto\n", 1))
	c.apply(t.Context(), text, "", true).did(t)
	h := &healer{c: c.Controller}
	round := func() {
		sp, w, err := c.refresh(t.Context(), nil, true)
		if err != nil {
			t.Fatal(err)
		}
		h.heal(t.Context(), sp, *w)
		c.runs.Wait()
	}
	round()
	if runs := c.listed(t); len(runs) != 2 || runs[0].GetBy() != healedBy || runs[0].GetSummary().GetFailed() != 1 {
		t.Fatalf("runs %v", runs)
	}
	round()
	if runs := c.listed(t); len(runs) != 2 {
		t.Errorf("it did not rest: %v", runs)
	}
	later.Store(int64(c.pace.heal + time.Second))
	round()
	if runs := c.listed(t); len(runs) != 3 {
		t.Errorf("it did not try again: %v", runs)
	}
	lock, err := c.store.Lock(t.Context(), "admin@laptop", noon)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Unlock()
	later.Store(int64(3 * c.pace.heal))
	round()
	if runs := c.listed(t); len(runs) != 3 {
		t.Errorf("beside another run: %v", runs)
	}
}
