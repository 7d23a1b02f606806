package pve

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// start is qm start.
func (r *run) start(p params) error {
	vmid := p["vmid"]
	if !r.inTask {
		if err := r.checkQuorum(); err != nil {
			return err
		}
	}
	start := func(t *run) error { return t.startLocked(vmid, p.on("skiplock")) }
	if done, err := r.haRequest("start", vmid, start); done || err != nil {
		return err
	}
	return r.task("qmstart", vmid, func(t *run) error {
		return t.withLock(vmid, func() error { return start(t) })
	})
}

func (r *run) startLocked(vmid string, skiplock bool) error {
	c, err := r.load(vmid)
	if err != nil {
		return err
	}
	r.warnAll(c)
	if c.main["template"] == "1" {
		return fail(255, "you can't start a vm if it's a template")
	}
	if r.running(vmid) != 0 {
		// A running VM under backup is resumed, and nothing said.
		if c.main["lock"] == "backup" && !skiplock {
			_, err := r.monitor(vmid, "cont", nil)
			return err
		}
		if err := c.lockUnless(skiplock); err != nil {
			return err
		}
		return fail(255, "VM %s already running", vmid)
	}
	if c.main["lock"] == "suspended" {
		return r.resumeSuspended(vmid, c)
	}
	if err := c.lockUnless(skiplock); err != nil {
		return err
	}
	if len(c.pending) > 0 || len(c.deleting) > 0 {
		if err := r.applyPending(vmid, c, false); err != nil {
			return err
		}
	}
	special := len(c.cloudinit) > 0
	if err := r.makeISO(vmid, c); err != nil {
		return err
	}
	if special {
		if err := r.store(vmid, c); err != nil {
			return err
		}
	}
	return r.boot(vmid, c.main)
}

func (c *conf) lockUnless(skiplock bool) error {
	if skiplock {
		return nil
	}
	return c.checkLock()
}

var machineVersion = regexp.MustCompile(`-(\d+)\.(\d+)(\+pve\d+)?$`)

// boot checks what the real start checks, execs kvm and waits until it answers.
func (r *run) boot(vmid string, s section) error {
	if m := machineVersion.FindStringSubmatch(s["machine"]); m != nil && intOr(m[1], 0) > 10 {
		machine := s["machine"]
		if m[3] == "" {
			machine += "+pve0"
		}
		return fail(255, "Installed QEMU version '%s' is too old to run machine type '%s', please upgrade node '%s'",
			r.qemuVersion(), machine, r.cfg.NodeName)
	}
	for _, d := range s.drives() {
		if d.file == "none" || d.file == "cdrom" {
			continue
		}
		if _, err := r.existing(d.file); err != nil {
			return err
		}
	}
	if s["bios"] == "ovmf" && s["efidisk0"] == "" {
		r.printf("WARN: no efidisk configured! Using temporary efivars disk.\n")
	}
	for _, nic := range nics(s) {
		if b := nic.opts["bridge"]; b != "" && !r.hasLink(b) {
			return fail(255, "bridge '%s' does not exist", b)
		}
	}
	args, err := r.kvmArgs(vmid, s)
	if err != nil {
		return err
	}
	if err := r.hook(vmid, s["hookscript"], "pre-start"); err != nil {
		return err
	}
	if why := r.kvmRefusal(vmid, s); why != "" {
		r.printf("%s\n", why)
		return fail(255, "start failed: QEMU exited with code 1")
	}
	if err := r.plugNICs(vmid, s); err != nil {
		return err
	}
	pid, err := r.execKVM(vmid, args)
	if err != nil {
		return errors.Join(err, r.removeTaps(vmid))
	}
	if err := r.ownTaps(vmid, pid); err != nil {
		return err
	}
	return r.hook(vmid, s["hookscript"], "post-start")
}

