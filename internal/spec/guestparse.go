package spec

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// guestEntry is a guest as it was read, with what the checks across guests need.
type guestEntry struct {
	guest *Guest
	key   *yaml.Node
	path  string
	have  map[string]bool // keys that are stated, here or in defaults, well or not
}

// ownOnly are the keys that make no sense for all guests at once.
var ownOnly = []string{"host", "vmid", "dataDisks", "pci", "usb", "k3s"}

// defaults reads what stands under every guest.
func (p *parser) defaults(top *mapping) guestEntry {
	base := guestEntry{have: map[string]bool{}, path: "defaults", guest: &Guest{
		User: "ubuntu", Clone: CloneAuto, Firmware: FirmwareSeaBIOS, State: StateRunning, OnUnhealthy: PolicyRecreate, Backup: true,
		Timeouts: Timeouts{Boot: 5 * time.Minute, CloudInit: 10 * time.Minute, Join: 10 * time.Minute,
			UnwellAfter: 60 * time.Second, Soak: 30 * time.Second},
	}}
	n := top.value("defaults")
	if n == nil {
		return base
	}
	m := p.mapping(n, "defaults")
	for _, key := range ownOnly {
		if m.has(key) {
			p.fault(m.by[key].key, m.at(key), "belongs to a guest and not to all of them")
		}
	}
	p.shared(m, &base)
	m.end()
	return base
}

// guest reads one guest on top of the defaults.
func (p *parser) guest(e entry, path string, base guestEntry) {
	g := *base.guest
	g.Name, g.Own = e.key.Value, map[string]bool{}
	g.SSHKeys, g.KeyFiles = slices.Clone(g.SSHKeys), slices.Clone(g.KeyFiles)
	g.NICs, g.Tags, g.Verify = slices.Clone(g.NICs), slices.Clone(g.Tags), slices.Clone(g.Verify)
	one := guestEntry{guest: &g, key: e.key, path: path, have: map[string]bool{}}
	for key := range base.have {
		one.have[key] = true
	}
	m := p.mapping(e.value, path)
	for _, key := range m.order {
		one.have[key], g.Own[key] = true, true
		p.nodes[m.at(key)] = m.by[key].value
	}
	if v, ok := m.text("host"); ok {
		g.Host = v
	}
	if v, ok := m.whole("vmid", minVMID, maxVMID); ok {
		g.VMID = v
	}
	p.shared(m, &one)
	p.dataDisks(m, &g)
	g.PCI = p.devices(m, "pci", pciPattern, "a PCI device (as 0000:b3:00.0,pcie=1)")
	g.USB = p.devices(m, "usb", usbPattern, "a USB device (as 18d1:9302,usb3=1)")
	if n := m.value("k3s"); n != nil {
		g.K3s = p.member(n, m.at("k3s"))
	}
	m.end()
	if !one.have["onboot"] {
		g.OnBoot = g.State == StateRunning
	}
	for _, need := range []string{"host", "image", "sshKeys", "networks", "cpus", "memory", "disk"} {
		if !one.have[need] {
			hint := ", and defaults have none"
			if need == "host" {
				hint = ""
			}
			m.missing(e.key, need, hint)
		}
	}
	p.spec.Guests[g.Name] = &g
	p.guests = append(p.guests, one)
}

