package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// diary is a worker that writes down what it does when. Each step takes one
// second unless told otherwise.
type diary struct {
	mu      sync.Mutex
	start   time.Time
	entries []string
	took    map[string]time.Duration
	fails   map[string]verdict
	skipped map[string]string
	working map[string]int
	most    map[string]int // most steps at once per guest
}

func newDiary() *diary {
	return &diary{start: time.Now(), took: map[string]time.Duration{}, fails: map[string]verdict{},
		skipped: map[string]string{}, working: map[string]int{}, most: map[string]int{}}
}

func (d *diary) do(s *homelabv1.Step) verdict {
	d.mu.Lock()
	d.entries = append(d.entries, fmt.Sprintf("%s +%d", s.GetId(), int(time.Since(d.start).Seconds())))
	d.working[s.GetGuest()]++
	d.most[s.GetGuest()] = max(d.most[s.GetGuest()], d.working[s.GetGuest()])
	took, ok := d.took[s.GetId()]
	if !ok {
		took = time.Second
	}
	d.mu.Unlock()
	time.Sleep(took) // of the bubble's clock
	d.mu.Lock()
	defer d.mu.Unlock()
	d.working[s.GetGuest()]--
	return d.fails[s.GetId()]
}

func (d *diary) run(ctx context.Context, steps []*homelabv1.Step) []string {
	q := &schedule{do: d.do, skip: func(s *homelabv1.Step, reason string) { d.skipped[s.GetId()] = reason }}
	q.carryOut(ctx, steps)
	slices.Sort(d.entries)
	return d.entries
}

func step(id string, after ...string) *homelabv1.Step {
	parts := strings.Split(id, "/")
	actions := map[string]homelabv1.Action{
		"fetch": homelabv1.Action_ACTION_FETCH, "rollback": homelabv1.Action_ACTION_ROLLBACK, "create": homelabv1.Action_ACTION_CREATE,
		"start": homelabv1.Action_ACTION_START, "boot": homelabv1.Action_ACTION_BOOT, "init": homelabv1.Action_ACTION_INIT,
		"join": homelabv1.Action_ACTION_JOIN, "verify": homelabv1.Action_ACTION_VERIFY,
	}
	s := &homelabv1.Step{Id: id, Action: actions[parts[0]], Host: parts[1], Guest: parts[2], After: after}
	if s.GetAction() == homelabv1.Action_ACTION_FETCH {
		s.Guest, s.Image = "", parts[2]
	}
	return s
}

// threeServers is a fresh cluster.
func threeServers() []*homelabv1.Step {
	var steps []*homelabv1.Step
	for i := 1; i <= 3; i++ {
		at := fmt.Sprintf("pve%d/k3s-%d", i, i)
		steps = append(steps, step(fmt.Sprintf("fetch/pve%d/noble", i)),
			step("create/"+at, fmt.Sprintf("fetch/pve%d/noble", i)), step("start/"+at, "create/"+at), step("boot/"+at, "start/"+at))
	}
	return append(steps, step("init/pve1/k3s-1", "boot/pve1/k3s-1"),
		step("join/pve2/k3s-2", "boot/pve2/k3s-2", "init/pve1/k3s-1"),
		step("join/pve3/k3s-3", "boot/pve3/k3s-3", "join/pve2/k3s-2"))
}

func TestHostsWorkInParallelAndServersJoinOneByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDiary()
		got := d.run(t.Context(), threeServers())
		want := []string{
			"boot/pve1/k3s-1 +3", "boot/pve2/k3s-2 +3", "boot/pve3/k3s-3 +3",
			"create/pve1/k3s-1 +1", "create/pve2/k3s-2 +1", "create/pve3/k3s-3 +1",
			"fetch/pve1/noble +0", "fetch/pve2/noble +0", "fetch/pve3/noble +0",
			"init/pve1/k3s-1 +4", "join/pve2/k3s-2 +5", "join/pve3/k3s-3 +6",
			"start/pve1/k3s-1 +2", "start/pve2/k3s-2 +2", "start/pve3/k3s-3 +2",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
}

