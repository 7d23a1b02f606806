package discover

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/homeiac/homelab/internal/spec"
)

// The forms of what is taken over from a host.
var (
	bridgeForm  = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]{0,14}$`)
	storageForm = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]{0,60}[A-Za-z0-9]$`)
	wordForm    = regexp.MustCompile(`^[a-z0-9]{1,32}$`)
	versionForm = regexp.MustCompile(`^[0-9][0-9A-Za-z.~-]{0,31}$`)
	nameForm    = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)
	macForm     = regexp.MustCompile(`^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$`)
	vlanForm    = regexp.MustCompile(`^(.+)\.([1-9][0-9]{0,3})$`)
)

// folders are the types of storage that keep files in a directory.
var folders = []string{"dir", "nfs", "cifs", "cephfs", "glusterfs", "btrfs"}

// Plain is a text for people on one line: of at most 80 characters, with a question mark
// for all that is not printable ASCII. It can end no line, and no comment.
func Plain(s string) string {
	const longest = 80
	var b strings.Builder
	for _, r := range s {
		if b.Len() == longest {
			return b.String() + "..."
		}
		if r < ' ' || r > '~' {
			r = '?'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// number is a number of Perl's JSON, which may be in quotes, a boolean or null.
type number int64

func (n *number) UnmarshalJSON(data []byte) error {
	text := strings.Trim(string(data), `"`)
	*n = 0 // what is none, or too large to mean anything
	if v, err := strconv.ParseInt(text, 10, 64); err == nil {
		*n = number(v)
	} else if v, err := strconv.ParseFloat(text, 64); err == nil && v >= 0 && v <= 1<<53 {
		*n = number(v)
	} else if text == "true" {
		*n = 1
	}
	return nil
}

// upTo is n, or 0 when it is less than 1 or more than that.
func (n number) upTo(most int64) int64 {
	if n < 1 || int64(n) > most {
		return 0
	}
	return int64(n)
}

const mostBytes = 1 << 50

// decode reads the output of a command.
func (o Outputs) decode(argv []string, into any) error {
	data, ok := o[line(argv)]
	if !ok {
		return fmt.Errorf("%s: it says nothing", line(argv))
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s: it says no JSON that is understood: %s", line(argv), Plain(err.Error()))
	}
	return nil
}

// resource is a guest as the whole cluster knows it.
type resource struct {
	VMID     number `json:"vmid"`
	Type     string `json:"type"`
	Node     string `json:"node"`
	Name     string `json:"name"`
	Status   string `json:"status"`
	Template number `json:"template"`
}

const (
	kindVM        = "qemu"
	kindContainer = "lxc"
)

func (r resource) file() []string {
	if r.Type == kindContainer {
		return guestFile("lxc", int(r.VMID))
	}
	return guestFile("qemu-server", int(r.VMID))
}

// guests are this node's, each once, by VMID, and the VMIDs of all.
func (o Outputs) guests(node string) (own []resource, taken []int, err error) {
	var all []resource
	if err := o.decode(resources, &all); err != nil {
		return nil, nil, err
	}
	seen := map[number]bool{}
	for _, r := range all {
		if r.VMID < 100 || r.VMID > 999999999 || seen[r.VMID] || r.Type != kindVM && r.Type != kindContainer {
			continue
		}
		seen[r.VMID] = true
		taken = append(taken, int(r.VMID))
		if r.Node == node {
			own = append(own, r)
		}
	}
	if len(own) > mostGuests {
		return nil, nil, fmt.Errorf("it says that it has %d guests, more than are looked at (%d)", len(own), mostGuests)
	}
	slices.SortFunc(own, func(a, b resource) int { return cmp.Compare(a.VMID, b.VMID) })
	slices.Sort(taken)
	return own, taken, nil
}

// files are the commands that read the guests' configurations.
func (o Outputs) files() (argvs [][]string, err error) {
	h := &Host{}
	if err := o.members(h); err != nil {
		return nil, err
	}
	own, _, err := o.guests(h.Node)
	for _, r := range own {
		argvs = append(argvs, r.file())
	}
	return argvs, err
}

// Read makes a Host of what its programs said.
func Read(o Outputs) (*Host, error) {
	h := &Host{}
	var about struct {
		Version string `json:"version"`
	}
	if err := o.decode(version, &about); err != nil {
		return nil, err
	}
	if h.Version = about.Version; !versionForm.MatchString(h.Version) {
		return nil, errors.New("it is no Proxmox VE host: its pvesh names no version")
	}
	for _, read := range []func(*Host) error{o.members, o.size, o.storages, o.networks, o.readGuests} {
		if err := read(h); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// members reads who the host is.
func (o Outputs) members(h *Host) error {
	var file struct {
		NodeName string `json:"nodename"`
		Cluster  *struct {
			Name string `json:"name"`
		} `json:"cluster"`
		NodeList map[string]struct {
			IP string `json:"ip"`
		} `json:"nodelist"`
	}
	if err := o.decode(members, &file); err != nil {
		return err
	}
	h.Node, h.Name = file.NodeName, strings.ToLower(file.NodeName)
	if !spec.IsName(h.Name) {
		return fmt.Errorf("its node is called %q, which is no name for a host", Plain(h.Node))
	}
	if file.Cluster == nil {
		return nil
	}
	h.Cluster = Plain(file.Cluster.Name)
	for name, n := range file.NodeList {
		address, _ := netip.ParseAddr(n.IP)
		if address.Zone() != "" || !usual(address) {
			address = netip.Addr{}
		}
		switch {
		case name == h.Node:
			h.ClusterAddress = address
		case !nameForm.MatchString(name):
			h.Odd = append(h.Odd, fmt.Sprintf("its cluster has a node %q, which is no name", Plain(name)))
		default:
			h.Others = append(h.Others, Node{Name: name, Address: address})
		}
	}
	slices.SortFunc(h.Others, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	slices.Sort(h.Odd)
	return nil
}

func (o Outputs) size(h *Host) error {
	var s struct {
		CPU struct {
			CPUs number `json:"cpus"`
		} `json:"cpuinfo"`
		Memory struct {
			Total number `json:"total"`
		} `json:"memory"`
	}
	if err := o.decode(status, &s); err != nil {
		return err
	}
	h.CPUs, h.Memory = int(s.CPU.CPUs.upTo(4096)), s.Memory.Total.upTo(mostBytes)
	return nil
}

func (o Outputs) storages(h *Host) error {
	var all []struct {
		Storage string  `json:"storage"`
		Type    string  `json:"type"`
		Content string  `json:"content"`
		Active  number  `json:"active"`
		Enabled *number `json:"enabled"`
		Avail   number  `json:"avail"`
	}
	if err := o.decode(storage, &all); err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, s := range all {
		switch {
		case !storageForm.MatchString(s.Storage) || !wordForm.MatchString(s.Type):
			h.Odd = append(h.Odd, fmt.Sprintf("storage %q (%s) has no name for a Spec", Plain(s.Storage), Plain(s.Type)))
			continue
		case seen[s.Storage] || s.Enabled != nil && *s.Enabled == 0:
			continue
		}
		seen[s.Storage] = true
		one := Storage{
			Name: s.Storage, Type: s.Type, Active: s.Active == 1, Free: s.Avail.upTo(mostBytes),
			Folder: slices.Contains(folders, s.Type),
		}
		for c := range strings.SplitSeq(s.Content, ",") {
			if c = strings.TrimSpace(c); wordForm.MatchString(c) {
				one.Content = append(one.Content, c)
			}
		}
		slices.Sort(one.Content)
		one.Content = slices.Compact(one.Content)
		h.Storages = append(h.Storages, one)
	}
	slices.SortFunc(h.Storages, func(a, b Storage) int { return strings.Compare(a.Name, b.Name) })
	return nil
}
