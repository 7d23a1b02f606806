package plan

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/homeiac/homelab/internal/human"
)

// since is " since 13:58 (4 min)", in the location of the time itself; empty
// for the zero time.
func since(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	layout := "15:04"
	age := now.Sub(t)
	if age >= 20*time.Hour {
		layout = "2006-01-02 15:04"
	}
	return fmt.Sprintf(" since %s (%s)", t.Format(layout), human.Span(age))
}

// less is ", 2 GiB for reserve, 4 GiB for other guests", of pairs of names and
// bytes; what is nothing is left out.
func less(pairs ...any) string {
	var b strings.Builder
	for i := 0; i+1 < len(pairs); i += 2 {
		if bytes, ok := pairs[i+1].(int64); ok && bytes > 0 {
			fmt.Fprintf(&b, ", %s for %s", human.Size(bytes), pairs[i])
		}
	}
	return b.String()
}

func numbers(list []int32) string {
	list = slices.Clone(list)
	slices.Sort(list)
	return joined(slices.Compact(list))
}

func joined(list []int32) string {
	words := make([]string, len(list))
	for i, n := range list {
		words[i] = strconv.Itoa(int(n))
	}
	return strings.Join(words, ", ")
}

// firstLines cuts a list of reasons to what a person will read.
func firstLines(reasons []string, most int) string {
	if len(reasons) <= most {
		return strings.Join(reasons, "; ")
	}
	return fmt.Sprintf("%s; and %d more", strings.Join(reasons[:most], "; "), len(reasons)-most)
}

// at is where a key stands in the Spec, as homelab.yaml:14; the file alone when
// that is not known.
func (m *model) at(path string) string {
	file := m.spec.File
	if file == "" {
		file = "homelab.yaml"
	}
	if line, _ := m.spec.Line(path); line > 0 {
		return fmt.Sprintf("%s:%d", file, line)
	}
	return file
}

// correct is the last line of a refusal that a change of the Spec can end.
func (m *model) correct(path string) string {
	return fmt.Sprintf("nothing was changed; correct %s in %s, then hlctl plan", path, m.at(path))
}

// few is a list of names, cut to what a person will read.
func few(names []string, most int) string {
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}
