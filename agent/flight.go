package agent

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/daemon"
	"github.com/homeiac/homelab/internal/rpc"
)

// flight is one step being carried out. Its events are kept until it has ended,
// so that whoever follows it misses none; a caller that goes away misses only them.
type flight struct {
	step  *homelabv1.Step
	run   int64
	since time.Time
	limit time.Duration
	carry func(context.Context, emit) (*agentv1.StepResult, error)

	mu      sync.Mutex
	events  []*homelabv1.Event
	changed chan struct{} // closed and made anew with each event and at the end
	phase   string
	ended   bool
	result  *agentv1.StepResult
	err     error
}

// flights are the steps in flight of one agent, at most one a guest.
type flights struct {
	host string
	log  *slog.Logger

	mu    sync.Mutex
	byKey map[string]*flight
	begun chan *flight
	// ending is closed when no more steps are begun, over when none is left.
	ending, over chan struct{}
	supervisor   *daemon.Supervisor // nil tells nobody
}

func newFlights(host string, log *slog.Logger) *flights {
	return &flights{
		host: host, log: log, byKey: make(map[string]*flight), begun: make(chan *flight),
		ending: make(chan struct{}), over: make(chan struct{}),
	}
}

// run carries out what begin is given, until ctx ends and with it the steps: a
// step belongs to the agent and not to the call that asked for it. What a step waits
// for or transfers ends at once, a program that works on a VM when it ends by itself
// or after stopGrace; only then run returns.
//
// It is the agent's loop that feeds the watchdog: it waits for no step, so that a qm
// that hangs is no reason to kill the agent.
func (f *flights) run(ctx context.Context) error {
	var steps sync.WaitGroup
	defer close(f.over)
	beat, stop := f.supervisor.Beat()
	defer stop()
	begun, ends, landed := f.begun, ctx.Done(), make(chan struct{})
	for {
		select {
		case <-ends:
			close(f.ending)
			begun, ends = nil, nil
			go func() { steps.Wait(); close(landed) }()
		case <-landed:
			return nil
		case fl := <-begun:
			steps.Go(func() { fl.fly(ctx, f.host, f.log) })
		case <-beat:
			f.list() // an agent that is locked up is as dead as a loop that stands still
			f.supervisor.Alive()
		}
	}
}

// begin starts a step under a key, or is Busy while another one has it. While the
// agent ends it waits for that, and is Unavailable then: one that is told so at once
// asks again at once, and has given up before the next agent is there.
func (f *flights) begin(ctx context.Context, key string, fl *flight) error {
	fl.since, fl.changed = time.Now(), make(chan struct{})
	f.mu.Lock()
	if other := f.byKey[key]; other != nil {
		f.mu.Unlock()
		phase := other.doing()
		return rpc.Errorf(rpc.ErrBusy, "step %s of run %d has been at work for %s (%s)", other.step.GetId(), other.run,
			time.Since(other.since).Round(time.Second), cmp.Or(phase, "just begun"))
	}
	f.byKey[key] = fl
	f.mu.Unlock()
	landed := fl.carry
	fl.carry = func(ctx context.Context, e emit) (*agentv1.StepResult, error) {
		// Before the end is told: who hears of it may ask for the next step at once.
		defer f.drop(key)
		return landed(ctx, e)
	}
	select {
	case f.begun <- fl:
		return nil
	case <-f.over:
		f.drop(key)
		return rpc.Errorf(rpc.ErrUnavailable, "the agent is ending")
	case <-ctx.Done():
		f.drop(key)
		return ctx.Err()
	}
}

func (f *flights) drop(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.byKey, key)
}

// list tells the steps in flight, by id.
func (f *flights) list() []*homelabv1.StepInFlight {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]*homelabv1.StepInFlight, 0, len(f.byKey))
	for _, fl := range f.byKey {
		out = append(out, &homelabv1.StepInFlight{
			Step: fl.step.GetId(), Guest: fl.step.GetGuest(), Run: fl.run, Since: timestamppb.New(fl.since), Phase: fl.doing(),
		})
	}
	slices.SortFunc(out, func(a, b *homelabv1.StepInFlight) int { return cmp.Compare(a.GetStep(), b.GetStep()) })
	return out
}

// works says whether a step for that VM is in flight.
func (f *flights) works(vmid int32) (step string, yes bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fl := range f.byKey {
		if fl.step.GetVmid() == vmid || fl.step.GetHolderVmid() == vmid {
			return fl.step.GetId(), true
		}
	}
	return "", false
}

func (fl *flight) doing() string {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	return fl.phase
}

func (fl *flight) fly(life context.Context, host string, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(life, fl.limit)
	defer cancel()
	log = log.With("step", fl.step.GetId(), "run", fl.run)
	result, err := fl.protect(ctx, log, func(e *homelabv1.Event) {
		if e.GetTime() == nil {
			e.Time = timestamppb.Now()
		}
		e.Run, e.Step, e.Guest, e.Host = fl.run, fl.step.GetId(), fl.step.GetGuest(), host
		if c := e.GetCall(); c != nil {
			log.Info("call", "program", c.GetProgram(), "args", c.GetArgs(), "exit", c.GetExit(),
				"took", c.GetTook().AsDuration(), "mutating", c.GetMutating(), "error", c.GetError())
		}
		fl.mu.Lock()
		defer fl.mu.Unlock()
		fl.events = append(fl.events, e)
		if e.GetKind() == homelabv1.EventKind_EVENT_KIND_STEP_PROGRESS {
			fl.phase = cmp.Or(e.GetText(), e.GetPhase())
		}
		fl.wake()
	})
	took := time.Since(fl.since).Round(time.Millisecond)
	if err != nil && life.Err() != nil {
		// Whatever it was, what the step was about is to be looked at again.
		err = rpc.Errorf(rpc.ErrUnavailable, "%w: %w", errEnding, err)
	}
	if err != nil {
		log.Warn("step failed", "took", took, "error", err)
	} else {
		log.Info("step done", "took", took, "changed", result.GetChanged())
	}
	fl.mu.Lock()
	defer fl.mu.Unlock()
	fl.ended, fl.result, fl.err = true, result, err
	fl.wake()
}

// protect keeps a panic in one step from ending the agent, and with it all others.
func (fl *flight) protect(ctx context.Context, log *slog.Logger, e emit) (result *agentv1.StepResult, err error) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("panic in a step", "stack", string(debug.Stack()))
			err = fmt.Errorf("internal error in step %s, its place is in the agent's log", fl.step.GetId())
		}
	}()
	return fl.carry(ctx, e)
}

// wake tells the followers; mu is held.
func (fl *flight) wake() {
	close(fl.changed)
	fl.changed = make(chan struct{})
}

// follow gives the events from the first on and then the step's end. When ctx
// or send ends it, the step goes on.
func (fl *flight) follow(ctx context.Context, send func(*homelabv1.Event) error) (*agentv1.StepResult, error) {
	for n := 0; ; {
		fl.mu.Lock()
		events, changed, ended, result, err := fl.events[n:], fl.changed, fl.ended, fl.result, fl.err
		fl.mu.Unlock()
		for _, e := range events {
			if err := send(e); err != nil {
				return nil, err
			}
		}
		n += len(events)
		if ended {
			return result, err
		}
		if len(events) > 0 {
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
