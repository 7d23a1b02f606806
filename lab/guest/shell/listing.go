package shell

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/homeiac/homelab/lab/guest/tree"
)

var listTools = map[string]Tool{"ls": ls, "stat": stat, "find": find, "du": du, "basename": basename, "dirname": dirname}

func readAll(r io.Reader) ([]byte, error) { return io.ReadAll(r) }

func copyUntil(ctx context.Context, w io.Writer, r io.Reader) (int64, error) {
	return io.Copy(w, &untilDone{ctx: ctx, r: r})
}

// ownerNames gives the names behind the numbers.
func (c *Call) ownerNames(i *tree.Info) (user, group string) {
	user, group = strconv.Itoa(i.UID), strconv.Itoa(i.GID)
	if u, ok := LookupUser(c.sh.Tree, user); ok {
		user = u.Name
	}
	if b, err := c.sh.Tree.Super().ReadFile("/etc/group"); err == nil {
		for l := range strings.Lines(string(b)) {
			if f := strings.Split(l, ":"); len(f) > 2 && f[2] == group {
				group = f[0]
				break
			}
		}
	}
	return user, group
}

func octal(m fs.FileMode) string {
	n := uint32(m.Perm())
	if m&fs.ModeSticky != 0 {
		n |= 0o1000
	}
	if m&fs.ModeSetgid != 0 {
		n |= 0o2000
	}
	if m&fs.ModeSetuid != 0 {
		n |= 0o4000
	}
	return strconv.FormatUint(uint64(n), 8)
}

func modeText(m fs.FileMode) string {
	t := "-"
	switch {
	case m.IsDir():
		t = "d"
	case m&fs.ModeSymlink != 0:
		t = "l"
	}
	s := []byte(t + m.Perm().String()[1:])
	if m&fs.ModeSticky != 0 {
		s[9] = 't'
	}
	return string(s)
}

func ls(_ context.Context, c *Call) int {
	o, err := parseOptions(c.Argv[1:], "l a A 1 d h t r R n all")
	if err == nil && o.has("R", "t") {
		err = fmt.Errorf("option -R or -t")
	}
	if err != nil {
		return c.Refuse(err.Error())
	}
	if len(o.args) == 0 {
		o.args = []string{"."}
	}
	show := func(name, at string) {
		fi, err := c.FS().Lstat(at)
		if err != nil {
			return
		}
		if !o.has("l") {
			c.Printf("%s\n", name)
			return
		}
		if fi.Mode()&fs.ModeSymlink != 0 {
			if t, err := c.FS().Readlink(at); err == nil {
				name += " -> " + t
			}
		}
		u, g := c.ownerNames(fi)
		c.Printf("%s 1 %s %s %d %s %s\n", modeText(fi.Mode()), u, g, fi.Size(), fi.ModTime().UTC().Format("Jan _2 15:04"), name)
	}
	code := 0
	for i, n := range o.args {
		fi, err := c.FS().Stat(c.Abs(n))
		if err != nil {
			fi, err = c.FS().Lstat(c.Abs(n))
		}
		if err != nil {
			c.Fail("cannot access '%s': %s", n, why(err))
			code = 2
			continue
		}
		if !fi.IsDir() || o.has("d") {
			show(n, c.Abs(n))
			continue
		}
		if len(o.args) > 1 {
			if i > 0 {
				c.Printf("\n")
			}
			c.Printf("%s:\n", n)
		}
		es, err := c.FS().ReadDir(c.Abs(n))
		if err != nil {
			c.Fail("cannot open directory '%s': %s", n, why(err))
			code = 2
			continue
		}
		if o.has("l") {
			c.Printf("total %d\n", len(es))
		}
		if o.has("a", "all") {
			show(".", c.Abs(n))
			show("..", path.Join(c.Abs(n), ".."))
		}
		for _, e := range es {
			if strings.HasPrefix(e.Name(), ".") && !o.has("a", "A", "all") {
				continue
			}
			show(e.Name(), path.Join(c.Abs(n), e.Name()))
		}
	}
	return code
}

