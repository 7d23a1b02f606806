package pve

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

var agentProps = property{first: "enabled", keys: map[string]setting{
	"enabled": flag, "fstrim_cloned_disks": flag, "freeze-fs-on-backup": flag, "freeze-fs": flag, "type": oneOf("virtio isa"),
}}

var memoryProps = property{first: "current", keys: map[string]setting{"current": {kind: integer, min: limit(16)}}}

var bootProps = property{first: "legacy", keys: map[string]setting{
	"legacy": anyText, "order": {kind: format, check: bootOrder},
}}

var cicustomProps = property{keys: map[string]setting{
	"meta": {kind: format, check: volumeID}, "network": {kind: format, check: volumeID},
	"user": {kind: format, check: volumeID}, "vendor": {kind: format, check: volumeID},
}}

var ipconfigProps = property{keys: map[string]setting{
	"gw": {kind: format, check: ipv4}, "gw6": {kind: format, check: ipv6},
	"ip": {kind: format, check: ipv4Config}, "ip6": {kind: format, check: ipv6Config},
}}

var driveProps = property{first: "file", need: []string{"file"}, keys: driveKeys}

var driveKeys = map[string]setting{
	"file": anyText, "volume": anyText, "format": oneOf("raw qcow qed qcow2 vmdk cloop"),
	"import-from": {kind: format, check: importSource}, "aio": oneOf("native threads io_uring"), "backup": flag,
	"bps": natural, "bps_rd": natural, "bps_wr": natural, "cache": oneOf("none writethrough writeback unsafe directsync"),
	"detect_zeroes": flag, "discard": oneOf("ignore on"), "iops": natural, "iops_rd": natural, "iops_wr": natural,
	"iothread": flag, "mbps": anyNum, "mbps_rd": anyNum, "mbps_wr": anyNum, "media": oneOf("cdrom disk"), "queues": positive,
	"replicate": flag, "rerror": oneOf("ignore report stop"), "ro": flag, "scsiblock": flag, "serial": anyText, "shared": flag,
	"size": anyText, "snapshot": flag, "ssd": flag, "werror": oneOf("enospc ignore report stop"), "wwn": anyText, "version": anyText,
}

var efidiskProps = property{first: "file", need: []string{"file"}, keys: withKeys(driveKeys, map[string]setting{
	"efitype": oneOf("2m 4m"), "pre-enrolled-keys": flag, "ms-cert": anyText,
})}

func withKeys(a, b map[string]setting) map[string]setting {
	m := maps.Clone(a)
	maps.Copy(m, b)
	return m
}

var (
	netModels = strings.Fields("e1000 e1000-82540em e1000-82544gc e1000-82545em e1000e i82551 i82557b i82559er ne2k_isa ne2k_pci pcnet rtl8139 virtio vmxnet3")
	netProps  = property{first: "model", keys: map[string]setting{
		"bridge": anyText, "firewall": flag, "link_down": flag, "mtu": {kind: integer, min: limit(1), max: limit(65520)},
		"queues": {kind: integer, min: limit(0), max: limit(64)}, "rate": anyNum, "tag": {kind: integer, min: limit(1), max: limit(4094)},
		"trunks": anyText, "macaddr": {kind: format, check: unicastMAC}, "model": {kind: enum, values: netModels},
		"host_mtu": anyInt,
	}}
	macForm    = regexp.MustCompile(`^(?i)[a-f0-9][02468ace](:[a-f0-9]{2}){5}$`)
	bootDevice = regexp.MustCompile(`^(net|usb|hostpci|ide|sata|scsi|virtio|efidisk)\d+$`)
)

// parseNet reads "virtio=MAC,bridge=vmbr0": the model is a key that brings the
// address, or a bare value.
func parseNet(key, value string) (got map[string]string, faults []string) {
	got = map[string]string{}
	for part := range strings.SplitSeq(value, ",") {
		if part == "" {
			continue
		}
		k, v, ok := strings.Cut(part, "=")
		if !ok {
			k, v = "model", part
		}
		if slices.Contains(netModels, k) && ok {
			got["model"], k = k, "macaddr"
		}
		s, known := netProps.keys[k]
		if !known {
			faults = append(faults, fmt.Sprintf("%s.%s: property is not defined in schema and the schema does not allow additional properties", key, k))
			continue
		}
		got[k] = v
		if why := s.fault(key+"."+k, v); why != "" {
			faults = append(faults, fmt.Sprintf("%s.%s: %s", key, k, why))
		}
	}
	if got["model"] == "" {
		faults = append(faults, fmt.Sprintf("%s.model: property is missing and it is not optional", key))
	}
	slices.Sort(faults)
	return got, faults
}

// formatNet is how Proxmox writes a NIC: model and address first, the rest by name.
func formatNet(p map[string]string) string {
	parts := []string{p["model"] + "=" + strings.ToUpper(p["macaddr"])}
	for _, k := range slices.Sorted(maps.Keys(p)) {
		if k != "model" && k != "macaddr" {
			parts = append(parts, k+"="+p[k])
		}
	}
	return strings.Join(parts, ",")
}

