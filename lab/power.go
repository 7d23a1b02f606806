package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/homeiac/homelab/lab/pve"
	"golang.org/x/sys/unix"
)

// offFile marks a host that is switched off.
func (l *Lab) offFile(name string) string { return filepath.Join(l.hostDir(name), "off") }

func (l *Lab) isOff(name string) bool {
	_, err := os.Stat(l.offFile(name))
	return err == nil
}

// hostOff takes a host's power away as others see it: nothing answers any more,
// no connection is reset, new ones time out. Its processes are stopped where
// they stand, and the queues of their listening sockets are filled, since the
// kernel would still accept for them.
func (l *Lab) hostOff(name string) error {
	if l.isOff(name) {
		return nil
	}
	if err := writeFile(l.offFile(name), nil, 0o644); err != nil {
		return err
	}
	list, err := l.processes(l.hostDir(name))
	if err != nil {
		return err
	}
	if pid, ok := l.machineProcess(name); ok {
		list = append(list, process{pid: pid})
	}
	for _, p := range list {
		if err := syscall.Kill(p.pid, syscall.SIGSTOP); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stop process %d: %w", p.pid, err)
		}
	}
	listening, err := listeners(pids(list))
	if err != nil {
		return err
	}
	for _, address := range listening {
		if err := fillQueue(address); err != nil {
			return fmt.Errorf("fill the accept queue of %s: %w", address, err)
		}
	}
	return l.refreshMembers()
}

// machineProcess is the host process, which names the lab's folder and the host
// but not the host's folder.
func (l *Lab) machineProcess(name string) (int, bool) { return l.hostProcess(name) }

// hostOn switches a host on again: what was stopped is gone, and everything
// starts afresh with the given uptime.
func (l *Lab) hostOn(name string, uptime, onbootDelay time.Duration) error {
	if !l.isOff(name) {
		return nil
	}
	list, err := l.processes(l.hostDir(name))
	if err != nil {
		return err
	}
	dead := pids(list)
	if pid, ok := l.machineProcess(name); ok {
		dead = append(dead, pid)
	}
	if err := kill(dead...); err != nil {
		return err
	}
	if err := l.awaitPort(name); err != nil {
		return err
	}
	if err := l.clearHostRun(name); err != nil {
		return err
	}
	h, err := pve.Open(l.hostDir(name))
	if err != nil {
		return err
	}
	if err := h.Update(func(c *pve.HostConfig) { c.Boot = time.Now().Add(-uptime) }); err != nil {
		return err
	}
	if err := writeFile(l.onbootDelayFile(name), []byte(onbootDelay.String()+"\n"), 0o644); err != nil {
		return err
	}
	// pmxcfs starts with the machine, whatever it died of.
	if err := h.MountPmxcfs(); err != nil {
		return err
	}
	if err := os.Remove(l.offFile(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := l.refreshMembers(); err != nil {
		return err
	}
	return l.startHost(name)
}

// awaitPort waits until the killed agent's port is free: the kernel takes a moment
// to drop the thousands of connections in its queue.
func (l *Lab) awaitPort(name string) error {
	i, err := l.hostIndex(name)
	if err != nil {
		return err
	}
	return await(10*time.Second, "the port of the old agent of "+name+" to be free", func() bool { return portFree(l.hostAddress(i), agentPort) })
}

// refreshMembers tells the PVE cluster which nodes corosync would see.
func (l *Lab) refreshMembers() error {
	if !l.Cluster {
		return nil
	}
	online, up := map[string]bool{}, 0
	for _, name := range l.HostNames() {
		on := !l.isOff(name)
		if on {
			up++ // corosync votes also where pmxcfs is gone
		}
		h, err := pve.Open(l.hostDir(name))
		if err != nil {
			return err
		}
		online[name] = on && h.Mounted()
	}
	return pve.SetMembers(l.path("pmxcfs"), online, up > l.Hosts/2)
}

// listeners finds the addresses on which processes accept TCP connections.
func listeners(of []int) ([]netip.AddrPort, error) {
	inodes := map[string]bool{}
	for _, pid := range of {
		fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		if err != nil {
			return nil, err
		}
		for _, fd := range fds {
			target, err := os.Readlink(fd)
			if err != nil {
				continue // closed this moment
			}
			if in, ok := strings.CutPrefix(target, "socket:["); ok {
				inodes[strings.TrimSuffix(in, "]")] = true
			}
		}
	}
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return nil, err
	}
	const (
		fieldLocal = 1
		fieldState = 3
		fieldInode = 9
		listening  = "0A"
	)
	var found []netip.AddrPort
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if len(f) <= fieldInode || f[fieldState] != listening || !inodes[f[fieldInode]] {
			continue
		}
		address, err := parseProcAddress(f[fieldLocal])
		if err != nil {
			return nil, err
		}
		found = append(found, address)
	}
	return found, nil
}

// parseProcAddress reads 0100007F:1F90, bytes of the address in host order.
func parseProcAddress(s string) (netip.AddrPort, error) {
	ip, port, ok := strings.Cut(s, ":")
	n, err := strconv.ParseUint(ip, 16, 32)
	p, perr := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil || perr != nil {
		return netip.AddrPort{}, fmt.Errorf("/proc/net/tcp: %q is no address", s)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)}), uint16(p)), nil
}

const (
	// queueBatch is how many connections are opened at once.
	queueBatch = 256
	// queueLimit ends the filling of a queue that never fills: larger than any
	// net.core.somaxconn in use.
	queueLimit = 70000
	// queueWait is after how long a connection on loopback will not come.
	queueWait = 100 * time.Millisecond
)

// fillQueue opens connections to a listening socket of a stopped process until
// the kernel takes no more. They are closed at once: a connection that waits to
// be accepted keeps its place.
func fillQueue(address netip.AddrPort) error {
	for opened := 0; opened < queueLimit; {
		n, err := connectBatch(address)
		if err != nil {
			return err
		}
		if opened += n; n == 0 {
			return nil
		}
	}
	return errors.New("it never fills")
}

// connectBatch opens up to queueBatch connections and tells how many were taken.
func connectBatch(address netip.AddrPort) (int, error) {
	var fds []unix.PollFd
	defer func() {
		for _, p := range fds {
			_ = unix.Close(int(p.Fd))
		}
	}()
	to := &unix.SockaddrInet4{Port: int(address.Port()), Addr: address.Addr().As4()}
	taken := 0
	for range queueBatch {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return 0, err
		}
		switch err := unix.Connect(fd, to); {
		case err == nil:
			taken++
			_ = unix.Close(fd)
		case errors.Is(err, unix.EINPROGRESS):
			fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT})
		default:
			_ = unix.Close(fd)
			return 0, err
		}
	}
	deadline := time.Now().Add(queueWait)
	for len(fds) > 0 {
		wait := time.Until(deadline)
		if wait <= 0 {
			break
		}
		if _, err := unix.Poll(fds, int(wait.Milliseconds())+1); err != nil && !errors.Is(err, unix.EINTR) {
			return taken, err
		}
		open := fds[:0]
		for _, p := range fds {
			if p.Revents != 0 {
				taken++
				_ = unix.Close(int(p.Fd))
				continue
			}
			open = append(open, p)
		}
		fds = open
	}
	return taken, nil
}
