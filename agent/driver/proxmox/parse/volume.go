package parse

import (
	"path"
	"regexp"
	"strconv"
	"strings"
)

var (
	storageName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9\-_.]*$`)
	ownedName   = regexp.MustCompile(`^(?:vm|base|subvol|basevol)-(\d+)-(?:disk-\d+|cloudinit|state-[^/]+)(?:\.(?:raw|qcow2|vmdk|subvol))?$`)
	sizeText    = regexp.MustCompile(`^(\d+(?:\.\d+)?)([KMGT]?)$`)
)

// Storage is the storage of a volume id; empty when the text is no volume id
// ("none", "cdrom", a path).
func Storage(volid string) string {
	storage, name, ok := strings.Cut(volid, ":")
	if !ok || name == "" || !storageName.MatchString(storage) {
		return ""
	}
	return storage
}

// Owner is the VMID in a volume's own name (local:base-9-disk-0/vm-201-disk-0 is
// 201's); 0 when it has none, as ISO files.
func Owner(volid string) int32 {
	m := ownedName.FindStringSubmatch(path.Base(strings.TrimPrefix(volid, Storage(volid)+":")))
	if m == nil {
		return 0
	}
	n, err := strconv.ParseInt(m[1], 10, 32)
	if err != nil {
		return 0
	}
	return int32(n)
}

// Base is the volume that a linked clone stands on, as the last part of its name
// (base-9-disk-0.raw); empty when it is no linked clone.
func Base(volid string) string {
	for _, part := range strings.Split(strings.TrimPrefix(volid, Storage(volid)+":"), "/") {
		if strings.HasPrefix(part, "base-") && part != path.Base(volid) {
			return part
		}
	}
	return ""
}

// BaseVolume is the id of the volume that a linked clone stands on; empty when the
// name tells of none.
func BaseVolume(volid string) string {
	base := Base(volid)
	if base == "" {
		return ""
	}
	before, _, _ := strings.Cut(volid, base+"/")
	return before + base
}

// ISO tells whether a volume is an ISO file: nobody's disk, and many may have it.
func ISO(volid string) bool {
	storage := Storage(volid)
	return storage != "" && strings.HasPrefix(strings.TrimPrefix(volid, storage+":"), "iso/")
}

// Size reads a size as Proxmox writes it (98K, 64M, 1G, 2T, or bytes).
func Size(s string) (bytes int64, ok bool) {
	m := sizeText.FindStringSubmatch(s)
	if m == nil {
		return 0, false
	}
	n, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		return 0, false
	}
	return int64(n * float64(int64(1)<<map[string]int{"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[m[2]])), true
}
