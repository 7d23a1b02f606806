package agent

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

func TestAWaitIsEagerAtFirstAndSaysWhatItWaitsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var looks []time.Duration
		var said []string
		var saidAt time.Duration
		e := emit(func(ev *homelabv1.Event) {
			if ev.GetPhase() != "booting" || ev.GetLimit().AsDuration() != time.Minute {
				t.Errorf("event %v", ev)
			}
			if at := time.Since(began); at-saidAt > 5*time.Second {
				t.Errorf("silent from %s to %s", saidAt, at)
			} else {
				saidAt = at
			}
			said = append(said, ev.GetText())
		})
		err := e.wait(t.Context(), waiting{phase: "booting", limit: time.Minute, look: func(context.Context) (bool, string, error) {
			at := time.Since(began)
			looks = append(looks, at)
			if at < 12*time.Second {
				return false, "SSH refused", nil
			}
			return at > 14*time.Second, "cloud-init runs", nil
		}, overdue: func(string) error { t.Error("overdue"); return nil }})
		if err != nil {
			t.Fatal(err)
		}
		if looks[1] != 100*time.Millisecond || looks[2]-looks[1] != 150*time.Millisecond {
			t.Errorf("first looks at %v", looks[:3])
		}
		if last := looks[len(looks)-1] - looks[len(looks)-2]; last != 2*time.Second {
			t.Errorf("the last pause was %s", last)
		}
		// Not at every look: when the text changes, and every 5 s.
		if want := []string{"SSH refused", "SSH refused", "SSH refused", "cloud-init runs"}; !slices.Equal(said, want) {
			t.Errorf("said %v", said)
		}
	})
}

func TestAWaitEndsAtItsLimitWithWhatItWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		late := errors.New("late")
		var waited string
		err := emit(func(*homelabv1.Event) {}).wait(t.Context(), waiting{phase: "x", limit: 30 * time.Second, look: func(ctx context.Context) (bool, string, error) {
			return false, "the API", nil
		}, overdue: func(text string) error { waited = text; return late }})
		if !errors.Is(err, late) || waited != "the API" || time.Since(began) != 30*time.Second {
			t.Errorf("%v, waited for %q, %s", err, waited, time.Since(began))
		}
		// A look that hangs is cut off by the limit, and is not its own error.
		err = emit(func(*homelabv1.Event) {}).wait(t.Context(), waiting{phase: "x", limit: time.Second, look: func(ctx context.Context) (bool, string, error) {
			<-ctx.Done()
			return false, "", ctx.Err()
		}, overdue: func(string) error { return late }})
		if !errors.Is(err, late) {
			t.Errorf("hung look: %v", err)
		}
		// Ended from outside it is not overdue.
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		err = emit(func(*homelabv1.Event) {}).wait(ctx, waiting{
			phase: "x", limit: time.Hour, look: func(context.Context) (bool, string, error) { return false, "y", nil },
			overdue: func(string) error { return late },
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	})
}

func TestAWaitIsWokenAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, wake := time.Now(), make(chan struct{})
		time.AfterFunc(10*time.Second+time.Millisecond, func() { close(wake) })
		err := emit(func(*homelabv1.Event) {}).wait(t.Context(), waiting{
			limit: time.Minute, wake: wake,
			look: func(context.Context) (bool, string, error) {
				select {
				case <-wake:
					return true, "", nil
				default:
					return false, "x", nil
				}
			},
		})
		if took := time.Since(began); err != nil || took != 10*time.Second+time.Millisecond {
			t.Errorf("%v after %s", err, took)
		}
	})
}

func TestMutatingCallsCountAndOthersDoNot(t *testing.T) {
	var got []bool
	e := emit(func(ev *homelabv1.Event) { got = append(got, ev.GetCall().GetMutating()) })
	for _, c := range []struct {
		p    program
		verb string
	}{{callImage, "fetch"}, {callSnippet, "write"}, {callGuest, "install"}, {callEtcd, "remove-member"}, {callNode, "drain"}, {callEtcd, "snapshot"}, {callGuest, "verify"}} {
		_ = e.call(c.p, []string{c.verb}, func() (int, error) { return 0, errors.New("a failed attempt counts too") })
	}
	if !slices.Equal(got, []bool{true, true, true, true, true, false, false}) {
		t.Errorf("got %v", got)
	}
}

func TestEveryActionHasADeadline(t *testing.T) {
	short := []homelabv1.Action{
		homelabv1.Action_ACTION_RESET, homelabv1.Action_ACTION_RESUME, homelabv1.Action_ACTION_ADOPT,
	}
	for n, name := range homelabv1.Action_name {
		a := homelabv1.Action(n)
		if a == homelabv1.Action_ACTION_UNSPECIFIED {
			continue
		}
		got := deadline(&agentv1.RunRequest{Step: &homelabv1.Step{Action: a}, Want: &homelabv1.GuestWant{}, Soak: durationpb.New(time.Minute)})
		if got < slack || got == slack && !slices.Contains(short, a) {
			t.Errorf("%s has no deadline of its own: %s", name, got)
		}
	}
}
