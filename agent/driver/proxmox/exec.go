package proxmox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/homeiac/homelab/agent/driver"
	"github.com/homeiac/homelab/agent/driver/proxmox/args"
	"github.com/homeiac/homelab/agent/driver/proxmox/parse"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// programs are where Proxmox's programs lie.
var programs = map[string]string{
	"qm":    "usr/sbin/qm",
	"pvesm": "usr/sbin/pvesm",
	"pvesh": "usr/bin/pvesh",
}

// environment is all that a program is given: with a locale of the caller's Perl
// warns on stderr, and whatever else is in ours is not the program's business.
var environment = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root"}

// outputLimit bounds what is kept of each stream.
const outputLimit = 1 << 20

// output is what a program that ended left.
type output struct {
	exit           int
	stdout, stderr string
	took           time.Duration
}

// exec runs a program and waits for its end. The program has a session and output
// files of its own, so that it lives on when ctx ends, when this process is killed
// and when the agent is: a qm that dies halfway leaves half a VM. When ctx ends
// first the error is Unavailable, and the program is found by later calls; but a
// driver that is to end (End) still waits for it.
//
// A failure's error has the kind that its texts tell. An exit code of 0 is no
// proof: the caller looks again.
func (d *Driver) exec(ctx context.Context, call args.Call, stdin []byte, report driver.Report) (output, error) {
	select {
	case <-d.ending:
		return output{}, rpc.Errorf(rpc.ErrUnavailable, "%s was not begun: %w", words(call), errEnding)
	default:
	}
	if ctx.Err() != nil {
		return output{}, rpc.Errorf(rpc.ErrUnavailable, "%s was not begun: %w", words(call), context.Cause(ctx))
	}
	began := time.Now()
	w, err := d.launch(call, stdin)
	if err != nil {
		err = rpc.Errorf(rpc.ErrUnavailable, "run %s: %w", call.Program, err)
		d.told(call, output{exit: -1, took: time.Since(began)}, err, report)
		return output{}, err
	}
	tail := time.NewTicker(lookAgain)
	defer tail.Stop()
	var told time.Time
	var toldText string
	for over := ctx.Done(); ; {
		select {
		case <-w.done:
			var err error
			if w.out.exit != 0 {
				err = failure(call, w.out)
			}
			d.told(call, w.out, err, report)
			return w.out, err
		case <-over:
			if errors.Is(context.Cause(ctx), errEnding) {
				over = nil // how long it is waited for is the agent's to bound
				continue
			}
			err := rpc.Errorf(rpc.ErrUnavailable, "%s is still at work (process %d) and goes on: %w", words(call), w.pid, ctx.Err())
			d.told(call, output{exit: -1, took: time.Since(began)}, err, report)
			return output{}, err
		case <-tail.C:
			if text := lastProgress(w.stdout); text != "" && text != toldText && time.Since(told) >= tellProgress {
				told, toldText = time.Now(), text
				report(progress(phaseOf(call), text, 0))
			}
		}
	}
}

// launch starts a program and leaves a record of it beside its output files.
func (d *Driver) launch(call args.Call, stdin []byte) (*work, error) {
	path, ok := programs[call.Program]
	if !ok {
		return nil, fmt.Errorf("no such program")
	}
	dir := d.calls()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	d.swept.Do(d.sweepCalls)
	d.mu.Lock()
	d.seq++
	base := filepath.Join(dir, fmt.Sprintf("%d-%d-%d", time.Now().UnixNano(), os.Getpid(), d.seq))
	d.mu.Unlock()
	w := &work{call: call, base: base, stdout: base + ".out", stderr: base + ".err", done: make(chan struct{})}
	var opened []*os.File
	defer func() {
		for _, f := range opened {
			f.Close()
		}
	}()
	open := func(path string, flags int) (*os.File, error) {
		f, err := os.OpenFile(path, flags, 0o600)
		if err == nil {
			opened = append(opened, f)
		}
		return f, err
	}
	cmd := exec.Command(d.host(path), call.Args...)
	cmd.Env = environment
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var err error
	if cmd.Stdout, err = open(w.stdout, os.O_CREATE|os.O_WRONLY|os.O_APPEND|os.O_EXCL); err != nil {
		return nil, err
	}
	if cmd.Stderr, err = open(w.stderr, os.O_CREATE|os.O_WRONLY|os.O_APPEND|os.O_EXCL); err != nil {
		return nil, err
	}
	if stdin != nil {
		in, err := nameless(stdin)
		if err != nil {
			return nil, err
		}
		opened = append(opened, in)
		cmd.Stdin = in
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		w.forget()
		return nil, err
	}
	w.pid = int64(cmd.Process.Pid)
	w.start, _ = d.startTime(w.pid)
	if call.VMID != 0 && call.Mutating() {
		w.record()
		d.mu.Lock()
		for _, id := range call.VMIDs() {
			d.working[id] = w
		}
		d.mu.Unlock()
	}
	go func() {
		err := cmd.Wait()
		w.out = output{exit: cmd.ProcessState.ExitCode(), stdout: readTail(w.stdout), stderr: readTail(w.stderr), took: time.Since(began)}
		if s, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && s.Signaled() {
			w.out.stderr += fmt.Sprintf("killed by signal %d (%s)\n", s.Signal(), s.Signal())
		}
		d.log.Info("ran", "program", call.Program, "args", strings.Join(call.Masked(), " "), "exit", w.out.exit,
			"took", w.out.took.Round(time.Millisecond), "mutating", call.Mutating(), "error", errorText(err, w.out))
		w.forget()
		d.mu.Lock()
		for _, id := range call.VMIDs() {
			if d.working[id] == w {
				delete(d.working, id)
			}
		}
		d.mu.Unlock()
		close(w.done)
	}()
	return w, nil
}

