package image

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/homeiac/homelab/internal/pause"
	"github.com/homeiac/homelab/internal/rpc"
)

// On shared storage the agents of several hosts have one folder, and would write one
// part at once. Whoever adds to a part has it locked, which ends with its process.

// lockAt lies beyond what any file has: on some file systems (CIFS) nobody else could
// read what is locked.
const lockAt = 1 << 62

func lockOf() *unix.Flock_t {
	return &unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: lockAt, Len: 1}
}

// lock takes a file until it is closed, and says whether nobody else has it. Where the
// file system has no locks there is nobody to ask.
func lock(f *os.File) bool {
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, lockOf())
	return !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES)
}

// lockedElsewhere says whether somebody has a file, who is not this process.
func lockedElsewhere(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	l := lockOf()
	return unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, l) == nil && l.Type != unix.F_UNLCK
}

// isAt says whether an open file is still the one at a path: whoever had it may have
// given it its name, or dropped it.
func isAt(f *os.File, path string) bool {
	open, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(path)
	return err == nil && os.SameFile(open, there)
}

// errElsewhere is that another host adds to a part.
type errElsewhere struct{ path string }

func (e errElsewhere) Error() string { return "another host fetches to " + e.path }

// elsewhere waits for as long as a part that another host adds to grows, and tells how
// far it is.
func (s *Store) elsewhere(ctx context.Context, job Job, path string) error {
	size, last, wait := int64(-1), time.Now(), s.retry
	if !job.WAN {
		wait *= 8 // who may read the source goes first: the others would wait for it, with the part
	}
	for lockedElsewhere(path) {
		// What another host sees of a file may be old, on NFS by up to a minute.
		if st, err := os.Stat(path); err == nil && st.Size() != size {
			size, last = st.Size(), time.Now()
			if job.Progress != nil {
				job.Progress(Told{Done: size, Total: job.Source.GetBytes(), From: "another host of its storage"})
			}
		}
		if time.Since(last) > 2*s.stall {
			return rpc.Errorf(rpc.ErrUnavailable, "image %s: another host fetches it to storage %s, and has brought nothing for %s", job.Source.GetName(), job.To.Storage, 2*s.stall)
		}
		if !pause.For(ctx, wait) {
			return ctx.Err()
		}
	}
	return nil
}
