package shell

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// set expands tr's ranges, classes and escapes.
func set(s string) ([]byte, error) {
	classes := map[string]string{
		"[:upper:]": "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "[:lower:]": "abcdefghijklmnopqrstuvwxyz",
		"[:digit:]": "0123456789", "[:space:]": " \t\n\v\f\r",
		"[:alnum:]": "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
		"[:alpha:]": "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
	}
	var out []byte
	for i := 0; i < len(s); i++ {
		if s[i] == '[' && i+1 < len(s) && s[i+1] == ':' {
			end := strings.Index(s[i:], ":]")
			if end < 0 || classes[s[i:i+end+2]] == "" {
				return nil, fmt.Errorf("class in %q", s)
			}
			out = append(out, classes[s[i:i+end+2]]...)
			i += end + 1
			continue
		}
		ch := s[i]
		if ch == '\\' && i+1 < len(s) {
			i++
			switch s[i] {
			case 'n':
				ch = '\n'
			case 't':
				ch = '\t'
			case 'r':
				ch = '\r'
			case '0':
				ch = 0
			case '\\', '-', '[', ']':
				ch = s[i]
			default:
				return nil, fmt.Errorf("escape in %q", s)
			}
		} else if i+2 < len(s) && s[i+1] == '-' {
			for x := int(ch); x <= int(s[i+2]); x++ {
				out = append(out, byte(x))
			}
			i += 2
			continue
		}
		out = append(out, ch)
	}
	return out, nil
}

func tr(ctx context.Context, c *Call) int {
	o, err := parseOptions(c.Argv[1:], "d s c C delete squeeze-repeats complement")
	if err != nil {
		return c.Refuse(err.Error())
	}
	if len(o.args) == 0 {
		return c.Fail("missing operand")
	}
	from, err := set(o.args[0])
	var to []byte
	if err == nil && len(o.args) > 1 {
		to, err = set(o.args[1])
	}
	if err != nil {
		return c.Refuse(err.Error())
	}
	if o.has("c", "C", "complement") {
		var not []byte
		for x := range 256 {
			if !slices.Contains(from, byte(x)) {
				not = append(not, byte(x))
			}
		}
		from = not
	}
	b, err := io.ReadAll(c.In(ctx))
	if err != nil {
		return c.Fail("%s", why(err))
	}
	var out []byte
	squeeze := from
	if len(to) > 0 {
		squeeze = to
	}
	for _, ch := range b {
		if i := slices.Index(from, ch); i >= 0 {
			if o.has("d", "delete") {
				continue
			}
			if len(to) > 0 {
				ch = to[min(i, len(to)-1)]
			}
		}
		if o.has("s", "squeeze-repeats") && len(out) > 0 && out[len(out)-1] == ch && slices.Contains(squeeze, ch) {
			continue
		}
		out = append(out, ch)
	}
	if _, err := c.Stdout.Write(out); err != nil {
		return 141
	}
	return 0
}

func (c *Call) lines(ctx context.Context, names []string) (lines []string, code int) {
	code = c.each(ctx, names, func(_ string, r io.Reader) error {
		return eachLine(r, func(l string, _ bool) error { lines = append(lines, l); return nil })
	})
	return lines, code
}

func sortLines(ctx context.Context, c *Call) int {
	o, err := parseOptions(c.Argv[1:], "r n u V k: t: reverse numeric-sort unique version-sort")
	if err != nil {
		return c.Refuse(err.Error())
	}
	lines, code := c.lines(ctx, o.args)
	key := func(s string) string { return s }
	if k := o.get("", "k"); k != "" {
		first, _, _ := strings.Cut(k, ",")
		n, err := strconv.Atoi(first)
		if err != nil || n < 1 {
			return c.Refuse("key " + k)
		}
		key = func(s string) string {
			f := strings.Fields(s)
			if t := o.get("", "t"); t != "" {
				f = strings.Split(s, t)
			}
			if n > len(f) {
				return ""
			}
			return f[n-1]
		}
	}
	less := func(a, b string) bool { return a < b }
	switch {
	case o.has("n", "numeric-sort"):
		less = func(a, b string) bool { return leadingNumber(a) < leadingNumber(b) }
	case o.has("V", "version-sort"):
		less = func(a, b string) bool { return compareVersion(a, b) < 0 }
	}
	sort.SliceStable(lines, func(i, j int) bool {
		a, b := key(lines[i]), key(lines[j])
		if o.has("r", "reverse") {
			return less(b, a)
		}
		return less(a, b)
	})
	if o.has("u", "unique") {
		lines = slices.Compact(lines)
	}
	for _, l := range lines {
		if tell(c.Stdout, l+"\n") != nil {
			return 141
		}
	}
	return code
}

var digits = regexp.MustCompile(`\d+|\D+`)

func compareVersion(a, b string) int {
	x, y := digits.FindAllString(a, -1), digits.FindAllString(b, -1)
	for i := 0; i < len(x) && i < len(y); i++ {
		m, err1 := strconv.Atoi(x[i])
		n, err2 := strconv.Atoi(y[i])
		switch {
		case err1 == nil && err2 == nil && m != n:
			return m - n
		case (err1 != nil || err2 != nil) && x[i] != y[i]:
			return strings.Compare(x[i], y[i])
		}
	}
	return len(x) - len(y)
}

func leadingNumber(s string) float64 {
	s = strings.TrimLeft(s, " \t")
	end := 0
	for end < len(s) && (s[end] >= '0' && s[end] <= '9' || s[end] == '.' || end == 0 && s[end] == '-') {
		end++
	}
	f, err := strconv.ParseFloat(s[:end], 64)
	if err != nil {
		return 0
	}
	return f
}

