package agent

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/homeiac/homelab/agent/guest"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// adopt takes over a VM that was made elsewhere: its description gets the mark, and
// nothing else of it is changed. What is learned of the guest itself is read
// through its agent, if that answers.
func (s *Service) adopt(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	id := req.GetWant().GetIdentity()
	vm, _, err := s.at(ctx, id.GetVmid())
	switch {
	case err != nil:
		return nil, err
	case vm == nil:
		return nil, rpc.Errorf(rpc.ErrNotFound, "there is no VM %d on this host", id.GetVmid())
	case !isYes(vm.GetReadable()):
		return nil, rpc.Errorf(rpc.ErrUnavailable, "the configuration of VM %d cannot be read: %s", id.GetVmid(), vm.GetReadable().GetReason())
	case vm.GetUuid() != id.GetUuid():
		return nil, rpc.Errorf(rpc.ErrRefused, "VM %d (%s) has uuid %s by now and not %s, so it is left alone; look again: hlctl guests adopt",
			id.GetVmid(), vm.GetName(), cmp.Or(vm.GetUuid(), "none"), id.GetUuid())
	case vm.GetMark() != "" && vm.GetMark() != id.GetMark():
		return nil, rpc.Errorf(rpc.ErrRefused, "VM %d (%s) bears a mark already, so it is left alone", id.GetVmid(), vm.GetName())
	}
	adopted := vm.GetMark() != id.GetMark()
	if adopted {
		if err := s.settled(s.host.Observe(s.now())); err != nil {
			return nil, err
		}
		// The digest of what was looked at: with another one by then it is refused.
		if _, err := s.driver.Adopt(ctx, &driverv1.AdoptRequest{Identity: id, Digest: vm.GetDigest(), Deadline: remaining(ctx)}, e.report()); err != nil {
			return nil, err
		}
		if vm, err = s.vm(ctx, id); err != nil {
			return nil, err
		}
	}
	r := done(adopted, "VM %d (%s) is guest %s", id.GetVmid(), vm.GetName(), id.GetGuest())
	s.learn(ctx, vm, id, r.GetLearned())
	if len(r.GetLearned().GetHostKeys()) == 0 {
		r.Text += "; its guest agent does not tell its SSH host keys, so it is not looked into over SSH"
	}
	return r, nil
}

// learnLimit bounds what is asked of a guest that was adopted.
const learnLimit = 20 * time.Second

// learnScript prints who a guest is; it changes nothing.
const learnScript = `cat /etc/machine-id
cat /etc/ssh/ssh_host_*_key.pub
exit 0
`

// learn fills in what the VM and its guest agent tell; all of it may be missing.
func (s *Service) learn(ctx context.Context, vm *homelabv1.VirtualMachine, id *homelabv1.Identity, l *agentv1.Learned) {
	l.Macs, l.Volumes, l.Addresses = vm.GetMacs(), vm.GetVolumes(), vm.GetAddresses()
	if config, err := s.driver.Config(ctx, id); err == nil {
		l.User = ciUser(config)
	}
	agent := s.agentOf(vm)
	if agent == nil || vm.GetPower() != homelabv1.Power_POWER_RUNNING {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, learnLimit)
	defer cancel()
	sh, err := guest.OpenAgent(ctx, agent, id)
	if err != nil {
		return
	}
	res, err := sh.Run(ctx, learnScript, nil)
	if err != nil {
		return
	}
	for line := range strings.Lines(string(res.Stdout)) {
		words := strings.Fields(line)
		switch {
		case len(words) == 1 && len(words[0]) == 32 && strings.Trim(words[0], "0123456789abcdef") == "":
			l.MachineId = words[0]
		case len(words) >= 2 && slices.Contains([]string{"ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"}, words[0]):
			l.HostKeys = append(l.HostKeys, words[0]+" "+words[1])
		}
	}
}

// ciUser is the login user that a VM's configuration gives to cloud-init.
func ciUser(config []byte) string {
	for line := range strings.Lines(string(config)) {
		if strings.HasPrefix(line, "[") {
			break // a snapshot's section, or what is pending
		}
		if user, ok := strings.CutPrefix(line, "ciuser:"); ok {
			return strings.TrimSpace(user)
		}
	}
	return ""
}

// Orphans lists volumes that no configuration names, and whose they provably are.
func (s *Service) Orphans(ctx context.Context, _ *agentv1.OrphansRequest) (*agentv1.OrphansResponse, error) {
	// The intents first: one that is closed while we look proves nothing any more.
	intents := s.intents.list()
	found, err := s.driver.Orphans(ctx)
	if err != nil {
		return nil, err
	}
	seen, err := s.driver.Observe(ctx, false)
	if err != nil {
		return nil, err
	}
	r := &agentv1.OrphansResponse{Known: found.GetKnown()}
	for _, o := range found.GetOrphans() {
		o.Host = s.name
		o.Ours, o.Guest = s.whose(o, intents, seen)
		r.Orphans = append(r.Orphans, o)
	}
	return r, nil
}

// whose says whether a volume without a configuration is provably ours.
func (s *Service) whose(o *homelabv1.Orphan, intents []*homelabv1.Intent, seen *driverv1.ObserveResponse) (ours *homelabv1.Fact, guest string) {
	i := slices.IndexFunc(intents, func(i *homelabv1.Intent) bool {
		return o.GetVmid() != 0 && i.GetIdentity().GetVmid() == o.GetVmid() && i.GetIdentity().GetFleet() == s.fleet
	})
	if i < 0 {
		return factNo("no unfinished step of ours is about its VMID"), ""
	}
	intent := intents[i]
	inUse := slices.ContainsFunc(seen.GetVms(), func(vm *homelabv1.VirtualMachine) bool { return vm.GetVmid() == o.GetVmid() }) ||
		slices.ContainsFunc(seen.GetClusterVmids(), func(c *homelabv1.ClusterVmid) bool { return c.GetVmid() == o.GetVmid() })
	switch {
	case slices.Contains(intent.GetVolumesBefore(), o.GetVolid()):
		return factNo("it was there before " + intent.GetStep()), ""
	case inUse:
		return factNo(fmt.Sprintf("VMID %d is in use", o.GetVmid())), ""
	case !isYes(seen.GetVmsKnown()) || !isYes(seen.GetClusterVmidsKnown()):
		return factUnknown("whether its VMID is in use is not known"), ""
	}
	return factYes("left by " + intent.GetStep()), intent.GetIdentity().GetGuest()
}
