// Package plantest is a model of a fleet for tests and benchmarks of the
// planner: hosts, VMs and a k3s cluster as plain data, that can be observed and
// that steps can be carried out in, also badly. It knows how things are; what
// was seen of them is what Seen says.
//
// It shares no rule with the planner. What it carries out it checks by itself,
// and what must never happen it keeps in Violations.
package plantest

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/homeiac/homelab/controller/plan"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/mark"
	"github.com/homeiac/homelab/internal/spec"
)

// Fleet is the name of the model's fleet.
const Fleet = "homelab"

// World is a fleet at one moment.
type World struct {
	Spec    *spec.Spec
	Now     time.Time
	Hosts   map[string]*Host
	Members map[string]*Member // by node name; nil before there is a cluster
	Memory  map[string]plan.Remembered
	Cluster *homelabv1.ClusterRecord
	Last    map[string][]int32
	Paused  string
	History map[string]plan.History
	// Data are the data volumes that were ever made, by guest and slot: none of
	// them may be lost.
	Data map[string]map[string]string

	Violations []string

	key    mark.Key
	number int // for uuids and ids
}

// Host is a Proxmox machine.
type Host struct {
	Name, Node, PVE string // PVE is its PVE cluster; empty for none
	Off, AgentGone  bool
	PVEGone, Lost   bool // Lost: without quorum
	Paused          bool
	RootPercent     float64
	Clock           time.Duration
	Uptime          time.Duration
	MemoryBytes     int64
	CPUs            int32
	VMs             map[int32]*VM
	Containers      []int32
	Leftovers       []int32
	Intents         []*homelabv1.Intent
	Images          []*homelabv1.ImageCopy
	Bridges         []*homelabv1.Bridge
	Storages        []*homelabv1.Storage
	Steps           []*homelabv1.StepInFlight
	LastSeen        *homelabv1.Observation
}

// VM is a VM, ours or not.
type VM struct {
	VMID             int32
	Name, UUID, Mark string
	Guest            string // the guest that it truly is; empty for someone else's
	Ours             bool   // of a template: that it truly is ours
	Template         bool
	Base             int32 // the template that its disk stands on; 0 for none
	Generation       int32
	Power            homelabv1.Power
	QEMU             string            // what QEMU says when it is paused
	Started          time.Time         // of its process
	DataDisks        map[string]string // volumes by slot
	Snapshots        []string
	Lock             string
	HA, Protection   bool
	Half             bool
	Mute             bool // nothing in it answers
	Booted           bool
	MachineID        string
	Data, Active     bool // k3s
	Agent            bool
	Memory           int64
	CPUs             int32
	Disk             int64
	OnBoot           bool
	Bridges, Tags    []string
}

// Member is what the cluster holds of one of its members.
type Member struct {
	Node    string
	VM      *VM
	Server  bool
	Learner bool
	NoNode  bool // its Node is not registered yet
	ID      string
	Version string
	// Cordoned is whether its Node takes no new pods.
	Cordoned bool
}

// New is a world in which nothing was made yet.
func New(s *spec.Spec) *World {
	key, err := mark.NewKey(bytes.Repeat([]byte{42}, mark.KeySize))
	if err != nil {
		panic(err) // the size is right
	}
	w := &World{
		Spec: s, Now: time.Date(2026, 11, 22, 14, 2, 0, 0, time.UTC), Hosts: map[string]*Host{},
		Memory: map[string]plan.Remembered{}, Last: map[string][]int32{}, key: key, Data: map[string]map[string]string{},
	}
	for _, name := range s.HostNames() {
		w.Hosts[name] = &Host{
			Name: name, Node: name, PVE: "lab", RootPercent: 30, Uptime: 24 * time.Hour,
			MemoryBytes: 64 << 30, CPUs: 16, VMs: map[int32]*VM{},
			Bridges: []*homelabv1.Bridge{{Name: "vmbr0", Up: Yes(), Carrier: Yes(), VlanAware: Yes(), Mtu: 1500}},
			Storages: []*homelabv1.Storage{
				{Name: "local", Type: "dir", Content: []string{"images", "snippets", "iso"}, Active: Yes(), TotalBytes: 4 << 40, FreeBytes: 2 << 40, SpaceKnown: Yes(), Path: "/var/lib/vz"},
			},
		}
	}
	return w
}

// Yes is a Fact that was seen to be so.
func Yes() *homelabv1.Fact { return &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_YES} }

// No is a Fact that was seen not to be so.
func No(why string) *homelabv1.Fact {
	return &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_NO, Reason: why}
}

// Unknown is a Fact that could not be seen.
func Unknown(why string) *homelabv1.Fact {
	return &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_UNKNOWN, Reason: why}
}

func fact(is bool, why string) *homelabv1.Fact {
	if is {
		return Yes()
	}
	return No(why)
}

// UUID gives a new uuid, the same ones in the same order each time.
func (w *World) UUID() string {
	w.number++
	return fmt.Sprintf("00000000-0000-4000-8000-%012d", w.number)
}

