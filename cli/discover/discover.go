// Package discover looks at a Proxmox VE host that has no agent yet: its bridges,
// storages, size and guests, through a shell on it that runs nothing but programs that
// read. Nothing is changed on the host and nothing is run in a guest. What a host says is
// held for hostile: each text in a Host is of the form that its comment names, or plain
// ASCII for people. What follows from it for a Spec is left to package cli.
package discover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/homeiac/homelab/cli/remote"
)

// Shell is root's shell on a host. A *remote.ExitError is a program that failed; all
// other errors are of the way there.
type Shell interface {
	Run(ctx context.Context, stdin io.Reader, argv ...string) (stdout []byte, err error)
}

// Host is what one Proxmox host was seen to have.
type Host struct {
	// Name is a name in a Spec: the node's, in lower case.
	Name string
	// Node is what Proxmox calls it, and the cluster that it is in; the cluster is empty
	// for a host that stands alone.
	Node, Cluster string
	// Version is that of Proxmox VE.
	Version string
	CPUs    int
	// Memory is in bytes.
	Memory int64
	// ClusterAddress is the one that its cluster knows it by; zero when it stands alone.
	ClusterAddress netip.Addr
	// Addresses are all that it has, IPv4 and IPv6, but those that count on it or one
	// link only.
	Addresses []netip.Addr
	// Bridges are the Linux bridges, by name.
	Bridges []Bridge
	// Storages are those that are for this host, by name.
	Storages []Storage
	// Guests are its VMs, by VMID; Containers its containers.
	Guests     []Guest
	Containers []Container
	// Taken are all VMIDs that it knows of, those of the other hosts of its cluster too.
	Taken []int
	// Others are the other nodes of its cluster.
	Others []Node
	// Odd is what was left out, and why: lines for people.
	Odd []string
}

// Bridge is a Linux bridge.
type Bridge struct {
	Name      string // as the Spec allows
	VLANAware bool
	// Nets are the networks in which the host itself has an address by this bridge.
	Nets []Net
}

// Net is an IPv4 network of a bridge.
type Net struct {
	VLAN    int // 0 for none
	Subnet  netip.Prefix
	Gateway netip.Addr // zero when the host has none there
}

// Storage is one of Proxmox's storages.
type Storage struct {
	Name    string // as the Spec allows
	Type    string // dir, zfspool, lvmthin...: lower-case letters and digits
	Content []string
	Active  bool
	// Folder says that it is a directory of files.
	Folder bool
	Free   int64 // bytes
}

// Holds says whether the storage may have a content.
func (s Storage) Holds(content string) bool {
	for _, c := range s.Content {
		if c == content {
			return true
		}
	}
	return false
}

// Guest is a VM, by its configuration.
type Guest struct {
	VMID int
	// Title is its name for people; it need not be one in a Spec.
	Title    string
	Power    Power
	Template bool
	// Fleet is whose mark it has; empty for none.
	Fleet    string
	CPUs     int
	Memory   int64 // bytes
	OVMF     bool
	Q35      bool
	OnBoot   bool
	Disks    []Disk // the system's first
	NICs     []NIC
	Unplain  []string // keys of devices that a Spec has other words for: hostpci0, usb0
	Snapshot bool     // it has snapshots
}

// Power is whether a VM runs.
type Power int

// Of a VM that pvestatd tells nothing of it is not known.
const (
	PowerUnknown Power = iota
	PowerStopped
	PowerRunning
)

func (p Power) String() string { return []string{"power unknown", "stopped", "running"}[p] }

// Disk is a volume that is attached to a VM and is no CD.
type Disk struct {
	Slot    string // scsi0
	Storage string // as the Spec allows; empty for a device or a path
	Size    int64  // bytes; 0 when it is not written
}

// NIC is one interface of a VM.
type NIC struct {
	MAC    string // BC:24:11:00:00:01; empty when it is none
	Bridge string // empty for none
	VLAN   int
	// Address is what its configuration says; zero for DHCP or nothing.
	Address netip.Prefix
	// Seen is where the host saw that MAC lately; zero when it did not.
	Seen netip.Addr
}

// Container is only mentioned.
type Container struct {
	VMID      int
	Title     string
	Addresses []netip.Addr
}

// Node is another node of the cluster.
type Node struct {
	Name    string
	Address netip.Addr // zero when it is not known
}

