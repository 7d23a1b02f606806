package plan

import (
	"fmt"
	"slices"
	"strings"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/spec"
)

// Situation is how a guest was found. It is decided from what was seen alone;
// what follows from it is decided after.
type Situation string

// The situations.
const (
	HostDisabled Situation = "host-disabled" // the Spec leaves its host out
	Unseen       Situation = "unseen"        // its host, or what happens to it there, cannot be seen
	InFlight     Situation = "in-flight"     // an agent works on it
	Foreign      Situation = "foreign"       // a VM has its name or VMID and is not ours
	Elsewhere    Situation = "elsewhere"     // it exists on another host than the Spec says
	Twice        Situation = "twice"         // two VMs are this guest
	HalfBuilt    Situation = "half-built"    // a creation of ours was begun and left
	Unfinished   Situation = "unfinished"    // the VM is there, its creation was not seen to end
	Absent       Situation = "absent"        // seen not to be on its host
	Unreadable   Situation = "unreadable"    // the VM is there, what it is cannot be told
	Stopped      Situation = "stopped"
	Paused       Situation = "paused"
	Booting      Situation = "booting" // runs, and was not seen to have booted
	Booted       Situation = "booted"
)

// guestView is one guest of the Spec with what was seen of it, and what was
// decided.
type guestView struct {
	name string
	want *spec.Guest
	mem  Remembered
	host *hostView

	situation Situation
	why       verdict // for situations in which nothing can be done
	vm        *homelabv1.VirtualMachine
	owner     Ownership
	look      *homelabv1.GuestLook
	undo      *openIntent // the creation that is undone first

	vmid    int32 // of the VM, or for the one to be made; 0 when there is none to have
	noVMID  string
	memory  int64   // bytes, of the VM to be made
	lacking verdict // preflight of the resources that it needs

	cond   *condition // how it is; see model.condition
	holder Holder     // the VM for its data disks; zero when there is none
	held   []place    // holder VMs of it that were seen

	last   string   // id of its latest step
	booted string   // id of its boot step
	remade bool     // it is destroyed and made anew in this plan
	stale  *leaving // what an earlier VM of it left in the cluster, to go before it joins
	sick   bool     // its remedy is to be made anew
	healed bool     // a step of this plan is its remedy
	stays  bool     // no next generation of it is made in this plan
	noted  bool
}

// classify finds a guest's situation.
func (m *model) classify(g *guestView) {
	g.vmid = int32(g.want.VMID)
	g.situation, g.why = m.situation(g)
	if g.vm != nil {
		g.vmid = g.vm.GetVmid()
		g.look = g.host.look(g.name, g.vm)
		// Nothing is installed in a guest before what its first boot tells is
		// remembered: neverBooted counts on that.
		if g.situation == Booting && yes(g.look.GetBooted()) && !g.neverBooted() {
			g.situation = Booted
		}
	}
}

func (m *model) situation(g *guestView) (Situation, verdict) {
	h := g.host
	switch {
	case h == nil:
		return Unseen, skipped("host " + g.want.Host + " is not in the Spec")
	case !h.want.Enabled:
		return HostDisabled, verdict{homelabv1.NoteKind_NOTE_KIND_INFO, "host " + h.name + " is disabled"}
	case h.obs == nil:
		return Unseen, skipped(h.silence(m.now))
	}
	ours := m.ours[g.name]
	if len(ours) == 1 && ours[0].host == h.name {
		g.vm, g.owner = ours[0].vm, ours[0].owner
	}
	switch s := m.inFlight(g); {
	case s != "":
		return InFlight, busy(s)
	case len(ours) > 1:
		return Twice, refused(fmt.Sprintf("there are %d VMs of it: %s; keep one of them", len(ours), places(ours)))
	case len(ours) == 1 && g.vm == nil:
		return Elsewhere, refused(fmt.Sprintf("it exists on %s (VM %d); moving a guest is not apply's: set guests.%s.host to %s, or remove that VM", ours[0].host, ours[0].vm.GetVmid(), g.name, ours[0].host))
	}
	switch {
	case !yes(h.obs.GetVmsKnown()) && h.blocked.against():
		return Unseen, h.blocked
	case !yes(h.obs.GetVmsKnown()):
		return Unseen, skipped("the VMs on " + h.name + " could not be listed" + because(h.obs.GetVmsKnown()))
	}
	if s, v := m.unfinished(g); s != "" {
		return s, v
	}
	if g.vm == nil {
		if v := m.foreign(g); v.against() {
			return Foreign, v
		}
		return Absent, verdict{}
	}
	if g.mem.UUID == g.vm.GetUuid() && g.mem.Generation > g.owner.Generation {
		return Foreign, refused(fmt.Sprintf("VM %d is generation %d of it, and generation %d was made since: it must have been restored from a backup, and is left alone\ncopy out of it what is to be kept and remove it (qm destroy %[1]d); then hlctl apply makes the guest again",
			g.vm.GetVmid(), g.owner.Generation, g.mem.Generation))
	}
	return power(g.vm)
}

