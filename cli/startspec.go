package cli

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/homeiac/homelab/internal/human"
	"github.com/homeiac/homelab/internal/spec"
)

// predecessorNames is how the predecessor named its VMs unless it was told.
const predecessorNames = "k3s-vm-{node}"

// What of a .env file is written down. All else is left out and not shown, also where
// it says that something is wrong: it may be a secret that stands in the wrong line.
var (
	envBridge  = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]{0,14}$`)
	envStorage = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]{0,60}[A-Za-z0-9]$`)
	envUser    = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
	envSize    = regexp.MustCompile(`^([1-9][0-9]{0,6})([MGT])$`)
	envPath    = regexp.MustCompile(`^(~/)?[A-Za-z0-9_./-]+\.pub$`)
	envURL     = regexp.MustCompile(`^(https|http|file)://[A-Za-z0-9_./:~+%-]+$`)
	envIndexed = regexp.MustCompile(`^(NODE|STORAGE|IMG_STORAGE|CPU_RATIO|MEMORY_RATIO|NETWORK_IFACES)_([1-9][0-9]{0,3})$`)
	envSingle  = []string{
		"VM_NAME_TEMPLATE", "ISO_NAME", "ISO_URL", "CLOUD_USER", "SSH_PUBKEY_PATH", "CLOUD_IP_CONFIG", "VM_DISK_SIZE", "K3S_EXISTING_NODE_IP",
	}
	// keyPath is what the Spec takes for a path and not for a key.
	keyPath      = regexp.MustCompile(`^(~|\.|\.\.)?/`)
	imageNameNot = regexp.MustCompile(`[^a-z0-9]+`)
)

// unknown is how many keys of the file mean nothing here. Not which.
func (d *dotenv) unknown() int {
	n := 0
	for key := range d.values {
		if !envIndexed.MatchString(key) && !slices.Contains(envSingle, key) {
			n++
		}
	}
	return n
}

// get is the value of a key if it is of that form; note says where it is from, or
// what is to be filled in.
func (d *dotenv) get(key string, form *regexp.Regexp, fill string) (value, note string) {
	value, there := d.values[key]
	switch {
	case !there || value == "":
		return "", "fill in: " + fill
	case !form.MatchString(value):
		return "", key + " is of another form; fill in: " + fill
	}
	return value, key
}

// specText writes a Spec line by line, with a note beside each.
type specText struct {
	strings.Builder
	off bool // the whole section is commented out
}

const noteColumn = 44

// put writes a line; one that is not known is commented out, as an example.
func (w *specText) put(indent int, known bool, text, note string) {
	line := strings.Repeat("  ", indent)
	switch {
	case w.off:
		line = "# " + line
	case !known:
		line += "# "
	}
	line += text
	if note != "" {
		line = fmt.Sprintf("%-*s # %s", noteColumn, line, note)
	}
	w.WriteString(line + "\n")
}

// part is put for a line of a section that is commented out: one that is not known stays
// a comment when the section is taken in.
func (w *specText) part(indent int, known bool, text, note string) {
	if !known {
		text = "# " + text
	}
	w.put(indent, true, text, note)
}

// word is a text as YAML has it: null, 007 and 2026-01-01 are none without quotes.
func word(text string) string {
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil || v != any(text) {
		return strconv.Quote(text)
	}
	return text
}

// envHost is one NODE_n.
type envHost struct {
	n       int
	name    string
	bridges []string
}

func (h envHost) key(name string) string { return name + "_" + strconv.Itoa(h.n) }

// startingSpec is a Spec to go on with: what was found and what the .env file says, and
// commented out, with what is to be put there, what neither says. It has no guests yet.
func startingSpec(fleet string, d *dotenv, f *found) []byte {
	w := new(specText)
	fmt.Fprintf(w, `# What there should be in fleet %s. Keys that are commented out are to be filled in.
# hlctl validate -f FILE checks it and asks nobody; hlctl plan -f FILE changes nothing.
# A Spec with everything in it: docs/examples/homelab.yaml.
apiVersion: %s
name: %s

`, fleet, spec.APIVersion, word(fleet))
	w.vmids(f)
	w.WriteByte('\n')
	hosts, odd := d.hosts()
	subnet := w.networks(d, hosts, f)
	w.hosts(d, hosts, odd, subnet, f)
	image := w.images(d)
	user := w.defaults(d, image)
	w.guests(d, hosts, f)
	w.cluster(d, user, f)
	return []byte(w.String())
}

