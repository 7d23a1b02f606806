package controller

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/config"
	"github.com/homeiac/homelab/internal/rpc"
)

// specOf is a Spec of n hosts with a guest each, the first three servers.
func specOf(n int) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `apiVersion: homelab/v1
name: lab
vmids: 200-299
networks:
  lan: {subnet: %s, gateway: 10.0.0.1}
images:
  noble: {url: "file:///var/lib/homelab/noble.img", sha256: %s}
defaults:
  image: noble
  user: ubuntu
  sshKeys: ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHgdrP1GzEyOSis+hpSb8+IrV9ifTf5nOmLWIqXXUvOQ admin@laptop"]
  networks: [lan]
  disk: 10GiB
  cpus: 2
  memory: 2GiB
hosts:
`, subnet, strings.Repeat("b", 64))
	for i := 1; i <= n; i++ {
		fmt.Fprintf(&b, "  pve%d:\n    bridges: {lan: vmbr0}\n    storage: {disks: local, images: local, snippets: local}\n", i)
	}
	b.WriteString("guests:\n")
	for i := 1; i <= n; i++ {
		role := "server"
		if i > 3 {
			role = "agent"
		}
		fmt.Fprintf(&b, "  k3s-%d:\n    host: pve%d\n    vmid: %d\n    networks: [{network: lan, ip: 10.0.0.%d/24}]\n    k3s: {role: %s}\n", i, i, 200+i, 10+i, role)
	}
	b.WriteString("k3s: {version: v1.35.0+k3s1}\n")
	return b.Bytes()
}

// running is a controller that serves.
type running struct {
	*Controller
	end    context.CancelFunc
	done   chan error
	client controllerv1.ControllerServiceClient
	viewer controllerv1.ControllerServiceClient
}

// up starts a controller on the fleet's state folder; it is ended by the test's
// end, or by kill.
func (f *fleet) up() *running {
	f.t.Helper()
	cfg := Config{Daemon: config.Daemon{Name: "controller-1", Advertise: "127.0.0.1", State: filepath.Join(f.dir, "state")}, CertificateLife: time.Hour}
	c := newController(cfg, "test", slog.New(slog.DiscardHandler), f.creds("controller-1"), f.key(), f)
	c.pace = pace{
		poll: 5 * time.Millisecond, gone: 2 * time.Second, busy: 50 * time.Millisecond, flight: 20 * time.Second,
		ripen: 5 * time.Millisecond, slack: 20 * time.Millisecond, watch: usualPace.watch, look: usualPace.look, heal: usualPace.heal,
		agree: usualPace.agree, below: usualPace.below,
	}
	if f.tune != nil {
		f.tune(c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Controller: c, end: cancel, done: make(chan error, 1)}
	go func() { r.done <- c.Run(ctx) }()
	f.t.Cleanup(r.kill)
	select {
	case <-c.listens:
	case err := <-r.done:
		f.t.Fatalf("controller: %v", err)
	}
	r.client, r.viewer = r.dial("admin-1", f), r.dial("viewer-1", f)
	return r
}

func (r *running) dial(name string, f *fleet) controllerv1.ControllerServiceClient {
	conn, err := rpc.Dial(rpc.Target{Address: r.address, Role: rpc.RoleController, Credentials: f.creds(name), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = conn.Close() })
	return controllerv1.NewControllerServiceClient(conn)
}

func (r *running) kill() {
	r.end()
	if r.done != nil {
		if err := <-r.done; err != nil {
			r.log.Error("ended", "error", err)
		}
		r.done = nil
	}
}

// outcome is all that came of an Apply.
type outcome struct {
	events  []*homelabv1.Event
	plan    *homelabv1.Plan
	changed *homelabv1.Plan
	summary *homelabv1.Summary
	err     error
}

func (r *running) apply(ctx context.Context, text []byte, digest string, yes bool) outcome {
	return r.ask(ctx, &controllerv1.ApplyRequest{Spec: text, SpecName: "homelab.yaml", Digest: digest, Yes: yes})
}

func (r *running) ask(ctx context.Context, req *controllerv1.ApplyRequest) outcome {
	var o outcome
	stream, err := r.client.Apply(ctx, req)
	for o.err = err; o.err == nil; {
		var part *controllerv1.ApplyResponse
		if part, o.err = stream.Recv(); o.err != nil {
			break
		}
		if e := part.GetEvent(); e != nil {
			o.events = append(o.events, e)
		}
		if p := part.GetPlan(); p != nil {
			o.plan = p
		}
		if p := part.GetChangedPlan(); p != nil {
			o.changed = p
		}
		if s := part.GetSummary(); s != nil {
			o.summary = s
		}
	}
	if errors.Is(o.err, io.EOF) {
		o.err = nil
	}
	return o
}

func (o outcome) texts(kind homelabv1.EventKind) string {
	var b strings.Builder
	for _, e := range o.events {
		if e.GetKind() == kind {
			fmt.Fprintln(&b, e.GetText())
		}
	}
	return b.String()
}

// well fails the test unless every guest is there once and a member.
func (f *fleet) well(guests, servers int) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	names := map[string]int{}
	for _, a := range f.agents {
		for _, vm := range a.vms {
			names[vm.name]++
		}
	}
	for name, n := range names {
		if n != 1 {
			f.t.Errorf("%d VMs are named %s", n, name)
		}
	}
	if len(names) != guests || len(f.nodes) != guests || len(f.members) != servers || f.inits != 1 {
		f.t.Errorf("%d guests, %d nodes, %d etcd members, %d cluster-inits", len(names), len(f.nodes), len(f.members), f.inits)
	}
}

