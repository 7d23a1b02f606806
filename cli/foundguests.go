package cli

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/homeiac/homelab/cli/discover"
	"github.com/homeiac/homelab/internal/human"
	"github.com/homeiac/homelab/internal/spec"
)

// looksLikeK3s is all that is said of what is in a guest: nothing is run there.
var looksLikeK3s = regexp.MustCompile(`(?i)k3s|k8s|kube`)

var (
	guestNameNot = regexp.MustCompile(`[^a-z0-9]+`)
	dataSlot     = regexp.MustCompile(`^scsi([1-9]|[12][0-9]|30)$`)
)

// foundGuests writes the VMs that are there, for adoption, and mentions the rest. All of
// it stands in a section that is commented out: what is not to be uncommented with it is
// a comment in that too.
func (w *specText) foundGuests(f *found, taken map[string]bool) {
	for _, h := range f.list() {
		for _, g := range h.Guests {
			if g.Template {
				w.part(1, false, fmt.Sprintf("template %d on %s: %s", g.VMID, h.Name, g.Title), "")
				continue
			}
			w.foundGuest(f, h, g, guestKey(g, taken))
		}
		for _, c := range h.Containers {
			w.part(1, false, fmt.Sprintf("container %d on %s: %s", c.VMID, h.Name, c.Title), "")
		}
	}
}

// guestKey is the name of a guest in the Spec: the VM's own where that is one and not
// another's already.
func guestKey(g discover.Guest, taken map[string]bool) string {
	key := g.Title
	if !spec.IsName(key) {
		key = strings.Trim(guestNameNot.ReplaceAllString(strings.ToLower(key), "-"), "-")
	}
	if !spec.IsName(key) {
		key = fmt.Sprintf("vm-%d", g.VMID)
	}
	for n := 0; taken[key]; n++ {
		key = fmt.Sprintf("vm-%d", g.VMID)
		if n > 0 {
			key += fmt.Sprintf("-%d", n)
		}
	}
	taken[key] = true
	return key
}

func (w *specText) foundGuest(f *found, h *foundHost, g discover.Guest, key string) {
	note := "there"
	switch g.Title {
	case key:
	case "":
		note += " without a name"
	default:
		note += " as " + g.Title
	}
	note += fmt.Sprintf(", %s; hlctl guests adopt %s", g.Power, key)
	w.part(1, true, word(key)+":", note)
	if g.Fleet != "" {
		w.part(2, false, "it has the mark of a fleet that is called "+g.Fleet, "")
	}
	w.part(2, true, "host: "+word(h.Name), "")
	w.part(2, true, fmt.Sprintf("vmid: %d", g.VMID), "")
	w.part(2, g.CPUs > 0, fmt.Sprintf("cpus: %d", max(1, g.CPUs)), fillUnless(g.CPUs > 0))
	whole := g.Memory >= 128*spec.MiB && g.Memory%spec.MiB == 0
	w.part(2, whole, "memory: "+sizeOr(whole, g.Memory, 4*spec.GiB), fillUnless(whole))
	w.foundDisks(h, g)
	w.foundNICs(f, h, g)
	if g.OVMF {
		w.part(2, true, "firmware: ovmf", "")
	}
	if g.Q35 {
		w.part(2, true, "machine: q35", "")
	}
	w.part(2, true, fmt.Sprintf("onboot: %t", g.OnBoot), "")
	if g.Power == discover.PowerStopped {
		w.part(2, true, "state: stopped", "as it was found")
	}
	w.part(2, true, "onUnhealthy: report", "nothing is done to it by itself")
	if len(g.Unplain) > 0 {
		w.part(2, false, "it has "+strings.Join(g.Unplain, ", ")+": see pci and usb", "")
	}
	if looksLikeK3s.MatchString(g.Title) {
		w.part(2, false, "k3s: {role: server}", "by its name it may be a member; fill in: server or agent")
	}
}

func fillUnless(known bool) string {
	if known {
		return ""
	}
	return "fill in"
}

func sizeOr(known bool, size, otherwise int64) string {
	if !known {
		size = otherwise
	}
	return spec.FormatSize(size)
}

