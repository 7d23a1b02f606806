package agent

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/homeiac/homelab/agent/image"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/human"
	"github.com/homeiac/homelab/internal/rpc"
)

// room is what there is for an image and for what will be made of it.
type room struct {
	req      *agentv1.RunRequest
	storages []*homelabv1.Storage
	// onRoot says of which storages the folder lies on the root file system, of which
	// rootUsed of rootAll bytes are used; rootAll is 0 when that is not known.
	onRoot            map[string]bool
	rootUsed, rootAll int64
}

// roomOf asks Proxmox once what is free on each storage; a driver that cannot ask is
// made up for by what pvestatd said lately.
func (s *Service) roomOf(ctx context.Context, o *homelabv1.Observation, req *agentv1.RunRequest) (room, error) {
	r := room{req: req, storages: o.GetStorages(), onRoot: make(map[string]bool)}
	now, err := s.storagesNow(ctx)
	switch {
	case err == nil:
		r.storages = now
	case !errors.Is(err, rpc.ErrUnsupported):
		return room{}, fmt.Errorf("ask for the space on storages: %w", err)
	}
	if req.GetImage().GetType() == homelabv1.ImageType_IMAGE_TYPE_ISO {
		if err := r.holdsISO(s.name); err != nil {
			return room{}, err
		}
	}
	for _, st := range r.storages {
		// Proxmox's own answer may leave out the folder, which storage.cfg has.
		path := st.GetPath()
		for _, other := range o.GetStorages() {
			if path == "" && other.GetName() == st.GetName() {
				path = other.GetPath()
			}
		}
		r.onRoot[st.GetName()] = path != "" && s.host.OnRoot(path)
	}
	var ok bool
	if r.rootUsed, r.rootAll, ok = s.host.RootSpace(); !ok {
		r.rootAll = 0
	}
	return r, nil
}

// storagesLimit is how long Proxmox is waited for to say what is free. It looks at all
// storages of a host, and one whose server is gone holds it up for as long as that is so;
// a fetch has no deadline that would end it.
const storagesLimit = 2 * time.Minute

// storagesNow are the storages as Proxmox sees them now. When it does not say, that is
// Refused: it is this host's trouble, and no other attempt or source would mend it.
func (s *Service) storagesNow(ctx context.Context) ([]*homelabv1.Storage, error) {
	asking, cancel := context.WithTimeout(ctx, storagesLimit)
	defer cancel()
	now, err := s.driver.Storages(asking)
	if err != nil && errors.Is(asking.Err(), context.DeadlineExceeded) && ctx.Err() == nil {
		return nil, rpc.Errorf(rpc.ErrRefused, "it does not answer within %s, so a storage of this host may hang; on the host: pvesm status", storagesLimit)
	}
	return now, err
}

// holdsISO says whether Proxmox looks for ISO files on the images' storage. The
// storage is not changed from here.
func (r room) holdsISO(host string) error {
	st := r.storage(r.req.GetImagesStorage())
	if st == nil || slices.Contains(st.GetContent(), "iso") {
		return nil
	}
	content := strings.Join(append(slices.Clone(st.GetContent()), "iso"), ",")
	return rpc.Errorf(rpc.ErrRefused, "storage %s of host %s does not hold ISO files; allow it there: pvesm set %s --content %s",
		st.GetName(), host, st.GetName(), content)
}

func (r room) storage(name string) *homelabv1.Storage {
	i := slices.IndexFunc(r.storages, func(st *homelabv1.Storage) bool { return st.GetName() == name })
	if i < 0 {
		return nil
	}
	return r.storages[i]
}

// The image's own files, in words.
const (
	theImage    = "the image"
	itsUnpacked = "its unpacked copy"
)

// need is a part of what is needed.
type need struct {
	bytes int64
	what  string
}

func (n need) String() string { return n.what + " " + human.Size(n.bytes) }

