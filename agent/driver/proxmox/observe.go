package proxmox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/homeiac/homelab/agent/driver/proxmox/parse"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// hungAfter is how long an observation may take before files are held to hang.
const hungAfter = 5 * time.Second

// Observe implements driver.Driver. It reads files and speaks to sockets only. It
// does not wait beyond ctx for a file system that hangs, and while one does it
// does not begin to look again.
func (d *Driver) Observe(ctx context.Context, now bool) (*driverv1.ObserveResponse, error) {
	began := time.Now()
	d.mu.Lock()
	if since := d.looking; !since.IsZero() && began.Sub(since) > hungAfter {
		d.mu.Unlock()
		why := unknown("a look at the files of this host hangs since %s", since.UTC().Format(time.TimeOnly))
		return &driverv1.ObserveResponse{VmsKnown: why, ClusterVmidsKnown: why}, nil
	}
	d.looking = began
	d.mu.Unlock()
	seen := make(chan *driverv1.ObserveResponse, 1)
	go func() {
		s := d.observe(ctx, now)
		d.mu.Lock()
		if d.looking.Equal(began) {
			d.looking = time.Time{}
		}
		d.mu.Unlock()
		seen <- s
	}()
	select {
	case s := <-seen:
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("observe: %w", err) // sockets were cut short: not the truth
		}
		return s, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("observe: %w", ctx.Err())
	}
}

func (d *Driver) observe(ctx context.Context, now bool) *driverv1.ObserveResponse {
	members, err := d.members()
	if err != nil {
		return &driverv1.ObserveResponse{VmsKnown: unknown("%v", err), ClusterVmidsKnown: unknown("%v", err)}
	}
	s := &driverv1.ObserveResponse{}
	configs := map[int32]*parse.Config{}
	s.Vms, s.VmsKnown = d.observeVMs(ctx, now, configs)
	guests, known := d.observeCluster(s, members)
	s.ClusterVmidsKnown = known
	s.GuestsMemoryBytes = memory(s.Vms) + d.containerMemory(members.NodeName, guests)
	if s.VmsKnown.GetTruth() == homelabv1.Truth_TRUTH_YES {
		s.LeftoverVmids = d.leftoverVMIDs(members.NodeName, configs, guests)
	}
	// pmxcfs may have gone away in the middle of it.
	if _, err := d.members(); err != nil {
		return &driverv1.ObserveResponse{VmsKnown: unknown("%v", err), ClusterVmidsKnown: unknown("%v", err)}
	}
	d.configs.sweep()
	d.containers.sweep()
	d.ended.sweep()
	d.forgetProbes(configs)
	return s
}

// observeVMs lists this host's VMs, and keeps their configurations in configs.
func (d *Driver) observeVMs(ctx context.Context, now bool, configs map[int32]*parse.Config) ([]*homelabv1.VirtualMachine, *homelabv1.Fact) {
	ids, err := d.confIDs("qemu-server")
	if err != nil {
		return nil, unknown("list /etc/pve/qemu-server: %v", err)
	}
	ha, err := d.haManaged()
	if err != nil {
		return nil, unknown("%v", err)
	}
	atWork, err := d.atWork()
	if err != nil {
		return nil, unknown("%v", err)
	}
	vms := make([]*homelabv1.VirtualMachine, len(ids))
	var asking sync.WaitGroup
	atOnce := make(chan struct{}, 32)
	for i, id := range ids {
		c, err := d.configs.read(d.pve("qemu-server", fmt.Sprintf("%d.conf", id)))
		switch {
		case errors.Is(err, os.ErrNotExist):
			continue // destroyed since the folder was listed
		case err != nil:
			vms[i] = &homelabv1.VirtualMachine{Vmid: id, Readable: unknown("%v", err)}
			continue
		}
		configs[id] = c
		if w := atWork[id]; c.Lock() == "clone" && len(w.names) == 0 && d.locked(id) {
			// A clone's task goes by its template's VMID.
			w.names = []string{"another program holds its lock file"}
			atWork[id] = w
		}
		asking.Go(func() {
			atOnce <- struct{}{}
			defer func() { <-atOnce }()
			vms[i] = describe(id, c, d.probe(ctx, id, c, now), ha[id], atWork[id].names)
			clones, err := d.linkedClones(id, c, d.configs.read)
			if err != nil {
				clones = []string{fmt.Sprintf("not known: %v", err)} // none would be a claim
			}
			vms[i].LinkedClones = clones
		})
	}
	asking.Wait()
	var there []*homelabv1.VirtualMachine
	for _, vm := range vms {
		if vm != nil {
			there = append(there, vm)
		}
	}
	for id, w := range atWork {
		// A create has begun and has not come to write the configuration yet: the
		// VMID is taken, and somebody is at work on it.
		if w.creating && configs[id] == nil && !slices.ContainsFunc(there, func(vm *homelabv1.VirtualMachine) bool { return vm.GetVmid() == id }) {
			vm := describe(id, parse.VM(nil), probe{life: life{power: homelabv1.Power_POWER_STOPPED, there: no("it is being created")}}, ha[id], w.names)
			there = append(there, vm)
		}
	}
	d.lastStops(there)
	sort.Slice(there, func(i, j int) bool { return there[i].Vmid < there[j].Vmid })
	return there, yes()
}

