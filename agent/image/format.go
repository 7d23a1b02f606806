package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"

	"github.com/homeiac/homelab/internal/rpc"
)

// headBytes is how much of a file's beginning tells what it is.
const headBytes = 64 << 10

// Formats, as records and protos have them.
const (
	formatQcow2 = "qcow2"
	formatRaw   = "raw"
	formatVMDK  = "vmdk"
	formatISO   = "iso"
)

// Head is what the beginning of a file tells of it.
type Head struct {
	// Format is qcow2, raw, vmdk or iso; of a compressed file that of what is in it,
	// and empty when its first 64 KiB do not tell.
	Format string
	// Compression is gz, xz, zst or bz2, or empty.
	Compression string
	// VirtualBytes is the size of the disk in it, 0 when not known.
	VirtualBytes int64
	// UnpackedBytes is the size of what is in a compressed file, 0 when not known.
	UnpackedBytes int64
}

// archives are beginnings of files that may hold an image but are none, and that
// are not unpacked here.
var archives = []struct {
	at          int
	magic, what string
}{
	{0, "PK\x03\x04", "zip"}, {0, "7z\xbc\xaf", "7z"}, {257, "ustar", "tar"}, {0, "Rar!", "rar"}, {0, "\x04\x22\x4d\x18", "lz4"},
}

// readHead tells what a file is from its first 64 KiB (all of it when it is
// shorter) and its size, 0 when that is not known. It takes any bytes: they come
// from the network. What is no image is Refused.
func readHead(head []byte, size int64, iso bool) (Head, error) {
	head = head[:min(len(head), headBytes)]
	if len(head) == 0 {
		return Head{}, rpc.Errorf(rpc.ErrRefused, "it is empty")
	}
	if isHTML(head) {
		return Head{}, rpc.Errorf(rpc.ErrRefused, "it is an HTML page, not an image")
	}
	kind := compressionOf(head)
	if kind == "" {
		h, err := readPlain(head, size, iso)
		return h, err
	}
	if iso {
		return Head{}, rpc.Errorf(rpc.ErrRefused, "it is compressed (%s), and an ISO file is used as it is: unpack it first", kind)
	}
	h := Head{Compression: kind, UnpackedBytes: unpackedSize(kind, head)}
	inner, err := beginning(kind, bytes.NewReader(head))
	if err != nil {
		return Head{}, err
	}
	if len(inner) < headBytes {
		// The first 64 KiB were packed too well to hold 64 KiB of what is in them: what
		// is inside is judged when all of it is there.
		return h, nil
	}
	in, err := readPlain(inner, h.UnpackedBytes, false)
	if err != nil {
		return Head{}, err
	}
	h.Format, h.VirtualBytes = in.Format, in.VirtualBytes
	return h, nil
}

// readPlain tells the format of a file that is not compressed, from its content
// and never from its name. Proxmox takes whatever it does not know for a raw disk
// and imports an error page or an empty file without a word.
func readPlain(head []byte, size int64, iso bool) (Head, error) {
	if iso {
		return readISO(head, size)
	}
	if kind := compressionOf(head); kind != "" {
		return Head{}, rpc.Errorf(rpc.ErrRefused, "it is compressed twice (%s in it): unpack it first", kind)
	}
	for _, a := range archives {
		if len(head) > a.at && bytes.HasPrefix(head[a.at:], []byte(a.magic)) {
			return Head{}, rpc.Errorf(rpc.ErrRefused, "it is a %s archive, not a disk image: unpack it first", a.what)
		}
	}
	switch {
	case isHTML(head):
		return Head{}, rpc.Errorf(rpc.ErrRefused, "it is an HTML page, not an image")
	case bytes.HasPrefix(head, []byte("QFI\xfb")):
		return readQcow2(head)
	case bytes.HasPrefix(head, []byte("KDMV")), bytes.HasPrefix(head, []byte("COWD")), bytes.HasPrefix(head, []byte("# Disk DescriptorFile")):
		return readVMDK(head)
	case bytes.HasPrefix(head, []byte("conectix")), bytes.HasPrefix(head, []byte("vhdxfile")), bytes.HasPrefix(head, []byte("<<< ")):
		return Head{}, rpc.Errorf(rpc.ErrRefused, "it is a disk of another kind (VHD or VDI): convert it with qemu-img convert -O qcow2 first")
	}
	gpt := at(head, 512, "EFI PART") || at(head, 4096, "EFI PART")
	if !gpt && !at(head, 510, "\x55\xaa") {
		return Head{}, rpc.Errorf(rpc.ErrRefused, "it is neither qcow2 nor VMDK nor a disk with a boot sector (MBR or GPT)")
	}
	return Head{Format: formatRaw, VirtualBytes: max(size, gptSize(head))}, nil
}

// isoMagic is where the first volume descriptor of an ISO 9660 file has its name.
const isoMagic = 32769

func readISO(head []byte, size int64) (Head, error) {
	if !at(head, isoMagic, "CD001") {
		return Head{}, rpc.Errorf(rpc.ErrRefused, "it is no ISO file: nothing of ISO 9660 is where it should be")
	}
	return Head{Format: formatISO, VirtualBytes: size}, nil
}

