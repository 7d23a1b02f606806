package plan_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/homeiac/homelab/controller/plan"
	"github.com/homeiac/homelab/controller/plan/plantest"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/spec"
)

// threeServers is a world of three servers that are well.
func threeServers(t *testing.T) *plantest.World {
	t.Helper()
	w := twoServers()
	w.Spec.Guests["k3s-3"].K3s.Role = spec.RoleServer
	for _, g := range w.Spec.Guests {
		g.OnUnhealthy = spec.PolicyRecreate
		g.Timeouts = spec.Timeouts{Boot: 5 * time.Minute, CloudInit: 10 * time.Minute, Join: 10 * time.Minute, UnwellAfter: time.Minute, Soak: 30 * time.Second}
	}
	w.Spec.Guests["k3s-2"].DataDisks = []spec.DataDisk{{Slot: "scsi1", Storage: "disks", Size: 1 << 30}}
	if !w.Apply(w.Plan(), well) || len(w.Violations) > 0 {
		t.Fatalf("not well: %v", w.Violations)
	}
	w.Now = w.Now.Add(time.Hour)
	return w
}

func stop(w *plantest.World, host string, vmid int32) *plantest.VM {
	vm := w.Hosts[host].VMs[vmid]
	vm.Power, vm.Active, vm.Booted = homelabv1.Power_POWER_STOPPED, false, false
	return vm
}

// What was right when it was planned may be wrong when its turn comes: it is
// asked again before each step that takes something away.
func TestWhatTakesAwayIsAskedForAgainRightBeforeIt(t *testing.T) {
	for _, c := range []struct {
		name   string
		before string // the verb of the step that is asked for
		happen func(*plantest.World)
		why    string // a part of it; empty: it may go on
	}{
		{"nothing happened", "stop", func(*plantest.World) {}, ""},
		{"nothing happened", "leave", func(*plantest.World) {}, ""},
		{"nothing happened", "detach", func(*plantest.World) {}, ""},
		{"nothing happened", "destroy", func(*plantest.World) {}, ""},
		{"it came back by itself", "stop", func(w *plantest.World) {
			vm := w.Hosts["pve2"].VMs[202]
			vm.Power, vm.Booted, vm.Active = homelabv1.Power_POWER_RUNNING, true, true
		}, "it is well again"},
		{"somebody started it again", "leave", func(w *plantest.World) {
			vm := w.Hosts["pve2"].VMs[202]
			vm.Power, vm.Booted, vm.Started = homelabv1.Power_POWER_RUNNING, true, w.Now
		}, "may be its own"},
		{"nobody knows since when its host is up", "destroy", func(w *plantest.World) { w.Hosts["pve2"].Uptime = 0 }, "since when pve2 is up"},
		{"another server died", "leave", func(w *plantest.World) { stop(w, "pve3", 203) }, "the brake"},
		{"another guest died", "destroy", func(w *plantest.World) { stop(w, "pve3", 203) }, "the brake"},
		{"somebody protects it", "destroy", func(w *plantest.World) { w.Hosts["pve2"].VMs[202].Protection = true }, "protection"},
		{"HA took it", "stop", func(w *plantest.World) { w.Hosts["pve2"].VMs[202].HA = true }, "Proxmox HA"},
		{"somebody took a snapshot", "destroy", func(w *plantest.World) { w.Hosts["pve2"].VMs[202].Snapshots = []string{"mine"} }, "snapshots"},
		{"the VMID is somebody else's now", "destroy", func(w *plantest.World) {
			w.Hosts["pve2"].VMs[202] = &plantest.VM{VMID: 202, Name: "photos", UUID: w.UUID(), Power: homelabv1.Power_POWER_STOPPED}
		}, "not ours"},
		{"it was made anew meanwhile", "destroy", func(w *plantest.World) {
			vm := w.Hosts["pve2"].VMs[202]
			vm.Generation, vm.Mark = 2, w.Mark("k3s-2", 202, vm.UUID, 2)
		}, "another one than was planned"},
		{"it is gone", "destroy", func(w *plantest.World) { delete(w.Hosts["pve2"].VMs, 202) }, ""},
		{"it is gone", "detach", func(w *plantest.World) { delete(w.Hosts["pve2"].VMs, 202) }, "not there any more"},
		{"its host fell silent", "destroy", func(w *plantest.World) { w.Hosts["pve2"].Off = true }, "silent"},
		{"the storage went off", "destroy", func(w *plantest.World) { w.Hosts["pve2"].Storages[0].Active = plantest.No("offline") }, "not active"},
		{"the k3s API fell silent", "leave", func(w *plantest.World) {
			w.Hosts["pve1"].VMs[201].Active, w.Hosts["pve3"].VMs[203].Active = false, false
		}, "membership unknown"},
		{"all changes were paused", "stop", func(w *plantest.World) { w.Paused = "moving house" }, "moving house"},
	} {
		t.Run(c.name+" before "+c.before, func(t *testing.T) {
			w := threeServers(t)
			stop(w, "pve2", 202)
			p := w.Plan()
			var asked *homelabv1.Step
			for _, s := range p.GetSteps() {
				if strings.HasPrefix(s.GetId(), c.before+"/") {
					asked = s
					break
				}
				if err := w.Carry(s, plantest.Well); err != nil {
					t.Fatalf("%s: %v", s.GetId(), err)
				}
			}
			if asked == nil {
				t.Fatalf("the plan has no %s: %v", c.before, p)
			}
			c.happen(w)
			why := plan.Blocked(w.Want(), w.Seen(), asked, w.Now)
			if c.why == "" && why != "" || c.why != "" && !strings.Contains(why, c.why) {
				t.Errorf("%q, want %q", why, c.why)
			}
			if len(w.Violations) > 0 {
				t.Errorf("%v", w.Violations)
			}
		})
	}
}

