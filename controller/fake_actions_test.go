package controller

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// volumes are a VM's disks as its configuration names them.
func (vm *fakeVM) volumes() []*homelabv1.Volume {
	var list []*homelabv1.Volume
	for i, slot := range slices.Sorted(maps.Keys(vm.disks)) {
		list = append(list, &homelabv1.Volume{Volid: fmt.Sprintf("local:vm-%d-disk-%d", vm.id.GetVmid(), i+1), Slot: slot, SizeBytes: 1 << 30})
	}
	return list
}

// dataDisks are a VM's disks as its configuration sizes them.
func (vm *fakeVM) dataDisks() []*homelabv1.Disk {
	var list []*homelabv1.Disk
	for _, slot := range slices.Sorted(maps.Keys(vm.disks)) {
		list = append(list, &homelabv1.Disk{Slot: slot, Storage: "local", SizeBytes: 1 << 30})
	}
	return list
}

// same refuses another VM than the one that is meant.
func same(vm *fakeVM, id *homelabv1.Identity) error {
	if vm != nil && (vm.id.GetUuid() != id.GetUuid() || vm.id.GetMark() != id.GetMark()) {
		return rpc.Errorf(rpc.ErrRefused, "VM %d is another one", id.GetVmid())
	}
	return nil
}

// carryMore does the steps that take something away, or bring it back. known is
// false for others. The fleet's mutex is held.
func (a *fakeAgent) carryMore(req *agentv1.RunRequest, result *agentv1.StepResult, change func(string, ...string)) (known bool, err error) {
	f, s, id := a.f, req.GetStep(), req.GetWant().GetIdentity()
	vm := a.vms[id.GetVmid()]
	switch s.GetAction() {
	case homelabv1.Action_ACTION_SNAPSHOT, homelabv1.Action_ACTION_DRAIN, homelabv1.Action_ACTION_LEAVE:
		through := a.vms[req.GetThrough().GetIdentity().GetVmid()]
		if through == nil || same(through, req.GetThrough().GetIdentity()) != nil || f.members[through.k3s] == nil {
			return true, rpc.Errorf(rpc.ErrRefused, "%s is no server here", s.GetThrough())
		}
		switch s.GetAction() {
		case homelabv1.Action_ACTION_SNAPSHOT:
			change("etcd", "snapshot")
			snapshot := &homelabv1.Snapshot{Name: fmt.Sprintf("snapshot-%d", len(a.snaps)), Guest: s.GetThrough(), At: timestamppb.Now()}
			a.snaps = append(a.snaps, snapshot)
			result.Learned.Snapshot = snapshot
		case homelabv1.Action_ACTION_LEAVE:
			return true, f.leave(req.GetMember(), change)
		default:
		}
		return true, nil
	case homelabv1.Action_ACTION_ADOPT:
		if vm == nil || vm.id.GetUuid() != id.GetUuid() {
			return true, rpc.Errorf(rpc.ErrRefused, "VM %d is another one", id.GetVmid())
		}
		change("qm", "set", "--description")
		vm.id = id
		result.Learned.MachineId, result.Learned.HostKeys, result.Learned.User = "machine-"+id.GetUuid(), []string{"ssh-ed25519 BBBB"}, "debian"
		return true, nil
	case homelabv1.Action_ACTION_ATTACH:
		return true, a.attach(req, vm, change)
	case homelabv1.Action_ACTION_DESTROY:
		if vm == nil {
			return true, nil
		}
		if err := same(vm, id); err != nil {
			return true, err
		}
		for _, d := range req.GetDataDisks() {
			if _, there := vm.disks[d.GetSlot()]; there {
				return true, rpc.Errorf(rpc.ErrRefused, "data disk %s is still there", d.GetSlot())
			}
		}
		if vm.power != homelabv1.Power_POWER_STOPPED {
			return true, rpc.Errorf(rpc.ErrRefused, "VM %d runs", id.GetVmid())
		}
		change("qm", "destroy", fmt.Sprint(id.GetVmid()))
		delete(a.vms, id.GetVmid())
		return true, nil
	case homelabv1.Action_ACTION_SAVE, homelabv1.Action_ACTION_STOP, homelabv1.Action_ACTION_HALT, homelabv1.Action_ACTION_CLEAN,
		homelabv1.Action_ACTION_DETACH, homelabv1.Action_ACTION_RESET, homelabv1.Action_ACTION_RESUME, homelabv1.Action_ACTION_SOAK:
	default:
		return false, nil
	}
	if vm == nil {
		return true, rpc.Errorf(rpc.ErrNotFound, "no VM %d", id.GetVmid())
	}
	if err := same(vm, id); err != nil {
		return true, err
	}
	switch s.GetAction() {
	case homelabv1.Action_ACTION_SAVE:
		result.Learned.Config, result.Learned.Volumes = []byte("cores: 2\n"), vm.volumes()
	case homelabv1.Action_ACTION_STOP:
		if vm.power != homelabv1.Power_POWER_STOPPED {
			change("qm", "stop", fmt.Sprint(id.GetVmid()))
			f.powerOff(vm)
		}
	case homelabv1.Action_ACTION_DETACH:
		return true, a.detach(req, vm, change)
	case homelabv1.Action_ACTION_RESET, homelabv1.Action_ACTION_RESUME:
		change("qm", s.GetAction().String())
		vm.power = homelabv1.Power_POWER_RUNNING
	case homelabv1.Action_ACTION_CLEAN:
		vm.k3s = ""
	case homelabv1.Action_ACTION_SOAK:
		if vm.power != homelabv1.Power_POWER_RUNNING {
			return true, rpc.Errorf(rpc.ErrUnavailable, "it did not stay well")
		}
	default:
	}
	return true, nil
}

