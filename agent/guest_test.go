package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/homeiac/homelab/agent/guest/guesttest"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/k3s"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/sshexec/sshtest"
)

// inside is what a guest's probe shows; a good one without k3s by default.
type inside struct {
	hostname, machineID, cloudInit, address string
}

func goodInside() *inside {
	return &inside{hostname: "k3s-1", machineID: "0123456789abcdef", cloudInit: `{"status":"done"}`, address: "127.0.0.1"}
}

// probe prints what k3s.ProbeScript prints.
func (i *inside) probe(w io.Writer) {
	var s guesttest.Sections
	s.Add("hostname", i.hostname, "0")
	s.Add("machine-id", i.machineID, "0")
	s.Add("cloud-init", i.cloudInit, "0")
	s.Add("addresses", fmt.Sprintf(`[{"ifname":"eth0","link_type":"ether","address":"bc:24:11:00:00:01","addr_info":[{"local":%q,"prefixlen":8,"scope":"global"}]}]`, i.address), "0")
	s.Add("version", "sh: k3s: not found", "127")
	s.Add("unit-agent", "inactive", "3")
	none := ""
	for _, f := range []string{k3s.BinaryPath, k3s.EtcdMember, k3s.SQLite, k3s.AgentData, k3s.NodePass, k3s.Server.Uninstall(), k3s.Agent.Uninstall()} {
		none += "ls: cannot access '" + f + "': No such file or directory\n"
	}
	s.Add("files", none, "2")
	s.Add("unit-server", "inactive", "3")
	_, _ = w.Write(s.Bytes())
}

// answer is a guest that knows the probe and little else.
func (i *inside) answer(c sshtest.Command) int {
	script, ok := guesttest.Script(c)
	switch {
	case ok && script == k3s.ProbeScript:
		i.probe(c.Stdout)
	case ok && strings.HasPrefix(script, "cat /proc/sys/kernel/hostname"):
		fmt.Fprintf(c.Stdout, "%s\n%s\n", i.hostname, i.machineID)
	case ok && strings.HasPrefix(script, "tail "):
		_, _ = io.WriteString(c.Stdout, "E: Unable to locate package qemu-guest-agent\n")
	case ok && script == "true":
	default:
		_, _ = io.WriteString(c.Stderr, "not found\n")
		return 127
	}
	return 0
}

func TestBootWaitsForWhatIsMissingAndLearns(t *testing.T) {
	w := newWorld(t)
	w.hyp.vms[201] = running(w)
	in := goodInside()
	var looks atomic.Int32
	w.guestOS(func(c sshtest.Command) int {
		now := *in
		if looks.Add(1) < 3 {
			now.cloudInit = `{"status":"running"}`
		}
		return now.answer(c)
	})
	s := w.must(bootStep)
	l := s.result.GetLearned()
	if l.GetMachineId() != in.machineID || !slices.Equal(l.GetAddresses(), []string{"127.0.0.1"}) || len(l.GetHostKeys()) != 1 {
		t.Errorf("learned %v", l)
	}
	if len(s.calls()) != 0 {
		t.Errorf("waiting changed something: %v", s.calls())
	}
	if !slices.ContainsFunc(s.events, func(e *homelabv1.Event) bool {
		return e.GetPhase() == "booting" && e.GetText() == "ssh answers; cloud-init is running" && e.GetLimit() != nil
	}) {
		t.Errorf("events %v", s.events)
	}
}

