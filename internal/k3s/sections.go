package k3s

import (
	"fmt"
	"strconv"
	"strings"
)

// mark begins the lines by which our scripts divide what they print.
const mark = "@@hl "

// prologue begins our scripts: messages in English, the places where k3s and
// its tools lie (sudo's own path often lacks /usr/local/bin), and section,
// which runs a command under a limit in seconds and encloses what it prints.
// code keeps its exit code for the lines after it.
const prologue = kubectl + `code=0
section() {
	name=$1
	limit=$2
	shift 2
	printf '@@hl begin %s\n' "$name"
	timeout -k 1 "$limit" "$@" 2>&1
	code=$?
	printf '\n@@hl end %s %s\n' "$name" "$code"
}
`

// A Section is what one command of a script printed, both streams together.
type Section struct {
	Text string
	Exit int // 124 and 137: it ran into its limit; 127: there is no such command
	// Reason is why Text is not to be trusted: the section was not run or not
	// finished. "" otherwise; a failed command is a finished section.
	Reason string
}

// ParseSections divides the output of one of our scripts. What stands outside
// of sections is left out, a section that has no end is unfinished, and of two
// sections of one name both are not to be trusted.
func ParseSections(out []byte) map[string]Section {
	sections := map[string]Section{}
	add := func(name string, s Section) {
		if _, twice := sections[name]; twice {
			s = Section{Reason: "was printed twice"}
		}
		sections[name] = s
	}
	var open string
	var text []string
	for line := range strings.SplitSeq(strings.ReplaceAll(string(out), "\r\n", "\n"), "\n") {
		word, rest, _ := strings.Cut(strings.TrimPrefix(line, mark), " ")
		switch {
		case !strings.HasPrefix(line, mark):
			if open != "" {
				text = append(text, line)
			}
		case word == "begin":
			if open != "" {
				add(open, Section{Text: strings.Join(text, "\n"), Reason: "was cut off"})
			}
			open, text = rest, nil
		case word == "end":
			name, exit, _ := strings.Cut(rest, " ")
			code, err := strconv.Atoi(exit)
			if open == "" || name != open || err != nil {
				continue
			}
			add(open, Section{Text: strings.TrimSuffix(strings.Join(text, "\n"), "\n"), Exit: code})
			open, text = "", nil
		case word == "skip":
			name, reason, _ := strings.Cut(rest, " ")
			add(name, Section{Reason: reason})
		}
	}
	if open != "" {
		add(open, Section{Text: strings.Join(text, "\n"), Reason: "was cut off"})
	}
	return sections
}

// read gives the text of a section whose exit code is among ok (none given:
// any), else the reason why there is none.
func read(sections map[string]Section, name string, ok ...int) (text, reason string) {
	s, there := sections[name]
	switch {
	case !there:
		return "", name + ": was not looked at"
	case s.Reason != "":
		return "", name + ": " + s.Reason
	case s.Exit == 124 || s.Exit == 137:
		return "", name + ": no answer within its limit"
	}
	for _, code := range ok {
		if s.Exit == code {
			return strings.TrimSpace(s.Text), ""
		}
	}
	if len(ok) == 0 {
		return strings.TrimSpace(s.Text), ""
	}
	return "", fmt.Sprintf("%s: exit %d%s", name, s.Exit, lastLine(s.Text))
}

// lastLine is ": " and the last line with something in it, shortened.
func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	last := strings.TrimSpace(lines[len(lines)-1])
	if last == "" {
		return ""
	}
	if runes := []rune(last); len(runes) > 200 {
		last = string(runes[:200]) + "…"
	}
	return ": " + last
}