// inFlight is what an agent does for the guest right now, empty for nothing. A
// guest with a step in flight gets no other.
func (m *model) inFlight(g *guestView) string {
	if s, ok := m.flying[g.name]; ok {
		return fmt.Sprintf("step %s is in flight on %s", s.id, s.host)
	}
	if len(m.ours[g.name]) > 0 {
		return ""
	}
	for _, cd := range []bool{false, true} {
		c := m.imageOf(g, cd)
		if c == nil {
			continue
		}
		for _, id := range []string{fetchID(g.host.name, c), imageStepID("template", g.host.name, c)} {
			if m.fetching[id] {
				return fmt.Sprintf("step %s is in flight, which it needs", id)
			}
		}
	}
	return ""
}

// unfinished finds creations that were begun and not seen to end. Only what
// stands at such a VMID and is half-built (its lock may be gone already, when a
// roll-back was cut off), or ours by its mark as well, is undone: Proxmox may have
// given the VMID to somebody else since.
func (m *model) unfinished(g *guestView) (Situation, verdict) {
	open := m.intents[g.name]
	if len(open) == 0 {
		return "", verdict{}
	}
	first := open[0]
	id := first.intent.GetIdentity()
	where := fmt.Sprintf("VM %d on %s", id.GetVmid(), first.host.name)
	switch w := first.intent.GetWorker(); {
	case yes(w):
		return InFlight, busy("its creation still goes on: " + where)
	case !no(w):
		return Unseen, skipped("whether its creation still goes on is not known: " + where + because(w))
	case !yes(first.host.obs.GetVmsKnown()):
		return Unseen, skipped("its creation was begun and left, and what is there of it cannot be seen: " + where)
	}
	there := first.host.vms[id.GetVmid()]
	mine := g.vm != nil && there == g.vm && g.vm.GetUuid() == id.GetUuid()
	locked := there.GetLock() == "create"
	switch {
	case mine && first.intent.GetDestroying() && !there.GetHalfBuilt():
		return "", verdict{} // its destruction was begun, and it is whole
	case mine && !locked && (there.GetLock() != "" || !settled(there)):
		return "", verdict{} // whoever holds that lock is waited for first, and what is unknown is looked at again
	case mine && !locked && !there.GetHalfBuilt():
		return Unfinished, verdict{}
	case there != nil && !mine && !there.GetHalfBuilt():
		return Foreign, refused(fmt.Sprintf("its creation as %s was begun and left, and another VM is there now%s", where, quoted(there.GetName())))
	}
	g.undo = &first
	if len(open) > 1 {
		return HalfBuilt, skipped(fmt.Sprintf("%d creations of it were begun and left; they are undone one at a time: run it again", len(open)))
	}
	if g.vm != nil && !mine {
		return HalfBuilt, skipped("a creation of it as " + where + " was begun and left; it is undone first: run it again")
	}
	g.vm = nil
	return HalfBuilt, verdict{}
}

