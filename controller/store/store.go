// Package store is what a controller remembers: the last Spec, guests, the
// cluster's identity, hosts as last seen, runs with their events, and the lock
// that lets one run go on at a time. It is kept in etcd, embedded or external,
// through the etcd client alone.
//
// It decides nothing. Losing it may make the controller refuse, never act: what
// is ours can be told from the marks on the VMs.
package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/homeiac/homelab/internal/rpc"
)

// callTimeout bounds one call to etcd. A store that does not answer must end
// a run in bounded time.
const callTimeout = 5 * time.Second

// Config says where the store is.
type Config struct {
	// Dir is the folder of the embedded etcd, used when there are no Endpoints.
	Dir string
	// Endpoints are the addresses (https://IP:PORT) of an external etcd.
	Endpoints []string
	// CA, Cert and Key are PEM files for the external etcd.
	CA, Cert, Key string
	// Fleet separates fleets that share an etcd.
	Fleet string
	// Controller is this controller's name, for the lock.
	Controller string
	// Log may be nil for slog.Default().
	Log *slog.Logger
}

// Store is an open store. Its methods are safe for use by several goroutines.
// Errors have kinds: ErrUnavailable when etcd does not answer.
type Store struct {
	client *clientv3.Client
	prefix string
	name   string
	life   string // differs between two starts of the same controller
	log    *slog.Logger
	stop   func()

	auditing sync.Mutex // entries of one process do not race each other for a number
}

// CheckEndpoint refuses an address that etcd's client would speak to without TLS, and
// without our certificate, as it does with http and unix.
func CheckEndpoint(endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.Port() == "" || u.User != nil || u.Path != "" {
		return rpc.Errorf(rpc.ErrInvalid, "etcd endpoint %q is not https://IP:PORT; there is no way without TLS", endpoint)
	}
	return nil
}

// Open connects to the external etcd, or starts the embedded one, and waits
// until it answers. A folder in use by another process is ErrBusy.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Fleet == "" || cfg.Controller == "" {
		return nil, rpc.Errorf(rpc.ErrInvalid, "store: fleet and controller must be named")
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	s := &Store{
		prefix: "/homelab/" + cfg.Fleet + "/",
		name:   cfg.Controller,
		life:   newLife(),
		log:    cfg.Log,
	}
	var err error
	if len(cfg.Endpoints) > 0 {
		err = s.connect(cfg)
	} else {
		err = s.embed(ctx, cfg)
	}
	if err != nil {
		return nil, err
	}
	if _, err := s.get(ctx, "epoch"); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close ends the connection and the embedded etcd.
func (s *Store) Close() {
	_ = s.client.Close()
	if s.stop != nil {
		s.stop()
	}
}

func (s *Store) connect(cfg Config) error {
	if cfg.CA == "" || cfg.Cert == "" || cfg.Key == "" {
		return rpc.Errorf(rpc.ErrInvalid, "store: an external etcd needs ca, cert and key; there is no way without")
	}
	for _, e := range cfg.Endpoints {
		if err := CheckEndpoint(e); err != nil {
			return fmt.Errorf("store: %w", err)
		}
	}
	ca, err := os.ReadFile(cfg.CA)
	if err != nil {
		return rpc.Errorf(rpc.ErrInvalid, "store: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return rpc.Errorf(rpc.ErrInvalid, "store: %s holds no CA certificate", cfg.CA)
	}
	pair, err := tls.LoadX509KeyPair(cfg.Cert, cfg.Key)
	if err != nil {
		return rpc.Errorf(rpc.ErrInvalid, "store: %s with %s: %w", cfg.Cert, cfg.Key, err)
	}
	s.client, err = clientv3.New(clientv3.Config{
		Endpoints:            cfg.Endpoints,
		TLS:                  &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, Certificates: []tls.Certificate{pair}},
		DialTimeout:          callTimeout,
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 5 * time.Second,
		Logger:               zap.NewNop(),
	})
	if err != nil {
		return rpc.Errorf(rpc.ErrUnavailable, "store: connect to etcd: %w", err)
	}
	return nil
}

