package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/homeiac/homelab/agent/image"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/human"
	"github.com/homeiac/homelab/internal/mark"
	"github.com/homeiac/homelab/internal/rpc"
)

// template makes a template of an image, or finishes one, as create makes a guest:
// nothing is changed before all that it needs was seen, and what is begun is
// remembered before.
func (s *Service) template(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	id, src := req.GetTemplate(), req.GetImage()
	o := s.host.Observe(s.now())
	if err := s.settled(o); err != nil {
		return nil, err
	}
	seen, err := s.driver.Observe(ctx, false)
	if err != nil {
		return nil, err
	}
	there, err := freeOrOurs(o, seen, id)
	if err != nil {
		return nil, err
	}
	if _, err := usable(o, req.GetDisksStorage(), "images"); err != nil {
		return nil, err
	}
	img, err := s.imageOn(o, src, req.GetImagesStorage())
	if err != nil {
		return nil, err
	}
	if made := templateOf(seen, id); made != nil && s.intents.of(id.GetVmid()) == nil {
		r := done(false, "VM %d is the template of image %s", id.GetVmid(), src.GetName())
		r.Learned.ImageSha256 = img.Record.SHA256
		return r, nil
	}
	path := img.Path
	if !there {
		var release func()
		if path, release, err = s.importable(ctx, o, img, req.GetImagesStorage()); err != nil {
			return nil, err
		}
		defer release()
	}
	intent, err := s.intend(ctx, id, req.GetStep().GetId(), nil)
	if err != nil {
		return nil, err
	}
	vm, err := s.driver.CreateTemplate(ctx, &driverv1.CreateTemplateRequest{
		Identity: id, Name: templateVMName(src.GetName()), ImagePath: path, Storage: req.GetDisksStorage(), Deadline: remaining(ctx),
	}, e.report())
	if err != nil {
		if errors.Is(err, rpc.ErrRefused) && !there {
			err = errors.Join(err, s.unintend(ctx, intent, snippet{}, false, e))
		}
		return nil, err
	}
	if err := ours(vm, id); err != nil {
		return nil, err
	}
	if !vm.GetTemplate() {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "VM %d was made of image %s, but is no template", id.GetVmid(), src.GetName())
	}
	if err := s.intents.close(id.GetVmid()); err != nil {
		return nil, err
	}
	r := done(true, "made template %d of image %s (%s, %s)", id.GetVmid(), src.GetName(), human.Size(img.Record.Bytes), img.Record.Format)
	r.Learned.Volumes, r.Learned.ImageSha256 = vm.GetVolumes(), img.Record.SHA256
	return r, nil
}

// templateVMName is what a template is called in Proxmox, which takes DNS names. That
// it is ours its mark says.
func templateVMName(image string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '-'
	}, "hl-template-"+image)
	const longest = 63 // of a label
	return strings.TrimRight(name[:min(len(name), longest)], "-")
}

// templateOf finds the whole template of an identity, nil when it is not there.
func templateOf(seen *driverv1.ObserveResponse, id *homelabv1.Identity) *homelabv1.VirtualMachine {
	for _, vm := range seen.GetVms() {
		if vm.GetVmid() == id.GetVmid() && vm.GetTemplate() && ours(vm, id) == nil && !tornTemplate(vm) {
			return vm
		}
	}
	return nil
}

// tornTemplate says whether a VM is marked as a template and has no disk that clones
// could stand on: a conversion was cut off.
func tornTemplate(vm *homelabv1.VirtualMachine) bool {
	for _, v := range vm.GetVolumes() {
		if name := v.GetVolid()[strings.LastIndexAny(v.GetVolid(), ":/")+1:]; strings.HasPrefix(name, "base") {
			return false
		}
	}
	return vm.GetTemplate()
}

// isTemplate says whether an identity is a template's.
func isTemplate(id *homelabv1.Identity) bool {
	_, ok := mark.TemplateOf(id.GetGuest())
	return ok
}

// imageOn finds an image on a storage.
func (s *Service) imageOn(o *homelabv1.Observation, src *homelabv1.ImageSource, storage string) (image.Image, error) {
	folder, _, err := s.imageFolder(o, storage)
	if err != nil {
		return image.Image{}, err
	}
	img, ok := image.Find(src, folder)
	if !ok {
		return image.Image{}, rpc.Errorf(rpc.ErrRefused, "image %s is not on storage %s; it is fetched first", src.GetName(), storage)
	}
	return img, nil
}

// importable gives the file that a disk is imported from; it stays until release.
func (s *Service) importable(ctx context.Context, o *homelabv1.Observation, img image.Image, storage string) (path string, release func(), err error) {
	_, free, err := s.imageFolder(o, storage)
	if err != nil {
		return "", nil, err
	}
	if used, all, ok := s.host.RootSpace(); ok && s.host.OnRoot(img.Path) {
		free = unpackRoom(free, used, all)
	}
	return s.images.Importable(ctx, img, free)
}

