package cli

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// story follows a run by guest: what each does now, and what became of it. The
// live picture and the plain lines are told from it. Safe for use by several
// goroutines: the picture is drawn by one of its own.
type story struct {
	mu       sync.Mutex
	guests   map[string]*progress
	order    []string
	steps    map[string]*homelabv1.Step
	over     map[string]bool // steps done, failed or skipped
	warnings []*homelabv1.Note
	told     []*homelabv1.Note // what the plan says of a guest that needs nothing
	found    []string          // what the run found out that people should know
	named    bool              // one thing was asked for by name, not a whole Spec
	started  time.Time         // zero before the run's first step may begin
	wait     wait              // of the whole run
	heard    bool              // whether anything came from the controller
	wide     [2]int            // of the longest guest or image, and host
}

// wait is what a run waits for before it can go on.
type wait struct {
	text  string
	since time.Time
	limit time.Duration // 0 is none
}

// progress is one guest's part in a run; an image's on one host, or a host's, when it
// has no guest.
type progress struct {
	guest, host string
	image       string
	steps       []*homelabv1.Step
	working     []*homelabv1.Step // that run; of an image on a host two may at once
	phase, text string
	since       time.Time     // of the present step
	limit       time.Duration // of the present wait; 0 is none
	begun, end  time.Time
	done        []homelabv1.Action
	lasted      []lasted
	failed      string
	note        string // the kind of what was left alone: skipped, refused...
	noteText    string
	kept        string // where its data disks stay when it is destroyed for good
}

// lasted is how long one of a guest's steps took.
type lasted struct {
	action homelabv1.Action
	d      time.Duration
	end    time.Time
}

func newStory(p *homelabv1.Plan) *story {
	s := &story{guests: map[string]*progress{}, steps: map[string]*homelabv1.Step{}, over: map[string]bool{}}
	for _, steps := range imageGroups(p) {
		for _, step := range steps {
			g := s.imageAt(imageName(step), step.GetHost())
			g.steps = append(g.steps, step)
		}
	}
	homes := homesOf(p)
	for _, step := range p.GetSteps() {
		s.steps[step.GetId()] = step
		if onImage(step) {
			continue
		}
		host := homes[step.GetGuest()]
		if step.GetGuest() == "" {
			host = step.GetHost()
		}
		g := s.at(step.GetGuest(), host)
		g.steps = append(g.steps, step)
		if step.GetAction() == homelabv1.Action_ACTION_DETACH {
			g.kept = heldText(step)
		}
	}
	for _, n := range p.GetNotes() {
		switch n.GetKind() {
		case homelabv1.NoteKind_NOTE_KIND_SKIPPED, homelabv1.NoteKind_NOTE_KIND_REFUSED, homelabv1.NoteKind_NOTE_KIND_BUSY,
			homelabv1.NoteKind_NOTE_KIND_WAITING:
			g := s.at(n.GetGuest(), n.GetHost())
			g.note, g.noteText = notes[n.GetKind()].word, n.GetText()
			if n.GetUntil() != nil {
				g.noteText = "until " + n.GetUntil().AsTime().Local().Format("15:04") + ": " + g.noteText
			}
		case homelabv1.NoteKind_NOTE_KIND_WARNING:
			s.warnings = append(s.warnings, n)
		case homelabv1.NoteKind_NOTE_KIND_UNCHANGED, homelabv1.NoteKind_NOTE_KIND_INFO:
			s.told = append(s.told, n)
		}
	}
	return s
}

