package store

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/homeiac/homelab/internal/pause"
)

const (
	trustPrefix    = "trust/"
	revocationsKey = trustPrefix + "revocations"
	ringKey        = trustPrefix + "ring"
	rootsKey       = trustPrefix + "roots"
	offerKey       = trustPrefix + "offer"
	issuingPrefix  = trustPrefix + "issuing/"
	givenPrefix    = trustPrefix + "given/"
)

// Issuing is what one controller tells of its issuing CA.
type Issuing struct {
	Controller string `json:"controller"`
	// Certificates are all that it has, PEM, the one in use first; empty when it has no
	// issuing CA.
	Certificates []byte `json:"certificates,omitempty"`
	// Offer is the one that it has seen last, and Bundle the number of the roots that it
	// goes by.
	Offer  string `json:"offer,omitempty"`
	Bundle int64  `json:"bundle,omitempty"`
}

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

// Roots is the bundle of roots, sealed by whoever put it, and its version for PutRoots;
// nothing and 0 when there was none yet.
func (s *Store) Roots(ctx context.Context) (sealed []byte, version int64, err error) {
	v, err := s.get(ctx, rootsKey)
	return v.data, v.rev, err
}

// PutRoots remembers a bundle in the place of the one of that version. It says no when
// somebody else put one in between.
func (s *Store) PutRoots(ctx context.Context, sealed []byte, version int64) (ok bool, err error) {
	return s.commit(ctx, "write "+rootsKey, []clientv3.Cmp{s.unchanged(value{key: rootsKey, rev: version})}, s.put(rootsKey, sealed))
}

// Offer is the new root that was offered last, sealed by whoever put it; nil when there
// was none.
func (s *Store) Offer(ctx context.Context) ([]byte, error) {
	v, err := s.get(ctx, offerKey)
	return v.data, err
}

// PutOffer remembers the root that is offered.
func (s *Store) PutOffer(ctx context.Context, sealed []byte) error {
	_, err := s.commit(ctx, "write "+offerKey, nil, s.put(offerKey, sealed))
	return err
}

// Issuing is what all controllers tell of their issuing CAs.
func (s *Store) Issuing(ctx context.Context) ([]Issuing, error) {
	values, _, err := s.list(ctx, issuingPrefix)
	if err != nil {
		return nil, err
	}
	var all []Issuing
	for _, v := range values {
		var i Issuing
		if err := json.Unmarshal(v.data, &i); err != nil {
			return nil, fmt.Errorf("store: %s: %w", v.key, err)
		}
		all = append(all, i)
	}
	return all, nil
}

// PutIssuing remembers what a controller tells of its issuing CA.
func (s *Store) PutIssuing(ctx context.Context, i Issuing) error {
	data, err := json.Marshal(i)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	key := issuingPrefix + i.Controller
	old, err := s.get(ctx, key)
	if err != nil || bytes.Equal(old.data, data) {
		return err // every write wakes everybody
	}
	_, err = s.commit(ctx, "write "+key, nil, s.put(key, data))
	return err
}

// Given is the certificate, PEM, that a controller's issuing CA was given by a new
// root; nil when there is none.
func (s *Store) Given(ctx context.Context, controller string) ([]byte, error) {
	v, err := s.get(ctx, givenPrefix+controller)
	return v.data, err
}

// PutGiven remembers one for a controller to take.
func (s *Store) PutGiven(ctx context.Context, controller string, cert []byte) error {
	_, err := s.commit(ctx, "write "+givenPrefix+controller, nil, s.put(givenPrefix+controller, cert))
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
