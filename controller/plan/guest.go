package plan

import (
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/human"
)

// planGuest makes the steps of one guest up to its boot, or says why not.
func (m *model) planGuest(g *guestView) {
	if g.situation == HalfBuilt {
		m.planUndo(g)
	}
	if g.why.against() {
		m.tell(g, g.why)
		return
	}
	switch g.situation {
	case Absent, HalfBuilt, Unfinished:
		m.planCreate(g)
	case Stopped, Booting, Booted, Paused:
		m.planPresent(g)
	case HostDisabled, Unseen, InFlight, Foreign, Elsewhere, Twice, Unreadable:
	}
}

// planPresent makes the steps of a guest whose VM is there, up to its boot. What
// makes it anew comes later (planRecreations): that goes one by one.
func (m *model) planPresent(g *guestView) {
	if g.want.Standby() {
		return
	}
	r, v := m.remedy(g)
	if r == remedyRecreate { // its holder is looked at there
		g.sick = true
		return
	}
	if !m.planHeld(g) {
		return
	}
	if v.against() {
		m.tellUntil(g, v, m.condition(g).ripens)
		return
	}
	switch {
	case r == remedyStart:
		m.planStart(g, "it is stopped")
	case r == remedyResume:
		m.planRemedy(g, homelabv1.Action_ACTION_RESUME, "resume")
	case r == remedyReset:
		m.planRemedy(g, homelabv1.Action_ACTION_RESET, "reset")
	case g.situation == Booting && g.vm.GetPower() != homelabv1.Power_POWER_RUNNING:
		m.tell(g, skipped(g.powerUnknown()))
	case g.situation == Booting && m.condition(g).doubt == "":
		m.planBoot(g)
	}
}

// powerUnknown is what is said of a VM whose process lives while QEMU is mute.
func (g *guestView) powerUnknown() string {
	text := fmt.Sprintf("whether VM %d runs is not known", g.vmid)
	if r := g.vm.GetPowerReason(); r != "" {
		text += ": " + r
	}
	return text
}

// planRemedy tries to get a guest well without making it anew, and waits for its
// boot.
func (m *model) planRemedy(g *guestView, action homelabv1.Action, verb string) {
	if v := m.allowed(g); v.against() {
		m.tell(g, v)
		return
	}
	g.healed = true
	m.step(g, action, verb, nil, m.unwellText(m.condition(g))+" (policy restart)")
	m.boot(g)
}

// tell notes why a guest is left alone, once for each reason.
func (m *model) tell(g *guestView, v verdict) { m.tellUntil(g, v, time.Time{}) }

// tellUntil is tell for what may be over at a time; zero is none.
func (m *model) tellUntil(g *guestView, v verdict, until time.Time) {
	g.noted = true
	m.note(v.kind, g.name, g.want.Host, v.text)
	if v.kind == homelabv1.NoteKind_NOTE_KIND_WAITING && !until.IsZero() {
		m.notes[len(m.notes)-1].Until = timestamppb.New(until)
	}
}

// allowed is why a VM of ours must not be changed now, rule 2 and rule 10.
func (m *model) allowed(g *guestView) verdict {
	vm := g.vm
	id := fmt.Sprintf("VM %d", vm.GetVmid())
	switch {
	case g.host.blocked.against():
		return g.host.blocked
	case m.spec.Protected(int(vm.GetVmid())):
		return refused(id + " is in the Spec's protect list (" + m.at("protect") + ")")
	case vm.GetHaManaged():
		return refused(id + " is managed by Proxmox HA\n  take it out there (ha-manager remove vm:" + fmt.Sprint(vm.GetVmid()) + "), or leave it to it")
	case vm.GetProtection():
		return refused(id + " has Proxmox's protection flag set\n  qm set " + fmt.Sprint(vm.GetVmid()) + " --protection 0 allows changes")
	case vm.GetLock() != "":
		return busy(id + " is locked (" + vm.GetLock() + ")")
	case len(vm.GetTasks()) > 0:
		return busy(id + " has a task running: " + vm.GetTasks()[0])
	}
	return verdict{}
}

func (m *model) step(g *guestView, action homelabv1.Action, verb string, after []string, reason string) *homelabv1.Step {
	return m.stepOn(g.host, g, action, verb, after, reason)
}

