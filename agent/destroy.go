package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/human"
	"github.com/homeiac/homelab/internal/rpc"
)

// destroy removes the VM and sees its volumes gone. Before, it is proved that the
// VM is ours, stopped and without its data disks, and, unless the guest goes for
// good, that it could be made again here and now. What is done is remembered
// first: a destruction that was cut off goes on, or is finished by a rollback.
func (s *Service) destroy(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	id := req.GetWant().GetIdentity()
	open := s.intents.of(id.GetVmid())
	if open != nil && (!sameVM(open.GetIdentity(), id) || open.GetStep() == undoing && !open.GetDestroying()) {
		return nil, rpc.Errorf(rpc.ErrRefused, "what is unfinished at VMID %d is guest %s's (%s), which must be rolled back first",
			id.GetVmid(), open.GetIdentity().GetGuest(), open.GetStep())
	}
	vm, seen, err := s.at(ctx, id.GetVmid())
	switch {
	case err != nil:
		return nil, err
	case open.GetDestroying() && (vm == nil || remains(vm)):
		r, err := s.finishDestroy(ctx, open, e)
		if err != nil {
			return nil, err
		}
		return r, s.dropSnippet(req.GetWant(), e)
	case vm == nil:
		if err := free(seen, id.GetVmid()); err != nil {
			return nil, err
		}
		return done(false, "there is no VM %d", id.GetVmid()), s.dropSnippet(req.GetWant(), e)
	}
	o := s.host.Observe(s.now())
	if err := s.mayDestroy(o, seen, vm, req); err != nil {
		return nil, err
	}
	if err := s.sound(ctx, o, req.GetWant()); err != nil {
		return nil, err
	}
	intent, err := s.intendDestroy(ctx, id, req.GetStep().GetId(), open)
	if err != nil {
		return nil, err
	}
	e.progress("destroying", fmt.Sprintf("removing VM %d and its volumes", id.GetVmid()))
	_, err = s.driver.Destroy(ctx, &driverv1.DestroyRequest{
		Identity: id, KeepSlots: slots(req.GetDataDisks()), Named: req.GetNamed(), Purge: req.GetPurge(), Deadline: remaining(ctx),
	}, e.report())
	if err != nil {
		if errors.Is(err, rpc.ErrRefused) {
			err = errors.Join(err, s.spared(ctx, id))
		}
		return nil, err
	}
	if err := s.seeGone(ctx, intent); err != nil {
		return nil, err
	}
	if err := s.dropSnippet(req.GetWant(), e); err != nil {
		return nil, err
	}
	return done(true, "destroyed VM %d", id.GetVmid()), s.intents.close(id.GetVmid())
}

// mayDestroy checks all that must be so for the VM to go, on values alone.
func (s *Service) mayDestroy(o *homelabv1.Observation, seen *driverv1.ObserveResponse, vm *homelabv1.VirtualMachine, req *agentv1.RunRequest) error {
	want := req.GetWant()
	if err := ours(vm, want.GetIdentity()); err != nil {
		return err
	}
	if vm.GetHalfBuilt() {
		return rpc.Errorf(rpc.ErrRefused, "VM %d is half-built; it is rolled back and not destroyed", vm.GetVmid())
	}
	if vm.GetPower() != homelabv1.Power_POWER_STOPPED {
		return rpc.Errorf(rpc.ErrRefused, "VM %d is %s; only a stopped VM is destroyed", vm.GetVmid(), powerText(vm))
	}
	for _, d := range req.GetDataDisks() {
		if volid := slotOf(vm, d.GetSlot()); volid != "" {
			return rpc.Errorf(rpc.ErrRefused, "data disk %s (%s) still stands in VM %d; it is moved away first", d.GetSlot(), volid, vm.GetVmid())
		}
	}
	if err := s.settled(o); err != nil {
		return err
	}
	if err := volumesUsable(o, vm); err != nil {
		return err
	}
	if req.GetPurge() {
		return nil
	}
	return s.remakable(o, seen, vm, req)
}

// volumesUsable is an error when a volume of the VM lies on a storage that is away:
// its end could not be seen.
func volumesUsable(o *homelabv1.Observation, vm *homelabv1.VirtualMachine) error {
	for _, v := range vm.GetVolumes() {
		if !strings.Contains(v.GetVolid(), ":") {
			continue // none, cdrom or a path: nothing of it would go
		}
		if _, err := usable(o, storageOf(v.GetVolid()), ""); err != nil {
			return fmt.Errorf("volume %s: %w", v.GetVolid(), err)
		}
	}
	return nil
}

