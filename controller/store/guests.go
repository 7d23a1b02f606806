package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/spec"
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
	// Generation counts its makings, from 1; 0 is a VM that was adopted.
	Generation int32 `json:"generation"`
	// MACs are its hardware addresses in order, upper case.
	MACs []string `json:"macs,omitempty"`
	// HostKeys are its public SSH host keys, authorized_keys format.
	HostKeys []string `json:"hostKeys,omitempty"`
	// MachineID is its machine-id; empty before its first boot.
	MachineID string `json:"machineID,omitempty"`
	// Addresses are where it was last seen, without prefix length.
	Addresses []string `json:"addresses,omitempty"`
	// Image is the name of the image it was made from, ImageSHA256 its digest in hex;
	// empty when not known.
	Image       string `json:"image,omitempty"`
	ImageSHA256 string `json:"imageSHA256,omitempty"`
	// CDROM and CDROMSHA256 are those of the ISO file in its drive.
	CDROM       string `json:"cdrom,omitempty"`
	CDROMSHA256 string `json:"cdromSHA256,omitempty"`
	// MemoryBytes is its memory as resolved at creation, in bytes.
	MemoryBytes int64 `json:"memoryBytes,omitempty"`
	// Joined says that it was seen as a member of the cluster once.
	Joined bool `json:"joined,omitempty"`
	// Made says that this was written before the guest was created, so that what
	// is missing here did not happen; not so of a guest recovered from its mark.
	Made bool `json:"made,omitempty"`
	// Unverified says that the Spec's verify commands were not yet seen to succeed.
	Unverified bool `json:"unverified,omitempty"`

	// NodeName, Role and User are those that it was made with: of a guest that the
	// Spec dropped nothing else tells.
	NodeName string    `json:"nodeName,omitempty"`
	Role     spec.Role `json:"role,omitempty"`
	User     string    `json:"user,omitempty"`
	// DataDisks are the disks that outlive it, as it was made with.
	DataDisks []Disk `json:"dataDisks,omitempty"`
	// Holder is the VM that its data disks were to be moved to, remembered before
	// they were; zero when they were seen back.
	Holder HolderVM `json:"holder,omitzero"`
	// Began is when the making of this generation was begun, ReadyAt when it was
	// first well; zero when not known, or not yet.
	Began   time.Time `json:"began,omitzero"`
	ReadyAt time.Time `json:"readyAt,omitzero"`
	// Failures counts the generations in a row before this one that never were well.
	Failures int `json:"failures,omitempty"`
	// Attempts are what was tried since it was last seen well, oldest first.
	Attempts []Attempt `json:"attempts,omitempty"`
	// Resting says that it was last stopped on purpose, by us or as a standby, and
	// was not seen to run since.
	Resting bool `json:"resting,omitempty"`
	// Recreating says that its recreation was begun and it was not well since.
	Recreating bool `json:"recreating,omitempty"`
	// SavedConfig is the VM's configuration as it was before its last destruction,
	// SavedAt when it was read. Volumes are the volume ids that it had then.
	SavedConfig string    `json:"savedConfig,omitempty"`
	SavedAt     time.Time `json:"savedAt,omitzero"`
	Volumes     []string  `json:"volumes,omitempty"`
}

// Disk is a disk that outlives its guest.
type Disk struct {
	// Slot is where it is attached (scsi1), Storage the Proxmox storage, Size bytes.
	Slot    string `json:"slot"`
	Storage string `json:"storage"`
	Size    int64  `json:"size"`
}

// HolderVM is a VM without a guest that keeps data disks for a while.
type HolderVM struct {
	VMID int32 `json:"vmid"`
	// UUID is its smbios1 uuid, lower case.
	UUID string `json:"uuid"`
	// Generation is its guest's when the holder was made: its mark names that one.
	Generation int32 `json:"generation"`
}

// Attempt is one try to get a guest well without making it anew.
type Attempt struct {
	Action homelabv1.Action `json:"action"`
	At     time.Time        `json:"at"`
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
// then bear the same mark. Only 0, of a VM that was adopted, may come at any time,
// and is counted on from: that VM has a uuid of its own. With a lock the write
// fails (ErrBusy) once it is lost.
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
		g, least := Guest{Name: name, Generation: highest + 1}, max(highest, 1)
		if old.rev != 0 {
			g = Guest{}
			if err := json.Unmarshal(old.data, &g); err != nil {
				return Guest{}, fmt.Errorf("store: %s: %w", record, err)
			}
			least = g.Generation
		}
		if err := change(&g); err != nil {
			return Guest{}, err
		}
		if g.Generation < least && g.Generation != 0 {
			return Guest{}, rpc.Errorf(rpc.ErrRefused, "store: guest %s had generation %d already, it cannot become %d", name, least, g.Generation)
		}
		data, err := json.Marshal(g)
		if err != nil {
			return Guest{}, fmt.Errorf("store: %s: %w", record, err)
		}
		ok, err := s.commit(ctx, "write "+record, lock.guard(s.unchanged(old), s.unchanged(last)),
			s.put(record, data), s.put(counter, []byte(strconv.Itoa(int(max(highest, g.Generation))))))
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
