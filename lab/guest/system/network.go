package system

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/homeiac/homelab/lab/guest/cloudinit"
)

// network sets the interfaces up. A NIC that the configuration does not name
// stays without an address; with no configuration at all the first one asks
// for a lease, as cloud-init's fallback does.
func (o *OS) network(_ context.Context, cfg []cloudinit.Interface) error {
	if cfg == nil && len(o.m.NICs) > 0 {
		cfg = []cloudinit.Interface{{Name: "eth0", MAC: strings.ToLower(o.m.NICs[0].MAC), DHCP: true}}
	}
	var out []iface
	var errs []error
	for n, nic := range o.m.NICs {
		i := iface{name: fmt.Sprintf("eth%d", n), mac: strings.ToLower(nic.MAC), net: nic.Net}
		for _, c := range cfg {
			if c.MAC != "" && c.MAC != i.mac || c.MAC == "" && c.Name != i.name {
				continue
			}
			i.addrs = append(i.addrs, c.Addresses...)
			if c.DHCP && nic.Net.IsValid() {
				a, err := o.lease(i.mac, nic.Net)
				if err != nil {
					errs = append(errs, fmt.Errorf("%s: %w", i.name, err))
					continue
				}
				i.addrs = append(i.addrs, a)
			}
		}
		out = append(out, i)
	}
	o.mu.Lock()
	o.ifaces = out
	o.mu.Unlock()
	for _, i := range out {
		o.Console(fmt.Sprintf("%s: %s %v", i.name, i.mac, i.addrs))
	}
	return errors.Join(errs...)
}

// The lab's DHCP pool in each /24.
const (
	poolFirst = 150
	poolLast  = 199
)

// lease gives the address of a MAC from the lab's table DIR/dhcp.json, which
// all guests of the lab share. A MAC keeps its address.
func (o *OS) lease(mac string, network netip.Prefix) (netip.Prefix, error) {
	if o.m.LabDir == "" {
		return netip.Prefix{}, errors.New("no DHCP server")
	}
	name := filepath.Join(o.m.LabDir, "dhcp.json")
	lock, err := os.OpenFile(name+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return netip.Prefix{}, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return netip.Prefix{}, err
	}
	table := map[string]string{}
	b, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return netip.Prefix{}, err
	}
	if len(b) > 0 {
		if err := json.Unmarshal(b, &table); err != nil {
			return netip.Prefix{}, fmt.Errorf("dhcp.json: %w", err)
		}
	}
	if a, err := netip.ParseAddr(table[mac]); err == nil && network.Contains(a) {
		return netip.PrefixFrom(a, network.Bits()), nil
	}
	used := map[string]bool{}
	for _, a := range table {
		used[a] = true
	}
	base := network.Masked().Addr().As4()
	for n := poolFirst; n <= poolLast; n++ {
		base[3] = byte(n)
		a := netip.AddrFrom4(base)
		if used[a.String()] {
			continue
		}
		table[mac] = a.String()
		b, err := json.MarshalIndent(table, "", "  ")
		if err != nil {
			return netip.Prefix{}, err
		}
		if err := os.WriteFile(name+".new", append(b, '\n'), 0o644); err != nil {
			return netip.Prefix{}, err
		}
		return netip.PrefixFrom(a, network.Bits()), os.Rename(name+".new", name)
	}
	return netip.Prefix{}, errors.New("DHCP: no free lease")
}
