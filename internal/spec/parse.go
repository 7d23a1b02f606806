package spec

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// The VMIDs that Proxmox accepts.
const (
	minVMID = 100
	maxVMID = 999999999
)

// Parse reads a Spec. name is what messages call the file. Either there are
// faults, all of them and sorted by place, and the Spec is nil; or there are
// none, and the Spec keeps all that is promised of it. Top-level keys that
// begin with x- are left to the author, as a place for anchors.
func Parse(name string, data []byte) (*Spec, Faults) {
	root, faults := document(name, data)
	if len(faults) > 0 {
		faults.sort()
		return nil, faults
	}
	p := &parser{
		reader: &reader{file: name},
		spec: &Spec{
			File: name, Heal: HealOff, Templates: DefaultTemplates, root: root,
			Networks: map[string]*Network{}, Hosts: map[string]*Host{},
			Images: map[string]*Image{}, Guests: map[string]*Guest{},
		},
		nodes: map[string]*yaml.Node{},
	}
	p.top(root)
	p.check()
	if len(p.faults) > 0 {
		p.faults.sort()
		return nil, slices.Compact(p.faults)
	}
	p.warnings.sort()
	p.spec.Warnings = p.warnings
	return p.spec, nil
}

// parser fills a Spec. What is faulty is left out of it; names remembers that
// it was there, so that no second fault follows from the first.
type parser struct {
	*reader
	spec      *Spec
	guests    []guestEntry          // in the order of the file
	nodes     map[string]*yaml.Node // where an item stands, by path, for the checks across items
	templates *yaml.Node            // the range of templates; nil when it is not stated, or faulty
}

func (p *parser) top(root *yaml.Node) {
	m := p.mapping(root, "")
	if v, ok := m.text("apiVersion"); ok && v != APIVersion {
		p.fault(m.by["apiVersion"].value, "apiVersion", "%s is not %s", show(v), APIVersion)
	} else if !m.has("apiVersion") {
		p.fault(root, "", "has no apiVersion (write apiVersion: %s)", APIVersion)
	}
	if n := m.value("name"); n != nil {
		if v, ok := p.text(n, "name"); ok && p.label(n, "name", v) {
			p.spec.Name = v
		}
	} else if !m.has("name") {
		p.fault(root, "", "has no name")
	}
	p.protect(m)
	if n := m.value("vmids"); n != nil {
		if r, ok := p.vmidRange(n, "vmids"); ok {
			p.spec.VMIDs = r
		}
	}
	if n := m.value("templates"); n != nil {
		if r, ok := p.vmidRange(n, "templates"); ok {
			p.spec.Templates, p.templates = r, n
		}
	}
	if v, ok := word(m, "heal", HealOff, HealAuto); ok {
		p.spec.Heal = v
	}
	p.each(m, "networks", p.network)
	p.each(m, "hosts", p.host)
	p.each(m, "images", p.image)
	base := p.defaults(m)
	p.each(m, "guests", func(e entry, path string) { p.guest(e, path, base) })
	if n := m.value("k3s"); n != nil {
		p.k3s(m.by["k3s"].key, n)
	}
	for _, key := range m.order {
		if strings.HasPrefix(key, "x-") {
			m.known = append(m.known, key)
		}
	}
	m.end()
}

// each reads the items of a section, whose keys are names.
func (p *parser) each(m *mapping, section string, read func(entry, string)) {
	n := m.value(section)
	if n == nil {
		return
	}
	items := p.mapping(n, section)
	for _, name := range items.order {
		e, path := items.by[name], join(section, name)
		p.nodes[path] = e.key
		if !p.label(e.key, path, name) {
			continue
		}
		if e.value.Kind == yaml.ScalarNode && e.value.Tag == "!!null" {
			e.value = &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: e.key.Line, Column: e.key.Column}
		}
		read(e, path)
	}
}

var labelPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// IsName says whether a text can be the name of a fleet, a host, a guest, a network or
// an image.
func IsName(s string) bool { return labelPattern.MatchString(s) }

// label checks a DNS label: names of guests become host names, and all names
// stand in paths and step ids, which dots would divide.
func (p *parser) label(n *yaml.Node, path, name string) bool {
	if IsName(name) {
		return true
	}
	p.fault(n, path, "%s is not a name (lower-case letters, digits and inner hyphens, at most 63)", show(name))
	return false
}

func (p *parser) protect(m *mapping) {
	n := m.value("protect")
	if n == nil {
		return
	}
	for i, item := range p.list(n, "protect") {
		if r, ok := p.vmidRange(item, index("protect", i)); ok {
			p.nodes[index("protect", i)] = item
			p.spec.Protect = append(p.spec.Protect, r)
		}
	}
	slices.SortFunc(p.spec.Protect, func(a, b VMIDRange) int { return a.First - b.First })
}

var rangePattern = regexp.MustCompile(`^([1-9]\d{0,9})(?:\s*-\s*([1-9]\d{0,9}))?$`)