// Mark is the mark of a guest of ours.
func (w *World) Mark(guest string, vmid int32, uuid string, generation int32) string {
	return mark.Make(w.key, Fleet, guest, vmid, uuid, generation)
}

// Want is the planner's first argument.
func (w *World) Want() plan.Want {
	return plan.Want{
		Spec: w.Spec, Fleet: Fleet, Guests: maps.Clone(w.Memory), Cluster: w.Cluster, LastVMIDs: w.Last,
		Paused: w.Paused, VerifyMark: plan.VerifyWith(w.key, Fleet), History: w.History,
	}
}

// Plan is what the planner makes of the world as it is seen now, what is seen
// taken into the histories first.
func (w *World) Plan() *homelabv1.Plan {
	seen := w.Seen()
	w.History = plan.Track(w.Want(), seen, w.Now)
	return plan.Make(w.Want(), seen, w.Now)
}

// Watch lets time pass while somebody looks all the while and nothing changes.
func (w *World) Watch(d time.Duration) {
	if d == 0 {
		return
	}
	w.History = plan.Track(w.Want(), w.Seen(), w.Now)
	w.Now = w.Now.Add(d)
	for _, h := range w.History {
		for i := range h {
			if h[i].Signal != plan.SignalWell {
				h[i].Last = w.Now
			}
		}
	}
}

// Make adds a VM of ours for a guest of the Spec, as a finished CREATE would,
// and remembers it.
func (w *World) Make(guest string, vmid int32) *VM {
	g := w.Spec.Guests[guest]
	uuid := w.UUID()
	vm := w.newVM(g, vmid, uuid, 1)
	w.Hosts[g.Host].VMs[vmid] = vm
	w.addData(vm, g, nil)
	w.Memory[guest] = plan.Remembered{
		Name: guest, Host: g.Host, VMID: vmid, UUID: uuid, Generation: 1, MemoryBytes: vm.Memory, Made: true,
		Began: w.Now, NodeName: g.NodeName(), DataDisks: dataDisks(g),
	}
	return vm
}

func (w *World) newVM(g *spec.Guest, vmid int32, uuid string, generation int32) *VM {
	vm := &VM{
		VMID: vmid, Name: g.Name, UUID: uuid, Guest: g.Name, Generation: generation, Mark: w.Mark(g.Name, vmid, uuid, generation),
		Power: homelabv1.Power_POWER_STOPPED, Agent: g.IsAgent(), Memory: g.Memory.Bytes, CPUs: int32(g.CPUs), Disk: g.Disk, OnBoot: g.OnBoot, //nolint:gosec // small
		Tags: slices.Clone(g.Tags),
	}
	for _, nic := range g.NICs {
		b, _ := w.Spec.Hosts[g.Host].Bridge(nic.Network)
		vm.Bridges = append(vm.Bridges, b)
	}
	return vm
}

// Run makes a VM of ours run, booted, and learned of.
func (w *World) Run(vm *VM) {
	vm.Power, vm.Booted, vm.MachineID, vm.Started = homelabv1.Power_POWER_RUNNING, true, "m-"+vm.UUID, w.Now
	r := w.Memory[vm.Guest]
	r.MachineID = vm.MachineID
	if w.Spec.Guests[vm.Guest].K3s == nil {
		r.ReadyAt = w.Now
	}
	w.Memory[vm.Guest] = r
}

// Join makes a running VM a member as a finished INIT or JOIN would.
func (w *World) Join(vm *VM) {
	vm.Data, vm.Active = true, true
	w.member(vm)
	r := w.Memory[vm.Guest]
	r.Joined, r.ReadyAt = true, w.Now
	w.Memory[vm.Guest] = r
	if w.Cluster == nil {
		w.Cluster = &homelabv1.ClusterRecord{FirstGuest: vm.Guest}
	}
	w.Cluster.CaHash = "ca"
}

func (w *World) member(vm *VM) *Member {
	g := w.Spec.Guests[vm.Guest]
	if w.Members == nil {
		w.Members = map[string]*Member{}
	}
	w.number++
	m := &Member{Node: g.NodeName(), VM: vm, Server: g.IsServer(), ID: fmt.Sprintf("%x", 0xa000+w.number), Version: w.Spec.K3s.Version}
	w.Members[m.Node] = m
	return m
}

// HostOf is where a VM is; nil when it is gone.
func (w *World) HostOf(vm *VM) *Host {
	for _, h := range w.Hosts {
		if h.VMs[vm.VMID] == vm {
			return h
		}
	}
	return nil
}

// up says whether what is in a VM works: k3s needs no more here.
func (w *World) up(vm *VM) bool {
	h := w.HostOf(vm)
	return h != nil && !h.Off && vm.Power == homelabv1.Power_POWER_RUNNING && vm.Booted && !vm.Mute && vm.Active
}

// Quorum is the etcd of the cluster: its voters, the healthy ones of them, and
// whether they are enough.
func (w *World) Quorum() (voters, healthy int, ok bool) {
	for _, m := range w.Members {
		if !m.Server || m.Learner {
			continue
		}
		voters++
		if w.up(m.VM) {
			healthy++
		}
	}
	return voters, healthy, voters > 0 && healthy >= voters/2+1
}