func at(b []byte, offset int, magic string) bool {
	return len(b) >= offset+len(magic) && string(b[offset:offset+len(magic)]) == magic
}

// gptSize is the size of the disk that a GPT says it stands on, in bytes, 0 when
// there is none: the size of a raw disk that is still packed.
func gptSize(head []byte) int64 {
	for _, sector := range []int64{512, 4096} {
		h := int(sector)
		if !at(head, h, "EFI PART") || len(head) < h+40 {
			continue
		}
		// The backup header lies in the last sector.
		last := binary.LittleEndian.Uint64(head[h+32:])
		if last < 1<<40 {
			return (int64(last) + 1) * sector //nolint:gosec // it is below 2^40
		}
	}
	return 0
}

// isHTML says whether this is the beginning of a web page: mirrors and logins
// answer with one where a file should be.
func isHTML(head []byte) bool {
	start := bytes.TrimLeft(bytes.TrimPrefix(head, []byte("\xef\xbb\xbf")), " \t\r\n")
	start = bytes.ToLower(start[:min(len(start), 16)])
	for _, tag := range []string{"<!doctype", "<html", "<head", "<body", "<?xml", "<!--"} {
		if bytes.HasPrefix(start, []byte(tag)) {
			return true
		}
	}
	return false
}

// readQcow2 refuses an image that is not whole in itself. Such a header can name
// any file of the host as its backing file, whose content the guest would then read.
func readQcow2(head []byte) (Head, error) {
	if len(head) < 72 {
		return Head{}, rpc.Errorf(rpc.ErrRefused, "its qcow2 header is cut off")
	}
	version := binary.BigEndian.Uint32(head[4:])
	if version != 2 && version != 3 {
		return Head{}, rpc.Errorf(rpc.ErrRefused, "its qcow2 version is %d", version)
	}
	if binary.BigEndian.Uint64(head[8:]) != 0 || binary.BigEndian.Uint32(head[16:]) != 0 {
		return Head{}, rpc.Errorf(rpc.ErrRefused, "it is a qcow2 image with a backing file")
	}
	if method := binary.BigEndian.Uint32(head[32:]); method != 0 {
		return Head{}, rpc.Errorf(rpc.ErrRefused, "it is an encrypted qcow2 image (method %d)", method)
	}
	const externalData = 1 << 2 // incompatible feature bit 2, in version 3 at byte 72
	extensions := 72
	if version == 3 {
		if len(head) < 80 || binary.BigEndian.Uint64(head[72:])&externalData != 0 {
			return Head{}, errExternal
		}
		extensions = 104
		if len(head) >= 104 {
			extensions = int(max(104, min(binary.BigEndian.Uint32(head[100:]), headBytes)))
		}
	}
	if err := checkExtensions(head, extensions); err != nil {
		return Head{}, err
	}
	size := binary.BigEndian.Uint64(head[24:])
	if size > 1<<62 {
		return Head{}, rpc.Errorf(rpc.ErrRefused, "its qcow2 header says that the disk has %d bytes", size)
	}
	return Head{Format: formatQcow2, VirtualBytes: int64(size)}, nil
}

var errExternal = rpc.Errorf(rpc.ErrRefused, "it is a qcow2 image whose data lies in another file")

// checkExtensions walks the header extensions, which may name a data file or hold
// a key of LUKS. QEMU keeps them in the first cluster; nobody fills 64 KiB.
func checkExtensions(head []byte, from int) error {
	const dataFile, crypto = 0x44415441, 0x0537be77
	for len(head) >= from+8 {
		kind, size := binary.BigEndian.Uint32(head[from:]), int64(binary.BigEndian.Uint32(head[from+4:]))
		switch kind {
		case 0:
			return nil
		case dataFile:
			return errExternal
		case crypto:
			return rpc.Errorf(rpc.ErrRefused, "it is an encrypted qcow2 image (LUKS)")
		}
		next := int64(from) + 8 + (size+7)/8*8
		if next > headBytes-8 {
			return rpc.Errorf(rpc.ErrRefused, "its qcow2 header is longer than %d bytes", headBytes)
		}
		from = int(next)
	}
	return nil
}

// headOf tells what a whole file is.
func headOf(r io.ReaderAt, size int64, iso bool) (Head, error) {
	buf := make([]byte, headBytes)
	n, err := r.ReadAt(buf, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return Head{}, err
	}
	h, err := readHead(buf[:n], size, iso)
	if err != nil || h.Compression == "" {
		return h, err
	}
	// A compressed file tells only now for certain what is in it.
	inner, err := beginning(h.Compression, io.NewSectionReader(r, 0, size))
	if err != nil {
		return h, err
	}
	if h.UnpackedBytes == 0 {
		h.UnpackedBytes = max(0, trailingSize(h.Compression, r, size))
	}
	if len(inner) == 0 {
		return h, rpc.Errorf(rpc.ErrRefused, "what is in it (%s) is empty or cannot be unpacked", h.Compression)
	}
	in, err := readPlain(inner, h.UnpackedBytes, false)
	if err != nil {
		return h, err
	}
	h.Format, h.VirtualBytes = in.Format, in.VirtualBytes
	return h, nil
}
