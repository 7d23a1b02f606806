package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/homeiac/homelab/cli/onhost/onhosttest"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// noon is when the tests take place.
var noon = time.Date(2026, 3, 1, 14, 2, 0, 0, time.UTC)

// clock is a time that tests set.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// fake is a controller whose world is one plan: applying carries the plan out in
// pretended time, and then there is nothing to do.
type fake struct {
	controllerv1.UnimplementedControllerServiceServer
	clock *clock

	mu     sync.Mutex
	plan   *homelabv1.Plan
	drifts []*homelabv1.Plan // each apply finds the next of these instead
	fails  map[string]string // step -> why it fails
	status *controllerv1.StatusResponse
	silent bool   // the k3s API, at the end of a run
	rash   bool   // it begins what --yes does not stand for
	cut    func() // called before a certificate is taken back; may be nil
	kept   []*controllerv1.RunRecord
	events []*homelabv1.Event
	// before are events that come before anything of a run, as a wait does.
	before []*homelabv1.Event
	asked  []*controllerv1.PlanRequest
	why    map[string]*controllerv1.WhyResponse
	paused string
	// stuck is a controller that cannot end a pause.
	stuck bool
	// version is the controller's, when it is another one than always.
	version string
	// left are what no VM has, and snaps the etcd snapshots.
	left  *controllerv1.OrphansResponse
	snaps *controllerv1.ListSnapshotsResponse
	// trust is who is trusted, and tokens those who may come.
	trust   *controllerv1.TrustResponse
	tokens  []*controllerv1.TokenStatus
	change  *change // of the root
	revoked *rpc.Revocations
	// takenBack are the holders whose certificates were taken back, and rotated how often
	// the gossip key was.
	takenBack []string
	rotated   int
	// registry gives certificates for tokens, in the place of both.
	registry *registry
	// hosts are those that it finds.
	hosts []*onhosttest.Host
	// hold is called before each part of a run is sent.
	hold func(ctx context.Context, part *controllerv1.ApplyResponse)
}

// takes is how long each action pretends to take, and what it waits for meanwhile.
var takes = map[homelabv1.Action]struct {
	d    time.Duration
	wait string
	call []string
}{
	homelabv1.Action_ACTION_FETCH:    {6 * time.Second, "48 MiB of 96 MiB, 16 MiB/s, 0:03 left, from pve2", []string{"image", "noble"}},
	homelabv1.Action_ACTION_TEMPLATE: {3 * time.Second, "", []string{"qm", "create", "9000"}},
	homelabv1.Action_ACTION_PRUNE:    {time.Second, "", []string{"qm", "destroy", "9000"}},
	homelabv1.Action_ACTION_ROLLBACK: {2 * time.Second, "", []string{"qm", "destroy", "202"}},
	homelabv1.Action_ACTION_CREATE:   {4 * time.Second, "", []string{"qm", "create", "201", "--name", "k3s 1"}},
	homelabv1.Action_ACTION_START:    {time.Second, "", []string{"qm", "start", "201"}},
	homelabv1.Action_ACTION_BOOT:     {31 * time.Second, "guest agent answers, cloud-init running", nil},
	homelabv1.Action_ACTION_INIT:     {14 * time.Second, "waiting until Node k3s-1 is Ready", []string{"guest", "install"}},
	homelabv1.Action_ACTION_JOIN:     {22 * time.Second, "waiting to be promoted from learner", []string{"guest", "install"}},
	homelabv1.Action_ACTION_VERIFY:   {time.Second, "", nil},
	homelabv1.Action_ACTION_SNAPSHOT: {2 * time.Second, "", []string{"etcd", "snapshot"}},
	homelabv1.Action_ACTION_DRAIN:    {3 * time.Second, "2 pods left", nil},
	homelabv1.Action_ACTION_STOP:     {time.Second, "", []string{"qm", "stop", "202"}},
	homelabv1.Action_ACTION_LEAVE:    {time.Second, "", []string{"etcd", "member-remove", "2b"}},
	homelabv1.Action_ACTION_DETACH:   {time.Second, "", []string{"qm", "disk", "move", "202", "scsi1"}},
	homelabv1.Action_ACTION_DESTROY:  {2 * time.Second, "", []string{"qm", "destroy", "202"}},
	homelabv1.Action_ACTION_ATTACH:   {time.Second, "", []string{"qm", "disk", "move", "9001", "scsi1"}},
	homelabv1.Action_ACTION_SOAK:     {2 * time.Minute, "well for 1 of 2 min", nil},
	homelabv1.Action_ACTION_ADOPT:    {0, "", []string{"qm", "set", "117"}},
	homelabv1.Action_ACTION_RESET:    {time.Second, "", []string{"qm", "reset", "202"}},
	homelabv1.Action_ACTION_CLEAN:    {4 * time.Second, "", []string{"guest", "uninstall"}},
}

