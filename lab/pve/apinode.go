package pve

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
)

func fileDigest(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	sum := sha1.Sum(data)
	return hex.EncodeToString(sum[:])
}

// apiResources tells of the whole cluster; of other nodes it knows what
// pmxcfs knows.
func (r *run) apiResources(p params) (any, error) {
	out := []any{}
	if p["type"] == "" || p["type"] == "vm" {
		s, err := readClusterState(r.pmxcfs())
		if err != nil {
			return nil, err
		}
		for _, id := range sortedIDs(s.VMs) {
			out = append(out, r.guestResource(id, s.VMs[id]))
		}
	}
	if p["type"] == "" || p["type"] == "storage" {
		list, err := r.storages()
		if err != nil {
			return nil, err
		}
		for _, s := range list {
			if s.onNode(r.cfg.NodeName) {
				out = append(out, r.storageResource(s))
			}
		}
	}
	if p["type"] == "" || p["type"] == "node" {
		nodes, err := r.apiNodes(nil)
		if err != nil {
			return nil, err
		}
		out = append(out, nodes.([]any)...)
	}
	return out, nil
}

func (r *run) guestResource(id string, g clusterGuest) map[string]any {
	m := map[string]any{"id": g.Type + "/" + id, "node": g.Node, "type": g.Type, "vmid": intOr(id, 0), "status": "unknown"}
	if g.Node != r.cfg.NodeName || g.Type != "qemu" {
		return m
	}
	c, err := r.load(id)
	if err != nil {
		return m
	}
	s := r.vmStatus(id, c, false)
	for _, k := range []string{"cpu", "disk", "maxdisk", "maxmem", "mem", "memhost", "name", "netin", "netout", "status", "uptime", "lock", "tags"} {
		if v, ok := s[k]; ok {
			m[k] = v
		}
	}
	m["maxcpu"], m["diskread"], m["diskwrite"], m["template"] = s["cpus"], 0, 0, 0
	if c.main["template"] == "1" {
		m["template"] = 1
	}
	return m
}

func (r *run) storageResource(s *storage) map[string]any {
	st := r.statusOf(s)
	status := "available"
	if !st.active {
		status = "unknown"
	}
	return map[string]any{"id": "storage/" + r.cfg.NodeName + "/" + s.id, "node": r.cfg.NodeName, "storage": s.id, "type": "storage",
		"plugintype": s.typ, "content": s.get("content"), "shared": 0, "status": status, "disk": st.used, "maxdisk": st.total}
}

func (r *run) apiClusterStatus(params) (any, error) {
	s, err := readClusterState(r.pmxcfs())
	if err != nil {
		return nil, err
	}
	bit := map[bool]int{true: 1}
	out := []any{}
	if s.Cluster != "" {
		out = append(out, map[string]any{"type": "cluster", "id": "cluster", "name": s.Cluster, "nodes": len(s.Nodes),
			"quorate": bit[s.Quorate], "version": len(s.Nodes)})
	}
	for i, n := range s.Nodes {
		me := n.Name == r.cfg.NodeName
		id := i + 1
		if s.Cluster == "" {
			id = 0
		}
		out = append(out, map[string]any{"type": "node", "id": "node/" + n.Name, "name": n.Name, "ip": n.IP, "level": "",
			"local": bit[me], "nodeid": id, "online": bit[n.Online || me]})
	}
	return out, nil
}

func (r *run) apiNodes(params) (any, error) {
	s, err := readClusterState(r.pmxcfs())
	if err != nil {
		return nil, err
	}
	out := []any{}
	for _, n := range s.Nodes {
		m := map[string]any{"id": "node/" + n.Name, "node": n.Name, "type": "node", "status": "offline"}
		if n.Online {
			m["status"] = "online"
		}
		if n.Name == r.cfg.NodeName {
			root := r.rootUsage()
			m["status"], m["level"], m["cpu"], m["maxcpu"] = "online", "", 0.02, r.cfg.CPUs
			m["mem"], m["maxmem"] = r.usedMemory(), r.cfg.MemoryBytes
			m["disk"], m["maxdisk"], m["uptime"] = root.used, root.total, r.uptime(r.clock.Now())
		}
		out = append(out, m)
	}
	return out, nil
}

