package plan_test

import (
	"flag"
	"fmt"
	"math/rand"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	"github.com/homeiac/homelab/controller/plan"
	"github.com/homeiac/homelab/controller/plan/plantest"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/spec"
)

// worlds is how many random worlds a rule is held against.
const worlds = 10000

// check runs a property over n random worlds, over fewer under the race
// detector, which finds nothing in what starts no goroutine: make test runs all
// without it too. Over as many as -rapid.checks says when it is given.
func check(t *testing.T, n int, property func(*rapid.T)) {
	t.Helper()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "rapid.checks" })
	if !given {
		if err := flag.Lookup("rapid.checks").Value.Set(strconv.Itoa(n / slower)); err != nil {
			t.Fatal(err)
		}
	}
	rapid.Check(t, property)
}

// drawSpec draws a small Spec.
func drawSpec(t *rapid.T) *spec.Spec {
	s := &spec.Spec{
		Name: plantest.Fleet, VMIDs: spec.VMIDRange{First: 200, Last: 212},
		Networks: map[string]*spec.Network{"lan": {Name: "lan"}},
		Hosts:    map[string]*spec.Host{}, Guests: map[string]*spec.Guest{},
		Images:    map[string]*spec.Image{"noble": {Name: "noble", URL: "file:///noble.img", SHA256: strings.Repeat("ab", 32)}},
		K3s:       &spec.K3s{Version: "v1.35.0+k3s1"},
		Templates: rapid.SampledFrom([]spec.VMIDRange{{}, {First: 210, Last: 214}, {First: 500, Last: 509}}).Draw(t, "templates"),
	}
	if rapid.IntRange(0, 3).Draw(t, "protect") == 0 {
		s.Protect = []spec.VMIDRange{{First: 201, Last: 202}}
	}
	hosts := rapid.IntRange(1, 4).Draw(t, "hosts")
	for i := range hosts {
		name := fmt.Sprintf("pve%d", i+1)
		s.Hosts[name] = &spec.Host{
			Name: name, Enabled: rapid.IntRange(0, 9).Draw(t, "enabled") > 0, Bridges: map[string]string{"lan": "vmbr0"},
			Storages: map[string]string{"disks": "local", "images": "local", "snippets": "local"},
		}
	}
	vmid := 205
	for i := range rapid.IntRange(1, 5).Draw(t, "guests") {
		g := &spec.Guest{
			Name: fmt.Sprintf("k3s-%d", i+1), Host: fmt.Sprintf("pve%d", rapid.IntRange(1, hosts).Draw(t, "on")),
			Image: "noble", NICs: []spec.NIC{{Network: "lan"}}, CPUs: 2, Disk: 10 << 30, OnBoot: rapid.Bool().Draw(t, "onboot"),
			Memory: spec.Memory{Bytes: int64(rapid.IntRange(1, 40).Draw(t, "GiB")) << 30}, State: spec.StateRunning,
		}
		switch rapid.IntRange(0, 5).Draw(t, "role") {
		case 0:
		case 1, 2:
			g.K3s = &spec.Member{Role: spec.RoleAgent}
		default:
			g.K3s = &spec.Member{Role: spec.RoleServer}
		}
		if rapid.IntRange(0, 2).Draw(t, "vmid") == 0 {
			g.VMID = vmid
			vmid++
		}
		if rapid.IntRange(0, 7).Draw(t, "standby") == 0 {
			g.State = spec.StateStopped
		}
		if rapid.IntRange(0, 5).Draw(t, "share") == 0 {
			g.Memory = spec.Memory{Percent: 30}
		}
		if rapid.IntRange(0, 3).Draw(t, "verify") == 0 {
			g.Verify = []string{"true"}
		}
		g.OnUnhealthy = rapid.SampledFrom([]spec.Policy{spec.PolicyRecreate, spec.PolicyRecreate, spec.PolicyRestart, spec.PolicyReport}).Draw(t, "policy")
		g.Timeouts = spec.Timeouts{Boot: 5 * time.Minute, CloudInit: 10 * time.Minute, Join: 10 * time.Minute, UnwellAfter: time.Minute, Soak: 30 * time.Second}
		g.Clone = rapid.SampledFrom([]spec.Clone{spec.CloneAuto, spec.CloneAuto, spec.CloneLinked, spec.CloneFull, spec.CloneOff}).Draw(t, "clone")
		if rapid.IntRange(0, 2).Draw(t, "data") == 0 {
			g.DataDisks = []spec.DataDisk{{Slot: "scsi1", Storage: "disks", Size: 1 << 30}, {Slot: "scsi2", Storage: "disks", Size: 1 << 30}}
		}
		s.Guests[g.Name] = g
	}
	return s
}

