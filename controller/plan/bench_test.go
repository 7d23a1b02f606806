package plan_test

import (
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/homeiac/homelab/controller/plan"
	"github.com/homeiac/homelab/controller/plan/plantest"
)

// The figures to hold for 1,000 hosts with 10,000 guests.
const (
	mostTime   = time.Second
	mostMemory = 300 << 20
)

func BenchmarkMake(b *testing.B) {
	for _, c := range []struct {
		name string
		done int
	}{{"nothing made", 0}, {"half made", 5000}, {"all made", 10000}} {
		w := plantest.NewFleet(1000, 10000, c.done)
		want, seen := w.Want(), w.Seen()
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				plan.Make(want, seen, w.Now)
			}
		})
	}
}

// A plan for a large fleet takes under a second and 300 MB. Processor time is
// counted, since the machine may be busy with other things, and all that is
// allocated on the way, so what is held at once is less.
func TestALargeFleetIsPlannedInTime(t *testing.T) {
	if testing.Short() {
		t.Skip("large")
	}
	w := plantest.NewFleet(1000, 10000, 5000)
	want, seen := w.Want(), w.Seen()
	best := time.Hour
	var allocated uint64
	for range 3 {
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		start := processorTime(t)
		p := plan.Make(want, seen, w.Now)
		best = min(best, processorTime(t)-start)
		runtime.ReadMemStats(&after)
		allocated = after.TotalAlloc - before.TotalAlloc
		if n := plan.Summarise(p); n.Create != 5000 || n.Unchanged != 5000 {
			t.Fatalf("%+v", n)
		}
	}
	t.Logf("%v, %d MB allocated", best, allocated>>20)
	if limit := mostTime * slower; best > limit {
		t.Errorf("the plan took %v, more than %v", best, limit)
	}
	if allocated > mostMemory*slower {
		t.Errorf("the plan allocated %d MB, more than %d", allocated>>20, mostMemory*slower>>20)
	}
}

// processorTime is what this process has used so far.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
