package host

import (
	"os"

	"github.com/homeiac/homelab/agent/driver/proxmox/parse"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// cluster fills in whether pve-cluster runs, the node's name and the PVE
// cluster. An empty /etc/pve means that pmxcfs is not mounted, not that the
// host holds nothing.
func (h *Host) cluster(o *homelabv1.Observation) {
	o.NodeName, _ = h.text("etc/hostname")
	entries, err := os.ReadDir(h.Path("etc/pve"))
	if err != nil {
		o.PveCluster, o.Quorate = unknown("%s", h.cause(err)), unknown("%s", h.cause(err))
		return
	}
	if len(entries) == 0 {
		o.PveCluster = no("/etc/pve is empty: pve-cluster does not run (systemctl status pve-cluster)")
		o.Quorate = unknown("pve-cluster does not run")
		return
	}
	data, err := os.ReadFile(h.Path("etc/pve/.members"))
	if err != nil {
		o.PveCluster, o.Quorate = unknown("%s", h.cause(err)), unknown("%s", h.cause(err))
		return
	}
	m, err := parse.ReadMembers(data)
	if err != nil {
		o.PveCluster, o.Quorate = unknown("/etc/pve: %v", err), unknown("/etc/pve: %v", err)
		return
	}
	o.PveCluster, o.NodeName = yes(""), m.NodeName
	if m.Cluster == "" {
		o.Quorate = yes("no PVE cluster")
		// .members of a node whose corosync is gone looks as if there never was one.
		if _, err := os.Stat(h.Path("etc/pve/corosync.conf")); err == nil {
			o.Quorate = no("corosync does not run (systemctl status corosync)")
		}
		return
	}
	o.PveClusterName = m.Cluster
	if m.Quorate {
		o.Quorate = yes("")
	} else {
		o.Quorate = no("PVE cluster %s has no quorum as this node sees it (pvecm status)", m.Cluster)
	}
	for _, n := range m.Nodes {
		o.PveNodes = append(o.PveNodes, &homelabv1.PveNode{Name: n.Name, Online: n.Online, Address: n.Address})
	}
}
