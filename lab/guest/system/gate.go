package system

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// gateBacklog is how many connections wait to be accepted, as sshd has it.
	gateBacklog = 128
	// gateSilence is after how long a connection on loopback will not come.
	gateSilence = 100 * time.Millisecond
)

// gate is one listening port of the guest that can be closed or made silent while
// the one who listens knows nothing of it.
type gate struct {
	o    *OS
	addr string
	port int

	mu     sync.Mutex
	inner  *net.TCPListener // nil while the port is refused
	taking int              // goroutines in inner.Accept
	idle   *sync.Cond       // taking has become 0
	conns  map[*gateConn]struct{}
	ready  chan struct{} // closed when inner or the mode changes
	closed chan struct{}
	once   sync.Once
}

// gate listens on an address of the guest.
func (o *OS) gate(ctx context.Context, addr string, port int) (net.Listener, error) {
	g := &gate{o: o, addr: addr, port: port, conns: map[*gateConn]struct{}{}, ready: make(chan struct{}), closed: make(chan struct{})}
	g.idle = sync.NewCond(&g.mu)
	mode, changed := o.wire.mode(port)
	if mode != WireRefuse {
		if err := g.listen(ctx); err != nil {
			return nil, err
		}
	}
	g.apply(mode)
	go g.follow(changed)
	return g, nil
}

func (g *gate) listen(ctx context.Context) error {
	l, err := g.o.listenRetry(ctx, g.addr)
	if err != nil {
		return err
	}
	t, ok := l.(*net.TCPListener)
	if !ok {
		return errors.Join(errors.New("no TCP listener"), l.Close())
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.closed:
		return t.Close()
	default:
	}
	g.inner = t
	return backlog(t, gateBacklog)
}

// backlog changes how many connections may wait on a socket that listens already.
func backlog(l *net.TCPListener, n int) error {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	var lerr error
	err = raw.Control(func(fd uintptr) { lerr = unix.Listen(int(fd), n) })
	return errors.Join(err, lerr)
}

// follow applies what becomes of the port until the gate is closed.
func (g *gate) follow(changed <-chan struct{}) {
	for {
		select {
		case <-changed:
		case <-g.closed:
			return
		}
		var mode string
		mode, changed = g.o.wire.mode(g.port)
		g.apply(mode)
	}
}

func (g *gate) apply(mode string) {
	g.mu.Lock()
	inner := g.inner
	if mode == WireRefuse && inner != nil {
		g.inner = nil
		inner.Close()
		for c := range g.conns {
			c.Conn.Close()
		}
	}
	g.mu.Unlock()
	switch {
	case mode == WireRefuse:
	case inner == nil:
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := g.listen(ctx); err != nil {
			g.o.Console("listen again on " + g.addr + ": " + err.Error())
		}
	case mode == WireDrop:
		g.fill(inner)
	default:
		if err := errors.Join(backlog(inner, gateBacklog), inner.SetDeadline(time.Time{})); err != nil {
			g.o.Console("listen again on " + g.addr + ": " + err.Error())
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.ready)
	g.ready = make(chan struct{})
}

// fill makes the kernel drop connections: nobody accepts, and no more may wait.
// Those that were made to fill it are closed but keep their places.
func (g *gate) fill(l *net.TCPListener) {
	// Whoever accepts at this moment would make room again.
	if err := errors.Join(l.SetDeadline(time.Unix(1, 0)), backlog(l, 0)); err != nil {
		g.o.Console("silence " + g.addr + ": " + err.Error())
		return
	}
	g.mu.Lock()
	for g.taking > 0 {
		g.idle.Wait()
	}
	g.mu.Unlock()
	for range 2 * gateBacklog {
		c, err := net.DialTimeout("tcp", g.addr, gateSilence)
		if err != nil {
			return
		}
		c.Close()
	}
}

// Accept implements net.Listener.
func (g *gate) Accept() (net.Conn, error) {
	for {
		g.mu.Lock()
		// In this order: what the mode is changed to after is told by ready.
		inner, ready := g.inner, g.ready
		mode, _ := g.o.wire.mode(g.port)
		take := inner != nil && mode != WireDrop
		if take {
			g.taking++
		}
		g.mu.Unlock()
		var c net.Conn
		err := os.ErrDeadlineExceeded // as if it had just become silent
		if take {
			c, err = inner.Accept()
			g.taken()
		}
		if err == nil {
			return g.wrap(c), nil
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			select {
			case <-ready:
				continue
			case <-g.closed:
				return nil, net.ErrClosed
			}
		}
		select {
		case <-g.closed:
			return nil, net.ErrClosed
		default:
		}
		g.mu.Lock()
		same := g.inner == inner
		g.mu.Unlock()
		if same {
			return nil, err
		}
	}
}

func (g *gate) taken() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.taking--; g.taking == 0 {
		g.idle.Broadcast()
	}
}

// Close implements net.Listener.
func (g *gate) Close() error {
	var err error
	g.once.Do(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		close(g.closed)
		if g.inner != nil {
			err = g.inner.Close()
		}
	})
	return err
}

// Addr implements net.Listener.
func (g *gate) Addr() net.Addr {
	a, err := net.ResolveTCPAddr("tcp", g.addr)
	if err != nil {
		return &net.TCPAddr{Port: g.port}
	}
	return a
}

// gateConn is a connection that stands still while its port is silent.
type gateConn struct {
	net.Conn
	g    *gate
	done chan struct{}
	once sync.Once
}

func (g *gate) wrap(c net.Conn) net.Conn {
	gc := &gateConn{Conn: c, g: g, done: make(chan struct{})}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.conns[gc] = struct{}{}
	return gc
}

// heard waits until the port is not silent, or the connection is closed on this side.
func (c *gateConn) heard() {
	for {
		mode, changed := c.g.o.wire.mode(c.g.port)
		if mode != WireDrop {
			return
		}
		select {
		case <-changed:
		case <-c.done:
			return
		}
	}
}

// Read implements net.Conn. Also the other side's end is not heard of.
func (c *gateConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.heard()
	return n, err
}

// Write implements net.Conn.
func (c *gateConn) Write(b []byte) (int, error) {
	c.heard()
	return c.Conn.Write(b)
}

// CloseWrite ends what is sent, as a TCP connection's.
func (c *gateConn) CloseWrite() error {
	if t, ok := c.Conn.(*net.TCPConn); ok {
		return t.CloseWrite()
	}
	return nil
}

// Close implements net.Conn.
func (c *gateConn) Close() error {
	c.once.Do(func() {
		close(c.done)
		c.g.mu.Lock()
		defer c.g.mu.Unlock()
		delete(c.g.conns, c)
	})
	return c.Conn.Close()
}
