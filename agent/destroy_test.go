package agent

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// withoutData takes the data disk away from guest k3s-1's VM, as a detach has.
func (w *world) withoutData() {
	vm := w.hyp.vms[201]
	w.hyp.release(201, vm.GetVolumes()[1].GetVolid())
	vm.Volumes = slices.Delete(vm.GetVolumes(), 1, 2)
}

func TestNothingIsDestroyedThatCouldNotBeMadeAgain(t *testing.T) {
	for _, tc := range []struct {
		name, want string
		purge      bool // also refused when the guest goes for good
		turn       func(*world, *agentv1.RunRequest)
	}{
		{"it runs", "only a stopped VM is destroyed", true, func(w *world, _ *agentv1.RunRequest) { w.hyp.vms[201].Power = homelabv1.Power_POWER_RUNNING }},
		{"power not known", "only a stopped VM is destroyed", true, func(w *world, _ *agentv1.RunRequest) { w.hyp.vms[201].Power = homelabv1.Power_POWER_UNSPECIFIED }},
		{"a data disk stands in it", "data disk scsi1 (local:201/vm-201-disk-1.raw) still stands in VM 201", true, func(w *world, _ *agentv1.RunRequest) {
			w.hyp.vms[201].Volumes = append(w.hyp.vms[201].Volumes, &homelabv1.Volume{Volid: "local:201/vm-201-disk-1.raw", Slot: "scsi1"})
		}},
		{"its storage is gone", "volume tank:vm-201-disk-1: storage tank is not there", true, func(w *world, _ *agentv1.RunRequest) {
			w.hyp.vms[201].Volumes = append(w.hyp.vms[201].Volumes, &homelabv1.Volume{Volid: "tank:vm-201-disk-1", Slot: "scsi2"})
		}},
		{"protected", "is protected", true, func(w *world, _ *agentv1.RunRequest) { w.hyp.vms[201].Protection = true }},
		{"VMs that cannot be listed", "cannot be listed", true, func(w *world, _ *agentv1.RunRequest) { w.hyp.unseen = true }},
		{"no image", "image other is not on storage local", false, func(_ *world, r *agentv1.RunRequest) { r.Want.Image.Name = "other" }},
		{"no bridge", "bridge vmbr9 is not there", false, func(_ *world, r *agentv1.RunRequest) { r.Want.Hardware.Nics[0].Bridge = "vmbr9" }},
		{"no device", "PCI device 0000:b3:00.0 is not there", false, func(_ *world, r *agentv1.RunRequest) { r.Want.Hardware.Pci = []string{"0000:b3:00.0"} }},
		{"no storage for the system disk", "storage tank is not there", false, func(_ *world, r *agentv1.RunRequest) { r.Want.Hardware.SystemDisk.Storage = "tank" }},
		{"no storage for the data disk", "storage tank is not there", false, func(_ *world, r *agentv1.RunRequest) { r.DataDisks[0].Storage = "tank" }},
		{"no storage for the user-data", "storage tank is not there", false, func(_ *world, r *agentv1.RunRequest) { r.Want.SnippetsStorage = "tank" }},
		{"no memory", "memory: 4 GiB needed, 3 GiB available", false, func(w *world, _ *agentv1.RunRequest) { w.hyp.guests = 12 << 30 }},
		{"no word of how it is made", "does not say how guest k3s-1 is made again", false, func(_ *world, r *agentv1.RunRequest) { r.Want.Hardware = nil }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, purge := range []bool{false, true} {
				w := newDataWorld(t)
				w.withoutData()
				req := w.recreate(destroyStep)
				req.Purge = purge
				tc.turn(w, req)
				vm, volumes := proto.CloneOf(w.hyp.vms[201]), slices.Clone(w.hyp.volumes[201])
				s, err := w.do(req)
				if purge && !tc.purge {
					if err != nil || w.hyp.vms[201] != nil {
						t.Errorf("one that goes for good: %v", err)
					}
					continue
				}
				if err == nil || !strings.Contains(err.Error(), tc.want) || len(s.calls()) != 0 {
					t.Errorf("got %v, want %q", err, tc.want)
				}
				if !proto.Equal(vm, w.hyp.vms[201]) || !slices.Equal(volumes, w.hyp.volumes[201]) || len(w.svc.intents.list()) != 0 {
					t.Errorf("something was changed: %v %v", w.hyp.vms[201], w.svc.intents.list())
				}
			}
		})
	}
}