func (f *fake) Version(_ context.Context, req *controllerv1.VersionRequest) (*controllerv1.VersionResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	// While its service does not run, the one before it answers still.
	f.version = cmp.Or(f.runs("controller-1"), f.version, "v0.1.0")
	resp := &controllerv1.VersionResponse{Version: f.version, Name: "controller-1"}
	if f.revoked.Number() > req.GetRevocations() {
		resp.Revocations = f.revoked.PEM()
	}
	return resp, nil
}

func (f *fake) Plan(_ context.Context, req *controllerv1.PlanRequest) (*controllerv1.PlanResponse, error) {
	if len(req.GetSpec()) == 0 && req.GetOperation() == nil {
		return nil, rpc.Errorf(rpc.ErrInvalid, "neither a Spec nor an operation")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, req)
	return &controllerv1.PlanResponse{Plan: f.plan, Guests: f.status.GetGuests()}, nil
}

func (f *fake) Apply(req *controllerv1.ApplyRequest, stream controllerv1.ControllerService_ApplyServer) error {
	f.mu.Lock()
	if len(f.drifts) > 0 {
		f.plan, f.drifts = f.drifts[0], f.drifts[1:]
	}
	p, hold, before := f.plan, f.hold, f.before
	f.before = nil
	f.mu.Unlock()
	send := func(part *controllerv1.ApplyResponse) error {
		if hold != nil {
			hold(stream.Context(), part)
		}
		if err := stream.Context().Err(); err != nil {
			return err
		}
		return stream.Send(part)
	}
	for _, e := range before {
		if err := send(&controllerv1.ApplyResponse{Part: &controllerv1.ApplyResponse_Event{Event: e}}); err != nil {
			return err
		}
	}
	if p.GetDigest() != req.GetDigest() && (!req.GetYes() || len(destroyed(p)) > 0 && !f.rash) {
		return send(&controllerv1.ApplyResponse{Part: &controllerv1.ApplyResponse_ChangedPlan{ChangedPlan: p}})
	}
	for _, guest := range p.GetByName() {
		if !slices.Contains(req.GetDestroy(), guest) {
			return rpc.Errorf(rpc.ErrRefused, "the destruction of %s is not confirmed by its name", guest)
		}
	}
	if err := send(&controllerv1.ApplyResponse{Part: &controllerv1.ApplyResponse_Plan{Plan: p}}); err != nil {
		return err
	}
	began := f.clock.now()
	events, sum := f.play(p, began)
	for _, e := range events {
		if err := send(&controllerv1.ApplyResponse{Part: &controllerv1.ApplyResponse_Event{Event: e}}); err != nil {
			return err
		}
	}
	f.mu.Lock()
	f.events, f.plan = events, after(p, sum)
	f.kept = append([]*controllerv1.RunRecord{{
		Run: int64(len(f.kept) + 1), By: "admin@laptop", State: "done", Summary: sum,
		Started: timestamppb.New(began), Ended: timestamppb.New(began.Add(sum.GetTook().AsDuration())),
	}}, f.kept...)
	f.mu.Unlock()
	f.clock.add(sum.GetTook().AsDuration())
	return send(&controllerv1.ApplyResponse{Part: &controllerv1.ApplyResponse_Summary{Summary: sum}})
}

// after is the plan once p was carried out.
func after(p *homelabv1.Plan, sum *homelabv1.Summary) *homelabv1.Plan {
	if sum.GetFailed() > 0 {
		return p
	}
	next := &homelabv1.Plan{Digest: p.GetDigest() + "+"}
	seen := map[string]bool{}
	for _, s := range p.GetSteps() {
		if s.GetGuest() != "" && !seen[s.GetGuest()] {
			seen[s.GetGuest()] = true
			next.Notes = append(next.Notes, &homelabv1.Note{Kind: homelabv1.NoteKind_NOTE_KIND_UNCHANGED, Guest: s.GetGuest(), Host: s.GetHost(), Text: "healthy"})
		}
	}
	next.Notes = append(next.Notes, p.GetNotes()...)
	return next
}

