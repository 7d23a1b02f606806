package pve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

// hook runs a VM's hookscript for a phase of its life. The script is read by a
// shell interpreter that has its builtins and nothing else: no program starts
// and no file opens, for a simulated host must not touch the machine it is
// simulated on. An unknown command is exit code 127, as anywhere.
func (r *run) hook(vmid, script, phase string) error {
	if script == "" {
		return nil
	}
	v, err := r.existing(script)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(r.path(v.path()))
	if err != nil {
		return err
	}
	file, err := syntax.NewParser().Parse(strings.NewReader(string(text)), v.path())
	if err != nil {
		return fail(255, "hookscript error for %s on %s: %v", vmid, phase, err)
	}
	runner, err := interp.New(
		interp.StdIO(nil, r.out, r.out), interp.Env(expand.ListEnviron("PATH=/usr/bin:/bin")),
		interp.Params("--", vmid, phase),
		interp.ExecHandlers(func(interp.ExecHandlerFunc) interp.ExecHandlerFunc {
			return func(ctx context.Context, args []string) error {
				fmt.Fprintf(interp.HandlerCtx(ctx).Stderr, "%s: command not found\n", args[0])
				return interp.ExitStatus(127)
			}
		}),
		interp.OpenHandler(closedFiles),
	)
	if err != nil {
		return err
	}
	err = runner.Run(r.ctx, file)
	var exit interp.ExitStatus
	if errors.As(err, &exit) && phase == "pre-start" {
		return fail(255, "hookscript error for %s on %s: command '%s %s %s' failed: exit code %d", vmid, phase, v.path(), vmid, phase, uint8(exit))
	}
	return nil
}

// closedFiles opens nothing but /dev/null.
func closedFiles(_ context.Context, path string, flags int, mode os.FileMode) (io.ReadWriteCloser, error) {
	if path == os.DevNull {
		return os.OpenFile(path, flags, mode)
	}
	return nil, &os.PathError{Op: "open", Path: path, Err: os.ErrPermission}
}
