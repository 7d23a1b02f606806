package controller

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/homeiac/homelab/controller/plan"
	"github.com/homeiac/homelab/controller/store"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/k3s"
	"github.com/homeiac/homelab/internal/mark"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/spec"
)

// signer makes identities: a guest's names and numbers with the mark over them.
type signer struct {
	fleet string
	key   mark.Key
}

func (s signer) identity(g store.Guest) *homelabv1.Identity {
	return &homelabv1.Identity{
		Fleet: s.fleet, Guest: g.Name, Generation: g.Generation, Vmid: g.VMID, Uuid: g.UUID,
		Mark: mark.Make(s.key, s.fleet, g.Name, g.VMID, g.UUID, g.Generation),
	}
}

// holder is the identity of the VM that keeps data disks of a guest. It is made
// in one generation of the guest and outlives it, so it names that one.
func (s signer) holder(g store.Guest) *homelabv1.Identity {
	return s.identity(store.Guest{Name: plan.HolderName(g.Name), VMID: g.Holder.VMID, UUID: g.Holder.UUID, Generation: g.Holder.Generation})
}

// droppedTimeout is how long a guest that the Spec no longer names may take for
// whatever is left to be done with it.
const droppedTimeout = 10 * time.Minute

// dropped is a guest that the Spec no longer names, from what is remembered of it
// alone: enough to stop it, take it out of the cluster and remove it.
func (s signer) dropped(sp *spec.Spec, rec store.Guest) *homelabv1.GuestWant {
	want := &homelabv1.GuestWant{
		Identity: s.identity(rec), Hardware: &homelabv1.Hardware{Name: rec.Name, MemoryBytes: rec.MemoryBytes},
		User: rec.User, NodeName: rec.NodeName, HostKeys: rec.HostKeys, MachineId: rec.MachineID, KnownAddresses: rec.Addresses,
		BootTimeout: durationpb.New(droppedTimeout), CloudInitTimeout: durationpb.New(droppedTimeout), JoinTimeout: durationpb.New(droppedTimeout),
		K3S: rec.Role != "",
	}
	for _, mac := range rec.MACs {
		want.Hardware.Nics = append(want.Hardware.Nics, &homelabv1.Nic{Mac: mac})
	}
	want.Hardware.DataDisks = protoDisks(rec.DataDisks)
	if host := sp.Hosts[rec.Host]; host != nil {
		want.ImagesStorage, _ = host.Storage("images")
		want.SnippetsStorage, _ = host.Storage("snippets")
	}
	return want
}

// guestWant is a guest as it is to be, from the Spec and what is remembered of
// it. It decides on values alone.
func (s signer) guestWant(sp *spec.Spec, rec store.Guest) (*homelabv1.GuestWant, error) {
	g := sp.Guests[rec.Name]
	if g == nil {
		return s.dropped(sp, rec), nil
	}
	host := sp.Hosts[g.Host]
	if host == nil {
		return nil, rpc.Errorf(rpc.ErrInvalid, "guest %s: host %s is not in the Spec", g.Name, g.Host)
	}
	hardware, err := hardware(sp, host, g, rec)
	if err != nil {
		return nil, err
	}
	images, _ := host.Storage("images")
	snippets, _ := host.Storage("snippets")
	user := g.User
	if rec.Generation == 0 && rec.User != "" {
		user = rec.User // of a VM that we did not make only it can tell
	}
	return &homelabv1.GuestWant{
		Identity: s.identity(rec), Hardware: hardware, Image: image(sp, g.Image),
		ImagesStorage: images, SnippetsStorage: snippets,
		User: user, AuthorizedKeys: g.SSHKeys, NodeName: g.NodeName(), Verify: g.Verify,
		BootTimeout:      durationpb.New(g.Timeouts.Boot),
		CloudInitTimeout: durationpb.New(g.Timeouts.CloudInit),
		JoinTimeout:      durationpb.New(g.Timeouts.Join),
		HostKeys:         rec.HostKeys, MachineId: rec.MachineID, KnownAddresses: rec.Addresses,
		ReserveMemoryBytes: host.Reserve.Memory, K3S: g.K3s != nil,
	}, nil
}

