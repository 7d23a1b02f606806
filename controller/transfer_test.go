package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/homeiac/homelab/controller/plan"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/spec"
)

var digestA = plan.Image{SHA256: strings.Repeat("ab", 32)}

func mustJoin(t *testing.T, tr *transfer, host string) turn {
	t.Helper()
	r, err := tr.join(t.Context(), host, nil, func(context.Context) (plan.Image, error) { return digestA, nil })
	if err != nil {
		t.Fatalf("%s: %v", host, err)
	}
	return r
}

func TestOneHostReadsTheSourceAndTheRestFormATree(t *testing.T) {
	tr := newTransfer(&spec.Image{Name: "noble"}, digestA, nil)
	var readers, lines []string
	for i := range 5 {
		host := fmt.Sprintf("pve%d", i+1)
		r := mustJoin(t, tr, host)
		if r.wan {
			readers = append(readers, host)
		}
		lines = append(lines, host+": "+strings.Join(r.peers, " "))
	}
	if !slices.Equal(readers, []string{"pve1"}) {
		t.Errorf("readers %v", readers)
	}
	want := []string{"pve1: ", "pve2: pve1", "pve3: pve1 pve2", "pve4: pve2 pve1 pve3", "pve5: pve2 pve1 pve3 pve4"}
	if !slices.Equal(lines, want) {
		t.Errorf("%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
	tr.arrived("pve1", digestA)
	if r := mustJoin(t, tr, "pve5"); r.wan || r.peers[0] != "pve1" {
		t.Errorf("who has all of it comes first: %+v", r)
	}
}

func TestWhoHoldsItAlreadyIsAskedAndTheSourceIsNot(t *testing.T) {
	tr := newTransfer(&spec.Image{Name: "noble"}, digestA, []string{"pve8", "pve9"})
	first, second := mustJoin(t, tr, "pve1"), mustJoin(t, tr, "pve2")
	if first.wan || second.wan {
		t.Error("the source is read although hosts hold the image")
	}
	if first.peers[0] == second.peers[0] {
		t.Errorf("both begin with %s", first.peers[0])
	}
	tr.broke("pve1")
	if mustJoin(t, tr, "pve1").wan {
		t.Error("one failure is no reason to read the source")
	}
	tr.broke("pve1")
	if !mustJoin(t, tr, "pve1").wan {
		t.Error("nobody gives it, and its source is not asked")
	}
}

func TestTheHostThatIsFurthestOnReadsOn(t *testing.T) {
	tr := newTransfer(&spec.Image{Name: "noble"}, digestA, nil)
	asked := 0
	tr.held = func(_ context.Context, hosts []string) map[string]int64 {
		asked++
		return map[string]int64{"pve2": 40, "pve3": 50}
	}
	for _, host := range []string{"pve1", "pve2", "pve3"} {
		mustJoin(t, tr, host)
	}
	tr.broke("pve1")
	// pve2 notices first, and must not read from the source what pve3 has.
	if r := mustJoin(t, tr, "pve2"); r.wan || r.peers[0] != "pve3" {
		t.Errorf("pve2 %+v", r)
	}
	if r := mustJoin(t, tr, "pve3"); !r.wan || len(r.peers) != 0 {
		t.Errorf("pve3 %+v", r)
	}
	if r := mustJoin(t, tr, "pve1"); r.wan {
		t.Errorf("pve1 came back and reads beside pve3: %+v", r)
	}
	if asked != 1 {
		t.Errorf("%d questions", asked)
	}
}

func TestAReaderThatDoesNotComeIsNotWaitedForForEver(t *testing.T) {
	tr := newTransfer(&spec.Image{Name: "noble"}, digestA, nil)
	now := time.Now()
	tr.now = func() time.Time { return now }
	tr.held = func(context.Context, []string) map[string]int64 { return map[string]int64{"pve3": 50} }
	for _, host := range []string{"pve1", "pve2", "pve3"} {
		mustJoin(t, tr, host)
	}
	tr.broke("pve1")
	if mustJoin(t, tr, "pve2").wan {
		t.Error("pve2 reads")
	}
	now = now.Add(promiseLimit + time.Second)
	tr.leave("pve3")
	if !mustJoin(t, tr, "pve2").wan {
		t.Error("nobody reads the source")
	}
}

func TestWithoutAChecksumTheRestWaitForTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTransfer(&spec.Image{Name: "noble"}, plan.Image{}, nil)
		first := mustJoin(t, tr, "pve1")
		if !first.wan || first.digest.SHA256 != "" {
			t.Fatalf("%+v", first)
		}
		got := make(chan turn, 2)
		for _, host := range []string{"pve2", "pve3"} {
			go func() { got <- mustJoin(t, tr, host) }()
		}
		synctest.Wait()
		select {
		case r := <-got:
			t.Fatalf("began before the digest was known: %+v", r)
		default:
		}
		tr.arrived("pve1", digestA)
		for range 2 {
			if r := <-got; r.wan || r.digest != digestA || r.peers[0] != "pve1" {
				t.Errorf("%+v", r)
			}
		}
	})
}

