// Package spec turns homelab.yaml into a Spec: what people want, in Go types,
// with every fault of the file found at once and placed by line and column.
//
// It is pure: it reads no file and asks no host. Whether a bridge, a storage or
// a VMID is really there is for the planner, which compares a Spec with what
// was seen.
package spec

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"go.yaml.in/yaml/v3"
)

// APIVersion is the only apiVersion that Parse accepts.
const APIVersion = "homelab/v1"

// A Spec is one homelab.yaml without faults. Everything in it is to be read
// only: what came from `defaults` may be shared between guests.
type Spec struct {
	File       string // name given to Parse, for messages
	APIVersion string
	Name       string
	Protect    []VMIDRange // VMIDs that nothing may touch, sorted
	VMIDs      VMIDRange   // for guests that name none; zero when not stated
	Templates  VMIDRange   // for templates; DefaultTemplates when not stated
	Heal       Heal
	Networks   map[string]*Network
	Hosts      map[string]*Host
	Images     map[string]*Image
	Guests     map[string]*Guest
	K3s        *K3s // nil when the file has no k3s section

	// Warnings are doubts that forbid nothing: an even number of servers, say.
	Warnings Faults

	root *yaml.Node // the document with its aliases resolved, for Line
}

// Heal says whether the controller may act by itself.
type Heal string

// The values of heal. The default is HealOff.
const (
	HealOff  Heal = "off"
	HealAuto Heal = "auto"
)

// A VMIDRange is First to Last, both included. The zero range holds nothing.
type VMIDRange struct{ First, Last int }

// A Network is a logical network, carried by a bridge of each host.
type Network struct {
	Name    string
	Subnet  netip.Prefix // masked
	Gateway netip.Addr   // zero when not stated
	DNS     []netip.Addr
	VLAN    int // tag 1-4094, 0 for none
	MTU     int // bytes, 0 when not stated
}

// A Host is a Proxmox machine.
type Host struct {
	Name     string
	Address  netip.Addr // zero when not stated
	Enabled  bool
	Bridges  map[string]string // network -> bridge
	Storages map[string]string // kind (disks, images, iso, snippets or one's own) -> Proxmox storage
	Reserve  Reserve
	Limits   Limits
}

// Reserve is what a host keeps for itself.
type Reserve struct {
	Memory int64 // bytes
	CPUs   int
}

// Limits bound each guest of a host.
type Limits struct {
	CPUs   int   // most vCPUs of one guest, 0 for no limit
	Images int64 // bytes a second of images sent, and as many received; 0 for no limit
}

// DefaultTemplates is where templates get their VMIDs from unless the Spec says.
var DefaultTemplates = VMIDRange{First: 9000, Last: 9099}

// An Image is a disk image that guests are made from, or an ISO file. At most one
// of Checksums, SHA256 and SHA512 is set; with none of them the first fetch
// decides what it is.
type Image struct {
	Name      string
	Type      ImageType
	URL       string   // https, http or file
	Mirrors   []string // further addresses of the same file
	Checksums string   // URL of a list of checksums
	SHA256    string   // 64 lower-case hexadecimal digits
	SHA512    string   // 128 lower-case hexadecimal digits
}

// ImageType is what an image is for.
type ImageType string

// The values of an image's type. The default is ImageDisk.
const (
	ImageDisk ImageType = "disk"
	ImageISO  ImageType = "iso"
)

// K3s is the cluster.
type K3s struct {
	Version  string    // as v1.35.0+k3s1
	Existing *Existing // nil unless the cluster was made elsewhere
	Endpoint string    // IP or name of a VIP or load balancer, "" for none
	Source   Source
	// Config goes into config.yaml of every server as it is. A value is a
	// string, a bool or a []string; numbers keep the text they were written in
	// (0644 stays 0644).
	Config map[string]any
}

// Existing is a server of a cluster that was made elsewhere.
type Existing struct {
	User    string
	Address netip.Addr
	Port    int    // 0 when not stated
	HostKey string // authorized_keys form: type and base64
}

// Source says where k3s comes from. Each entry is a URL (https, http, file) or
// an absolute path of a file held by the agents.
type Source struct {
	Script string // install script; https://get.k3s.io unless stated
	Binary string // "" when the script downloads it
	Images string // air-gap images, "" for none
}

// Timeouts of a guest. Soak may be zero, the others are positive.
type Timeouts struct {
	Boot, CloudInit, Join, UnwellAfter, Soak time.Duration
}

// Contains says whether id lies in the range.
func (r VMIDRange) Contains(id int) bool {
	return r.First > 0 && r.First <= id && id <= r.Last
}

// overlaps says whether a VMID lies in both ranges.
func (r VMIDRange) overlaps(o VMIDRange) bool {
	return r.First > 0 && o.First > 0 && r.First <= o.Last && o.First <= r.Last
}

// String is the range as the Spec writes it.
func (r VMIDRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(r.First)
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// Bridge is the host's bridge for a logical network.
func (h *Host) Bridge(network string) (bridge string, ok bool) {
	bridge, ok = h.Bridges[network]
	return bridge, ok
}

// Storage is the Proxmox storage of a host for a kind: disks, images, snippets,
// iso (images unless stated) or a kind of one's own that data disks name.
func (h *Host) Storage(kind string) (storage string, ok bool) {
	storage, ok = h.Storages[kind]
	if !ok && kind == "iso" {
		storage, ok = h.Storages["images"]
	}
	return storage, ok
}

// HostNames are the names of all hosts, disabled ones too, sorted.
func (s *Spec) HostNames() []string { return sortedKeys(s.Hosts) }

// GuestNames are the names of all guests, sorted.
func (s *Spec) GuestNames() []string { return sortedKeys(s.Guests) }

// NetworkNames are the names of all networks, sorted.
func (s *Spec) NetworkNames() []string { return sortedKeys(s.Networks) }

// ImageNames are the names of all images, sorted.
func (s *Spec) ImageNames() []string { return sortedKeys(s.Images) }

// Protected says whether a VMID is in the protect list.
func (s *Spec) Protected(vmid int) bool {
	return slices.ContainsFunc(s.Protect, func(r VMIDRange) bool { return r.Contains(vmid) })
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
