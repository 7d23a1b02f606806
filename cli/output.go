package cli

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/homeiac/homelab/internal/human"
)

// print writes v as JSON or YAML, or calls table.
func (a *app) print(v any, table func()) error {
	switch a.format {
	case "json":
		enc := json.NewEncoder(a.out)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(v)
	case "yaml":
		return a.printYAML(v)
	}
	table()
	return nil
}

// printYAML writes what JSON would say, in the same order of fields.
func (a *app) printYAML(v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var node yaml.Node
	if err := yaml.Unmarshal(data, &node); err != nil {
		return err
	}
	plainStyle(&node)
	enc := yaml.NewEncoder(a.out)
	enc.SetIndent(2)
	if err := enc.Encode(&node); err != nil {
		return err
	}
	return enc.Close()
}

// plainStyle drops JSON's brackets and the quotes that YAML does not need.
func plainStyle(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		plainStyle(c)
	}
}

// Colours carry state only, and never alone: the word says it too.
const (
	red    = "31"
	green  = "32"
	yellow = "33"
	dim    = "2"
)

func (a *app) paint(code, text string) string {
	if !a.colour || code == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// sentenceHeadings are those of columns of sentences.
var sentenceHeadings = []string{"", "WHY", "HOLDS"}

// table prints rows under their headings, aligned, two blanks between columns,
// one where that would be too wide. A last column without heading, or with one of
// sentenceHeadings, holds sentences: one that does not fit stands below its row.
func (a *app) table(heading []string, rows [][]cell) {
	columns := len(heading)
	sentences := slices.Contains(sentenceHeadings, heading[columns-1])
	if sentences {
		columns--
	}
	widths, total := make([]int, columns), 0
	for i := range widths {
		widths[i] = utf8.RuneCountInString(heading[i])
		for _, row := range rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i].text))
		}
		total += widths[i]
	}
	gap := 2
	if total+gap*(columns-1) > a.columns {
		gap = 1
	}
	indent := total + gap*columns
	line := func(row []cell) {
		var b strings.Builder
		for i, c := range row[:columns] {
			b.WriteString(a.paint(c.colour, c.text))
			b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text)+gap))
		}
		text := ""
		if sentences {
			text = row[columns].text
		}
		if text == "" || indent+utf8.RuneCountInString(text) <= a.columns && !strings.Contains(text, "\n") {
			fmt.Fprintln(a.out, strings.TrimRight(b.String()+text, " "))
			return
		}
		fmt.Fprintf(a.out, "%s\n    %s\n", strings.TrimRight(b.String(), " "), a.wrap(text, 4))
	}
	head := make([]cell, len(heading))
	for i, h := range heading {
		head[i].text = h
	}
	if sentences && indent+len(heading[columns]) > a.columns {
		head[columns].text = ""
	}
	line(head)
	for _, row := range rows {
		line(row)
	}
}

// cell is one field of a table.
type cell struct{ text, colour string }

func plain(text string) cell { return cell{text: text} }

// ago is a time for people: 13:58 (4 min), or with the date when it was not today.
func ago(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	return fmt.Sprintf("%s (%s)", onClock(t, now), human.Span(now.Sub(t)))
}

// upTo is a time to come for people: 14:05 (in 3 min).
func upTo(t, now time.Time) string {
	if !t.After(now) {
		return onClock(t, now)
	}
	return fmt.Sprintf("%s (in %s)", onClock(t, now), human.Span(t.Sub(now)))
}

// onClock is 13:58, with the date when it is not today.
func onClock(t, now time.Time) string {
	if sameDay(t, now) {
		return t.Local().Format("15:04")
	}
	return t.Local().Format("2006-01-02 15:04")
}

func sameDay(a, b time.Time) bool {
	a, b = a.Local(), b.Local()
	return a.YearDay() == b.YearDay() && a.Year() == b.Year()
}

// short is a span in a column of a table: 3d, 5h, 12m.
func short(d time.Duration) string {
	return strings.NewReplacer(" days", "d", " min", "m", " ", "").Replace(human.Span(d))
}

// clockTime is minutes and seconds, 1:07, with hours when there are any.
func clockTime(d time.Duration) string {
	s := int(d.Round(time.Second).Seconds())
	if s >= 3600 {
		return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
	}
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}

// used is how much of something is in use: 9.1/31 GiB.
func used(b, of int64) string {
	number, unit, _ := strings.Cut(human.Size(b), " ")
	total, totalUnit, _ := strings.Cut(human.Size(of), " ")
	if unit == totalUnit {
		return number + "/" + total + " " + unit
	}
	return human.Size(b) + "/" + human.Size(of)
}

// timeOrNull is RFC 3339 in UTC for JSON, null for no time.
func timeOrNull(t time.Time) *string {
	if t.IsZero() || t.Unix() == 0 {
		return nil
	}
	s := t.UTC().Format(time.RFC3339)
	return &s
}

// list is never null in JSON.
func list[T any](in []T) []T {
	if in == nil {
		return []T{}
	}
	return in
}

func plural(n int, one, many string) string {
	if n == 1 {
		return fmt.Sprintf("1 %s", one)
	}
	return fmt.Sprintf("%d %s", n, many)
}