func TestBootFailsWithTheCause(t *testing.T) {
	for _, tc := range []struct {
		name, want string
		kind       rpc.Kind
		turn       func(*world, *inside, *homelabv1.GuestWant)
	}{
		{"cloud-init failed", "cloud-init failed: error; x\nE: Unable to locate package", rpc.ErrUnavailable, func(_ *world, i *inside, _ *homelabv1.GuestWant) { i.cloudInit = `{"status":"error","errors":["x"]}` }},
		{"hostname", "its hostname is ubuntu and should be k3s-1", rpc.ErrRefused, func(_ *world, i *inside, _ *homelabv1.GuestWant) { i.hostname = "ubuntu" }},
		{"address", "on network lan it has 127.0.0.9 and should have 127.0.0.1", rpc.ErrRefused, func(_ *world, i *inside, _ *homelabv1.GuestWant) { i.address = "127.0.0.9" }},
		{"another machine", "machine-id", rpc.ErrDenied, func(_ *world, _ *inside, g *homelabv1.GuestWant) { g.MachineId = "ffff" }},
		{"stopped meanwhile", "VM 201 is stopped", rpc.ErrUnavailable, func(w *world, _ *inside, _ *homelabv1.GuestWant) {
			w.hyp.vms[201].Power = homelabv1.Power_POWER_STOPPED
		}},
		{"never reachable", "not reachable within 300ms: waiting for SSH: ssh at 127.0.0.1:1: refused", rpc.ErrUnavailable, func(w *world, _ *inside, _ *homelabv1.GuestWant) { w.svc.sshPort = 1 }},
		{"never done", "not booted within 300ms: ssh answers; cloud-init is running", rpc.ErrUnavailable, func(_ *world, i *inside, _ *homelabv1.GuestWant) { i.cloudInit = `{"status":"running"}` }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.hyp.vms[201] = running(w)
			in := goodInside()
			w.guestOS(func(c sshtest.Command) int { return in.answer(c) })
			req := w.request(bootStep)
			req.Want.BootTimeout = durationpb.New(300 * 1e6)
			req.Want.CloudInitTimeout = req.Want.BootTimeout
			tc.turn(w, in, req.GetWant())
			_, err := w.do(req)
			if err == nil || !strings.Contains(err.Error(), tc.want) || rpc.KindOf(err) != tc.kind {
				t.Errorf("got %v (%s), want %q (%s)", err, rpc.KindOf(err), tc.want, tc.kind)
			}
		})
	}
}

func TestBootGoesThroughTheGuestAgentWhenSSHIsMute(t *testing.T) {
	w := newWorld(t)
	vm := running(w)
	vm.GuestAgent = factYes("")
	w.hyp.vms[201] = vm
	w.svc.sshPort = 1
	if _, err := w.svc.keys.MakeHostKey("home", "k3s-1", 1); err != nil {
		t.Fatal(err)
	}
	in := goodInside()
	w.hyp.exec = func(req *driverv1.ExecRequest) (*driverv1.ExecResponse, error) {
		var out strings.Builder
		if req.GetArgv()[2] == k3s.ProbeScript {
			in.probe(&out)
		}
		return &driverv1.ExecResponse{Stdout: []byte(out.String())}, nil
	}
	s := w.must(bootStep)
	if !strings.Contains(s.result.GetText(), "guest agent only (ssh at 127.0.0.1:1: refused") {
		t.Errorf("result %q", s.result.GetText())
	}
}

// observe asks for a look into guest k3s-1.
func (w *world) observe(cluster bool) *homelabv1.Observation {
	w.t.Helper()
	r, err := w.svc.Observe(w.t.Context(), &agentv1.ObserveRequest{Looks: []*agentv1.LookRequest{{Want: w.want(), Cluster: cluster}}})
	if err != nil {
		w.t.Fatal(err)
	}
	return r.GetObservation()
}

