// Package parse reads what Proxmox VE writes: configuration files, status files
// and the outputs of its programs. It is pure: texts in, values out. Where the
// texts come from and what follows from them is left to package proxmox.
//
// The formats are those of PVE 8 and 9; the tests hold them against transcripts of
// the real programs.
package parse

import (
	"crypto/sha1"
	"encoding/hex"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// Config is one VM's configuration file (qemu-server/N.conf).
type Config struct {
	// Main holds what is in force.
	Main Section
	// Pending holds what waits for the next cold start, its "delete" key too; it
	// has no keys when nothing waits.
	Pending Section
	// Snapshots are the snapshots' whole configurations, in the file's order.
	Snapshots []Section
	// Digest is the file's SHA-1 in hex, as qm's --digest takes it.
	Digest string
	// odd: there is more in the file than was read of it.
	odd bool
}

// Section is one part of the file.
type Section struct {
	// Name is the text in brackets; empty for the first part.
	Name string
	// Keys holds the settings; a line that is none is dropped, as Proxmox does at
	// its next write.
	Keys map[string]string
	// Description is decoded, without the last line's end.
	Description string
}

var (
	sectionLine = regexp.MustCompile(`^\[([^\]]+)\]\s*$`)
	settingLine = regexp.MustCompile(`^([a-z][a-z_\-]*\d*):\s*(.*?)\s*$`)
	driveKey    = regexp.MustCompile(`^(ide|sata|scsi|virtio|efidisk|tpmstate|unused)\d+$`)
	netKey      = regexp.MustCompile(`^net(\d+)$`)
	macValue    = regexp.MustCompile(`^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$`)
	encoded     = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)
	markText    = regexp.MustCompile(`(?:^|\s)(hl1:\S+)`)
)

// VM reads a VM's configuration file. Any text is one; what cannot be read of it
// is left out.
func VM(text []byte) *Config {
	sum := sha1.Sum(text)
	c := &Config{Digest: hex.EncodeToString(sum[:]), Main: Section{Keys: map[string]string{}}}
	c.Pending = Section{Name: "PENDING", Keys: map[string]string{}}
	cloudinit := Section{Keys: map[string]string{}} // what the last-made ISO holds: of no interest
	section := &c.Main
	var described []string
	close := func() {
		section.Description = strings.Join(described, "\n")
		described = nil
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\r\n")
		if m := sectionLine.FindStringSubmatch(line); m != nil {
			close()
			switch name := m[1]; {
			case strings.EqualFold(name, "PENDING"):
				section = &c.Pending
			case strings.HasPrefix(name, "special:"):
				section = &cloudinit
			default:
				c.Snapshots = append(c.Snapshots, Section{Name: name, Keys: map[string]string{}})
				section = &c.Snapshots[len(c.Snapshots)-1]
			}
			continue
		}
		if comment, ok := strings.CutPrefix(line, "#"); ok {
			described = append(described, Decode(comment))
			continue
		}
		if m := settingLine.FindStringSubmatch(line); m != nil {
			section.Keys[m[1]] = m[2]
		} else if strings.TrimSpace(line) != "" {
			c.odd = true
		}
	}
	close()
	c.odd = c.odd || len(cloudinit.Keys) > 0
	return c
}

// Decode undoes Proxmox's percent-encoding of a description's line. Text that is
// not encoded stays as it is.
func Decode(s string) string {
	return encoded.ReplaceAllStringFunc(s, func(code string) string {
		b, _ := hex.DecodeString(code[1:]) // it is two hex digits
		return string(b)
	})
}

// Options reads Proxmox's comma-separated values: "local:x,size=4G". A first part
// without "=" gets the key def.
func Options(value, def string) map[string]string {
	m := map[string]string{}
	for i, part := range strings.Split(value, ",") {
		k, v, ok := strings.Cut(part, "=")
		switch {
		case ok:
			m[k] = v
		case i == 0 && part != "":
			m[def] = part
		}
	}
	return m
}

