package agent

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/homeiac/homelab/agent/driver"
	"github.com/homeiac/homelab/agent/image"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

func TestTheRoomForAnImageAndWhatIsMadeOfIt(t *testing.T) {
	const gib = 1 << 30
	space := func(name string, free int64) *homelabv1.Storage {
		return &homelabv1.Storage{Name: name, Content: []string{"images", "snippets"}, FreeBytes: free, SpaceKnown: factYes("")}
	}
	qcow2 := image.Head{Format: "qcow2", VirtualBytes: 4 * gib}
	packed := image.Head{Format: "raw", Compression: "zst", VirtualBytes: 4 * gib, UnpackedBytes: 4 * gib}
	for name, tc := range map[string]struct {
		seen    image.Seen
		needs   []*agentv1.StorageNeed
		disk    int64
		root    [2]int64
		allowed int64
		why     string
	}{
		"it fits":                        {seen: image.Seen{Head: qcow2, Bytes: gib}, allowed: 10 * gib},
		"a part of it is there":          {seen: image.Seen{Head: qcow2, Bytes: 11 * gib, Done: 2 * gib}, allowed: 12 * gib},
		"too large":                      {seen: image.Seen{Head: qcow2, Bytes: 11 * gib}, why: "storage local has 10 GiB free (10737418240 bytes), and 11 GiB"},
		"with its unpacked copy":         {seen: image.Seen{Head: packed, Bytes: 7 * gib}, why: "its unpacked copy 4 GiB"},
		"with guests on the same":        {seen: image.Seen{Head: qcow2, Bytes: gib}, needs: []*agentv1.StorageNeed{{Storage: "local", Bytes: 10 * gib, What: "2 guests"}}, why: "the image 1 GiB, 2 guests 10 GiB"},
		"with guests on another":         {seen: image.Seen{Head: qcow2, Bytes: gib}, needs: []*agentv1.StorageNeed{{Storage: "lvm", Bytes: 10 * gib, What: "a template"}}, why: "storage lvm has 5 GiB free"},
		"of unknown size":                {seen: image.Seen{Head: qcow2}, needs: []*agentv1.StorageNeed{{Storage: "local", Bytes: 4 * gib, What: "a guest"}}, allowed: 6 * gib},
		"a disk too small":               {seen: image.Seen{Head: qcow2, Bytes: gib}, disk: 2 * gib, why: "its disk has 4 GiB, and a guest of it has only disk: 2 GiB"},
		"a disk that is large enough":    {seen: image.Seen{Head: qcow2, Bytes: gib}, disk: 4 * gib, allowed: 10 * gib},
		"the root file system gets full": {seen: image.Seen{Head: qcow2, Bytes: 2 * gib}, root: [2]int64{18 * gib, 20 * gib}, why: "would be 100 % full (at most 95 %)"},
		"a guest fills the root file system": {
			seen: image.Seen{Head: qcow2, Bytes: gib}, needs: []*agentv1.StorageNeed{{Storage: "local", Bytes: 8 * gib, What: "a guest"}},
			root: [2]int64{91 * gib, 100 * gib}, why: "would be 96 % full (at most 95 %): 5 GiB are needed of it: the image 1 GiB, a guest 4 GiB",
		},
		"and so it is bounded": {seen: image.Seen{Head: qcow2}, root: [2]int64{90 * gib, 100 * gib}, allowed: 5 * gib},
	} {
		r := room{
			req:      &agentv1.RunRequest{ImagesStorage: "local", Needs: tc.needs, DiskBytes: tc.disk},
			storages: []*homelabv1.Storage{space("local", 10*gib), space("lvm", 5*gib)},
			onRoot:   map[string]bool{"local": true}, rootUsed: tc.root[0], rootAll: tc.root[1],
		}
		allowed, err := r.check(tc.seen)
		switch {
		case tc.why != "" && (!errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), tc.why)):
			t.Errorf("%s: %v", name, err)
		case tc.why == "" && (err != nil || allowed > tc.allowed || allowed < tc.allowed-200):
			t.Errorf("%s: %d allowed, want %d: %v", name, allowed, tc.allowed, err)
		}
	}
	err := room{req: &agentv1.RunRequest{ImagesStorage: "local"}, storages: []*homelabv1.Storage{space("local", 0)}}.holdsISO("pve1")
	if !errors.Is(err, rpc.ErrRefused) || !strings.HasSuffix(err.Error(), "pvesm set local --content images,snippets,iso") {
		t.Errorf("got %v", err)
	}
}

func TestAnUnpackedCopyLeavesTheRootFileSystemItsRoom(t *testing.T) {
	for name, tc := range map[string]struct{ free, used, want int64 }{
		"the storage has less":                 {3, 50, 3},
		"the storage has more":                 {10, 90, 5},
		"what the storage has is not known":    {-1, 90, 5},
		"the root file system is full already": {2, 98, 0},
	} {
		const gib = 1 << 30
		if got := unpackRoom(tc.free*gib, tc.used*gib, 100*gib); got/gib != tc.want {
			t.Errorf("%s: %d bytes are allowed, want %d GiB", name, got, tc.want)
		}
	}
}

// stuck is a driver whose Proxmox does not come back from its storages.
type stuck struct{ driver.Full }

func (stuck) Storages(ctx context.Context) ([]*homelabv1.Storage, error) {
	<-ctx.Done()
	return nil, rpc.Errorf(rpc.ErrUnavailable, "pvesm status is still at work: %w", ctx.Err())
}

func TestAStorageThatHangsEndsAFetchOfThatHostAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Service{driver: stuck{}}
		if _, err := s.storagesNow(t.Context()); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "pvesm status") {
			t.Errorf("got %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if _, err := s.storagesNow(ctx); !errors.Is(err, rpc.ErrUnavailable) {
			t.Errorf("ended from outside: %v", err)
		}
	})
}
