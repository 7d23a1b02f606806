package agent

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/homeiac/homelab/agent/driver/proxmox"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/config"
	"github.com/homeiac/homelab/internal/k3s"
	"github.com/homeiac/homelab/lab/disk"
	"github.com/homeiac/homelab/lab/guest"
	labk3s "github.com/homeiac/homelab/lab/guest/k3s"
	"github.com/homeiac/homelab/lab/pve"
)

// TestMain makes this binary the lab's programs too: a host's usr/sbin/qm is a
// link to it.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "qm", "pvesm", "pvesh", "pveversion":
		pve.Exit(pve.Main(os.Args, os.Stdin, os.Stdout, os.Stderr))
	case "kvm":
		pve.Exit(guest.KVM(os.Args))
	}
	flag.Parse()
	// What is parallel here waits more than it computes, also on two cores.
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// lab is a few simulated hosts, each with an agent's service and its real driver.
type lab struct {
	t      *testing.T
	dir    string
	subnet string // 127.X.Y
	agents []*Service
	run    int64
}

// subnets counts the labs of this process.
var subnets atomic.Int64

func newLab(t *testing.T, hosts int) *lab {
	t.Helper()
	if testing.Short() {
		t.Skip("starts simulated guests as processes")
	}
	dir, err := os.MkdirTemp("", "hl") //nolint:usetesting // a short path: sockets lie below it
	if err != nil {
		t.Fatal(err)
	}
	// Its own network for every lab of every test process: nothing else uses 127.77
	// and up.
	const labs = 32 // of one process
	number := os.Getpid()*labs + int(subnets.Add(1))%labs
	l := &lab{t: t, dir: dir, subnet: fmt.Sprintf("127.%d.%d", 77+number/250%100, number%250), run: 1}
	l.settings(300 * time.Millisecond)
	l.write("files/install.sh", labk3s.InstallScript)
	l.write("files/k3s", labk3s.StandInBinary(release))
	if err := disk.MakeGuestImage(filepath.Join(dir, "files", "lab.img"), 8<<20); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.killGuests()
		_ = os.RemoveAll(dir)
	})
	for i := range hosts {
		l.addHost(fmt.Sprintf("pve%d", i+1))
	}
	return l
}

func (l *lab) write(name string, data []byte) {
	l.t.Helper()
	path := filepath.Join(l.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o755); err != nil {
		l.t.Fatal(err)
	}
}

