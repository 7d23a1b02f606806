package agent

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

const (
	fetchStep    = homelabv1.Action_ACTION_FETCH
	rollbackStep = homelabv1.Action_ACTION_ROLLBACK
	createStep   = homelabv1.Action_ACTION_CREATE
	startStep    = homelabv1.Action_ACTION_START
	bootStep     = homelabv1.Action_ACTION_BOOT
)

func TestFetchCreateStartAndTheSameAgain(t *testing.T) {
	w := newWorld(t)
	s := w.must(fetchStep)
	if !slices.Equal(s.calls(), []string{"image fetch"}) || !s.result.GetChanged() || s.result.GetLearned().GetImageSha256() == "" {
		t.Errorf("fetch: %v %v", s.calls(), s.result)
	}
	s = w.must(createStep)
	if !slices.Equal(s.calls(), []string{"snippet write", "qm create"}) {
		t.Errorf("create: %v", s.calls())
	}
	l := s.result.GetLearned()
	if !slices.Equal(l.GetMacs(), []string{"BC:24:11:00:00:01"}) || len(l.GetHostKeys()) != 1 || len(l.GetVolumes()) != 1 {
		t.Errorf("learned %v", l)
	}
	snippet := filepath.Join(w.root, "var/lib/vz/snippets/hl-home-k3s-1-1.yaml")
	st, err := os.Stat(snippet)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("snippet: %v %v", st, err)
	}
	text, _ := os.ReadFile(snippet)
	if !strings.Contains(string(text), w.svc.keys.AgentLine()) {
		t.Error("the agent's key is not in the user-data")
	}
	if len(w.svc.intents.list()) != 0 {
		t.Error("the intent is still open")
	}
	s = w.must(startStep)
	if !slices.Equal(s.calls(), []string{"qm start"}) {
		t.Errorf("start: %v", s.calls())
	}
	for _, e := range s.events {
		if e.GetHost() != "pve1" || e.GetGuest() != "k3s-1" || e.GetRun() != 1 || e.GetStep() == "" || e.GetTime() == nil {
			t.Errorf("event without its step: %v", e)
		}
	}
	// A user-data that would be another one today is not written again.
	again := w.request(createStep)
	again.Want.AuthorizedKeys = append(again.Want.AuthorizedKeys, "ssh-ed25519 BBBB new")
	for _, req := range []*agentv1.RunRequest{w.request(fetchStep), again, w.request(startStep)} {
		s, err := w.do(req)
		if err != nil || len(s.calls()) != 0 {
			t.Errorf("%s again: %v %v", req.GetStep().GetId(), s.calls(), err)
		}
	}
}

