package gossip

import (
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

func slogTo(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

// lines is a log that tests read while others write it.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func TestAStrangerFindsTheEndOfTheStreamAndIsAnsweredNothing(t *testing.T) {
	key := NewKey()
	ring, err := memberlist.NewKeyring([][]byte{key}, key)
	if err != nil {
		t.Fatal(err)
	}
	for name, speech := range map[string]string{
		"nothing": "", "the web": "GET / HTTP/1.1\r\n\r\n", "a state without a key": "\x06\x83\xa5Nodes\x00",
		"a state with a wrong key": "\x0a\x00\x00\x00\x20\x01" + strings.Repeat("x", 31), "half of a header": "\x0a\x00",
		"a huge state": "\x0a\xff\xff\xff\xff", "an empty one": "\x0a\x00\x00\x00\x00", "a label": "\xf4\x01x\x0a\x00\x00\x00\x00",
	} {
		t.Run(name, func(t *testing.T) {
			log := new(lines)
			ours, theirs := net.Pipe()
			v := &visitor{Conn: ours, keys: ring, log: newLogBridge(slogTo(log))}
			go func() {
				_ = theirs.SetDeadline(time.Now().Add(10 * time.Second))
				_, _ = io.WriteString(theirs, speech)
				_ = theirs.Close()
			}()
			if got, err := io.ReadAll(v); len(got) != 0 || err != nil {
				t.Errorf("%q, %v", got, err)
			}
			if !strings.Contains(log.String(), "our keys do not open") {
				t.Errorf("nobody is told: %s", log)
			}
		})
	}
}
