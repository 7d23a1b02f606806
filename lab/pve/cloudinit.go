package pve

import (
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/homeiac/homelab/lab/disk"
)

// ciKeys are the settings that qm cloudinit pending compares.
var ciKeys = strings.Fields("cicustom cipassword citype ciupgrade ciuser nameserver searchdomain sshkeys")

// ciSetting says whether a change of key is one of the cloud-init volume.
func ciSetting(key string) bool {
	if m := numbering.FindStringSubmatch(key); m != nil {
		return m[1] == "ipconfig" || m[1] == "net"
	}
	return key == "name" || slices.Contains(ciKeys, key)
}

// cloudInitDrive is the VM's cloud-init drive, if it has one.
func (c *conf) cloudInitDrive() (drive, bool) {
	for _, d := range c.main.drives() {
		if d.cloudInit() {
			return d, true
		}
	}
	return drive{}, false
}

// generate makes the four documents from a configuration. With custom false
// it ignores cicustom, as qm cloudinit dump does.
func (h *Host) generate(vmid string, s section, custom bool) (disk.CloudInit, error) {
	ci := disk.CloudInit{UserData: userData(vmid, s), NetworkConfig: networkConfig(s)}
	if custom && s["cicustom"] != "" {
		files, _ := cicustomProps.parse("cicustom", s["cicustom"])
		for _, f := range []struct {
			name string
			to   *string
		}{{"user", &ci.UserData}, {"network", &ci.NetworkConfig}, {"meta", &ci.MetaData}, {"vendor", &ci.VendorData}} {
			if files[f.name] == "" {
				continue
			}
			v, err := h.existing(files[f.name])
			if err != nil {
				return ci, err
			}
			data, err := os.ReadFile(h.path(v.path()))
			if err != nil {
				return ci, err
			}
			*f.to = string(data)
		}
	}
	sum := sha1.Sum([]byte(ci.UserData + ci.NetworkConfig))
	ci.InstanceID = hex.EncodeToString(sum[:])
	if ci.MetaData == "" {
		ci.MetaData = "instance-id: " + ci.InstanceID + "\n"
	} else if id := metaInstanceID(ci.MetaData); id != "" {
		ci.InstanceID = id
	}
	return ci, nil
}

func metaInstanceID(meta string) string {
	for line := range strings.Lines(meta) {
		if id, ok := strings.CutPrefix(line, "instance-id:"); ok {
			return strings.TrimSpace(id)
		}
	}
	return ""
}

func userData(vmid string, s section) string {
	var b strings.Builder
	name := s["name"]
	if name == "" {
		name = "VM" + vmid
	}
	fqdn := name
	host, _, dotted := strings.Cut(name, ".")
	if search, _, _ := strings.Cut(strings.TrimSpace(s["searchdomain"]), " "); search != "" && !dotted {
		fqdn = name + "." + search
	}
	fmt.Fprintf(&b, "#cloud-config\nhostname: %s\nmanage_etc_hosts: true\nfqdn: %s\n", host, fqdn)
	user, hasUser := s["ciuser"]
	if hasUser {
		fmt.Fprintf(&b, "user: %s\n", user)
		if user == "root" {
			b.WriteString("disable_root: False\n")
		}
	}
	if pw, ok := s["cipassword"]; ok {
		fmt.Fprintf(&b, "password: %s\n", pw)
	}
	if keys, err := url.PathUnescape(s["sshkeys"]); err == nil && keys != "" {
		b.WriteString("ssh_authorized_keys:\n")
		for line := range strings.Lines(keys) {
			if line = strings.TrimSpace(line); line != "" {
				fmt.Fprintf(&b, "  - %s\n", line)
			}
		}
	}
	b.WriteString("chpasswd:\n  expire: False\n")
	if user != "root" {
		b.WriteString("users:\n  - default\n")
	}
	if up, ok := parseBool(s["ciupgrade"]); !ok || up {
		b.WriteString("package_upgrade: true\n")
	}
	return b.String()
}

func networkConfig(s section) string {
	var b strings.Builder
	b.WriteString("version: 1\nconfig:\n")
	for i := range 32 {
		nic, has := s[fmt.Sprintf("net%d", i)]
		cfg, ok := s[fmt.Sprintf("ipconfig%d", i)]
		if !has || !ok {
			continue
		}
		n, _ := parseNet("net", nic)
		fmt.Fprintf(&b, "    - type: physical\n      name: eth%d\n      mac_address: '%s'\n      subnets:\n", i, strings.ToLower(n["macaddr"]))
		ip, _ := ipconfigProps.parse("ipconfig", cfg)
		writeSubnets(&b, ip)
	}
	writeDNS(&b, s)
	return b.String()
}

