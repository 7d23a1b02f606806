package proxmox

import (
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/homeiac/homelab/agent/driver/proxmox/parse"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// lastStops says of stopped VMs which task stopped them. The index of ended tasks
// grows with every task of the host, so it is read only when a VM is stopped, and
// only when it has changed. An index that cannot be read tells nothing.
func (d *Driver) lastStops(vms []*homelabv1.VirtualMachine) {
	var last map[int32]parse.EndedTask
	for _, vm := range vms {
		if vm.GetPower() != homelabv1.Power_POWER_STOPPED || vm.GetTemplate() {
			continue
		}
		if last == nil {
			// Proxmox renames the index when it gets long.
			old, _ := d.ended.read(d.host("var/log/pve/tasks/index.1"))
			now, _ := d.ended.read(d.host("var/log/pve/tasks/index"))
			last = parse.LastStops(old, now)
		}
		if t, ok := last[vm.GetVmid()]; ok {
			vm.LastStop = &homelabv1.Task{Type: t.Type, User: t.User, Status: t.Status, Ended: timestamppb.New(t.End), Upid: t.Text}
		}
	}
}
