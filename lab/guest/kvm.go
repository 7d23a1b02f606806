// Package guest is the lab's kvm: the process of a running virtual machine.
//
// KVM is the machine around the guest: pid file, monitor socket, the channel of
// the guest agent. The guest OS runs in a child process, so that pausing it is
// SIGSTOP, a reset and a lost power are SIGKILL, and none of that needs to be
// simulated; the machine's own death takes the child along. A machine whose
// boot disk does not carry the lab's guest OS has no child: it only runs.
package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/homeiac/homelab/lab/guest/qmp"
)

// osWord is the first argument of the child that is the guest OS.
const osWord = "guest-os"

// KVM runs a virtual machine as argv says until it is told to end, and gives
// the process's exit code. argv[0] is ROOT/usr/bin/kvm with the host's root; all
// other paths are the host's. It does not detach: its caller does.
func KVM(argv []string) int {
	if len(argv) > 1 && argv[1] == osWord {
		return guestOS()
	}
	c, err := parse(argv)
	if err != nil {
		fmt.Fprintln(os.Stderr, "kvm:", err)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	signal.Ignore(syscall.SIGHUP)
	if err := run(ctx, c, argv[0]); err != nil {
		fmt.Fprintln(os.Stderr, "kvm:", err)
		return 1
	}
	return 0
}

// run is the machine's life.
func run(ctx context.Context, c *command, program string) error {
	ctx, quit := context.WithCancel(ctx)
	defer quit()
	v := &vm{c: c, program: program, quit: quit, status: "running"}
	disk, err := v.bootDisk()
	if err != nil {
		return err
	}
	v.disk = disk
	g, ctx := errgroup.WithContext(ctx)
	if c.qga != "" {
		l, err := listen(filepath.Join(c.root, c.qga))
		if err != nil {
			return err
		}
		defer l.Close()
		g.Go(func() error { return v.relay(ctx, l) })
	}
	if c.paused {
		v.status = "paused"
	} else if err := v.powerOn(); err != nil {
		return err
	}
	defer v.powerOff()
	// The pid file comes before the monitor answers, as qm start looks for both.
	pidFile := filepath.Join(c.root, c.pidFile)
	if err := os.WriteFile(pidFile, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600); err != nil {
		return err
	}
	defer os.Remove(pidFile) // QEMU takes its own pid file away
	if c.qmp != "" {
		l, err := listen(filepath.Join(c.root, c.qmp))
		if err != nil {
			return err
		}
		defer l.Close()
		v.monitor = &qmp.Server{VM: v, Name: c.name, UUID: c.uuid}
		g.Go(func() error { return v.monitor.Serve(ctx, l) })
	}
	g.Go(func() error { v.watchDisks(ctx); return nil })
	return g.Wait()
}

// socketMax is the longest socket path that is bound as it is; the system's own
// limit is 107 bytes.
const socketMax = 100

// listen binds a unix socket, also at a long path, replacing what lies there.
func listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if len(path) <= socketMax {
		return net.Listen("unix", path)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	l, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)))
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // the bound name is gone with dir
	return &longListener{Listener: l, path: path}, nil
}

// longListener removes its socket under the path that it was asked for.
type longListener struct {
	net.Listener
	path string
	once sync.Once
}

// Close closes the listener and removes its socket.
func (l *longListener) Close() error {
	err := l.Listener.Close()
	l.once.Do(func() { err = errors.Join(err, os.Remove(l.path)) })
	return err
}

// relay connects one client of the guest-agent socket at a time with the guest.
// Without a guest what it sends is lost.
func (v *vm) relay(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		v.mu.Lock()
		v.agentClient = conn
		v.mu.Unlock()
		stopConn := context.AfterFunc(ctx, func() { conn.Close() })
		buf := make([]byte, 64<<10)
		for {
			n, err := conn.Read(buf)
			if n > 0 {
				v.toAgent(buf[:n])
			}
			if err != nil {
				break
			}
		}
		stopConn()
		v.mu.Lock()
		v.agentClient = nil
		v.mu.Unlock()
		conn.Close()
	}
}

// toAgent hands bytes to the guest's channel.
func (v *vm) toAgent(b []byte) {
	v.mu.Lock()
	ch := v.channel
	v.mu.Unlock()
	if ch != nil {
		_, _ = ch.Write(b) // a guest that has just died hears nothing
	}
}

// fromAgent hands what the guest says to the client, if there is one.
func (v *vm) fromAgent(ch io.Reader) {
	buf := make([]byte, 64<<10)
	for {
		n, err := ch.Read(buf)
		if n > 0 {
			v.mu.Lock()
			conn := v.agentClient
			v.mu.Unlock()
			if conn != nil {
				_, _ = conn.Write(buf[:n])
			}
		}
		if err != nil {
			return
		}
	}
}
