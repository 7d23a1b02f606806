package controller

import (
	"context"

	"github.com/homeiac/homelab/internal/daemon"
)

// pulse feeds the watchdog until ctx ends. It waits for no host and no store, whose
// silence is no fault of the controller, but looks at what all calls share: a
// controller that is locked up is not fed for.
func (c *Controller) pulse(ctx context.Context, supervisor *daemon.Supervisor) error {
	beat, stop := supervisor.Beat()
	defer stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-beat:
			c.worked("")
			c.seeing.all()
			supervisor.Alive()
		}
	}
}
