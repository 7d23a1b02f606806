package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// programs are the names of the executables whose processes can be a lab's.
var programs = []string{"hl-agent", "hl-controller", "hl-lab"}

// process is one running process of the lab.
type process struct {
	pid  int
	argv []string
}

// processes lists the lab's processes that have an argument (or a program path)
// below folder. Everything a lab starts names its folder, so nothing has to be
// written down that could be out of date.
func (l *Lab) processes(folder string) ([]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		exe, err := os.Readlink(filepath.Join("/proc", e.Name(), "exe"))
		if err != nil {
			continue // gone, or another user's
		}
		name := filepath.Base(strings.TrimSuffix(exe, " (deleted)"))
		if !slices.Contains(programs, name) {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(cmdline) == 0 {
			continue // a zombie has no arguments
		}
		argv := strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")
		if slices.ContainsFunc(argv, func(a string) bool { return a == folder || strings.HasPrefix(a, folder+"/") }) {
			found = append(found, process{pid: pid, argv: argv})
		}
	}
	return found, nil
}

// daemon starts a program of the lab in a session of its own, so that it
// outlives the one who started it.
func (l *Lab) daemon(name, program string, args ...string) error {
	if err := os.MkdirAll(l.path("log"), 0o755); err != nil {
		return err
	}
	log, err := os.OpenFile(l.path("log", name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(l.bin, program), args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = l.Dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w (build it with: make build)", program, err)
	}
	// Reaped in the background: a lab in the foreground must not collect zombies.
	go func() { _ = cmd.Wait() }()
	return nil
}

// agentProcess is the running agent of a host, if any. Its driver plugin is
// another process.
func (l *Lab) agentProcess(host string) (pid int, ok bool) {
	return l.find(func(argv []string) bool {
		return slices.Contains(argv, l.agentConfig(host)) && !slices.Contains(argv, "driver")
	})
}

func (l *Lab) controllerProcess(name string) (pid int, ok bool) {
	return l.find(func(argv []string) bool { return slices.Contains(argv, l.controllerConfig(name)) })
}

func (l *Lab) hostProcess(name string) (pid int, ok bool) {
	return l.find(func(argv []string) bool {
		return len(argv) > 1 && argv[1] == "host" && slices.Contains(argv, name)
	})
}

func (l *Lab) impostorProcess(guest string) (pid int, ok bool) {
	return l.find(func(argv []string) bool {
		return len(argv) > 1 && argv[1] == "impostor" && slices.Contains(argv, guest)
	})
}

func (l *Lab) etcdProcess() (pid int, ok bool) {
	return l.find(func(argv []string) bool { return len(argv) > 1 && argv[1] == "etcd" })
}

func (l *Lab) find(match func(argv []string) bool) (int, bool) {
	list, err := l.processes(l.Dir)
	if err != nil {
		return 0, false
	}
	for _, p := range list {
		if match(p.argv) {
			return p.pid, true
		}
	}
	return 0, false
}

// kill ends processes at once and waits until they are gone.
func kill(pids ...int) error {
	var errs []error
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			errs = append(errs, fmt.Errorf("kill %d: %w", pid, err))
		}
	}
	return errors.Join(append(errs, waitGone(5*time.Second, pids...))...)
}

// terminate asks processes to end, and kills those that have not within grace.
func terminate(grace time.Duration, pids ...int) error {
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGTERM)
	}
	if waitGone(grace, pids...) == nil {
		return nil
	}
	return kill(slices.DeleteFunc(slices.Clone(pids), gone)...)
}

func waitGone(limit time.Duration, pids ...int) error {
	deadline := time.Now().Add(limit)
	for {
		left := slices.DeleteFunc(slices.Clone(pids), gone)
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v did not end within %s", left, limit)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// gone says whether a process ended. A zombie has, once its last thread has: until
// then its sockets are still bound.
func gone(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 || len(stat) <= i+2 || stat[i+2] != 'Z' {
		return false
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	return err != nil || len(threads) <= 1
}

func pids(list []process) []int {
	out := make([]int, len(list))
	for i, p := range list {
		out[i] = p.pid
	}
	return out
}