func TestWithoutAChecksumTheNextBeginsWhenTheFirstFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTransfer(&spec.Image{Name: "noble"}, plan.Image{}, nil)
		mustJoin(t, tr, "pve1")
		got := make(chan turn, 1)
		go func() { got <- mustJoin(t, tr, "pve2") }()
		synctest.Wait()
		tr.leave("pve1")
		if r := <-got; !r.wan {
			t.Errorf("%+v", r)
		}
	})
}

func TestASourceAtFaultIsAskedOnce(t *testing.T) {
	tr := newTransfer(&spec.Image{Name: "noble"}, plan.Image{}, nil)
	mustJoin(t, tr, "pve1")
	tr.faulty("pve1", "it is an HTML page, not an image")
	tr.leave("pve1")
	_, err := tr.join(t.Context(), "pve2", nil, nil)
	if !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "HTML page") || !strings.Contains(err.Error(), "pve1") {
		t.Errorf("%v", err)
	}
}

func TestTheListIsReadOnceAndAMissingLineEndsIt(t *testing.T) {
	lists := 0
	tr := newTransfer(&spec.Image{Name: "noble", Checksums: "http://x/SUMS"}, plan.Image{}, nil)
	read := func(context.Context) (plan.Image, error) { lists++; return digestA, nil }
	for i, host := range []string{"pve1", "pve2"} {
		r, err := tr.join(t.Context(), host, nil, read)
		if err != nil || r.digest != digestA || r.wan != (i == 0) {
			t.Errorf("%s: %+v %v", host, r, err)
		}
	}
	if lists != 1 {
		t.Errorf("read %d times", lists)
	}
	tr = newTransfer(&spec.Image{Name: "noble", Checksums: "http://x/SUMS"}, plan.Image{}, nil)
	for range 2 {
		_, err := tr.join(t.Context(), "pve1", nil, func(context.Context) (plan.Image, error) {
			lists++
			return plan.Image{}, rpc.Errorf(rpc.ErrRefused, "the list does not name noble.img")
		})
		if !errors.Is(err, rpc.ErrRefused) {
			t.Errorf("%v", err)
		}
	}
	if lists != 2 {
		t.Errorf("read %d times", lists-1)
	}
}

func TestACancelledRunWaitsForNoDigest(t *testing.T) {
	tr := newTransfer(&spec.Image{Name: "noble"}, plan.Image{}, nil)
	mustJoin(t, tr, "pve1")
	over := make(chan struct{})
	close(over)
	if _, err := tr.join(t.Context(), "pve2", over, nil); !errors.Is(err, errCancelled) {
		t.Errorf("%v", err)
	}
}

