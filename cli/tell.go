package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// tell prints the end of a run in a few lines: what became of each guest, and
// the sum, counted in guests as people do (the JSON counts steps).
func (a *app) tell(s *story, sum *homelabv1.Summary, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.warnings {
		fmt.Fprintf(a.out, "%s %s\n", a.paint(yellow, "!"), a.wrap(strings.TrimPrefix(n.GetGuest()+": ", ": ")+n.GetText(), 2))
	}
	bad := sum.GetFailed() + sum.GetSkipped() + sum.GetRefused()
	if len(s.steps)+len(s.guests) == 0 && bad == 0 && !sum.GetApiSilent() {
		if s.named {
			a.showTold(s)
			fmt.Fprintf(a.out, "Nothing to do.  (%.1f s)\n", took.Seconds())
			return
		}
		a.showLeft(s)
		fmt.Fprintf(a.out, "%s, nothing to do.  (%.1f s)\n", allHealthy(int(sum.GetUnchanged())), took.Seconds())
		return
	}
	if len(s.steps) == 0 && !s.named {
		a.showLeft(s)
	}
	a.tellGuests(s)
	for _, text := range s.found {
		fmt.Fprintln(a.out, a.wrap(text, 2))
	}
	line, verdict := fmt.Sprintf("%s in %s.", strings.Join(s.tally(sum), ", "), brief(took)), verdict(s, sum)
	switch {
	case verdict == "":
	case len(line)+2+len(verdict) > a.columns:
		line += "\n" + verdict
	default:
		line += "  " + verdict
	}
	fmt.Fprintln(a.out, line)
	if sum.GetApiSilent() {
		fmt.Fprintln(a.out, "The k3s API does not answer, so who is a member is unknown.  hlctl k3s status")
	}
}

// showLeft prints what a plan without steps says of what is left as it is: such a plan is
// not shown before it is carried out, and who changed the Spec would read that all is well.
func (a *app) showLeft(s *story) {
	for _, n := range s.told {
		if n.GetKind() == homelabv1.NoteKind_NOTE_KIND_INFO {
			fmt.Fprintln(a.out, a.wrap(strings.TrimPrefix(cmp.Or(n.GetGuest(), n.GetHost())+": ", ": ")+n.GetText(), 2))
		}
	}
}

// showTold prints what the plan says of those that need nothing.
func (a *app) showTold(s *story) {
	for _, n := range s.told {
		if n.GetText() == "nothing to do" {
			continue // it is said elsewhere
		}
		fmt.Fprintln(a.out, a.wrap(strings.TrimPrefix(cmp.Or(n.GetGuest(), n.GetHost())+": ", ": ")+n.GetText(), 2))
	}
}

// thinnest is how narrow a column of sentences may be.
const thinnest = 40

// tellGuests prints what became of images, and a line a guest: name, what became of it, how long it took,
// and the parts of that or the reason.
func (a *app) tellGuests(s *story) {
	type row struct{ name, word, colour, clock, rest string }
	var rows []row
	var wide [3]int
	add := func(r row, begun, end time.Time) {
		if !begun.IsZero() {
			r.clock = clockTime(end.Sub(begun))
		}
		rows = append(rows, r)
		wide = [3]int{max(wide[0], len(r.name)), max(wide[1], len(r.word)), max(wide[2], len(r.clock))}
	}
	for _, e := range s.imageEnds() {
		add(row{name: "image " + e.image, word: e.word, colour: e.colour, rest: e.rest}, e.begun, e.end)
	}
	for _, key := range s.order {
		g := s.guests[key]
		if g.image != "" {
			continue
		}
		r := row{name: g.name()}
		r.word, r.colour, r.rest = g.outcome()
		if r.rest == "" {
			r.rest = g.mostly()
		}
		add(r, g.begun, g.end)
	}
	for _, r := range rows {
		start := fmt.Sprintf("%-*s  %s", wide[0], r.name, a.paint(r.colour, fmt.Sprintf("%-*s", wide[1], r.word)))
		indent := wide[0] + 2 + wide[1] + 2
		if wide[2] > 0 {
			start += fmt.Sprintf("  %*s", wide[2], r.clock)
			indent += wide[2] + 3
		}
		// A long reason beside long names would be a thin column.
		if a.columns-indent < thinnest && len(r.rest) > a.columns-indent {
			fmt.Fprintf(a.out, "%s\n    %s\n", strings.TrimRight(start, " "), a.wrap(r.rest, 4))
			continue
		}
		gap := "  "
		if wide[2] > 0 {
			gap = "   "
		}
		fmt.Fprintln(a.out, strings.TrimRight(start+gap+a.wrap(r.rest, indent), " "))
	}
}

