package controller

import (
	"context"
	"maps"
	"slices"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/homeiac/homelab/controller/plan"
	"github.com/homeiac/homelab/controller/store"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// guarded says whether a step destroys or takes something away, so that it is
// looked once more whether it may.
func guarded(a homelabv1.Action) bool {
	switch a {
	case homelabv1.Action_ACTION_STOP, homelabv1.Action_ACTION_HALT, homelabv1.Action_ACTION_LEAVE,
		homelabv1.Action_ACTION_DETACH, homelabv1.Action_ACTION_DESTROY, homelabv1.Action_ACTION_RESET:
		return true
	default:
		return false
	}
}

// guard looks once more, right before a step that takes something away, whether
// it may be carried out: the plan is as old as all that was done before. When the
// step is repeated so is the look for what stops a guest: meanwhile it may have got
// well, or be needed. Of others the own first attempt is what it would find; the
// agent compares identities each time. The world is what was seen, for steps that
// need it.
func (d *dispatch) guard(ctx context.Context, s *homelabv1.Step) (world, error) {
	drains := s.GetAction() == homelabv1.Action_ACTION_DRAIN
	d.mu.Lock()
	known := d.allowed[s.GetId()]
	d.mu.Unlock()
	stops := s.GetAction() == homelabv1.Action_ACTION_STOP || s.GetAction() == homelabv1.Action_ACTION_HALT
	if known && !stops || !drains && !guarded(s.GetAction()) {
		return d.world, nil
	}
	w, err := d.c.look(ctx, d.sp, d.world.asked, true)
	if err != nil {
		return world{}, err
	}
	if err := ctx.Err(); err != nil {
		return world{}, err
	}
	blocked := plan.Blocked
	if known {
		blocked = plan.BlockedAgain
	}
	if why := blocked(d.c.want(d.sp, w), seen(d.sp, w), s, d.c.now()); why != "" {
		return world{}, rpc.Errorf(rpc.ErrRefused, "%s", why)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.allowed[s.GetId()] = true
	return w, nil
}

// begun notes, before it is sent, that a step begins or carries on a recreation:
// what is found half done later is then known to be ours to end.
func (d *dispatch) begun(ctx context.Context, s *homelabv1.Step) error {
	d.mu.Lock()
	rec, known := d.guests[s.GetGuest()]
	d.mu.Unlock()
	if !known || !d.remade[s.GetGuest()] || rec.Recreating || !guarded(s.GetAction()) {
		return nil
	}
	_, err := d.change(ctx, s.GetGuest(), func(g *store.Guest) error {
		g.Recreating = true
		return nil
	})
	return err
}

// remaking are the guests that a plan destroys and makes again.
func remaking(p *homelabv1.Plan) map[string]bool {
	destroyed, again := make(map[string]bool), make(map[string]bool)
	for _, s := range p.GetSteps() {
		switch s.GetAction() {
		case homelabv1.Action_ACTION_DESTROY:
			destroyed[s.GetGuest()] = true
		case homelabv1.Action_ACTION_CREATE:
			again[s.GetGuest()] = true
		default:
		}
	}
	maps.DeleteFunc(again, func(guest string, _ bool) bool { return !destroyed[guest] })
	return again
}

// deleted is the guest that goes for good. When its VM is gone already, or none
// was ever made, what is remembered is all that goes.
func (d *dispatch) deleted(s *homelabv1.Step, w world) (store.Guest, error) {
	there := slices.ContainsFunc(w.sights[s.GetHost()].obs.GetVms(), func(vm *homelabv1.VirtualMachine) bool { return vm.GetVmid() == s.GetVmid() })
	d.mu.Lock()
	rec, known := d.guests[s.GetGuest()]
	d.mu.Unlock()
	if there || known && rec.UUID != "" && rec.Host != s.GetHost() {
		return d.remembered(s)
	}
	if !known || rec.UUID == "" {
		rec.Name, rec.Host, rec.VMID, rec.UUID, rec.Generation = s.GetGuest(), s.GetHost(), s.GetVmid(), s.GetUuid(), s.GetGeneration()
	}
	return rec, nil
}

// spokenOf is the guest that others are told of: it need not be on the step's
// host, nor exist any more. A snapshot may be of no guest's sake.
func (d *dispatch) spokenOf(s *homelabv1.Step) (store.Guest, error) {
	name := s.GetGuest()
	if name == "" {
		name = s.GetThrough()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	rec, ok := d.guests[name]
	if !ok {
		if d.sp.Guests[name] == nil {
			return rec, rpc.Errorf(rpc.ErrNotFound, "guest %s is neither in the Spec nor remembered", name)
		}
		rec.Name = name
	}
	if s.GetGuest() != "" && s.GetUuid() != "" && rec.UUID != s.GetUuid() {
		return rec, rpc.Errorf(rpc.ErrRefused, "guest %s is remembered with uuid %s, the step is for %s", name, rec.UUID, s.GetUuid())
	}
	return rec, nil
}

// through fills in the healthy server that a step is done through, and what the
// cluster holds of the guest. What it held before the first attempt stays what is
// asked for: the attempt may have removed some of it.
func (d *dispatch) through(s *homelabv1.Step, w world, req *agentv1.RunRequest) error {
	d.mu.Lock()
	rec, ok := d.guests[s.GetThrough()]
	d.mu.Unlock()
	if !ok || rec.Host != s.GetHost() {
		return rpc.Errorf(rpc.ErrRefused, "%s is to be done through server %q on %s, which is not remembered there", s.GetId(), s.GetThrough(), s.GetHost())
	}
	var err error
	if req.Through, err = d.c.signer.guestWant(d.sp, rec); err != nil {
		return err
	}
	if s.GetAction() == homelabv1.Action_ACTION_SNAPSHOT {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.members[s.GetId()] == nil {
		d.members[s.GetId()] = plan.MemberOf(d.c.want(d.sp, w), seen(d.sp, w), s.GetGuest())
	}
	if req.Member = d.members[s.GetId()]; req.GetMember() == nil {
		return rpc.Errorf(rpc.ErrRefused, "what the cluster holds of %s cannot be told; look at it with: hlctl k3s status", s.GetGuest())
	}
	return nil
}

// force says whether a VM is stopped without being asked. One that a person wants
// stopped is asked as long as it runs; any other only when something in it answers,
// so that nobody waits for a guest that is mute.
func (d *dispatch) force(s *homelabv1.Step, w world) bool {
	host := w.sights[s.GetHost()]
	vm := vmOf(host, store.Guest{VMID: s.GetVmid(), UUID: s.GetUuid()})
	if vm.GetPower() != homelabv1.Power_POWER_RUNNING {
		return true
	}
	if op := d.world.asked.op; op != nil && op.Guest == s.GetGuest() && (op.Kind == plan.OpStop || op.Kind == plan.OpRestart) {
		return false
	}
	look := host.looks[s.GetGuest()]
	return !yes(vm.GetGuestAgent()) && !yes(look.GetGuestAgent()) && !yes(look.GetSsh())
}

// holder fills in the guest's holder VM and the disks that travel. A new holder
// is remembered before the step is sent: every attempt then makes the same one.
func (d *dispatch) holder(ctx context.Context, s *homelabv1.Step, req *agentv1.RunRequest) error {
	d.mu.Lock()
	rec := d.guests[s.GetGuest()]
	d.mu.Unlock()
	have := rec.Holder
	switch {
	case s.GetHolderVmid() == 0:
		return rpc.Errorf(rpc.ErrInvalid, "%s names no holder VM", s.GetId())
	case have.UUID != "" && have.VMID == s.GetHolderVmid() && (s.GetHolderUuid() == "" || s.GetHolderUuid() == have.UUID):
	case s.GetHolderUuid() != "" || s.GetAction() != homelabv1.Action_ACTION_DETACH:
		return rpc.Errorf(rpc.ErrRefused, "the holder of %s is remembered as VM %d (%s), the step is for VM %d (%s)",
			s.GetGuest(), have.VMID, have.UUID, s.GetHolderVmid(), s.GetHolderUuid())
	default:
		var err error
		rec, err = d.change(ctx, s.GetGuest(), func(g *store.Guest) error {
			g.Holder = store.HolderVM{VMID: s.GetHolderVmid(), UUID: uuid.NewString(), Generation: g.Generation}
			return nil
		})
		if err != nil {
			return err
		}
	}
	req.Holder = d.c.signer.holder(rec)
	req.DataDisks = d.dataDisks(s.GetGuest(), s.GetSlots())
	return nil
}

// change works on what is remembered of a guest, and keeps what became of it.
func (d *dispatch) change(ctx context.Context, guest string, change func(*store.Guest) error) (store.Guest, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	rec, err := d.c.store.ChangeGuest(ctx, d.lock, guest, change)
	if err == nil {
		d.guests[guest] = rec
	}
	return rec, err
}

func slotsOf(disks []store.Disk) []string {
	var slots []string
	for _, d := range disks {
		slots = append(slots, d.Slot)
	}
	return slots
}

// dataDisks are the disks at the slots, each once: as the guest was made with,
// else as the Spec has them, else by their slot alone.
func (d *dispatch) dataDisks(guest string, slots []string) []*homelabv1.Disk {
	d.mu.Lock()
	known := d.guests[guest].DataDisks
	d.mu.Unlock()
	if g := d.sp.Guests[guest]; g != nil && d.sp.Hosts[g.Host] != nil {
		known = append(slices.Clone(known), dataDisks(d.sp, g)...)
	}
	slices.Sort(slots)
	var disks []*homelabv1.Disk
	for _, slot := range slices.Compact(slots) {
		disk := &homelabv1.Disk{Slot: slot}
		if i := slices.IndexFunc(known, func(k store.Disk) bool { return k.Slot == slot }); i >= 0 {
			disk.Storage, disk.SizeBytes = known[i].Storage, known[i].Size
		}
		disks = append(disks, disk)
	}
	return disks
}

// named says whether a person named the guest for its destruction.
func (d *dispatch) named(guest string) bool {
	op := d.world.asked.op
	return d.world.asked.destroy[guest] || op != nil && op.Guest == guest && (op.Kind == plan.OpRecreate || op.Kind == plan.OpDelete)
}

// purges says whether the guest goes for good.
func (d *dispatch) purges(guest string) bool {
	op := d.world.asked.op
	return op != nil && op.Guest == guest && op.Kind == plan.OpDelete
}

// soak fills in how long a guest is watched, and as what.
func (d *dispatch) soak(s *homelabv1.Step, req *agentv1.RunRequest) error {
	g := d.sp.Guests[s.GetGuest()]
	if g == nil {
		return rpc.Errorf(rpc.ErrInvalid, "guest %s is not in the Spec", s.GetGuest())
	}
	req.Soak = durationpb.New(g.Timeouts.Soak)
	if !g.IsMember() || d.sp.K3s == nil {
		return nil
	}
	d.mu.Lock()
	cluster := d.cluster
	d.mu.Unlock()
	var err error
	req.K3S, err = k3sWant(d.sp, g.Name, cluster)
	return err
}

// adopted is the record of a VM that is taken over as it stands.
func (d *dispatch) adopted(s *homelabv1.Step) store.Guest {
	rec := store.Guest{Name: s.GetGuest(), Host: s.GetHost(), VMID: s.GetVmid(), UUID: s.GetUuid()}
	g := d.sp.Guests[s.GetGuest()]
	if g == nil {
		return rec
	}
	rec.NodeName, rec.Role = g.NodeName(), roleOf(g)
	if vm := vmOf(d.world.sights[s.GetHost()], rec); vm != nil {
		rec.MACs, rec.MemoryBytes, rec.Addresses = vm.GetMacs(), vm.GetMemoryBytes(), vm.GetAddresses()
		rec.DataDisks = attached(dataDisks(d.sp, g), vm)
	}
	return rec
}

// attached are those of the disks that a VM has.
func attached(disks []store.Disk, vm *homelabv1.VirtualMachine) []store.Disk {
	return slices.DeleteFunc(disks, func(d store.Disk) bool {
		return !slices.ContainsFunc(vm.GetDisks(), func(have *homelabv1.Disk) bool { return have.GetSlot() == d.Slot })
	})
}
