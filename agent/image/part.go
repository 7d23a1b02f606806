package image

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/durable"
	"github.com/homeiac/homelab/internal/rpc"
)

// sidecar is what is remembered of a part, in a file beside it. The part's first
// Done bytes were on the disk before it was written.
type sidecar struct {
	Name string `json:"name"`
	Type string `json:"type,omitempty"`
	// Origin is the hash of the address that ETag is of: it may hold a password.
	Origin string `json:"origin,omitempty"`
	ETag   string `json:"etag,omitempty"`
	// SHA256 and SHA512 are what the whole is to have; empty when not known.
	SHA256 string   `json:"sha256,omitempty"`
	SHA512 string   `json:"sha512,omitempty"`
	Total  int64    `json:"total,omitempty"` // size of the whole, 0 when not known
	Done   int64    `json:"done"`
	Sum    string   `json:"sum"`            // SHA-256 of the first Done bytes
	From   []string `json:"from,omitempty"` // who gave them
}

const (
	partSuffix = ".part"
	sideSuffix = ".part.json"
	// partAge is after how long nobody resumes a part any more.
	partAge = 7 * 24 * time.Hour
)

// part is a file that is being fetched: its first done bytes are there. One
// goroutine adds to it; others may read what is there, and wait for more.
type part struct {
	path, side string
	name       string
	iso        bool
	want       Digests
	every      time.Duration // how often the sidecar is written
	f          *os.File
	h256, h512 hash.Hash // of the first done bytes; h512 is nil when nobody wants it

	// Of the one who adds to it.
	origin, etag string
	from         []string
	pieces       int // answers that it was put together from
	saved        time.Time
	saving       chan struct{} // closed when the sidecar that is being written is

	mu          sync.Mutex
	moved       chan struct{} // closed and made anew with each change
	done, total int64
	began       int // how often it was begun anew
	over, whole bool
}

// partKey tells apart parts of one name: by what the whole is to have, or where
// it comes from.
func partKey(src *homelabv1.ImageSource, want Digests) string {
	key := "url " + src.GetUrl()
	if want.Known() {
		key = want.String()
	}
	return hashText(key)[:16]
}

