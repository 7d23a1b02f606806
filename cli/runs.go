package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/spf13/cobra"
)

// runDoc is one run in JSON.
type runDoc struct {
	Run     int64       `json:"run"`
	By      string      `json:"by"`
	Started *string     `json:"started"`
	Ended   *string     `json:"ended"`
	State   string      `json:"state"`
	Summary *summaryDoc `json:"summary"`
}

func runJSON(r *controllerv1.RunRecord) runDoc {
	doc := runDoc{Run: r.GetRun(), By: r.GetBy(), Started: timeOrNull(timeOf(r.GetStarted())), Ended: timeOrNull(timeOf(r.GetEnded())), State: r.GetState()}
	if r.GetSummary() != nil {
		s := summaryJSON(r.GetSummary())
		doc.Summary = &s
	}
	return doc
}

func (a *app) runsCommand() *cobra.Command {
	var limit int32
	cmd := &cobra.Command{
		Use: "runs", Short: "Show the latest runs", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.close()
			resp, err := c.ListRuns(cmd.Context(), &controllerv1.ListRunsRequest{Limit: limit})
			if err != nil {
				return err
			}
			docs := []runDoc{}
			for _, r := range resp.GetRuns() {
				docs = append(docs, runJSON(r))
			}
			return a.print(docs, func() { a.showRuns(resp.GetRuns()) })
		},
	}
	cmd.Flags().Int32Var(&limit, "limit", 20, "how many at most")
	follow := func(use, short string, follow bool) *cobra.Command {
		return &cobra.Command{
			Use: use, Short: short, Args: cobra.MaximumNArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				var run int64
				if len(args) == 1 {
					n, err := strconv.ParseInt(args[0], 10, 64)
					if err != nil || n < 1 {
						return fmt.Errorf("%q is no run; hlctl runs lists them", args[0])
					}
					run = n
				}
				return a.followRun(cmd.Context(), run, follow)
			},
		}
	}
	cmd.AddCommand(
		follow("show [RUN]", "Show what a run did, the latest unless said", false),
		follow("follow [RUN]", "Show a run from its start until it ends", true),
	)
	return cmd
}

func (a *app) showRuns(runs []*controllerv1.RunRecord) {
	if len(runs) == 0 {
		fmt.Fprintln(a.out, "There was no run yet.  hlctl apply -f homelab.yaml")
		return
	}
	colours := map[string]string{"done": green, "partial": yellow, "failed": red, "interrupted": red, "running": yellow}
	var rows [][]cell
	for _, r := range runs {
		s := r.GetSummary()
		rows = append(rows, []cell{
			plain(fmt.Sprint(r.GetRun())), {r.GetState(), colours[r.GetState()]}, plain(ago(timeOf(r.GetStarted()), a.now())), plain(r.GetBy()),
			plain(fmt.Sprintf("%d done, %d failed, %d skipped, %d refused, %d unchanged", s.GetDone(), s.GetFailed(), s.GetSkipped(), s.GetRefused(), s.GetUnchanged())),
		})
	}
	a.table(a.out, []string{"RUN", "STATE", "STARTED", "BY", ""}, rows)
}

func (a *app) followRun(ctx context.Context, run int64, follow bool) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	stream, err := c.FollowRun(ctx, &controllerv1.FollowRunRequest{Run: run, Follow: follow})
	if err != nil {
		return err
	}
	js := &jsonShow{out: a.out, yaml: a.format == "yaml"}
	for {
		resp, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		switch part := resp.GetPart().(type) {
		case *controllerv1.FollowRunResponse_Event:
			if a.format == "table" {
				a.showEvent(part.Event)
			} else {
				js.event(part.Event)
			}
		case *controllerv1.FollowRunResponse_Record:
			if a.format == "table" {
				r := part.Record
				s := r.GetSummary()
				fmt.Fprintf(a.out, "run %d by %s: %s, %d done, %d failed, %d skipped, %d refused, %d unchanged\n",
					r.GetRun(), r.GetBy(), r.GetState(), s.GetDone(), s.GetFailed(), s.GetSkipped(), s.GetRefused(), s.GetUnchanged())
			} else {
				js.line(map[string]runDoc{"run": runJSON(part.Record)})
			}
		}
	}
}

// showEvent prints one event as the story of a run is told afterwards.
func (a *app) showEvent(e *homelabv1.Event) {
	text := e.GetText()
	word := enumWord(e.GetKind().String(), "EVENT_KIND_")
	if e.GetKind() == homelabv1.EventKind_EVENT_KIND_CALL {
		text = callLine(e.GetCall())
	}
	name := e.GetGuest()
	if name == "" {
		name = e.GetHost()
	}
	if e.GetPhase() != "" {
		text = e.GetPhase() + "  " + text
	}
	fmt.Fprintf(a.out, "%s  %-13s %-10s %s\n", e.GetTime().AsTime().Local().Format("15:04:05"), word, name, text)
}
