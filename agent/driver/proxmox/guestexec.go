package proxmox

import (
	"context"
	"time"

	"github.com/homeiac/homelab/agent/driver/proxmox/args"
	"github.com/homeiac/homelab/agent/driver/proxmox/parse"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// guestExecLimit is how long a command may take whose caller names no deadline.
const guestExecLimit = 30 * time.Second

// Exec implements driver.Driver, with qm guest exec, which waits for the command
// and says in JSON what came of it. Its own exit code is 0 whatever that was.
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
	// qm ends by itself at its limit; its start takes a second more.
	ctx, cancel := context.WithTimeout(ctx, limit+15*time.Second)
	defer cancel()
	call := args.GuestExec(id.GetVmid(), int(limit/time.Second), len(req.GetStdin()) > 0, req.GetArgv())
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
	return &driverv1.ExecResponse{Stdout: []byte(got.Stdout), Stderr: []byte(got.Stderr), Exit: got.Exit, Truncated: got.Truncated}, nil
}
