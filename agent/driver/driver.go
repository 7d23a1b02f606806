// Package driver is the contract between an agent and what manages the VMs of
// its host, and how such a driver runs as a plugin: a process apart, spoken to
// over gRPC (hashicorp/go-plugin), relaunched when it dies. What a VM is for, k3s,
// tokens, plans and SSH are none of its business.
//
// Words of the contract. The identity of a VM is its VMID, its smbios1 uuid and
// the mark in its description; a VM is meant only when all three agree. A VM is
// half-built when its configuration holds nothing but the lock of an unfinished
// create or destroy. A call is changing when it is Create, Update, Start, Stop or
// Destroy, or one of Powers that says so. A holder VM is one whose mark's guest
// begins with "holder@": it never has a system of its own, only disks of another.
package driver

import (
	"context"

	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// Report takes what happens during a changing call: a CALL event for every
// program that was run (failed attempts too), and STEP_PROGRESS events with the
// phase and a sentence while it works or waits. Events carry time, kind, phase,
// text, limit and call; step, guest, host and run are the caller's to fill in.
// It is called one event at a time and in order, on the goroutine of the call,
// and is never nil.
type Report func(*homelabv1.Event)

// Driver manages the VMs of one host.
//
// Every changing call compares the request's identity with what is there,
// immediately before it changes anything; another VM at that VMID is Refused and
// left as it is. Every call may be repeated: what is done already is not done
// again and is no error. Success is what is seen afterwards, never an exit code.
// A second changing call for a VMID waits for the first, up to its deadline.
//
// The request's deadline bounds the whole call (zero is the driver's default).
// When it or the context ends, the driver stops waiting but leaves a program that
// is at work alone: a later call finds it and waits for it.
//
// A driver's process that gets SIGTERM is to end soon: calls begin no more programs and
// end what they wait for with Unavailable, but for a program that runs. It is killed
// when no call is left, or after a while.
//
// Errors are of the kinds of internal/rpc. Busy: a lock, a task or another call
// held the VM until the deadline. Refused: nothing was changed, and the text says
// why. Unavailable: it cannot be known now, or was begun and not seen to end.
type Driver interface {
	// Observe lists the VMs of the host. It starts no process. What could not be
	// read is unknown in the answer, not an error: it fails only when ctx ends.
	// With fresh it asks QEMU and the guest agents now, else it may tell what they
	// said some seconds ago.
	Observe(ctx context.Context, fresh bool) (*driverv1.ObserveResponse, error)
	// Inspect tells one VM with its volumes on all storages. A VMID that nobody
	// uses is not an error: power absent. It may start processes.
	Inspect(ctx context.Context, vmid int32) (*driverv1.InspectResponse, error)
	// Create makes the VM, or finishes it when it is there already with the same
	// identity. A VMID that anybody else uses, a storage that is missing, inactive
	// or too full, and a half-built VM are Refused before any change. With a template
	// it is cloned from that, which must be the very one, be a template and have no
	// other disk. A clone that was cut off before it had its identity is half-built.
	Create(ctx context.Context, req *driverv1.CreateRequest, report Report) (*homelabv1.VirtualMachine, error)
	// Update makes cores, memory and disks larger. What cannot be changed, or would
	// shrink, is Refused before any change.
	Update(ctx context.Context, req *driverv1.UpdateRequest, report Report) (*homelabv1.VirtualMachine, error)
	// Start starts the VM; one that runs is started already. No such VM: NotFound. A
	// paused VM is Refused, or with resume goes on; one that pauses again at once is
	// Unavailable, with QEMU's word for why.
	Start(ctx context.Context, req *driverv1.StartRequest, report Report) (*homelabv1.VirtualMachine, error)
	// Stop stops the VM; one that is stopped, or gone, is stopped already. Without
	// force the guest is asked: one that does not go down in time is Unavailable and
	// runs on, a paused one is Refused. With force the power is cut, also of a VM
	// whose QEMU hangs (which takes Proxmox more than a minute), and over an earlier
	// shutdown that is still at work.
	Stop(ctx context.Context, req *driverv1.StopRequest, report Report) (*homelabv1.VirtualMachine, error)
	// Destroy removes the stopped VM and its own volumes; one that is gone is
	// destroyed already. Refused: running, protected, under HA, with linked clones,
	// with a volume to keep or a disk in a slot to keep (in snapshots and pending
	// changes too), with a volume that another configuration names too or that lies
	// on a storage that is not active, a holder VM with any volume, and, unless
	// named, with snapshots or pending changes. Volumes that no configuration names
	// are never destroyed by it. With half_built it removes only a half-built VM,
	// and, also when there is no VM any more, the volumes of that VMID that are not
	// in volumes_before and that no configuration names; a VM that is whole is
	// Refused. Half-built is, with cloned_from, also a clone that has the identity's
	// mark and not its uuid: that it is no clone that somebody made of a VM of ours
	// the caller must know. A template is Refused without template, and with it goes
	// only when no configuration of the cluster names its disk; a base volume is freed
	// by nothing else.
	Destroy(ctx context.Context, req *driverv1.DestroyRequest, report Report) (*homelabv1.VirtualMachine, error)
	// Exec runs a command in the guest through its agent, its arguments as they are,
	// and waits for its end until the deadline. The command's own failure is an exit
	// code, not an error; one that has not ended is Unavailable and goes on.
	// Unsupported where there is no guest agent.
	Exec(ctx context.Context, req *driverv1.ExecRequest) (*driverv1.ExecResponse, error)
}