func TestALookTellsWhatIsInside(t *testing.T) {
	w := newWorld(t)
	if looks := w.observe(true).GetLooks(); len(looks) != 0 {
		t.Errorf("looked into a guest that is not there: %v", looks)
	}
	w.hyp.vms[201] = running(w)
	in := goodInside()
	srv := w.guestOS(func(c sshtest.Command) int { return in.answer(c) })
	look := func() *homelabv1.GuestLook {
		t.Helper()
		looks := w.observe(true).GetLooks()
		if len(looks) != 1 {
			t.Fatalf("looks %v", looks)
		}
		return looks[0]
	}
	l := look()
	if !isYes(l.GetSsh()) || !isYes(l.GetBooted()) || !isYes(l.GetCloudInit()) || l.GetHostname() != "k3s-1" || !slices.Equal(l.GetAddresses(), []string{"127.0.0.1/8"}) {
		t.Errorf("look %v", l)
	}
	if k := l.GetK3S(); !isNo(k.GetServerData()) || !isNo(k.GetServerActive()) || k.GetVersion() != "" || !isYes(k.GetLooked()) {
		t.Errorf("k3s %v", k)
	}
	if !isUnknown(l.GetK3S().GetNodes().GetKnown()) || !isUnknown(l.GetK3S().GetEtcd().GetKnown()) {
		t.Errorf("no server runs, so its lists are unknown: %v", l.GetK3S())
	}
	in.hostname = "ubuntu"
	if l = look(); !isNo(l.GetBooted()) {
		t.Errorf("booted %v", l.GetBooted())
	}
	srv.Stop()
	if l = look(); !isNo(l.GetSsh()) || !isUnknown(l.GetBooted()) || !isUnknown(l.GetK3S().GetServerData()) || !strings.Contains(l.GetSsh().GetReason(), "refused") {
		t.Errorf("mute: %v", l)
	}
	// A foreign VM at that VMID is not looked into.
	w.hyp.vms[201].Uuid = "other"
	if looks := w.observe(false).GetLooks(); len(looks) != 0 {
		t.Errorf("looked into somebody else's VM: %v", looks)
	}
}

func TestAnObservationShowsTheAgentsOwnState(t *testing.T) {
	w := newWorld(t)
	w.must(fetchStep)
	if err := w.svc.intents.write(&homelabv1.Intent{Identity: w.want().GetIdentity(), Step: "create/pve1/k3s-1"}); err != nil {
		t.Fatal(err)
	}
	vm := running(w)
	vm.Tasks = []string{"UPID:pve1:1"}
	w.hyp.vms[201] = vm
	o := w.observe(false)
	if o.GetHost() != "pve1" || len(o.GetImages()) != 1 || len(o.GetIntents()) != 1 || o.GetFence().GetRun() != 1 || o.GetPaused() || !isYes(o.GetDriver()) {
		t.Errorf("%v", o)
	}
	if !isYes(o.GetIntents()[0].GetWorker()) {
		t.Errorf("a task that runs is a worker: %v", o.GetIntents()[0])
	}
	w.hyp.unseen = true
	if o = w.observe(false); !isUnknown(o.GetVmsKnown()) || !isUnknown(o.GetIntents()[0].GetWorker()) {
		t.Errorf("unseen: %v %v", o.GetVmsKnown(), o.GetIntents())
	}
	if err := os.WriteFile(w.cfg.PauseFile, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if !w.observe(false).GetPaused() {
		t.Error("not paused")
	}
}

// execStream collects what an exec sends.
type execStream struct {
	grpc.ServerStream
	ctx      context.Context
	out, err strings.Builder
	exit     int32
}

func (s *execStream) Context() context.Context { return s.ctx }

func (s *execStream) Send(m *agentv1.ExecResponse) error {
	switch p := m.GetPart().(type) {
	case *agentv1.ExecResponse_Stdout:
		s.out.Write(p.Stdout)
	case *agentv1.ExecResponse_Stderr:
		s.err.Write(p.Stderr)
	case *agentv1.ExecResponse_Exit:
		s.exit = p.Exit
	}
	return nil
}

func TestExecKeepsStreamsAndExitCode(t *testing.T) {
	w := newWorld(t)
	w.hyp.vms[201] = running(w)
	in := goodInside()
	w.guestOS(func(c sshtest.Command) int {
		if !strings.HasPrefix(c.Line, `sudo -n sh -c 'exec "$@"' sh 'wc' '-c'`) {
			return in.answer(c)
		}
		data, _ := io.ReadAll(c.Stdin)
		fmt.Fprintf(c.Stdout, "%d\n", len(data))
		_, _ = io.WriteString(c.Stderr, "done\n")
		return 42
	})
	s := &execStream{ctx: t.Context()}
	if err := w.svc.Exec(&agentv1.ExecRequest{Want: w.want(), Argv: []string{"wc", "-c"}, Stdin: []byte("hello")}, s); err != nil {
		t.Fatal(err)
	}
	if s.out.String() != "5\n" || s.err.String() != "done\n" || s.exit != 42 {
		t.Errorf("%q %q %d", s.out.String(), s.err.String(), s.exit)
	}
	want := w.want()
	want.NodeName = "k3s-9"
	if err := w.svc.Exec(&agentv1.ExecRequest{Want: want, Argv: []string{"id"}}, &execStream{ctx: t.Context()}); !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("wrong machine: %v", err)
	}
}

