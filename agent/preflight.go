package agent

import (
	"regexp"
	"slices"
	"strings"

	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/human"
	"github.com/homeiac/homelab/internal/rpc"
)

// fullRoot is the share of the root file system, in percent, above which
// nothing is begun on a host: Proxmox itself fails in odd ways then.
const fullRoot = 95

// settled says whether a host's Proxmox is in a state to be changed.
func (s *Service) settled(o *homelabv1.Observation) error {
	switch {
	case !isYes(o.GetPveCluster()):
		return rpc.Errorf(rpc.ErrRefused, "pve-cluster: %s", o.GetPveCluster().GetReason())
	case !isYes(o.GetQuorate()):
		return rpc.Errorf(rpc.ErrRefused, "no quorum: %s", o.GetQuorate().GetReason())
	case isYes(o.GetShuttingDown()):
		return rpc.Errorf(rpc.ErrRefused, "the host is shutting down: %s", o.GetShuttingDown().GetReason())
	case o.GetRootUsedPercent() > fullRoot:
		return rpc.Errorf(rpc.ErrRefused, "its root file system is %.0f %% full (at most %d %%)", o.GetRootUsedPercent(), fullRoot)
	}
	return nil
}

// mayCreate checks all that creating a guest needs, on values alone. there is
// whether the VM exists already, with all of its identity.
func (s *Service) mayCreate(o *homelabv1.Observation, seen *driverv1.ObserveResponse, want *homelabv1.GuestWant) (there bool, err error) {
	if err := s.settled(o); err != nil {
		return false, err
	}
	there, err = freeOrOurs(o, seen, want.GetIdentity())
	if err != nil {
		return there, err
	}
	hw := want.GetHardware()
	if err := resources(o, hw); err != nil {
		return there, err
	}
	if there {
		return there, nil // its memory is counted already
	}
	return there, roomFor(o, want, seen.GetGuestsMemoryBytes())
}

// resources checks what a VM stands on: bridges, storages, devices.
func resources(o *homelabv1.Observation, hw *homelabv1.Hardware) error {
	if err := networksReady(o, hw.GetNics()); err != nil {
		return err
	}
	for _, d := range append([]*homelabv1.Disk{hw.GetSystemDisk()}, hw.GetDataDisks()...) {
		if _, err := usable(o, d.GetStorage(), "images"); err != nil {
			return err
		}
	}
	return devicesThere(o, hw)
}

// roomFor checks CPUs and memory, beside the memory of other guests.
func roomFor(o *homelabv1.Observation, want *homelabv1.GuestWant, others int64) error {
	if n := want.GetHardware().GetCpus(); o.GetCpus() > 0 && n > o.GetCpus() {
		return rpc.Errorf(rpc.ErrRefused, "CPUs: %d needed, the host has %d", n, o.GetCpus())
	}
	return memoryFor(o, want, others)
}

// freeOrOurs says whether the VMID is free, on this host and in its whole PVE
// cluster, or holds the very VM that is wanted.
func freeOrOurs(o *homelabv1.Observation, seen *driverv1.ObserveResponse, id *homelabv1.Identity) (there bool, err error) {
	switch {
	case !isYes(seen.GetVmsKnown()):
		return false, rpc.Errorf(rpc.ErrUnavailable, "the VMs of this host cannot be listed: %s", seen.GetVmsKnown().GetReason())
	case !isYes(seen.GetClusterVmidsKnown()):
		return false, rpc.Errorf(rpc.ErrUnavailable, "the VMIDs of the PVE cluster cannot be listed: %s", seen.GetClusterVmidsKnown().GetReason())
	}
	for _, vm := range seen.GetVms() {
		if vm.GetVmid() != id.GetVmid() {
			continue
		}
		if vm.GetHalfBuilt() {
			return false, rpc.Errorf(rpc.ErrRefused, "VM %d is half-built; it is rolled back first", id.GetVmid())
		}
		return true, ours(vm, id)
	}
	for _, c := range seen.GetClusterVmids() {
		if c.GetVmid() == id.GetVmid() {
			return false, rpc.Errorf(rpc.ErrRefused, "VMID %d is in use on node %s (%s)", id.GetVmid(), orUnknown(c.GetNode(), o.GetNodeName()), c.GetType())
		}
	}
	return false, nil
}

func orUnknown(node, self string) string {
	if node == "" {
		return self
	}
	return node
}

