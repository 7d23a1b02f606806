package shell

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

var textTools = map[string]Tool{
	"cat": cat, "head": head, "tail": tail, "wc": wc, "tee": tee, "cut": cut, "tr": tr,
	"sort": sortLines, "uniq": uniq, "grep": grep, "sed": sed, "egrep": grep, "fgrep": grep, "awk": awk,
	"yes": yes, "seq": seq, "xargs": xargs,
}

// Open opens a file, or a device, as the call's user.
func (c *Call) Open(name string, flag int) (io.ReadWriteCloser, error) {
	return openFile(c.FS(), c.Stdin, c.Stdout, c.Stderr, c.Abs(name), flag, 0o644)
}

// each calls fn with every named file, or with standard input when there is
// none or it is "-". It gives 1 when one could not be read.
func (c *Call) each(ctx context.Context, names []string, fn func(name string, r io.Reader) error) int {
	if len(names) == 0 {
		names = []string{"-"}
	}
	code := 0
	for _, n := range names {
		err := func() error {
			if n == "-" {
				return fn(n, c.In(ctx))
			}
			f, err := c.Open(n, os.O_RDONLY)
			if err != nil {
				return err
			}
			defer f.Close()
			return fn(n, f)
		}()
		if err != nil && !errors.Is(err, errStop) {
			code = c.Fail("%s: %s", n, why(err))
		}
		if ctx.Err() != nil {
			return Signal(ctx)
		}
	}
	return code
}

var errStop = errors.New("stop")