// HalfBuilt tells whether there is nothing but the lock of an unfinished create or
// destroy (which keeps the VMID taken until its last step), or nothing at all, which
// is what unlocking one leaves. A file that is damaged is not nothing.
func (c *Config) HalfBuilt() bool {
	if c.odd || len(c.Snapshots) > 0 || len(c.Pending.Keys) > 0 || c.Main.Description != "" {
		return false
	}
	lock := c.Main.Keys["lock"]
	return len(c.Main.Keys) == 0 || len(c.Main.Keys) == 1 && (lock == "create" || lock == "destroyed")
}

// cloneBegun is the description that a clone has until its settings are copied
// (PVE/API2/Qemu.pm).
const cloneBegun = "qmclone temporary file"

// CloneBegun tells whether there is nothing but what qm clone writes first, or what
// unlocking it leaves.
func (c *Config) CloneBegun() bool {
	if c.odd || len(c.Snapshots) > 0 || len(c.Pending.Keys) > 0 || strings.TrimSpace(c.Main.Description) != cloneBegun {
		return false
	}
	return len(c.Main.Keys) == 0 || len(c.Main.Keys) == 1 && c.Lock() == "clone"
}

// Mark is the first mark in the description; empty when there is none.
func (c *Config) Mark() string {
	if m := markText.FindStringSubmatch(c.Main.Description); m != nil {
		return m[1]
	}
	return ""
}

// Marks are all marks in the description.
func (c *Config) Marks() []string {
	var marks []string
	for word := range strings.FieldsSeq(c.Main.Description) {
		if strings.HasPrefix(word, "hl1:") && word != "hl1:" {
			marks = append(marks, word)
		}
	}
	return marks
}

// UUID is the smbios1 uuid in lower case; empty when there is none.
func (c *Config) UUID() string {
	return strings.ToLower(Options(c.Main.Keys["smbios1"], "uuid")["uuid"])
}

// Name is the VM's name; empty when it has none.
func (c *Config) Name() string { return c.Main.Keys["name"] }

// Lock is the configuration's lock; empty is none.
func (c *Config) Lock() string { return c.Main.Keys["lock"] }

// Template tells whether it is a template.
func (c *Config) Template() bool { return truth(c.Main.Keys["template"]) }

// Protection tells whether Proxmox refuses to destroy it.
func (c *Config) Protection() bool { return truth(c.Main.Keys["protection"]) }

// OnBoot tells whether it starts with its host.
func (c *Config) OnBoot() bool { return truth(c.Main.Keys["onboot"]) }

// Agent tells whether the guest agent's channel is configured.
func (c *Config) Agent() bool { return truth(Options(c.Main.Keys["agent"], "enabled")["enabled"]) }

// MemoryBytes is the configured memory; Proxmox's default is 512 MiB.
func (c *Config) MemoryBytes() int64 {
	return mebibytes(Options(c.Main.Keys["memory"], "current")["current"], 512)
}

// CPUs is the number of virtual CPUs: vcpus, or cores times sockets.
func (c *Config) CPUs() int32 {
	if n := number(c.Main.Keys["vcpus"], 0); n > 0 {
		return n
	}
	return number(c.Main.Keys["cores"], 1) * number(c.Main.Keys["sockets"], 1)
}

// Tags are the tags, sorted.
func (c *Config) Tags() []string {
	tags := strings.FieldsFunc(c.Main.Keys["tags"], func(r rune) bool { return strings.ContainsRune(";, ", r) })
	slices.Sort(tags)
	return tags
}

// SnapshotNames are the snapshots' names, in the file's order.
func (c *Config) SnapshotNames() []string {
	var names []string
	for _, s := range c.Snapshots {
		names = append(names, s.Name)
	}
	return names
}

// Drive is one disk, drive or unused volume of a VM.
type Drive struct {
	// Slot is the key: scsi0, ide2, unused0, efidisk0.
	Slot string
	// Volid is the volume (local:201/vm-201-disk-0.raw), "none", "cdrom" or a path.
	Volid string
	// SizeBytes is the size as written; 0 when none is written.
	SizeBytes int64
	// CDROM tells that it is read as a CD: an ISO or the cloud-init volume.
	CDROM bool
}

// Volume tells whether the drive is a volume of a storage.
func (d Drive) Volume() bool { return Storage(d.Volid) != "" }

// Disk tells whether it is attached and holds data: no CD, nothing unused.
func (d Drive) Disk() bool {
	return d.Volume() && !d.CDROM && !strings.HasPrefix(d.Slot, "unused")
}

