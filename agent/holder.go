package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// pair is a guest's VM and its holder as they are now, nil where there is none.
type pair struct{ vm, holder *homelabv1.VirtualMachine }

// seePair looks at both. Whatever is at those VMIDs is ours, or it is an error.
func (s *Service) seePair(ctx context.Context, req *agentv1.RunRequest) (pair, *driverv1.ObserveResponse, error) {
	id, holder := req.GetWant().GetIdentity(), req.GetHolder()
	var p pair
	vm, seen, err := s.at(ctx, id.GetVmid())
	if err != nil {
		return p, nil, err
	}
	p.vm = vm
	for _, vm := range seen.GetVms() {
		if vm.GetVmid() == holder.GetVmid() {
			p.holder = vm
		}
	}
	if p.vm != nil {
		if err := ours(p.vm, id); err != nil {
			return p, seen, err
		}
	}
	if p.holder != nil && !p.holder.GetHalfBuilt() {
		if err := ours(p.holder, holder); err != nil {
			return p, seen, err
		}
	}
	return p, seen, nil
}

// slotOf gives the volume that a VM has in a slot, "" when there is none.
func slotOf(vm *homelabv1.VirtualMachine, slot string) string {
	for _, v := range vm.GetVolumes() {
		if v.GetSlot() == slot {
			return v.GetVolid()
		}
	}
	return ""
}

// travel sorts the data disks: those that are still to go from one VM to the other.
// One that neither has, or both, is a reason to do nothing at all.
func (p pair) travel(disks []*homelabv1.Disk, from, to *homelabv1.VirtualMachine) (rest []*homelabv1.Disk, err error) {
	for _, d := range disks {
		here, there := slotOf(from, d.GetSlot()) != "", slotOf(to, d.GetSlot()) != ""
		switch {
		case here && there:
			return nil, rpc.Errorf(rpc.ErrRefused, "both VM %d and VM %d have a disk %s, so none is moved; take the wrong one away: qm disk unlink",
				from.GetVmid(), to.GetVmid(), d.GetSlot())
		case !here && !there:
			return nil, rpc.Errorf(rpc.ErrRefused, "data disk %s is neither the guest's nor its holder's, so nothing is done; look for it: qm config, pvesm list %s", d.GetSlot(), d.GetStorage())
		case here:
			rest = append(rest, d)
		}
	}
	return rest, nil
}

// stillAndStored says whether disks can be moved: both VMs are stopped, and the
// storages of the disks are there.
func (p pair) stillAndStored(o *homelabv1.Observation, from *homelabv1.VirtualMachine, disks []*homelabv1.Disk) error {
	for _, vm := range []*homelabv1.VirtualMachine{p.vm, p.holder} {
		if vm != nil && vm.GetPower() != homelabv1.Power_POWER_STOPPED {
			return rpc.Errorf(rpc.ErrRefused, "VM %d is %s; its disks are moved when it is stopped", vm.GetVmid(), powerText(vm))
		}
	}
	for _, d := range disks {
		if _, err := usable(o, storageOf(slotOf(from, d.GetSlot())), ""); err != nil {
			return fmt.Errorf("data disk %s: %w", d.GetSlot(), err)
		}
	}
	return nil
}

// storageOf is the storage in a volume's id.
func storageOf(volid string) string {
	name, _, _ := strings.Cut(volid, ":")
	return name
}

// detach moves the data disks to the guest's holder VM and sees them there, so that
// nothing which destroys the guest's VM can reach them.
func (s *Service) detach(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	p, seen, err := s.seePair(ctx, req)
	if err != nil {
		return nil, err
	}
	disks, err := p.travel(req.GetDataDisks(), p.vm, p.holder)
	if err != nil {
		return nil, err
	}
	if len(disks) > 0 {
		o := s.host.Observe(s.now())
		if err := s.settled(o); err != nil {
			return nil, err
		}
		if err := p.stillAndStored(o, p.vm, disks); err != nil {
			return nil, err
		}
		if err := s.makeHolder(ctx, req, p.holder, seen, e); err != nil {
			return nil, err
		}
		if err := s.move(ctx, req.GetWant().GetIdentity(), req.GetHolder(), disks, e); err != nil {
			return nil, err
		}
	}
	if p, _, err = s.seePair(ctx, req); err != nil {
		return nil, err
	}
	if p.holder != nil && !p.holder.GetHalfBuilt() {
		if err := s.closeCreate(req.GetHolder()); err != nil {
			return nil, err
		}
	}
	r := done(len(disks) > 0, "the data disks are with holder VM %d: %s", req.GetHolder().GetVmid(), strings.Join(slots(req.GetDataDisks()), ", "))
	for _, d := range req.GetDataDisks() {
		volid := slotOf(p.holder, d.GetSlot())
		if volid == "" {
			return nil, rpc.Errorf(rpc.ErrUnavailable, "data disk %s is not seen in holder VM %d; look: qm config %d", d.GetSlot(), req.GetHolder().GetVmid(), req.GetHolder().GetVmid())
		}
		r.Learned.Held = append(r.Learned.Held, &homelabv1.Disk{Slot: d.GetSlot(), Storage: storageOf(volid), SizeBytes: sizeOf(p.holder, d)})
	}
	return r, nil
}

