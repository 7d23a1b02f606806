package pve

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// kind is how a setting's value is checked.
type kind int

const (
	text kind = iota
	boolean
	integer
	number
	enum
	format
	props
	pattern // a regular expression
)

// setting is one option of a VM's configuration or of a command.
type setting struct {
	kind     kind
	count    int // above 0: the setting is NAME0 .. NAME(count-1)
	min, max *int64
	values   []string                  // of an enum
	check    func(value string) string // of a format: why it is bad, or ""
	props    *property
}

// property describes a property string: "file=x,size=1G".
type property struct {
	first string // key of a value without one
	keys  map[string]setting
	need  []string
}

func limit(n int64) *int64 { return &n }

func oneOf(values string) setting { return setting{kind: enum, values: strings.Fields(values)} }

var (
	flag     = setting{kind: boolean}
	anyText  = setting{kind: text}
	anyInt   = setting{kind: integer}
	natural  = setting{kind: integer, min: limit(0)}
	positive = setting{kind: integer, min: limit(1)}
	anyNum   = setting{kind: number}
)

// settings is the schema of a VM's configuration, by name without the number.
var settings = map[string]setting{
	"acpi": flag, "affinity": anyText, "agent": propString(agentProps), "allow-ksm": flag,
	"amd-sev": anyText, "arch": oneOf("x86_64 aarch64"), "args": anyText, "audio0": anyText,
	"autostart": flag, "balloon": natural, "bios": oneOf("seabios ovmf"), "boot": propString(bootProps),
	"bootdisk": anyText, "cdrom": anyText, "cicustom": propString(cicustomProps), "cipassword": anyText,
	"citype": oneOf("configdrive2 nocloud opennebula"), "ciupgrade": flag, "ciuser": anyText,
	"cores": positive, "cpu": anyText, "cpulimit": anyNum, "cpuunits": positive, "description": anyText,
	"efidisk": numbered(1, propString(efidiskProps)), "freeze": flag, "hookscript": {kind: format, check: volumeID},
	"hostpci": numbered(16, anyText), "hotplug": anyText, "hugepages": oneOf("any 2 1024"),
	"ide": numbered(4, propString(driveProps)), "intel-tdx": anyText, "ipconfig": numbered(32, propString(ipconfigProps)),
	"ivshmem": anyText, "keephugepages": flag, "keyboard": anyText, "kvm": flag, "localtime": flag,
	"lock":    oneOf("backup clone create migrate rollback snapshot snapshot-delete suspending suspended"),
	"machine": anyText, "memory": propString(memoryProps), "migrate_downtime": anyNum, "migrate_speed": natural,
	"name": {kind: format, check: dnsName}, "nameserver": anyText, "net": numbered(32, setting{kind: props, props: &netProps}),
	"numa": flag, "onboot": flag,
	"ostype": oneOf("other wxp w2k w2k3 w2k8 wvista win7 win8 win10 win11 l24 l26 solaris"), "parallel": numbered(3, anyText),
	"protection": flag, "reboot": flag, "rng": numbered(1, anyText), "sata": numbered(6, propString(driveProps)),
	"scsi": numbered(31, propString(driveProps)), "scsihw": oneOf("lsi lsi53c810 virtio-scsi-pci virtio-scsi-single megasas pvscsi"),
	"searchdomain": anyText, "serial": numbered(4, anyText), "shares": natural, "smbios": numbered(2, anyText),
	"sockets": positive, "spice_enhancements": anyText, "sshkeys": anyText, "startdate": anyText, "startup": anyText,
	"tablet": flag, "tags": {kind: format, check: tagList}, "tdf": flag, "template": flag,
	"tpmstate": numbered(1, propString(driveProps)), "unused": numbered(256, propString(driveProps)), "usb": numbered(14, anyText),
	"vcpus": positive, "vga": anyText, "virtio": numbered(16, propString(driveProps)), "virtiofs": numbered(10, anyText),
	"vmgenid": anyText, "vmstatestorage": anyText, "watchdog": anyText,
}

func numbered(n int, s setting) setting { s.count = n; return s }

func propString(p property) setting { return setting{kind: props, props: &p} }

var (
	unusedKey = regexp.MustCompile(`^unused\d+$`)
	numbering = regexp.MustCompile(`^([a-z]+)(\d+)$`)
)

// lookup finds the setting a key belongs to.
func lookup(key string) (setting, bool) {
	if s, ok := settings[key]; ok && s.count == 0 {
		return s, true
	}
	m := numbering.FindStringSubmatch(key)
	if m == nil {
		return setting{}, false
	}
	s, ok := settings[m[1]]
	n, err := strconv.Atoi(m[2])
	switch {
	case !ok || err != nil || strconv.Itoa(n) != m[2] || n >= s.count:
		return setting{}, false
	case m[1] == "smbios" && n != 1:
		return setting{}, false
	}
	return s, true
}

