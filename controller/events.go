package controller

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/homeiac/homelab/controller/store"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// keepProgress is how many events of a run are kept before mere progress is no
// longer written down. It is streamed all the same.
const keepProgress = 5000

// journal takes the events of one run as they happen: it writes them to the
// store and passes them to whoever asked for the run. Neither may hold the run
// up: a slow reader costs memory for a while, one that went away costs nothing.
type journal struct {
	store *store.Store
	log   *slog.Logger
	now   func() time.Time
	run   int64
	by    string

	mu       sync.Mutex
	count    int64 // events given to the store
	mutating int32
	keep     *queue
	tell     *queue
	writers  sync.WaitGroup
}

// newJournal starts the journal of a run. send is called with each event, one
// after the other; once it fails it is not called again.
func newJournal(st *store.Store, log *slog.Logger, now func() time.Time, run int64, by string, send func(*homelabv1.Event) error) *journal {
	j := &journal{store: st, log: log, now: now, run: run, by: by, keep: newQueue(), tell: newQueue()}
	j.writers.Go(j.write)
	j.writers.Go(func() {
		for {
			events, open := j.tell.take()
			for _, e := range events {
				if send != nil && send(e) != nil {
					send = nil // the caller is gone; the run's end does not depend on it
				}
			}
			if !open {
				return
			}
		}
	})
	return j
}

// add takes one event.
func (j *journal) add(e *homelabv1.Event) {
	if e.GetTime() == nil {
		e.Time = timestamppb.New(j.now())
	}
	e.Run = j.run
	rpc.MakePlain(e) // the store takes no other text, and would lose its neighbours too
	j.mu.Lock()
	defer j.mu.Unlock()
	if e.GetKind() == homelabv1.EventKind_EVENT_KIND_CALL && e.GetCall().GetMutating() {
		j.mutating++
	}
	j.tell.put(e)
	if e.GetKind() == homelabv1.EventKind_EVENT_KIND_STEP_PROGRESS && j.count >= keepProgress {
		return
	}
	j.count++
	j.keep.put(e)
}

// write stores what there is, as much as there is at a time.
func (j *journal) write() {
	var n int64
	for {
		events, open := j.keep.take()
		if len(events) > 0 {
			// Not the run's context: what happened is written down also when the
			// run was cancelled. The store bounds its calls itself.
			if err := j.store.AppendEvents(context.Background(), j.run, n, j.by, events); err != nil {
				j.log.Warn("events not written down", "run", j.run, "events", len(events), "error", err)
			}
			n += int64(len(events))
		}
		for _, e := range events {
			if entry, ok := storyOf(e); ok && !(entry.Kind == e.GetNote() && j.toldLast(e.GetGuest(), entry)) {
				j.story(e.GetGuest(), entry)
			}
		}
		if !open {
			return
		}
	}
}

// story writes an entry into the story of a guest.
func (j *journal) story(guest string, e store.Entry) {
	if err := j.store.AppendStory(context.Background(), guest, e); err != nil {
		j.log.Warn("story not written down", "run", j.run, "guest", guest, "error", err)
	}
}

// toldLast says whether a guest's story ends in the same words: each run comes to
// the same note as long as nothing changes.
func (j *journal) toldLast(guest string, e store.Entry) bool {
	last, err := j.store.Story(context.Background(), guest, 1)
	return err == nil && len(last) == 1 && last[0].Kind == e.Kind && last[0].Text == e.Text
}

// storyOf is what an event is in the story of its guest; ok is false for one that
// is not told there. A guest that is left alone for a while needs no word.
func storyOf(e *homelabv1.Event) (entry store.Entry, ok bool) {
	entry = store.Entry{At: e.GetTime().AsTime(), Text: e.GetText(), Run: e.GetRun()}
	switch e.GetKind() {
	case homelabv1.EventKind_EVENT_KIND_STEP_DONE:
		entry.Kind = kindDone
	case homelabv1.EventKind_EVENT_KIND_STEP_FAILED:
		entry.Kind = kindFailed
	case homelabv1.EventKind_EVENT_KIND_STEP_SKIPPED:
		entry.Kind = kindSkipped
	case homelabv1.EventKind_EVENT_KIND_NOTE:
		if e.GetNote() == kindSkipped || e.GetNote() == kindRefused {
			entry.Kind = e.GetNote()
		}
	default:
	}
	return entry, entry.Kind != "" && e.GetGuest() != ""
}

// close waits until everything is written and told.
func (j *journal) close() {
	j.keep.close()
	j.tell.close()
	j.writers.Wait()
}

// mutatingCalls is how many changing calls there were so far.
func (j *journal) mutatingCalls() int32 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.mutating
}

// queue is unbounded: put never waits, take gives all there is.
type queue struct {
	mu     sync.Mutex
	some   *sync.Cond
	events []*homelabv1.Event
	closed bool
}

func newQueue() *queue {
	q := &queue{}
	q.some = sync.NewCond(&q.mu)
	return q
}

func (q *queue) put(e *homelabv1.Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.events = append(q.events, e)
	q.some.Signal()
}

// take waits for events, or the end. Open is false when nothing comes any more.
func (q *queue) take() (events []*homelabv1.Event, open bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.events) == 0 && !q.closed {
		q.some.Wait()
	}
	events, q.events = q.events, nil
	return events, !q.closed
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.some.Signal()
}
