package controller

import (
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/gossip"
	"github.com/homeiac/homelab/internal/mark"
	"github.com/homeiac/homelab/internal/rpc"
)

// fleet is a whole fleet of agents that behave, served over real gRPC with
// mutual TLS, and the cluster that their guests form.
type fleet struct {
	fail func(*homelabv1.Step) error // why an agent cannot carry a step out; may be nil
	t    *testing.T
	dir  string
	ca   *rpc.CA

	// at is called before and after each step is carried out, with no lock held.
	at func(when, host string, s *homelabv1.Step)
	// tune changes a controller before it serves; nil changes nothing.
	tune func(*Controller)
	// told receives the name of each agent that was told who is trusted; nil drops it.
	told chan string

	mu      sync.Mutex
	agents  map[string]*fakeAgent
	peers   map[string]gossip.Peer
	watches []chan struct{}
	nodes   map[string]*homelabv1.Node
	members map[string]*homelabv1.EtcdMember // by node
	inits   int
	joins   int // members that ever were
	calls   int // changing calls
	steps   []string
	source  string // the digest of what images' addresses have now; empty: what is asked for
	fault   string // why they give none
	read    int    // how often one was read
}

const (
	fleetName = "lab"
	k3sToken  = "K10" + caOfToken + "::server:s3cret"
	caOfToken = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	subnet    = "10.0.0.0/24"
)

func newFleet(t *testing.T, hosts ...string) *fleet {
	t.Helper()
	// Old enough for certificates that have expired.
	const years = 365 * 24 * time.Hour
	ca, err := rpc.NewCA(fleetName, 3*years, time.Now().Add(-2*years))
	if err != nil {
		t.Fatal(err)
	}
	f := &fleet{
		t: t, dir: t.TempDir(), ca: ca, agents: map[string]*fakeAgent{}, peers: map[string]gossip.Peer{},
		nodes: map[string]*homelabv1.Node{}, members: map[string]*homelabv1.EtcdMember{},
		at: func(string, string, *homelabv1.Step) {},
	}
	f.write("ca.pem", ca.Cert())
	f.write("fleet.key", []byte(base64.StdEncoding.EncodeToString([]byte("0123456789abcdef0123456789abcdef"))))
	for _, role := range []string{rpc.RoleController, rpc.RoleAdmin, rpc.RoleViewer} {
		f.issue(role, role+"-1")
	}
	for _, name := range hosts {
		f.issue(rpc.RoleAgent, name)
		f.agents[name] = &fakeAgent{f: f, name: name, vms: map[int32]*fakeVM{}, asked: map[string]*agentv1.RunRequest{}, flight: map[string]*homelabv1.StepInFlight{}}
		f.start(name)
	}
	t.Cleanup(func() {
		for _, name := range hosts {
			f.stop(name)
		}
	})
	return f
}

