package plantest

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/homeiac/homelab/controller/plan"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

const minute = time.Minute

// Outcome is how a step goes.
type Outcome int

// The outcomes.
const (
	Well    Outcome = iota // it does what it should
	Fails                  // it changes nothing
	Killed                 // its agent dies in the middle of it
	Unheard                // it is done, and nobody hears of it
	outcomes
)

// Outcomes is how many there are, for drawing one.
const Outcomes = int(outcomes)

var errStep = errors.New("step did not end well")

// Apply carries a plan out as a controller would: whoever depends on what
// failed is not begun. how says how each step goes. It tells whether all ended
// well.
func (w *World) Apply(p *homelabv1.Plan, how func(*homelabv1.Step) Outcome) bool {
	failed := map[string]bool{}
	well := true
	for _, s := range p.GetSteps() {
		if slices.ContainsFunc(s.GetAfter(), func(id string) bool { return failed[id] }) {
			failed[s.GetId()] = true
			continue
		}
		if err := w.Carry(s, how(s)); err != nil {
			failed[s.GetId()], well = true, false
		}
	}
	return well && len(failed) == 0
}

// Carry does one step. An error is what the controller would be told.
func (w *World) Carry(s *homelabv1.Step, how Outcome) error {
	h := w.Hosts[s.GetHost()]
	switch {
	case h == nil || h.Off || h.AgentGone || !w.Spec.Hosts[h.Name].Enabled:
		w.violate("step %s on a host that does not answer", s.GetId())
		return errStep
	case h.PVEGone || h.Lost || h.Paused || h.RootPercent > 95:
		w.violate("step %s on a host on which nothing may be done (rule 10)", s.GetId())
		return errStep
	}
	var err error
	switch s.GetAction() {
	case homelabv1.Action_ACTION_FETCH:
		w.fetch(h, s, how)
	case homelabv1.Action_ACTION_TEMPLATE:
		err = w.template(h, s, how)
	case homelabv1.Action_ACTION_ROLLBACK:
		w.rollback(h, s, how)
	case homelabv1.Action_ACTION_CREATE:
		err = w.create(h, s, how)
	case homelabv1.Action_ACTION_SNAPSHOT, homelabv1.Action_ACTION_DRAIN, homelabv1.Action_ACTION_LEAVE:
		err = w.throughServer(h, s, how)
	case homelabv1.Action_ACTION_DESTROY:
		err = w.destroy(h, s, how)
	default:
		err = w.change(h, s, how)
	}
	if how != Well && err == nil {
		err = errStep
	}
	return err
}

func (w *World) violate(format string, args ...any) {
	w.Violations = append(w.Violations, fmt.Sprintf(format, args...))
}

func (w *World) rollback(h *Host, s *homelabv1.Step, how Outcome) {
	if how == Fails {
		return
	}
	if vm := h.VMs[s.GetVmid()]; vm != nil {
		if w.destroying(h, s.GetVmid()) || !vm.Half || w.Spec.Protected(int(vm.VMID)) || vm.HA || vm.Protection {
			w.violate("step %s destroys VM %d, which is no half-built one of ours", s.GetId(), vm.VMID)
			return
		}
		delete(h.VMs, s.GetVmid())
	}
	if how == Killed {
		return
	}
	h.Leftovers = slices.DeleteFunc(h.Leftovers, func(v int32) bool { return v == s.GetVmid() })
	h.Intents = slices.DeleteFunc(slices.Clone(h.Intents), func(i *homelabv1.Intent) bool { return i.GetIdentity().GetVmid() == s.GetVmid() })
}

