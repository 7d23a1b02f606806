package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/homeiac/homelab/internal/durable"
	"github.com/homeiac/homelab/internal/human"
	"github.com/homeiac/homelab/internal/rpc"
)

// copyOf is an unpacked copy of an image that is in use, or being made.
type copyOf struct {
	users int
	ready chan struct{} // closed when it is made, or could not be
	f     *os.File      // has it locked for as long as it is used; nil when there is none
	err   error
}

// Importable gives the file that a VM's disk can be made of, as the host names it:
// the published one, or of a compressed one a copy that is unpacked for this, of at
// most room bytes (negative: what is free on the file system). It stays until
// release is called by the last of those who use it at the same time.
func (s *Store) Importable(ctx context.Context, img Image, room int64) (path string, release func(), err error) {
	if img.local == "" {
		return "", nil, rpc.Errorf(rpc.ErrInvalid, "image %s was not found by this store", img.Record.Name)
	}
	s.mu.Lock()
	s.using[img.local]++
	s.mu.Unlock()
	done := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.release(img.local)
	}
	if img.Record.Compression == "" {
		return img.Path, done, nil
	}
	s.sweep(img.in)
	name := strings.TrimSuffix(img.Record.File, "."+img.Record.Format+"."+img.Record.Compression) + unpackedMark + s.tag + "." + img.Record.Format
	local := filepath.Join(img.in.Local, name)
	if err := s.unpackTo(ctx, img, local, room); err != nil {
		done()
		return "", nil, fmt.Errorf("unpack image %s: %w", img.Record.Name, err)
	}
	return filepath.Join(img.in.Host, name), func() { s.leave(local); done() }, nil
}

// unpackTo makes the copy, or waits for who makes it, and counts a user more.
func (s *Store) unpackTo(ctx context.Context, img Image, local string, room int64) error {
	for {
		s.mu.Lock()
		c := s.unpacked[local]
		if c == nil {
			c = &copyOf{ready: make(chan struct{})}
			s.unpacked[local] = c
			c.users++
			s.mu.Unlock()
			c.err = s.unpack(ctx, img, local, room, c)
			close(c.ready)
			if c.err != nil {
				s.leave(local)
			}
			return c.err
		}
		c.users++
		s.mu.Unlock()
		select {
		case <-c.ready:
		case <-ctx.Done():
			s.leave(local)
			return ctx.Err()
		}
		if c.err == nil {
			return nil
		}
		s.leave(local)
		if errors.Is(c.err, rpc.ErrRefused) {
			return c.err
		}
		// Who made it was ended; we are not.
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// leave counts a user less; the last one removes the copy.
func (s *Store) leave(local string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.unpacked[local]
	if c == nil {
		return
	}
	if c.users--; c.users == 0 {
		delete(s.unpacked, local)
		_ = os.Remove(local) // sweep tries again
		if c.f != nil {
			_ = c.f.Close()
		}
	}
}

func (s *Store) unpack(ctx context.Context, img Image, local string, room int64, c *copyOf) (err error) {
	if room < 0 {
		if room, err = freeIn(img.in); err != nil {
			return err
		}
	}
	packed, err := os.Open(img.local)
	if err != nil {
		return err
	}
	defer packed.Close()
	z, err := unpacker(img.Record.Compression, packed)
	if err != nil {
		return err
	}
	defer z.Close()
	to, err := os.OpenFile(local, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	lock(to) // else another host of this storage sweeps it away
	c.f = to
	size, err := unpackInto(ctx, to, z, room)
	if err != nil {
		return err
	}
	h, err := headOf(to, size, false)
	switch {
	case err != nil:
		return err
	case h.Compression != "" || h.Format != img.Record.Format:
		return rpc.Errorf(rpc.ErrRefused, "what is in it is %s and was taken for %s", h.Format, img.Record.Format)
	}
	if err := to.Sync(); err != nil {
		return err
	}
	if r := img.Record; r.Unpacked != size || !r.Proved {
		r.unpacked(size)
		_ = r.write(img.in.Local) // else it is learned again next time
	}
	return durable.Sync(img.in.Local)
}

func unpackInto(ctx context.Context, to *os.File, z io.Reader, room int64) (int64, error) {
	buf := make([]byte, burst)
	for at := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return at, err
		}
		n, err := io.ReadFull(z, buf)
		if at+int64(n) > room {
			return at, rpc.Errorf(rpc.ErrRefused, "it has more than %s unpacked (%d bytes and more), and %d bytes are allowed", human.Size(at+int64(n)), at+int64(n), room)
		}
		if werr := writeSparse(to, buf[:n], at); werr != nil {
			return at, werr
		}
		at += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return at, nil
		}
		if err != nil {
			return at, err
		}
	}
}

// Prove unpacks a compressed file to its end, once, and keeps nothing of it: only then
// is known that it can be unpacked, and how large it gets. A raw disk of more than most
// bytes is Refused, since more of it need not be known; so is what cannot be unpacked.
// A file that is not compressed gives nothing to prove.
func (s *Store) Prove(ctx context.Context, img Image, most int64) (Image, error) {
	r := img.Record
	if r.Compression == "" || r.Proved {
		return img, nil
	}
	packed, err := os.Open(img.local)
	if err != nil {
		return img, err
	}
	defer packed.Close()
	z, err := unpacker(r.Compression, packed)
	if err != nil {
		return img, err
	}
	defer z.Close()
	buf, size := make([]byte, burst), int64(0)
	for {
		if err := ctx.Err(); err != nil {
			return img, err
		}
		n, err := z.Read(buf)
		size += int64(n)
		if r.Format == formatRaw && size > most {
			return img, rpc.Errorf(rpc.ErrRefused, "its disk has more than %s", human.Size(most))
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return img, err
		}
	}
	img.Record.unpacked(size)
	_ = img.Record.write(img.in.Local) // else it is learned again next time
	return img, nil
}

// Where are the files with that SHA-256, as the host names them: as a disk image and
// as an ISO file one may be there twice, and what nobody goes on fetching of it.
func (s *Store) Where(sha256 string, in Folder) []string {
	var paths []string
	for _, r := range records(in) {
		if r.SHA256 == sha256 {
			paths = append(paths, r.image(in).Path)
		}
	}
	for _, local := range s.leftParts(sha256, in) {
		paths = append(paths, filepath.Join(in.Host, filepath.Base(local)))
	}
	return paths
}

// Remove removes the files with that SHA-256 and their records, and parts that nobody
// fetches; what is gone is removed already. While anybody takes or unpacks one, it is Busy. The record goes
// first: a file without one is swept away.
func (s *Store) Remove(sha256 string, in Folder) error {
	for _, r := range records(in) {
		if r.SHA256 != sha256 {
			continue
		}
		local := r.image(in).local
		s.mu.Lock()
		busy := s.using[local] > 0
		var err error
		if !busy {
			err = errors.Join(durable.Remove(filepath.Join(in.Local, r.File+recordSuffix)), durable.Remove(local))
		}
		s.mu.Unlock()
		if busy {
			return rpc.Errorf(rpc.ErrBusy, "image %s is being read", r.Name)
		}
		if err != nil {
			return err
		}
	}
	for _, path := range s.leftParts(sha256, in) {
		if err := s.dropPart(path); err != nil {
			return err
		}
	}
	return nil
}

// Fetching says whether the file with that digest is being fetched.
func (s *Store) Fetching(sha256 string) bool {
	return sha256 != "" && s.partOf(Digests{SHA256: sha256}) != nil
}
