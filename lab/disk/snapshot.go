package disk

import (
	"context"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
)

// snapshotDir holds the state of a volume at a snapshot: the volume, and the
// guest's files beside it.
func snapshotDir(volume, name string) string { return volume + ".snap-" + name }

// Snapshot keeps the present contents of a volume, and the guest's files,
// under a name.
func Snapshot(volume, name string) error {
	dir := snapshotDir(volume, name)
	if err := os.Mkdir(dir, 0o750); err != nil {
		return err
	}
	return Copy(volume, filepath.Join(dir, filepath.Base(volume)))
}

// Rollback gives a volume the contents it had at a snapshot.
func Rollback(volume, name string) error {
	kept := filepath.Join(snapshotDir(volume, name), filepath.Base(volume))
	if _, err := os.Stat(kept); err != nil {
		return err
	}
	err := os.Remove(volume)
	return errors.Join(err, removeTree(Tree(volume)), Copy(kept, volume))
}

// DropSnapshot forgets a snapshot.
func DropSnapshot(volume, name string) error { return removeTree(snapshotDir(volume, name)) }

// Copy makes a volume file like another, byte for byte and as sparse, with the
// guest's files.
func Copy(from, to string) error {
	st, err := os.Stat(from)
	if err != nil {
		return err
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o640)
	if err != nil {
		return err
	}
	err = dst.Truncate(st.Size())
	if err == nil {
		err = fill(context.Background(), dst, src, "", math.MaxInt64, func(int64) {})
	}
	return errors.Join(err, dst.Close(), CopyTree(from, to))
}

// eachSnapshot calls visit with the folder of every snapshot of a volume.
func eachSnapshot(volume string, visit func(dir, name string) error) error {
	entries, err := os.ReadDir(filepath.Dir(volume))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if name, ok := strings.CutPrefix(e.Name(), filepath.Base(volume)+".snap-"); ok {
			err = errors.Join(err, visit(filepath.Join(filepath.Dir(volume), e.Name()), name))
		}
	}
	return err
}
