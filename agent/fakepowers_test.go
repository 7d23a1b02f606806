package agent

import (
	"context"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/homeiac/homelab/agent/driver"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// allocate makes a volume of a VMID; mu is held.
func (h *hypervisor) allocate(vmid int32) string {
	for n := 0; ; n++ {
		volid := fmt.Sprintf("local:%d/vm-%d-disk-%d.raw", vmid, vmid, n)
		if !slices.Contains(h.volumes[vmid], volid) {
			h.volumes[vmid] = append(h.volumes[vmid], volid)
			return volid
		}
	}
}

// release frees a volume with what is on it; mu is held.
func (h *hypervisor) release(vmid int32, volid string) {
	h.volumes[vmid] = slices.DeleteFunc(h.volumes[vmid], func(v string) bool { return v == volid })
	delete(h.data, volid)
}

// mine finds the VM of an identity; mu is held.
func (h *hypervisor) mine(id *homelabv1.Identity) (*homelabv1.VirtualMachine, error) {
	vm := h.vms[id.GetVmid()]
	switch {
	case vm == nil:
		return nil, rpc.Errorf(rpc.ErrNotFound, "there is no VM %d", id.GetVmid())
	case vm.GetUuid() != id.GetUuid() || vm.GetMark() != id.GetMark():
		return nil, rpc.Errorf(rpc.ErrRefused, "VM %d is somebody else's", id.GetVmid())
	}
	return vm, nil
}

func (h *hypervisor) Start(_ context.Context, req *driverv1.StartRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	vm, err := h.mine(req.GetIdentity())
	if err != nil {
		return nil, err
	}
	if vm.GetPower() == homelabv1.Power_POWER_PAUSED {
		if !req.GetResume() {
			return nil, rpc.Errorf(rpc.ErrRefused, "VM %d is paused", vm.GetVmid())
		}
		h.called(report, "resume", fmt.Sprint(vm.GetVmid()))
	} else {
		h.called(report, "start", fmt.Sprint(vm.GetVmid()))
	}
	vm.Power = homelabv1.Power_POWER_RUNNING
	return proto.CloneOf(vm), nil
}

func (h *hypervisor) Stop(_ context.Context, req *driverv1.StopRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	vm, err := h.mine(req.GetIdentity())
	if err != nil {
		return nil, err
	}
	if err := h.at("before stop"); err != nil {
		return nil, err
	}
	verb := "shutdown"
	if req.GetForce() {
		verb = "stop"
	}
	h.stops = append(h.stops, verb)
	h.called(report, verb, fmt.Sprint(vm.GetVmid()))
	if h.hangs && !req.GetForce() {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "VM %d still runs", vm.GetVmid())
	}
	vm.Power = homelabv1.Power_POWER_STOPPED
	if err := h.at("stopped"); err != nil {
		return nil, err
	}
	return proto.CloneOf(vm), nil
}

// Destroy removes the volumes first and then the configuration, as qm does.
func (h *hypervisor) Destroy(_ context.Context, req *driverv1.DestroyRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	vmid := req.GetIdentity().GetVmid()
	gone := &homelabv1.VirtualMachine{Vmid: vmid, Power: homelabv1.Power_POWER_ABSENT}
	vm := h.vms[vmid]
	if req.GetHalfBuilt() {
		if vm != nil {
			if !vm.GetHalfBuilt() {
				return nil, rpc.Errorf(rpc.ErrRefused, "VM %d is whole", vmid)
			}
			h.called(report, "destroy", fmt.Sprint(vmid))
			delete(h.vms, vmid)
			if err := h.at("destroyed"); err != nil {
				return nil, err
			}
		}
		for _, v := range slices.Clone(h.volumes[vmid]) {
			if !slices.Contains(req.GetVolumesBefore(), v) {
				h.called(report, "free", v)
				h.release(vmid, v)
			}
		}
		return gone, nil
	}
	if vm == nil {
		return gone, nil
	}
	if _, err := h.mine(req.GetIdentity()); err != nil {
		return nil, err
	}
	switch {
	case vm.GetHalfBuilt():
		return nil, rpc.Errorf(rpc.ErrRefused, "VM %d is half-built", vmid)
	case vm.GetPower() != homelabv1.Power_POWER_STOPPED:
		return nil, rpc.Errorf(rpc.ErrRefused, "VM %d is not stopped", vmid)
	case vm.GetProtection():
		return nil, rpc.Errorf(rpc.ErrRefused, "VM %d is protected", vmid)
	case slices.ContainsFunc(vm.GetVolumes(), func(v *homelabv1.Volume) bool { return slices.Contains(req.GetKeepSlots(), v.GetSlot()) }):
		return nil, rpc.Errorf(rpc.ErrRefused, "VM %d has a disk to keep", vmid)
	}
	if err := h.at("before destroy"); err != nil {
		return nil, err
	}
	h.called(report, "destroy", fmt.Sprint(vmid))
	if err := h.at("destroying"); err != nil {
		delete(h.vms, vmid) // the configuration is gone, the volumes are not
		return nil, err
	}
	for _, v := range vm.GetVolumes() {
		h.release(vmid, v.GetVolid())
	}
	if err := h.at("volumes gone"); err != nil {
		// The configuration comes last, emptied first.
		h.vms[vmid] = &homelabv1.VirtualMachine{Vmid: vmid, Lock: "destroyed", HalfBuilt: true, Power: homelabv1.Power_POWER_STOPPED, Readable: factYes("")}
		return nil, err
	}
	delete(h.vms, vmid)
	if err := h.at("destroyed"); err != nil {
		return nil, err
	}
	return gone, nil
}

