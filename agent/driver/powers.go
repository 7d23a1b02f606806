package driver

import (
	"context"

	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// Powers are what a driver can do beside Driver; one that lacks a power answers
// Unsupported. Adopt, CreateHolder, CreateTemplate, MoveDisk and Reset are changing
// calls, to which all applies that Driver says of them.
type Powers interface {
	// Reset presses the reset button of a VM that runs, also when its guest hangs;
	// asked again it is pressed again. One that is stopped is Refused, one whose QEMU
	// does not answer is Unavailable, and one that is paused stays paused.
	Reset(ctx context.Context, req *driverv1.ResetRequest, report Report) (*homelabv1.VirtualMachine, error)
	// Adopt writes the identity's mark into the description of a VM of that VMID
	// and uuid, below what stands there. One that bears that very mark is adopted
	// already; another mark, another uuid or none, another digest than the one in
	// the request, a lock, HA or protection are Refused.
	Adopt(ctx context.Context, req *driverv1.AdoptRequest, report Report) (*homelabv1.VirtualMachine, error)
	// CreateHolder makes a VM without disks and network, which never starts with
	// its host. One of that identity is made already; anybody else's is Refused.
	CreateHolder(ctx context.Context, req *driverv1.CreateHolderRequest, report Report) (*homelabv1.VirtualMachine, error)
	// MoveDisk reassigns a disk from one stopped VM of ours to the same slot of
	// another. A disk that the other has in that slot is moved already, also when
	// the one is gone; one that neither has is NotFound, a slot that is taken in
	// both is Refused.
	MoveDisk(ctx context.Context, req *driverv1.MoveDiskRequest, report Report) (*homelabv1.VirtualMachine, error)
	// Orphans lists volumes that no configuration of any VM or container of the
	// PVE cluster names, in its main section, pending values or snapshots, whichever
	// of several names of one storage it uses.
	Orphans(ctx context.Context) (*driverv1.OrphansResponse, error)
	// Config reads a VM's configuration as its file holds it. No such VM: NotFound.
	Config(ctx context.Context, identity *homelabv1.Identity) ([]byte, error)
	// CreateTemplate makes a template whose only disk is the image, or finishes it:
	// one of that identity that is no template yet becomes one. Anybody else's VM, a
	// storage that cannot take the disk and a half-built VM are Refused before any
	// change.
	CreateTemplate(ctx context.Context, req *driverv1.CreateTemplateRequest, report Report) (*homelabv1.VirtualMachine, error)
	// Storages tells the storages of this host with their space as Proxmox says it
	// now. It starts one process.
	Storages(ctx context.Context) ([]*homelabv1.Storage, error)
}

// Full is a driver with its powers.
type Full interface {
	Driver
	Powers
}

// powersOf gives a driver's powers; those of one that has none are Unsupported.
func powersOf(d Driver) Powers {
	if p, ok := d.(Powers); ok {
		return p
	}
	return none{}
}

// none has no powers.
type none struct{}

var errUnsupported = rpc.Errorf(rpc.ErrUnsupported, "this driver cannot do that")

func (none) Reset(context.Context, *driverv1.ResetRequest, Report) (*homelabv1.VirtualMachine, error) {
	return nil, errUnsupported
}

func (none) Adopt(context.Context, *driverv1.AdoptRequest, Report) (*homelabv1.VirtualMachine, error) {
	return nil, errUnsupported
}

func (none) CreateHolder(context.Context, *driverv1.CreateHolderRequest, Report) (*homelabv1.VirtualMachine, error) {
	return nil, errUnsupported
}

func (none) MoveDisk(context.Context, *driverv1.MoveDiskRequest, Report) (*homelabv1.VirtualMachine, error) {
	return nil, errUnsupported
}

func (none) Orphans(context.Context) (*driverv1.OrphansResponse, error) { return nil, errUnsupported }

func (none) Config(context.Context, *homelabv1.Identity) ([]byte, error) { return nil, errUnsupported }

func (none) CreateTemplate(context.Context, *driverv1.CreateTemplateRequest, Report) (*homelabv1.VirtualMachine, error) {
	return nil, errUnsupported
}

func (none) Storages(context.Context) ([]*homelabv1.Storage, error) { return nil, errUnsupported }
