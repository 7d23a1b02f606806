package plan

import (
	"fmt"
	"slices"
	"strings"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// Data disks outlive their guest: while its VM is destroyed and made anew they
// are in a holder VM of ours on the same host, known by its mark.

// HolderState is a holder VM of ours with the data disks that it holds.
type HolderState struct {
	Guest, Host string
	VM          *homelabv1.VirtualMachine
}

// findHolder notes the guest's holder VM: the one that was seen, else the one
// that is remembered and not seen yet.
func (m *model) findHolder(g *guestView) {
	g.holder = g.mem.Holder
	if there := m.holders(g.name); len(there) > 0 {
		g.held = there
		g.holder = Holder{VMID: there[0].vm.GetVmid(), UUID: there[0].vm.GetUuid()}
	}
}

// holders are the holder VMs of a guest that were seen.
func (m *model) holders(guest string) []place { return m.ours[HolderName(guest)] }

// Holders are all holder VMs of ours that were seen, by guest.
func Holders(want Want, seen Seen) []HolderState {
	m := newModel(want, seen, maxTime)
	var all []HolderState
	for _, name := range sorted(m.ours) {
		guest, ok := HeldGuest(name)
		if !ok {
			continue
		}
		for _, p := range m.ours[name] {
			all = append(all, HolderState{Guest: guest, Host: p.host, VM: p.vm})
		}
	}
	return all
}

// inHolder are the disks that the guest's holder was seen to have.
func (g *guestView) inHolder() []*homelabv1.Disk {
	if len(g.held) != 1 {
		return nil
	}
	return g.held[0].vm.GetDisks()
}

// dataSlots are the slots of all disks that outlive the guest, by the Spec and
// by what is remembered.
func (g *guestView) dataSlots() []string {
	var slots []string
	for _, d := range g.want.DataDisks {
		slots = append(slots, d.Slot)
	}
	for _, d := range g.mem.DataDisks {
		slots = append(slots, d.GetSlot())
	}
	slices.Sort(slots)
	return slices.Compact(slots)
}

// travelling are the slots whose disks are in the VM or in the holder now, and
// must go through it.
func (g *guestView) travelling() []string {
	slots := append(g.inVM(), slotsOf(g.inHolder())...)
	slices.Sort(slots)
	return slices.Compact(slots)
}

// inVM are the slots of the disks that outlive the guest and are in its VM now.
func (g *guestView) inVM() []string {
	return slices.DeleteFunc(g.dataSlots(), func(slot string) bool { return !diskIn(g.vm.GetDisks(), slot) })
}

func diskIn(disks []*homelabv1.Disk, slot string) bool {
	return slices.ContainsFunc(disks, func(d *homelabv1.Disk) bool { return d.GetSlot() == slot })
}

// holding is what speaks against using the guest's holder: there are two, it is
// on another host, it cannot be read, somebody works on it, or a slot is taken
// in both.
func (m *model) holding(g *guestView) verdict {
	var f findings
	switch {
	case len(g.held) > 1:
		return refused(fmt.Sprintf("two holder VMs keep data disks of it: %s; look at them, and keep one", places(g.held)))
	case len(g.held) == 0:
		if g.mem.Holder.UUID != "" && len(m.used[g.mem.Holder.VMID]) > 0 {
			return refused(fmt.Sprintf("VMID %d was to hold its data disks, and another VM is there", g.mem.Holder.VMID))
		}
		return verdict{}
	case g.held[0].host != g.want.Host:
		return refused(fmt.Sprintf("its data disks are in holder VM %d on %s, and it is to be on %s", g.holder.VMID, g.held[0].host, g.want.Host))
	}
	vm := g.held[0].vm
	for _, d := range g.inHolder() {
		if diskIn(g.vm.GetDisks(), d.GetSlot()) {
			f.refuse("its disk %s is in VM %d and in holder VM %d: look which one is right", d.GetSlot(), g.vmid, vm.GetVmid())
		}
	}
	switch {
	case !yes(vm.GetReadable()):
		f.unknown("the configuration of its holder VM %d cannot be read%s", vm.GetVmid(), because(vm.GetReadable()))
	case vm.GetLock() != "":
		f.add(busy(fmt.Sprintf("holder VM %d is locked (%s)", vm.GetVmid(), vm.GetLock())))
	case len(vm.GetTasks()) > 0:
		f.add(busy(fmt.Sprintf("holder VM %d has a task running: %s", vm.GetVmid(), vm.GetTasks()[0])))
	case vm.GetProtection() || vm.GetHaManaged():
		f.refuse("holder VM %d is protected or managed by Proxmox HA", vm.GetVmid())
	case vm.GetPower() != homelabv1.Power_POWER_STOPPED:
		f.refuse("holder VM %d runs", vm.GetVmid())
	}
	return f.verdict()
}

// lost is why a guest that had data disks must not be made with new, empty ones:
// they were not seen anywhere.
func (g *guestView) lost() string {
	// Only of one that was to be made for the first time, and never was, nothing
	// can be missing.
	if g.mem.Made && g.mem.MachineID == "" && g.mem.Holder.UUID == "" {
		return ""
	}
	var missing []string
	for _, d := range g.mem.DataDisks {
		if !diskIn(g.inHolder(), d.GetSlot()) && !diskIn(g.vm.GetDisks(), d.GetSlot()) {
			missing = append(missing, d.GetSlot())
		}
	}
	if len(missing) == 0 {
		return ""
	}
	return fmt.Sprintf("its data disk %s is in no VM and no holder VM of ours: it is not made with an empty one\n  look for it (pvesm list on %s); if it is to be forgotten: hlctl guests delete %s", strings.Join(missing, ", "), g.want.Host, g.name)
}

// chooseHolder gives the VMID that the guest's holder has or will have; 0 when
// none is free.
func (m *model) chooseHolder(g *guestView) int32 {
	if g.holder.VMID != 0 && (len(g.held) > 0 || len(m.used[g.holder.VMID]) == 0) {
		return g.holder.VMID
	}
	m.takenNow()
	for ; m.spec.VMIDs.Contains(m.free); m.free++ {
		if vmid := int32(m.free); !m.taken[vmid] && !m.spec.Protected(m.free) { //nolint:gosec // checked by the Spec
			m.taken[vmid] = true
			g.holder = Holder{VMID: vmid}
			return vmid
		}
	}
	return 0
}

// planDetach moves the data disks that the VM has to its holder.
func (m *model) planDetach(g *guestView) {
	slots := g.inVM()
	if len(slots) == 0 {
		return
	}
	holder := m.chooseHolder(g)
	s := m.step(g, homelabv1.Action_ACTION_DETACH, "detach", nil, fmt.Sprintf("its data disks (%s) wait in holder VM %d", strings.Join(slots, ", "), holder))
	s.HolderVmid, s.HolderUuid, s.Slots = holder, g.holder.UUID, slots
}

// planAttach brings data disks back from the holder, and removes it.
func (m *model) planAttach(g *guestView, slots []string) {
	if len(g.held) == 0 && len(slots) == 0 {
		return
	}
	reason := fmt.Sprintf("its data disks (%s) come back from holder VM %d", strings.Join(slots, ", "), g.holder.VMID)
	if len(slots) == 0 {
		reason = fmt.Sprintf("its holder VM %d is empty and goes", g.holder.VMID)
	}
	s := m.step(g, homelabv1.Action_ACTION_ATTACH, "attach", nil, reason)
	s.HolderVmid, s.HolderUuid, s.Slots = g.holder.VMID, g.holder.UUID, slots
}

// runsWithout is why a VM does not get its data disks back now: it runs, and a
// disk is only moved into one that is stopped.
func (g *guestView) runsWithout() verdict {
	if len(g.inHolder()) == 0 || g.vm == nil || g.vm.GetPower() == homelabv1.Power_POWER_STOPPED {
		return verdict{}
	}
	return refused(fmt.Sprintf("its data disks are in holder VM %d, and it runs without them\nstop it first: hlctl guests stop %s; then hlctl apply", g.holder.VMID, g.name))
}

// planHeld brings back what a holder still has of a guest whose VM is there, or
// says why not. It tells whether the guest may be started now.
func (m *model) planHeld(g *guestView) bool {
	if len(g.held) == 0 {
		return true
	}
	v := m.holding(g)
	if !v.against() {
		v = m.allowed(g)
	}
	if !v.against() {
		v = g.runsWithout()
	}
	if v.against() {
		m.tell(g, v)
		return false
	}
	m.planAttach(g, slotsOf(g.inHolder()))
	return true
}

func slotsOf(disks []*homelabv1.Disk) []string {
	slots := make([]string, 0, len(disks))
	for _, d := range disks {
		slots = append(slots, d.GetSlot())
	}
	slices.Sort(slots)
	return slots
}