// TestMemoryOfTheVMThatGoesIsItsSuccessors: one that starts with its host is counted
// although it is stopped.
func TestMemoryOfTheVMThatGoesIsItsSuccessors(t *testing.T) {
	w := newDataWorld(t)
	w.withoutData()
	w.hyp.guests, w.hyp.vms[201].Onboot, w.hyp.vms[201].MemoryBytes = 12<<30, true, 4<<30
	if _, err := w.do(w.recreate(destroyStep)); err != nil {
		t.Error(err)
	}
}

func TestWhatADestructionLeavesIsFreedByName(t *testing.T) {
	w := newDataWorld(t)
	w.withoutData()
	w.put("var/lib/vz/snippets/hl-home-k3s-1-1.yaml", "host key")
	w.put("var/lib/vz/snippets/hl-home-k3s-1-2.yaml", "the next one's")
	w.hyp.at = func(where string) error {
		if where == "destroying" {
			return errKilled
		}
		return nil
	}
	if _, err := w.do(w.recreate(destroyStep)); !errors.Is(err, errKilled) || w.hyp.vms[201] != nil || len(w.hyp.volumes[201]) != 2 {
		t.Fatal(err, w.hyp.volumes[201])
	}
	w.hyp.at = func(string) error { return nil }
	w.relaunch()
	open := w.svc.intents.list()
	if len(open) != 1 || !open[0].GetDestroying() || !slices.Equal(open[0].GetVolumesBefore(), []string{foreignVolume}) {
		t.Fatalf("intents %v", open)
	}
	if _, err := w.do(w.recreate(createStep)); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "unfinished destruction") {
		t.Errorf("a create over what is left: %v", err)
	}
	// The step itself goes on, as a rollback would.
	s, err := w.do(w.recreate(destroyStep))
	if err != nil || !slices.Equal(w.hyp.volumes[201], []string{foreignVolume}) || len(w.svc.intents.list()) != 0 {
		t.Errorf("%v, volumes %v, intents %v", err, w.hyp.volumes[201], w.svc.intents.list())
	}
	if !slices.Equal(s.calls(), []string{"qm free", "snippet remove"}) {
		t.Errorf("calls %v", s.calls())
	}
	left, _ := os.ReadDir(filepath.Join(w.root, "var/lib/vz/snippets"))
	if len(left) != 1 || left[0].Name() != "hl-home-k3s-1-2.yaml" {
		t.Errorf("snippets %v", left)
	}
}

