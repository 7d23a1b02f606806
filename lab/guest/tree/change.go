package tree

import (
	"errors"
	"io/fs"
	"path"
	"strings"
	"syscall"
)

// Mkdir makes one folder.
func (v *View) Mkdir(name string, perm fs.FileMode) error {
	rel, err := v.resolve(strings.TrimRight(name, "/"), true)
	if err == nil {
		err = v.mayChange(rel)
	}
	if err == nil {
		err = v.t.root.Mkdir(rel, perm.Perm()|0o700)
	}
	if err == nil {
		err = v.own(rel, perm, 0o700)
	}
	if err != nil {
		return perr("mkdir", name, err)
	}
	return nil
}

// MkdirAll makes a folder and those above it.
func (v *View) MkdirAll(name string, perm fs.FileMode) error {
	at := ""
	for _, p := range split(path.Clean("/" + name)) {
		if p == "" {
			continue
		}
		at += "/" + p
		fi, err := v.Stat(at)
		switch {
		case err == nil && fi.IsDir():
			continue
		case err == nil:
			return perr("mkdir", name, syscall.ENOTDIR)
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
		if err := v.Mkdir(at, perm); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// Remove removes a file, a link or an empty folder.
func (v *View) Remove(name string) error {
	rel, err := v.resolve(name, false)
	if err == nil && rel == "." {
		err = syscall.EBUSY
	}
	if err == nil {
		err = v.mayChange(rel)
	}
	if err == nil {
		err = v.t.root.Remove(rel)
	}
	if err == nil {
		err = v.t.moveMeta(rel, "")
	}
	if err != nil {
		return perr("remove", name, err)
	}
	return nil
}

// RemoveAll removes whatever lies at name; nothing there is fine.
func (v *View) RemoveAll(name string) error {
	fi, err := v.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.IsDir() {
		es, err := v.ReadDir(name)
		if err != nil {
			return err
		}
		for _, e := range es {
			if err := v.RemoveAll(path.Join(name, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := v.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Rename moves old to new, replacing a file there.
func (v *View) Rename(old, new string) error {
	from, err := v.resolve(old, false)
	if err != nil {
		return perr("rename", old, err)
	}
	to, err := v.resolve(new, false)
	if err != nil {
		return perr("rename", new, err)
	}
	if err := errors.Join(v.mayChange(from), v.mayChange(to)); err != nil {
		return perr("rename", old, syscall.EACCES)
	}
	if to == from {
		return nil
	}
	if strings.HasPrefix(to, from+"/") {
		return perr("rename", old, syscall.EINVAL)
	}
	if err := v.t.root.Rename(from, to); err != nil {
		return perr("rename", old, err)
	}
	if err := v.t.moveMeta(to, ""); err != nil {
		return perr("rename", old, err)
	}
	if err := v.t.moveMeta(from, to); err != nil {
		return perr("rename", old, err)
	}
	return nil
}

// Symlink makes a link at name with that text.
func (v *View) Symlink(target, name string) error {
	rel, err := v.resolve(name, false)
	if err == nil {
		err = v.mayChange(rel)
	}
	if err == nil {
		err = v.t.root.Symlink(target, rel)
	}
	if err == nil {
		err = v.own(rel, 0o777, 0)
	}
	if err != nil {
		return perr("symlink", name, err)
	}
	return nil
}

// Link makes a hard link.
func (v *View) Link(old, name string) error {
	from, err := v.resolve(old, false)
	if err != nil {
		return perr("link", old, err)
	}
	to, err := v.resolve(name, false)
	if err == nil {
		err = v.mayChange(to)
	}
	if err == nil {
		err = v.t.root.Link(from, to)
	}
	if err == nil {
		err = v.t.setMeta(to, v.t.getMeta(from))
	}
	if err != nil {
		return perr("link", name, err)
	}
	return nil
}

// Readlink gives a link's text.
func (v *View) Readlink(name string) (string, error) {
	rel, err := v.resolve(name, false)
	if err != nil {
		return "", perr("readlink", name, err)
	}
	s, err := v.t.root.Readlink(rel)
	if err != nil {
		return "", perr("readlink", name, err)
	}
	return s, nil
}

// Chmod sets the mode; only the owner and root may.
func (v *View) Chmod(name string, mode fs.FileMode) error {
	rel, err := v.resolve(name, true)
	if err != nil {
		return perr("chmod", name, err)
	}
	fi, err := v.t.root.Lstat(rel)
	if err != nil {
		return perr("chmod", name, err)
	}
	i := v.t.info(rel, fi)
	if v.uid != 0 && v.uid != i.UID {
		return perr("chmod", name, syscall.EPERM)
	}
	must := fs.FileMode(0o600)
	if fi.IsDir() {
		must = 0o700
	}
	if err := v.t.root.Chmod(rel, mode.Perm()|must); err != nil {
		return perr("chmod", name, err)
	}
	m := meta{UID: i.UID, GID: i.GID}
	keep := mode & (fs.ModePerm | fs.ModeSticky | fs.ModeSetuid | fs.ModeSetgid)
	if keep != (keep.Perm() | must) {
		m.Mode = &keep
	}
	if err := v.t.setMeta(rel, m); err != nil {
		return perr("chmod", name, err)
	}
	return nil
}

// Chown sets owner and group; -1 leaves one as it is. Only root may.
func (v *View) Chown(name string, uid, gid int) error {
	if v.uid != 0 {
		return perr("chown", name, syscall.EPERM)
	}
	rel, err := v.resolve(name, true)
	if err == nil {
		_, err = v.t.root.Lstat(rel)
	}
	if err != nil {
		return perr("chown", name, err)
	}
	m := v.t.getMeta(rel)
	if uid >= 0 {
		m.UID = uid
	}
	if gid >= 0 {
		m.GID = gid
	}
	if err := v.t.setMeta(rel, m); err != nil {
		return perr("chown", name, err)
	}
	return nil
}
