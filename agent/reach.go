package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/homeiac/homelab/agent/guest"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// target is where a guest is and how it is recognised: by the host keys that
// the controller remembers, else by the one that this agent made for it.
func (s *Service) target(want *homelabv1.GuestWant, told []string) (guest.Target, error) {
	t := guest.Target{
		User: want.GetUser(), Addresses: guest.WhereToLook(want, told), Port: s.sshPort,
		HostKeys: want.GetHostKeys(), Key: s.keys.Agent(),
	}
	if len(t.HostKeys) == 0 {
		id := want.GetIdentity()
		key, ok, err := s.keys.HostKey(id.GetFleet(), id.GetGuest(), id.GetGeneration())
		if err != nil {
			return t, err
		}
		if ok {
			t.HostKeys = []string{key.Public}
		}
	}
	return t, nil
}

// vm finds the guest's VM as the driver shows it. It is Unavailable when that
// cannot be known, NotFound when there is none, and Refused when the VMID is
// somebody else's.
func (s *Service) vm(ctx context.Context, id *homelabv1.Identity) (*homelabv1.VirtualMachine, error) {
	return s.own(ctx, id, false)
}

// vmNow is vm with QEMU asked at once: what it said a while ago is no ground for a
// change that its power decides.
func (s *Service) vmNow(ctx context.Context, id *homelabv1.Identity) (*homelabv1.VirtualMachine, error) {
	return s.own(ctx, id, true)
}

func (s *Service) own(ctx context.Context, id *homelabv1.Identity, fresh bool) (*homelabv1.VirtualMachine, error) {
	vm, _, err := s.find(ctx, id.GetVmid(), fresh)
	switch {
	case err != nil:
		return nil, err
	case vm == nil:
		return nil, rpc.Errorf(rpc.ErrNotFound, "there is no VM %d on this host", id.GetVmid())
	}
	return vm, ours(vm, id)
}

// at finds the VM of a VMID on this host, whoever's it is; nil when there is none.
// QEMU is asked at once.
func (s *Service) at(ctx context.Context, vmid int32) (*homelabv1.VirtualMachine, *driverv1.ObserveResponse, error) {
	return s.find(ctx, vmid, true)
}

func (s *Service) find(ctx context.Context, vmid int32, fresh bool) (*homelabv1.VirtualMachine, *driverv1.ObserveResponse, error) {
	seen, err := s.driver.Observe(ctx, fresh)
	if err != nil {
		return nil, nil, err
	}
	if !isYes(seen.GetVmsKnown()) {
		return nil, nil, rpc.Errorf(rpc.ErrUnavailable, "the VMs of this host cannot be listed: %s", seen.GetVmsKnown().GetReason())
	}
	for _, vm := range seen.GetVms() {
		if vm.GetVmid() == vmid {
			return vm, seen, nil
		}
	}
	return nil, seen, nil
}

// free says that nothing in the PVE cluster uses a VMID that no VM of this host
// has: no container, and no VM that went to another node.
func free(seen *driverv1.ObserveResponse, vmid int32) error {
	if !isYes(seen.GetClusterVmidsKnown()) {
		return rpc.Errorf(rpc.ErrUnavailable, "the VMIDs of the PVE cluster cannot be listed: %s", seen.GetClusterVmidsKnown().GetReason())
	}
	for _, c := range seen.GetClusterVmids() {
		if c.GetVmid() == vmid {
			return rpc.Errorf(rpc.ErrRefused, "VMID %d is in use on node %s (%s), so nothing of it is touched", vmid, c.GetNode(), c.GetType())
		}
	}
	return nil
}

// ours compares all of the identity. A clone copies the mark but has another uuid.
func ours(vm *homelabv1.VirtualMachine, id *homelabv1.Identity) error {
	switch {
	case id.GetUuid() == "" || id.GetMark() == "":
		return rpc.Errorf(rpc.ErrInvalid, "guest %s: the request names no uuid or mark", id.GetGuest())
	case isNo(vm.GetReadable()) || isUnknown(vm.GetReadable()):
		return rpc.Errorf(rpc.ErrUnavailable, "the configuration of VM %d cannot be read: %s", vm.GetVmid(), vm.GetReadable().GetReason())
	case vm.GetMark() != id.GetMark() || vm.GetUuid() != id.GetUuid():
		return rpc.Errorf(rpc.ErrRefused, "VM %d (%s) is not guest %s: its uuid or mark differ, so it is left alone",
			vm.GetVmid(), vm.GetName(), id.GetGuest())
	}
	return nil
}

// open reaches a guest that runs here. Nothing is run in a machine that is not it.
func (s *Service) open(ctx context.Context, want *homelabv1.GuestWant) (*guest.Shell, error) {
	vm, err := s.vm(ctx, want.GetIdentity())
	if err != nil {
		return nil, err
	}
	if vm.GetPower() != homelabv1.Power_POWER_RUNNING {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "guest %s is %s", want.GetIdentity().GetGuest(), powerText(vm))
	}
	t, err := s.target(want, vm.GetAddresses())
	if err != nil {
		return nil, err
	}
	sh, err := guest.Open(ctx, t, s.agentOf(vm), want.GetIdentity(), guest.Who{Hostname: want.GetNodeName(), MachineID: want.GetMachineId()})
	if err != nil {
		return nil, fmt.Errorf("guest %s: %w", want.GetIdentity().GetGuest(), err)
	}
	return sh, nil
}

// agentOf is the guest agent, once it has answered the driver's ping: each try
// is a process on the host, which waits for seconds when nobody is there.
func (s *Service) agentOf(vm *homelabv1.VirtualMachine) guest.Execer {
	if isYes(vm.GetGuestAgent()) {
		return s.driver
	}
	return nil
}

func powerText(vm *homelabv1.VirtualMachine) string {
	text := "in an unknown state"
	switch vm.GetPower() {
	case homelabv1.Power_POWER_RUNNING:
		text = "running"
	case homelabv1.Power_POWER_STOPPED:
		text = "stopped"
	case homelabv1.Power_POWER_PAUSED:
		text = "paused"
	case homelabv1.Power_POWER_ABSENT:
		text = "absent"
	}
	if r := vm.GetPowerReason(); r != "" {
		text += " (" + r + ")"
	}
	return text
}

// Facts. One that is missing is unknown.

func isYes(f *homelabv1.Fact) bool { return f.GetTruth() == homelabv1.Truth_TRUTH_YES }
func isNo(f *homelabv1.Fact) bool  { return f.GetTruth() == homelabv1.Truth_TRUTH_NO }
func isUnknown(f *homelabv1.Fact) bool {
	return !isYes(f) && !isNo(f)
}

func factYes(reason string) *homelabv1.Fact {
	return &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_YES, Reason: reason}
}

func factNo(reason string) *homelabv1.Fact {
	return &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_NO, Reason: reason}
}

func factUnknown(reason string) *homelabv1.Fact {
	return &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_UNKNOWN, Reason: reason}
}

// sshFact is what an attempt to log in says: unknown only when nothing was tried.
func sshFact(err error) *homelabv1.Fact {
	var se *guest.SSHError
	switch {
	case err == nil:
		return factYes("")
	case errors.As(err, &se) && (se.Why == guest.NoAddress || se.Why == guest.NoHostKey):
		return factUnknown(se.Error())
	case errors.As(err, &se):
		return factNo(se.Error())
	}
	return factUnknown(err.Error())
}