func unicastMAC(v string) string {
	if !macForm.MatchString(v) {
		return "value does not look like a valid unicast MAC address"
	}
	return ""
}

func bootOrder(v string) string {
	for dev := range strings.FieldsFuncSeq(v, listSeparator) {
		if !bootDevice.MatchString(dev) {
			return fmt.Sprintf("invalid boot device '%s'", dev)
		}
	}
	return ""
}

func ipv4(v string) string {
	if a, err := netip.ParseAddr(v); err != nil || !a.Is4() {
		return "value does not look like a valid ipv4 address"
	}
	return ""
}

func ipv6(v string) string {
	if a, err := netip.ParseAddr(v); err != nil || !a.Is6() {
		return "value does not look like a valid ipv6 address"
	}
	return ""
}

func ipv4Config(v string) string {
	if p, err := netip.ParsePrefix(v); v != "dhcp" && v != "manual" && (err != nil || !p.Addr().Is4()) {
		return "value does not look like a valid ipv4 network configuration"
	}
	return ""
}

func ipv6Config(v string) string {
	if p, err := netip.ParsePrefix(v); v != "dhcp" && v != "auto" && v != "manual" && (err != nil || !p.Addr().Is6()) {
		return "value does not look like a valid ipv6 network configuration"
	}
	return ""
}

func importSource(v string) string {
	if strings.HasPrefix(v, "/") || volumeForm.MatchString(v) {
		return ""
	}
	return fmt.Sprintf("unable to parse volume ID '%s'", v)
}

// drive is one disk or CD-ROM of a configuration.
type drive struct {
	key  string
	file string
	opts map[string]string
}

func parseDrive(key, value string) drive {
	p := &driveProps
	if strings.HasPrefix(key, "efidisk") {
		p = &efidiskProps
	}
	got, _ := p.parse(key, value)
	d := drive{key: key, file: got["file"], opts: got}
	delete(d.opts, "file")
	return d
}

func (d drive) String() string {
	parts := []string{d.file}
	for _, k := range slices.Sorted(maps.Keys(d.opts)) {
		parts = append(parts, k+"="+d.opts[k])
	}
	return strings.Join(parts, ",")
}

func (d drive) cdrom() bool { return d.opts["media"] == "cdrom" }

func (d drive) cloudInit() bool {
	return strings.Contains(d.file, "-cloudinit") || strings.HasSuffix(d.file, ":cloudinit")
}

// splitVolume gives storage and name of a volume ID, "" for none, cdrom and paths.
func splitVolume(volid string) (store, name string) {
	if m := volumeForm.FindStringSubmatch(volid); m != nil && !strings.HasPrefix(volid, "/") {
		return m[1], m[2]
	}
	return "", ""
}

// driveNames are all slots for disks, in Proxmox's order.
var driveNames = func() []string {
	var names []string
	for _, b := range []struct {
		bus string
		n   int
	}{{"ide", 4}, {"scsi", 31}, {"virtio", 16}, {"sata", 6}} {
		for i := range b.n {
			names = append(names, b.bus+strconv.Itoa(i))
		}
	}
	return append(names, "efidisk0", "tpmstate0")
}()

func isDrive(key string) bool { return slices.Contains(driveNames, key) }

// drives lists the drives of a section, in Proxmox's order.
func (s section) drives() []drive {
	var list []drive
	for _, k := range driveNames {
		if v, ok := s[k]; ok {
			list = append(list, parseDrive(k, v))
		}
	}
	return list
}

// unused lists the unusedN volumes of a section by number.
func (s section) unused() []drive {
	var list []drive
	for i := range 256 {
		k := "unused" + strconv.Itoa(i)
		if v, ok := s[k]; ok {
			list = append(list, parseDrive(k, v))
		}
	}
	return list
}

// addUnused keeps a volume under the first free unusedN.
func (s section) addUnused(volid string) string {
	for i := range 256 {
		k := "unused" + strconv.Itoa(i)
		if _, taken := s[k]; !taken {
			s[k] = volid
			return k
		}
	}
	return ""
}

// formatSize is the largest unit without a remainder.
func formatSize(n int64) string {
	for _, u := range []struct {
		name string
		size int64
	}{{"T", 1 << 40}, {"G", 1 << 30}, {"M", 1 << 20}, {"K", 1 << 10}} {
		if n > 0 && n%u.size == 0 {
			return strconv.FormatInt(n/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// parseSize reads "10G", "1.5G" or plain bytes.
func parseSize(v string) (int64, bool) {
	unit := int64(1)
	if v != "" {
		switch v[len(v)-1] {
		case 'K':
			unit = 1 << 10
		case 'M':
			unit = 1 << 20
		case 'G':
			unit = 1 << 30
		case 'T':
			unit = 1 << 40
		}
	}
	if unit > 1 {
		v = v[:len(v)-1]
	}
	f, err := strconv.ParseFloat(v, 64)
	if err != nil || f < 0 {
		return 0, false
	}
	return int64(f * float64(unit)), true
}