func (w *World) create(h *Host, s *homelabv1.Step, how Outcome) error {
	if err := w.cloned(h, s); err != nil {
		return err
	}
	g := w.Spec.Guests[s.GetGuest()]
	r := w.Memory[g.Name]
	if r.UUID == "" || r.Generation != s.GetGeneration() || r.Host != h.Name || r.VMID != s.GetVmid() {
		uuid := s.GetUuid()
		if uuid == "" {
			uuid = w.UUID()
		}
		failures := 0
		if r.UUID == uuid && r.Generation > 1 && r.ReadyAt.IsZero() {
			failures = r.Failures + 1
		}
		r = plan.Remembered{
			Name: g.Name, Host: h.Name, VMID: s.GetVmid(), UUID: uuid, Generation: s.GetGeneration(), MemoryBytes: r.MemoryBytes,
			Image: g.Image, ImageSHA256: s.GetImageSha256(),
			Made: h.VMs[s.GetVmid()] == nil, Began: w.Now, Failures: failures, Holder: r.Holder, NodeName: g.NodeName(), Recreating: r.Recreating,
		}
		if g.K3s != nil {
			r.Role = g.K3s.Role
		}
	}
	r.Unverified, r.DataDisks = len(g.Verify) > 0, dataDisks(g)
	w.Memory[g.Name] = r
	if how == Fails {
		return nil
	}
	there := h.VMs[s.GetVmid()]
	fresh := there == nil
	if there != nil && there.UUID != r.UUID {
		w.violate("step %s makes VM %d, where another VM is", s.GetId(), s.GetVmid())
		return errStep
	}
	if there == nil {
		w.mayMake(h, s)
		there = w.newVM(g, s.GetVmid(), r.UUID, s.GetGeneration())
		if s.GetClone() == homelabv1.CloneKind_CLONE_KIND_LINKED {
			there.Base = s.GetTemplateVmid()
		}
		if there.Memory == 0 {
			there.Memory = 1 << 30
		}
		h.VMs[s.GetVmid()] = there
		if how != Killed {
			w.addData(there, g, s.GetSlots())
		}
	}
	h.Intents = slices.DeleteFunc(slices.Clone(h.Intents), func(i *homelabv1.Intent) bool { return i.GetIdentity().GetVmid() == s.GetVmid() })
	intent := &homelabv1.Intent{
		Identity: &homelabv1.Identity{Fleet: Fleet, Guest: g.Name, Generation: s.GetGeneration(), Vmid: s.GetVmid(), Uuid: r.UUID, Mark: there.Mark},
		Step:     s.GetId(), Worker: No(""),
	}
	switch {
	case how == Killed && fresh && w.number%3 == 0: // no configuration, one volume
		delete(h.VMs, s.GetVmid())
		h.Leftovers = append(h.Leftovers, s.GetVmid())
		h.Intents = append(h.Intents, intent)
	case how == Killed && fresh:
		h.VMs[s.GetVmid()] = &VM{VMID: s.GetVmid(), Half: true, Lock: "create", Power: homelabv1.Power_POWER_STOPPED}
		h.Intents = append(h.Intents, intent)
	case how == Unheard || how == Killed:
		h.Intents = append(h.Intents, intent)
	default:
		r.MemoryBytes = there.Memory
		w.Memory[g.Name] = r
	}
	return nil
}

// mayMake holds rule 3 against what truly is.
func (w *World) mayMake(on *Host, s *homelabv1.Step) {
	if w.Spec.Protected(int(s.GetVmid())) {
		w.violate("step %s makes the protected VMID %d", s.GetId(), s.GetVmid())
	}
	for _, h := range w.Hosts {
		if !w.Spec.Hosts[h.Name].Enabled && h.PVE == "" {
			continue // nobody can know what is there
		}
		for _, vm := range h.VMs {
			if s.GetGuest() != "" && (vm.Guest == s.GetGuest() || vm.Name == s.GetGuest()) {
				w.violate("step %s makes a second %s: VM %d on %s", s.GetId(), s.GetGuest(), vm.VMID, h.Name)
			}
			if vm.VMID == s.GetVmid() {
				w.violate("step %s makes VMID %d a second time: it is on %s", s.GetId(), vm.VMID, h.Name)
			}
		}
		if slices.Contains(h.Containers, s.GetVmid()) {
			w.violate("step %s makes VMID %d, a container of %s", s.GetId(), s.GetVmid(), h.Name)
		}
		if h == on && slices.Contains(h.Leftovers, s.GetVmid()) {
			w.violate("step %s makes VMID %d beside volumes that nobody knows", s.GetId(), s.GetVmid())
		}
	}
}