func (f *fleet) write(name string, data []byte) {
	if err := os.WriteFile(filepath.Join(f.dir, name), data, 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fleet) issue(role, name string) {
	pair, err := f.ca.Issue(rpc.Identity{Fleet: fleetName, Role: role, Name: name}, time.Hour, time.Now())
	if err != nil {
		f.t.Fatal(err)
	}
	if err := pair.Write(filepath.Join(f.dir, name+".pem"), filepath.Join(f.dir, name+".key")); err != nil {
		f.t.Fatal(err)
	}
}

// creds are those of a name, with a bundle of roots of its own if it has one.
func (f *fleet) creds(name string) *rpc.Credentials {
	ca := filepath.Join(f.dir, name+".roots")
	if _, err := os.Stat(ca); err != nil {
		ca = filepath.Join(f.dir, "ca.pem")
	}
	c, err := rpc.LoadTLS(ca, filepath.Join(f.dir, name+".pem"), filepath.Join(f.dir, name+".key"))
	if err != nil {
		f.t.Fatal(err)
	}
	c.Log = slog.New(slog.DiscardHandler)
	return c
}

// goesBy is whom an agent trusts in this life of it.
func (a *fakeAgent) goesBy() *rpc.Credentials {
	a.f.mu.Lock()
	defer a.f.mu.Unlock()
	return a.creds
}

// start serves a host's agent again, at the address it had.
func (f *fleet) start(name string) {
	f.mu.Lock()
	a := f.agents[name]
	address := a.address
	f.mu.Unlock()
	if address == "" {
		address = "127.0.0.1:0"
	}
	ctx, cancel := context.WithCancel(context.Background())
	creds := f.creds(name)
	if err := creds.KeepRevocations(filepath.Join(f.dir, name+".revocations")); err != nil {
		f.t.Fatal(err)
	}
	f.mu.Lock()
	a.creds = creds
	f.mu.Unlock()
	server, err := rpc.Listen(ctx, rpc.ServerConfig{
		Address: address, Credentials: creds, Grace: time.Millisecond, Log: slog.New(slog.DiscardHandler),
		Allow: rpc.Allow{
			agentv1.AgentService_Observe_FullMethodName: {rpc.RoleController}, agentv1.AgentService_Run_FullMethodName: {rpc.RoleController},
			agentv1.AgentService_Orphans_FullMethodName: {rpc.RoleController}, agentv1.AgentService_ListSnapshots_FullMethodName: {rpc.RoleController},
			agentv1.AgentService_SetTrust_FullMethodName: {rpc.RoleController},
			agentv1.AgentService_Exec_FullMethodName:     {rpc.RoleController}, agentv1.AgentService_Credentials_FullMethodName: {rpc.RoleController},
		},
	}, func(r grpc.ServiceRegistrar) { agentv1.RegisterAgentServiceServer(r, a) })
	if err != nil {
		f.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Run(ctx)
	}()
	f.mu.Lock()
	a.address = server.Addr().String()
	a.end = func() { cancel(); <-done }
	f.peers[name] = gossip.Peer{Name: name, Role: rpc.RoleAgent, Address: a.address, Alive: true, Since: time.Now(), Started: time.Now()}
	f.changed()
	f.mu.Unlock()
}

// stop ends a host's agent; its host refuses connections then.
func (f *fleet) stop(name string) {
	f.mu.Lock()
	a := f.agents[name]
	end := a.end
	a.end = nil
	p := f.peers[name]
	p.Alive, p.Since = false, time.Now()
	f.peers[name] = p
	f.changed()
	f.mu.Unlock()
	if end != nil {
		end()
	}
}

func (f *fleet) changed() {
	for _, w := range f.watches {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}

// Peers implements Peers.
func (f *fleet) Peers() []gossip.Peer {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Values(f.peers))
}

// Watch implements Peers.
func (f *fleet) Watch(context.Context) <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := make(chan struct{}, 1)
	f.watches = append(f.watches, w)
	return w
}

// fakeVM is one VM.
type fakeVM struct {
	id       *homelabv1.Identity
	name     string
	power    homelabv1.Power
	booted   bool
	mute     bool // it hangs: nothing in it answers
	template bool
	started  time.Time // its process
	hw       *homelabv1.Hardware
	address  string
	k3s      string            // node name once k3s is there
	disks    map[string]string // what lies on its data disks, by slot
}

// fakeAgent is the agent of one host, and the host. What it does it remembers
// over a restart, as the disk of a host does.
type fakeAgent struct {
	lie string // the host that it says it is; empty: its own
	agentv1.UnimplementedAgentServiceServer
	f       *fleet
	name    string
	address string
	end     func()
	creds   *rpc.Credentials

	// All below is guarded by the fleet's mutex.
	vms    map[int32]*fakeVM
	asked  map[string]*agentv1.RunRequest // the latest by step
	snaps  []*homelabv1.Snapshot
	images []*homelabv1.ImageCopy
	fence  *homelabv1.Fence
	flight map[string]*homelabv1.StepInFlight
	rings  [][][]byte // the gossip keys that it was told, as they changed
}

func yesFact() *homelabv1.Fact { return &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_YES} }
func noFact() *homelabv1.Fact  { return &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_NO} }
func truth(b bool) *homelabv1.Fact {
	if b {
		return yesFact()
	}
	return noFact()
}

