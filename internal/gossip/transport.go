package gossip

import (
	"bytes"
	"context"
	"log"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// transport is memberlist's own network, except that connections under way end
// with its context (a process that stops does not wait for hosts that are off), and
// that strangers do not come through the door.
type transport struct {
	*memberlist.NetTransport
	ctx  context.Context // memberlist's interface has none
	door *door
}

// StreamCh implements memberlist.Transport.
func (t *transport) StreamCh() <-chan net.Conn { return t.door.out }

// Shutdown implements memberlist.Transport.
func (t *transport) Shutdown() error {
	defer t.door.close()
	return t.NetTransport.Shutdown()
}

// DialTimeout implements memberlist.Transport.
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: timeout}
	return d.DialContext(t.ctx, "tcp", addr)
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return t.DialTimeout(a.Addr, timeout)
}

// newLogBridge gives memberlist a logger whose lines end up in slog: at debug
// level, since it calls ERR what is an ordinary host that is off. What it cannot
// decrypt is an exception: a wrong key would otherwise look like a silent host.
func newLogBridge(to *slog.Logger) *log.Logger {
	return log.New(&logBridge{to: to}, "", 0)
}

type logBridge struct {
	to *slog.Logger

	mu     sync.Mutex
	warned time.Time
}

func (b *logBridge) Write(line []byte) (int, error) {
	text := string(bytes.TrimSpace(line))
	if _, after, ok := strings.Cut(text, "memberlist: "); ok {
		text = after
	}
	if strings.Contains(text, "ecrypt") && b.first(time.Now()) {
		b.to.Warn("gossip that our keys do not open: a stranger, or a host with another gossip key", "memberlist", text)
	} else {
		b.to.Debug("gossip", "memberlist", text)
	}
	return len(line), nil
}

// first is true at most once a minute.
func (b *logBridge) first(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if now.Sub(b.warned) < time.Minute {
		return false
	}
	b.warned = now
	return true
}
