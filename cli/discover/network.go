package discover

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// link is one interface that the kernel has, by ip -j addr.
type link struct {
	Name  string `json:"ifname"`
	Infos []struct {
		Family string `json:"family"`
		Local  string `json:"local"`
		Bits   number `json:"prefixlen"`
		Scope  string `json:"scope"`
	} `json:"addr_info"`
}

// networks reads the bridges: which there are is in the host's configuration, which
// addresses they have the kernel says. (With changes that are not applied yet the two
// differ; a host by DHCP has its addresses nowhere else.)
func (o Outputs) networks(h *Host) error {
	var configured []struct {
		Name      string `json:"iface"`
		Type      string `json:"type"`
		CIDR      string `json:"cidr"`
		Gateway   string `json:"gateway"`
		VLANAware number `json:"bridge_vlan_aware"`
	}
	if err := o.decode(network, &configured); err != nil {
		return err
	}
	// Both are optional: what they would say is then unknown.
	var links []link
	var defaults []struct {
		Gateway string `json:"gateway"`
		Dev     string `json:"dev"`
	}
	kernel := o.decode(addresses, &links) == nil && len(links) > 0
	_ = o.decode(routes, &defaults)

	has, gateways := map[string][]netip.Prefix{}, map[string]netip.Addr{}
	if kernel {
		for _, l := range links {
			has[l.Name] = h.addressesOf(l)
		}
	}
	for _, c := range configured {
		if p, err := netip.ParsePrefix(c.CIDR); err == nil && !kernel && usual(p.Addr()) {
			has[c.Name] = append(has[c.Name], p)
			h.Addresses = append(h.Addresses, p.Addr())
		}
		if a, err := netip.ParseAddr(c.Gateway); err == nil && a.Zone() == "" {
			gateways[c.Name] = a
		}
	}
	for _, d := range defaults {
		if a, err := netip.ParseAddr(d.Gateway); err == nil && a.Zone() == "" {
			gateways[d.Dev] = a
		}
	}
	seen := map[string]bool{}
	for _, c := range configured {
		_, there := has[c.Name]
		switch {
		case seen[c.Name] || c.Type != "bridge" && c.Type != "OVSBridge":
			continue
		case !bridgeForm.MatchString(c.Name):
			h.Odd = append(h.Odd, fmt.Sprintf("bridge %q has no name for a Spec", Plain(c.Name)))
			continue
		case c.Type == "OVSBridge":
			h.Odd = append(h.Odd, "bridge "+c.Name+" is Open vSwitch's, which is not seen by agents")
			continue
		case kernel && !there:
			h.Odd = append(h.Odd, "bridge "+c.Name+" is configured and not there")
			continue
		}
		seen[c.Name] = true
		b := Bridge{Name: c.Name, VLANAware: c.VLANAware == 1}
		b.Nets = nets(nil, 0, has[c.Name], gateways[c.Name])
		for dev, prefixes := range has {
			// vmbr0.30 is the host's own interface in VLAN 30 of vmbr0.
			if m := vlanForm.FindStringSubmatch(dev); m != nil && m[1] == c.Name {
				if vlan, _ := strconv.Atoi(m[2]); vlan <= 4094 {
					b.Nets = nets(b.Nets, vlan, prefixes, gateways[dev])
				}
			}
		}
		slices.SortFunc(b.Nets, func(x, y Net) int {
			return cmp.Or(cmp.Compare(x.VLAN, y.VLAN), x.Subnet.Addr().Compare(y.Subnet.Addr()), cmp.Compare(x.Subnet.Bits(), y.Subnet.Bits()))
		})
		h.Bridges = append(h.Bridges, b)
	}
	slices.SortFunc(h.Bridges, func(a, b Bridge) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(h.Addresses, netip.Addr.Compare)
	h.Addresses = slices.Compact(h.Addresses)
	return nil
}

// addressesOf are the addresses of an interface, with their prefixes.
func (h *Host) addressesOf(l link) []netip.Prefix {
	all := []netip.Prefix{}
	for _, i := range l.Infos {
		a, err := netip.ParseAddr(i.Local)
		if err != nil || a.Zone() != "" || !usual(a) {
			continue
		}
		h.Addresses = append(h.Addresses, a)
		if p := netip.PrefixFrom(a, int(i.Bits.upTo(128))); p.IsValid() {
			all = append(all, p)
		}
	}
	return all
}

// usual says whether others can reach an address.
func usual(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsMulticast() && !a.Is4In6()
}

// nets adds the IPv4 networks that guests can be in.
func nets(all []Net, vlan int, prefixes []netip.Prefix, gateway netip.Addr) []Net {
	for _, p := range prefixes {
		if !p.Addr().Is4() || p.Bits() < 8 || p.Bits() > 30 {
			continue
		}
		n := Net{VLAN: vlan, Subnet: p.Masked()}
		if inside(n.Subnet, gateway) {
			n.Gateway = gateway
		}
		if !slices.ContainsFunc(all, func(o Net) bool { return o.VLAN == vlan && o.Subnet == n.Subnet }) {
			all = append(all, n)
		}
	}
	return all
}

// inside says whether a machine of the IPv4 subnet can have the address.
func inside(subnet netip.Prefix, a netip.Addr) bool {
	// The one after the last is outside.
	return subnet.Contains(a) && a != subnet.Masked().Addr() && subnet.Contains(a.Next())
}
