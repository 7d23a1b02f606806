package image

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"

	"github.com/homeiac/homelab/internal/rpc"
)

// maxWindow bounds what a decoder may keep in memory, in bytes. A file can ask for
// gigabytes; those that are published ask for 8 MiB, and 64 MiB at most (xz -9).
const maxWindow = 64 << 20

// compressions are known by how they begin.
var compressions = []struct{ magic, name string }{
	{"\x1f\x8b", "gz"}, {"\xfd7zXZ\x00", "xz"}, {"(\xb5/\xfd", "zst"}, {"BZh", "bz2"},
}

func compressionOf(head []byte) string {
	for _, c := range compressions {
		if bytes.HasPrefix(head, []byte(c.magic)) {
			return c.name
		}
	}
	return ""
}

// unpacker reads what is in a compressed file.
func unpacker(kind string, r io.Reader) (io.ReadCloser, error) {
	switch kind {
	case "gz":
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, packed(kind, err)
		}
		return unpacking{Reader: z, kind: kind}, nil
	case "bz2":
		return unpacking{Reader: bzip2.NewReader(r), kind: kind}, nil
	case "xz":
		z, err := xz.NewReader(bufio.NewReaderSize(r, headBytes), maxWindow)
		if err != nil {
			return nil, packed(kind, err)
		}
		return unpacking{Reader: z, kind: kind}, nil
	case "zst":
		// WithDecoderConcurrency(1): no goroutines, and one window. MaxMemory is not
		// the bound of a stream; it is of a block that is decoded at once.
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, packed(kind, err)
		}
		return unpacking{Reader: z, kind: kind, free: z.Close}, nil
	}
	return nil, rpc.Errorf(rpc.ErrUnsupported, "compression %q", kind)
}

// unpacking gives the errors of a decoder their kind.
type unpacking struct {
	io.Reader
	kind string
	free func()
}

func (u unpacking) Read(p []byte) (int, error) {
	n, err := u.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = packed(u.kind, err)
	}
	return n, err
}

func (u unpacking) Close() error {
	if u.free != nil {
		u.free()
	}
	return nil
}

func packed(kind string, err error) error {
	if errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded) || errors.Is(err, xz.ErrMemlimit) {
		return rpc.Errorf(rpc.ErrRefused, "to unpack it (%s) takes a window above the %d MiB that are allowed: %w", kind, maxWindow>>20, err)
	}
	return rpc.Errorf(rpc.ErrRefused, "it cannot be unpacked (%s): %w", kind, err)
}

// beginning gives up to 64 KiB of what is in a compressed file of which only a
// beginning may be there: what comes out before it ends counts. Only a decoder
// that would need too much memory is an error.
func beginning(kind string, r io.Reader) ([]byte, error) {
	z, err := unpacker(kind, r)
	if err != nil {
		return nil, tooLarge(err)
	}
	defer z.Close()
	out := make([]byte, headBytes)
	n, err := io.ReadFull(z, out)
	return out[:n], tooLarge(err)
}

// tooLarge is err when a decoder said that it would need too much memory.
func tooLarge(err error) error {
	if errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded) || errors.Is(err, xz.ErrMemlimit) {
		return err
	}
	return nil
}

// unpackedSize is what the beginning of a compressed file says of the size of what
// is in it, 0 when it says nothing.
func unpackedSize(kind string, head []byte) int64 {
	if kind != "zst" {
		return 0
	}
	var h zstd.Header
	if h.Decode(head) != nil || !h.HasFCS || h.FrameContentSize > 1<<50 {
		return 0
	}
	return int64(h.FrameContentSize) //nolint:gosec // it is below 2^50
}

// trailingSize is what the end of a compressed file says of that, -1 when it says
// nothing. It is a claim: nothing is allowed or believed because of it.
func trailingSize(kind string, r io.ReaderAt, size int64) int64 {
	if kind != "gz" || size < 18 {
		return -1
	}
	var b [4]byte
	if _, err := r.ReadAt(b[:], size-4); err != nil {
		return -1
	}
	n := int64(binary.LittleEndian.Uint32(b[:])) // modulo 4 GiB
	if n < size/2 {
		return -1
	}
	return n
}
