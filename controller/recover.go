package controller

import (
	"slices"

	"github.com/homeiac/homelab/controller/plan"
	"github.com/homeiac/homelab/controller/store"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/mark"
	"github.com/homeiac/homelab/internal/spec"
)

// recover adds guests of ours that are not remembered, or as another VM than
// the one that stands there with our verified mark, and returns the hosts to
// look at again.
func (c *Controller) recover(sp *spec.Spec, w *world) map[string]bool {
	again := make(map[string]bool)
	for _, g := range plan.Survey(c.want(sp, *w), seen(sp, *w), c.now()) {
		if g.VM == nil {
			continue
		}
		rec, known := w.guests[g.Name]
		// A record of a later generation stays: that VM may be on its way.
		if known && rec.UUID != "" && (rec.UUID == g.VM.GetUuid() && rec.Generation >= g.Generation || rec.Generation > g.Generation) {
			continue
		}
		w.guests[g.Name] = store.Guest{
			Name: g.Name, Host: g.Want.Host, VMID: g.VM.GetVmid(), UUID: g.VM.GetUuid(), Generation: g.Generation,
			MACs: g.VM.GetMacs(), MemoryBytes: g.VM.GetMemoryBytes(), Addresses: g.VM.GetAddresses(), Holder: rec.Holder,
			NodeName: g.Want.NodeName(), Role: roleOf(g.Want), DataDisks: attached(dataDisks(sp, g.Want), g.VM),
		}
		w.learned = append(w.learned, g.Name)
		again[g.Want.Host] = again[g.Want.Host] || g.VM.GetPower() == homelabv1.Power_POWER_RUNNING
	}
	return again
}

// recoverHolders puts holder VMs that were found by their mark back into the
// records of their guests. One of a guest that the Spec no longer names and nobody
// remembers is known only as long as it is looked at.
func (c *Controller) recoverHolders(sp *spec.Spec, w *world) {
	want := c.want(sp, *w)
	holders := plan.Holders(want, seen(sp, *w))
	for _, h := range holders {
		rec, known := w.guests[h.Guest]
		remembered := func(o plan.HolderState) bool {
			return o.Guest == h.Guest && o.VM.GetVmid() == rec.Holder.VMID && o.VM.GetUuid() == rec.Holder.UUID
		}
		if slices.ContainsFunc(holders, remembered) || known && rec.Host != h.Host {
			continue
		}
		if !known {
			rec = store.Guest{Name: h.Guest, Host: h.Host}
		}
		owner := want.VerifyMark(h.VM, plan.HolderName(h.Guest))
		rec.Holder = store.HolderVM{VMID: h.VM.GetVmid(), UUID: h.VM.GetUuid(), Generation: owner.Generation}
		w.guests[h.Guest] = rec
		if known || sp.Guests[h.Guest] != nil {
			w.learned = append(w.learned, h.Guest)
		}
	}
}

// recoverDropped adds guests of ours that neither the Spec names nor anybody
// remembers: only then can they be taken away.
func (c *Controller) recoverDropped(sp *spec.Spec, w *world) {
	verify := plan.VerifyWith(c.signer.key, c.fleet)
	for _, host := range sp.HostNames() {
		for _, vm := range w.sights[host].obs.GetVms() {
			m, err := mark.Parse(vm.GetMark())
			if err != nil || sp.Guests[m.Guest] != nil || w.guests[m.Guest].UUID != "" {
				continue
			}
			if plan.NoGuest(m.Guest) {
				continue
			}
			if owner := verify(vm, m.Guest); owner.Ours {
				w.guests[m.Guest] = store.Guest{
					Name: m.Guest, Host: host, VMID: vm.GetVmid(), UUID: vm.GetUuid(), Generation: owner.Generation,
					MACs: vm.GetMacs(), MemoryBytes: vm.GetMemoryBytes(), Addresses: vm.GetAddresses(), Holder: w.guests[m.Guest].Holder,
				}
				w.learned = append(w.learned, m.Guest)
			}
		}
	}
}

// learnFromSight are the records of which more was seen than is remembered:
// what steps found out whose answer never came back, because a controller was
// killed.
func learnFromSight(sp *spec.Spec, w world) map[string]store.Guest {
	learned := make(map[string]store.Guest)
	cluster := plan.ClusterOf(plan.Want{Spec: sp}, seen(sp, w))
	for name, rec := range w.guests {
		g := sp.Guests[name]
		if g == nil {
			continue
		}
		changed, vm := false, vmOf(w.sights[rec.Host], rec)
		if rec.NodeName == "" && rec.UUID != "" { // remembered by an older version
			rec.NodeName, rec.Role, rec.User, changed = g.NodeName(), roleOf(g), g.User, true
			if sp.Hosts[g.Host] != nil {
				rec.DataDisks = attached(dataDisks(sp, g), vm)
			}
		}
		switch {
		case rec.UUID == "" || !answers(w.sights[rec.Host]):
		case rec.Resting && vm.GetPower() == homelabv1.Power_POWER_RUNNING:
			rec.Resting, changed = false, true
		case !rec.Resting && g.Standby() && vm.GetPower() == homelabv1.Power_POWER_STOPPED:
			rec.Resting, changed = true, true
		}
		if rec.Holder.UUID != "" && broughtBack(w.sights[rec.Host], rec) {
			rec.Holder, changed = store.HolderVM{}, true
		}
		look := w.sights[rec.Host].looks[name]
		if look.GetIdentity().GetUuid() == rec.UUID && yes(look.GetSsh()) {
			if rec.MachineID == "" && look.GetMachineId() != "" && yes(look.GetBooted()) {
				rec.MachineID, changed = look.GetMachineId(), true
			}
			if found := plainAddresses(look.GetAddresses()); len(found) > 0 && !slices.Equal(found, rec.Addresses) {
				rec.Addresses, changed = found, true
			}
			node := cluster.Node(g.NodeName())
			if g.IsMember() && !rec.Joined && yes(node.GetReady()) && (yes(look.GetK3S().GetServerActive()) || yes(look.GetK3S().GetAgentActive())) {
				rec.Joined, changed = true, true
			}
		}
		if changed {
			learned[name] = rec
		}
	}
	return learned
}

// broughtBack says whether a guest was seen to have all its data disks, and its
// holder to be gone.
func broughtBack(s sight, rec store.Guest) bool {
	vm := vmOf(s, rec)
	if vm == nil || !answers(s) || !yes(s.obs.GetVmsKnown()) || len(attached(slices.Clone(rec.DataDisks), vm)) < len(rec.DataDisks) {
		return false
	}
	return !slices.ContainsFunc(s.obs.GetVms(), func(vm *homelabv1.VirtualMachine) bool { return vm.GetUuid() == rec.Holder.UUID })
}

// vmOf is the VM of a record as its host shows it; nil when it does not.
func vmOf(s sight, rec store.Guest) *homelabv1.VirtualMachine {
	for _, vm := range s.obs.GetVms() {
		if vm.GetVmid() == rec.VMID && vm.GetUuid() == rec.UUID {
			return vm
		}
	}
	return nil
}
