package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/homeiac/homelab/controller/plan"
	"github.com/homeiac/homelab/controller/store"
	"github.com/homeiac/homelab/internal/spec"
)

// The kinds of entries of a guest's story, and states that are no health.
const (
	kindSeen    = "seen"
	kindPlanned = "planned"
	kindDone    = "done"
	kindFailed  = "failed"
	kindSkipped = "skipped"
	kindRefused = "refused"
	kindParked  = "parked"

	stateParked  = "parked"
	stateResumed = "resumed"
)

// historyEvery is how old a stored history may be in which nothing but the time of
// the last look has changed.
const historyEvery = time.Minute

// tracker holds since when each guest is seen as it is. It is in memory, and
// written down only now and then: a controller that was away for long must begin
// anew anyway.
type tracker struct {
	mu     sync.Mutex
	now    map[string]plan.History
	stored map[string]kept
	told   map[string]told
	ill    bool // some guest was unwell at the last look
}

// kept is a history as it lies in the store.
type kept struct {
	history plan.History
	at      time.Time
}

// told is what a guest's story says of it last.
type told struct {
	state  string
	parked bool
}

func newTracker() *tracker {
	return &tracker{now: make(map[string]plan.History), stored: make(map[string]kept), told: make(map[string]told)}
}

// recall sets what an earlier life of the controller saw.
func (t *tracker) recall(histories map[string]plan.History) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.now = maps.Clone(histories)
	for name, h := range histories {
		t.stored[name] = kept{history: h}
	}
}

func (t *tracker) histories() map[string]plan.History {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.now)
}

// anyIll says whether some guest was unwell at the last look.
func (t *tracker) anyIll() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ill
}

// resumed notes that a guest was taken out of its park: it may be told again.
func (t *tracker) resumed(guest string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if last, known := t.told[guest]; known {
		last.parked = false
		t.told[guest] = last
	}
}

// forget drops a guest's history: another VM begins anew.
func (t *tracker) forget(guest string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.now, guest)
}

// carryOn tracks what was seen, one look after the other: none may overwrite what
// another has seen meanwhile. It returns the histories now, and those to store.
func (t *tracker) carryOn(track func(map[string]plan.History) map[string]plan.History, guests []string, now time.Time) (all, store map[string]plan.History) {
	t.mu.Lock()
	defer t.mu.Unlock()
	next := track(maps.Clone(t.now))
	store = make(map[string]plan.History)
	for name := range t.stored { // what the Spec dropped goes too
		if !slices.Contains(guests, name) {
			guests = append(guests, name)
		}
	}
	for _, name := range guests {
		h := next[name]
		if len(h) == 0 {
			delete(t.now, name)
		} else {
			t.now[name] = h
		}
		old, known := t.stored[name]
		if known && len(h) > 0 && sameButLast(old.history, h) && now.Sub(old.at) < historyEvery || !known && len(h) == 0 {
			continue
		}
		if store[name] = h; len(h) == 0 {
			delete(t.stored, name)
		} else {
			t.stored[name] = kept{history: h, at: now}
		}
	}
	return maps.Clone(t.now), store
}

// sameButLast says whether two histories differ in nothing but when they were
// looked at last.
func sameButLast(a, b plan.History) bool {
	return slices.EqualFunc(a, b, func(x, y plan.Sighting) bool {
		return x.Signal == y.Signal && x.Since.Equal(y.Since) && x.Text == y.Text && x.UUID == y.UUID
	})
}

// trackGuests carries the histories on with what was seen. With keep they are
// remembered, and so is what follows from them; without, they are only in w:
// somebody asks about a Spec that is not applied.
func (c *Controller) trackGuests(ctx context.Context, sp *spec.Spec, w *world, keep bool) {
	track := func(have map[string]plan.History) map[string]plan.History {
		w.histories = have
		return plan.Track(c.want(sp, *w), seen(sp, *w), c.now())
	}
	if !keep {
		w.histories = track(c.track.histories())
		return
	}
	if ctx.Err() != nil {
		return // what was not seen was not looked for
	}
	all, changed := c.track.carryOn(track, sp.GuestNames(), c.now())
	w.histories = all
	for name, h := range changed {
		if err := c.store.PutHistory(ctx, name, h); err != nil {
			c.log.Warn("history not written down", "guest", name, "error", err)
		}
	}
	states := plan.Survey(c.want(sp, *w), seen(sp, *w), c.now())
	c.track.mu.Lock()
	c.track.ill = slices.ContainsFunc(states, func(g plan.GuestState) bool { return g.Health == plan.Unwell })
	c.track.mu.Unlock()
	for _, g := range states {
		if c.worked(g.Name) {
			continue // what a run does to a guest is told by its steps
		}
		if g.Health == plan.Healthy {
			c.seenWell(ctx, w, g.Name)
		}
		if err := c.tellState(ctx, g); err != nil {
			c.log.Warn("story not written down", "guest", g.Name, "error", err)
		}
	}
}

