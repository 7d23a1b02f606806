package plan_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/homeiac/homelab/controller/plan"
	"github.com/homeiac/homelab/controller/plan/plantest"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/spec"
)

// twoServers is a world with two servers and an agent on three hosts.
func twoServers() *plantest.World {
	s := &spec.Spec{
		Name: plantest.Fleet, VMIDs: spec.VMIDRange{First: 200, Last: 299}, Networks: map[string]*spec.Network{"lan": {Name: "lan"}},
		Hosts: map[string]*spec.Host{}, Guests: map[string]*spec.Guest{}, K3s: &spec.K3s{Version: "v1.35.0+k3s1"},
		Images: map[string]*spec.Image{"noble": {Name: "noble", URL: "file:///noble.img", SHA256: "aa"}},
	}
	for i, name := range []string{"k3s-1", "k3s-2", "k3s-3"} {
		host := []string{"pve1", "pve2", "pve3"}[i]
		s.Hosts[host] = &spec.Host{
			Name: host, Enabled: true, Bridges: map[string]string{"lan": "vmbr0"},
			Storages: map[string]string{"disks": "local", "images": "local", "snippets": "local"},
		}
		s.Guests[name] = &spec.Guest{
			Name: name, Host: host, VMID: 201 + i, Image: "noble", NICs: []spec.NIC{{Network: "lan"}}, CPUs: 2, Disk: 10 << 30,
			Memory: spec.Memory{Bytes: 4 << 30}, OnBoot: true, State: spec.StateRunning, K3s: &spec.Member{Role: spec.RoleServer},
		}
	}
	s.Guests["k3s-3"].K3s.Role = spec.RoleAgent
	return plantest.New(s)
}

func well(*homelabv1.Step) plantest.Outcome { return plantest.Well }

// The package only decides: what it imports and calls cannot do anything.
func TestThePackageIsPure(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	set := token.NewFileSet()
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(set, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range f.Imports {
			path := strings.Trim(i.Path.Value, `"`)
			first, _, _ := strings.Cut(path, "/")
			switch {
			case first == "os", first == "net", first == "syscall", path == "context", path == "log/slog", path == "math/rand", path == "sync",
				strings.Contains(path, "grpc"), strings.HasPrefix(path, "github.com/homeiac/homelab/controller/"):
				t.Errorf("%s imports %s", name, path)
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				t.Errorf("%s starts a goroutine", set.Position(n.Pos()))
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && (n.Sel.Name == "Now" || n.Sel.Name == "Since" || n.Sel.Name == "Sleep") {
					t.Errorf("%s calls time.%s", set.Position(n.Pos()), n.Sel.Name)
				}
			}
			return true
		})
	}
}

func TestOneApplyMakesTheClusterAndTheSecondDoesNothing(t *testing.T) {
	w := twoServers()
	first := w.Plan()
	if c := plan.Summarise(first); c.Create != 3 || c.Guests != 3 || c.Steps != 15 || c.Partial() {
		t.Errorf("first plan: %+v", c)
	}
	if !w.Apply(first, well) || len(w.Violations) > 0 {
		t.Fatalf("violations: %v", w.Violations)
	}
	if c := plan.Summarise(w.Plan()); c != (plan.Count{Unchanged: 3}) {
		t.Errorf("second plan: %+v", c)
	}
	for _, s := range plan.Survey(w.Want(), w.Seen(), w.Now) {
		if s.Health != plan.Healthy || s.Reason != "" || s.Situation != plan.Booted || s.VM == nil || s.Generation != 1 {
			t.Errorf("%s: %s (%s), %s", s.Name, s.Health, s.Reason, s.Situation)
		}
	}
	c := plan.ClusterOf(w.Want(), w.Seen())
	if c.Voters != 2 || c.Healthy != 2 || c.Quorum != 2 || c.Node("k3s-3") == nil || c.Member("k3s-2", nil) == nil || c.Member("k3s", nil) != nil {
		t.Errorf("cluster: %+v", c)
	}
}