func TestWhatTheClusterHoldsOfAGuestIsNamedForItsRemoval(t *testing.T) {
	w := threeServers(t)
	stop(w, "pve2", 202)
	ref := plan.MemberOf(w.Want(), w.Seen(), "k3s-2")
	if ref.GetNode() != "k3s-2" || ref.GetEtcdId() != w.Members["k3s-2"].ID || !strings.HasPrefix(ref.GetEtcdName(), "k3s-2-") || ref.GetNeeded() != 2 {
		t.Errorf("%v", ref)
	}
	if ref := plan.MemberOf(w.Want(), w.Seen(), "nobody"); ref.GetNode() != "" || ref.GetEtcdId() != "" {
		t.Errorf("nobody: %v", ref)
	}
}

// A sighting goes on while somebody looks, begins anew after a gap and with
// another VM, and what cannot be seen is neither there nor gone.
func TestHistoryTellsSinceWhen(t *testing.T) {
	w := threeServers(t)
	track := func() plan.History {
		w.History = plan.Track(w.Want(), w.Seen(), w.Now)
		return w.History["k3s-2"]
	}
	since := func(h plan.History) time.Time {
		for _, s := range h {
			if s.Signal == plan.SignalSilent {
				return s.Since
			}
		}
		return time.Time{}
	}
	if at := since(track()); !at.IsZero() {
		t.Errorf("a guest that is well is silent since %s", at)
	}
	vm := w.Hosts["pve2"].VMs[202]
	vm.Mute = true
	began := w.Now
	for range 3 {
		if at := since(track()); !at.Equal(began) {
			t.Errorf("silent since %s, it began at %s", at, began)
		}
		w.Now = w.Now.Add(30 * time.Second)
	}
	w.Hosts["pve2"].Off = true
	w.Now = w.Now.Add(30 * time.Second)
	if at := since(track()); !at.Equal(began) {
		t.Errorf("a silent host took the sighting away: %s", at)
	}
	w.Hosts["pve2"].Off = false
	w.Now = w.Now.Add(time.Hour) // nobody looked
	if at := since(track()); !at.Equal(w.Now) {
		t.Errorf("after a gap it is silent since %s, not since now", at)
	}
	vm.Lock = "backup" // and may be frozen for it
	if at := since(track()); !at.IsZero() {
		t.Errorf("while it is backed up it is silent since %s", at)
	}
	vm.Lock = ""
	w.Now = w.Now.Add(time.Second)
	if at := since(track()); !at.Equal(w.Now) {
		t.Errorf("after its backup it is silent since %s, not since now", at)
	}
	vm.Mute = false
	if at := since(track()); !at.IsZero() {
		t.Errorf("it answers and is silent since %s", at)
	}
}

