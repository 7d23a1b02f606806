package pve

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// runFile is one of a guest's files in /var/run/qemu-server.
func (h *Host) runFile(vmid, kind string) string {
	return h.path("run/qemu-server", vmid+"."+kind)
}

// pidFileArg is how the pid file stands in kvm's arguments.
func pidFileArg(vmid string) string { return "/var/run/qemu-server/" + vmid + ".pid" }

// running is the pid of a VM's kvm, or 0. A pid file counts only when its
// process is this host's kvm with that very pid file.
func (h *Host) running(vmid string) int {
	data, err := os.ReadFile(h.runFile(vmid, "pid"))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || !h.isKVM(pid, vmid) {
		return 0
	}
	return pid
}

// KVM is the pid of a VM's kvm, or 0 when it does not run.
func (h *Host) KVM(vmid int) int { return h.running(strconv.Itoa(vmid)) }

// isKVM says whether a process is the kvm of a VM of this host.
func (h *Host) isKVM(pid int, vmid string) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(data) == 0 {
		return false // gone, or a zombie
	}
	argv := strings.Split(strings.TrimSuffix(string(data), "\x00"), "\x00")
	i := slices.Index(argv, "-pidfile")
	return argv[0] == h.path("usr/bin/kvm") && i > 0 && i+1 < len(argv) && argv[i+1] == pidFileArg(vmid)
}

// alive says whether a process exists and is no zombie.
func alive(pid int) bool {
	if unix.Kill(pid, 0) != nil {
		return false
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, after, ok := bytes.Cut(data, []byte(") "))
	return !ok || len(after) == 0 || after[0] != 'Z'
}

// guests lists the VMIDs that have a configuration on this node.
func (h *Host) guests() ([]string, error) {
	entries, err := os.ReadDir(h.nodeDir("qemu-server"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	ids := map[string]bool{}
	for _, e := range entries {
		if m := confName.FindStringSubmatch(e.Name()); m != nil {
			ids[m[1]] = true
		}
	}
	return sortedIDs(ids), nil
}

// removeRunFiles is what remains to do after a guest's kvm has ended.
func (h *Host) removeRunFiles(vmid string) error {
	var errs error
	for _, kind := range []string{"pid", "qmp", "qga", "vnc", "serial0", "serial1", "serial2", "serial3", "cleanup"} {
		if err := os.Remove(h.runFile(vmid, kind)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = errors.Join(errs, err)
		}
	}
	return errors.Join(errs, h.removeTaps(vmid))
}

// Cleanup does what qmeventd does: it removes the run files and network links
// of guests whose kvm is gone.
func (h *Host) Cleanup() error {
	if h.cfg.NoQMEventd {
		return nil
	}
	files, err := filepath.Glob(h.path("run/qemu-server", "*.pid"))
	if err != nil {
		return err
	}
	var errs error
	for _, f := range files {
		vmid := strings.TrimSuffix(filepath.Base(f), ".pid")
		data, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
		if err != nil || h.isKVM(pid, vmid) {
			continue
		}
		errs = errors.Join(errs, h.removeRunFiles(vmid))
	}
	return errs
}

// memoryOf is the resident memory of a process in bytes.
func memoryOf(pid int) int64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(data))
	if len(f) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(f[1], 10, 64)
	return pages * int64(os.Getpagesize())
}

// terminate sends a signal to a guest's kvm.
func (h *Host) terminate(pid int, sig syscall.Signal) error {
	if err := unix.Kill(pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}
