package rpc

import (
	"sync"
	"time"
)

const (
	// repeatEvery is how often at most the same refusal is told.
	repeatEvery = time.Minute
	// repeatKinds bounds what is told apart: a stranger chooses what it is refused
	// for, and must not fill the memory with it.
	repeatKinds = 512
)

// Repeats tells what happens again and again once, and then once a minute how often
// it happened since.
type Repeats struct {
	mu   sync.Mutex
	seen map[string]*repeat
}

type repeat struct {
	more int // since it was told
	tell func(n int)
}

// Note tells at once what is new, by calling tell with 1. What was told less than a
// minute ago is counted, and told at that minute's end. Of too many different things
// at once the rest are told as one, by other.
func (r *Repeats) Note(key string, tell, other func(n int)) {
	r.mu.Lock()
	if r.seen == nil {
		r.seen = make(map[string]*repeat)
	}
	if len(r.seen) >= repeatKinds && r.seen[key] == nil {
		key, tell = "", other
	}
	if known := r.seen[key]; known != nil {
		known.more++
		r.mu.Unlock()
		return
	}
	r.seen[key] = &repeat{tell: tell}
	r.mu.Unlock()
	time.AfterFunc(repeatEvery, func() { r.again(key) })
	tell(1)
}

func (r *Repeats) again(key string) {
	r.mu.Lock()
	known := r.seen[key]
	n := known.more
	if n == 0 {
		delete(r.seen, key)
		r.mu.Unlock()
		return
	}
	known.more = 0
	r.mu.Unlock()
	time.AfterFunc(repeatEvery, func() { r.again(key) })
	known.tell(n)
}
