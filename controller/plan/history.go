package plan

import "time"

// Signal is one thing that speaks against a guest.
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

// History is the sightings of one guest, one for each signal.
type History []Sighting
