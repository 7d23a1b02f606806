package pve

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"
)

// pollStopped is how often a program looks whether a guest has ended.
const pollStopped = 20 * time.Millisecond

// stopOptions say how a VM is ended.
type stopOptions struct {
	shutdown  bool // ask the guest, else end QEMU
	force     bool // kill when it does not end
	skiplock  bool
	keepState bool // leave the run files, for a reboot
	timeout   time.Duration
}

// stop is qm stop.
func (r *run) stop(p params) error {
	vmid := p["vmid"]
	o := stopOptions{skiplock: p.on("skiplock"), force: true, timeout: seconds(p["timeout"], 60*time.Second)}
	if done, err := r.haRequest("stop", vmid, func(t *run) error { return t.end(vmid, o) }); done || err != nil {
		return err
	}
	return r.task("qmstop", vmid, func(t *run) error {
		if p.on("overrule-shutdown") {
			t.overrule(vmid)
		}
		return t.withLock(vmid, func() error { return t.end(vmid, o) })
	})
}

func seconds(v string, otherwise time.Duration) time.Duration {
	if v == "" {
		return otherwise
	}
	return time.Duration(intOr(v, 0)) * time.Second
}

// overrule ends the shutdown tasks of a VM that are under way.
func (r *run) overrule(vmid string) {
	list, err := r.activeTasks()
	if err != nil {
		return
	}
	var ended []string
	for _, a := range list {
		f := strings.Split(a.upid, ":")
		if !a.running() || len(f) < 7 || f[5] != "qmshutdown" || f[6] != vmid {
			continue
		}
		if pid, start := a.pid(); r.processStart(pid) == start {
			_ = r.terminate(pid, syscall.SIGTERM)
			ended = append(ended, a.upid)
		}
	}
	if len(ended) > 0 {
		r.printf("overruled qmshutdown tasks: %s\n", strings.Join(ended, ", "))
	}
}

// end stops a VM's kvm, as PVE::QemuServer's vm_stop does.
func (r *run) end(vmid string, o stopOptions) error {
	pid := r.running(vmid)
	c, err := r.load(vmid)
	if err != nil {
		return err
	}
	if pid == 0 {
		if o.shutdown {
			fmt.Fprintf(r.stderr, "VM %s not running\n\n", vmid)
		}
		return nil
	}
	if err := c.lockUnless(o.skiplock); err != nil {
		return err
	}
	asked := r.askToEnd(vmid, c, o)
	if asked == nil {
		if err := r.waitEnd(pid, vmid, o.timeout); err != nil {
			return err
		}
	}
	if r.isKVM(pid, vmid) {
		if !o.force {
			return fail(255, "VM quit/powerdown failed - got timeout")
		}
		if err := r.kill(pid, vmid, asked); err != nil {
			return err
		}
	}
	if o.keepState {
		return nil
	}
	return r.removeRunFiles(vmid)
}

// askToEnd has the guest shut down, or QEMU quit.
func (r *run) askToEnd(vmid string, c *conf, o stopOptions) error {
	command := "quit"
	if o.shutdown {
		command = "system_powerdown"
		if agentEnabled(c.main) {
			_, err := r.agent(vmid, r.times.agent, "guest-ping", nil)
			if err == nil {
				// The guest goes down before it can answer.
				_, err = r.agent(vmid, r.times.agent, "guest-shutdown", map[string]any{"mode": "powerdown"})
				if err == nil || errors.Is(err, errMute) {
					return nil
				}
			}
			r.printf("QEMU Guest Agent is not running - VM %s qga command 'guest-ping' failed - got timeout\n", vmid)
		}
	}
	_, err := r.qmp(vmid, r.times.qmpQuit, command, nil)
	if err != nil && !r.isKVM(r.running(vmid), vmid) {
		return nil // QEMU was gone before its answer
	}
	return err
}

// waitEnd waits until a kvm has ended, at most limit.
func (r *run) waitEnd(pid int, vmid string, limit time.Duration) error {
	start := r.clock.Now()
	for r.isKVM(pid, vmid) && r.clock.Now().Sub(start) < limit {
		if err := r.clock.Sleep(r.ctx, pollStopped); err != nil {
			return err
		}
	}
	return r.ctx.Err()
}

// kill ends a kvm that did not end by itself.
func (r *run) kill(pid int, vmid string, asked error) error {
	what := "VM still running"
	if asked != nil {
		what = "VM quit/powerdown failed"
	}
	r.printf("%s - terminating now with SIGTERM\n", what)
	if err := r.terminate(pid, syscall.SIGTERM); err != nil {
		return err
	}
	if err := r.waitEnd(pid, vmid, 10*time.Second); err != nil {
		return err
	}
	if !r.isKVM(pid, vmid) {
		return nil
	}
	r.printf("VM still running - terminating now with SIGKILL\n")
	if err := r.terminate(pid, syscall.SIGKILL); err != nil {
		return err
	}
	return r.waitEnd(pid, vmid, 10*time.Second)
}

