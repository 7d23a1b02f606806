package spec

import (
	"net/netip"

	"go.yaml.in/yaml/v3"
)

func (p *parser) subnet(n *yaml.Node, path string) netip.Prefix {
	s, ok := p.scalar(n, path)
	if !ok {
		return netip.Prefix{}
	}
	prefix, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		p.fault(n, path, "%s is not a subnet (as 192.168.4.0/24)", show(s))
	case prefix.Addr().Is4In6():
		p.fault(n, path, "%s is an IPv4 subnet written as IPv6", show(s))
	case prefix.Masked() != prefix:
		p.fault(n, path, "%s has bits beyond its mask (the subnet is %s)", show(s), prefix.Masked())
	case prefix.Addr().IsMulticast():
		p.fault(n, path, "%s is not for machines", show(s))
	case prefix.Bits() == 0 || prefix.Addr().BitLen()-prefix.Bits() < 2:
		p.fault(n, path, "%s has no room for guests or no end", show(s))
	default:
		return prefix
	}
	return netip.Prefix{}
}

// unusable says why a machine of the subnet cannot have the address, "" when it
// can. An unknown subnet allows everything: it was a fault before.
func unusable(subnet netip.Prefix, a netip.Addr) string {
	switch {
	case !subnet.IsValid():
		return ""
	case !subnet.Contains(a):
		return "is outside of the subnet " + subnet.String()
	case a == subnet.Addr():
		return "is the network address of " + subnet.String()
	case a.Is4() && a == broadcast(subnet):
		return "is the broadcast address of " + subnet.String()
	}
	return ""
}

// broadcast is the last address of an IPv4 subnet.
func broadcast(subnet netip.Prefix) netip.Addr {
	b := subnet.Addr().As4()
	for bit := subnet.Bits(); bit < 32; bit++ {
		b[bit/8] |= 1 << (7 - bit%8)
	}
	return netip.AddrFrom4(b)
}
