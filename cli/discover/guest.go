package discover

import (
	"cmp"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

var (
	setting   = regexp.MustCompile(`^([a-z][a-z_]*\d*): (.*)$`)
	diskKey   = regexp.MustCompile(`^(scsi|virtio|sata|ide)\d{1,2}$`)
	nicKey    = regexp.MustCompile(`^net(\d{1,2})$`)
	deviceKey = regexp.MustCompile(`^(hostpci|usb)\d{1,2}$`)
	markForm  = regexp.MustCompile(`hl1(?::|%3A)([a-z0-9-]{1,63})(?::|%3A)`)
	sizeForm  = regexp.MustCompile(`^(\d{1,12})([KMGT]?)$`)
)

// config is a guest's configuration file: its keys, and the fleet whose mark stands in
// its description. What waits for the next start, and snapshots, are not of it.
type config struct {
	keys     map[string]string
	fleet    string
	snapshot bool
}

func readConfig(text []byte) config {
	c := config{keys: map[string]string{}}
	inForce := true
	for l := range strings.Lines(string(text)) {
		l = strings.TrimRight(l, "\r\n")
		if strings.HasPrefix(l, "[") {
			inForce = false
			c.snapshot = c.snapshot || l != "[PENDING]" && !strings.HasPrefix(l, "[special:")
		}
		if !inForce {
			continue
		}
		if strings.HasPrefix(l, "#") {
			if m := markForm.FindStringSubmatch(l); m != nil && c.fleet == "" {
				c.fleet = m[1]
			}
			continue
		}
		if m := setting.FindStringSubmatch(l); m != nil {
			if _, there := c.keys[m[1]]; !there { // the first is the one in force
				c.keys[m[1]] = m[2]
			}
		}
	}
	return c
}

// parts are Proxmox's values with commas; the first one may have no key.
func parts(value, first string) map[string]string {
	m := map[string]string{}
	for i, part := range strings.Split(value, ",") {
		k, v, ok := strings.Cut(part, "=")
		switch {
		case ok:
			m[k] = v
		case i == 0 && part != "":
			m[first] = part
		}
	}
	return m
}

func (c config) on(key string) bool { return c.keys[key] == "1" }

// whole is a key's number; missing it is def, and what is no number is 0.
func (c config) whole(key string, def, most int) int {
	text, there := c.keys[key]
	if !there {
		return def
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > most {
		return 0
	}
	return n
}

// bytesOf reads 64M, 1G, 10486K.
func bytesOf(text string) int64 {
	m := sizeForm.FindStringSubmatch(text)
	if m == nil {
		return 0
	}
	n, _ := strconv.ParseInt(m[1], 10, 64) // twelve digits
	shift := map[string]int{"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[m[2]]
	if n > mostBytes>>shift {
		return 0
	}
	return n << shift
}

func (o Outputs) readGuests(h *Host) error {
	own, taken, err := o.guests(h.Node)
	if err != nil {
		return err
	}
	h.Taken = taken
	seen := o.neighbours()
	for _, r := range own {
		text, there := o[line(r.file())]
		if !there {
			continue // gone meanwhile
		}
		c := readConfig(text)
		if r.Type == kindContainer {
			h.Containers = append(h.Containers, container(int(r.VMID), r.Name, c))
		} else {
			h.Guests = append(h.Guests, vm(r, c, seen))
		}
	}
	return nil
}

func vm(r resource, c config, seen map[string]netip.Addr) Guest {
	g := Guest{
		VMID: int(r.VMID), Title: Plain(cmp.Or(c.keys["name"], r.Name)), Power: powers[r.Status],
		Template: c.on("template"), Fleet: c.fleet, OVMF: c.keys["bios"] == "ovmf", OnBoot: c.on("onboot"),
		Q35: strings.Contains(parts(c.keys["machine"], "type")["type"], "q35"), Snapshot: c.snapshot,
	}
	g.CPUs = c.whole("vcpus", 0, 4096)
	if g.CPUs == 0 {
		g.CPUs = min(c.whole("cores", 1, 4096)*c.whole("sockets", 1, 16), 4096)
	}
	g.Memory = 512 << 20 // Proxmox's default
	if text := parts(c.keys["memory"], "current")["current"]; text != "" {
		g.Memory = bytesOf(text + "M")
	}
	for _, key := range slices.Sorted(maps.Keys(c.keys)) {
		if deviceKey.MatchString(key) {
			g.Unplain = append(g.Unplain, key)
		}
	}
	g.Disks, g.NICs = c.disks(), c.nics(seen)
	return g
}

var powers = map[string]Power{"running": PowerRunning, "stopped": PowerStopped}

// disks are the volumes that hold data, the one that the VM boots from first.
func (c config) disks() []Disk {
	var disks []Disk
	for _, key := range slices.Sorted(maps.Keys(c.keys)) {
		if !diskKey.MatchString(key) {
			continue
		}
		o := parts(c.keys[key], "file")
		if o["media"] == "cdrom" || o["file"] == "none" || strings.Contains(o["file"], "cloudinit") {
			continue
		}
		d := Disk{Slot: key, Size: bytesOf(o["size"])}
		if name, _, ok := strings.Cut(o["file"], ":"); ok && storageForm.MatchString(name) {
			d.Storage = name
		}
		disks = append(disks, d)
	}
	order := strings.Split(parts(c.keys["boot"], "legacy")["order"], ";")
	if boot := c.keys["bootdisk"]; boot != "" {
		order = append(order, boot)
	}
	order = append(order, "scsi0", "virtio0", "sata0", "ide0")
	for _, slot := range order {
		if i := slices.IndexFunc(disks, func(d Disk) bool { return d.Slot == slot }); i >= 0 {
			system := disks[i]
			return append([]Disk{system}, slices.Delete(disks, i, i+1)...)
		}
	}
	return disks
}

func (c config) nics(seen map[string]netip.Addr) []NIC {
	type numbered struct {
		n int
		NIC
	}
	var all []numbered
	for key, value := range c.keys {
		m := nicKey.FindStringSubmatch(key)
		if m == nil {
			continue
		}
		one := numbered{}
		one.n, _ = strconv.Atoi(m[1]) // two digits
		for k, v := range parts(value, "model") {
			switch {
			case k == "bridge" && bridgeForm.MatchString(v):
				one.Bridge = v
			case k == "tag":
				if tag, err := strconv.Atoi(v); err == nil && tag >= 1 && tag <= 4094 {
					one.VLAN = tag
				}
			case macForm.MatchString(v):
				one.MAC = strings.ToUpper(v)
			}
		}
		if one.MAC == "00:00:00:00:00:00" || one.MAC != "" && strings.IndexByte("13579BDF", one.MAC[1]) >= 0 {
			one.MAC = "" // nobody's, or everybody's
		}
		ip := parts(c.keys["ipconfig"+m[1]], "ip")["ip"]
		if p, err := netip.ParsePrefix(ip); err == nil && usual(p.Addr()) {
			one.Address = p
		}
		one.Seen = seen[one.MAC]
		all = append(all, one)
	}
	slices.SortFunc(all, func(a, b numbered) int { return a.n - b.n })
	var nics []NIC
	for _, n := range all {
		nics = append(nics, n.NIC)
	}
	return nics
}

func container(vmid int, name string, c config) Container {
	ct := Container{VMID: vmid, Title: Plain(cmp.Or(c.keys["hostname"], name))}
	for _, key := range slices.Sorted(maps.Keys(c.keys)) {
		if p, err := netip.ParsePrefix(parts(c.keys[key], "name")["ip"]); err == nil && nicKey.MatchString(key) && usual(p.Addr()) {
			ct.Addresses = append(ct.Addresses, p.Addr())
		}
	}
	return ct
}

// neighbours are the IPv4 addresses at which the host saw MACs lately, when one was seen
// at one address only.
func (o Outputs) neighbours() map[string]netip.Addr {
	var all []struct {
		Address string   `json:"dst"`
		MAC     string   `json:"lladdr"`
		State   []string `json:"state"`
	}
	_ = o.decode(neighbors, &all) // then nothing is known of it
	seen := map[string]netip.Addr{}
	for _, n := range all {
		a, err := netip.ParseAddr(n.Address)
		mac := strings.ToUpper(n.MAC)
		if err != nil || !a.Is4() || !usual(a) || !macForm.MatchString(mac) || slices.Contains(n.State, "FAILED") {
			continue
		}
		if _, twice := seen[mac]; twice {
			a = netip.Addr{}
		}
		seen[mac] = a
	}
	return seen
}
