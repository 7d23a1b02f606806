package store_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/homeiac/homelab/controller/store"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func open(t *testing.T, dir string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{
		Dir: dir, Fleet: "homelab", Controller: "controller-1", Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func lock(t *testing.T, s *store.Store) *store.Lock {
	t.Helper()
	l, err := s.Lock(t.Context(), "admin@laptop", noon)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Unlock)
	return l
}

func TestWhatWasWrittenIsThereAfterARestart(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	s := open(t, dir)
	l := lock(t, s)
	guest, err := s.ChangeGuest(ctx, l, "k3s-1", func(g *store.Guest) error {
		g.Host, g.VMID, g.UUID, g.MACs = "pve1", 201, "u-1", []string{"BC:24:11:00:00:01"}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	cluster := &homelabv1.ClusterRecord{CaHash: "abc", FirstGuest: "k3s-1"}
	host := store.Host{Seen: noon, State: 1, Since: noon, VMIDs: []int32{100, 201}}
	text := store.Spec{Name: "homelab.yaml", Text: []byte("name: x\n"), By: "admin@laptop", At: noon}
	for _, err := range []error{
		s.PutCluster(ctx, l, cluster), s.PutHost(ctx, "pve1", host), s.PutSpec(ctx, l, text),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	epoch, err := s.RaiseEpoch(ctx, 0)
	if err != nil || epoch != 1 {
		t.Fatalf("first epoch %d, %v", epoch, err)
	}
	s.Close()

	s = open(t, dir)
	defer s.Close()
	if guests, err := s.Guests(ctx); err != nil || !cmp.Equal(guests, map[string]store.Guest{"k3s-1": guest}) {
		t.Errorf("guests %v, %v", guests, err)
	}
	if c, err := s.Cluster(ctx); err != nil || c.GetCaHash() != "abc" {
		t.Errorf("cluster %v, %v", c, err)
	}
	if hosts, err := s.Hosts(ctx); err != nil || !cmp.Equal(hosts["pve1"], host) {
		t.Errorf("hosts %v, %v", hosts, err)
	}
	if got, ok, err := s.Spec(ctx); err != nil || !ok || !cmp.Equal(got, text) {
		t.Errorf("spec %v %v %v", got, ok, err)
	}
	if epoch, err := s.RaiseEpoch(ctx, 9); err != nil || epoch != 9 {
		t.Errorf("epoch raised to what agents have seen: %d, %v", epoch, err)
	}
}

func TestTheEmbeddedStoreStartsQuickly(t *testing.T) {
	dir := t.TempDir()
	open(t, dir).Close()
	start := time.Now()
	open(t, dir).Close()
	// It takes under 0.1 s; this bound is for a loaded machine.
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("opened and closed in %s", took)
	} else {
		t.Logf("opened and closed again in %s", took)
	}
}

// etcd's client leaves TLS aside for an address that begins with http, whatever else it
// was given.
func TestAnExternalEtcdIsSpokenToWithCertificatesOnly(t *testing.T) {
	for _, endpoint := range []string{"http://127.0.0.1:2379", "unix:///run/etcd", "127.0.0.1:2379", "https://127.0.0.1", "https://user@127.0.0.1:2379", "https://", ""} {
		if err := store.CheckEndpoint(endpoint); !errors.Is(err, rpc.ErrInvalid) {
			t.Errorf("%q: %v", endpoint, err)
		}
	}
	for _, endpoint := range []string{"https://127.0.0.1:2379", "https://[fd00::1]:2379", "https://etcd.lan:2379"} {
		if err := store.CheckEndpoint(endpoint); err != nil {
			t.Error(err)
		}
	}
	_, err := store.Open(t.Context(), store.Config{Endpoints: []string{"https://127.0.0.1:2379"}, Fleet: "home", Controller: "c1"})
	if !errors.Is(err, rpc.ErrInvalid) || !strings.Contains(err.Error(), "ca, cert and key") {
		t.Errorf("without certificates: %v", err)
	}
}

func TestASecondProcessIsKeptOut(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	defer s.Close()
	_, err := store.Open(t.Context(), store.Config{Dir: dir, Fleet: "homelab", Controller: "controller-1"})
	if !errors.Is(err, rpc.ErrBusy) {
		t.Errorf("second open: %v", err)
	}
}

func TestOneRunAtATime(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	first := lock(t, s)
	_, err := s.Lock(t.Context(), "cron@nas", noon)
	if !errors.Is(err, rpc.ErrBusy) || !strings.Contains(err.Error(), "admin@laptop") {
		t.Fatalf("second lock: %v", err)
	}
	first.Unlock()
	first.Unlock()
	second, err := s.Lock(t.Context(), "cron@nas", noon)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Unlock()

	// What the first run still tries to write after it lost the lock is refused.
	_, err = s.ChangeGuest(t.Context(), first, "k3s-1", func(*store.Guest) error { return nil })
	if !errors.Is(err, rpc.ErrBusy) {
		t.Errorf("write without the lock: %v", err)
	}
	if _, err := s.BeginRun(t.Context(), first, "admin@laptop", noon); !errors.Is(err, rpc.ErrBusy) {
		t.Errorf("run without the lock: %v", err)
	}
}

func TestALockLeftByAKilledControllerIsFree(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	l := lock(t, s)
	run, err := s.BeginRun(t.Context(), l, "admin@laptop", noon)
	if err != nil {
		t.Fatal(err)
	}
	s.Close() // the lock was not given back

	s = open(t, dir)
	defer s.Close()
	if err := s.Interrupt(t.Context(), noon.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	got, err := s.Run(t.Context(), run.GetRun())
	if err != nil || got.GetState() != store.StateInterrupted {
		t.Errorf("the killed controller's run: %v, %v", got, err)
	}
	next, err := s.BeginRun(t.Context(), lock(t, s), "admin@laptop", noon)
	if err != nil || next.GetRun() != run.GetRun()+1 {
		t.Errorf("next run: %v, %v", next, err)
	}
}

func TestAGenerationNeverComesBack(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	ctx := t.Context()
	set := func(n int32) error {
		_, err := s.ChangeGuest(ctx, nil, "k3s-1", func(g *store.Guest) error { g.Generation = n; return nil })
		return err
	}
	if err := set(3); err != nil {
		t.Fatal(err)
	}
	if err := set(2); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("back to generation 2: %v", err)
	}
	if err := s.ForgetGuest(ctx, nil, "k3s-1"); err != nil {
		t.Fatal(err)
	}
	g, err := s.ChangeGuest(ctx, nil, "k3s-1", func(*store.Guest) error { return nil })
	if err != nil || g.Generation != 4 {
		t.Errorf("after it was forgotten: %+v, %v", g, err)
	}
}

func TestConcurrentChangesAreAllKept(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			_, err := s.ChangeGuest(t.Context(), nil, "k3s-1", func(g *store.Guest) error {
				g.Addresses = append(g.Addresses, fmt.Sprint(i))
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if g, err := s.Guests(t.Context()); err != nil || len(g["k3s-1"].Addresses) != 4 {
		t.Errorf("%+v, %v", g, err)
	}
}

func event(i int, kind homelabv1.EventKind) *homelabv1.Event {
	return &homelabv1.Event{Time: timestamppb.New(noon), Kind: kind, Text: fmt.Sprint(i), Step: "create/pve1/k3s-1"}
}

func TestARunIsFollowedFromItsFirstEventToItsEnd(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	ctx := t.Context()
	l := lock(t, s)
	run, err := s.BeginRun(ctx, l, "admin@laptop", noon)
	if err != nil {
		t.Fatal(err)
	}
	progress := homelabv1.EventKind_EVENT_KIND_STEP_PROGRESS
	if err := s.AppendEvents(ctx, run.GetRun(), 0, "a", []*homelabv1.Event{event(0, progress), event(1, progress)}); err != nil {
		t.Fatal(err)
	}
	var got []string
	seen := make(chan struct{}, 10)
	type end struct {
		record *controllerv1.RunRecord
		err    error
	}
	done := make(chan end)
	go func() {
		r, err := s.Follow(ctx, run.GetRun(), true, func(e *homelabv1.Event) error {
			got = append(got, e.GetText())
			seen <- struct{}{}
			return nil
		})
		done <- end{r, err}
	}()
	<-seen
	<-seen
	call := event(2, homelabv1.EventKind_EVENT_KIND_CALL)
	call.Call = &homelabv1.Call{Program: "qm", Args: []string{"create"}, Mutating: true}
	if err := s.AppendEvents(ctx, run.GetRun(), 2, "admin@laptop", []*homelabv1.Event{call}); err != nil {
		t.Fatal(err)
	}
	run.State = store.StateDone
	if err := s.PutRun(ctx, l, run); err != nil {
		t.Fatal(err)
	}
	e := <-done
	if e.err != nil || e.record.GetState() != store.StateDone {
		t.Fatalf("%v, %v", e.record, e.err)
	}
	if want := []string{"0", "1", "2"}; !cmp.Equal(got, want) {
		t.Errorf("followed %v", got)
	}
	audit, err := s.Audit(ctx, 1, 1)
	if err != nil || len(audit) != 1 || audit[0].Program != "qm" || audit[0].By != "admin@laptop" {
		t.Errorf("audit %+v, %v", audit, err)
	}
}

func TestOldRunsAreDropped(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	ctx := t.Context()
	l := lock(t, s)
	for i := range 103 {
		run, err := s.BeginRun(ctx, l, "a", noon)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.AppendEvents(ctx, run.GetRun(), 0, "a", []*homelabv1.Event{event(i, homelabv1.EventKind_EVENT_KIND_NOTE)}); err != nil {
			t.Fatal(err)
		}
		run.State = store.StateDone
		if err := s.PutRun(ctx, l, run); err != nil {
			t.Fatal(err)
		}
	}
	runs, err := s.Runs(ctx, 1000)
	if err != nil || len(runs) != 100 || runs[0].GetRun() != 103 {
		t.Fatalf("%d runs kept, %v", len(runs), err)
	}
	if _, err := s.Run(ctx, 3); !errors.Is(err, rpc.ErrNotFound) {
		t.Errorf("run 3: %v", err)
	}
	var events int
	for n := int64(1); n <= 103; n++ {
		if _, err := s.Follow(ctx, n, false, func(*homelabv1.Event) error { events++; return nil }); err != nil && n > 3 {
			t.Fatal(err)
		}
	}
	if events != 100 {
		t.Errorf("%d events kept", events)
	}
}

func TestAFollowerThatGoesAwayEnds(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	run, err := s.BeginRun(t.Context(), lock(t, s), "a", noon)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Follow(ctx, run.GetRun(), true, func(*homelabv1.Event) error { return nil }); err == nil {
		t.Error("no error")
	}
}
