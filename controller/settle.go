package controller

import (
	"context"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/homeiac/homelab/controller/plan"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/pause"
)

// ripeSlack is how much longer than a note says is waited: the last look must
// come after that time.
const ripeSlack = 5 * time.Second

// settle observes and plans, waiting first for steps that an earlier run left at
// work, for locks and tasks on our guests, and for evidence that must last before
// anything may follow from it; all bounded.
func (r *run) settle(ctx context.Context) (world, *homelabv1.Plan, error) {
	flight, busy := r.c.now().Add(r.c.pace.flight), r.c.now().Add(r.c.pace.busy)
	ripe := make(map[string]time.Time)
	told := ""
	for {
		w, err := r.c.look(ctx, r.req.sp, r.req.asked, true)
		if err != nil {
			return world{}, nil, err
		}
		if ctx.Err() != nil {
			return world{}, nil, why(ctx)
		}
		if err := known(r.req.sp, w); err != nil {
			return world{}, nil, err
		}
		p := r.c.plan(r.req.sp, w)
		if r.announced == nil { // the first look is what whoever confirmed was shown
			r.announce(p, w)
		}
		wait := waiting{pace: r.c.pace.poll}
		if steps := inFlight(w.sights); len(steps) > 0 {
			wait.text, wait.until = waitingFor(steps[0]), flight
			wait.what = wait.text
		} else if note := busyNote(p); note != "" {
			wait.text, wait.until = "waiting: "+note, busy
			wait.what = wait.text
		} else if !r.req.asked.heal {
			wait = r.ripening(p, ripe)
		}
		left := wait.until.Sub(r.c.now())
		if wait.text == "" || left <= 0 {
			return w, p, nil
		}
		if wait.what != told {
			told = wait.what
			if err := r.begin(ctx); err != nil {
				return world{}, nil, err
			}
			r.journal.add(&homelabv1.Event{
				Kind: homelabv1.EventKind_EVENT_KIND_WAITING, Guest: wait.guest, Host: wait.host, Text: wait.text, Limit: durationpb.New(left),
			})
		}
		if !pause.For(ctx, min(wait.pace, left)) {
			return world{}, nil, why(ctx)
		}
	}
}

// announce notes of which guests it was said that they are waited for: what
// follows from that was to be expected by whoever saw the plan. Of one that was
// well and only busy nothing is to be expected.
func (r *run) announce(p *homelabv1.Plan, w world) {
	r.announced = make(map[string]bool)
	unwell := make(map[string]bool)
	for _, g := range plan.Survey(r.c.want(r.req.sp, w), seen(r.req.sp, w), r.c.now()) {
		unwell[g.Name] = g.Health == plan.Unwell
	}
	for _, n := range p.GetNotes() {
		waits := n.GetKind() == homelabv1.NoteKind_NOTE_KIND_WAITING
		if waits || n.GetKind() == homelabv1.NoteKind_NOTE_KIND_BUSY && unwell[n.GetGuest()] {
			r.announced[n.GetGuest()] = true
		}
	}
	for _, s := range inFlight(w.sights) {
		r.announced[s.GetGuest()] = true
	}
}

// surprising is a guest that another plan than the one that was confirmed
// destroys, and of which nothing was said; empty for none.
func (r *run) surprising(p *homelabv1.Plan) string {
	for _, s := range p.GetSteps() {
		if s.GetDestroys() && !r.announced[s.GetGuest()] {
			return s.GetGuest()
		}
	}
	return ""
}

// waiting is what is waited for before a plan is carried out.
type waiting struct {
	what        string // tells one wait from another
	text        string
	guest, host string
	until       time.Time
	pace        time.Duration
}

// ripening is what must last longer before anything may follow from it. Of each
// guest it is waited for until the time that was told first: evidence that comes
// and goes must not hold up a run without end.
func (r *run) ripening(p *homelabv1.Plan, until map[string]time.Time) waiting {
	wait := waiting{pace: r.c.pace.ripen}
	var whats, texts []string
	for _, n := range p.GetNotes() {
		if n.GetKind() != homelabv1.NoteKind_NOTE_KIND_WAITING || n.GetUntil() == nil {
			continue
		}
		what := n.GetGuest() + "@" + n.GetHost()
		if _, known := until[what]; !known {
			until[what] = n.GetUntil().AsTime().Add(r.c.pace.slack)
		}
		if !until[what].After(r.c.now()) {
			continue
		}
		if until[what].After(wait.until) {
			wait.until = until[what]
		}
		whats = append(whats, what)
		texts = append(texts, strings.TrimSpace(n.GetGuest()+" "+n.GetText()))
		wait.guest, wait.host = n.GetGuest(), n.GetHost()
	}
	if len(texts) == 0 {
		return wait
	}
	if len(texts) > 1 {
		wait.guest, wait.host = "", ""
	}
	wait.what, wait.text = strings.Join(whats, " "), "waiting: "+strings.Join(texts, "; ")
	return wait
}

func busyNote(p *homelabv1.Plan) string {
	for _, n := range p.GetNotes() {
		if n.GetKind() == homelabv1.NoteKind_NOTE_KIND_BUSY {
			return strings.TrimSpace(n.GetGuest() + " " + n.GetText())
		}
	}
	return ""
}
