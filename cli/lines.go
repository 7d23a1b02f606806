package cli

import (
	"fmt"
	"strings"
	"time"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// lineShow tells a run in plain lines, for logs and --verbose.
type lineShow struct {
	a       *app
	story   *story
	verbose bool
	pace    pace
}

func (l *lineShow) close() {}

func (l *lineShow) event(e *homelabv1.Event, changed bool) {
	line := l.line(e, changed)
	if line == "" {
		return
	}
	at, wide := e.GetTime().AsTime().Local().Format("15:04:05"), l.story.wide
	if e.GetHost() == "" && e.GetGuest() == "" {
		fmt.Fprintf(l.a.out, "%s  %s\n", at, line)
		return
	}
	fmt.Fprintf(l.a.out, "%s  %-*s  %-*s  %s\n", at, wide[0], e.GetGuest(), wide[1], e.GetHost(), strings.ReplaceAll(line, "\n", "\n    "))
}

// line is what is said of an event; empty for nothing.
func (l *lineShow) line(e *homelabv1.Event, changed bool) string {
	step := l.story.steps[e.GetStep()]
	style := actions[step.GetAction()]
	about := ""
	if onImage(step) {
		about = " " + imageObject(step)
	}
	switch e.GetKind() {
	case homelabv1.EventKind_EVENT_KIND_STEP_STARTED:
		l.pace.begin(e)
		return style.doing + about
	case homelabv1.EventKind_EVENT_KIND_STEP_PROGRESS:
		if onImage(step) && !l.pace.due(e) {
			return ""
		}
		if changed {
			return strings.TrimSpace(e.GetPhase() + about + "  " + e.GetText())
		}
	case homelabv1.EventKind_EVENT_KIND_STEP_DONE:
		return style.done + about + "  " + clockTime(e.GetTook().AsDuration())
	case homelabv1.EventKind_EVENT_KIND_STEP_FAILED:
		return "failed  " + e.GetText()
	case homelabv1.EventKind_EVENT_KIND_STEP_SKIPPED:
		return "skipped  " + e.GetText()
	case homelabv1.EventKind_EVENT_KIND_WAITING:
		if !changed {
			return ""
		}
		line := "waiting  " + strings.TrimPrefix(e.GetText(), "waiting: ")
		if e.GetLimit() != nil {
			line += "; until " + e.GetTime().AsTime().Add(e.GetLimit().AsDuration()).Local().Format("15:04:05") + " at most"
		}
		return line
	case homelabv1.EventKind_EVENT_KIND_CALL:
		if l.verbose {
			return callLine(e.GetCall())
		}
	}
	return ""
}

// pace holds back what is told again every second: how far a transfer has come
// needs a line now and then.
type pace struct {
	told map[string]time.Time // step -> when something was said of it last
}

// paceOf is how much time there is between two lines at least.
const paceOf = 10 * time.Second

func (p *pace) begin(e *homelabv1.Event) {
	if p.told == nil {
		p.told = map[string]time.Time{}
	}
	p.told[e.GetStep()] = timeOf(e.GetTime())
}

func (p *pace) due(e *homelabv1.Event) bool {
	if timeOf(e.GetTime()).Sub(p.told[e.GetStep()]) < paceOf {
		return false
	}
	p.begin(e)
	return true
}

func (l *lineShow) summary(s *homelabv1.Summary, took time.Duration) { l.a.tell(l.story, s, took) }

// callLine is one call as --verbose shows it, secrets masked by who made it.
func callLine(c *homelabv1.Call) string {
	var b strings.Builder
	b.WriteString("$ " + c.GetProgram())
	for _, arg := range c.GetArgs() {
		if arg == "" || strings.ContainsAny(arg, " \t\n'\"$&|;<>*?()`\\#~") {
			arg = "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
		}
		b.WriteString(" " + arg)
	}
	fmt.Fprintf(&b, "   exit %d, %.1f s", c.GetExit(), c.GetTook().AsDuration().Seconds())
	if c.GetError() != "" {
		b.WriteString(": " + c.GetError())
	}
	return b.String()
}
