package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/homeiac/homelab/agent/driver"
	"github.com/homeiac/homelab/agent/guest/guesttest"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/config"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/sshexec/sshtest"
)

// hypervisor is a driver that behaves, in memory: identities are compared,
// creates leave what real ones leave when they are cut off.
type hypervisor struct {
	mu      sync.Mutex
	vms     map[int32]*homelabv1.VirtualMachine
	volumes map[int32][]string
	cluster []*homelabv1.ClusterVmid
	guests  int64 // memory of other guests in bytes
	unseen  bool  // the VMs cannot be listed
	// at is called at each boundary of a changing call; its error ends the call
	// there, as the death of the plugin does.
	at    func(where string) error
	calls []string
	exec  func(*driverv1.ExecRequest) (*driverv1.ExecResponse, error)
	// data is what is on the data disks, by volume: it goes with the volume.
	data map[string]string
	// hangs makes guests not shut down when they are asked.
	hangs bool
	// stops are the Stop calls: shutdown or stop.
	stops []string
}

var _ driver.Full = (*hypervisor)(nil)

func newHypervisor() *hypervisor {
	return &hypervisor{
		vms: map[int32]*homelabv1.VirtualMachine{}, volumes: map[int32][]string{},
		at: func(string) error { return nil }, data: map[string]string{},
	}
}

func (h *hypervisor) Observe(context.Context, bool) (*driverv1.ObserveResponse, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := &driverv1.ObserveResponse{VmsKnown: factYes(""), ClusterVmidsKnown: factYes(""), GuestsMemoryBytes: h.guests}
	if h.unseen {
		r.VmsKnown, r.ClusterVmidsKnown = factUnknown("pmxcfs is gone"), factUnknown("pmxcfs is gone")
		return r, nil
	}
	for _, vm := range h.vms {
		r.Vms = append(r.Vms, proto.CloneOf(vm))
		r.ClusterVmids = append(r.ClusterVmids, &homelabv1.ClusterVmid{Vmid: vm.GetVmid(), Type: "qemu", Node: "pve1"})
	}
	r.ClusterVmids = append(r.ClusterVmids, h.cluster...)
	return r, nil
}

func (h *hypervisor) Inspect(_ context.Context, vmid int32) (*driverv1.InspectResponse, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := &driverv1.InspectResponse{Vm: &homelabv1.VirtualMachine{Vmid: vmid, Power: homelabv1.Power_POWER_ABSENT}, VolumesKnown: factYes("")}
	if vm := h.vms[vmid]; vm != nil {
		r.Vm = proto.CloneOf(vm)
	}
	for _, v := range h.volumes[vmid] {
		r.Volumes = append(r.Volumes, &homelabv1.Volume{Volid: v})
	}
	return r, nil
}

// called notes a qm call and reports it.
func (h *hypervisor) called(report driver.Report, args ...string) {
	h.calls = append(h.calls, args[0])
	report(&homelabv1.Event{Kind: homelabv1.EventKind_EVENT_KIND_CALL, Call: &homelabv1.Call{Program: "qm", Args: args, Mutating: true}})
}

