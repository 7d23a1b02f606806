package plan

import (
	"time"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/spec"
)

// Health is what people are shown of a guest; the words are those of the JSON
// contract.
type Health string

// The healths.
const (
	Healthy  Health = "healthy" // booted and, as a member, Ready with the right version
	OnItsWay Health = "booting"
	Unwell   Health = "unwell"
	Standby  Health = "standby"
	Unknown  Health = "unknown" // could not be seen, or absent (the reason then is Absence)
)

// Absence is the reason of a guest that was seen not to exist.
const Absence = "absent"

// GuestState is one guest of the Spec as it was seen.
type GuestState struct {
	Name       string
	Want       *spec.Guest
	Situation  Situation
	VM         *homelabv1.VirtualMachine // nil unless a VM of ours was seen on its host
	Generation int32                     // of that VM; else the one remembered
	Look       *homelabv1.GuestLook      // nil unless it was looked into
	Health     Health
	Reason     string // empty for healthy

	Signal       Signal
	Since, Until time.Time
	Parked       string
	Policy       spec.Policy
	Adopted      bool
}

// Survey tells how every guest of the Spec does, by name.
func Survey(want Want, seen Seen, now time.Time) []GuestState {
	m := newModel(want, seen, now)
	states := make([]GuestState, 0, len(m.guests))
	for _, g := range m.guests {
		s := GuestState{Name: g.name, Want: g.want, Situation: g.situation, VM: g.vm, Generation: g.mem.Generation, Look: g.look}
		if g.vm != nil {
			s.Generation = g.owner.Generation
		}
		s.Health, s.Reason = m.health(g)
		states = append(states, s)
	}
	return states
}

func (m *model) health(g *guestView) (Health, string) {
	switch g.situation {
	case HostDisabled, Unseen, Foreign, Elsewhere, Twice, Unreadable:
		return Unknown, g.why.text
	case Absent:
		return Unknown, Absence
	case HalfBuilt:
		return Unwell, "half-built"
	case Unfinished:
		return Unwell, "its creation was not seen to end"
	case InFlight:
		return OnItsWay, g.why.text
	case Stopped:
		if g.want.Standby() {
			return Standby, ""
		}
		return Unwell, "stopped"
	case Paused:
		return Unwell, g.why.text
	case Booting:
		return m.booting(g)
	case Booted:
	}
	if !g.want.IsMember() {
		if g.want.Standby() {
			return Standby, "it runs"
		}
		return Healthy, ""
	}
	state, why := m.membership(g)
	switch {
	case state == memberHealthy:
		return Healthy, ""
	case state == memberUnknown:
		return Unknown, why
	case state == memberNot && why == "":
		return Unwell, "not a member of the cluster"
	case state == memberUnwell && g.host.fresh():
		return OnItsWay, why
	}
	return Unwell, why
}

// booting is the health of a guest that runs and was not seen to have booted
// (rule 6): one of guest agent and SSH mute is no more than a doubt.
func (m *model) booting(g *guestView) (Health, string) {
	waits := g.look.GetBooted().GetReason()
	switch {
	case g.want.Standby():
		return Standby, "it runs"
	case g.neverBooted(), g.host.fresh(), yes(g.host.obs.GetShuttingDown()), len(g.vm.GetTasks()) > 0:
		if waits == "" {
			waits = "not seen to have booted yet"
		}
		return OnItsWay, waits
	case g.look == nil:
		return Unknown, "not looked into"
	case no(g.look.GetBooted()):
		if waits == "" {
			waits = "not booted"
		}
		return Unwell, waits
	case !yes(g.look.GetSsh()) && !yes(g.look.GetGuestAgent()):
		return Unwell, "guest agent and SSH are mute" + because(g.look.GetSsh())
	}
	return Unknown, "whether it has booted is not known" + because(g.look.GetBooted())
}

// Target is a VM of ours that is worth a look inside.
type Target struct {
	Guest, Host string
	VM          *homelabv1.VirtualMachine
	Generation  int32
}

// Targets are the guests of the Spec whose VM is ours and runs on its host, by
// name: also those that are not remembered, known by their mark.
func Targets(want Want, seen Seen, now time.Time) []Target {
	var targets []Target
	for _, g := range newModel(want, seen, now).guests {
		if g.vm.GetPower() == homelabv1.Power_POWER_RUNNING {
			targets = append(targets, Target{Guest: g.name, Host: g.host.name, VM: g.vm, Generation: g.owner.Generation})
		}
	}
	return targets
}