// hosts are the nodes by their numbers, and the keys whose value is no name of a host
// or that of another.
func (d *dotenv) hosts() (hosts []envHost, odd []string) {
	seen := map[string]bool{}
	for _, key := range slices.Sorted(maps.Keys(d.values)) {
		m := envIndexed.FindStringSubmatch(key)
		if m == nil || m[1] != "NODE" {
			continue
		}
		name := d.values[key]
		if !spec.IsName(name) || seen[name] {
			odd = append(odd, key)
			continue
		}
		seen[name] = true
		h := envHost{name: name}
		h.n, _ = strconv.Atoi(m[2]) // four digits
		for b := range strings.SplitSeq(d.values[h.key("NETWORK_IFACES")], ",") {
			if b = strings.TrimSpace(b); envBridge.MatchString(b) {
				h.bridges = append(h.bridges, b)
			}
		}
		hosts = append(hosts, h)
	}
	slices.SortFunc(hosts, func(a, b envHost) int { return cmp.Compare(a.n, b.n) })
	return hosts, odd
}

// network is what the network of a guest's NIC is called, counted from 0.
func network(nic int) string {
	if nic == 0 {
		return "lan"
	}
	return "lan" + strconv.Itoa(nic+1)
}

// networks says whether the first one is known.
func (w *specText) networks(d *dotenv, hosts []envHost, f *found) bool {
	nics := 1
	for _, h := range hosts {
		nics = max(nics, len(h.bridges))
	}
	if f != nil {
		f.arrange(d, hosts)
		w.foundNetworks(f, nics)
		return f.known()
	}
	subnet, gateway := staticSubnet(d.values["CLOUD_IP_CONFIG"])
	w.off = !subnet.IsValid()
	w.put(0, true, "networks:", "")
	switch {
	case !subnet.IsValid():
		w.put(1, false, "lan: {subnet: 192.168.4.0/24}", "fill in: the guests' network, and its gateway")
	case gateway.IsValid():
		w.put(1, true, fmt.Sprintf("lan: {subnet: %s, gateway: %s}", subnet, gateway), "CLOUD_IP_CONFIG")
	default:
		w.put(1, true, fmt.Sprintf("lan: {subnet: %s}", subnet), "CLOUD_IP_CONFIG")
	}
	for i := 1; i < nics; i++ {
		w.put(1, false, network(i)+": {subnet: 192.168.5.0/24}", fmt.Sprintf("fill in: the network of a guest's NIC %d", i+1))
	}
	w.off = false
	w.WriteByte('\n')
	return subnet.IsValid()
}

// staticSubnet is what an ipconfig0 of Proxmox says of the network; nothing for DHCP.
func staticSubnet(config string) (subnet netip.Prefix, gateway netip.Addr) {
	for part := range strings.SplitSeq(config, ",") {
		key, value, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok {
			key, value = "ip", key
		}
		switch key {
		case "ip":
			if p, err := netip.ParsePrefix(value); err == nil && p.Addr().Is4() && p.Addr().IsPrivate() && p.Bits() >= 8 && p.Bits() <= 29 {
				subnet = p.Masked()
			}
		case "gw":
			gateway, _ = netip.ParseAddr(value)
		}
	}
	if !subnet.Contains(gateway) || gateway == subnet.Addr() || !subnet.Contains(gateway.Next()) {
		gateway = netip.Addr{}
	}
	return subnet, gateway
}

func (w *specText) hosts(d *dotenv, hosts []envHost, odd []string, subnet bool, f *found) {
	for _, key := range odd {
		w.put(0, false, key+" is no name of a host, or that of another one", "")
	}
	w.off = len(hosts)+len(f.list()) == 0
	w.put(0, true, "hosts:", "")
	for _, h := range f.list() {
		w.foundHost(f, h, d, envOf(hosts, h.Name))
	}
	w.strangers(f)
	if w.off {
		w.put(1, false, "pve1:", "fill in: the name that the host calls itself")
		w.put(2, false, "address: 192.168.4.11", "fill in: its IP address")
		w.put(2, false, "bridges: {lan: vmbr0}", "fill in: its bridge for each network")
		w.put(2, false, "storage: {disks: local-lvm, images: local, snippets: local}", "fill in: its storages, see pvesm status")
	}
	for _, h := range hosts {
		if f.host(h.name) != nil {
			continue
		}
		w.put(1, true, word(h.name)+":", h.key("NODE"))
		w.put(2, false, "address: 192.168.4.11", "fill in: its IP address, where it has several")
		note := h.key("NETWORK_IFACES")
		if len(h.bridges) == 0 {
			note = "fill in: its bridge for each network"
			h.bridges = []string{"vmbr0"}
		} else if !subnet {
			note += ", of use once there are networks"
		}
		known := subnet && note == h.key("NETWORK_IFACES")
		w.put(2, known, "bridges:", "")
		for i, b := range h.bridges {
			w.put(3, known && i == 0, network(i)+": "+word(b), note)
		}
		w.storages(d, h)
	}
	w.off = false
	w.WriteByte('\n')
}

