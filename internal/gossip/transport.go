package gossip

import (
	"bytes"
	"context"
	"errors"
	"log"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/homeiac/homelab/internal/pause"
)

const (
	// maxPacket is the most that a UDP packet holds, in bytes.
	maxPacket = 64 << 10
	// receiveBuffer is what the kernel is asked to keep of packets that nobody has read
	// yet, in bytes; it gives what net.core.rmem_max allows.
	receiveBuffer = 2 << 20
	// listenPause is how long nobody is listened to after a listener failed: without
	// free file descriptors it fails at once, again and again.
	listenPause = 100 * time.Millisecond
)

// transport is memberlist's network. memberlist 0.7.0 has one of its own, which makes
// 64 KiB of garbage for each packet that comes, and four come in a second: collecting
// them was a quarter of what an idle agent did. With this one, moreover, connections
// under way end with the context (a process that stops does not wait for hosts that
// are off), and strangers on a stream are answered nothing.
type transport struct {
	ctx     context.Context // memberlist's interface has none; Shutdown ends it too
	cut     context.CancelFunc
	udp     *net.UDPConn
	tcp     *net.TCPListener
	keys    *memberlist.Keyring
	log     *log.Logger
	packets chan *memberlist.Packet
	streams chan net.Conn
	readers sync.WaitGroup
}

// listen opens the port for both, UDP and TCP.
func listen(ctx context.Context, at netip.AddrPort, keys *memberlist.Keyring, to *log.Logger) (*transport, error) {
	tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, errors.Join(err, tcp.Close())
	}
	if err := udp.SetReadBuffer(receiveBuffer); err != nil {
		to.Printf("[WARN] memberlist: receive buffer: %v", err)
	}
	t := &transport{
		udp: udp, tcp: tcp, keys: keys, log: to,
		packets: make(chan *memberlist.Packet), streams: make(chan net.Conn),
	}
	t.ctx, t.cut = context.WithCancel(ctx)
	t.readers.Go(t.receive)
	t.readers.Go(t.accept)
	return t, nil
}

// receive hands packets on, each in memory of its own size, until the context ends.
func (t *transport) receive() {
	buffer := make([]byte, maxPacket)
	for {
		n, from, err := t.udp.ReadFromUDPAddrPort(buffer)
		at := time.Now()
		switch {
		case err != nil:
			if !t.failed("packet", err) {
				return
			}
			continue
		case n == 0:
			continue // memberlist wants one byte at least
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		p := &memberlist.Packet{Buf: bytes.Clone(buffer[:n]), From: net.UDPAddrFromAddrPort(from), Timestamp: at}
		select {
		case t.packets <- p:
		case <-t.ctx.Done():
			return
		}
	}
}

// accept hands streams on, each as a visitor, until the context ends.
func (t *transport) accept() {
	for {
		conn, err := t.tcp.AcceptTCP()
		if err != nil {
			if !t.failed("stream", err) {
				return
			}
			continue
		}
		select {
		case t.streams <- &visitor{Conn: conn, keys: t.keys, log: t.log}:
		case <-t.ctx.Done():
			_ = conn.Close()
			return
		}
	}
}

// failed says whether to listen on after an error.
func (t *transport) failed(what string, err error) bool {
	if errors.Is(err, net.ErrClosed) {
		return false
	}
	t.log.Printf("[ERR] memberlist: listening for the next %s: %v", what, err)
	return pause.For(t.ctx, listenPause)
}

// FinalAdvertiseAddr implements memberlist.Transport; New has checked the address.
func (t *transport) FinalAdvertiseAddr(ip string, port int) (net.IP, int, error) {
	addr, err := netip.ParseAddr(ip)
	return addr.AsSlice(), port, err
}

// WriteTo implements memberlist.Transport.
func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return time.Time{}, err
	}
	_, err = t.udp.WriteToUDPAddrPort(b, to)
	return time.Now(), err
}

// WriteToAddress implements memberlist.NodeAwareTransport.
func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return t.WriteTo(b, a.Addr)
}

// PacketCh implements memberlist.Transport.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh implements memberlist.Transport.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// DialTimeout implements memberlist.Transport.
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: timeout}
	return d.DialContext(t.ctx, "tcp", addr)
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return t.DialTimeout(a.Addr, timeout)
}

// Shutdown implements memberlist.Transport: nothing comes in any more when it returns.
// Again is nothing.
func (t *transport) Shutdown() error {
	t.cut()
	_, _ = t.tcp.Close(), t.udp.Close() // again is an error of theirs
	t.readers.Wait()
	return nil
}