// powerOff stops a VM as a person or a power cut does. The fleet's mutex is held.
func (f *fleet) powerOff(vm *fakeVM) {
	vm.power, vm.booted = homelabv1.Power_POWER_STOPPED, false
	f.unserved(vm)
}

// unserved is a member as the others see it when nothing in it answers.
func (f *fleet) unserved(vm *fakeVM) {
	if n := f.nodes[vm.k3s]; n != nil {
		n.Ready = noFact()
	}
	if e := f.members[vm.k3s]; e != nil {
		e.Healthy = noFact()
	}
}

// leave removes what the cluster holds of a guest. The fleet's mutex is held.
func (f *fleet) leave(ref *homelabv1.MemberRef, change func(string, ...string)) error {
	if e := f.members[ref.GetNode()]; e != nil {
		if e.GetId() != ref.GetEtcdId() || e.GetName() != ref.GetEtcdName() {
			return rpc.Errorf(rpc.ErrRefused, "member %s is another one than %s", e.GetId(), ref.GetEtcdId())
		}
		change("etcd", "member", "remove")
		delete(f.members, ref.GetNode())
	}
	if n := f.nodes[ref.GetNode()]; n != nil {
		if n.GetUid() != ref.GetNodeUid() {
			return rpc.Errorf(rpc.ErrRefused, "Node %s is another one", n.GetName())
		}
		change("node", "delete")
		delete(f.nodes, ref.GetNode())
	}
	return nil
}

func (a *fakeAgent) detach(req *agentv1.RunRequest, vm *fakeVM, change func(string, ...string)) error {
	id := req.GetHolder()
	holder := a.vms[id.GetVmid()]
	if err := same(holder, id); err != nil {
		return err
	}
	if vm.power != homelabv1.Power_POWER_STOPPED {
		return rpc.Errorf(rpc.ErrRefused, "VM %d runs", vm.id.GetVmid())
	}
	if holder == nil {
		change("qm", "create", fmt.Sprint(id.GetVmid()))
		holder = &fakeVM{id: id, name: "hl-holder-" + vm.name, power: homelabv1.Power_POWER_STOPPED, disks: map[string]string{}}
		a.vms[id.GetVmid()] = holder
	}
	return move(req.GetDataDisks(), vm, holder, change)
}

func (a *fakeAgent) attach(req *agentv1.RunRequest, vm *fakeVM, change func(string, ...string)) error {
	id := req.GetHolder()
	holder := a.vms[id.GetVmid()]
	if err := same(holder, id); err != nil || holder == nil {
		return err
	}
	if len(req.GetDataDisks()) > 0 {
		if err := same(vm, req.GetWant().GetIdentity()); err != nil {
			return err
		}
		if err := move(req.GetDataDisks(), holder, vm, change); err != nil {
			return err
		}
	}
	if len(holder.disks) > 0 {
		return rpc.Errorf(rpc.ErrRefused, "the holder is not empty")
	}
	change("qm", "destroy", fmt.Sprint(id.GetVmid()))
	delete(a.vms, id.GetVmid())
	return nil
}

func move(disks []*homelabv1.Disk, from, to *fakeVM, change func(string, ...string)) error {
	for _, d := range disks {
		content, there := from.disks[d.GetSlot()]
		if _, moved := to.disks[d.GetSlot()]; moved && !there {
			continue
		}
		if _, taken := to.disks[d.GetSlot()]; taken || !there {
			return rpc.Errorf(rpc.ErrRefused, "disk %s cannot move", d.GetSlot())
		}
		change("qm", "disk", "move", d.GetSlot())
		to.disks[d.GetSlot()] = content
		delete(from.disks, d.GetSlot())
	}
	return nil
}

// Orphans implements the agent's service.
func (a *fakeAgent) Orphans(context.Context, *agentv1.OrphansRequest) (*agentv1.OrphansResponse, error) {
	return &agentv1.OrphansResponse{Orphans: []*homelabv1.Orphan{{Volid: "local:vm-150-disk-0", Vmid: 150, Ours: noFact()}}, Known: yesFact()}, nil
}

// ListSnapshots implements the agent's service.
func (a *fakeAgent) ListSnapshots(context.Context, *agentv1.ListSnapshotsRequest) (*agentv1.ListSnapshotsResponse, error) {
	a.f.mu.Lock()
	defer a.f.mu.Unlock()
	return &agentv1.ListSnapshotsResponse{Snapshots: slices.Clone(a.snaps)}, nil
}
