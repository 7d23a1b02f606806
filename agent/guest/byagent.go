package guest

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/sh"
)

// agentDeadline is for commands through the guest agent whose context has none.
const agentDeadline = time.Minute

// maxAgentInput bounds what can be sent through the guest agent, in bytes; it is
// `qm guest exec --pass-stdin`'s own limit.
const maxAgentInput = 1 << 20

// runByAgent runs argv and takes its output as the guest agent passes it on, which
// has a limit: for scripts that print little.
func (s *Shell) runByAgent(ctx context.Context, argv []string, stdin io.Reader) (Result, error) {
	var input []byte
	if stdin != nil {
		var err error
		if input, err = io.ReadAll(io.LimitReader(stdin, maxAgentInput+1)); err != nil {
			return Result{}, err
		}
		if len(input) > maxAgentInput {
			return Result{}, rpc.Errorf(rpc.ErrUnsupported, "more than %d bytes cannot be sent through the guest agent; SSH is needed: %w", maxAgentInput, s.sshErr)
		}
	}
	limit := agentDeadline
	if end, ok := ctx.Deadline(); ok {
		limit = time.Until(end)
	}
	res, err := s.agent.Exec(ctx, &driverv1.ExecRequest{Identity: s.id, Argv: argv, Stdin: input, Deadline: durationpb.New(limit)})
	if err != nil {
		return Result{}, err
	}
	if res.GetTruncated() {
		return Result{}, rpc.Errorf(rpc.ErrUnsupported, "the output is longer than the guest agent passes on")
	}
	return Result{Stdout: res.GetStdout(), Stderr: res.GetStderr(), Exit: int(res.GetExit())}, nil
}

// agentChunk is how much of a file is fetched through the guest agent at once, in
// bytes: well below what it passes on, and base64 makes a third more of it.
const agentChunk = 512 << 10

// Limits of a command through the guest agent.
const (
	// longCommand is for one whose context has no deadline.
	longCommand = time.Hour
	// cleanLimit bounds the removal of its output in the guest.
	cleanLimit = 15 * time.Second
)

// commandByAgent runs argv with its output going into files in the guest that only
// root can read, and fetches those afterwards, piece by piece: the guest agent cuts
// off what is longer than its limit, and when that is seen the command has had its
// effect already and cannot be run again.
func (s *Shell) commandByAgent(ctx context.Context, argv []string, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	res, err := s.runByAgent(ctx, []string{"/bin/sh", "-c", "umask 077 && mktemp -d /run/hl.XXXXXXXX"}, nil)
	if err != nil {
		return 0, err
	}
	dir := strings.TrimSpace(string(res.Stdout))
	if err := res.Check("make a folder for the output"); err != nil {
		return 0, rpc.Errorf(rpc.ErrUnavailable, "%w", err)
	}
	if !strings.HasPrefix(dir, "/run/hl.") || strings.ContainsAny(dir, " \n") {
		return 0, rpc.Errorf(rpc.ErrUnavailable, "the guest made no folder for the output: %s", firstLine(res.Stdout))
	}
	defer func() {
		// Also when the caller has gone: what the command printed may be secret.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanLimit)
		defer cancel()
		_, _ = s.runByAgent(ctx, []string{"/bin/rm", "-rf", dir}, nil)
	}()
	long := ctx
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		long, cancel = context.WithTimeout(ctx, longCommand)
		defer cancel()
	}
	// $0 is the folder, so that argv stays as it is.
	wrapped := append([]string{"/bin/sh", "-c", `exec "$@" >"$0/out" 2>"$0/err"`, dir}, argv...)
	if res, err = s.runByAgent(long, wrapped, stdin); err != nil {
		return 0, err
	}
	exit := res.Exit
	if err := s.fetch(ctx, dir+"/out", stdout); err != nil {
		return 0, err
	}
	// What the shell itself says: that there is no such command.
	_, _ = stderr.Write(res.Stderr)
	return exit, s.fetch(ctx, dir+"/err", stderr)
}

// fetch copies a file out of the guest.
func (s *Shell) fetch(ctx context.Context, file string, to io.Writer) error {
	for offset := 0; ; {
		script := fmt.Sprintf("tail -c +%d %s | head -c %d | base64", offset+1, sh.Quote(file), agentChunk)
		res, err := s.runByAgent(ctx, []string{"/bin/sh", "-c", script}, nil)
		if err != nil {
			return err
		}
		if err := res.Check("fetch the output"); err != nil {
			return rpc.Errorf(rpc.ErrUnavailable, "%w", err)
		}
		piece, err := base64.StdEncoding.DecodeString(string(bytes.Join(bytes.Fields(res.Stdout), nil)))
		if err != nil {
			return rpc.Errorf(rpc.ErrUnavailable, "fetch the output: %w", err)
		}
		if _, err := to.Write(piece); err != nil {
			return err
		}
		if len(piece) < agentChunk {
			return nil
		}
		offset += len(piece)
	}
}