// networksReady checks the bridges.
func networksReady(o *homelabv1.Observation, nics []*homelabv1.Nic) error {
	if !isYes(o.GetBridgesKnown()) {
		return rpc.Errorf(rpc.ErrUnavailable, "the bridges of this host cannot be listed: %s", o.GetBridgesKnown().GetReason())
	}
	for _, n := range nics {
		i := slices.IndexFunc(o.GetBridges(), func(b *homelabv1.Bridge) bool { return b.GetName() == n.GetBridge() })
		if i < 0 {
			return rpc.Errorf(rpc.ErrRefused, "bridge %s is not there; the host has %s", n.GetBridge(), bridgeNames(o))
		}
		b := o.GetBridges()[i]
		switch {
		case !isYes(b.GetUp()):
			return rpc.Errorf(rpc.ErrRefused, "bridge %s is not up: %s", b.GetName(), b.GetUp().GetReason())
		case n.GetVlan() != 0 && !isYes(b.GetVlanAware()):
			return rpc.Errorf(rpc.ErrRefused, "bridge %s is not VLAN-aware, network %s needs tag %d", b.GetName(), n.GetNetwork(), n.GetVlan())
		case n.GetMtu() > 1 && b.GetMtu() > 0 && n.GetMtu() > b.GetMtu():
			return rpc.Errorf(rpc.ErrRefused, "bridge %s has MTU %d, network %s needs %d", b.GetName(), b.GetMtu(), n.GetNetwork(), n.GetMtu())
		}
	}
	return nil
}

func bridgeNames(o *homelabv1.Observation) string {
	var names []string
	for _, b := range o.GetBridges() {
		state := "down"
		if isYes(b.GetUp()) {
			state = "up"
		}
		names = append(names, b.GetName()+" ("+state+")")
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// usable finds a storage that is active here and may hold that content ("" is
// any). Its space is the driver's to check, with one fresh pvesm status.
func usable(o *homelabv1.Observation, name, content string) (*homelabv1.Storage, error) {
	if !isYes(o.GetStoragesKnown()) {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "the storages of this host cannot be listed: %s", o.GetStoragesKnown().GetReason())
	}
	var names []string
	for _, st := range o.GetStorages() {
		names = append(names, st.GetName())
		if st.GetName() != name {
			continue
		}
		switch {
		case isNo(st.GetActive()):
			return nil, rpc.Errorf(rpc.ErrRefused, "storage %s is not active: %s", name, st.GetActive().GetReason())
		case !isYes(st.GetActive()):
			return nil, rpc.Errorf(rpc.ErrUnavailable, "storage %s may not be active: %s", name, st.GetActive().GetReason())
		case content != "" && !slices.Contains(st.GetContent(), content):
			return nil, rpc.Errorf(rpc.ErrRefused, "storage %s may not hold %s, only %s (pvesm set %s --content ...)",
				name, content, strings.Join(st.GetContent(), ", "), name)
		}
		return st, nil
	}
	return nil, rpc.Errorf(rpc.ErrRefused, "storage %s is not there; the host has %s", name, strings.Join(names, ", "))
}

// memoryFor compares what is asked with total - reserve - other guests.
func memoryFor(o *homelabv1.Observation, want *homelabv1.GuestWant, others int64) error {
	if o.GetMemoryBytes() == 0 {
		return rpc.Errorf(rpc.ErrUnavailable, "the host's memory is not known")
	}
	free := o.GetMemoryBytes() - want.GetReserveMemoryBytes() - others
	if need := want.GetHardware().GetMemoryBytes(); need > free {
		return rpc.Errorf(rpc.ErrRefused, "memory: %s needed, %s available (%s in all, %s reserved, %s for other guests)",
			human.Size(need), human.Size(max(free, 0)), human.Size(o.GetMemoryBytes()), human.Size(want.GetReserveMemoryBytes()), human.Size(others))
	}
	return nil
}

var (
	pciAddress = regexp.MustCompile(`^(?:host=)?((?:[0-9a-fA-F]{4}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?)$`)
	usbID      = regexp.MustCompile(`^(?:host=)?(?:0x)?([0-9a-fA-F]{4}):(?:0x)?([0-9a-fA-F]{4})$`)
)

// devicesThere checks devices that are named by address or id; mappings and USB
// ports are Proxmox's to resolve.
func devicesThere(o *homelabv1.Observation, hw *homelabv1.Hardware) error {
	for _, d := range hw.GetPci() {
		first, _, _ := strings.Cut(d, ",")
		for one := range strings.SplitSeq(first, ";") {
			m := pciAddress.FindStringSubmatch(one)
			if m == nil {
				continue
			}
			address := strings.ToLower(m[1])
			if len(address) < len("0000:00:00") || address[4] != ':' {
				address = "0000:" + address
			}
			// Without a function all functions of the device are meant.
			if !slices.ContainsFunc(o.GetPciDevices(), func(have string) bool {
				return have == address || strings.HasPrefix(have, address+".")
			}) {
				return rpc.Errorf(rpc.ErrRefused, "PCI device %s is not there (lspci -nn)", address)
			}
		}
	}
	for _, d := range hw.GetUsb() {
		first, _, _ := strings.Cut(d, ",")
		m := usbID.FindStringSubmatch(first)
		if m == nil {
			continue
		}
		id := strings.ToLower(m[1] + ":" + m[2])
		if !slices.Contains(o.GetUsbDevices(), id) {
			return rpc.Errorf(rpc.ErrRefused, "USB device %s is not there (lsusb)", id)
		}
	}
	return nil
}

func totalSize(n int64) string {
	if n <= 0 {
		return "?"
	}
	return human.Size(n)
}