// shutdown is qm shutdown.
func (r *run) shutdown(p params) error {
	vmid := p["vmid"]
	if _, err := r.load(vmid); err != nil {
		return err
	}
	if r.running(vmid) != 0 && r.qmpStatus(vmid) == "paused" {
		if !p.on("forceStop") {
			return fail(29, "VM is paused - cannot shutdown")
		}
		return r.stop(params{"vmid": vmid, "skiplock": p["skiplock"]})
	}
	return r.task("qmshutdown", vmid, func(t *run) error {
		o := stopOptions{shutdown: true, force: p.on("forceStop"), skiplock: p.on("skiplock"), timeout: seconds(p["timeout"], 60*time.Second)}
		return t.withLock(vmid, func() error { return t.end(vmid, o) })
	})
}

// reboot is qm reboot: a shutdown and a start, with pending changes applied.
func (r *run) reboot(p params) error {
	vmid := p["vmid"]
	if err := r.mustRun(vmid); err != nil {
		return fail(2, "%v\n\n%v", err, err)
	}
	return r.task("qmreboot", vmid, func(t *run) error {
		return t.withLock(vmid, func() error {
			c, err := t.load(vmid)
			if err != nil {
				return err
			}
			if err := c.checkLock(); err != nil {
				return err
			}
			if err := t.end(vmid, stopOptions{shutdown: true, timeout: seconds(p["timeout"], 60*time.Second)}); err != nil {
				return err
			}
			return t.quietly(func(q *run) error { return q.startLocked(vmid, false) })
		})
	})
}

// quietly drops the output of work: a rebooted VM is started by qmeventd.
func (r *run) quietly(work func(*run) error) error {
	q := *r
	q.out, q.warn = discard{}, discard{}
	return work(&q)
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// mustRun refuses a VM that is not there or does not run.
func (r *run) mustRun(vmid string) error {
	if _, err := r.load(vmid); err != nil {
		return err
	}
	if r.running(vmid) == 0 {
		return fail(2, "VM %s not running", vmid)
	}
	return nil
}

// simple runs one QMP command as a task, under the VM's lock. Locks that are
// in allowed do not stop it.
func (r *run) simple(vmid, typ, command string, skiplock bool, allowed ...string) error {
	return r.task(typ, vmid, func(t *run) error {
		return t.withLock(vmid, func() error {
			c, err := t.load(vmid)
			if err != nil {
				return err
			}
			if !slices.Contains(allowed, c.main["lock"]) {
				if err := c.lockUnless(skiplock); err != nil {
					return err
				}
			}
			_, err = t.monitor(vmid, command, nil)
			return err
		})
	})
}

// reset is qm reset.
func (r *run) reset(p params) error {
	if err := r.mustRun(p["vmid"]); err != nil {
		return err
	}
	return r.simple(p["vmid"], "qmreset", "system_reset", p.on("skiplock"))
}

// suspend is qm suspend.
func (r *run) suspend(p params) error {
	vmid := p["vmid"]
	if err := r.mustRun(vmid); err != nil {
		return err
	}
	if p.on("todisk") {
		return r.suspendToDisk(p)
	}
	return r.simple(vmid, "qmpause", "stop", p.on("skiplock"), "backup")
}

// resume is qm resume.
func (r *run) resume(p params) error {
	vmid := p["vmid"]
	c, err := r.load(vmid)
	if err != nil {
		return err
	}
	if c.main["lock"] == "suspended" {
		return r.task("qmresume", vmid, func(t *run) error {
			return t.withLock(vmid, func() error { return t.resumeSuspended(vmid, c) })
		})
	}
	if err := r.mustRun(vmid); err != nil {
		return err
	}
	return r.simple(vmid, "qmresume", "cont", p.on("skiplock"), "backup")
}

// waitStopped is qm wait.
func (r *run) waitStopped(p params) error {
	vmid := p["vmid"]
	if _, err := r.load(vmid); err != nil {
		return err
	}
	pid := r.running(vmid)
	if pid == 0 {
		return nil
	}
	r.printf("waiting until VM %s stops (PID %d)\n", vmid, pid)
	if err := r.waitEnd(pid, vmid, seconds(p["timeout"], 24*time.Hour)); err != nil {
		return err
	}
	if r.isKVM(pid, vmid) {
		return fail(25, "wait failed - got timeout")
	}
	return nil
}
