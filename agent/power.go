package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/homeiac/homelab/agent/guest"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/durable"
	"github.com/homeiac/homelab/internal/k3s"
	"github.com/homeiac/homelab/internal/rpc"
)

// Limits of stopping a VM.
const (
	// reachLimit is how long a guest may take to let us in.
	reachLimit = 10 * time.Second
	// quietLimit is for its k3s to stop.
	quietLimit = 45 * time.Second
	// shutdownLimit is for the guest to shut down: a minute, and what we and the
	// driver keep of the deadline for hearing why it did not.
	shutdownLimit = 72 * time.Second
)

// save keeps the VM's configuration outside the VM: beside the agent's state, and
// in what the controller learns.
func (s *Service) save(ctx context.Context, req *agentv1.RunRequest) (*agentv1.StepResult, error) {
	id := req.GetWant().GetIdentity()
	name := fmt.Sprintf("%s-%d-%d.conf", id.GetGuest(), id.GetGeneration(), id.GetVmid())
	if !filepath.IsLocal(name) || strings.ContainsRune(name, filepath.Separator) {
		return nil, rpc.Errorf(rpc.ErrInvalid, "guest %q", id.GetGuest())
	}
	if err := s.sound(ctx, s.host.Observe(s.now()), req.GetWant()); err != nil {
		return nil, err
	}
	path := filepath.Join(s.saved, name)
	old, oldErr := os.ReadFile(path)
	text, err := s.driver.Config(ctx, id)
	if errors.Is(err, rpc.ErrNotFound) && oldErr == nil {
		// An earlier attempt saved it, and went on.
		r := done(false, "VM %d is gone, its configuration was saved in %s", id.GetVmid(), path)
		r.Learned.Config = old
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	changed := oldErr != nil || string(old) != string(text)
	if changed {
		if err := os.MkdirAll(s.saved, 0o700); err != nil {
			return nil, err
		}
		if err := durable.Write(path, text); err != nil {
			return nil, fmt.Errorf("save the configuration of VM %d: %w", id.GetVmid(), err)
		}
	}
	r := done(changed, "saved the configuration of VM %d in %s", id.GetVmid(), path)
	r.Learned.Config = text
	return r, nil
}

// stopVM stops the VM and sees it stopped. A guest that can be asked is asked:
// first its k3s, which leaves the others in order, then the guest itself. One that
// hangs, or does not end within a minute, has its power cut.
func (s *Service) stopVM(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	id := req.GetWant().GetIdentity()
	vm, seen, err := s.at(ctx, id.GetVmid())
	switch {
	case err != nil:
		return nil, err
	case vm == nil:
		return done(false, "there is no VM %d", id.GetVmid()), free(seen, id.GetVmid())
	}
	if err := ours(vm, id); err != nil {
		return nil, err
	}
	switch vm.GetPower() {
	case homelabv1.Power_POWER_STOPPED:
		return done(false, "VM %d is stopped", id.GetVmid()), nil
	case homelabv1.Power_POWER_RUNNING, homelabv1.Power_POWER_PAUSED:
	default:
		// With a process that lives, QEMU is mute: that is what may be wrong with it.
		if !isYes(vm.GetProcess()) {
			return nil, rpc.Errorf(rpc.ErrUnavailable, "VM %d is %s, so it is left alone", id.GetVmid(), powerText(vm))
		}
	}
	if err := s.settled(s.host.Observe(s.now())); err != nil {
		return nil, err
	}
	text := "stopped VM %d, its power was cut"
	if !req.GetForce() && vm.GetPower() != homelabv1.Power_POWER_PAUSED && s.askQuiet(ctx, req.GetWant(), vm, e) {
		short, cancel := context.WithTimeout(ctx, shutdownLimit)
		_, err := s.driver.Stop(short, &driverv1.StopRequest{Identity: id, Deadline: remaining(short)}, e.report())
		cancel()
		switch {
		case err == nil:
			text = "stopped VM %d, it shut down"
		case errors.Is(err, rpc.ErrRefused) || ctx.Err() != nil:
			return nil, err
		default:
			e.progress("stopping", fmt.Sprintf("it did not shut down (%v), so its power is cut", err))
		}
	}
	// Also after a good end: only looking tells that it was one.
	if vm, _, err = s.at(ctx, id.GetVmid()); err != nil {
		return nil, err
	}
	if vm != nil && vm.GetPower() != homelabv1.Power_POWER_STOPPED {
		if _, err := s.driver.Stop(ctx, &driverv1.StopRequest{Identity: id, Force: true, Deadline: remaining(ctx)}, e.report()); err != nil {
			return nil, err
		}
		if vm, _, err = s.at(ctx, id.GetVmid()); err != nil {
			return nil, err
		}
	}
	if vm != nil && vm.GetPower() != homelabv1.Power_POWER_STOPPED {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "VM %d is still %s; look at it: qm status %d --verbose", id.GetVmid(), powerText(vm), id.GetVmid())
	}
	return done(true, text, id.GetVmid()), nil
}