func stat(_ context.Context, c *Call) int {
	o, err := parseOptions(c.Argv[1:], "c: L format: printf:")
	if err != nil {
		return c.Refuse(err.Error())
	}
	format := o.get("", "c", "format", "printf")
	if format == "" {
		format = "  File: %n\n  Size: %s\nAccess: (%a/%A)  Uid: (%u/%U)   Gid: (%g/%G)\nModify: %y"
	}
	if !o.has("printf") {
		format += "\n"
	}
	format = strings.ReplaceAll(format, `\n`, "\n")
	code := 0
	for _, n := range o.args {
		get := c.FS().Lstat
		if o.has("L") {
			get = c.FS().Stat
		}
		fi, err := get(c.Abs(n))
		if err != nil {
			code = c.Fail("cannot statx '%s': %s", n, why(err))
			continue
		}
		u, g := c.ownerNames(fi)
		kind := "regular file"
		switch {
		case fi.IsDir():
			kind = "directory"
		case fi.Mode()&fs.ModeSymlink != 0:
			kind = "symbolic link"
		case fi.Size() == 0:
			kind = "regular empty file"
		}
		bad := ""
		text := regexp.MustCompile(`%.`).ReplaceAllStringFunc(format, func(f string) string {
			switch f[1] {
			case 'n':
				return n
			case 's':
				return strconv.FormatInt(fi.Size(), 10)
			case 'a':
				return octal(fi.Mode())
			case 'A':
				return modeText(fi.Mode())
			case 'u':
				return strconv.Itoa(fi.UID)
			case 'g':
				return strconv.Itoa(fi.GID)
			case 'U':
				return u
			case 'G':
				return g
			case 'F':
				return kind
			case 'Y':
				return strconv.FormatInt(fi.ModTime().Unix(), 10)
			case 'y':
				return fi.ModTime().UTC().Format("2006-01-02 15:04:05.000000000 -0700")
			case '%':
				return "%"
			}
			bad = f
			return ""
		})
		if bad != "" {
			return c.Refuse("format " + bad)
		}
		c.Printf("%s", text)
	}
	return code
}

func find(_ context.Context, c *Call) int {
	args := c.Argv[1:]
	var dirs []string
	for len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		dirs, args = append(dirs, args[0]), args[1:]
	}
	if len(dirs) == 0 {
		dirs = []string{"."}
	}
	name, kind, maxDepth, minDepth, del := "", "", 1<<30, 0, false
	for i := 0; i < len(args); i++ {
		need := func() string {
			if i++; i < len(args) {
				return args[i]
			}
			return ""
		}
		switch args[i] {
		case "-name":
			name = need()
		case "-type":
			kind = need()
		case "-maxdepth":
			maxDepth, _ = strconv.Atoi(need())
		case "-mindepth":
			minDepth, _ = strconv.Atoi(need())
		case "-delete":
			del = true
		case "-print":
		default:
			return c.Refuse("expression " + args[i])
		}
	}
	code := 0
	var visit func(shown, at string, depth int)
	visit = func(shown, at string, depth int) {
		fi, err := c.FS().Lstat(at)
		if err != nil {
			code = c.Fail("'%s': %s", shown, why(err))
			return
		}
		if fi.IsDir() && depth < maxDepth {
			es, err := c.FS().ReadDir(at)
			if err != nil {
				code = c.Fail("'%s': %s", shown, why(err))
			}
			if !del {
				c.match(fi, shown, at, name, kind, depth >= minDepth, false)
			}
			for _, e := range es {
				visit(path.Join(shown, e.Name()), path.Join(at, e.Name()), depth+1)
			}
			if del {
				c.match(fi, shown, at, name, kind, depth >= minDepth, true)
			}
			return
		}
		c.match(fi, shown, at, name, kind, depth >= minDepth, del)
	}
	for _, d := range dirs {
		visit(d, c.Abs(d), 0)
	}
	return code
}

func (c *Call) match(fi *tree.Info, shown, at, name, kind string, deep, del bool) {
	if !deep {
		return
	}
	if name != "" {
		if ok, err := path.Match(name, path.Base(at)); err != nil || !ok {
			return
		}
	}
	k := "f"
	switch {
	case fi.IsDir():
		k = "d"
	case fi.Mode()&fs.ModeSymlink != 0:
		k = "l"
	}
	if kind != "" && kind != k {
		return
	}
	if del {
		if err := c.FS().Remove(at); err != nil {
			c.Fail("cannot delete '%s': %s", shown, why(err))
		}
		return
	}
	c.Printf("%s\n", shown)
}

func du(_ context.Context, c *Call) int {
	o, err := parseOptions(c.Argv[1:], "s b h k")
	if err != nil {
		return c.Refuse(err.Error())
	}
	code := 0
	for _, n := range o.args {
		var sum int64
		err := c.walk(c.Abs(n), true, func(at string) error {
			fi, err := c.FS().Lstat(at)
			if err == nil {
				sum += fi.Size()
			}
			return err
		})
		if err != nil {
			code = c.Fail("cannot access '%s': %s", n, why(err))
			continue
		}
		if !o.has("b") {
			sum = (sum + 1023) / 1024
		}
		c.Printf("%d\t%s\n", sum, n)
	}
	return code
}

func basename(_ context.Context, c *Call) int {
	if len(c.Argv) < 2 {
		return c.Fail("missing operand")
	}
	s := path.Base(c.Argv[1])
	if len(c.Argv) > 2 && s != c.Argv[2] {
		s = strings.TrimSuffix(s, c.Argv[2])
	}
	c.Printf("%s\n", s)
	return 0
}

func dirname(_ context.Context, c *Call) int {
	if len(c.Argv) < 2 {
		return c.Fail("missing operand")
	}
	for _, a := range c.Argv[1:] {
		c.Printf("%s\n", path.Dir(strings.TrimRight(a, "/")))
	}
	return 0
}
