package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/homeiac/homelab/controller/plan"
	"github.com/homeiac/homelab/controller/store"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/gossip"
	"github.com/homeiac/homelab/internal/pause"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/spec"
)

var (
	errCancelled = errors.New("cancelled: nothing new was begun; run it again: hlctl apply")
	errLockLost  = store.ErrLockLost
)

// request is what was asked of a run.
type request struct {
	sp     *spec.Spec
	name   string // of the Spec's file
	text   []byte
	digest string // of the plan that was shown
	yes    bool   // another plan may be carried out as well
	by     string
	asked  asked
}

// run is one carrying-out of a plan.
type run struct {
	c        *Controller
	req      request
	lock     *store.Lock
	send     func(*controllerv1.ApplyResponse) error
	began    time.Time
	record   *controllerv1.RunRecord // nil before it was begun
	journal  *journal
	dispatch *dispatch
	// announced are guests that were said to be waited for.
	announced map[string]bool

	mu  sync.Mutex
	sum homelabv1.Summary
}

// apply carries out what makes seen equal wanted, when it is what was shown.
// call ends when the caller goes away: nothing new begins then, and apply
// returns when the running steps are over.
func (c *Controller) apply(call context.Context, req request, send func(*controllerv1.ApplyResponse) error) error {
	lock, err := c.takeLock(call, req.by)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	ctx, stop := context.WithCancelCause(call)
	defer stop(nil)
	defer context.AfterFunc(c.life, func() { stop(errEnding) })()
	go func() {
		select {
		case <-lock.Lost():
			stop(errLockLost)
		case <-ctx.Done():
		}
	}()
	r := &run{c: c, req: req, lock: lock, send: send, began: c.now()}
	return r.carryOut(ctx)
}

// takeLock takes the run lock. One that a dead controller left ends by itself
// within seconds and is waited for; any other is ErrBusy at once.
func (c *Controller) takeLock(ctx context.Context, by string) (*store.Lock, error) {
	until := c.now().Add(c.pace.lock)
	for {
		lock, err := c.store.Lock(ctx, by, c.now())
		if !errors.Is(err, rpc.ErrBusy) {
			return lock, err
		}
		holder, held, heldErr := c.store.Held(ctx)
		if heldErr != nil {
			return nil, heldErr
		}
		if held && c.lives(ctx, holder.Controller) || c.now().After(until) || !pause.For(ctx, c.pace.poll) {
			return nil, err
		}
	}
}

// lives says whether a controller is there: this one, or another that the gossip
// has not lost and that can be connected to; the gossip alone is seconds late.
func (c *Controller) lives(ctx context.Context, name string) bool {
	return name == c.cfg.Name || slices.ContainsFunc(c.seeing.peers.Peers(), func(p gossip.Peer) bool {
		return p.Role == rpc.RoleController && p.Name == name && p.Alive && knock(ctx, p.Address) == nil
	})
}

// why is what ended a run's context: its caller, when nothing else did.
func why(ctx context.Context) error {
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	return errCancelled
}

func (r *run) carryOut(ctx context.Context) error {
	w, p, err := r.settle(ctx)
	if err != nil {
		return r.abandon(err)
	}
	// Yes stands for what was shown, and not for whatever else would be destroyed:
	// whoever confirmed compares, and asks again. Without a digest nothing was shown.
	if p.GetDigest() != r.req.digest && (!r.req.yes || r.req.digest != "" && r.surprising(p) != "") {
		if err := r.abandon(nil); err != nil {
			return err
		}
		rpc.Sum(ctx, "", "nothing was done: this is another plan than was shown")
		return r.send(&controllerv1.ApplyResponse{Part: &controllerv1.ApplyResponse_ChangedPlan{ChangedPlan: p}})
	}
	if names := unconfirmed(p, r.req.asked.destroy); len(names) > 0 {
		return r.abandon(rpc.Errorf(rpc.ErrRefused, "nothing was changed: %s would be destroyed, and --yes does not confirm that; name each that may be: --destroy %s",
			strings.Join(names, ", "), strings.Join(names, " --destroy ")))
	}
	if r.req.asked.heal && len(p.GetSteps()) == 0 {
		return r.abandon(nil) // it got well by itself
	}
	if err := r.begin(ctx); err != nil {
		return err
	}
	if err := r.prepare(ctx, w, p); err != nil {
		return r.abandon(err)
	}
	if err := r.send(&controllerv1.ApplyResponse{Part: &controllerv1.ApplyResponse_Plan{Plan: p}}); err != nil {
		r.c.log.Debug("plan not sent, the caller is gone", "error", err)
	}
	rpc.About(ctx, aboutPlan(p)...)
	r.tellPlan(p)
	r.c.work(guestsOf(p))
	q := &schedule{do: r.step, skip: r.skipped, stop: r.paused}
	q.carryOut(ctx, p.GetSteps())
	r.c.work(nil)
	if len(p.GetSteps()) > 0 && r.c.life.Err() == nil {
		w = r.lookBack(w)
	}
	r.forgetDeleted(w)
	return r.end(ctx, w)
}

