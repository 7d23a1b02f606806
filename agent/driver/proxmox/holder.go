package proxmox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/homeiac/homelab/agent/driver"
	"github.com/homeiac/homelab/agent/driver/proxmox/args"
	"github.com/homeiac/homelab/agent/driver/proxmox/parse"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/human"
	"github.com/homeiac/homelab/internal/rpc"
)

// CreateHolder implements driver.Powers.
func (d *Driver) CreateHolder(ctx context.Context, req *driverv1.CreateHolderRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	call, err := args.CreateHolder(req)
	if err != nil {
		return nil, err
	}
	return d.change(ctx, "creating", req.GetIdentity(), req.GetDeadline().AsDuration(), report,
		func(ctx context.Context, s *session) (*homelabv1.VirtualMachine, error) {
			vmid := s.id.GetVmid()
			if err := s.make(ctx, call, "to hold disks", s.there, s.d.writable); err != nil {
				return nil, err
			}
			if _, err := s.mine(); errors.Is(err, rpc.ErrNotFound) {
				return nil, rpc.Errorf(rpc.ErrUnavailable, "qm create said that it was done, but there is no VM %d", vmid)
			} else if err != nil {
				return nil, err
			}
			return d.look(ctx, vmid)
		})
}

// writable is an error when /etc/pve has no quorum.
func (d *Driver) writable() error {
	m, err := d.members()
	if err != nil {
		return err
	}
	return d.quorate(m)
}

// MoveDisk implements driver.Powers, with qm disk move, which renames the volume
// for its new VM. Both configurations are looked at before and after.
func (d *Driver) MoveDisk(ctx context.Context, req *driverv1.MoveDiskRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	from, to, slot := req.GetFrom(), req.GetTo(), req.GetSlot()
	for _, id := range []*homelabv1.Identity{from, to} {
		if err := checkIdentity(id); err != nil {
			return nil, err
		}
	}
	if from.GetVmid() == to.GetVmid() || !args.Slot(slot) {
		return nil, rpc.Errorf(rpc.ErrInvalid, "disk %q of VM %d cannot be moved to VM %d", slot, from.GetVmid(), to.GetVmid())
	}
	return d.alone(ctx, []int32{from.GetVmid(), to.GetVmid()}, req.GetDeadline().AsDuration(),
		func(ctx context.Context) (*homelabv1.VirtualMachine, error) {
			m := &move{
				from: &session{d: d, id: from, phase: "moving", report: report},
				to:   &session{d: d, id: to, phase: "moving", report: report},
				slot: slot,
			}
			if err := m.do(ctx); err != nil {
				return nil, err
			}
			return d.look(ctx, to.GetVmid())
		})
}

// move is one disk that goes from one VM to the same slot of another.
type move struct {
	from, to *session
	slot     string
	disk     parse.Drive // as it was seen at its old place
}

func (m *move) do(ctx context.Context) error {
	ran := false
	out, err := m.from.attempt(ctx, func() (args.Call, bool, error) {
		if err := m.to.idle(ctx); err != nil {
			return args.Call{}, true, err
		}
		source, target, done, err := m.ready()
		if done || err != nil {
			return args.Call{}, true, err
		}
		ran = true
		m.from.report(progress("moving", fmt.Sprintf("moving disk %s (%s, %s) of VM %d to VM %d", m.slot, m.disk.Volid,
			human.Size(m.disk.SizeBytes), m.from.id.GetVmid(), m.to.id.GetVmid()), remaining(ctx)))
		return args.MoveDisk(m.from.id.GetVmid(), m.slot, source.Digest, m.to.id.GetVmid(), target.Digest), false, nil
	})
	if !ran || ctx.Err() != nil && err != nil {
		return err
	}
	return m.arrived(out, err)
}

