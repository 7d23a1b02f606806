package proxmox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/homeiac/homelab/agent/driver"
	"github.com/homeiac/homelab/agent/driver/proxmox/args"
	"github.com/homeiac/homelab/agent/driver/proxmox/parse"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/pause"
	"github.com/homeiac/homelab/internal/rpc"
)

// tasks are the tasks of Proxmox on this host whose worker lives. The list names
// workers that were killed too, so each is looked for in /proc.
func (d *Driver) tasks() ([]parse.UPID, error) {
	text, err := os.ReadFile(d.host("var/log/pve/tasks/active"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "read the list of running tasks: %w", err)
	}
	var alive []parse.UPID
	for _, u := range parse.ActiveTasks(text) {
		if d.alive(u.PID, u.PStart) {
			alive = append(alive, u)
		}
	}
	return alive, nil
}

// workers are who is at work on one VMID.
type workers struct {
	names    []string // UPIDs, or programs of this driver that have no task yet
	creating bool     // one of them creates the VM
}

// atWork lists who is at work on VMIDs, as far as files show it.
func (d *Driver) atWork() (map[int32]workers, error) {
	tasks, err := d.tasks()
	if err != nil {
		return nil, err
	}
	all := map[int32]workers{}
	add := func(vmid int32, name string, creating bool) {
		w := all[vmid]
		w.names, w.creating = append(w.names, name), w.creating || creating
		all[vmid] = w
	}
	for _, t := range tasks {
		for _, id := range t.VMIDs() {
			add(id, t.Text, t.Type == "qmcreate")
		}
	}
	for _, r := range d.records(0) {
		for _, id := range r.vmids() {
			if len(all[id].names) == 0 {
				creates := strings.HasPrefix(r.Call, "qm create ") || strings.HasPrefix(r.Call, "qm clone ") && id == r.VMID
				add(id, fmt.Sprintf("%s (process %d)", r.Call, r.PID), creates)
			}
		}
	}
	return all, nil
}

// locked tells whether somebody holds the VM's lock file. It is asked with a
// shared lock that is dropped at once; Proxmox waits for it ten seconds.
func (d *Driver) locked(vmid int32) bool {
	f, err := os.Open(d.host("var/lock/qemu-server", fmt.Sprintf("lock-%d.conf", vmid)))
	if err != nil {
		return false
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return errors.Is(err, unix.EWOULDBLOCK)
	}
	_ = unix.Flock(int(f.Fd()), unix.LOCK_UN)
	return false
}

// worker is who is at work on a VMID; without a text it is nobody.
type worker struct {
	text     string
	shutdown bool // it is a shutdown, which a stop may overrule
}

// worker looks who is at work on a VMID.
func (d *Driver) worker(vmid int32) (worker, error) {
	d.mu.Lock()
	w := d.working[vmid]
	d.mu.Unlock()
	if w != nil {
		return worker{fmt.Sprintf("%s (process %d) is at work", words(w.call), w.pid), shutsDown(words(w.call))}, nil
	}
	if r := d.records(vmid); len(r) > 0 {
		return worker{fmt.Sprintf("%s (process %d) is at work", r[0].Call, r[0].PID), shutsDown(r[0].Call)}, nil
	}
	tasks, err := d.tasks()
	if err != nil {
		return worker{}, err
	}
	for _, t := range tasks {
		if slices.Contains(t.VMIDs(), vmid) {
			return worker{fmt.Sprintf("a task of Proxmox is at work (%s since %s, process %d)", t.Type, t.Start.UTC().Format(time.TimeOnly), t.PID),
				t.Type == "qmshutdown"}, nil
		}
	}
	if d.locked(vmid) {
		return worker{text: "another program holds its lock file"}, nil
	}
	return worker{}, nil
}

func shutsDown(call string) bool { return strings.HasPrefix(call, "qm shutdown ") }

// session is one changing call.
type session struct {
	d      *Driver
	id     *homelabv1.Identity
	phase  string
	report driver.Report
	// from is the template that the VM is, or was, cloned from; nil when it is no clone.
	from *homelabv1.Identity
	// overrule tells that a shutdown at work is not waited for.
	overrule bool
}

// change runs one changing call: alone for its VMID, and within its deadline.
func (d *Driver) change(ctx context.Context, phase string, id *homelabv1.Identity, deadline time.Duration, report driver.Report,
	call func(context.Context, *session) (*homelabv1.VirtualMachine, error),
) (*homelabv1.VirtualMachine, error) {
	if err := checkIdentity(id); err != nil {
		return nil, err
	}
	return d.alone(ctx, []int32{id.GetVmid()}, deadline, func(ctx context.Context) (*homelabv1.VirtualMachine, error) {
		return call(ctx, &session{d: d, id: id, phase: phase, report: report})
	})
}

