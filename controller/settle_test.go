package controller

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/homeiac/homelab/controller/plan"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// waits is a planner whose evidence against the first guest must last until what
// ripe tells, then it plans as ever.
func waits(ripe func(now time.Time) time.Time) func(plan.Want, plan.Seen, time.Time) *homelabv1.Plan {
	return func(want plan.Want, seen plan.Seen, now time.Time) *homelabv1.Plan {
		if until := ripe(now); until.After(now) {
			return &homelabv1.Plan{Digest: "waits", Notes: []*homelabv1.Note{{
				Kind: homelabv1.NoteKind_NOTE_KIND_WAITING, Guest: "k3s-1", Host: "pve1", Text: "it is silent", Until: timestamppb.New(until),
			}}}
		}
		return plan.Make(want, seen, now)
	}
}

func TestApplyWaitsForEvidenceToLastAndPlanDoesNot(t *testing.T) {
	f := newFleet(t, "pve1")
	var once sync.Once
	var ripe time.Time
	f.tune = func(c *Controller) {
		c.make = waits(func(now time.Time) time.Time {
			once.Do(func() { ripe = now.Add(300 * time.Millisecond) })
			return ripe
		})
	}
	c := f.up()
	planned, err := c.client.Plan(t.Context(), &controllerv1.PlanRequest{Spec: specOf(1)})
	if err != nil || len(planned.GetPlan().GetNotes()) != 1 || planned.GetPlan().GetNotes()[0].GetKind() != homelabv1.NoteKind_NOTE_KIND_WAITING {
		t.Fatalf("%v, %v", planned, err)
	}
	o := c.apply(t.Context(), specOf(1), "", true)
	o.did(t)
	var waiting []*homelabv1.Event
	for _, e := range o.events {
		if e.GetKind() == homelabv1.EventKind_EVENT_KIND_WAITING {
			waiting = append(waiting, e)
		}
	}
	if len(waiting) != 1 || waiting[0].GetGuest() != "k3s-1" || !strings.Contains(waiting[0].GetText(), "it is silent") || waiting[0].GetLimit().AsDuration() <= 0 {
		t.Errorf("told %v", waiting)
	}
}

func TestAnotherPlanAfterTheWaitIsShownFirst(t *testing.T) {
	f := newFleet(t, "pve1")
	var once sync.Once
	var ripe time.Time
	f.tune = func(c *Controller) {
		c.make = waits(func(now time.Time) time.Time {
			once.Do(func() { ripe = now.Add(50 * time.Millisecond) })
			return ripe
		})
	}
	c := f.up()
	o := c.apply(t.Context(), specOf(1), "waits", false)
	if o.err != nil || o.changed == nil || len(o.changed.GetSteps()) == 0 || f.calls != 0 {
		t.Errorf("%v, changed %v, %d calls", o.err, o.changed, f.calls)
	}
}

func TestEvidenceThatNeverLastsDoesNotHoldUpARunWithoutEnd(t *testing.T) {
	f := newFleet(t, "pve1")
	f.tune = func(c *Controller) {
		c.make = waits(func(now time.Time) time.Time { return now.Add(40 * time.Millisecond) })
	}
	c := f.up()
	o := c.apply(t.Context(), specOf(1), "", true)
	if o.err != nil || o.summary.GetSkipped() != 1 || o.summary.GetDone() != 0 {
		t.Errorf("%v, %v", o.err, o.summary)
	}
	if took := o.summary.GetTook().AsDuration(); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
}

// --yes stands for what was shown. A guest that was only busy then, or of which
// nothing was said, is not destroyed because it is found stopped after the wait.
func TestYesConfirmsNoDestructionThatWasNotToBeExpected(t *testing.T) {
	for _, first := range []*homelabv1.Note{
		{Kind: homelabv1.NoteKind_NOTE_KIND_BUSY, Guest: "k3s-2", Host: "pve2", Text: "VM 202 is locked (backup)"},
		{Kind: homelabv1.NoteKind_NOTE_KIND_BUSY, Guest: "k3s-3", Host: "pve3", Text: "VM 203 is locked (backup)"},
	} {
		t.Run(first.GetGuest(), func(t *testing.T) {
			f := newFleet(t, hostNames(3)...)
			var looks atomic.Int32
			f.tune = func(c *Controller) {
				c.pace.busy = 10 * time.Second // the third look ends it, however slow the machine
				c.make = func(want plan.Want, seen plan.Seen, now time.Time) *homelabv1.Plan {
					switch {
					case looks.Load() == 0:
						return plan.Make(want, seen, now)
					case looks.Add(1) == 2:
						f.stopped()
						return &homelabv1.Plan{Digest: "shown", Notes: []*homelabv1.Note{first}}
					case looks.Load() == 3: // by now it is said of the other one as well
						return &homelabv1.Plan{Digest: "shown", Notes: []*homelabv1.Note{first, {Kind: homelabv1.NoteKind_NOTE_KIND_WAITING, Guest: "k3s-2", Host: "pve2", Until: timestamppb.New(now)}}}
					}
					return plan.Make(want, seen, now)
				}
			}
			c := whole(t, f)
			looks.Store(1)
			o := c.apply(t.Context(), withDisk(), "shown", true)
			if o.err != nil || o.changed == nil || len(f.steps) != 0 {
				t.Errorf("%v, changed %v, did %v", o.err, o.changed, f.steps)
			}
		})
	}
}