// vmidRange reads 116 or 100-103.
func (p *parser) vmidRange(n *yaml.Node, path string) (VMIDRange, bool) {
	s, ok := p.scalar(n, path)
	if !ok {
		return VMIDRange{}, false
	}
	if !rangePattern.MatchString(s) {
		p.fault(n, path, "%s is neither a VMID nor a range (as 200-299)", show(s))
		return VMIDRange{}, false
	}
	r := readRange(s)
	switch {
	case r.First < minVMID || r.Last > maxVMID:
		p.fault(n, path, "%s is outside of %d to %d", show(s), minVMID, maxVMID)
	case r.Last < r.First:
		p.fault(n, path, "%s ends before it begins", show(s))
	default:
		return r, true
	}
	return VMIDRange{}, false
}

// readRange is the range of a text that rangePattern matches, zero of another one.
func readRange(s string) VMIDRange {
	found := rangePattern.FindStringSubmatch(s)
	if found == nil {
		return VMIDRange{}
	}
	first, _ := strconv.Atoi(found[1]) // ten digits
	last := first
	if found[2] != "" {
		last, _ = strconv.Atoi(found[2])
	}
	return VMIDRange{First: first, Last: last}
}

func (p *parser) network(e entry, path string) {
	m := p.mapping(e.value, path)
	net := &Network{Name: e.key.Value}
	p.spec.Networks[net.Name] = net
	if n := m.value("subnet"); n != nil {
		net.Subnet = p.subnet(n, m.at("subnet"))
	} else if !m.has("subnet") {
		m.missing(e.key, "subnet", " (as 192.168.4.0/24)")
	}
	if a, ok := m.address("gateway"); ok {
		net.Gateway = a
		if reason := unusable(net.Subnet, a); reason != "" {
			p.fault(m.by["gateway"].value, m.at("gateway"), "%s %s", a, reason)
		}
	}
	if n := m.value("dns"); n != nil {
		for i, item := range p.list(n, m.at("dns")) {
			if a, ok := p.address(item, index(m.at("dns"), i)); ok {
				net.DNS = append(net.DNS, a)
			}
		}
	}
	if v, ok := m.whole("vlan", 1, 4094); ok {
		net.VLAN = v
	}
	if v, ok := m.whole("mtu", 576, 65520); ok {
		net.MTU = v
		if net.Subnet.IsValid() && net.Subnet.Addr().Is6() && v < 1280 {
			p.fault(m.by["mtu"].value, m.at("mtu"), "%d is less than IPv6 needs (1280)", v)
		}
	}
	m.end()
}

var (
	bridgePattern  = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]{0,14}$`)
	storagePattern = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9]$`)
	kindPattern    = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]{0,62}$`)
)

func (p *parser) host(e entry, path string) {
	m := p.mapping(e.value, path)
	h := &Host{Name: e.key.Value, Enabled: true, Bridges: map[string]string{}, Storages: map[string]string{}}
	p.spec.Hosts[h.Name] = h
	if n := m.value("address"); n != nil {
		p.nodes[m.at("address")] = n
		h.Address, _ = p.address(n, m.at("address"))
	}
	if v, ok := m.boolean("enabled"); ok {
		h.Enabled = v
	}
	if n := m.value("bridges"); n != nil {
		b := p.mapping(n, m.at("bridges"))
		for _, network := range b.order {
			p.nodes[b.at(network)] = b.by[network].key
			h.Bridges[network] = "" // named, whatever is wrong with it
			if v, ok := b.text(network); ok {
				if !bridgePattern.MatchString(v) {
					p.fault(b.by[network].value, b.at(network), "%s is not the name of a bridge (as vmbr0)", show(v))
				}
				h.Bridges[network] = v
			}
		}
	}
	if n := m.value("storage"); n != nil {
		s := p.mapping(n, m.at("storage"))
		for _, k := range s.order {
			h.Storages[k] = ""
			if !kindPattern.MatchString(k) {
				p.fault(s.by[k].key, s.at(k), "%s is not the name of a kind of storage (as disks, images, iso or snippets)", show(k))
			}
			if v, ok := s.text(k); ok {
				if !storagePattern.MatchString(v) {
					p.fault(s.by[k].value, s.at(k), "%s is not the name of a Proxmox storage (as local-zfs)", show(v))
				}
				h.Storages[k] = v
			}
		}
	}
	if n := m.value("reserve"); n != nil {
		r := p.mapping(n, m.at("reserve"))
		h.Reserve.Memory, _ = r.size("memory", 0)
		h.Reserve.CPUs, _ = r.whole("cpus", 0, 4096)
		r.end()
	}
	if n := m.value("limits"); n != nil {
		l := p.mapping(n, m.at("limits"))
		h.Limits.CPUs, _ = l.whole("cpus", 1, 4096)
		h.Limits.Images, _ = l.rate("images")
		l.end()
	}
	m.end()
}