// alone runs a call when no other is at work on its VMIDs, which it takes in their
// order: two calls for the same two VMs would else wait for each other for ever.
func (d *Driver) alone(ctx context.Context, vmids []int32, deadline time.Duration,
	call func(context.Context) (*homelabv1.VirtualMachine, error),
) (*homelabv1.VirtualMachine, error) {
	if deadline <= 0 {
		deadline = defaultDeadline
	}
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	ctx, leave := d.unlessEnding(ctx)
	defer leave()
	for _, vmid := range slices.Sorted(slices.Values(vmids)) {
		d.mu.Lock()
		turn, ok := d.turns[vmid]
		if !ok {
			turn = make(chan struct{}, 1)
			d.turns[vmid] = turn
		}
		d.mu.Unlock()
		select {
		case turn <- struct{}{}:
			defer func() { <-turn }()
		case <-ctx.Done():
			if cause := context.Cause(ctx); errors.Is(cause, errEnding) {
				return nil, rpc.Errorf(rpc.ErrUnavailable, "VM %d was not begun with: %w", vmid, cause)
			}
			return nil, rpc.Errorf(rpc.ErrBusy, "VM %d: another call of this agent is at work on it: %w", vmid, ctx.Err())
		}
	}
	return call(ctx)
}

// checkIdentity refuses an identity that would fit anything.
func checkIdentity(id *homelabv1.Identity) error {
	if id.GetVmid() < 100 || id.GetUuid() == "" || !args.Mark(id.GetMark()) {
		return rpc.Errorf(rpc.ErrInvalid, "the identity is not whole: VMID %d, uuid %q, mark %q", id.GetVmid(), id.GetUuid(), id.GetMark())
	}
	return nil
}

// idle waits until nobody is at work on the VM and its configuration has no lock,
// and says what it waits for. The lock of a create or a
// clone that nobody works at any more is not waited for: it would never end. At the deadline it is Busy.
func (s *session) idle(ctx context.Context) error {
	vmid := s.id.GetVmid()
	var told time.Time
	var toldWhy string
	for {
		who, err := s.d.worker(vmid)
		if err != nil {
			return err
		}
		why := who.text
		if s.overrule && who.shutdown {
			why = ""
		}
		if why == "" {
			c, err := s.d.read(vmid)
			switch {
			case errors.Is(err, rpc.ErrNotFound):
			case err != nil:
				return err
			case c.Lock() != "" && !c.HalfBuilt() && !(s.from != nil && halfCloned(s.id, c)):
				why = fmt.Sprintf("it is locked (%s)", c.Lock())
			}
		}
		if why == "" {
			return nil
		}
		if why != toldWhy || time.Since(told) >= tellAgain {
			told, toldWhy = time.Now(), why
			s.report(progress("waiting", fmt.Sprintf("waiting for VM %d: %s", vmid, why), remaining(ctx)))
		}
		if !pause.For(ctx, lookAgain) {
			return s.busy(ctx, "VM %d: %s", vmid, why)
		}
	}
}

// busy is the error for a wait that its deadline, its caller or the agent's end ended.
func (s *session) busy(ctx context.Context, format string, a ...any) error {
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errEnding):
		return rpc.Errorf(rpc.ErrUnavailable, format+": %w", append(a, cause)...)
	case errors.Is(cause, context.Canceled):
		return fmt.Errorf(format+": %w", append(a, cause)...)
	}
	return rpc.Errorf(rpc.ErrBusy, format+", until the deadline", a...)
}

func remaining(ctx context.Context) time.Duration {
	if end, ok := ctx.Deadline(); ok {
		return time.Until(end)
	}
	return 0
}

// attempt runs a changing program once nobody is at work on the VM, and again when
// a lock was busy after all. Each time next looks first whether it is still right
// to, and makes the call from what it sees; its error ends the attempts, and so
// does done, which says that nothing is left to do.
func (s *session) attempt(ctx context.Context, next func() (call args.Call, done bool, err error)) (output, error) {
	for {
		if err := s.idle(ctx); err != nil {
			return output{}, err
		}
		call, done, err := next()
		if done || err != nil {
			return output{}, err
		}
		out, err := s.d.exec(ctx, call, nil, s.report)
		if !busyText(out, err) {
			return out, err
		}
		why := parse.Reason(out.stdout, out.stderr)
		s.report(progress("waiting", fmt.Sprintf("waiting for VM %d: %s", s.id.GetVmid(), why), remaining(ctx)))
		if !pause.For(ctx, lookAgain) {
			return out, s.busy(ctx, "%s: %s", words(call), why)
		}
	}
}

// busyText tells whether a program could not get a lock. A failed resize says so
// with exit code 0.
func busyText(out output, err error) bool {
	return errors.Is(err, rpc.ErrBusy) || err == nil && out.stderr != "" && parse.Kind("", out.stderr) == rpc.ErrBusy
}
