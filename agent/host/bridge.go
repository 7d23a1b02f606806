package host

import (
	"os"
	"slices"
	"strconv"
	"strings"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

const netFolder = "sys/class/net"

// guestPorts begin the names of the interfaces that Proxmox makes for guests
// and their firewall: their carrier says nothing about the network outside.
var guestPorts = []string{"tap", "veth", "fwpr", "fwln"}

// bridges lists the Linux bridges. A bridge is an interface with a folder
// named bridge.
func (h *Host) bridges() ([]*homelabv1.Bridge, *homelabv1.Fact) {
	entries, err := os.ReadDir(h.Path(netFolder))
	if err != nil {
		return nil, unknown("%s", h.cause(err))
	}
	var out []*homelabv1.Bridge
	for _, e := range entries {
		if _, err := os.Stat(h.Path(netFolder, e.Name(), "bridge")); err == nil {
			out = append(out, h.bridge(e.Name()))
		}
	}
	return out, yes("")
}

func (h *Host) bridge(name string) *homelabv1.Bridge {
	ports, portsErr := h.outerPorts(name)
	b := &homelabv1.Bridge{Name: name}
	b.Up = h.bridgeUp(name, len(ports) > 0)
	if portsErr != nil {
		b.Carrier = unknown("%s", h.cause(portsErr))
	} else {
		b.Carrier = h.carrier(ports)
	}
	switch v, err := h.text(netFolder, name, "bridge", "vlan_filtering"); {
	case err != nil:
		b.VlanAware = unknown("%s", h.cause(err))
	case v == "1":
		b.VlanAware = yes("")
	default:
		b.VlanAware = no("vlan_filtering is %s", v)
	}
	if v, err := h.text(netFolder, name, "mtu"); err == nil {
		if n, err := strconv.ParseInt(v, 10, 32); err == nil {
			b.Mtu = int32(n)
		}
	}
	return b
}

// bridgeUp reads operstate. A bridge that was set up but has no port at all is
// "down" until its first guest's interface arrives; that one counts as up.
func (h *Host) bridgeUp(name string, outerPorts bool) *homelabv1.Fact {
	state, err := h.text(netFolder, name, "operstate")
	switch {
	case err != nil:
		return unknown("%s", h.cause(err))
	case state == "up" || state == "unknown": // the kernel's "unknown": up, without carrier detection
		return yes("")
	case !outerPorts && h.adminUp(name):
		return yes("no port yet")
	}
	return no("%s is %s", name, state)
}

// adminUp says whether IFF_UP (0x1) is set.
func (h *Host) adminUp(name string) bool {
	v, err := h.text(netFolder, name, "flags")
	if err != nil {
		return false
	}
	flags, err := strconv.ParseUint(strings.TrimPrefix(v, "0x"), 16, 64)
	return err == nil && flags&1 != 0
}

// outerPorts are the bridge's ports that are not guests'.
func (h *Host) outerPorts(name string) ([]string, error) {
	entries, err := os.ReadDir(h.Path(netFolder, name, "brif"))
	if err != nil {
		return nil, err
	}
	var ports []string
	for _, e := range entries {
		guest := slices.ContainsFunc(guestPorts, func(p string) bool { return strings.HasPrefix(e.Name(), p) })
		if !guest {
			ports = append(ports, e.Name())
		}
	}
	return ports, nil
}

// carrier says whether one of the ports has a carrier. Reading the carrier of
// an interface that is down is an error (EINVAL) and means there is none.
func (h *Host) carrier(ports []string) *homelabv1.Fact {
	if len(ports) == 0 {
		return no("no physical port")
	}
	for _, p := range ports {
		if v, err := h.text(netFolder, p, "carrier"); err == nil && v == "1" {
			return yes(p)
		}
	}
	return no("no carrier on %s", strings.Join(ports, ", "))
}