var (
	userPattern    = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
	machinePattern = regexp.MustCompile(`^(pc|q35|pc-(i440fx|q35)-\d{1,2}\.\d{1,2}(\+pve\d{1,3})?)$`)
	hookPattern    = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9]:snippets/[A-Za-z0-9_.-]+$`)
	tagPattern     = regexp.MustCompile(`^[a-z0-9_][a-z0-9_+.-]*$`)
)

// shared reads the keys that a guest and defaults have in common, on top of
// what the entry already holds.
func (p *parser) shared(m *mapping, e *guestEntry) {
	g := e.guest
	for _, key := range m.order {
		e.have[key] = true
	}
	if v, ok := m.text("image"); ok {
		g.Image = v
	}
	if v, ok := m.text("cdrom"); ok {
		g.CDROM = v
	}
	if v, ok := word(m, "clone", CloneAuto, CloneLinked, CloneFull, CloneOff); ok {
		g.Clone = v
	}
	if v, ok := m.text("user"); ok {
		switch {
		case v == "root":
			p.fault(m.by["user"].value, m.at("user"), "root cannot log in on cloud images: name a user, who gets sudo")
		case !userPattern.MatchString(v):
			p.fault(m.by["user"].value, m.at("user"), "%s is not a user name", show(v))
		}
		g.User = v
	}
	p.sshKeys(m, g)
	if n := m.value("networks"); n != nil {
		p.nics(n, m.at("networks"), g, m.path == "defaults")
	}
	if v, ok := m.whole("cpus", 1, 4096); ok {
		g.CPUs = v
	}
	if n := m.value("memory"); n != nil {
		if s, ok := p.scalar(n, m.at("memory")); ok {
			v, err := parseMemory(s)
			if err != nil {
				p.fault(n, m.at("memory"), "%s", err)
			}
			g.Memory = v
		}
	}
	if v, ok := m.size("disk", MinDisk); ok {
		g.Disk = v
	}
	if v, ok := word(m, "firmware", FirmwareSeaBIOS, FirmwareOVMF); ok {
		g.Firmware = v
	}
	if v, ok := m.text("machine"); ok {
		if !machinePattern.MatchString(v) {
			p.fault(m.by["machine"].value, m.at("machine"), "%s is not a machine type (q35, pc or as pc-q35-9.2)", show(v))
		}
		g.Machine = v
	}
	if v, ok := m.text("hookscript"); ok {
		if !hookPattern.MatchString(v) {
			p.fault(m.by["hookscript"].value, m.at("hookscript"), "%s is not a snippet (as local:snippets/NAME)", show(v))
		}
		g.HookScript = v
	}
	p.startup(m, g)
	if m.has("tags") {
		g.Tags = p.tags(m)
	}
	if m.has("verify") {
		g.Verify, _ = m.texts("verify")
	}
	if v, ok := m.boolean("onboot"); ok {
		g.OnBoot = v
	}
	if v, ok := word(m, "backup", "include", "exclude"); ok {
		g.Backup = v == "include"
	}
	if v, ok := word(m, "state", StateRunning, StateStopped); ok {
		g.State = v
	}
	if v, ok := word(m, "onUnhealthy", PolicyRecreate, PolicyRestart, PolicyReport); ok {
		g.OnUnhealthy = v
	}
	if n := m.value("timeouts"); n != nil {
		t := p.mapping(n, m.at("timeouts"))
		t.wait("boot", &g.Timeouts.Boot, false)
		t.wait("cloudInit", &g.Timeouts.CloudInit, false)
		t.wait("join", &g.Timeouts.Join, false)
		t.wait("unwellAfter", &g.Timeouts.UnwellAfter, false)
		t.wait("soak", &g.Timeouts.Soak, true)
		t.end()
	}
}

func (p *parser) startup(m *mapping, g *Guest) {
	n := m.value("startup")
	if n == nil {
		return
	}
	s := p.mapping(n, m.at("startup"))
	read := func(key string, most int, into **int) {
		if v, ok := s.whole(key, 0, most); ok {
			*into = &v
		}
	}
	read("order", 100000, &g.Startup.Order)
	read("up", 86400, &g.Startup.Up)
	read("down", 86400, &g.Startup.Down)
	s.end()
}

func (p *parser) tags(m *mapping) []string {
	all, nodes := m.texts("tags")
	var tags []string
	for i, tag := range all {
		lower := strings.ToLower(tag) // Proxmox compares tags without case
		switch {
		case !tagPattern.MatchString(lower):
			p.fault(nodes[i], m.at("tags"), "%s is not a tag (letters, digits, _ + . and -)", show(tag))
		case slices.Contains(tags, lower):
			p.fault(nodes[i], m.at("tags"), "%s is there twice", show(tag))
		default:
			tags = append(tags, lower)
		}
	}
	slices.Sort(tags)
	return tags
}

// nics reads a list whose entries are names of networks or mappings.
func (p *parser) nics(n *yaml.Node, path string, g *Guest, defaults bool) {
	g.NICs = nil
	items := p.list(n, path)
	if n.Kind == yaml.SequenceNode && len(items) == 0 {
		p.fault(n, path, "is empty: a guest without a network cannot be reached")
	}
	for i, item := range items {
		at := index(path, i)
		p.nodes[at] = item
		if item.Kind != yaml.MappingNode {
			if s, ok := p.text(item, at); ok {
				g.NICs = append(g.NICs, NIC{Network: s})
			}
			continue
		}
		m := p.mapping(item, at)
		var nic NIC
		if v, ok := m.text("network"); ok {
			nic.Network = v
		} else if !m.has("network") {
			m.missing(item, "network", "")
		}
		if n := m.value("ip"); n != nil {
			p.nodes[m.at("ip")] = n
			nic.Address = p.nicAddress(n, m.at("ip"), nic.Network)
		}
		if n := m.value("mac"); n != nil {
			p.nodes[m.at("mac")] = n
			nic.MAC = p.mac(n, m.at("mac"))
		}
		for _, key := range []string{"ip", "mac"} {
			if defaults && m.has(key) {
				p.fault(m.by[key].key, m.at(key), "belongs to a guest and not to all of them")
			}
		}
		m.end()
		g.NICs = append(g.NICs, nic)
	}
}

// nicAddress reads 192.168.4.212/24, the address alone, or dhcp. The mask must
// be the subnet's: with another one the guest would look for its neighbours at
// the gateway.
func (p *parser) nicAddress(n *yaml.Node, path, network string) netip.Prefix {
	s, ok := p.scalar(n, path)
	if !ok || s == "dhcp" {
		return netip.Prefix{}
	}
	var subnet netip.Prefix
	var gateway netip.Addr
	if known := p.spec.Networks[network]; known != nil {
		subnet, gateway = known.Subnet, known.Gateway
	}
	prefix, err := netip.ParsePrefix(s)
	if err != nil {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			p.fault(n, path, "%s is neither an address (as 192.168.4.212/24) nor dhcp", show(s))
			return netip.Prefix{}
		}
		if !subnet.IsValid() {
			return netip.Prefix{}
		}
		prefix = netip.PrefixFrom(a, subnet.Bits())
	}
	if !subnet.IsValid() {
		return prefix // an unknown network or subnet is a fault already
	}
	switch reason := unusable(subnet, prefix.Addr()); {
	case reason != "":
		p.fault(n, path, "%s %s", prefix.Addr(), reason)
	case prefix.Addr() == gateway:
		p.fault(n, path, "%s is the gateway of %s", prefix.Addr(), network)
	case prefix.Bits() != subnet.Bits():
		p.fault(n, path, "%s has another mask than the subnet %s", prefix, subnet)
	default:
		return prefix
	}
	return netip.Prefix{}
}

var macPattern = regexp.MustCompile(`^[0-9A-F]{2}(:[0-9A-F]{2}){5}$`)

func (p *parser) mac(n *yaml.Node, path string) string {
	// Not text: 52:54:00:12:34:56 without letters may be a number to YAML.
	s, ok := p.scalar(n, path)
	if !ok {
		return ""
	}
	mac := strings.ToUpper(strings.ReplaceAll(s, "-", ":"))
	switch {
	case !macPattern.MatchString(mac):
		p.fault(n, path, "%s is not a MAC (as BC:24:11:00:00:01)", show(s))
	case strings.IndexByte("13579BDF", mac[1]) >= 0:
		p.fault(n, path, "%s is a multicast MAC: the second digit must be even", show(s))
	case mac == "00:00:00:00:00:00":
		p.fault(n, path, "%s is nobody's MAC", show(s))
	default:
		return mac
	}
	return ""
}
