package image

import (
	"context"

	"golang.org/x/time/rate"
)

// burst is how many bytes may pass at once, whatever the rate.
const burst = 256 << 10

func newLimiter() *rate.Limiter { return rate.NewLimiter(rate.Inf, burst) }

// SetRate bounds what this host sends and what it receives, each in bytes a second
// for all transfers together; 0 is no bound. It holds for those at work too.
func (s *Store) SetRate(bytes int64) {
	limit := rate.Inf
	if bytes > 0 {
		limit = rate.Limit(bytes)
	}
	for _, l := range []*rate.Limiter{s.sending, s.receiving} {
		if l.Limit() != limit {
			l.SetLimit(limit)
		}
	}
}

// pass waits until n bytes may pass.
func pass(ctx context.Context, l *rate.Limiter, n int) error {
	for n > 0 && l.Limit() != rate.Inf {
		k := min(n, burst)
		if err := l.WaitN(ctx, k); err != nil {
			return err
		}
		n -= k
	}
	return nil
}
