package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/spf13/cobra"
)

type applyOptions struct {
	file    string
	yes     bool
	verbose bool
	destroy []string
}

func (a *app) applyCommand() *cobra.Command {
	var o applyOptions
	cmd := &cobra.Command{
		Use: "apply -f homelab.yaml", Short: "Make it so", Args: cobra.NoArgs,
		Long: `apply shows the plan, asks, and carries it out: images, VMs, boot, and joining the
k3s cluster. The same command again does nothing. Ctrl-C begins nothing new and lets
running steps finish; run it again to go on.

Exit codes: 0 done or nothing to do, 1 failed, 3 partial: something was skipped,
refused or failed, and something else was done or is healthy.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.apply(cmd.Context(), o) },
	}
	specFlag(cmd, &o.file)
	f := cmd.Flags()
	f.BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	f.BoolVar(&o.verbose, "verbose", false, "show each call of qm and the like")
	f.StringSliceVar(&o.destroy, "destroy", nil, "confirm by name the destruction of a guest whose policy is report")
	return cmd
}

func (a *app) apply(ctx context.Context, o applyOptions) error {
	start := a.now()
	f, err := specForController(o.file)
	if err != nil {
		return err
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	resp, err := c.Plan(ctx, &controllerv1.PlanRequest{Spec: f.text, SpecName: f.name})
	if err != nil {
		return err
	}
	plan := resp.GetPlan()
	in := bufio.NewReader(a.in)
	for {
		if err := a.confirm(in, plan, o); err != nil {
			return err
		}
		changed, err := a.carryOut(ctx, c, f, plan, o, start)
		if err != nil || changed == nil {
			return err
		}
		fmt.Fprintln(a.errw, "The world changed since that plan was made; nothing was done. The plan now:")
		plan = changed
	}
}

// confirm shows a plan with steps and asks; a plan without steps needs neither.
func (a *app) confirm(in *bufio.Reader, p *homelabv1.Plan, o applyOptions) error {
	if len(p.GetSteps()) == 0 {
		return nil
	}
	if a.format == "table" {
		a.showPlan(p, "")
	}
	if o.yes {
		return nil
	}
	if !a.inIsTerm || a.format != "table" {
		return errors.New("nothing was done: there is no terminal to ask on; confirm with --yes")
	}
	fmt.Fprint(a.out, "Do it? [y/N] ")
	answer, err := in.ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if answer = strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
		return errors.New("nothing was done")
	}
	return nil
}

// carryOut runs the plan and shows it. It returns another plan when the world
// changed and nothing was done.
func (a *app) carryOut(ctx context.Context, c *controller, f *specFile, p *homelabv1.Plan, o applyOptions, start time.Time) (*homelabv1.Plan, error) {
	stream, err := c.Apply(ctx, &controllerv1.ApplyRequest{
		Spec: f.text, SpecName: f.name, Digest: p.GetDigest(), Yes: o.yes, Destroy: o.destroy,
	})
	if err != nil {
		return nil, err
	}
	show := a.newShow(p, o.verbose)
	defer show.close()
	for {
		resp, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil, errors.New("the controller ended the run without a sum; hlctl runs show tells how far it came")
		case ctx.Err() != nil:
			return nil, errors.New("interrupted: nothing new is begun, running steps finish on their hosts; the same command goes on from there")
		case err != nil:
			return nil, fmt.Errorf("%w\nsteps that were running finish on their hosts; the same command goes on from there", err)
		}
		switch part := resp.GetPart().(type) {
		case *controllerv1.ApplyResponse_Event:
			show.event(part.Event)
		case *controllerv1.ApplyResponse_Plan:
			show.plan(part.Plan)
		case *controllerv1.ApplyResponse_ChangedPlan:
			return part.ChangedPlan, nil
		case *controllerv1.ApplyResponse_Summary:
			show.close()
			show.summary(part.Summary, a.now().Sub(start))
			return nil, applyExit(part.Summary)
		}
	}
}

// applyExit is the contract's exit code of apply.
func applyExit(s *homelabv1.Summary) error {
	bad := s.GetFailed() + s.GetSkipped() + s.GetRefused()
	switch {
	case bad == 0 && !s.GetApiSilent():
		return nil
	case s.GetDone() > 0 || s.GetSomethingHealthy():
		return &ExitError{Code: exitPartial}
	}
	return &ExitError{Code: exitFailed}
}

// show is how a run is shown: JSON lines, plain lines, or a live picture.
type show interface {
	plan(p *homelabv1.Plan)
	event(e *homelabv1.Event)
	summary(s *homelabv1.Summary, took time.Duration)
	// close ends what moves; it may be called twice.
	close()
}

func (a *app) newShow(p *homelabv1.Plan, verbose bool) show {
	if a.format != "table" {
		return &jsonShow{out: a.out, yaml: a.format == "yaml"}
	}
	story := &story{a: a, verbose: verbose, guests: map[string]*progress{}}
	story.plan(p)
	if a.outIsTerm && !verbose {
		return newLiveShow(story)
	}
	return &lineShow{story: story}
}

// jsonShow prints one event a line, and last the sum. In YAML each line is a
// document of its own.
type jsonShow struct {
	out  io.Writer
	yaml bool
}

func (j *jsonShow) line(v any) {
	data, err := json.Marshal(v)
	if err != nil {
		return // only strings, numbers and bools are in there
	}
	if j.yaml {
		data = append([]byte("--- "), data...)
	}
	fmt.Fprintf(j.out, "%s\n", data)
}

type eventDoc struct {
	Time    *string  `json:"time"`
	Run     int64    `json:"run"`
	Kind    string   `json:"kind"`
	Step    string   `json:"step"`
	Guest   string   `json:"guest"`
	Host    string   `json:"host"`
	Phase   string   `json:"phase"`
	Text    string   `json:"text"`
	Note    string   `json:"note"`
	Call    *callDoc `json:"call"`
	Seconds *float64 `json:"seconds"`
}

type callDoc struct {
	Program  string   `json:"program"`
	Args     []string `json:"args"`
	Exit     int32    `json:"exit"`
	Seconds  float64  `json:"seconds"`
	Mutating bool     `json:"mutating"`
	Error    string   `json:"error"`
}

func eventJSON(e *homelabv1.Event) eventDoc {
	doc := eventDoc{
		Time: timeOrNull(e.GetTime().AsTime()), Run: e.GetRun(), Kind: enumWord(e.GetKind().String(), "EVENT_KIND_"),
		Step: e.GetStep(), Guest: e.GetGuest(), Host: e.GetHost(), Phase: e.GetPhase(), Text: e.GetText(), Note: e.GetNote(),
	}
	if e.GetTook() != nil {
		s := e.GetTook().AsDuration().Seconds()
		doc.Seconds = &s
	}
	if c := e.GetCall(); c != nil {
		doc.Call = &callDoc{c.GetProgram(), list(c.GetArgs()), c.GetExit(), c.GetTook().AsDuration().Seconds(), c.GetMutating(), c.GetError()}
	}
	return doc
}

type summaryDoc struct {
	Done          int32   `json:"done"`
	Failed        int32   `json:"failed"`
	Skipped       int32   `json:"skipped"`
	Refused       int32   `json:"refused"`
	Unchanged     int32   `json:"unchanged"`
	MutatingCalls int32   `json:"mutatingCalls"`
	Seconds       float64 `json:"seconds"`
}

func summaryJSON(s *homelabv1.Summary) summaryDoc {
	return summaryDoc{
		s.GetDone(), s.GetFailed(), s.GetSkipped(), s.GetRefused(), s.GetUnchanged(),
		s.GetMutatingCalls(), s.GetTook().AsDuration().Seconds(),
	}
}

func (j *jsonShow) plan(*homelabv1.Plan) {}
func (j *jsonShow) close()               {}

func (j *jsonShow) event(e *homelabv1.Event) { j.line(eventJSON(e)) }

func (j *jsonShow) summary(s *homelabv1.Summary, _ time.Duration) {
	j.line(map[string]summaryDoc{"summary": summaryJSON(s)})
}