func (a *fakeAgent) Observe(_ context.Context, req *agentv1.ObserveRequest) (*agentv1.ObserveResponse, error) {
	f := a.f
	f.mu.Lock()
	defer f.mu.Unlock()
	const gib = 1 << 30
	o := &homelabv1.Observation{
		Host: a.name, NodeName: a.name, At: timestamppb.Now(), PveVersion: "9.2.11", AgentVersion: "test",
		PveCluster: yesFact(), PveClusterName: "lab", Quorate: yesFact(), Driver: yesFact(), VmsKnown: yesFact(), ClusterVmidsKnown: yesFact(),
		BridgesKnown: yesFact(), StoragesKnown: yesFact(), ShuttingDown: noFact(), UptimeSeconds: 86400,
		MemoryBytes: 64 * gib, Cpus: 16, CpuLoad: 0.1, RootUsedPercent: 20, Fence: a.fence, Images: a.images,
		Bridges: []*homelabv1.Bridge{{Name: "vmbr0", Up: yesFact(), Carrier: yesFact(), VlanAware: yesFact(), Mtu: 1500}},
		Storages: []*homelabv1.Storage{{
			Name: "local", Type: "dir", Content: []string{"images", "snippets", "iso"}, Active: yesFact(), SpaceKnown: yesFact(),
			TotalBytes: 1000 * gib, FreeBytes: 900 * gib, Path: "/var/lib/vz",
		}},
	}
	for _, id := range slices.Sorted(maps.Keys(a.vms)) {
		vm := a.vms[id]
		o.Vms = append(o.Vms, &homelabv1.VirtualMachine{
			Vmid: id, Name: vm.name, Uuid: vm.id.GetUuid(), Mark: vm.id.GetMark(), Power: vm.power, Readable: yesFact(),
			MemoryBytes: vm.hw.GetMemoryBytes(), Cpus: vm.hw.GetCpus(), GuestAgent: truth(vm.booted && !vm.mute), Digest: "d",
			Template: vm.template, Process: truth(vm.power != homelabv1.Power_POWER_STOPPED), Volumes: vm.volumes(), Disks: vm.dataDisks(),
		})
		if vm.power == homelabv1.Power_POWER_RUNNING {
			o.Vms[len(o.Vms)-1].ProcessStarted = timestamppb.New(vm.started)
			o.GuestsMemoryBytes += vm.hw.GetMemoryBytes()
		}
	}
	// One PVE cluster: each host reads the others' configurations in /etc/pve.
	for _, name := range slices.Sorted(maps.Keys(f.agents)) {
		o.PveNodes = append(o.PveNodes, &homelabv1.PveNode{Name: name, Online: true})
		for id, vm := range f.agents[name].vms {
			o.ClusterVmids = append(o.ClusterVmids, &homelabv1.ClusterVmid{Vmid: id, Node: name, Type: "qemu", Name: vm.name, Mark: vm.id.GetMark(), Uuid: vm.id.GetUuid()})
		}
	}
	for _, s := range slices.Sorted(maps.Keys(a.flight)) {
		o.Steps = append(o.Steps, a.flight[s])
	}
	for _, l := range req.GetLooks() {
		vm := a.vms[l.GetWant().GetIdentity().GetVmid()]
		if vm == nil || vm.id.GetUuid() != l.GetWant().GetIdentity().GetUuid() || vm.power != homelabv1.Power_POWER_RUNNING {
			continue
		}
		o.Looks = append(o.Looks, f.look(vm, l.GetCluster()))
	}
	if a.lie != "" {
		o.Host = a.lie
	}
	return &agentv1.ObserveResponse{Observation: o}, nil
}

// copies are what an answer may hold: it is written out when the mutex is free.
func copies[M proto.Message](all map[string]M) []M {
	var list []M
	for _, m := range all {
		list = append(list, proto.CloneOf(m))
	}
	return list
}

// look is called with the fleet's mutex held.
func (f *fleet) look(vm *fakeVM, cluster bool) *homelabv1.GuestLook {
	server := vm.k3s != "" && f.members[vm.k3s] != nil
	l := &homelabv1.GuestLook{
		Identity: vm.id, At: timestamppb.Now(), Ssh: truth(vm.booted), GuestAgent: truth(vm.booted), Hostname: vm.name,
		CloudInit: truth(vm.booted), Booted: truth(vm.booted),
		K3S: &homelabv1.K3SLook{
			Looked: truth(vm.booted), ServerActive: truth(server), ServerData: truth(server),
			AgentActive: truth(vm.k3s != "" && !server), AgentData: truth(vm.k3s != ""),
		},
	}
	if vm.mute {
		mute := &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_UNKNOWN, Reason: "it does not answer"}
		l.Ssh, l.SshWhy, l.GuestAgent = &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_NO, Reason: "timeout"}, "timeout", noFact()
		l.Booted, l.CloudInit, l.K3S = mute, mute, &homelabv1.K3SLook{Looked: mute}
		return l
	}
	if vm.booted {
		l.MachineId, l.Addresses = "machine-"+vm.id.GetUuid(), []string{vm.address + "/24"}
	}
	if server && cluster {
		l.K3S.Nodes = &homelabv1.NodesView{Known: yesFact(), Nodes: copies(f.nodes)}
		l.K3S.Etcd = &homelabv1.EtcdView{Known: yesFact(), Members: copies(f.members), ClusterId: "c1"}
	}
	return l
}