func (h *Host) usedMemory() int64 {
	return min(baseMemory(h.cfg.MemoryBytes)+h.runningMemory(), h.cfg.MemoryBytes)
}

// rootUsage is that of the root file system, on which local lies.
func (h *Host) rootUsage() usage {
	s, err := h.storage("local")
	if err != nil {
		return usage{total: defaultTotal}
	}
	return h.usage(s)
}

func (r *run) apiNodeStatus(params) (any, error) {
	root, used := r.rootUsage(), r.usedMemory()
	total := r.cfg.MemoryBytes
	return map[string]any{
		"cpu": 0, "wait": 0, "idle": 0, "uptime": r.uptime(r.clock.Now()), "loadavg": []any{"0.12", "0.10", "0.08"},
		"pveversion":     fmt.Sprintf("pve-manager/%s/%s", r.cfg.PVEVersion, repoID),
		"kversion":       "Linux " + r.kernel() + " #1 SMP PREEMPT_DYNAMIC",
		"current-kernel": map[string]any{"machine": "x86_64", "release": r.kernel(), "sysname": "Linux", "version": "#1 SMP PREEMPT_DYNAMIC"},
		"boot-info":      map[string]any{"mode": "legacy-bios"}, "ksm": map[string]any{"shared": 0},
		"cpuinfo": map[string]any{"cores": r.cfg.CPUs, "cpus": r.cfg.CPUs, "sockets": 1, "model": "Example CPU", "vendor": "GenuineIntel",
			"mhz": "2596.134", "user_hz": 100, "hvm": "1", "flags": "fpu vme vmx sse4_2 aes hypervisor", "family": "6"},
		"memory": map[string]any{"total": total, "used": used, "free": total - used, "available": total - used},
		"rootfs": map[string]any{"total": root.total, "used": root.used, "free": root.free(), "avail": root.free()},
		"swap":   map[string]any{"total": 0, "used": 0, "free": 0},
	}, nil
}

// iface is one interface as the API describes it.
func (r *run) iface(b BridgeConfig) map[string]any {
	m := map[string]any{"iface": b.Name, "type": "bridge", "autostart": 1, "bridge_fd": "0", "bridge_stp": "off",
		"bridge_ports": strings.Join(b.Ports, " "), "families": []any{"inet"}, "method": "manual", "method6": "manual", "priority": 4}
	if !b.Down {
		m["active"], m["exists"] = 1, nil
		delete(m, "exists")
	}
	if b.VLANAware {
		m["bridge_vlan_aware"] = 1
	}
	return m
}

func (r *run) apiNetworks(p params) (any, error) {
	out := []any{}
	for _, b := range r.cfg.Bridges {
		for _, port := range b.Ports {
			if p["type"] == "" || p["type"] == "eth" {
				out = append(out, map[string]any{"iface": port, "type": "eth", "active": 1, "exists": 1, "families": []any{"inet"},
					"method": "manual", "method6": "manual", "priority": 3})
			}
		}
		if p["type"] == "" || p["type"] == "bridge" || p["type"] == "any_bridge" {
			out = append(out, r.iface(b))
		}
	}
	return out, nil
}

func (r *run) apiNetwork(p params) (any, error) {
	for _, b := range r.cfg.Bridges {
		if b.Name == p["iface"] {
			m := r.iface(b)
			delete(m, "iface")
			return m, nil
		}
	}
	return nil, badParam(2, "iface", "interface does not exist")
}

func (r *run) apiHAStatus(params) (any, error) {
	bit := map[bool]int{true: 1}
	return []any{
		map[string]any{"id": "quorum", "node": r.cfg.NodeName, "quorate": bit[r.quorate()], "status": "OK", "type": "quorum"},
		map[string]any{"armed-state": "standby", "id": "fencing", "node": r.cfg.NodeName, "status": "standby (CRM watchdog standby)", "type": "fencing"},
	}, nil
}
