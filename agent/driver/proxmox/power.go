package proxmox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/homeiac/homelab/agent/driver/proxmox/parse"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// life is whether a VM's process lives, and what QEMU says of it.
type life struct {
	power  homelabv1.Power
	reason string
	pid    int             // 0 when there is no process
	status string          // what QEMU says; empty when it did not
	there  *homelabv1.Fact // whether there is a process
}

// probe is what a VM's sockets said.
type probe struct {
	at        time.Time
	pid       int
	life      life
	ticks     int64     // when the process was started, since boot
	started   time.Time // the same by the clock; zero is not known
	agent     *homelabv1.Fact
	addresses []string
}

// process finds the VM's kvm as Proxmox does: the pid file, and a process of that
// id whose command line names that pid file. A pid file that is left over, or whose
// number was given to another process, is no VM.
func (d *Driver) process(vmid int32) (pid int, err error) {
	text, err := os.ReadFile(d.run(vmid, "pid"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	pid, _ = strconv.Atoi(strings.TrimSpace(string(text))) // what is no number is no process
	if pid <= 0 {
		return 0, nil
	}
	cmdline, err := os.ReadFile(filepath.Join(d.proc, strconv.Itoa(pid), "cmdline"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ESRCH) {
		return 0, err
	}
	if !parse.KVM(cmdline, vmid) {
		return 0, nil
	}
	return pid, nil
}

// anyProcess is process, and finds a kvm whose pid file was lost too: Proxmox takes
// such a VM for stopped, and would take its disks away from under it. It reads all
// of /proc, so it is for changes that cannot be undone.
func (d *Driver) anyProcess(vmid int32) (pid int, stray bool, err error) {
	if pid, err := d.process(vmid); pid != 0 || err != nil {
		return pid, false, err
	}
	entries, err := os.ReadDir(d.proc)
	if err != nil {
		return 0, false, err
	}
	kvm := d.host("usr/bin/kvm") + "\x00"
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// One that cannot be read has ended.
		cmdline, _ := os.ReadFile(filepath.Join(d.proc, e.Name(), "cmdline"))
		if strings.HasPrefix(string(cmdline), kvm) && parse.KVM(cmdline, vmid) {
			return pid, true, nil
		}
	}
	return 0, false, nil
}

// living looks at the VM's process and asks QEMU.
func (d *Driver) living(ctx context.Context, vmid int32) life {
	pid, err := d.process(vmid)
	if err != nil {
		return life{reason: fmt.Sprintf("its process cannot be looked at: %v", err), there: unknown("%v", err)}
	}
	if pid == 0 {
		return life{power: homelabv1.Power_POWER_STOPPED, there: no("it has no process")}
	}
	status, err := queryStatus(ctx, d.run(vmid, "qmp"))
	if err != nil {
		return life{pid: pid, there: yes(), reason: fmt.Sprintf("process %d lives, but QEMU does not say how it is: %v", pid, err)}
	}
	if status == "running" {
		return life{pid: pid, there: yes(), status: status, power: homelabv1.Power_POWER_RUNNING}
	}
	return life{pid: pid, there: yes(), status: status, power: homelabv1.Power_POWER_PAUSED, reason: "QEMU says " + status}
}

// probe asks a VM's sockets, or tells what they said before: an observation may
// ask them every probeAge, and at once when the process is another one.
func (d *Driver) probe(ctx context.Context, vmid int32, config *parse.Config, fresh bool) probe {
	pid, err := d.process(vmid)
	d.mu.Lock()
	last, asked := d.probes[vmid]
	d.mu.Unlock()
	if !fresh && err == nil && asked && last.pid == pid && (pid == 0 || time.Since(last.at) < probeAge) &&
		(last.agent == nil) == !config.Agent() {
		return last
	}
	p := probe{at: time.Now(), life: d.living(ctx, vmid)}
	p.pid = p.life.pid
	if p.pid != 0 {
		p.ticks, p.started = d.started(p.pid, last)
	}
	switch {
	case !config.Agent():
	case p.life.power == homelabv1.Power_POWER_STOPPED:
		p.agent = no("the VM does not run")
	case p.life.power == homelabv1.Power_POWER_PAUSED:
		p.agent = no("the VM is paused")
	default:
		if p.addresses, err = queryAgent(ctx, d.run(vmid, "qga")); err != nil {
			p.agent = no("%v", err)
		} else {
			p.agent = yes()
		}
	}
	if ctx.Err() != nil {
		return p // cut short: not worth remembering
	}
	d.mu.Lock()
	d.probes[vmid] = p
	d.mu.Unlock()
	return p
}

// started is when a process was started. What was found of the same process before
// is kept: by the clock, which may be set, it would move.
func (d *Driver) started(pid int, last probe) (ticks int64, at time.Time) {
	ticks, ok := d.startTime(int64(pid))
	if !ok {
		return 0, time.Time{}
	}
	if last.pid == pid && last.ticks == ticks && !last.started.IsZero() {
		return ticks, last.started
	}
	stat, err := os.ReadFile(filepath.Join(d.proc, "stat"))
	if err != nil {
		return ticks, time.Time{}
	}
	boot, ok := parse.BootTime(stat)
	if !ok {
		return ticks, time.Time{}
	}
	return ticks, boot.Add(time.Duration(ticks) * (time.Second / ticksPerSecond))
}

// ticksPerSecond is the unit of times in /proc: USER_HZ, which Linux fixes.
const ticksPerSecond = 100

// alive tells whether a process is the one that was started at that tick.
func (d *Driver) alive(pid, start int64) bool {
	if pid <= 0 {
		return false
	}
	now, ok := d.startTime(pid)
	return ok && now == start
}

func (d *Driver) startTime(pid int64) (int64, bool) {
	stat, err := os.ReadFile(filepath.Join(d.proc, strconv.FormatInt(pid, 10), "stat"))
	if err != nil {
		return 0, false
	}
	return parse.StartTime(string(stat))
}
