package agent

import (
	"context"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// inspect sees a VMID with all of its volumes.
func (s *Service) inspect(ctx context.Context, vmid int32) (*driverv1.InspectResponse, error) {
	now, err := s.driver.Inspect(ctx, vmid)
	if err != nil {
		return nil, err
	}
	return now, listed(vmid, now)
}

// listed is an error when not all volumes of a VMID were seen.
func listed(vmid int32, now *driverv1.InspectResponse) error {
	if !isYes(now.GetVolumesKnown()) {
		return rpc.Errorf(rpc.ErrUnavailable, "the volumes of VMID %d cannot be listed: %s", vmid, now.GetVolumesKnown().GetReason())
	}
	return nil
}

// nobodys says that neither this host nor its PVE cluster has anything of a VMID
// but volumes.
func (s *Service) nobodys(ctx context.Context, vmid int32) error {
	vm, seen, err := s.at(ctx, vmid)
	switch {
	case err != nil:
		return err
	case vm != nil:
		return rpc.Errorf(rpc.ErrRefused, "VM %d (%s) is there, so nothing of it is freed", vmid, vm.GetName())
	}
	return free(seen, vmid)
}

// intend writes the intent, synced, before anything of the VM exists. One that
// is open already for the same VM stays: only it knows which volumes were there
// before the first attempt. With a template the VM is to be cloned from that.
func (s *Service) intend(ctx context.Context, id *homelabv1.Identity, step string, template *homelabv1.Identity) (*homelabv1.Intent, error) {
	if open := s.intents.of(id.GetVmid()); open != nil {
		switch {
		case open.GetDestroying():
			return nil, rpc.Errorf(rpc.ErrRefused, "VMID %d holds an unfinished destruction of guest %s, of which what is left must be removed first",
				id.GetVmid(), open.GetIdentity().GetGuest())
		case !sameVM(open.GetIdentity(), id):
			return nil, rpc.Errorf(rpc.ErrRefused, "VMID %d holds an unfinished create of guest %s, which must be rolled back first",
				id.GetVmid(), open.GetIdentity().GetGuest())
		case template == nil || proto.Equal(open.GetTemplate(), template):
			return open, nil
		}
		open.Template = template
		return open, s.intents.write(open)
	}
	was, err := s.inspect(ctx, id.GetVmid())
	if err != nil {
		return nil, err
	}
	intent := &homelabv1.Intent{Identity: id, Step: step, At: timestamppb.New(s.now()), Template: template}
	for _, v := range was.GetVolumes() {
		intent.VolumesBefore = append(intent.VolumesBefore, v.GetVolid())
	}
	if err := s.intents.write(intent); err != nil {
		return nil, err
	}
	return intent, nil
}

// unintend takes back what a create that was refused had prepared. It looks
// first: with anything of that VMID there, the intent stays.
func (s *Service) unintend(ctx context.Context, intent *homelabv1.Intent, snip snippet, written bool, e emit) error {
	vmid := intent.GetIdentity().GetVmid()
	now, err := s.driver.Inspect(ctx, vmid)
	if err != nil || !isYes(now.GetVolumesKnown()) || now.GetVm().GetPower() != homelabv1.Power_POWER_ABSENT {
		return nil //nolint:nilerr // not known: the intent stays, the next run rolls back
	}
	for _, v := range now.GetVolumes() {
		if !slices.Contains(intent.GetVolumesBefore(), v.GetVolid()) {
			return nil
		}
	}
	if written {
		if err := s.removeSnippet(snip, e); err != nil {
			return err
		}
	}
	return s.intents.close(vmid)
}

// undoing stands for the step in the intent of a VM whose rollback was begun.
const undoing = "rollback"

// rollback undoes a half-built VM. Only an open intent of this very VM proves
// that it is ours; without one nothing is touched.
func (s *Service) rollback(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	id := req.GetWant().GetIdentity()
	intent := s.intents.of(id.GetVmid())
	switch {
	case intent == nil:
		now, err := s.driver.Inspect(ctx, id.GetVmid())
		if err != nil {
			return nil, err
		}
		if now.GetVm().GetPower() == homelabv1.Power_POWER_ABSENT {
			return done(false, "nothing of VM %d is there", id.GetVmid()), nil
		}
		return nil, rpc.Errorf(rpc.ErrRefused, "this agent has not begun to make VM %d, so it is left alone", id.GetVmid())
	case intent.GetIdentity().GetGuest() != id.GetGuest() || intent.GetIdentity().GetFleet() != id.GetFleet():
		return nil, rpc.Errorf(rpc.ErrRefused, "what is unfinished at VMID %d is guest %s's", id.GetVmid(), intent.GetIdentity().GetGuest())
	case intent.GetDestroying():
		return s.finishDestroy(ctx, intent, e)
	}
	if err := s.settled(s.host.Observe(s.now())); err != nil {
		return nil, err
	}
	left, gone, err := s.undone(ctx, intent)
	switch {
	case err != nil:
		return nil, err
	case gone && (left == "" || !req.GetNamed()):
		return done(false, "nothing of half-built VM %d is there any more%s", id.GetVmid(), left), s.intents.close(id.GetVmid())
	case gone:
		// They were asked for by name, so they go if nobody has the VMID now.
		if err := s.nobodys(ctx, id.GetVmid()); err != nil {
			return nil, err
		}
	}
	// From here on what is left of it is ours, also when the VM itself is gone.
	intent.Step = undoing
	if err := s.intents.write(intent); err != nil {
		return nil, err
	}
	e.progress("rolling back", fmt.Sprintf("removing half-built VM %d", id.GetVmid()))
	// The intent's identity, not the request's: what was begun is what is undone.
	_, err = s.driver.Destroy(ctx, &driverv1.DestroyRequest{
		Identity: intent.GetIdentity(), HalfBuilt: true, VolumesBefore: intent.GetVolumesBefore(), Deadline: remaining(ctx),
		ClonedFrom: intent.GetTemplate(), Template: isTemplate(intent.GetIdentity()),
	}, e.report())
	if err != nil {
		return nil, err
	}
	if err := s.intents.close(id.GetVmid()); err != nil {
		return nil, err
	}
	return done(true, "removed half-built VM %d", id.GetVmid()), nil
}

// undone says whether the half-built VM is gone without a rollback of ours having
// removed it. Then a person did, and may have used the VMID since: volumes that
// were not there before our create are not proved to be ours, and stay. left names
// them.
func (s *Service) undone(ctx context.Context, intent *homelabv1.Intent) (left string, gone bool, err error) {
	if intent.GetStep() == undoing {
		return "", false, nil
	}
	now, err := s.driver.Inspect(ctx, intent.GetIdentity().GetVmid())
	if err != nil || now.GetVm().GetPower() != homelabv1.Power_POWER_ABSENT {
		return "", false, err
	}
	if err := listed(intent.GetIdentity().GetVmid(), now); err != nil {
		return "", false, err
	}
	for _, v := range now.GetVolumes() {
		if !slices.Contains(intent.GetVolumesBefore(), v.GetVolid()) {
			left += "; " + v.GetVolid() + " is left alone (pvesm free removes it)"
		}
	}
	return left, true, nil
}