// kvmRefusal is what QEMU or the network script would say against the VM: the
// simulated kvm has no hardware to try it on.
func (r *run) kvmRefusal(vmid string, s section) string {
	if memoryMiB(s)<<20 > r.cfg.MemoryBytes {
		return "kvm: cannot set up guest memory 'pc.ram': Cannot allocate memory"
	}
	for a := range strings.FieldsSeq(s["args"]) {
		return "kvm: " + a + ": invalid option"
	}
	for _, nic := range nics(s) {
		tap := fmt.Sprintf("tap%si%d", vmid, nic.index)
		netdev := fmt.Sprintf("kvm: -netdev type=tap,id=net%d,ifname=%s,script=/usr/libexec/qemu-server/pve-bridge,downscript=/usr/libexec/qemu-server/pve-bridgedown: ", nic.index, tap)
		if r.tapOwner(tap, vmid) != 0 {
			return netdev + fmt.Sprintf("could not configure /dev/net/tun (%s): Device or resource busy", tap)
		}
		b := nic.opts["bridge"]
		if nic.opts["tag"] != "" && !r.vlanAware(b) && len(r.physicalPorts(b)) == 0 {
			return fmt.Sprintf("no physical interface on bridge '%s'\n%snetwork script /usr/libexec/qemu-server/pve-bridge failed with status 65280", b, netdev)
		}
	}
	return ""
}

// inScope is what a command is put behind that shall run in the VM's scope, which has the
// properties that the real qm gives it. systemd-run becomes the command.
func inScope(vmid string) []string {
	return []string{"systemd-run", "--quiet", "--scope", "--collect", "--slice=qemu", "--unit=" + vmid,
		"-p", "KillMode=process", "-p", "SendSIGKILL=no", "-p", "TimeoutStopSec=infinity", "--"}
}

// freeScope ends what is left of the VM's scope, as the real qm does before each start: a
// start that was killed between asking for the scope and being in it leaves an empty one,
// which systemd keeps where the kernel does not tell it so (cgroup v1 in a container).
func (r *run) freeScope(vmid string) error {
	scope := vmid + ".scope"
	for _, verb := range []string{"reset-failed", "stop"} {
		_ = exec.CommandContext(r.ctx, "systemctl", verb, scope).Run() // mostly there is none
	}
	deadline := r.clock.Now().Add(r.times.scopeGone)
	for {
		state, err := exec.CommandContext(r.ctx, "systemctl", "show", "--property=LoadState", "--value", scope).Output()
		if err != nil {
			return fail(255, "systemctl show %s: %v", scope, err)
		}
		if strings.TrimSpace(string(state)) != "loaded" {
			return nil
		}
		if r.clock.Now().After(deadline) {
			return fail(255, "timeout waiting on systemd")
		}
		if err := r.clock.Sleep(r.ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// execKVM starts the host's usr/bin/kvm in a session of its own and returns
// when its pid file and its QMP socket are there.
func (r *run) execKVM(vmid string, args []string) (pid int, err error) {
	for _, kind := range []string{"pid", "qmp", "qga"} {
		_ = os.Remove(r.runFile(vmid, kind)) // left by one that was killed
	}
	logPath := r.path("var/log/kvm", vmid+".log")
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	kvm := append([]string{r.path("usr/bin/kvm")}, args[1:]...)
	if r.cfg.Own {
		if err := r.freeScope(vmid); err != nil {
			return 0, err
		}
		kvm = append(inScope(vmid), kvm...)
	}
	cmd := exec.Command(kvm[0], kvm[1:]...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Dir = r.path()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := os.WriteFile(r.runFile(vmid, "cleanup"), []byte(ctime(r.clock.Now())), 0o644); err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, fail(255, "start failed: %v", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	deadline := time.Now().Add(r.times.kvmReady)
	for {
		select {
		case err := <-ended:
			said, _ := os.ReadFile(logPath)
			r.printf("%s", said)
			var exit *exec.ExitError
			code := 1
			if errors.As(err, &exit) && exit.ExitCode() >= 0 {
				code = exit.ExitCode()
			}
			return 0, fail(255, "start failed: QEMU exited with code %d", code)
		case <-time.After(2 * time.Millisecond):
		}
		if pid := r.running(vmid); pid != 0 {
			if _, err := r.qmp(vmid, time.Second, "query-status", nil); err == nil {
				return pid, nil
			}
		}
		if time.Now().After(deadline) {
			_ = r.terminate(cmd.Process.Pid, syscall.SIGKILL)
			return 0, fail(255, "start failed: command '%s' failed: got timeout", strings.Join(args[:3], " "))
		}
	}
}