// What is asked of every host. ip is asked too, and a host without it, or with one that
// does not speak JSON, is known by its configuration only.
var (
	version   = []string{"pvesh", "get", "/version", "--output-format", "json"}
	members   = []string{"cat", "/etc/pve/.members"}
	status    = []string{"pvesh", "get", "/nodes/localhost/status", "--output-format", "json"}
	network   = []string{"pvesh", "get", "/nodes/localhost/network", "--output-format", "json"}
	storage   = []string{"pvesh", "get", "/nodes/localhost/storage", "--output-format", "json"}
	resources = []string{"pvesh", "get", "/cluster/resources", "--type", "vm", "--output-format", "json"}
	addresses = []string{"ip", "-j", "addr"}
	routes    = []string{"ip", "-j", "route", "show", "default"}
	neighbors = []string{"ip", "-j", "neigh"}
)

// guestFile is a guest's configuration on its own host.
func guestFile(kind string, vmid int) []string {
	return []string{"cat", "/etc/pve/" + kind + "/" + strconv.Itoa(vmid) + ".conf"}
}

const (
	// patience is how long one program may take. A storage over the network that does not
	// answer makes Proxmox wait.
	patience = 60 * time.Second
	// most is less than what one program may say, in bytes: the shell cuts off there.
	most = 4 << 20
	// mostGuests are looked at.
	mostGuests = 2000
	atOnce     = 4
)

// Outputs is what the programs said, by their command lines.
type Outputs map[string][]byte

func line(argv []string) string { return strings.Join(argv, " ") }

// Look asks a host and reads what it says. Errors name no host: the caller does.
func Look(ctx context.Context, shell Shell) (*Host, error) {
	out := Outputs{}
	if err := ask(ctx, shell, out, version); err != nil {
		return nil, noProxmox(err)
	}
	for _, argv := range [][]string{members, status, network, storage, resources} {
		if err := ask(ctx, shell, out, argv); err != nil {
			return nil, err
		}
	}
	for _, argv := range [][]string{addresses, routes, neighbors} {
		if err := ask(ctx, shell, out, argv); err != nil && exitCode(err) < 0 {
			return nil, err
		}
	}
	files, err := out.files()
	if err != nil {
		return nil, err
	}
	texts := make([][]byte, len(files))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for i, argv := range files {
		g.Go(func() error {
			one := Outputs{}
			// One that was destroyed meanwhile is not there.
			if err := ask(gctx, shell, one, argv); err != nil && exitCode(err) < 0 {
				return err
			}
			texts[i] = one[line(argv)]
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i, argv := range files {
		if texts[i] != nil {
			out[line(argv)] = texts[i]
		}
	}
	return Read(out)
}

func ask(ctx context.Context, shell Shell, out Outputs, argv []string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	said, err := shell.Run(ctx, nil, argv...)
	switch {
	case err != nil:
		return &failedError{line(argv), err}
	case len(said) >= most:
		return fmt.Errorf("%s: it says %d MiB and more, which no host has reason to", line(argv), most>>20)
	}
	out[line(argv)] = said
	return nil
}

// failedError is a program that failed, or could not be run. What a program said is
// shown as plain text.
type failedError struct {
	line  string
	cause error
}

func (e *failedError) Error() string {
	var exit *remote.ExitError
	if !errors.As(e.cause, &exit) {
		return e.line + ": " + e.cause.Error()
	}
	text := fmt.Sprintf("%s: exit %d", e.line, exit.Code)
	lines := strings.FieldsFunc(exit.Stderr, func(r rune) bool { return r == '\n' || r == '\r' })
	for _, l := range lines[:min(len(lines), 4)] {
		text += "\n  " + Plain(l)
	}
	return text
}

func (e *failedError) Unwrap() error { return e.cause }

// exitCode is the code that a program ended with; -1 when it is not known to have ended.
func exitCode(err error) int {
	var e *remote.ExitError
	if errors.As(err, &e) {
		return e.Code
	}
	return -1
}

// noProxmox says what the failure of the first program means.
func noProxmox(err error) error {
	switch exitCode(err) {
	case 126, 127: // no such program
		return errors.New("it is no Proxmox VE host: there is no pvesh")
	case 111: // what all of Proxmox's programs end with then
		return fmt.Errorf("%w\n  its /etc/pve is not mounted: systemctl status pve-cluster", err)
	}
	return err
}
