package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// story follows a run by guest: what each does now, and what became of it. Both
// the live picture and the plain lines are told from it.
type story struct {
	a       *app
	verbose bool
	guests  map[string]*progress
	order   []string
	steps   map[string]*homelabv1.Step
	waiting map[string][]string // step id of a fetch -> guests that wait for it
	total   int
	ended   int
	started time.Time
	note    string // what the whole run waits for
}

// progress is one guest's part in a run.
type progress struct {
	guest, host string
	phase, text string
	since       time.Time
	limit       time.Duration
	begun       time.Time
	end         time.Time
	left        int // steps not ended
	done        []homelabv1.Action
	parts       []string // "boot 0:31"
	failed      string
	note        string // the kind of what was left alone: skipped, refused...
	noteText    string
}

func (s *story) plan(p *homelabv1.Plan) {
	s.guests, s.order, s.total, s.ended = map[string]*progress{}, nil, len(p.GetSteps()), 0
	s.steps, s.waiting = map[string]*homelabv1.Step{}, map[string][]string{}
	for _, step := range p.GetSteps() {
		s.steps[step.GetId()] = step
		if step.GetGuest() == "" {
			continue
		}
		s.at(step.GetGuest(), step.GetHost()).left++
		for _, id := range step.GetAfter() {
			s.waiting[id] = append(s.waiting[id], step.GetGuest())
		}
	}
	for _, n := range p.GetNotes() {
		switch n.GetKind() {
		case homelabv1.NoteKind_NOTE_KIND_SKIPPED, homelabv1.NoteKind_NOTE_KIND_REFUSED, homelabv1.NoteKind_NOTE_KIND_BUSY:
			g := s.at(n.GetGuest(), n.GetHost())
			g.note, g.noteText = notes[n.GetKind()].word, n.GetText()
		}
	}
}

func (s *story) at(guest, host string) *progress {
	key := guest
	if guest == "" {
		key = "host " + host
	}
	g, ok := s.guests[key]
	if !ok {
		g = &progress{guest: guest, host: host}
		s.guests[key] = g
		s.order = append(s.order, key)
	}
	return g
}

// concerned are the guests that an event is about: those that wait for a fetch, too.
func (s *story) concerned(e *homelabv1.Event) []*progress {
	if e.GetGuest() != "" {
		return []*progress{s.at(e.GetGuest(), e.GetHost())}
	}
	var list []*progress
	for _, guest := range s.waiting[e.GetStep()] {
		if step := s.steps[e.GetStep()]; step.GetGuest() == "" {
			list = append(list, s.at(guest, e.GetHost()))
		}
	}
	return list
}

// event takes an event in and tells whether anything to be seen changed.
func (s *story) event(e *homelabv1.Event, now time.Time) bool {
	step := s.steps[e.GetStep()]
	style := actions[step.GetAction()]
	switch e.GetKind() {
	case homelabv1.EventKind_EVENT_KIND_RUN_STARTED:
		s.started = now
	case homelabv1.EventKind_EVENT_KIND_WAITING:
		s.note = e.GetText()
	case homelabv1.EventKind_EVENT_KIND_STEP_STARTED:
		s.note = ""
		for _, g := range s.concerned(e) {
			g.phase, g.text, g.since, g.limit = style.doing, "", now, e.GetLimit().AsDuration()
			if g.begun.IsZero() {
				g.begun = now
			}
		}
	case homelabv1.EventKind_EVENT_KIND_STEP_PROGRESS:
		changed := false
		for _, g := range s.concerned(e) {
			if e.GetPhase() != "" {
				g.phase = e.GetPhase()
			}
			changed = changed || g.text != e.GetText()
			g.text = e.GetText()
			if e.GetLimit() != nil {
				g.limit = e.GetLimit().AsDuration()
			}
		}
		return changed
	case homelabv1.EventKind_EVENT_KIND_STEP_DONE:
		s.ended++
		for _, g := range s.concerned(e) {
			g.phase, g.text, g.end = "", "", now
			if step.GetGuest() != "" {
				g.left--
				g.done = append(g.done, step.GetAction())
				if d := e.GetTook().AsDuration(); d >= time.Second {
					g.parts = append(g.parts, style.word+" "+clockTime(d))
				}
			}
		}
	case homelabv1.EventKind_EVENT_KIND_STEP_FAILED, homelabv1.EventKind_EVENT_KIND_STEP_SKIPPED:
		s.ended++
		for _, g := range s.concerned(e) {
			g.phase, g.text, g.end = "", "", now
			if step.GetGuest() != "" {
				g.left--
			}
			if g.failed == "" && e.GetKind() == homelabv1.EventKind_EVENT_KIND_STEP_FAILED {
				g.failed = e.GetText()
			} else if g.failed == "" && g.note == "" {
				g.note, g.noteText = "skipped", e.GetText()
			}
		}
	default:
		return false
	}
	return true
}

