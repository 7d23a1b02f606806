package cli

import (
	"fmt"
	"slices"
	"strings"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// group is everything a plan says of one guest, or of a host or the cluster when
// there is none.
type group struct {
	guest, host string
	steps       []*homelabv1.Step
	notes       []*homelabv1.Note
	byName      bool // its destruction must be confirmed by its name
}

// groups gathers a plan by guest, in the order of the steps, then of the notes. What
// is done to images is in none: see imageGroups.
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
	homes := homesOf(p)
	for _, s := range p.GetSteps() {
		if onImage(s) {
			continue
		}
		g := at(s.GetGuest(), homes[s.GetGuest()])
		if s.GetGuest() == "" {
			g = at("", s.GetHost())
		}
		g.steps = append(g.steps, s)
	}
	for _, n := range p.GetNotes() {
		g := at(n.GetGuest(), n.GetHost())
		g.notes = append(g.notes, n)
	}
	for _, g := range order {
		g.byName = g.guest != "" && slices.Contains(p.GetByName(), g.guest)
	}
	return order
}

// homesOf are the hosts of a plan's guests: a step that is done through another
// server names that one's host.
func homesOf(p *homelabv1.Plan) map[string]string {
	homes := map[string]string{}
	for _, s := range p.GetSteps() {
		if homes[s.GetGuest()] == "" && (s.GetThrough() == "" || s.GetThrough() == s.GetGuest()) {
			homes[s.GetGuest()] = s.GetHost()
		}
	}
	return homes
}

// showPlan prints a plan as people read it: grouped by guest, the reason in the
// sentence, what is left alone said, a sum at the end and, where it is known, what
// to type next.
func (a *app) showPlan(p *homelabv1.Plan, next string) {
	a.showImages(p)
	all := groups(p)
	for _, g := range all {
		a.showGroup(g)
	}
	c := countNotes(p)
	if len(p.GetSteps()) == 0 && c.skipped+c.refused+c.waiting == 0 {
		fmt.Fprintf(a.out, "%s, nothing to do.\n", allHealthy(c.unchanged))
		return
	}
	sum, had := imageSums(p)
	for _, d := range deeds {
		n := 0
		for _, g := range all {
			if deedOf(g.steps) == d {
				n++
			}
		}
		sum = append(sum, parts(part{n, d.sum()})...)
	}
	sum = append(sum, had...)
	if len(p.GetSteps()) == 0 {
		sum = append(sum, "nothing to do now")
	}
	sum = append(sum, parts(
		part{c.unchanged, "unchanged"}, part{c.waiting, "waiting"}, part{c.skipped, "skipped"}, part{c.refused, "refused"},
	)...)
	line := strings.Join(sum, ", ") + "."
	if len(p.GetSteps()) > 0 && next != "" {
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

// markWidth is where a sentence begins behind its mark and its word.
const markWidth = 16

func (a *app) showGroup(g *group) {
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
	a.showSteps(g)
	for _, n := range g.notes {
		if style, ok := notes[n.GetKind()]; ok {
			a.sentence(style.mark, style.word, style.colour, n.GetText()+a.until(n), "")
		}
	}
}

// showSteps prints what is done to a guest: its deed with the reason, and below
// it what else belongs to that.
func (a *app) showSteps(g *group) {
	d := deedOf(g.steps)
	if d == nil {
		return
	}
	if d.chain {
		a.sentence(d.mark, d.word, d.colour, leading(g.steps, d).GetReason(), chainLoss(g, d))
		for _, line := range chainLines(g, d) {
			fmt.Fprintf(a.out, "      %s\n", a.beside(line.text, line.why, "", 6, 8))
		}
		return
	}
	first := leading(g.steps, d)
	a.sentence(d.mark, d.word, d.colour, first.GetReason(), loss(first))
	for _, s := range g.steps {
		if s != first {
			fmt.Fprintf(a.out, "      %-11s %s\n", actions[s.GetAction()].word, a.beside(s.GetReason(), loss(s), red, 18, 18))
		}
	}
}

// leading is the step whose reason is that of the whole deed. What is destroyed is
// stopped for the reason of it all.
func leading(steps []*homelabv1.Step, d *deed) *homelabv1.Step {
	if stop := stepOf(steps, homelabv1.Action_ACTION_STOP); stop != nil && (d == recreate || d == deletion) {
		return stop
	}
	return stepOf(steps, d.needs[0])
}

// stepOf is the first step of an action; nil when there is none.
func stepOf(steps []*homelabv1.Step, action homelabv1.Action) *homelabv1.Step {
	for _, s := range steps {
		if s.GetAction() == action {
			return s
		}
	}
	return nil
}

// sentence prints one mark, its word and a text; what is lost stands beside the
// text where there is room, else below it.
func (a *app) sentence(mark, word, colour, text, lost string) {
	fmt.Fprintf(a.out, "  %s %s %s\n", a.paint(colour, mark), a.paint(colour, fmt.Sprintf("%-11s", word)), a.beside(text, lost, colour, markWidth, markWidth))
}

// beside is a text with more beside it when both fit on one line, else below it.
func (a *app) beside(text, more, colour string, indent, below int) string {
	fits := indent+len([]rune(text))+3+len([]rune(more)) <= a.columns && !strings.Contains(text+more, "\n")
	switch {
	case more == "":
		return a.wrap(text, indent)
	case text == "":
		return a.paint(colour, a.wrap(more, indent))
	case fits:
		return text + "   " + a.paint(colour, more)
	}
	return a.wrap(text, indent) + "\n" + strings.Repeat(" ", below) + a.paint(colour, a.wrap(more, below))
}

// until is how long a note's wait takes; empty for a note that waits for nothing.
func (a *app) until(n *homelabv1.Note) string {
	if n.GetUntil() == nil {
		return ""
	}
	return "; until " + upTo(n.GetUntil().AsTime(), a.now())
}

// loss is what a step destroys; empty for nothing.
func loss(s *homelabv1.Step) string {
	switch {
	case s.GetAction() == homelabv1.Action_ACTION_ROLLBACK:
		return "destroys what there is of it"
	case destroys(s) && s.GetVmid() != 0:
		return fmt.Sprintf("destroys VM %d", s.GetVmid())
	case destroys(s):
		return "destroys"
	}
	return ""
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