func uniq(ctx context.Context, c *Call) int {
	o, err := parseOptions(c.Argv[1:], "c d u")
	if err != nil || len(o.args) > 1 {
		return c.Refuse("these arguments")
	}
	lines, code := c.lines(ctx, o.args)
	for i := 0; i < len(lines); {
		j := i
		for j < len(lines) && lines[j] == lines[i] {
			j++
		}
		n := j - i
		if (!o.has("d") || n > 1) && (!o.has("u") || n == 1) {
			if o.has("c") {
				c.Printf("%7d ", n)
			}
			c.Printf("%s\n", lines[i])
		}
		i = j
	}
	return code
}

// posix turns a basic or extended POSIX expression into Go's. Back-references
// are refused.
func posix(pat string, extended bool) (string, error) {
	var b strings.Builder
	for i := 0; i < len(pat); i++ {
		ch := pat[i]
		switch {
		case ch == '[':
			end := i + 1
			if end < len(pat) && pat[end] == '^' {
				end++
			}
			if end < len(pat) && pat[end] == ']' {
				end++
			}
			for end < len(pat) && pat[end] != ']' {
				if pat[end] == '[' && end+1 < len(pat) && pat[end+1] == ':' {
					if k := strings.Index(pat[end:], ":]"); k > 0 {
						end += k + 1
					}
				}
				end++
			}
			if end >= len(pat) {
				return "", fmt.Errorf("unmatched [ in %q", pat)
			}
			b.WriteString(strings.ReplaceAll(pat[i:end+1], `\`, `\\`))
			i = end
		case ch == '\\' && i+1 < len(pat):
			i++
			n := pat[i]
			switch {
			case n >= '1' && n <= '9':
				return "", fmt.Errorf("back-reference in %q", pat)
			case !extended && strings.ContainsRune("(){}|+?", rune(n)):
				b.WriteByte(n)
			case strings.ContainsRune("wWsSbB", rune(n)):
				b.WriteString(`\` + string(n))
			case n == '<' || n == '>':
				b.WriteString(`\b`)
			default:
				b.WriteString(regexp.QuoteMeta(string(n)))
			}
		case !extended && strings.ContainsRune("(){}|+?", rune(ch)):
			b.WriteString(`\` + string(ch))
		case !extended && ch == '*' && (i == 0 || i == 1 && pat[0] == '^'):
			b.WriteString(`\*`)
		default:
			b.WriteByte(ch)
		}
	}
	return b.String(), nil
}

func grep(ctx context.Context, c *Call) int {
	o, err := parseOptions(c.Argv[1:], "q v i c n o l h H E F s x w e: r m: quiet silent invert-match ignore-case count only-matching extended-regexp fixed-strings line-regexp word-regexp max-count:")
	if err != nil || o.has("r") {
		if err == nil {
			err = fmt.Errorf("option -r")
		}
		return c.Refuse(err.Error())
	}
	pats := o.set["e"]
	if len(pats) == 0 {
		if len(o.args) == 0 {
			fmt.Fprintln(c.Stderr, "Usage: grep [OPTION]... PATTERNS [FILE]...")
			return 2
		}
		pats, o.args = strings.Split(o.args[0], "\n"), o.args[1:]
	}
	var alts []string
	for _, p := range pats {
		if o.has("F", "fixed-strings") || c.Name() == "fgrep" {
			p = regexp.QuoteMeta(p)
		} else if p, err = posix(p, o.has("E", "extended-regexp") || c.Name() == "egrep"); err != nil {
			return c.Refuse(err.Error())
		}
		if o.has("x", "line-regexp") {
			p = "^(?:" + p + ")$"
		}
		if o.has("w", "word-regexp") {
			p = `\b(?:` + p + `)\b`
		}
		alts = append(alts, "(?:"+p+")")
	}
	expr := strings.Join(alts, "|")
	if o.has("i", "ignore-case") {
		expr = "(?i)" + expr
	}
	re, err := regexp.Compile(expr)
	if err != nil {
		fmt.Fprintf(c.Stderr, "grep: %v\n", err)
		return 2
	}
	limit, err := strconv.Atoi(o.get("-1", "m", "max-count"))
	if err != nil {
		return c.Fail("invalid max count")
	}
	quiet, found := o.has("q", "quiet", "silent"), false
	names := (len(o.args) > 1 || o.has("H")) && !o.has("h")
	errs := c.Stderr
	if o.has("s") {
		c.Stderr = io.Discard
	}
	code := c.each(ctx, o.args, func(name string, r io.Reader) error {
		prefix := ""
		if names {
			prefix = name + ":"
		}
		n, count := 0, 0
		err := eachLine(r, func(line string, _ bool) error {
			n++
			hit := re.MatchString(line) != o.has("v", "invert-match")
			if !hit {
				return nil
			}
			found = true
			count++
			num := ""
			if o.has("n") {
				num = strconv.Itoa(n) + ":"
			}
			switch {
			case quiet, o.has("l"):
				return errStop
			case o.has("c", "count"):
			case o.has("o", "only-matching"):
				for _, m := range re.FindAllString(line, -1) {
					c.Printf("%s%s%s\n", prefix, num, m)
				}
			default:
				if _, err := fmt.Fprintf(c.Stdout, "%s%s%s\n", prefix, num, line); err != nil {
					return err
				}
			}
			if count == limit {
				return errStop
			}
			return nil
		})
		switch {
		case o.has("l") && count > 0:
			c.Printf("%s\n", name)
		case o.has("c", "count") && !quiet:
			c.Printf("%s%d\n", prefix, count)
		}
		return err
	})
	c.Stderr = errs
	switch {
	case found && (code == 0 || quiet):
		return 0
	case code > 1:
		return code
	case code == 1:
		return 2
	}
	return 1
}