// remakable says whether the guest could be made again now: nothing is destroyed
// that this host could not bring back.
func (s *Service) remakable(o *homelabv1.Observation, seen *driverv1.ObserveResponse, vm *homelabv1.VirtualMachine, req *agentv1.RunRequest) error {
	want := req.GetWant()
	if want.GetHardware().GetSystemDisk() == nil || want.GetImage().GetName() == "" {
		return rpc.Errorf(rpc.ErrInvalid, "step %s does not say how guest %s is made again", req.GetStep().GetId(), want.GetIdentity().GetGuest())
	}
	err := func() error {
		if err := resources(o, want.GetHardware()); err != nil {
			return err
		}
		for _, d := range req.GetDataDisks() {
			if d.GetStorage() == "" {
				continue // only its slot is remembered
			}
			if _, err := usable(o, d.GetStorage(), "images"); err != nil {
				return err
			}
		}
		if _, err := usable(o, want.GetSnippetsStorage(), "snippets"); err != nil {
			return err
		}
		if want.GetCdrom() != nil {
			if _, err := s.imageOn(o, want.GetCdrom(), want.GetIsoStorage()); err != nil {
				return err
			}
		}
		// A template serves as well as the image; of the image it can be made.
		if want.GetTemplate() == nil || templateOf(seen, want.GetTemplate()) == nil {
			if _, err := s.imageOn(o, want.GetImage(), want.GetImagesStorage()); err != nil {
				return err
			}
		}
		others := seen.GetGuestsMemoryBytes()
		if vm.GetOnboot() {
			others -= vm.GetMemoryBytes() // it is stopped, and counted all the same
		}
		return roomFor(o, want, others)
	}()
	if err != nil {
		return fmt.Errorf("it could not be made again, so it is not destroyed: %w", err)
	}
	return nil
}

// sound says whether a guest's disk can be made of its image, for a guest that is made
// again: of a compressed file that is known only when it was unpacked to its end, and
// afterwards is too late. Whether the image has to be there it leaves to remakable.
func (s *Service) sound(ctx context.Context, o *homelabv1.Observation, want *homelabv1.GuestWant) error {
	if want.GetClone() == homelabv1.CloneKind_CLONE_KIND_UNSPECIFIED {
		return nil // it is not made again
	}
	img, err := s.imageOn(o, want.GetImage(), want.GetImagesStorage())
	if err != nil {
		return nil //nolint:nilerr // a template may serve instead, and remakable says when none does
	}
	disk := want.GetHardware().GetSystemDisk().GetSizeBytes()
	img, err = s.images.Prove(ctx, img, disk)
	if err == nil && img.Record.Virtual > disk {
		err = rpc.Errorf(rpc.ErrRefused, "its disk has %s", human.Size(img.Record.Virtual))
	}
	if err != nil {
		return fmt.Errorf("it could not be made again with a disk of %s, so nothing of it is touched: image %s: %w", human.Size(disk), img.Record.Name, err)
	}
	return nil
}

// intendDestroy writes the intent, synced. What an earlier attempt saw beside the
// VM's own volumes is not ours, whatever came since.
func (s *Service) intendDestroy(ctx context.Context, id *homelabv1.Identity, step string, open *homelabv1.Intent) (*homelabv1.Intent, error) {
	now, err := s.inspect(ctx, id.GetVmid())
	if err != nil {
		return nil, err
	}
	if err := ours(now.GetVm(), id); err != nil {
		return nil, err
	}
	intent := &homelabv1.Intent{Identity: id, Step: step, At: timestamppb.New(s.now()), Destroying: true}
	if open.GetDestroying() {
		intent.VolumesBefore = open.GetVolumesBefore()
	}
	for _, v := range now.GetVolumes() {
		named := slices.ContainsFunc(now.GetVm().GetVolumes(), func(of *homelabv1.Volume) bool { return of.GetVolid() == v.GetVolid() })
		if !named && !slices.Contains(intent.GetVolumesBefore(), v.GetVolid()) {
			intent.VolumesBefore = append(intent.VolumesBefore, v.GetVolid())
		}
	}
	return intent, s.intents.write(intent)
}

// spared closes the intent of a destruction that was refused, which means that
// nothing was changed, if the VM is seen whole.
func (s *Service) spared(ctx context.Context, id *homelabv1.Identity) error {
	vm, _, err := s.at(ctx, id.GetVmid())
	if err != nil || vm == nil || ours(vm, id) != nil {
		return nil //nolint:nilerr // not known: the intent stays, and nothing follows from it while the VM is whole
	}
	return s.intents.close(id.GetVmid())
}

// liveOn closes the intent of a destruction that was begun and given up: the VM is
// whole and runs, so what may be found of that VMID much later is not its rest.
func (s *Service) liveOn(id *homelabv1.Identity) error {
	if i := s.intents.of(id.GetVmid()); i.GetDestroying() && sameVM(i.GetIdentity(), id) {
		return s.intents.close(id.GetVmid())
	}
	return nil
}

