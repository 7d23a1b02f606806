package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/homeiac/homelab/lab/pve"
)

func (l *Lab) faultGuestStop(target string, values []string) error {
	if err := noValue(values); err != nil {
		return err
	}
	return l.adminQM("stop", target)
}

// adminQM runs one command of qm on the VM of that name, as its administrator.
func (l *Lab) adminQM(verb, guest string) error {
	host, vmid, err := l.findGuest(guest)
	if err != nil {
		return err
	}
	var stderr bytes.Buffer
	if code := l.QM(context.Background(), host, []string{verb, fmt.Sprint(vmid)}, nil, &bytes.Buffer{}, &stderr); code != 0 {
		return fmt.Errorf("qm %s %d on %s: exit %d: %s", verb, vmid, host, code, strings.TrimSpace(stderr.String()))
	}
	return nil
}

func (l *Lab) faultGuestPause(target string, values []string) error {
	off, err := offValue(values)
	if err != nil {
		return err
	}
	if off {
		return l.adminQM("resume", target)
	}
	return l.adminQM("suspend", target)
}

// machine are the processes of a running VM.
type machine struct {
	kvm int
	os  int // 0 for a VM without the lab's guest OS
}

// runningGuest finds the processes of the VM of that name.
func (l *Lab) runningGuest(name string) (machine, error) {
	host, vmid, err := l.findGuest(name)
	if err != nil {
		return machine{}, err
	}
	h, err := pve.Open(l.hostDir(host))
	if err != nil {
		return machine{}, err
	}
	m := machine{kvm: h.KVM(vmid)}
	if m.kvm == 0 {
		return m, fmt.Errorf("VM %d on %s does not run; hl-lab qm --dir %s %s start %d", vmid, host, l.Dir, host, vmid)
	}
	list, err := l.processes(l.hostDir(host))
	if err != nil {
		return m, err
	}
	for _, p := range list {
		if parentOf(p.pid) == m.kvm && slices.Contains(p.argv, strconv.Itoa(vmid)) {
			m.os = p.pid
		}
	}
	return m, nil
}

// statFields are the fields of /proc/PID/stat from the state on, which is the third.
func statFields(pid int) []string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	return strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
}

func parentOf(pid int) int {
	f := statFields(pid)
	if len(f) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(f[1])
	return n
}

// stopped says whether a process stands still by SIGSTOP.
func stopped(pid int) bool {
	f := statFields(pid)
	return len(f) > 0 && f[0] == "T"
}

func signalAll(sig syscall.Signal, pids ...int) error {
	for _, pid := range pids {
		if pid == 0 {
			continue
		}
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("signal %d to process %d: %w", sig, pid, err)
		}
	}
	return nil
}

// still stops processes where they stand, and fills the queues of their ports: new
// connections time out, as to a machine that does not answer.
func still(pids ...int) error {
	pids = slices.DeleteFunc(pids, func(p int) bool { return p == 0 })
	if err := signalAll(syscall.SIGSTOP, pids...); err != nil {
		return err
	}
	listening, err := listeners(pids)
	if err != nil {
		return err
	}
	for _, address := range listening {
		if err := fillQueue(address); err != nil {
			return fmt.Errorf("fill the accept queue of %s: %w", address, err)
		}
	}
	return nil
}

func (l *Lab) faultGuestHang(target string, values []string) error {
	off, err := offValue(values)
	if err != nil {
		return err
	}
	m, err := l.runningGuest(target)
	switch {
	case err != nil:
		return err
	case m.os == 0:
		return errors.New("nothing runs inside it that could hang")
	case off:
		return signalAll(syscall.SIGCONT, m.os)
	}
	return still(m.os)
}

func (l *Lab) faultKVMHang(target string, values []string) error {
	off, err := offValue(values)
	if err != nil {
		return err
	}
	m, err := l.runningGuest(target)
	switch {
	case err != nil:
		return err
	case off:
		return signalAll(syscall.SIGCONT, m.os, m.kvm)
	}
	// The machine first: it must not see its guest stand still.
	return still(m.kvm, m.os)
}

func (l *Lab) faultGuestCrash(target string, values []string) error {
	if err := noValue(values); err != nil {
		return err
	}
	m, err := l.runningGuest(target)
	if err != nil {
		return err
	}
	if err := kill(m.kvm); err != nil {
		return err
	}
	if m.os == 0 {
		return nil
	}
	return waitGone(5*time.Second, m.os) // its machine takes it along
}
