package cli

import (
	"fmt"
	"slices"
	"strings"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// A recreation, a deletion and a leave are one entry of a plan, though of many
// steps: the deed with its reason, and below it a few lines in the order in which
// things happen.

// chainLine is one of those lines, with the reason that is worth a place.
type chainLine struct{ text, why string }

// links are the lines of a chain: the actions on each, in their order. The reason
// is that of the last of them that is named in tells. SAVE goes without saying.
var links = []struct{ actions, tells []homelabv1.Action }{
	{
		of(homelabv1.Action_ACTION_SNAPSHOT, homelabv1.Action_ACTION_DRAIN, homelabv1.Action_ACTION_HALT, homelabv1.Action_ACTION_STOP,
			homelabv1.Action_ACTION_LEAVE),
		of(homelabv1.Action_ACTION_LEAVE),
	},
	{of(homelabv1.Action_ACTION_CLEAN), nil},
	{of(homelabv1.Action_ACTION_DETACH, homelabv1.Action_ACTION_ATTACH), nil},
	{of(homelabv1.Action_ACTION_DESTROY, homelabv1.Action_ACTION_CREATE), nil},
	{
		of(homelabv1.Action_ACTION_START, homelabv1.Action_ACTION_BOOT, homelabv1.Action_ACTION_INIT, homelabv1.Action_ACTION_JOIN, homelabv1.Action_ACTION_VERIFY),
		of(homelabv1.Action_ACTION_INIT, homelabv1.Action_ACTION_JOIN),
	},
	{of(homelabv1.Action_ACTION_SOAK), of(homelabv1.Action_ACTION_SOAK)},
}

func chainLines(g *group, d *deed) []chainLine {
	var lines []chainLine
	told := leading(g.steps, d)
	for _, link := range links {
		var line chainLine
		var texts []string
		for _, action := range link.actions {
			for _, s := range g.steps {
				if s.GetAction() != action {
					continue
				}
				text := phrase(s, d)
				if action == homelabv1.Action_ACTION_ATTACH && len(texts) > 0 {
					text = "and back when it is made"
				}
				texts = append(texts, text)
				if s != told && slices.Contains(link.tells, action) {
					line.why = sums(s.GetReason())
				}
			}
		}
		if len(texts) > 0 {
			line.text = strings.Join(texts, ", ")
			lines = append(lines, line)
		}
	}
	return lines
}

// sums is the arithmetic of the quorum in a reason, when that holds some: what
// else it says is told by the line already.
func sums(reason string) string {
	if _, rest, ok := strings.Cut(reason, "("); ok && strings.HasSuffix(rest, ")") && strings.Contains(rest, " -> ") {
		return strings.TrimSuffix(rest, ")")
	}
	return reason
}

// phrase is what a step does, as a part of a sentence.
func phrase(s *homelabv1.Step, d *deed) string {
	switch s.GetAction() {
	case homelabv1.Action_ACTION_SNAPSHOT:
		return strings.TrimSuffix("snapshot etcd on "+s.GetThrough(), " on ")
	case homelabv1.Action_ACTION_LEAVE:
		return "leave the cluster"
	case homelabv1.Action_ACTION_CLEAN:
		return "remove k3s and its data from the guest"
	case homelabv1.Action_ACTION_DETACH:
		text := fmt.Sprintf("move %s to holder VM %d", enumerate(s.GetSlots()), s.GetHolderVmid())
		switch {
		case d != deletion:
			return text
		case len(s.GetSlots()) == 1:
			return text + ", where it stays"
		}
		return text + ", where they stay"
	case homelabv1.Action_ACTION_DESTROY:
		if !s.GetDestroys() {
			return "forget what is remembered of it"
		}
		return "destroy VM " + fmt.Sprint(s.GetVmid())
	case homelabv1.Action_ACTION_CREATE:
		return "create it again with the same VMID, MAC and uuid"
	case homelabv1.Action_ACTION_ATTACH:
		if len(s.GetSlots()) == 0 {
			return "move its data disks back"
		}
		return "move " + enumerate(s.GetSlots()) + " back"
	case homelabv1.Action_ACTION_JOIN:
		return "join again"
	case homelabv1.Action_ACTION_SOAK:
		return "soak"
	}
	return actions[s.GetAction()].word
}

// chainLoss is what is lost by it; empty for nothing.
func chainLoss(g *group, d *deed) string {
	var text string
	switch d {
	case recreate:
		text = "destroys its system disk"
	case deletion:
		switch last := stepOf(g.steps, homelabv1.Action_ACTION_DESTROY); {
		case !last.GetDestroys():
			return ""
		case last.GetVmid() == last.GetHolderVmid():
			return fmt.Sprintf("destroys the empty holder VM %d", last.GetVmid())
		default:
			text = fmt.Sprintf("destroys VM %d and its system disk", last.GetVmid())
		}
	default:
		return ""
	}
	if g.byName {
		text += "; to be confirmed by its name"
	}
	return text
}

// destroys says whether a step destroys what cannot be had again. What undoes a
// half-built VM does, and what removes an image, also when nobody said so.
func destroys(s *homelabv1.Step) bool {
	return s.GetDestroys() || s.GetAction() == homelabv1.Action_ACTION_ROLLBACK || s.GetAction() == homelabv1.Action_ACTION_PRUNE
}

// destroyed are the steps of a plan that destroy something, by VM, or by template
// or file of an image.
func destroyed(p *homelabv1.Plan) map[string]*homelabv1.Step {
	found := map[string]*homelabv1.Step{}
	for _, s := range p.GetSteps() {
		switch {
		case !destroys(s):
		case onImage(s):
			found[fmt.Sprint("image ", s.GetHost(), " ", s.GetVmid(), " ", s.GetStorage(), " ", s.GetImage(), " ", s.GetImageSha256())] = s
		default:
			found[fmt.Sprint(s.GetHost(), " ", s.GetVmid(), " ", s.GetGuest())] = s
		}
	}
	return found
}

// destroysMore names the guests, and what of images, of which the plan now destroys
// something that the plan shown did not announce; empty when there are none. What apply waits for is
// an announcement of what may follow when the wait is over.
func destroysMore(shown, now *homelabv1.Plan) string {
	announced, waits := destroyed(shown), awaited(shown)
	var names []string
	for key, s := range destroyed(now) {
		if announced[key] == nil && !slices.Contains(waits, s.GetGuest()) {
			names = append(names, loses(s))
		}
	}
	slices.Sort(names)
	return enumerate(slices.Compact(names))
}

// awaited are the guests for which apply waits before it does anything: what was
// seen of them must last, or somebody works on them.
func awaited(p *homelabv1.Plan) []string {
	var guests []string
	for _, n := range p.GetNotes() {
		switch n.GetKind() {
		case homelabv1.NoteKind_NOTE_KIND_WAITING, homelabv1.NoteKind_NOTE_KIND_BUSY:
			if n.GetGuest() != "" {
				guests = append(guests, n.GetGuest())
			}
		}
	}
	return guests
}
