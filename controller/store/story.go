package store

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/homeiac/homelab/controller/plan"
	"github.com/homeiac/homelab/internal/rpc"
)

// keepStory is how many entries of one guest's story are kept.
const keepStory = 200

// Entry is one line of a guest's story.
type Entry struct {
	At time.Time `json:"at"`
	// Kind is seen, planned, done, failed, skipped, refused or parked.
	Kind string `json:"kind"`
	Text string `json:"text"`
	// Run is the run that it belongs to; 0 is none.
	Run int64 `json:"run,omitempty"`
	// State is what the entry is about, for whoever tells the next one: the health
	// and the signal of what was seen. May be empty.
	State string `json:"state,omitempty"`
}

func storyPrefix(guest string) string       { return "why/" + guest + "/" }
func storyKey(guest string, n int64) string { return fmt.Sprintf("%s%012d", storyPrefix(guest), n) }

// AppendStory adds an entry to a guest's story. The oldest go.
func (s *Store) AppendStory(ctx context.Context, guest string, e Entry) error {
	data, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("store: story of %s: %w", guest, err)
	}
	for range changeAttempts {
		last, _, err := s.list(ctx, storyPrefix(guest), clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend), clientv3.WithLimit(1))
		if err != nil {
			return err
		}
		n := int64(1)
		if len(last) > 0 {
			if n, err = strconv.ParseInt(strings.TrimPrefix(last[0].key, storyPrefix(guest)), 10, 64); err != nil {
				return fmt.Errorf("store: %s: %w", last[0].key, err)
			}
			n++
		}
		key := storyKey(guest, n)
		ops := []clientv3.Op{s.put(key, data)}
		if n > keepStory {
			ops = append(ops, deleteOp(s.key(storyPrefix(guest)), clientv3.WithRange(s.key(storyKey(guest, n-keepStory+1)))))
		}
		ok, err := s.commit(ctx, "write "+key, []clientv3.Cmp{s.unchanged(value{key: key})}, ops...)
		if err != nil || ok {
			return err
		}
	}
	return rpc.Errorf(rpc.ErrBusy, "store: the story of %s keeps being written by somebody else", guest)
}

// Story is a guest's story, the latest limit entries of it, oldest first; all
// that are kept with a limit of 0.
func (s *Store) Story(ctx context.Context, guest string, limit int) ([]Entry, error) {
	values, _, err := s.list(ctx, storyPrefix(guest))
	if err != nil {
		return nil, err
	}
	entries := make([]Entry, 0, len(values))
	for _, v := range values {
		var e Entry
		if err := json.Unmarshal(v.data, &e); err != nil {
			return nil, fmt.Errorf("store: %s: %w", v.key, err)
		}
		entries = append(entries, e)
	}
	// What a run did is written down a little later than it was seen to be over.
	slices.SortStableFunc(entries, func(a, b Entry) int { return a.At.Compare(b.At) })
	if limit > 0 && len(entries) > limit {
		entries = entries[len(entries)-limit:]
	}
	return entries, nil
}

// Histories are since when each guest was seen as it is.
func (s *Store) Histories(ctx context.Context) (map[string]plan.History, error) {
	values, _, err := s.list(ctx, "history/")
	if err != nil {
		return nil, err
	}
	histories := make(map[string]plan.History, len(values))
	for _, v := range values {
		var h plan.History
		if err := json.Unmarshal(v.data, &h); err != nil {
			return nil, fmt.Errorf("store: %s: %w", v.key, err)
		}
		histories[strings.TrimPrefix(v.key, "history/")] = h
	}
	return histories, nil
}

// PutHistory remembers a guest's history; an empty one is forgotten.
func (s *Store) PutHistory(ctx context.Context, guest string, h plan.History) error {
	if len(h) == 0 {
		_, err := s.commit(ctx, "forget the history of "+guest, nil, deleteOp(s.key("history/"+guest)))
		return err
	}
	data, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("store: history of %s: %w", guest, err)
	}
	return s.putHeld(ctx, nil, "history/"+guest, data)
}

// Pause is that all changes are paused.
type Pause struct {
	// By is who asked for it, At when, and Reason why; that may be empty.
	By     string    `json:"by"`
	Reason string    `json:"reason,omitempty"`
	At     time.Time `json:"at"`
}

// Pause is the pause that is on; ok is false when there is none.
func (s *Store) Pause(ctx context.Context) (p Pause, ok bool, err error) {
	v, err := s.get(ctx, "pause")
	if err != nil || v.rev == 0 {
		return Pause{}, false, err
	}
	if err := json.Unmarshal(v.data, &p); err != nil {
		return Pause{}, false, fmt.Errorf("store: pause: %w", err)
	}
	return p, true, nil
}

// PutPause begins a pause. It needs no lock: it is how people stop a run.
func (s *Store) PutPause(ctx context.Context, p Pause) error {
	data, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("store: pause: %w", err)
	}
	return s.putHeld(ctx, nil, "pause", data)
}

// EndPause ends it; one that is not there has ended.
func (s *Store) EndPause(ctx context.Context) error {
	_, err := s.commit(ctx, "end the pause", nil, deleteOp(s.key("pause")))
	return err
}