// settingNames are all keys of the schema, for abbreviated options.
func settingNames() []string {
	var names []string
	for name, s := range settings {
		if s.count == 0 {
			names = append(names, name)
			continue
		}
		for i := range s.count {
			if key := name + strconv.Itoa(i); name != "smbios" || i == 1 {
				names = append(names, key)
			}
		}
	}
	return names
}

func parseBool(v string) (bool, bool) {
	switch strings.ToLower(v) {
	case "1", "on", "yes", "true":
		return true, true
	case "0", "off", "no", "false":
		return false, true
	}
	return false, false
}

// fault says why value is not one for key, or "". The text ends as Proxmox's
// does: a failed format brings a line end of its own.
func (s setting) fault(key, value string) string {
	switch s.kind {
	case boolean:
		if _, ok := parseBool(value); !ok {
			return fmt.Sprintf("type check ('boolean') failed - got '%s'", value)
		}
	case integer:
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			return fmt.Sprintf("type check ('integer') failed - got '%s'", value)
		}
		return s.range_(n)
	case number:
		if _, err := strconv.ParseFloat(value, 64); err != nil {
			return fmt.Sprintf("type check ('number') failed - got '%s'", value)
		}
	case enum:
		if !slices.Contains(s.values, value) {
			return fmt.Sprintf("value '%s' does not have a value in the enumeration '%s'", value, strings.Join(s.values, ", "))
		}
	case pattern:
		return s.check(value)
	case format:
		if why := s.check(value); why != "" {
			return "invalid format - " + why + "\n"
		}
	case props:
		if _, faults := s.props.parse(key, value); len(faults) > 0 {
			return "invalid format - format error\n" + strings.Join(faults, "\n") + "\n"
		}
	}
	return ""
}

func (s setting) range_(n int64) string {
	if s.min != nil && n < *s.min {
		return fmt.Sprintf("value must have a minimum value of %d", *s.min)
	}
	if s.max != nil && n > *s.max {
		return fmt.Sprintf("value must have a maximum value of %d", *s.max)
	}
	return ""
}

// parse takes a property string apart; faults are named by key.
func (p *property) parse(key, value string) (got map[string]string, faults []string) {
	got = map[string]string{}
	if p == &netProps {
		return parseNet(key, value)
	}
	for part := range strings.SplitSeq(value, ",") {
		if part == "" {
			continue
		}
		k, v, ok := strings.Cut(part, "=")
		if !ok {
			if p.first == "" {
				return got, []string{key + ": value without key, but schema does not define a default key"}
			}
			k, v = p.first, part
		}
		s, known := p.keys[k]
		if !known {
			faults = append(faults, fmt.Sprintf("%s.%s: property is not defined in schema and the schema does not allow additional properties", key, k))
			continue
		}
		if _, twice := got[k]; twice {
			return got, []string{fmt.Sprintf("%s: duplicate key in comma-separated list property: %s", key, k)}
		}
		got[k] = v
		if why := s.fault(key+"."+k, v); why != "" {
			faults = append(faults, fmt.Sprintf("%s.%s: %s", key, k, why))
		}
	}
	for _, k := range p.need {
		if got[k] == "" {
			faults = append(faults, fmt.Sprintf("%s.%s: property is missing and it is not optional", key, k))
		}
	}
	slices.Sort(faults)
	return got, faults
}

var (
	dnsNameForm = regexp.MustCompile(`^([a-zA-Z0-9]([a-zA-Z0-9\-]*[a-zA-Z0-9])?)(\.[a-zA-Z0-9]([a-zA-Z0-9\-]*[a-zA-Z0-9])?)*$`)
	volumeForm  = regexp.MustCompile(`^([a-zA-Z][a-zA-Z0-9\-_.]*[a-zA-Z0-9]):(.+)$`)
	tagForm     = regexp.MustCompile(`(?i)^[a-z0-9_][a-z0-9_\-+.]*$`)
	configID    = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_\-]+$`)
)

func dnsName(v string) string {
	if !dnsNameForm.MatchString(v) {
		return "value does not look like a valid DNS name"
	}
	return ""
}

func volumeID(v string) string {
	if !volumeForm.MatchString(v) {
		return fmt.Sprintf("unable to parse volume ID '%s'", v)
	}
	return ""
}

func tagList(v string) string {
	for tag := range strings.FieldsFuncSeq(v, func(r rune) bool { return r == ',' || r == ';' }) {
		if !tagForm.MatchString(tag) {
			return "invalid characters in tag"
		}
	}
	return ""
}

func vmidFault(v string) string {
	if _, err := strconv.ParseInt(v, 10, 64); err != nil {
		return fmt.Sprintf("type check ('integer') failed - got '%s'", v)
	}
	if n, _ := strconv.Atoi(v); v[0] == '0' || n < 100 || n > 999999999 {
		return "invalid format - value does not look like a valid VM ID\n"
	}
	return ""
}
