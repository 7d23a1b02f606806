package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// assignVMIDs gives each guest without a VM the VMID that it would be made
// with: the Spec's, else the one remembered, else the lowest free one of the
// Spec's range. All such guests get one, also those that cannot be made now, so
// that nobody's VMID depends on what happens to be silent.
func (m *model) assignVMIDs() {
	taken := m.takenVMIDs()
	for _, g := range m.guests {
		if ours := m.ours[g.name]; len(ours) > 0 {
			g.vmid = ours[0].vm.GetVmid()
		}
	}
	next := m.spec.VMIDs.First
	for _, g := range m.guests {
		switch {
		case len(m.ours[g.name]) > 0:
			continue
		case g.vmid != 0:
			g.noVMID = m.conflict(g, g.vmid)
			continue
		case g.mem.VMID != 0 && m.conflict(g, g.mem.VMID) == "":
			g.vmid = g.mem.VMID
			continue
		}
		for m.spec.VMIDs.Contains(next) && (taken[int32(next)] || m.spec.Protected(next)) {
			next++
		}
		if !m.spec.VMIDs.Contains(next) {
			g.noVMID = fmt.Sprintf("no VMID is free in vmids: %d-%d (%s)", m.spec.VMIDs.First, m.spec.VMIDs.Last, m.at("vmids"))
			continue
		}
		g.vmid = int32(next)
		next++
	}
}

// takenVMIDs are all that somebody has, had, or is to have.
func (m *model) takenVMIDs() map[int32]bool {
	taken := map[int32]bool{}
	for vmid := range m.used {
		taken[vmid] = true
	}
	for vmid := range m.left {
		taken[vmid] = true
	}
	for vmid := range m.last {
		taken[vmid] = true
	}
	for _, r := range m.want.Guests {
		taken[r.VMID], taken[r.Holder.VMID] = true, true
	}
	for vmid := range m.intentAt {
		taken[vmid] = true
	}
	for _, g := range m.spec.Guests {
		taken[int32(g.VMID)] = true //nolint:gosec // checked by the Spec
	}
	return taken
}

// conflict is why a guest without a VM cannot have a VMID. What stands there by
// its own open intent is no conflict: it is undone first.
func (m *model) conflict(g *guestView, vmid int32) string {
	own := func(host string) bool {
		return g.undo != nil && g.undo.intent.GetIdentity().GetVmid() == vmid && g.undo.host.name == host
	}
	if m.spec.Protected(int(vmid)) {
		return fmt.Sprintf("VMID %d is protected (%s)", vmid, m.at("protect"))
	}
	for _, p := range m.used[vmid] {
		switch {
		case p.kind != "qemu":
			return fmt.Sprintf("VMID %d is used by a container on %s", vmid, p.host)
		case !own(p.host):
			return fmt.Sprintf("VMID %d is used by a VM%s on %s", vmid, quoted(p.vm.GetName()), p.host)
		}
	}
	for _, host := range m.left[vmid] {
		// Elsewhere they are in nobody's way: a shared storage shows them here.
		if host == g.want.Host && !own(host) {
			return fmt.Sprintf("volumes of VMID %d lie on %s that no configuration names\nlook at them with pvesm list on %s; they are removed only on request", vmid, host, host)
		}
	}
	if host := m.last[vmid]; host != "" && (g.mem.VMID != vmid || g.mem.Host != host) {
		return fmt.Sprintf("VMID %d was last used on %s, which does not answer", vmid, host)
	}
	if guest := m.intentAt[vmid]; guest != "" && guest != g.name {
		return fmt.Sprintf("VMID %d is taken by a creation of %s that was begun and left", vmid, guest)
	}
	if guest := m.namedAt[vmid]; guest != "" && guest != g.name {
		return fmt.Sprintf("VMID %d is %s's in the Spec", vmid, guest)
	}
	for _, guest := range m.lastAt[vmid] {
		if guest != g.name {
			return fmt.Sprintf("VMID %d was last %s's, on %s, which cannot be seen", vmid, guest, m.want.Guests[guest].Host)
		}
	}
	return ""
}

// elsewhere is why the guest may still exist where it was last: on a host that
// the Spec disables or dropped, and that nobody shows.
func (m *model) elsewhere(g *guestView) string {
	last := g.mem.Host
	if last == "" || last == g.want.Host {
		return ""
	}
	h := m.hosts[last]
	switch {
	case h == nil:
		return fmt.Sprintf("it was last on %s (VM %d), which is not in the Spec and cannot be seen", last, g.mem.VMID)
	case m.shows(h):
		return ""
	}
	return fmt.Sprintf("it was last on %s (VM %d), which cannot be seen: %s", last, g.mem.VMID, strings.TrimPrefix(h.silence(m.now), "host "))
}

// shows says whether every VM of a host can be seen, by itself or through its
// PVE cluster.
func (m *model) shows(h *hostView) bool {
	return h.obs != nil && yes(h.obs.GetVmsKnown()) || m.throughPVE(h)
}

// indexMemory notes which VMIDs the Spec names, and which may be in use where
// nobody can look.
func (m *model) indexMemory() {
	for _, name := range m.spec.GuestNames() {
		if vmid := int32(m.spec.Guests[name].VMID); vmid != 0 {
			m.namedAt[vmid] = name
		}
	}
	for _, name := range sorted(m.want.Guests) {
		r := m.want.Guests[name]
		if h := m.hosts[r.Host]; r.VMID != 0 && (h == nil || !m.shows(h)) {
			m.lastAt[r.VMID] = append(m.lastAt[r.VMID], name)
		}
	}
}

// indexWork notes what the agents do and what they left undone.
func (m *model) indexWork() {
	for _, h := range m.order {
		for _, s := range h.obs.GetSteps() {
			if s.GetGuest() == "" {
				m.fetching[s.GetStep()] = true
			} else if _, ok := m.flying[s.GetGuest()]; !ok {
				m.flying[s.GetGuest()] = flight{id: s.GetStep(), host: h.name}
			}
		}
		for _, i := range h.obs.GetIntents() {
			id := i.GetIdentity()
			if old := m.intentAt[id.GetVmid()]; old == "" || id.GetGuest() < old {
				m.intentAt[id.GetVmid()] = id.GetGuest()
			}
			if id.GetFleet() == m.want.Fleet {
				m.intents[id.GetGuest()] = append(m.intents[id.GetGuest()], openIntent{intent: i, host: h})
			}
		}
	}
	for _, open := range m.intents {
		slices.SortFunc(open, func(a, b openIntent) int {
			return cmp.Or(cmp.Compare(a.host.name, b.host.name), cmp.Compare(a.intent.GetIdentity().GetVmid(), b.intent.GetIdentity().GetVmid()))
		})
	}
}
