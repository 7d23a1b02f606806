package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/homeiac/homelab/lab/disk"
	"github.com/homeiac/homelab/lab/guest/qmp"
	"github.com/homeiac/homelab/lab/guest/system"
)

// Exit codes of the child that is the guest OS.
const (
	exitOff    = 0
	exitReboot = 42
)

// vm is the machine around the guest.
type vm struct {
	c       *command
	program string
	disk    *bootDisk // nil: no guest OS
	quit    context.CancelFunc
	monitor *qmp.Server

	power sync.Mutex // one change of power at a time

	mu          sync.Mutex
	status      string
	child       *child
	channel     net.Conn // to the guest agent
	agentClient net.Conn
}

// bootDisk is what the firmware finds.
type bootDisk struct {
	volume    string // real path
	cloudInit string // real path of the volume with the cloud-init data, "" without
}

// child is a running guest OS.
type child struct {
	proc    *os.Process
	control net.Conn
	done    chan struct{}
	expect  bool // its end was asked for
}

// bootDisk finds the volume to boot: of those with the lab's guest OS the first
// in boot order.
func (v *vm) bootDisk() (*bootDisk, error) {
	var found *bootDisk
	drives := slices.Clone(v.c.drives)
	slices.SortStableFunc(drives, func(a, b drive) int {
		if a.boot != b.boot {
			if a.boot < b.boot {
				return -1
			}
			return 1
		}
		return strings.Compare(a.id, b.id)
	})
	ci := ""
	for _, d := range drives {
		file := filepath.Join(v.c.root, d.file)
		if d.cdrom {
			if _, err := disk.ReadCloudInit(file); err == nil {
				ci = file
			}
			continue
		}
		has, err := disk.HasGuest(file)
		if err != nil {
			return nil, fmt.Errorf("-drive file=%s: Could not open '%s': No such file or directory", d.file, d.file)
		}
		if has && found == nil {
			found = &bootDisk{volume: file}
		}
	}
	if found != nil {
		found.cloudInit = ci
	}
	return found, nil
}

// labDir is the lab's folder: ROOT is DIR/hosts/NAME/root, or the machine's own.
func (v *vm) labDir() (dir, host string) {
	hostDir := filepath.Dir(v.c.root)
	if own, err := os.Readlink(disk.OwnHost); err == nil && v.c.root == "/" {
		hostDir = own
	}
	return filepath.Dir(filepath.Dir(hostDir)), filepath.Base(hostDir)
}

// machine is what the guest will find.
func (v *vm) machine() (system.Machine, error) {
	dir, host := v.labDir()
	s, err := system.ReadSettings(dir)
	if err != nil {
		return system.Machine{}, err
	}
	m := system.Machine{
		Host: host, LabDir: dir, OwnHost: v.c.root == "/", VMID: v.c.vmid, Name: v.c.name, UUID: v.c.uuid, CPUs: v.c.cpus, Memory: v.c.memory,
		Tree: disk.Tree(v.disk.volume), Settings: s,
	}
	for _, n := range v.c.nics {
		sn := system.NIC{MAC: n.mac, Bridge: v.bridge(n)}
		if p, ok := s.Network(sn.Bridge); ok && v.bridgeUp(sn.Bridge) {
			sn.Net = p
		}
		m.NICs = append(m.NICs, sn)
	}
	if v.disk.cloudInit != "" {
		ci, err := disk.ReadCloudInit(v.disk.cloudInit)
		if err != nil && !errors.Is(err, disk.ErrNoCloudInit) {
			return m, err
		}
		if err == nil {
			m.CloudInit = &ci
		}
	}
	return m, nil
}

// bridge finds where a NIC is plugged in: the bridge that has its tap as a
// port, else the one that the VM's configuration names.
func (v *vm) bridge(n nic) string {
	ports, err := filepath.Glob(filepath.Join(v.c.root, "sys/class/net/*/brif", n.tap))
	if err == nil && len(ports) > 0 {
		return filepath.Base(filepath.Dir(filepath.Dir(ports[0])))
	}
	b, err := os.ReadFile(filepath.Join(v.c.root, "etc/pve/qemu-server", fmt.Sprintf("%d.conf", v.c.vmid)))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "[") {
			break
		}
		if rest, ok := strings.CutPrefix(line, n.id+":"); ok {
			return props(strings.TrimSpace(rest))["bridge"]
		}
	}
	return ""
}

// bridgeUp tells whether a bridge passes anything.
func (v *vm) bridgeUp(name string) bool {
	if name == "" {
		return false
	}
	b, err := os.ReadFile(filepath.Join(v.c.root, "sys/class/net", name, "operstate"))
	if err != nil {
		return false
	}
	return strings.TrimSpace(string(b)) != "down"
}

// socketPair gives two connected ends, the second as a file for a child.
func socketPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	f := os.NewFile(uintptr(fds[0]), "socket")
	defer f.Close()
	c, err := net.FileConn(f)
	other := os.NewFile(uintptr(fds[1]), "socket")
	if err != nil {
		other.Close()
		return nil, nil, err
	}
	return c, other, nil
}