// unconfirmed are the guests that the plan destroys and that a person must name.
func unconfirmed(p *homelabv1.Plan, named map[string]bool) []string {
	return slices.DeleteFunc(slices.Clone(p.GetByName()), func(name string) bool { return named[name] })
}

func guestsOf(p *homelabv1.Plan) map[string]bool {
	guests := make(map[string]bool)
	for _, s := range p.GetSteps() {
		guests[s.GetGuest()] = true
	}
	return guests
}

// paused is why no further step is begun; empty when one may be. A pause that
// cannot be asked for may be on.
func (r *run) paused() string {
	reason, err := r.c.paused(r.c.life)
	switch {
	case err != nil:
		return "whether changes are paused cannot be read: " + err.Error()
	case reason != "":
		return "all changes are paused: " + reason
	}
	return ""
}

// forgetDeleted drops the record of a guest that was deleted and is seen to be
// gone, also when its VM was gone before.
func (r *run) forgetDeleted(w world) {
	op := r.req.asked.op
	r.mu.Lock()
	clean := r.sum.GetFailed()+r.sum.GetSkipped()+r.sum.GetRefused() == 0
	r.mu.Unlock()
	if op == nil || op.Kind != plan.OpDelete || !clean {
		return
	}
	rec, ok := w.guests[op.Guest]
	host := w.sights[rec.Host]
	if !ok || !answers(host) || !yes(host.obs.GetVmsKnown()) || vmOf(host, rec) != nil {
		return
	}
	if err := r.c.store.ForgetGuest(r.c.life, r.lock, op.Guest); err != nil {
		r.c.log.Warn("deleted guest not forgotten", "guest", op.Guest, "error", err)
	}
}

// begin gives the run its number and its journal; once.
func (r *run) begin(ctx context.Context) error {
	if r.record != nil {
		return nil
	}
	record, err := r.c.store.BeginRun(ctx, r.lock, r.req.by, r.began)
	if err != nil {
		return err
	}
	r.record = record
	r.journal = newJournal(r.c.store, r.c.log, r.c.now, record.GetRun(), r.req.by, func(e *homelabv1.Event) error {
		return r.send(&controllerv1.ApplyResponse{Part: &controllerv1.ApplyResponse_Event{Event: e}})
	})
	r.c.log.Info("run", "run", record.GetRun(), "by", r.req.by)
	return nil
}

// prepare remembers what the run stands on, before its first step.
func (r *run) prepare(ctx context.Context, w world, p *homelabv1.Plan) error {
	c := r.c
	fence, err := c.fence(ctx, r.record.GetRun(), w.sights)
	if err != nil {
		return err
	}
	if r.req.asked.op == nil && !r.req.asked.heal { // else it is the one that was applied last
		err = c.store.PutSpec(ctx, r.lock, store.Spec{Name: r.req.name, Text: r.req.text, By: r.req.by, At: c.now().UTC()})
		if err != nil {
			return err
		}
	}
	for _, name := range w.learned {
		rec := w.guests[name]
		kept, err := c.store.ChangeGuest(ctx, r.lock, name, func(g *store.Guest) error {
			if rec.UUID == "" { // a holder was found of a guest that is not there
				rec.Generation = g.Generation
			}
			*g = rec
			return nil
		})
		if err != nil {
			return err
		}
		w.guests[name] = kept
	}
	for _, name := range w.learnedImages {
		if err := c.store.PutImage(ctx, r.lock, w.images[name]); err != nil {
			return err
		}
	}
	r.dispatch = c.newDispatch(r.req.sp, r.lock, fence, w)
	r.dispatch.emit, r.dispatch.remade, r.dispatch.steps, r.dispatch.over = r.pass, remaking(p), p.GetSteps(), ctx.Done()
	return nil
}