// drawWorld draws a world with a past: plans that were carried out more or less
// well, and accidents in between.
func drawWorld(t *rapid.T, accidents bool) *plantest.World {
	w := plantest.New(drawSpec(t))
	alone := rapid.IntRange(0, 3).Draw(t, "alone") == 0
	for _, name := range w.Spec.HostNames() {
		if alone {
			w.Hosts[name].PVE = ""
		}
	}
	for range rapid.IntRange(0, 3).Draw(t, "past") {
		if accidents {
			accident(t, w)
		}
		apply(t, w, rapid.IntRange(0, 2).Draw(t, "luck"))
	}
	if accidents {
		for range rapid.IntRange(0, 3).Draw(t, "accidents") {
			accident(t, w)
		}
	}
	return w
}

// apply plans and carries out; with luck 0 all ends well.
func apply(t *rapid.T, w *plantest.World, luck int) bool {
	w.Watch(rapid.SampledFrom([]time.Duration{0, 0, 2 * time.Minute, 11 * time.Minute}).Draw(t, "watched"))
	return w.Apply(w.Plan(), func(*homelabv1.Step) plantest.Outcome {
		if luck == 0 || rapid.IntRange(0, 4).Draw(t, "goes") > 0 {
			return plantest.Well
		}
		return plantest.Outcome(rapid.IntRange(0, plantest.Outcomes-1).Draw(t, "how"))
	})
}

func accident(t *rapid.T, w *plantest.World) {
	names := w.Spec.HostNames()
	h := w.Hosts[rapid.SampledFrom(names).Draw(t, "host")]
	var vm *plantest.VM
	if len(h.VMs) > 0 {
		var vmids []int32
		for vmid := range h.VMs {
			vmids = append(vmids, vmid)
		}
		slices.Sort(vmids)
		vm = h.VMs[rapid.SampledFrom(vmids).Draw(t, "vm")]
	}
	free := int32(rapid.IntRange(199, 213).Draw(t, "number"))
	for _, other := range w.Hosts { // Proxmox itself keeps VMIDs apart, and so do people
		if other.VMs[free] != nil || slices.Contains(other.Containers, free) {
			free += 100
		}
	}
	kind := rapid.IntRange(0, 20).Draw(t, "accident")
	switch {
	case kind == 0:
		h.Off = !h.Off
	case kind == 1:
		h.AgentGone = !h.AgentGone
	case kind == 2:
		h.PVEGone = !h.PVEGone
	case kind == 3:
		h.Lost = !h.Lost
	case kind == 4:
		h.RootPercent = 97
	case kind == 5:
		h.Clock = 3 * time.Second
	case kind == 6:
		h.Paused = !h.Paused
	case kind == 7:
		name := rapid.SampledFrom([]string{"web", "k3s-1", "k3s-2"}).Draw(t, "name")
		h.VMs[free] = &plantest.VM{VMID: free, Name: name, UUID: w.UUID(), Power: homelabv1.Power_POWER_RUNNING, Memory: 1 << 30}
	case kind == 8:
		h.Containers = append(h.Containers, free)
	case kind == 9:
		h.Leftovers = append(h.Leftovers, free)
	case kind == 10: // the controller's store is lost
		clear(w.Memory)
		w.Cluster = nil
	case kind == 11:
		h.Uptime = 2 * time.Minute
	case vm == nil:
	case kind == 12:
		vm.Power, vm.Active, vm.Booted = homelabv1.Power_POWER_STOPPED, false, false
	case kind == 13:
		vm.Mute = !vm.Mute
	case kind == 18:
		vm.Power, vm.QEMU, vm.Active = homelabv1.Power_POWER_PAUSED, rapid.SampledFrom([]string{"paused", "io-error", "guest-panicked"}).Draw(t, "qemu"), false
	case kind == 19:
		vm.Snapshots = append(vm.Snapshots, "before")
	case kind == 20:
		vm.Active = false
	case kind == 14:
		vm.Lock = "backup"
	case kind == 15:
		vm.HA = true
	case kind == 16:
		vm.Protection = true
	case kind == 17: // somebody clones it
		h.VMs[free] = &plantest.VM{VMID: free, Name: "Copy-of-" + vm.Name, Mark: vm.Mark, UUID: w.UUID(), Power: homelabv1.Power_POWER_RUNNING}
	}
}

// Rules 2, 3 and 10 and the joining half of 4, held against what truly is: no
// step ever touches what is not ours, makes a second guest or VMID, starts a
// second cluster, joins without quorum or beside a learner, or runs where it
// must not; whatever fails in between, whoever is silent, whatever is forgotten.
func TestNoPlanEverDoesWhatMustNeverHappen(t *testing.T) {
	check(t, worlds, func(t *rapid.T) {
		w := drawWorld(t, true)
		apply(t, w, 1)
		if len(w.Violations) > 0 {
			t.Fatalf("%s", strings.Join(w.Violations, "\n"))
		}
	})
}