// TestARollbackOfADestructionNeverDestroysAVM: neither the one that is whole after
// all, nor what came to its VMID since.
func TestARollbackOfADestructionNeverDestroysAVM(t *testing.T) {
	begun := func(t *testing.T) *world {
		w := newDataWorld(t)
		if err := w.svc.intents.write(&homelabv1.Intent{Identity: w.want().GetIdentity(), Step: "destroy/pve1/k3s-1", Destroying: true}); err != nil {
			t.Fatal(err)
		}
		return w
	}
	w := begun(t)
	volumes := slices.Clone(w.hyp.volumes[201])
	if _, err := w.do(w.recreate(rollbackStep)); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "VM 201 is whole") {
		t.Errorf("got %v", err)
	}
	// It runs again: the intent is of no use any more, and would be wrong later.
	start := w.recreate(startStep)
	start.Want.Identity = w.want().GetIdentity()
	if _, err := w.do(start); err != nil || len(w.svc.intents.list()) != 0 {
		t.Errorf("after a start: %v %v", w.svc.intents.list(), err)
	}
	for name, turn := range map[string]func(*world){
		"a container": func(w *world) {
			delete(w.hyp.vms, 201)
			w.hyp.cluster = []*homelabv1.ClusterVmid{{Vmid: 201, Type: "lxc", Node: "pve1"}}
		},
		"our VM on another node": func(w *world) {
			delete(w.hyp.vms, 201)
			w.hyp.cluster = []*homelabv1.ClusterVmid{{Vmid: 201, Type: "qemu", Node: "pve2", Mark: w.want().GetIdentity().GetMark()}}
		},
		"somebody else's VM": func(w *world) { w.hyp.vms[201].Uuid = "other" },
		"somebody else's half-built VM": func(w *world) {
			w.hyp.vms[201] = &homelabv1.VirtualMachine{Vmid: 201, HalfBuilt: true, Lock: "create", Power: homelabv1.Power_POWER_STOPPED, Readable: factYes("")}
		},
	} {
		w := begun(t)
		turn(w)
		s, err := w.do(w.recreate(rollbackStep))
		if err != nil || s.result.GetChanged() || !slices.Equal(volumes, w.hyp.volumes[201]) || len(w.hyp.calls) != 0 || len(w.svc.intents.list()) != 0 {
			t.Errorf("%s: %v %v, volumes %v", name, s.result, err, w.hyp.volumes[201])
		}
	}
	// What cannot be seen decides nothing.
	w = begun(t)
	delete(w.hyp.vms, 201)
	w.hyp.unseen = true
	if _, err := w.do(w.recreate(rollbackStep)); !errors.Is(err, rpc.ErrUnavailable) || len(w.svc.intents.list()) != 1 {
		t.Errorf("unseen: %v", err)
	}
}

func TestADestructionOfAVMThatWentElsewhereIsRefused(t *testing.T) {
	for _, a := range []homelabv1.Action{destroyStep, stopStep} {
		w := newDataWorld(t)
		delete(w.hyp.vms, 201)
		w.hyp.cluster = []*homelabv1.ClusterVmid{{Vmid: 201, Type: "qemu", Node: "pve2"}}
		if _, err := w.do(w.recreate(a)); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "in use on node pve2") {
			t.Errorf("%s: %v", a, err)
		}
	}
}