func (r *run) tellPlan(p *homelabv1.Plan) {
	r.journal.add(&homelabv1.Event{
		Kind: homelabv1.EventKind_EVENT_KIND_RUN_STARTED, Text: fmt.Sprintf("run %d by %s: %d steps", r.record.GetRun(), r.req.by, len(p.GetSteps())),
	})
	r.tellPlanned(p)
	for _, n := range p.GetNotes() {
		r.count(func(sum *homelabv1.Summary) {
			switch n.GetKind() {
			case homelabv1.NoteKind_NOTE_KIND_UNCHANGED:
				sum.Unchanged++
			case homelabv1.NoteKind_NOTE_KIND_SKIPPED, homelabv1.NoteKind_NOTE_KIND_BUSY, homelabv1.NoteKind_NOTE_KIND_WAITING:
				sum.Skipped++
			case homelabv1.NoteKind_NOTE_KIND_REFUSED:
				sum.Refused++
			default:
			}
		})
		r.journal.add(&homelabv1.Event{
			Kind: homelabv1.EventKind_EVENT_KIND_NOTE, Guest: n.GetGuest(), Host: n.GetHost(), Text: n.GetText(), Note: noteName(n.GetKind()),
		})
	}
}

// tellPlanned writes into the story of each guest what is planned with it, and why.
func (r *run) tellPlanned(p *homelabv1.Plan) {
	reasons, words := make(map[string]string), make(map[string][]string)
	for _, s := range p.GetSteps() {
		if s.GetGuest() == "" {
			continue
		}
		words[s.GetGuest()] = append(words[s.GetGuest()], verbOf(s))
		// What is saved first says less than why the VM is stopped.
		if reasons[s.GetGuest()] == "" || s.GetAction() == homelabv1.Action_ACTION_STOP {
			reasons[s.GetGuest()] = s.GetReason()
		}
	}
	for _, guest := range slices.Sorted(maps.Keys(words)) {
		text := fmt.Sprintf("run %d by %s: %s", r.record.GetRun(), r.req.by, strings.Join(words[guest], ", "))
		if reasons[guest] != "" {
			text += ": " + reasons[guest]
		}
		r.journal.story(guest, store.Entry{At: r.c.now(), Kind: kindPlanned, Text: text, Run: r.record.GetRun()})
	}
}

// verbOf is a step's verb as its id has it.
func verbOf(s *homelabv1.Step) string {
	verb, _, _ := strings.Cut(s.GetId(), "/")
	return verb
}

// noteName is a note's kind in lower case: skipped, refused...
func noteName(k homelabv1.NoteKind) string {
	return strings.ToLower(strings.TrimPrefix(k.String(), "NOTE_KIND_"))
}

func (r *run) skipped(s *homelabv1.Step, reason string) {
	r.count(func(sum *homelabv1.Summary) { sum.Skipped++ })
	r.tell(s, &homelabv1.Event{Kind: homelabv1.EventKind_EVENT_KIND_STEP_SKIPPED, Phase: phases[s.GetAction()], Text: sentence(s) + " was not begun: " + reason})
}

// tell adds an event about a step.
func (r *run) tell(s *homelabv1.Step, e *homelabv1.Event) {
	e.Step, e.Guest, e.Host = s.GetId(), s.GetGuest(), s.GetHost()
	r.journal.add(e)
}

func (r *run) count(change func(*homelabv1.Summary)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.sum)
}

func (r *run) target(host string) target {
	if h := r.req.sp.Hosts[host]; h != nil {
		return hostTarget(h)
	}
	return target{name: host}
}

// lookBack observes once more, so that the summary tells what is and not what
// was hoped for.
func (r *run) lookBack(w world) world {
	mem, err := r.c.memory(r.c.life)
	if err != nil {
		r.c.log.Warn("memory not read after the run", "error", err)
		mem = w.recollection
	}
	mem.asked = r.req.asked
	return r.c.survey(r.c.life, r.req.sp, mem, nil, true)
}