func TestHealthSaysHowAGuestIs(t *testing.T) {
	for _, c := range []struct {
		name   string
		happen func(*plantest.World)
		health plan.Health
		reason string // a part of it
	}{
		{"well", func(*plantest.World) {}, plan.Healthy, ""},
		{"host off", func(w *plantest.World) { w.Hosts["pve3"].Off = true }, plan.Unknown, "silent since 13:58 (4 min)"},
		{"gone", func(w *plantest.World) { delete(w.Hosts["pve3"].VMs, 203) }, plan.Unknown, plan.Absence},
		{"stopped", func(w *plantest.World) { w.Hosts["pve3"].VMs[203].Power = homelabv1.Power_POWER_STOPPED }, plan.Unwell, "stopped"},
		{"paused", func(w *plantest.World) { w.Hosts["pve3"].VMs[203].Power = homelabv1.Power_POWER_PAUSED }, plan.Unwell, "paused"},
		{"mute", func(w *plantest.World) { w.Hosts["pve3"].VMs[203].Mute = true }, plan.Unwell, "mute"},
		{"mute on a host just up", func(w *plantest.World) { w.Hosts["pve3"].VMs[203].Mute = true; w.Hosts["pve3"].Uptime = 60e9 }, plan.OnItsWay, "SSH"},
		{"k3s down", func(w *plantest.World) { w.Hosts["pve3"].VMs[203].Active = false }, plan.Unwell, "k3s does not run"},
		{"API down", func(w *plantest.World) { w.Hosts["pve2"].VMs[202].Active = false }, plan.Unknown, "membership unknown"},
		{"old version", func(w *plantest.World) { w.Members["k3s-3"].Version = "v1.34.0+k3s1" }, plan.Unwell, "v1.34.0"},
		{"standby", func(w *plantest.World) {
			w.Spec.Guests["k3s-3"].State = spec.StateStopped
			w.Hosts["pve3"].VMs[203].Power = homelabv1.Power_POWER_STOPPED
		}, plan.Standby, ""},
		{"somebody else's", func(w *plantest.World) { w.Hosts["pve3"].VMs[203].Mark = "" }, plan.Unknown, "not"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := twoServers()
			w.Apply(w.Plan(), well)
			c.happen(w)
			s := plan.Survey(w.Want(), w.Seen(), w.Now)[2]
			if s.Health != c.health || !strings.Contains(s.Reason, c.reason) || c.reason == "" && s.Reason != "" {
				t.Errorf("%s (%s), want %s (…%s…)", s.Health, s.Reason, c.health, c.reason)
			}
		})
	}
}

func TestAnInitIsAskedForAgainRightBeforeIt(t *testing.T) {
	w := twoServers()
	blocked := func() string { return plan.InitBlocked(w.Want(), w.Seen(), nil, w.Now) }
	if why := blocked(); why != "" {
		t.Errorf("nothing is there, and a cluster may not be started: %s", why)
	}
	vm := w.Make("k3s-2", 202)
	vm.Power = homelabv1.Power_POWER_RUNNING
	w.Hosts["pve2"].Steps = []*homelabv1.StepInFlight{{Step: "boot/pve2/k3s-2", Guest: "k3s-2"}}
	if why := blocked(); why != "" {
		t.Errorf("k3s-2 is at its first boot, and a cluster may not be started: %s", why)
	}
	w.Memory["k3s-2"] = plan.Remembered{Host: "pve2", VMID: 202, UUID: vm.UUID, Generation: 1} // recovered from its mark
	if why := blocked(); !strings.Contains(why, "k3s-2") {
		t.Errorf("nobody knows what k3s-2 holds: %q", why)
	}
	w.Hosts["pve2"].Steps = nil
	w.Run(vm)
	if why := blocked(); why != "" {
		t.Errorf("k3s-2 was looked into: %s", why)
	}
	vm.Data = true
	if why := blocked(); !strings.Contains(why, "k3s was seen on k3s-2") {
		t.Errorf("k3s-2 holds data: %q", why)
	}
	vm.Data = false
	w.Hosts["pve1"].Off = true
	if why := blocked(); !strings.Contains(why, "pve1") {
		t.Errorf("pve1 is silent: %q", why)
	}
}