// Run carries a step out on its own, as a real agent does: the caller's end is
// not the step's.
func (a *fakeAgent) Run(req *agentv1.RunRequest, stream agentv1.AgentService_RunServer) error {
	f, s := a.f, req.GetStep()
	f.mu.Lock()
	if compareFences(req.GetFence(), a.fence) < 0 {
		f.mu.Unlock()
		return rpc.Errorf(rpc.ErrRefused, "older run")
	}
	a.fence = req.GetFence()
	key := s.GetGuest() + "/" + s.GetImage()
	if a.flight[key] != nil {
		f.mu.Unlock()
		return rpc.Errorf(rpc.ErrBusy, "in flight")
	}
	a.flight[key] = &homelabv1.StepInFlight{Step: s.GetId(), Guest: s.GetGuest(), Run: req.GetFence().GetRun(), Since: timestamppb.Now()}
	f.mu.Unlock()
	type end struct {
		result *agentv1.StepResult
		events []*homelabv1.Event
		err    error
	}
	done := make(chan end, 1)
	go func() {
		f.at("before", a.name, s)
		f.mu.Lock()
		var e end
		e.result, e.events, e.err = a.carry(req)
		delete(a.flight, key)
		f.mu.Unlock()
		f.at("after", a.name, s)
		done <- e
	}()
	select {
	case <-stream.Context().Done():
		return stream.Context().Err()
	case e := <-done:
		for _, ev := range e.events {
			if err := stream.Send(&agentv1.RunResponse{Part: &agentv1.RunResponse_Event{Event: ev}}); err != nil {
				return err
			}
		}
		if e.err != nil {
			return e.err
		}
		return stream.Send(&agentv1.RunResponse{Part: &agentv1.RunResponse_Result{Result: e.result}})
	}
}

// carry does a step, safely repeatable. The fleet's mutex is held.
func (a *fakeAgent) carry(req *agentv1.RunRequest) (*agentv1.StepResult, []*homelabv1.Event, error) {
	f, s, want := a.f, req.GetStep(), req.GetWant()
	f.steps = append(f.steps, s.GetId())
	a.asked[s.GetId()] = req
	if f.fail != nil {
		if err := f.fail(s); err != nil {
			return nil, nil, err
		}
	}
	result := &agentv1.StepResult{Learned: &agentv1.Learned{}}
	var events []*homelabv1.Event
	change := func(program string, args ...string) {
		result.Changed = true
		f.calls++
		events = append(events, &homelabv1.Event{
			Time: timestamppb.Now(), Kind: homelabv1.EventKind_EVENT_KIND_CALL, Step: s.GetId(), Guest: s.GetGuest(), Host: a.name,
			Call: &homelabv1.Call{Program: program, Args: args, Mutating: true},
		})
	}
	if aboutImage(s.GetAction()) {
		told, err := a.carryImage(req, result, change)
		return result, append(events, told...), err
	}
	if s.GetAction() == homelabv1.Action_ACTION_ROLLBACK && req.GetK3S() != nil {
		return result, nil, nil // nothing was left in etcd
	}
	if known, err := a.carryMore(req, result, change); known {
		return result, events, err
	}
	id := want.GetIdentity()
	vm := a.vms[id.GetVmid()]
	if vm != nil && (vm.id.GetUuid() != id.GetUuid() || vm.id.GetMark() != id.GetMark()) {
		return nil, nil, rpc.Errorf(rpc.ErrRefused, "VM %d is another one", id.GetVmid())
	}
	if vm == nil && s.GetAction() != homelabv1.Action_ACTION_CREATE {
		return nil, nil, rpc.Errorf(rpc.ErrNotFound, "no VM %d", id.GetVmid())
	}
	switch s.GetAction() {
	case homelabv1.Action_ACTION_CREATE:
		if vm == nil {
			change("qm", "create", fmt.Sprint(id.GetVmid()))
			a.vms[id.GetVmid()] = &fakeVM{
				id: id, name: want.GetHardware().GetName(), power: homelabv1.Power_POWER_STOPPED, hw: want.GetHardware(),
				address: strings.Split(want.GetHardware().GetNics()[0].GetAddress(), "/")[0], disks: map[string]string{},
			}
			for _, d := range want.GetHardware().GetDataDisks() {
				a.vms[id.GetVmid()].disks[d.GetSlot()] = fmt.Sprintf("of generation %d", id.GetGeneration())
			}
		}
	case homelabv1.Action_ACTION_START:
		if vm.power != homelabv1.Power_POWER_RUNNING {
			change("qm", "start", fmt.Sprint(id.GetVmid()))
			vm.power, vm.started = homelabv1.Power_POWER_RUNNING, time.Now()
		}
	case homelabv1.Action_ACTION_BOOT:
		vm.booted = true
		result.Learned.MachineId, result.Learned.Addresses = "machine-"+id.GetUuid(), []string{vm.address}
		result.Learned.HostKeys = []string{"ssh-ed25519 AAAA"}
	case homelabv1.Action_ACTION_INIT, homelabv1.Action_ACTION_JOIN:
		if err := a.member(req, vm, change); err != nil {
			return nil, events, err
		}
		result.Learned.CaHash = caOfToken
	case homelabv1.Action_ACTION_VERIFY:
	default:
		return nil, nil, rpc.Errorf(rpc.ErrUnsupported, "%s", s.GetAction())
	}
	return result, events, nil
}