// besides are those VMs of a list that are not what is undone of the guest. A clone
// that has not got its uuid yet has the guest's name and mark, and is not it.
func (g *guestView) besides(list []place) []place {
	if g.undo == nil {
		return list
	}
	return slices.DeleteFunc(slices.Clone(list), func(p place) bool {
		return p.vm.GetHalfBuilt() && p.host == g.undo.host.name && p.vm.GetVmid() == g.undo.intent.GetIdentity().GetVmid()
	})
}

// settled says that the VM is known to run or to be stopped.
func settled(vm *homelabv1.VirtualMachine) bool {
	return yes(vm.GetReadable()) && (vm.GetPower() == homelabv1.Power_POWER_RUNNING || vm.GetPower() == homelabv1.Power_POWER_STOPPED)
}

// foreign is the VM that has the guest's name or VMID and is not ours.
func (m *model) foreign(g *guestView) verdict {
	if named := m.named[g.name]; len(named) > 0 {
		p := named[0]
		return refused(fmt.Sprintf("VM %d on %s has its name and is not it: %s\nit is left alone; adopt it with hlctl guests adopt %s --vmid %[1]d, or rename one of them", p.vm.GetVmid(), p.host, p.not(), g.name))
	}
	vm := g.host.vms[int32(g.want.VMID)]
	switch {
	case vm == nil:
		return verdict{}
	case vm.GetHalfBuilt():
		return refused(fmt.Sprintf("VM %d on %s is half-built, and not by us\nit is left alone; remove it, or change guests.%s.vmid (%s)", vm.GetVmid(), g.host.name, g.name, m.at("guests."+g.name+".vmid")))
	}
	p := m.used[vm.GetVmid()][0]
	for _, q := range m.used[vm.GetVmid()] {
		if q.vm == vm {
			p = q
		}
	}
	if p.guest != "" {
		return refused(fmt.Sprintf("VM %d%s on %s is another one of ours: %s\nit is left alone; change guests.%s.vmid (%s)", vm.GetVmid(), quoted(vm.GetName()), g.host.name, p.guest, g.name, m.at("guests."+g.name+".vmid")))
	}
	return refused(fmt.Sprintf("VM %d%s on %s is not ours: %s\nit is left alone; adopt it with hlctl guests adopt %[5]s, or change guests.%[5]s.vmid (%[6]s)", vm.GetVmid(), quoted(vm.GetName()), g.host.name, p.not(), g.name, m.at("guests."+g.name+".vmid")))
}

// power is the situation of a VM of ours by its process.
func power(vm *homelabv1.VirtualMachine) (Situation, verdict) {
	reason := ""
	if vm.GetPowerReason() != "" {
		reason = ": " + vm.GetPowerReason()
	}
	switch {
	case !yes(vm.GetReadable()):
		return Unreadable, skipped(fmt.Sprintf("the configuration of VM %d cannot be read%s", vm.GetVmid(), because(vm.GetReadable())))
	case vm.GetTemplate():
		return Unreadable, refused(fmt.Sprintf("VM %d was made a template", vm.GetVmid()))
	}
	switch vm.GetPower() {
	case homelabv1.Power_POWER_RUNNING:
		return Booting, verdict{}
	case homelabv1.Power_POWER_STOPPED:
		return Stopped, verdict{}
	case homelabv1.Power_POWER_PAUSED:
		return Paused, verdict{}
	case homelabv1.Power_POWER_ABSENT, homelabv1.Power_POWER_UNSPECIFIED:
		if yes(vm.GetProcess()) {
			return Booting, verdict{} // it runs, and QEMU itself is mute
		}
	}
	return Unreadable, skipped(fmt.Sprintf("whether VM %d runs is not known%s", vm.GetVmid(), reason))
}

// not is why a VM is not the guest in question.
func (p place) not() string {
	if p.guest != "" {
		return "it is our guest " + p.guest
	}
	return p.owner.Why
}

func places(list []place) string {
	words := make([]string, len(list))
	for i, p := range list {
		words[i] = fmt.Sprintf("VM %d on %s", p.vm.GetVmid(), p.host)
	}
	return strings.Join(words, ", ")
}

func quoted(name string) string {
	if name == "" {
		return ""
	}
	return " (" + name + ")"
}