// outcome is what became of a guest, in one word or two.
func (g *progress) outcome() (word, colour string) {
	switch {
	case g.failed != "":
		return "failed", red
	case g.note == "refused":
		return "refused", red
	case g.note != "":
		return g.note, yellow
	case slices.Contains(g.done, homelabv1.Action_ACTION_CREATE):
		word = "created"
	case slices.Contains(g.done, homelabv1.Action_ACTION_START):
		word = "started"
	case slices.Contains(g.done, homelabv1.Action_ACTION_BOOT):
		word = "booted"
	}
	for _, a := range []homelabv1.Action{homelabv1.Action_ACTION_INIT, homelabv1.Action_ACTION_JOIN} {
		if slices.Contains(g.done, a) {
			word = strings.TrimPrefix(word+" and "+map[homelabv1.Action]string{
				homelabv1.Action_ACTION_INIT: "made the cluster", homelabv1.Action_ACTION_JOIN: "joined",
			}[a], " and ")
		}
	}
	if word == "" {
		word = "done"
	}
	return word, green
}

// tell prints the end of a run in a few lines.
func (s *story) tell(sum *homelabv1.Summary, took time.Duration) {
	a := s.a
	if s.total == 0 && sum.GetFailed()+sum.GetSkipped()+sum.GetRefused() == 0 && !sum.GetApiSilent() {
		fmt.Fprintf(a.out, "%s, nothing to do.  (%.1f s)\n", allHealthy(int(sum.GetUnchanged())), took.Seconds())
		return
	}
	var rows [][3]string
	wide := [2]int{}
	for _, key := range s.order {
		g := s.guests[key]
		word, _ := g.outcome()
		name := g.guest
		if name == "" {
			name = g.host
		}
		var rest string
		switch {
		case g.failed != "":
			rest = g.failed
		case g.note != "":
			rest = g.noteText
		case !g.begun.IsZero():
			rest = clockTime(g.end.Sub(g.begun))
			if len(g.parts) > 0 {
				rest += "   (" + strings.Join(g.parts, ", ") + ")"
			}
		}
		rows = append(rows, [3]string{name, word, rest})
		wide[0], wide[1] = max(wide[0], len(name)), max(wide[1], len(word))
	}
	for i, r := range rows {
		_, colour := s.guests[s.order[i]].outcome()
		fmt.Fprintf(a.out, "%-*s  %s  %s\n", wide[0], r[0], a.paint(colour, fmt.Sprintf("%-*s", wide[1], r[1])), a.wrap(r[2], wide[0]+wide[1]+4))
	}
	parts := []string{plural(int(sum.GetDone()), "step done", "steps done")}
	for _, p := range []struct {
		n    int32
		word string
	}{{sum.GetUnchanged(), "unchanged"}, {sum.GetSkipped(), "skipped"}, {sum.GetRefused(), "refused"}, {sum.GetFailed(), "failed"}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.word))
		}
	}
	fmt.Fprintf(a.out, "%s in %s.", strings.Join(parts, ", "), clockTime(took))
	switch err := applyExit(sum); {
	case err == nil:
	case ExitCode(err) == exitPartial:
		fmt.Fprint(a.out, "  Partial: run it again when that is mended.")
	default:
		fmt.Fprint(a.out, "  Failed.")
	}
	if sum.GetApiSilent() {
		fmt.Fprint(a.out, "  The k3s API does not answer: membership is unknown.")
	}
	fmt.Fprintln(a.out)
}