// play makes the events of a run: each step begins when those before it are over.
func (f *fake) play(p *homelabv1.Plan, began time.Time) ([]*homelabv1.Event, *homelabv1.Summary) {
	const run = 7
	sum := &homelabv1.Summary{ApiSilent: f.silent}
	var events []*homelabv1.Event
	at := map[string]time.Time{}
	bad := map[string]bool{}
	last := began
	for _, s := range p.GetSteps() {
		start, blocked := began, ""
		for _, id := range s.GetAfter() {
			if at[id].After(start) {
				start = at[id]
			}
			if bad[id] {
				blocked = id
			}
		}
		add := func(t time.Time, e *homelabv1.Event) {
			e.Time, e.Run, e.Step, e.Guest, e.Host = timestamppb.New(t), run, s.GetId(), s.GetGuest(), s.GetHost()
			e.Phase = actions[s.GetAction()].doing
			events = append(events, e)
		}
		if blocked != "" {
			at[s.GetId()], bad[s.GetId()] = start, true
			sum.Skipped++
			add(start, &homelabv1.Event{Kind: homelabv1.EventKind_EVENT_KIND_STEP_SKIPPED, Text: s.GetId() + " was not begun: " + blocked + " failed"})
			continue
		}
		how := takes[s.GetAction()]
		end := start.Add(how.d)
		at[s.GetId()] = end
		if end.After(last) {
			last = end
		}
		add(start, &homelabv1.Event{Kind: homelabv1.EventKind_EVENT_KIND_STEP_STARTED, Text: s.GetId() + ": " + s.GetReason()})
		if how.wait != "" {
			for range 2 { // a wait is told again while it lasts
				add(start.Add(how.d/2), &homelabv1.Event{Kind: homelabv1.EventKind_EVENT_KIND_STEP_PROGRESS, Text: how.wait, Limit: durationpb.New(2 * how.d)})
			}
		}
		if how.call != nil {
			sum.MutatingCalls++
			add(end, &homelabv1.Event{Kind: homelabv1.EventKind_EVENT_KIND_CALL, Call: &homelabv1.Call{
				Program: how.call[0], Args: how.call[1:], Took: durationpb.New(how.d), Mutating: true,
			}})
		}
		if why := f.fails[s.GetId()]; why != "" {
			bad[s.GetId()] = true
			sum.Failed++
			add(end, &homelabv1.Event{Kind: homelabv1.EventKind_EVENT_KIND_STEP_FAILED, Text: why, Took: durationpb.New(how.d)})
			continue
		}
		sum.Done++
		add(end, &homelabv1.Event{Kind: homelabv1.EventKind_EVENT_KIND_STEP_DONE, Text: s.GetId(), Took: durationpb.New(how.d)})
	}
	slices.SortStableFunc(events, func(a, b *homelabv1.Event) int {
		return cmp.Compare(a.GetTime().AsTime().UnixNano(), b.GetTime().AsTime().UnixNano())
	})
	head := []*homelabv1.Event{{
		Time: timestamppb.New(began), Run: run, Kind: homelabv1.EventKind_EVENT_KIND_RUN_STARTED,
		Text: fmt.Sprintf("run %d by admin@laptop: %d steps", run, len(p.GetSteps())),
	}}
	for _, n := range p.GetNotes() {
		switch n.GetKind() {
		case homelabv1.NoteKind_NOTE_KIND_UNCHANGED:
			sum.Unchanged++
		case homelabv1.NoteKind_NOTE_KIND_SKIPPED, homelabv1.NoteKind_NOTE_KIND_BUSY, homelabv1.NoteKind_NOTE_KIND_WAITING:
			sum.Skipped++
		case homelabv1.NoteKind_NOTE_KIND_REFUSED:
			sum.Refused++
		}
		head = append(head, &homelabv1.Event{
			Time: timestamppb.New(began), Run: run, Kind: homelabv1.EventKind_EVENT_KIND_NOTE, Guest: n.GetGuest(), Host: n.GetHost(),
			Text: n.GetText(), Note: enumWord(n.GetKind().String(), "NOTE_KIND_"),
		})
	}
	took := last.Sub(began) + 200*time.Millisecond
	sum.Took, sum.SomethingHealthy = durationpb.New(took), sum.Unchanged > 0 || sum.Done > 0 && sum.Failed == 0
	events = append(head, events...)
	return append(events, &homelabv1.Event{
		Time: timestamppb.New(began.Add(took)), Run: run, Kind: homelabv1.EventKind_EVENT_KIND_RUN_ENDED, Text: "ended", Took: durationpb.New(took),
	}), sum
}

func (f *fake) Status(_ context.Context, req *controllerv1.StatusRequest) (*controllerv1.StatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	resp := proto.CloneOf(f.status)
	resp.Paused = f.paused
	if len(f.hosts) > 0 {
		resp.Hosts = f.seen()
	}
	if !req.GetLooks() {
		resp.Guests, resp.Cluster = nil, nil
	}
	return resp, nil
}

