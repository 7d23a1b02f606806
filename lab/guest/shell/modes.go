package shell

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
)

// parseMode reads an octal or a symbolic mode (u+x,go-w).
func parseMode(s string, was fs.FileMode, dir bool) (fs.FileMode, error) {
	if n, err := strconv.ParseUint(s, 8, 32); err == nil {
		m := fs.FileMode(n & 0o777)
		if n&0o1000 != 0 {
			m |= fs.ModeSticky
		}
		if n&0o4000 != 0 {
			m |= fs.ModeSetuid
		}
		if n&0o2000 != 0 {
			m |= fs.ModeSetgid
		}
		return m, nil
	}
	mode := was & (fs.ModePerm | fs.ModeSticky | fs.ModeSetuid | fs.ModeSetgid)
	for part := range strings.SplitSeq(s, ",") {
		i := strings.IndexAny(part, "+-=")
		if i < 0 {
			return 0, errors.New("invalid mode")
		}
		var who fs.FileMode
		for _, w := range part[:i] {
			switch w {
			case 'u':
				who |= 0o700
			case 'g':
				who |= 0o070
			case 'o':
				who |= 0o007
			case 'a':
				who |= 0o777
			default:
				return 0, errors.New("invalid mode")
			}
		}
		if who == 0 {
			who = 0o777
			if part[i] == '+' && strings.Contains(part[i+1:], "w") {
				who = 0o755 // the usual umask
			}
		}
		var bits, extra fs.FileMode
		for _, w := range part[i+1:] {
			switch w {
			case 'r':
				bits |= 0o444
			case 'w':
				bits |= 0o222
			case 'x':
				bits |= 0o111
			case 'X':
				if dir || was&0o111 != 0 {
					bits |= 0o111
				}
			case 't':
				extra |= fs.ModeSticky
			default:
				return 0, errors.New("invalid mode")
			}
		}
		switch part[i] {
		case '+':
			mode |= bits&who | extra
		case '-':
			mode &^= bits&who | extra
		case '=':
			mode = mode&^who | bits&who | extra
		}
	}
	return mode, nil
}

func chmod(_ context.Context, c *Call) int {
	args, recursive := c.Argv[1:], false
	for len(args) > 0 && (args[0] == "-R" || args[0] == "--recursive" || args[0] == "--") {
		recursive = recursive || args[0] != "--"
		args = args[1:]
	}
	if len(args) < 2 {
		return c.Fail("missing operand")
	}
	code := 0
	for _, n := range args[1:] {
		err := c.walk(c.Abs(n), recursive, func(at string) error {
			fi, err := c.FS().Stat(at)
			if err != nil {
				return err
			}
			m, err := parseMode(args[0], fi.Mode(), fi.IsDir())
			if err != nil {
				return err
			}
			return c.FS().Chmod(at, m)
		})
		if err != nil {
			code = c.Fail("changing permissions of '%s': %s", n, why(err))
		}
	}
	return code
}

// walk calls fn for a path and, when asked, for all below it.
func (c *Call) walk(at string, below bool, fn func(string) error) error {
	if err := fn(at); err != nil {
		return err
	}
	fi, err := c.FS().Lstat(at)
	if err != nil || !below || !fi.IsDir() {
		return err
	}
	es, err := c.FS().ReadDir(at)
	if err != nil {
		return err
	}
	for _, e := range es {
		if e.Type()&fs.ModeSymlink != 0 {
			continue
		}
		if err := c.walk(path.Join(at, e.Name()), true, fn); err != nil {
			return err
		}
	}
	return nil
}

// owner reads "user", "user:group", ":group"; -1 leaves one alone.
func (c *Call) owner(s string) (uid, gid int, err error) {
	uid, gid = -1, -1
	u, g, group := strings.Cut(s, ":")
	if u != "" {
		who, ok := LookupUser(c.sh.Tree, u)
		if !ok {
			n, err := strconv.Atoi(u)
			if err != nil {
				return 0, 0, fmt.Errorf("invalid user: '%s'", s)
			}
			who = User{UID: n, GID: -1}
		}
		uid = who.UID
		if group && g == "" {
			gid = who.GID
		}
	}
	if g != "" {
		n, ok := LookupGroup(c.sh.Tree, g)
		if !ok {
			if n, err = strconv.Atoi(g); err != nil {
				return 0, 0, fmt.Errorf("invalid group: '%s'", s)
			}
		}
		gid = n
	}
	return uid, gid, nil
}

func chown(_ context.Context, c *Call) int {
	o, err := parseOptions(c.Argv[1:], "R h f recursive")
	if err != nil {
		return c.Refuse(err.Error())
	}
	if len(o.args) < 2 {
		return c.Fail("missing operand")
	}
	uid, gid, err := c.owner(o.args[0])
	if err != nil {
		return c.Fail("%v", err)
	}
	code := 0
	for _, n := range o.args[1:] {
		err := c.walk(c.Abs(n), o.has("R", "recursive"), func(at string) error { return c.FS().Chown(at, uid, gid) })
		if err != nil {
			code = c.Fail("changing ownership of '%s': %s", n, why(err))
		}
	}
	return code
}
