package shell

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
)

// sedCommand is one of the few commands of sed that are simulated: s, d, p, q
// and =, each with an optional address (N, $, /re/, or two of them).
type sedCommand struct {
	from, to *sedAddress
	not      bool
	cmd      byte
	re       *regexp.Regexp
	with     string // in Go's notation
	all, pr  bool   // flags g and p

	in bool // inside a range
}

type sedAddress struct {
	line int
	last bool
	re   *regexp.Regexp
}

func (a *sedAddress) hit(n int, last bool, line string) bool {
	switch {
	case a.re != nil:
		return a.re.MatchString(line)
	case a.last:
		return last
	}
	return a.line == n
}

func (s *sedCommand) hit(n int, last bool, line string) bool {
	ok := true
	switch {
	case s.from == nil:
	case s.to == nil:
		ok = s.from.hit(n, last, line)
	case s.in:
		s.in = !s.to.hit(n, last, line)
	default:
		ok = s.from.hit(n, last, line)
		s.in = ok && (s.to.re != nil || s.to.last || s.to.line > n)
	}
	return ok != s.not
}

var errSed = errors.New("command")

// cutDelimited takes the text up to the delimiter, a backslash protecting it.
func cutDelimited(s string, d byte) (text, rest string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			if s[i+1] == d {
				if d == '|' || d == '#' || d == ',' || d == '/' || d == '@' || d == '%' {
					b.WriteByte(d)
					i++
					continue
				}
			}
			b.WriteString(s[i : i+2])
			i++
		case s[i] == d:
			return b.String(), s[i+1:], true
		default:
			b.WriteByte(s[i])
		}
	}
	return "", "", false
}

func parseSed(script string, extended bool) ([]*sedCommand, error) {
	var out []*sedCommand
	s := script
	for {
		s = strings.TrimLeft(s, " \t\n;")
		if s == "" {
			return out, nil
		}
		c := &sedCommand{}
		var err error
		if c.from, s, err = parseAddress(s, extended); err != nil {
			return nil, err
		}
		if c.from != nil && strings.HasPrefix(s, ",") {
			if c.to, s, err = parseAddress(s[1:], extended); err != nil || c.to == nil {
				return nil, fmt.Errorf("%w in %q", errSed, script)
			}
		}
		s = strings.TrimLeft(s, " ")
		if strings.HasPrefix(s, "!") {
			c.not, s = true, strings.TrimLeft(s[1:], " ")
		}
		if s == "" {
			return nil, fmt.Errorf("%w in %q", errSed, script)
		}
		c.cmd, s = s[0], s[1:]
		switch c.cmd {
		case 'd', 'p', 'q', '=':
		case 's':
			if s == "" {
				return nil, fmt.Errorf("%w in %q", errSed, script)
			}
			d := s[0]
			pat, rest, ok := cutDelimited(s[1:], d)
			with, rest2, ok2 := cutDelimited(rest, d)
			if !ok || !ok2 {
				return nil, fmt.Errorf("unterminated `s' command in %q", script)
			}
			s = rest2
			ignore := ""
			for s != "" && strings.ContainsRune("gpiI", rune(s[0])) {
				switch s[0] {
				case 'g':
					c.all = true
				case 'p':
					c.pr = true
				default:
					ignore = "(?i)"
				}
				s = s[1:]
			}
			p, err := posix(pat, extended)
			if err != nil {
				return nil, err
			}
			if c.re, err = regexp.Compile(ignore + p); err != nil {
				return nil, err
			}
			c.with = replacement(with)
		default:
			return nil, fmt.Errorf("%w %q", errSed, string(c.cmd))
		}
		if s = strings.TrimLeft(s, " \t"); s != "" && s[0] != ';' && s[0] != '\n' {
			return nil, fmt.Errorf("%w in %q", errSed, script)
		}
		out = append(out, c)
	}
}

func parseAddress(s string, extended bool) (*sedAddress, string, error) {
	switch {
	case s == "":
		return nil, s, nil
	case s[0] == '$':
		return &sedAddress{last: true}, s[1:], nil
	case s[0] == '/':
		pat, rest, ok := cutDelimited(s[1:], '/')
		if !ok {
			return nil, s, fmt.Errorf("unterminated address in %q", s)
		}
		p, err := posix(pat, extended)
		if err != nil {
			return nil, s, err
		}
		re, err := regexp.Compile(p)
		return &sedAddress{re: re}, rest, err
	case s[0] >= '0' && s[0] <= '9':
		n := 0
		for n < len(s) && s[n] >= '0' && s[n] <= '9' {
			n++
		}
		line, err := strconv.Atoi(s[:n])
		return &sedAddress{line: line}, s[n:], err
	}
	return nil, s, nil
}

