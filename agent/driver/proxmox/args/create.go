package args

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// Where drives that are no disks are attached: the cloud-init drive, and the one with
// an ISO file.
const (
	CloudInitSlot = "ide2"
	CDROMSlot     = "ide0"
)

// Proxmox's own sizes of the small volumes that a create allocates, in bytes.
const (
	CloudInitBytes = 4 << 20
	EFIBytes       = 4 << 20
)

var (
	diskSlot  = regexp.MustCompile(`^(scsi([0-9]|[12][0-9]|30)|virtio([0-9]|1[0-5])|sata[0-5])$`)
	macText   = regexp.MustCompile(`^[0-9A-F]{2}(:[0-9A-F]{2}){5}$`)
	guestName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)
	uuidText  = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
	storageID = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]*$`)
	bridgeID  = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]*$`)
	volumeID  = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]*:(?:iso|snippets)/[A-Za-z0-9_][A-Za-z0-9_.+-]*$`)
	userName  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*$`)
	tagName   = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_+.-]*$`)
	// A machine's and a device's properties are qm's to know, but for the file of a
	// ROM, which is read below /usr/share/kvm and given to the guest.
	machineText = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.+-]*(?:,[a-z0-9-]+=[A-Za-z0-9_.-]+)*$`)
	deviceText  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:;=-]*(?:,[a-z0-9-]+=[A-Za-z0-9_.:-]+)*$`)
)

// Create is the one qm create that makes a whole VM: the image imported into its
// system disk, data disks, cloud-init drive, user-data, addresses, identity. Only
// the system disk's size is missing, which an import takes from the image. What
// Proxmox would only notice halfway, or at the start, is Invalid here.
func Create(req *driverv1.CreateRequest) (Call, error) {
	id, hw := req.GetIdentity(), req.GetHardware()
	if err := checkCreate(req); err != nil {
		return Call{}, err
	}
	system := fmt.Sprintf("%s:0,import-from=%s", hw.GetSystemDisk().GetStorage(), req.GetImagePath())
	argv := append([]string{"--name", hw.GetName(), "--description", id.GetMark()}, settings(req, system)...)
	return qm(id.GetVmid(), "create", argv...), nil
}

// settings are what a new VM gets beside its name and its mark. system is what its
// system disk is, or is made of.
func settings(req *driverv1.CreateRequest, system string) []string {
	id, hw := req.GetIdentity(), req.GetHardware()
	backup := ""
	if hw.GetExcludeFromBackup() {
		backup = ",backup=0"
	}
	slot, storage := hw.GetSystemDisk().GetSlot(), hw.GetSystemDisk().GetStorage()
	argv := []string{
		"--smbios1", "uuid=" + id.GetUuid(),
		"--ostype", "l26",
		// Guests do not migrate live, and the default model hides AES from k3s.
		"--cpu", "host",
		"--cores", strconv.Itoa(int(hw.GetCpus())),
		"--memory", strconv.FormatInt(mebibytes(hw.GetMemoryBytes()), 10),
		"--scsihw", controller,
		"--" + slot, system + ",discard=on" + backup,
	}
	for _, d := range hw.GetDataDisks() {
		argv = append(argv, "--"+d.GetSlot(), fmt.Sprintf("%s:%d,discard=on%s", d.GetStorage(), gibibytes(d.GetSizeBytes()), backup))
	}
	argv = append(argv, "--"+CloudInitSlot, storage+":cloudinit")
	if req.GetCdrom() != "" {
		argv = append(argv, "--"+CDROMSlot, req.GetCdrom()+",media=cdrom")
	}
	argv = append(argv,
		"--boot", "order="+slot,
		"--serial0", "socket",
		"--agent", "enabled=1",
	)
	if hw.GetFirmware() == homelabv1.Firmware_FIRMWARE_OVMF {
		argv = append(argv, "--bios", "ovmf", "--efidisk0", storage+":1,efitype=4m,pre-enrolled-keys=0")
	}
	if hw.GetMachine() != "" {
		argv = append(argv, "--machine", hw.GetMachine())
	}
	for i, n := range hw.GetNics() {
		argv = append(argv, fmt.Sprintf("--net%d", i), nic(n), fmt.Sprintf("--ipconfig%d", i), ipconfig(n))
	}
	if len(hw.GetDns()) > 0 {
		argv = append(argv, "--nameserver", strings.Join(hw.GetDns(), " "))
	}
	if req.GetUser() != "" {
		argv = append(argv, "--ciuser", req.GetUser())
	}
	if req.GetUserData() != "" {
		argv = append(argv, "--cicustom", "user="+req.GetUserData())
	}
	for i, dev := range hw.GetPci() {
		argv = append(argv, fmt.Sprintf("--hostpci%d", i), dev)
	}
	for i, dev := range hw.GetUsb() {
		argv = append(argv, fmt.Sprintf("--usb%d", i), dev)
	}
	if hw.GetHookscript() != "" {
		argv = append(argv, "--hookscript", hw.GetHookscript())
	}
	if s := startup(hw.GetStartup()); s != "" {
		argv = append(argv, "--startup", s)
	}
	if len(hw.GetTags()) > 0 {
		tags := slices.Sorted(slices.Values(hw.GetTags()))
		argv = append(argv, "--tags", strings.Join(tags, ";"))
	}
	if hw.GetOnboot() {
		argv = append(argv, "--onboot", "1")
	}
	return argv
}

// controller is the SCSI controller of every VM of ours: a disk that moves from one
// to another finds the same.
const controller = "virtio-scsi-single"

// CreateHolder makes a VM that only holds disks for a while: none yet, no network,
// as little memory as Proxmox allows, and not started with its host.
func CreateHolder(req *driverv1.CreateHolderRequest) (Call, error) {
	id := req.GetIdentity()
	faults := identityFaults(id)
	if !guestName.MatchString(req.GetName()) {
		faults = append(faults, fmt.Sprintf("name %q", req.GetName()))
	}
	if len(faults) > 0 {
		return Call{}, rpc.Errorf(rpc.ErrInvalid, "cannot create a holder VM with %s", strings.Join(faults, ", "))
	}
	return qm(id.GetVmid(), "create",
		"--name", req.GetName(),
		"--description", id.GetMark(),
		"--smbios1", "uuid="+id.GetUuid(),
		"--ostype", "l26",
		"--cores", "1",
		"--memory", "16",
		"--scsihw", controller,
		"--onboot", "0",
	), nil
}

// identityFaults says what of an identity cannot stand in a configuration.
func identityFaults(id *homelabv1.Identity) []string {
	var faults []string
	if id.GetVmid() < 100 || id.GetVmid() > 999999999 {
		faults = append(faults, fmt.Sprintf("VMID %d", id.GetVmid()))
	}
	if !uuidText.MatchString(id.GetUuid()) {
		faults = append(faults, fmt.Sprintf("uuid %q", id.GetUuid()))
	}
	if !Mark(id.GetMark()) {
		faults = append(faults, fmt.Sprintf("mark %q", id.GetMark()))
	}
	return faults
}

// Mark tells whether a text can stand as a mark in a description.
func Mark(text string) bool {
	return strings.HasPrefix(text, "hl1:") && strings.IndexFunc(text, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) < 0
}

// Slot tells whether a text names a place for a disk.
func Slot(text string) bool { return diskSlot.MatchString(text) }

func nic(n *homelabv1.Nic) string {
	s := "virtio=" + n.GetMac() + ",bridge=" + n.GetBridge()
	if n.GetVlan() > 0 {
		s += fmt.Sprintf(",tag=%d", n.GetVlan())
	}
	if n.GetMtu() > 0 {
		s += fmt.Sprintf(",mtu=%d", n.GetMtu())
	}
	return s
}

func ipconfig(n *homelabv1.Nic) string {
	if n.GetAddress() == "" {
		return "ip=dhcp"
	}
	if n.GetGateway() == "" {
		return "ip=" + n.GetAddress()
	}
	return "ip=" + n.GetAddress() + ",gw=" + n.GetGateway()
}

func startup(s *homelabv1.Startup) string {
	var parts []string
	for _, p := range []struct {
		key   string
		value int32
	}{{"order", s.GetOrder()}, {"up", s.GetUpSeconds()}, {"down", s.GetDownSeconds()}} {
		if p.value > 0 {
			parts = append(parts, fmt.Sprintf("%s=%d", p.key, p.value))
		}
	}
	return strings.Join(parts, ",")
}

// bad says whether something is there and is not of the form.
func bad(form *regexp.Regexp, text string) bool { return text != "" && !form.MatchString(text) }

func addressText(s string) bool {
	a, err := netip.ParseAddr(s)
	return err == nil && a.Zone() == ""
}

// checkCreate finds what cannot be asked of qm, all of it at once.
func checkCreate(req *driverv1.CreateRequest) error {
	id, hw := req.GetIdentity(), req.GetHardware()
	faults := identityFaults(id)
	fault := func(is bool, format string, a ...any) {
		if is {
			faults = append(faults, fmt.Sprintf(format, a...))
		}
	}
	fault(!guestName.MatchString(hw.GetName()), "name %q", hw.GetName())
	fault(hw.GetCpus() < 1, "%d cores", hw.GetCpus())
	fault(hw.GetMemoryBytes() < 16<<20, "%d bytes of memory", hw.GetMemoryBytes())
	if req.GetTemplate() == nil {
		fault(!imagePath(req.GetImagePath()), "image path %q", req.GetImagePath())
	} else {
		faults = append(faults, templateFaults(id, req.GetTemplate())...)
	}
	fault(bad(volumeID, req.GetCdrom()), "ISO file %q", req.GetCdrom())
	fault(bad(volumeID, req.GetUserData()), "user-data %q", req.GetUserData())
	fault(bad(volumeID, hw.GetHookscript()), "hook script %q", hw.GetHookscript())
	fault(bad(userName, req.GetUser()), "user %q", req.GetUser())
	fault(bad(machineText, hw.GetMachine()), "machine %q", hw.GetMachine())
	for _, d := range slices.Concat(hw.GetPci(), hw.GetUsb()) {
		fault(!deviceText.MatchString(d), "device %q", d)
	}
	for _, tag := range hw.GetTags() {
		fault(!tagName.MatchString(tag), "tag %q", tag)
	}
	for _, server := range hw.GetDns() {
		fault(!addressText(server), "DNS server %q", server)
	}
	fault(len(hw.GetNics()) == 0, "no network interface")
	slots := map[string]bool{}
	for _, d := range append([]*homelabv1.Disk{hw.GetSystemDisk()}, hw.GetDataDisks()...) {
		fault(!diskSlot.MatchString(d.GetSlot()), "disk slot %q", d.GetSlot())
		fault(slots[d.GetSlot()], "two disks at %s", d.GetSlot())
		fault(!storageID.MatchString(d.GetStorage()), "storage %q of disk %s", d.GetStorage(), d.GetSlot())
		fault(d.GetSizeBytes() <= 0, "disk %s of %d bytes", d.GetSlot(), d.GetSizeBytes())
		slots[d.GetSlot()] = true
	}
	for i, n := range hw.GetNics() {
		// A NIC without its address would get a new one each time.
		fault(!macText.MatchString(n.GetMac()), "net%d: hardware address %q (upper case, with colons)", i, n.GetMac())
		fault(!bridgeID.MatchString(n.GetBridge()), "net%d: bridge %q", i, n.GetBridge())
		fault(n.GetVlan() < 0 || n.GetVlan() > 4094, "net%d: VLAN %d", i, n.GetVlan())
		_, err := netip.ParsePrefix(n.GetAddress())
		fault(n.GetAddress() != "" && err != nil, "net%d: address %q with its prefix length", i, n.GetAddress())
		fault(n.GetGateway() != "" && !addressText(n.GetGateway()), "net%d: gateway %q", i, n.GetGateway())
	}
	if len(faults) > 0 {
		return rpc.Errorf(rpc.ErrInvalid, "cannot create a VM with %s", strings.Join(faults, ", "))
	}
	return nil
}
