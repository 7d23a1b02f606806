package parse

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// StorageConfig is one storage of storage.cfg.
type StorageConfig struct {
	// Name is its id.
	Name string
	// Type is dir, zfspool, lvmthin...
	Type string
	// Path is the folder of a directory storage (or a network one's mount point).
	Path string
	// Pool is a ZFS pool or dataset.
	Pool string
	// VG is a volume group.
	VG string
	// Content are the types it may hold.
	Content []string
	// Nodes are the nodes it is for; empty is all.
	Nodes []string
	// Disabled tells that it is switched off.
	Disabled bool
	// Shared tells that all nodes see the same volumes.
	Shared bool
	// MountPoint tells that Path must be a mount point to be active; it holds the
	// mount point when that is another folder.
	MountPoint string
}

var storageHead = regexp.MustCompile(`^([a-z][a-z0-9\-_]*):\s*(\S+)\s*$`)

// networked are the types that are shared by nature.
var networked = []string{"nfs", "cifs", "cephfs", "rbd", "iscsi", "iscsidirect", "glusterfs", "pbs", "zfs", "esxi"}

// Storages reads storage.cfg.
func Storages(text []byte) []StorageConfig {
	var all []StorageConfig
	var s *StorageConfig
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\r\n")
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if m := storageHead.FindStringSubmatch(line); m != nil && line[0] != ' ' && line[0] != '\t' {
			all = append(all, StorageConfig{Name: m[2], Type: m[1], Shared: slices.Contains(networked, m[1])})
			s = &all[len(all)-1]
			continue
		}
		if s == nil {
			continue
		}
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		value = strings.TrimSpace(value)
		switch key {
		case "path":
			s.Path = value
		case "pool":
			s.Pool = value
		case "vgname":
			s.VG = value
		case "content":
			s.Content = list(value)
		case "nodes":
			s.Nodes = list(value)
		case "disable":
			s.Disabled = value == "" || truth(value)
		case "shared":
			s.Shared = value == "" || truth(value)
		case "is_mountpoint":
			switch {
			case truth(value):
				s.MountPoint = "yes"
			case strings.HasPrefix(value, "/"):
				s.MountPoint = value
			}
		}
	}
	for i := range all {
		// The plugins' defaults, from the source (PVE/Storage/*Plugin.pm).
		if all[i].Content == nil {
			all[i].Content = []string{"images", "rootdir"}
		}
		if all[i].Path == "" && slices.Contains([]string{"nfs", "cifs", "cephfs", "glusterfs"}, all[i].Type) {
			all[i].Path = "/mnt/pve/" + all[i].Name
		}
		if all[i].MountPoint == "yes" {
			all[i].MountPoint = all[i].Path
		}
	}
	if !slices.ContainsFunc(all, func(s StorageConfig) bool { return s.Name == "local" }) {
		// Proxmox adds it when the file does not name it (PVE/Storage/Plugin.pm).
		all = append(all, StorageConfig{
			Name: "local", Type: "dir", Path: "/var/lib/vz", Content: []string{"backup", "images", "iso", "rootdir", "snippets", "vztmpl"},
		})
	}
	return all
}

// For tells whether the storage is enabled for a node.
func (s StorageConfig) For(node string) bool {
	return !s.Disabled && (len(s.Nodes) == 0 || slices.Contains(s.Nodes, node))
}

// Holds tells whether the storage may hold a content type.
func (s StorageConfig) Holds(content string) bool { return slices.Contains(s.Content, content) }

func list(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' || r == ';' })
}

// StorageStatus is one line of pvesm status.
type StorageStatus struct {
	// Name is the storage's id.
	Name string
	// Type is its type.
	Type string
	// Status is active, inactive or disabled.
	Status string
	// TotalBytes, UsedBytes and AvailableBytes are 0 when it is not active.
	TotalBytes, UsedBytes, AvailableBytes int64
}

// PvesmStatus reads the output of pvesm status, whose sizes are in KiB.
func PvesmStatus(out string) []StorageStatus {
	var all []StorageStatus
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) < 6 || f[0] == "Name" && f[1] == "Type" {
			continue
		}
		kib := func(s string) int64 {
			n, _ := strconv.ParseInt(s, 10, 64) // N/A is 0
			return n << 10
		}
		all = append(all, StorageStatus{Name: f[0], Type: f[1], Status: f[2],
			TotalBytes: kib(f[3]), UsedBytes: kib(f[4]), AvailableBytes: kib(f[5])})
	}
	return all
}

// ListedVolume is one line of pvesm list.
type ListedVolume struct {
	// Volid is the volume.
	Volid string
	// Format and Type are raw, qcow2, iso... and images, snippets...
	Format, Type string
	// SizeBytes is its size.
	SizeBytes int64
	// VMID is the owner; 0 when it has none.
	VMID int32
}

// PvesmList reads the output of pvesm list, whose sizes are in bytes.
func PvesmList(out string) []ListedVolume {
	var all []ListedVolume
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) < 4 || f[0] == "Volid" || Storage(f[0]) == "" {
			continue
		}
		v := ListedVolume{Volid: f[0], Format: f[1], Type: f[2]}
		v.SizeBytes, _ = strconv.ParseInt(f[3], 10, 64)
		if len(f) > 4 {
			v.VMID = number(f[4], 0)
		}
		all = append(all, v)
	}
	return all
}