// worked says whether a run of this controller works on a guest.
func (c *Controller) worked(guest string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.atWork[guest]
}

// work notes the guests that a run works on.
func (c *Controller) work(guests map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.atWork = guests
}

var errNothingNew = errors.New("nothing new")

// seenWell remembers that a guest was seen well: what was tried until then is over.
func (c *Controller) seenWell(ctx context.Context, w *world, name string) {
	rec, ok := w.guests[name]
	if !ok || !rec.ReadyAt.IsZero() && len(rec.Attempts) == 0 && !rec.Resting && !rec.Recreating {
		return
	}
	well := func(g *store.Guest) error {
		if g.UUID != rec.UUID || g.Generation != rec.Generation {
			return errNothingNew // not remembered yet, or another one by now
		}
		g.Attempts, g.Resting, g.Recreating = nil, false, false
		if g.ReadyAt.IsZero() {
			g.ReadyAt = c.now()
		}
		return nil
	}
	if err := well(&rec); err != nil {
		return
	}
	w.guests[name] = rec
	if _, err := c.store.ChangeGuest(ctx, nil, name, well); err != nil && !errors.Is(err, errNothingNew) {
		c.log.Warn("guest's health not written down", "guest", name, "error", err)
	}
}

// stateOf is how a guest does, in few words and in a sentence.
func stateOf(g plan.GuestState) (state, text string) {
	state = string(g.Health)
	if g.Signal != "" {
		state += "/" + string(g.Signal)
	}
	text = string(g.Health)
	if g.Signal != "" && g.Health == plan.Unwell {
		text += fmt.Sprintf(" (%s)", g.Signal)
	}
	if g.Reason != "" {
		text += ": " + g.Reason
	}
	return state, text
}

// tellState writes into a guest's story that it does otherwise than before, and
// once that it is parked.
func (c *Controller) tellState(ctx context.Context, g plan.GuestState) error {
	state, text := stateOf(g)
	c.track.mu.Lock()
	last, known := c.track.told[g.Name]
	c.track.mu.Unlock()
	now := told{state: state, parked: g.Parked != ""}
	if known && last == now {
		return nil
	}
	// A run of another controller may be at work on it, and tells it.
	if holder, held, err := c.store.Held(ctx); err != nil || held && holder.Controller != c.cfg.Name {
		return err
	}
	if !known {
		story, err := c.store.Story(ctx, g.Name, 0)
		if err != nil {
			return err
		}
		last = toldBy(story)
	}
	if last.state != now.state && (last.state != "" || g.VM != nil) {
		if err := c.store.AppendStory(ctx, g.Name, store.Entry{At: c.now(), Kind: kindSeen, Text: text, State: state}); err != nil {
			return err
		}
	}
	if now.parked && !last.parked {
		c.log.Warn("guest parked", "guest", g.Name, "reason", g.Parked)
		if err := c.store.AppendStory(ctx, g.Name, store.Entry{At: c.now(), Kind: kindParked, Text: strings.TrimPrefix(g.Parked, "parked: "), State: stateParked}); err != nil {
			return err
		}
	}
	c.track.mu.Lock()
	defer c.track.mu.Unlock()
	c.track.told[g.Name] = now
	return nil
}

// toldBy is what a story says last of its guest.
func toldBy(story []store.Entry) told {
	var t told
	for _, e := range story {
		switch {
		case e.State == stateParked:
			t.parked = true
		case e.State == stateResumed:
			t.parked = false
		case e.Kind == kindSeen:
			t.state = e.State
			t.parked = t.parked && !strings.HasPrefix(e.State, string(plan.Healthy))
		}
	}
	return t
}