func TestWhatACreateNeedsIsCheckedBeforeAnyChange(t *testing.T) {
	for _, tc := range []struct {
		name string
		want string
		turn func(*world, *homelabv1.GuestWant)
	}{
		{"no such bridge", "bridge vmbr25gbe is not there; the host has vmbr0 (up)", func(_ *world, g *homelabv1.GuestWant) { g.Hardware.Nics[0].Bridge = "vmbr25gbe" }},
		{"bridge down", "bridge vmbr0 is not up: vmbr0 is down", func(w *world, _ *homelabv1.GuestWant) { w.put("sys/class/net/vmbr0/operstate", "down\n") }},
		{"no VLANs", "bridge vmbr0 is not VLAN-aware, network lan needs tag 30", func(_ *world, g *homelabv1.GuestWant) { g.Hardware.Nics[0].Vlan = 30 }},
		{"MTU", "bridge vmbr0 has MTU 1500, network lan needs 9000", func(_ *world, g *homelabv1.GuestWant) { g.Hardware.Nics[0].Mtu = 9000 }},
		{"memory", "memory: 4 GiB needed, 3 GiB available (16 GiB in all, 1 GiB reserved, 12 GiB for other guests)", func(w *world, _ *homelabv1.GuestWant) { w.hyp.guests = 12 << 30 }},
		{"CPUs", "CPUs: 3 needed, the host has 2", func(_ *world, g *homelabv1.GuestWant) { g.Hardware.Cpus = 3 }},
		{"no such storage", "storage tank is not there; the host has local", func(_ *world, g *homelabv1.GuestWant) { g.Hardware.SystemDisk.Storage = "tank" }},
		{"content", "storage local may not hold snippets", func(w *world, _ *homelabv1.GuestWant) {
			w.put("etc/pve/storage.cfg", "dir: local\n\tpath /var/lib/vz\n\tcontent images\n")
		}},
		{"PCI", "PCI device 0000:b3:00.0 is not there", func(_ *world, g *homelabv1.GuestWant) { g.Hardware.Pci = []string{"0000:b3:00.0,pcie=1"} }},
		{"USB", "USB device 18d1:9302 is not there", func(_ *world, g *homelabv1.GuestWant) { g.Hardware.Usb = []string{"18d1:9302,usb3=1"} }},
		{"image", "image other is not on storage local", func(_ *world, g *homelabv1.GuestWant) { g.Image.Name = "other" }},
		{"VMID of a container", "VMID 201 is in use on node pve2 (lxc)", func(w *world, _ *homelabv1.GuestWant) {
			w.hyp.cluster = []*homelabv1.ClusterVmid{{Vmid: 201, Type: "lxc", Node: "pve2"}}
		}},
		{"VMID of somebody else's VM", "VM 201 (router) is not guest k3s-1", func(w *world, _ *homelabv1.GuestWant) {
			w.hyp.vms[201] = &homelabv1.VirtualMachine{Vmid: 201, Name: "router", Uuid: "x", Readable: factYes("")}
		}},
		{"a clone of ours", "VM 201 (k3s-1) is not guest k3s-1", func(w *world, g *homelabv1.GuestWant) {
			w.hyp.vms[201] = &homelabv1.VirtualMachine{Vmid: 201, Name: "k3s-1", Uuid: "other", Mark: g.GetIdentity().GetMark(), Readable: factYes("")}
		}},
		{"half-built", "VM 201 is half-built", func(w *world, _ *homelabv1.GuestWant) {
			w.hyp.vms[201] = &homelabv1.VirtualMachine{Vmid: 201, HalfBuilt: true, Readable: factYes("")}
		}},
		{"VMs that cannot be listed", "cannot be listed", func(w *world, _ *homelabv1.GuestWant) { w.hyp.unseen = true }},
		{"no quorum", "no quorum", func(w *world, _ *homelabv1.GuestWant) {
			w.put("etc/pve/.members", `{"nodename":"pve1","cluster":{"name":"home","quorate":0},"nodelist":{}}`)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.must(fetchStep)
			req := w.request(createStep)
			tc.turn(w, req.GetWant())
			s, err := w.do(req)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want %q", err, tc.want)
			}
			if k := rpc.KindOf(err); k != rpc.ErrRefused && k != rpc.ErrUnavailable {
				t.Errorf("kind %q", k)
			}
			if len(s.calls()) != 0 || len(w.hyp.calls) != 0 || len(w.svc.intents.list()) != 0 {
				t.Errorf("something was changed: %v %v %v", s.calls(), w.hyp.calls, w.svc.intents.list())
			}
			if _, err := os.Stat(filepath.Join(w.root, "var/lib/vz/snippets")); !os.IsNotExist(err) {
				t.Error("a snippet was written")
			}
		})
	}
}

var errKilled = rpc.Errorf(rpc.ErrUnavailable, "the driver ended during the call")

// TestACreateThatIsCutOffConverges cuts a create off at each of its boundaries,
// with a foreign volume of that VMID lying there, kills the agent, and does what
// the planner would do next.
func TestACreateThatIsCutOffConverges(t *testing.T) {
	const foreign = "local:201/vm-201-disk-9.raw"
	for _, where := range []string{"before create", "half-built", "created"} {
		t.Run(where, func(t *testing.T) {
			w := newWorld(t)
			w.hyp.volumes[201] = []string{foreign}
			w.must(fetchStep)
			w.hyp.at = func(at string) error {
				if at == where {
					return errKilled
				}
				return nil
			}
			if _, err := w.do(w.request(createStep)); !errors.Is(err, rpc.ErrUnavailable) {
				t.Fatalf("got %v", err)
			}
			w.hyp.at = func(string) error { return nil }
			w.relaunch()
			w.run++
			open := w.svc.intents.list()
			if len(open) != 1 || !slices.Equal(open[0].GetVolumesBefore(), []string{foreign}) || open[0].GetIdentity().GetUuid() != w.want().GetIdentity().GetUuid() {
				t.Fatalf("intents after the kill: %v", open)
			}
			o, err := w.svc.Observe(t.Context(), &agentv1.ObserveRequest{})
			if err != nil || !isNo(o.GetObservation().GetIntents()[0].GetWorker()) {
				t.Errorf("observed %v %v", o.GetObservation().GetIntents(), err)
			}
			if vm := w.hyp.vms[201]; vm == nil || vm.GetHalfBuilt() {
				w.must(rollbackStep)
				if !slices.Equal(w.hyp.volumes[201], []string{foreign}) || w.hyp.vms[201] != nil {
					t.Errorf("after the rollback: %v %v", w.hyp.volumes[201], w.hyp.vms[201])
				}
			}
			w.must(createStep)
			if vm := w.hyp.vms[201]; vm.GetHalfBuilt() || vm.GetUuid() != w.want().GetIdentity().GetUuid() {
				t.Errorf("in the end: %v", vm)
			}
			if len(w.hyp.volumes[201]) != 2 || len(w.svc.intents.list()) != 0 {
				t.Errorf("left: volumes %v, intents %v", w.hyp.volumes[201], w.svc.intents.list())
			}
		})
	}
}