func TestDisksTravelOnlyWhenAllOfThemAreAccountedFor(t *testing.T) {
	holderVM := func(w *world, slots ...string) *homelabv1.VirtualMachine {
		h := &homelabv1.VirtualMachine{Vmid: 290, Name: "hl-holder-k3s-1", Uuid: w.holder().GetUuid(), Mark: w.holder().GetMark(), Power: homelabv1.Power_POWER_STOPPED, Readable: factYes("")}
		for _, slot := range slots {
			h.Volumes = append(h.Volumes, &homelabv1.Volume{Volid: w.hyp.allocate(290), Slot: slot})
		}
		w.hyp.vms[290] = h
		return h
	}
	for _, tc := range []struct {
		name, want string
		turn       func(*world, *agentv1.RunRequest)
	}{
		{"neither has it", "data disk scsi2 is neither the guest's nor its holder's", func(_ *world, r *agentv1.RunRequest) {
			r.DataDisks = append(r.DataDisks, &homelabv1.Disk{Slot: "scsi2", Storage: "local"})
		}},
		{"both have it", "have a disk scsi1, so none is moved", func(w *world, _ *agentv1.RunRequest) { holderVM(w, "scsi1") }},
		{"the VM runs", "VM 201 is running", func(w *world, _ *agentv1.RunRequest) { w.hyp.vms[201].Power = homelabv1.Power_POWER_RUNNING }},
		{"its storage is gone", "storage tank is not there", func(w *world, _ *agentv1.RunRequest) { w.hyp.vms[201].Volumes[1].Volid = "tank:vm-201-disk-1" }},
		{"somebody else's VM at the holder's VMID", "VM 290 (router) is not guest holder@k3s-1", func(w *world, _ *agentv1.RunRequest) {
			w.hyp.vms[290] = &homelabv1.VirtualMachine{Vmid: 290, Name: "router", Uuid: "x", Readable: factYes("")}
		}},
		{"somebody else's half-built VM there", "half-built and not by us", func(w *world, _ *agentv1.RunRequest) {
			w.hyp.vms[290] = &homelabv1.VirtualMachine{Vmid: 290, HalfBuilt: true, Power: homelabv1.Power_POWER_STOPPED, Readable: factYes("")}
		}},
		{"a container at the holder's VMID", "VMID 290 is in use on node pve2 (lxc)", func(w *world, _ *agentv1.RunRequest) {
			w.hyp.cluster = []*homelabv1.ClusterVmid{{Vmid: 290, Type: "lxc", Node: "pve2"}}
		}},
		{"the system disk", `"scsi0" is no data disk's slot`, func(_ *world, r *agentv1.RunRequest) { r.DataDisks[0].Slot = "scsi0" }},
		{"the guest's own VM as its holder", "the holder is the guest's own VM", func(_ *world, r *agentv1.RunRequest) { r.Holder.Vmid = 201 }},
		{"another guest's holder", "no holder of guest k3s-1", func(_ *world, r *agentv1.RunRequest) { r.Holder.Guest = "holder@k3s-2" }},
		{"no holder", "belongs to home", func(_ *world, r *agentv1.RunRequest) { r.Holder = nil }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newDataWorld(t)
			req := w.recreate(detachStep)
			tc.turn(w, req)
			s, err := w.do(req)
			if err == nil || !strings.Contains(err.Error(), tc.want) || len(w.hyp.calls) != 0 || len(s.calls()) != 0 || len(w.svc.intents.list()) != 0 {
				t.Errorf("got %v, want %q; calls %v", err, tc.want, w.hyp.calls)
			}
		})
	}
	t.Run("a holder with more stays", func(t *testing.T) {
		w := newDataWorld(t)
		w.withoutData()
		w.hyp.vms[201].Mark = w.reborn().GetMark()
		holderVM(w, "scsi1", "unused0")
		s, err := w.do(w.recreate(attachStep))
		if err != nil || w.hyp.vms[290] == nil || !strings.Contains(s.result.GetText(), "holder VM 290 stays, since it has local:290/vm-290-disk-1.raw") {
			t.Errorf("%v %v", s.result, err)
		}
		if slotOf(w.hyp.vms[201], "scsi1") == "" || slices.Contains(w.hyp.calls, "destroy") {
			t.Errorf("calls %v", w.hyp.calls)
		}
	})
	t.Run("a holder with an unlisted volume stays", func(t *testing.T) {
		w := newDataWorld(t)
		w.hyp.vms[201].Mark = w.reborn().GetMark()
		holderVM(w)
		w.hyp.allocate(290)
		if _, err := w.do(w.recreate(attachStep)); err != nil || w.hyp.vms[290] == nil {
			t.Errorf("%v", err)
		}
	})
	t.Run("an attach without its disk", func(t *testing.T) {
		w := newDataWorld(t)
		w.withoutData()
		w.hyp.vms[201].Mark = w.reborn().GetMark()
		holderVM(w)
		if _, err := w.do(w.recreate(attachStep)); !errors.Is(err, rpc.ErrRefused) || w.hyp.vms[290] == nil || len(w.hyp.calls) != 0 {
			t.Errorf("%v", err)
		}
	})
}

