package plan

import (
	"cmp"
	"slices"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// sortedSteps are the steps in an order in which they can be carried out: by
// action, inits and joins by their place in the chain, else by id.
func (m *model) sortedSteps() []*homelabv1.Step {
	slices.SortFunc(m.steps, func(a, b *homelabv1.Step) int {
		return cmp.Or(
			cmp.Compare(a.GetAction(), b.GetAction()),
			cmp.Compare(m.rank[a.GetId()], m.rank[b.GetId()]),
			cmp.Compare(a.GetId(), b.GetId()),
		)
	})
	return m.steps
}

// sortedNotes are by guest, those of hosts and the cluster last, each reason
// once.
func (m *model) sortedNotes() []*homelabv1.Note {
	slices.SortStableFunc(m.notes, func(a, b *homelabv1.Note) int {
		return cmp.Or(
			-cmp.Compare(min(len(a.GetGuest()), 1), min(len(b.GetGuest()), 1)),
			cmp.Compare(a.GetGuest(), b.GetGuest()),
			cmp.Compare(a.GetHost(), b.GetHost()),
			cmp.Compare(a.GetKind(), b.GetKind()),
			cmp.Compare(a.GetText(), b.GetText()),
		)
	})
	return slices.CompactFunc(m.notes, func(a, b *homelabv1.Note) bool {
		return a.GetGuest() == b.GetGuest() && a.GetHost() == b.GetHost() && a.GetKind() == b.GetKind() && a.GetText() == b.GetText()
	})
}

// Count is a plan in numbers, for people and for exit codes.
type Count struct {
	Steps     int
	Create    int // guests to be made
	Start     int // guests to be started that exist
	Join      int // guests that start or join the cluster and exist already
	Guests    int // guests with at least one step
	Unchanged int // guests that need nothing
	Skipped   int // notes of something silent, unknown or busy
	Refused   int // notes of something that a person must change
	Warnings  int
}

// Summarise counts a plan. A guest is counted once, by its earliest action.
func Summarise(p *homelabv1.Plan) Count {
	c := Count{Steps: len(p.GetSteps())}
	counted := map[string]bool{}
	for _, s := range p.GetSteps() { // in the order of actions
		if s.GetGuest() == "" || counted[s.GetGuest()] {
			continue
		}
		switch s.GetAction() {
		case homelabv1.Action_ACTION_CREATE:
			c.Create++
		case homelabv1.Action_ACTION_START:
			c.Start++
		case homelabv1.Action_ACTION_INIT, homelabv1.Action_ACTION_JOIN:
			c.Join++
		case homelabv1.Action_ACTION_ROLLBACK, homelabv1.Action_ACTION_BOOT:
			continue // what follows tells more
		}
		counted[s.GetGuest()] = true
	}
	guests := map[string]bool{}
	for _, s := range p.GetSteps() {
		if s.GetGuest() != "" {
			guests[s.GetGuest()] = true
		}
	}
	c.Guests = len(guests)
	for _, n := range p.GetNotes() {
		switch n.GetKind() {
		case homelabv1.NoteKind_NOTE_KIND_UNCHANGED:
			c.Unchanged++
		case homelabv1.NoteKind_NOTE_KIND_SKIPPED, homelabv1.NoteKind_NOTE_KIND_BUSY:
			c.Skipped++
		case homelabv1.NoteKind_NOTE_KIND_REFUSED:
			c.Refused++
		case homelabv1.NoteKind_NOTE_KIND_WARNING:
			c.Warnings++
		}
	}
	return c
}

// Partial says whether something was left out that should be done: a reason
// for exit code 3.
func (c Count) Partial() bool { return c.Skipped+c.Refused > 0 }
