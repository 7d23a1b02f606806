package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/durable"
	"github.com/homeiac/homelab/internal/rpc"
)

// fence remembers the highest run that this agent took steps from. Without it a
// controller that was thought dead could go on beside its successor.
type fence struct {
	path string

	mu      sync.Mutex
	highest *homelabv1.Fence
}

func openFence(path string) (*fence, error) {
	f := &fence{path: path, highest: &homelabv1.Fence{}}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return nil, err
	}
	if err := protojson.Unmarshal(data, f.highest); err != nil {
		return nil, fmt.Errorf("fence %s: %w", path, err)
	}
	return f, nil
}

// admit takes a run that is not older than one taken before; it is remembered
// on disk before anything of it is done.
func (f *fence) admit(got *homelabv1.Fence) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if older(got, f.highest) {
		return rpc.Errorf(rpc.ErrRefused, "run %d of epoch %d is older than run %d of epoch %d, which this agent has taken steps from",
			got.GetRun(), got.GetEpoch(), f.highest.GetRun(), f.highest.GetEpoch())
	}
	if !older(f.highest, got) {
		return nil
	}
	data, err := protojson.Marshal(got)
	if err != nil {
		return err
	}
	if err := durable.Write(f.path, data); err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	f.highest = proto.CloneOf(got)
	return nil
}

func (f *fence) seen() *homelabv1.Fence {
	f.mu.Lock()
	defer f.mu.Unlock()
	return proto.CloneOf(f.highest)
}

func older(a, b *homelabv1.Fence) bool {
	if a.GetEpoch() != b.GetEpoch() {
		return a.GetEpoch() < b.GetEpoch()
	}
	return a.GetRun() < b.GetRun()
}