func hostNames(n int) []string {
	var names []string
	for i := 1; i <= n; i++ {
		names = append(names, fmt.Sprintf("pve%d", i))
	}
	return names
}

func TestApplyMakesAClusterAndTheSecondDoesNothing(t *testing.T) {
	f := newFleet(t, hostNames(5)...)
	c := f.up()
	text := specOf(5)
	planned, err := c.client.Plan(t.Context(), &controllerv1.PlanRequest{Spec: text, SpecName: "homelab.yaml"})
	if err != nil {
		t.Fatal(err)
	}
	first := c.apply(t.Context(), text, planned.GetPlan().GetDigest(), false)
	if first.err != nil || first.changed != nil {
		t.Fatalf("apply: %v, changed %v", first.err, first.changed)
	}
	if s := first.summary; s.GetFailed()+s.GetSkipped()+s.GetRefused() != 0 || !s.GetSomethingHealthy() || int(s.GetDone()) != len(first.plan.GetSteps()) {
		t.Errorf("summary %v\n%s", s, first.texts(homelabv1.EventKind_EVENT_KIND_STEP_FAILED))
	}
	if int(first.summary.GetMutatingCalls()) != f.calls {
		t.Errorf("%d changing calls counted, there were %d", first.summary.GetMutatingCalls(), f.calls)
	}
	f.well(5, 3)

	second := c.apply(t.Context(), text, "", true)
	if second.err != nil || len(second.plan.GetSteps()) != 0 || second.summary.GetMutatingCalls() != 0 || second.summary.GetUnchanged() != 5 {
		t.Errorf("second apply: %v, plan %v, summary %v", second.err, second.plan, second.summary)
	}
	status, err := c.viewer.Status(t.Context(), &controllerv1.StatusRequest{Fresh: true, Looks: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range status.GetGuests() {
		if g.GetHealth() != controllerv1.Health_HEALTH_HEALTHY {
			t.Errorf("%s is %s: %s", g.GetName(), g.GetHealth(), g.GetReason())
		}
	}
	if k := status.GetCluster(); k.GetVoters() != 3 || k.GetHealthyVoters() != 3 || k.GetQuorum() != 2 || len(k.GetNodes()) != 5 {
		t.Errorf("cluster %v", k)
	}
	for _, m := range status.GetCluster().GetMembers() {
		if m.GetGuest() == "" || m.GetNode() == "" {
			t.Errorf("a ghost: %v", m)
		}
	}
	runs, err := c.viewer.ListRuns(t.Context(), &controllerv1.ListRunsRequest{})
	if err != nil || len(runs.GetRuns()) != 2 || runs.GetRuns()[0].GetState() != "done" || runs.GetRuns()[0].GetBy() != "admin@admin-1" {
		t.Errorf("runs %v, %v", runs, err)
	}
	config, err := c.client.Kubeconfig(t.Context(), &controllerv1.KubeconfigRequest{})
	if err != nil || !strings.Contains(string(config.GetKubeconfig()), "https://10.0.0.11:6443") {
		t.Errorf("kubeconfig %s, %v", config.GetKubeconfig(), err)
	}
}

func TestAnotherPlanIsShownAndNotCarriedOut(t *testing.T) {
	f := newFleet(t, "pve1")
	c := f.up()
	o := c.apply(t.Context(), specOf(1), "another digest", false)
	if o.err != nil || o.changed == nil || o.summary != nil || f.calls != 0 {
		t.Errorf("%v, changed %v, summary %v, %d calls", o.err, o.changed, o.summary, f.calls)
	}
	if runs, err := c.client.ListRuns(t.Context(), &controllerv1.ListRunsRequest{}); err != nil || len(runs.GetRuns()) != 0 {
		t.Errorf("runs %v, %v", runs, err)
	}
}

func TestASecondApplyAtOnceIsRefused(t *testing.T) {
	f := newFleet(t, "pve1")
	c := f.up()
	working, goOn := make(chan struct{}), make(chan struct{})
	f.at = func(when, _ string, s *homelabv1.Step) {
		if when == "before" && s.GetAction() == homelabv1.Action_ACTION_CREATE {
			close(working)
			<-goOn
		}
	}
	first := make(chan outcome, 1)
	go func() { first <- c.apply(t.Context(), specOf(1), "", true) }()
	select {
	case <-working:
	case o := <-first:
		t.Fatalf("first ended: %v, %v", o.err, o.summary)
	}
	second := c.apply(t.Context(), specOf(1), "", true)
	if !errors.Is(second.err, rpc.ErrBusy) || !strings.Contains(second.err.Error(), "admin@admin-1") {
		t.Errorf("second: %v", second.err)
	}
	close(goOn)
	if o := <-first; o.err != nil || o.summary.GetFailed() != 0 {
		t.Errorf("first: %v, %v", o.err, o.summary)
	}
}

func TestAViewerMayOnlyLook(t *testing.T) {
	f := newFleet(t, "pve1")
	c := f.up()
	stream, err := c.viewer.Apply(t.Context(), &controllerv1.ApplyRequest{Spec: specOf(1), Yes: true})
	if err == nil {
		_, err = stream.Recv()
	}
	if !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("apply: %v", err)
	}
	if _, err := c.viewer.Kubeconfig(t.Context(), &controllerv1.KubeconfigRequest{}); !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("kubeconfig: %v", err)
	}
	if _, err := c.viewer.Plan(t.Context(), &controllerv1.PlanRequest{Spec: specOf(1)}); err != nil {
		t.Errorf("plan: %v", err)
	}
}

