package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
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
	p, ok := FilePath(address)
	if filepath.IsAbs(address) {
		p, ok = address, true
	}
	if ok {
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
	return s.get(ctx, address)
}

func (s *Store) get(ctx context.Context, address string) (io.ReadCloser, int64, error) {
	if !strings.HasPrefix(address, "http://") && !strings.HasPrefix(address, "https://") {
		return nil, 0, rpc.Errorf(rpc.ErrUnsupported, "address %s: only file:, http: and https: are known", Masked(address))
	}
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		cancel(nil)
		return nil, 0, rpc.Errorf(rpc.ErrInvalid, "address %s: %w", Masked(address), cause(err))
	}
	resp, err := s.client.Do(req)
	if err != nil {
		cancel(nil)
		kind := rpc.ErrUnavailable
		if errors.Is(err, rpc.ErrRefused) {
			kind = rpc.ErrRefused
		}
		return nil, 0, rpc.Errorf(kind, "get %s: %w", Masked(address), cause(err))
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		cancel(nil)
		kind := rpc.ErrUnavailable
		if resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusGone {
			kind = rpc.ErrNotFound
		}
		return nil, 0, rpc.Errorf(kind, "get %s: the server answers %s", Masked(address), resp.Status)
	}
	stalled := fmt.Errorf("the server sent nothing for %s", s.stall)
	b := &watched{body: resp.Body, ctx: ctx, cancel: cancel, limit: s.stall}
	b.timer = time.AfterFunc(s.stall, func() { cancel(stalled) })
	return b, max(resp.ContentLength, 0), nil
}

// cause is an error of net/http or net/url without the address that it quotes,
// which may hold a password or a signature.
func cause(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		return ue.Err
	}
	return err
}

// watched ends a download that stands still.
type watched struct {
	body   io.ReadCloser
	ctx    context.Context // of this one request, to tell why it ended
	cancel context.CancelCauseFunc
	timer  *time.Timer
	limit  time.Duration
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.body.Read(p)
	w.timer.Reset(w.limit)
	if err != nil && !errors.Is(err, io.EOF) {
		if cause := context.Cause(w.ctx); cause != nil {
			err = cause
		}
		// Also a connection that was cut: io.ReadFull must not take it for the end.
		err = rpc.Errorf(rpc.ErrUnavailable, "after a part of it: %v", err)
	}
	return n, err
}

func (w *watched) Close() error {
	w.timer.Stop()
	err := w.body.Close()
	w.cancel(nil)
	return err
}

// expectation is what the source says of the content; empty strings say nothing.
type expectation struct {
	sha256, sha512 string
}

func (e expectation) any() bool { return e.sha256 != "" || e.sha512 != "" }

func (e expectation) check(got sums) error {
	switch {
	case e.sha256 != "" && e.sha256 != got.sha256:
		return rpc.Errorf(rpc.ErrRefused, "its SHA-256 is %s and should be %s", got.sha256, e.sha256)
	case e.sha512 != "" && e.sha512 != got.sha512:
		return rpc.Errorf(rpc.ErrRefused, "its SHA-512 is %s and should be %s", got.sha512, e.sha512)
	}
	return nil
}

// maxList bounds a checksum list, in bytes.
const maxList = 1 << 20

func (s *Store) expected(ctx context.Context, src *homelabv1.ImageSource) (expectation, error) {
	want := expectation{sha256: strings.ToLower(src.GetSha256()), sha512: strings.ToLower(src.GetSha512())}
	if src.GetChecksumsUrl() == "" {
		return want, nil
	}
	body, _, err := s.Open(ctx, src.GetChecksumsUrl())
	if err != nil {
		return want, fmt.Errorf("checksums of image %s: %w", src.GetName(), err)
	}
	defer body.Close()
	u, err := url.Parse(src.GetUrl())
	if err != nil {
		return want, rpc.Errorf(rpc.ErrInvalid, "image %s: its address does not parse", src.GetName())
	}
	listed, err := fromList(io.LimitReader(body, maxList), path.Base(u.Path))
	if err != nil {
		return want, fmt.Errorf("checksums of image %s (%s): %w", src.GetName(), Masked(src.GetChecksumsUrl()), err)
	}
	if want.sha256 == "" {
		want.sha256 = listed.sha256
	}
	if want.sha512 == "" {
		want.sha512 = listed.sha512
	}
	return want, nil
}

// fromList finds a file in a list of "DIGEST  NAME" or "DIGEST *NAME" lines, or
// of BSD's "SHA256 (NAME) = DIGEST" (as Fedora has it).
func fromList(r io.Reader, name string) (expectation, error) {
	var e expectation
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		digest, file, ok := strings.Cut(line, " ")
		file = strings.TrimPrefix(strings.TrimSpace(file), "*")
		if before, after, bsd := strings.Cut(line, ") = "); bsd {
			_, file, ok = strings.Cut(before, " (")
			digest = after
		}
		if !ok || path.Base(file) != name || strings.Trim(strings.ToLower(digest), "0123456789abcdef") != "" {
			continue
		}
		switch len(digest) {
		case 64:
			e.sha256 = strings.ToLower(digest)
		case 128:
			e.sha512 = strings.ToLower(digest)
		}
	}
	if err := lines.Err(); err != nil {
		return e, err
	}
	if !e.any() {
		return e, rpc.Errorf(rpc.ErrRefused, "the list does not name %s", name)
	}
	return e, nil
}