// Device tells whether the drive is a file or device of the host, by its path.
func (d Drive) Device() bool { return strings.HasPrefix(d.Volid, "/") }

// Drives are the section's drives, by slot.
func (s Section) Drives() []Drive {
	var drives []Drive
	for key, value := range s.Keys {
		if !driveKey.MatchString(key) {
			continue
		}
		o := Options(value, "file")
		size, _ := Size(o["size"])
		drives = append(drives, Drive{Slot: key, Volid: o["file"], SizeBytes: size, CDROM: o["media"] == "cdrom"})
	}
	sort.Slice(drives, func(i, j int) bool { return drives[i].Slot < drives[j].Slot })
	return drives
}

// Drive is the main section's drive at slot.
func (c *Config) Drive(slot string) (Drive, bool) {
	for _, d := range c.Main.Drives() {
		if d.Slot == slot {
			return d, true
		}
	}
	return Drive{}, false
}

// Sections are all parts of the file that may name volumes.
func (c *Config) Sections() []Section {
	return append([]Section{c.Main, c.Pending}, c.Snapshots...)
}

// Paths are the host's files and devices that any part of the file names as drives.
func (c *Config) Paths() []string {
	var paths []string
	for _, s := range c.Sections() {
		for _, d := range s.Drives() {
			if d.Device() {
				paths = append(paths, d.Volid)
			}
		}
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

// Volumes are all volumes that any part of the file names, saved memory states
// too, sorted and once each.
func (c *Config) Volumes() []string {
	var volumes []string
	for _, s := range c.Sections() {
		for _, d := range s.Drives() {
			if d.Volume() {
				volumes = append(volumes, d.Volid)
			}
		}
		if state := s.Keys["vmstate"]; Storage(state) != "" {
			volumes = append(volumes, state)
		}
	}
	slices.Sort(volumes)
	return slices.Compact(volumes)
}

// NIC is one network interface of a VM.
type NIC struct {
	// Index is the number in its key (net0).
	Index int
	// Model is the kind of card (virtio).
	Model string
	// MAC is the hardware address, upper case.
	MAC string
	// Bridge is the host's bridge; empty is none.
	Bridge string
}

// NICs are the network interfaces in their order.
func (c *Config) NICs() []NIC {
	var nics []NIC
	for key, value := range c.Main.Keys {
		m := netKey.FindStringSubmatch(key)
		if m == nil {
			continue
		}
		index, _ := strconv.Atoi(m[1])
		n := NIC{Index: index}
		for k, v := range Options(value, "model") {
			switch {
			case k == "bridge":
				n.Bridge = v
			case k == "model":
				n.Model = v
			case k == "macaddr":
				n.MAC = strings.ToUpper(v)
			case macValue.MatchString(v): // virtio=BC:24:11:...
				n.Model, n.MAC = k, strings.ToUpper(v)
			}
		}
		nics = append(nics, n)
	}
	sort.Slice(nics, func(i, j int) bool { return nics[i].Index < nics[j].Index })
	return nics
}

// truth reads Proxmox's booleans.
func truth(s string) bool {
	switch strings.ToLower(s) {
	case "1", "on", "yes", "true":
		return true
	}
	return false
}

func number(s string, def int32) int32 {
	if n, err := strconv.ParseInt(s, 10, 32); err == nil {
		return int32(n)
	}
	return def
}

func mebibytes(s string, def int64) int64 {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return n << 20
	}
	return def << 20
}

// AtNextStart is the configuration with the values that wait for the next cold
// start in force.
func (c *Config) AtNextStart() *Config {
	next := &Config{Main: Section{Keys: map[string]string{}}, Digest: c.Digest}
	for k, v := range c.Main.Keys {
		next.Main.Keys[k] = v
	}
	for _, k := range c.Deleting() {
		delete(next.Main.Keys, k)
	}
	for k, v := range c.Pending.Keys {
		if k != "delete" {
			next.Main.Keys[k] = v
		}
	}
	return next
}

// Deleting are the keys that are taken away at the next cold start.
func (c *Config) Deleting() []string {
	keys := list(c.Pending.Keys["delete"])
	for i, k := range keys {
		keys[i] = strings.TrimLeft(k, "!")
	}
	return keys
}
