package plan_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/homeiac/homelab/controller/plan"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/mark"
	"github.com/homeiac/homelab/internal/spec"
)

var update = flag.Bool("update", false, "write the plans of testdata anew")

// Each file in testdata is a story: what was wanted and seen, and the plan. A
// seen/HOST.yaml is laid over a healthy host, a VM with `guest` over the VM of
// ours that the Spec would make, a look over a guest that booted well.
func TestGoldenPlans(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden plans: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			story := tell(t, archive)
			p := plan.Make(story.want, story.seen, story.now)
			got := render(p)
			for _, secret := range story.addresses() {
				for _, s := range p.GetSteps() {
					if strings.Contains(s.String(), secret) {
						t.Errorf("step %s holds the address %s", s.GetId(), secret)
					}
				}
			}
			for i, f := range archive.Files {
				if f.Name != "plan" {
					continue
				}
				if *update {
					archive.Files[i].Data = []byte(got)
					if err := os.WriteFile(file, txtar.Format(archive), 0o600); err != nil {
						t.Fatal(err)
					}
					return
				}
				if diff := cmp.Diff(string(f.Data), got); diff != "" {
					t.Errorf("plan (-golden +now):\n%s", diff)
				}
				return
			}
			t.Fatal("the file has no -- plan --")
		})
	}
}

func render(p *homelabv1.Plan) string {
	var b strings.Builder
	for _, s := range p.GetSteps() {
		b.WriteString(s.GetId())
		if s.GetVmid() != 0 {
			fmt.Fprintf(&b, "  VM %d", s.GetVmid())
			if s.GetGeneration() != 1 {
				fmt.Fprintf(&b, " generation %d", s.GetGeneration())
			}
		}
		fmt.Fprintf(&b, "\n    %s\n", s.GetReason())
		if s.GetDestroys() {
			b.WriteString("    destroys\n")
		}
		if s.GetImageSha256() != "" && s.GetAction() != homelabv1.Action_ACTION_CREATE {
			fmt.Fprintf(&b, "    sha256 %s\n", s.GetImageSha256()[:12])
		}
		if s.GetHolderVmid() != 0 {
			fmt.Fprintf(&b, "    %s, holder VM %d\n", strings.Join(s.GetSlots(), " "), s.GetHolderVmid())
		} else if len(s.GetSlots()) > 0 {
			fmt.Fprintf(&b, "    but %s\n", strings.Join(s.GetSlots(), " "))
		}
		for _, after := range s.GetAfter() {
			fmt.Fprintf(&b, "    after %s\n", after)
		}
	}
	if len(p.GetByName()) > 0 {
		fmt.Fprintf(&b, "to be confirmed by name: %s\n", strings.Join(p.GetByName(), ", "))
	}
	for _, n := range p.GetNotes() {
		kind := strings.ToLower(strings.TrimPrefix(n.GetKind().String(), "NOTE_KIND_"))
		subject := n.GetGuest()
		if n.GetHost() != "" {
			subject = strings.TrimSpace(subject + " on " + n.GetHost())
		}
		if n.GetUntil() != nil {
			kind += " until " + n.GetUntil().AsTime().Format("15:04:05")
		}
		fmt.Fprintf(&b, "%s: %s\n    %s\n", kind, subject, strings.ReplaceAll(n.GetText(), "\n", "\n    "))
	}
	return b.String()
}

type story struct {
	want plan.Want
	seen plan.Seen
	now  time.Time
	key  mark.Key
}

func (s *story) addresses() []string {
	var all []string
	for _, g := range s.want.Spec.Guests {
		for _, nic := range g.NICs {
			if nic.Address.IsValid() {
				all = append(all, nic.Address.Addr().String())
			}
		}
	}
	return all
}

