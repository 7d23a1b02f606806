// Package plan compares what a Spec wants with what the hosts were seen to
// hold, and says what would make them equal: steps, and notes on what is left
// alone and why. All decisions are taken here and nowhere else.
//
// It is pure: values in, values out, the time too. It asks no host, reads no
// file and starts nothing; the same input in any order gives the same plan.
// Carrying a plan out, and remembering, it leaves to package controller.
//
// Make classifies each guest first (situation.go, one named Situation a guest)
// and then makes steps (guest.go, join.go). The rules are those of "Rules of
// the planner" in docs/architecture.md; a rule's number is named where it is kept.
package plan

import (
	"slices"
	"strings"
	"time"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/mark"
	"github.com/homeiac/homelab/internal/spec"
)

// Want is what people want and what is remembered of earlier runs.
type Want struct {
	Spec *spec.Spec
	// SpecDigest stands for the Spec in the plan's digest. Empty: it is
	// computed from the Spec's content, without comments and places.
	SpecDigest string
	Fleet      string
	Guests     map[string]Remembered // by guest, also of guests that the Spec dropped
	Images     map[string]Image      // by name: what it stands for
	// Cluster is nil when no cluster is remembered. With an empty CaHash its
	// cluster-init was begun and is not known to have ended.
	Cluster *homelabv1.ClusterRecord
	// LastVMIDs are the VMIDs last seen on a host, containers too; used for
	// hosts that do not answer.
	LastVMIDs map[string][]int32
	Paused    string // why all changes are paused; empty when they are not
	// History is since when each guest was seen to be unwell, as Track made it.
	History map[string]History
	// Destroy are the guests whose destruction was confirmed by name.
	Destroy map[string]bool
	// Operation is what a person asked for by name; nil: the Spec is made so.
	Operation *Operation
	// HealOnly leaves out all but what unwell guests need: the controller acts by
	// itself.
	HealOnly bool
	// VerifyMark says whether a VM is the guest of ours that its mark names.
	// Nil: nothing is ours.
	VerifyMark func(vm *homelabv1.VirtualMachine, guest string) Ownership
}

// Remembered is what is remembered of one guest. All of it may be missing: then
// less is done, never more.
type Remembered struct {
	Name, Host string
	VMID       int32
	UUID       string
	Generation int32
	MACs       []string
	HostKeys   []string
	MachineID  string // empty until it was booted for the first time
	Addresses  []string
	// Image is the name of the image that it was made of, ImageSHA256 its digest, and
	// CDROM and CDROMSHA256 those of the ISO file in its drive.
	Image, ImageSHA256 string
	CDROM, CDROMSHA256 string
	MemoryBytes        int64 // as resolved at creation
	Joined             bool  // an INIT or JOIN of this generation ended well
	// Made says that it was remembered before its CREATE was sent, and that
	// what was learned since is in here. Only then does an empty MachineID
	// prove that it never booted, and a false Joined that no join of it ended;
	// of a guest that was recovered from its mark nothing is proved.
	Made       bool
	Unverified bool // its VERIFY step failed or was not begun

	NodeName string    // as it was made with; of a guest that the Spec dropped all that tells
	Role     spec.Role // likewise; empty for no member
	// DataDisks are the disks that outlive it, as it was made with.
	DataDisks []*homelabv1.Disk
	// Holder is the VM that its data disks were to be moved to, remembered before
	// they were; zero when they were seen back.
	Holder Holder
	// Began is when the creation of the present generation was begun, ReadyAt
	// when that generation was first well. Zero when not known, or not yet.
	Began, ReadyAt time.Time
	// Failures counts the generations in a row before this one that never were
	// well.
	Failures int
	// Attempts are what was tried since it was last seen well, oldest first.
	Attempts []Attempt
	// Resting says that it was last stopped on purpose, by us or as a standby, and
	// was not seen to run since: it is started when it is to run.
	Resting bool
	// Recreating says that its recreation was begun (its VM is being stopped or
	// destroyed for that) and it was not well since.
	Recreating bool
}

// Attempt is one try to get a guest well without making it anew.
type Attempt struct {
	Action homelabv1.Action // START, RESUME or RESET
	At     time.Time
}

// Holder is a VM without a guest that keeps data disks of one for a while. Its
// mark is that of HolderName.
type Holder struct {
	VMID int32
	UUID string // empty while it is still to be made
}

// HolderName stands in the mark of a holder VM where the guest's name would.
func HolderName(guest string) string { return "holder@" + guest }

// HeldGuest is the guest whose holder a mark names; ok is false when it names none.
func HeldGuest(name string) (guest string, ok bool) { return strings.CutPrefix(name, "holder@") }

// NoGuest says whether the name in a mark of ours is that of a holder or a template
// and no guest's.
func NoGuest(name string) bool {
	_, holder := HeldGuest(name)
	_, template := mark.TemplateOf(name)
	return holder || template
}

// Seen is what the hosts were seen to hold.
type Seen struct {
	Hosts map[string]Host // every host of the Spec
	// External is what the server of an existing cluster (k3s.existing) told;
	// nil when it was not asked or did not answer.
	External *homelabv1.K3SLook
}

// Host is one host as it was seen. Only of an online or degraded one is the
// observation what there is now; of others it is the last one, and old.
type Host struct {
	State       homelabv1.HostState
	Since       time.Time // since when it is in a state other than online; zero when not known
	Reason      string
	Observation *homelabv1.Observation
	ClockOffset time.Duration                   // how far its clock is ahead of ours
	Looked      map[string]*homelabv1.GuestLook // by guest
}

// Ownership is whether a VM is ours.
type Ownership struct {
	Ours       bool
	Generation int32  // from the mark, when ours
	Why        string // why it is not ours: it has no mark
}

// VerifyWith makes the VerifyMark of a fleet with its key.
func VerifyWith(key mark.Key, fleet string) func(*homelabv1.VirtualMachine, string) Ownership {
	return func(vm *homelabv1.VirtualMachine, guest string) Ownership {
		generation, err := mark.Verify(key, fleet, guest, vm.GetVmid(), vm.GetUuid(), vm.GetMark())
		if err != nil {
			return Ownership{Why: err.Error()}
		}
		return Ownership{Ours: true, Generation: generation}
	}
}

// Make makes the plan. It changes none of its arguments, and the plan shares
// nothing with them. Steps are in an order in which they can be carried out:
// all fetches, roll-backs, templates, creates, starts, boots, inits, joins,
// verifications.
func Make(want Want, seen Seen, now time.Time) *homelabv1.Plan {
	m := newModel(want, seen, now)
	if want.Operation != nil {
		m.planOperation(*want.Operation)
	} else {
		m.planSpec()
	}
	if want.HealOnly {
		m.onlyHealing()
	}
	p := &homelabv1.Plan{Steps: m.sortedSteps(), Notes: m.sortedNotes()}
	p.ByName = slices.Compact(slices.Sorted(slices.Values(m.byNameOnly)))
	p.Digest = digest(p.Steps, m.specDigest())
	return p
}

// planSpec makes seen equal wanted.
func (m *model) planSpec() {
	m.planTemplateUndo()
	for _, g := range m.guests {
		m.planGuest(g)
	}
	m.planCluster(m.planRecreations())
	for _, g := range m.guests {
		m.finishGuest(g)
	}
	m.noteHosts()
	m.noteDropped()
}
