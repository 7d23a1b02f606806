package cli

import (
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// auditDoc is one entry of the audit in JSON.
type auditDoc struct {
	Time       *string  `json:"time"`
	Who        string   `json:"who"`
	Method     string   `json:"method"`
	What       string   `json:"what"`
	On         []string `json:"on"`
	Result     string   `json:"result"`
	Text       string   `json:"text"`
	Count      int32    `json:"count"`
	Ended      *string  `json:"ended"`
	Controller string   `json:"controller"`
}

func auditJSON(e *controllerv1.AuditEntry) auditDoc {
	return auditDoc{
		Time: timeOrNull(timeOf(e.GetTime())), Who: e.GetWho(), Method: e.GetMethod(), What: e.GetWhat(),
		On: append([]string{}, e.GetOn()...), Result: e.GetResult(), Text: e.GetText(), Count: e.GetCount(),
		Ended: timeOrNull(timeOf(e.GetEnded())), Controller: e.GetController(),
	}
}

func (a *app) auditCommand() *cobra.Command {
	var limit int32
	var since, by string
	cmd := &cobra.Command{
		Use: "audit", Short: "Show who changed what, and who read secrets", Args: cobra.NoArgs,
		Long: `audit lists the calls that change something or reveal a secret, latest first: who made
them, what for, on which guests, hosts and images, and what came of it. Refused ones
are there too. The latest 10,000 are kept. Never kept: the text of a Spec, a command's
arguments and input, secrets.`,
		Example: "  hlctl audit\n  hlctl audit --since 2h\n  hlctl audit --by laptop --since 2026-11-01 -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			req := &controllerv1.ListAuditRequest{Limit: limit, By: by}
			if since != "" {
				at, err := parseSince(since, a.now())
				if err != nil {
					return err
				}
				req.Since = timestamppb.New(at)
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.close()
			resp, err := ask(cmd.Context(), c.ListAudit, req)
			if err != nil {
				return err
			}
			docs := []auditDoc{}
			for _, e := range resp.GetEntries() {
				docs = append(docs, auditJSON(e))
			}
			return a.print(docs, func() { a.showAudit(resp.GetEntries()) })
		},
	}
	cmd.Flags().Int32Var(&limit, "limit", 100, "how many at most")
	cmd.Flags().StringVar(&since, "since", "", "only what is not older: 2h, 3d, 2026-11-25 or a time in RFC 3339")
	cmd.Flags().StringVar(&by, "by", "", "only what this one did: a name, or role@name")
	return cmd
}

// parseSince reads a span back from now, a day (its beginning, here) or a time.
func parseSince(s string, now time.Time) (time.Time, error) {
	var days int
	if n, err := fmt.Sscanf(s, "%dd", &days); err == nil && n == 1 && s == fmt.Sprintf("%dd", days) && days >= 0 {
		return now.AddDate(0, 0, -days), nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	if at, err := time.ParseInLocation(time.DateOnly, s, time.Local); err == nil {
		return at, nil
	}
	if at, err := time.Parse(time.RFC3339, s); err == nil {
		return at, nil
	}
	return time.Time{}, fmt.Errorf("--since %s is none of 2h, 3d, 2026-11-25 and 2026-11-25T17:00:00Z", s)
}

// widestCall is how much of a call stands in its column; more stands below.
const widestCall = 35

func (a *app) showAudit(entries []*controllerv1.AuditEntry) {
	if len(entries) == 0 {
		fmt.Fprintln(a.out, "Nothing of that kind is in the audit.")
		return
	}
	var rows [][]cell
	for _, e := range entries {
		colour := red
		switch e.GetResult() {
		case "ok":
			colour = green
		case "running", "partial", "interrupted":
			colour = yellow
		}
		text := strings.ReplaceAll(e.GetText(), "\n", " ")
		if e.GetCount() > 1 {
			text = fmt.Sprintf("%d times: %s", e.GetCount(), text)
		}
		// On what would be too wide for a column of its own, and so is what for at times.
		what, about := callText(e), ""
		if on := onText(e.GetOn()); on != "" {
			about = "on " + on
		}
		if call := methodWords(e.GetMethod()); utf8.RuneCountInString(what) > widestCall {
			about = strings.TrimSuffix(strings.TrimPrefix(what, call+" ")+"; "+about, "; ")
			what = call
		}
		if about != "" {
			text = strings.TrimSuffix(about+": "+text, ": ")
		}
		rows = append(rows, []cell{
			plain(timeOf(e.GetTime()).Local().Format("2006-01-02 15:04:05")), plain(e.GetWho()), plain(what),
			{e.GetResult(), colour}, plain(text),
		})
	}
	a.table([]string{"TIME", "WHO", "WHAT", "RESULT", ""}, rows)
}

// callText is the call and what for, without saying the same word twice: create token for
// agent@pve9.
func callText(e *controllerv1.AuditEntry) string {
	call, what := methodWords(e.GetMethod()), e.GetWhat()
	last := call[strings.LastIndexByte(call, ' ')+1:]
	for _, said := range []string{last, last + "s"} {
		if what == said {
			return call
		}
		what = strings.TrimPrefix(what, said+" ")
	}
	return strings.TrimSpace(call + " " + what)
}

// methodWords is the name of a call as words: createtoken is create token.
func methodWords(method string) string {
	service := controllerv1.File_homelab_controller_v1_controller_proto.Services().ByName("ControllerService")
	for i := range service.Methods().Len() {
		name := string(service.Methods().Get(i).Name())
		if strings.EqualFold(name, method) {
			return strings.ToLower(strings.TrimSpace(wordStart.ReplaceAllString(name, " $0")))
		}
	}
	return method
}

// wordStart is where a word begins in a name of a call.
var wordStart = regexp.MustCompile(`[A-Z]`)

// onText names the first few of what a call was about.
func onText(on []string) string {
	const shown = 3
	if len(on) <= shown {
		return strings.Join(on, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(on[:shown], ", "), len(on)-shown)
}