// storages: the predecessor imported disks into IMG_STORAGE_n, and put the image's file
// into STORAGE_n.
func (w *specText) storages(d *dotenv, h envHost) {
	disks, disksNote := d.get(h.key("IMG_STORAGE"), envStorage, "a storage for VM disks")
	images, imagesNote := d.get(h.key("STORAGE"), envStorage, "a storage for files (a directory)")
	if disks == "" && images != "" {
		disks, disksNote = images, imagesNote
	}
	if images == disks && images != "local" {
		images, imagesNote = "", "fill in: a storage for files (a directory)"
	}
	w.put(2, disks != "" || images != "", "storage:", "")
	w.put(3, disks != "", "disks: "+word(cmp.Or(disks, "local-lvm")), disksNote)
	w.put(3, images != "", "images: "+word(cmp.Or(images, "local")), imagesNote)
	w.put(3, false, "snippets: local", "fill in: a storage with content snippets")
}

// images gives the name of the image that guests are made from, "" when it is not known.
func (w *specText) images(d *dotenv) string {
	address, note := d.get("ISO_URL", envURL, "where it is downloaded from")
	parsed, err := url.Parse(address)
	// A URL with a user in it has a password, mostly.
	if address != "" && (err != nil || parsed.User != nil || parsed.Scheme != "file" && parsed.Hostname() == "" || parsed.Scheme == "file" && parsed.Host != "") {
		address, note = "", "ISO_URL is of another form; fill in: where it is downloaded from"
	}
	file, from := d.values["ISO_NAME"], ", named after ISO_NAME"
	if file == "" && address != "" {
		file, from = path.Base(parsed.Path), ""
	}
	iso := strings.HasSuffix(strings.ToLower(file), ".iso")
	name := strings.Trim(imageNameNot.ReplaceAllString(strings.ToLower(strings.TrimSuffix(file, path.Ext(file))), "-"), "-")
	if !spec.IsName(name) || address == "" {
		name, from = "noble", ""
	}
	w.off = address == ""
	w.put(0, true, "images:", "")
	w.put(1, true, word(name)+":", "")
	if iso && address != "" {
		w.put(2, true, "type: iso", "for a guest's cdrom; guests are made from a cloud image")
	}
	w.put(2, true, "url: "+word(cmp.Or(address, "https://cloud-images.ubuntu.com/noble/current/noble-server-cloudimg-amd64.img")), note+from)
	sums := "https://cloud-images.ubuntu.com/noble/current/SHA256SUMS"
	if address != "" && parsed.Scheme != "file" {
		sums = strings.TrimSuffix(address, path.Base(address)) + "SHA256SUMS"
	}
	w.put(2, false, "checksums: "+sums, "fill in: its list of checksums, or sha256:")
	off := w.off
	w.off = false
	w.WriteByte('\n')
	if off || iso {
		return ""
	}
	return name
}

// defaults gives the user of guests.
func (w *specText) defaults(d *dotenv, image string) string {
	w.put(0, true, "defaults:", "under every guest")
	note := ""
	if image == "" {
		note = "fill in: one of images"
	}
	w.put(1, image != "", "image: "+word(cmp.Or(image, "noble")), note)
	user, note := d.get("CLOUD_USER", envUser, "the user in guests, who gets sudo; this is the default")
	if user == "root" {
		user, note = "", "CLOUD_USER is root, who cannot log in on cloud images"
	}
	w.put(1, user != "", "user: "+word(cmp.Or(user, "ubuntu")), note)
	key, note := d.get("SSH_PUBKEY_PATH", envPath, "your public SSH key, a file on this machine")
	if key != "" && !keyPath.MatchString(key) {
		key = "./" + key
	}
	w.put(1, key != "", "sshKeys: ["+word(cmp.Or(key, "~/.ssh/id_ed25519.pub"))+"]", note)
	w.put(1, true, "networks: [lan]", "")
	size, note := d.get("VM_DISK_SIZE", envSize, "the system disk")
	if size != "" {
		size += "iB"
		if bytes, err := spec.ParseSize(size); err != nil || bytes < spec.MinDisk {
			size, note = "", "VM_DISK_SIZE is no size of a system disk; fill in: the system disk"
		}
	}
	w.put(1, size != "", "disk: "+cmp.Or(size, "50GiB"), note)
	w.WriteByte('\n')
	return cmp.Or(user, "ubuntu")
}