// value is one key's content; rev is 0 when there is none.
type value struct {
	key  string
	data []byte
	rev  int64
	at   int64 // the store's revision when get read it
}

func (s *Store) key(name string) string { return s.prefix + name }

func (s *Store) get(ctx context.Context, name string) (value, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := s.client.Get(ctx, s.key(name))
	if err != nil {
		return value{}, unavailable("read "+name, err)
	}
	if len(resp.Kvs) == 0 {
		return value{key: name, at: resp.Header.Revision}, nil
	}
	return value{key: name, data: resp.Kvs[0].Value, rev: resp.Kvs[0].ModRevision, at: resp.Header.Revision}, nil
}

// list reads all keys that begin with name, in their order, names without the
// store's prefix.
func (s *Store) list(ctx context.Context, name string, opts ...clientv3.OpOption) ([]value, int64, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := s.client.Get(ctx, s.key(name), append([]clientv3.OpOption{clientv3.WithPrefix()}, opts...)...)
	if err != nil {
		return nil, 0, unavailable("read "+name, err)
	}
	return s.values(resp), resp.Header.Revision, nil
}

func (s *Store) values(resp *clientv3.GetResponse) []value {
	values := make([]value, 0, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		values = append(values, value{key: string(kv.Key)[len(s.prefix):], data: kv.Value, rev: kv.ModRevision})
	}
	return values
}

// between reads the keys from first up to, not including, end.
func (s *Store) between(ctx context.Context, first, end string) ([]value, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := s.client.Get(ctx, s.key(first), clientv3.WithRange(s.key(end)))
	if err != nil {
		return nil, unavailable("read "+first, err)
	}
	return s.values(resp), nil
}

// commit does all of then when every condition of cmps holds; ok says whether.
func (s *Store) commit(ctx context.Context, what string, cmps []clientv3.Cmp, then ...clientv3.Op) (ok bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := s.client.Txn(ctx).If(cmps...).Then(then...).Commit()
	if err != nil {
		return false, unavailable(what, err)
	}
	return resp.Succeeded, nil
}

// unchanged is the condition that v is still as it was read.
func (s *Store) unchanged(v value) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(s.key(v.key)), "=", v.rev)
}

func (s *Store) put(name string, data []byte) clientv3.Op {
	return clientv3.OpPut(s.key(name), string(data))
}

// changeAttempts bounds how often a change is tried again because somebody else
// changed the same keys in between.
const changeAttempts = 16

// changeJSON reads a key, lets change work on it, and writes it back when nobody
// else did meanwhile; else it starts again. found says whether there was one.
func changeJSON[T any](ctx context.Context, s *Store, name string, change func(v *T, found bool) error, extra ...clientv3.Cmp) (T, error) {
	var zero T
	for range changeAttempts {
		old, err := s.get(ctx, name)
		if err != nil {
			return zero, err
		}
		var v T
		if old.rev != 0 {
			if err := json.Unmarshal(old.data, &v); err != nil {
				return zero, fmt.Errorf("store: %s: %w", name, err)
			}
		}
		if err := change(&v, old.rev != 0); err != nil {
			return zero, err
		}
		data, err := json.Marshal(v)
		if err != nil {
			return zero, fmt.Errorf("store: %s: %w", name, err)
		}
		ok, err := s.commit(ctx, "write "+name, append([]clientv3.Cmp{s.unchanged(old)}, extra...), s.put(name, data))
		if err != nil {
			return zero, err
		}
		if ok {
			return v, nil
		}
	}
	return zero, rpc.Errorf(rpc.ErrBusy, "store: %s keeps being changed by somebody else", name)
}

func marshal(m proto.Message) ([]byte, error) {
	data, err := protojson.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	return data, nil
}

// unmarshal passes over fields that a newer controller wrote: an older one must
// still start.
func unmarshal(data []byte, m proto.Message) error {
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(data, m); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}

func unavailable(what string, err error) error {
	return rpc.Errorf(rpc.ErrUnavailable, "store: %s: %w", what, err)
}
