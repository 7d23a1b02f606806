package controller

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/homeiac/homelab/controller/plan"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/spec"
)

// transfer is one image on its way to the hosts of a run. One host at a time may
// read it from its source; the rest get it from that one and from each other, as
// it comes. Who may get it from whom is an order without circles: from a host that
// has all of it, or from one that was earlier in the order. When the host that
// reads the source fails, the one that is furthest on takes over.
type transfer struct {
	image  *spec.Image
	old    bool   // only hosts can have it: its source gives another one now
	newest bool   // its name is resolved anew
	before string // the digest that the name stood for; for newest
	told   bool   // it was said what the name stands for now
	// held tells how much of the image hosts have now, in bytes, of those that
	// answer. It is asked when the reader was lost.
	held func(ctx context.Context, hosts []string) map[string]int64
	now  func() time.Time

	mu       sync.Mutex
	digest   plan.Image     // SHA256 and SHA512 are empty while nobody knows what it is
	listed   bool           // its list of checksums was read, or it has none
	reader   string         // the host that may read the source; empty for none
	promised time.Time      // since when the reader has not come for it; zero when it has
	lost     bool           // there was a reader, and it failed
	failed   string         // the host whose attempt to read the source failed last
	order    []string       // hosts that get it now, the reader first
	whole    []string       // hosts that have all of it
	refused  map[string]int // how often a host could not get it from those that have all of it
	fault    error          // why its source does not give it
	most     int64          // the most that a reader had when its attempt failed, in bytes
	barren   int            // attempts of readers since then
	tried    []string       // who made them
	changed  chan struct{}  // closed and made anew when any of this changes
}

// promiseLimit is how long a host that is furthest on is waited for to read on.
const promiseLimit = 20 * time.Second

// turn is what one host does in a transfer.
type turn struct {
	peers  []string // hosts to get it from, best first
	wan    bool     // it may read the source
	digest plan.Image
}

// newTransfer begins one. whole are the hosts that hold it already.
func newTransfer(image *spec.Image, digest plan.Image, whole []string) *transfer {
	return &transfer{
		image: image, digest: digest, listed: image.Checksums == "", whole: whole,
		refused: make(map[string]int), changed: make(chan struct{}), now: time.Now,
	}
}

func (t *transfer) known() bool { return t.digest.SHA256 != "" || t.digest.SHA512 != "" }

// tell wakes who waits; mu is held.
func (t *transfer) tell() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// join gives a host its role, and waits for it while the digest must be found out
// by another host first. list reads the list of checksums through that host. over
// ends the wait.
func (t *transfer) join(ctx context.Context, host string, over <-chan struct{}, list func(context.Context) (plan.Image, error)) (turn, error) {
	for {
		t.mu.Lock()
		if t.fault != nil {
			defer t.mu.Unlock()
			return turn{}, t.fault
		}
		switch {
		case t.known():
			t.mu.Unlock()
			return t.take(ctx, host), nil
		case t.reader == "" || t.reader == host:
			t.reader = host
			listed := t.listed
			t.mu.Unlock()
			if listed {
				return turn{wan: true}, nil
			}
			if err := t.readList(ctx, host, list); err != nil {
				return turn{}, err
			}
			continue
		}
		changed := t.changed
		t.mu.Unlock()
		select {
		case <-changed:
		case <-over:
			return turn{}, errCancelled
		case <-ctx.Done():
			return turn{}, context.Cause(ctx)
		}
	}
}

