package pve

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// nic is one network device of a VM.
type nic struct {
	index int
	opts  map[string]string
}

func nics(s section) []nic {
	var list []nic
	for i := range 32 {
		if v := s[fmt.Sprintf("net%d", i)]; v != "" {
			opts, _ := parseNet("net", v)
			list = append(list, nic{index: i, opts: opts})
		}
	}
	return list
}

func (h *Host) link(name string, elem ...string) string {
	return h.path(append([]string{"sys/class/net", name}, elem...)...)
}

func (h *Host) hasLink(name string) bool {
	_, err := os.Stat(h.link(name))
	return err == nil
}

func (h *Host) linkFile(name, file string) string {
	data, _ := os.ReadFile(h.link(name, file))
	return strings.TrimSpace(string(data))
}

func (h *Host) bridgeMTU(name string) int {
	n, _ := strconv.Atoi(h.linkFile(name, "mtu"))
	return n
}

func (h *Host) vlanAware(bridge string) bool {
	return h.linkFile(bridge, "bridge/vlan_filtering") == "1"
}

// physicalPorts are a bridge's ports that are no guest's.
func (h *Host) physicalPorts(bridge string) []string {
	entries, err := os.ReadDir(h.link(bridge, "brif"))
	if err != nil {
		return nil
	}
	var ports []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "tap") && !strings.HasPrefix(e.Name(), "fwpr") {
			ports = append(ports, e.Name())
		}
	}
	return ports
}

// writeLink makes the files of one interface in sys/class/net.
func (h *Host) writeLink(name string, mtu int, up bool) error {
	if err := os.MkdirAll(h.link(name), 0o755); err != nil {
		return err
	}
	state, carrier := "up", "1"
	if !up {
		state, carrier = "down", "0"
	}
	for file, text := range map[string]string{"operstate": state, "carrier": carrier, "mtu": strconv.Itoa(mtu)} {
		if err := os.WriteFile(h.link(name, file), []byte(text+"\n"), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// writeBridges makes sys/class/net and the node's network configuration agree
// with the host's settings. A bridge that was taken out of them goes.
func (h *Host) writeBridges() error {
	if h.cfg.Own {
		return nil
	}
	var interfaces strings.Builder
	interfaces.WriteString("auto lo\niface lo inet loopback\n")
	keep := []string{"lo"}
	if err := h.writeLink("lo", 65536, true); err != nil {
		return err
	}
	for _, b := range h.cfg.Bridges {
		mtu := b.MTU
		if mtu == 0 {
			mtu = 1500
		}
		keep = append(append(keep, b.Name), b.Ports...)
		if err := h.writeBridge(b, mtu); err != nil {
			return err
		}
		for _, p := range b.Ports {
			fmt.Fprintf(&interfaces, "\niface %s inet manual\n", p)
		}
		fmt.Fprintf(&interfaces, "\nauto %s\niface %s inet manual\n\tbridge-ports %s\n\tbridge-stp off\n\tbridge-fd 0\n",
			b.Name, b.Name, strings.Join(b.Ports, " "))
	}
	entries, err := os.ReadDir(h.path("sys/class/net"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !slices.Contains(keep, e.Name()) && !strings.HasPrefix(e.Name(), "tap") {
			if err := os.RemoveAll(h.link(e.Name())); err != nil {
				return err
			}
		}
	}
	return os.WriteFile(h.path("etc/network/interfaces"), []byte(interfaces.String()), 0o644)
}

func (h *Host) writeBridge(b BridgeConfig, mtu int) error {
	if err := h.writeLink(b.Name, mtu, !b.Down && len(b.Ports) > 0); err != nil {
		return err
	}
	for _, d := range []string{"bridge", "brif"} {
		if err := os.MkdirAll(h.link(b.Name, d), 0o755); err != nil {
			return err
		}
	}
	vlan := "0"
	if b.VLANAware {
		vlan = "1"
	}
	if err := os.WriteFile(h.link(b.Name, "bridge/vlan_filtering"), []byte(vlan+"\n"), 0o644); err != nil {
		return err
	}
	for _, p := range h.physicalPorts(b.Name) {
		if !slices.Contains(b.Ports, p) {
			if err := os.Remove(h.link(b.Name, "brif", p)); err != nil {
				return err
			}
		}
	}
	for _, p := range b.Ports {
		if err := h.writeLink(p, mtu, !b.Down); err != nil {
			return err
		}
		if err := link(filepath.Join("../..", p), h.link(b.Name, "brif", p)); err != nil {
			return err
		}
	}
	return nil
}

// plugNICs makes the tap interfaces of a starting VM. A machine by itself gets none: its
// guests have addresses of its own bridge.
func (h *Host) plugNICs(vmid string, s section) error {
	for _, n := range nics(s) {
		if err := h.plugNIC(vmid, n); err != nil {
			return err
		}
	}
	return nil
}

func (h *Host) plugNIC(vmid string, n nic) error {
	bridge := n.opts["bridge"]
	if bridge == "" || h.cfg.Own {
		return nil
	}
	tap := fmt.Sprintf("tap%si%d", vmid, n.index)
	if err := h.writeLink(tap, h.bridgeMTU(bridge), n.opts["link_down"] != "1"); err != nil {
		return err
	}
	if err := os.WriteFile(h.link(tap, "operstate"), []byte("unknown\n"), 0o644); err != nil {
		return err
	}
	return link(filepath.Join("../..", tap), h.link(bridge, "brif", tap))
}

// ownTaps notes which process holds a VM's taps: a tap is busy as long as it
// lives, whatever the pid file says.
func (h *Host) ownTaps(vmid string, pid int) error {
	return os.WriteFile(h.path("var/lib/lab/taps", vmid), []byte(strconv.Itoa(pid)), 0o644)
}

// tapOwner is the live kvm that holds a tap, or 0.
func (h *Host) tapOwner(tap, vmid string) int {
	data, err := os.ReadFile(h.path("var/lib/lab/taps", vmid))
	if err != nil || !h.hasLink(tap) {
		return 0
	}
	pid, err := strconv.Atoi(string(data))
	if err != nil || !h.isKVM(pid, vmid) {
		return 0
	}
	return pid
}

// removeTaps takes away a VM's taps, unless a live kvm holds them.
func (h *Host) removeTaps(vmid string) error {
	taps, err := filepath.Glob(h.link("tap" + vmid + "i*"))
	if err != nil {
		return err
	}
	var errs error
	for _, t := range taps {
		if h.tapOwner(filepath.Base(t), vmid) == 0 {
			errs = errors.Join(errs, h.unplug(filepath.Base(t)))
		}
	}
	return errs
}

func (h *Host) unplug(tap string) error {
	ports, err := filepath.Glob(h.link("*", "brif", tap))
	if err != nil {
		return err
	}
	var errs error
	for _, p := range ports {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = errors.Join(errs, err)
		}
	}
	return errors.Join(errs, os.RemoveAll(h.link(tap)))
}
