package spec

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"go.yaml.in/yaml/v3"
)

// check looks across the items of the Spec. Guests come in the order of the
// file, so that of two that clash the later one is at fault.
func (p *parser) check() {
	p.checkHosts()
	p.checkTemplates()
	vmids, nodes := map[int]owner{}, map[string]owner{}
	macs, addresses := map[string]owner{}, p.hostAddresses()
	devices := map[string]owner{}
	unnamed := 0
	for _, e := range p.guests {
		g := e.guest
		p.checkVMID(e, vmids)
		if g.VMID == 0 && !e.have["vmid"] {
			unnamed++
		}
		p.checkImage(e, "image", g.Image, ImageDisk)
		p.checkImage(e, "cdrom", g.CDROM, ImageISO)
		for i, nic := range g.NICs {
			p.checkNIC(e, i, nic, macs, addresses)
		}
		p.checkPlace(e)
		p.checkDevices(e, devices)
		p.checkRoute(e)
		if g.K3s != nil {
			at := p.at(e, "k3s.name", "k3s")
			claim(p, nodes, g.NodeName(), e, at, "k3s", "the node name %s is also %s's (line %d)", g.NodeName())
		}
		if g.Standby() && g.OnBoot {
			p.warn(p.at(e, "onboot", "state"), e.path, "is a cold standby that would start with its host: set onboot: false")
		}
	}
	p.checkFree(unnamed, vmids)
	p.checkCluster()
}

// owner is who had something first.
type owner struct {
	name string
	line int
}

// claim gives what to the guest, or reports who has it.
func claim[K comparable](p *parser, owners map[K]owner, what K, e guestEntry, at *yaml.Node, suffix, format string, shown any) {
	path := e.path
	if suffix != "" {
		path = join(path, suffix)
	}
	if first, taken := owners[what]; taken {
		p.fault(at, path, format, shown, first.name, first.line)
		return
	}
	owners[what] = owner{name: e.guest.Name, line: at.Line}
}

// at is the first of the guest's own nodes that is there, else its key.
func (p *parser) at(e guestEntry, keys ...string) *yaml.Node {
	for _, key := range keys {
		if n := p.nodes[join(e.path, key)]; n != nil {
			return n
		}
	}
	return e.key
}

func (p *parser) checkHosts() {
	seen := map[netip.Addr]owner{}
	for _, name := range p.spec.HostNames() {
		h, path := p.spec.Hosts[name], join("hosts", name)
		for _, network := range sortedKeys(h.Bridges) {
			if p.nodes[join("networks", network)] == nil {
				at := join(path, "bridges."+network)
				p.fault(p.nodes[at], at, "there is no network %s%s", network, hint(network, p.spec.NetworkNames()))
			}
		}
		if !h.Address.IsValid() {
			continue
		}
		at := join(path, "address")
		if first, taken := seen[h.Address]; taken {
			p.fault(p.nodes[at], at, "%s is also %s's (line %d)", h.Address, first.name, first.line)
			continue
		}
		seen[h.Address] = owner{name: name, line: p.nodes[at].Line}
	}
}

func (p *parser) hostAddresses() map[netip.Addr]owner {
	all := map[netip.Addr]owner{}
	for _, name := range p.spec.HostNames() {
		if a := p.spec.Hosts[name].Address; a.IsValid() {
			all[a] = owner{name: "host " + name, line: p.nodes["hosts."+name+".address"].Line}
		}
	}
	return all
}

func (p *parser) checkVMID(e guestEntry, vmids map[int]owner) {
	g := e.guest
	if g.VMID == 0 {
		return
	}
	at := p.at(e, "vmid")
	if p.spec.Protected(g.VMID) {
		p.fault(at, e.path, "VMID %d is in protect", g.VMID)
	}
	if p.templates != nil && p.spec.Templates.Contains(g.VMID) {
		p.fault(at, e.path, "VMID %d is in templates (line %d)", g.VMID, p.templates.Line)
	}
	claim(p, vmids, g.VMID, e, at, "", "VMID %d is also %s's (line %d)", g.VMID)
}

// checkFree counts the VMIDs that are left for guests that name none.
func (p *parser) checkFree(unnamed int, taken map[int]owner) {
	if unnamed == 0 {
		return
	}
	r := p.spec.VMIDs
	if r.First == 0 {
		for _, e := range p.guests {
			if !e.have["vmid"] && p.nodes["vmids"] == nil && !p.stated("vmids") {
				p.fault(e.key, e.path, "has no vmid, and the Spec has no vmids to take one from (as vmids: 200-299)")
			}
		}
		return
	}
	free := r.Last - r.First + 1
	for id := range taken {
		if r.Contains(id) && !p.spec.Protected(id) {
			free--
		}
	}
	for i, protected := range p.spec.Protect {
		first, last := max(protected.First, r.First), min(protected.Last, r.Last)
		for _, before := range p.spec.Protect[:i] { // sorted: count overlaps once
			first = max(first, before.Last+1)
		}
		free -= max(0, last-first+1)
	}
	if free < unnamed {
		line, column := locateNode(p.spec.root, "vmids")
		p.fault(&yaml.Node{Line: line, Column: column}, "vmids", "%d are free here, for guests that name none %d are needed", max(0, free), unnamed)
	}
}