// replacement turns & and \1 into Go's ${0} and ${1}.
func replacement(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			i++
			switch {
			case s[i] >= '0' && s[i] <= '9':
				b.WriteString("${" + string(s[i]) + "}")
			case s[i] == 'n':
				b.WriteByte('\n')
			case s[i] == 't':
				b.WriteByte('\t')
			default:
				b.WriteByte(s[i])
			}
		case s[i] == '&':
			b.WriteString("${0}")
		case s[i] == '$':
			b.WriteString("$$")
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

func sed(ctx context.Context, c *Call) int {
	args := c.Argv[1:]
	o, err := parseOptions(args, "n e: i E r quiet expression: in-place regexp-extended")
	if err != nil {
		return c.Refuse(err.Error())
	}
	script := strings.Join(append(o.set["e"], o.set["expression"]...), "\n")
	if script == "" {
		if len(o.args) == 0 {
			return c.Fail("no script specified")
		}
		script, o.args = o.args[0], o.args[1:]
	}
	parse := func() ([]*sedCommand, error) { return parseSed(script, o.has("E", "r", "regexp-extended")) }
	if _, err := parse(); err != nil {
		return c.Refuse(err.Error())
	}
	quiet := o.has("n", "quiet")
	if !o.has("i", "in-place") {
		lines, code := c.lines(ctx, o.args)
		cmds, _ := parse()
		tell(c.Stdout, edit(cmds, lines, quiet)) //nolint:errcheck // a closed pipe ends the pipeline
		return code
	}
	code := 0
	for _, name := range o.args {
		b, err := c.FS().ReadFile(c.Abs(name))
		if err != nil {
			code = c.Fail("can't read %s: %s", name, why(err))
			continue
		}
		var lines []string
		_ = eachLine(strings.NewReader(string(b)), func(l string, _ bool) error { lines = append(lines, l); return nil })
		cmds, _ := parse()
		if err := c.FS().WriteFile(c.Abs(name), []byte(edit(cmds, lines, quiet)), 0o644); err != nil {
			code = c.Fail("%s: %s", name, why(err))
		}
	}
	return code
}

func edit(cmds []*sedCommand, lines []string, quiet bool) string {
	var b strings.Builder
lines:
	for i, line := range lines {
		stop := false
		for _, c := range cmds {
			if !c.hit(i+1, i == len(lines)-1, line) {
				continue
			}
			switch c.cmd {
			case 'd':
				continue lines
			case 'p':
				b.WriteString(line + "\n")
			case '=':
				b.WriteString(strconv.Itoa(i+1) + "\n")
			case 'q':
				stop = true
			case 's':
				if !c.re.MatchString(line) {
					continue
				}
				line = substitute(c, line)
				if c.pr {
					b.WriteString(line + "\n")
				}
			}
			if stop {
				break
			}
		}
		if !quiet {
			b.WriteString(line + "\n")
		}
		if stop {
			break
		}
	}
	return b.String()
}

// substitute replaces the first match, or all.
func substitute(c *sedCommand, line string) string {
	if c.all {
		return c.re.ReplaceAllString(line, c.with)
	}
	m := c.re.FindStringSubmatchIndex(line)
	if m == nil {
		return line
	}
	return line[:m[0]] + string(c.re.ExpandString(nil, c.with, line, m)) + line[m[1]:]
}

// awk simulates what is typed most: '{print $1, $3}' with an optional -F and an
// optional condition (NR==N or /re/).
func awk(ctx context.Context, c *Call) int {
	o, err := parseOptions(c.Argv[1:], "F:")
	if err != nil {
		return c.Refuse(err.Error())
	}
	if len(o.args) == 0 {
		return c.Refuse("no program")
	}
	m := awkProgram.FindStringSubmatch(strings.TrimSpace(o.args[0]))
	if m == nil {
		return c.Refuse("program " + o.args[0])
	}
	var re *regexp.Regexp
	if m[2] != "" {
		p, err := posix(m[2], true)
		if err == nil {
			re, err = regexp.Compile(p)
		}
		if err != nil {
			return c.Refuse(err.Error())
		}
	}
	nr, _ := strconv.Atoi(m[1])
	n := 0
	return c.each(ctx, o.args[1:], func(_ string, r io.Reader) error {
		return eachLine(r, func(line string, _ bool) error {
			n++
			if nr > 0 && n != nr || re != nil && !re.MatchString(line) {
				return nil
			}
			f := strings.Fields(line)
			if sep := o.get("", "F"); sep != "" {
				f = strings.Split(line, sep)
			}
			var out []string
			for what := range strings.SplitSeq(m[3], ",") {
				what = strings.TrimSpace(what)
				if what == "" || what == "$0" {
					out = append(out, line)
					continue
				}
				if what == "$NF" {
					what = "$" + strconv.Itoa(len(f))
				}
				k, _ := strconv.Atoi(what[1:])
				if k >= 1 && k <= len(f) {
					out = append(out, f[k-1])
				} else {
					out = append(out, "")
				}
			}
			_, err := fmt.Fprintln(c.Stdout, strings.Join(out, " "))
			return err
		})
	})
}

var awkProgram = regexp.MustCompile(`^(?:NR\s*==\s*(\d+)|/([^/]*)/)?\s*\{\s*print((?:\s*,?\s*\$(?:\d+|NF))*)\s*;?\s*\}$`)