// end sums up, writes the record and tells the end.
func (r *run) end(ctx context.Context, w world) error {
	c := r.c
	guests := c.guestStatuses(r.req.sp, w)
	r.mu.Lock()
	sum := proto.CloneOf(&r.sum)
	r.mu.Unlock()
	sum.MutatingCalls = r.journal.mutatingCalls()
	sum.SomethingHealthy = slices.ContainsFunc(guests, func(g *controllerv1.GuestStatus) bool { return g.GetHealth() == controllerv1.Health_HEALTH_HEALTHY })
	sum.ApiSilent = c.apiSilent(r.req.sp, w)
	sum.Took = durationpb.New(c.now().Sub(r.began))
	state := verdictOf(sum)
	text := fmt.Sprintf("%d done, %d unchanged, %d failed, %d skipped, %d refused", sum.GetDone(), sum.GetUnchanged(), sum.GetFailed(), sum.GetSkipped(), sum.GetRefused())
	if ctx.Err() != nil {
		state, text = store.StateInterrupted, text+"; "+why(ctx).Error()
	}
	result := state
	if state == store.StateDone {
		result = store.ResultOK
	}
	rpc.Sum(ctx, result, sumOf(r.record.GetRun(), sum))
	r.finish(state, text, sum)
	if err := r.send(&controllerv1.ApplyResponse{Part: &controllerv1.ApplyResponse_Summary{Summary: sum}}); err != nil {
		c.log.Debug("summary not sent, the caller is gone", "error", err)
	}
	if err := c.rememberHosts(context.WithoutCancel(c.life)); err != nil {
		c.log.Warn("hosts not written down", "error", err)
	}
	return nil
}

// verdictOf is the state of a run that came to its end. A silent k3s API is never
// done: who is a member is not known then (hlctl exits with 3 for the same reason).
func verdictOf(sum *homelabv1.Summary) string {
	switch {
	case sum.GetApiSilent():
		return store.StatePartial
	case sum.GetFailed() == 0 && sum.GetSkipped() == 0 && sum.GetRefused() == 0:
		return store.StateDone
	case sum.GetDone() > 0 || sum.GetSomethingHealthy():
		return store.StatePartial
	}
	return store.StateFailed
}

func (r *run) finish(state, text string, sum *homelabv1.Summary) {
	now := r.c.now()
	r.journal.add(&homelabv1.Event{Kind: homelabv1.EventKind_EVENT_KIND_RUN_ENDED, Text: text, Took: durationpb.New(now.Sub(r.began))})
	r.journal.close()
	r.record.State, r.record.Ended, r.record.Summary = state, timestamppb.New(now), sum
	// Without the lock's condition when it is lost: the number is this run's own.
	if err := r.c.store.PutRun(context.Background(), nil, r.record); err != nil {
		r.c.log.Warn("end of the run not written down", "run", r.record.GetRun(), "error", err)
	}
	r.c.log.Info("run ended", "run", r.record.GetRun(), "state", state, "text", text)
}

// abandon ends a run that had begun to wait and does not come to carry anything
// out. It returns err.
func (r *run) abandon(err error) error {
	if r.record == nil {
		return err
	}
	text := "the plan changed while it waited; nothing was done"
	state := store.StateFailed
	if err != nil {
		text = "nothing was done: " + err.Error()
		if errors.Is(err, errCancelled) || errors.Is(err, errEnding) {
			state = store.StateInterrupted
		}
	}
	r.finish(state, text, &homelabv1.Summary{Took: durationpb.New(r.c.now().Sub(r.began))})
	return err
}

// apiSilent says whether the k3s API should have answered and did not: a
// cluster is remembered, and a server guest runs on a host that answers.
func (c *Controller) apiSilent(sp *spec.Spec, w world) bool {
	if sp.K3s == nil || w.cluster == nil {
		return false
	}
	if yes(plan.ClusterOf(c.want(sp, w), seen(sp, w)).API) {
		return false
	}
	for _, name := range sp.GuestNames() {
		g, rec := sp.Guests[name], w.guests[name]
		if !g.IsServer() || !g.IsMember() || !rec.Joined || !answers(w.sights[rec.Host]) {
			continue
		}
		if slices.ContainsFunc(w.sights[rec.Host].obs.GetVms(), func(vm *homelabv1.VirtualMachine) bool {
			return vm.GetUuid() == rec.UUID && vm.GetPower() == homelabv1.Power_POWER_RUNNING
		}) {
			return true
		}
	}
	return false
}