// nameless is a file in memory alone: what is given to a guest may be a secret and
// must not lie on a disk, and a pipe would end with this process.
func nameless(data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("stdin", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("standard input: %w", err)
	}
	f := os.NewFile(uintptr(fd), "stdin")
	_, err = f.Write(data)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("standard input: %w", err)
	}
	return f, nil
}

func errorText(err error, out output) slog.Value {
	if err == nil {
		return slog.StringValue("")
	}
	return slog.StringValue(parse.Reason(out.stdout, out.stderr))
}

// failure is the error of a program that said it failed.
func failure(call args.Call, out output) error {
	reason := parse.Reason(out.stdout, out.stderr)
	if reason == "" {
		reason = fmt.Sprintf("exit code %d without a word", out.exit)
	}
	if kind := parse.Kind(out.stdout, out.stderr); kind != "" {
		return rpc.Errorf(kind, "%s: %s", words(call), reason)
	}
	if out.exit < 0 {
		// Killed: what it had begun may be half done.
		return rpc.Errorf(rpc.ErrUnavailable, "%s: %s", words(call), reason)
	}
	return fmt.Errorf("%s: %s", words(call), reason)
}

// words is a call as people type it, without its options.
func words(call args.Call) string {
	w := []string{call.Program}
	for _, a := range call.Args {
		if strings.HasPrefix(a, "-") {
			break
		}
		w = append(w, a)
	}
	return strings.Join(w, " ")
}

// phaseOf is the phase that a call belongs to.
func phaseOf(call args.Call) string {
	switch {
	case len(call.Args) == 0:
	case call.Args[0] == "create", call.Args[0] == "clone", call.Args[0] == "template":
		return "creating"
	case call.Args[0] == "start", call.Args[0] == "resume":
		return "starting"
	case call.Args[0] == "stop", call.Args[0] == "shutdown":
		return "stopping"
	case call.Args[0] == "destroy", call.Args[0] == "unlock", call.Args[0] == "free":
		return "destroying"
	case call.Args[0] == "disk" && call.Other != 0:
		return "moving"
	case call.Args[0] == "disk":
		return "resizing"
	}
	return call.Program
}

// told reports one call, also one that could not be started or was left at work.
func (d *Driver) told(call args.Call, out output, err error, report driver.Report) {
	e := &homelabv1.Event{
		Time: timestamppb.Now(),
		Kind: homelabv1.EventKind_EVENT_KIND_CALL,
		Call: &homelabv1.Call{
			Program: call.Program, Args: call.Masked(), Exit: int32(out.exit),
			Took: durationpb.New(out.took), Mutating: call.Mutating(),
		},
	}
	if err != nil {
		e.Call.Error = err.Error()
	}
	report(e)
}

func progress(phase, text string, limit time.Duration) *homelabv1.Event {
	e := &homelabv1.Event{
		Time: timestamppb.Now(), Kind: homelabv1.EventKind_EVENT_KIND_STEP_PROGRESS, Phase: phase, Text: text,
	}
	if limit > 0 {
		e.Limit = durationpb.New(limit)
	}
	return e
}

// lastProgress is the latest word of a copy in an output file; empty is none.
func lastProgress(path string) string {
	lines := strings.Split(strings.TrimRight(readEnd(path, 4096), "\n"), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if done, whole, percent, ok := parse.Progress(lines[i]); ok {
			return fmt.Sprintf("copied %s of %s (%.0f%%)", done, whole, percent)
		}
	}
	return ""
}

// readTail reads an output file, or its last part.
func readTail(path string) string { return readEnd(path, outputLimit) }

func readEnd(path string, limit int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > limit {
		_, _ = f.Seek(-limit, 2)
	}
	var b bytes.Buffer
	if _, err := b.ReadFrom(f); err != nil && !errors.Is(err, os.ErrClosed) {
		return ""
	}
	return b.String()
}
