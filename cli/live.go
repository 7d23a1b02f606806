package cli

import (
	"fmt"
	"strings"
	"sync"
	"time"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// lineShow tells a run in plain lines, for logs and --verbose.
type lineShow struct{ story *story }

func (l *lineShow) plan(p *homelabv1.Plan) { l.story.plan(p) }
func (l *lineShow) close()                 {}

func (l *lineShow) event(e *homelabv1.Event) {
	s := l.story
	changed := s.event(e, s.a.now())
	name := e.GetGuest()
	if name == "" {
		name = e.GetHost()
	}
	style := actions[s.steps[e.GetStep()].GetAction()]
	line := ""
	switch e.GetKind() {
	case homelabv1.EventKind_EVENT_KIND_STEP_STARTED:
		line = style.doing
	case homelabv1.EventKind_EVENT_KIND_STEP_PROGRESS:
		if changed {
			line = strings.TrimSpace(e.GetPhase() + "  " + e.GetText())
		}
	case homelabv1.EventKind_EVENT_KIND_STEP_DONE:
		line = style.done + "  " + clockTime(e.GetTook().AsDuration())
	case homelabv1.EventKind_EVENT_KIND_STEP_FAILED:
		line = "failed  " + e.GetText()
	case homelabv1.EventKind_EVENT_KIND_STEP_SKIPPED:
		line = "skipped  " + e.GetText()
	case homelabv1.EventKind_EVENT_KIND_WAITING:
		line = "waiting  " + e.GetText()
	case homelabv1.EventKind_EVENT_KIND_CALL:
		if s.verbose {
			line = callLine(e.GetCall())
		}
	}
	if line != "" {
		fmt.Fprintf(s.a.out, "%s  %-8s %-6s %s\n", e.GetTime().AsTime().Local().Format("15:04:05"), name, e.GetHost(), line)
	}
}

func (l *lineShow) summary(s *homelabv1.Summary, took time.Duration) { l.story.tell(s, took) }

// callLine is one call as --verbose shows it, secrets masked by who made it.
func callLine(c *homelabv1.Call) string {
	var b strings.Builder
	fmt.Fprintf(&b, "$ %s", c.GetProgram())
	for _, arg := range c.GetArgs() {
		if arg == "" || strings.ContainsAny(arg, " \t\n'\"$&|;<>*?()") {
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

// liveShow keeps one line a guest on a terminal while a run goes on.
type liveShow struct {
	mu     sync.Mutex
	story  *story
	screen *mpb.Progress
	bars   []*mpb.Bar
	closed bool
}

// redraw is how often the clock on the lines moves.
const redraw = 200 * time.Millisecond

func newLiveShow(s *story) *liveShow {
	l := &liveShow{story: s, screen: mpb.New(mpb.WithOutput(s.a.out), mpb.WithRefreshRate(redraw), mpb.WithAutoRefresh())}
	l.addLines()
	return l
}

// addLines makes a line for each guest with work, and one for the sum.
func (l *liveShow) addLines() {
	line := func(text func() string) {
		bar := l.screen.New(0, mpb.NopStyle(), mpb.BarRemoveOnComplete(),
			mpb.PrependDecorators(decor.Any(func(decor.Statistics) string {
				l.mu.Lock()
				defer l.mu.Unlock()
				return text()
			})))
		l.bars = append(l.bars, bar)
	}
	for _, key := range l.story.order {
		line(func() string { return l.guestLine(key) })
	}
	line(func() string { return l.sumLine() })
}

func (l *liveShow) guestLine(key string) string {
	g, now := l.story.guests[key], l.story.a.now()
	if g == nil {
		return ""
	}
	name := g.guest
	if name == "" {
		name = g.host
	}
	phase, text, clock := g.phase, g.text, ""
	switch {
	case g.left == 0 && g.phase == "" || g.failed != "":
		phase, _ = g.outcome()
		text = strings.TrimSpace(g.failed + g.noteText)
	case g.phase == "":
		phase = "waiting"
	default:
		clock = clockTime(now.Sub(g.since))
		if g.limit > 0 {
			clock += " / ~" + clockTime(g.limit)
		}
	}
	line := fmt.Sprintf("%-8s %-6s %-10s %s", name, g.host, phase, strings.ReplaceAll(text, "\n", " "))
	return fit(line, clock, l.story.a.columns-1)
}

func (l *liveShow) sumLine() string {
	s := l.story
	if s.started.IsZero() {
		return strings.TrimSpace("-- " + s.note)
	}
	return strings.TrimSpace(fmt.Sprintf("-- %d of %d steps, %s  %s", s.ended, s.total, clockTime(s.a.now().Sub(s.started)), s.note))
}

// fit puts left and right on one line of the given width, cutting left.
func fit(left, right string, width int) string {
	room := width - len([]rune(right)) - 1
	runes := []rune(left)
	if len(runes) > room && room > 3 {
		runes = append(runes[:room-3], []rune("...")...)
	}
	pad := max(1, width-len(runes)-len([]rune(right)))
	if right == "" {
		return strings.TrimRight(string(runes), " ")
	}
	return string(runes) + strings.Repeat(" ", pad) + right
}

// plan replaces the lines when another plan is carried out than was shown.
func (l *liveShow) plan(p *homelabv1.Plan) {
	l.mu.Lock()
	l.story.plan(p)
	old := l.bars
	l.bars = nil
	l.mu.Unlock()
	l.addLines()
	for _, b := range old {
		b.Abort(true)
	}
}

func (l *liveShow) event(e *homelabv1.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.story.event(e, l.story.a.now())
}

func (l *liveShow) close() {
	if l.closed {
		return
	}
	l.closed = true
	for _, b := range l.bars {
		b.Abort(true)
	}
	l.screen.Wait()
}

func (l *liveShow) summary(s *homelabv1.Summary, took time.Duration) { l.story.tell(s, took) }
