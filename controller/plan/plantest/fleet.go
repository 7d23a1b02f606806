package plantest

import (
	"fmt"

	"github.com/homeiac/homelab/internal/spec"
)

// clusterSize is how many hosts of a large fleet share a PVE cluster.
const clusterSize = 20

// NewFleet is a large fleet for benchmarks: hosts in PVE clusters of 20, guests
// spread over them, three of them servers and the rest agents. done of them (at
// most guests) run and are members already; the rest is still to be made.
func NewFleet(hosts, guests, done int) *World {
	s := &spec.Spec{
		Name: Fleet, Networks: map[string]*spec.Network{"lan": {Name: "lan"}},
		VMIDs: spec.VMIDRange{First: 10000, Last: 10000 + 2*guests},
		Hosts: map[string]*spec.Host{}, Guests: map[string]*spec.Guest{},
		Images: map[string]*spec.Image{"noble": {Name: "noble", URL: "file:///noble.img", SHA256: "aa"}},
		K3s:    &spec.K3s{Version: "v1.35.0+k3s1"},
	}
	for i := range hosts {
		name := fmt.Sprintf("pve%04d", i)
		s.Hosts[name] = &spec.Host{
			Name: name, Enabled: true, Bridges: map[string]string{"lan": "vmbr0"},
			Storages: map[string]string{"disks": "local", "images": "local", "snippets": "local"},
		}
	}
	for i := range guests {
		g := &spec.Guest{
			Name: fmt.Sprintf("guest-%05d", i), Host: fmt.Sprintf("pve%04d", i%hosts), Image: "noble", NICs: []spec.NIC{{Network: "lan"}},
			CPUs: 2, Memory: spec.Memory{Bytes: 2 << 30}, Disk: 20 << 30, OnBoot: true, State: spec.StateRunning,
			K3s: &spec.Member{Role: spec.RoleAgent},
		}
		if i < 3 {
			g.K3s.Role = spec.RoleServer
		}
		s.Guests[g.Name] = g
	}
	w := New(s)
	for i, name := range s.HostNames() {
		w.Hosts[name].PVE = fmt.Sprintf("cluster-%03d", i/clusterSize)
		w.Hosts[name].MemoryBytes = 256 << 30
	}
	for i, name := range s.GuestNames() {
		if i < done {
			vm := w.Make(name, int32(10000+i)) //nolint:gosec // small
			w.Run(vm)
			w.Join(vm)
		}
	}
	return w
}
