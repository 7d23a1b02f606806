package plantest

import (
	"fmt"
	"maps"
	"slices"

	"github.com/homeiac/homelab/controller/plan"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/spec"
)

// dataDisks are a guest's data disks as they are remembered.
func dataDisks(g *spec.Guest) []*homelabv1.Disk {
	var disks []*homelabv1.Disk
	for _, d := range g.DataDisks {
		disks = append(disks, &homelabv1.Disk{Slot: d.Slot, Storage: "local", SizeBytes: d.Size})
	}
	return disks
}

// addData makes the data disks of a new VM, but for those that are said to come
// from elsewhere. A second one for a slot would hide the first.
func (w *World) addData(vm *VM, g *spec.Guest, but []string) {
	for _, d := range g.DataDisks {
		if slices.Contains(but, d.Slot) {
			continue
		}
		if old := w.Data[g.Name][d.Slot]; old != "" && w.holds(old) {
			w.violate("VM %d of %s is made with an empty disk %s, and %s is somewhere else", vm.VMID, g.Name, d.Slot, old)
		}
		w.number++
		volume := fmt.Sprintf("data-%d", w.number)
		if vm.DataDisks == nil {
			vm.DataDisks = map[string]string{}
		}
		vm.DataDisks[d.Slot] = volume
		if w.Data[g.Name] == nil {
			w.Data[g.Name] = map[string]string{}
		}
		w.Data[g.Name][d.Slot] = volume
	}
}

// holds says whether any VM holds a data volume.
func (w *World) holds(volume string) bool {
	for _, h := range w.Hosts {
		for _, vm := range h.VMs {
			for _, v := range vm.DataDisks {
				if v == volume {
					return true
				}
			}
		}
	}
	return false
}

// missingData is a data disk of the guest that its VM does not have although it
// is there; empty when it has all.
func (w *World) missingData(vm *VM) string {
	for slot, volume := range w.Data[vm.Guest] {
		if vm.DataDisks[slot] != volume && w.holds(volume) {
			return slot
		}
	}
	return ""
}

// lostData is a data volume that nothing holds any more; empty for none.
func (w *World) lostData() string {
	for _, guest := range slices.Sorted(maps.Keys(w.Data)) {
		for slot, volume := range w.Data[guest] {
			if !w.holds(volume) {
				return fmt.Sprintf("%s (%s of %s)", volume, slot, guest)
			}
		}
	}
	return ""
}

func (w *World) destroying(h *Host, vmid int32) bool {
	return slices.ContainsFunc(h.Intents, func(i *homelabv1.Intent) bool {
		return i.GetIdentity().GetVmid() == vmid && i.GetDestroying()
	})
}

// halt stops a VM, or k3s in it, and sees that it does not cost the quorum.
func (w *World) halt(s *homelabv1.Step, vm *VM, power bool) {
	_, _, before := w.Quorum()
	vm.Active = false
	if power {
		vm.Power, vm.Booted, vm.QEMU = homelabv1.Power_POWER_STOPPED, false, ""
	}
	if voters, healthy, after := w.Quorum(); before && !after {
		w.violate("step %s costs the quorum: %d voters, %d healthy", s.GetId(), voters, healthy)
	}
}

// throughServer is a step that a healthy server carries out for another guest.
func (w *World) throughServer(h *Host, s *homelabv1.Step, how Outcome) error {
	server := w.Members[w.nodeName(s.GetThrough())]
	switch {
	case server == nil || h.VMs[server.VM.VMID] != server.VM || !w.up(server.VM) || server.Learner:
		w.violate("step %s goes through %s, which is no healthy server of %s", s.GetId(), s.GetThrough(), h.Name)
		return errStep
	case h.Clock.Abs() > 1e9:
		w.violate("step %s on a host whose clock is off", s.GetId())
		return errStep
	case how == Fails || s.GetAction() != homelabv1.Action_ACTION_LEAVE:
		return nil
	}
	node := w.nodeName(s.GetGuest())
	m := w.Members[node]
	voters, healthy, ok := w.Quorum()
	switch {
	case m == nil:
		return nil
	case !ok:
		w.violate("step %s without quorum: %d voters, %d healthy", s.GetId(), voters, healthy)
		return errStep
	case w.up(m.VM):
		w.violate("step %s takes out %s while its k3s runs: it would join again", s.GetId(), node)
		return errStep
	}
	delete(w.Members, node)
	if voters, healthy, ok := w.Quorum(); !ok {
		w.violate("step %s costs the quorum: %d voters, %d healthy", s.GetId(), voters, healthy)
	}
	if how == Well {
		r := w.Memory[s.GetGuest()]
		r.Joined = false
		w.Memory[s.GetGuest()] = r
	}
	return nil
}

func (w *World) nodeName(guest string) string {
	if g := w.Spec.Guests[guest]; g != nil {
		return g.NodeName()
	}
	return guest
}

