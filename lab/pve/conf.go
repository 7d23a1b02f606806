package pve

import (
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// section is one part of a VM's configuration file: key to value.
type section map[string]string

// conf is a VM's configuration file.
type conf struct {
	main      section
	pending   section // without "delete"
	deleting  []string
	cloudinit section // the values the last-made ISO holds, where they differ
	snapshots map[string]section
	// digest is the SHA-1 of the file it was read from.
	digest string
	// warnings are what the real parser warns of.
	warnings []string
}

func newConf() *conf {
	return &conf{main: section{}, pending: section{}, cloudinit: section{}, snapshots: map[string]section{}}
}

var (
	confLine    = regexp.MustCompile(`^([a-z][a-z_\-]*\d*):\s*(.+?)\s*$`)
	confSection = regexp.MustCompile(`^\[([a-zA-Z][a-zA-Z0-9_\-]+)\]\s*$`)
	confSpecial = regexp.MustCompile(`^\[special:([a-z]+)\]\s*$`)
)

// parseConf reads a configuration file as PVE::QemuServer does: what it does
// not understand it warns of and drops.
func parseConf(vmid string, data []byte) *conf {
	c := newConf()
	sum := sha1.Sum(data)
	c.digest = hex.EncodeToString(sum[:])
	cur, pending := c.main, false
	var descr []string
	endDescr := func() {
		if descr != nil {
			cur["description"] = strings.TrimRight(strings.Join(descr, "\n"), " \t\n")
		}
		descr = nil
	}
	lines := strings.Split(string(data), "\n")
	for _, line := range lines {
		switch {
		case strings.TrimSpace(line) == "":
		case strings.EqualFold(strings.TrimSpace(line), "[PENDING]"):
			endDescr()
			cur, pending = c.pending, true
		case confSpecial.MatchString(line):
			endDescr()
			cur, pending = section{}, false
			if confSpecial.FindStringSubmatch(line)[1] == "cloudinit" {
				cur = c.cloudinit
			}
		case confSection.MatchString(line):
			endDescr()
			cur, pending = section{}, false
			c.snapshots[confSection.FindStringSubmatch(line)[1]] = cur
		case strings.HasPrefix(line, "#"):
			descr = append(descr, decodeText(line[1:]))
		default:
			m := confLine.FindStringSubmatch(line)
			switch {
			case m == nil:
				c.warnings = append(c.warnings, fmt.Sprintf("vm %s - unable to parse config: %s", vmid, line))
			case m[1] == "delete" && pending:
				c.deleting = strings.FieldsFunc(m[2], listSeparator)
			default:
				if fault := checkStored(m[1], m[2]); fault != "" {
					c.warnings = append(c.warnings,
						fmt.Sprintf("vm %s - unable to parse value of '%s' - %s", vmid, m[1], fault))
					continue
				}
				cur[m[1]] = m[2]
			}
		}
	}
	endDescr()
	return c
}

// checkStored says why a stored value is not taken, or "".
func checkStored(key, value string) string {
	if slices.Contains([]string{"parent", "snaptime", "vmstate", "snapstate", "lock", "meta", "digest",
		"runningmachine", "runningcpu", "running-nets-host-mtu", "added", "cipassword", "sshkeys"}, key) ||
		unusedKey.MatchString(key) {
		return ""
	}
	s, ok := lookup(key)
	if !ok {
		return fmt.Sprintf("unknown setting '%s'", key)
	}
	if s.kind != boolean && s.kind != integer && key != "name" {
		return ""
	}
	if s.kind == boolean {
		if _, ok := parseBool(value); !ok {
			return fmt.Sprintf("type check ('boolean') failed - got '%s'", value)
		}
		return ""
	}
	return strings.TrimPrefix(strings.TrimRight(s.fault(key, value), "\n"), "invalid format - ")
}

func listSeparator(r rune) bool { return r == ',' || r == ';' || r == ' ' || r == 0 }

// format writes the file as Proxmox does.
func (c *conf) format() string {
	var b strings.Builder
	c.main.format(&b)
	if len(c.pending) > 0 || len(c.deleting) > 0 {
		b.WriteString("\n[PENDING]\n")
		p := maps.Clone(c.pending)
		if len(c.deleting) > 0 {
			p["delete"] = strings.Join(c.deleting, ",")
		}
		p.format(&b)
	}
	if len(c.cloudinit) > 0 {
		b.WriteString("\n[special:cloudinit]\n")
		c.cloudinit.format(&b)
	}
	for _, name := range slices.Sorted(maps.Keys(c.snapshots)) {
		fmt.Fprintf(&b, "\n[%s]\n", name)
		c.snapshots[name].format(&b)
	}
	return b.String()
}

func (s section) format(b *strings.Builder) {
	if d, ok := s["description"]; ok && d != "" {
		for line := range strings.SplitSeq(strings.TrimRight(d, "\n"), "\n") {
			b.WriteString("#" + encodeText(line) + "\n")
		}
	}
	for _, k := range slices.Sorted(maps.Keys(s)) {
		if k != "description" {
			fmt.Fprintf(b, "%s: %s\n", k, s[k])
		}
	}
}

// encodeText percent-encodes what PVE::Tools::encode_text does.
func encodeText(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if c < 0x20 || c >= 0x7f || c == ':' || c == '%' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

func decodeText(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// load reads the configuration of a VM on this node.
func (h *Host) load(vmid string) (*conf, error) {
	data, err := os.ReadFile(h.confPath(vmid))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fail(2, "Configuration file 'nodes/%s/qemu-server/%s.conf' does not exist", h.cfg.NodeName, vmid)
	}
	if err != nil {
		return nil, err
	}
	return parseConf(vmid, data), nil
}

// store writes a VM's configuration and reads it back, as the real code does
// between its steps: what an empty value becomes on the way shows later.
func (h *Host) store(vmid string, c *conf) error {
	text := c.format()
	if err := h.writePVE(fmt.Sprintf("nodes/%s/qemu-server/%s.conf", h.cfg.NodeName, vmid), []byte(text)); err != nil {
		return err
	}
	*c = *parseConf(vmid, []byte(text))
	return nil
}

// checkLock refuses a VM that has a lock in its configuration.
func (c *conf) checkLock() error {
	if l := c.main["lock"]; l != "" {
		return fail(255, "VM is locked (%s)", l)
	}
	return nil
}
