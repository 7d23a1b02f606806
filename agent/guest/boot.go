package guest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/k3s"
)

// Verdict is whether a guest has booted. Exactly one of Booted, Waiting and
// Wrong says something.
type Verdict struct {
	Booted bool
	// Waiting is what is not so yet.
	Waiting string
	// Wrong is what no waiting will mend.
	Wrong string
	// CloudInitFailed: Wrong is that cloud-init ended with an error.
	CloudInitFailed bool
}

// Judge says whether a guest that could be looked into has booted: cloud-init is
// done, its hostname is the node name, its addresses are the expected ones.
// Hostname and addresses are judged when cloud-init is done, which sets them.
func Judge(want *homelabv1.GuestWant, p k3s.Probe) Verdict {
	switch {
	case !p.CloudInit.Known:
		return Verdict{Waiting: "cloud-init does not tell its state: " + p.CloudInit.Reason}
	case p.CloudInit.Value.Failed():
		return Verdict{Wrong: "cloud-init failed: " + cloudInitText(p.CloudInit.Value), CloudInitFailed: true}
	case !p.CloudInit.Value.Done():
		return Verdict{Waiting: "cloud-init is " + cloudInitText(p.CloudInit.Value)}
	case !p.Hostname.Known:
		return Verdict{Waiting: "its hostname is not known: " + p.Hostname.Reason}
	case want.GetNodeName() != "" && p.Hostname.Value != want.GetNodeName():
		return Verdict{Wrong: fmt.Sprintf("its hostname is %s and should be %s", p.Hostname.Value, want.GetNodeName())}
	case !p.Addresses.Known:
		return Verdict{Waiting: "its addresses are not known: " + p.Addresses.Reason}
	}
	for _, nic := range want.GetHardware().GetNics() {
		if v := judgeNic(nic, p.Addresses.Value); v != (Verdict{}) {
			return v
		}
	}
	return Verdict{Booted: true}
}

func cloudInitText(c k3s.CloudInit) string {
	text := c.Status
	for _, more := range append([]string{c.Detail}, c.Errors...) {
		if more != "" && !strings.Contains(text, more) {
			text += "; " + more
		}
	}
	return text
}

// judgeNic compares one interface; the zero verdict finds nothing wrong.
func judgeNic(nic *homelabv1.Nic, all []k3s.Address) Verdict {
	var got []netip.Prefix
	for _, a := range all {
		if a.MAC == "" || strings.EqualFold(a.MAC, nic.GetMac()) {
			got = append(got, a.Prefix)
		}
	}
	var seen []string
	for _, p := range got {
		seen = append(seen, p.Addr().String())
	}
	has := "no address"
	if len(seen) > 0 {
		has = strings.Join(seen, ", ")
	}
	if nic.GetAddress() != "" {
		want, err := netip.ParsePrefix(nic.GetAddress())
		switch {
		case err != nil:
			return Verdict{Wrong: fmt.Sprintf("the address %q of network %s is none", nic.GetAddress(), nic.GetNetwork())}
		case slices.ContainsFunc(got, func(p netip.Prefix) bool { return p.Addr() == want.Addr() }):
			return Verdict{}
		}
		return Verdict{Wrong: fmt.Sprintf("on network %s it has %s and should have %s", nic.GetNetwork(), has, want.Addr())}
	}
	if nic.GetSubnet() == "" {
		return Verdict{}
	}
	subnet, err := netip.ParsePrefix(nic.GetSubnet())
	switch {
	case err != nil:
		return Verdict{Wrong: fmt.Sprintf("the subnet %q of network %s is none", nic.GetSubnet(), nic.GetNetwork())}
	case slices.ContainsFunc(got, func(p netip.Prefix) bool { return subnet.Contains(p.Addr()) }):
		return Verdict{}
	case !slices.ContainsFunc(got, func(p netip.Prefix) bool { return p.Addr().Is4() == subnet.Addr().Is4() }):
		return Verdict{Waiting: fmt.Sprintf("it has no address yet on network %s (DHCP)", nic.GetNetwork())}
	}
	return Verdict{Wrong: fmt.Sprintf("on network %s it has %s, outside of the subnet %s", nic.GetNetwork(), has, subnet)}
}

// Addresses orders the guest's addresses by its wanted interfaces, first those
// that are wanted or in the wanted subnet. Without prefix length.
func Addresses(want *homelabv1.GuestWant, all []k3s.Address) []string {
	var first, rest []string
	for _, nic := range want.GetHardware().GetNics() {
		subnet, _ := netip.ParsePrefix(nic.GetSubnet())
		static, _ := netip.ParsePrefix(nic.GetAddress())
		for _, a := range all {
			if a.MAC != "" && !strings.EqualFold(a.MAC, nic.GetMac()) {
				continue
			}
			addr := a.Prefix.Addr()
			if addr == static.Addr() || (subnet.IsValid() && subnet.Contains(addr)) {
				first = append(first, addr.String())
			} else {
				rest = append(rest, addr.String())
			}
		}
	}
	var out []string
	for _, a := range append(first, rest...) {
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// WhereToLook gives the addresses at which a guest may be found before it was
// looked into: the static ones, and only them, when it has any; else those at
// which it was seen and those that its guest agent tells, in the subnets of its
// networks. Without prefix length.
func WhereToLook(want *homelabv1.GuestWant, told []string) []string {
	var out []string
	add := func(a string) {
		if a != "" && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	var subnets []netip.Prefix
	for _, nic := range want.GetHardware().GetNics() {
		if p, err := netip.ParsePrefix(nic.GetAddress()); err == nil {
			add(p.Addr().String())
		}
		if p, err := netip.ParsePrefix(nic.GetSubnet()); err == nil {
			subnets = append(subnets, p)
		}
	}
	if len(out) > 0 {
		return out
	}
	for _, a := range want.GetKnownAddresses() {
		add(a)
	}
	for _, a := range told {
		addr, err := netip.ParseAddr(a)
		if err != nil || addr.IsLinkLocalUnicast() {
			continue
		}
		if len(subnets) == 0 || slices.ContainsFunc(subnets, func(s netip.Prefix) bool { return s.Contains(addr) }) {
			add(addr.String())
		}
	}
	return out
}

// CloudInitLog is a script that prints the end of cloud-init's log, 4 kB at most.
const CloudInitLog = "tail -n 15 /var/log/cloud-init-output.log | tail -c 4096\n"
