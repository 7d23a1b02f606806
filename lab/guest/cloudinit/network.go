package cloudinit

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Interface is how one NIC is to be set up.
type Interface struct {
	Name      string
	MAC       string // lower case, "" if the name alone says it
	DHCP      bool
	Addresses []netip.Prefix
	Gateway   string
	DNS       []string
}

// ParseNetwork reads network configuration, version 1 as Proxmox makes it or
// the common part of version 2. An empty text is DHCP on the first NIC, which
// is what cloud-init falls back to; it is given as a nil list.
func ParseNetwork(text string) ([]Interface, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	var doc struct {
		Version int    `yaml:"version"`
		Config  []item `yaml:"config"`

		Ethernets map[string]ethernet `yaml:"ethernets"`
		Network   yaml.Node           `yaml:"network"`
	}
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		return nil, fmt.Errorf("network-config: %w", err)
	}
	if doc.Network.Kind != 0 {
		b, err := yaml.Marshal(&doc.Network)
		if err != nil {
			return nil, err
		}
		return ParseNetwork(string(b))
	}
	switch doc.Version {
	case 1:
		return version1(doc.Config)
	case 2:
		return version2(doc.Ethernets)
	}
	return nil, fmt.Errorf("network-config: version %d is not simulated by hl-lab", doc.Version)
}

type item struct {
	Type    string    `yaml:"type"`
	Name    string    `yaml:"name"`
	MAC     string    `yaml:"mac_address"`
	Subnets []subnet  `yaml:"subnets"`
	Address yaml.Node `yaml:"address"`
}

type subnet struct {
	Type    string `yaml:"type"`
	Address string `yaml:"address"`
	Netmask string `yaml:"netmask"`
	Gateway string `yaml:"gateway"`
}

func version1(items []item) ([]Interface, error) {
	var out []Interface
	var dns []string
	var errs []error
	for _, i := range items {
		switch i.Type {
		case "physical":
			n := Interface{Name: i.Name, MAC: strings.ToLower(i.MAC)}
			for _, s := range i.Subnets {
				switch s.Type {
				case "dhcp", "dhcp4":
					n.DHCP = true
				case "static", "static4":
					p, err := prefix(s.Address, s.Netmask)
					if err != nil {
						errs = append(errs, err)
						continue
					}
					n.Addresses = append(n.Addresses, p)
					n.Gateway = s.Gateway
				case "static6", "dhcp6", "ipv6_slaac", "ipv6_dhcpv6-stateless", "manual":
					// The lab's network has no IPv6.
				default:
					errs = append(errs, fmt.Errorf("network-config: subnet type %q is not simulated by hl-lab", s.Type))
				}
			}
			out = append(out, n)
		case "nameserver":
			var list []string
			if i.Address.Kind == yaml.ScalarNode {
				list = []string{i.Address.Value}
			} else if err := i.Address.Decode(&list); err != nil {
				errs = append(errs, err)
			}
			dns = append(dns, list...)
		default:
			errs = append(errs, fmt.Errorf("network-config: type %q is not simulated by hl-lab", i.Type))
		}
	}
	for i := range out {
		out[i].DNS = dns
	}
	return out, errors.Join(errs...)
}

// prefix reads "10.0.0.5/24", or an address with a netmask beside it.
func prefix(addr, mask string) (netip.Prefix, error) {
	if strings.Contains(addr, "/") {
		return netip.ParsePrefix(addr)
	}
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("network-config: %w", err)
	}
	bits := a.BitLen()
	if mask != "" {
		ip := net.ParseIP(mask).To4()
		if ip == nil {
			return netip.Prefix{}, fmt.Errorf("network-config: netmask %q", mask)
		}
		ones, size := net.IPMask(ip).Size()
		if size == 0 {
			return netip.Prefix{}, fmt.Errorf("network-config: netmask %q", mask)
		}
		bits = ones
	}
	return netip.PrefixFrom(a, bits), nil
}

type ethernet struct {
	DHCP4     bool     `yaml:"dhcp4"`
	Addresses []string `yaml:"addresses"`
	Gateway4  string   `yaml:"gateway4"`
	SetName   string   `yaml:"set-name"`
	Match     struct {
		MAC string `yaml:"macaddress"`
	} `yaml:"match"`
	Nameservers struct {
		Addresses []string `yaml:"addresses"`
	} `yaml:"nameservers"`
	Routes []struct {
		To  string `yaml:"to"`
		Via string `yaml:"via"`
	} `yaml:"routes"`
}

func version2(eths map[string]ethernet) ([]Interface, error) {
	var out []Interface
	for name, e := range eths {
		n := Interface{Name: name, MAC: strings.ToLower(e.Match.MAC), DHCP: e.DHCP4, Gateway: e.Gateway4, DNS: e.Nameservers.Addresses}
		if e.SetName != "" {
			n.Name = e.SetName
		}
		for _, a := range e.Addresses {
			p, err := netip.ParsePrefix(a)
			if err != nil {
				return nil, fmt.Errorf("network-config: %w", err)
			}
			if p.Addr().Is4() {
				n.Addresses = append(n.Addresses, p)
			}
		}
		for _, r := range e.Routes {
			if r.To == "default" || r.To == "0.0.0.0/0" {
				n.Gateway = r.Via
			}
		}
		out = append(out, n)
	}
	return out, nil
}