func (h *hypervisor) Reset(_ context.Context, req *driverv1.ResetRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	vm, err := h.mine(req.GetIdentity())
	if err != nil {
		return nil, err
	}
	h.called(report, "reset", fmt.Sprint(vm.GetVmid()))
	return proto.CloneOf(vm), nil
}

func (h *hypervisor) Adopt(_ context.Context, req *driverv1.AdoptRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	vm := h.vms[req.GetIdentity().GetVmid()]
	if vm.GetUuid() != req.GetIdentity().GetUuid() || vm.GetMark() != "" || vm.GetDigest() != req.GetDigest() {
		return nil, rpc.Errorf(rpc.ErrRefused, "VM %d is another one by now", req.GetIdentity().GetVmid())
	}
	h.called(report, "set", fmt.Sprint(vm.GetVmid()))
	vm.Mark = req.GetIdentity().GetMark()
	return proto.CloneOf(vm), nil
}

func (h *hypervisor) CreateHolder(_ context.Context, req *driverv1.CreateHolderRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	id := req.GetIdentity()
	if h.vms[id.GetVmid()] != nil {
		vm, err := h.mine(id)
		return proto.CloneOf(vm), err
	}
	if err := h.at("before holder"); err != nil {
		return nil, err
	}
	h.called(report, "create", fmt.Sprint(id.GetVmid()))
	h.vms[id.GetVmid()] = &homelabv1.VirtualMachine{Vmid: id.GetVmid(), Lock: "create", HalfBuilt: true, Power: homelabv1.Power_POWER_STOPPED, Readable: factYes("")}
	if err := h.at("holder half-built"); err != nil {
		return nil, err
	}
	vm := &homelabv1.VirtualMachine{
		Vmid: id.GetVmid(), Name: req.GetName(), Uuid: id.GetUuid(), Mark: id.GetMark(), Power: homelabv1.Power_POWER_STOPPED, Readable: factYes(""),
	}
	h.vms[id.GetVmid()] = vm
	if err := h.at("holder made"); err != nil {
		return nil, err
	}
	return proto.CloneOf(vm), nil
}

func (h *hypervisor) MoveDisk(_ context.Context, req *driverv1.MoveDiskRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	from, err := h.mine(req.GetFrom())
	if err != nil {
		return nil, err
	}
	to, err := h.mine(req.GetTo())
	if err != nil {
		return nil, err
	}
	in := func(vm *homelabv1.VirtualMachine) int {
		return slices.IndexFunc(vm.GetVolumes(), func(v *homelabv1.Volume) bool { return v.GetSlot() == req.GetSlot() })
	}
	i := in(from)
	switch {
	case i < 0 && in(to) >= 0:
		return proto.CloneOf(to), nil
	case i < 0:
		return nil, rpc.Errorf(rpc.ErrNotFound, "no disk %s", req.GetSlot())
	case in(to) >= 0:
		return nil, rpc.Errorf(rpc.ErrRefused, "both have a disk %s", req.GetSlot())
	case from.GetPower() != homelabv1.Power_POWER_STOPPED || to.GetPower() != homelabv1.Power_POWER_STOPPED:
		return nil, rpc.Errorf(rpc.ErrRefused, "one of them is not stopped")
	}
	if err := h.at("before move"); err != nil {
		return nil, err
	}
	h.called(report, "disk", "move", fmt.Sprint(from.GetVmid()), req.GetSlot())
	old, volid := from.GetVolumes()[i].GetVolid(), h.allocate(to.GetVmid())
	if content, ok := h.data[old]; ok {
		h.data[volid] = content
	}
	from.Volumes = slices.Delete(from.GetVolumes(), i, i+1)
	h.release(from.GetVmid(), old)
	to.Volumes = append(to.Volumes, &homelabv1.Volume{Volid: volid, Slot: req.GetSlot()})
	if err := h.at("moved"); err != nil {
		return nil, err
	}
	return proto.CloneOf(to), nil
}

func (h *hypervisor) Orphans(context.Context) (*driverv1.OrphansResponse, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := &driverv1.OrphansResponse{Known: factYes("")}
	for vmid, volumes := range h.volumes {
		for _, v := range volumes {
			if !slices.ContainsFunc(h.vms[vmid].GetVolumes(), func(of *homelabv1.Volume) bool { return of.GetVolid() == v }) {
				r.Orphans = append(r.Orphans, &homelabv1.Orphan{Volid: v, Vmid: vmid, Storage: storageOf(v)})
			}
		}
	}
	slices.SortFunc(r.Orphans, func(a, b *homelabv1.Orphan) int { return int(a.GetVmid() - b.GetVmid()) })
	return r, nil
}

func (h *hypervisor) Config(_ context.Context, id *homelabv1.Identity) ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	vm, err := h.mine(id)
	if err != nil {
		return nil, err
	}
	return []byte("name: " + vm.GetName() + "\nciuser: ubuntu\n"), nil
}

func (h *hypervisor) CreateTemplate(context.Context, *driverv1.CreateTemplateRequest, driver.Report) (*homelabv1.VirtualMachine, error) {
	return nil, rpc.Errorf(rpc.ErrUnsupported, "templates")
}

func (h *hypervisor) Storages(context.Context) ([]*homelabv1.Storage, error) {
	return nil, rpc.Errorf(rpc.ErrUnsupported, "storages")
}