func (w *specText) guests(d *dotenv, hosts []envHost, f *found) {
	w.off = true
	w.put(0, true, "guests:", "")
	there := map[string]bool{}
	for _, h := range f.list() {
		for _, g := range h.Guests {
			there[g.Title] = true
		}
	}
	names, from := d.values["VM_NAME_TEMPLATE"], "VM_NAME_TEMPLATE"
	if names == "" {
		names, from = predecessorNames, "the predecessor's default"
	}
	if len(hosts) == 0 {
		hosts, names = []envHost{{name: "pve1"}}, predecessorNames
		from = "fill in: guests; three with role server make a cluster"
		if f != nil {
			hosts[0].name = f.hosts[0].Name
		}
	}
	seen := map[string]bool{}
	for _, h := range hosts {
		name, note := strings.ReplaceAll(names, "{node}", h.name), from
		if !spec.IsName(name) || seen[name] {
			name, note = strings.ReplaceAll(predecessorNames, "{node}", h.name), "VM_NAME_TEMPLATE is of another form; fill in: a name"
		}
		if there[name] {
			continue // and is to be adopted
		}
		seen[name] = true
		w.put(1, true, word(name)+":", note)
		w.put(2, true, "host: "+word(h.name), "")
		w.shares(d, h, f.host(h.name))
		w.put(2, true, "k3s: {role: server}", "")
	}
	w.foundGuests(f, seen)
	w.off = false
	w.WriteByte('\n')
}

// shares are a guest's CPUs and memory: numbers where the host was found.
func (w *specText) shares(d *dotenv, e envHost, h *foundHost) {
	share, note := ratio(d, e.key("CPU_RATIO"), "of the host's CPUs")
	cpus := 2
	if n := share.of(h.cpus()); n > 0 {
		cpus, note = int(n), fmt.Sprintf("%s: %s of %d", e.key("CPU_RATIO"), share, h.cpus())
	}
	w.put(2, true, fmt.Sprintf("cpus: %d", cpus), note)
	share, note = ratio(d, e.key("MEMORY_RATIO"), "of what the host has left")
	memory := cmp.Or(share.String(), "4GiB")
	if n := share.of(h.memory()/memoryStep) * memoryStep; n > 0 {
		memory, note = spec.FormatSize(n), fmt.Sprintf("%s: %s of %s", e.key("MEMORY_RATIO"), share, human.Size(h.memory()))
	}
	w.put(2, true, "memory: "+memory, note)
}

// memoryStep is what a guest's memory is rounded down to.
const memoryStep = 256 * spec.MiB

// percent is a share; 0 is none.
type percent int

func (p percent) String() string {
	if p == 0 {
		return ""
	}
	return strconv.Itoa(int(p)) + "%"
}

// of is that share of n, rounded down, but not to nothing.
func (p percent) of(n int64) int64 {
	if p == 0 || n <= 0 {
		return 0
	}
	return max(1, n*int64(p)/100)
}

// ratio is a share as the Spec has it, 0 when it is not known.
func ratio(d *dotenv, key, of string) (share percent, note string) {
	text := d.values[key]
	r, err := strconv.ParseFloat(text, 64)
	if p := math.Round(r * 100); err == nil && p >= 1 && p <= 100 {
		share = percent(p)
	}
	switch {
	case text == "" || !envIndexed.MatchString(key): // an example's, which is of no NODE_n
		return 0, "fill in"
	case share == 0:
		return 0, key + " is of another form; fill in"
	case strings.HasPrefix(key, "CPU"):
		return share, fmt.Sprintf("fill in: %s is %s %s", key, share, of)
	}
	return share, fmt.Sprintf("%s, %s", key, of)
}

func (w *specText) cluster(d *dotenv, user string, f *found) {
	w.off = true
	w.put(0, true, "k3s:", "")
	w.put(1, true, "version: v1.35.0+k3s1", "fill in: the version; a join with another one is refused")
	text := d.values["K3S_EXISTING_NODE_IP"]
	if answers := f.answered(); len(answers) > 0 {
		for _, a := range answers {
			w.part(1, false, f.answering(a), "")
		}
		if text == "" {
			w.put(1, true, "existing:", "to join that cluster; without it a new one is made")
			w.put(2, true, "server: "+existingServer(user, answers[0].Address), "fill in: who may sudo there")
			w.put(2, true, `hostKey: "ssh-ed25519 AAAA…"`, "fill in: its /etc/ssh/ssh_host_ed25519_key.pub")
		}
	}
	if text == "" {
		return
	}
	server, err := netip.ParseAddr(text)
	if err != nil || server.Zone() != "" {
		w.put(1, true, "existing: {}", "K3S_EXISTING_NODE_IP is of another form; fill in: a server of the cluster")
		return
	}
	w.put(1, true, "existing:", "the cluster that was made elsewhere")
	w.put(2, true, "server: "+existingServer(user, server), "K3S_EXISTING_NODE_IP")
	w.put(2, true, `hostKey: "ssh-ed25519 AAAA…"`, "fill in: its /etc/ssh/ssh_host_ed25519_key.pub")
}