// stepOn is a step of a guest that another host than the guest's may carry out.
func (m *model) stepOn(h *hostView, g *guestView, action homelabv1.Action, verb string, after []string, reason string) *homelabv1.Step {
	after = slices.Clone(after)
	if g.last != "" {
		after = append(after, g.last)
	}
	s := &homelabv1.Step{
		Id: verb + "/" + h.name + "/" + g.name, Action: action, Guest: g.name, Host: h.name,
		After: after, Reason: reason, Vmid: g.vmid, Uuid: g.uuid(), Generation: g.generation(),
	}
	g.last = m.add(s)
	return s
}

// uuid is that of the guest's VM. One that is gone is made again with the uuid
// that is remembered of it, at the same place.
func (g *guestView) uuid() string {
	switch {
	case g.vm != nil:
		return g.vm.GetUuid()
	case g.mem.Host == g.want.Host && g.mem.VMID == g.vmid && g.mem.Made:
		return g.mem.UUID
	}
	return ""
}

// generation is the one that the guest has, or is made with. A VM that once
// booted and is gone makes way for the next generation; a creation that never
// came so far goes on with what is remembered of it.
func (g *guestView) generation() int32 {
	switch {
	case g.remade:
		return max(g.owner.Generation, g.mem.Generation) + 1
	case g.vm != nil:
		return g.owner.Generation
	case g.stays:
		return g.mem.Generation
	case g.mem.MachineID != "" || g.mem.Joined:
		return g.mem.Generation + 1
	}
	return max(g.mem.Generation, 1)
}

// planUndo rolls back a creation that was begun and left.
func (m *model) planUndo(g *guestView) {
	if g.undo == nil {
		return
	}
	h, id := g.undo.host, g.undo.intent.GetIdentity()
	v := h.blocked
	if m.spec.Protected(int(id.GetVmid())) {
		v = refused(fmt.Sprintf("VM %d is in the Spec's protect list (%s)", id.GetVmid(), m.at("protect")))
	} else if vm := h.vms[id.GetVmid()]; !v.against() && vm != nil && (vm.GetHaManaged() || vm.GetProtection()) {
		v = refused(fmt.Sprintf("VM %d is half-built, and Proxmox HA or its protection flag holds it", id.GetVmid()))
	} else if !v.against() && len(vm.GetTasks()) > 0 {
		v = busy(fmt.Sprintf("VM %d has a task running: %s", id.GetVmid(), vm.GetTasks()[0]))
	}
	if v.against() {
		g.why = v
		return
	}
	g.last = m.add(&homelabv1.Step{
		Id: "rollback/" + h.name + "/" + g.name, Action: homelabv1.Action_ACTION_ROLLBACK, Guest: g.name, Host: h.name,
		Reason: g.undo.left(), Vmid: id.GetVmid(), Uuid: id.GetUuid(), Generation: id.GetGeneration(), Destroys: true,
	})
}

// planCreate makes the VM, or finishes it, and boots it unless it is a standby.
func (m *model) planCreate(g *guestView) {
	if v := m.mayCreate(g); v.against() {
		m.tell(g, v)
		return
	}
	reason := g.missing()
	switch g.situation {
	case Unfinished:
		reason = "its creation was not seen to end"
	case HalfBuilt:
		reason = "made anew: " + g.sketch()
	}
	after, tell := m.gather(g)
	s := m.step(g, homelabv1.Action_ACTION_CREATE, "create", after, reason)
	tell(s)
	s.Slots = slotsOf(g.inHolder())
	m.planAttach(g, s.GetSlots())
	if g.want.Standby() {
		return
	}
	if g.vm.GetPower() == homelabv1.Power_POWER_RUNNING {
		m.boot(g)
		return
	}
	m.start(g, "it is to run")
}

// missing is the reason for a creation.
func (g *guestView) missing() string { return "there is no VM of it: " + g.sketch() }

// sketch is a VM to be made in a few words.
func (g *guestView) sketch() string {
	cpus := "1 CPU"
	if g.want.CPUs != 1 {
		cpus = fmt.Sprintf("%d CPUs", g.want.CPUs)
	}
	storage, _ := g.host.want.Storage(kindDisks)
	return fmt.Sprintf("VM %d, %s, %s memory, %s on %s", g.vmid, cpus, human.Size(g.memory), human.Size(g.want.Disk), storage)
}

