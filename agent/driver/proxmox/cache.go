package proxmox

import (
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/homeiac/homelab/agent/driver/proxmox/parse"
)

// cache keeps what files were parsed into, as long as the files are the same by
// time, size and inode: a file of /etc/pve is replaced as a whole, never written
// in place. Observing an idle host then parses nothing.
type cache[T any] struct {
	parse func([]byte) T

	mu   sync.Mutex
	held map[string]*parsed[T]
}

type parsed[T any] struct {
	mtime time.Time
	size  int64
	inode uint64
	value T
	used  bool // since the last sweep
}

func newCache[T any](parse func([]byte) T) *cache[T] {
	return &cache[T]{parse: parse, held: map[string]*parsed[T]{}}
}

// read gives the parsed file.
func (c *cache[T]) read(path string) (T, error) {
	var none T
	info, err := os.Stat(path)
	if err != nil {
		return none, err
	}
	var inode uint64
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		inode = s.Ino
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.held[path]; p != nil && p.mtime.Equal(info.ModTime()) && p.size == info.Size() && p.inode == inode {
		p.used = true
		return p.value, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return none, err
	}
	// A file replaced between the two looks is kept under the old stamp, and read
	// again at the next.
	p := &parsed[T]{mtime: info.ModTime(), size: info.Size(), inode: inode, value: c.parse(text), used: true}
	c.held[path] = p
	return p.value, nil
}

// fresh reads and parses a file past the cache: before something is removed for
// good, a file that was replaced within one tick of its clock must not be missed.
func fresh[T any](parse func([]byte) T, path string) (T, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		var none T
		return none, err
	}
	return parse(text), nil
}

// freshVM is fresh for a VM's configuration.
func freshVM(path string) (*parse.Config, error) { return fresh(parse.VM, path) }

// sweep forgets files that nobody asked for since the last sweep.
func (c *cache[T]) sweep() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for path, p := range c.held {
		if !p.used {
			delete(c.held, path)
		}
		p.used = false
	}
}
