// Package pause waits a while, or until it is no longer wanted. What is waited
// for, and for how long in all, is its callers' to know.
package pause

import (
	"context"
	"time"
)

// For waits for d and says whether it passed: false is that ctx ended first.
func For(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
