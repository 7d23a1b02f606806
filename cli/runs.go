package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

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
		Long: `runs lists what was carried out lately, latest first, and by whom. A run is running,
done, partial, failed or interrupted.`,
		Example: "  hlctl runs\n  hlctl runs show 17\n  hlctl runs follow",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.close()
			resp, err := ask(cmd.Context(), c.ListRuns, &controllerv1.ListRunsRequest{Limit: limit})
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
	follow := func(use, short, long string, follow bool) *cobra.Command {
		name, _, _ := strings.Cut(use, " ")
		return &cobra.Command{
			Use: use, Short: short, Long: long, Args: cobra.MaximumNArgs(1),
			Example: fmt.Sprintf("  hlctl runs %s\n  hlctl runs %s 17", name, name),
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
		follow("show [RUN]", "Show what a run did, the latest unless said",
			"show tells what happened in a run, step by step and with each call of qm and the like,\nas far as it came.", false),
		follow("follow [RUN]", "Show a run from its start until it ends",
			"follow shows a run from its start and goes on until it ends, the latest unless said.\nCtrl-C ends only the watching.", true),
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
		took := ""
		if r.GetEnded() != nil {
			took = brief(r.GetEnded().AsTime().Sub(timeOf(r.GetStarted())))
		}
		rows = append(rows, []cell{
			plain(fmt.Sprint(r.GetRun())), {r.GetState(), colours[r.GetState()]}, plain(ago(timeOf(r.GetStarted()), a.now())),
			plain(took), plain(r.GetBy()), plain(sumText(r.GetSummary())),
		})
	}
	a.table([]string{"RUN", "STATE", "STARTED", "TOOK", "BY", ""}, rows)
}

// sumText is a run's sum in steps and guests, as it was counted.
func sumText(s *homelabv1.Summary) string {
	return strings.Join(parts(
		part{int(s.GetDone()), "done"}, part{int(s.GetUnchanged()), "unchanged"}, part{int(s.GetSkipped()), "skipped"},
		part{int(s.GetRefused()), "refused"}, part{int(s.GetFailed()), "failed"},
	), ", ")
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
	told := &teller{a: a}
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
				told.event(part.Event)
			} else {
				js.event(part.Event, true)
			}
		case *controllerv1.FollowRunResponse_Record:
			if a.format == "table" {
				a.showRecord(part.Record)
			} else {
				js.line(map[string]runDoc{"run": runJSON(part.Record)})
			}
		}
	}
}

func (a *app) showRecord(r *controllerv1.RunRecord) {
	text := fmt.Sprintf("run %d by %s: %s", r.GetRun(), r.GetBy(), r.GetState())
	if sum := sumText(r.GetSummary()); sum != "" {
		text += ", " + sum
	}
	if r.GetEnded() != nil && r.GetStarted() != nil {
		text += " in " + brief(r.GetEnded().AsTime().Sub(r.GetStarted().AsTime()))
	}
	if r.GetState() == "running" {
		text += "   hlctl runs follow " + fmt.Sprint(r.GetRun())
	}
	fmt.Fprintln(a.out, text)
}

// teller tells a run afterwards, in the manner of a log, without saying the same
// twice: a wait is told again every few seconds.
type teller struct {
	a    *app
	last map[string]string // step -> what it said last
	pace pace
}

// eventWords are kinds of events for people.
var eventWords = map[homelabv1.EventKind]string{
	homelabv1.EventKind_EVENT_KIND_RUN_STARTED:   "run",
	homelabv1.EventKind_EVENT_KIND_RUN_ENDED:     "ended",
	homelabv1.EventKind_EVENT_KIND_STEP_STARTED:  "started",
	homelabv1.EventKind_EVENT_KIND_STEP_PROGRESS: "",
	homelabv1.EventKind_EVENT_KIND_STEP_DONE:     "done",
	homelabv1.EventKind_EVENT_KIND_STEP_FAILED:   "failed",
	homelabv1.EventKind_EVENT_KIND_STEP_SKIPPED:  "skipped",
	homelabv1.EventKind_EVENT_KIND_CALL:          "call",
	homelabv1.EventKind_EVENT_KIND_WAITING:       "waiting",
}

func (t *teller) event(e *homelabv1.Event) {
	word, ok := eventWords[e.GetKind()]
	switch {
	case e.GetKind() == homelabv1.EventKind_EVENT_KIND_NOTE:
		word = e.GetNote()
	case !ok:
		word = enumWord(e.GetKind().String(), "EVENT_KIND_")
	}
	text := e.GetText()
	switch e.GetKind() {
	case homelabv1.EventKind_EVENT_KIND_CALL:
		text = callLine(e.GetCall())
	case homelabv1.EventKind_EVENT_KIND_WAITING:
		text = strings.TrimPrefix(text, "waiting: ")
	case homelabv1.EventKind_EVENT_KIND_STEP_STARTED:
		t.pace.begin(e)
	case homelabv1.EventKind_EVENT_KIND_STEP_PROGRESS:
		if strings.HasPrefix(e.GetStep(), "fetch/") && !t.pace.due(e) {
			return
		}
		text = strings.TrimSpace(e.GetPhase() + "  " + text)
		if t.last[e.GetStep()] == text {
			return
		}
		if t.last == nil {
			t.last = map[string]string{}
		}
		t.last[e.GetStep()] = text
	}
	name := e.GetGuest()
	if name == "" {
		name = e.GetHost()
	}
	if took := e.GetTook().AsDuration(); e.GetTook() != nil && e.GetKind() != homelabv1.EventKind_EVENT_KIND_CALL {
		text += "  " + brief(took)
	}
	line := fmt.Sprintf("%s  %-9s  %-8s  %s", timeOf(e.GetTime()).Local().Format("15:04:05"), word, name, strings.ReplaceAll(text, "\n", "\n    "))
	fmt.Fprintln(t.a.out, strings.TrimRight(line, " "))
}
