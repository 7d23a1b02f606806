package shell

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"
)

var fileTools = map[string]Tool{
	"mkdir": mkdir, "rmdir": rmdir, "rm": rm, "mv": mv, "cp": cp, "ln": ln, "chmod": chmod, "chown": chown,
	"touch": touch, "mktemp": mktemp, "install": install, "readlink": readlink, "realpath": readlink,
	"truncate": truncate, "dd": dd,
}

func mkdir(_ context.Context, c *Call) int {
	o, err := parseOptions(c.Argv[1:], "p m: parents mode: v")
	if err != nil {
		return c.Refuse(err.Error())
	}
	mode := fs.FileMode(0o755)
	if m := o.get("", "m", "mode"); m != "" {
		if mode, err = parseMode(m, 0o755, true); err != nil {
			return c.Fail("invalid mode '%s'", m)
		}
	}
	code := 0
	for _, d := range o.args {
		if o.has("p", "parents") {
			if err = c.FS().MkdirAll(path.Dir(path.Clean(c.Abs(d))), 0o755); err == nil {
				if fi, e := c.FS().Stat(c.Abs(d)); e == nil && fi.IsDir() {
					continue
				}
				err = c.FS().Mkdir(c.Abs(d), mode)
			}
		} else {
			err = c.FS().Mkdir(c.Abs(d), mode)
		}
		if err != nil {
			code = c.Fail("cannot create directory '%s': %s", d, why(err))
		}
	}
	return code
}

func rmdir(_ context.Context, c *Call) int {
	code := 0
	for _, d := range c.Argv[1:] {
		fi, err := c.FS().Lstat(c.Abs(d))
		if err == nil && !fi.IsDir() {
			code = c.Fail("failed to remove '%s': Not a directory", d)
			continue
		}
		if err == nil {
			err = c.FS().Remove(c.Abs(d))
		}
		if err != nil {
			code = c.Fail("failed to remove '%s': %s", d, why(err))
		}
	}
	return code
}

func rm(_ context.Context, c *Call) int {
	o, err := parseOptions(c.Argv[1:], "r R f v recursive force")
	if err != nil {
		return c.Refuse(err.Error())
	}
	code := 0
	for _, n := range o.args {
		at := c.Abs(n)
		if path.Clean(at) == "/" {
			code = c.Fail("it is dangerous to operate recursively on '/'")
			continue
		}
		fi, err := c.FS().Lstat(at)
		switch {
		case errors.Is(err, fs.ErrNotExist) && o.has("f", "force"):
			continue
		case err == nil && fi.IsDir() && !o.has("r", "R", "recursive"):
			code = c.Fail("cannot remove '%s': Is a directory", n)
			continue
		case err == nil && fi.IsDir():
			err = c.FS().RemoveAll(at)
		case err == nil:
			err = c.FS().Remove(at)
		}
		if err != nil {
			code = c.Fail("cannot remove '%s': %s", n, why(err))
		}
	}
	return code
}

// target is where something named from lands when moved or copied to to.
func (c *Call) target(from, to string) string {
	if fi, err := c.FS().Stat(c.Abs(to)); err == nil && fi.IsDir() {
		return path.Join(c.Abs(to), path.Base(from))
	}
	return c.Abs(to)
}

func mv(_ context.Context, c *Call) int {
	o, err := parseOptions(c.Argv[1:], "f n v T force")
	if err != nil {
		return c.Refuse(err.Error())
	}
	if len(o.args) < 2 {
		return c.Fail("missing file operand")
	}
	code := 0
	to := o.args[len(o.args)-1]
	for _, from := range o.args[:len(o.args)-1] {
		dst := c.target(from, to)
		if o.has("T") {
			dst = c.Abs(to)
		}
		if _, err := c.FS().Lstat(dst); err == nil && o.has("n") {
			continue
		}
		if err := c.FS().Rename(c.Abs(from), dst); err != nil {
			code = c.Fail("cannot move '%s' to '%s': %s", from, to, why(err))
		}
	}
	return code
}

func cp(_ context.Context, c *Call) int {
	o, err := parseOptions(c.Argv[1:], "r R a p f v d P n archive preserve recursive")
	if err != nil {
		return c.Refuse(err.Error())
	}
	if len(o.args) < 2 {
		return c.Fail("missing file operand")
	}
	code := 0
	to := o.args[len(o.args)-1]
	for _, from := range o.args[:len(o.args)-1] {
		if err := c.copy(o, c.Abs(from), c.target(from, to)); err != nil {
			code = c.Fail("cannot copy '%s' to '%s': %s", from, to, why(err))
		}
	}
	return code
}