func sum(needs []need) (total int64) {
	for _, n := range needs {
		total += n.bytes
	}
	return total
}

func texts(needs []need) string {
	out := make([]string, 0, len(needs))
	for _, n := range needs {
		out = append(out, n.String())
	}
	return strings.Join(out, ", ")
}

// check judges what is known of an image before it is fetched, on values alone, and
// says how many bytes it may have (negative: any).
func (r room) check(seen image.Seen) (int64, error) {
	if err := fits(seen.VirtualBytes, r.req); err != nil {
		return 0, err
	}
	on := make(map[string][]need)
	at := r.req.GetImagesStorage()
	if seen.Compression != "" && seen.UnpackedBytes > 0 {
		on[at] = append(on[at], need{seen.UnpackedBytes, itsUnpacked})
	}
	for _, n := range r.req.GetNeeds() {
		bytes := n.GetBytes()
		if bytes == 0 { // a template, which is as large as the disk in the image
			bytes = seen.VirtualBytes
		}
		if bytes > 0 {
			on[n.GetStorage()] = append(on[n.GetStorage()], need{bytes, n.GetWhat()})
		}
	}
	allowed := int64(math.MaxInt64)
	if st := r.storage(at); st != nil && isYes(st.GetSpaceKnown()) {
		allowed = st.GetFreeBytes() - sum(on[at])
	}
	image := need{max(0, seen.Bytes-seen.Done), theImage}
	on[at] = append([]need{image}, on[at]...)
	var root []need
	for _, st := range r.storages {
		needs := on[st.GetName()]
		if isYes(st.GetSpaceKnown()) && sum(needs) > st.GetFreeBytes() {
			return 0, rpc.Errorf(rpc.ErrRefused, "storage %s has %s free (%d bytes), and %s (%d bytes) are needed: %s", st.GetName(),
				human.Size(st.GetFreeBytes()), st.GetFreeBytes(), human.Size(sum(needs)), sum(needs), texts(needs))
		}
		if r.onRoot[st.GetName()] {
			root = append(root, written(needs, at == st.GetName(), max(seen.Bytes, seen.UnpackedBytes, seen.VirtualBytes))...)
		}
	}
	if r.rootAll > 0 && len(root) > 0 {
		limit := r.rootAll / 100 * fullRoot
		if after := r.rootUsed + sum(root); after > limit {
			return 0, rpc.Errorf(rpc.ErrRefused, "the root file system would be %.0f %% full (at most %d %%): %s are needed of it: %s",
				100*float64(after)/float64(r.rootAll), fullRoot, human.Size(sum(root)), texts(root))
		}
		if r.onRoot[at] {
			allowed = min(allowed, limit-r.rootUsed-sum(root)+image.bytes)
		}
	}
	if allowed == math.MaxInt64 {
		return -1, nil
	}
	return max(0, allowed) + seen.Done, nil
}

// written is what of the needs is really written at once: disks are files with holes,
// into which no more comes than the image has: at most its own disk, since what is in a
// qcow2, a VMDK or a packed file may be larger than that. Its own files, which come first
// where they lie, are written whole.
func written(needs []need, images bool, content int64) []need {
	var out []need
	for _, n := range needs {
		if own := images && (n.what == theImage || n.what == itsUnpacked); !own {
			n.bytes = min(n.bytes, content)
		}
		out = append(out, n)
	}
	return out
}

// fits refuses an image whose disk is larger than the guest's: its end would be cut.
func fits(virtual int64, req *agentv1.RunRequest) error {
	disk := req.GetDiskBytes()
	if disk == 0 || virtual <= disk || req.GetImage().GetType() == homelabv1.ImageType_IMAGE_TYPE_ISO {
		return nil
	}
	return rpc.Errorf(rpc.ErrRefused, "its disk has %s, and a guest of it has only disk: %s; raise disk in the Spec to at least that",
		human.Size(virtual), human.Size(disk))
}
