package tree

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"
)

// View is the tree in the eyes of one user. Paths are the guest's and absolute
// ("etc/x" is taken as "/etc/x"). Errors are *fs.PathError with the guest's path.
type View struct {
	t        *Tree
	uid, gid int
}

// UID is the user whose view it is.
func (v *View) UID() int { return v.uid }

// Tree is the whole tree.
func (v *View) Tree() *Tree { return v.t }

// resolve walks name part by part, following links inside the guest's root, and
// gives the path without links and without the leading slash. The last part
// may be missing; with follow unset it may be a link.
func (v *View) resolve(name string, follow bool) (string, error) {
	if strings.ContainsRune(name, 0) {
		return "", syscall.EINVAL
	}
	todo := split(name)
	var done []string
	links := 0
	for len(todo) > 0 {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if len(done) > 0 {
				done = done[:len(done)-1]
			}
			continue
		}
		here := join(done)
		if len(done) == 0 && part == reserved {
			return "", syscall.ENOENT
		}
		if err := v.mayDir(here, 1); err != nil {
			return "", err
		}
		rel := join(append(done[:len(done):len(done)], part))
		fi, err := v.t.root.Lstat(rel)
		if errors.Is(err, fs.ErrNotExist) {
			if rest(todo) {
				return "", syscall.ENOENT
			}
			return rel, nil
		}
		if err != nil {
			return "", err
		}
		last := !rest(todo)
		switch {
		case fi.Mode()&fs.ModeSymlink != 0 && (!last || follow):
			if links++; links > maxLinks {
				return "", errLoop
			}
			target, err := v.t.root.Readlink(rel)
			if err != nil {
				return "", err
			}
			if strings.HasPrefix(target, "/") {
				done = nil
			}
			todo = append(split(target), todo...)
			continue
		case !last && !fi.IsDir():
			return "", syscall.ENOTDIR
		}
		done = append(done[:len(done):len(done)], part)
	}
	return join(done), nil
}

func split(name string) []string { return strings.Split(name, "/") }

// rest tells whether a real part is still to come.
func rest(todo []string) bool {
	for _, p := range todo {
		if p != "" && p != "." {
			return true
		}
	}
	return false
}

func join(parts []string) string {
	if len(parts) == 0 {
		return "."
	}
	return strings.Join(parts, "/")
}

// mayDir checks one bit (4 read, 2 write, 1 enter) on a resolved folder.
func (v *View) mayDir(rel string, bit fs.FileMode) error {
	if v.uid == 0 {
		return nil
	}
	fi, err := v.t.root.Lstat(rel)
	if err != nil {
		return err
	}
	return v.may(v.t.info(rel, fi), bit)
}

// may is the usual owner, group, others rule; root passes.
func (v *View) may(i *Info, bit fs.FileMode) error {
	if v.uid == 0 {
		return nil
	}
	perm := i.Mode().Perm()
	switch {
	case i.UID == v.uid:
		perm >>= 6
	case i.GID == v.gid:
		perm >>= 3
	}
	if perm&bit != bit {
		return syscall.EACCES
	}
	return nil
}

// mayChange tells whether entries of the folder that holds rel may change; in a
// sticky folder (/tmp) only what is one's own.
func (v *View) mayChange(rel string) error {
	if v.uid == 0 {
		return nil
	}
	dir := path.Dir(rel)
	if err := v.mayDir(dir, 2); err != nil {
		return err
	}
	di, err := v.t.root.Lstat(dir)
	if err != nil {
		return err
	}
	if v.t.info(dir, di).Mode()&fs.ModeSticky == 0 {
		return nil
	}
	fi, err := v.t.root.Lstat(rel)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // to be made
	}
	if err != nil {
		return err
	}
	if v.t.info(rel, fi).UID != v.uid {
		return syscall.EPERM
	}
	return nil
}

// Access checks bits (4 read, 2 write, 1 execute) like access(2). Root may
// execute only what somebody may.
func (v *View) Access(name string, bits fs.FileMode) error {
	fi, err := v.Stat(name)
	if err != nil {
		return err
	}
	if v.uid == 0 && bits&1 != 0 && !fi.IsDir() && fi.Mode().Perm()&0o111 == 0 {
		return perr("access", name, syscall.EACCES)
	}
	if err := v.may(fi, bits); err != nil {
		return perr("access", name, err)
	}
	return nil
}

// Stat follows links.
func (v *View) Stat(name string) (*Info, error) { return v.stat(name, true) }

// Lstat does not follow the last link.
func (v *View) Lstat(name string) (*Info, error) { return v.stat(name, false) }

