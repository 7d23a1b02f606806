package plan_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/homeiac/homelab/controller/plan/plantest"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/spec"
)

// drawFleet draws a fleet that is well: three to six guests, a host each, two to
// five of them servers, some with data disks, a standby at times.
func drawFleet(t *rapid.T) *plantest.World {
	s := &spec.Spec{
		Name: plantest.Fleet, VMIDs: spec.VMIDRange{First: 200, Last: 240},
		Networks: map[string]*spec.Network{"lan": {Name: "lan"}},
		Hosts:    map[string]*spec.Host{}, Guests: map[string]*spec.Guest{},
		Images: map[string]*spec.Image{"noble": {Name: "noble", URL: "file:///noble.img", SHA256: "aa"}},
		K3s:    &spec.K3s{Version: "v1.35.0+k3s1"},
	}
	n := rapid.IntRange(3, 6).Draw(t, "guests")
	servers := rapid.IntRange(1, min(n, 5)).Draw(t, "servers")
	for i := range n {
		host := fmt.Sprintf("pve%d", i+1)
		s.Hosts[host] = &spec.Host{
			Name: host, Enabled: true, Bridges: map[string]string{"lan": "vmbr0"},
			Storages: map[string]string{"disks": "local", "images": "local", "snippets": "local"},
		}
		g := &spec.Guest{
			Name: fmt.Sprintf("k3s-%d", i+1), Host: host, VMID: 201 + i, Image: "noble", NICs: []spec.NIC{{Network: "lan"}}, CPUs: 2, Disk: 10 << 30,
			Memory: spec.Memory{Bytes: 4 << 30}, OnBoot: rapid.Bool().Draw(t, "onboot"), State: spec.StateRunning,
			OnUnhealthy: rapid.SampledFrom([]spec.Policy{spec.PolicyRecreate, spec.PolicyRecreate, spec.PolicyRestart, spec.PolicyReport}).Draw(t, "policy"),
			Timeouts:    spec.Timeouts{Boot: 5 * time.Minute, CloudInit: 10 * time.Minute, Join: 10 * time.Minute, UnwellAfter: time.Minute, Soak: 30 * time.Second},
		}
		switch {
		case i < servers:
			g.K3s = &spec.Member{Role: spec.RoleServer}
		case rapid.IntRange(0, 3).Draw(t, "member") > 0:
			g.K3s = &spec.Member{Role: spec.RoleAgent}
		}
		if i > 0 && rapid.IntRange(0, 9).Draw(t, "standby") == 0 {
			g.State = spec.StateStopped
		}
		if rapid.IntRange(0, 1).Draw(t, "data") == 0 {
			g.DataDisks = []spec.DataDisk{{Slot: "scsi1", Storage: "disks", Size: 1 << 30}, {Slot: "scsi2", Storage: "disks", Size: 1 << 30}}
		}
		s.Guests[g.Name] = g
	}
	w := plantest.New(s)
	well := func(*homelabv1.Step) plantest.Outcome { return plantest.Well }
	w.Apply(w.Plan(), well)
	w.Now = w.Now.Add(time.Hour)
	if p := w.Plan(); len(p.GetSteps()) > 0 {
		t.Fatalf("a fresh fleet is not well: %v", p)
	}
	return w
}