// unpackRoom is how many bytes an unpacked copy may have on the root file system, of
// which used of all bytes are used: how large it gets is often not known before. What
// is free on its storage is negative when that is not known.
func unpackRoom(free, used, all int64) int64 {
	room := max(0, all/100*fullRoot-used)
	if free < 0 {
		return room
	}
	return min(free, room)
}

// isoVolume is how Proxmox names an ISO file that we keep on a storage.
func isoVolume(storage string, img image.Image) string {
	return storage + ":iso/" + img.Path[strings.LastIndexByte(img.Path, '/')+1:]
}

// pruneTemplate removes a template that nothing stands on, which the driver looks for
// in all configurations. Like a guest's destruction it is remembered first.
func (s *Service) pruneTemplate(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	id := req.GetTemplate()
	open := s.intents.of(id.GetVmid())
	if open != nil && (!sameVM(open.GetIdentity(), id) || open.GetStep() == undoing && !open.GetDestroying()) {
		return nil, rpc.Errorf(rpc.ErrRefused, "what is unfinished at VMID %d is %s's (%s), which must be rolled back first",
			id.GetVmid(), open.GetIdentity().GetGuest(), open.GetStep())
	}
	vm, seen, err := s.at(ctx, id.GetVmid())
	switch {
	case err != nil:
		return nil, err
	case open.GetDestroying() && (vm == nil || remains(vm)):
		return s.finishDestroy(ctx, open, e)
	case vm == nil:
		if err := free(seen, id.GetVmid()); err != nil {
			return nil, err
		}
		return done(false, "there is no template %d", id.GetVmid()), nil
	}
	if err := s.mayPrune(s.host.Observe(s.now()), vm, id); err != nil {
		return nil, err
	}
	intent, err := s.intendDestroy(ctx, id, req.GetStep().GetId(), open)
	if err != nil {
		return nil, err
	}
	e.progress("destroying", fmt.Sprintf("removing template %d and its disk", id.GetVmid()))
	if _, err := s.driver.Destroy(ctx, &driverv1.DestroyRequest{Identity: id, Template: true, Deadline: remaining(ctx)}, e.report()); err != nil {
		if errors.Is(err, rpc.ErrRefused) {
			err = errors.Join(err, s.spared(ctx, id))
		}
		return nil, err
	}
	if err := s.seeGone(ctx, intent); err != nil {
		return nil, err
	}
	return done(true, "removed template %d", id.GetVmid()), s.intents.close(id.GetVmid())
}

// mayPrune checks all that must be so for a template to go, on values alone.
func (s *Service) mayPrune(o *homelabv1.Observation, vm *homelabv1.VirtualMachine, id *homelabv1.Identity) error {
	if err := ours(vm, id); err != nil {
		return err
	}
	switch {
	case vm.GetHalfBuilt():
		return rpc.Errorf(rpc.ErrRefused, "template %d is half-built; it is rolled back and not removed", vm.GetVmid())
	case !vm.GetTemplate():
		return rpc.Errorf(rpc.ErrRefused, "VM %d is no template", vm.GetVmid())
	case vm.GetPower() != homelabv1.Power_POWER_STOPPED:
		return rpc.Errorf(rpc.ErrRefused, "template %d is %s", vm.GetVmid(), powerText(vm))
	case len(vm.GetLinkedClones()) > 0:
		return rpc.Errorf(rpc.ErrRefused, "VMs stand on the disk of template %d: %s", vm.GetVmid(), strings.Join(vm.GetLinkedClones(), ", "))
	}
	if err := s.settled(o); err != nil {
		return err
	}
	return volumesUsable(o, vm)
}

// unfinished marks, in what was seen, the VMs that only an open intent of ours shows
// to be half-built: a clone that has our mark and not yet its uuid, and a template
// whose conversion was cut off. While somebody works on one it is not told.
func (s *Service) unfinished(seen *driverv1.ObserveResponse) {
	for _, vm := range seen.GetVms() {
		i := s.intents.of(vm.GetVmid())
		if i == nil || i.GetDestroying() || len(vm.GetTasks()) > 0 || vm.GetPower() != homelabv1.Power_POWER_STOPPED {
			continue
		}
		id := i.GetIdentity()
		clone := i.GetTemplate() != nil && !vm.GetTemplate() && len(vm.GetSnapshots()) == 0 && (vm.GetLock() == "" || vm.GetLock() == "clone") &&
			vm.GetMark() != "" && vm.GetMark() == id.GetMark() && vm.GetUuid() != id.GetUuid()
		if clone || isTemplate(id) && ours(vm, id) == nil && tornTemplate(vm) {
			vm.HalfBuilt = true
		}
	}
}
