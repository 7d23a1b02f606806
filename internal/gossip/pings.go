package gossip

import (
	"encoding/binary"
	"time"

	"github.com/hashicorp/memberlist"
)

// pings carries in each answer to a probe when our process began. One that is started
// again before anybody misses it answers the probes of those whom it does not know, and
// memberlist would leave it so until it exchanges all it knows with one of them by
// chance: up to 20 s without a host, for a controller that was killed. Whoever sees
// that it has begun anew joins it.
type pings struct {
	self  *self
	peers *peers
}

// AckPayload implements memberlist.PingDelegate.
func (p pings) AckPayload() []byte {
	p.self.mu.Lock()
	defer p.self.mu.Unlock()
	return binary.BigEndian.AppendUint64(nil, uint64(p.self.meta.Started)) //nolint:gosec // a time
}

// NotifyPingComplete implements memberlist.PingDelegate. Peers of earlier versions do
// not say when they began.
func (p pings) NotifyPingComplete(n *memberlist.Node, _ time.Duration, payload []byte) {
	if len(payload) != 8 {
		return
	}
	p.peers.began(n.Name, time.UnixMilli(int64(binary.BigEndian.Uint64(payload)))) //nolint:gosec // a time
}