func (w *World) destroy(h *Host, s *homelabv1.Step, how Outcome) error {
	vm := h.VMs[s.GetVmid()]
	switch {
	case vm == nil:
		return nil
	case vm.Ours || vm.Guest != s.GetGuest() || vm.UUID != s.GetUuid() || vm.Generation != s.GetGeneration():
		w.violate("step %s destroys VM %d, which is not ours", s.GetId(), vm.VMID)
		return errStep
	case vm.HA || vm.Protection || vm.Lock != "" || w.Spec.Protected(int(vm.VMID)):
		w.violate("step %s destroys VM %d, which must not be changed", s.GetId(), vm.VMID)
		return errStep
	case vm.Power != homelabv1.Power_POWER_STOPPED:
		w.violate("step %s destroys VM %d, which runs", s.GetId(), vm.VMID)
		return errStep
	case len(vm.DataDisks) > 0:
		w.violate("step %s destroys VM %d with its data disks", s.GetId(), vm.VMID)
		return errStep
	case len(vm.Snapshots) > 0:
		w.violate("step %s destroys VM %d with its snapshots", s.GetId(), vm.VMID)
		return errStep
	}
	if m := w.Members[w.nodeName(vm.Guest)]; m != nil && m.VM == vm {
		w.violate("step %s destroys VM %d, which is still in the cluster", s.GetId(), vm.VMID)
		return errStep
	}
	if how == Fails {
		return nil
	}
	h.Intents = slices.DeleteFunc(slices.Clone(h.Intents), func(i *homelabv1.Intent) bool { return i.GetIdentity().GetVmid() == vm.VMID })
	intent := &homelabv1.Intent{
		Identity: &homelabv1.Identity{Fleet: Fleet, Guest: vm.Guest, Generation: vm.Generation, Vmid: vm.VMID, Uuid: vm.UUID, Mark: vm.Mark},
		Step:     s.GetId(), Worker: No(""), Destroying: true,
	}
	if how == Killed && w.number%2 == 0 { // the VM is whole
		h.Intents = append(h.Intents, intent)
		return errStep
	}
	delete(h.VMs, vm.VMID)
	if how == Killed { // and what is left of it is not freed yet
		h.Leftovers = append(h.Leftovers, vm.VMID)
		h.Intents = append(h.Intents, intent)
	}
	w.checkData(s)
	return nil
}

func (w *World) checkData(s *homelabv1.Step) {
	if lost := w.lostData(); lost != "" {
		w.violate("step %s loses the data volume %s", s.GetId(), lost)
	}
}

// detach moves data disks to the holder, made first when it is not there.
func (w *World) detach(h *Host, s *homelabv1.Step, vm *VM, how Outcome) error {
	r := w.Memory[vm.Guest]
	if r.Holder.UUID == "" || r.Holder.VMID != s.GetHolderVmid() {
		uuid := s.GetHolderUuid()
		if uuid == "" {
			uuid = w.UUID()
		}
		r.Holder = plan.Holder{VMID: s.GetHolderVmid(), UUID: uuid}
		w.Memory[vm.Guest] = r
	}
	if vm.Power != homelabv1.Power_POWER_STOPPED {
		w.violate("step %s takes disks from VM %d, which runs", s.GetId(), vm.VMID)
		return errStep
	}
	holder := h.VMs[r.Holder.VMID]
	switch {
	case holder != nil && holder.UUID != r.Holder.UUID:
		w.violate("step %s moves disks to VM %d, which is not our holder", s.GetId(), holder.VMID)
		return errStep
	case holder == nil:
		w.mayMake(h, &homelabv1.Step{Id: s.GetId(), Guest: plan.HolderName(vm.Guest), Vmid: r.Holder.VMID})
		holder = &VM{
			VMID: r.Holder.VMID, Name: "hl-holder-" + vm.Guest, UUID: r.Holder.UUID, Guest: plan.HolderName(vm.Guest), Generation: vm.Generation,
			Mark: w.Mark(plan.HolderName(vm.Guest), r.Holder.VMID, r.Holder.UUID, vm.Generation), Power: homelabv1.Power_POWER_STOPPED, Memory: 1 << 24,
		}
		h.VMs[holder.VMID] = holder
	}
	w.move(vm, holder, s.GetSlots(), how)
	w.checkData(s)
	if how == Killed {
		return errStep
	}
	return nil
}

// move moves disks; one that is killed has moved only the first.
func (w *World) move(from, to *VM, slots []string, how Outcome) {
	for _, slot := range slots {
		volume, ok := from.DataDisks[slot]
		if !ok {
			continue
		}
		if to.DataDisks == nil {
			to.DataDisks = map[string]string{}
		}
		if other := to.DataDisks[slot]; other != "" {
			w.violate("disk %s of VM %d is moved over %s of VM %d", slot, from.VMID, other, to.VMID)
			return
		}
		to.DataDisks[slot] = volume
		delete(from.DataDisks, slot)
		if how == Killed {
			return
		}
	}
}

func (w *World) attach(h *Host, s *homelabv1.Step, vm *VM, how Outcome) error {
	if holder := h.VMs[s.GetHolderVmid()]; holder != nil {
		if holder.Guest != plan.HolderName(vm.Guest) {
			w.violate("step %s takes disks from VM %d, which is not our holder", s.GetId(), holder.VMID)
			return errStep
		}
		if len(holder.DataDisks) > 0 && vm.Power != homelabv1.Power_POWER_STOPPED {
			w.violate("step %s gives disks to VM %d, which runs", s.GetId(), vm.VMID)
			return errStep
		}
		w.move(holder, vm, s.GetSlots(), how)
		if how == Killed {
			return errStep
		}
		if len(holder.DataDisks) == 0 {
			delete(h.VMs, holder.VMID)
		}
	}
	w.checkData(s)
	if how == Well {
		r := w.Memory[vm.Guest]
		r.Holder = plan.Holder{}
		w.Memory[vm.Guest] = r
	}
	return nil
}
