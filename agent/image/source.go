package image

import (
	"context"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/homeiac/homelab/internal/rpc"
)

// Roots are the folders below which files named by a Spec may be read. A Spec
// comes from people who may not read all of the host.
type Roots []string

// Open opens a regular file below one of the roots; links that lead out of it
// are Refused. The path is this process's, not relative to a simulated host's root.
func (r Roots) Open(name string) (*os.File, error) {
	if !filepath.IsAbs(name) {
		return nil, rpc.Errorf(rpc.ErrInvalid, "file %s: the path is not absolute", name)
	}
	name = filepath.Clean(name)
	for _, dir := range r {
		rel, err := filepath.Rel(dir, name)
		if err != nil || !filepath.IsLocal(rel) {
			continue
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			return nil, rpc.Errorf(rpc.ErrNotFound, "file %s: %w", name, err)
		}
		// A pipe would be waited for, for ever: see what it is first.
		f, err := root.OpenFile(rel, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		_ = root.Close() // the file stays open without it
		if os.IsNotExist(err) {
			return nil, rpc.Errorf(rpc.ErrNotFound, "file %s is not there", name)
		}
		if err != nil {
			return nil, rpc.Errorf(rpc.ErrRefused, "file %s: %w", name, err)
		}
		if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
			_ = f.Close()
			return nil, rpc.Errorf(rpc.ErrRefused, "file %s is no regular file", name)
		}
		return f, nil
	}
	return nil, rpc.Errorf(rpc.ErrRefused, "file %s lies under none of the agent's fileRoots (%s)", name, strings.Join(r, ", "))
}

// FilePath is the path in a file: address (file:/x, file:///x), if it is one.
func FilePath(address string) (string, bool) {
	rest, ok := strings.CutPrefix(address, "file:")
	if !ok {
		return "", false
	}
	if u, err := url.Parse(address); err == nil && (u.Host == "" || u.Host == "localhost") && u.Path != "" {
		return u.Path, true
	}
	return rest, true
}

// Masked is the address without user and password, and without a query, which
// may hold a signature.
func Masked(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return "an address that does not parse"
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String()
}

// Open gives the content at an address (file:, http:, https:, or an absolute
// path) and its length in bytes, 0 when it is not known.
func (s *Store) Open(ctx context.Context, address string) (io.ReadCloser, int64, error) {
	if p, ok := localPath(address); ok {
		return s.openFile(p)
	}
	got, err := s.get(ctx, address, 0, "")
	if err != nil {
		return nil, 0, err
	}
	return got.body, got.total, nil
}

// localPath is the path of an address that is a file of this machine.
func localPath(address string) (string, bool) {
	if filepath.IsAbs(address) {
		return address, true
	}
	return FilePath(address)
}

func (s *Store) openFile(p string) (*os.File, int64, error) {
	f, err := s.files.Open(p)
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}
