package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/homeiac/homelab/internal/rpc"
)

const (
	lockKey = "lock"
	// lockTTL is how long a lock outlives a controller that died, with an
	// external etcd.
	lockTTL = 10 * time.Second
)

// Holder is who holds the run lock.
type Holder struct {
	// By is the person or certificate that asked: admin@laptop.
	By string `json:"by"`
	// Controller is the controller that works for them.
	Controller string `json:"controller"`
	// Life differs between two starts of one controller.
	Life string `json:"life"`
	// Since is when it was taken.
	Since time.Time `json:"since"`
}

// ErrLockLost is the error of whatever was to be written under a lock that is no
// longer held: the run of somebody else may have begun.
var ErrLockLost = rpc.Errorf(rpc.ErrBusy, "the run lock was lost; another run may be going on: hlctl runs")

// Lock is the right to carry out a run. There is one per fleet.
type Lock struct {
	s       *Store
	lease   clientv3.LeaseID
	created int64
	lost    chan struct{}
	stop    context.CancelFunc
	once    sync.Once
}

// Lock takes the run lock, or is ErrBusy and says who has it since when. A lock
// left by an earlier life of this same controller is taken over: that life is
// gone, and the fence keeps what it may still have sent from counting.
func (s *Store) Lock(ctx context.Context, by string, now time.Time) (*Lock, error) {
	holder := Holder{By: by, Controller: s.name, Life: s.life, Since: now.UTC()}
	data, err := json.Marshal(holder)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	grantCtx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	lease, err := s.client.Grant(grantCtx, int64(lockTTL/time.Second))
	if err != nil {
		return nil, unavailable("take the run lock", err)
	}
	l := &Lock{s: s, lease: lease.ID, lost: make(chan struct{})}
	if err := l.take(ctx, data); err != nil {
		l.revoke()
		return nil, err
	}
	keep, stop := context.WithCancel(context.Background())
	l.stop = stop
	alive, err := s.client.KeepAlive(keep, lease.ID)
	if err != nil {
		stop()
		l.revoke()
		return nil, unavailable("keep the run lock", err)
	}
	go func() {
		defer close(l.lost)
		for range alive { // closed when the lease is gone or keep ends
		}
	}()
	return l, nil
}

func (l *Lock) take(ctx context.Context, data []byte) error {
	for range changeAttempts {
		old, err := l.s.get(ctx, lockKey)
		if err != nil {
			return err
		}
		if old.rev != 0 {
			var h Holder
			if err := json.Unmarshal(old.data, &h); err != nil {
				return fmt.Errorf("store: the run lock: %w", err)
			}
			if h.Controller != l.s.name || h.Life == l.s.life {
				return busy(h)
			}
		}
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		resp, err := l.s.client.Txn(ctx).If(l.s.unchanged(old)).Then(
			clientv3.OpPut(l.s.key(lockKey), string(data), clientv3.WithLease(l.lease))).Commit()
		cancel()
		if err != nil {
			return unavailable("take the run lock", err)
		}
		if resp.Succeeded {
			l.created = resp.Header.Revision
			return nil
		}
	}
	return rpc.Errorf(rpc.ErrBusy, "another run is just beginning; try again")
}

func busy(h Holder) error {
	return rpc.Errorf(rpc.ErrBusy, "another run is going on, asked for by %s since %s (%s); watch it with: hlctl runs follow",
		h.By, h.Since.Local().Format("15:04:05"), h.Controller)
}

// Held tells who holds the run lock; ok is false when nobody does.
func (s *Store) Held(ctx context.Context) (h Holder, ok bool, err error) {
	v, err := s.get(ctx, lockKey)
	if err != nil || v.rev == 0 {
		return Holder{}, false, err
	}
	if err := json.Unmarshal(v.data, &h); err != nil {
		return Holder{}, false, fmt.Errorf("store: the run lock: %w", err)
	}
	return h, true, nil
}

// Lost is closed when the lock is no longer held: nothing new may start then.
func (l *Lock) Lost() <-chan struct{} { return l.lost }

// held is the condition that the lock is still this one.
func (l *Lock) held() clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(l.s.key(lockKey)), "=", l.created)
}

// Unlock gives the lock back. It may be called more than once.
func (l *Lock) Unlock() {
	l.once.Do(func() {
		l.stop()
		<-l.lost
		l.revoke()
	})
}

func (l *Lock) revoke() {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	if _, err := l.s.client.Revoke(ctx, l.lease); err != nil && !errors.Is(err, context.Canceled) {
		l.s.log.Warn("run lock not given back, it ends by itself", "error", err, "after", lockTTL)
	}
}

func deleteOp(key string, opts ...clientv3.OpOption) clientv3.Op {
	return clientv3.OpDelete(key, opts...)
}