func (c *Call) copy(o options, from, to string) error {
	v := c.FS()
	archive := o.has("a", "archive")
	stat := v.Stat
	if archive || o.has("d", "P") {
		stat = v.Lstat
	}
	fi, err := stat(from)
	if err != nil {
		return err
	}
	keep := func() error {
		if !archive && !o.has("p", "preserve") {
			return nil
		}
		if c.User.UID == 0 {
			if err := v.Chown(to, fi.UID, fi.GID); err != nil {
				return err
			}
		}
		if err := v.Chmod(to, fi.Mode()); err != nil {
			return err
		}
		return v.Chtimes(to, fi.ModTime())
	}
	switch {
	case fi.Mode()&fs.ModeSymlink != 0:
		text, err := v.Readlink(from)
		if err != nil {
			return err
		}
		_ = v.Remove(to)
		return v.Symlink(text, to)
	case fi.IsDir():
		if !archive && !o.has("r", "R", "recursive") {
			return errors.New("omitting directory (-r not specified)")
		}
		if strings.HasPrefix(path.Clean(to)+"/", path.Clean(from)+"/") {
			return errors.New("cannot copy a directory into itself")
		}
		if err := v.Mkdir(to, fi.Mode()); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		es, err := v.ReadDir(from)
		if err != nil {
			return err
		}
		for _, e := range es {
			if err := c.copy(o, path.Join(from, e.Name()), path.Join(to, e.Name())); err != nil {
				return err
			}
		}
		return keep()
	}
	b, err := v.ReadFile(from)
	if err != nil {
		return err
	}
	if err := v.WriteFile(to, b, fi.Mode()); err != nil {
		return err
	}
	return keep()
}

func ln(_ context.Context, c *Call) int {
	o, err := parseOptions(c.Argv[1:], "s f n v T symbolic force no-dereference")
	if err != nil {
		return c.Refuse(err.Error())
	}
	if len(o.args) < 1 || len(o.args) > 2 {
		return c.Fail("missing file operand")
	}
	from, to := o.args[0], path.Base(o.args[0])
	if len(o.args) == 2 {
		to = o.args[1]
	}
	dst := c.Abs(to)
	if fi, err := c.FS().Lstat(dst); err == nil && fi.IsDir() && !o.has("n", "no-dereference", "T") {
		dst = path.Join(dst, path.Base(from))
	}
	if o.has("f", "force") {
		if fi, err := c.FS().Lstat(dst); err == nil && !fi.IsDir() {
			if err := c.FS().Remove(dst); err != nil {
				return c.Fail("cannot remove '%s': %s", to, why(err))
			}
		}
	}
	if o.has("s", "symbolic") {
		err = c.FS().Symlink(from, dst)
	} else {
		err = c.FS().Link(c.Abs(from), dst)
	}
	if err != nil {
		return c.Fail("failed to create link '%s': %s", to, why(err))
	}
	return 0
}

func touch(_ context.Context, c *Call) int {
	o, err := parseOptions(c.Argv[1:], "c a m no-create")
	if err != nil {
		return c.Refuse(err.Error())
	}
	code := 0
	for _, n := range o.args {
		_, err := c.FS().Stat(c.Abs(n))
		if errors.Is(err, fs.ErrNotExist) {
			if o.has("c", "no-create") {
				continue
			}
			err = c.FS().WriteFile(c.Abs(n), nil, 0o644)
		} else if err == nil {
			err = c.FS().Chtimes(c.Abs(n), time.Now())
		}
		if err != nil {
			code = c.Fail("cannot touch '%s': %s", n, why(err))
		}
	}
	return code
}

func mktemp(_ context.Context, c *Call) int {
	o, err := parseOptions(c.Argv[1:], "d p: t q directory tmpdir:")
	if err != nil {
		return c.Refuse(err.Error())
	}
	dir, templ := o.get("", "p", "tmpdir"), "tmp.XXXXXXXXXX"
	if len(o.args) > 0 {
		templ = o.args[0]
	} else if dir == "" {
		dir = "/tmp"
	}
	if o.has("t") && dir == "" {
		dir = "/tmp"
	}
	if dir == "" && !strings.HasPrefix(templ, "/") {
		dir = c.Dir
	}
	base := strings.TrimRight(templ, "X")
	n := len(templ) - len(base)
	if n < 3 {
		return c.Fail("too few X's in template '%s'", templ)
	}
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		return c.Fail("%v", err)
	}
	at := abs(dir, base+hex.EncodeToString(b)[:n])
	if o.has("d", "directory") {
		err = c.FS().Mkdir(at, 0o700)
	} else {
		err = c.FS().WriteFile(at, nil, 0o600)
	}
	if err != nil {
		return c.Fail("failed to create file via template '%s': %s", templ, why(err))
	}
	c.Printf("%s\n", at)
	return 0
}

