package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/homeiac/homelab/internal/rpc"
)

// A transfer keeps at most ringBytes that came and are not hashed yet, and takes
// at most pieceBytes at once.
const (
	ringBytes  = 2 << 20
	pieceBytes = 256 << 10
	// pushBytes is after how many the disk is told to begin: else all of it waits for
	// the sync at the end.
	pushBytes = 8 << 20
)

// ring is what came and is not yet written, or not yet hashed: the network, the
// disk and the hash each work on another piece of it. Positions count all bytes
// that ever came.
type ring struct {
	mu                    sync.Mutex
	turned                *sync.Cond
	buf                   []byte
	came, written, hashed int64
	ended                 bool  // nothing more comes
	err                   error // why; nil is the end of the file
	broken                error // why nothing more is written
}

// stretch is the piece from a position to another, as far as it lies in one row.
func (r *ring) stretch(from, to int64) []byte {
	start := from % int64(len(r.buf))
	return r.buf[start : start+min(to-from, int64(len(r.buf))-start, pieceBytes)]
}

// await waits until ready says so, and gives that piece; mu is not held.
func (r *ring) await(ready func() (from, to int64, over bool)) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		from, to, over := ready()
		if r.broken != nil {
			return nil
		}
		if to > from {
			return r.stretch(from, to)
		}
		if over {
			return nil
		}
		r.turned.Wait()
	}
}

func (r *ring) turn(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
	r.turned.Broadcast()
}

// receive adds to the part what comes from body, to its end. More than limit bytes
// in all are Refused. An error of body comes back after all that came before it was
// added. Body is closed.
func (f *fetch) receive(ctx context.Context, body io.ReadCloser, limit int64, who string) error {
	r := &ring{buf: make([]byte, ringBytes)}
	r.turned = sync.NewCond(&r.mu)
	var at sync.WaitGroup
	at.Go(func() { f.s.read(ctx, body, r) })
	start, _ := f.p.size()
	at.Go(func() {
		pushed := start
		for {
			b := r.await(func() (int64, int64, bool) { return r.written, r.came, r.ended })
			if b == nil {
				return
			}
			err := f.overlong(start+r.written+int64(len(b)), limit) // written is ours alone to change
			if err == nil {
				err = writeSparse(f.p.f, b, start+r.written)
			}
			if err != nil {
				r.turn(func() { r.broken = err })
				_ = body.Close() // whoever waits for more need not
				return
			}
			r.turn(func() { r.written += int64(len(b)) })
			if now := start + r.written; now-pushed >= pushBytes {
				push(f.p.f, pushed, now-pushed)
				pushed = now
			}
		}
	})
	for {
		b := r.await(func() (int64, int64, bool) { return r.hashed, r.written, r.ended && r.written == r.came })
		if b == nil {
			break
		}
		f.p.gave(who)
		f.p.hash(b)
		r.turn(func() { r.hashed += int64(len(b)) })
		done := f.p.add(len(b))
		f.p.note()
		_, total := f.p.size()
		f.Progress(Told{Done: done, Total: total, From: who})
	}
	at.Wait()
	_ = body.Close()
	if r.broken != nil {
		return r.broken
	}
	return r.err
}

// read takes what comes, as fast as it may.
func (s *Store) read(ctx context.Context, body io.Reader, r *ring) {
	for {
		b := r.await(func() (int64, int64, bool) { return r.came, r.hashed + int64(len(r.buf)), false })
		if b == nil {
			return
		}
		n, err := body.Read(b)
		if perr := errors.Join(ctx.Err(), pass(ctx, s.receiving, n)); perr != nil {
			err = perr
		}
		r.turn(func() {
			r.came += int64(n)
			if err != nil {
				r.ended = true
				if !errors.Is(err, io.EOF) {
					r.err = err
				}
			}
		})
		if err != nil {
			return
		}
	}
}

// overlong is the end of a transfer of more bytes than there may be.
func (f *fetch) overlong(n, limit int64) error {
	_, total := f.p.size()
	switch {
	case total > 0 && n > total:
		return errGoesOn(total)
	case n <= limit:
		return nil
	}
	return errChecked{rpc.Errorf(rpc.ErrRefused, "it has more than the %d bytes that are free", limit)}
}

func errGoesOn(total int64) error {
	return rpc.Errorf(rpc.ErrRefused, "it goes on past its stated length of %d bytes", total)
}

// writeSparse skips blocks of zeroes, so that a sparse image stays sparse; the file
// is as long as what was written to it all the same.
func writeSparse(to *os.File, data []byte, at int64) error {
	const block = 64 << 10
	hole := false
	for len(data) > 0 {
		b := data[:min(block, len(data))]
		// What lies in one row is written in one call.
		if hole = zero(b); !hole {
			for len(b) < len(data) && !zero(data[len(b):min(len(b)+block, len(data))]) {
				b = data[:min(len(b)+block, len(data))]
			}
			if _, err := to.WriteAt(b, at); err != nil {
				return err
			}
		}
		data, at = data[len(b):], at+int64(len(b))
	}
	if hole {
		return to.Truncate(at)
	}
	return nil
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// freeIn is how many bytes are free where a folder's files lie: what sends without
// end must not fill the host's disk.
func freeIn(f Folder) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(f.Local, &st); err != nil {
		return 0, fmt.Errorf("room on storage %s: %w", f.Storage, err)
	}
	return int64(st.Bavail) * st.Bsize, nil //nolint:gosec // a file system has less than 2^63 bytes
}

// push has the disk begin with a stretch; it does not wait for it, and nothing
// depends on it.
func push(f *os.File, from, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), from, n, unix.SYNC_FILE_RANGE_WRITE)
}