func (h *hypervisor) Create(_ context.Context, req *driverv1.CreateRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	id := req.GetIdentity()
	if err := h.at("before create"); err != nil {
		return nil, err
	}
	h.mu.Lock()
	if vm := h.vms[id.GetVmid()]; vm != nil {
		defer h.mu.Unlock()
		if vm.GetUuid() != id.GetUuid() || vm.GetMark() != id.GetMark() {
			return nil, rpc.Errorf(rpc.ErrRefused, "VM %d is somebody else's", id.GetVmid())
		}
		return proto.CloneOf(vm), nil
	}
	h.called(report, "create", fmt.Sprint(id.GetVmid()))
	volume := fmt.Sprintf("local:%d/vm-%d-disk-%d.raw", id.GetVmid(), id.GetVmid(), len(h.volumes[id.GetVmid()]))
	h.vms[id.GetVmid()] = &homelabv1.VirtualMachine{Vmid: id.GetVmid(), Lock: "create", HalfBuilt: true, Power: homelabv1.Power_POWER_STOPPED, Readable: factYes("")}
	h.volumes[id.GetVmid()] = append(h.volumes[id.GetVmid()], volume)
	h.mu.Unlock()
	if err := h.at("half-built"); err != nil {
		return nil, err
	}
	h.mu.Lock()
	vm := &homelabv1.VirtualMachine{
		Vmid: id.GetVmid(), Name: req.GetHardware().GetName(), Uuid: id.GetUuid(), Mark: id.GetMark(),
		Power: homelabv1.Power_POWER_STOPPED, Readable: factYes(""), Volumes: []*homelabv1.Volume{{Volid: volume, Slot: "scsi0"}},
	}
	for _, n := range req.GetHardware().GetNics() {
		vm.Macs = append(vm.Macs, n.GetMac())
	}
	for _, d := range req.GetHardware().GetDataDisks() {
		vm.Volumes = append(vm.Volumes, &homelabv1.Volume{Volid: h.allocate(id.GetVmid()), Slot: d.GetSlot()})
	}
	h.vms[id.GetVmid()] = vm
	h.mu.Unlock()
	if err := h.at("created"); err != nil {
		return nil, err
	}
	return proto.CloneOf(vm), nil
}

func (h *hypervisor) Update(context.Context, *driverv1.UpdateRequest, driver.Report) (*homelabv1.VirtualMachine, error) {
	return nil, rpc.Errorf(rpc.ErrUnsupported, "update")
}

func (h *hypervisor) Exec(_ context.Context, req *driverv1.ExecRequest) (*driverv1.ExecResponse, error) {
	if h.exec == nil {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "QEMU guest agent is not running")
	}
	return h.exec(req)
}

// world is an agent's service on a host laid out in a folder.
type world struct {
	t    *testing.T
	root string
	cfg  Config
	hyp  *hypervisor
	svc  *Service
	stop context.CancelFunc // ends the agent
	over chan struct{}
	run  int64
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, root: filepath.Join(dir, "root"), hyp: newHypervisor(), run: 1}
	w.cfg = Config{
		Daemon: config.Daemon{Name: "pve1", State: filepath.Join(dir, "state")}, Root: w.root, SSHPort: 22,
		FileRoots: []string{filepath.Join(dir, "files")}, PauseFile: filepath.Join(dir, "pause"),
	}
	boot := time.Now().Add(-time.Hour).Unix()
	w.put("etc/pve/.members", `{"nodename": "pve1","version": 0}`)
	w.put("etc/pve/storage.cfg", "dir: local\n\tpath /var/lib/vz\n\tcontent images,snippets,iso\n")
	w.put("etc/pve/.rrd", fmt.Sprintf("pve-storage-9.0/pve1/local:%d:100000000000:1000\n", time.Now().Unix()))
	w.put("proc/meminfo", "MemTotal:       16777216 kB\n")
	w.put("proc/cpuinfo", "processor\t: 0\n\nprocessor\t: 1\n")
	w.put("proc/stat", fmt.Sprintf("btime %d\n", boot))
	w.put("run/.keep", "")
	w.put("var/lib/vz/.keep", "")
	w.put("sys/class/net/vmbr0/operstate", "up\n")
	w.put("sys/class/net/vmbr0/mtu", "1500\n")
	w.put("sys/class/net/vmbr0/bridge/vlan_filtering", "0\n")
	w.put("sys/class/net/vmbr0/brif/eno1", "")
	w.put("sys/class/net/eno1/carrier", "1\n")
	w.put("../files/noble.img", string(imageFile()))
	w.launch()
	return w
}

// imageFile is the content of a small disk image.
func imageFile() []byte {
	b := make([]byte, 4096)
	b[510], b[511] = 0x55, 0xaa
	return b
}