func slots(disks []*homelabv1.Disk) []string {
	names := make([]string, 0, len(disks))
	for _, d := range disks {
		names = append(names, d.GetSlot())
	}
	return names
}

// sizeOf is a disk's size as its VM's configuration tells it, else as it was asked for.
func sizeOf(vm *homelabv1.VirtualMachine, d *homelabv1.Disk) int64 {
	for _, have := range vm.GetDisks() {
		if have.GetSlot() == d.GetSlot() && have.GetSizeBytes() > 0 {
			return have.GetSizeBytes()
		}
	}
	return d.GetSizeBytes()
}

// move moves disks one after the other; each is seen in its new place by the driver.
func (s *Service) move(ctx context.Context, from, to *homelabv1.Identity, disks []*homelabv1.Disk, e emit) error {
	for _, d := range disks {
		e.progress("moving disks", fmt.Sprintf("moving %s of VM %d to VM %d", d.GetSlot(), from.GetVmid(), to.GetVmid()))
		_, err := s.driver.MoveDisk(ctx, &driverv1.MoveDiskRequest{From: from, To: to, Slot: d.GetSlot(), Deadline: remaining(ctx)}, e.report())
		if err != nil {
			return fmt.Errorf("data disk %s: %w", d.GetSlot(), err)
		}
	}
	return nil
}

// makeHolder makes the holder VM when it is not there. One that is half-built is
// ours when an intent says so, and made anew.
func (s *Service) makeHolder(ctx context.Context, req *agentv1.RunRequest, there *homelabv1.VirtualMachine, seen *driverv1.ObserveResponse, e emit) error {
	id := req.GetHolder()
	if open := s.intents.of(id.GetVmid()); open.GetDestroying() && open.GetIdentity().GetGuest() == id.GetGuest() && (there == nil || remains(there)) {
		// The end of an earlier holder, which was cut off.
		if _, err := s.finishDestroy(ctx, open, e); err != nil {
			return err
		}
		var err error
		if there, seen, err = s.at(ctx, id.GetVmid()); err != nil {
			return err
		}
	}
	switch {
	case there != nil && !there.GetHalfBuilt():
		return s.closeCreate(id)
	case there != nil:
		intent := s.intents.of(id.GetVmid())
		if intent == nil || !sameVM(intent.GetIdentity(), id) || intent.GetDestroying() {
			return rpc.Errorf(rpc.ErrRefused, "VM %d is half-built and not by us, so it is left alone; look: qm config %d", id.GetVmid(), id.GetVmid())
		}
		e.progress("moving disks", fmt.Sprintf("removing half-built holder VM %d", id.GetVmid()))
		if _, err := s.driver.Destroy(ctx, &driverv1.DestroyRequest{
			Identity: id, HalfBuilt: true, VolumesBefore: intent.GetVolumesBefore(), Deadline: remaining(ctx),
		}, e.report()); err != nil {
			return err
		}
		if err := s.intents.close(id.GetVmid()); err != nil {
			return err
		}
	default:
		if err := free(seen, id.GetVmid()); err != nil {
			return err
		}
	}
	intent, err := s.intend(ctx, id, req.GetStep().GetId(), nil)
	if err != nil {
		return err
	}
	vm, err := s.driver.CreateHolder(ctx, &driverv1.CreateHolderRequest{
		Identity: id, Name: "hl-holder-" + req.GetStep().GetGuest(), Deadline: remaining(ctx),
	}, e.report())
	if err != nil {
		if errors.Is(err, rpc.ErrRefused) {
			err = errors.Join(err, s.unintend(ctx, intent, snippet{}, false, e))
		}
		return fmt.Errorf("holder VM %d: %w", id.GetVmid(), err)
	}
	if err := ours(vm, id); err != nil {
		return err
	}
	return s.intents.close(id.GetVmid())
}

