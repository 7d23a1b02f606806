package image

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"strings"

	"github.com/homeiac/homelab/internal/rpc"
)

// whole are the kinds of VMDK that lie in one file; all others name others.
var whole = []string{"monolithicsparse", "streamoptimized"}

// readVMDK reads the header of a sparse extent and the description in it, which
// can name any file of the host as an extent or a parent.
func readVMDK(head []byte) (Head, error) {
	switch {
	case !bytes.HasPrefix(head, []byte("KDMV")):
		return Head{}, rpc.Errorf(rpc.ErrRefused, "it is a VMDK whose data lies in other files")
	case len(head) < 79:
		return Head{}, rpc.Errorf(rpc.ErrRefused, "its VMDK header is cut off")
	}
	const sector = 512
	capacity := binary.LittleEndian.Uint64(head[12:])
	offset, size := binary.LittleEndian.Uint64(head[28:]), binary.LittleEndian.Uint64(head[36:])
	if capacity > 1<<50 {
		return Head{}, rpc.Errorf(rpc.ErrRefused, "its VMDK header says that the disk has %d sectors", capacity)
	}
	// QEMU then takes all from the description on for a list of files, up to 1 MiB and
	// by rules of its own (block/vmdk.c, vmdk_open_vmdk4).
	if capacity == 0 {
		return Head{}, rpc.Errorf(rpc.ErrRefused, "it is a VMDK without a size, whose data lies in other files")
	}
	if offset == 0 || size == 0 {
		return Head{}, rpc.Errorf(rpc.ErrRefused, "it is one of several files of a VMDK")
	}
	if offset > headBytes/sector || size > headBytes/sector || (offset+size)*sector > uint64(len(head)) {
		return Head{}, rpc.Errorf(rpc.ErrRefused, "the description in its VMDK does not lie in its first %d bytes", headBytes)
	}
	if err := checkDescription(head[offset*sector : (offset+size)*sector]); err != nil {
		return Head{}, err
	}
	if namesParent(head[sector:]) {
		return Head{}, errParent
	}
	return Head{Format: formatVMDK, VirtualBytes: int64(capacity) * sector}, nil
}

var errParent = rpc.Errorf(rpc.ErrRefused, "it is a VMDK that stands on another (its parent)")

// namesParent says whether QEMU would find a parent in what begins with the second
// sector. It looks there, in twenty sectors, wherever the header says that the
// description is, and for the word alone, in a comment too (vmdk_parent_open).
func namesParent(text []byte) bool {
	text, _, _ = bytes.Cut(text[:min(len(text), 20*512)], []byte{0})
	return bytes.Contains(text, []byte("parentFileNameHint"))
}

// checkDescription refuses a description that names another file than its own.
func checkDescription(text []byte) error {
	text, _, _ = bytes.Cut(text, []byte{0})
	extents, kind := 0, ""
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, headBytes+1)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if isExtent(line) {
			extents++
			continue
		}
		key, value, _ := strings.Cut(line, "=")
		value = strings.ToLower(strings.Trim(strings.TrimSpace(value), `"`))
		switch strings.ToLower(strings.TrimSpace(key)) {
		case "createtype":
			kind = value
		case "parentcid":
			if value != "ffffffff" {
				return errParent
			}
		case "parentfilenamehint":
			return errParent
		}
	}
	switch {
	case lines.Err() != nil:
		return rpc.Errorf(rpc.ErrRefused, "the description in its VMDK cannot be read")
	case kind != whole[0] && kind != whole[1]:
		return rpc.Errorf(rpc.ErrRefused, "it is a VMDK of type %.40q, whose data lies in other files", kind)
	case extents != 1:
		return rpc.Errorf(rpc.ErrRefused, "it is a VMDK that names %d files", extents)
	}
	return nil
}

// isExtent says whether a line is like: RW 83886080 SPARSE "disk.vmdk".
func isExtent(line string) bool {
	first, _, _ := strings.Cut(strings.ReplaceAll(line, "\t", " "), " ")
	switch strings.ToUpper(first) {
	case "RW", "RDONLY", "NOACCESS":
		return true
	}
	return false
}
