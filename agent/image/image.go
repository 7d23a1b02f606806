// Package image keeps verified disk images and ISO files on a host: it fetches
// them from a file, over HTTP and from other hosts, checks what they are, and
// remembers their digest beside them. What is kept and passed on is the file as
// published; what is compressed is unpacked for who needs it. Which image a guest
// needs, and when, it leaves to others; it knows neither Proxmox nor guests.
package image

import (
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/homeiac/homelab/internal/durable"
)

// Folder is where the images of one storage lie.
type Folder struct {
	// Storage is the storage's id.
	Storage string
	// Host is the folder as the host names it, Local as this process does.
	Host, Local string
}

// FolderOf gives the folder for images on a directory storage: one of our own,
// which Proxmox does not list and nobody cleans.
func FolderOf(root, storage, storagePath string) Folder {
	host := filepath.Join("/", storagePath, "template", "homelab")
	return Folder{Storage: storage, Host: host, Local: filepath.Join(root, host)}
}

// files is where whole files lie: ISO files where Proxmox looks for them.
func (f Folder) files(iso bool) Folder {
	if !iso {
		return f
	}
	f.Host, f.Local = filepath.Join(filepath.Dir(f.Host), "iso"), filepath.Join(filepath.Dir(f.Local), "iso")
	return f
}

// Store fetches images and passes them on. It may be used by several goroutines.
type Store struct {
	files  Roots
	client *http.Client
	stall  time.Duration // longest silence of who sends
	every  time.Duration // how often it is noted how far a part is
	// patience is how long peers are asked again that have nothing for us yet, lull
	// that when they gave something and have no more; retry is the pause before
	// somebody is asked again.
	patience, lull, retry time.Duration
	// dry is how long a part that does not grow is passed on: who asks may be the one
	// that it waits for.
	dry                time.Duration
	sending, receiving *rate.Limiter

	born time.Time // what was written before is another process's
	tag  string    // of our unpacked copies: another host's may lie beside them

	mu       sync.Mutex
	parts    map[string]*part // by path
	unpacked map[string]*copyOf
	using    map[string]int // pulls and unpackings that read a whole file, by path
	pulls    int
}

// New makes a Store that reads file: addresses below files only.
func New(files Roots) *Store {
	tag := make([]byte, 4)
	_, _ = rand.Read(tag) // it never fails
	return &Store{
		files: files, client: newClient(), born: time.Now(), tag: hex.EncodeToString(tag), stall: time.Minute, every: time.Second, patience: 5 * time.Second, lull: 2 * time.Second, retry: 300 * time.Millisecond,
		dry:     5 * time.Second,
		sending: newLimiter(), receiving: newLimiter(),
		parts: make(map[string]*part), unpacked: make(map[string]*copyOf), using: make(map[string]int),
	}
}

// Image is one verified file.
type Image struct {
	// Path is the file as the host names it.
	Path string
	// Volume is an ISO file as Proxmox names it (local:iso/x.iso), else empty.
	Volume string
	// Record is what is known of it.
	Record Record

	local string // the file, for this process
	in    Folder // where its record is
}

var nameRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// ours is how the files in our folder are named: NAME-DIGEST.FORMAT, a copy that
// was unpacked NAME-DIGEST.unpacked.TAG.FORMAT.
var ours = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*-[0-9a-f]{12}(\.[a-z0-9]+)+$`)

const unpackedMark = ".unpacked."

// sweep removes what a killed agent left: unpacked copies that nobody uses, files
// whose record is gone, and records that were not written to their end.
func (s *Store) sweep(f Folder) {
	_ = durable.Tidy(f.Local, s.born) // it is tried again next time
	entries, err := os.ReadDir(f.Local)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range entries {
		path := filepath.Join(f.Local, e.Name())
		if !ours.MatchString(e.Name()) || strings.HasSuffix(e.Name(), recordSuffix) || s.unpacked[path] != nil || s.using[path] > 0 {
			continue
		}
		_, err := os.Lstat(path + recordSuffix)
		if unpacked := strings.Contains(e.Name(), unpackedMark); unpacked && lockedElsewhere(path) || !unpacked && !os.IsNotExist(err) {
			continue
		}
		_ = os.Remove(path) // it is tried again next time
	}
}
