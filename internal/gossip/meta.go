package gossip

import (
	"encoding/json"
	"sync"

	"github.com/hashicorp/memberlist"

	"github.com/homeiac/homelab/internal/rpc"
)

// meta is what a peer tells of itself beside its name: JSON with short keys, as
// memberlist carries 512 bytes at most. Part of the wire protocol: add, do not
// change.
type meta struct {
	RPC     string `json:"a"`
	Version string `json:"v,omitempty"`
	// Started is when the process began, in ms since 1970.
	Started int64 `json:"s,omitempty"`
	// Leaving announces that the next departure is meant.
	Leaving bool `json:"l,omitempty"`
}

func (m meta) encode() ([]byte, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return nil, rpc.Errorf(rpc.ErrInvalid, "gossip: what we tell of ourselves: %w", err)
	}
	if len(b) > memberlist.MetaMaxSize {
		return nil, rpc.Errorf(rpc.ErrInvalid, "gossip: version and address make %d bytes, more than %d", len(b), memberlist.MetaMaxSize)
	}
	return b, nil
}

// self is our side of memberlist's Delegate: our metadata, and no messages.
type self struct {
	mu   sync.Mutex
	meta meta
}

func (s *self) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.meta.Leaving = true
}

// NodeMeta implements memberlist.Delegate.
func (s *self) NodeMeta(int) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.meta.encode()
	if err != nil {
		return nil // New has encoded the longest one already
	}
	return b
}

// NotifyMsg implements memberlist.Delegate; we send no messages.
func (s *self) NotifyMsg([]byte) {}

// GetBroadcasts implements memberlist.Delegate; we send no messages.
func (s *self) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState implements memberlist.Delegate; there is none.
func (s *self) LocalState(bool) []byte { return nil }

// MergeRemoteState implements memberlist.Delegate; there is none.
func (s *self) MergeRemoteState([]byte, bool) {}