// ready reads both VMs and tells whether the disk may be moved, or is moved already.
func (m *move) ready() (source, target *parse.Config, done bool, err error) {
	from, to := m.from.id.GetVmid(), m.to.id.GetVmid()
	if target, err = m.to.mine(); err != nil {
		return nil, nil, false, err
	}
	there, taken := target.Drive(m.slot)
	source, err = m.from.mine()
	gone := errors.Is(err, rpc.ErrNotFound)
	if err != nil && !gone {
		return nil, nil, false, err
	}
	var has bool
	if !gone {
		m.disk, has = source.Drive(m.slot)
	}
	switch {
	case !has && taken && there.Disk():
		return nil, nil, true, nil
	case !has && gone:
		return nil, nil, false, err
	case !has:
		return nil, nil, false, rpc.Errorf(rpc.ErrNotFound, "neither VM %d nor VM %d has a disk %s (qm config %d; pvesm list STORAGE --vmid %d)", from, to, m.slot, from, to)
	}
	refuse := func(format string, a ...any) (*parse.Config, *parse.Config, bool, error) {
		return nil, nil, false, rpc.Errorf(rpc.ErrRefused, "disk %s of VM %d is not moved to VM %d: %s", m.slot, from, to, fmt.Sprintf(format, a...))
	}
	for _, s := range []*session{m.from, m.to} {
		if _, err := s.changeable(); err != nil {
			return nil, nil, false, err
		}
		switch pid, _, err := s.d.anyProcess(s.id.GetVmid()); {
		case err != nil:
			return nil, nil, false, rpc.Errorf(rpc.ErrUnavailable, "VM %d: %w", s.id.GetVmid(), err)
		case pid != 0:
			return refuse("VM %d runs (process %d); stop it first", s.id.GetVmid(), pid)
		}
	}
	_, waits := source.Pending.Keys[m.slot]
	_, comes := target.Pending.Keys[m.slot]
	switch {
	case taken:
		return refuse("both have one there, %s and %s", m.disk.Volid, there.Volid)
	case comes:
		return refuse("one is to come there at the next start of VM %d (qm pending %d)", to, to)
	case waits || slices.Contains(source.Deleting(), m.slot):
		return refuse("a change of it waits for the next start (qm pending %d)", from)
	case !m.disk.Disk():
		return refuse("%s is no disk of a storage", m.disk.Volid)
	case parse.Owner(m.disk.Volid) != from:
		return refuse("its volume %s is not that VM's own", m.disk.Volid)
	case m.disk.SizeBytes == 0:
		return refuse("the configuration does not tell its size (qm disk rescan --vmid %d)", from)
	}
	for _, snapshot := range source.Snapshots {
		for _, d := range snapshot.Drives() {
			if d.Volid == m.disk.Volid {
				return refuse("its snapshot %s uses it", snapshot.Name)
			}
		}
	}
	return source, target, false, nil
}

// arrived looks at both VMs after a move: what counts is that the disk has left the
// one and is in the other, on the same storage and of the same size.
func (m *move) arrived(out output, failed error) error {
	from, to := m.from.id.GetVmid(), m.to.id.GetVmid()
	source, err := m.from.mine()
	if err != nil {
		return err
	}
	target, err := m.to.mine()
	if err != nil {
		return err
	}
	there, taken := target.Drive(m.slot)
	left := !slices.Contains(source.Volumes(), m.disk.Volid)
	switch {
	case left && taken && there.Disk() && parse.Owner(there.Volid) == to &&
		parse.Storage(there.Volid) == parse.Storage(m.disk.Volid) && there.SizeBytes == m.disk.SizeBytes:
		return nil
	case !left && failed != nil:
		return failed
	}
	var why []string
	if failed != nil {
		why = append(why, failed.Error())
	} else if said := parse.Reason(out.stdout, out.stderr); said != "" {
		why = append(why, said)
	}
	switch {
	case !left:
		why = append(why, fmt.Sprintf("VM %d still has %s", from, m.disk.Volid))
	case !taken:
		why = append(why, fmt.Sprintf("neither has it now; look for its volume with: pvesm list %s", parse.Storage(m.disk.Volid)))
	default:
		why = append(why, fmt.Sprintf("VM %d has %s of %s there instead of %s", to, there.Volid, human.Size(there.SizeBytes), human.Size(m.disk.SizeBytes)))
	}
	return rpc.Errorf(rpc.ErrUnavailable, "disk %s of VM %d is not seen to be moved to VM %d: %s", m.slot, from, to, strings.Join(why, "; "))
}
