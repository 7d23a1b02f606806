package controller

import (
	"context"
	"sync/atomic"

	"github.com/homeiac/homelab/controller/store"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/spec"
)

// healedBy is who asks for runs that the controller begins by itself.
const healedBy = "heal"

// healer begins runs by itself where the Spec says heal: auto. They are runs as
// any other, under the same rules and the same lock, of what unwell guests need
// alone. There is one at a time; with several controllers it is that of whoever
// gets the lock.
type healer struct {
	c *Controller

	on      bool // the Spec says so
	healing atomic.Bool
	rest    atomic.Int64 // nothing is begun before, in Unix nanoseconds
}

// heal begins a run when something needs one.
func (h *healer) heal(ctx context.Context, sp *spec.Spec, w world) {
	c := h.c
	h.on = sp.Heal == spec.HealAuto
	if !h.on || w.paused != "" || h.healing.Load() || c.now().UnixNano() < h.rest.Load() {
		return
	}
	if _, held, err := c.store.Held(ctx); err != nil || held {
		return
	}
	w.asked = asked{heal: true}
	p := c.plan(sp, w)
	if len(p.GetSteps()) == 0 || len(p.GetByName()) > 0 {
		return
	}
	h.healing.Store(true)
	c.runs.Add(1)
	go func() {
		defer c.runs.Done()
		defer h.healing.Store(false)
		state := ""
		ctx, outcome := rpc.Noting(context.WithoutCancel(ctx))
		end, err := c.act(ctx, c.creds.Identity().String(), healedBy, "", aboutPlan(p))
		if err != nil {
			c.log.Warn("healing", "error", err)
			h.rest.Store(c.now().Add(c.pace.heal).UnixNano())
			return
		}
		// Not the watch's context: a run ends its steps before the process does.
		err = c.apply(ctx, request{sp: sp, digest: p.GetDigest(), yes: true, by: healedBy, asked: w.asked},
			func(part *controllerv1.ApplyResponse) error {
				if sum := part.GetSummary(); sum != nil {
					state = verdictOf(sum)
				}
				return nil
			})
		end(outcome(err))
		if err != nil {
			c.log.Warn("healing", "error", err)
		}
		if err != nil || state != store.StateDone {
			h.rest.Store(c.now().Add(c.pace.heal).UnixNano())
		}
	}()
}
