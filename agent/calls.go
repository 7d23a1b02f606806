package agent

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// program is who makes a call, as events name it.
type program string

// What the agent itself calls; qm, pvesm and pvesh are the driver's.
const (
	callImage   program = "image"   // writes or removes an image file
	callSnippet program = "snippet" // writes or removes a user-data snippet
	callGuest   program = "guest"   // runs a script in a guest
	callEtcd    program = "etcd"    // changes etcd's membership, or copies it
	callNode    program = "node"    // changes a Node through a server
)

// mutatingCalls is the one table of what counts as changing something: for the
// agent's own calls by their first argument. The driver marks its programs' by
// itself. A call that is not in it does not count.
var mutatingCalls = map[program][]string{
	callImage:   {"fetch", "remove"},
	callSnippet: {"write", "remove"},
	callGuest:   {"config", "token", "script", "binary", "images", "install", "stop", "clean"},
	callEtcd:    {"remove-learner", "remove-member"}, // a snapshot changes nothing there
	callNode:    {"cordon", "drain", "delete", "delete-password"},
}

func mutating(p program, verb string) bool { return slices.Contains(mutatingCalls[p], verb) }

// emit takes the events of one step; it fills in whose they are.
type emit func(*homelabv1.Event)

// call does something and reports it as a CALL event, failed or not. args are
// shown to people: no secret may be in them; the first is the verb.
func (e emit) call(p program, args []string, do func() (exit int, err error)) error {
	began := time.Now()
	exit, err := do()
	c := &homelabv1.Call{
		Program: string(p), Args: args, Exit: int32(exit), Took: durationpb.New(time.Since(began)),
		Mutating: len(args) > 0 && mutating(p, args[0]),
	}
	if err != nil {
		c.Error = err.Error()
	}
	e(&homelabv1.Event{Kind: homelabv1.EventKind_EVENT_KIND_CALL, Call: c})
	return err
}

// progress says what the step does now.
func (e emit) progress(phase, text string) {
	e(&homelabv1.Event{Kind: homelabv1.EventKind_EVENT_KIND_STEP_PROGRESS, Phase: phase, Text: text})
}

// sayEvery is the longest silence of a wait.
const sayEvery = 5 * time.Second

// Polling is eager at first, when much is over soon, and then calms down.
const (
	firstPoll = 100 * time.Millisecond
	lastPoll  = 2 * time.Second
)

// waiting is something to wait for.
type waiting struct {
	// phase is the word for it (booting), limit how long it may last.
	phase string
	limit time.Duration
	// look says whether it is so, or what is missing. An error ends the wait.
	look func(context.Context) (done bool, text string, err error)
	// overdue makes the error of a wait that was too long, from what was missing last.
	overdue func(text string) error
	// wake, when it is not nil, ends a pause at once.
	wake <-chan struct{}
}

// wait waits. What is missing is reported when it changes and every 5 seconds.
func (e emit) wait(ctx context.Context, w waiting) error {
	ctx, cancel := context.WithTimeout(ctx, w.limit)
	defer cancel()
	began := time.Now()
	pause := firstPoll
	var said string
	var saidAt time.Time
	for {
		done, text, err := w.look(ctx)
		if done || (err != nil && ctx.Err() == nil) {
			return err
		}
		if ctx.Err() != nil {
			return w.end(ctx, began, said)
		}
		if text != said || time.Since(saidAt)+pause > sayEvery {
			e(&homelabv1.Event{
				Kind: homelabv1.EventKind_EVENT_KIND_STEP_PROGRESS, Phase: w.phase, Text: text, Limit: durationpb.New(w.limit),
			})
			said, saidAt = text, time.Now()
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-w.wake:
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return w.end(ctx, began, said)
		}
		pause = min(pause*3/2, lastPoll)
	}
}

// end tells a wait that was too long from a step that was ended by others.
func (w waiting) end(ctx context.Context, began time.Time, said string) error {
	if time.Since(began) < w.limit {
		return ctx.Err()
	}
	return w.overdue(said)
}
