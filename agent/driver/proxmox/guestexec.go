package proxmox

import (
	"context"
	"errors"
	"time"

	"github.com/homeiac/homelab/agent/driver/proxmox/args"
	"github.com/homeiac/homelab/agent/driver/proxmox/parse"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/pause"
	"github.com/homeiac/homelab/internal/rpc"
)

const (
	// guestExecLimit is how long a command may take whose caller names no deadline.
	guestExecLimit = 30 * time.Second
	// execWait is how long one qm waits for a command. It is short beside what an
	// installation takes: the qm that waits is the only one to know the command's
	// process, and when it dies nobody does.
	execWait = 20 * time.Second
	// execGrace is how long past its limit a qm may take to end.
	execGrace = 15 * time.Second
	// pollFirst and pollMost are the pauses between two questions after that, each of
	// which takes most of a second of processor time.
	pollFirst = time.Second
	pollMost  = 8 * time.Second
)

// Exec implements driver.Driver, with qm guest exec, which waits for the command
// and says in JSON what came of it, and qm guest exec-status for one that takes
// longer. Their own exit codes are 0 whatever that was.
func (d *Driver) Exec(ctx context.Context, req *driverv1.ExecRequest) (*driverv1.ExecResponse, error) {
	id := req.GetIdentity()
	if err := checkIdentity(id); err != nil {
		return nil, err
	}
	if len(req.GetArgv()) == 0 {
		return nil, rpc.Errorf(rpc.ErrInvalid, "no command")
	}
	c, err := d.read(id.GetVmid())
	if err != nil {
		return nil, err
	}
	if err := ours(id, c); err != nil {
		return nil, err
	}
	if !c.Agent() {
		return nil, rpc.Errorf(rpc.ErrUnsupported, "VM %d has no guest agent configured", id.GetVmid())
	}
	limit := req.GetDeadline().AsDuration()
	if limit <= 0 {
		limit = guestExecLimit
	}
	deadline := time.Now().Add(limit)
	// qm ends by itself at its limit; its start takes a second more.
	ctx, cancel := context.WithTimeout(ctx, limit+execGrace)
	defer cancel()
	wait := min(limit, d.execWait)
	call := args.GuestExec(id.GetVmid(), int(wait/time.Second), len(req.GetStdin()) > 0, req.GetArgv())
	var stdin []byte
	if len(req.GetStdin()) > 0 {
		stdin = req.GetStdin()
	}
	out, err := d.exec(ctx, call, stdin, func(*homelabv1.Event) {})
	if err != nil {
		return nil, err
	}
	got, err := parse.GuestExec(out.stdout)
	if err != nil {
		return nil, err
	}
	if got.Running {
		if got, err = d.outcome(ctx, id.GetVmid(), got.PID, deadline); err != nil {
			return nil, err
		}
	}
	return &driverv1.ExecResponse{Stdout: []byte(got.Stdout), Stderr: []byte(got.Stderr), Exit: got.Exit, Truncated: got.Truncated}, nil
}

// outcome asks what became of a command that outlived qm's wait, until the deadline.
// An agent that does not answer for a while is asked again: the command goes on
// without it.
func (d *Driver) outcome(ctx context.Context, vmid int32, pid int64, deadline time.Time) (parse.GuestResult, error) {
	var last error
	for every := pollFirst; ; every = min(2*every, pollMost) {
		if left := time.Until(deadline); pid == 0 || left <= 0 {
			break
		} else if !pause.For(ctx, min(every, left)) {
			return parse.GuestResult{}, rpc.Errorf(rpc.ErrUnavailable, "the command in VM %d was not waited for and goes on (process %d there): %w", vmid, pid, ctx.Err())
		}
		out, err := d.exec(ctx, args.GuestExecStatus(vmid, pid), nil, func(*homelabv1.Event) {})
		last = err
		switch {
		case err != nil && !errors.Is(err, rpc.ErrUnavailable):
			// The agent was started anew, or the VM: nobody knows of the command any more.
			return parse.GuestResult{}, rpc.Errorf(rpc.ErrUnavailable, "what became of the command in VM %d cannot be known (process %d there): %v", vmid, pid, err)
		case err != nil:
			continue
		}
		got, err := parse.GuestExec(out.stdout)
		if err != nil || !got.Running {
			return got, err
		}
	}
	err := rpc.Errorf(rpc.ErrUnavailable, "the command in VM %d did not end in time and still runs (process %d there)", vmid, pid)
	if last != nil {
		err = rpc.Errorf(rpc.ErrUnavailable, "the command in VM %d was not seen to end in time (process %d there): %w", vmid, pid, last)
	}
	return parse.GuestResult{}, err
}