func TestAFailureSkipsWhatDependsOnItAndNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDiary()
		d.fails["start/pve2/k3s-2"] = verdict{err: errors.New("no bridge")}
		d.run(t.Context(), threeServers())
		want := map[string]string{
			"boot/pve2/k3s-2": "start k3s-2 on pve2 did not succeed",
			"join/pve2/k3s-2": "start k3s-2 on pve2 did not succeed",
			"join/pve3/k3s-3": "start k3s-2 on pve2 did not succeed",
		}
		if diff := cmp.Diff(want, d.skipped); diff != "" {
			t.Error(diff)
		}
	})
}

func TestASilentHostSkipsItsOtherSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDiary()
		d.fails["create/pve1/a"] = verdict{err: errors.New("x"), hostDown: "host pve1 fell silent"}
		d.took["create/pve1/b"] = 5 * time.Second
		d.run(t.Context(), []*homelabv1.Step{
			step("create/pve1/a"), step("create/pve1/b"), step("start/pve1/b", "create/pve1/b"), step("create/pve2/c"), step("start/pve2/c", "create/pve2/c"),
		})
		want := map[string]string{"start/pve1/b": "host pve1 fell silent"}
		if diff := cmp.Diff(want, d.skipped); diff != "" {
			t.Error(diff)
		}
	})
}

func TestCancelStartsNothingNewAndRunningStepsFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDiary()
		ctx, cancel := context.WithCancelCause(t.Context())
		d.took["create/pve1/k3s-1"] = 10 * time.Second
		time.AfterFunc(1500*time.Millisecond, func() { cancel(errors.New("cancelled")) })
		d.run(ctx, threeServers())
		if took := time.Since(d.start); took != 11*time.Second {
			t.Errorf("took %s: running steps were not waited for", took)
		}
		if len(d.entries) != 6 || len(d.skipped) != len(threeServers())-6 || d.skipped["start/pve1/k3s-1"] != "cancelled" {
			t.Errorf("did %v, skipped %v", d.entries, d.skipped)
		}
	})
}

func TestACircleEnds(t *testing.T) {
	d := newDiary()
	d.run(t.Context(), []*homelabv1.Step{step("create/a/x", "start/a/x"), step("start/a/x", "create/a/x"), step("boot/a/y", "create/nowhere/z")})
	if len(d.skipped) != 3 {
		t.Errorf("skipped %v", d.skipped)
	}
}

func TestEveryStepIsDecidedOnceInOrder(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(0, 12).Draw(rt, "n")
		var steps []*homelabv1.Step
		fails := map[string]verdict{}
		for i := range n {
			var after []string
			for j := range i {
				if rapid.IntRange(0, 3).Draw(rt, "edge") == 0 {
					after = append(after, steps[j].GetId())
				}
			}
			guest := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "guest")
			s := step(fmt.Sprintf("create/%d/%s", i, guest), after...)
			steps = append(steps, s)
			if rapid.IntRange(0, 4).Draw(rt, "fails") == 0 {
				fails[s.GetId()] = verdict{err: errors.New("x")}
			}
		}
		synctest.Test(t, func(t *testing.T) {
			d := newDiary()
			d.fails = fails
			d.run(t.Context(), steps)
			if len(d.entries)+len(d.skipped) != n {
				rt.Fatalf("%d steps, did %v, skipped %v", n, d.entries, d.skipped)
			}
			for _, s := range steps {
				for _, a := range s.GetAfter() {
					_, failed := fails[a]
					_, skipped := d.skipped[a]
					if _, mine := d.skipped[s.GetId()]; (failed || skipped) && !mine {
						rt.Fatalf("%s began after %s", s.GetId(), a)
					}
				}
			}
			for guest, most := range d.most {
				if most > 1 {
					rt.Fatalf("guest %s had %d steps at once", guest, most)
				}
			}
		})
	})
}