func TestWithoutAnIntentNothingIsRolledBack(t *testing.T) {
	w := newWorld(t)
	w.hyp.vms[201] = &homelabv1.VirtualMachine{Vmid: 201, HalfBuilt: true, Lock: "create", Readable: factYes("")}
	s, err := w.do(w.request(rollbackStep))
	if !errors.Is(err, rpc.ErrRefused) || w.hyp.vms[201] == nil || len(s.calls()) != 0 {
		t.Errorf("got %v, calls %v", err, s.calls())
	}
	// Another guest's unfinished create is not this one's to undo.
	if err := w.svc.intents.write(&homelabv1.Intent{Identity: &homelabv1.Identity{Fleet: "home", Guest: "k3s-9", Vmid: 201}}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.do(w.request(rollbackStep)); !errors.Is(err, rpc.ErrRefused) || w.hyp.vms[201] == nil {
		t.Errorf("got %v", err)
	}
	if _, err := w.do(w.request(createStep)); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("create: %v", err)
	}
}

func TestARefusedCreateLeavesNothingOfItsOwn(t *testing.T) {
	w := newWorld(t)
	w.must(fetchStep)
	w.hyp.at = func(string) error { return rpc.Errorf(rpc.ErrRefused, "storage local: 10 GiB needed, 1 GiB available") }
	_, err := w.do(w.request(createStep))
	if !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "storage local: 10 GiB needed") {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(filepath.Join(w.root, "var/lib/vz/snippets")); len(left) != 0 {
		t.Errorf("snippets: %v", left)
	}
	if len(w.svc.intents.list()) != 0 {
		t.Error("the intent is still open")
	}
}

func TestABrokenIntentKeepsTheAgentFromStarting(t *testing.T) {
	w := newWorld(t)
	w.stop()
	w.put("../state/intents/201.json", "{")
	if _, err := openIntents(filepath.Join(w.cfg.State, "intents")); err == nil {
		t.Error("a proof of ownership was dropped without a word")
	}
}

// TestARollbackFreesNothingThatItDidNotSeeHalfBuilt: a person cleared the
// half-built VM away and used the VMID since; what lies there now is not ours,
// although it was not there when the create began.
func TestARollbackFreesNothingThatItDidNotSeeHalfBuilt(t *testing.T) {
	const foreign = "local:201/vm-201-disk-0.raw"
	w := newWorld(t)
	if err := w.svc.intents.write(&homelabv1.Intent{Identity: w.want().GetIdentity(), Step: "create/pve1/k3s-1"}); err != nil {
		t.Fatal(err)
	}
	w.hyp.volumes[201] = []string{foreign}
	s := w.must(rollbackStep)
	if !slices.Equal(w.hyp.volumes[201], []string{foreign}) || len(s.calls()) != 0 {
		t.Errorf("volumes %v, calls %v", w.hyp.volumes[201], s.calls())
	}
	if !strings.Contains(s.result.GetText(), foreign) || s.result.GetChanged() || len(w.svc.intents.list()) != 0 {
		t.Errorf("result %v, intents %v", s.result, w.svc.intents.list())
	}
}

// TestARollbackThatIsCutOffGoesOn: between the VM's end and its volumes'.
func TestARollbackThatIsCutOffGoesOn(t *testing.T) {
	w := newWorld(t)
	if err := w.svc.intents.write(&homelabv1.Intent{Identity: w.want().GetIdentity(), Step: "create/pve1/k3s-1", VolumesBefore: []string{"before"}}); err != nil {
		t.Fatal(err)
	}
	w.hyp.vms[201] = &homelabv1.VirtualMachine{Vmid: 201, HalfBuilt: true, Lock: "create", Power: homelabv1.Power_POWER_STOPPED, Readable: factYes("")}
	w.hyp.volumes[201] = []string{"before", "local:201/vm-201-disk-0.raw"}
	w.hyp.at = func(at string) error {
		if at == "destroyed" {
			return errKilled
		}
		return nil
	}
	if _, err := w.do(w.request(rollbackStep)); !errors.Is(err, rpc.ErrUnavailable) || w.hyp.vms[201] != nil {
		t.Fatal(err)
	}
	w.hyp.at = func(string) error { return nil }
	w.relaunch()
	w.must(rollbackStep)
	if !slices.Equal(w.hyp.volumes[201], []string{"before"}) || len(w.svc.intents.list()) != 0 {
		t.Errorf("volumes %v, intents %v", w.hyp.volumes[201], w.svc.intents.list())
	}
}
