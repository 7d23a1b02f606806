package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// pveCluster is one PVE cluster as its members among our hosts tell it through
// /etc/pve. A host without a cluster is one of its own.
type pveCluster struct {
	seenNodes map[string]*hostView // nodes that are hosts of ours, and answer with their VMs
	nodes     map[string]bool      // all nodes that a quorate member names
	entries   map[string]map[int32]*homelabv1.ClusterVmid
}

func pveKey(h *hostView) string {
	if name := h.obs.GetPveClusterName(); name != "" {
		return "cluster/" + name
	}
	return "host/" + h.name
}

// indexPVE notes what the hosts tell of their PVE clusters: containers, and VMs
// on nodes that do not answer, are no hosts of ours or are disabled.
func (m *model) indexPVE() {
	m.pve = map[string]*pveCluster{}
	for _, h := range m.order {
		if h.obs == nil {
			continue
		}
		c := m.pve[pveKey(h)]
		if c == nil {
			c = &pveCluster{seenNodes: map[string]*hostView{}, nodes: map[string]bool{}, entries: map[string]map[int32]*homelabv1.ClusterVmid{}}
			m.pve[pveKey(h)] = c
		}
		c.seenNodes[nodeName(h)] = h
		// Without quorum what is there may be old: it still tells what may be
		// in use, but no longer that nothing else is.
		if yes(h.obs.GetPveCluster()) && yes(h.obs.GetQuorate()) && yes(h.obs.GetClusterVmidsKnown()) {
			for _, n := range h.obs.GetPveNodes() {
				c.nodes[n.GetName()] = true
			}
		}
		for _, e := range h.obs.GetClusterVmids() {
			on := c.entries[e.GetNode()]
			if on == nil {
				on = map[int32]*homelabv1.ClusterVmid{}
				c.entries[e.GetNode()] = on
			}
			if old := on[e.GetVmid()]; old == nil || !readable(old) {
				on[e.GetVmid()] = e
			}
		}
	}
	for _, key := range sorted(m.pve) {
		c := m.pve[key]
		for _, node := range sorted(c.entries) {
			for _, vmid := range sorted(c.entries[node]) {
				m.indexEntry(c, node, c.entries[node][vmid])
			}
		}
	}
}

// indexEntry notes one line of .vmlist, unless the host itself showed that VM.
func (m *model) indexEntry(c *pveCluster, node string, e *homelabv1.ClusterVmid) {
	host := node
	if h := c.seenNodes[node]; h != nil {
		if host = h.name; h.vms[e.GetVmid()] != nil || e.GetType() == "qemu" && yes(h.obs.GetVmsKnown()) {
			return
		}
	}
	if e.GetType() != "qemu" {
		m.used[e.GetVmid()] = append(m.used[e.GetVmid()], place{host: host, kind: e.GetType()})
		return
	}
	m.indexVM(host, &homelabv1.VirtualMachine{Vmid: e.GetVmid(), Name: e.GetName(), Mark: e.GetMark(), Uuid: e.GetUuid()})
}

// readable says whether the VM's configuration could be read through /etc/pve:
// every VM that Proxmox makes has a uuid.
func readable(e *homelabv1.ClusterVmid) bool {
	return e.GetType() != "qemu" || e.GetName() != "" || e.GetUuid() != "" || e.GetMark() != ""
}

// nodeName is what Proxmox calls a host: what it last said, else the host's own
// name, which is the same on nearly all.
func nodeName(h *hostView) string {
	if n := h.seen.Observation.GetNodeName(); n != "" {
		return n
	}
	return h.name
}

// findUnseen gathers why there may be VMs or VMIDs that nobody showed us. While
// there is one such reason nothing is created (rule 3): it could be there.
func (m *model) findUnseen() {
	for _, h := range m.order {
		if !h.want.Enabled {
			continue
		}
		if why := m.unseenOn(h); why != "" {
			m.unseen = append(m.unseen, why)
		}
	}
}

// unseenOn is why a host may hold VMs that were not seen, empty when it may not.
func (m *model) unseenOn(h *hostView) string {
	if h.obs != nil && yes(h.obs.GetVmsKnown()) {
		for _, vmid := range sorted(h.vms) {
			if vm := h.vms[vmid]; !yes(vm.GetReadable()) {
				return fmt.Sprintf("VM %d on %s cannot be read%s", vmid, h.name, because(vm.GetReadable()))
			}
		}
		if yes(h.obs.GetClusterVmidsKnown()) || m.throughPVE(h) {
			return ""
		}
		return "the VMIDs on " + h.name + " are not known" + because(h.obs.GetClusterVmidsKnown())
	}
	if m.throughPVE(h) {
		return ""
	}
	if h.obs != nil {
		return "the VMs on " + h.name + " could not be listed" + because(h.obs.GetVmsKnown())
	}
	return h.name + ": " + h.silence(m.now)
}

// throughPVE says whether a quorate member of the host's PVE cluster shows
// every VM that the host holds.
func (m *model) throughPVE(h *hostView) bool {
	node := nodeName(h)
	for _, key := range sorted(m.pve) {
		c := m.pve[key]
		if !strings.HasPrefix(key, "cluster/") || !c.nodes[node] {
			continue
		}
		if last := h.seen.Observation; last != nil && "cluster/"+last.GetPveClusterName() != key {
			continue // a node of the same name in another PVE cluster
		}
		if other := c.seenNodes[node]; other != nil && other != h {
			continue // that node is another host of ours
		}
		for _, e := range c.entries[node] {
			if !readable(e) {
				return false
			}
		}
		return true
	}
	return false
}

func sorted[K cmp.Ordered, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
