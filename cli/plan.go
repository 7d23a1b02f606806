package cli

import (
	"fmt"
	"strings"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/spf13/cobra"
)

// action is how a step is shown: its mark, its word, and the colour of both.
type action struct{ mark, word, doing, done, colour string }

var actions = map[homelabv1.Action]action{
	homelabv1.Action_ACTION_FETCH:    {"+", "fetch", "fetching", "fetched", green},
	homelabv1.Action_ACTION_ROLLBACK: {"!", "roll back", "rolling back", "rolled back", red},
	homelabv1.Action_ACTION_CREATE:   {"+", "create", "creating", "created", green},
	homelabv1.Action_ACTION_START:    {"~", "start", "starting", "started", yellow},
	homelabv1.Action_ACTION_BOOT:     {"~", "boot", "booting", "booted", yellow},
	homelabv1.Action_ACTION_INIT:     {"+", "new cluster", "making the cluster", "made the cluster", green},
	homelabv1.Action_ACTION_JOIN:     {"+", "join", "joining", "joined", green},
	homelabv1.Action_ACTION_VERIFY:   {"~", "verify", "verifying", "verified", yellow},
}

// noteStyle is how a note's kind is shown.
type noteStyle struct{ mark, word, colour string }

var notes = map[homelabv1.NoteKind]noteStyle{
	homelabv1.NoteKind_NOTE_KIND_SKIPPED: {"-", "skipped", dim},
	homelabv1.NoteKind_NOTE_KIND_REFUSED: {"!", "refused", red},
	homelabv1.NoteKind_NOTE_KIND_BUSY:    {"-", "busy", yellow},
	homelabv1.NoteKind_NOTE_KIND_INFO:    {" ", "note", ""},
	homelabv1.NoteKind_NOTE_KIND_WARNING: {"!", "warning", yellow},
}

