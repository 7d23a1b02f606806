package rpc

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestWhatRepeatsIsToldOnceAMinuteWithACount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r repeats
		var told []int
		note := func() { r.note("10.0.0.9 expired", func(n int) { told = append(told, n) }, nil) }
		for range 100 {
			note()
		}
		if !slices.Equal(told, []int{1}) {
			t.Fatalf("at once: %v", told)
		}
		time.Sleep(repeatEvery + time.Second)
		synctest.Wait()
		note()
		time.Sleep(repeatEvery)
		synctest.Wait()
		if !slices.Equal(told, []int{1, 99, 1}) {
			t.Errorf("%v", told)
		}
		time.Sleep(2 * repeatEvery)
		synctest.Wait()
		if len(r.seen) != 0 {
			t.Errorf("still remembered: %v", r.seen)
		}
	})
}

func TestAStrangerDoesNotFillTheMemoryWithReasons(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r repeats
		rest := 0
		for i := range 10 * repeatKinds {
			r.note(fmt.Sprint(i), func(int) {}, func(n int) { rest += n })
		}
		if len(r.seen) > repeatKinds+1 || rest != 1 {
			t.Errorf("%d remembered, %d told of the rest", len(r.seen), rest)
		}
		time.Sleep(3 * repeatEvery)
		synctest.Wait()
		if len(r.seen) != 0 || rest != 10*repeatKinds-repeatKinds {
			t.Errorf("%d remembered, %d told of the rest", len(r.seen), rest)
		}
	})
}