// remains says whether a VM is what a destruction that was cut off leaves: a
// configuration that holds nothing but the lock of it. That it is ours, our open
// intent says.
func remains(vm *homelabv1.VirtualMachine) bool {
	return vm.GetHalfBuilt() && (vm.GetLock() == "destroyed" || vm.GetLock() == "")
}

// rest is what is left of a VM that is gone: its volumes that were not there before.
func (s *Service) rest(ctx context.Context, intent *homelabv1.Intent) (left []string, err error) {
	vmid := intent.GetIdentity().GetVmid()
	now, err := s.inspect(ctx, vmid)
	switch {
	case err != nil:
		return nil, err
	case now.GetVm().GetPower() != homelabv1.Power_POWER_ABSENT:
		return nil, rpc.Errorf(rpc.ErrUnavailable, "VM %d is still there; look: qm config %d", vmid, vmid)
	}
	for _, v := range now.GetVolumes() {
		if !slices.Contains(intent.GetVolumesBefore(), v.GetVolid()) {
			left = append(left, v.GetVolid())
		}
	}
	return left, nil
}

// seeGone sees that the VM and its volumes are gone.
func (s *Service) seeGone(ctx context.Context, intent *homelabv1.Intent) error {
	left, err := s.rest(ctx, intent)
	if err != nil || len(left) == 0 {
		return err
	}
	return rpc.Errorf(rpc.ErrUnavailable, "VM %d is gone, its volumes %s are still there; the next hlctl apply removes them",
		intent.GetIdentity().GetVmid(), strings.Join(left, ", "))
}

// finishDestroy finishes a destruction that was cut off, by freeing what is left of
// the VM's own volumes by name. It never destroys a whole VM: that is decided anew.
// When somebody else has the VMID by now, nothing at it is ours any more.
func (s *Service) finishDestroy(ctx context.Context, intent *homelabv1.Intent, e emit) (*agentv1.StepResult, error) {
	id := intent.GetIdentity()
	vm, seen, err := s.at(ctx, id.GetVmid())
	switch {
	case err != nil:
		return nil, err
	case vm != nil && remains(vm):
		// Its configuration is what qm leaves last.
	case vm != nil && ours(vm, id) == nil:
		return nil, rpc.Errorf(rpc.ErrRefused, "VM %d is whole, so nothing of it is removed here; hlctl plan says what is to be done with it", id.GetVmid())
	case vm != nil && !isYes(vm.GetReadable()):
		return nil, rpc.Errorf(rpc.ErrUnavailable, "the configuration of VM %d cannot be read: %s", id.GetVmid(), vm.GetReadable().GetReason())
	case vm != nil:
		return done(false, "VM %d is another one by now (%s), so nothing of it is removed", id.GetVmid(), vm.GetName()), s.intents.close(id.GetVmid())
	}
	if vm == nil {
		if err := free(seen, id.GetVmid()); errors.Is(err, rpc.ErrRefused) {
			return done(false, "%v", err), s.intents.close(id.GetVmid())
		} else if err != nil {
			return nil, err
		}
	}
	if err := s.settled(s.host.Observe(s.now())); err != nil {
		return nil, err
	}
	changed := vm != nil
	if vm == nil {
		left, err := s.rest(ctx, intent)
		if err != nil {
			return nil, err
		}
		changed = len(left) > 0
	}
	if changed {
		e.progress("destroying", fmt.Sprintf("removing what is left of VM %d", id.GetVmid()))
		if _, err := s.driver.Destroy(ctx, &driverv1.DestroyRequest{
			Identity: id, HalfBuilt: true, VolumesBefore: intent.GetVolumesBefore(), Template: isTemplate(id), Deadline: remaining(ctx),
		}, e.report()); err != nil {
			return nil, err
		}
		if err := s.seeGone(ctx, intent); err != nil {
			return nil, err
		}
	}
	return done(changed, "nothing of VM %d is left", id.GetVmid()), s.intents.close(id.GetVmid())
}

// dropSnippet removes the user-data of a generation whose VM is gone: it holds
// that generation's private host key. The storage may be gone as well; then the
// snippet lies there for no one.
func (s *Service) dropSnippet(want *homelabv1.GuestWant, e emit) error {
	st, err := usable(s.host.Observe(s.now()), want.GetSnippetsStorage(), "")
	if err != nil || st.GetPath() == "" {
		return nil //nolint:nilerr // nothing can be looked for there
	}
	snip, err := s.snippetOf(want.GetIdentity(), st)
	if err != nil {
		return err
	}
	if _, err := os.Stat(snip.local); os.IsNotExist(err) {
		return nil
	}
	return s.removeSnippet(snip, e)
}