// readList finds the digest in the image's list of checksums.
func (t *transfer) readList(ctx context.Context, host string, list func(context.Context) (plan.Image, error)) error {
	digest, err := list(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	defer t.tell()
	if t.reader == host {
		t.reader = "" // whoever reads the source is decided anew
	}
	switch kind := rpc.KindOf(err); {
	case kind == rpc.ErrRefused || kind == rpc.ErrNotFound:
		t.fault = err
		return err
	case err != nil:
		return err
	}
	t.listed, t.digest = true, digest
	return nil
}

// take gives a host its role in a transfer whose digest is known.
func (t *transfer) take(ctx context.Context, host string) turn {
	t.mu.Lock()
	ask := t.lost && t.reader == "" && t.held != nil
	active := slices.Clone(t.order)
	t.mu.Unlock()
	var held map[string]int64
	if ask {
		held = t.held(ctx, active)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !slices.Contains(t.order, host) {
		t.order = append(t.order, host)
	}
	if t.reader != "" && t.reader != host && !t.promised.IsZero() && t.now().Sub(t.promised) > promiseLimit {
		t.reader = ""
	}
	if t.reader == "" && !t.old && t.needsReader(host) {
		t.reader, t.promised = host, time.Time{}
		if next := furthest(t.order, held); next != "" && held[next] > held[host] {
			t.reader, t.promised = next, t.now()
		} else if next := t.another(host, held); next != "" {
			t.reader, t.promised = next, t.now()
		}
		t.lost = false
		t.order = append([]string{t.reader}, slices.DeleteFunc(t.order, func(h string) bool { return h == t.reader })...)
		t.tell()
	}
	if t.reader == host {
		t.promised = time.Time{}
	}
	return turn{peers: t.peers(host), wan: t.reader == host, digest: t.digest}
}

// needsReader says whether the source must be read for a host: nobody has all of
// it, or it could not be had from those who say that they have.
func (t *transfer) needsReader(host string) bool {
	others := slices.DeleteFunc(slices.Clone(t.whole), func(h string) bool { return h == host })
	return len(others) == 0 || t.refused[host] > 1
}

// another is who reads the source instead of a host that just failed to: the fault may
// be that host's alone. Who has less would read again what is there already; who has not
// read it yet comes before those who failed to.
func (t *transfer) another(host string, held map[string]int64) string {
	if host != t.failed {
		return ""
	}
	found := ""
	for _, h := range t.order {
		has, there := held[h]
		switch {
		case h == host || !there || has < held[host]:
		case !slices.Contains(t.tried, h):
			return h
		case found == "":
			found = h
		}
	}
	return found
}

// furthest is the host that has most; the earlier one of two.
func furthest(order []string, held map[string]int64) string {
	best := ""
	for _, h := range order {
		if held[h] > held[best] {
			best = h
		}
	}
	return best
}

// peers are those that a host may get the image from. Who has all of it comes
// first, each host beginning with another of them; then the host's parent in a tree
// over the order, so that no one host sends to all; then the others before it.
func (t *transfer) peers(host string) []string {
	whole := slices.DeleteFunc(slices.Clone(t.whole), func(h string) bool { return h == host })
	place := slices.Index(t.order, host)
	if n := len(whole); n > 1 {
		from := place % n
		whole = append(slices.Clone(whole[from:]), whole[:from]...)
	}
	if t.reader == host || place <= 0 {
		return whole
	}
	before := slices.Clone(t.order[:place])
	parent := before[(place-1)/2]
	before = append([]string{parent}, slices.DeleteFunc(before, func(h string) bool { return h == parent })...)
	return append(whole, slices.DeleteFunc(before, func(h string) bool { return slices.Contains(whole, h) })...)
}

// broke says that a host's attempt failed. The reader gives its role up; one that was
// promised it has ended what it did before, and comes for it next.
func (t *transfer) broke(host string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.reader == host && t.promised.IsZero() {
		t.reader, t.lost, t.failed = "", true, host
	} else if t.reader != host && len(t.whole) > 0 {
		t.refused[host]++
	}
	t.tell()
}

// sourceAttempts is how often in a row the source may be read without giving more
// than before. Each time the agent has asked each of its addresses several times.
const sourceAttempts = 3

// reads says whether a host may read the source now.
func (t *transfer) reads(host string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.reader == host && t.promised.IsZero()
}

// readInVain says that the reader's attempt failed, why, and how much it has. A source
// that never gives more than that is at fault: else one that breaks off would be read
// for ever, and all of it each time when nothing can be gone on from.
func (t *transfer) readInVain(host string, held int64, why error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if held > t.most {
		t.most, t.barren, t.tried = held, 0, nil
	}
	if !slices.Contains(t.tried, host) {
		t.tried = append(t.tried, host)
	}
	if t.barren++; t.barren >= sourceAttempts && t.fault == nil {
		t.fault = rpc.Errorf(rpc.ErrUnavailable, "%s read its source %d times: %w", strings.Join(t.tried, ", "), t.barren, why)
		t.tell()
	}
}

// readByAnother says whether another host than this one reads the source now.
func (t *transfer) readByAnother(host string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.reader != "" && t.reader != host
}

// leave says that a host gets it no more.
func (t *transfer) leave(host string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.order = slices.DeleteFunc(t.order, func(h string) bool { return h == host })
	if t.reader == host {
		t.reader, t.lost = "", true
	}
	t.tell()
}

// arrived says that a host has all of it, and what it is.
func (t *transfer) arrived(host string, digest plan.Image) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.digest = digest
	t.order = slices.DeleteFunc(t.order, func(h string) bool { return h == host })
	if !slices.Contains(t.whole, host) {
		t.whole = append(t.whole, host)
	}
	if t.reader == host {
		t.reader, t.lost = "", false
	}
	t.tell()
}

// faulty says why the source does not give it: nobody else need ask.
func (t *transfer) faulty(host, why string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fault == nil {
		t.fault = rpc.Errorf(rpc.ErrRefused, "%s read its source: %s", host, why)
	}
	t.tell()
}

// transfers are those of one run, by image and digest.
type transfers struct {
	mu  sync.Mutex
	all map[string]*transfer
	// progressed is when a step about an image last said that it went on, by step.
	progressed map[string]time.Time
}

func newTransfers() *transfers {
	return &transfers{all: make(map[string]*transfer), progressed: make(map[string]time.Time)}
}

func (t *transfers) get(key string, begin func() *transfer) *transfer {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all[key] == nil {
		t.all[key] = begin()
	}
	return t.all[key]
}

// of is the transfer of a key; nil when there is none.
func (t *transfers) of(key string) *transfer {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.all[key]
}

func (t *transfers) goesOn(step string, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.progressed[step] = at
}

func (t *transfers) lastProgress(step string) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.progressed[step]
}