func hashText(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// openPart opens the part of a file, with what an earlier fetch left of it as far
// as that is whole. It is registered until it is closed; a second one is Busy, and one
// that another host has on shared storage errElsewhere.
func (s *Store) openPart(ctx context.Context, src *homelabv1.ImageSource, want Digests, to Folder) (*part, error) {
	base := filepath.Join(to.Local, "."+src.GetName()+"-"+partKey(src, want))
	p := &part{
		path: base + partSuffix, side: base + sideSuffix, name: src.GetName(), iso: isISO(src), want: want, every: s.every,
		moved: make(chan struct{}), total: src.GetBytes(), saved: time.Now(),
	}
	if !want.Known() {
		p.total = 0 // a size that was seen once is no promise
	}
	s.mu.Lock()
	if s.parts[p.path] != nil {
		s.mu.Unlock()
		return nil, rpc.Errorf(rpc.ErrBusy, "image %s is being fetched to storage %s already", src.GetName(), to.Storage)
	}
	s.parts[p.path] = p
	s.mu.Unlock()
	// Another host may have removed the folder that it made, in vain.
	err := os.MkdirAll(to.Local, 0o755)
	var f *os.File
	if err == nil {
		f, err = os.OpenFile(p.path, os.O_RDWR|os.O_CREATE, 0o644)
	}
	if err == nil && (!lock(f) || !isAt(f, p.path)) {
		_ = f.Close()
		err = errElsewhere{p.path}
	}
	if err != nil { // nothing of it is ours
		s.mu.Lock()
		delete(s.parts, p.path)
		s.mu.Unlock()
		return nil, err
	}
	p.f = f
	if err := p.load(ctx); err != nil {
		s.closePart(p, false, false)
		return nil, err
	}
	return p, nil
}

// closePart ends it. What is not whole stays only to be resumed.
func (s *Store) closePart(p *part, whole, keep bool) {
	p.settle()
	if !keep && !whole {
		_ = os.Remove(p.path)
		_ = os.Remove(p.side)
	}
	_ = p.f.Close()
	s.mu.Lock()
	delete(s.parts, p.path)
	s.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over, p.whole = true, whole
	p.wake()
}

// load reads back what the sidecar says that is there.
func (p *part) load(ctx context.Context) error {
	p.fresh()
	side, ok := readSide(p.side)
	if !ok || side.Done <= 0 || side.SHA256 != p.want.SHA256 || side.SHA512 != p.want.SHA512 {
		return p.f.Truncate(0)
	}
	if err := p.read(ctx, side.Done); err != nil {
		return err
	}
	if hex.EncodeToString(p.h256.Sum(nil)) != side.Sum {
		p.fresh()
		return p.f.Truncate(0)
	}
	p.done, p.origin, p.etag, p.from, p.pieces = side.Done, side.Origin, side.ETag, side.From, 1
	if p.total == 0 {
		p.total = side.Total
	}
	return p.f.Truncate(p.done)
}

// read hashes the first n bytes.
func (p *part) read(ctx context.Context, n int64) error {
	buf := make([]byte, burst)
	from := io.NewSectionReader(p.f, 0, n)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		k, err := from.Read(buf)
		p.hash(buf[:k])
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (p *part) hash(b []byte) {
	_, _ = p.h256.Write(b) // a hash takes everything
	if p.h512 != nil {
		_, _ = p.h512.Write(b)
	}
}

func (p *part) fresh() {
	p.h256, p.h512 = sha256.New(), nil
	if p.want.SHA512 != "" {
		p.h512 = sha512.New()
	}
}

func readSide(path string) (sidecar, bool) {
	data, err := os.ReadFile(path)
	var s sidecar
	return s, err == nil && json.Unmarshal(data, &s) == nil
}

// restart drops all that is there.
func (p *part) restart() error {
	p.settle()
	p.fresh()
	p.origin, p.etag, p.from, p.pieces = "", "", nil, 0
	p.mu.Lock()
	if p.done > 0 {
		p.began++
	}
	p.done = 0
	p.wake()
	p.mu.Unlock()
	_ = os.Remove(p.side)
	return p.f.Truncate(0)
}

// wake tells those who wait; mu is held.
func (p *part) wake() {
	close(p.moved)
	p.moved = make(chan struct{})
}

func (p *part) add(n int) (done int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += int64(n)
	p.wake()
	return p.done
}

func (p *part) size() (done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done, p.total
}

func (p *part) setTotal(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.total = n
}

// gave notes who the bytes come from.
func (p *part) gave(who string) {
	if !slices.Contains(p.from, who) {
		p.from = append(p.from, who)
	}
}

// digests of what is there. SHA-512 is empty when nobody wants it.
func (p *part) digests() Digests {
	d := Digests{SHA256: hex.EncodeToString(p.h256.Sum(nil))}
	if p.h512 != nil {
		d.SHA512 = hex.EncodeToString(p.h512.Sum(nil))
	}
	return d
}

// resumable is whether a later fetch can go on from what is there.
func (p *part) resumable() bool { return p.done > 0 && (p.want.Known() || p.etag != "") }

// note writes the sidecar now and then, beside what goes on: data first.
func (p *part) note() {
	if !p.resumable() || time.Since(p.saved) < p.every {
		return
	}
	select {
	case <-p.saving:
	default:
		if p.saving != nil {
			return
		}
	}
	side, saving := p.state(), make(chan struct{})
	p.saved, p.saving = time.Now(), saving
	go func() {
		defer close(saving)
		_ = p.write(side) // else less is resumed
	}()
}

// settle waits until the sidecar that is being written is.
func (p *part) settle() {
	if p.saving != nil {
		<-p.saving
	}
}

// save writes the sidecar now.
func (p *part) save() error {
	p.settle()
	return p.write(p.state())
}

func (p *part) state() sidecar {
	side := sidecar{
		Name: p.name, Origin: p.origin, ETag: p.etag, SHA256: p.want.SHA256, SHA512: p.want.SHA512,
		Sum: hex.EncodeToString(p.h256.Sum(nil)), From: slices.Clone(p.from),
	}
	side.Done, side.Total = p.size()
	if p.iso {
		side.Type = typeISO
	}
	return side
}

func (p *part) write(side sidecar) error {
	data, err := json.Marshal(side)
	if err != nil {
		return err
	}
	if err := p.f.Sync(); err != nil {
		return err
	}
	return durable.Write(p.side, data)
}

// Parts tells the image files of which a part is there.
func (s *Store) Parts(folders []Folder) []*homelabv1.ImagePart {
	var out []*homelabv1.ImagePart
	for _, f := range folders {
		paths, err := filepath.Glob(filepath.Join(f.Local, ".*"+partSuffix))
		if err != nil {
			continue
		}
		slices.Sort(paths)
		for _, path := range paths {
			if one := s.partAt(f, path); one != nil {
				out = append(out, one)
			}
		}
	}
	return out
}

func (s *Store) partAt(f Folder, path string) *homelabv1.ImagePart {
	s.mu.Lock()
	p := s.parts[path]
	s.mu.Unlock()
	one := &homelabv1.ImagePart{Storage: f.Storage, Type: homelabv1.ImageType_IMAGE_TYPE_DISK}
	if p != nil {
		one.Name, one.Sha256, one.Sha512, one.Active = p.name, p.want.SHA256, p.want.SHA512, true
		one.DoneBytes, one.Bytes = p.size()
		if p.iso {
			one.Type = homelabv1.ImageType_IMAGE_TYPE_ISO
		}
		return one
	}
	side, ok := readSide(strings.TrimSuffix(path, partSuffix) + sideSuffix)
	if !ok || side.Done == 0 {
		return nil
	}
	one.Name, one.Sha256, one.Sha512, one.DoneBytes, one.Bytes = side.Name, side.SHA256, side.SHA512, side.Done, side.Total
	one.Active = lockedElsewhere(path)
	if side.Type == typeISO {
		one.Type = homelabv1.ImageType_IMAGE_TYPE_ISO
	}
	return one
}

// dropParts removes the parts of an image that nobody will resume: those that no
// sidecar is of, old ones, and with all every one that nobody is at.
func (s *Store) dropParts(to Folder, name string, all bool) error {
	paths, err := filepath.Glob(filepath.Join(to.Local, "."+name+"*"+partSuffix))
	if err != nil {
		return err
	}
	for _, path := range paths {
		side := strings.TrimSuffix(path, partSuffix) + sideSuffix
		known, ok := readSide(side)
		if ok && known.Name != name {
			continue // an image whose name begins with this one's
		}
		if !ok && !isPartOf(filepath.Base(path), name) {
			continue
		}
		st, err := os.Stat(path)
		if err != nil || ok && !all && time.Since(st.ModTime()) < partAge {
			continue
		}
		if err := s.dropPart(path); err != nil {
			return fmt.Errorf("drop a part of image %s: %w", name, err)
		}
	}
	return nil
}

// dropPart removes a part and its sidecar, unless it is being fetched, here or elsewhere.
func (s *Store) dropPart(path string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.parts[path] != nil || lockedElsewhere(path) {
		return nil
	}
	return errors.Join(durable.Remove(path), durable.Remove(strings.TrimSuffix(path, partSuffix)+sideSuffix))
}

// leftParts are the parts of the file with that SHA-256 that nobody fetches.
func (s *Store) leftParts(sha256 string, in Folder) []string {
	paths, _ := filepath.Glob(filepath.Join(in.Local, ".*"+partSuffix)) // the pattern is well
	return slices.DeleteFunc(paths, func(path string) bool {
		s.mu.Lock()
		active := s.parts[path] != nil
		s.mu.Unlock()
		side, ok := readSide(strings.TrimSuffix(path, partSuffix) + sideSuffix)
		return active || !ok || side.SHA256 != sha256 || lockedElsewhere(path)
	})
}

// isPartOf says whether a file is a part of that very image: .NAME-KEY.part, or
// .NAME.RANDOM.part as agents before peers had them.
func isPartOf(file, name string) bool {
	rest := strings.TrimSuffix(strings.TrimPrefix(file, "."+name), partSuffix)
	if rest == "" || strings.Contains(rest[1:], "-") {
		return false
	}
	return rest[0] == '.' && !strings.Contains(rest[1:], ".") || rest[0] == '-' && hexOf(rest[1:], 16)
}