// stated says whether a top-level key is in the file, well or not.
func (p *parser) stated(key string) bool {
	_, n := child(p.spec.root, key)
	return n != nil
}

func locateNode(root *yaml.Node, key string) (line, column int) {
	line, column, _ = locate(root, []string{key})
	return line, column
}

// checkTemplates wants the range that templates take their VMIDs from to be of no
// other use. One that is not stated may overlap: the planner leaves out what is
// taken.
func (p *parser) checkTemplates() {
	n, r := p.templates, p.spec.Templates
	if n == nil {
		return
	}
	if v := p.spec.VMIDs; r.overlaps(v) {
		line, _ := locateNode(p.spec.root, "vmids")
		p.fault(n, "templates", "%s overlaps vmids %s (line %d)", r, v, line)
	}
	_, protect := child(p.spec.root, "protect")
	if protect == nil {
		return
	}
	for i := range protect.Content {
		item := p.nodes[index("protect", i)]
		if item == nil {
			continue // a fault already
		}
		if v := readRange(item.Value); r.overlaps(v) {
			p.fault(n, "templates", "%s overlaps protect %s (line %d)", r, v, item.Line)
		}
	}
}

// checkImage wants the image that a guest names under a key to be there, and to be
// of the type that belongs there.
func (p *parser) checkImage(e guestEntry, key, name string, want ImageType) {
	if name == "" {
		return
	}
	at, path := p.at(e, key), join(e.path, key)
	image := p.spec.Images[name]
	switch {
	case p.nodes[join("images", name)] == nil:
		p.fault(at, path, "there is no image %s%s", name, hint(name, p.imagesOf(want)))
	case image == nil || image.Type == "" || image.Type == want: // or a fault already
	case want == ImageISO:
		p.fault(at, path, "%s is a disk image; what is put into a drive has type: iso%s", name, hint(name, p.imagesOf(want)))
	default:
		p.fault(at, path, "%s is an ISO file, which no guest is made from; cdrom: %s puts it into the drive%s", name, name, hint(name, p.imagesOf(want)))
	}
}

// imagesOf are the names of the images of a type.
func (p *parser) imagesOf(t ImageType) []string {
	return slices.DeleteFunc(p.spec.ImageNames(), func(name string) bool { return p.spec.Images[name].Type != t })
}

func (p *parser) checkNIC(e guestEntry, i int, nic NIC, macs map[string]owner, addresses map[netip.Addr]owner) {
	suffix := index("networks", i)
	at := func(key string) *yaml.Node { return p.at(e, suffix+"."+key, suffix, "networks") }
	if nic.Network != "" && p.nodes[join("networks", nic.Network)] == nil {
		p.fault(at("network"), join(e.path, suffix), "there is no network %s%s", nic.Network, hint(nic.Network, p.spec.NetworkNames()))
	}
	if nic.MAC != "" {
		claim(p, macs, nic.MAC, e, at("mac"), suffix+".mac", "%s is also %s's (line %d)", nic.MAC)
	}
	if nic.Address.IsValid() {
		claim(p, addresses, nic.Address.Addr(), e, at("ip"), suffix+".ip", "%s is also %s's (line %d)", nic.Address.Addr())
	}
}

// checkPlace compares the guest with its host. On a disabled host, which is
// skipped, nothing need be mapped.
func (p *parser) checkPlace(e guestEntry) {
	g := e.guest
	if g.Host == "" {
		return
	}
	h := p.spec.Hosts[g.Host]
	if h == nil {
		if p.nodes[join("hosts", g.Host)] == nil {
			p.fault(p.at(e, "host"), join(e.path, "host"), "there is no host %s%s", g.Host, hint(g.Host, p.spec.HostNames()))
		}
		return
	}
	if !h.Enabled {
		return
	}
	if h.Limits.CPUs > 0 && g.CPUs > h.Limits.CPUs {
		p.fault(p.at(e, "cpus"), join(e.path, "cpus"), "%d is more than host %s allows a guest (%d)", g.CPUs, h.Name, h.Limits.CPUs)
	}
	for i, nic := range g.NICs {
		if nic.Network == "" || p.nodes[join("networks", nic.Network)] == nil {
			continue
		}
		if _, ok := h.Bridge(nic.Network); !ok {
			at := index("networks", i)
			p.fault(p.at(e, at+".network", at, "networks"), join(e.path, at), "host %s has no bridge for network %s (hosts.%s.bridges)", h.Name, nic.Network, h.Name)
		}
	}
	for _, kind := range []string{"disks", "images", "snippets"} {
		if _, ok := h.Storage(kind); !ok {
			p.fault(p.at(e, "host"), e.path, "host %s names no storage for %s (hosts.%s.storage)", h.Name, kind, h.Name)
		}
	}
	for i, disk := range g.DataDisks {
		if disk.Storage == "" {
			continue
		}
		if _, ok := h.Storage(disk.Storage); !ok {
			at := index("dataDisks", i) + ".storage"
			p.fault(p.at(e, at), join(e.path, at), "host %s names no storage for %s%s", h.Name, disk.Storage, hint(disk.Storage, sortedKeys(h.Storages)))
		}
	}
}

