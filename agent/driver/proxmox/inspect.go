package proxmox

import (
	"context"
	"errors"
	"slices"

	"github.com/homeiac/homelab/agent/driver/proxmox/parse"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// Inspect implements driver.Driver. On a host whose images lie on directory
// storages it starts no process.
func (d *Driver) Inspect(ctx context.Context, vmid int32) (*driverv1.InspectResponse, error) {
	if vmid < 100 {
		return nil, rpc.Errorf(rpc.ErrInvalid, "VMID %d", vmid)
	}
	vm, err := d.look(ctx, vmid)
	if err != nil {
		return nil, err
	}
	seen := &driverv1.InspectResponse{Vm: vm, VolumesKnown: yes()}
	listed, err := d.volumes(ctx, vmid, func(*homelabv1.Event) {})
	if err != nil {
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			return nil, err
		}
		seen.VolumesKnown = unknown("%v", err)
	}
	slots := map[string]string{}
	for _, v := range vm.GetVolumes() {
		slots[v.GetVolid()] = v.GetSlot()
		seen.Volumes = append(seen.Volumes, v)
	}
	for _, v := range listed {
		if _, named := slots[v.Volid]; !named && !clone(vm, v.Volid) {
			seen.Volumes = append(seen.Volumes, &homelabv1.Volume{Volid: v.Volid, SizeBytes: v.SizeBytes})
		}
	}
	slices.SortFunc(seen.Volumes, func(a, b *homelabv1.Volume) int {
		if a.GetVolid() < b.GetVolid() {
			return -1
		}
		return 1
	})
	return seen, nil
}

// clone tells whether the VM names the volume by its linked clone's longer name.
func clone(vm *homelabv1.VirtualMachine, volid string) bool {
	named := map[string]bool{}
	for _, v := range vm.GetVolumes() {
		named[v.GetVolid()] = true
	}
	return parse.Owner(volid) != 0 && namedAs(named, volid)
}
