package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// Spec is the last Spec that a run began with, its files inlined.
type Spec struct {
	// Name is its file name, for messages.
	Name string `json:"name"`
	// Text is the YAML.
	Text []byte `json:"text"`
	// By is who applied it, and At when.
	By string    `json:"by"`
	At time.Time `json:"at"`
}

// Spec is the last one; ok is false when there was none yet.
func (s *Store) Spec(ctx context.Context) (spec Spec, ok bool, err error) {
	v, err := s.get(ctx, "spec")
	if err != nil || v.rev == 0 {
		return Spec{}, false, err
	}
	if err := json.Unmarshal(v.data, &spec); err != nil {
		return Spec{}, false, fmt.Errorf("store: spec: %w", err)
	}
	return spec, true, nil
}

// PutSpec remembers the Spec.
func (s *Store) PutSpec(ctx context.Context, lock *Lock, spec Spec) error {
	data, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("store: spec: %w", err)
	}
	return s.putHeld(ctx, lock, "spec", data)
}

// Cluster is what is remembered of the k3s cluster; nil when there is none.
func (s *Store) Cluster(ctx context.Context) (*homelabv1.ClusterRecord, error) {
	v, err := s.get(ctx, "cluster")
	if err != nil || v.rev == 0 {
		return nil, err
	}
	record := new(homelabv1.ClusterRecord)
	if err := unmarshal(v.data, record); err != nil {
		return nil, err
	}
	return record, nil
}

// PutCluster remembers the cluster.
func (s *Store) PutCluster(ctx context.Context, lock *Lock, record *homelabv1.ClusterRecord) error {
	return s.putMessage(ctx, lock, "cluster", record)
}

func (s *Store) putMessage(ctx context.Context, lock *Lock, name string, m proto.Message) error {
	data, err := marshal(m)
	if err != nil {
		return err
	}
	return s.putHeld(ctx, lock, name, data)
}

func (s *Store) putHeld(ctx context.Context, lock *Lock, name string, data []byte) error {
	ok, err := s.commit(ctx, "write "+name, lock.guard(), s.put(name, data))
	if err == nil && !ok {
		err = ErrLockLost
	}
	return err
}

// Epoch is the present epoch; 0 before the first start.
func (s *Store) Epoch(ctx context.Context) (int64, error) {
	v, err := s.get(ctx, "epoch")
	if err != nil || v.rev == 0 {
		return 0, err
	}
	return parseInt(v)
}

// RaiseEpoch makes the epoch one more, and at least atLeast, and returns it.
func (s *Store) RaiseEpoch(ctx context.Context, atLeast int64) (int64, error) {
	return changeJSON(ctx, s, "epoch", func(v *int64, _ bool) error {
		*v = max(*v+1, atLeast)
		return nil
	})
}

// Host is what is remembered of one host.
type Host struct {
	// Seen is when its agent last answered.
	Seen time.Time `json:"seen"`
	// State is homelab.v1.HostState at the last look, and Since its beginning.
	State int32     `json:"state"`
	Since time.Time `json:"since"`
	// Reason is why the state is what it is.
	Reason string `json:"reason,omitempty"`
	// Address is where its agent answered.
	Address string `json:"address,omitempty"`
	// Version is its agent's version.
	Version string `json:"version,omitempty"`
	// VMIDs were in use there (containers and leftover volumes too) when it was
	// last seen: they stay taken while it is silent.
	VMIDs []int32 `json:"vmids,omitempty"`
}

// Hosts are all remembered hosts by name.
func (s *Store) Hosts(ctx context.Context) (map[string]Host, error) {
	values, _, err := s.list(ctx, "hosts/")
	if err != nil {
		return nil, err
	}
	hosts := make(map[string]Host, len(values))
	for _, v := range values {
		var h Host
		if err := json.Unmarshal(v.data, &h); err != nil {
			return nil, fmt.Errorf("store: %s: %w", v.key, err)
		}
		hosts[strings.TrimPrefix(v.key, "hosts/")] = h
	}
	return hosts, nil
}

// PutHost remembers a host.
func (s *Store) PutHost(ctx context.Context, name string, h Host) error {
	data, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("store: host %s: %w", name, err)
	}
	return s.putHeld(ctx, nil, "hosts/"+name, data)
}

// ForgetHost forgets a host; one that is not remembered is forgotten already.
func (s *Store) ForgetHost(ctx context.Context, name string) error {
	_, err := s.commit(ctx, "forget host "+name, nil, deleteOp(s.key("hosts/"+name)))
	return err
}

func parseInt(v value) (int64, error) {
	n, err := strconv.ParseInt(strings.TrimSpace(string(v.data)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("store: %s: %w", v.key, err)
	}
	return n, nil
}
