package host

import (
	"cmp"
	"encoding/json"
	"os"
	"slices"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// members is /etc/pve/.members. Without a PVE cluster only the node's name is
// in it.
type members struct {
	NodeName string `json:"nodename"`
	Cluster  *struct {
		Name    string `json:"name"`
		Quorate int    `json:"quorate"`
	} `json:"cluster"`
	NodeList map[string]struct {
		Online int    `json:"online"`
		IP     string `json:"ip"`
	} `json:"nodelist"`
}

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
	var m members
	if err := json.Unmarshal(data, &m); err != nil {
		o.PveCluster, o.Quorate = unknown("/etc/pve/.members: %v", err), unknown("/etc/pve/.members: %v", err)
		return
	}
	o.PveCluster = yes("")
	if m.NodeName != "" {
		o.NodeName = m.NodeName
	}
	if m.Cluster == nil {
		o.Quorate = yes("no PVE cluster")
		return
	}
	o.PveClusterName = m.Cluster.Name
	if m.Cluster.Quorate == 1 {
		o.Quorate = yes("")
	} else {
		o.Quorate = no("PVE cluster %s has no quorum as this node sees it (pvecm status)", m.Cluster.Name)
	}
	for name, n := range m.NodeList {
		o.PveNodes = append(o.PveNodes, &homelabv1.PveNode{Name: name, Online: n.Online == 1, Address: n.IP})
	}
	slices.SortFunc(o.PveNodes, func(a, b *homelabv1.PveNode) int { return cmp.Compare(a.GetName(), b.GetName()) })
}
