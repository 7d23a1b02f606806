package plan

import (
	"slices"
	"time"
)

// Signal is one thing that speaks against a guest, or for it.
type Signal string

// The signals, by what they may lead to (rule 6).
const (
	// One fresh look is enough.
	SignalStopped       Signal = "stopped"
	SignalPaused        Signal = "paused"
	SignalIOError       Signal = "io-error"
	SignalInternalError Signal = "internal-error"
	SignalPanicked      Signal = "guest-panicked"
	// It must last for timeouts.unwellAfter.
	SignalSilent Signal = "silent" // guest agent and SSH mute, on a host that answers
	// They must last for timeouts.join, with the k3s API answering.
	SignalK3sDown  Signal = "k3s-not-running"
	SignalNotReady Signal = "node-not-ready"
	// Shown, and never a reason to destroy.
	SignalSSHRefused   Signal = "ssh-refused"
	SignalWrongMachine Signal = "wrong-machine"
	SignalCloudInit    Signal = "cloud-init-failed"
	SignalWrongAddress Signal = "wrong-address"
	SignalMember       Signal = "membership" // not a member, or its member is not well
	SignalHalfBuilt    Signal = "half-built"
	// SignalWell is no complaint: the guest was seen booted.
	SignalWell Signal = "well"
)

// Sighting is a signal that was seen each time that anybody looked, from Since
// to Last. Text is what was seen last, in plain words.
type Sighting struct {
	Signal Signal    `json:"signal"`
	Since  time.Time `json:"since"`
	Last   time.Time `json:"last"`
	Text   string    `json:"text"`
	UUID   string    `json:"uuid"` // of the VM: another VM begins anew
}

// History is the sightings of one guest, one for each signal. SignalWell stays
// when others come: its Last is when the guest was seen well last.
type History []Sighting

// of gives the sighting of a signal of the VM with that uuid; ok is false when
// there is none.
func (h History) of(s Signal, uuid string) (Sighting, bool) {
	i := slices.IndexFunc(h, func(x Sighting) bool { return x.Signal == s && x.UUID == uuid })
	if i < 0 {
		return Sighting{}, false
	}
	return h[i], true
}

// maxGap is how long nobody may have looked for a signal to count as seen all
// the while.
const maxGap = 90 * time.Second

// Track carries the histories of the Spec's guests on with what was seen now.
// What could not be seen is neither there nor gone: its sightings stay as they
// are, and begin anew once nobody has seen them for longer than maxGap.
func Track(want Want, seen Seen, now time.Time) map[string]History {
	m := newModel(want, seen, now)
	all := map[string]History{}
	for _, g := range m.guests {
		if h := m.track(g); len(h) > 0 {
			all[g.name] = h
		}
	}
	return all
}

func (m *model) track(g *guestView) History {
	old := m.want.History[g.name]
	if g.vm == nil {
		if g.situation == Unseen || g.situation == InFlight {
			return slices.Clone(old)
		}
		return nil
	}
	uuid := g.vm.GetUuid()
	now, blind := m.sense(g)
	var next History
	for _, s := range now {
		if s.Signal == SignalSilent && (g.vm.GetLock() != "" || len(g.vm.GetTasks()) > 0) {
			continue // a backup freezes it: that is no silence of its own
		}
		s.UUID, s.Last = uuid, m.now
		if s.Since.IsZero() {
			s.Since = m.now
		}
		if was, ok := old.of(s.Signal, uuid); ok && m.now.Sub(was.Last) <= maxGap {
			s.Since = was.Since
		}
		next = append(next, s)
	}
	for _, was := range old {
		if was.UUID != uuid {
			continue
		}
		if _, still := next.of(was.Signal, uuid); !still && (was.Signal == SignalWell || slices.Contains(blind, was.Signal)) {
			next = append(next, was)
		}
	}
	return next
}

// since is since when a signal of the guest has been seen without a break, now
// included.
func (m *model) since(g *guestView, s Sighting) time.Time {
	if was, ok := m.want.History[g.name].of(s.Signal, g.vm.GetUuid()); ok && m.now.Sub(was.Last) <= maxGap {
		return was.Since
	}
	if !s.Since.IsZero() {
		return s.Since
	}
	return m.now
}

// bootedSince says whether the guest was seen well since t: what it did not tell
// then may be its boot.
func (m *model) bootedSince(g *guestView, t time.Time) bool {
	if g.remembered() && g.mem.ReadyAt.After(t) {
		return true
	}
	well, ok := m.want.History[g.name].of(SignalWell, g.vm.GetUuid())
	return ok && well.Last.After(t)
}
