package proxmox

import (
	"context"
	"fmt"
	"strings"

	"github.com/homeiac/homelab/agent/driver"
	"github.com/homeiac/homelab/agent/driver/proxmox/args"
	"github.com/homeiac/homelab/agent/driver/proxmox/parse"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/human"
	"github.com/homeiac/homelab/internal/rpc"
)

// Update implements driver.Driver: more cores, more memory, larger disks. On a
// running VM cores and memory wait for its next cold start, which the VM that is
// given back shows.
func (d *Driver) Update(ctx context.Context, req *driverv1.UpdateRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	return d.change(ctx, "updating", req.GetIdentity(), req.GetDeadline().AsDuration(), report,
		func(ctx context.Context, s *session) (*homelabv1.VirtualMachine, error) {
			hw := req.GetHardware()
			_, err := s.attempt(ctx, func() (args.Call, bool, error) {
				c, err := s.changeable()
				if err != nil {
					return args.Call{}, true, err
				}
				if cannot := unchangeable(c, hw); cannot != "" {
					return args.Call{}, true, rpc.Errorf(rpc.ErrRefused, "VM %d is left as it is: %s", s.id.GetVmid(), cannot)
				}
				cores, memory := more(c, hw)
				return args.Set(s.id.GetVmid(), cores, memory, c.Digest), cores == 0 && memory == 0, nil
			})
			if err != nil {
				return nil, err
			}
			for _, disk := range append([]*homelabv1.Disk{hw.GetSystemDisk()}, hw.GetDataDisks()...) {
				if err := s.grow(ctx, disk); err != nil {
					return nil, err
				}
			}
			c, err := s.mine()
			if err != nil {
				return nil, err
			}
			if cores, memory := more(c, hw); cores != 0 || memory != 0 {
				return nil, rpc.Errorf(rpc.ErrUnavailable, "VM %d has %d cores and %s after the change", s.id.GetVmid(), c.CPUs(), human.Size(c.MemoryBytes()))
			}
			return d.look(ctx, s.id.GetVmid())
		})
}

// more is what must be raised, values that wait for the next start counted; 0
// leaves it.
func more(c *parse.Config, hw *homelabv1.Hardware) (cores int32, memory int64) {
	next := c.AtNextStart()
	if hw.GetCpus() > next.CPUs() {
		cores = hw.GetCpus()
	}
	if hw.GetMemoryBytes() > next.MemoryBytes() {
		memory = hw.GetMemoryBytes()
	}
	return cores, memory
}

// unchangeable says what of the wanted hardware this driver does not change; empty
// is nothing.
func unchangeable(c *parse.Config, hw *homelabv1.Hardware) string {
	var cannot []string
	add := func(bad bool, format string, a ...any) {
		if bad {
			cannot = append(cannot, fmt.Sprintf(format, a...))
		}
	}
	next := c.AtNextStart()
	add(hw.GetCpus() < next.CPUs(), "%d cores are not taken away down to %d", next.CPUs(), hw.GetCpus())
	add(hw.GetMemoryBytes() < next.MemoryBytes(), "memory is not made smaller, from %s to %s", human.Size(next.MemoryBytes()), human.Size(hw.GetMemoryBytes()))
	for _, disk := range append([]*homelabv1.Disk{hw.GetSystemDisk()}, hw.GetDataDisks()...) {
		drive, ok := c.Drive(disk.GetSlot())
		switch {
		case !ok || !drive.Disk():
			add(true, "disk %s is not added", disk.GetSlot())
		case parse.Storage(drive.Volid) != disk.GetStorage():
			add(true, "disk %s is not moved from %s to %s", disk.GetSlot(), parse.Storage(drive.Volid), disk.GetStorage())
		default:
			add(disk.GetSizeBytes() < drive.SizeBytes, "disk %s is not made smaller, from %s to %s", disk.GetSlot(), human.Size(drive.SizeBytes), human.Size(disk.GetSizeBytes()))
		}
	}
	nics := c.NICs()
	add(len(nics) != len(hw.GetNics()), "%d network interfaces are not made %d", len(nics), len(hw.GetNics()))
	for i, want := range hw.GetNics() {
		if i < len(nics) {
			add(nics[i].MAC != want.GetMac() || nics[i].Bridge != want.GetBridge(), "net%d is not changed from %s on %s to %s on %s",
				i, nics[i].MAC, nics[i].Bridge, want.GetMac(), want.GetBridge())
		}
	}
	return strings.Join(cannot, "; ")
}
