// Package durable writes files that survive a crash and a power cut: whole, and
// there once the call returned. What is in them it leaves to others.
package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Write replaces a file, mode 0600, so that whatever happens it holds either the
// old or the new content, and the new one once this returns. Its folder exists.
func Write(path string, data []byte) error {
	dir := filepath.Dir(path)
	// Hidden and not named like any file of ours, so that none is left behind that
	// a reader of the folder takes for one.
	tmp, err := os.CreateTemp(dir, ".tmp-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // gone already when all went well
	_, werr := tmp.Write(data)
	if err := errors.Join(werr, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return Sync(dir)
}

// Tidy removes what Writes that were killed left in a folder before a time. One that
// is at work since is not disturbed.
func Tidy(dir string, before time.Time) error {
	left, err := filepath.Glob(filepath.Join(dir, ".tmp-*"))
	if err != nil {
		return err
	}
	for _, path := range left {
		if st, err := os.Lstat(path); err == nil && st.Mode().IsRegular() && st.ModTime().Before(before) {
			err = os.Remove(path)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// Remove removes a file for good; one that is not there is removed already.
func Remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return Sync(filepath.Dir(path))
}

// Sync makes what was created, renamed or removed in a folder lasting.
func Sync(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
