package plan

import (
	"fmt"
	"slices"
	"strings"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// findings are all reasons against one thing, so that a person can mend them in
// one go.
type findings struct{ list []verdict }

func (f *findings) refuse(format string, args ...any) {
	f.list = append(f.list, refused(fmt.Sprintf(format, args...)))
}

func (f *findings) unknown(format string, args ...any) {
	f.list = append(f.list, skipped(fmt.Sprintf(format, args...)))
}

func (f *findings) add(v verdict) {
	if v.against() {
		f.list = append(f.list, v)
	}
}

// verdict is the refusals, or when there are none what is not known.
func (f *findings) verdict() verdict {
	for _, kind := range []homelabv1.NoteKind{
		homelabv1.NoteKind_NOTE_KIND_REFUSED, homelabv1.NoteKind_NOTE_KIND_BUSY, homelabv1.NoteKind_NOTE_KIND_SKIPPED,
	} {
		var texts []string
		for _, v := range f.list {
			if v.kind == kind {
				texts = append(texts, v.text)
			}
		}
		if len(texts) > 0 {
			return verdict{kind, strings.Join(texts, "\n")}
		}
	}
	return verdict{}
}

// bridges are the preconditions of a guest's interfaces. Proxmox notices a
// missing bridge only at the start, so they are looked at before create and
// before start.
func (m *model) bridges(g *guestView, f *findings) {
	h := g.host
	if !yes(h.obs.GetBridgesKnown()) {
		f.unknown("the bridges of %s are not known%s", h.name, because(h.obs.GetBridgesKnown()))
		return
	}
	done := map[string]bool{}
	for _, nic := range g.want.NICs {
		if done[nic.Network] {
			continue
		}
		done[nic.Network] = true
		key := "hosts." + h.name + ".bridges." + nic.Network
		name, ok := h.want.Bridge(nic.Network)
		if !ok {
			f.refuse("network %q is mapped to no bridge of %s\n%s", nic.Network, h.name, m.correct(key))
			continue
		}
		b := h.bridges[name]
		if b == nil {
			f.refuse("bridge %s is not there\n  network %q of host %s is mapped to %s; the host has %s\n  %s",
				name, nic.Network, h.name, name, bridgeList(h.obs.GetBridges()), m.correct(key))
			continue
		}
		m.bridge(h, b, nic.Network, f)
	}
}

func (m *model) bridge(h *hostView, b *homelabv1.Bridge, network string, f *findings) {
	n := m.spec.Networks[network]
	mapped := fmt.Sprintf("network %q of host %s is mapped to %s; the host has %s\n  %s", network, h.name, b.GetName(),
		bridgeList(h.obs.GetBridges()), m.correct("hosts."+h.name+".bridges."+network))
	fact := func(fact *homelabv1.Fact, what, not string) {
		switch {
		case no(fact):
			f.refuse("bridge %s of %s %s\n  %s", b.GetName(), h.name, not, mapped)
		case !yes(fact):
			f.unknown("whether bridge %s of %s %s is not known%s", b.GetName(), h.name, what, because(fact))
		}
	}
	fact(b.GetUp(), "is up", "is down")
	if yes(b.GetUp()) {
		fact(b.GetCarrier(), "has a carrier", "has no port with a carrier")
	}
	if n == nil {
		return
	}
	if n.VLAN != 0 {
		fact(b.GetVlanAware(), "is VLAN-aware", fmt.Sprintf("is not VLAN-aware, and network %q has tag %d", n.Name, n.VLAN))
	}
	switch {
	case n.MTU == 0:
	case b.GetMtu() == 0:
		f.unknown("the MTU of bridge %s of %s is not known; network %q needs %d", b.GetName(), h.name, n.Name, n.MTU)
	case int(b.GetMtu()) < n.MTU:
		f.refuse("the MTU of bridge %s of %s is %d; network %q needs %d", b.GetName(), h.name, b.GetMtu(), n.Name, n.MTU)
	}
}

func bridgeList(bridges []*homelabv1.Bridge) string {
	if len(bridges) == 0 {
		return "none"
	}
	words := make([]string, len(bridges))
	for i, b := range bridges {
		words[i] = b.GetName()
		switch {
		case yes(b.GetUp()):
			words[i] += " (up)"
		case no(b.GetUp()):
			words[i] += " (down)"
		}
	}
	slices.Sort(words)
	return strings.Join(words, ", ")
}

// devices are the preconditions of CPUs and passed-through devices.
func (m *model) devices(g *guestView, f *findings) {
	h := g.host
	key := "guests." + g.name
	if limit := h.want.Limits.CPUs; limit > 0 && g.want.CPUs > limit {
		f.refuse("%d CPUs needed, %s allows a guest %d (hosts.%s.limits.cpus)\n  %s", g.want.CPUs, h.name, limit, h.name, m.correct(key+".cpus"))
	}
	switch there := int(h.obs.GetCpus()) - h.want.Reserve.CPUs; {
	case h.obs.GetCpus() == 0:
		f.unknown("the number of CPUs of %s is not known", h.name)
	case g.want.CPUs > there:
		f.refuse("%d CPUs needed, %s has %d and keeps %d for itself\n  %s", g.want.CPUs, h.name, h.obs.GetCpus(), h.want.Reserve.CPUs, m.correct(key+".cpus"))
	}
	for _, d := range g.want.PCI {
		if a := deviceAddress(d); a != "" && !slices.ContainsFunc(h.obs.GetPciDevices(), func(there string) bool {
			return there == a || strings.HasPrefix(there, a+".")
		}) {
			f.refuse("PCI device %s is not there on %s\n  %s", a, h.name, m.correct(key+".pci"))
		}
	}
	for _, d := range g.want.USB {
		a := deviceAddress(d)
		if strings.Contains(a, "-") {
			a = "" // a port, which may be empty now
		}
		if a != "" && !slices.Contains(h.obs.GetUsbDevices(), a) {
			f.refuse("USB device %s is not there on %s\n  %s", a, h.name, m.correct(key+".usb"))
		}
	}
}

// deviceAddress is the long form of the address in a passthrough option; empty
// for a mapping of the PVE cluster, which only Proxmox can resolve.
func deviceAddress(option string) string {
	a, _, _ := strings.Cut(option, ",")
	switch {
	case strings.HasPrefix(a, "mapping="):
		return ""
	case len(a) >= 5 && a[2] == ':': // b3:00.0 is 0000:b3:00.0
		return "0000:" + a
	}
	return a
}
