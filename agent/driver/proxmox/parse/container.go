package parse

import (
	"regexp"
	"slices"
	"strings"
)

// Container is what is wanted of a container's configuration (lxc/N.conf).
type Container struct {
	// Name is its hostname.
	Name string
	// MemoryBytes is its limit; Proxmox's default is 512 MiB.
	MemoryBytes int64
	// OnBoot tells whether it starts with its host.
	OnBoot bool
	// Volumes are the volumes it names.
	Volumes []string
	// Paths are the host's folders and devices it names.
	Paths []string
}

var mountKey = regexp.MustCompile(`^(rootfs|mp\d+|unused\d+)$`)

// LXC reads a container's configuration file, whose first part is like a VM's.
func LXC(text []byte) Container {
	c := VM(text)
	ct := Container{Name: c.Main.Keys["hostname"], MemoryBytes: mebibytes(c.Main.Keys["memory"], 512), OnBoot: c.OnBoot()}
	for _, s := range c.Sections() {
		for key, value := range s.Keys {
			if !mountKey.MatchString(key) {
				continue
			}
			switch volid := Options(value, "volume")["volume"]; {
			case Storage(volid) != "":
				ct.Volumes = append(ct.Volumes, volid)
			case strings.HasPrefix(volid, "/"):
				ct.Paths = append(ct.Paths, volid)
			}
		}
	}
	slices.Sort(ct.Volumes)
	ct.Volumes = slices.Compact(ct.Volumes)
	return ct
}