// askQuiet has the guest's k3s stop, as far as that goes, and says whether the
// guest is one that can be asked to shut down too.
func (s *Service) askQuiet(ctx context.Context, want *homelabv1.GuestWant, vm *homelabv1.VirtualMachine, e emit) (answers bool) {
	reach, cancel := context.WithTimeout(ctx, reachLimit)
	defer cancel()
	sh, err := s.open(reach, want)
	if err != nil {
		e.progress("stopping", "its k3s cannot be asked to stop: "+err.Error())
		return isYes(vm.GetGuestAgent())
	}
	defer sh.Close()
	quiet, cancel := context.WithTimeout(ctx, quietLimit)
	defer cancel()
	e.progress("stopping", "asking its k3s to stop")
	err = e.call(callGuest, []string{"stop", "k3s"}, func() (int, error) {
		res, err := sh.Run(quiet, k3s.QuietScript, nil)
		if err == nil {
			err = res.Check("stop k3s")
		}
		return res.Exit, err
	})
	if err != nil {
		e.progress("stopping", "its k3s did not stop, the guest is shut down all the same: "+err.Error())
	}
	return true
}

// reset presses the reset button of a VM that runs, or has crashed and is paused.
func (s *Service) reset(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	id := req.GetWant().GetIdentity()
	vm, err := s.vmNow(ctx, id)
	if err != nil {
		return nil, err
	}
	if vm.GetPower() != homelabv1.Power_POWER_RUNNING && vm.GetPower() != homelabv1.Power_POWER_PAUSED {
		return nil, rpc.Errorf(rpc.ErrRefused, "VM %d is %s, so it cannot be reset", id.GetVmid(), powerText(vm))
	}
	if err := s.settled(s.host.Observe(s.now())); err != nil {
		return nil, err
	}
	if vm, err = s.driver.Reset(ctx, &driverv1.ResetRequest{Identity: id, Deadline: remaining(ctx)}, e.report()); err != nil {
		return nil, err
	}
	if vm.GetPower() == homelabv1.Power_POWER_PAUSED {
		// A crash stops it, and a reset alone does not let it go on.
		if vm, err = s.driver.Start(ctx, &driverv1.StartRequest{Identity: id, Resume: true, Deadline: remaining(ctx)}, e.report()); err != nil {
			return nil, err
		}
	}
	if vm.GetPower() != homelabv1.Power_POWER_RUNNING {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "after its reset VM %d is %s", id.GetVmid(), powerText(vm))
	}
	return done(true, "reset VM %d", id.GetVmid()), nil
}