// foundDisks writes the system disk, and as data disks what a Spec can say of the others.
func (w *specText) foundDisks(h *foundHost, g discover.Guest) {
	if len(g.Disks) == 0 {
		w.part(2, false, "disk: 50GiB", "fill in: it has none of a size that is known")
		return
	}
	system := g.Disks[0]
	fits := func(size int64) bool { return size >= spec.GiB && size%spec.MiB == 0 }
	w.part(2, fits(system.Size), "disk: "+sizeOr(fits(system.Size), system.Size, 50*spec.GiB), diskNote(system))
	var data []string
	for _, d := range g.Disks[1:] {
		if !dataSlot.MatchString(d.Slot) || !fits(d.Size) || h.kinds[d.Storage] == "" {
			w.part(2, false, "it has a disk at "+diskNote(d), "")
			continue
		}
		data = append(data, fmt.Sprintf("{slot: %s, storage: %s, size: %s}", d.Slot, word(h.kinds[d.Storage]), spec.FormatSize(d.Size)))
	}
	if len(data) > 0 {
		w.part(2, true, "dataDisks:", "these outlive the guest")
		for _, d := range data {
			w.part(3, true, "- "+d, "")
		}
	}
}

func diskNote(d discover.Disk) string {
	note := d.Slot
	if d.Storage != "" {
		note += " on " + d.Storage
	}
	if d.Size > 0 {
		note += ", " + human.Size(d.Size)
	}
	return note
}

// foundNICs writes the guest's interfaces, when the networks of all of them are known.
func (w *specText) foundNICs(f *found, h *foundHost, g discover.Guest) {
	known := len(g.NICs) > 0
	var nics []string
	var notes []string
	for i, nic := range g.NICs {
		n := f.network(h.Name, nic)
		if n == nil {
			known = false
			notes = append(notes, fmt.Sprintf("net%d is on %s", i, bridgeOf(nic)))
			continue
		}
		text := "network: " + n.name
		if a := nic.Address; a.IsValid() && a.Bits() == n.subnet.Bits() && usable(n, a.Addr()) {
			text += ", ip: " + a.String()
		} else if a.IsValid() {
			notes = append(notes, fmt.Sprintf("net%d has %s, which is not of %s", i, a, n.name))
		} else if nic.Seen.IsValid() {
			notes = append(notes, fmt.Sprintf("net%d was seen at %s", i, nic.Seen))
		}
		if nic.MAC != "" {
			text += fmt.Sprintf(", mac: %q", nic.MAC)
		}
		nics = append(nics, "{"+text+"}")
	}
	if !known {
		nics = []string{"lan"}
		if len(notes) == 0 {
			notes = []string{"it has no interface"}
		}
		notes = append([]string{"fill in"}, notes...)
	}
	w.part(2, known, "networks: ["+strings.Join(nics, ", ")+"]", strings.Join(notes, "; "))
}

func bridgeOf(nic discover.NIC) string {
	switch {
	case nic.Bridge == "":
		return "no bridge"
	case nic.VLAN > 0:
		return fmt.Sprintf("%s in VLAN %d", nic.Bridge, nic.VLAN)
	}
	return nic.Bridge
}

// usable says whether a guest can have the address in a network.
func usable(n *foundNetwork, a netip.Addr) bool {
	return n.subnet.Contains(a) && a != n.subnet.Addr() && a != n.gateway && n.subnet.Contains(a.Next())
}

// guestAddresses are those of guests that may be asked on the port of the Kubernetes API:
// in a private network, or in one of the hosts' own, since the hosts say what they like.
func (f *found) guestAddresses() (all []netip.Addr) {
	add := func(a netip.Addr) {
		near := a.IsPrivate()
		for _, h := range f.hosts {
			for _, b := range h.Bridges {
				near = near || slices.ContainsFunc(b.Nets, func(n discover.Net) bool { return n.Subnet.Contains(a) })
			}
		}
		if near {
			all = append(all, a)
		}
	}
	for _, h := range f.hosts {
		for _, g := range h.Guests {
			for _, nic := range g.NICs {
				add(nic.Address.Addr())
				add(nic.Seen)
			}
		}
		for _, c := range h.Containers {
			for _, a := range c.Addresses {
				add(a)
			}
		}
	}
	return all
}

// owner is which guest has an address.
func (f *found) owner(a netip.Addr) string {
	for _, h := range f.hosts {
		for _, g := range h.Guests {
			if slices.ContainsFunc(g.NICs, func(n discover.NIC) bool { return n.Address.Addr() == a || n.Seen == a }) {
				return fmt.Sprintf(" (VM %d, %s)", g.VMID, h.Name)
			}
		}
		for _, c := range h.Containers {
			if slices.Contains(c.Addresses, a) {
				return fmt.Sprintf(" (container %d, %s)", c.VMID, h.Name)
			}
		}
	}
	return ""
}

// answering is what is said of an answer on 6443.
func (f *found) answering(a discover.Answer) string {
	what := "something answers on"
	if a.K3s {
		what = "a k3s API answers on"
	}
	return fmt.Sprintf("%s %s%s", what, netip.AddrPortFrom(a.Address, 6443), f.owner(a.Address))
}