func TestTargetsAreTheRunningGuestsOfOurs(t *testing.T) {
	w := twoServers()
	w.Apply(w.Plan(), well)
	clear(w.Memory) // known by their marks alone
	w.Hosts["pve1"].VMs[201].Power = homelabv1.Power_POWER_STOPPED
	w.Hosts["pve3"].VMs[203].UUID = "another" // a clone's
	targets := plan.Targets(w.Want(), w.Seen(), w.Now)
	if len(targets) != 1 || targets[0].Guest != "k3s-2" || targets[0].Host != "pve2" || targets[0].VM.GetVmid() != 202 || targets[0].Generation != 1 {
		t.Errorf("%+v", targets)
	}
}

func TestSharesOfMemoryAreResolvedOnce(t *testing.T) {
	w := twoServers()
	w.Spec.Guests["k3s-1"].Memory = spec.Memory{Percent: 50}
	w.Spec.Hosts["pve1"].Reserve.Memory = 4 << 30
	sizes := plan.MemorySizes(w.Want(), w.Seen(), w.Now)
	if sizes["k3s-1"] != 30<<30 || sizes["k3s-2"] != 4<<30 {
		t.Errorf("%v", sizes)
	}
	w.Memory["k3s-1"] = plan.Remembered{Host: "pve1", VMID: 201, MemoryBytes: 8 << 30}
	if got := plan.MemorySizes(w.Want(), w.Seen(), w.Now)["k3s-1"]; got != 8<<30 {
		t.Errorf("%d", got)
	}
}

// What is planned from must stay as it was: others read it at the same time.
func TestMakeChangesNothingThatItIsGiven(t *testing.T) {
	w := twoServers()
	w.Apply(w.Plan(), func(s *homelabv1.Step) plantest.Outcome {
		if s.GetAction() == homelabv1.Action_ACTION_JOIN {
			return plantest.Killed
		}
		return plantest.Well
	})
	want, seen := w.Want(), w.Seen()
	before := map[string]proto.Message{}
	for name, h := range seen.Hosts {
		before[name] = proto.Clone(h.Observation)
		for guest, l := range h.Looked {
			before[name+"/"+guest] = proto.Clone(l)
		}
	}
	p := plan.Make(want, seen, w.Now)
	for _, s := range p.GetSteps() { // nor is anything of it in the plan
		s.After = append(s.After, "x")
		s.Reason = "x"
	}
	for name, h := range seen.Hosts {
		if !proto.Equal(before[name], h.Observation) {
			t.Errorf("what was seen of %s has changed", name)
		}
		for guest, l := range h.Looked {
			if !proto.Equal(before[name+"/"+guest], l) {
				t.Errorf("the look into %s has changed", guest)
			}
		}
	}
}

func TestMembersAreKnownByNameOrAddress(t *testing.T) {
	look := &homelabv1.K3SLook{Etcd: &homelabv1.EtcdView{Known: plantest.Yes(), Members: []*homelabv1.EtcdMember{
		{Id: "1", Name: "k3s-1-0a1b2c3d"},
		{Id: "2", Name: "k3s-1-gpu-0a1b2c3d"},
		{Id: "3", PeerUrls: []string{"https://10.0.0.3:2380"}},
		{Id: "4", Name: "k3s-4-11111111", Learner: true},
		{Id: "5", Name: "k3s-4-22222222"},
		{Id: "6", PeerUrls: []string{"https://[fd00::6]:2380"}},
	}}}
	w := twoServers()
	c := plan.ClusterOf(w.Want(), plan.Seen{External: look})
	for _, x := range []struct{ node, address, id string }{
		{"k3s-1", "", "1"}, {"k3s-1-gpu", "", "2"}, {"k3s", "", ""}, {"new", "10.0.0.3", "3"}, {"new", "10.0.0.30", ""}, {"new", "fd00::6", "6"}, {"k3s-4", "", "5"},
	} {
		if got := c.Member(x.node, []string{x.address}); got.GetId() != x.id {
			t.Errorf("member of %s at %q: %v, want %q", x.node, x.address, got, x.id)
		}
	}
}
