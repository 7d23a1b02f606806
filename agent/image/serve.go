package image

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/homeiac/homelab/internal/rpc"
)

// maxPulls is how many pulls are served at once.
const maxPulls = 8

// Passing is a file on its way to another host.
type Passing struct {
	// Bytes is the size of the whole, 0 when not known.
	Bytes int64
	// Whole is whether all of it is here, verified.
	Whole bool

	s     *Store
	f     *os.File
	p     *part // while it is being fetched
	began int
	path  string
	at    int64
}

// Pass finds the file with that digest in the folders, or the part of it that is
// being fetched, to send it from an offset on. It is to be closed. No such file is
// NotFound, too many at once are Busy.
func (s *Store) Pass(want Digests, offset int64, folders []Folder) (*Passing, error) {
	if err := want.check(); err != nil || !want.Known() {
		return nil, rpc.Errorf(rpc.ErrInvalid, "a file is asked for by its SHA-256 or SHA-512 in lower-case hex")
	}
	if offset < 0 {
		return nil, rpc.Errorf(rpc.ErrInvalid, "offset %d", offset)
	}
	s.mu.Lock()
	if s.pulls >= maxPulls {
		s.mu.Unlock()
		return nil, rpc.Errorf(rpc.ErrBusy, "%d hosts take images from here already", maxPulls)
	}
	s.pulls++
	s.mu.Unlock()
	out, err := s.pass(want, offset, folders)
	if err != nil {
		s.mu.Lock()
		s.pulls--
		s.mu.Unlock()
	}
	return out, err
}

func (s *Store) pass(want Digests, offset int64, folders []Folder) (*Passing, error) {
	out := &Passing{s: s, at: offset}
	// The part first: it becomes a whole file while we look, and not the other way.
	if p := s.partOf(want); p != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		if !p.over && offset > p.done {
			return nil, rpc.Errorf(rpc.ErrUnavailable, "it has only %s itself", ofTotal(p.done, p.total))
		}
		if !p.over {
			f, err := os.Open(p.path)
			if err == nil {
				out.f, out.p, out.began, out.Bytes = f, p, p.began, p.total
				return out, nil
			}
		}
	}
	img, ok := findDigest(want, folders)
	if !ok {
		return nil, rpc.Errorf(rpc.ErrNotFound, "this host has no file with %s", want)
	}
	out.path, out.Bytes, out.Whole = img.local, img.Record.Bytes, true
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := os.Open(img.local)
	if err != nil {
		return nil, rpc.Errorf(rpc.ErrNotFound, "this host has no file with %s", want)
	}
	if offset > out.Bytes {
		_ = f.Close()
		return nil, rpc.Errorf(rpc.ErrInvalid, "the file has %d bytes, it is asked for from %d on", out.Bytes, offset)
	}
	out.f = f
	s.using[out.path]++
	return out, nil
}

func (s *Store) partOf(want Digests) *part {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.parts {
		if want.SHA256 != "" && p.want.SHA256 == want.SHA256 || want.SHA256 == "" && p.want.SHA512 == want.SHA512 {
			return p
		}
	}
	return nil
}

// Ready waits until the file's size is known, or that of a source which states none is
// not: a host that asks as soon as this one would else never know how much is left.
// It fails as Next does.
func (t *Passing) Ready(ctx context.Context) error {
	if t.p == nil || t.Bytes > 0 {
		return nil
	}
	if _, err := t.p.after(ctx, t.at, t.began, t.s.dry); err != nil {
		return err
	}
	_, t.Bytes = t.p.size()
	return nil
}

// Next reads the next bytes into buf, and waits for them when the file is still
// being fetched. It ends in io.EOF, or in Unavailable when that fetch failed.
func (t *Passing) Next(ctx context.Context, buf []byte) (int, error) {
	n := int64(len(buf))
	if t.p != nil {
		ready, err := t.p.after(ctx, t.at, t.began, t.s.dry)
		if err != nil {
			return 0, err
		}
		n = min(n, ready)
	} else {
		n = min(n, t.Bytes-t.at)
	}
	if n == 0 {
		return 0, io.EOF
	}
	k, err := t.f.ReadAt(buf[:n], t.at)
	if int64(k) < n && t.p != nil {
		if _, err := t.p.after(ctx, t.at, t.began, t.s.dry); err != nil {
			return 0, err // it was dropped between the two looks
		}
	}
	if int64(k) < n {
		return 0, rpc.Errorf(rpc.ErrUnavailable, "the file is shorter than it was: %v", err)
	}
	t.at += n
	return k, pass(ctx, t.s.sending, k)
}

// Close ends it.
func (t *Passing) Close() {
	_ = t.f.Close()
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	t.s.pulls--
	if t.path != "" {
		t.s.release(t.path)
	}
}

// release says that a whole file is used once less; mu is held.
func (s *Store) release(path string) {
	if s.using[path]--; s.using[path] <= 0 {
		delete(s.using, path)
	}
}

// after waits until there is something after an offset and says how much; 0 is the
// end of the file. A part that does not grow is not waited for longer than dry: when
// the host that reads the source was lost, each of two hosts would wait for the other.
func (p *part) after(ctx context.Context, at int64, began int, dry time.Duration) (int64, error) {
	limit := time.NewTimer(dry)
	defer limit.Stop()
	for {
		p.mu.Lock()
		done, total, over, whole, now, moved := p.done, p.total, p.over, p.whole, p.began, p.moved
		p.mu.Unlock()
		switch {
		case now != began:
			// What it dropped was no good, so what it passed on of it is not either.
			return 0, rpc.Errorf(rpc.ErrRefused, "it dropped what it had, and began anew")
		case done > at:
			return done - at, nil
		case over && whole && at == done:
			return 0, nil
		case over:
			return 0, rpc.Errorf(rpc.ErrUnavailable, "its fetch ended at %s", ofTotal(done, total))
		}
		select {
		case <-moved:
		case <-limit.C:
			return 0, rpc.Errorf(rpc.ErrUnavailable, "it has had only %s itself for %s", ofTotal(done, total), dry)
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}
