// Package tree is the file system of one simulated guest: a folder of the real
// machine that guest programs see as "/".
//
// Every access goes through an os.Root, and symbolic links are resolved here,
// against the guest's own root, so neither an absolute link nor ".." leads out.
// Owners, and modes that an ordinary user could not keep on real files, live in
// a sidecar under the reserved folder ".lab", which guests cannot see.
package tree

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// reserved is the folder of the tree that belongs to the lab; no guest path
// leads into it.
const reserved = ".lab"

// maxLinks is how many symbolic links one path may lead through, as Linux has it.
const maxLinks = 40

// Tree is one guest's file system. It is safe for concurrent use.
type Tree struct {
	dir  string
	root *os.Root

	mu   sync.Mutex
	meta map[string]meta // by resolved path without the leading slash
}

// meta is what the real file cannot carry.
type meta struct {
	UID  int          `json:"uid,omitempty"`
	GID  int          `json:"gid,omitempty"`
	Mode *fs.FileMode `json:"mode,omitempty"` // nil: the real file's own
}

// Open opens the tree that lies in the folder dir, making the folder when it is
// not there.
func Open(dir string) (*Tree, error) {
	if err := os.MkdirAll(filepath.Join(dir, reserved), 0o755); err != nil {
		return nil, fmt.Errorf("guest tree: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("guest tree: %w", err)
	}
	t := &Tree{dir: dir, root: root, meta: map[string]meta{}}
	b, err := root.ReadFile(reserved + "/meta.json")
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		root.Close()
		return nil, fmt.Errorf("guest tree: %w", err)
	default:
		if err := json.Unmarshal(b, &t.meta); err != nil {
			root.Close()
			return nil, fmt.Errorf("guest tree: meta.json: %w", err)
		}
	}
	return t, nil
}

// Close releases the folder. What is open stays open.
func (t *Tree) Close() error { return t.root.Close() }

// As gives the tree as the user with that uid sees it; 0 may do everything.
func (t *Tree) As(uid, gid int) *View { return &View{t: t, uid: uid, gid: gid} }

// Super gives the tree as root sees it.
func (t *Tree) Super() *View { return t.As(0, 0) }

// HostPath is where a guest's path really lies, for the few things that cannot
// work through the tree (an embedded etcd's data). All links are resolved, the
// last part may be missing.
func (t *Tree) HostPath(name string) (string, error) {
	rel, err := t.Super().resolve(name, true)
	if err != nil {
		return "", err
	}
	return filepath.Join(t.dir, filepath.FromSlash(rel)), nil
}

// saveLocked writes the sidecar. It is small: only what differs from the
// default (root's, the real mode) is in it.
func (t *Tree) saveLocked() error {
	b, err := json.Marshal(t.meta)
	if err != nil {
		return err
	}
	if err := t.root.WriteFile(reserved+"/meta.json.new", b, 0o644); err != nil {
		return err
	}
	return t.root.Rename(reserved+"/meta.json.new", reserved+"/meta.json")
}

func (t *Tree) setMeta(rel string, m meta) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	old, had := t.meta[rel]
	if m == (meta{}) {
		if !had {
			return nil
		}
		delete(t.meta, rel)
		return t.saveLocked()
	}
	if had && old.UID == m.UID && old.GID == m.GID && sameMode(old.Mode, m.Mode) {
		return nil
	}
	t.meta[rel] = m
	return t.saveLocked()
}

func sameMode(a, b *fs.FileMode) bool {
	return a == nil && b == nil || a != nil && b != nil && *a == *b
}

func (t *Tree) getMeta(rel string) meta {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.meta[rel]
}

// moveMeta carries the sidecar's entries of old and what is below it to new;
// an empty new forgets them.
func (t *Tree) moveMeta(old, new string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	changed := false
	for k, m := range t.meta {
		rest, below := strings.CutPrefix(k, old+"/")
		if k != old && !below {
			continue
		}
		delete(t.meta, k)
		changed = true
		if new == "" {
			continue
		}
		if below {
			t.meta[new+"/"+rest] = m
		} else {
			t.meta[new] = m
		}
	}
	if !changed {
		return nil
	}
	return t.saveLocked()
}

// Info is a file as the guest sees it.
type Info struct {
	name string
	size int64
	mode fs.FileMode
	time time.Time
	sys  any

	UID, GID int
}

// Name is the last part of the path.
func (i *Info) Name() string { return i.name }

// Size is in bytes.
func (i *Info) Size() int64 { return i.size }

// Mode is the guest's, not the real file's.
func (i *Info) Mode() fs.FileMode { return i.mode }

// ModTime is when the content last changed.
func (i *Info) ModTime() time.Time { return i.time }

// IsDir tells folders.
func (i *Info) IsDir() bool { return i.mode.IsDir() }

// Sys is the real file's, for comparing identity only.
func (i *Info) Sys() any { return i.sys }

func (t *Tree) info(rel string, fi fs.FileInfo) *Info {
	m := t.getMeta(rel)
	mode := fi.Mode()
	if m.Mode != nil {
		mode = mode.Type() | *m.Mode
	}
	return &Info{name: path.Base("/" + rel), size: fi.Size(), mode: mode, time: fi.ModTime(), sys: fi.Sys(), UID: m.UID, GID: m.GID}
}

func perr(op, name string, err error) error {
	var pe *fs.PathError
	for errors.As(err, &pe) {
		err = pe.Err
	}
	var le *os.LinkError
	if errors.As(err, &le) {
		err = le.Err
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

var errLoop = syscall.ELOOP
