package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/spf13/cobra"
)

// applyOptions are what apply and every operation can be told.
type applyOptions struct {
	yes     bool
	verbose bool
	destroy []string
}

// runFlags adds to a command what every run can be told.
func runFlags(cmd *cobra.Command, o *applyOptions) {
	f := cmd.Flags()
	f.BoolVarP(&o.yes, "yes", "y", false, "do not ask; destroys no guest that needs its name")
	f.BoolVar(&o.verbose, "verbose", false, "show each call of qm and the like, in plain lines")
}

// applyFlags adds them, and what can be told where guests may be destroyed.
func applyFlags(cmd *cobra.Command, o *applyOptions) {
	runFlags(cmd, o)
	cmd.Flags().StringSliceVar(&o.destroy, "destroy", nil, "confirm by its name that this guest is destroyed")
}

func (a *app) applyCommand() *cobra.Command {
	var file string
	var o applyOptions
	cmd := &cobra.Command{
		Use: "apply -f homelab.yaml", Short: "Make it so", Args: cobra.NoArgs,
		Long: `apply shows the plan, asks, and carries it out: images, VMs, boot, and joining the
k3s cluster. The same command again does nothing. Ctrl-C begins nothing new and lets
running steps finish; the same command goes on from there.

A guest that is unwell is mended as its policy says: made anew with the same VMID, MAC
and uuid, or restarted. What was seen must sometimes last before anything follows
from it; apply waits until then and says so.

--yes confirms what the plan shows, but not the destruction of guests whose policy is
report: each of them needs --destroy NAME. On a terminal and without --yes apply asks
for the name of each.

On a terminal there is one line for each guest while it works, and one for each image
that is fetched to a host; elsewhere, and with --verbose, plain lines. -o json prints
one event a line and last the summary; it does not ask, so it needs --yes.

Exit codes: 0 done or nothing to do, 1 failed, 3 partial: something was skipped,
refused or failed, and something else was done or is healthy, or the k3s API is silent.`,
		Example: `  hlctl apply -f homelab.yaml
  hlctl apply -f homelab.yaml --yes --verbose
  hlctl apply -f homelab.yaml --yes --destroy media
  hlctl apply -f homelab.yaml --yes -o json | tail -1 | jq .summary`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q, err := askedBySpec(file, o.destroy)
			if err != nil {
				return err
			}
			return a.carry(cmd.Context(), q, o)
		},
	}
	specFlag(cmd, &file)
	applyFlags(cmd, &o)
	return cmd
}

// carryOut runs the plan and shows it. It returns another plan when the world
// changed and nothing was done.
func (a *app) carryOut(ctx context.Context, c *controller, q *asked, p *homelabv1.Plan, o applyOptions, start time.Time) (*homelabv1.Plan, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // a run that is left begins nothing new
	stream, err := c.Apply(ctx, q.applyRequest(p, o))
	if err != nil {
		return nil, err
	}
	story := newStory(p)
	story.named = q.operation != nil
	show := a.newShow(story, o.verbose)
	defer func() { show.close() }()
	for {
		resp, err := stream.Recv()
		if err != nil {
			show.close()
			return nil, brokenOff(ctx, err, story)
		}
		switch part := resp.GetPart().(type) {
		case *controllerv1.ApplyResponse_Event:
			show.event(part.Event, story.event(part.Event, a.now()))
		case *controllerv1.ApplyResponse_Plan:
			if part.Plan.GetDigest() == p.GetDigest() {
				story.replan(part.Plan)
				break
			}
			show.close()
			// A controller does not begin such a plan; should one, it is left at once.
			if more := destroysMore(p, part.Plan); more != "" {
				return nil, fmt.Errorf("%w\n  nothing new is begun; what was begun ends on its host: hlctl runs show", q.tooMuch(more))
			}
			fmt.Fprintln(a.errw, "The world changed since that plan was made; the plan now is carried out.")
			if a.format == "table" && len(part.Plan.GetSteps()) > 0 {
				a.showPlan(part.Plan, "")
			}
			p, story = part.Plan, newStory(part.Plan)
			story.named = q.operation != nil
			show = a.newShow(story, o.verbose)
		case *controllerv1.ApplyResponse_ChangedPlan:
			return part.ChangedPlan, nil
		case *controllerv1.ApplyResponse_Summary:
			show.close()
			show.summary(part.Summary, a.now().Sub(start))
			return nil, applyExit(part.Summary)
		}
	}
}

// brokenOff is the error of a run whose end was not seen.
func brokenOff(ctx context.Context, err error, s *story) error {
	const next = "  the same command goes on from there"
	left := "nothing was at work"
	if at := s.atWork(); len(at) > 0 {
		left = "these finish on their hosts: " + strings.Join(at, ", ")
	}
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("interrupted: nothing new is begun; %s\n%s", left, next)
	case errors.Is(err, io.EOF):
		return fmt.Errorf("the controller ended the run without a sum; see how far it came: hlctl runs show\n%s", next)
	case !s.begun():
		return err
	}
	return fmt.Errorf("%w\n  nothing new is begun; %s\n%s", err, left, next)
}

// applyExit is the contract's exit code of apply.
func applyExit(s *homelabv1.Summary) error {
	switch {
	case s.GetApiSilent():
		return &exitError{code: exitPartial}
	case s.GetFailed()+s.GetSkipped()+s.GetRefused() == 0:
		return nil
	case s.GetDone() > 0 || s.GetSomethingHealthy():
		return &exitError{code: exitPartial}
	}
	return &exitError{code: exitFailed}
}

// show is how a run is shown: JSON lines, plain lines, or a live picture. It is
// told of an event after the story was, and whether that changed what is seen.
type show interface {
	event(e *homelabv1.Event, changed bool)
	summary(s *homelabv1.Summary, took time.Duration)
	// close ends what moves; it may be called twice.
	close()
}

func (a *app) newShow(s *story, verbose bool) show {
	switch {
	case a.format != "table":
		return &jsonShow{out: a.out, yaml: a.format == "yaml"}
	case a.outIsTerm && !verbose:
		return &liveShow{a: a, story: s}
	}
	return &lineShow{a: a, story: s, verbose: verbose}
}
