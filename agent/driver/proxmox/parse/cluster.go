package parse

import (
	"encoding/json"
	"fmt"
	"regexp"
	"sort"
	"strconv"
	"strings"
)

// ClusterGuest is one VMID of .vmlist.
type ClusterGuest struct {
	// VMID is the id.
	VMID int32
	// Node is the node whose folder holds its configuration.
	Node string
	// Type is qemu or lxc.
	Type string
}

// VMList reads /etc/pve/.vmlist, by VMID. Without guests it has no "ids".
func VMList(text []byte) ([]ClusterGuest, error) {
	var file struct {
		Version *int64 `json:"version"`
		IDs     map[string]struct {
			Node string `json:"node"`
			Type string `json:"type"`
		} `json:"ids"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		return nil, fmt.Errorf("read .vmlist: %w", err)
	}
	if file.Version == nil {
		return nil, fmt.Errorf("read .vmlist: it has no version")
	}
	var all []ClusterGuest
	for id, g := range file.IDs {
		n, err := strconv.ParseInt(id, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("read .vmlist: VMID %q", id)
		}
		all = append(all, ClusterGuest{VMID: int32(n), Node: g.Node, Type: g.Type})
	}
	sort.Slice(all, func(i, j int) bool { return all[i].VMID < all[j].VMID })
	return all, nil
}

// Members is /etc/pve/.members.
type Members struct {
	// NodeName is this node.
	NodeName string
	// Cluster is the PVE cluster's name; empty without one.
	Cluster string
	// Quorate tells whether it has quorum; only meaningful with a cluster.
	Quorate bool
	// Nodes are the cluster's nodes, by name.
	Nodes []Member
}

// Member is one node of a PVE cluster.
type Member struct {
	// Name is the node's name.
	Name string
	// Online tells whether corosync sees it.
	Online bool
	// Address is its address.
	Address string
}

// ReadMembers reads /etc/pve/.members. A host without a cluster has the node's
// name only.
func ReadMembers(text []byte) (Members, error) {
	var file struct {
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
	if err := json.Unmarshal(text, &file); err != nil {
		return Members{}, fmt.Errorf("read .members: %w", err)
	}
	if file.NodeName == "" {
		return Members{}, fmt.Errorf("read .members: it names no node")
	}
	m := Members{NodeName: file.NodeName}
	if file.Cluster != nil {
		m.Cluster, m.Quorate = file.Cluster.Name, file.Cluster.Quorate == 1
	}
	for name, n := range file.NodeList {
		m.Nodes = append(m.Nodes, Member{Name: name, Online: n.Online == 1, Address: n.IP})
	}
	sort.Slice(m.Nodes, func(i, j int) bool { return m.Nodes[i].Name < m.Nodes[j].Name })
	return m, nil
}

var haHead = regexp.MustCompile(`^(vm|ct):\s*(\d+)\s*$`)

// HAManaged reads /etc/pve/ha/resources.cfg: the VMIDs that the HA manager manages.
func HAManaged(text []byte) map[int32]bool {
	managed := map[int32]bool{}
	for line := range strings.Lines(string(text)) {
		if m := haHead.FindStringSubmatch(strings.TrimRight(line, "\r\n")); m != nil {
			managed[number(m[2], 0)] = true
		}
	}
	return managed
}

// RunningGuests reads /etc/pve/.rrd: the VMIDs that pvestatd saw running. Lines of
// guests that are gone stay for minutes. PVE 9 writes pve-vm-9.0/, older ones
// pve2-vm/; the first fields are the same.
func RunningGuests(text []byte) map[int32]bool {
	running := map[int32]bool{}
	for line := range strings.Lines(string(text)) {
		kind, rest, ok := strings.Cut(strings.TrimSpace(line), "/")
		if !ok || !strings.HasPrefix(kind, "pve-vm-") && kind != "pve2-vm" {
			continue
		}
		// VMID:UPTIME:NAME:STATUS:...
		if f := strings.Split(rest, ":"); len(f) > 3 && f[3] == "running" {
			running[number(f[0], 0)] = true
		}
	}
	return running
}