// replan takes the plan that is carried out in place of the one that was shown. Its
// steps are the same ones, but what it says of the rest is newer: somebody who was busy
// may have been waited for.
func (s *story) replan(p *homelabv1.Plan) {
	now := newStory(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.order, s.guests, s.steps, s.over, s.warnings, s.told, s.wide = now.order, now.guests, now.steps, now.over, now.warnings, now.told, now.wide
}

// heldText says where data disks are after a DETACH.
func heldText(s *homelabv1.Step) string {
	verb := "stay"
	if len(s.GetSlots()) == 1 {
		verb = "stays"
	}
	return fmt.Sprintf("%s %s in holder VM %d", enumerate(s.GetSlots()), verb, s.GetHolderVmid())
}

func (s *story) at(guest, host string) *progress {
	key := guest
	if guest == "" {
		key = "host " + host
	}
	return s.under(key, progress{guest: guest, host: host})
}

func (s *story) imageAt(image, host string) *progress {
	return s.under("image "+image+" "+host, progress{image: image, host: host})
}

// under is what there is under a key, or begins it.
func (s *story) under(key string, empty progress) *progress {
	g, ok := s.guests[key]
	if !ok {
		g = &empty
		s.guests[key] = g
		s.order = append(s.order, key)
		s.wide = [2]int{max(s.wide[0], len(g.name())), max(s.wide[1], len(g.host))}
	}
	return g
}

// name is what a line is about.
func (g *progress) name() string {
	switch {
	case g.guest != "":
		return g.guest
	case g.image != "":
		return g.image
	case g.host != "":
		return g.host
	}
	return "cluster"
}

// concerned is whom an event is about: a guest, an image on a host, or a host; nil
// for nobody.
func (s *story) concerned(e *homelabv1.Event) *progress {
	step := s.steps[e.GetStep()]
	switch {
	case e.GetGuest() != "":
		return s.at(e.GetGuest(), e.GetHost())
	case step == nil || step.GetGuest() != "":
		return nil
	case onImage(step):
		return s.imageAt(imageName(step), step.GetHost())
	}
	return s.at("", step.GetHost())
}

// event takes an event in and tells whether anything to be seen changed.
func (s *story) event(e *homelabv1.Event, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard = true
	step := s.steps[e.GetStep()]
	style := actions[step.GetAction()]
	// How long something took is told by the clock of the controller, which makes
	// all events that begin and end a step; what goes on is told by ours.
	at := now
	if e.GetTime() != nil {
		at = e.GetTime().AsTime()
	}
	switch e.GetKind() {
	case homelabv1.EventKind_EVENT_KIND_RUN_STARTED:
		s.started, s.wait = now, wait{}
	case homelabv1.EventKind_EVENT_KIND_WAITING:
		changed := s.wait.text != e.GetText()
		if changed {
			s.wait.since = now
		}
		s.wait.text, s.wait.limit = e.GetText(), e.GetLimit().AsDuration()
		return changed
	case homelabv1.EventKind_EVENT_KIND_STEP_STARTED:
		s.wait = wait{}
		if g := s.concerned(e); g != nil {
			g.working = append(g.working, step)
			g.phase, g.text, g.since, g.limit = style.doing, "", now, e.GetLimit().AsDuration()
			if g.begun.IsZero() {
				g.begun = at
			}
		}
	case homelabv1.EventKind_EVENT_KIND_STEP_PROGRESS:
		return s.progressed(e)
	case homelabv1.EventKind_EVENT_KIND_NOTE:
		if e.GetStep() != "" { // else it is the plan's, which is told already
			s.found = append(s.found, e.GetText())
		}
		return false
	case homelabv1.EventKind_EVENT_KIND_STEP_DONE:
		s.over[e.GetStep()] = true
		if g := s.concerned(e); g != nil {
			g.ended(step, at)
			g.done = append(g.done, step.GetAction())
			g.lasted = append(g.lasted, lasted{step.GetAction(), e.GetTook().AsDuration(), at})
		}
	case homelabv1.EventKind_EVENT_KIND_STEP_FAILED, homelabv1.EventKind_EVENT_KIND_STEP_SKIPPED:
		s.over[e.GetStep()] = true
		if g := s.concerned(e); g != nil {
			g.ended(step, at)
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

// ended takes note of the end of a step. What is left at work is what goes on.
func (g *progress) ended(step *homelabv1.Step, at time.Time) {
	g.phase, g.text, g.end = "", "", at
	g.working = slices.DeleteFunc(g.working, func(w *homelabv1.Step) bool { return w.GetId() == step.GetId() })
	if n := len(g.working); n > 0 {
		g.phase = actions[g.working[n-1].GetAction()].doing
	}
}

func (s *story) progressed(e *homelabv1.Event) bool {
	g := s.concerned(e)
	if g == nil {
		return false
	}
	phase := e.GetPhase()
	if len(phase) > phaseWidth {
		phase = "" // its own word is short
	}
	changed := g.text != e.GetText() || phase != "" && g.phase != phase
	if phase != "" {
		g.phase = phase
	}
	g.text = e.GetText()
	if e.GetLimit() != nil {
		g.limit = e.GetLimit().AsDuration()
	}
	return changed
}

// begun says whether the controller has told anything of the run.
func (s *story) begun() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.heard
}

// mostly are the steps that account for a guest's time, "boot 0:31, join 0:22";
// empty when it was one of them alone. The rest is small, or waiting.
func (g *progress) mostly() string {
	var all []string
	total := g.end.Sub(g.begun)
	for _, l := range g.lasted {
		switch {
		case l.d < time.Second || l.d < total/10:
		case l.d > total*9/10:
			return ""
		default:
			all = append(all, actions[l.action].word+" "+clockTime(l.d))
		}
	}
	if len(all) == 0 {
		return ""
	}
	return "(" + strings.Join(all, ", ") + ")"
}

// atWork names the guests with a step running: "k3s-2 (booting)".
func (s *story) atWork() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	for _, key := range s.order {
		switch g := s.guests[key]; {
		case g.phase == "":
		case g.image != "":
			list = append(list, "image "+g.image+" on "+g.host+" ("+g.phase+")")
		default:
			list = append(list, g.name()+" ("+g.phase+")")
		}
	}
	return list
}

// finished says that nothing more comes for a guest.
func (s *story) finished(g *progress) bool {
	if g.phase != "" {
		return false
	}
	for _, step := range g.steps {
		if !s.over[step.GetId()] {
			return false
		}
	}
	return true
}

// waitsFor is what a guest's next step waits for; empty when it may begin.
func (s *story) waitsFor(g *progress) string {
	for _, step := range g.steps {
		if s.over[step.GetId()] {
			continue
		}
		for _, id := range step.GetAfter() {
			first := s.steps[id]
			switch {
			case first == nil || s.over[id]:
			case first.GetAction() == homelabv1.Action_ACTION_FETCH:
				return "until image " + imageName(first) + " is fetched"
			case first.GetAction() == homelabv1.Action_ACTION_TEMPLATE:
				return "until the " + imageObject(first) + " is made"
			case first.GetGuest() == g.guest || first.GetGuest() == "":
			default:
				return "until " + first.GetGuest() + " has " + actions[first.GetAction()].done
			}
		}
		break
	}
	return ""
}

// deeds is what was done to a guest, in a word or two; empty for nothing.
func (g *progress) deeds() string {
	word, minor := "", true
	for _, d := range deeds {
		made := creation.in(g.done)
		if d == newCluster || d == joining || d == rollback && made || !d.in(g.done) {
			continue
		}
		word, minor = d.did, d.minor
		if d == deletion && deedOf(g.steps) != deletion {
			word = "destroyed" // and was to be made anew
		}
		break
	}
	switch {
	case newCluster.in(g.done):
		return strings.TrimPrefix(word+", new cluster", ", ")
	case joining.in(g.done) && minor:
		return "joined"
	case joining.in(g.done) && word != "rejoined":
		return word + " and joined"
	}
	return word
}

// outcome is what became of a guest: a word or two, its colour, and the reason
// of what was not done.
func (g *progress) outcome() (word, colour, text string) {
	deeds := g.deeds()
	switch {
	case g.failed != "" && deeds == "destroyed":
		return "failed", red, g.failed + "\nits VM is destroyed and not made anew yet; the same command goes on from there"
	case g.failed != "":
		return "failed", red, g.failed
	case g.note != "" && deeds != "":
		return deeds, yellow, g.note + ": " + g.noteText
	case g.note == "refused":
		return "refused", red, g.noteText
	case g.note != "":
		return g.note, yellow, g.noteText
	case deeds == "":
		return "done", green, ""
	case deeds == deletion.did && g.kept != "":
		return deeds, green, g.kept
	}
	return deeds, green, ""
}