// breaks is one thing that goes wrong in a fleet; what it did can be mended.
func breaks(t *rapid.T, w *plantest.World) {
	h := w.Hosts[rapid.SampledFrom(w.Spec.HostNames()).Draw(t, "host")]
	var vm *plantest.VM
	if vmids := slices.Sorted(maps.Keys(h.VMs)); len(vmids) > 0 {
		vm = h.VMs[rapid.SampledFrom(vmids).Draw(t, "vm")]
	}
	guest := vm != nil && w.Spec.Guests[vm.Guest] != nil && !w.Spec.Guests[vm.Guest].Standby()
	kind := rapid.IntRange(0, 15).Draw(t, "breaks")
	switch {
	case kind == 0:
		h.Off = true
	case kind == 1:
		h.AgentGone = true
	case kind == 2:
		h.PVEGone = true
	case kind == 3:
		h.Clock = 3 * time.Second
	case kind == 4:
		h.Uptime = 2 * time.Minute
	case kind == 5: // the controller's store is lost
		clear(w.Memory)
		w.Cluster, w.History = nil, nil
	case kind == 6: // somebody takes a VMID that is not in use
		free := int32(rapid.IntRange(200, 215).Draw(t, "number"))
		for _, other := range w.Hosts {
			if other.VMs[free] != nil {
				return
			}
		}
		h.VMs[free] = &plantest.VM{VMID: free, Name: "web", UUID: w.UUID(), Power: homelabv1.Power_POWER_RUNNING, Memory: 1 << 30}
	case !guest:
	case kind <= 9:
		vm.Power, vm.Active, vm.Booted = homelabv1.Power_POWER_STOPPED, false, false
	case kind == 10:
		vm.Power, vm.QEMU, vm.Active = homelabv1.Power_POWER_PAUSED, rapid.SampledFrom([]string{"paused", "io-error", "guest-panicked"}).Draw(t, "qemu"), false
	case kind == 11 && vm.Power == homelabv1.Power_POWER_RUNNING:
		vm.Mute = true
	case kind == 12:
		vm.Active = false
	case kind == 13:
		vm.Lock = "backup"
	case kind == 14:
		vm.Snapshots = []string{"before"}
	case kind == 15 && vm.Power == homelabv1.Power_POWER_STOPPED: // somebody starts it by hand
		vm.Power, vm.Booted, vm.Active, vm.Started = homelabv1.Power_POWER_RUNNING, vm.MachineID != "", vm.Data, w.Now
	}
}

// mend takes back what went wrong around the guests.
func mend(w *plantest.World) {
	for _, h := range w.Hosts {
		h.Off, h.AgentGone, h.PVEGone, h.Clock, h.Uptime = false, false, false, 0, 24*time.Hour
		for _, vm := range h.VMs {
			vm.Lock, vm.Snapshots = "", nil
		}
	}
}

// Rules 2 to 11 against random faults: whatever breaks, and however steps end,
// never two guests of a name, never anything destroyed that is not ours or runs
// or is still in the cluster, never a data disk lost or hidden by an empty one,
// never the quorum lost by our doing. When all is mended the same command comes
// to rest, and then does nothing.
func TestNothingIsLostWhateverBreaks(t *testing.T) {
	check(t, worlds, func(t *rapid.T) {
		w := drawFleet(t)
		for range rapid.IntRange(1, 4).Draw(t, "rounds") {
			for range rapid.IntRange(0, 2).Draw(t, "breaks at once") {
				breaks(t, w)
			}
			if rapid.IntRange(0, 2).Draw(t, "mended") == 0 {
				mend(w)
			}
			apply(t, w, rapid.IntRange(0, 1).Draw(t, "luck"))
			w.Now = w.Now.Add(rapid.SampledFrom([]time.Duration{0, time.Minute, time.Hour}).Draw(t, "later"))
			if len(w.Violations) > 0 {
				t.Fatalf("%s", strings.Join(w.Violations, "\n"))
			}
		}
		mend(w)
		var p *homelabv1.Plan
		for range 12 {
			w.Watch(11 * time.Minute)
			p = w.Plan()
			if len(deeds(p)) == 0 {
				break
			}
			w.Apply(p, func(*homelabv1.Step) plantest.Outcome { return plantest.Well })
			w.Now = w.Now.Add(20 * time.Minute)
			if len(w.Violations) > 0 {
				t.Fatalf("%s", strings.Join(w.Violations, "\n"))
			}
		}
		if len(deeds(p)) > 0 {
			t.Fatalf("it never comes to rest: %s", render(p))
		}
	})
}
