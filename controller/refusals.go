package controller

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/homeiac/homelab/controller/store"
	"github.com/homeiac/homelab/internal/rpc"
)

// Limits of those who come without a certificate: calls at once, and one more after
// each interval.
const (
	sourceBurst = 10
	sourceEvery = 2 * time.Second
	allBurst    = 100
	allEvery    = 100 * time.Millisecond
	// maxSources bounds what is kept of those who came.
	maxSources = 1000
)

// refusal is one call by somebody who got nothing.
type refusal struct {
	source string // IP address
	call   string // Enrol or Renew
	who    string // what they claim to be; may be empty
	reason string // without anything secret
}

// refused is told every refusal of a call that needs no certificate: the one place
// for it. It writes them to the log, and into the audit where it is known for whom the
// token or the certificate was: what strangers say is not to fill that.
func (c *Controller) refused(r refusal) {
	if count := c.seldom.note(r.source+" "+r.call+" "+r.reason, c.now()); count > 0 {
		c.log.Warn("refused", "source", r.source, "call", r.call, "who", r.who, "reason", r.reason, "count", count)
		if r.who != "" {
			now := c.now().UTC()
			c.noteAct(store.Act{
				Time: now, Ended: now, Who: "unknown@" + r.source, Method: strings.ToLower(r.call), What: "as " + word(r.who),
				Result: rpc.KindName(rpc.ErrDenied), Text: cut(r.reason, auditText), Count: count,
			})
		}
	}
}

// seldom says a thing at most once a minute, and then how often it was.
type seldom struct {
	mu   sync.Mutex
	seen map[string]*said
}

type said struct {
	at    time.Time
	since int
}

// note counts one of a kind; what it returns is how many are to be told of now, 0 is
// none.
func (s *seldom) note(kind string, now time.Time) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen == nil {
		s.seen = make(map[string]*said)
	}
	k := s.seen[kind]
	if k == nil {
		if len(s.seen) >= maxSources {
			for old, was := range s.seen {
				if now.Sub(was.at) >= time.Minute {
					delete(s.seen, old)
				}
			}
			if len(s.seen) >= maxSources {
				return 0 // so many at once that one more says nothing
			}
		}
		s.seen[kind] = &said{at: now}
		return 1
	}
	k.since++
	if now.Sub(k.at) < time.Minute {
		return 0
	}
	count := k.since
	k.at, k.since = now, 0
	return count
}

// limiter bounds calls, of one source and of all.
type limiter struct {
	now func() time.Time

	mu  sync.Mutex
	all bucket
	by  map[string]*bucket
}

// bucket is when it will be full again; that far ahead of now it is empty.
type bucket struct{ full time.Time }

func (b *bucket) take(now time.Time, burst int, every time.Duration) bool {
	if b.full.Before(now) {
		b.full = now
	}
	if b.full.Sub(now) > time.Duration(burst-1)*every {
		return false
	}
	b.full = b.full.Add(every)
	return true
}

// admit says whether a source may make a call now.
func (l *limiter) admit(source string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if l.by == nil {
		l.by = make(map[string]*bucket)
	}
	b := l.by[source]
	if b == nil {
		if len(l.by) >= maxSources {
			for old, was := range l.by {
				if was.full.Before(now) {
					delete(l.by, old)
				}
			}
		}
		b = new(bucket)
		if len(l.by) < maxSources {
			l.by[source] = b
		}
	}
	// One source that asks too often takes nothing from the others.
	if !b.take(now, sourceBurst, sourceEvery) || !l.all.take(now, allBurst, allEvery) {
		return rpc.Errorf(rpc.ErrBusy, "too many attempts; try again in %s", fmt.Sprint(sourceEvery*sourceBurst))
	}
	return nil
}