// Whatever fails and comes back: no two hosts read the source at once, and no host
// is sent to itself.
func TestAtMostOneHostReadsTheSource(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tr := newTransfer(&spec.Image{Name: "noble"}, digestA, nil)
		hosts := []string{"pve1", "pve2", "pve3", "pve4"}
		held := map[string]int64{}
		tr.held = func(context.Context, []string) map[string]int64 { return held }
		reading := ""
		for range rapid.IntRange(1, 40).Draw(t, "events") {
			host := rapid.SampledFrom(hosts).Draw(t, "host")
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0, 1:
				r, err := tr.join(t.Context(), host, nil, nil)
				if err != nil {
					t.Fatal(err)
				}
				if r.wan && reading != "" && reading != host {
					t.Fatalf("%s reads while %s does", host, reading)
				}
				if r.wan {
					reading = host
				}
				if slices.Contains(r.peers, host) {
					t.Fatalf("%s is sent to itself", host)
				}
				held[host] += rapid.Int64Range(0, 100).Draw(t, "bytes")
			case 2:
				tr.broke(host)
			case 3:
				tr.leave(host)
			case 4:
				tr.arrived(host, digestA)
			}
			if reading == host && tr.reader != host {
				reading = ""
			}
		}
	})
}

func TestASourceThatNeverGivesMoreIsGivenUp(t *testing.T) {
	tr := newTransfer(&spec.Image{Name: "noble"}, digestA, nil)
	why := rpc.Errorf(rpc.ErrUnavailable, "6 MiB of 8 MiB came")
	for i, held := range []int64{10, 20, 30, 30, 30} {
		if r := mustJoin(t, tr, "pve1"); !r.wan {
			t.Fatalf("attempt %d: %+v", i, r)
		}
		tr.readInVain("pve1", held, why)
		tr.broke("pve1")
	}
	for _, host := range []string{"pve1", "pve2"} {
		_, err := tr.join(t.Context(), host, nil, nil)
		if !errors.Is(err, rpc.ErrUnavailable) || !strings.Contains(err.Error(), "pve1 read its source 3 times: 6 MiB of 8 MiB came") {
			t.Errorf("%s: %v", host, err)
		}
	}
}

// A host whose own way to the source is cut must not be the one to give it up for all.
func TestWhenAReaderFailsAndAnotherHasAsMuchThatOneReadsNext(t *testing.T) {
	tr := newTransfer(&spec.Image{Name: "noble"}, digestA, nil)
	held := map[string]int64{"pve1": 0, "pve2": 0}
	tr.held = func(context.Context, []string) map[string]int64 { return held }
	mustJoin(t, tr, "pve1")
	mustJoin(t, tr, "pve2")
	tr.readInVain("pve1", 0, rpc.Errorf(rpc.ErrUnavailable, "no route to host"))
	tr.broke("pve1")
	if r := mustJoin(t, tr, "pve1"); r.wan || !slices.Equal(r.peers, []string{"pve2"}) {
		t.Errorf("pve1 %+v", r)
	}
	// What pve2 did before ends in vain, and says nothing of the source.
	if tr.reads("pve2") {
		t.Error("pve2 has not come for it yet")
	}
	tr.broke("pve2")
	if r := mustJoin(t, tr, "pve2"); !r.wan || !tr.reads("pve2") {
		t.Errorf("pve2 %+v", r)
	}
	// With more than the others have it goes on itself.
	held["pve2"] = 10
	tr.broke("pve2")
	if r := mustJoin(t, tr, "pve2"); !r.wan {
		t.Errorf("pve2 %+v", r)
	}
}

// Of three hosts two may be behind the same firewall.
func TestWhoHasNotReadTheSourceYetComesBeforeWhoFailedTo(t *testing.T) {
	tr := newTransfer(&spec.Image{Name: "noble"}, digestA, nil)
	tr.held = func(context.Context, []string) map[string]int64 {
		return map[string]int64{"pve1": 0, "pve2": 0, "pve3": 0}
	}
	for _, host := range []string{"pve1", "pve2", "pve3"} {
		mustJoin(t, tr, host)
	}
	for _, host := range []string{"pve1", "pve2"} {
		if !tr.reads(host) {
			t.Fatalf("%s does not read", host)
		}
		tr.readInVain(host, 0, rpc.Errorf(rpc.ErrUnavailable, "no route to host"))
		tr.broke(host)
		mustJoin(t, tr, host) // and is told to ask the others
		mustJoin(t, tr, "pve2")
	}
	if r := mustJoin(t, tr, "pve3"); !r.wan {
		t.Errorf("pve3 %+v", r)
	}
}