func tell(t *testing.T, archive *txtar.Archive) *story {
	t.Helper()
	key, err := mark.NewKey(bytes.Repeat([]byte{9}, mark.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	s := &story{now: time.Date(2026, 11, 22, 14, 2, 0, 0, time.UTC), key: key}
	files := map[string][]byte{}
	for _, f := range archive.Files {
		files[f.Name] = f.Data
	}
	parsed, faults := spec.Parse("homelab.yaml", files["homelab.yaml"])
	if err := faults.Err(); err != nil {
		t.Fatal(err)
	}
	s.want = plan.Want{Spec: parsed, Fleet: parsed.Name, Guests: map[string]plan.Remembered{}, VerifyMark: plan.VerifyWith(key, parsed.Name)}
	s.seen = plan.Seen{Hosts: map[string]plan.Host{}}
	s.remember(t, files["remembered.yaml"])
	s.asked(t, files["asked.yaml"], files["history.yaml"])
	var cluster any
	read(t, files["cluster.yaml"], &cluster)
	if external, ok := files["existing.yaml"]; ok {
		var node any
		read(t, external, &node)
		s.seen.External = &homelabv1.K3SLook{}
		fill(t, s.seen.External.ProtoReflect(), node)
	}
	for _, name := range parsed.HostNames() {
		text, ok := files["seen/"+name+".yaml"]
		if !ok {
			text = []byte("{}")
		}
		s.see(t, name, text, cluster)
	}
	return s
}

// remember reads remembered.yaml.
func (s *story) remember(t *testing.T, text []byte) {
	t.Helper()
	var r struct {
		Paused    string
		LastVMIDs map[string][]int32 `yaml:"lastVMIDs"`
		Cluster   *struct {
			First string
			CA    string `yaml:"ca"`
		}
		Guests map[string]struct {
			Host       string
			VMID       int32
			Generation int32
			Machine    string
			Joined     bool
			Made       bool
			Adopted    bool
			Unverified bool
			Memory     int64
			Ready      string
			Began      string
			Failures   int
			Tried      []string
			Resting    bool
			Recreating bool
			Holder     int32
			Data       []string
			Node       string
			Role       string
			Image      string // NAME or NAME DIGEST
		}
		Images map[string]string // the digest that a name stands for
	}
	read(t, text, &r)
	s.want.Paused, s.want.LastVMIDs, s.want.Images = r.Paused, r.LastVMIDs, map[string]plan.Image{}
	for name, digest := range r.Images {
		s.want.Images[name] = plan.Image{Source: plan.SourceOf(s.want.Spec.Images[name]), SHA256: digest, Bytes: 600 << 20, VirtualBytes: 3584 << 20}
	}
	if r.Cluster != nil {
		s.want.Cluster = &homelabv1.ClusterRecord{FirstGuest: r.Cluster.First, CaHash: r.Cluster.CA}
	}
	for name, g := range r.Guests {
		s.want.Guests[name] = plan.Remembered{
			Name: name, Host: g.Host, VMID: g.VMID, UUID: uuidOf(g.VMID), Generation: max(g.Generation, 1), MachineID: g.Machine,
			Joined: g.Joined, Made: g.Made, Unverified: g.Unverified, MemoryBytes: g.Memory,
			ReadyAt: s.at(t, g.Ready), Began: s.at(t, g.Began), Failures: g.Failures, Resting: g.Resting, Recreating: g.Recreating,
			NodeName: g.Node, Role: spec.Role(g.Role),
		}
		r := s.want.Guests[name]
		r.Image, r.ImageSHA256, _ = strings.Cut(g.Image, " ")
		if g.Generation == 0 && g.VMID != 0 && g.Adopted {
			r.Generation = 0
		}
		if g.Holder != 0 {
			r.Holder = plan.Holder{VMID: g.Holder, UUID: uuidOf(g.Holder)}
		}
		for _, slot := range g.Data {
			r.DataDisks = append(r.DataDisks, &homelabv1.Disk{Slot: slot, Storage: "local", SizeBytes: 1 << 30})
		}
		for _, action := range g.Tried {
			r.Attempts = append(r.Attempts, plan.Attempt{Action: homelabv1.Action(homelabv1.Action_value["ACTION_"+strings.ToUpper(action)])})
		}
		s.want.Guests[name] = r
	}
}

// at is a time of the story's day, as 13:58; zero for none.
func (s *story) at(t *testing.T, text string) time.Time {
	t.Helper()
	if text == "" {
		return time.Time{}
	}
	clock, err := time.Parse("15:04:05", text+":00"[max(0, len(text)-5):])
	if err != nil {
		t.Fatal(err)
	}
	return time.Date(2026, 11, 22, clock.Hour(), clock.Minute(), clock.Second(), 0, time.UTC)
}

// asked reads asked.yaml, what a person confirmed or asked for by name, and
// history.yaml, since when signals were seen.
func (s *story) asked(t *testing.T, asked, history []byte) {
	t.Helper()
	var a struct {
		Destroy   []string
		Operation *plan.Operation
		Heal      bool
	}
	read(t, asked, &a)
	s.want.Operation, s.want.HealOnly, s.want.Destroy = a.Operation, a.Heal, map[string]bool{}
	for _, name := range a.Destroy {
		s.want.Destroy[name] = true
	}
	var h map[string][]struct{ Signal, Since, Last string }
	read(t, history, &h)
	s.want.History = map[string]plan.History{}
	for name, list := range h {
		for _, x := range list {
			last := s.now
			if x.Last != "" {
				last = s.at(t, x.Last)
			}
			s.want.History[name] = append(s.want.History[name], plan.Sighting{
				Signal: plan.Signal(x.Signal), Since: s.at(t, x.Since), Last: last, UUID: uuidOf(int32(s.want.Spec.Guests[name].VMID)),
			})
		}
	}
}

func uuidOf(vmid int32) string { return fmt.Sprintf("11111111-0000-4000-8000-%012d", vmid) }

// see reads seen/HOST.yaml.
func (s *story) see(t *testing.T, name string, text []byte, cluster any) {
	t.Helper()
	var r struct {
		State       string
		Since       string
		Reason      string
		Clock       time.Duration
		Observation any
		VMs         []map[string]any          `yaml:"vms"`
		Looks       map[string]map[string]any `yaml:"looks"`
	}
	read(t, text, &r)
	state := homelabv1.HostState_HOST_STATE_ONLINE
	if !s.want.Spec.Hosts[name].Enabled {
		state = homelabv1.HostState_HOST_STATE_DISABLED
	}
	if r.State != "" {
		state = homelabv1.HostState(homelabv1.HostState_value["HOST_STATE_"+strings.ToUpper(strings.ReplaceAll(r.State, "-", "_"))])
	}
	h := plan.Host{State: state, Reason: r.Reason, ClockOffset: r.Clock, Looked: map[string]*homelabv1.GuestLook{}}
	if r.Since != "" {
		since, err := time.Parse("15:04", r.Since)
		if err != nil {
			t.Fatal(err)
		}
		h.Since = time.Date(2026, 11, 22, since.Hour(), since.Minute(), 0, 0, time.UTC)
	}
	if state == homelabv1.HostState_HOST_STATE_ONLINE || state == homelabv1.HostState_HOST_STATE_DEGRADED {
		h.Observation = s.healthy(t, name)
		if r.Observation != nil {
			fill(t, h.Observation.ProtoReflect(), r.Observation)
		}
		for _, vm := range r.VMs {
			h.Observation.Vms = append(h.Observation.Vms, s.vm(t, name, vm))
		}
		for _, intent := range h.Observation.GetIntents() {
			intent.Identity.Fleet, intent.Identity.Uuid = s.want.Fleet, uuidOf(intent.GetIdentity().GetVmid())
		}
	}
	for guest, look := range r.Looks {
		h.Looked[guest] = s.look(t, guest, look, cluster)
	}
	s.seen.Hosts[name] = h
}

const healthyHost = `
pve_cluster: "yes"
quorate: "yes"
pve_cluster_name: lab
driver: "yes"
uptime_seconds: 86400
memory_bytes: 32GiB
cpus: 8
root_used_percent: 30
bridges_known: "yes"
bridges:
- {name: vmbr0, up: "yes", carrier: "yes", vlan_aware: "yes", mtu: 1500}
- {name: vmbr1, up: "no: administratively down", carrier: "no", vlan_aware: "no", mtu: 1500}
storages_known: "yes"
storages:
- {name: local, type: dir, content: [images, snippets, iso], active: "yes", total_bytes: 500GiB, free_bytes: 200GiB, space_known: "yes", path: /var/lib/vz}
vms_known: "yes"
cluster_vmids_known: "yes"
`

func (s *story) healthy(t *testing.T, name string) *homelabv1.Observation {
	t.Helper()
	o := &homelabv1.Observation{Host: name, NodeName: name}
	var node any
	read(t, []byte(healthyHost), &node)
	fill(t, o.ProtoReflect(), node)
	for _, other := range s.want.Spec.HostNames() {
		o.PveNodes = append(o.PveNodes, &homelabv1.PveNode{Name: other, Online: true})
	}
	return o
}

// vm is a VM of the story: with `guest` one of ours, as the Spec would make it.
func (s *story) vm(t *testing.T, host string, given map[string]any) *homelabv1.VirtualMachine {
	t.Helper()
	vm := &homelabv1.VirtualMachine{
		Readable: &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_YES}, Power: homelabv1.Power_POWER_RUNNING,
	}
	guest, _ := given["guest"].(string)
	generation := int32(1)
	if n, ok := given["generation"].(int); ok {
		generation = int32(n)
	}
	delete(given, "guest")
	delete(given, "generation")
	if g := s.want.Spec.Guests[guest]; g != nil {
		vm.Cpus, vm.MemoryBytes, vm.Onboot, vm.Tags = int32(g.CPUs), g.Memory.Bytes, g.OnBoot, g.Tags
		vm.Disks = []*homelabv1.Disk{{Slot: "scsi0", SizeBytes: g.Disk}}
		for _, nic := range g.NICs {
			bridge, _ := s.want.Spec.Hosts[host].Bridge(nic.Network)
			vm.Bridges = append(vm.Bridges, bridge)
		}
	}
	vm.Name = guest
	fill(t, vm.ProtoReflect(), given)
	if digits, ok := mark.TemplateOf(guest); ok {
		vm.Name, vm.Template, vm.Power = "hl-template-noble", vm.GetLock() == "", homelabv1.Power_POWER_STOPPED
		vm.Disks = []*homelabv1.Disk{{Slot: "scsi0", Storage: "local", SizeBytes: 3584 << 20}}
		guest = "template@" + digits
	}
	if guest != "" && vm.GetMark() == "" {
		vm.Uuid = uuidOf(vm.GetVmid())
		vm.Mark = mark.Make(s.key, s.want.Fleet, guest, vm.GetVmid(), vm.GetUuid(), generation)
	}
	return vm
}

// look is a look into a guest that booted well and holds no k3s; with `member`
// it is one of the cluster of cluster.yaml.
func (s *story) look(t *testing.T, guest string, given map[string]any, cluster any) *homelabv1.GuestLook {
	t.Helper()
	yes, no := &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_YES}, &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_NO}
	l := &homelabv1.GuestLook{
		Ssh: yes, GuestAgent: yes, CloudInit: yes, Booted: yes,
		K3S: &homelabv1.K3SLook{Looked: yes, ServerActive: no, AgentActive: no, ServerData: no, AgentData: no},
	}
	if member, _ := given["member"].(bool); member {
		if s.want.Spec.Guests[guest].IsServer() {
			l.K3S.ServerActive, l.K3S.ServerData = yes, yes
			fill(t, l.GetK3S().ProtoReflect(), cluster)
		} else {
			l.K3S.AgentActive, l.K3S.AgentData = yes, yes
		}
	}
	delete(given, "member")
	fill(t, l.ProtoReflect(), given)
	return l
}
