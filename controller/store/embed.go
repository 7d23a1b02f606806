package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/homeiac/homelab/internal/rpc"
)

// embedStart bounds the start of the embedded etcd. It takes under 0.1 s; a
// large log after a crash takes longer.
const embedStart = 30 * time.Second

// embed starts a single etcd member in this process. It listens nowhere: the
// client speaks to it by function calls, so nobody else gets in.
func (s *Store) embed(ctx context.Context, cfg Config) error {
	if cfg.Dir == "" {
		return rpc.Errorf(rpc.ErrInvalid, "store: neither a folder nor endpoints are configured")
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	unlock, err := lockDir(cfg.Dir)
	if err != nil {
		return err
	}
	server, err := startEtcd(ctx, filepath.Join(cfg.Dir, "etcd"))
	if err != nil {
		unlock()
		return err
	}
	s.client = v3client.New(server.Server)
	s.stop = func() {
		server.Close()
		unlock()
	}
	// Nobody but this process can hold a lock in here, so one that is there was
	// left by an earlier life that was killed.
	if _, err := s.commit(ctx, "free the lock", nil, deleteOp(s.key(lockKey))); err != nil {
		s.Close()
		return err
	}
	return nil
}

func startEtcd(ctx context.Context, dir string) (*embed.Etcd, error) {
	c := embed.NewConfig()
	c.Name = "controller"
	c.Dir = dir
	// The address is only a name within etcd's own records.
	nowhere := url.URL{Scheme: "http", Host: "127.0.0.1:1"}
	c.ListenPeerUrls, c.ListenClientUrls = nil, nil
	c.AdvertisePeerUrls, c.AdvertiseClientUrls = []url.URL{nowhere}, []url.URL{nowhere}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	// There is nobody to hold an election with; short ticks make the start quick.
	c.TickMs, c.ElectionMs = 10, 100
	c.AutoCompactionMode, c.AutoCompactionRetention = embed.CompactorModePeriodic, "1h"
	c.SnapshotCount = 10_000
	c.EnableGRPCGateway = false
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	e, err := embed.StartEtcd(c)
	if err != nil {
		return nil, fmt.Errorf("store: start etcd in %s: %w", dir, err)
	}
	timer := time.NewTimer(embedStart)
	defer timer.Stop()
	select {
	case <-e.Server.ReadyNotify():
		return e, nil
	case err = <-e.Err():
	case <-e.Server.StopNotify():
		err = fmt.Errorf("it ended by itself")
	case <-timer.C:
		err = fmt.Errorf("not ready after %s", embedStart)
	case <-ctx.Done():
		err = ctx.Err()
	}
	e.Close()
	return nil, fmt.Errorf("store: start etcd in %s: %w", dir, err)
}

// lockDir keeps a second process out. etcd itself would wait without end for
// its database's lock.
func lockDir(dir string) (unlock func(), err error) {
	name := filepath.Join(dir, "lock")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, rpc.Errorf(rpc.ErrBusy, "store: %s is in use by another controller process (%w); see it with: fuser %s", dir, err, name)
	}
	return func() { _ = f.Close() }, nil
}

func newLife() string {
	b := make([]byte, 8)
	_, _ = rand.Read(b) // does not fail since Go 1.24
	return hex.EncodeToString(b)
}
