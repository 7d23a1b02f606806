package proxmox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/homeiac/homelab/agent/driver/proxmox/parse"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// absent is a VMID that nobody uses here.
func absent(vmid int32) *homelabv1.VirtualMachine {
	return &homelabv1.VirtualMachine{Vmid: vmid, Power: homelabv1.Power_POWER_ABSENT, Process: no("there is no such VM"), Readable: yes()}
}

// describe is a VM as its configuration and its sockets show it.
func describe(vmid int32, c *parse.Config, p probe, ha bool, tasks []string) *homelabv1.VirtualMachine {
	vm := &homelabv1.VirtualMachine{
		Vmid: vmid, Name: c.Name(), Uuid: c.UUID(), Mark: c.Mark(), Digest: c.Digest,
		Power: p.life.power, PowerReason: p.life.reason, Lock: c.Lock(), Template: c.Template(),
		Protection: c.Protection(), HaManaged: ha, MemoryBytes: c.MemoryBytes(), Cpus: c.CPUs(),
		HalfBuilt: c.HalfBuilt() || c.CloneBegun(), PendingChanges: len(c.Pending.Keys) > 0, Snapshots: c.SnapshotNames(),
		GuestAgent: p.agent, Addresses: p.addresses, Onboot: c.OnBoot(), Tags: c.Tags(), Tasks: tasks, Readable: yes(),
		QemuStatus: p.life.status, Process: p.life.there,
	}
	if !p.started.IsZero() {
		vm.ProcessStarted = timestamppb.New(p.started)
	}
	if vm.GuestAgent == nil {
		vm.GuestAgent = unknown("no guest agent configured") // one that is not there is not mute
	}
	for _, drive := range c.Main.Drives() {
		if !drive.Volume() || parse.ISO(drive.Volid) {
			continue // an ISO file is nobody's data
		}
		vm.Volumes = append(vm.Volumes, &homelabv1.Volume{Volid: drive.Volid, Slot: drive.Slot, SizeBytes: drive.SizeBytes})
		if drive.Disk() {
			vm.Disks = append(vm.Disks, &homelabv1.Disk{Slot: drive.Slot, Storage: parse.Storage(drive.Volid), SizeBytes: drive.SizeBytes})
		}
		if parse.Base(drive.Volid) != "" || strings.HasPrefix(baseName(drive.Volid), "base-") {
			vm.LinkedClone = true
		}
	}
	for _, n := range c.NICs() {
		vm.Macs = append(vm.Macs, n.MAC)
		vm.Bridges = append(vm.Bridges, n.Bridge)
	}
	return vm
}

func baseName(volid string) string {
	if i := strings.LastIndexAny(volid, "/:"); i >= 0 {
		return volid[i+1:]
	}
	return volid
}

// look is one VM as it is now, asked afresh.
func (d *Driver) look(ctx context.Context, vmid int32) (*homelabv1.VirtualMachine, error) {
	c, err := d.read(vmid)
	if errors.Is(err, rpc.ErrNotFound) {
		return absent(vmid), nil
	}
	if err != nil {
		return nil, err
	}
	ha, err := d.haManaged()
	if err != nil {
		return nil, err
	}
	atWork, err := d.atWork()
	if err != nil {
		return nil, err
	}
	vm := describe(vmid, c, d.probe(ctx, vmid, c, true), ha[vmid], atWork[vmid].names)
	if vm.LinkedClones, err = d.linkedClones(vmid, c, freshVM); err != nil {
		return nil, err
	}
	d.lastStops([]*homelabv1.VirtualMachine{vm})
	return vm, nil
}

// ours compares a VM with the identity. The error says whose it is instead, and is
// Refused: nothing of anybody else is ever touched.
func ours(id *homelabv1.Identity, c *parse.Config) error {
	var differs []string
	if c.UUID() != strings.ToLower(id.GetUuid()) {
		differs = append(differs, fmt.Sprintf("its uuid is %s, not %s", orNone(c.UUID()), id.GetUuid()))
	}
	if c.Mark() != id.GetMark() {
		differs = append(differs, fmt.Sprintf("its mark is %s, not %s", orNone(c.Mark()), id.GetMark()))
	}
	if len(differs) == 0 {
		return nil
	}
	whose := "a VM without a name"
	if c.Name() != "" {
		whose = fmt.Sprintf("VM %q", c.Name())
	}
	return rpc.Errorf(rpc.ErrRefused, "VMID %d is %s, which is not guest %s of fleet %s: %s; it was not touched (see it with: qm config %d)",
		id.GetVmid(), whose, id.GetGuest(), id.GetFleet(), strings.Join(differs, ", "), id.GetVmid())
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// mine reads the VM's configuration now and compares it with the identity.
func (s *session) mine() (*parse.Config, error) {
	c, err := s.d.read(s.id.GetVmid())
	if err != nil {
		return nil, err
	}
	if c.HalfBuilt() || s.from != nil && halfCloned(s.id, c) {
		return nil, s.halfBuilt()
	}
	return c, ours(s.id, c)
}

// changeable is mine, and refuses a VM that is not to be changed at all.
func (s *session) changeable() (*parse.Config, error) {
	c, err := s.mine()
	if err != nil {
		return nil, err
	}
	return c, s.unheld(c)
}

// unheld refuses a VM that Proxmox HA has, that a person protected, or that was
// made a template since it was seen.
func (s *session) unheld(c *parse.Config) error {
	vmid := s.id.GetVmid()
	ha, err := s.d.haManaged()
	switch {
	case err != nil:
		return err
	case ha[vmid]:
		return rpc.Errorf(rpc.ErrRefused, "VM %d is left as it is: Proxmox HA manages it (ha-manager remove vm:%d)", vmid, vmid)
	case c.Protection():
		return rpc.Errorf(rpc.ErrRefused, "VM %d is left as it is: its protection is on (qm set %d --protection 0)", vmid, vmid)
	case c.Template():
		return rpc.Errorf(rpc.ErrRefused, "VM %d is a template", vmid)
	}
	return nil
}

func (s *session) halfBuilt() error {
	return rpc.Errorf(rpc.ErrRefused, "VM %d is half-built: a create, clone or destroy of it was broken off; it must be rolled back first", s.id.GetVmid())
}

// exists tells whether a file is there.
func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
