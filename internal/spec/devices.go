package spec

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/homeiac/homelab/internal/k3s"
)

var (
	pciPattern  = regexp.MustCompile(`^(?:(?:[0-9a-f]{4}:)?[0-9a-f]{2}:[01][0-9a-f](?:\.[0-7])?|mapping=[A-Za-z][A-Za-z0-9_-]*)(?:,(?:pcie|x-vga|rombar|legacy-igd)=[01]|,mdev=[A-Za-z0-9_-]+|,romfile=[A-Za-z0-9_.-]+)*$`)
	usbPattern  = regexp.MustCompile(`^(?:[0-9a-f]{4}:[0-9a-f]{4}|\d{1,3}-\d{1,3}(?:\.\d{1,3})*|mapping=[A-Za-z][A-Za-z0-9_-]*)(?:,usb3=[01])?$`)
	slotPattern = regexp.MustCompile(`^scsi([1-9]\d?)$`)
)

// Most devices of a kind that Proxmox takes, and the last slot for data disks:
// scsi30 is the highest that qm has.
const (
	maxDevices = 14
	lastSlot   = 30
)

// devices reads a list of passthrough devices as qm writes them.
func (p *parser) devices(m *mapping, key string, pattern *regexp.Regexp, what string) []string {
	all, nodes := m.texts(key)
	var devices []string
	for i, raw := range all {
		device := strings.ToLower(raw)
		if strings.HasPrefix(raw, "mapping=") || strings.Contains(raw, "romfile=") || strings.Contains(raw, "mdev=") {
			device = raw // names have case
		}
		switch {
		case !pattern.MatchString(device):
			p.fault(nodes[i], m.at(key), "%s is not %s", show(raw), what)
			continue
		case !mapped(device) && slices.ContainsFunc(devices, func(d string) bool { return address(d) == address(device) }):
			p.fault(nodes[i], m.at(key), "%s is there twice", show(raw))
			continue
		case len(devices) == maxDevices:
			p.fault(nodes[i], m.at(key), "is one too many: Proxmox takes %d", maxDevices)
			continue
		}
		devices = append(devices, device)
	}
	return devices
}

// address is the part of a device that names it, in its long form.
func address(device string) string {
	a, _, _ := strings.Cut(device, ",")
	if len(a) >= 5 && a[2] == ':' { // b3:00.0 is 0000:b3:00.0
		return "0000:" + a
	}
	return a
}

func (p *parser) dataDisks(m *mapping, g *Guest) {
	n := m.value("dataDisks")
	if n == nil {
		return
	}
	seen := map[string]bool{}
	for i, item := range p.list(n, m.at("dataDisks")) {
		at := index(m.at("dataDisks"), i)
		d := p.mapping(item, at)
		if item.Kind != yaml.MappingNode {
			continue
		}
		var disk DataDisk
		if v, ok := d.text("slot"); ok {
			number := 0
			if found := slotPattern.FindStringSubmatch(v); found != nil {
				number, _ = strconv.Atoi(found[1])
			}
			switch slot := d.by["slot"].value; {
			case v == "scsi0":
				p.fault(slot, d.at("slot"), "scsi0 is the system disk")
			case number < 1 || number > lastSlot:
				p.fault(slot, d.at("slot"), "%s is not a slot (scsi1 to scsi%d)", show(v), lastSlot)
			case seen[v]:
				p.fault(slot, d.at("slot"), "%s is there twice", v)
			}
			seen[v] = true
			disk.Slot = v
		}
		if v, ok := d.text("storage"); ok {
			disk.Storage = v
			p.nodes[d.at("storage")] = d.by["storage"].value
		}
		disk.Size, _ = d.size("size", MiB)
		for _, need := range []string{"slot", "storage", "size"} {
			if !d.has(need) {
				d.missing(item, need, "")
			}
		}
		d.end()
		g.DataDisks = append(g.DataDisks, disk)
	}
}

var (
	labelName   = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$`)
	labelPrefix = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)
)

func (p *parser) member(n *yaml.Node, path string) *Member {
	m := p.mapping(n, path)
	member := &Member{}
	if v, ok := word(m, "role", RoleServer, RoleAgent); ok {
		member.Role = v
	} else if !m.has("role") {
		m.missing(n, "role", " (server or agent)")
	}
	if n := m.value("name"); n != nil {
		p.nodes[m.at("name")] = n
		if s, ok := p.text(n, m.at("name")); ok && p.label(n, m.at("name"), s) {
			member.Name = s
		}
	}
	if n := m.value("labels"); n != nil {
		labels := p.mapping(n, m.at("labels"))
		member.Labels = map[string]string{}
		for _, key := range labels.order {
			e := labels.by[key]
			if reason := badLabelKey(key); reason != "" {
				p.fault(e.key, labels.at(key), "%s", reason)
			}
			value, ok := p.scalar(e.value, labels.at(key))
			if !ok {
				continue
			}
			if e.value.Tag != "!!str" {
				p.fault(e.value, labels.at(key), "%s is not text to YAML: write it in quotes", value)
			} else if value != "" && !labelName.MatchString(value) {
				p.fault(e.value, labels.at(key), "%s is not a label's value", show(value))
			}
			member.Labels[key] = value
		}
	}
	m.end()
	return member
}

// badLabelKey says why a kubelet would not start with the label. It refuses to
// label itself within kubernetes.io and k8s.io, but for a few names.
func badLabelKey(key string) string {
	prefix, name, divided := strings.Cut(key, "/")
	if !divided {
		prefix, name = "", key
	}
	if !labelName.MatchString(name) || divided && (len(prefix) > 253 || !labelPrefix.MatchString(prefix)) {
		return "is not a label's key (as gpu or example.org/gpu)"
	}
	if k3s.KubeletRefusesLabel(key) {
		return "is a label that a kubelet may not give itself: it would not start"
	}
	return ""
}

// mapped says whether a device is given by a Proxmox resource mapping, which may
// hold several.
func mapped(device string) bool { return strings.HasPrefix(device, "mapping=") }

func pcieFlag(device string) bool { return slices.Contains(strings.Split(device, ","), "pcie=1") }

// q35 says whether a machine type has PCI Express.
func q35(machine string) bool { return strings.Contains(machine, "q35") }
