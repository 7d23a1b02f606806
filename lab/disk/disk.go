// Package disk holds what the simulated Proxmox programs and the simulated
// guests must agree on about a volume: how a lab image is recognised, how a
// cloud-init volume is written, and where a guest's files lie. It knows neither
// Proxmox nor guests.
package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Marker is the text at MarkerOffset of an image that carries the lab's guest
// OS. A volume made from such an image keeps these bytes, in every format.
const (
	Marker       = "hl-lab guest image v1"
	MarkerOffset = 1024
)

// MakeGuestImage writes a sparse raw image of size bytes that carries the lab's
// guest OS: an MBR signature and the marker, so that checks which look for a
// bootable disk are content too.
func MakeGuestImage(path string, size int64) error {
	if size < 1<<20 {
		return fmt.Errorf("make guest image %s: %d bytes is less than 1 MiB", path, size)
	}
	head := make([]byte, MarkerOffset+len(Marker))
	head[510], head[511] = 0x55, 0xAA
	copy(head[MarkerOffset:], Marker)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, werr := f.Write(head)
	return errors.Join(werr, f.Truncate(size), f.Close())
}

// HasGuest reports whether the volume or image at path, or what it stands on,
// carries the lab's guest OS.
func HasGuest(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	got := make([]byte, len(Marker))
	if n, _ := f.ReadAt(got, MarkerOffset); n == len(got) && bytes.Equal(got, []byte(Marker)) {
		return true, nil
	}
	if base := below(path); base != "" {
		return HasGuest(base)
	}
	return false, nil
}

// Tree is the folder that holds the files of the guest whose boot volume is
// volume. It is made at the first boot, and lives and moves with the volume.
func Tree(volume string) string { return volume + ".fs" }

// Remove deletes a volume, the guest's files beside it and its snapshots. A volume that is
// not there is fs.ErrNotExist.
func Remove(volume string) error {
	err := os.Remove(volume)
	terr := errors.Join(removeTree(Tree(volume)), eachSnapshot(volume, func(dir, _ string) error { return removeTree(dir) }))
	if err != nil {
		return err
	}
	return terr
}

// Rename moves a volume, the guest's files beside it and its snapshots.
func Rename(from, to string) error {
	if err := renameBoth(from, to); err != nil {
		return err
	}
	return eachSnapshot(from, func(dir, name string) error {
		return errors.Join(renameBoth(filepath.Join(dir, filepath.Base(from)), filepath.Join(dir, filepath.Base(to))),
			os.Rename(dir, snapshotDir(to, name)))
	})
}

// renameBoth moves a volume's file and the guest's files beside it.
func renameBoth(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if err := os.Rename(Tree(from), Tree(to)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// CopyTree copies the guest's files of one volume to another, as a full clone
// of a disk does. A volume that was never booted has none.
func CopyTree(from, to string) error {
	src := Tree(from)
	if _, err := os.Lstat(src); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, path)
		if err != nil {
			return err
		}
		return copyEntry(path, filepath.Join(Tree(to), rel), d)
	})
}

func copyEntry(from, to string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	switch {
	case d.IsDir():
		return os.MkdirAll(to, info.Mode().Perm()|0o700)
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	case info.Mode().IsRegular():
		data, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		return os.WriteFile(to, data, info.Mode().Perm())
	}
	return nil // sockets and pipes belong to a running guest
}

// removeTree is os.RemoveAll, also of folders without write permission, which
// guests make as real ones do.
func removeTree(path string) error {
	if err := os.RemoveAll(path); err == nil {
		return nil
	}
	_ = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			return os.Chmod(p, 0o700)
		}
		return nil
	})
	return os.RemoveAll(path)
}