// observeCluster lists the VMIDs of the PVE cluster, with names and marks as far as
// /etc/pve shows them. Without quorum it may be out of date: unknown.
func (d *Driver) observeCluster(s *driverv1.ObserveResponse, m parse.Members) ([]parse.ClusterGuest, *homelabv1.Fact) {
	guests, err := d.vmlist()
	if err != nil {
		return nil, unknown("%v", err)
	}
	for _, g := range guests {
		v := &homelabv1.ClusterVmid{Vmid: g.VMID, Node: g.Node, Type: g.Type}
		if g.Type == "lxc" {
			if ct, err := d.containers.read(d.pve("nodes", g.Node, "lxc", fmt.Sprintf("%d.conf", g.VMID))); err == nil {
				v.Name = ct.Name
			}
		} else if c, err := d.configs.read(d.pve("nodes", g.Node, "qemu-server", fmt.Sprintf("%d.conf", g.VMID))); err == nil {
			v.Name, v.Mark, v.Uuid = c.Name(), c.Mark(), c.UUID()
		}
		s.ClusterVmids = append(s.ClusterVmids, v)
	}
	if err := d.quorate(m); err != nil {
		return guests, unknown("%v", err)
	}
	return guests, yes()
}

// memory is what running VMs have, and those that will start with the host. A VM
// whose power is not known counts as running.
func memory(vms []*homelabv1.VirtualMachine) int64 {
	var sum int64
	for _, vm := range vms {
		if vm.GetTemplate() || vm.GetPower() == homelabv1.Power_POWER_STOPPED && !vm.GetOnboot() {
			continue
		}
		sum += vm.GetMemoryBytes()
	}
	return sum
}

// containerMemory is the same for this host's containers. One runs when it has a
// control group or when pvestatd saw it running.
func (d *Driver) containerMemory(node string, guests []parse.ClusterGuest) int64 {
	var sum int64
	var running map[int32]bool
	for _, g := range guests {
		if g.Type != "lxc" || g.Node != node {
			continue
		}
		ct, err := d.containers.read(d.pve("nodes", node, "lxc", fmt.Sprintf("%d.conf", g.VMID)))
		if err != nil {
			continue
		}
		if running == nil {
			text, _ := os.ReadFile(d.pve(".rrd"))
			running = parse.RunningGuests(text)
		}
		grouped, _ := exists(d.host("sys/fs/cgroup/lxc", fmt.Sprint(g.VMID)))
		if ct.OnBoot || grouped || running[g.VMID] {
			sum += ct.MemoryBytes
		}
	}
	return sum
}

// forgetProbes drops what VMs said that are gone.
func (d *Driver) forgetProbes(configs map[int32]*parse.Config) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id := range d.probes {
		if configs[id] == nil {
			delete(d.probes, id)
		}
	}
}