// tally counts guests by what became of them. An image that could not be had is
// counted too; one that was, only where it was all that was asked for.
func (s *story) tally(sum *homelabv1.Summary) []string {
	n := map[string]int{}
	images := true
	for _, g := range s.guests {
		images = images && g.image != ""
	}
	for _, g := range s.guests {
		switch {
		case g.image != "" && g.failed == "" && !images:
		case g.failed != "":
			n["failed"]++
		case g.note == "refused" || g.note == "waiting":
			n[g.note]++
		case g.note != "":
			n["skipped"]++
		default:
			n["done"]++
		}
	}
	list := parts(
		part{n["done"], "done"}, part{int(sum.GetUnchanged()), "unchanged"}, part{n["waiting"], "waiting"}, part{n["skipped"], "skipped"},
		part{n["refused"], "refused"}, part{n["failed"], "failed"},
	)
	if len(list) == 0 {
		return []string{"nothing to do"}
	}
	return list
}

// verdict says whether the run was partial or failed, and what to do then.
func verdict(s *story, sum *homelabv1.Summary) string {
	var text string
	switch exitCode(applyExit(sum)) {
	case exitPartial:
		text = "Partial"
	case exitFailed:
		text = "Failed"
	default:
		return ""
	}
	hosts, only := s.away()
	switch {
	case len(hosts) > 0 && only:
		return text + ": run it again when " + enumerate(hosts) + " " + isAre(len(hosts)) + " back."
	case s.onlyWaits():
		return text + ": run it again when the wait is over."
	case len(s.guests) > 0:
		return text + ": correct what is said above, then run it again."
	}
	return text + "."
}

// away are the hosts for whose silence guests were skipped, and whether nothing
// worse happened: what else was skipped is mostly for want of them.
func (s *story) away() (hosts []string, only bool) {
	only = true
	for _, key := range s.order {
		g := s.guests[key]
		switch {
		case g.failed == "" && g.note == "skipped" && silence(g.noteText):
			if g.host != "" && !slices.Contains(hosts, g.host) {
				hosts = append(hosts, g.host)
			}
		case g.failed != "" || g.note == "refused" || g.note == "busy" || g.note == "waiting":
			only = false
		}
	}
	return hosts, only
}

// onlyWaits says that nothing was left undone but what must ripen first.
func (s *story) onlyWaits() bool {
	waits := false
	for _, g := range s.guests {
		if g.failed != "" || g.note != "" && g.note != "waiting" {
			return false
		}
		waits = waits || g.note == "waiting"
	}
	return waits
}

// silence says whether a reason is that a host does not answer, in the planner's
// words. Only the wording of the last line hangs on it.
func silence(text string) bool {
	return strings.HasPrefix(text, "host silent") || strings.HasPrefix(text, "agent gone") || strings.HasPrefix(text, "host never seen")
}

// enumerate is "a", "a and b" or "a, b and c".
func enumerate(list []string) string {
	if len(list) < 2 {
		return strings.Join(list, "")
	}
	return strings.Join(list[:len(list)-1], ", ") + " and " + list[len(list)-1]
}

func isAre(n int) string {
	if n == 1 {
		return "is"
	}
	return "are"
}

// brief is 0.3 s for what is short, else 1:07.
func brief(d time.Duration) string {
	if d < 10*time.Second {
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return clockTime(d)
}