func (a *app) planCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "plan -f homelab.yaml", Short: "Show what would be done, and why; changes nothing", Args: cobra.NoArgs,
		Long: `plan asks the controller what would make the fleet as the Spec says, and why. It
changes nothing. Exit codes: 0 nothing to do, 2 there are steps, 3 something cannot
be done now and the rest is well, 1 failed.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := specForController(file)
			if err != nil {
				return err
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.close()
			resp, err := c.Plan(cmd.Context(), &controllerv1.PlanRequest{Spec: f.text, SpecName: f.name})
			if err != nil {
				return err
			}
			p := resp.GetPlan()
			if err := a.print(planJSON(p), func() { a.showPlan(p, file) }); err != nil {
				return err
			}
			return planExit(p)
		},
	}
	specFlag(cmd, &file)
	return cmd
}

// planExit is the contract's exit code of plan.
func planExit(p *homelabv1.Plan) error {
	c := countNotes(p)
	switch {
	case len(p.GetSteps()) > 0:
		return &ExitError{Code: exitSteps}
	case c.skipped+c.refused == 0:
		return nil
	case c.unchanged > 0:
		return &ExitError{Code: exitPartial}
	}
	return &ExitError{Code: exitFailed}
}

// counts of a plan, by guest or host.
type counts struct{ unchanged, skipped, refused int }

func countNotes(p *homelabv1.Plan) counts {
	var c counts
	for _, n := range p.GetNotes() {
		switch n.GetKind() {
		case homelabv1.NoteKind_NOTE_KIND_UNCHANGED:
			c.unchanged++
		case homelabv1.NoteKind_NOTE_KIND_SKIPPED, homelabv1.NoteKind_NOTE_KIND_BUSY:
			c.skipped++
		case homelabv1.NoteKind_NOTE_KIND_REFUSED:
			c.refused++
		}
	}
	return c
}

// group is everything a plan says of one guest, or of the fleet when there is none.
type group struct {
	guest, host string
	steps       []*homelabv1.Step
	notes       []*homelabv1.Note
}

// groups gathers a plan by guest, in the order of the steps, then of the notes.
// Fetches go to the guests that wait for them.
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
	for _, n := range p.GetNotes() {
		g := at(n.GetGuest(), n.GetHost())
		g.notes = append(g.notes, n)
	}
	return order
}

// showPlan prints a plan as people read it: grouped by guest, the reason in the
// sentence, what is left alone said, a sum at the end.
func (a *app) showPlan(p *homelabv1.Plan, file string) {
	for _, g := range groups(p) {
		a.showGroup(g)
	}
	c := countNotes(p)
	var sum []string
	for _, act := range []homelabv1.Action{
		homelabv1.Action_ACTION_CREATE, homelabv1.Action_ACTION_ROLLBACK, homelabv1.Action_ACTION_START,
		homelabv1.Action_ACTION_INIT, homelabv1.Action_ACTION_JOIN,
	} {
		n := 0
		for _, g := range groups(p) {
			if primary(g.steps).GetAction() == act {
				n++
			}
		}
		if n > 0 {
			sum = append(sum, fmt.Sprintf("%d to %s", n, strings.ReplaceAll(actions[act].word, "new cluster", "make the cluster")))
		}
	}
	if len(sum) == 0 && len(p.GetSteps()) > 0 {
		sum = append(sum, plural(len(p.GetSteps()), "step", "steps"))
	}
	if len(p.GetSteps()) == 0 && c.skipped+c.refused == 0 {
		fmt.Fprintf(a.out, "%s, nothing to do.\n", allHealthy(c.unchanged))
		return
	}
	if len(p.GetSteps()) == 0 {
		sum = append(sum, "nothing to do now")
	}
	for _, part := range []struct {
		n    int
		word string
	}{{c.unchanged, "unchanged"}, {c.skipped, "skipped"}, {c.refused, "refused"}} {
		if part.n > 0 {
			sum = append(sum, fmt.Sprintf("%d %s", part.n, part.word))
		}
	}
	fmt.Fprintf(a.out, "\n%s.", strings.Join(sum, ", "))
	if len(p.GetSteps()) > 0 && file != "" {
		fmt.Fprintf(a.out, "   hlctl apply -f %s", file)
	}
	fmt.Fprintln(a.out)
}

func allHealthy(n int) string {
	if n == 1 {
		return "The guest is healthy"
	}
	return fmt.Sprintf("All %d guests healthy", n)
}

// primary is the step that names what happens to a guest; the others follow from it.
func primary(steps []*homelabv1.Step) *homelabv1.Step {
	var best *homelabv1.Step
	rank := func(s *homelabv1.Step) int {
		switch s.GetAction() {
		case homelabv1.Action_ACTION_CREATE:
			return 0
		case homelabv1.Action_ACTION_ROLLBACK:
			return 1
		case homelabv1.Action_ACTION_START:
			return 2
		case homelabv1.Action_ACTION_INIT, homelabv1.Action_ACTION_JOIN:
			return 3
		}
		return 4
	}
	for _, s := range steps {
		if best == nil || rank(s) < rank(best) {
			best = s
		}
	}
	return best
}

func (a *app) showGroup(g *group) {
	visible := false
	for _, n := range g.notes {
		visible = visible || n.GetKind() != homelabv1.NoteKind_NOTE_KIND_UNCHANGED
	}
	if len(g.steps) == 0 && !visible {
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
	if first := primary(g.steps); first != nil {
		style := actions[first.GetAction()]
		fmt.Fprintf(a.out, "  %s %s %s\n", a.paint(style.colour, style.mark), a.paint(style.colour, fmt.Sprintf("%-10s", style.word)), a.wrap(first.GetReason(), 15))
		for _, s := range g.steps {
			if s == first {
				continue
			}
			style := actions[s.GetAction()]
			fmt.Fprintf(a.out, "      %-11s %s\n", style.word, a.wrap(s.GetReason(), 18))
		}
	}
	for _, n := range g.notes {
		if style, ok := notes[n.GetKind()]; ok {
			fmt.Fprintf(a.out, "  %s %s %s\n", a.paint(style.colour, style.mark), a.paint(style.colour, fmt.Sprintf("%-10s", style.word)), a.wrap(n.GetText(), 15))
		}
	}
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

// planDoc is a plan in JSON.
type planDoc struct {
	Digest string    `json:"digest"`
	Steps  []stepDoc `json:"steps"`
	Notes  []noteDoc `json:"notes"`
}

type stepDoc struct {
	ID         string   `json:"id"`
	Action     string   `json:"action"`
	Guest      string   `json:"guest"`
	Host       string   `json:"host"`
	After      []string `json:"after"`
	Reason     string   `json:"reason"`
	VMID       *int32   `json:"vmid"`
	UUID       string   `json:"uuid"`
	Image      string   `json:"image"`
	Generation int32    `json:"generation"`
}

type noteDoc struct {
	Kind  string `json:"kind"`
	Guest string `json:"guest"`
	Host  string `json:"host"`
	Text  string `json:"text"`
}

// enumWord is an enum value's name as the contract writes it: lower case,
// without the type's prefix, dashes for blanks.
func enumWord(name, prefix string) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(name, prefix)), "_", "-")
}

func numberOrNull(n int32) *int32 {
	if n == 0 {
		return nil
	}
	return &n
}

func planJSON(p *homelabv1.Plan) planDoc {
	doc := planDoc{Digest: p.GetDigest(), Steps: []stepDoc{}, Notes: []noteDoc{}}
	for _, s := range p.GetSteps() {
		doc.Steps = append(doc.Steps, stepDoc{
			ID: s.GetId(), Action: enumWord(s.GetAction().String(), "ACTION_"), Guest: s.GetGuest(), Host: s.GetHost(),
			After: list(s.GetAfter()), Reason: s.GetReason(), VMID: numberOrNull(s.GetVmid()), UUID: s.GetUuid(),
			Image: s.GetImage(), Generation: s.GetGeneration(),
		})
	}
	for _, n := range p.GetNotes() {
		doc.Notes = append(doc.Notes, noteDoc{enumWord(n.GetKind().String(), "NOTE_KIND_"), n.GetGuest(), n.GetHost(), n.GetText()})
	}
	return doc
}
