package gossip

import (
	"context"
	"errors"
	"net"
	"strings"
	"syscall"
	"time"
)

// State is what can be said of a peer that was called, in the words of
// `hlctl hosts`.
type State string

// The states that Classify tells apart.
const (
	// Online: it answered.
	Online State = "online"
	// AgentGone: its host answered that nobody listens there.
	AgentGone State = "agent-gone"
	// Silent: nothing came back.
	Silent State = "silent"
)

// knockTimeout bounds Knock; a host on the same network answers in well under a
// millisecond, and a connection request is repeated after one second.
const knockTimeout = 1500 * time.Millisecond

// Knock connects to a gRPC address and hangs up. Its error is for Classify.
func Knock(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, knockTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}

// Classify judges the error of a connection to a peer that the gossip calls not
// alive: refused by the host means that the host lives and its agent does not;
// everything else that failed is silence. nil is Online: the gossip is cut off
// or behind, the peer is not. Errors of gRPC calls are judged too.
func Classify(dialErr error) State {
	switch {
	case dialErr == nil:
		return Online
	case errors.Is(dialErr, syscall.ECONNREFUSED), errors.Is(dialErr, syscall.ECONNRESET),
		// gRPC keeps only the text.
		strings.Contains(dialErr.Error(), "connection refused"):
		return AgentGone
	}
	return Silent
}
