package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/homeiac/homelab/internal/rpc"
)

// Guest is what is remembered of one guest. It is written before the guest is
// created, so that every attempt makes the same VM.
type Guest struct {
	// Name is the guest's name in the Spec.
	Name string `json:"name"`
	// Host is where it was made.
	Host string `json:"host"`
	// VMID is its VMID there.
	VMID int32 `json:"vmid"`
	// UUID is its smbios1 uuid, lower case.
	UUID string `json:"uuid"`
	// Generation counts its recreations, from 1.
	Generation int32 `json:"generation"`
	// MACs are its hardware addresses in order, upper case.
	MACs []string `json:"macs,omitempty"`
	// HostKeys are its public SSH host keys, authorized_keys format.
	HostKeys []string `json:"hostKeys,omitempty"`
	// MachineID is its machine-id; empty before its first boot.
	MachineID string `json:"machineID,omitempty"`
	// Addresses are where it was last seen, without prefix length.
	Addresses []string `json:"addresses,omitempty"`
	// ImageSHA256 is the image it was made from, in hex; empty when not known.
	ImageSHA256 string `json:"imageSHA256,omitempty"`
	// MemoryBytes is its memory as resolved at creation, in bytes.
	MemoryBytes int64 `json:"memoryBytes,omitempty"`
	// Joined says that it was seen as a member of the cluster once.
	Joined bool `json:"joined,omitempty"`
	// Made says that this was written before the guest was created, so that what
	// is missing here did not happen; not so of a guest recovered from its mark.
	Made bool `json:"made,omitempty"`
	// Unverified says that the Spec's verify commands were not yet seen to succeed.
	Unverified bool `json:"unverified,omitempty"`
}

// Guests are all remembered guests by name.
func (s *Store) Guests(ctx context.Context) (map[string]Guest, error) {
	values, _, err := s.list(ctx, "guests/")
	if err != nil {
		return nil, err
	}
	guests := make(map[string]Guest, len(values))
	for _, v := range values {
		var g Guest
		if err := json.Unmarshal(v.data, &g); err != nil {
			return nil, fmt.Errorf("store: %s: %w", v.key, err)
		}
		guests[strings.TrimPrefix(v.key, "guests/")] = g
	}
	return guests, nil
}

// ChangeGuest lets change work on what is remembered of a guest, and writes it
// when nobody else did meanwhile; else change is called again with the newer
// record. A new record comes with Name set and Generation one above the highest
// the guest ever had. A generation that goes back is ErrRefused: two VMs could
// then bear the same mark. With a lock the write fails (ErrBusy) once it is lost.
func (s *Store) ChangeGuest(ctx context.Context, lock *Lock, name string, change func(g *Guest) error) (Guest, error) {
	record, counter := "guests/"+name, "generations/"+name
	for range changeAttempts {
		old, err := s.get(ctx, record)
		if err != nil {
			return Guest{}, err
		}
		last, err := s.get(ctx, counter)
		if err != nil {
			return Guest{}, err
		}
		highest, err := generation(last)
		if err != nil {
			return Guest{}, err
		}
		g := Guest{Name: name, Generation: highest + 1}
		if old.rev != 0 {
			g = Guest{}
			if err := json.Unmarshal(old.data, &g); err != nil {
				return Guest{}, fmt.Errorf("store: %s: %w", record, err)
			}
		}
		if err := change(&g); err != nil {
			return Guest{}, err
		}
		if g.Generation < highest || g.Generation < 1 {
			return Guest{}, rpc.Errorf(rpc.ErrRefused, "store: guest %s had generation %d already, it cannot become %d", name, highest, g.Generation)
		}
		data, err := json.Marshal(g)
		if err != nil {
			return Guest{}, fmt.Errorf("store: %s: %w", record, err)
		}
		ok, err := s.commit(ctx, "write "+record, lock.guard(s.unchanged(old), s.unchanged(last)),
			s.put(record, data), s.put(counter, []byte(strconv.Itoa(int(g.Generation)))))
		if err != nil {
			return Guest{}, err
		}
		if ok {
			return g, nil
		}
		if lock.gone() {
			return Guest{}, ErrLockLost
		}
	}
	return Guest{}, rpc.Errorf(rpc.ErrBusy, "store: %s keeps being changed by somebody else", record)
}

// ForgetGuest drops the record; the generation goes on counting.
func (s *Store) ForgetGuest(ctx context.Context, lock *Lock, name string) error {
	ok, err := s.commit(ctx, "forget guest "+name, lock.guard(), deleteOp(s.key("guests/"+name)))
	if err == nil && !ok {
		err = ErrLockLost
	}
	return err
}

func generation(v value) (int32, error) {
	if v.rev == 0 {
		return 0, nil
	}
	n, err := strconv.ParseInt(string(v.data), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("store: %s: %w", v.key, err)
	}
	return int32(n), nil
}

// guard adds the condition that the lock is held; a nil lock adds none.
func (l *Lock) guard(cmps ...clientv3.Cmp) []clientv3.Cmp {
	if l == nil {
		return cmps
	}
	return append(cmps, l.held())
}

func (l *Lock) gone() bool {
	if l == nil {
		return false
	}
	select {
	case <-l.lost:
		return true
	default:
		return false
	}
}
