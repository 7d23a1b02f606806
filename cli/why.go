package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	"github.com/spf13/cobra"
)

// whyDoc is one entry of a guest's story in JSON.
type whyDoc struct {
	Time *string `json:"time"`
	Kind string  `json:"kind"`
	Text string  `json:"text"`
	Run  *int64  `json:"run"`
}

func (a *app) whyCommand() *cobra.Command {
	var limit int32
	cmd := &cobra.Command{
		Use: "why GUEST", Short: "Tell the story of a guest: what was seen, planned and done", Args: cobra.ExactArgs(1),
		Long: `why tells what happened to a guest and why, oldest first: what was seen of it, what was
planned because of that, what was done, what failed, and what was left alone by which
rule. The last line is how it is now.

With -o json or yaml the entries are a list, without that last line.`,
		Example: "  hlctl why k3s-2\n  hlctl why k3s-2 -o json | jq -r '.[] | select(.kind == \"planned\").text'",
		RunE:    func(cmd *cobra.Command, args []string) error { return a.why(cmd.Context(), args[0], limit) },
	}
	cmd.Flags().Int32Var(&limit, "limit", 100, "how many entries at most, the latest")
	return cmd
}

func (a *app) why(ctx context.Context, guest string, limit int32) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	resp, err := ask(ctx, c.Why, &controllerv1.WhyRequest{Guest: guest, Limit: limit})
	if err != nil {
		return err
	}
	docs := []whyDoc{}
	for _, e := range resp.GetEntries() {
		docs = append(docs, whyDoc{Time: timeOrNull(timeOf(e.GetTime())), Kind: e.GetKind(), Text: e.GetText(), Run: numberOrNull(e.GetRun())})
	}
	return a.print(docs, func() { a.showWhy(guest, resp) })
}

var whyColours = map[string]string{"failed": red, "refused": red, "parked": red, "skipped": yellow, "done": green}

// showWhy prints the story a line an entry. A day that is not today stands above
// its first line, and so does today after such a day.
func (a *app) showWhy(guest string, resp *controllerv1.WhyResponse) {
	const indent = 20
	day := a.now()
	line := func(t time.Time, kind, colour, text string) {
		if !sameDay(t, day) {
			fmt.Fprintln(a.out, t.Local().Format("2006-01-02"))
			day = t
		}
		fmt.Fprintf(a.out, "%s  %s  %s\n", t.Local().Format("15:04:05"), a.paint(colour, fmt.Sprintf("%-8s", kind)), a.wrap(text, indent))
	}
	for _, e := range resp.GetEntries() {
		text := e.GetText()
		if e.GetRun() != 0 && !strings.Contains(text, fmt.Sprint("run ", e.GetRun())) && e.GetKind() == "planned" {
			text += fmt.Sprintf(" (run %d)", e.GetRun())
		}
		line(timeOf(e.GetTime()), e.GetKind(), whyColours[e.GetKind()], text)
	}
	if len(resp.GetEntries()) == 0 {
		fmt.Fprintf(a.out, "Nothing is told of %s yet.\n", guest)
	}
	now := resp.GetNow()
	if now == nil {
		line(a.now(), "now", yellow, "no guest of the last Spec that was applied")
		return
	}
	health := healthWord(now.GetHealth())
	text := strings.TrimSuffix(health+": "+a.condition(now), ": ")
	text = strings.Replace(text, ": since ", " since ", 1)
	switch {
	case now.GetParked() != "":
		text += "\nparked: " + parkedText(now)
	case health == "unwell" && now.GetPolicy() != "":
		text += "; policy " + now.GetPolicy()
	case health == "healthy":
		text += fmt.Sprintf(", VM %d on %s", now.GetVmid(), now.GetHost())
	}
	line(a.now(), "now", healthColours[health], text)
}
