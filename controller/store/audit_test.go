package store_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/homeiac/homelab/controller/store"
)

func act(who, method string, at time.Time) store.Act {
	return store.Act{Time: at, Who: who, Method: method, Result: store.ResultOK, Count: 1}
}

func TestTheAuditIsToldLatestFirstAndBySomebody(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	s := open(t, dir)
	for i := range 6 {
		who := []string{"admin@laptop", "admin@ci"}[i%2]
		if _, err := s.AppendAct(ctx, act(who, fmt.Sprint(i), noon.Add(time.Duration(i)*time.Minute))); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	s = open(t, dir)
	defer s.Close()
	for _, c := range []struct {
		limit int
		since time.Time
		by    string
		want  []string
	}{
		{3, time.Time{}, "", []string{"5", "4", "3"}},
		{9, noon.Add(4 * time.Minute), "", []string{"5", "4"}},
		{9, time.Time{}, "laptop", []string{"4", "2", "0"}},
		{9, time.Time{}, "admin@ci", []string{"5", "3", "1"}},
		{9, time.Time{}, "nobody", nil},
	} {
		acts, err := s.Acts(ctx, c.limit, c.since, c.by)
		var got []string
		for _, a := range acts {
			got = append(got, a.Method)
		}
		if err != nil || !cmp.Equal(got, c.want) {
			t.Errorf("limit %d since %s by %q: %v, %v; want %v", c.limit, c.since, c.by, got, err, c.want)
		}
	}
}

func TestAnActThatWasCutOffIsInterruptedAfterTheNextStart(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	s := open(t, dir)
	running := act("admin@laptop", "apply", noon)
	running.Result = store.ResultRunning
	first, err := s.AppendAct(ctx, running)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.AppendAct(ctx, running); err != nil {
		t.Fatal(err)
	}
	ended := act("admin@laptop", "apply", noon)
	ended.Ended = noon.Add(time.Minute)
	for range 2 { // the second changes nothing
		if err := s.EndAct(ctx, first, ended); err != nil {
			t.Fatal(err)
		}
		ended.Text = "written twice"
	}
	s.Close()
	s = open(t, dir)
	defer s.Close()
	for range 2 {
		if err := s.InterruptActs(ctx); err != nil {
			t.Fatal(err)
		}
	}
	acts, err := s.Acts(ctx, 10, time.Time{}, "")
	if err != nil || len(acts) != 2 || acts[0].Result != store.ResultInterrupted || acts[1].Result != store.ResultOK || acts[1].Text != "" || !acts[1].Ended.Equal(noon.Add(time.Minute)) {
		t.Errorf("%+v, %v", acts, err)
	}
}

func TestActsWrittenAtOnceAreAllKept(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := s.AppendAct(t.Context(), act("admin@laptop", "pause", noon)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if acts, err := s.Acts(t.Context(), 100, time.Time{}, ""); err != nil || len(acts) != 50 {
		t.Errorf("%d, %v", len(acts), err)
	}
}