// powerOn starts the guest OS.
func (v *vm) powerOn() error {
	if v.disk == nil {
		return nil
	}
	m, err := v.machine()
	if err != nil {
		return err
	}
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	control, cfile, err := socketPair()
	if err != nil {
		return err
	}
	defer cfile.Close()
	channel, afile, err := socketPair()
	if err != nil {
		control.Close()
		return err
	}
	defer afile.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{v.program, osWord, fmt.Sprint(v.c.vmid)}
	cmd.Env = []string{}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{cfile, afile}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ch := &child{control: control, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// Pdeathsig is about the thread that starts the child: it must live as long
		// as the machine.
		runtime.LockOSThread()
		err := cmd.Start()
		if err == nil {
			ch.proc = cmd.Process
		}
		started <- err
		if err != nil {
			return
		}
		_ = cmd.Wait() // the exit code is looked at
		close(ch.done)
		v.ended(ch, channel, cmd.ProcessState)
	}()
	if err := <-started; err != nil {
		control.Close()
		channel.Close()
		return err
	}
	v.mu.Lock()
	v.child, v.channel = ch, channel
	v.mu.Unlock()
	go v.fromAgent(channel)
	_, err = control.Write(append(text, '\n'))
	return err
}

// ended is called when a guest OS has gone.
func (v *vm) ended(ch *child, channel net.Conn, st *os.ProcessState) {
	ch.control.Close()
	channel.Close()
	v.forget(ch)
	v.mu.Lock()
	expected := ch.expect
	v.mu.Unlock()
	if expected {
		return
	}
	switch {
	case st.ExitCode() == exitOff:
		// With -no-shutdown qmeventd would now send quit; it does it so fast that
		// the lab does it here.
		v.event("SHUTDOWN", map[string]any{"guest": true, "reason": "guest-shutdown"})
		v.setStatus("shutdown")
		v.quit()
	case st.ExitCode() == exitReboot:
		v.event("RESET", map[string]any{"guest": true, "reason": "guest-reset"})
		v.power.Lock()
		defer v.power.Unlock()
		if err := v.powerOn(); err != nil {
			fmt.Fprintln(os.Stderr, "kvm: guest reset:", err)
			v.setStatus("internal-error")
		}
	default:
		fmt.Fprintln(os.Stderr, "kvm: guest panicked:", st)
		v.event("GUEST_PANICKED", map[string]any{"action": "pause"})
		v.setStatus("guest-panicked")
	}
}

// powerOff takes the guest's power away and waits until it is gone.
func (v *vm) powerOff() {
	v.power.Lock()
	defer v.power.Unlock()
	v.mu.Lock()
	ch := v.child
	if ch != nil {
		ch.expect = true
	}
	v.mu.Unlock()
	if ch == nil {
		return
	}
	_ = ch.proc.Kill() // gone already is fine
	<-ch.done
	// Here too, and not a moment later: whoever switches it on next must find it off.
	v.forget(ch)
}

// forget drops a guest OS that has gone.
func (v *vm) forget(ch *child) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.child == ch {
		v.child, v.channel = nil, nil
	}
}

func (v *vm) event(name string, data any) {
	if v.monitor != nil {
		v.monitor.Event(name, data)
	}
}

func (v *vm) setStatus(s string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.status = s
}

func (v *vm) signal(sig syscall.Signal) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.child == nil {
		return nil
	}
	if err := v.child.proc.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// Status implements qmp.VM.
func (v *vm) Status() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.status
}

// still waits until the guest stands still: a thread of it that runs on another core
// goes on for a moment after the signal, and could still answer.
func (v *vm) still() {
	v.mu.Lock()
	ch := v.child
	v.mu.Unlock()
	if ch == nil {
		return
	}
	for range 500 {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, ch.proc.Pid, &info, unix.WSTOPPED|unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err != nil && !errors.Is(err, unix.EINTR) || info.Signo != 0 {
			return // or it is gone
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// Stop implements qmp.VM: the guest stands still.
func (v *vm) Stop() error {
	if v.Status() != "running" {
		return nil
	}
	if err := v.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	v.still()
	v.setStatus("paused")
	v.event("STOP", nil)
	return nil
}

// Cont implements qmp.VM. A machine that was started with -S boots now.
func (v *vm) Cont() error {
	v.power.Lock()
	defer v.power.Unlock()
	switch v.Status() {
	case "running":
		return nil
	case "guest-panicked", "internal-error":
		return errors.New("Resetting the Virtual Machine is required") //nolint:staticcheck // the real text
	}
	v.mu.Lock()
	fresh := v.child == nil
	v.mu.Unlock()
	if fresh {
		if err := v.powerOn(); err != nil {
			return err
		}
	}
	if err := v.signal(syscall.SIGCONT); err != nil {
		return err
	}
	v.setStatus("running")
	v.event("RESUME", nil)
	return nil
}

// Powerdown implements qmp.VM: the power button.
func (v *vm) Powerdown() {
	v.event("POWERDOWN", nil)
	v.mu.Lock()
	ch := v.child
	v.mu.Unlock()
	if ch == nil {
		return // nobody listens to the button
	}
	_ = ch.control.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = ch.control.Write([]byte(`{"do":"powerdown"}` + "\n"))
}

// Reset implements qmp.VM: power off and on. A machine that does not run (paused, an
// I/O error, panicked) is not started by it: QEMU's source leaves it in prelaunch,
// from where cont starts it.
func (v *vm) Reset() error {
	runs := v.Status() == "running"
	v.powerOff()
	v.power.Lock()
	defer v.power.Unlock()
	v.event("RESET", map[string]any{"guest": false, "reason": "host-qmp-system-reset"})
	if !runs {
		v.setStatus("prelaunch")
		return nil
	}
	if err := v.powerOn(); err != nil {
		return err
	}
	return nil
}

// Quit implements qmp.VM.
func (v *vm) Quit() {
	v.event("SHUTDOWN", map[string]any{"guest": false, "reason": "host-qmp-quit"})
	v.quit()
}
