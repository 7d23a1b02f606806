package controller

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// stepAttempts is how often a step is sent at most. All steps are idempotent:
// one that was done already says so at once.
const stepAttempts = 4

// pace is how patient the controller is; tests are less so.
type pace struct {
	// poll is the pause between two looks while something is waited for.
	poll time.Duration
	// gone is how long a host may be away in the middle of a step before it
	// counts as silent: an agent that is restarted is back sooner.
	gone time.Duration
	// busy is how long apply waits for a lock or a task before it plans around it.
	busy time.Duration
	// lock is how long apply waits for the lock of a controller that died.
	lock time.Duration
	// flight is how long apply waits for steps of an earlier run.
	flight time.Duration
	// ripen is the pause between two looks while evidence must last, slack how
	// much longer it is looked than it must.
	ripen, slack time.Duration
	// watch is how often the hosts are asked in the background, look how often
	// guests are looked into then while all are well, and heal how long the
	// controller does nothing by itself after a run of its own that failed.
	watch, look, heal time.Duration
	// agree is how long each step of a change of roots waits for all controllers, and
	// below how long for certificates below a new one.
	agree, below time.Duration
}

var usualPace = pace{
	poll: time.Second, gone: 20 * time.Second, busy: time.Minute, lock: 15 * time.Second, flight: 45 * time.Minute,
	ripen: 5 * time.Second, slack: ripeSlack, watch: 10 * time.Second, look: 30 * time.Second, heal: time.Minute,
	agree: 5 * time.Second, below: 15 * time.Second,
}

// limit is longer than the agents' own deadlines, which end a step with a
// better text. It only keeps a run from hanging on an agent that is broken.
func limit(req *agentv1.RunRequest) time.Duration {
	const slack = 5 * time.Minute
	want := req.GetWant()
	switch req.GetStep().GetAction() {
	case homelabv1.Action_ACTION_FETCH:
		return 31 * 24 * time.Hour // whatever a line takes; the agent ends one that stands still
	case homelabv1.Action_ACTION_CREATE, homelabv1.Action_ACTION_TEMPLATE, homelabv1.Action_ACTION_SAVE:
		return 2 * time.Hour
	case homelabv1.Action_ACTION_DETACH, homelabv1.Action_ACTION_ATTACH:
		return 6 * time.Hour // a disk that changes its storage is copied
	case homelabv1.Action_ACTION_SOAK:
		return req.GetSoak().AsDuration() + slack
	case homelabv1.Action_ACTION_BOOT:
		return want.GetBootTimeout().AsDuration() + want.GetCloudInitTimeout().AsDuration() + slack
	case homelabv1.Action_ACTION_INIT, homelabv1.Action_ACTION_JOIN:
		return want.GetJoinTimeout().AsDuration() + want.GetCloudInitTimeout().AsDuration() + slack
	default:
		return 30 * time.Minute
	}
}

// step carries out one step to its end and tells it.
func (r *run) step(s *homelabv1.Step) verdict {
	start := r.c.now()
	phase := phases[s.GetAction()]
	r.tell(s, &homelabv1.Event{Kind: homelabv1.EventKind_EVENT_KIND_STEP_STARTED, Phase: phase, Text: sentence(s) + reasonOf(s)})
	result, v := r.attempts(s)
	if err := r.dispatch.tried(r.c.life, s, v.err); err != nil && v.err == nil {
		v.err = err
	}
	if v.err == nil {
		v.err = r.dispatch.learned(r.c.life, s, result.GetLearned())
	}
	r.dispatch.imageEnded(s)
	took := durationpb.New(r.c.now().Sub(start))
	if v.err == nil {
		text := result.GetText()
		if text == "" {
			text = sentence(s)
		}
		r.count(func(sum *homelabv1.Summary) { sum.Done++ })
		r.tell(s, &homelabv1.Event{Kind: homelabv1.EventKind_EVENT_KIND_STEP_DONE, Phase: phase, Text: text, Took: took})
		return v
	}
	if errors.Is(v.err, errLockLost) {
		r.c.log.Warn("step left to whoever has the run lock now", "step", s.GetId())
	} else if v.hostDown != "" {
		// Nobody saw its unit stopped: its learner may be promoted this moment. The
		// next join takes it back, once it is seen that nobody serves it.
		r.c.log.Info("what the step left is looked at by the next run", "step", s.GetId())
	} else if err := r.dispatch.takeBackFailed(r.c.life, s); err != nil {
		r.tell(s, &homelabv1.Event{Kind: homelabv1.EventKind_EVENT_KIND_STEP_PROGRESS, Phase: phase, Text: "what the join left in etcd is not taken back yet: " + err.Error()})
	}
	r.count(func(sum *homelabv1.Summary) { sum.Failed++ })
	r.tell(s, &homelabv1.Event{Kind: homelabv1.EventKind_EVENT_KIND_STEP_FAILED, Phase: phase, Text: failureText(s, v.err, r.record.GetRun()), Took: took})
	return v
}

func reasonOf(s *homelabv1.Step) string {
	if s.GetReason() == "" {
		return ""
	}
	return ": " + s.GetReason()
}

