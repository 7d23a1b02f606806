package spec

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/homeiac/homelab/internal/k3s"
)

// A Guest is a VM with the defaults merged under its own entries.
type Guest struct {
	Name string
	Host string
	VMID int // 0 when not named: the planner takes one of Spec.VMIDs

	Image    string // key of Spec.Images, of type disk
	Clone    Clone  // how its system disk comes to be
	CDROM    string // key of Spec.Images, of type iso; "" for an empty drive
	User     string
	SSHKeys  []string // public keys in authorized_keys form
	KeyFiles []string // sshKeys entries that are still paths: see InlineFiles
	NICs     []NIC    // at least one; the first is the node's address

	CPUs      int
	Memory    Memory
	Disk      int64 // system disk, bytes, whole MiB
	DataDisks []DataDisk
	Firmware  Firmware
	Machine   string   // as qm takes it: q35, pc, pc-q35-9.0; "" for Proxmox's own default
	PCI       []string // as qm's hostpciN takes it: 0000:b3:00.0,pcie=1
	USB       []string // as qm's usbN takes it without host=: 18d1:9302,usb3=1

	HookScript  string // volume id, "" for none
	Startup     Startup
	Tags        []string // lower case, sorted
	Verify      []string // shell commands that must succeed in the guest
	OnBoot      bool
	Backup      bool // false: backup=0 on its disks
	State       State
	OnUnhealthy Policy
	Timeouts    Timeouts
	K3s         *Member // nil when it is not a member

	// Own holds the keys that stand under the guest itself (merge keys
	// included) and not only under defaults: Own["onUnhealthy"].
	Own map[string]bool
}

// A NIC is one network interface of a guest.
type NIC struct {
	Network string
	Address netip.Prefix // zero: DHCP. The bits are the subnet's
	MAC     string       // upper case, colons; "" when not stated
}

// Memory is an amount or a share, exactly one of which is set.
type Memory struct {
	Bytes   int64 // whole MiB
	Percent int   // 1-100, of the host's total minus reserve minus the other guests, at creation
}

// A DataDisk outlives its guest.
type DataDisk struct {
	Slot    string // scsi1 to scsi30
	Storage string // kind: key of Host.Storages
	Size    int64  // bytes, whole MiB
}

// Startup is the place of a guest in its host's start order; nil is not stated.
type Startup struct {
	Order *int
	Up    *int // seconds
	Down  *int // seconds
}

// A Member is a guest's part in the cluster.
type Member struct {
	Role   Role
	Name   string // node name; "" means the guest's name, see Guest.NodeName
	Labels map[string]string
}

// Role is the role of a member.
type Role = k3s.Role

// The roles.
const (
	RoleServer = k3s.Server
	RoleAgent  = k3s.Agent
)

// Clone is how a guest's system disk comes to be. The default is CloneAuto.
type Clone string

// The ways. CloneAuto is linked where at least two guests of an image are wanted
// on a host and its storage can, else off.
const (
	CloneAuto   Clone = "auto"
	CloneLinked Clone = "linked" // stands on a template's disk
	CloneFull   Clone = "full"   // a copy of a template's disk
	CloneOff    Clone = "off"    // the image is imported
)

// Firmware of a guest. The default is FirmwareSeaBIOS.
type Firmware string

// The firmwares. OVMF brings an EFI disk.
const (
	FirmwareSeaBIOS Firmware = "seabios"
	FirmwareOVMF    Firmware = "ovmf"
)

// State is what a guest is meant to be. The default is StateRunning.
type State string

// The states. StateStopped is a cold standby: made, not started, not a member.
const (
	StateRunning State = "running"
	StateStopped State = "stopped"
)

// Policy is what may be done to an unwell guest. The default is
// PolicyRecreate; a guest that was adopted is only reported unless its own entry
// says otherwise.
type Policy string

// The policies.
const (
	PolicyRecreate Policy = "recreate"
	PolicyRestart  Policy = "restart"
	PolicyReport   Policy = "report"
)

// NodeName is the guest's name in the cluster and its hostname.
func (g *Guest) NodeName() string {
	if g.K3s != nil && g.K3s.Name != "" {
		return g.K3s.Name
	}
	return g.Name
}

// IsMember says whether the guest is meant to be in the cluster; a standby is not.
func (g *Guest) IsMember() bool { return g.K3s != nil && !g.Standby() }

// IsServer says whether the guest's role is server, standby or not.
func (g *Guest) IsServer() bool { return g.K3s != nil && g.K3s.Role == RoleServer }

// IsAgent says whether the guest's role is agent, standby or not.
func (g *Guest) IsAgent() bool { return g.K3s != nil && g.K3s.Role == RoleAgent }

// Standby says whether the guest is a cold standby, meant to be stopped.
func (g *Guest) Standby() bool { return g.State == StateStopped }

// LabelList is the member's labels as key=value, sorted.
func (m *Member) LabelList() []string {
	list := make([]string, 0, len(m.Labels))
	for _, k := range slices.Sorted(maps.Keys(m.Labels)) {
		list = append(list, k+"="+m.Labels[k])
	}
	return list
}

// String is the memory as the Spec writes it.
func (m Memory) String() string {
	if m.Percent > 0 {
		return fmt.Sprintf("%d%%", m.Percent)
	}
	return FormatSize(m.Bytes)
}

// String is what qm's --startup takes, "" when nothing is stated.
func (s Startup) String() string {
	var parts []string
	for _, p := range []struct {
		name  string
		value *int
	}{{"order", s.Order}, {"up", s.Up}, {"down", s.Down}} {
		if p.value != nil {
			parts = append(parts, fmt.Sprintf("%s=%d", p.name, *p.value))
		}
	}
	return strings.Join(parts, ",")
}
