package agent

import (
	"context"
	"strings"

	"github.com/homeiac/homelab/agent/guest"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	"github.com/homeiac/homelab/internal/k3s"
	"github.com/homeiac/homelab/internal/rpc"
)

// halt stops and disables k3s in the guest, and sees it stopped.
func (s *Service) halt(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	sh, err := s.open(ctx, req.GetWant())
	if err != nil {
		return nil, err
	}
	defer sh.Close()
	running, err := notHalted(ctx, sh)
	if err != nil {
		return nil, err
	}
	for _, role := range running {
		e.progress("halting", "stopping "+role.Unit())
		var stopped k3s.Stopped
		err := e.call(callGuest, []string{"stop", role.Unit()}, func() (int, error) {
			res, err := sh.Run(ctx, k3s.StopScript(role), nil)
			stopped = k3s.ParseStopped(res.Stdout, false)
			return res.Exit, err
		})
		switch {
		case err != nil:
			return nil, err
		case !stopped.Stopped:
			return nil, rpc.Errorf(rpc.ErrUnavailable, "%s did not stop: %s; look: hlctl exec %s -- sudo systemctl status %s",
				role.Unit(), stopped.Reason, req.GetStep().GetGuest(), role.Unit())
		}
	}
	if len(running) == 0 {
		return done(false, "k3s does not run and will not by itself"), nil
	}
	left, err := notHalted(ctx, sh)
	if err != nil {
		return nil, err
	}
	if len(left) > 0 {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "%s is still active or enabled; look: hlctl exec %s -- sudo systemctl status %s",
			left[0].Unit(), req.GetStep().GetGuest(), left[0].Unit())
	}
	return done(true, "stopped and disabled k3s"), nil
}

// notHalted gives the roles whose unit runs, or would at the next boot.
func notHalted(ctx context.Context, sh *guest.Shell) ([]k3s.Role, error) {
	res, err := sh.Run(ctx, k3s.UnitsScript, nil)
	if err != nil {
		return nil, err
	}
	var out []k3s.Role
	for _, role := range []k3s.Role{k3s.Server, k3s.Agent} {
		u, err := k3s.ParseUnits(res.Stdout, role)
		if err != nil {
			return nil, rpc.Errorf(rpc.ErrUnavailable, "%w", err)
		}
		if !u.Halted() {
			out = append(out, role)
		}
	}
	return out, nil
}

// leftover is what there is of k3s in a guest that does not run it.
type leftover struct {
	roles []k3s.Role // with an uninstall script
	data  bool       // of a server or an agent
	pass  bool       // a Node's password
}

func (l leftover) none() bool { return len(l.roles) == 0 && !l.data && !l.pass }

// leftovers reads it from a probe; what is not known is an error.
func leftovers(p k3s.Probe) (leftover, error) {
	var l leftover
	for _, r := range []k3s.Reading[bool]{p.ServerData, p.AgentData, p.NodePassword, p.ServerUninstall, p.AgentUninstall} {
		if !r.Known {
			return l, rpc.Errorf(rpc.ErrUnavailable, "what k3s there is in it is not known: %s", r.Reason)
		}
	}
	if p.ServerUninstall.Value {
		l.roles = append(l.roles, k3s.Server)
	}
	if p.AgentUninstall.Value {
		l.roles = append(l.roles, k3s.Agent)
	}
	l.data, l.pass = p.ServerData.Value || p.AgentData.Value, p.NodePassword.Value
	return l, nil
}

// clean removes k3s and its data from a guest that has left the cluster, with
// k3s's own uninstall script, and looks that nothing is left. A unit that runs is
// no leftover: it is halted first, and its Node and member removed.
func (s *Service) clean(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	sh, err := s.open(ctx, req.GetWant())
	if err != nil {
		return nil, err
	}
	defer sh.Close()
	j := &joining{s: s, e: e, sh: sh, want: req.GetWant()}
	l, err := j.leftovers(ctx)
	if err != nil {
		return nil, err
	}
	if l.none() {
		return done(false, "no k3s is in it"), nil
	}
	running, err := notHalted(ctx, sh)
	if err != nil {
		return nil, err
	}
	if len(running) > 0 {
		return nil, rpc.Errorf(rpc.ErrRefused, "%s is active or enabled, so it is no leftover; it is stopped first, and leaves the cluster: hlctl k3s remove %s",
			running[0].Unit(), req.GetStep().GetGuest())
	}
	if err := j.wipe(ctx, l); err != nil {
		return nil, err
	}
	return done(true, "removed k3s and its data"), nil
}

func (j *joining) leftovers(ctx context.Context) (leftover, error) {
	p, err := j.probe(ctx)
	if err != nil {
		return leftover{}, err
	}
	return leftovers(p)
}

// wipe runs the uninstall scripts of what there is, and looks.
func (j *joining) wipe(ctx context.Context, l leftover) error {
	roles := l.roles
	if len(roles) == 0 {
		if l.data {
			return rpc.Errorf(rpc.ErrRefused, "there is data of k3s in it but no uninstall script, which alone removes everything; look: hlctl exec %s -- sudo ls /var/lib/rancher/k3s", j.want.GetIdentity().GetGuest())
		}
		roles = []k3s.Role{k3s.Server} // only the Node's password is left
	}
	for _, role := range roles {
		j.e.progress("cleaning", "removing k3s with "+role.Uninstall())
		err := j.e.call(callGuest, []string{"clean", role.Unit()}, func() (int, error) {
			res, err := j.sh.Run(ctx, k3s.WipeScript(role), nil)
			if err != nil {
				return 0, err
			}
			if c := k3s.ParseWiped(res.Stdout); !c.Stopped {
				return res.Exit, rpc.Errorf(rpc.ErrUnavailable, "%s did not stop: %s", role.Unit(), c.Reason)
			} else if !c.Cleaned && len(roles) == 1 {
				return res.Exit, rpc.Errorf(rpc.ErrUnavailable, "k3s could not be removed: %s", c.Reason)
			}
			return 0, nil
		})
		if err != nil {
			return err
		}
	}
	// Our own word of the join that was goes too, or the next one would take what it
	// finds for its own.
	res, err := j.sh.Run(ctx, "rm -f "+ownPath+" "+k3s.ScriptPath, nil)
	if err != nil {
		return err
	}
	if err := res.Check("remove " + ownPath); err != nil {
		return rpc.Errorf(rpc.ErrUnavailable, "%w", err)
	}
	left, err := j.leftovers(ctx)
	if err != nil {
		return err
	}
	if !left.none() {
		var what []string
		for _, r := range left.roles {
			what = append(what, r.Uninstall())
		}
		if left.data {
			what = append(what, "its data")
		}
		if left.pass {
			what = append(what, k3s.NodePass)
		}
		return rpc.Errorf(rpc.ErrUnavailable, "of k3s there is still: %s; look: hlctl exec %s -- sudo ls -R /etc/rancher /var/lib/rancher/k3s",
			strings.Join(what, ", "), j.want.GetIdentity().GetGuest())
	}
	return nil
}
