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
	pid    int // 0 when there is no process
}

// probe is what a VM's sockets said.
type probe struct {
	at        time.Time
	pid       int
	life      life
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

// living looks at the VM's process and asks QEMU.
func (d *Driver) living(ctx context.Context, vmid int32) life {
	pid, err := d.process(vmid)
	if err != nil {
		return life{reason: fmt.Sprintf("its process cannot be looked at: %v", err)}
	}
	if pid == 0 {
		return life{power: homelabv1.Power_POWER_STOPPED}
	}
	status, err := queryStatus(ctx, d.run(vmid, "qmp"))
	if err != nil {
		return life{pid: pid, reason: fmt.Sprintf("process %d lives, but QEMU does not say how it is: %v", pid, err)}
	}
	if status == "running" {
		return life{pid: pid, power: homelabv1.Power_POWER_RUNNING}
	}
	return life{pid: pid, power: homelabv1.Power_POWER_PAUSED, reason: "QEMU says " + status}
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