func eachLine(r io.Reader, fn func(line string, nl bool) error) error {
	br := bufio.NewReader(r)
	for {
		line, err := br.ReadString('\n')
		if line != "" {
			s, nl := strings.CutSuffix(line, "\n")
			if e := fn(s, nl); e != nil {
				return e
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func cat(ctx context.Context, c *Call) int {
	o, err := parseOptions(c.Argv[1:], "n u")
	if err != nil {
		return c.Refuse(err.Error())
	}
	n := 0
	return c.each(ctx, o.args, func(_ string, r io.Reader) error {
		if !o.has("n") {
			_, err := io.Copy(c.Stdout, r)
			return err
		}
		return eachLine(r, func(line string, _ bool) error {
			n++
			_, err := fmt.Fprintf(c.Stdout, "%6d\t%s\n", n, line)
			return err
		})
	})
}

// oldStyle turns "head -5" into "head -n 5".
func oldStyle(args []string) []string {
	if len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' && args[0][1] >= '0' && args[0][1] <= '9' {
		return append([]string{"-n", args[0][1:]}, args[1:]...)
	}
	return args
}

func head(ctx context.Context, c *Call) int {
	o, err := parseOptions(oldStyle(c.Argv[1:]), "n: c: q lines: bytes:")
	if err != nil {
		return c.Refuse(err.Error())
	}
	bytes, err1 := strconv.Atoi(o.get("0", "c", "bytes"))
	lines, err2 := strconv.Atoi(o.get("10", "n", "lines"))
	if err1 != nil || err2 != nil || bytes < 0 || lines < 0 {
		return c.Refuse("this count")
	}
	return c.each(ctx, o.args, func(_ string, r io.Reader) error {
		if o.has("c", "bytes") {
			_, err := io.CopyN(c.Stdout, r, int64(bytes))
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return err
		}
		n := 0
		if lines == 0 {
			return nil
		}
		return eachLine(r, func(line string, nl bool) error {
			if nl {
				line += "\n"
			}
			if _, err := io.WriteString(c.Stdout, line); err != nil {
				return err
			}
			if n++; n >= lines {
				return errStop
			}
			return nil
		})
	})
}

func tail(ctx context.Context, c *Call) int {
	o, err := parseOptions(oldStyle(c.Argv[1:]), "n: c: q lines: bytes:")
	if err != nil {
		return c.Refuse(err.Error())
	}
	val := o.get("10", "n", "lines", "c", "bytes")
	from := strings.HasPrefix(val, "+")
	n, err := strconv.Atoi(strings.TrimLeft(val, "+-"))
	if err != nil {
		return c.Refuse("this count")
	}
	return c.each(ctx, o.args, func(_ string, r io.Reader) error {
		if o.has("c", "bytes") {
			b, err := io.ReadAll(r)
			if err != nil {
				return err
			}
			if from {
				b = b[min(max(n-1, 0), len(b)):]
			} else {
				b = b[max(len(b)-n, 0):]
			}
			_, err = c.Stdout.Write(b)
			return err
		}
		var keep []string
		i := 0
		err := eachLine(r, func(line string, nl bool) error {
			if nl {
				line += "\n"
			}
			if i++; from && i < n {
				return nil
			}
			keep = append(keep, line)
			if !from && len(keep) > n {
				keep = keep[1:]
			}
			return nil
		})
		if err != nil {
			return err
		}
		_, err = io.WriteString(c.Stdout, strings.Join(keep, ""))
		return err
	})
}

func wc(ctx context.Context, c *Call) int {
	o, err := parseOptions(c.Argv[1:], "l w c m lines words bytes")
	if err != nil {
		return c.Refuse(err.Error())
	}
	all := len(o.set) == 0
	return c.each(ctx, o.args, func(name string, r io.Reader) error {
		b, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		var out []string
		if all || o.has("l", "lines") {
			out = append(out, strconv.Itoa(strings.Count(string(b), "\n")))
		}
		if all || o.has("w", "words") {
			out = append(out, strconv.Itoa(len(strings.Fields(string(b)))))
		}
		if all || o.has("c", "m", "bytes") {
			out = append(out, strconv.Itoa(len(b)))
		}
		if name != "-" {
			out = append(out, name)
		}
		_, err = fmt.Fprintln(c.Stdout, strings.Join(out, " "))
		return err
	})
}

func tee(ctx context.Context, c *Call) int {
	o, err := parseOptions(c.Argv[1:], "a append")
	if err != nil {
		return c.Refuse(err.Error())
	}
	mode := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	if o.has("a", "append") {
		mode = os.O_WRONLY | os.O_CREATE | os.O_APPEND
	}
	outs := []io.Writer{c.Stdout}
	code := 0
	for _, n := range o.args {
		f, err := c.Open(n, mode)
		if err != nil {
			code = c.Fail("%s: %s", n, why(err))
			continue
		}
		defer f.Close()
		outs = append(outs, f)
	}
	if _, err := io.Copy(io.MultiWriter(outs...), c.In(ctx)); err != nil {
		return c.Fail("%s", why(err))
	}
	return code
}

// ranges parses cut's lists: 1,3-5,7-.
func ranges(s string) (func(int) bool, error) {
	type span struct{ a, b int }
	var spans []span
	for part := range strings.SplitSeq(s, ",") {
		from, to, dash := strings.Cut(part, "-")
		sp := span{1, 1 << 30}
		var err error
		if from != "" {
			if sp.a, err = strconv.Atoi(from); err != nil {
				return nil, err
			}
		}
		if !dash {
			sp.b = sp.a
		} else if to != "" {
			if sp.b, err = strconv.Atoi(to); err != nil {
				return nil, err
			}
		}
		spans = append(spans, sp)
	}
	return func(i int) bool {
		return slices.ContainsFunc(spans, func(s span) bool { return s.a <= i && i <= s.b })
	}, nil
}

func cut(ctx context.Context, c *Call) int {
	o, err := parseOptions(c.Argv[1:], "d: f: c: b: s delimiter: fields: characters:")
	if err != nil {
		return c.Refuse(err.Error())
	}
	fields := o.get("", "f", "fields")
	in, err := ranges(o.get(fields, "c", "b", "characters"))
	if err != nil {
		return c.Fail("invalid list")
	}
	d := o.get("\t", "d", "delimiter")
	return c.each(ctx, o.args, func(_ string, r io.Reader) error {
		return eachLine(r, func(line string, _ bool) error {
			if fields == "" {
				var b strings.Builder
				for i := range len(line) {
					if in(i + 1) {
						b.WriteByte(line[i])
					}
				}
				_, err := fmt.Fprintln(c.Stdout, b.String())
				return err
			}
			if !strings.Contains(line, d) {
				if o.has("s") {
					return nil
				}
				_, err := fmt.Fprintln(c.Stdout, line)
				return err
			}
			var out []string
			for i, f := range strings.Split(line, d) {
				if in(i + 1) {
					out = append(out, f)
				}
			}
			_, err := fmt.Fprintln(c.Stdout, strings.Join(out, d))
			return err
		})
	})
}

// tell writes a text; an error is a closed pipe.
func tell(w io.Writer, s string) error { _, err := io.WriteString(w, s); return err }

func yes(ctx context.Context, c *Call) int {
	text := "y"
	if len(c.Argv) > 1 {
		text = strings.Join(c.Argv[1:], " ")
	}
	for ctx.Err() == nil {
		if tell(c.Stdout, text+"\n") != nil {
			return 141
		}
	}
	return Signal(ctx)
}

func seq(ctx context.Context, c *Call) int {
	from, step := 1, 1
	var to int
	var n []int
	for _, a := range c.Argv[1:] {
		i, err := strconv.Atoi(a)
		if err != nil {
			return c.Refuse("argument " + a)
		}
		n = append(n, i)
	}
	switch len(n) {
	case 1:
		to = n[0]
	case 2:
		from, to = n[0], n[1]
	case 3:
		from, step, to = n[0], n[1], n[2]
	default:
		return c.Fail("missing operand")
	}
	if step <= 0 {
		return c.Refuse("a step that is not above zero")
	}
	for i := from; i <= to && ctx.Err() == nil; i += step {
		if tell(c.Stdout, strconv.Itoa(i)+"\n") != nil {
			return 141
		}
	}
	return 0
}

func xargs(ctx context.Context, c *Call) int {
	i := 1
	skipEmpty, perLine := false, 0
	for ; i < len(c.Argv) && strings.HasPrefix(c.Argv[i], "-"); i++ {
		switch c.Argv[i] {
		case "-r", "--no-run-if-empty":
			skipEmpty = true
		case "-n":
			i++
			if i >= len(c.Argv) {
				return c.Fail("option requires an argument -- 'n'")
			}
			n, err := strconv.Atoi(c.Argv[i])
			if err != nil || n < 1 {
				return c.Fail("invalid number for -n option")
			}
			perLine = n
		default:
			return c.Refuse("option " + c.Argv[i])
		}
	}
	cmd := c.Argv[i:]
	if len(cmd) == 0 {
		cmd = []string{"echo"}
	}
	b, err := io.ReadAll(c.In(ctx))
	if err != nil {
		return c.Fail("%s", why(err))
	}
	words := strings.Fields(string(b))
	if len(words) == 0 && skipEmpty {
		return 0
	}
	if perLine == 0 {
		perLine = max(len(words), 1)
	}
	code := 0
	for first := true; first || len(words) > 0; first = false {
		k := min(perLine, len(words))
		p := c.Proc
		p.Stdin = nil
		if c.sh.Exec(ctx, p, append(slices.Clone(cmd), words[:k]...)) != 0 {
			code = 123
		}
		words = words[k:]
	}
	return code
}