// settings writes lab.json; a guest reads it when it starts.
func (l *lab) settings(learnerTick time.Duration) {
	l.t.Helper()
	data, err := json.Marshal(map[string]any{
		"subnet": l.subnet + ".0/24", "sshPort": 2222, "learnerTickMs": learnerTick.Milliseconds(),
		"bootMs": 100, "cloudInitMs": 200, "k3sStartMs": 100,
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.write("lab.json", data)
}

func (l *lab) addHost(name string) {
	t := l.t
	t.Helper()
	err := pve.NewHost(pve.HostConfig{
		Name: name, LabDir: l.dir, QMCost: "none",
		Storages: []pve.StorageConfig{{Name: "local", Type: "dir", Path: "/var/lib/vz", TotalBytes: 100 << 30}},
		Bridges:  []pve.BridgeConfig{{Name: "vmbr0", Ports: []string{"eno1"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(l.dir, "hosts", name)
	h, err := pve.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.WriteStat(time.Now()); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	d := proxmox.New(proxmox.Config{Root: h.Root(), Proc: "/proc", State: filepath.Join(dir, "driver"), Log: log})
	svc, err := NewService(Config{
		Daemon: config.Daemon{Name: name, State: filepath.Join(dir, "agent")}, Root: h.Root(), SSHPort: 2222,
		FileRoots: []string{filepath.Join(l.dir, "files")}, PauseFile: filepath.Join(h.Root(), "etc/homelab/pause"),
	}, "home", d, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() { defer close(over); _ = svc.Work(ctx) }()
	t.Cleanup(func() { cancel(); <-over })
	l.agents = append(l.agents, svc)
}

func (l *lab) killGuests() {
	pids, _ := filepath.Glob(filepath.Join(l.dir, "hosts/*/root/run/qemu-server/*.pid"))
	for _, file := range pids {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if pid, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil && pid > 1 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// guest is guest k3s-N on host pveN.
func (l *lab) guest(n int) *homelabv1.GuestWant {
	name := fmt.Sprintf("k3s-%d", n)
	return &homelabv1.GuestWant{
		Identity: &homelabv1.Identity{
			Fleet: "home", Guest: name, Generation: 1, Vmid: int32(200 + n),
			Uuid: fmt.Sprintf("11111111-2222-4333-8444-%012d", n), Mark: fmt.Sprintf("hl1:home:%s:1:00112233445566778899aabbccddeeff", name),
		},
		Hardware: &homelabv1.Hardware{
			Name: name, Cpus: 1, MemoryBytes: 2 << 30, SystemDisk: &homelabv1.Disk{Slot: "scsi0", Storage: "local", SizeBytes: 1 << 30},
			Nics: []*homelabv1.Nic{{
				Bridge: "vmbr0", Mac: fmt.Sprintf("BC:24:11:00:00:%02X", n), Network: "lan",
				Address: fmt.Sprintf("%s.%d/24", l.subnet, 100+n), Subnet: l.subnet + ".0/24",
			}},
		},
		Image:         &homelabv1.ImageSource{Name: "lab", Url: "file:" + filepath.Join(l.dir, "files", "lab.img")},
		ImagesStorage: "local", SnippetsStorage: "local", User: "ubuntu", NodeName: name, K3S: true,
		BootTimeout: durationpb.New(30 * time.Second), CloudInitTimeout: durationpb.New(30 * time.Second), JoinTimeout: durationpb.New(60 * time.Second),
	}
}

// do has host n carry out a step for its guest, which must end well.
func (l *lab) do(n int, action homelabv1.Action, turn ...func(*agentv1.RunRequest)) *stream {
	l.t.Helper()
	s, err := l.try(n, action, turn...)
	if err != nil {
		for _, e := range s.events {
			l.t.Log(e.GetPhase(), e.GetText(), e.GetCall())
		}
		l.t.Fatalf("%s on pve%d: %v", action, n, err)
	}
	return s
}

func (l *lab) try(n int, action homelabv1.Action, turn ...func(*agentv1.RunRequest)) (*stream, error) {
	want := l.guest(n)
	host := fmt.Sprintf("pve%d", n)
	req := &agentv1.RunRequest{
		Fence: &homelabv1.Fence{Fleet: "home", Epoch: 1, Run: l.run}, Want: want,
		Step: &homelabv1.Step{Id: action.String() + "/" + host, Action: action, Host: host, Guest: want.GetIdentity().GetGuest(), Vmid: want.GetIdentity().GetVmid()},
	}
	if action == fetchStep {
		req.Want, req.Image, req.ImagesStorage, req.Wan = nil, want.GetImage(), "local", true
	}
	if action == initStep || action == joinStep {
		req.K3S = &homelabv1.K3SWant{
			Role: homelabv1.Role_ROLE_SERVER, Version: release, ClusterInit: action == initStep,
			TlsSans: []string{l.subnet + ".101", l.subnet + ".102"},
			Script:  filepath.Join(l.dir, "files/install.sh"), Binary: filepath.Join(l.dir, "files/k3s"),
		}
	}
	for _, f := range turn {
		f(req)
	}
	s := &stream{ctx: l.t.Context()}
	return s, l.agents[n-1].Run(req, s)
}

// through fills in how guests join through k3s-1.
func (l *lab) through() func(*agentv1.RunRequest) {
	l.t.Helper()
	secret, err := l.agents[0].Credentials(l.t.Context(), &agentv1.CredentialsRequest{Want: l.guest(1), Kind: agentv1.CredentialsKind_CREDENTIALS_KIND_TOKEN})
	if err != nil {
		l.t.Fatal(err)
	}
	token, err := k3s.ParseToken(k3s.NewSecret(string(secret.GetSecret())))
	if err != nil {
		l.t.Fatal(err)
	}
	return func(r *agentv1.RunRequest) {
		r.Token, r.K3S.CaHash = secret.GetSecret(), token.CAHash
		r.K3S.ServerUrl = "https://" + l.subnet + ".101:6443"
	}
}

// look looks into guest n, with the cluster.
func (l *lab) look(n int) *homelabv1.GuestLook {
	l.t.Helper()
	r, err := l.agents[n-1].Observe(l.t.Context(), &agentv1.ObserveRequest{Looks: []*agentv1.LookRequest{{Want: l.guest(n), Cluster: true}}})
	if err != nil || len(r.GetObservation().GetLooks()) != 1 {
		l.t.Fatalf("look into k3s-%d: %v %v", n, r, err)
	}
	return r.GetObservation().GetLooks()[0]
}

// TestFromNothingToACluster walks the main path on three simulated hosts: the
// driver and the guests' SSH, k3s and etcd are those of the lab.
func TestFromNothingToACluster(t *testing.T) {
	t.Parallel()
	l := newLab(t, 3)
	for n := 1; n <= 3; n++ {
		for _, a := range []homelabv1.Action{fetchStep, createStep, startStep, bootStep} {
			l.do(n, a)
		}
		if b := l.look(n).GetBooted(); !isYes(b) {
			t.Fatalf("k3s-%d: %v", n, b)
		}
	}
	l.do(1, initStep)
	through := l.through()
	asAgent := func(r *agentv1.RunRequest) { r.K3S.Role = homelabv1.Role_ROLE_AGENT }
	l.do(2, joinStep, through)
	l.do(3, joinStep, through, asAgent)
	look := l.look(1)
	nodes, etcd := look.GetK3S().GetNodes(), look.GetK3S().GetEtcd()
	if !isYes(nodes.GetKnown()) || len(nodes.GetNodes()) != 3 || slices.ContainsFunc(nodes.GetNodes(), func(n *homelabv1.Node) bool { return !isYes(n.GetReady()) }) {
		t.Errorf("nodes %v", nodes)
	}
	if !isYes(etcd.GetKnown()) || len(etcd.GetMembers()) != 2 || slices.ContainsFunc(etcd.GetMembers(), func(m *homelabv1.EtcdMember) bool { return m.GetLearner() || !isYes(m.GetHealthy()) }) {
		t.Errorf("etcd %v", etcd)
	}
	// The same again changes nothing.
	l.run++
	for n := 1; n <= 3; n++ {
		steps := []*stream{l.do(n, fetchStep), l.do(n, createStep), l.do(n, startStep), l.do(n, bootStep)}
		switch n {
		case 1:
			steps = append(steps, l.do(n, initStep))
		case 2:
			steps = append(steps, l.do(n, joinStep, through))
		default:
			steps = append(steps, l.do(n, joinStep, through, asAgent))
		}
		for _, s := range steps {
			if len(s.calls()) != 0 {
				t.Errorf("host %d again: %v", n, s.calls())
			}
		}
	}
}

// TestAJoinThatNeverGetsAVoteIsTakenBackAndDoneAgain has a server stay a learner
// until its join's time is over.
func TestAJoinThatNeverGetsAVoteIsTakenBackAndDoneAgain(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2)
	l.settings(time.Hour)
	for n := 1; n <= 2; n++ {
		for _, a := range []homelabv1.Action{fetchStep, createStep, startStep, bootStep} {
			l.do(n, a)
		}
	}
	l.do(1, initStep)
	through := l.through()
	s, err := l.try(2, joinStep, through, func(r *agentv1.RunRequest) { r.Want.JoinTimeout = durationpb.New(6 * time.Second) })
	if err == nil || !strings.Contains(err.Error(), "its unit was stopped") {
		t.Fatalf("got %v", err)
	}
	if !slices.ContainsFunc(s.events, func(e *homelabv1.Event) bool { return e.GetText() == "waiting to be promoted from learner" }) {
		t.Errorf("events %v", s.events)
	}
	if isYes(l.look(2).GetK3S().GetServerActive()) {
		t.Error("the unit still runs")
	}
	members := l.look(1).GetK3S().GetEtcd().GetMembers()
	if len(members) != 2 {
		t.Fatalf("members %v", members)
	}
	back := func(r *agentv1.RunRequest) {
		r.Step.Id, r.Step.Guest = "takeback/pve1/k3s-2", "k3s-2"
		r.K3S = &homelabv1.K3SWant{Role: homelabv1.Role_ROLE_SERVER, ServerUrl: "https://" + l.subnet + ".102:6443"}
	}
	if s := l.do(1, rollbackStep, back); !s.result.GetChanged() {
		t.Errorf("nothing was taken back: %v", s.result)
	}
	members = l.look(1).GetK3S().GetEtcd().GetMembers()
	if len(members) != 1 || !isYes(members[0].GetHealthy()) {
		t.Fatalf("members %v", members)
	}
	// The leader's tick is the first server's, which reads it when it boots. As a
	// member with a vote it is waited for, not installed again.
	l.settings(300 * time.Millisecond)
	if _, err := l.agents[0].driver.Stop(t.Context(), &driverv1.StopRequest{Identity: l.guest(1).GetIdentity(), Force: true}, func(*homelabv1.Event) {}); err != nil {
		t.Fatal(err)
	}
	l.do(1, startStep)
	l.do(1, bootStep)
	for !isYes(l.look(1).GetK3S().GetServerActive()) {
		if t.Context().Err() != nil {
			t.Fatal("k3s did not start with its guest")
		}
	}
	if s := l.do(1, initStep); len(s.calls()) != 0 {
		t.Errorf("a member with a vote: %v", s.calls())
	}
	l.run++
	l.do(2, joinStep, through)
	members = l.look(1).GetK3S().GetEtcd().GetMembers()
	if len(members) != 2 || members[0].GetLearner() || members[1].GetLearner() {
		t.Errorf("in the end: %v", members)
	}
}