func install(_ context.Context, c *Call) int {
	o, err := parseOptions(c.Argv[1:], "d D m: o: g: v T mode: owner: group: directory")
	if err != nil {
		return c.Refuse(err.Error())
	}
	mode, err := parseMode(o.get("755", "m", "mode"), 0o755, false)
	if err != nil {
		return c.Fail("invalid mode")
	}
	uid, gid, err := c.owner(o.get("", "o", "owner") + ":" + o.get("", "g", "group"))
	if err != nil {
		return c.Fail("%v", err)
	}
	finish := func(at string) error {
		if uid >= 0 || gid >= 0 {
			if err := c.FS().Chown(at, uid, gid); err != nil {
				return err
			}
		}
		return c.FS().Chmod(at, mode)
	}
	if o.has("d", "directory") {
		for _, d := range o.args {
			err := c.FS().MkdirAll(c.Abs(d), 0o755)
			if err == nil {
				err = finish(c.Abs(d))
			}
			if err != nil {
				return c.Fail("cannot create directory '%s': %s", d, why(err))
			}
		}
		return 0
	}
	if len(o.args) < 2 {
		return c.Fail("missing destination file operand")
	}
	to := o.args[len(o.args)-1]
	for _, from := range o.args[:len(o.args)-1] {
		dst := c.target(from, to)
		if o.has("D") {
			if err := c.FS().MkdirAll(path.Dir(dst), 0o755); err != nil {
				return c.Fail("cannot create directory: %s", why(err))
			}
		}
		r, err := c.Open(from, os.O_RDONLY)
		if err != nil {
			return c.Fail("cannot stat '%s': %s", from, why(err))
		}
		b, err := readAll(r)
		r.Close()
		if err == nil {
			_ = c.FS().Remove(dst) // install replaces: a running program keeps its old file
			err = c.FS().WriteFile(dst, b, mode)
		}
		if err == nil {
			err = finish(dst)
		}
		if err != nil {
			return c.Fail("cannot create regular file '%s': %s", to, why(err))
		}
	}
	return 0
}

func readlink(_ context.Context, c *Call) int {
	o, err := parseOptions(c.Argv[1:], "f e m n s")
	if err != nil {
		return c.Refuse(err.Error())
	}
	code := 0
	for _, n := range o.args {
		var s string
		if c.Name() == "realpath" || o.has("f", "e", "m") {
			s, err = c.FS().Real(c.Abs(n))
			if err == nil && o.has("e") {
				_, err = c.FS().Stat(s)
			}
		} else {
			s, err = c.FS().Readlink(c.Abs(n))
		}
		if err != nil {
			code = 1
			if c.Name() == "realpath" {
				c.Fail("%s: %s", n, why(err))
			}
			continue
		}
		c.Printf("%s\n", s)
	}
	return code
}

func truncate(_ context.Context, c *Call) int {
	o, err := parseOptions(c.Argv[1:], "s: size:")
	if err != nil {
		return c.Refuse(err.Error())
	}
	if o.get("", "s", "size") != "0" {
		return c.Refuse("a size other than 0")
	}
	for _, n := range o.args {
		if err := c.FS().WriteFile(c.Abs(n), nil, 0o644); err != nil {
			return c.Fail("cannot open '%s' for writing: %s", n, why(err))
		}
	}
	return 0
}

// dd copies if= to of=; nothing else of it is simulated.
func dd(ctx context.Context, c *Call) int {
	in, out := "/dev/stdin", "/dev/stdout"
	for _, a := range c.Argv[1:] {
		k, v, _ := strings.Cut(a, "=")
		switch k {
		case "if":
			in = v
		case "of":
			out = v
		case "status", "bs", "conv":
		default:
			return c.Refuse("operand " + a)
		}
	}
	r, err := c.Open(in, os.O_RDONLY)
	if err != nil {
		return c.Fail("failed to open '%s': %s", in, why(err))
	}
	defer r.Close()
	w, err := c.Open(out, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return c.Fail("failed to open '%s': %s", out, why(err))
	}
	defer w.Close()
	if _, err := copyUntil(ctx, w, r); err != nil {
		return c.Fail("%s", why(err))
	}
	return 0
}
