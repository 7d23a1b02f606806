package store

import (
	"fmt"
	"testing"
	"time"
)

func TestOnlyTheLatestOfTheAuditAreKept(t *testing.T) {
	ctx := t.Context()
	s, err := Open(ctx, Config{Dir: t.TempDir(), Fleet: "lab", Controller: "controller-1"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	// As if so many had been written before; the first two are to go.
	for n := int64(1); n <= 2; n++ {
		if _, err := s.commit(ctx, "test", nil, s.put(trailKey(n), []byte(`{"who":"admin@old"}`)), s.put(openKey(n), []byte("controller-1"))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.commit(ctx, "test", nil, s.put(trailKey(keepTrail+1), []byte(`{"who":"admin@late"}`))); err != nil {
		t.Fatal(err)
	}
	n, err := s.AppendAct(ctx, Act{Who: "admin@now", Text: fmt.Sprint(1)})
	if err != nil || n != keepTrail+2 {
		t.Fatalf("%d, %v", n, err)
	}
	acts, err := s.Acts(ctx, keepTrail, time.Time{}, "")
	if err != nil || len(acts) != 2 || acts[0].Who != "admin@now" || acts[1].Who != "admin@late" {
		t.Errorf("%+v, %v", acts, err)
	}
	if open, _, err := s.list(ctx, openPrefix); err != nil || len(open) != 0 {
		t.Errorf("%v, %v", open, err)
	}
}
