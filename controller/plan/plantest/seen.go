package plantest

import (
	"fmt"
	"maps"
	"slices"

	"github.com/homeiac/homelab/controller/plan"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Seen is the world as agents and gossip would show it now.
func (w *World) Seen() plan.Seen {
	seen := plan.Seen{Hosts: map[string]plan.Host{}}
	for _, name := range w.Spec.HostNames() {
		h := w.Hosts[name]
		switch {
		case !w.Spec.Hosts[name].Enabled:
			seen.Hosts[name] = plan.Host{State: homelabv1.HostState_HOST_STATE_DISABLED, Observation: h.LastSeen}
			continue
		case h.Off:
			seen.Hosts[name] = plan.Host{State: homelabv1.HostState_HOST_STATE_SILENT, Since: w.Now.Add(-4 * minute), Observation: h.LastSeen}
			continue
		case h.AgentGone:
			seen.Hosts[name] = plan.Host{State: homelabv1.HostState_HOST_STATE_AGENT_GONE, Since: w.Now.Add(-4 * minute), Observation: h.LastSeen}
			continue
		}
		o := w.observe(h)
		h.LastSeen = o
		s := plan.Host{State: homelabv1.HostState_HOST_STATE_ONLINE, Observation: o, ClockOffset: h.Clock, Looked: map[string]*homelabv1.GuestLook{}}
		if h.PVEGone {
			s.State = homelabv1.HostState_HOST_STATE_DEGRADED
		}
		for _, vm := range h.VMs {
			if w.Spec.Guests[vm.Guest] != nil && vm.Power == homelabv1.Power_POWER_RUNNING {
				s.Looked[vm.Guest] = w.look(vm)
			}
		}
		seen.Hosts[name] = s
		w.Last[name] = nil
		for _, v := range o.GetVms() {
			w.Last[name] = append(w.Last[name], v.GetVmid())
		}
		w.Last[name] = append(w.Last[name], h.Containers...)
	}
	return seen
}

func (w *World) observe(h *Host) *homelabv1.Observation {
	o := &homelabv1.Observation{
		Host: h.Name, NodeName: h.Node, PveCluster: Yes(), Quorate: Yes(), PveClusterName: h.PVE,
		UptimeSeconds: int64(h.Uptime.Seconds()), ShuttingDown: No(""), MemoryBytes: h.MemoryBytes, Cpus: h.CPUs,
		RootUsedPercent: h.RootPercent, Bridges: h.Bridges, BridgesKnown: Yes(), Storages: h.Storages, StoragesKnown: Yes(),
		VmsKnown: Yes(), ClusterVmidsKnown: Yes(), LeftoverVmids: slices.Clone(h.Leftovers), Intents: h.Intents,
		Images: h.Images, Driver: Yes(), Paused: h.Paused, Steps: h.Steps,
	}
	if h.Lost {
		o.Quorate = No("1 of 2 votes")
	}
	if h.PVEGone {
		o.PveCluster, o.Quorate = No("pmxcfs is not mounted"), Unknown("/etc/pve is gone")
		o.VmsKnown, o.ClusterVmidsKnown = Unknown("/etc/pve is gone"), Unknown("/etc/pve is gone")
		return o
	}
	for _, vmid := range slices.Sorted(maps.Keys(h.VMs)) {
		vm := h.VMs[vmid]
		o.Vms = append(o.Vms, show(vm))
		for _, id := range slices.Sorted(maps.Keys(h.VMs)) {
			if h.VMs[id].Base == vmid {
				o.Vms[len(o.Vms)-1].LinkedClones = append(o.Vms[len(o.Vms)-1].LinkedClones, fmt.Sprintf("VM %d", id))
			}
		}
		if vm.Power == homelabv1.Power_POWER_RUNNING || vm.OnBoot {
			o.GuestsMemoryBytes += vm.Memory
		}
	}
	if h.PVE == "" {
		o.ClusterVmids = lines(h)
		return o
	}
	for _, name := range slices.Sorted(maps.Keys(w.Hosts)) {
		if other := w.Hosts[name]; other.PVE == h.PVE {
			o.PveNodes = append(o.PveNodes, &homelabv1.PveNode{Name: other.Node, Online: !other.Off})
			o.ClusterVmids = append(o.ClusterVmids, lines(other)...)
		}
	}
	return o
}

func lines(h *Host) []*homelabv1.ClusterVmid {
	var all []*homelabv1.ClusterVmid
	for _, vmid := range slices.Sorted(maps.Keys(h.VMs)) {
		vm := h.VMs[vmid]
		all = append(all, &homelabv1.ClusterVmid{Vmid: vmid, Node: h.Node, Type: "qemu", Name: vm.Name, Mark: vm.Mark, Uuid: vm.UUID})
	}
	for _, vmid := range h.Containers {
		all = append(all, &homelabv1.ClusterVmid{Vmid: vmid, Node: h.Node, Type: "lxc"})
	}
	return all
}

func show(vm *VM) *homelabv1.VirtualMachine {
	v := &homelabv1.VirtualMachine{
		Vmid: vm.VMID, Name: vm.Name, Uuid: vm.UUID, Mark: vm.Mark, Power: vm.Power, Lock: vm.Lock, Protection: vm.Protection,
		HaManaged: vm.HA, MemoryBytes: vm.Memory, Cpus: vm.CPUs, HalfBuilt: vm.Half, Onboot: vm.OnBoot, Readable: Yes(),
		Template: vm.Template, LinkedClone: vm.Base != 0,
		GuestAgent: fact(vm.Booted && !vm.Mute, "mute"), Snapshots: slices.Clone(vm.Snapshots), Bridges: slices.Clone(vm.Bridges), Tags: slices.Clone(vm.Tags),
	}
	if vm.Power != homelabv1.Power_POWER_STOPPED {
		v.Process, v.QemuStatus = Yes(), vm.QEMU
		if !vm.Started.IsZero() {
			v.ProcessStarted = timestamppb.New(vm.Started)
		}
	}
	if vm.Disk > 0 {
		v.Disks = append(v.Disks, &homelabv1.Disk{Slot: "scsi0", Storage: "local", SizeBytes: vm.Disk})
		v.Volumes = append(v.Volumes, &homelabv1.Volume{Volid: fmt.Sprintf("local:%d/vm-%d-disk-0.raw", vm.VMID, vm.VMID), Slot: "scsi0", SizeBytes: vm.Disk})
	}
	for _, slot := range slices.Sorted(maps.Keys(vm.DataDisks)) {
		v.Disks = append(v.Disks, &homelabv1.Disk{Slot: slot, Storage: "local", SizeBytes: 1 << 30})
		v.Volumes = append(v.Volumes, &homelabv1.Volume{Volid: fmt.Sprintf("local:%d/vm-%d-%s.raw", vm.VMID, vm.VMID, slot), Slot: slot, SizeBytes: 1 << 30})
	}
	return v
}

// look is a look into a running guest of ours.
func (w *World) look(vm *VM) *homelabv1.GuestLook {
	l := &homelabv1.GuestLook{Identity: &homelabv1.Identity{Fleet: Fleet, Guest: vm.Guest, Vmid: vm.VMID, Uuid: vm.UUID}}
	if vm.Mute || !vm.Booted {
		l.Ssh, l.SshWhy, l.Booted = No("no answer within 3s"), "filtered", Unknown("SSH does not answer")
		l.GuestAgent = No("no answer in 300 ms")
		l.K3S = &homelabv1.K3SLook{Looked: Unknown("timeout")}
		return l
	}
	l.Ssh, l.Booted, l.MachineId, l.GuestAgent = Yes(), Yes(), vm.MachineID, Yes()
	k := &homelabv1.K3SLook{
		Looked: Yes(), ServerActive: fact(vm.Active && !vm.Agent, "inactive"), AgentActive: fact(vm.Active && vm.Agent, "inactive"),
		ServerData: fact(vm.Data && !vm.Agent, ""), AgentData: fact(vm.Data && vm.Agent, ""),
	}
	l.K3S = k
	if vm.Agent {
		return l
	}
	m := w.Members[w.Spec.Guests[vm.Guest].NodeName()]
	if _, _, ok := w.Quorum(); !ok || !w.up(vm) || m == nil || m.VM != vm || m.NoNode {
		k.Nodes, k.Etcd = &homelabv1.NodesView{Known: Unknown("connection refused")}, &homelabv1.EtcdView{Known: Unknown("connection refused")}
		return l
	}
	k.Nodes, k.Etcd = &homelabv1.NodesView{Known: Yes()}, &homelabv1.EtcdView{Known: Yes(), ClusterId: "c1"}
	for _, node := range slices.Sorted(maps.Keys(w.Members)) {
		m := w.Members[node]
		if !m.NoNode {
			k.Nodes.Nodes = append(k.Nodes.Nodes, &homelabv1.Node{Name: node, Ready: fact(w.up(m.VM), "kubelet silent"), Version: m.Version, Server: m.Server, Cordoned: m.Cordoned})
		}
		if m.Server {
			k.Etcd.Members = append(k.Etcd.Members, &homelabv1.EtcdMember{Id: m.ID, Name: fmt.Sprintf("%s-%08s", node, m.ID), Learner: m.Learner, Healthy: fact(w.up(m.VM), "connection refused")})
		}
	}
	return l
}
