package agent

import (
	"compress/gzip"
	"errors"
	"fmt"
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

const (
	saveStep    = homelabv1.Action_ACTION_SAVE
	stopStep    = homelabv1.Action_ACTION_STOP
	detachStep  = homelabv1.Action_ACTION_DETACH
	destroyStep = homelabv1.Action_ACTION_DESTROY
	attachStep  = homelabv1.Action_ACTION_ATTACH
	resetStep   = homelabv1.Action_ACTION_RESET
	resumeStep  = homelabv1.Action_ACTION_RESUME
	adoptStep   = homelabv1.Action_ACTION_ADOPT
)

// reborn is the identity of guest k3s-1's next generation.
func (w *world) reborn() *homelabv1.Identity {
	id := w.want().GetIdentity()
	id.Generation, id.Mark = 2, "hl1:home:k3s-1:2:bcde"
	return id
}

// holder is the identity of guest k3s-1's holder VM.
func (w *world) holder() *homelabv1.Identity {
	return &homelabv1.Identity{Fleet: "home", Guest: "holder@k3s-1", Generation: 1, Vmid: 290, Uuid: "99999999-2222-4333-8444-555555555555", Mark: "hl1:home:holder@k3s-1:1:cdef"}
}

// recreate is a step of guest k3s-1's recreation, which has a data disk in scsi1.
func (w *world) recreate(action homelabv1.Action) *agentv1.RunRequest {
	req := w.request(action)
	req.DataDisks = []*homelabv1.Disk{{Slot: "scsi1", Storage: "local", SizeBytes: 20 << 30}}
	switch action {
	case detachStep, attachStep:
		req.Holder, req.Step.HolderVmid = w.holder(), w.holder().GetVmid()
	}
	switch action {
	case createStep, attachStep, startStep:
		req.Want.Identity = w.reborn()
	}
	return req
}

const (
	precious      = "all photos"
	foreignVolume = "local:201/vm-201-disk-9.raw"
)

// stoppedWithData is guest k3s-1's VM, stopped, with a data disk, beside a volume
// of that VMID that is not its own.
func stoppedWithData(w *world) *homelabv1.VirtualMachine {
	vm := running(w)
	vm.Power = homelabv1.Power_POWER_STOPPED
	w.hyp.volumes[201] = []string{foreignVolume}
	vm.Volumes = []*homelabv1.Volume{{Volid: w.hyp.allocate(201), Slot: "scsi0"}, {Volid: w.hyp.allocate(201), Slot: "scsi1"}, {Volid: "none", Slot: "ide2"}}
	w.hyp.data[vm.GetVolumes()[1].GetVolid()] = precious
	w.hyp.vms[201] = vm
	return vm
}

// newDataWorld is a world with that VM and the guest's image.
func newDataWorld(t *testing.T) *world {
	w := newWorld(t)
	w.must(fetchStep)
	stoppedWithData(w)
	return w
}

// checkData fails when the data are lost: not on exactly one volume, which a
// configuration names.
func (w *world) checkData(when string) {
	w.t.Helper()
	var on []string
	for volid, what := range w.hyp.data {
		if what == precious {
			on = append(on, volid)
		}
	}
	if len(on) != 1 {
		w.t.Fatalf("%s: the data are on %v", when, on)
	}
	for _, vm := range w.hyp.vms {
		if slices.ContainsFunc(vm.GetVolumes(), func(v *homelabv1.Volume) bool { return v.GetVolid() == on[0] && v.GetSlot() == "scsi1" }) {
			if !slices.Contains(w.hyp.volumes[201], foreignVolume) {
				w.t.Fatalf("%s: somebody else's volume is gone", when)
			}
			return
		}
	}
	w.t.Fatalf("%s: no VM has the data", when)
}

// next is what the planner would do with guest k3s-1 as it is; none at the end.
func (w *world) next() []*agentv1.RunRequest {
	vm, intent := w.hyp.vms[201], w.svc.intents.of(201)
	reqs := func(actions ...homelabv1.Action) (out []*agentv1.RunRequest) {
		for _, a := range actions {
			out = append(out, w.recreate(a))
		}
		return out
	}
	switch {
	case vm == nil && intent != nil:
		return reqs(rollbackStep)
	case vm == nil:
		return reqs(createStep, attachStep, startStep)
	case vm.GetHalfBuilt():
		return reqs(rollbackStep)
	case vm.GetMark() == w.want().GetIdentity().GetMark():
		return reqs(saveStep, stopStep, detachStep, destroyStep, createStep, attachStep, startStep)
	case vm.GetPower() != homelabv1.Power_POWER_RUNNING || intent != nil || w.hyp.vms[290] != nil:
		return reqs(createStep, attachStep, startStep)
	}
	return nil
}

// converge recreates the guest, killing the agent and planning anew whenever a
// step is cut off.
func (w *world) converge() {
	w.t.Helper()
	for range 12 {
		steps := w.next()
		if len(steps) == 0 {
			return
		}
		w.run++
		for _, req := range steps {
			req.Fence.Run = w.run
			_, err := w.do(req)
			w.checkData(req.GetStep().GetId())
			if errors.Is(err, errKilled) {
				w.relaunch()
				break
			}
			if err != nil {
				w.t.Fatalf("%s: %v", req.GetStep().GetId(), err)
			}
		}
	}
	w.t.Fatalf("it does not converge: VMs %v, intents %v", w.hyp.vms, w.svc.intents.list())
}

// TestARecreationThatIsCutOffConvergesAndLosesNoData cuts the whole chain off at
// each boundary of each call, kills the agent there, and plans anew; then at two.
func TestARecreationThatIsCutOffConvergesAndLosesNoData(t *testing.T) {
	run := func(t *testing.T, cuts ...int) (boundaries int) {
		w := newDataWorld(t)
		var at []string
		w.hyp.at = func(where string) error {
			boundaries++
			if at = append(at, where); slices.Contains(cuts, boundaries) {
				return errKilled
			}
			return nil
		}
		w.converge()
		vm := w.hyp.vms[201]
		if vm.GetMark() != w.reborn().GetMark() || vm.GetPower() != homelabv1.Power_POWER_RUNNING || w.hyp.data[slotOf(vm, "scsi1")] != precious {
			t.Errorf("cut at %v of %q: in the end %v", cuts, at, vm)
		}
		if w.hyp.vms[290] != nil || len(w.hyp.volumes[290]) != 0 || len(w.hyp.volumes[201]) != 3 || len(w.svc.intents.list()) != 0 {
			t.Errorf("cut at %v of %q: left: holder %v, volumes %v, intents %v", cuts, at, w.hyp.vms[290], w.hyp.volumes, w.svc.intents.list())
		}
		return boundaries
	}
	n := run(t)
	if n < 12 {
		t.Fatalf("only %d boundaries", n)
	}
	for first := 1; first <= n; first++ {
		t.Run(fmt.Sprint(first), func(t *testing.T) {
			run(t, first)
			for second := first + 1; second <= n+6; second += 3 {
				run(t, first, second)
			}
		})
	}
}

func TestTheStepsOfARecreationAreDoneOnce(t *testing.T) {
	w := newDataWorld(t)
	var learned *agentv1.Learned
	for _, a := range []homelabv1.Action{saveStep, stopStep, detachStep, destroyStep, createStep, attachStep, startStep} {
		s, err := w.do(w.recreate(a))
		if err != nil {
			t.Fatalf("%s: %v", a, err)
		}
		if a == saveStep && string(s.result.GetLearned().GetConfig()) != "name: k3s-1\nciuser: ubuntu\n" {
			t.Errorf("saved %q", s.result.GetLearned().GetConfig())
		}
		if a == detachStep {
			learned = s.result.GetLearned()
		}
		again, err := w.do(w.recreate(a))
		if err != nil || again.result.GetChanged() != (a == createStep) || len(again.calls()) != 0 {
			t.Errorf("%s again: %v %v %v", a, again.result, again.calls(), err)
		}
	}
	if h := learned.GetHeld(); len(h) != 1 || h[0].GetSlot() != "scsi1" || h[0].GetStorage() != "local" || h[0].GetSizeBytes() != 20<<30 {
		t.Errorf("held %v", h)
	}
	if w.hyp.vms[290] != nil {
		t.Error("the empty holder is still there")
	}
	file := filepath.Join(w.cfg.State, "saved", "k3s-1-1-201.conf")
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
	// What was saved before the VM went is told also afterwards.
	s, err := w.do(w.recreate(saveStep))
	if !errors.Is(err, rpc.ErrRefused) || s.result != nil {
		t.Errorf("the new VM's configuration is not the old one's: %v %v", s.result, err)
	}
	delete(w.hyp.vms, 201)
	if s, err = w.do(w.recreate(saveStep)); err != nil || len(s.result.GetLearned().GetConfig()) == 0 {
		t.Errorf("%v %v", s.result, err)
	}
}

// TestSomebodyElsesVMAtTheVMIDIsLeftAlone: its configuration and volumes stay as
// they are, whatever is asked.
func TestSomebodyElsesVMAtTheVMIDIsLeftAlone(t *testing.T) {
	for _, destroying := range []bool{false, true} {
		for _, a := range []homelabv1.Action{saveStep, stopStep, detachStep, destroyStep, rollbackStep, createStep, attachStep, startStep, resetStep, resumeStep, adoptStep} {
			for name, turn := range map[string]func(*homelabv1.VirtualMachine){
				"another":          func(vm *homelabv1.VirtualMachine) { vm.Uuid, vm.Mark = "other", "" },
				"a clone of it":    func(vm *homelabv1.VirtualMachine) { vm.Uuid = "other" },
				"another creation": func(vm *homelabv1.VirtualMachine) { vm.Mark = "hl1:home:k3s-1:7:abcd" },
			} {
				w := newDataWorld(t)
				if destroying {
					if err := w.svc.intents.write(&homelabv1.Intent{Identity: w.want().GetIdentity(), Step: "destroy/pve1/k3s-1", Destroying: true}); err != nil {
						t.Fatal(err)
					}
				}
				turn(w.hyp.vms[201])
				vm, volumes := proto.CloneOf(w.hyp.vms[201]), slices.Clone(w.hyp.volumes[201])
				req := w.recreate(a)
				req.Named, req.Purge, req.Force = true, true, true
				s, err := w.do(req)
				if err == nil && a != rollbackStep || err != nil && !errors.Is(err, rpc.ErrRefused) {
					t.Errorf("%s with %s: %v %v", a, name, s.result, err)
				}
				if !proto.Equal(vm, w.hyp.vms[201]) || !slices.Equal(volumes, w.hyp.volumes[201]) || len(w.hyp.calls) != 0 || w.hyp.vms[290] != nil {
					t.Errorf("%s with %s changed something: %v %v", a, name, w.hyp.calls, w.hyp.vms)
				}
			}
		}
	}
}

func TestAHostThatIsNotSettledIsNotChanged(t *testing.T) {
	for _, a := range []homelabv1.Action{stopStep, detachStep, destroyStep, attachStep, resetStep, resumeStep, adoptStep} {
		w := newDataWorld(t)
		vm := w.hyp.vms[201]
		switch a {
		case stopStep, resetStep:
			vm.Power = homelabv1.Power_POWER_RUNNING
		case resumeStep:
			vm.Power = homelabv1.Power_POWER_PAUSED
		case adoptStep:
			vm.Mark = ""
		case attachStep:
			vm.Mark = w.reborn().GetMark()
			w.hyp.vms[290] = &homelabv1.VirtualMachine{Vmid: 290, Uuid: w.holder().GetUuid(), Mark: w.holder().GetMark(), Power: homelabv1.Power_POWER_STOPPED, Readable: factYes(""), Volumes: vm.GetVolumes()[1:2]}
			vm.Volumes = vm.GetVolumes()[:1]
		case destroyStep:
			vm.Volumes = vm.GetVolumes()[:1]
		}
		w.put("etc/pve/.members", `{"nodename": "pve1","version": 4,"cluster": {"name": "home","version": 3,"nodes": 2,"quorate": 0},"nodelist": {}}`)
		s, err := w.do(w.recreate(a))
		if !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "no quorum") || len(s.calls()) != 0 || len(w.hyp.calls) != 0 || len(w.svc.intents.list()) != 0 {
			t.Errorf("%s: got %v, calls %v", a, err, w.hyp.calls)
		}
	}
}

