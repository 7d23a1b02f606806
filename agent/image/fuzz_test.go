package image_test

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/homeiac/homelab/agent/image"
)

// Whatever comes from the network is read without a panic, and what is said of it
// stays within bounds.

func FuzzChecksumList(f *testing.F) {
	f.Add([]byte(strings.Repeat("0", 64) + "  noble.img\n"))
	f.Add([]byte(strings.Repeat("0", 64) + " *./noble.img\r\n"))
	f.Add([]byte("SHA512 (noble.img) = " + strings.Repeat("f", 128)))
	f.Add([]byte(") = \n ( ) = "))
	f.Fuzz(func(t *testing.T, list []byte) {
		d, err := image.FromList(bytes.NewReader(list), "noble.img")
		if err == nil && !d.Known() || len(d.SHA256) != 0 && len(d.SHA256) != 64 || len(d.SHA512) != 0 && len(d.SHA512) != 128 {
			t.Errorf("%+v %v", d, err)
		}
	})
}

func FuzzHead(f *testing.F) {
	for _, b := range [][]byte{qcow2(0, 0), qcow2(1, 4), extended(0), encrypted(), raw(1024), gpt(512), gpt(4096), []byte("<html>"), []byte("KDMV")} {
		f.Add(b, false)
	}
	f.Add(vmdk(fmt.Sprintf(goodVMDK, "monolithicSparse"))[:12<<10], false)
	f.Add(zipped(raw(4096)), false)
	f.Add(zstded(raw(4096)), false)
	f.Add([]byte("\xfd7zXZ\x00"), true)
	f.Fuzz(func(t *testing.T, head []byte, iso bool) {
		h, err := image.ReadHead(head, int64(len(head)), iso)
		if h.VirtualBytes < 0 || h.UnpackedBytes < 0 {
			t.Errorf("%+v", h)
		}
		if err == nil && h.Format == "" && h.Compression == "" {
			t.Errorf("taken without a format: %+v", h)
		}
	})
}

func FuzzUnpack(f *testing.F) {
	for _, kind := range []string{"gz", "zst", "xz", "bz2"} {
		f.Add(kind, zipped(raw(4096)))
		f.Add(kind, zstded(raw(4096)))
	}
	f.Add("bz2", []byte("BZh9\x17rE8P\x90\x00\x00\x00\x00"))
	f.Add("xz", []byte("\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4F\x00\x00\x00\x00\x1c\xdfD!\x1f\xb6\xf3}\x01\x00\x00\x00\x00\x04YZ"))
	f.Fuzz(func(_ *testing.T, kind string, packed []byte) {
		z, err := image.Unpacker(kind, bytes.NewReader(packed))
		if err != nil {
			return
		}
		defer z.Close()
		_, _ = io.Copy(io.Discard, io.LimitReader(z, 4<<20))
	})
}