func (v *View) stat(name string, follow bool) (*Info, error) {
	rel, err := v.resolve(name, follow)
	if err != nil {
		return nil, perr("stat", name, err)
	}
	fi, err := v.t.root.Lstat(rel)
	if err != nil {
		return nil, perr("stat", name, err)
	}
	i := v.t.info(rel, fi)
	i.name = path.Base(path.Clean("/" + name))
	if strings.HasSuffix(name, "/") && !i.IsDir() {
		return nil, perr("stat", name, syscall.ENOTDIR)
	}
	return i, nil
}

// Real gives the path without links, like realpath(1).
func (v *View) Real(name string) (string, error) {
	rel, err := v.resolve(name, true)
	if err != nil {
		return "", perr("realpath", name, err)
	}
	return path.Clean("/" + rel), nil
}

// OpenFile is os.OpenFile in the guest.
func (v *View) OpenFile(name string, flag int, perm fs.FileMode) (*os.File, error) {
	rel, err := v.resolve(name, true)
	if err != nil {
		return nil, perr("open", name, err)
	}
	fi, err := v.t.root.Lstat(rel)
	fresh := errors.Is(err, fs.ErrNotExist)
	switch {
	case err != nil && !fresh:
		return nil, perr("open", name, err)
	case fresh && flag&os.O_CREATE == 0:
		return nil, perr("open", name, syscall.ENOENT)
	case fresh:
		err = v.mayChange(rel)
	default:
		i := v.t.info(rel, fi)
		writes := flag&(os.O_WRONLY|os.O_RDWR|os.O_TRUNC|os.O_APPEND) != 0
		if i.IsDir() && writes {
			return nil, perr("open", name, syscall.EISDIR)
		}
		if writes {
			err = v.may(i, 2)
		}
		if err == nil && flag&os.O_WRONLY == 0 {
			err = v.may(i, 4)
		}
	}
	if err != nil {
		return nil, perr("open", name, err)
	}
	f, err := v.t.root.OpenFile(rel, flag, perm.Perm()|0o600)
	if err != nil {
		return nil, perr("open", name, err)
	}
	if fresh {
		if err := v.own(rel, perm, 0o600); err != nil {
			f.Close()
			return nil, perr("open", name, err)
		}
	}
	return f, nil
}

// own notes the maker of a fresh entry, and its mode where the real one had to
// be widened for the lab's own user by must.
func (v *View) own(rel string, perm, must fs.FileMode) error {
	m := meta{UID: v.uid, GID: v.gid}
	if perm.Perm()&must != must || perm&fs.ModeSticky != 0 {
		p := perm & (fs.ModePerm | fs.ModeSticky)
		m.Mode = &p
	}
	return v.t.setMeta(rel, m)
}

// ReadFile reads a whole file.
func (v *View) ReadFile(name string) ([]byte, error) {
	f, err := v.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, perr("read", name, err)
	}
	if fi.IsDir() {
		return nil, perr("read", name, syscall.EISDIR)
	}
	rel, err := v.resolve(name, true)
	if err != nil {
		return nil, perr("read", name, err)
	}
	b, err := v.t.root.ReadFile(rel)
	if err != nil {
		return nil, perr("read", name, err)
	}
	return b, nil
}

// WriteFile replaces a file's content; perm is for a fresh one.
func (v *View) WriteFile(name string, b []byte, perm fs.FileMode) error {
	f, err := v.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	if _, err := f.Write(b); err != nil {
		f.Close()
		return perr("write", name, err)
	}
	return f.Close()
}

// Put is WriteFile with the folders above and with exactly that mode.
func (v *View) Put(name string, b []byte, perm fs.FileMode) error {
	if err := v.MkdirAll(path.Dir(path.Clean("/"+name)), 0o755); err != nil {
		return err
	}
	if err := v.WriteFile(name, b, perm); err != nil {
		return err
	}
	return v.Chmod(name, perm)
}

// ReadDir lists a folder, sorted by name.
func (v *View) ReadDir(name string) ([]fs.DirEntry, error) {
	rel, err := v.resolve(name, true)
	if err != nil {
		return nil, perr("open", name, err)
	}
	if err := v.mayDir(rel, 4); err != nil {
		return nil, perr("open", name, err)
	}
	es, err := fs.ReadDir(v.t.root.FS(), rel)
	if err != nil {
		return nil, perr("open", name, err)
	}
	out := es[:0]
	for _, e := range es {
		if rel == "." && e.Name() == reserved {
			continue
		}
		out = append(out, e)
	}
	return out, nil
}

// Chtimes sets the modification time.
func (v *View) Chtimes(name string, at time.Time) error {
	rel, err := v.resolve(name, true)
	if err == nil {
		err = v.t.root.Chtimes(rel, at, at)
	}
	if err != nil {
		return perr("chtimes", name, err)
	}
	return nil
}