func TestOrphansAreOursOnlyByAnOpenIntent(t *testing.T) {
	w := newDataWorld(t)
	w.hyp.volumes[300] = []string{"local:300/vm-300-disk-0.raw"}
	w.hyp.volumes[301] = []string{"local:301/vm-301-disk-0.raw"}
	w.hyp.volumes[302] = []string{"local:302/before.raw", "local:302/vm-302-disk-0.raw"}
	w.hyp.cluster = []*homelabv1.ClusterVmid{{Vmid: 301, Type: "lxc", Node: "pve1"}}
	for _, vmid := range []int32{201, 301, 302} {
		id := w.want().GetIdentity()
		id.Vmid = vmid
		if err := w.svc.intents.write(&homelabv1.Intent{Identity: id, Step: "destroy/pve1/k3s-1", Destroying: true, VolumesBefore: []string{"local:302/before.raw"}}); err != nil {
			t.Fatal(err)
		}
	}
	look := func() map[string]*homelabv1.Orphan {
		r, err := w.svc.Orphans(t.Context(), &agentv1.OrphansRequest{})
		if err != nil || !isYes(r.GetKnown()) {
			t.Fatal(r, err)
		}
		out := map[string]*homelabv1.Orphan{}
		for _, o := range r.GetOrphans() {
			if o.GetHost() != "pve1" {
				t.Errorf("host %q", o.GetHost())
			}
			out[o.GetVolid()] = o
		}
		return out
	}
	got := look()
	if len(got) != 5 {
		t.Errorf("got %v", got)
	}
	for volid, why := range map[string]string{
		foreignVolume: "VMID 201 is in use", "local:300/vm-300-disk-0.raw": "no unfinished step of ours", "local:301/vm-301-disk-0.raw": "VMID 301 is in use", "local:302/before.raw": "was there before",
	} {
		if o := got[volid]; !isNo(o.GetOurs()) || !strings.Contains(o.GetOurs().GetReason(), why) || o.GetGuest() != "" {
			t.Errorf("%s: %v", volid, o)
		}
	}
	if o := got["local:302/vm-302-disk-0.raw"]; !isYes(o.GetOurs()) || o.GetGuest() != "k3s-1" {
		t.Errorf("ours: %v", o)
	}
	w.hyp.unseen = true
	if o := look()["local:302/vm-302-disk-0.raw"]; !isUnknown(o.GetOurs()) {
		t.Errorf("unseen: %v", o)
	}
}

// TestLeftoversThatWereNamedAreFreed: a person cleared a half-built VM away, and
// then asked for what was left of it to go.
func TestLeftoversThatWereNamedAreFreed(t *testing.T) {
	w := newWorld(t)
	write := func() {
		if err := w.svc.intents.write(&homelabv1.Intent{Identity: w.want().GetIdentity(), Step: "create/pve1/k3s-1", VolumesBefore: []string{foreignVolume}}); err != nil {
			t.Fatal(err)
		}
		w.hyp.volumes[201] = []string{foreignVolume, "local:201/vm-201-disk-0.raw"}
	}
	write()
	w.hyp.cluster = []*homelabv1.ClusterVmid{{Vmid: 201, Type: "lxc", Node: "pve2"}}
	req := w.request(rollbackStep)
	req.Named = true
	if _, err := w.do(req); !errors.Is(err, rpc.ErrRefused) || len(w.hyp.volumes[201]) != 2 {
		t.Errorf("a container has the VMID: %v", err)
	}
	w.hyp.cluster = nil
	if _, err := w.do(req); err != nil || !slices.Equal(w.hyp.volumes[201], []string{foreignVolume}) || len(w.svc.intents.list()) != 0 {
		t.Errorf("%v, volumes %v", err, w.hyp.volumes[201])
	}
}

// TestTheRestOfAHolderGoesBeforeTheNext: its destruction was cut off, and then the
// guest is recreated again.
func TestTheRestOfAHolderGoesBeforeTheNext(t *testing.T) {
	for _, vm := range []*homelabv1.VirtualMachine{
		nil, {Vmid: 290, HalfBuilt: true, Lock: "destroyed", Power: homelabv1.Power_POWER_STOPPED, Readable: factYes("")},
	} {
		w := newDataWorld(t)
		earlier := w.holder()
		earlier.Uuid = "of the one before"
		if err := w.svc.intents.write(&homelabv1.Intent{Identity: earlier, Step: "attach/pve1/k3s-1", Destroying: true}); err != nil {
			t.Fatal(err)
		}
		if vm != nil {
			w.hyp.vms[290] = vm
		}
		if _, err := w.do(w.recreate(detachStep)); err != nil || w.hyp.data[slotOf(w.hyp.vms[290], "scsi1")] != precious || len(w.svc.intents.list()) != 0 {
			t.Errorf("%v, holder %v, intents %v", err, w.hyp.vms[290], w.svc.intents.list())
		}
	}
}
