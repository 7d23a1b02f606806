package agent

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/durable"
)

// intents are the creates that were begun and not seen to end, one file a VMID.
// They are the only proof that a configuration holding nothing but a lock is
// ours, and of which volumes are not.
type intents struct {
	dir string

	mu   sync.Mutex
	open map[int32]*homelabv1.Intent
}

func openIntents(dir string) (*intents, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := durable.Tidy(dir, time.Now()); err != nil {
		return nil, err
	}
	s := &intents{dir: dir, open: make(map[int32]*homelabv1.Intent)}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		i := new(homelabv1.Intent)
		if err := protojson.Unmarshal(data, i); err != nil {
			// Not to be skipped: with it the proof of ownership would be lost.
			return nil, fmt.Errorf("intent %s: %w", filepath.Join(dir, e.Name()), err)
		}
		if vmid, err := strconv.ParseInt(name, 10, 32); err != nil || int32(vmid) != i.GetIdentity().GetVmid() {
			return nil, fmt.Errorf("intent %s is about VM %d", filepath.Join(dir, e.Name()), i.GetIdentity().GetVmid())
		}
		s.open[i.GetIdentity().GetVmid()] = i
	}
	return s, nil
}

func (s *intents) path(vmid int32) string {
	return filepath.Join(s.dir, strconv.Itoa(int(vmid))+".json")
}

// write remembers an intent; it is on disk when this returns.
func (s *intents) write(i *homelabv1.Intent) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, err := protojson.MarshalOptions{Indent: "  "}.Marshal(i)
	if err != nil {
		return err
	}
	if err := durable.Write(s.path(i.GetIdentity().GetVmid()), data); err != nil {
		return fmt.Errorf("intent: %w", err)
	}
	s.open[i.GetIdentity().GetVmid()] = proto.CloneOf(i)
	return nil
}

// close forgets the intent of a VMID, if there is one.
func (s *intents) close(vmid int32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[vmid] == nil {
		return nil
	}
	if err := durable.Remove(s.path(vmid)); err != nil {
		return fmt.Errorf("intent: %w", err)
	}
	delete(s.open, vmid)
	return nil
}

// of gives the open intent of a VMID, nil when there is none.
func (s *intents) of(vmid int32) *homelabv1.Intent {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := s.open[vmid]; i != nil {
		return proto.CloneOf(i)
	}
	return nil
}

// list gives all open intents, by VMID.
func (s *intents) list() []*homelabv1.Intent {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*homelabv1.Intent, 0, len(s.open))
	for _, i := range s.open {
		out = append(out, proto.CloneOf(i))
	}
	slices.SortFunc(out, func(a, b *homelabv1.Intent) int {
		return cmp.Compare(a.GetIdentity().GetVmid(), b.GetIdentity().GetVmid())
	})
	return out
}

// sameVM says whether two identities are of one VM and generation.
func sameVM(a, b *homelabv1.Identity) bool {
	return a.GetVmid() == b.GetVmid() && a.GetUuid() == b.GetUuid() && a.GetMark() == b.GetMark()
}