func hardware(sp *spec.Spec, host *spec.Host, g *spec.Guest, rec store.Guest) (*homelabv1.Hardware, error) {
	disks, ok := host.Storage("disks")
	if !ok {
		return nil, rpc.Errorf(rpc.ErrInvalid, "guest %s: hosts.%s.storage.disks is not given", g.Name, host.Name)
	}
	h := &homelabv1.Hardware{
		Name: g.Name, Cpus: int32(g.CPUs), MemoryBytes: memory(g, rec), Machine: g.Machine, //nolint:gosec // checked by the Spec
		SystemDisk: &homelabv1.Disk{Slot: "scsi0", Storage: disks, SizeBytes: g.Disk},
		Pci:        g.PCI, Usb: g.USB, Hookscript: g.HookScript, Tags: g.Tags,
		Onboot: g.OnBoot, ExcludeFromBackup: !g.Backup, Firmware: homelabv1.Firmware_FIRMWARE_SEABIOS,
	}
	if g.Firmware == spec.FirmwareOVMF {
		h.Firmware = homelabv1.Firmware_FIRMWARE_OVMF
	}
	if s := g.Startup; s.Order != nil || s.Up != nil || s.Down != nil {
		h.Startup = &homelabv1.Startup{Order: number(s.Order), UpSeconds: number(s.Up), DownSeconds: number(s.Down)}
	}
	for _, d := range g.DataDisks {
		storage, ok := host.Storage(d.Storage)
		if !ok {
			return nil, rpc.Errorf(rpc.ErrInvalid, "guest %s: hosts.%s.storage.%s is not given", g.Name, host.Name, d.Storage)
		}
		h.DataDisks = append(h.DataDisks, &homelabv1.Disk{Slot: d.Slot, Storage: storage, SizeBytes: d.Size})
	}
	gateway := false
	for i, n := range g.NICs {
		network := sp.Networks[n.Network]
		bridge, ok := host.Bridge(n.Network)
		if network == nil || !ok {
			return nil, rpc.Errorf(rpc.ErrInvalid, "guest %s: hosts.%s.bridges.%s is not given", g.Name, host.Name, n.Network)
		}
		nic := &homelabv1.Nic{
			Bridge: bridge, Mac: n.MAC, Vlan: int32(network.VLAN), Mtu: int32(network.MTU), Network: n.Network, //nolint:gosec // checked by the Spec
		}
		if i < len(rec.MACs) && nic.GetMac() == "" {
			nic.Mac = rec.MACs[i]
		}
		if network.Subnet.IsValid() {
			nic.Subnet = network.Subnet.String()
		}
		if n.Address.IsValid() {
			nic.Address = n.Address.String()
			// One default route: two would send answers the wrong way.
			if network.Gateway.IsValid() && !gateway {
				nic.Gateway, gateway = network.Gateway.String(), true
			}
		}
		h.Nics = append(h.Nics, nic)
		for _, a := range network.DNS {
			if !slices.Contains(h.GetDns(), a.String()) {
				h.Dns = append(h.Dns, a.String())
			}
		}
	}
	return h, nil
}

func number(n *int) int32 {
	if n == nil {
		return 0
	}
	return int32(*n) //nolint:gosec // checked by the Spec
}

// memory is the guest's memory in bytes; 0 while a share of the host's is not
// resolved. What was resolved once stays while the Spec gives a share: it never
// drifts with the host.
func memory(g *spec.Guest, rec store.Guest) int64 {
	if g.Memory.Percent > 0 {
		return rec.MemoryBytes
	}
	return g.Memory.Bytes
}

// image is where an image comes from and how it is known to be right; nil when
// the Spec has none of that name.
func image(sp *spec.Spec, name string) *homelabv1.ImageSource {
	i := sp.Images[name]
	if i == nil {
		return nil
	}
	return source(i, plan.Image{SHA256: i.SHA256})
}

// protoDisks are remembered disks as agents and the planner are told of them.
func protoDisks(disks []store.Disk) []*homelabv1.Disk {
	var list []*homelabv1.Disk
	for _, d := range disks {
		list = append(list, &homelabv1.Disk{Slot: d.Slot, Storage: d.Storage, SizeBytes: d.Size})
	}
	return list
}

// k3sWant is how a guest joins, but for the server it joins through.
func k3sWant(sp *spec.Spec, guest string, cluster *homelabv1.ClusterRecord) (*homelabv1.K3SWant, error) {
	g := sp.Guests[guest]
	switch {
	case g == nil:
		return nil, rpc.Errorf(rpc.ErrInvalid, "guest %s is not in the Spec", guest)
	case sp.K3s == nil || g.K3s == nil:
		return nil, rpc.Errorf(rpc.ErrInvalid, "guest %s is no member of a cluster", guest)
	}
	want := &homelabv1.K3SWant{
		Role: role(g), Version: sp.K3s.Version, Labels: g.K3s.LabelList(),
		Script: sp.K3s.Source.Script, Binary: sp.K3s.Source.Binary, Images: sp.K3s.Source.Images, CaHash: cluster.GetCaHash(),
	}
	if len(sp.K3s.Config) > 0 {
		text, err := yaml.Marshal(sp.K3s.Config)
		if err != nil {
			return nil, fmt.Errorf("k3s.config: %w", err)
		}
		want.ConfigYaml = string(text)
	}
	config := k3s.Config{Endpoint: sp.K3s.Endpoint, User: sp.K3s.Config}
	for _, name := range sp.GuestNames() {
		if s := sp.Guests[name]; s.IsServer() && s.NICs[0].Address.IsValid() {
			config.Servers = append(config.Servers, s.NICs[0].Address.Addr())
		}
	}
	want.TlsSans = config.TLSSAN()
	return want, nil
}

func role(g *spec.Guest) homelabv1.Role {
	switch {
	case g.IsServer():
		return homelabv1.Role_ROLE_SERVER
	case g.IsAgent():
		return homelabv1.Role_ROLE_AGENT
	}
	return homelabv1.Role_ROLE_UNSPECIFIED
}

// guestAddress is where a guest's node is reached: its static address, or the
// one it was last seen with in its first network. ok is false when none is known.
func guestAddress(sp *spec.Spec, g *spec.Guest, known []string) (addr netip.Addr, ok bool) {
	if a := g.NICs[0].Address; a.IsValid() {
		return a.Addr(), true
	}
	network := sp.Networks[g.NICs[0].Network]
	for _, text := range known {
		text, _, _ = strings.Cut(text, "/")
		a, err := netip.ParseAddr(text)
		if err == nil && a.Is4() && (network == nil || !network.Subnet.IsValid() || network.Subnet.Contains(a)) {
			return a, true
		}
	}
	return netip.Addr{}, false
}
