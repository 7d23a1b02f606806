package gossip

import (
	"bytes"
	"log"
	"log/slog"
	"net/netip"
	"strings"

	"github.com/homeiac/homelab/internal/rpc"
)

// newLogBridge gives memberlist a logger whose lines end up in slog: at debug
// level, since it calls ERR what is an ordinary host that is off. What it cannot
// decrypt is an exception, once a minute for each source: a wrong key would otherwise
// look like a silent host.
func newLogBridge(to *slog.Logger) *log.Logger {
	return log.New(&logBridge{to: to}, "", 0)
}

type logBridge struct {
	to       *slog.Logger
	unopened rpc.Repeats
}

func (b *logBridge) Write(line []byte) (int, error) {
	text := string(bytes.TrimSpace(line))
	if _, after, ok := strings.Cut(text, "memberlist: "); ok {
		text = after
	}
	if !strings.Contains(text, "ecrypt") {
		b.to.Debug("gossip", "memberlist", text)
		return len(line), nil
	}
	from := source(text)
	b.unopened.Note(from, func(n int) {
		b.to.Warn("gossip that our keys do not open: a stranger, or a host with another gossip key", "address", from, "memberlist", text, "count", n)
	}, func(n int) { b.to.Warn("gossip that our keys do not open, from many", "count", n) })
	return len(line), nil
}

// source is the IP address that a line of memberlist's names, without its port; empty
// when there is none.
func source(text string) string {
	i := strings.LastIndex(text, "from")
	if i < 0 {
		return ""
	}
	at, err := netip.ParseAddrPort(strings.TrimLeft(text[i+len("from"):], "= "))
	if err != nil {
		return ""
	}
	return at.Addr().String()
}