// change is a step on a VM that is there.
func (w *World) change(h *Host, s *homelabv1.Step, how Outcome) error {
	vm := h.VMs[s.GetVmid()]
	switch {
	case vm == nil:
		return errStep
	case vm.Guest != s.GetGuest() || s.GetUuid() != "" && vm.UUID != s.GetUuid():
		w.violate("step %s is on VM %d, which is not ours", s.GetId(), vm.VMID)
		return errStep
	case s.GetAction() == homelabv1.Action_ACTION_SOAK: // it only watches
		return nil
	case vm.HA || vm.Protection || vm.Lock != "" || w.Spec.Protected(int(vm.VMID)):
		w.violate("step %s is on VM %d, which must not be changed", s.GetId(), vm.VMID)
		return errStep
	case w.Spec.Guests[vm.Guest].Standby() && s.GetAction() != homelabv1.Action_ACTION_ATTACH:
		w.violate("step %s is on the standby %s", s.GetId(), vm.Guest)
		return errStep
	case how == Fails:
		return nil
	}
	r := w.Memory[vm.Guest]
	if r.UUID != vm.UUID { // recovered from the mark
		r = plan.Remembered{Name: vm.Guest, Host: h.Name, VMID: vm.VMID, UUID: vm.UUID, Generation: vm.Generation, MemoryBytes: vm.Memory}
	}
	heard := how == Well
	switch s.GetAction() {
	case homelabv1.Action_ACTION_START:
		if missing := w.missingData(vm); missing != "" {
			w.violate("step %s starts VM %d without its data disk %s", s.GetId(), vm.VMID, missing)
		}
		vm.Power, vm.Started, vm.QEMU = homelabv1.Power_POWER_RUNNING, w.Now, ""
		vm.Mute = false
		r.Resting = false
		r.Attempts = append(r.Attempts, plan.Attempt{Action: s.GetAction(), At: w.Now})
	case homelabv1.Action_ACTION_RESUME, homelabv1.Action_ACTION_RESET:
		vm.Power, vm.QEMU, vm.Mute = homelabv1.Power_POWER_RUNNING, "", false
		r.Attempts = append(r.Attempts, plan.Attempt{Action: s.GetAction(), At: w.Now})
	case homelabv1.Action_ACTION_SAVE:
	case homelabv1.Action_ACTION_STOP:
		w.halt(s, vm, true)
		r.Recreating = true
	case homelabv1.Action_ACTION_HALT:
		w.halt(s, vm, false)
	case homelabv1.Action_ACTION_CLEAN:
		vm.Data, vm.Active = false, false
		r.Joined = false
	case homelabv1.Action_ACTION_DETACH:
		return w.detach(h, s, vm, how)
	case homelabv1.Action_ACTION_ATTACH:
		return w.attach(h, s, vm, how)
	case homelabv1.Action_ACTION_BOOT:
		if vm.Power != homelabv1.Power_POWER_RUNNING || vm.Mute || how == Killed {
			return errStep
		}
		vm.Booted, vm.MachineID = true, "m-"+vm.UUID
		if vm.Data {
			vm.Active = true // enabled: it starts with its guest
		}
		if heard {
			r.MachineID = vm.MachineID
			if w.Spec.Guests[vm.Guest].K3s == nil && r.ReadyAt.IsZero() {
				r.ReadyAt = w.Now
			}
			if w.Spec.Guests[vm.Guest].K3s == nil {
				r.Attempts, r.Recreating = nil, false
			}
		}
	case homelabv1.Action_ACTION_INIT, homelabv1.Action_ACTION_JOIN:
		if err := w.k3s(h, s, vm, how); err != nil {
			return err
		}
		r.Joined = r.Joined || heard
		if heard {
			if r.ReadyAt.IsZero() {
				r.ReadyAt = w.Now
			}
			r.Attempts, r.Recreating = nil, false
		}
	case homelabv1.Action_ACTION_VERIFY:
		r.Unverified = r.Unverified && !heard
	default:
		w.violate("step %s is of an action that the model does not know", s.GetId())
	}
	w.Memory[vm.Guest] = r
	return nil
}

func (w *World) k3s(h *Host, s *homelabv1.Step, vm *VM, how Outcome) error {
	g := w.Spec.Guests[vm.Guest]
	if h.Clock.Abs() > time.Second && g.IsServer() {
		w.violate("step %s with a clock that is off by %s", s.GetId(), h.Clock)
	}
	if vm.Power != homelabv1.Power_POWER_RUNNING || !vm.Booted || vm.Mute {
		return errStep
	}
	m := w.Members[g.NodeName()]
	if s.GetAction() == homelabv1.Action_ACTION_INIT {
		for node, other := range w.Members {
			if other.VM != vm {
				w.violate("step %s starts a second cluster: %s is a member of one", s.GetId(), node)
				return errStep
			}
		}
		if w.Cluster == nil {
			w.Cluster = &homelabv1.ClusterRecord{FirstGuest: vm.Guest}
		}
	} else if err := w.mayJoin(s, m, vm); err != nil {
		return err
	}
	vm.Data = true
	if m == nil || m.VM != vm {
		m = w.member(vm)
	}
	if how == Killed {
		if s.GetAction() == homelabv1.Action_ACTION_JOIN && m.Server && !w.Memory[vm.Guest].Joined {
			m.Learner, m.NoNode = true, true
		}
		vm.Active = w.number%2 == 0
		return errStep
	}
	vm.Active, m.Learner, m.NoNode = true, false, false
	if how == Well {
		if w.Cluster == nil {
			w.Cluster = &homelabv1.ClusterRecord{}
		}
		w.Cluster.CaHash = "ca"
	}
	return nil
}

// mayJoin holds the joining half of rule 4 against what truly is.
func (w *World) mayJoin(s *homelabv1.Step, m *Member, vm *VM) error {
	voters, healthy, ok := w.Quorum()
	if len(w.Members) == 0 {
		w.violate("step %s joins no cluster", s.GetId())
		return errStep
	}
	if !ok {
		w.violate("step %s joins without quorum: %d voters, %d healthy", s.GetId(), voters, healthy)
		return errStep
	}
	if m != nil && m.VM != vm {
		w.violate("step %s joins beside a stale member", s.GetId())
		return errStep
	}
	for node, other := range w.Members {
		if other.Learner && other.VM != vm && !vm.Agent {
			w.violate("step %s joins beside the learner %s", s.GetId(), node)
			return errStep
		}
	}
	return nil
}
