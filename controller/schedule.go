package controller

import (
	"context"
	"fmt"
	"strings"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// verdict is how a step ended for the scheduler.
type verdict struct {
	err error
	// hostDown is why no other step of the same host should be begun; empty when
	// the host answers.
	hostDown string
}

// schedule carries out steps: each begins when all that it names in `after` are
// done, in parallel but for one guest, which has one step at a time. A step that
// fails takes all that depend on it with it: they are skipped with the reason,
// as are further steps of a host that fell silent. When ctx ends nothing new
// begins, and schedule returns once the running steps are over.
//
// do is called on a goroutine of its own for each step, skip on schedule's own, and
// so is stop, before each step: why nothing new begins from now on. It may be nil.
type schedule struct {
	do   func(*homelabv1.Step) verdict
	skip func(s *homelabv1.Step, reason string)
	stop func() string

	byID       map[string]*homelabv1.Step
	dependents map[string][]*homelabv1.Step
	missing    map[string]int // how many of a step's after are not done; absent once it is decided
	ready      []*homelabv1.Step
	working    map[string]bool              // guests with a step running
	parked     map[string][]*homelabv1.Step // ready, but their guest is working
	down       map[string]string            // hosts that fell silent, with the reason
	running    int
	stopped    string // why nothing new begins
}

// ended is a step with its verdict.
type ended struct {
	step *homelabv1.Step
	verdict
}

// carryOut runs the whole plan.
func (q *schedule) carryOut(ctx context.Context, steps []*homelabv1.Step) {
	q.index(steps)
	results := make(chan ended)
	for {
		if ctx.Err() != nil && q.stopped == "" {
			q.stopped = why(ctx).Error()
		}
		q.begin(results)
		if q.running == 0 {
			break
		}
		select {
		case r := <-results:
			q.running--
			q.settle(r)
		case <-q.cancelled(ctx):
		}
	}
	// What is left waits for itself: a plan with a circle is a bug of the planner,
	// and must not end in silence.
	for _, s := range steps {
		if _, open := q.missing[s.GetId()]; open {
			q.drop(s, "it waits for a step that never comes: "+strings.Join(s.GetAfter(), ", "))
		}
	}
}

// cancelled is nil once the end was noticed, so that waiting goes on for the
// running steps alone.
func (q *schedule) cancelled(ctx context.Context) <-chan struct{} {
	if q.stopped != "" {
		return nil
	}
	return ctx.Done()
}

func (q *schedule) index(steps []*homelabv1.Step) {
	q.byID = make(map[string]*homelabv1.Step, len(steps))
	q.dependents = make(map[string][]*homelabv1.Step)
	q.missing = make(map[string]int, len(steps))
	q.working = make(map[string]bool)
	q.parked = make(map[string][]*homelabv1.Step)
	q.down = make(map[string]string)
	for _, s := range steps {
		q.byID[s.GetId()] = s
	}
	for _, s := range steps {
		q.missing[s.GetId()] = len(s.GetAfter())
		for _, a := range s.GetAfter() {
			q.dependents[a] = append(q.dependents[a], s)
		}
	}
	for _, s := range steps {
		if len(s.GetAfter()) == 0 {
			q.ready = append(q.ready, s)
		}
	}
}

// begin starts what can start, and skips what will not.
func (q *schedule) begin(results chan<- ended) {
	for len(q.ready) > 0 {
		s := q.ready[0]
		q.ready = q.ready[1:]
		switch {
		case !q.open(s):
		case q.stopped != "":
			q.drop(s, q.stopped)
		case q.down[s.GetHost()] != "":
			q.drop(s, q.down[s.GetHost()])
		case s.GetGuest() != "" && q.working[s.GetGuest()]:
			q.parked[s.GetGuest()] = append(q.parked[s.GetGuest()], s)
		case q.stopNow():
			q.drop(s, q.stopped)
		default:
			delete(q.missing, s.GetId())
			q.working[s.GetGuest()] = true
			q.running++
			go func() { results <- ended{s, q.do(s)} }()
		}
	}
	if q.stopped == "" {
		return
	}
	for id := range q.missing {
		q.drop(q.byID[id], q.stopped)
	}
}

func (q *schedule) stopNow() bool {
	if q.stop != nil {
		q.stopped = q.stop()
	}
	return q.stopped != ""
}

func (q *schedule) open(s *homelabv1.Step) bool {
	_, open := q.missing[s.GetId()]
	return open
}

func (q *schedule) settle(r ended) {
	guest := r.step.GetGuest()
	delete(q.working, guest)
	q.ready = append(q.ready, q.parked[guest]...)
	delete(q.parked, guest)
	if r.hostDown != "" {
		q.down[r.step.GetHost()] = r.hostDown
	}
	for _, d := range q.dependents[r.step.GetId()] {
		if !q.open(d) {
			continue
		}
		if r.err != nil {
			q.drop(d, fmt.Sprintf("%s did not succeed", sentence(r.step)))
			continue
		}
		if q.missing[d.GetId()]--; q.missing[d.GetId()] == 0 {
			q.ready = append(q.ready, d)
		}
	}
}

// drop skips a step and all that depend on it. The reason stays the first one:
// it is what a person can do something about.
func (q *schedule) drop(s *homelabv1.Step, reason string) {
	if !q.open(s) {
		return
	}
	delete(q.missing, s.GetId())
	q.skip(s, reason)
	for _, d := range q.dependents[s.GetId()] {
		q.drop(d, reason)
	}
}