func (w *world) put(name, text string) {
	w.t.Helper()
	path := filepath.Join(w.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// launch starts the agent, again after a kill.
func (w *world) launch() {
	w.t.Helper()
	svc, err := NewService(w.cfg, "home", w.hyp, slog.New(slog.DiscardHandler))
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() {
		defer close(over)
		_ = svc.Work(ctx)
	}()
	w.svc, w.over = svc, over
	w.stop = func() { cancel(); <-over }
	w.t.Cleanup(w.stop)
}

// relaunch is what a killed agent's successor sees: the files, nothing else.
func (w *world) relaunch() {
	w.stop()
	w.launch()
}

// want is guest k3s-1 as VM 201.
func (w *world) want() *homelabv1.GuestWant {
	return &homelabv1.GuestWant{
		Identity: &homelabv1.Identity{Fleet: "home", Guest: "k3s-1", Generation: 1, Vmid: 201, Uuid: "11111111-2222-4333-8444-555555555555", Mark: "hl1:home:k3s-1:1:abcd"},
		Hardware: &homelabv1.Hardware{
			Name: "k3s-1", Cpus: 2, MemoryBytes: 4 << 30, SystemDisk: &homelabv1.Disk{Slot: "scsi0", Storage: "local", SizeBytes: 10 << 30},
			Nics: []*homelabv1.Nic{{Bridge: "vmbr0", Mac: "BC:24:11:00:00:01", Network: "lan", Address: "127.0.0.1/8"}},
		},
		Image:         &homelabv1.ImageSource{Name: "noble", Url: "file:" + filepath.Join(w.cfg.FileRoots[0], "noble.img")},
		ImagesStorage: "local", SnippetsStorage: "local", User: "ubuntu", AuthorizedKeys: []string{"ssh-ed25519 AAAA me"},
		NodeName: "k3s-1", ReserveMemoryBytes: 1 << 30, K3S: true,
	}
}

// request is a step of the present run.
func (w *world) request(action homelabv1.Action) *agentv1.RunRequest {
	want := w.want()
	req := &agentv1.RunRequest{
		Fence: &homelabv1.Fence{Fleet: "home", Epoch: 1, Run: w.run},
		Step:  &homelabv1.Step{Id: fmt.Sprintf("%s/pve1/k3s-1", action), Action: action, Guest: "k3s-1", Host: "pve1", Vmid: 201},
		Want:  want,
	}
	if action == homelabv1.Action_ACTION_FETCH {
		req.Want, req.Image, req.ImagesStorage, req.Step.Guest, req.Step.Vmid = nil, want.Image, "local", "", 0
		req.Wan = true
	}
	return req
}

// stream collects what the service sends to one caller.
type stream struct {
	grpc.ServerStream
	ctx    context.Context
	events []*homelabv1.Event
	result *agentv1.StepResult
}

func (s *stream) Context() context.Context { return s.ctx }

func (s *stream) Send(m *agentv1.RunResponse) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	if e := m.GetEvent(); e != nil {
		s.events = append(s.events, e)
	} else {
		s.result = m.GetResult()
	}
	return nil
}

// calls are the programs that changed something.
func (s *stream) calls() []string {
	var out []string
	for _, e := range s.events {
		if c := e.GetCall(); c.GetMutating() {
			out = append(out, c.GetProgram()+" "+c.GetArgs()[0])
		}
	}
	return out
}

func (w *world) do(req *agentv1.RunRequest) (*stream, error) {
	w.t.Helper()
	s := &stream{ctx: w.t.Context()}
	return s, w.svc.Run(req, s)
}

// must does a step that has to end well.
func (w *world) must(action homelabv1.Action) *stream {
	w.t.Helper()
	s, err := w.do(w.request(action))
	if err != nil {
		w.t.Fatalf("%s: %v", action, err)
	}
	return s
}

// guestOS starts the SSH server of guest k3s-1 with the host key that the agent
// made for it, and lets the agent in.
func (w *world) guestOS(run func(sshtest.Command) int) *sshtest.Server {
	w.t.Helper()
	key, err := w.svc.keys.MakeHostKey("home", "k3s-1", 1)
	if err != nil {
		w.t.Fatal(err)
	}
	s := sshtest.Start(w.t, guesttest.Parse(w.t, key.Private))
	s.Lock()
	defer s.Unlock()
	s.User, s.Authorized, s.Run = "ubuntu", []ssh.PublicKey{w.svc.keys.Agent().PublicKey()}, run
	w.svc.sshPort = s.Port()
	return s
}
