package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// The lab's qcow2 files have a true qcow2 header in their first 512 bytes and
// after it the bytes of the guest's disk as they lie in a raw file. That is
// enough for every program that asks for format and size, keeps the marker in
// place, and needs no cluster tables.
const (
	headerSize  = 512
	clusterSize = 64 << 10
	seekData    = 3 // lseek(2) SEEK_DATA
	seekHole    = 4 // lseek(2) SEEK_HOLE
)

var qcow2Magic = []byte("QFI\xfb")

// Info tells an image's format (raw, qcow2, vmdk) and the size in bytes of the
// disk in it. What is no known format is raw, as qemu-img takes it.
func Info(path string) (format string, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", 0, err
	}
	head := make([]byte, headerSize)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return "", 0, err
	}
	head = head[:n]
	switch {
	case bytes.HasPrefix(head, qcow2Magic) && n >= 32:
		return "qcow2", int64(binary.BigEndian.Uint64(head[24:])), nil
	case bytes.HasPrefix(head, []byte("KDMV")) && n >= 20:
		return "vmdk", int64(binary.LittleEndian.Uint64(head[12:])) * 512, nil
	case bytes.HasPrefix(head, []byte(cloudInitHeader)):
		return "raw", CloudInitSize, nil
	}
	return "raw", st.Size(), nil
}

// Backing is the backing file a qcow2 volume names, or "".
func Backing(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	head := make([]byte, headerSize)
	if n, _ := io.ReadFull(f, head); n < headerSize || !bytes.HasPrefix(head, qcow2Magic) {
		return ""
	}
	off, size := binary.BigEndian.Uint64(head[8:]), binary.BigEndian.Uint32(head[16:])
	if off == 0 || off+uint64(size) > headerSize {
		return ""
	}
	return string(head[off : off+uint64(size)])
}

// below is the path of the image that a volume stands on, or "". A snapshot's copy
// of a volume lies one folder deeper and names the same image.
func below(path string) string {
	backing := Backing(path)
	if backing == "" {
		return ""
	}
	dir := filepath.Dir(path)
	if strings.Contains(filepath.Base(dir), ".snap-") {
		dir = filepath.Dir(dir)
	}
	return filepath.Join(dir, backing)
}

// Create makes an empty volume of size bytes in format raw or qcow2, sparse.
// backing is written into a qcow2 header when it is not empty. A file that is
// there already is fs.ErrExist.
func Create(path, format string, size int64, backing string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	err = f.Truncate(FileSize(format, size))
	if err == nil && format == "qcow2" {
		_, err = f.WriteAt(qcow2Header(size, backing), 0)
	}
	return errors.Join(err, f.Close())
}

// FileSize is the apparent size of a volume's file: that of qcow2 with
// preallocated metadata was seen to be the disk's plus its tables.
func FileSize(format string, size int64) int64 {
	if format != "qcow2" {
		return size
	}
	l2 := (size + 512<<20 - 1) / (512 << 20)
	refs := (size + 2<<30 - 1) / (2 << 30)
	return size + clusterSize*(3+max(l2, 1)+max(refs, 1))
}

// Resize gives a volume another size, which must not be smaller.
func Resize(path string, size int64) error {
	format, _, err := Info(path)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = f.Truncate(FileSize(format, size))
	if err == nil && format == "qcow2" {
		var b [8]byte
		binary.BigEndian.PutUint64(b[:], uint64(size))
		_, err = f.WriteAt(b[:], 24)
	}
	return errors.Join(err, f.Close())
}

// Full is returned by Fill when the budget of bytes is used up.
type Full struct{ At int64 }

func (e *Full) Error() string { return fmt.Sprintf("no space left on device at byte %d", e.At) }

// Fill copies the contents of image from, or of what it stands on, into the volume
// to, which Create made. It writes at most budget bytes of data (holes cost nothing)
// and calls progress with the bytes done. The volume keeps its own format and size.
func Fill(ctx context.Context, to, from string, budget int64, progress func(done int64)) error {
	if base := below(from); base != "" {
		// Of its own it has a header and no more: nobody writes into it, since what a
		// guest changes lies beside it.
		return Fill(ctx, to, base, budget, progress)
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	format, _, err := Info(to)
	if err == nil {
		err = fill(ctx, dst, src, format, budget, progress)
	}
	return errors.Join(err, dst.Close())
}

func fill(ctx context.Context, dst, src *os.File, format string, budget int64, progress func(int64)) error {
	st, err := src.Stat()
	if err != nil {
		return err
	}
	buf, written := make([]byte, 1<<20), int64(0)
	for off := int64(0); off < st.Size(); {
		data, err := src.Seek(off, seekData)
		if errors.Is(err, syscall.ENXIO) {
			return nil // only a hole is left
		}
		if err != nil {
			return err
		}
		hole, err := src.Seek(data, seekHole)
		if err != nil {
			return err
		}
		for off = data; off < hole; {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			n, err := src.ReadAt(buf[:min(int64(len(buf)), hole-off)], off)
			if n == 0 {
				return err
			}
			if written += int64(n); written > budget {
				return &Full{At: off + int64(n) - (written - budget)}
			}
			if err := put(dst, buf[:n], off, format); err != nil {
				return err
			}
			off += int64(n)
			progress(off)
		}
		off = hole
	}
	return nil
}

// put writes p at off. Into a volume of a format (not a byte copy, format "")
// it leaves the header that dst has and puts none of another format there: the
// first block of a raw volume made from a qcow2 keeps only the boot signature.
func put(dst *os.File, p []byte, off int64, format string) error {
	if format != "" && off < headerSize {
		head := p[:min(int64(len(p)), headerSize-off)]
		if off == 0 && (format == "qcow2" || bytes.HasPrefix(head, qcow2Magic)) {
			if len(head) == headerSize {
				if _, err := dst.WriteAt(head[510:512], 510); err != nil {
					return err
				}
			}
			p, off = p[len(head):], off+int64(len(head))
		}
	}
	if len(p) == 0 {
		return nil
	}
	_, err := dst.WriteAt(p, off)
	return err
}

func qcow2Header(size int64, backing string) []byte {
	h := make([]byte, headerSize-2) // the boot signature's place stays free
	copy(h, qcow2Magic)
	binary.BigEndian.PutUint32(h[4:], 3)
	if backing != "" && len(backing) < 300 {
		binary.BigEndian.PutUint64(h[8:], 112)
		binary.BigEndian.PutUint32(h[16:], uint32(len(backing)))
		copy(h[112:], backing)
	}
	binary.BigEndian.PutUint32(h[20:], 16)
	binary.BigEndian.PutUint64(h[24:], uint64(size))
	binary.BigEndian.PutUint32(h[96:], 4)
	binary.BigEndian.PutUint32(h[100:], 104)
	return h
}