// mayCreate is every reason against a creation: rules 2, 3 and 10, and what the
// host lacks.
func (m *model) mayCreate(g *guestView) verdict {
	if g.situation == Unfinished {
		var f findings
		f.add(m.allowed(g))
		f.add(m.holding(g))
		f.add(g.runsWithout())
		f.add(g.lacking)
		return f.verdict()
	}
	var f findings
	f.add(g.host.blocked)
	f.add(m.holding(g))
	if why := g.lost(); why != "" {
		f.refuse("%s", why)
	}
	if len(m.unseen) > 0 {
		f.unknown("it is not made while it may exist where nobody can look: %s", firstLines(m.unseen, 3))
	}
	if where := m.elsewhere(g); where != "" {
		f.refuse("%s", where)
	}
	if g.noVMID != "" {
		f.refuse("%s", g.noVMID)
	}
	if named := g.besides(m.named[g.name]); len(named) > 0 { // half-built ones are not looked for above
		f.refuse("VM %d on %s has its name and is not it: %s", named[0].vm.GetVmid(), named[0].host, named[0].not())
	}
	if g.want.IsMember() && m.spec.K3s != nil {
		if state, why := m.membership(g); state == memberStale {
			_, v := m.remains(g, why)
			f.add(v)
		}
	}
	m.images(g, &f)
	f.add(g.lacking)
	return f.verdict()
}

// planStart starts a VM of ours that is stopped.
func (m *model) planStart(g *guestView, reason string) {
	var f findings
	f.add(m.allowed(g))
	f.add(g.lacking)
	if v := f.verdict(); v.against() {
		m.tell(g, v)
		return
	}
	if g.host.fresh() {
		reason += ", its host booted a short while ago"
	}
	m.start(g, reason)
}

func (m *model) start(g *guestView, reason string) {
	m.step(g, homelabv1.Action_ACTION_START, "start", nil, reason)
	m.boot(g)
}

func (m *model) boot(g *guestView) {
	g.booted = m.step(g, homelabv1.Action_ACTION_BOOT, "boot", nil, "until it can be reached and cloud-init is done").GetId()
}

// planBoot waits for a VM that runs and was not seen to have booted. Nothing is
// reset or destroyed for that (rule 6).
func (m *model) planBoot(g *guestView) {
	if v := m.allowed(g); v.against() {
		m.tell(g, v)
		return
	}
	reason := "it runs and was not seen to have booted" + because(g.look.GetBooted())
	switch {
	case yes(g.look.GetBooted()):
		reason = "it has booted, and what its first boot tells is not remembered yet"
	case g.host.fresh():
		reason = "its host booted a short while ago" + because(g.look.GetBooted())
	}
	g.booted = m.step(g, homelabv1.Action_ACTION_BOOT, "boot", nil, reason).GetId()
}

// finishGuest adds the verification after everything else, and sees to it that
// every guest has a step or a note.
func (m *model) finishGuest(g *guestView) {
	if m.verifies(g) {
		m.step(g, homelabv1.Action_ACTION_VERIFY, "verify", nil, "the Spec's commands must succeed in it")
	}
	if g.last == "" && !g.noted {
		text := "healthy"
		if g.want.Standby() {
			text = "standby"
		}
		m.tell(g, verdict{homelabv1.NoteKind_NOTE_KIND_UNCHANGED, text})
	}
	if g.want.Standby() && g.vm.GetPower() == homelabv1.Power_POWER_RUNNING {
		m.note(homelabv1.NoteKind_NOTE_KIND_WARNING, g.name, g.want.Host, "a standby, and it runs; it is left alone")
	}
	if c := m.condition(g); c.doubt != "" {
		m.note(homelabv1.NoteKind_NOTE_KIND_WARNING, g.name, g.want.Host, c.doubt)
	}
	m.noteDrift(g)
	for _, p := range g.besides(m.copies[g.name]) {
		m.note(homelabv1.NoteKind_NOTE_KIND_WARNING, g.name, p.host, fmt.Sprintf("VM %d%s carries its mark and is not it: %s", p.vm.GetVmid(), quoted(p.vm.GetName()), p.owner.Why))
	}
	if g.vm != nil {
		for _, p := range m.named[g.name] {
			m.note(homelabv1.NoteKind_NOTE_KIND_WARNING, g.name, p.host, fmt.Sprintf("VM %d on %s has its name too: %s", p.vm.GetVmid(), p.host, p.not()))
		}
	}
}

// verifies says whether the Spec's commands are to be run: after any work on a
// running guest, and again after they failed.
func (m *model) verifies(g *guestView) bool {
	if len(g.want.Verify) == 0 || g.want.Standby() || g.noted {
		return false
	}
	if g.last != "" {
		return g.booted != "" || g.situation == Booted
	}
	return g.situation == Booted && g.mem.Unverified && !m.allowed(g).against()
}
