package cli

import (
	"fmt"
	"slices"
	"strings"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// action is how a step is shown: its mark, its words, and the colour of both.
type action struct{ mark, word, doing, done, colour string }

var actions = map[homelabv1.Action]action{
	homelabv1.Action_ACTION_FETCH:    {"+", "fetch", "fetching", "fetched", green},
	homelabv1.Action_ACTION_ROLLBACK: {"!", "roll back", "undoing", "rolled back", red},
	homelabv1.Action_ACTION_CREATE:   {"+", "create", "creating", "created", green},
	homelabv1.Action_ACTION_START:    {"~", "start", "starting", "started", yellow},
	homelabv1.Action_ACTION_BOOT:     {"~", "boot", "booting", "booted", yellow},
	homelabv1.Action_ACTION_INIT:     {"+", "new cluster", "joining", "made the cluster", green},
	homelabv1.Action_ACTION_JOIN:     {"+", "join", "joining", "joined", green},
	homelabv1.Action_ACTION_VERIFY:   {"~", "verify", "verifying", "verified", yellow},
}

// noteStyle is how a note's kind is shown.
type noteStyle struct{ mark, word, colour string }

// notes has no entry for what is unchanged: that is only counted.
var notes = map[homelabv1.NoteKind]noteStyle{
	homelabv1.NoteKind_NOTE_KIND_SKIPPED: {"-", "skipped", yellow},
	homelabv1.NoteKind_NOTE_KIND_REFUSED: {"!", "refused", red},
	homelabv1.NoteKind_NOTE_KIND_BUSY:    {"-", "busy", yellow},
	homelabv1.NoteKind_NOTE_KIND_INFO:    {" ", "note", ""},
	homelabv1.NoteKind_NOTE_KIND_WARNING: {"!", "warning", yellow},
}

// group is everything a plan says of one guest, or of a host or the cluster when
// there is none.
type group struct {
	guest, host string
	steps       []*homelabv1.Step
	notes       []*homelabv1.Note
}

// groups gathers a plan by guest, in the order of the steps, then of the notes.
// A fetch stands with the first of the guests that wait for it.
func groups(p *homelabv1.Plan) []*group {
	var order []*group
	byGuest := map[string]*group{}
	at := func(guest, host string) *group {
		key := guest
		if guest == "" {
			key = "host " + host
		}
		g, ok := byGuest[key]
		if !ok {
			g = &group{guest: guest, host: host}
			byGuest[key] = g
			order = append(order, g)
		}
		if g.host == "" {
			g.host = host
		}
		return g
	}
	fetches := map[string]*homelabv1.Step{}
	for _, s := range p.GetSteps() {
		if s.GetGuest() == "" {
			fetches[s.GetId()] = s
			continue
		}
		g := at(s.GetGuest(), s.GetHost())
		for _, id := range s.GetAfter() {
			if f := fetches[id]; f != nil {
				g.steps = append(g.steps, f)
				delete(fetches, id)
			}
		}
		g.steps = append(g.steps, s)
	}
	for _, s := range p.GetSteps() {
		if fetches[s.GetId()] != nil {
			g := at("", s.GetHost())
			g.steps = append(g.steps, s)
		}
	}
	for _, n := range p.GetNotes() {
		g := at(n.GetGuest(), n.GetHost())
		g.notes = append(g.notes, n)
	}
	return order
}

// sharers are the guests that wait for each fetch.
func sharers(p *homelabv1.Plan) map[string][]string {
	byStep := map[string][]string{}
	for _, s := range p.GetSteps() {
		for _, id := range s.GetAfter() {
			if s.GetGuest() != "" && !slices.Contains(byStep[id], s.GetGuest()) {
				byStep[id] = append(byStep[id], s.GetGuest())
			}
		}
	}
	return byStep
}

// ranks orders actions by what names best what happens to a guest; the others
// follow from it. What destroys comes first.
var ranks = []homelabv1.Action{
	homelabv1.Action_ACTION_ROLLBACK, homelabv1.Action_ACTION_CREATE, homelabv1.Action_ACTION_START,
	homelabv1.Action_ACTION_INIT, homelabv1.Action_ACTION_JOIN, homelabv1.Action_ACTION_BOOT,
	homelabv1.Action_ACTION_VERIFY, homelabv1.Action_ACTION_FETCH,
}

// primary is the step that names what happens to a guest.
func primary(steps []*homelabv1.Step) *homelabv1.Step {
	if len(steps) == 0 {
		return nil
	}
	return slices.MinFunc(steps, func(a, b *homelabv1.Step) int {
		return slices.Index(ranks, a.GetAction()) - slices.Index(ranks, b.GetAction())
	})
}

// destroying counts the steps of a plan that destroy something.
func destroying(p *homelabv1.Plan) int {
	n := 0
	for _, s := range p.GetSteps() {
		if s.GetAction() == homelabv1.Action_ACTION_ROLLBACK {
			n++
		}
	}
	return n
}

// showPlan prints a plan as people read it: grouped by guest, the reason in the
// sentence, what is left alone said, a sum at the end. With a file it says what
// to type next.
func (a *app) showPlan(p *homelabv1.Plan, file string) {
	all, shared := groups(p), sharers(p)
	for _, g := range all {
		a.showGroup(g, shared)
	}
	c := countNotes(p)
	if len(p.GetSteps()) == 0 && c.skipped+c.refused == 0 {
		fmt.Fprintf(a.out, "%s, nothing to do.\n", allHealthy(c.unchanged))
		return
	}
	var sum []string
	for _, act := range ranks {
		n := 0
		for _, g := range all {
			if primary(g.steps).GetAction() == act {
				n++
			}
		}
		sum = append(sum, parts(part{n, "to " + strings.ReplaceAll(actions[act].word, "new cluster", "make the cluster")})...)
	}
	if len(p.GetSteps()) == 0 {
		sum = append(sum, "nothing to do now")
	}
	sum = append(sum, parts(part{c.unchanged, "unchanged"}, part{c.skipped, "skipped"}, part{c.refused, "refused"})...)
	line := strings.Join(sum, ", ") + "."
	if len(p.GetSteps()) > 0 && file != "" {
		next := "hlctl apply -f " + file
		if len(line)+3+len(next) > a.columns {
			line += "\n  " + next
		} else {
			line += "   " + next
		}
	}
	fmt.Fprintf(a.out, "\n%s\n", line)
}

// part is a number of something, left out when there is none.
type part struct {
	n    int
	word string
}

func parts(list ...part) []string {
	var texts []string
	for _, p := range list {
		if p.n > 0 {
			texts = append(texts, fmt.Sprintf("%d %s", p.n, p.word))
		}
	}
	return texts
}

func allHealthy(n int) string {
	switch n {
	case 0:
		return "The Spec has no guests"
	case 1:
		return "The only guest is healthy"
	}
	return fmt.Sprintf("All %d guests healthy", n)
}

func (a *app) showGroup(g *group, shared map[string][]string) {
	visible := len(g.steps) > 0
	for _, n := range g.notes {
		_, shown := notes[n.GetKind()]
		visible = visible || shown
	}
	if !visible {
		return
	}
	switch {
	case g.guest != "" && g.host != "":
		fmt.Fprintf(a.out, "%s  on %s\n", g.guest, g.host)
	case g.guest != "" || g.host != "":
		fmt.Fprintf(a.out, "%s\n", g.guest+g.host)
	default:
		fmt.Fprintln(a.out, "cluster")
	}
	first := primary(g.steps)
	if first != nil {
		style := actions[first.GetAction()]
		a.sentence(style.mark, style.word, style.colour, why(first, shared))
	}
	for _, s := range g.steps {
		if s != first {
			fmt.Fprintf(a.out, "      %-11s %s\n", actions[s.GetAction()].word, a.wrap(why(s, shared), 18))
		}
	}
	for _, n := range g.notes {
		if style, ok := notes[n.GetKind()]; ok {
			a.sentence(style.mark, style.word, style.colour, n.GetText())
		}
	}
}

func (a *app) sentence(mark, word, colour, text string) {
	fmt.Fprintf(a.out, "  %s %s %s\n", a.paint(colour, mark), a.paint(colour, fmt.Sprintf("%-11s", word)), a.wrap(text, 16))
}

// why is a step's reason with what it is about: the image that is fetched and
// for whom else, what is destroyed.
func why(s *homelabv1.Step, shared map[string][]string) string {
	switch s.GetAction() {
	case homelabv1.Action_ACTION_FETCH:
		text := s.GetImage() + ": " + s.GetReason()
		if guests := shared[s.GetId()]; len(guests) > 1 {
			text += "; for " + strings.Join(guests, " and ")
		}
		return text
	case homelabv1.Action_ACTION_ROLLBACK:
		return s.GetReason() + "; destroys what there is of it"
	}
	return s.GetReason()
}

// wrap breaks a sentence at the width of the terminal (80 columns elsewhere),
// further lines indented.
func (a *app) wrap(text string, indent int) string {
	width := max(a.columns-indent, 30)
	var b strings.Builder
	for i, line := range strings.Split(strings.TrimSpace(text), "\n") {
		if i > 0 {
			b.WriteString("\n" + strings.Repeat(" ", indent))
		}
		column := 0
		for _, word := range strings.Fields(line) {
			n := len([]rune(word))
			if column > 0 && column+1+n > width {
				b.WriteString("\n" + strings.Repeat(" ", indent))
				column = 0
			}
			if column > 0 {
				b.WriteByte(' ')
				column++
			}
			b.WriteString(word)
			column += n
		}
	}
	return b.String()
}
