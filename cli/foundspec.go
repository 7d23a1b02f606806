package cli

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/homeiac/homelab/cli/discover"
	"github.com/homeiac/homelab/internal/human"
	"github.com/homeiac/homelab/internal/spec"
)

// found is what init --from-hosts found. nil is nothing.
type found struct {
	hosts   []*foundHost
	answers []discover.Answer // on the port of the Kubernetes API

	networks []foundNetwork
}

// foundHost is one that was asked.
type foundHost struct {
	*discover.Host
	target  string     // as it was named
	address netip.Addr // for the Spec; zero when it is not known
	from    string     // where the address is from
	// kinds are what the Spec calls the storages that may have guests' disks.
	kinds map[string]string
}

// foundNetwork is a network that hosts have an address in, or a bridge on which no host
// has one: then it has no subnet.
type foundNetwork struct {
	name    string
	subnet  netip.Prefix
	gateway netip.Addr
	vlan    int
	note    string
	bridges map[string]string // by host
}

func (f *found) list() []*foundHost {
	if f == nil {
		return nil
	}
	return f.hosts
}

func (f *found) host(name string) *foundHost {
	for _, h := range f.list() {
		if h.Name == name {
			return h
		}
	}
	return nil
}

// names puts the networks in order. The first is the guests' own: what the .env file
// says of the order of their NICs counts before what most hosts have.
func (f *found) arrange(d *dotenv, env []envHost) {
	at := func(subnet netip.Prefix, vlan int) *foundNetwork {
		for i := range f.networks {
			if n := &f.networks[i]; n.subnet == subnet && n.vlan == vlan {
				return n
			}
		}
		f.networks = append(f.networks, foundNetwork{subnet: subnet, vlan: vlan, bridges: map[string]string{}})
		return &f.networks[len(f.networks)-1]
	}
	bare := map[string]*foundNetwork{}
	var order []string
	for _, h := range f.hosts {
		for _, b := range h.Bridges {
			for _, net := range b.Nets {
				n := at(net.Subnet, net.VLAN)
				if !n.gateway.IsValid() {
					n.gateway = net.Gateway
				}
				if n.bridges[h.Name] == "" || h.nic(env, b.Name) < h.nic(env, n.bridges[h.Name]) {
					n.bridges[h.Name] = b.Name
				}
			}
			if len(b.Nets) == 0 {
				if bare[b.Name] == nil {
					bare[b.Name] = &foundNetwork{bridges: map[string]string{}}
					order = append(order, b.Name)
				}
				bare[b.Name].bridges[h.Name] = b.Name
			}
		}
	}
	if subnet, gateway := staticSubnet(d.values["CLOUD_IP_CONFIG"]); subnet.IsValid() {
		n := at(subnet, 0)
		if !n.gateway.IsValid() {
			n.gateway, n.note = gateway, "CLOUD_IP_CONFIG"
		}
		if len(n.bridges) == 0 {
			f.place(n, env, bare)
		}
	}
	first := func(n foundNetwork) int {
		nic := 1 << 10
		for host, bridge := range n.bridges {
			nic = min(nic, f.host(host).nic(env, bridge))
		}
		return nic
	}
	without := func(is bool) int {
		if is {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(f.networks, func(a, b foundNetwork) int {
		return cmp.Or(cmp.Compare(first(a), first(b)), cmp.Compare(len(b.bridges), len(a.bridges)),
			cmp.Compare(without(!a.gateway.IsValid()), without(!b.gateway.IsValid())), cmp.Compare(a.vlan, b.vlan),
			a.subnet.Addr().Compare(b.subnet.Addr()), cmp.Compare(a.subnet.Bits(), b.subnet.Bits()))
	})
	for _, name := range order {
		if len(bare[name].bridges) > 0 {
			f.networks = append(f.networks, *bare[name])
		}
	}
	for i := range f.networks {
		f.networks[i].name = network(i)
	}
}

// place gives the .env file's network the bridges that the file names first, where the
// hosts themselves have no address.
func (f *found) place(n *foundNetwork, env []envHost, bare map[string]*foundNetwork) {
	n.note = "CLOUD_IP_CONFIG; no host has an address in it"
	for _, e := range env {
		if len(e.bridges) == 0 || bare[e.bridges[0]] == nil || bare[e.bridges[0]].bridges[e.name] == "" {
			continue
		}
		n.bridges[e.name] = e.bridges[0]
		delete(bare[e.bridges[0]].bridges, e.name)
	}
}

// answered are the answers on 6443.
func (f *found) answered() []discover.Answer {
	if f == nil {
		return nil
	}
	return f.answers
}

// envOf is what the .env file has of a host.
func envOf(env []envHost, name string) *envHost {
	if i := slices.IndexFunc(env, func(e envHost) bool { return e.name == name }); i >= 0 {
		return &env[i]
	}
	return nil
}

func (h *foundHost) cpus() int64 {
	if h == nil {
		return 0
	}
	return int64(h.CPUs)
}

func (h *foundHost) memory() int64 {
	if h == nil {
		return 0
	}
	return h.Memory
}

// nic is the place of a bridge in NETWORK_IFACES_n; far behind when it is not there.
func (h *foundHost) nic(env []envHost, bridge string) int {
	for _, e := range env {
		if i := slices.Index(e.bridges, bridge); e.name == h.Name && i >= 0 {
			return i
		}
	}
	return 1 << 10
}

// network is that of a guest's NIC on a host; nil when none is known.
func (f *found) network(host string, nic discover.NIC) *foundNetwork {
	for i := range f.networks {
		if n := &f.networks[i]; n.subnet.IsValid() && n.bridges[host] == nic.Bridge && nic.Bridge != "" && n.vlan == nic.VLAN {
			return n
		}
	}
	return nil
}

// known says whether a network has a subnet.
func (f *found) known() bool {
	return f != nil && slices.ContainsFunc(f.networks, func(n foundNetwork) bool { return n.subnet.IsValid() })
}

// foundNetworks writes the networks.
func (w *specText) foundNetworks(f *found, nics int) {
	w.off = !f.known()
	w.put(0, true, "networks:", "")
	for _, n := range f.networks {
		if !n.subnet.IsValid() {
			w.put(1, false, n.name+": {subnet: 192.168.5.0/24}", "fill in: the network of "+n.where()+", in which no host has an address")
			continue
		}
		text := "subnet: " + n.subnet.String()
		if n.gateway.IsValid() {
			text += ", gateway: " + n.gateway.String()
		}
		if n.vlan > 0 {
			text += ", vlan: " + strconv.Itoa(n.vlan)
		}
		w.put(1, true, n.name+": {"+text+"}", cmp.Or(n.note, n.where()))
	}
	for i := len(f.networks); i < nics; i++ {
		w.put(1, false, network(i)+": {subnet: 192.168.5.0/24}", fmt.Sprintf("fill in: the network of a guest's NIC %d", i+1))
	}
	if len(f.networks) == 0 && nics < 1 {
		w.put(1, false, "lan: {subnet: 192.168.4.0/24}", "fill in: the guests' network, and its gateway")
	}
	w.off = false
	w.WriteByte('\n')
}

// where is on which bridges a network was found.
func (n foundNetwork) where() string {
	var bridges []string
	for _, b := range n.bridges {
		if !slices.Contains(bridges, b) {
			bridges = append(bridges, b)
		}
	}
	slices.Sort(bridges)
	return strings.Join(bridges, ", ") + " on " + plural(len(n.bridges), "host", "hosts")
}

// foundHost writes a host, by what was found, and where that leaves a choice by the .env
// file.
func (w *specText) foundHost(f *found, h *foundHost, d *dotenv, e *envHost) {
	note := fmt.Sprintf("%s: Proxmox VE %s", h.target, h.Version)
	if h.CPUs > 0 && h.Memory > 0 {
		note += fmt.Sprintf(", %s, %s memory", plural(h.CPUs, "CPU", "CPUs"), human.Size(h.Memory))
	}
	w.put(1, true, word(h.Name)+":", note)
	if h.address.IsValid() {
		w.put(2, true, "address: "+yamlAddress(h.address), h.from)
	} else {
		w.put(2, false, "address: 192.168.4.11", "fill in: its IP address")
	}
	var known, unknown []foundNetwork
	for _, n := range f.networks {
		switch {
		case n.bridges[h.Name] == "":
		case n.subnet.IsValid():
			known = append(known, n)
		default:
			unknown = append(unknown, n)
		}
	}
	w.put(2, len(known) > 0, "bridges:", "")
	for _, n := range known {
		w.put(3, true, n.name+": "+word(n.bridges[h.Name]), h.bridgeNote(n.bridges[h.Name], ""))
	}
	for _, n := range unknown {
		w.put(3, false, n.name+": "+word(n.bridges[h.Name]), h.bridgeNote(n.bridges[h.Name], "of use once networks."+n.name+" is filled in"))
	}
	if len(known)+len(unknown) == 0 {
		w.put(3, false, "lan: vmbr0", "fill in: its bridge for each network")
	}
	for _, b := range h.Bridges {
		if !slices.ContainsFunc(f.networks, func(n foundNetwork) bool { return n.bridges[h.Name] == b.Name }) {
			w.put(3, false, "bridge "+b.Name+" is in a network that another bridge of the host is in too", "")
		}
	}
	if e != nil {
		for _, b := range e.bridges {
			if !slices.ContainsFunc(h.Bridges, func(have discover.Bridge) bool { return have.Name == b }) {
				w.put(3, false, fmt.Sprintf("bridge %s of %s is not there", b, e.key("NETWORK_IFACES")), "")
			}
		}
	}
	w.foundStorages(h, d, e)
	w.put(2, false, "reserve: {memory: 2GiB}", "fill in: what the host keeps for itself")
	for _, odd := range h.Odd {
		w.put(2, false, odd, "")
	}
}

func (h *foundHost) bridgeNote(bridge, note string) string {
	i := slices.IndexFunc(h.Bridges, func(b discover.Bridge) bool { return b.Name == bridge })
	if i >= 0 && h.Bridges[i].VLANAware {
		if note == "" {
			return "VLAN aware"
		}
		return "VLAN aware; " + note
	}
	return note
}

// storageNote is what is to be known of a storage.
func storageNote(s discover.Storage) string {
	return fmt.Sprintf("%s, %s free", s.Type, human.Size(s.Free))
}

// foundStorages chooses for each kind. What images are kept on must be a folder, and
// guests' disks are better on a storage of volumes.
func (w *specText) foundStorages(h *foundHost, d *dotenv, e *envHost) {
	disks, disksNote := h.choose(d, e, "IMG_STORAGE", func(s discover.Storage) int {
		switch {
		case !s.Holds("images"):
			return -1
		case s.Folder:
			return 0
		}
		return 1
	})
	images, imagesNote := h.choose(d, e, "STORAGE", func(s discover.Storage) int {
		rank := -1
		for _, content := range []string{"iso", "import", "snippets", "vztmpl"} {
			if s.Folder && s.Holds(content) {
				rank++
			}
		}
		return rank
	})
	snippets, snippetsNote := h.choose(d, nil, "", func(s discover.Storage) int {
		if !s.Folder || !s.Holds("snippets") {
			return -1
		}
		return 0
	})
	if snippets == "" {
		snippetsNote = "fill in: none has this content"
		if i := h.storage(images); i >= 0 {
			snippetsNote = fmt.Sprintf("fill in: no storage has snippets; pvesm set %s --content %s", images, strings.Join(append(slices.Clone(h.Storages[i].Content), "snippets"), ","))
		}
	}
	w.put(2, disks+images+snippets != "", "storage:", "")
	w.put(3, disks != "", "disks: "+word(cmp.Or(disks, "local-lvm")), cmp.Or(disksNote, "fill in: a storage with content images"))
	w.put(3, images != "", "images: "+word(cmp.Or(images, "local")), cmp.Or(imagesNote, "fill in: a storage for files (a directory)"))
	w.put(3, snippets != "", "snippets: "+word(cmp.Or(snippets, images, "local")), snippetsNote)
	h.kinds = map[string]string{}
	for _, s := range h.Storages {
		kind := ownKind(s.Name)
		switch {
		case !s.Holds("images"):
			continue
		case !s.Active:
			w.put(3, false, word(kind)+": "+word(s.Name), s.Type+", not active now")
			continue
		case s.Name == disks:
			kind = "disks"
		case s.Name == images:
			kind = "images"
		default:
			w.put(3, true, word(kind)+": "+word(s.Name), storageNote(s)+"; for dataDisks")
		}
		h.kinds[s.Name] = kind
	}
}

// ownKind is what a host's further storage for disks is called as a kind.
func ownKind(name string) string {
	kind := strings.ReplaceAll(name, ".", "-")
	if slices.Contains([]string{"disks", "images", "iso", "snippets"}, kind) {
		kind += "-storage"
	}
	return kind
}

func (h *foundHost) storage(name string) int {
	return slices.IndexFunc(h.Storages, func(s discover.Storage) bool { return s.Name == name && name != "" })
}

// choose takes the active storage of the highest rank (-1 is none), and of these the one
// with most room, but the one that the .env file names where it is possible.
func (h *foundHost) choose(d *dotenv, e *envHost, key string, rank func(discover.Storage) int) (name, note string) {
	best := -1
	for i, s := range h.Storages {
		if !s.Active || rank(s) < 0 {
			continue
		}
		if e != nil && d.values[e.key(key)] == s.Name {
			return s.Name, e.key(key) + ": " + storageNote(s)
		}
		if best < 0 || cmp.Or(cmp.Compare(rank(s), rank(h.Storages[best])), cmp.Compare(s.Free, h.Storages[best].Free)) > 0 {
			best = i
		}
	}
	if best < 0 {
		return "", ""
	}
	return h.Storages[best].Name, storageNote(h.Storages[best])
}

// strangers mentions the nodes of the hosts' clusters that were not asked.
func (w *specText) strangers(f *found) {
	told := map[string]bool{}
	for _, h := range f.list() {
		for _, n := range h.Others {
			if told[n.Name] || f.host(strings.ToLower(n.Name)) != nil {
				continue
			}
			told[n.Name] = true
			at := n.Name
			if n.Address.IsValid() {
				at = n.Address.String()
			}
			w.put(1, false, fmt.Sprintf("%s is in the Proxmox cluster of %s too and was not asked: --from-hosts root@%s", n.Name, h.Name, at), "")
		}
	}
}

// vmids writes which VMIDs are for guests, and which for nobody.
func (w *specText) vmids(f *found) {
	var keep, taken []int
	for _, h := range f.list() {
		taken = append(taken, h.Taken...)
		for _, g := range h.Guests {
			if g.Template {
				keep = append(keep, g.VMID)
			}
		}
		for _, c := range h.Containers {
			keep = append(keep, c.VMID)
		}
	}
	if ranges := vmidRanges(keep); len(ranges) > 0 {
		w.put(0, true, "protect: ["+strings.Join(ranges, ", ")+"]", "templates and containers; add what nothing may touch")
	} else {
		w.put(0, false, "protect: [100-199]", "fill in: VMIDs that nothing may touch")
	}
	for first := 200; f != nil && first < spec.DefaultTemplates.First; first += 100 {
		if !slices.ContainsFunc(taken, func(id int) bool { return first <= id && id < first+100 }) {
			w.put(0, true, fmt.Sprintf("vmids: %d-%d", first, first+99), "for guests that name none; none of these is taken")
			return
		}
	}
	w.put(0, false, "vmids: 200-299", "fill in: VMIDs for guests that name none")
}

// vmidRanges are the VMIDs as a Spec lists them.
func vmidRanges(ids []int) (ranges []string) {
	slices.Sort(ids)
	ids = slices.Compact(ids)
	for i := 0; i < len(ids); {
		r := spec.VMIDRange{First: ids[i], Last: ids[i]}
		for i++; i < len(ids) && ids[i] == r.Last+1; i++ {
			r.Last++
		}
		ranges = append(ranges, r.String())
	}
	return ranges
}

// existingServer is a server as k3s.existing has it.
func existingServer(user string, a netip.Addr) string {
	if a.Is6() {
		return strconv.Quote(user + "@" + a.String())
	}
	return user + "@" + a.String()
}

// yamlAddress is an address as YAML takes it for text: IPv6 ones hold colons.
func yamlAddress(a netip.Addr) string {
	if a.Is6() {
		return strconv.Quote(a.String())
	}
	return a.String()
}