// resume lets a paused VM go on.
func (s *Service) resume(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	id := req.GetWant().GetIdentity()
	vm, err := s.vmNow(ctx, id)
	switch {
	case err != nil:
		return nil, err
	case vm.GetPower() == homelabv1.Power_POWER_RUNNING:
		return done(false, "VM %d runs", id.GetVmid()), nil
	case vm.GetPower() != homelabv1.Power_POWER_PAUSED:
		return nil, rpc.Errorf(rpc.ErrRefused, "VM %d is %s and not paused", id.GetVmid(), powerText(vm))
	}
	if err := s.settled(s.host.Observe(s.now())); err != nil {
		return nil, err
	}
	vm, err = s.driver.Start(ctx, &driverv1.StartRequest{Identity: id, Resume: true, Deadline: remaining(ctx)}, e.report())
	if err != nil {
		return nil, err
	}
	if vm.GetPower() != homelabv1.Power_POWER_RUNNING {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "VM %d is still %s", id.GetVmid(), powerText(vm))
	}
	return done(true, "VM %d goes on", id.GetVmid()), nil
}

// soakGrace is how long a guest that soaks may be unwell in one piece: a look that
// did not succeed is no illness yet.
const soakGrace = 5 * time.Second

// soak sees a guest stay well for a while, without a break. It ends at once when
// the guest is not, so that the next one is left alone.
func (s *Service) soak(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	want, need := req.GetWant(), req.GetSoak().AsDuration()
	j := &joining{s: s, e: e, want: want, k3s: req.GetK3S(), role: roleOf(req.GetK3S())}
	defer func() {
		if j.sh != nil {
			_ = j.sh.Close()
		}
	}()
	var well, unwell time.Time
	err := e.wait(ctx, waiting{phase: "soaking", limit: need + slack/2, look: func(ctx context.Context) (bool, string, error) {
		why, err := s.ill(ctx, j)
		now := time.Now()
		switch {
		case err != nil:
			return false, "", err
		case why == "":
			unwell = time.Time{}
			if well.IsZero() {
				well = now
			}
			return now.Sub(well) >= need, fmt.Sprintf("well for %s of %s", now.Sub(well).Round(time.Second), need), nil
		case unwell.IsZero():
			well, unwell = time.Time{}, now
		case now.Sub(unwell) > s.soakGrace:
			return false, "", rpc.Errorf(rpc.ErrRefused, "it did not stay well: %s; see hlctl why %s", why, want.GetIdentity().GetGuest())
		}
		return false, why, nil
	}, overdue: func(text string) error {
		return rpc.Errorf(rpc.ErrUnavailable, "it was not well for %s without a break: %s", need, text)
	}})
	if err != nil {
		return nil, err
	}
	return done(false, "stayed well for %s", need), nil
}

// ill says what a guest lacks to be well, "" for nothing. What cannot be seen is
// not well either: the next guest's turn waits for certainty. An error is what no
// waiting will mend.
func (s *Service) ill(ctx context.Context, j *joining) (why string, err error) {
	ctx, cancel := context.WithTimeout(ctx, reachLimit)
	defer cancel()
	vm, err := s.vmNow(ctx, j.want.GetIdentity())
	switch {
	case errors.Is(err, rpc.ErrUnavailable):
		return err.Error(), nil
	case err != nil:
		return "", err
	case vm.GetPower() != homelabv1.Power_POWER_RUNNING:
		return "VM " + fmt.Sprint(vm.GetVmid()) + " is " + powerText(vm), nil
	}
	if j.sh != nil {
		if _, err := j.sh.Run(ctx, ":", nil); err != nil {
			_ = j.sh.Close()
			j.sh = nil
		}
	}
	if j.sh == nil {
		var sh *guest.Shell
		if sh, err = s.open(ctx, j.want); err != nil {
			return err.Error(), nil
		}
		j.sh = sh
	}
	if j.role == "" {
		return "", nil
	}
	missing, err := j.member(ctx)
	if errors.Is(err, rpc.ErrUnavailable) {
		return err.Error(), nil
	}
	return missing, err
}
