package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// liveShow keeps one line a guest on a terminal while a run goes on, and one for
// each image and host that is being worked on; it leaves nothing of it behind.
type liveShow struct {
	a      *app
	story  *story
	screen *mpb.Progress // nil until there is something to show
	bars   []*mpb.Bar
	closed bool
}

// redraw is how often the clock on the lines moves.
const redraw = 200 * time.Millisecond

// open begins the picture with as many lines as there are guests, or as fit on
// the screen, and one for the sum.
func (l *liveShow) open() {
	lines := len(l.story.order) + 1
	if f, ok := l.a.out.(interface{ Fd() uintptr }); ok {
		// One row stays for the cursor.
		if _, rows, err := term.GetSize(int(f.Fd())); err == nil && rows > 2 {
			lines = min(lines, rows-1)
		}
	}
	l.screen = mpb.New(mpb.WithOutput(l.a.out), mpb.WithRefreshRate(redraw), mpb.WithAutoRefresh())
	for i := range lines {
		l.bars = append(l.bars, l.screen.New(0, mpb.NopStyle(), mpb.BarRemoveOnComplete(),
			mpb.PrependDecorators(decor.Any(func(st decor.Statistics) string {
				return l.picture(st.AvailableWidth-1, lines)[i]
			}))))
	}
}

// picture is all lines, of at most the given width.
func (l *liveShow) picture(width, lines int) []string {
	s, now := l.story, l.a.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []string
	for _, key := range s.order {
		// An image is worth a line while it comes; what was made of it is for the end.
		if g := s.guests[key]; g.image == "" || g.phase != "" || g.failed != "" {
			keys = append(keys, key)
		}
	}
	hidden := 0
	if len(keys) > lines-1 {
		// What works comes first when not all fit.
		keys = slices.Clone(keys)
		slices.SortStableFunc(keys, func(a, b string) int { return s.urgency(s.guests[a]) - s.urgency(s.guests[b]) })
		for _, key := range keys[lines-1:] {
			if s.guests[key].image == "" {
				hidden++
			}
		}
		keys = keys[:lines-1]
	}
	var text []string
	for _, key := range keys {
		text = append(text, l.guestLine(s.guests[key], now, width))
	}
	text = append(text, fit(s.sumLine(now, hidden), "", width))
	for len(text) < lines {
		text = append(text, "")
	}
	return text
}

func (s *story) urgency(g *progress) int {
	switch {
	case g.phase != "":
		return 0
	case g.failed != "":
		return 1
	case !s.finished(g):
		return 2
	}
	return 3
}

// phaseWidth fits every phase and most outcomes.
const phaseWidth = 10

// guestLine is one guest: name, host, phase, what it waits for, and the clock.
func (l *liveShow) guestLine(g *progress, now time.Time, width int) string {
	s := l.story
	phase, text, clock, colour := g.phase, g.text, "", ""
	switch {
	case g.failed != "" || s.finished(g):
		phase, colour, text = g.outcome()
		if !g.begun.IsZero() {
			clock = clockTime(g.end.Sub(g.begun))
		}
	case phase == "":
		phase, text = "waiting", s.waitsFor(g)
	default:
		clock = clockTime(now.Sub(g.since))
		if g.limit > 0 && g.image == "" { // a transfer tells itself how long it will take
			clock += " / ~" + clockTime(g.limit)
		}
	}
	text, _, _ = strings.Cut(text, "\n") // the rest is for the end
	start := fmt.Sprintf("%-*s  %-*s  ", s.wide[0], g.name(), s.wide[1], g.host)
	line := fit(fmt.Sprintf("%s%-*s %s", start, phaseWidth, phase, text), clock, width)
	if colour != "" && strings.HasPrefix(line, start+phase) {
		line = start + l.a.paint(colour, phase) + line[len(start)+len(phase):]
	}
	return line
}

func (s *story) sumLine(now time.Time, hidden int) string {
	waits := s.wait.text
	if waits != "" {
		waits += "  " + clockTime(now.Sub(s.wait.since))
		if s.wait.limit > 0 {
			waits += " / ~" + clockTime(s.wait.limit)
		}
	}
	if s.started.IsZero() {
		return "-- " + waits
	}
	line := fmt.Sprintf("-- %d of %d steps, %s", len(s.over), len(s.steps), clockTime(now.Sub(s.started)))
	if hidden > 0 {
		line += ", " + plural(hidden, "more guest", "more guests")
	}
	return strings.TrimSpace(line + "  " + waits)
}

// fit puts left and right on one line of the given width, cutting left.
func fit(left, right string, width int) string {
	runes := []rune(strings.TrimRight(left, " "))
	room := width
	if right != "" {
		room -= len([]rune(right)) + 1
	}
	if len(runes) > room && room > 3 {
		runes = append(runes[:room-3], []rune("...")...)
	}
	if right == "" {
		return string(runes)
	}
	return string(runes) + strings.Repeat(" ", max(1, width-len(runes)-len([]rune(right)))) + right
}

func (l *liveShow) event(e *homelabv1.Event, _ bool) {
	// A run without steps is over before anything could be read, unless it waits.
	worth := len(l.story.steps) > 0 || e.GetKind() == homelabv1.EventKind_EVENT_KIND_WAITING
	if l.screen == nil && worth && !l.closed {
		l.open()
	}
}

func (l *liveShow) close() {
	l.closed = true
	for _, b := range l.bars {
		b.Abort(true)
	}
	l.bars = nil
	if l.screen != nil {
		l.screen.Wait()
	}
}

func (l *liveShow) summary(s *homelabv1.Summary, took time.Duration) { l.a.tell(l.story, s, took) }