func TestFindingsSayWhatDoesNotAgree(t *testing.T) {
	for _, c := range []struct {
		name   string
		happen func(*plantest.World)
		kind   string
		text   string
	}{
		{"a member of nobody", func(w *plantest.World) {
			w.Members["old"] = &plantest.Member{Node: "old", VM: w.Hosts["pve1"].VMs[201], Server: true, ID: "99", Version: "v1.35.0+k3s1"}
		}, "ghost-member", "belongs to no guest"},
		{"a learner", func(w *plantest.World) { w.Members["k3s-3"].Learner = true }, "learner", "no vote yet"},
		{"another version", func(w *plantest.World) { w.Members["k3s-3"].Version = "v1.34.0+k3s1" }, "version", "v1.34.0"},
		{"a Node that takes no pods", func(w *plantest.World) { w.Members["k3s-3"].Cordoned = true }, "cordoned", "uncordon k3s-3"},
		{"two servers", func(w *plantest.World) {
			delete(w.Members, "k3s-3")
			w.Hosts["pve3"].VMs[203].Data, w.Hosts["pve3"].VMs[203].Active = false, false
		}, "two-servers", "add a third"},
		{"a stopped voter", func(w *plantest.World) { stop(w, "pve3", 203) }, "stopped-voter", "hlctl k3s remove k3s-3"},
		{"no Node", func(w *plantest.World) { w.Members["k3s-3"].NoNode = true }, "not-member", "hlctl k3s join k3s-3"},
		{"the quorum is lost", func(w *plantest.World) {
			w.Hosts["pve2"].VMs[202].Active, w.Hosts["pve3"].VMs[203].Active = false, false
		}, "unknown", "does not answer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := threeServers(t)
			if f := plan.Findings(w.Want(), w.Seen(), w.Now); len(f) > 0 {
				t.Fatalf("of a cluster that is well: %v", f)
			}
			c.happen(w)
			for _, f := range plan.Findings(w.Want(), w.Seen(), w.Now) {
				if f.Kind == c.kind && strings.Contains(f.Text, c.text) {
					return
				}
			}
			t.Errorf("no %s with %q: %v", c.kind, c.text, plan.Findings(w.Want(), w.Seen(), w.Now))
		})
	}
}

func TestServersThatWereStartedDifferentlyAreFound(t *testing.T) {
	w := threeServers(t)
	w.Spec.K3s.Endpoint = "192.168.4.79"
	seen := w.Seen()
	for host, guest := range map[string]string{"pve1": "k3s-1", "pve2": "k3s-2", "pve3": "k3s-3"} {
		k := seen.Hosts[host].Looked[guest].GetK3S()
		k.ConfigYaml = "node-name: " + guest + "\ndisable: [servicelb]\n"
		k.ServingNames = []string{"127.0.0.1", "192.168.4.79"}
	}
	if f := plan.Findings(w.Want(), seen, w.Now); len(f) > 0 {
		t.Fatalf("%v", f)
	}
	odd := seen.Hosts["pve2"].Looked["k3s-2"].GetK3S()
	odd.ConfigYaml, odd.ServingNames = "node-name: k3s-2\n", []string{"127.0.0.1"}
	f := plan.Findings(w.Want(), seen, w.Now)
	if len(f) != 2 || f[0].Kind != "certificate" || !strings.Contains(f[0].Text, "192.168.4.79") || f[1].Kind != "config" || !strings.Contains(f[1].Text, "k3s-2: not set") {
		t.Errorf("%v", f)
	}
}

// etcd takes one learner at a time, so a server that never got into the cluster is
// not made again while another one is just joining; then it is.
func TestNoServerIsMadeAnewBesideALearner(t *testing.T) {
	w := threeServers(t)
	never := w.Hosts["pve2"].VMs[202]
	delete(w.Members, "k3s-2")
	never.Data, never.Active, never.Mute = false, false, true
	r := w.Memory["k3s-2"]
	r.Joined = false
	w.Memory["k3s-2"] = r
	w.Members["k3s-3"].Learner = true
	w.Watch(10 * time.Minute)
	p := w.Plan()
	for _, s := range p.GetSteps() {
		if s.GetGuest() == "k3s-2" {
			t.Errorf("%s is planned beside a learner", s.GetId())
		}
	}
	text := ""
	for _, n := range p.GetNotes() {
		if n.GetGuest() == "k3s-2" {
			text += n.GetText()
		}
	}
	if !strings.Contains(text, "learner k3s-3") {
		t.Errorf("it is not said why k3s-2 waits: %q", text)
	}
	w.Members["k3s-3"].Learner = false
	if p = w.Plan(); !slices.Contains(stepIDs(p), "destroy/pve2/k3s-2") || !slices.Contains(stepIDs(p), "join/pve2/k3s-2") {
		t.Errorf("without a learner it is made anew: %q", stepIDs(p))
	}
}