// Every plan can be carried out as it is, and says something of every guest.
func TestPlansAreWellFormed(t *testing.T) {
	check(t, worlds/5, func(t *rapid.T) {
		w := drawWorld(t, true)
		p := w.Plan()
		before, told, server := map[string]bool{}, map[string]bool{}, ""
		inits := 0
		for _, s := range p.GetSteps() {
			if before[s.GetId()] {
				t.Fatalf("step %s is there twice", s.GetId())
			}
			for _, id := range s.GetAfter() {
				if !before[id] {
					t.Fatalf("step %s waits for %s, which does not come before it", s.GetId(), id)
				}
			}
			before[s.GetId()], told[s.GetGuest()] = true, true
			if s.GetAction() == homelabv1.Action_ACTION_INIT {
				inits++
			}
			if s.GetAction() == homelabv1.Action_ACTION_INIT || s.GetAction() == homelabv1.Action_ACTION_JOIN && w.Spec.Guests[s.GetGuest()].IsServer() {
				if server != "" && !slices.Contains(s.GetAfter(), server) {
					t.Fatalf("server joins %s and %s are beside each other", server, s.GetId())
				}
				server = s.GetId()
			}
		}
		for _, n := range p.GetNotes() {
			told[n.GetGuest()] = true
			if n.GetText() == "" || n.GetKind() == homelabv1.NoteKind_NOTE_KIND_UNSPECIFIED {
				t.Fatalf("note %v says nothing", n)
			}
		}
		for _, name := range w.Spec.GuestNames() {
			if !told[name] {
				t.Fatalf("nothing is said of %s", name)
			}
		}
		if inits > 1 {
			t.Fatalf("%d clusters are started", inits)
		}
	})
}

// Rule 1: to know less never means to do more.
func TestUnknownNeverAddsAStep(t *testing.T) {
	check(t, worlds, func(t *rapid.T) {
		w := drawWorld(t, true)
		seen := w.Seen()
		w.History = plan.Track(w.Want(), seen, w.Now)
		base := deeds(plan.Make(w.Want(), seen, w.Now))
		what := forget(t, w, seen)
		for id := range deeds(plan.Make(w.Want(), seen, w.Now)) {
			if !base[id] {
				t.Fatalf("without knowing %s, step %s is added to %v\n%s\n---\n%s", what, id, base, render(plan.Make(w.Want(), w.Seen(), w.Now)), render(plan.Make(w.Want(), seen, w.Now)))
			}
		}
	})
}

// deeds are the steps that change something, by what they do to whom. Waiting,
// saving and the Spec's own checks do not; whether a server starts or joins the
// cluster is one deed, and through whom another one leaves it makes none.
func deeds(p *homelabv1.Plan) map[string]bool {
	ids := map[string]bool{}
	for _, s := range p.GetSteps() {
		switch s.GetAction() {
		case homelabv1.Action_ACTION_BOOT, homelabv1.Action_ACTION_VERIFY, homelabv1.Action_ACTION_SAVE, homelabv1.Action_ACTION_SNAPSHOT, homelabv1.Action_ACTION_SOAK:
		case homelabv1.Action_ACTION_LEAVE, homelabv1.Action_ACTION_DRAIN:
			ids[s.GetAction().String()+"/"+s.GetGuest()] = true
		default:
			ids[strings.Replace(s.GetId(), "init/", "join/", 1)] = true
		}
	}
	return ids
}

// forget makes one thing unknown: a host, a VM's power, a look or any Fact.
func forget(t *rapid.T, w *plantest.World, seen plan.Seen) string {
	name := rapid.SampledFrom(w.Spec.HostNames()).Draw(t, "forget")
	h := seen.Hosts[name]
	if h.Observation == nil {
		return "nothing"
	}
	if rapid.IntRange(0, 5).Draw(t, "silent") == 0 {
		seen.Hosts[name] = plan.Host{State: homelabv1.HostState_HOST_STATE_SILENT, Observation: h.Observation}
		return "host " + name
	}
	h.Observation = proto.Clone(h.Observation).(*homelabv1.Observation)
	var facts []*homelabv1.Fact
	var where []string
	collect(h.Observation.ProtoReflect(), name, &facts, &where)
	looked := map[string]*homelabv1.GuestLook{}
	for _, g := range w.Spec.GuestNames() {
		if l := h.Looked[g]; l != nil {
			looked[g] = proto.Clone(l).(*homelabv1.GuestLook)
			collect(looked[g].ProtoReflect(), g, &facts, &where)
		}
	}
	h.Looked = looked
	seen.Hosts[name] = h
	n := len(facts)
	i := rapid.IntRange(0, n+len(h.Observation.GetVms())+len(looked)-1).Draw(t, "fact")
	switch {
	case i < n:
		facts[i].Truth = rapid.SampledFrom([]homelabv1.Truth{homelabv1.Truth_TRUTH_UNKNOWN, homelabv1.Truth_TRUTH_UNSPECIFIED}).Draw(t, "truth")
		return where[i]
	case i < n+len(h.Observation.GetVms()):
		vm := h.Observation.GetVms()[i-n]
		vm.Power = homelabv1.Power_POWER_UNSPECIFIED
		return fmt.Sprintf("power of VM %d", vm.GetVmid())
	}
	for _, g := range w.Spec.GuestNames() {
		if looked[g] != nil {
			delete(looked, g)
			return "look into " + g
		}
	}
	return "nothing"
}