func writeSubnets(b *strings.Builder, ip map[string]string) {
	switch v4 := ip["ip"]; v4 {
	case "":
	case "dhcp":
		b.WriteString("      - type: dhcp4\n")
	default:
		if p, err := netip.ParsePrefix(v4); err == nil {
			mask := net.IP(net.CIDRMask(p.Bits(), 32)).String()
			fmt.Fprintf(b, "      - type: static\n        address: '%s'\n        netmask: '%s'\n", p.Addr(), mask)
			if gw := ip["gw"]; gw != "" {
				fmt.Fprintf(b, "        gateway: '%s'\n", gw)
			}
		}
	}
	switch v6 := ip["ip6"]; v6 {
	case "":
	case "dhcp":
		b.WriteString("      - type: dhcp6\n")
	case "auto":
		b.WriteString("      - type: ipv6_slaac\n")
	default:
		fmt.Fprintf(b, "      - type: static6\n        address: '%s'\n", v6)
		if gw := ip["gw6"]; gw != "" {
			fmt.Fprintf(b, "        gateway: '%s'\n", gw)
		}
	}
}

func writeDNS(b *strings.Builder, s section) {
	servers, search := strings.Fields(s["nameserver"]), strings.Fields(s["searchdomain"])
	if len(servers) == 0 && len(search) == 0 {
		return
	}
	b.WriteString("    - type: nameserver\n")
	for _, list := range []struct {
		name   string
		values []string
	}{{"address", servers}, {"search", search}} {
		if len(list.values) == 0 {
			continue
		}
		fmt.Fprintf(b, "      %s:\n", list.name)
		for _, v := range list.values {
			fmt.Fprintf(b, "      - '%s'\n", v)
		}
	}
}

// makeISO writes the cloud-init volume anew, as start and qm cloudinit update
// do. A VM without such a drive needs none.
func (r *run) makeISO(vmid string, c *conf) error {
	d, ok := c.cloudInitDrive()
	if !ok {
		return nil
	}
	ci, err := r.generate(vmid, c.main, true)
	if err != nil {
		return err
	}
	r.printf("generating cloud-init ISO\n")
	v, err := r.existing(d.file)
	if err != nil && codeOf(err) == 2 {
		// Proxmox allocates the volume again when it is gone.
		v, err = r.parseVolume(d.file)
		if err == nil {
			_, err = r.alloc(v.store.id, vmid, v.format, v.name, disk.CloudInitSize)
		}
	}
	if err != nil {
		return err
	}
	if err := disk.WriteCloudInit(r.path(v.path()), ci); err != nil {
		return fmt.Errorf("write cloud-init volume: %w", err)
	}
	c.cloudinit = section{}
	return nil
}

// noteCloudInit remembers what the last-made ISO holds when a setting of a
// running VM changes from old to now; "" is not set.
func (c *conf) noteCloudInit(key, old, now string) {
	if _, ok := c.cloudInitDrive(); !ok || old == now || !ciSetting(key) {
		return
	}
	added := strings.FieldsFunc(c.cloudinit["added"], listSeparator)
	was, changed := c.cloudinit[key]
	switch {
	case changed && was == now:
		delete(c.cloudinit, key)
	case changed:
	case slices.Contains(added, key):
		if now == "" {
			added = without(added, key)
		}
	case old == "":
		added = append(added, key)
		slices.Sort(added)
	default:
		c.cloudinit[key] = old
	}
	if len(added) > 0 {
		c.cloudinit["added"] = strings.Join(added, ",")
	} else {
		delete(c.cloudinit, "added")
	}
}

// cloudInitDump is qm cloudinit dump.
func (r *run) cloudInitDump(p params) error {
	c, err := r.load(p["vmid"])
	if err != nil {
		return err
	}
	ci, err := r.generate(p["vmid"], c.main, false)
	if err != nil {
		return err
	}
	r.printf("%s\n", map[string]string{"user": ci.UserData, "network": ci.NetworkConfig, "meta": ci.MetaData}[p["type"]])
	return nil
}

// cloudInitUpdate is qm cloudinit update.
func (r *run) cloudInitUpdate(p params) error {
	vmid := p["vmid"]
	return r.withLock(vmid, func() error {
		c, err := r.load(vmid)
		if err != nil {
			return err
		}
		if err := c.checkLock(); err != nil {
			return err
		}
		if _, ok := c.cloudInitDrive(); !ok {
			return nil
		}
		return errors.Join(r.makeISO(vmid, c), r.store(vmid, c))
	})
}

// cloudInitPending is qm cloudinit pending.
func (r *run) cloudInitPending(p params) error {
	c, err := r.load(p["vmid"])
	if err != nil {
		return err
	}
	added := strings.FieldsFunc(c.cloudinit["added"], listSeparator)
	for _, key := range ciKeys {
		now, set := c.main[key]
		was, changed := c.cloudinit[key]
		if key == "cipassword" {
			now, was = "**********", "**********"
		}
		switch {
		case slices.Contains(added, key):
			r.printf("new %s: %s\n", key, now)
		case changed && set:
			r.printf("cur %s: %s\nnew %s: %s\n", key, was, key, now)
		case changed:
			r.printf("del %s: %s\n", key, was)
		case set:
			r.printf("cur %s: %s\n", key, now)
		}
	}
	return nil
}
