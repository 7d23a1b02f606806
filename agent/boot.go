package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/homeiac/homelab/agent/guest"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/k3s"
	"github.com/homeiac/homelab/internal/rpc"
)

// wrongFor is how long another host key at the guest's address is taken for
// cloud-init not having put the guest's in yet.
const wrongFor = 15 * time.Second

// boot waits until the guest has booted: it runs, SSH or its guest agent
// answers, cloud-init is done, its hostname is the node name and its addresses
// are the expected ones. It changes nothing.
func (s *Service) boot(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	want := req.GetWant()
	sh, err := s.awaitShell(ctx, want, e)
	if err != nil {
		return nil, err
	}
	defer sh.Close()
	p, err := s.awaitBooted(ctx, sh, want, e)
	if err != nil {
		return nil, err
	}
	if id := want.GetMachineId(); id != "" && p.MachineID.Known && p.MachineID.Value != id {
		return nil, rpc.Errorf(rpc.ErrDenied, "another machine answers: its machine-id is %s and should be %s", p.MachineID.Value, id)
	}
	text := "booted, reached over SSH"
	if err := sh.SSHError(); err != nil {
		text = fmt.Sprintf("booted, reached through the guest agent only (%v)", err)
	}
	if c := p.CloudInit.Value; len(c.Errors) > 0 {
		text += "; cloud-init went on after: " + strings.Join(c.Errors, "; ")
	}
	r := done(false, "%s", text)
	t, err := s.target(want, nil)
	if err != nil {
		return nil, err
	}
	r.Learned.HostKeys, r.Learned.MachineId = t.HostKeys, p.MachineID.Value
	r.Learned.Addresses = guest.Addresses(want, p.Addresses.Value)
	return r, nil
}

// awaitShell waits until the guest can be reached.
func (s *Service) awaitShell(ctx context.Context, want *homelabv1.GuestWant, e emit) (*guest.Shell, error) {
	var sh *guest.Shell
	var wrongSince time.Time
	err := e.wait(ctx, waiting{phase: "booting", limit: bootLimit(want), look: func(ctx context.Context) (bool, string, error) {
		vm, err := s.vm(ctx, want.GetIdentity())
		switch {
		case errors.Is(err, rpc.ErrUnavailable):
			return false, "waiting for the host's answer: " + err.Error(), nil
		case err != nil:
			return false, "", err
		case vm.GetPower() != homelabv1.Power_POWER_RUNNING:
			return false, "", rpc.Errorf(rpc.ErrUnavailable, "VM %d is %s", vm.GetVmid(), powerText(vm))
		}
		t, err := s.target(want, vm.GetAddresses())
		if err != nil {
			return false, "", err
		}
		sh, err = guest.Open(ctx, t, s.agentOf(vm), want.GetIdentity(), guest.Who{})
		ssh := err
		if err == nil {
			ssh = sh.SSHError()
		}
		if !errors.Is(ssh, rpc.ErrDenied) {
			wrongSince = time.Time{}
		} else if wrongSince.IsZero() {
			wrongSince = time.Now()
		}
		patient := !wrongSince.IsZero() && time.Since(wrongSince) <= s.wrongFor
		switch {
		case err == nil && !patient:
			return true, "", nil
		case err == nil:
			// The guest agent answers, and SSH will in a moment.
			_ = sh.Close()
			sh = nil
		case errors.Is(err, rpc.ErrDenied) && !patient:
			return false, "", err
		}
		return false, "waiting for SSH: " + ssh.Error(), nil
	}, overdue: func(text string) error {
		return rpc.Errorf(rpc.ErrUnavailable, "not reachable within %s: %s; look at its console: qm terminal %d", bootLimit(want), text, want.GetIdentity().GetVmid())
	}})
	if err != nil && sh != nil {
		_ = sh.Close()
	}
	return sh, err
}

// awaitBooted waits for what happens inside.
func (s *Service) awaitBooted(ctx context.Context, sh *guest.Shell, want *homelabv1.GuestWant, e emit) (k3s.Probe, error) {
	var p k3s.Probe
	err := e.wait(ctx, waiting{phase: "booting", limit: cloudInitLimit(want), look: func(ctx context.Context) (bool, string, error) {
		res, err := sh.Run(ctx, bootScript, nil)
		if err != nil {
			return false, "", err
		}
		if p, err = k3s.ParseProbe(res.Stdout); err != nil {
			return false, "waiting for the guest's shell: " + err.Error(), nil //nolint:nilerr // said in the text
		}
		v := guest.Judge(want, p)
		switch {
		case v.CloudInitFailed:
			log, _ := sh.Run(ctx, guest.CloudInitLog, nil)
			return false, "", rpc.Errorf(rpc.ErrUnavailable, "%s\n%s", v.Wrong, strings.TrimSpace(string(log.Stdout)))
		case v.Wrong != "":
			return false, "", rpc.Errorf(rpc.ErrRefused, "%s", v.Wrong)
		}
		return v.Booted, sh.Way() + " answers; " + v.Waiting, nil
	}, overdue: func(text string) error {
		log, _ := sh.Run(context.WithoutCancel(ctx), guest.CloudInitLog, nil)
		return rpc.Errorf(rpc.ErrUnavailable, "not booted within %s: %s\n%s", cloudInitLimit(want), text, strings.TrimSpace(string(log.Stdout)))
	}})
	return p, err
}

// bootScript is the probe: it looks at more than a boot needs, but only one
// text has to be right.
var bootScript = k3s.ProbeScript

// verify runs the Spec's commands in the guest.
func (s *Service) verify(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	want := req.GetWant()
	sh, err := s.open(ctx, want)
	if err != nil {
		return nil, err
	}
	defer sh.Close()
	for _, command := range want.GetVerify() {
		e.progress("verifying", command)
		var res guest.Result
		err := e.call(callGuest, []string{"verify", command}, func() (int, error) {
			var err error
			res, err = sh.Run(ctx, command, nil)
			return res.Exit, err
		})
		if err != nil {
			return nil, err
		}
		if res.Exit != 0 {
			text := fmt.Sprintf("%s: exit %d", command, res.Exit)
			// What it said is on a line of its own, which viewers are not shown.
			if said := cmp.Or(guest.Tail(res.Stderr, 3), guest.Tail(res.Stdout, 3)); said != "" {
				text += "\n  " + said
			}
			return nil, rpc.Errorf(rpc.ErrRefused, "%s", text)
		}
	}
	return done(false, "%d verify commands succeeded", len(want.GetVerify())), nil
}
