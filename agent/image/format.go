package image

import (
	"bytes"
	"encoding/binary"
	"io"

	"github.com/homeiac/homelab/internal/rpc"
)

// archives are beginnings of files that hold an image but are none.
var archives = []struct {
	magic, what string
}{
	{"\x1f\x8b", "gzip"}, {"\xfd7zXZ\x00", "xz"}, {"(\xb5/\xfd", "zstd"}, {"BZh", "bzip2"},
	{"PK\x03\x04", "zip"}, {"7z\xbc\xaf", "7z"},
}

// formatOf tells the format of a disk image from its content, never from its
// name. Proxmox takes whatever it does not know for a raw disk and imports an
// error page or an empty file without a word, so what is no disk is Refused here.
func formatOf(r io.ReaderAt, size int64) (string, error) {
	head := make([]byte, 4096)
	n, err := r.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return "", err
	}
	head = head[:n]
	if size == 0 {
		return "", rpc.Errorf(rpc.ErrRefused, "it is empty")
	}
	start := bytes.ToLower(bytes.TrimLeft(bytes.TrimPrefix(head, []byte("\xef\xbb\xbf")), " \t\r\n"))
	for _, tag := range []string{"<!doctype", "<html", "<?xml"} {
		if bytes.HasPrefix(start, []byte(tag)) {
			return "", rpc.Errorf(rpc.ErrRefused, "it is a web page, not a disk image")
		}
	}
	for _, a := range archives {
		if bytes.HasPrefix(head, []byte(a.magic)) {
			return "", rpc.Errorf(rpc.ErrRefused, "it is a %s archive, not a disk image: unpack it first", a.what)
		}
	}
	switch {
	case bytes.HasPrefix(head, []byte("QFI\xfb")):
		return "qcow2", checkQcow2(head)
	case bytes.HasPrefix(head, []byte("KDMV")):
		return "vmdk", nil
	case bytes.HasPrefix(head, []byte("# Disk DescriptorFile")):
		return "", rpc.Errorf(rpc.ErrRefused, "it is a VMDK descriptor whose data lies in other files")
	case len(head) >= 512 && head[510] == 0x55 && head[511] == 0xaa:
		return "raw", nil
	}
	return "", rpc.Errorf(rpc.ErrRefused, "it is neither qcow2 nor VMDK nor a disk with a boot sector")
}

// checkQcow2 refuses an image that is not whole in itself. Such a header can
// name any file of the host as its backing file, whose content the guest would
// then read.
func checkQcow2(head []byte) error {
	if len(head) < 72 {
		return rpc.Errorf(rpc.ErrRefused, "its qcow2 header is cut off")
	}
	version := binary.BigEndian.Uint32(head[4:])
	if version != 2 && version != 3 {
		return rpc.Errorf(rpc.ErrRefused, "its qcow2 version is %d", version)
	}
	if binary.BigEndian.Uint64(head[8:]) != 0 {
		return rpc.Errorf(rpc.ErrRefused, "it is a qcow2 image with a backing file")
	}
	const externalData = 1 << 2 // incompatible feature bit 2, in version 3 at byte 72
	if version == 3 && (len(head) < 80 || binary.BigEndian.Uint64(head[72:])&externalData != 0) {
		return rpc.Errorf(rpc.ErrRefused, "it is a qcow2 image whose data lies in another file")
	}
	return nil
}
