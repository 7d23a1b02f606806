package plan

import (
	"cmp"
	"container/heap"
	"slices"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// sequence is the order in which steps are shown and carried out, as far as what
// they wait for allows.
var sequence = map[homelabv1.Action]int{}

func init() {
	for i, a := range []homelabv1.Action{
		homelabv1.Action_ACTION_FETCH, homelabv1.Action_ACTION_ROLLBACK, homelabv1.Action_ACTION_TEMPLATE, homelabv1.Action_ACTION_SNAPSHOT, homelabv1.Action_ACTION_SAVE,
		homelabv1.Action_ACTION_DRAIN, homelabv1.Action_ACTION_HALT, homelabv1.Action_ACTION_STOP, homelabv1.Action_ACTION_LEAVE,
		homelabv1.Action_ACTION_CLEAN, homelabv1.Action_ACTION_DETACH, homelabv1.Action_ACTION_DESTROY, homelabv1.Action_ACTION_ADOPT,
		homelabv1.Action_ACTION_CREATE, homelabv1.Action_ACTION_ATTACH, homelabv1.Action_ACTION_RESUME, homelabv1.Action_ACTION_RESET,
		homelabv1.Action_ACTION_START, homelabv1.Action_ACTION_BOOT, homelabv1.Action_ACTION_INIT, homelabv1.Action_ACTION_JOIN,
		homelabv1.Action_ACTION_SOAK, homelabv1.Action_ACTION_VERIFY, homelabv1.Action_ACTION_PRUNE,
	} {
		sequence[a] = i
	}
}

// before orders steps that do not wait for each other: by action, inits and
// joins by their place in the chain, else by id.
func (m *model) before(a, b *homelabv1.Step) int {
	return cmp.Or(
		cmp.Compare(sequence[a.GetAction()], sequence[b.GetAction()]),
		cmp.Compare(m.rank[a.GetId()], m.rank[b.GetId()]),
		cmp.Compare(a.GetId(), b.GetId()),
	)
}

// sortedSteps are the steps in an order in which they can be carried out: of
// those whose predecessors are all there, always the first by before.
func (m *model) sortedSteps() []*homelabv1.Step {
	slices.SortFunc(m.steps, m.before)
	missing, dependents := map[string]int{}, map[string][]*homelabv1.Step{}
	there := make(map[string]bool, len(m.steps))
	for _, s := range m.steps {
		there[s.GetId()] = true
	}
	ready := &queue{before: m.before}
	for _, s := range m.steps {
		for _, id := range s.GetAfter() {
			if there[id] {
				missing[s.GetId()]++
				dependents[id] = append(dependents[id], s)
			}
		}
		if missing[s.GetId()] == 0 {
			ready.list = append(ready.list, s) // sorted, so a heap already
		}
	}
	sorted := make([]*homelabv1.Step, 0, len(m.steps))
	for ready.Len() > 0 {
		s := heap.Pop(ready).(*homelabv1.Step)
		sorted = append(sorted, s)
		for _, d := range dependents[s.GetId()] {
			if missing[d.GetId()]--; missing[d.GetId()] == 0 {
				heap.Push(ready, d)
			}
		}
	}
	return sorted
}

// queue is a heap of steps.
type queue struct {
	list   []*homelabv1.Step
	before func(a, b *homelabv1.Step) int
}

// Len implements heap.Interface.
func (q *queue) Len() int { return len(q.list) }

// Less implements heap.Interface.
func (q *queue) Less(i, j int) bool { return q.before(q.list[i], q.list[j]) < 0 }

// Swap implements heap.Interface.
func (q *queue) Swap(i, j int) { q.list[i], q.list[j] = q.list[j], q.list[i] }

// Push implements heap.Interface.
func (q *queue) Push(x any) { q.list = append(q.list, x.(*homelabv1.Step)) }

// Pop implements heap.Interface.
func (q *queue) Pop() any {
	s := q.list[len(q.list)-1]
	q.list = q.list[:len(q.list)-1]
	return s
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
	Recreate  int // guests to be destroyed and made anew
	Delete    int // guests to be destroyed for good
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
	creates := map[string]bool{}
	for _, s := range p.GetSteps() {
		creates[s.GetGuest()] = creates[s.GetGuest()] || s.GetAction() == homelabv1.Action_ACTION_CREATE
	}
	for _, s := range p.GetSteps() { // in the order of actions
		if s.GetGuest() == "" || counted[s.GetGuest()] {
			continue
		}
		switch s.GetAction() {
		case homelabv1.Action_ACTION_DESTROY:
			if creates[s.GetGuest()] {
				c.Recreate++
			} else {
				c.Delete++
			}
		case homelabv1.Action_ACTION_CREATE:
			c.Create++
		case homelabv1.Action_ACTION_START:
			c.Start++
		case homelabv1.Action_ACTION_INIT, homelabv1.Action_ACTION_JOIN:
			c.Join++
		case homelabv1.Action_ACTION_FETCH, homelabv1.Action_ACTION_VERIFY, homelabv1.Action_ACTION_RESET, homelabv1.Action_ACTION_RESUME,
			homelabv1.Action_ACTION_CLEAN, homelabv1.Action_ACTION_ADOPT, homelabv1.Action_ACTION_SOAK:
		default:
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
		case homelabv1.NoteKind_NOTE_KIND_SKIPPED, homelabv1.NoteKind_NOTE_KIND_BUSY, homelabv1.NoteKind_NOTE_KIND_WAITING:
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
