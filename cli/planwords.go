package cli

import (
	"slices"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// action is how one step is shown: its word in a plan, while it goes on, and when
// it is done.
type action struct{ word, doing, done string }

var actions = map[homelabv1.Action]action{
	homelabv1.Action_ACTION_FETCH:    {"fetch", "fetching", "fetched"},
	homelabv1.Action_ACTION_ROLLBACK: {"roll back", "undoing", "rolled back"},
	homelabv1.Action_ACTION_CREATE:   {"create", "creating", "created"},
	homelabv1.Action_ACTION_START:    {"start", "starting", "started"},
	homelabv1.Action_ACTION_BOOT:     {"boot", "booting", "booted"},
	homelabv1.Action_ACTION_INIT:     {"new cluster", "joining", "made the cluster"},
	homelabv1.Action_ACTION_JOIN:     {"join", "joining", "joined"},
	homelabv1.Action_ACTION_VERIFY:   {"verify", "verifying", "verified"},
	homelabv1.Action_ACTION_SAVE:     {"save", "saving", "configuration saved"},
	homelabv1.Action_ACTION_SNAPSHOT: {"snapshot", "snapshot", "snapshot taken"},
	homelabv1.Action_ACTION_DRAIN:    {"drain", "draining", "drained"},
	homelabv1.Action_ACTION_HALT:     {"stop k3s", "stopping", "k3s stopped"},
	homelabv1.Action_ACTION_STOP:     {"stop", "stopping", "stopped"},
	homelabv1.Action_ACTION_LEAVE:    {"leave", "leaving", "left the cluster"},
	homelabv1.Action_ACTION_CLEAN:    {"clean", "cleaning", "cleaned of k3s"},
	homelabv1.Action_ACTION_DETACH:   {"detach", "detaching", "data disks detached"},
	homelabv1.Action_ACTION_DESTROY:  {"destroy", "destroying", "destroyed"},
	homelabv1.Action_ACTION_ATTACH:   {"attach", "attaching", "data disks attached"},
	homelabv1.Action_ACTION_RESET:    {"reset", "resetting", "reset"},
	homelabv1.Action_ACTION_RESUME:   {"resume", "resuming", "resumed"},
	homelabv1.Action_ACTION_SOAK:     {"soak", "soaking", "stayed well"},
	homelabv1.Action_ACTION_ADOPT:    {"adopt", "adopting", "adopted"},
	homelabv1.Action_ACTION_TEMPLATE: {"template", "making", "made"},
	homelabv1.Action_ACTION_PRUNE:    {"remove", "removing", "removed"},
}

// deed is what happens to a guest as a whole, named by the actions of which it is
// made; what else is done to the guest then follows from it.
type deed struct {
	needs []homelabv1.Action
	mark  string
	word  string // in a plan: recreate
	to    string // in a plan's sum, after the number; empty: to WORD
	did   string // in a story: recreated
	// colour goes with the mark, and never alone.
	colour string
	// minor says that it goes without saying where more was done.
	minor bool
	// chain says that its steps are told in groups and not one a line.
	chain bool
}

// deeds are in the order in which they name best what happens: what destroys
// comes first.
var deeds = []*deed{
	recreate,
	deletion,
	rollback,
	{needs: of(homelabv1.Action_ACTION_ADOPT), mark: "+", word: "adopt", did: "adopted", colour: green},
	creation,
	{needs: of(homelabv1.Action_ACTION_LEAVE, homelabv1.Action_ACTION_JOIN), mark: "!", word: "rejoin", did: "rejoined", colour: red, chain: true},
	{needs: of(homelabv1.Action_ACTION_LEAVE), mark: "!", word: "leave", to: "to leave the cluster", did: "left the cluster", colour: red, chain: true},
	{needs: of(homelabv1.Action_ACTION_STOP, homelabv1.Action_ACTION_START), mark: "~", word: "restart", did: "restarted", colour: yellow},
	{needs: of(homelabv1.Action_ACTION_STOP), mark: "~", word: "stop", did: "stopped", colour: yellow},
	{needs: of(homelabv1.Action_ACTION_RESET), mark: "~", word: "reset", did: "reset", colour: yellow},
	{needs: of(homelabv1.Action_ACTION_RESUME), mark: "~", word: "resume", did: "resumed", colour: yellow},
	{needs: of(homelabv1.Action_ACTION_START), mark: "~", word: "start", did: "started", colour: yellow},
	{needs: of(homelabv1.Action_ACTION_ATTACH), mark: "~", word: "attach", to: "to get data disks back", did: "data disks attached", colour: yellow},
	newCluster,
	joining,
	{needs: of(homelabv1.Action_ACTION_CLEAN), mark: "!", word: "clean", to: "to clean of k3s", did: "cleaned of k3s", colour: red},
	{needs: of(homelabv1.Action_ACTION_HALT), mark: "~", word: "stop k3s", did: "k3s stopped", colour: yellow},
	{needs: of(homelabv1.Action_ACTION_BOOT), mark: "~", word: "boot", did: "booted", colour: yellow},
	{needs: of(homelabv1.Action_ACTION_VERIFY), mark: "~", word: "verify", did: "verified", colour: yellow, minor: true},
	{needs: of(homelabv1.Action_ACTION_SNAPSHOT), mark: "+", word: "snapshot", to: "snapshot to take", did: "snapshot taken", colour: green, minor: true},
	{needs: of(homelabv1.Action_ACTION_SOAK), mark: "~", word: "soak", to: "to stay well", did: "stayed well", colour: yellow, minor: true},
	{needs: of(homelabv1.Action_ACTION_DETACH), mark: "~", word: "detach", to: "to lose data disks to a holder", did: "data disks detached", colour: yellow},
	{needs: of(homelabv1.Action_ACTION_SAVE), mark: "+", word: "save", did: "configuration saved", colour: green, minor: true},
	{needs: of(homelabv1.Action_ACTION_DRAIN), mark: "~", word: "drain", did: "drained", colour: yellow, minor: true},
	// Of images, which are no guests.
	{needs: of(homelabv1.Action_ACTION_PRUNE), mark: "!", word: "remove", did: "removed", colour: red},
	{needs: of(homelabv1.Action_ACTION_FETCH), mark: "+", word: "fetch", did: "fetched", colour: green, minor: true},
	{needs: of(homelabv1.Action_ACTION_TEMPLATE), mark: "+", word: "template", did: "template made", colour: green, minor: true},
}

// Deeds that are asked for by name elsewhere.
var (
	recreate = &deed{
		needs: of(homelabv1.Action_ACTION_DESTROY, homelabv1.Action_ACTION_CREATE),
		mark:  "!", word: "recreate", did: "recreated", colour: red, chain: true,
	}
	deletion = &deed{
		needs: of(homelabv1.Action_ACTION_DESTROY),
		mark:  "!", word: "delete", did: "deleted", colour: red, chain: true,
	}
	rollback = &deed{
		needs: of(homelabv1.Action_ACTION_ROLLBACK),
		mark:  "!", word: "roll back", did: "rolled back", colour: red,
	}
	creation = &deed{
		needs: of(homelabv1.Action_ACTION_CREATE),
		mark:  "+", word: "create", did: "created", colour: green,
	}
	newCluster = &deed{
		needs: of(homelabv1.Action_ACTION_INIT),
		mark:  "+", word: "new cluster", to: "to make the cluster", did: "new cluster", colour: green,
	}
	joining = &deed{
		needs: of(homelabv1.Action_ACTION_JOIN),
		mark:  "+", word: "join", did: "joined", colour: green,
	}
)

func of(actions ...homelabv1.Action) []homelabv1.Action { return actions }

// sum is the deed in a plan's sum, after the number: to recreate.
func (d *deed) sum() string {
	if d.to != "" {
		return d.to
	}
	return "to " + d.word
}

// in says whether a list of actions makes the deed.
func (d *deed) in(list []homelabv1.Action) bool {
	for _, a := range d.needs {
		if !slices.Contains(list, a) {
			return false
		}
	}
	return true
}

// deedOf is what steps do to a guest; nil when there is none.
func deedOf(steps []*homelabv1.Step) *deed {
	list := make([]homelabv1.Action, len(steps))
	for i, s := range steps {
		list[i] = s.GetAction()
	}
	for _, d := range deeds {
		if d.in(list) {
			return d
		}
	}
	return nil
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
	homelabv1.NoteKind_NOTE_KIND_WAITING: {"-", "waiting", yellow},
}
