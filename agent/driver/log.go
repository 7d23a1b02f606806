package driver

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"
)

// hushed is a go-plugin log that says nothing: in a plugin its lines would only
// tell of go-plugin's own doings.
func hushed() hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Output: io.Discard, Level: hclog.Off})
}

// bridged is a go-plugin log whose lines go to log. Its own output goes nowhere,
// but its level must not be Off: go-plugin then drops the plugin's lines unread.
func bridged(log *slog.Logger) hclog.Logger {
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Output: io.Discard, Level: hclog.Debug})
	l.RegisterSink(sink{log})
	return l
}

// sink takes hclog's lines.
type sink struct{ log *slog.Logger }

var levels = map[hclog.Level]slog.Level{
	hclog.Trace: slog.LevelDebug - 4,
	hclog.Debug: slog.LevelDebug,
	hclog.Info:  slog.LevelInfo,
	hclog.Warn:  slog.LevelWarn,
	hclog.Error: slog.LevelError,
}

// quiet are go-plugin's own lines that sound like trouble and are none: an orderly
// end, and what Process says itself.
var quiet = map[string]bool{
	"plugin failed to exit gracefully": true,
	"plugin process exited":            true,
	"stdio EOF, exiting copy loop":     true,
}

func (s sink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	l, known := levels[level]
	if !known {
		return
	}
	if quiet[msg] {
		l = slog.LevelDebug
	}
	s.log.Log(context.Background(), l, msg, pairs(args)...)
}

// pairs brings what comes out of a JSON object into one order, and leaves out the
// plugin's time, which is the line's own but for a millisecond.
func pairs(args []any) []any {
	type pair struct {
		key   string
		value any
	}
	var all []pair
	for i := 0; i+1 < len(args); i += 2 {
		if key := fmt.Sprint(args[i]); key != "timestamp" {
			all = append(all, pair{key, args[i+1]})
		}
	}
	slices.SortStableFunc(all, func(a, b pair) int { return strings.Compare(a.key, b.key) })
	var out []any
	for _, p := range all {
		out = append(out, p.key, p.value)
	}
	return out
}