func (a *fakeAgent) member(req *agentv1.RunRequest, vm *fakeVM, change func(string, ...string)) error {
	f, node := a.f, req.GetWant().GetNodeName()
	if f.nodes[node] != nil && vm.k3s == node {
		return nil
	}
	if f.nodes[node] != nil {
		return rpc.Errorf(rpc.ErrRefused, "duplicate node name")
	}
	if req.GetK3S().GetClusterInit() {
		f.inits++
	} else if string(req.GetToken()) != k3sToken || !strings.HasPrefix(req.GetK3S().GetServerUrl(), "https://10.0.0.") {
		return rpc.Errorf(rpc.ErrRefused, "token or server wrong: %s", req.GetK3S().GetServerUrl())
	}
	change("guest", "install")
	server := req.GetK3S().GetRole() == homelabv1.Role_ROLE_SERVER
	f.joins++
	n := &homelabv1.Node{Name: node, Uid: fmt.Sprintf("uid-%d", f.joins), Ready: yesFact(), Version: req.GetK3S().GetVersion(), Server: server, Address: vm.address}
	vm.k3s = node
	if server {
		n.EtcdName = node + "-0a1b2c3d"
		f.members[node] = &homelabv1.EtcdMember{
			Id: fmt.Sprintf("%x", f.joins), Name: n.GetEtcdName(), PeerUrls: []string{"https://" + vm.address + ":2380"}, Healthy: yesFact(),
		}
	}
	f.nodes[node] = n
	return nil
}

func (a *fakeAgent) Credentials(_ context.Context, req *agentv1.CredentialsRequest) (*agentv1.CredentialsResponse, error) {
	a.f.mu.Lock()
	defer a.f.mu.Unlock()
	vm := a.vms[req.GetWant().GetIdentity().GetVmid()]
	if vm == nil || a.f.members[vm.k3s] == nil {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "no server")
	}
	if req.GetKind() == agentv1.CredentialsKind_CREDENTIALS_KIND_KUBECONFIG {
		return &agentv1.CredentialsResponse{Secret: []byte(kubeconfig)}, nil
	}
	return &agentv1.CredentialsResponse{Secret: []byte(k3sToken)}, nil
}

const kubeconfig = `apiVersion: v1
kind: Config
clusters: [{name: default, cluster: {server: "https://127.0.0.1:6443"}}]
users: [{name: default, user: {token: x}}]
contexts: [{name: default, context: {cluster: default, user: default}}]
current-context: default
`

func (a *fakeAgent) Exec(req *agentv1.ExecRequest, stream agentv1.AgentService_ExecServer) error {
	if err := stream.Send(&agentv1.ExecResponse{Part: &agentv1.ExecResponse_Stdout{Stdout: []byte(strings.Join(req.GetArgv(), " "))}}); err != nil {
		return err
	}
	return stream.Send(&agentv1.ExecResponse{Part: &agentv1.ExecResponse_Exit{Exit: 7}})
}

// key is the fleet's key.
func (f *fleet) key() mark.Key {
	k, err := mark.ParseKey(must(os.ReadFile(filepath.Join(f.dir, "fleet.key"))))
	if err != nil {
		f.t.Fatal(err)
	}
	return k
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