func TestCredentialsComeFromTheRightServerOnly(t *testing.T) {
	w := newWorld(t)
	w.hyp.vms[201] = running(w)
	in := goodInside()
	w.guestOS(func(c sshtest.Command) int {
		if script, ok := guesttest.Script(c); ok && script == k3s.ReadFileScript(k3s.ServerToken) {
			_, _ = io.WriteString(c.Stdout, "K10abc::server:x\n")
			return 0
		} else if ok && script == k3s.ReadFileScript(k3s.Kubeconfig) {
			_, _ = io.WriteString(c.Stderr, "cat: No such file or directory\n")
			return 1
		}
		return in.answer(c)
	})
	req := &agentv1.CredentialsRequest{Want: w.want(), Kind: agentv1.CredentialsKind_CREDENTIALS_KIND_TOKEN}
	r, err := w.svc.Credentials(t.Context(), req)
	if err != nil || string(r.GetSecret()) != "K10abc::server:x\n" || r.GetAt() == nil {
		t.Errorf("%v %v", r, err)
	}
	req.Kind = agentv1.CredentialsKind_CREDENTIALS_KIND_KUBECONFIG
	if _, err := w.svc.Credentials(t.Context(), req); !errors.Is(err, rpc.ErrUnavailable) {
		t.Errorf("missing file: %v", err)
	}
	req.Kind = 0
	if _, err := w.svc.Credentials(t.Context(), req); !errors.Is(err, rpc.ErrInvalid) {
		t.Errorf("no kind: %v", err)
	}
	req.Kind, req.Want.MachineId = agentv1.CredentialsKind_CREDENTIALS_KIND_TOKEN, "other"
	if _, err := w.svc.Credentials(t.Context(), req); !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("wrong machine: %v", err)
	}
}

func TestVerifyCommandsMustSucceed(t *testing.T) {
	w := newWorld(t)
	w.hyp.vms[201] = running(w)
	in := goodInside()
	w.guestOS(func(c sshtest.Command) int { return in.answer(c) })
	req := w.request(homelabv1.Action_ACTION_VERIFY)
	req.Want.Verify = []string{"true"}
	s, err := w.do(req)
	if err != nil || len(s.calls()) != 0 {
		t.Fatal(err, s.calls())
	}
	req.Want.Verify = []string{"true", "test -e /dev/dri/renderD128"}
	if _, err := w.do(req); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "test -e /dev/dri/renderD128: exit 127\n  not found") {
		t.Errorf("got %v", err)
	}
}

// TestALookAtACloneTellsNothingOfTheGuest: a clone answers at the guest's address
// with its host key and holds no k3s; that must not read as the guest holding none.
func TestALookAtACloneTellsNothingOfTheGuest(t *testing.T) {
	w := newWorld(t)
	w.hyp.vms[201] = running(w)
	in := goodInside()
	w.guestOS(func(c sshtest.Command) int { return in.answer(c) })
	want := w.want()
	want.MachineId = "fedcba9876543210"
	o, err := w.svc.Observe(t.Context(), &agentv1.ObserveRequest{Looks: []*agentv1.LookRequest{{Want: want, Cluster: true}}})
	if err != nil || len(o.GetObservation().GetLooks()) != 1 {
		t.Fatal(o, err)
	}
	l := o.GetObservation().GetLooks()[0]
	if !isNo(l.GetSsh()) || !isNo(l.GetBooted()) || !strings.Contains(l.GetBooted().GetReason(), "0123456789abcdef") {
		t.Errorf("ssh %v, booted %v", l.GetSsh(), l.GetBooted())
	}
	k := l.GetK3S()
	for name, f := range map[string]*homelabv1.Fact{
		"looked": k.GetLooked(), "data": k.GetServerData(), "unit": k.GetServerActive(), "nodes": k.GetNodes().GetKnown(), "etcd": k.GetEtcd().GetKnown(),
	} {
		if !isUnknown(f) {
			t.Errorf("%s: %v", name, f)
		}
	}
}