// failureText says what failed where, the raw cause, and what to type next.
func failureText(s *homelabv1.Step, err error, run int64) string {
	text := sentence(s) + ": " + err.Error()
	if strings.Contains(text, "hlctl ") {
		return text // it says so already
	}
	switch rpc.KindOf(err) {
	case rpc.ErrUnavailable:
		return text + "\n  see the hosts: hlctl hosts; then run it again: hlctl apply"
	case rpc.ErrBusy:
		return text + "\n  see what is at work: hlctl status; then run it again: hlctl apply"
	case rpc.ErrRefused, rpc.ErrInvalid, rpc.ErrNotFound, rpc.ErrExists, rpc.ErrDenied, rpc.ErrUnsupported:
		return text + "\n  correct that, then look at the plan: hlctl plan"
	}
	return fmt.Sprintf("%s\n  see all that happened: hlctl runs show %d; then run it again: hlctl apply", text, run)
}

// attempts sends a step until it has a result. What happened to one whose call
// broke off is found by looking again, never guessed. Once the run lock is lost
// nothing is sent: another run may have begun, and its agents need not have heard of
// it yet to refuse this one.
func (r *run) attempts(s *homelabv1.Step) (*agentv1.StepResult, verdict) {
	ctx := r.c.life
	var last error
	for n := 0; r.dispatch.again(s, n); n++ {
		select {
		case <-r.lock.Lost():
			return nil, verdict{err: errLockLost}
		default:
		}
		req, err := r.dispatch.request(ctx, s)
		if err != nil {
			return nil, verdict{err: err} // nothing was sent, so there is nothing to look for
		}
		result, err := r.call(ctx, s, req)
		last = err
		if err != nil {
			r.dispatch.imageBroke(ctx, s, err)
		}
		switch {
		case err == nil:
			return result, verdict{}
		case ctx.Err() != nil:
			return nil, verdict{err: context.Cause(ctx)}
		case errors.Is(err, context.DeadlineExceeded):
			return nil, verdict{err: fmt.Errorf("no end within the time allowed: %w", err)}
		case errors.Is(err, rpc.ErrBusy), errors.Is(err, rpc.ErrUnavailable):
			if v := r.lookAgain(ctx, s, err); v.err != nil {
				return nil, v
			}
		default:
			return nil, verdict{err: err}
		}
	}
	return nil, verdict{err: last}
}

func (r *run) call(ctx context.Context, s *homelabv1.Step, req *agentv1.RunRequest) (*agentv1.StepResult, error) {
	client, err := r.c.agents.client(s.GetHost(), r.c.addressOf(s.GetHost()))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, limit(req))
	defer cancel()
	return runStep(ctx, client, req, r.pass)
}

// pass takes an agent's event. How a step begins and ends is told here and not
// there: only here it is known whether it is tried again.
func (r *run) pass(e *homelabv1.Event) {
	r.dispatch.imageEvent(e)
	switch e.GetKind() {
	case homelabv1.EventKind_EVENT_KIND_STEP_STARTED, homelabv1.EventKind_EVENT_KIND_STEP_DONE, homelabv1.EventKind_EVENT_KIND_STEP_FAILED:
		return
	default:
		r.journal.add(e)
	}
}

// lookAgain waits until a step may be sent again: until its host is back and
// carries out nothing for the guest. A host that stays away is down.
func (r *run) lookAgain(ctx context.Context, s *homelabv1.Step, cause error) verdict {
	patience, overall := time.NewTimer(r.c.pace.gone), time.NewTimer(r.c.pace.flight)
	defer patience.Stop()
	defer overall.Stop()
	tick := time.NewTimer(r.c.pace.poll)
	defer tick.Stop()
	told := ""
	for {
		select {
		case <-ctx.Done():
			return verdict{err: context.Cause(ctx)}
		case <-overall.C:
			return verdict{err: cause}
		case <-patience.C:
			text := fmt.Sprintf("host %s fell silent in the middle of the run", s.GetHost())
			return verdict{err: rpc.Errorf(rpc.ErrUnavailable, "%s: %w", text, cause), hostDown: text}
		case <-tick.C:
		}
		seen := r.c.seeing.observe(ctx, []target{r.target(s.GetHost())})[s.GetHost()]
		if answers(seen) {
			patience.Reset(r.c.pace.gone)
			busy := working(seen.obs, s)
			if busy == nil {
				return verdict{}
			}
			if text := waitingFor(busy); text != told {
				told = text
				r.tell(s, &homelabv1.Event{Kind: homelabv1.EventKind_EVENT_KIND_STEP_PROGRESS, Phase: phases[s.GetAction()], Text: text})
			}
		} else if told == "" {
			told = "the agent does not answer: waiting for it"
			r.tell(s, &homelabv1.Event{Kind: homelabv1.EventKind_EVENT_KIND_STEP_PROGRESS, Phase: phases[s.GetAction()], Text: told, Limit: durationpb.New(r.c.pace.gone)})
		}
		tick.Reset(r.c.pace.poll)
	}
}

// working is what a host carries out that a step must wait for; nil is nothing.
func working(obs *homelabv1.Observation, s *homelabv1.Step) *homelabv1.StepInFlight {
	for _, f := range obs.GetSteps() {
		if f.GetStep() == s.GetId() || f.GetGuest() != "" && f.GetGuest() == s.GetGuest() {
			return f
		}
	}
	return nil
}

func waitingFor(f *homelabv1.StepInFlight) string {
	text := fmt.Sprintf("waiting for %s of run %d, at work since %s", f.GetStep(), f.GetRun(), f.GetSince().AsTime().Local().Format("15:04:05"))
	if f.GetPhase() != "" {
		text += " (" + f.GetPhase() + ")"
	}
	return text
}
