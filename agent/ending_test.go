package agent

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/homeiac/homelab/agent/driver"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/daemon"
	"github.com/homeiac/homelab/internal/pause"
	"github.com/homeiac/homelab/internal/rpc"
)

// slowQM is a driver whose starts take a while, and its qm goes on when the call ends.
type slowQM struct {
	driver.Full
	takes  time.Duration
	starts int
}

func (q *slowQM) Start(ctx context.Context, _ *driverv1.StartRequest, _ driver.Report) (*homelabv1.VirtualMachine, error) {
	q.starts++
	if !pause.For(ctx, q.takes) {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "qm start 201 is still at work: %w", ctx.Err())
	}
	return &homelabv1.VirtualMachine{Vmid: 201}, nil
}

// inFlight is an agent's steps with no host below them.
type inFlight struct {
	*flights
	qm   *slowQM
	end  context.CancelFunc
	over chan time.Time // when run returned
}

func newInFlight(t *testing.T, qm time.Duration, told *daemon.Supervisor) *inFlight {
	t.Helper()
	f := &inFlight{flights: newFlights("pve1", slog.New(slog.DiscardHandler)), qm: &slowQM{takes: qm}, over: make(chan time.Time, 1)}
	f.supervisor = told
	ctx, cancel := context.WithCancel(t.Context())
	f.end = cancel
	go func() {
		_ = f.run(ctx)
		f.over <- time.Now()
	}()
	return f
}

type ended struct {
	at  time.Time
	err error
}

// step begins a step and gives its end.
func (f *inFlight) step(ctx context.Context, name string, carry func(context.Context) error) <-chan ended {
	out := make(chan ended, 1)
	fl := &flight{step: &homelabv1.Step{Id: name, Guest: name}, limit: time.Hour, carry: func(ctx context.Context, _ emit) (*agentv1.StepResult, error) {
		return done(true, "done"), carry(ctx)
	}}
	go func() {
		err := f.begin(ctx, name, fl)
		if err == nil {
			_, err = fl.follow(ctx, func(*homelabv1.Event) error { return nil })
		}
		out <- ended{time.Now(), err}
	}()
	return out
}

func (f *inFlight) start(ctx context.Context) error {
	_, err := outlasting{f.qm, stopGrace}.Start(ctx, &driverv1.StartRequest{}, nil)
	return err
}

func waits(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

func TestAnAgentThatEndsWaitsForWhatWorksOnAVMAndForNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newInFlight(t, time.Minute, nil)
		wait, qm := f.step(t.Context(), "boot", waits), f.step(t.Context(), "start", f.start)
		synctest.Wait()
		began := time.Now()
		f.end()
		if e := <-wait; e.at.Sub(began) != 0 || !errors.Is(e.err, rpc.ErrUnavailable) || !strings.Contains(e.err.Error(), "the agent is ending") {
			t.Errorf("the wait ended after %s: %v", e.at.Sub(began), e.err)
		}
		if len(f.list()) != 1 {
			t.Errorf("in flight meanwhile: %v", f.list())
		}
		if e := <-qm; e.at.Sub(began) != time.Minute || e.err != nil {
			t.Errorf("the start ended after %s: %v", e.at.Sub(began), e.err)
		}
		if at := <-f.over; at.Sub(began) != time.Minute {
			t.Errorf("the agent ended after %s", at.Sub(began))
		}
	})
}

func TestAQMThatHangsIsLeftAliveWhenTheAgentEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newInFlight(t, time.Hour, nil)
		qm := f.step(t.Context(), "start", f.start)
		synctest.Wait()
		began := time.Now()
		f.end()
		if e := <-qm; e.at.Sub(began) != stopGrace || !errors.Is(e.err, rpc.ErrUnavailable) || !strings.Contains(e.err.Error(), "still at work") {
			t.Errorf("the start ended after %s: %v", e.at.Sub(began), e.err)
		}
		<-f.over
	})
}

func TestNothingIsBegunByAnAgentThatEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newInFlight(t, time.Minute, nil)
		// Its next program would be begun after the end of the first one.
		qm := f.step(t.Context(), "start", func(ctx context.Context) error { return errors.Join(f.start(ctx), f.start(ctx)) })
		synctest.Wait()
		began := time.Now()
		f.end()
		synctest.Wait()
		late := f.step(t.Context(), "late", f.start)
		if e := <-qm; e.at.Sub(began) != time.Minute || !errors.Is(e.err, rpc.ErrUnavailable) {
			t.Errorf("the first step ended after %s: %v", e.at.Sub(began), e.err)
		}
		// Not before: who asks again at once would have given up before the next agent is there.
		if e := <-late; e.at.Sub(began) != time.Minute || !errors.Is(e.err, rpc.ErrUnavailable) {
			t.Errorf("the late step ended after %s: %v", e.at.Sub(began), e.err)
		}
		if f.qm.starts != 1 {
			t.Errorf("%d programs were begun", f.qm.starts)
		}
	})
}

func TestAStepsOwnLimitEndsItsCallsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		_, err := outlasting{&slowQM{takes: time.Hour}, stopGrace}.Start(ctx, &driverv1.StartRequest{}, nil)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}

func TestTheWatchdogIsFedWhileAQMHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fed []time.Duration
		began := time.Now()
		f := newInFlight(t, time.Hour, daemon.NewSupervisor(time.Minute, func(state string) {
			if state == "WATCHDOG=1" {
				fed = append(fed, time.Since(began))
			}
		}))
		f.step(t.Context(), "start", f.start)
		time.Sleep(100 * time.Second) // of the bubble
		f.end()
		<-f.over
		if len(fed) != 6 || fed[0] != 30*time.Second || fed[5] != 180*time.Second {
			t.Errorf("fed at %v", fed)
		}
	})
}

// deafDriver answers the third question.
type deafDriver struct{ asked int }

func (d *deafDriver) WaitUp(ctx context.Context) error { return ctx.Err() }

func (d *deafDriver) Observe(context.Context, bool) (*driverv1.ObserveResponse, error) {
	if d.asked++; d.asked < 3 {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "the driver is down")
	}
	return &driverv1.ObserveResponse{VmsKnown: factUnknown("pmxcfs is gone")}, nil
}

func TestAnAgentIsReadyWhenItsDriverAnsweredOnceWhateverItSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &deafDriver{}
		if !answers(t.Context(), d) || d.asked != 3 {
			t.Errorf("asked %d times", d.asked)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if answers(ctx, &deafDriver{}) {
			t.Error("an agent that ended is ready")
		}
	})
}
