// Package human writes measures as people read them: binary sizes, spans of time
// in one unit. It is pure. What programs read (qm's sizes, the Spec's, JSON) is
// written where it is needed.
package human

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes in the largest fitting unit: 4 GiB, 1.5 GiB, 12 B.
// A place behind the point is kept at every size, since sizes are compared:
// "12 GiB needed, 12 GiB free" would hide why it was refused.
func Size(bytes int64) string {
	value, unit := float64(bytes), "B"
	for _, u := range []string{"KiB", "MiB", "GiB", "TiB", "PiB"} {
		if value < 1024 && value > -1024 {
			break
		}
		value, unit = value/1024, u
	}
	return strings.TrimSuffix(strconv.FormatFloat(value, 'f', 1, 64), ".0") + " " + unit
}

// Span is a duration in one unit, rounded down: 12 s, 4 min, 5 h, 3 days. A
// negative one (two clocks differ) is 0 s.
func Span(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// Clock is a duration as a clock shows it, rounded up to seconds: 0:06, 12:30,
// 1:02:03. A negative one is 0:00.
func Clock(d time.Duration) string {
	n := max(0, int((d+time.Second-1)/time.Second))
	if n < 3600 {
		return fmt.Sprintf("%d:%02d", n/60, n%60)
	}
	return fmt.Sprintf("%d:%02d:%02d", n/3600, n/60%60, n%60)
}