// checkRoute warns of a member that would have no default route, without which
// k3s does not start.
func (p *parser) checkRoute(e guestEntry) {
	if e.guest.K3s == nil || len(e.guest.NICs) == 0 {
		return
	}
	for _, nic := range e.guest.NICs {
		n := p.spec.Networks[nic.Network]
		if n == nil || !nic.Address.IsValid() || n.Gateway.IsValid() {
			return
		}
	}
	p.warn(p.at(e, "networks"), join(e.path, "networks"), "has fixed addresses and no network with a gateway: k3s wants a default route")
}

// checkDevices lets a device be shared only by guests of which at most one is
// meant to run.
func (p *parser) checkDevices(e guestEntry, devices map[string]owner) {
	g := e.guest
	if slices.ContainsFunc(g.PCI, func(d string) bool { return pcieFlag(d) }) && !q35(g.Machine) {
		p.fault(p.at(e, "pci"), join(e.path, "pci"), "pcie=1 needs machine: q35")
	}
	if g.Standby() {
		return
	}
	for _, list := range []struct {
		key     string
		devices []string
	}{{"pci", g.PCI}, {"usb", g.USB}} {
		for _, device := range list.devices {
			if mapped(device) {
				continue // stands for several devices
			}
			what := g.Host + " " + list.key + " " + address(device)
			claim(p, devices, what, e, p.at(e, list.key), list.key, "%s is also passed to %s (line %d)", address(device))
		}
	}
}

func (p *parser) checkCluster() {
	var servers, agents, members []guestEntry
	for _, e := range p.guests {
		if e.guest.K3s == nil {
			continue
		}
		members = append(members, e)
		switch {
		case e.guest.IsServer() && !e.guest.Standby() && p.enabled(e.guest.Host):
			servers = append(servers, e)
		case e.guest.IsAgent():
			agents = append(agents, e)
		}
	}
	if len(members) == 0 {
		return
	}
	if p.spec.K3s == nil {
		if !p.stated("k3s") {
			p.fault(p.at(members[0], "k3s"), join(members[0].path, "k3s"), "the Spec has no k3s section with a version (as k3s: {version: v1.35.0+k3s1})")
		}
		return
	}
	if p.spec.K3s.Existing != nil {
		return // its servers may be anyone's
	}
	if len(servers) == 0 && len(agents) > 0 && !p.anyServer() && !p.anyUnclear() {
		p.fault(p.at(agents[0], "k3s"), join(agents[0].path, "k3s"), "no guest that is meant to run has role server: agents have nothing to join")
	}
	if n := len(servers); n > 0 && n%2 == 0 {
		last := servers[n-1]
		p.warn(p.at(last, "k3s"), join(last.path, "k3s"), "%d servers bear the loss of %s, no more than %d would: an odd number is better",
			n, count((n-1)/2), n-1)
	}
}

// anyServer says whether any guest that is meant to run is a server, on a
// disabled host too: the cluster may have been made when it was enabled.
func (p *parser) anyServer() bool {
	return slices.ContainsFunc(p.guests, func(e guestEntry) bool { return e.guest.IsServer() && !e.guest.Standby() })
}

// anyUnclear says whether a member's role is a fault already.
func (p *parser) anyUnclear() bool {
	return slices.ContainsFunc(p.guests, func(e guestEntry) bool { return e.guest.K3s != nil && e.guest.K3s.Role == "" })
}

func (p *parser) enabled(host string) bool {
	h := p.spec.Hosts[host]
	return h == nil || h.Enabled
}

func count(n int) string {
	if n == 0 {
		return "none"
	}
	return strconv.Itoa(n)
}

func hint(word string, known []string) string {
	if near := nearest(word, known); near != "" {
		return fmt.Sprintf(" (did you mean %s?)", near)
	}
	return ""
}
