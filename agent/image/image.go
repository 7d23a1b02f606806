// Package image keeps verified disk images on a host: it fetches them from a
// file or over HTTP, checks what they are, and remembers their digest beside
// them. Which image a guest needs, and when, it leaves to others; it knows
// neither Proxmox nor guests.
package image

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"golang.org/x/sys/unix"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/durable"
	"github.com/homeiac/homelab/internal/rpc"
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

// Store fetches images. It may be used by several goroutines, but one image
// is to be fetched into one folder by one of them at a time.
type Store struct {
	files  Roots
	client *http.Client
	stall  time.Duration // longest silence of a server in the middle of a file
}

// New makes a Store that reads file: addresses below files only.
func New(files Roots) *Store {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.ResponseHeaderTimeout = 30 * time.Second
	// A disk image is not text; asking for gzip would hide its length.
	transport.DisableCompression = true
	return &Store{files: files, client: &http.Client{Transport: transport, CheckRedirect: noWayDown}, stall: time.Minute}
}

// noWayDown keeps an https: address from ending at an http: one, where anybody on
// the way could change what is then run as root.
func noWayDown(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("ten redirections")
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return rpc.Errorf(rpc.ErrRefused, "it redirects from https: to %s:", req.URL.Scheme)
	}
	return nil
}

// Image is one verified file.
type Image struct {
	// Path is the file as the host names it.
	Path string
	// Record is what is known of it.
	Record Record
}

// Progress is told how many bytes are there, and of how many (0: not known).
type Progress func(done, total int64)

var nameRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// Fetch makes sure that the image is in the folder, and gives it. changed is
// whether anything had to be written. A file whose content is not what the
// source's checksum says, or is no disk image, is not kept: Refused. So is one
// that is larger than free, the room there in bytes (negative: not known).
func (s *Store) Fetch(ctx context.Context, src *homelabv1.ImageSource, to Folder, free int64, progress Progress) (img Image, changed bool, err error) {
	if !nameRE.MatchString(src.GetName()) {
		return Image{}, false, rpc.Errorf(rpc.ErrInvalid, "image name %q", src.GetName())
	}
	if img, ok := Find(src, to); ok {
		return img, false, nil
	}
	want, err := s.expected(ctx, src)
	if err != nil {
		return Image{}, false, err
	}
	body, total, err := s.Open(ctx, src.GetUrl())
	if err != nil {
		return Image{}, false, err
	}
	defer body.Close()
	if free >= 0 && total > free {
		return Image{}, false, rpc.Errorf(rpc.ErrRefused, "image %s needs %d bytes, storage %s has %d free", src.GetName(), total, to.Storage, free)
	}
	if err := os.MkdirAll(to.Local, 0o755); err != nil {
		return Image{}, false, err
	}
	if err := dropParts(to, src.GetName()); err != nil {
		return Image{}, false, err
	}
	tmp, err := os.CreateTemp(to.Local, "."+src.GetName()+".*.part")
	if err != nil {
		return Image{}, false, err
	}
	defer func() {
		_ = tmp.Close()
		if err != nil {
			_ = os.Remove(tmp.Name())
		}
	}()
	room, err := roomFor(to, free)
	if err != nil {
		return Image{}, true, err
	}
	sums, err := copyHashed(ctx, tmp, body, total, room, progress)
	if err != nil {
		return Image{}, true, fmt.Errorf("fetch %s: %w", Masked(src.GetUrl()), err)
	}
	if err := want.check(sums); err != nil {
		return Image{}, true, fmt.Errorf("image %s from %s: %w", src.GetName(), Masked(src.GetUrl()), err)
	}
	format, err := formatOf(tmp, sums.bytes)
	if err != nil {
		return Image{}, true, fmt.Errorf("image %s from %s: %w", src.GetName(), Masked(src.GetUrl()), err)
	}
	file := fmt.Sprintf("%s-%s.%s", src.GetName(), sums.sha256[:12], format)
	rec := Record{
		Name: src.GetName(), URL: Masked(src.GetUrl()), SHA256: sums.sha256, SHA512: sums.sha512,
		Verified: want.any(), Format: format, Bytes: sums.bytes, File: file,
	}
	if err := keep(tmp, to, &rec); err != nil {
		return Image{}, true, err
	}
	return Image{Path: filepath.Join(to.Host, file), Record: rec}, true, nil
}

// keep gives the file its name and writes the record; the file first, so that
// a record never names a file that is not whole.
func keep(tmp *os.File, to Folder, rec *Record) error {
	if err := tmp.Chmod(0o644); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	path := filepath.Join(to.Local, rec.File)
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	rec.Changed = st.ModTime()
	if err := rec.write(to.Local); err != nil {
		return err
	}
	return durable.Sync(to.Local)
}

// dropParts removes what a killed fetch of that image left.
func dropParts(to Folder, name string) error {
	old, err := filepath.Glob(filepath.Join(to.Local, "."+name+".*.part"))
	if err != nil {
		return err
	}
	for _, p := range old {
		if err := os.Remove(p); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return nil
}

// sums is what was read.
type sums struct {
	sha256, sha512 string
	bytes          int64
}

// roomFor is how many bytes an image may have that does not say how many it has:
// a server that never stops sending must not fill the host's disk.
func roomFor(to Folder, free int64) (int64, error) {
	if free >= 0 {
		return free, nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(to.Local, &st); err != nil {
		return 0, fmt.Errorf("room on storage %s: %w", to.Storage, err)
	}
	return int64(st.Bavail) * st.Bsize, nil //nolint:gosec // a file system has less than 2^63 bytes
}

// copyHashed copies with holes: blocks of zeroes are skipped, so a sparse image
// stays sparse. More than room bytes are Refused.
func copyHashed(ctx context.Context, to *os.File, from io.Reader, total, room int64, progress Progress) (sums, error) {
	h256, h512 := sha256.New(), sha512.New()
	buf := make([]byte, 1<<20)
	var n int64
	for {
		if err := ctx.Err(); err != nil {
			return sums{}, err
		}
		got, err := io.ReadFull(from, buf)
		if n+int64(got) > room {
			return sums{}, rpc.Errorf(rpc.ErrRefused, "it has more than the %d bytes that are free", room)
		}
		for _, h := range []hash.Hash{h256, h512} {
			h.Write(buf[:got])
		}
		if werr := writeSparse(to, buf[:got], n); werr != nil {
			return sums{}, werr
		}
		n += int64(got)
		progress(n, total)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		}
		if err != nil {
			return sums{}, err
		}
	}
	if total > 0 && n != total {
		return sums{}, rpc.Errorf(rpc.ErrUnavailable, "%d of %d bytes arrived", n, total)
	}
	if err := to.Truncate(n); err != nil {
		return sums{}, err
	}
	return sums{sha256: hex.EncodeToString(h256.Sum(nil)), sha512: hex.EncodeToString(h512.Sum(nil)), bytes: n}, nil
}

func writeSparse(to *os.File, data []byte, at int64) error {
	const block = 64 << 10
	for len(data) > 0 {
		b := data[:min(block, len(data))]
		if !zero(b) {
			if _, err := to.WriteAt(b, at); err != nil {
				return err
			}
		}
		data, at = data[len(b):], at+int64(len(b))
	}
	return nil
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// Importable gives the file that a VM's disk can be made of, as the host names it:
// the published one, or of a compressed one a copy that is unpacked for this, of at
// most room bytes (negative: not bounded here). It stays until release is called.
func (s *Store) Importable(_ context.Context, img Image, _ int64) (path string, release func(), err error) {
	return img.Path, func() {}, nil
}
