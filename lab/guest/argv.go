package guest

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"strings"
)

// drive is a volume of the machine.
type drive struct {
	id    string // scsi0
	file  string // on the host
	cdrom bool
	boot  int // bootindex, math.MaxInt without one
}

// nic is a network card of the machine.
type nic struct {
	id, mac, tap string
}

// command is what a kvm command line asks for. What a simulated machine has no
// use for is skipped, as its hardware is.
type command struct {
	root       string // the host's root folder
	vmid       int
	name, uuid string
	pidFile    string // on the host
	qmp, qga   string // sockets on the host, "" without
	memory     int64  // bytes
	cpus       int
	paused     bool // -S
	drives     []drive
	nics       []nic
}

// props splits "type=tap,id=net0"; the first word without "=" is under "".
func props(s string) map[string]string {
	m := map[string]string{}
	for i, p := range strings.Split(s, ",") {
		k, v, ok := strings.Cut(p, "=")
		if !ok && i == 0 {
			m[""] = k
			continue
		}
		m[k] = v
	}
	return m
}

// parse reads a kvm command line. argv[0] is ROOT/usr/bin/kvm.
func parse(argv []string) (*command, error) {
	if len(argv) == 0 || !strings.HasSuffix(argv[0], "/usr/bin/kvm") || !filepath.IsAbs(argv[0]) {
		return nil, errors.New("the program must be called by its full path, ROOT/usr/bin/kvm")
	}
	c := &command{root: cmp.Or(strings.TrimSuffix(argv[0], "/usr/bin/kvm"), "/"), memory: 128 << 20, cpus: 1}
	files := map[string]string{} // by drive id
	cdrom := map[string]bool{}
	netdevs := map[string]string{}
	type device struct {
		model string
		p     map[string]string
	}
	var devices []device
	chardevs := map[string]string{}
	monitor, agent := "", ""
	for i := 1; i < len(argv); i++ {
		a := argv[i]
		if !strings.HasPrefix(a, "-") || i+1 == len(argv) {
			continue
		}
		v := argv[i+1]
		p := props(v)
		switch a {
		case "-id":
			n, err := strconv.Atoi(v)
			if err != nil {
				return nil, fmt.Errorf("-id %q", v)
			}
			c.vmid = n
		case "-name":
			c.name, _, _ = strings.Cut(v, ",")
		case "-pidfile":
			c.pidFile = v
		case "-smbios":
			if u := p["uuid"]; u != "" {
				c.uuid = u
			}
		case "-chardev":
			chardevs[p["id"]] = p["path"]
		case "-mon":
			if p["mode"] == "control" && monitor == "" {
				monitor = p["chardev"]
			}
		case "-m":
			text := strings.TrimPrefix(strings.Split(v, ",")[0], "size=")
			n, err := strconv.ParseInt(strings.TrimSuffix(text, "M"), 10, 64)
			if err != nil {
				return nil, fmt.Errorf("-m %q", v)
			}
			c.memory = n << 20
		case "-smp":
			text := strings.TrimPrefix(strings.Split(v, ",")[0], "cpus=")
			n, err := strconv.Atoi(text)
			if err != nil {
				return nil, fmt.Errorf("-smp %q", v)
			}
			c.cpus = n
		case "-drive":
			if p["id"] != "" {
				files[p["id"]], cdrom[p["id"]] = p["file"], p["media"] == "cdrom"
			}
		case "-blockdev":
			id, file, err := blockdev(v)
			if err != nil {
				return nil, fmt.Errorf("-blockdev: %w", err)
			}
			if id != "" {
				files[id] = file
			}
		case "-netdev":
			netdevs[p["id"]] = p["ifname"]
		case "-device":
			devices = append(devices, device{p[""], p})
			if p["name"] == "org.qemu.guest_agent.0" {
				agent = p["chardev"]
			}
		default:
			continue
		}
		i++
	}
	for _, a := range argv[1:] {
		c.paused = c.paused || a == "-S"
	}
	for _, d := range devices {
		if id := d.p["drive"]; files[id] != "" {
			boot := math.MaxInt
			if n, err := strconv.Atoi(d.p["bootindex"]); err == nil {
				boot = n
			}
			c.drives = append(c.drives, drive{
				id: strings.TrimPrefix(id, "drive-"), file: files[id], boot: boot,
				cdrom: cdrom[id] || strings.HasSuffix(d.model, "-cd"),
			})
			delete(files, id)
		}
		if tap, ok := netdevs[d.p["netdev"]]; ok && d.p["mac"] != "" {
			c.nics = append(c.nics, nic{id: d.p["netdev"], mac: d.p["mac"], tap: tap})
		}
	}
	for id, file := range files { // -drive without a -device of its own
		if file != "" {
			c.drives = append(c.drives, drive{id: strings.TrimPrefix(id, "drive-"), file: file, cdrom: cdrom[id], boot: math.MaxInt})
		}
	}
	c.qmp, c.qga = chardevs[monitor], chardevs[agent]
	if c.vmid == 0 || c.pidFile == "" {
		return nil, errors.New("-id and -pidfile are needed")
	}
	return c, nil
}

// blockdev gives the drive's id and file of PVE's nested JSON.
func blockdev(text string) (id, file string, err error) {
	var node struct {
		Name     string          `json:"node-name"`
		Filename string          `json:"filename"`
		File     json.RawMessage `json:"file"`
	}
	if !strings.HasPrefix(text, "{") {
		p := props(text)
		return p["node-name"], p["filename"], nil
	}
	raw := json.RawMessage(text)
	for depth := 0; len(raw) > 0 && depth < 8; depth++ {
		node.File, node.Filename = nil, ""
		if err := json.Unmarshal(raw, &node); err != nil {
			return "", "", err
		}
		if depth == 0 {
			id = node.Name
		}
		if node.Filename != "" {
			file = node.Filename
		}
		raw = node.File
	}
	if !strings.HasPrefix(id, "drive-") {
		return "", "", nil
	}
	return id, file, nil
}