func TestAHostWhoseAgentIsGoneIsSkippedAndTheOthersComplete(t *testing.T) {
	f := newFleet(t, hostNames(4)...)
	c := f.up()
	if _, err := c.client.Plan(t.Context(), &controllerv1.PlanRequest{Spec: specOf(4)}); err != nil {
		t.Fatal(err)
	}
	f.stop("pve4")
	o := c.apply(t.Context(), specOf(4), "", true)
	if o.err != nil || o.summary.GetSkipped() == 0 || o.summary.GetFailed() != 0 || !o.summary.GetSomethingHealthy() {
		t.Fatalf("%v, %v\n%s", o.err, o.summary, o.texts(homelabv1.EventKind_EVENT_KIND_NOTE))
	}
	f.well(3, 3)
	status, err := c.client.Status(t.Context(), &controllerv1.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(status.GetHosts(), func(h *homelabv1.HostStatus) bool { return h.GetName() == "pve4" })
	if h := status.GetHosts()[i]; h.GetState() != homelabv1.HostState_HOST_STATE_AGENT_GONE || h.GetSince() == nil {
		t.Errorf("pve4: %v", h)
	}
	f.start("pve4")
	if o := c.apply(t.Context(), specOf(4), "", true); o.err != nil || o.summary.GetFailed()+o.summary.GetSkipped() != 0 {
		t.Errorf("back again: %v, %v", o.err, o.summary)
	}
	f.well(4, 3)
}

func TestAnAgentThatRestartsInTheMiddleOfAStepIsWaitedFor(t *testing.T) {
	f := newFleet(t, hostNames(3)...)
	c := f.up()
	restarted := make(chan struct{})
	f.at = func(when, host string, s *homelabv1.Step) {
		if when == "after" && s.GetId() == "create/pve2/k3s-2" {
			select {
			case <-restarted:
			default:
				close(restarted)
				f.stop(host) // the answer is lost
				f.start(host)
			}
		}
	}
	if o := c.apply(t.Context(), specOf(3), "", true); o.err != nil || o.summary.GetFailed() != 0 {
		t.Errorf("%v, %v\n%s", o.err, o.summary, o.texts(homelabv1.EventKind_EVENT_KIND_STEP_FAILED))
	}
	f.well(3, 3)
}

func TestAnAgentThatStaysAwayFailsItsStepAndSkipsTheRest(t *testing.T) {
	f := newFleet(t, hostNames(4)...)
	c := f.up()
	c.pace.gone = 100 * time.Millisecond
	f.at = func(when, host string, s *homelabv1.Step) {
		if when == "before" && s.GetId() == "create/pve4/k3s-4" {
			f.stop(host)
		}
	}
	o := c.apply(t.Context(), specOf(4), "", true)
	if o.err != nil || o.summary.GetFailed() != 1 || o.summary.GetSkipped() == 0 || !o.summary.GetSomethingHealthy() {
		t.Fatalf("%v, %v", o.err, o.summary)
	}
	failed := o.texts(homelabv1.EventKind_EVENT_KIND_STEP_FAILED)
	if !strings.Contains(failed, "create k3s-4 on pve4") || !strings.Contains(failed, "hlctl hosts") {
		t.Errorf("failed: %s", failed)
	}
	f.start("pve4")
	f.at = func(string, string, *homelabv1.Step) {}
	if o := c.apply(t.Context(), specOf(4), "", true); o.err != nil || o.summary.GetFailed()+o.summary.GetSkipped() != 0 {
		t.Errorf("again: %v, %v", o.err, o.summary)
	}
	f.well(4, 3)
}

func TestCtrlCLetsRunningStepsFinishAndBeginsNothingNew(t *testing.T) {
	f := newFleet(t, hostNames(3)...)
	c := f.up()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	goOn := make(chan struct{})
	f.at = func(when, _ string, s *homelabv1.Step) {
		if when == "before" && s.GetId() == "start/pve1/k3s-1" {
			cancel()
			<-goOn
		}
	}
	c.apply(ctx, specOf(3), "", true)
	// The next call on the same connection comes after the cancellation.
	if _, err := c.client.Version(t.Context(), &controllerv1.VersionRequest{}); err != nil {
		t.Fatal(err)
	}
	close(goOn)
	c.runs.Wait()
	runs, err := c.client.ListRuns(t.Context(), &controllerv1.ListRunsRequest{})
	if err != nil || runs.GetRuns()[0].GetState() != "interrupted" {
		t.Fatalf("%v, %v", runs, err)
	}
	if slices.Contains(f.steps, "boot/pve1/k3s-1") {
		t.Errorf("something new was begun: %v", f.steps)
	}
	f.at = func(string, string, *homelabv1.Step) {}
	if o := c.apply(t.Context(), specOf(3), "", true); o.err != nil || o.summary.GetFailed() != 0 {
		t.Errorf("again: %v, %v", o.err, o.summary)
	}
	f.well(3, 3)
}

func TestAControllerKilledAtAnyStepBoundaryIsFinishedByTheNext(t *testing.T) {
	hosts, text := hostNames(3), specOf(3)
	var boundaries []string
	{
		f := newFleet(t, hosts...)
		f.up().apply(t.Context(), text, "", true)
		for _, s := range f.steps {
			if !strings.HasPrefix(s, "takeback/") {
				boundaries = append(boundaries, "before "+s, "after "+s)
			}
		}
	}
	if len(boundaries) < 20 {
		t.Fatalf("%d boundaries", len(boundaries))
	}
	for _, boundary := range boundaries {
		t.Run(strings.ReplaceAll(boundary, "/", "-"), func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, hosts...)
			c := f.up()
			killed := make(chan struct{})
			f.at = func(when, _ string, s *homelabv1.Step) {
				if when+" "+s.GetId() == boundary {
					select {
					case <-killed:
					default:
						close(killed)
						c.end()
					}
				}
			}
			o := c.apply(t.Context(), text, "", true)
			select {
			case <-killed:
			default:
				t.Fatalf("never came to it: %v, %v", o.err, o.summary)
			}
			c.kill()
			c = f.up()
			o = c.apply(t.Context(), text, "", true)
			if o.err != nil || o.summary.GetFailed()+o.summary.GetSkipped()+o.summary.GetRefused() != 0 {
				t.Fatalf("next apply: %v, %v\n%s%s", o.err, o.summary, o.texts(homelabv1.EventKind_EVENT_KIND_STEP_FAILED), o.texts(homelabv1.EventKind_EVENT_KIND_NOTE))
			}
			f.well(3, 3)
			before := f.calls
			if o := c.apply(t.Context(), text, "", true); o.err != nil || len(o.plan.GetSteps()) != 0 || f.calls != before {
				t.Errorf("the one after: %v, %v", o.err, o.plan)
			}
		})
	}
}

func TestACommandForAGuestWhoseHostDoesNotAnswerSaysWhichHost(t *testing.T) {
	f := newFleet(t, hostNames(1)...)
	c := f.up()
	if o := c.apply(t.Context(), specOf(1), "", true); o.err != nil {
		t.Fatal(o.err)
	}
	f.stop("pve1")
	s, err := c.client.Exec(t.Context(), &controllerv1.ExecRequest{Guest: "k3s-1", Argv: []string{"true"}})
	if err == nil {
		_, err = s.Recv()
	}
	const want = "refuses the connection; on the host: systemctl status hl-agent"
	if !errors.Is(err, rpc.ErrUnavailable) || !strings.HasPrefix(err.Error(), "guest k3s-1 on pve1: ") || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("%v", err)
	}
}