func (f *fake) Why(_ context.Context, req *controllerv1.WhyRequest) (*controllerv1.WhyResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	resp := f.why[req.GetGuest()]
	if resp == nil {
		return nil, rpc.Errorf(rpc.ErrNotFound, "nothing is known of a guest %s; hlctl guests lists them", req.GetGuest())
	}
	resp = proto.CloneOf(resp)
	resp.Entries = resp.GetEntries()[max(0, len(resp.GetEntries())-int(req.GetLimit())):]
	return resp, nil
}

func (f *fake) Pause(_ context.Context, req *controllerv1.PauseRequest) (*controllerv1.PauseResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.paused = "by admin@laptop since 14:02"
	if req.GetReason() != "" {
		f.paused = req.GetReason() + " (" + f.paused + ")"
	}
	return &controllerv1.PauseResponse{Paused: f.paused}, nil
}

func (f *fake) Resume(_ context.Context, req *controllerv1.ResumeRequest) (*controllerv1.ResumeResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.stuck:
		return nil, rpc.Errorf(rpc.ErrUnavailable, "the store does not answer")
	case req.GetGuest() != "":
		return &controllerv1.ResumeResponse{Text: req.GetGuest() + " is no longer parked."}, nil
	case f.paused == "":
		return &controllerv1.ResumeResponse{Text: "Nothing was paused."}, nil
	}
	f.paused = ""
	return &controllerv1.ResumeResponse{Text: "Changes go on."}, nil
}

func (f *fake) Orphans(context.Context, *controllerv1.OrphansRequest) (*controllerv1.OrphansResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return proto.CloneOf(f.left), nil
}

func (f *fake) ListSnapshots(context.Context, *controllerv1.ListSnapshotsRequest) (*controllerv1.ListSnapshotsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return proto.CloneOf(f.snaps), nil
}

func (f *fake) ListRuns(_ context.Context, req *controllerv1.ListRunsRequest) (*controllerv1.ListRunsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &controllerv1.ListRunsResponse{Runs: f.kept[:min(len(f.kept), int(req.GetLimit()))]}, nil
}

func (f *fake) FollowRun(req *controllerv1.FollowRunRequest, stream controllerv1.ControllerService_FollowRunServer) error {
	f.mu.Lock()
	events, kept := f.events, f.kept
	f.mu.Unlock()
	i := slices.IndexFunc(kept, func(r *controllerv1.RunRecord) bool { return req.GetRun() == 0 || r.GetRun() == req.GetRun() })
	if i < 0 {
		return rpc.Errorf(rpc.ErrNotFound, "there is no run %d; hlctl runs lists them", req.GetRun())
	}
	for _, e := range events {
		if err := stream.Send(&controllerv1.FollowRunResponse{Part: &controllerv1.FollowRunResponse_Event{Event: e}}); err != nil {
			return err
		}
	}
	return stream.Send(&controllerv1.FollowRunResponse{Part: &controllerv1.FollowRunResponse_Record{Record: kept[i]}})
}

// Exec knows a few commands: argv prints its arguments as JSON, cat its input,
// exit ends with a code, vanish ends without one.
func (f *fake) Exec(req *controllerv1.ExecRequest, stream controllerv1.ControllerService_ExecServer) error {
	if req.GetGuest() != "k3s-1" {
		return rpc.Errorf(rpc.ErrNotFound, "the Spec has no guest %s", req.GetGuest())
	}
	out := func(text []byte) error {
		return stream.Send(&controllerv1.ExecResponse{Part: &controllerv1.ExecResponse_Stdout{Stdout: text}})
	}
	exit := 0
	var err error
	switch argv := req.GetArgv(); argv[0] {
	case "argv":
		data, _ := json.Marshal(argv)
		err = out(append(data, '\n'))
	case "cat":
		err = out(req.GetStdin())
	case "exit":
		err = stream.Send(&controllerv1.ExecResponse{Part: &controllerv1.ExecResponse_Stderr{Stderr: []byte("it ends\n")}})
		exit, _ = strconv.Atoi(argv[1])
	case "vanish":
		return nil
	}
	if err != nil {
		return err
	}
	return stream.Send(&controllerv1.ExecResponse{Part: &controllerv1.ExecResponse_Exit{Exit: int32(exit)}}) //nolint:gosec // small
}

func (f *fake) Kubeconfig(context.Context, *controllerv1.KubeconfigRequest) (*controllerv1.KubeconfigResponse, error) {
	return &controllerv1.KubeconfigResponse{Kubeconfig: []byte("apiVersion: v1\nkind: Config\ncurrent-context: homelab\n")}, nil
}
