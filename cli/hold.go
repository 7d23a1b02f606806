package cli

import (
	"context"
	"fmt"
	"strings"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	"github.com/homeiac/homelab/internal/pause"
	"github.com/homeiac/homelab/internal/rpc"
)

// holdWord begins the reason of every hold: who finds one that was left knows what it is.
const holdWord = "hlctl hosts "

// hold is the pause under which hosts are changed: no run begins meanwhile. A pause that
// a person began serves as well, and stays.
type hold struct {
	a    *app
	text string // as everybody is shown it
	own  bool
}

// hold pauses all changes. It is Busy while a run is going on, or somebody else holds.
func (a *app) hold(ctx context.Context, what string) (*hold, error) {
	c, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer c.close()
	was, err := ask(ctx, c.Status, &controllerv1.StatusRequest{})
	if err != nil {
		return nil, err
	}
	if err := idle(was); err != nil {
		return nil, fmt.Errorf("nothing was done: %w", err)
	}
	if strings.HasPrefix(was.GetPaused(), holdWord) {
		return nil, rpc.Errorf(rpc.ErrBusy, "nothing was done: somebody else is at it, or was and did not end: %s", was.GetPaused())
	}
	if was.GetPaused() != "" {
		return &hold{a: a, text: was.GetPaused()}, nil
	}
	paused, err := ask(ctx, c.Pause, &controllerv1.PauseRequest{Reason: holdWord + what})
	if err != nil {
		return nil, err
	}
	h := &hold{a: a, text: paused.GetPaused(), own: true}
	// One may have begun in between. It is let go on, and whatever it skipped is said by it.
	if err := h.check(ctx); err != nil {
		return nil, h.end(ctx, fmt.Errorf("nothing was done: %w", err))
	}
	return h, nil
}

// idle is Busy while a run is going on.
func idle(status *controllerv1.StatusResponse) error {
	if run := status.GetRun(); run != 0 {
		return rpc.Errorf(rpc.ErrBusy, "run %d is going on; wait for its end with: hlctl runs follow", run)
	}
	return nil
}

// check says whether the pause is still there, and no run.
func (h *hold) check(ctx context.Context) error {
	now, err := h.a.status(ctx, false, false)
	if err != nil {
		return err
	}
	switch paused := now.GetPaused(); {
	case paused == "":
		return rpc.Errorf(rpc.ErrBusy, "somebody ended the pause (hlctl resume), and runs may begin")
	case paused != h.text && h.own:
		h.own = false // it is not ours to end
		return rpc.Errorf(rpc.ErrBusy, "somebody else paused all changes: %s", paused)
	}
	return idle(now)
}

// end ends the pause, also after Ctrl-C, and says it when it cannot. It returns err, or
// else why the pause is still there.
func (h *hold) end(ctx context.Context, err error) error {
	if !h.own {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), h.a.ready.release)
	defer cancel()
	for {
		failed := h.release(ctx)
		if failed == nil {
			return err
		}
		if pause.For(ctx, h.a.ready.poll) {
			continue
		}
		still := fmt.Errorf("all changes are still PAUSED, since that could not be ended: %w\n  end it with: hlctl resume", failed)
		if err == nil {
			return still
		}
		return fmt.Errorf("%w\n%w", err, still)
	}
}

func (h *hold) release(ctx context.Context) error {
	c, err := h.a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	now, err := ask(ctx, c.Status, &controllerv1.StatusRequest{})
	if err != nil || now.GetPaused() != h.text {
		return err // ended already, or replaced by somebody else's
	}
	_, err = ask(ctx, c.Resume, &controllerv1.ResumeRequest{})
	return err
}
