package cli

import (
	"bytes"
	"regexp"
	"strings"
)

// dotenv is a .env file: the last value of each key. Nothing in it is expanded or run.
type dotenv struct {
	values map[string]string
	// unread are the lines that are no KEY=VALUE. What stands in them is not kept: it
	// may be half a secret.
	unread []int
}

var dotenvKey = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// parseDotenv reads KEY=VALUE lines as python-dotenv does, which the predecessor reads
// them with: export before a key, blanks around the sign, comments, and values in
// quotes, which may go on over lines. ${NAME} stays as it is.
func parseDotenv(data []byte) *dotenv {
	d := &dotenv{values: map[string]string{}}
	rest := strings.ReplaceAll(string(bytes.TrimPrefix(data, []byte("\ufeff"))), "\r\n", "\n")
	for line := 1; rest != ""; {
		text, after, _ := strings.Cut(rest, "\n")
		key, value, ok := strings.Cut(text, "=")
		key = strings.TrimSpace(key)
		if k, found := strings.CutPrefix(key, "export"); found && k != strings.TrimSpace(k) {
			key = strings.TrimSpace(k)
		}
		value = strings.TrimLeft(value, " \t")
		lines := 1
		switch {
		case strings.TrimSpace(text) == "" || strings.HasPrefix(strings.TrimSpace(text), "#"):
		case !ok || !dotenvKey.MatchString(key):
			d.unread = append(d.unread, line)
		case strings.HasPrefix(value, `"`) || strings.HasPrefix(value, "'"):
			// What is in quotes is looked for in all that follows.
			began := len(text) - len(value)
			inside, size, closed := quoted(rest[began:])
			tail, left, _ := strings.Cut(rest[began+size:], "\n")
			tail = strings.TrimSpace(tail)
			if !closed || tail != "" && !strings.HasPrefix(tail, "#") {
				d.unread = append(d.unread, line)
				break
			}
			d.values[key] = inside
			lines, after = 1+strings.Count(rest[began:began+size], "\n"), left
		default:
			d.values[key] = bare(value)
		}
		rest, line = after, line+lines
	}
	return d
}

// bare is a value without quotes: a # after a blank begins a comment.
func bare(value string) string {
	if strings.HasPrefix(value, "#") {
		return ""
	}
	for i := 1; i < len(value); i++ {
		if value[i] == '#' && (value[i-1] == ' ' || value[i-1] == '\t') {
			value = value[:i]
			break
		}
	}
	return strings.TrimSpace(value)
}

// quoted reads a text that begins with a quote, up to the next one of its kind, and
// says how many bytes it takes with both.
func quoted(text string) (inside string, size int, closed bool) {
	var b strings.Builder
	for i := 1; i < len(text); i++ {
		switch c := text[i]; {
		case c == text[0]:
			return b.String(), i + 1, true
		case c == '\\' && i+1 < len(text):
			i++
			switch next := text[i]; {
			case next == text[0] || next == '\\':
				b.WriteByte(next)
			case next == 'n' && text[0] == '"':
				b.WriteByte('\n')
			default:
				b.WriteString(`\` + string(next))
			}
		default:
			b.WriteByte(c)
		}
	}
	return "", len(text), false
}
