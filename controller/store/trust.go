package store

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/homeiac/homelab/internal/pause"
)

const (
	trustPrefix    = "trust/"
	revocationsKey = trustPrefix + "revocations"
	ringKey        = trustPrefix + "ring"
)

// Revocations is the list of revoked certificates as it was last put, and its
// version for PutRevocations; nothing and 0 when there was none yet.
func (s *Store) Revocations(ctx context.Context) (list []byte, version int64, err error) {
	v, err := s.get(ctx, revocationsKey)
	return v.data, v.rev, err
}

// PutRevocations remembers a list in the place of the one of that version. It says
// no when somebody else put one in between.
func (s *Store) PutRevocations(ctx context.Context, list []byte, version int64) (ok bool, err error) {
	old := value{key: revocationsKey, rev: version}
	return s.commit(ctx, "write "+revocationsKey, []clientv3.Cmp{s.unchanged(old)}, s.put(revocationsKey, list))
}

// Ring is the gossip's key ring, sealed by whoever put it; nil when there was none.
func (s *Store) Ring(ctx context.Context) ([]byte, error) {
	v, err := s.get(ctx, ringKey)
	return v.data, err
}

// PutRing remembers the gossip's key ring.
func (s *Store) PutRing(ctx context.Context, sealed []byte) error {
	_, err := s.commit(ctx, "write "+ringKey, nil, s.put(ringKey, sealed))
	return err
}

// WatchTrust gives a channel that receives whenever what is remembered of the trust
// may have changed: by any controller, and after a time in which that could not be
// seen. It is closed when ctx ends.
func (s *Store) WatchTrust(ctx context.Context) <-chan struct{} {
	news := make(chan struct{}, 1)
	go func() {
		defer close(news)
		for ctx.Err() == nil {
			for resp := range s.client.Watch(clientv3.WithRequireLeader(ctx), s.key(trustPrefix), clientv3.WithPrefix(), clientv3.WithCreatedNotify()) {
				if resp.Err() != nil {
					break
				}
				select {
				case news <- struct{}{}:
				default: // one is waiting there already
				}
			}
			pause.For(ctx, callTimeout/5)
		}
	}()
	return news
}
