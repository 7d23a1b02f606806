package store_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/homeiac/homelab/controller/plan"
	"github.com/homeiac/homelab/controller/store"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

func TestAllThatARecreationNeedsIsThereAfterARestart(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	s := open(t, dir)
	want, err := s.ChangeGuest(ctx, nil, "k3s-1", func(g *store.Guest) error {
		g.NodeName, g.Role, g.User = "k3s-pve", "server", "ubuntu"
		g.DataDisks = []store.Disk{{Slot: "scsi1", Storage: "local-zfs", Size: 1 << 30}}
		g.Holder = store.HolderVM{VMID: 250, UUID: "u-2", Generation: 1}
		g.Began, g.ReadyAt, g.Failures = noon, noon.Add(time.Minute), 2
		g.Attempts = []store.Attempt{{Action: homelabv1.Action_ACTION_RESET, At: noon}}
		g.SavedConfig, g.SavedAt, g.Volumes = "cores: 2\n", noon, []string{"local-zfs:vm-201-disk-0"}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	history := plan.History{{Signal: plan.SignalStopped, Since: noon, Last: noon.Add(time.Second), Text: "stopped", UUID: "u-1"}}
	pause := store.Pause{By: "admin@laptop", Reason: "moving house", At: noon}
	for _, err := range []error{
		s.PutHistory(ctx, "k3s-1", history), s.PutHistory(ctx, "k3s-2", history), s.PutHistory(ctx, "k3s-2", nil), s.PutPause(ctx, pause),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s.Close()

	s = open(t, dir)
	defer s.Close()
	if guests, err := s.Guests(ctx); err != nil || !cmp.Equal(guests["k3s-1"], want) {
		t.Errorf("%v\n%s", err, cmp.Diff(want, guests["k3s-1"]))
	}
	if got, err := s.Histories(ctx); err != nil || !cmp.Equal(got, map[string]plan.History{"k3s-1": history}) {
		t.Errorf("histories %v, %v", got, err)
	}
	if got, ok, err := s.Pause(ctx); err != nil || !ok || !cmp.Equal(got, pause) {
		t.Errorf("pause %v %v %v", got, ok, err)
	}
	for range 2 {
		if err := s.EndPause(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok, err := s.Pause(ctx); err != nil || ok {
		t.Errorf("still paused: %v, %v", ok, err)
	}
}

func TestAnAdoptedVMHasGenerationNoneAndIsCountedOnFrom(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	ctx := t.Context()
	set := func(n int32) error {
		_, err := s.ChangeGuest(ctx, nil, "k3s-1", func(g *store.Guest) error { g.Generation = n; return nil })
		return err
	}
	for _, n := range []int32{3, 0, 1, 2} {
		if err := set(n); err != nil {
			t.Fatalf("generation %d: %v", n, err)
		}
	}
	if err := set(1); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("back to 1: %v", err)
	}
	if err := s.ForgetGuest(ctx, nil, "k3s-1"); err != nil {
		t.Fatal(err)
	}
	if g, err := s.ChangeGuest(ctx, nil, "k3s-1", func(*store.Guest) error { return nil }); err != nil || g.Generation != 4 {
		t.Errorf("anew: %v, %v", g, err)
	}
}

func TestTheLatestOfAStoryIsKeptInOrder(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	ctx := t.Context()
	for i := range 203 {
		if err := s.AppendStory(ctx, "k3s-1", store.Entry{At: noon, Kind: "done", Text: fmt.Sprint(i), Run: 7}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.AppendStory(ctx, "k3s-10", store.Entry{At: noon, Kind: "seen", Text: "another guest"}); err != nil {
		t.Fatal(err)
	}
	all, err := s.Story(ctx, "k3s-1", 0)
	if err != nil || len(all) != 200 || all[0].Text != "3" || all[199].Text != "202" {
		t.Fatalf("%d entries, %v", len(all), err)
	}
	last, err := s.Story(ctx, "k3s-1", 2)
	if err != nil || !cmp.Equal(last, all[198:]) {
		t.Errorf("the last two: %v, %v", last, err)
	}
}

func TestStoriesToldAtOnceAreAllKept(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			if err := s.AppendStory(t.Context(), "k3s-1", store.Entry{Text: fmt.Sprint(i)}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if all, err := s.Story(t.Context(), "k3s-1", 0); err != nil || len(all) != 4 {
		t.Errorf("%v, %v", all, err)
	}
}