// collect gathers every Fact of a message.
func collect(m protoreflect.Message, path string, facts *[]*homelabv1.Fact, where *[]string) {
	if f, ok := m.Interface().(*homelabv1.Fact); ok {
		*facts, *where = append(*facts, f), append(*where, path)
		return
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if fd.Kind() != protoreflect.MessageKind || !m.Has(fd) {
			continue
		}
		path := path + "." + string(fd.Name())
		if fd.IsList() {
			for j := range m.Get(fd).List().Len() {
				collect(m.Get(fd).List().Get(j).Message(), fmt.Sprintf("%s[%d]", path, j), facts, where)
			}
			continue
		}
		collect(m.Get(fd).Message(), path, facts, where)
	}
}

// The same input gives the same plan, in whatever order it comes.
func TestTheOrderOfWhatWasSeenDoesNotMatter(t *testing.T) {
	check(t, worlds/5, func(t *rapid.T) {
		w := drawWorld(t, true)
		seen := w.Seen()
		want := w.Want()
		a := plan.Make(want, seen, w.Now)
		r := rand.New(rand.NewSource(rapid.Int64().Draw(t, "seed")))
		for name, h := range seen.Hosts {
			if h.Observation == nil {
				continue
			}
			o := proto.Clone(h.Observation).(*homelabv1.Observation)
			shuffle(r, o.Vms)
			shuffle(r, o.Bridges)
			shuffle(r, o.Storages)
			shuffle(r, o.ClusterVmids)
			shuffle(r, o.PveNodes)
			shuffle(r, o.Intents)
			shuffle(r, o.LeftoverVmids)
			h.Observation = o
			seen.Hosts[name] = h
		}
		if diff := cmp.Diff(a, plan.Make(want, seen, w.Now), protocmp.Transform()); diff != "" {
			t.Fatalf("another order, another plan (-before +after):\n%s", diff)
		}
	})
}

func shuffle[T any](r *rand.Rand, list []T) {
	r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
}

func stepIDs(p *homelabv1.Plan) []string {
	ids := []string{}
	for _, s := range p.GetSteps() {
		ids = append(ids, s.GetId())
	}
	return ids
}

// In a fleet without accidents one apply does it all, and what failed or was
// killed on the way is made good by the next ones.
func TestACarriedOutPlanLeavesAnEmptyPlan(t *testing.T) {
	check(t, worlds, func(t *rapid.T) {
		w := drawWorld(t, false)
		rounds := 1
		if len(w.Memory) > 0 {
			rounds = 3
		}
		for range rounds {
			if !apply(t, w, 0) && len(w.Violations) > 0 {
				t.Fatalf("%s", strings.Join(w.Violations, "\n"))
			}
		}
		if p := w.Plan(); len(p.GetSteps()) > 0 {
			t.Fatalf("still to do after %d rounds: %v", rounds, p)
		}
		cluster := plan.ClusterOf(w.Want(), w.Seen())
		if cluster.Healthy != cluster.Voters {
			t.Fatalf("%d of %d voters are healthy", cluster.Healthy, cluster.Voters)
		}
	})
}

// The digest changes with what is done and with the Spec, and with nothing else.
func TestTheDigestIgnoresTimesAndReasons(t *testing.T) {
	check(t, worlds/5, func(t *rapid.T) {
		w := drawWorld(t, true)
		a := w.Plan()
		w.Now = w.Now.Add(90 * time.Second)
		b := plan.Make(w.Want(), w.Seen(), w.Now)
		// With time evidence ripens and back-offs end: that is another plan.
		if cmp.Equal(stepIDs(a), stepIDs(b)) != (a.GetDigest() == b.GetDigest()) {
			t.Fatalf("the digest changes with time")
		}
		want := w.Want()
		want.SpecDigest = "another"
		if plan.Make(want, w.Seen(), w.Now).GetDigest() == a.GetDigest() {
			t.Fatal("the digest does not cover the Spec")
		}
	})
}