func TestAGuestOfAPackedImageThatCannotBeUnpackedIsNotTouched(t *testing.T) {
	w := newDataWorld(t)
	packed := new(strings.Builder)
	z := gzip.NewWriter(packed)
	noise := make([]byte, 1<<20)
	copy(noise, imageFile())
	for i := 1 << 16; i < len(noise); i++ {
		noise[i] = byte(i * i >> 7)
	}
	if _, err := z.Write(noise); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	w.put("../files/noble.img", packed.String()[:packed.Len()/2]) // as a download that was cut off
	fetch := w.request(fetchStep)
	fetch.Step.Newest = true
	fetched, err := w.do(fetch)
	if err != nil {
		t.Fatal(err)
	}
	digest := fetched.result.GetLearned().GetImageSha256()
	for _, a := range []homelabv1.Action{saveStep, stopStep, detachStep, destroyStep} {
		req := w.recreate(a)
		req.Want.Image.Sha256, req.Want.Clone = digest, homelabv1.CloneKind_CLONE_KIND_IMPORT
		s, err := w.do(req)
		if a == stopStep || a == detachStep {
			if err != nil {
				t.Fatal(err)
			}
			continue
		}
		if !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "cannot be unpacked") || len(s.calls()) > 0 {
			t.Errorf("%s: %v, calls %v", a, err, s.calls())
		}
	}
	if w.hyp.vms[201] == nil {
		t.Error("it was destroyed")
	}
}