// closeCreate closes the intent of a create that is seen to have ended, and that of
// the destruction of a holder which is whole after all and used again.
func (s *Service) closeCreate(id *homelabv1.Identity) error {
	if i := s.intents.of(id.GetVmid()); i != nil && sameVM(i.GetIdentity(), id) {
		return s.intents.close(id.GetVmid())
	}
	return nil
}

// attach moves the data disks back into the guest's VM and sees them there, and
// then removes the holder if nothing at all is left in it.
func (s *Service) attach(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	p, _, err := s.seePair(ctx, req)
	if err != nil {
		return nil, err
	}
	if p.vm == nil {
		return nil, rpc.Errorf(rpc.ErrNotFound, "there is no VM %d on this host", req.GetWant().GetIdentity().GetVmid())
	}
	disks, err := p.travel(req.GetDataDisks(), p.holder, p.vm)
	if err != nil {
		return nil, err
	}
	if len(disks) > 0 {
		o := s.host.Observe(s.now())
		if err := s.settled(o); err != nil {
			return nil, err
		}
		if err := p.stillAndStored(o, p.holder, disks); err != nil {
			return nil, err
		}
		if err := s.move(ctx, req.GetHolder(), req.GetWant().GetIdentity(), disks, e); err != nil {
			return nil, err
		}
		if p, _, err = s.seePair(ctx, req); err != nil {
			return nil, err
		}
	}
	for _, d := range req.GetDataDisks() {
		if slotOf(p.vm, d.GetSlot()) == "" {
			return nil, rpc.Errorf(rpc.ErrUnavailable, "data disk %s is not seen in VM %d; look: qm config %d", d.GetSlot(), p.vm.GetVmid(), p.vm.GetVmid())
		}
	}
	removed, left, err := s.removeHolder(ctx, req, p.holder, e)
	if err != nil {
		return nil, err
	}
	r := done(len(disks) > 0 || removed, "VM %d has its data disks: %s%s", p.vm.GetVmid(), strings.Join(slots(req.GetDataDisks()), ", "), left)
	r.Learned.Volumes = p.vm.GetVolumes()
	return r, nil
}

// removeHolder removes an empty holder. One that has any volume stays, and so does
// one whose volumes cannot be listed; left says so. Its destruction is remembered
// as a guest's is: cut off, it leaves a configuration that names nobody.
func (s *Service) removeHolder(ctx context.Context, req *agentv1.RunRequest, holder *homelabv1.VirtualMachine, e emit) (removed bool, left string, err error) {
	id := req.GetHolder()
	if open := s.intents.of(id.GetVmid()); open.GetDestroying() && sameVM(open.GetIdentity(), id) && (holder == nil || remains(holder)) {
		r, err := s.finishDestroy(ctx, open, e)
		return r.GetChanged(), "", err
	}
	if holder == nil {
		return false, "", s.closeCreate(id)
	}
	if holder.GetHalfBuilt() {
		return false, fmt.Sprintf("; VM %d, half-built, stays", id.GetVmid()), nil
	}
	now, err := s.driver.Inspect(ctx, id.GetVmid())
	switch {
	case err != nil:
		return false, "", err
	case !isYes(now.GetVolumesKnown()):
		return false, fmt.Sprintf("; holder VM %d stays, since its volumes cannot be listed: %s", id.GetVmid(), now.GetVolumesKnown().GetReason()), nil
	}
	var has []string
	for _, v := range slices.Concat(now.GetVm().GetVolumes(), holder.GetVolumes(), now.GetVolumes()) {
		if !slices.Contains(has, v.GetVolid()) {
			has = append(has, v.GetVolid())
		}
	}
	if len(has) > 0 {
		return false, fmt.Sprintf("; holder VM %d stays, since it has %s", id.GetVmid(), strings.Join(has, ", ")), nil
	}
	if err := s.settled(s.host.Observe(s.now())); err != nil {
		return false, "", err
	}
	if err := s.intents.write(&homelabv1.Intent{Identity: id, Step: req.GetStep().GetId(), At: timestamppb.New(s.now()), Destroying: true}); err != nil {
		return false, "", err
	}
	// What was seen is not what will be there: the slots are named, so that a disk
	// which came into one since makes the driver refuse.
	_, err = s.driver.Destroy(ctx, &driverv1.DestroyRequest{Identity: id, KeepSlots: slots(req.GetDataDisks()), Deadline: remaining(ctx)}, e.report())
	if errors.Is(err, rpc.ErrRefused) {
		err = errors.Join(err, s.spared(ctx, id))
	}
	if err != nil {
		return false, "", fmt.Errorf("holder VM %d: %w", id.GetVmid(), err)
	}
	return true, "", s.intents.close(id.GetVmid())
}
