package image_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/homeiac/homelab/agent/image"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

func raw(size int) []byte {
	b := make([]byte, size)
	copy(b[1024:], "content")
	b[510], b[511] = 0x55, 0xaa
	return b
}

func qcow2(backing uint64, features uint64) []byte {
	b := make([]byte, 512)
	copy(b, "QFI\xfb")
	binary.BigEndian.PutUint32(b[4:], 3)
	binary.BigEndian.PutUint64(b[8:], backing)
	binary.BigEndian.PutUint64(b[72:], features)
	return b
}

func sum(b []byte) string { s := sha256.Sum256(b); return hex.EncodeToString(s[:]) }

func quiet(int64, int64) {}

// fetch is a fetch from the source with that much room.
func fetch(ctx context.Context, s *image.Store, src *homelabv1.ImageSource, to image.Folder, free int64, told func(n, total int64)) (image.Image, bool, error) {
	job := image.Job{Source: src, To: to, WAN: true, Progress: func(t image.Told) { told(t.Done, t.Total) }}
	if free >= 0 {
		job.Check = func(seen image.Seen) (int64, error) {
			if seen.Bytes > free {
				return 0, rpc.Errorf(rpc.ErrRefused, "it needs %d bytes, storage local has %d free", seen.Bytes, free)
			}
			return free, nil
		}
	}
	img, changed, _, err := s.Fetch(ctx, job)
	return img, changed, err
}

// store has one file root with one image in it, and a folder to fetch into.
func store(t *testing.T, content []byte) (s *image.Store, url string, to image.Folder) {
	t.Helper()
	dir := t.TempDir()
	files := filepath.Join(dir, "files")
	if err := os.MkdirAll(files, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(files, "noble.img")
	if err := os.WriteFile(file, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return image.New(image.Roots{files}), "file:" + file, image.FolderOf(filepath.Join(dir, "root"), "local", "/var/lib/vz")
}

func TestFetchAFileAndFindItAgain(t *testing.T) {
	content := raw(3 << 20)
	s, url, to := store(t, content)
	src := &homelabv1.ImageSource{Name: "noble", Url: url, Sha256: strings.ToUpper(sum(content))}
	if _, ok := image.Find(src, to); ok {
		t.Error("found before it was fetched")
	}
	var told int64
	img, changed, err := fetch(t.Context(), s, src, to, -1, func(n, total int64) {
		told = n
		if total != int64(len(content)) {
			t.Errorf("total %d", total)
		}
	})
	if err != nil || !changed {
		t.Fatal(changed, err)
	}
	if told != int64(len(content)) {
		t.Errorf("progress ended at %d", told)
	}
	want := "/var/lib/vz/template/homelab/noble-" + sum(content)[:12] + ".raw"
	if img.Path != want || img.Record.Format != "raw" || !img.Record.Verified {
		t.Errorf("got %+v, want %s", img, want)
	}
	got, err := os.ReadFile(filepath.Join(to.Local, filepath.Base(want)))
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("content differs: %v", err)
	}
	if _, changed, err := fetch(t.Context(), s, src, to, -1, quiet); changed || err != nil {
		t.Errorf("again: %v %v", changed, err)
	}
	list := image.List([]image.Folder{to})
	if len(list) != 1 || list[0].GetSha256() != sum(content) || list[0].GetStorage() != "local" || list[0].GetBytes() != int64(len(content)) {
		t.Errorf("list %v", list)
	}
	left, _ := filepath.Glob(filepath.Join(to.Local, ".*"))
	if len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestAnotherDigestIsAnotherImage(t *testing.T) {
	s, url, to := store(t, raw(1<<20))
	if _, _, err := fetch(t.Context(), s, &homelabv1.ImageSource{Name: "noble", Url: url}, to, -1, quiet); err != nil {
		t.Fatal(err)
	}
	if _, ok := image.Find(&homelabv1.ImageSource{Name: "noble", Url: url}, to); !ok {
		t.Error("without a checksum the first one fetched counts")
	}
	wrong := &homelabv1.ImageSource{Name: "noble", Url: url, Sha256: strings.Repeat("0", 64)}
	if _, ok := image.Find(wrong, to); ok {
		t.Error("an image with another digest was found")
	}
	if _, _, err := fetch(t.Context(), s, wrong, to, -1, quiet); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("got %v", err)
	}
	if n := len(image.List([]image.Folder{to})); n != 1 {
		t.Errorf("%d images after a refused fetch", n)
	}
}

func TestATouchedOrCutImageIsNoImage(t *testing.T) {
	content := raw(1 << 20)
	s, url, to := store(t, content)
	src := &homelabv1.ImageSource{Name: "noble", Url: url}
	img, _, err := fetch(t.Context(), s, src, to, -1, quiet)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(to.Local, img.Record.File)
	bad := bytes.Clone(content)
	bad[2000] = 'X'
	if err := os.WriteFile(file, bad, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, ok := image.Find(src, to); ok {
		t.Error("a changed file was taken for the image")
	}
	if err := os.Truncate(file, 100); err != nil {
		t.Fatal(err)
	}
	if n := len(image.List([]image.Folder{to})); n != 0 {
		t.Error("a cut file is listed")
	}
	if _, changed, err := fetch(t.Context(), s, src, to, -1, quiet); err != nil || !changed {
		t.Errorf("it must be fetched again: %v %v", changed, err)
	}
}

func TestWhatIsNoDiskImageIsRefused(t *testing.T) {
	for name, content := range map[string][]byte{
		"empty": {}, "a web page": []byte("\n <!DOCTYPE html><title>404</title>"), "random": bytes.Repeat([]byte("x7"), 4096),
		"gzip": []byte("\x1f\x8b\x08rest"), "backing file": qcow2(512, 0), "external data": qcow2(0, 4), "cut header": []byte("QFI\xfb\x00"),
	} {
		t.Run(name, func(t *testing.T) {
			s, url, to := store(t, content)
			_, _, err := fetch(t.Context(), s, &homelabv1.ImageSource{Name: "noble", Url: url}, to, -1, quiet)
			if !errors.Is(err, rpc.ErrRefused) {
				t.Errorf("got %v", err)
			}
			left, _ := os.ReadDir(to.Local)
			if len(left) > 0 {
				t.Errorf("left over: %v", left)
			}
		})
	}
	s, url, to := store(t, qcow2(0, 0))
	img, _, err := fetch(t.Context(), s, &homelabv1.ImageSource{Name: "noble", Url: url}, to, -1, quiet)
	if err != nil || img.Record.Format != "qcow2" || !strings.HasSuffix(img.Path, ".qcow2") {
		t.Errorf("qcow2 by content: %+v %v", img, err)
	}
}

func TestFilesOutsideOfTheRootsAreNotRead(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, raw(4096), 0o600); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, "files")
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, filepath.Join(root, "link.img")); err != nil {
		t.Fatal(err)
	}
	roots := image.Roots{root}
	for _, name := range []string{secret, root + "/../secret", root + "/link.img", root} {
		if f, err := roots.Open(name); !errors.Is(err, rpc.ErrRefused) {
			t.Errorf("%s: %v %v", name, f, err)
		}
	}
	if _, err := roots.Open(root + "/none"); !errors.Is(err, rpc.ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
	if _, err := roots.Open("files/x"); !errors.Is(err, rpc.ErrInvalid) {
		t.Errorf("relative: %v", err)
	}
}

func TestHTTP(t *testing.T) {
	content := raw(2 << 20)
	s512 := sha512.Sum512(content)
	mux := http.NewServeMux()
	mux.HandleFunc("/noble.img", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(content) })
	mux.HandleFunc("/cut.img", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		_, _ = w.Write(content[:1<<20])
	})
	mux.HandleFunc("/SHA256SUMS", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "%s *other.img\n%s *noble.img\n", strings.Repeat("0", 64), sum(content))
	})
	mux.HandleFunc("/CHECKSUM", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "# comment\nSHA512 (noble.img) = %s\n", hex.EncodeToString(s512[:]))
	})
	srv := httptest.NewServer(mux)
	defer srv.Close()
	for _, tc := range []struct {
		name string
		src  *homelabv1.ImageSource
		kind rpc.Kind
	}{
		{"with its sha512", &homelabv1.ImageSource{Url: "/noble.img", Sha512: hex.EncodeToString(s512[:])}, ""},
		{"with a list", &homelabv1.ImageSource{Url: "/noble.img", ChecksumsUrl: srv.URL + "/SHA256SUMS"}, ""},
		{"with a BSD list", &homelabv1.ImageSource{Url: "/noble.img", ChecksumsUrl: srv.URL + "/CHECKSUM"}, ""},
		{"not in the list", &homelabv1.ImageSource{Url: "/cut.img", ChecksumsUrl: srv.URL + "/SHA256SUMS"}, rpc.ErrRefused},
		{"cut off", &homelabv1.ImageSource{Url: "/cut.img"}, rpc.ErrUnavailable},
		{"not there", &homelabv1.ImageSource{Url: "/none.img"}, rpc.ErrNotFound},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, _, to := store(t, nil)
			src := tc.src
			src.Name, src.Url = "noble", strings.Replace(srv.URL, "http://", "http://me:secret@", 1)+src.GetUrl()+"?sig=secret"
			img, _, err := fetch(t.Context(), s, src, to, -1, quiet)
			if rpc.KindOf(err) != tc.kind {
				t.Fatalf("got %v, want kind %q", err, tc.kind)
			}
			if err != nil {
				if strings.Contains(err.Error(), "secret") {
					t.Errorf("the error tells a secret: %v", err)
				}
				return
			}
			if !img.Record.Verified || img.Record.SHA256 != sum(content) {
				t.Errorf("got %+v", img.Record)
			}
			if strings.Contains(img.Record.URL, "secret") {
				t.Errorf("the record tells a secret: %s", img.Record.URL)
			}
			if _, ok := image.Find(src, to); !ok {
				t.Error("not found after it was fetched")
			}
		})
	}
}

func TestAnImageLargerThanTheRoomIsRefusedBeforeAnyChange(t *testing.T) {
	s, url, to := store(t, raw(1<<20))
	_, _, err := fetch(t.Context(), s, &homelabv1.ImageSource{Name: "noble", Url: url}, to, 1<<19, quiet)
	if !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "it needs 1048576 bytes, storage local has 524288 free") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(to.Local); !os.IsNotExist(err) {
		t.Error("something was written")
	}
}

func TestACancelledFetchLeavesNothing(t *testing.T) {
	s, url, to := store(t, raw(4<<20))
	ctx, cancel := context.WithCancel(t.Context())
	_, _, err := fetch(ctx, s, &homelabv1.ImageSource{Name: "noble", Url: url}, to, -1, func(int64, int64) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if left, _ := os.ReadDir(to.Local); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
	// What a killed process left is dropped by the next fetch.
	if err := os.MkdirAll(to.Local, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(to.Local, ".noble.1.part"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := fetch(t.Context(), s, &homelabv1.ImageSource{Name: "noble", Url: url}, to, -1, quiet); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(to.Local, ".*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestAServerThatNeverStopsDoesNotFillTheDisk(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write(raw(1 << 20)) // without a length
		for junk := bytes.Repeat([]byte("x"), 1<<20); r.Context().Err() == nil; {
			_, _ = w.Write(junk)
		}
	}))
	defer srv.Close()
	s, _, to := store(t, nil)
	_, _, err := fetch(t.Context(), s, &homelabv1.ImageSource{Name: "noble", Url: srv.URL + "/noble.img"}, to, 3<<20, quiet)
	if !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "3145728 bytes") {
		t.Errorf("got %v", err)
	}
	if left, _ := os.ReadDir(to.Local); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestHTTPSDoesNotEndAtHTTP(t *testing.T) {
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("#!/bin/sh\n")) }))
	defer plain.Close()
	safe := httptest.NewTLSServer(http.RedirectHandler(plain.URL+"/install.sh?sig=secret", http.StatusFound))
	defer safe.Close()
	s := image.New(nil)
	s.Trust(safe.Certificate())
	body, _, err := s.Open(t.Context(), safe.URL)
	if err == nil {
		_ = body.Close()
	}
	if !errors.Is(err, rpc.ErrRefused) || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v", err)
	}
}

func TestAnAddressThatDoesNotParseTellsNoSecret(t *testing.T) {
	_, _, err := image.New(nil).Open(t.Context(), "https://me:secret@host:port/x")
	if !errors.Is(err, rpc.ErrInvalid) || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v", err)
	}
}

func TestARedirectThatDoesNotParseTellsNoSecret(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "https://me:secret@host:port/x")
		w.WriteHeader(http.StatusFound)
	}))
	defer srv.Close()
	_, _, err := image.New(nil).Open(t.Context(), srv.URL)
	if !errors.Is(err, rpc.ErrUnavailable) || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v", err)
	}
}

func TestAPipeInTheFileRootsIsNotWaitedFor(t *testing.T) {
	s, url, _ := store(t, nil)
	pipe := strings.TrimPrefix(url, "file:") + ".pipe"
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Open(t.Context(), pipe); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("got %v", err)
	}
}

func TestTheSourceIsReadAnewWhenThatIsAskedFor(t *testing.T) {
	older := raw(1 << 20)
	s, url, to := store(t, older)
	src := &homelabv1.ImageSource{Name: "noble", Url: url}
	job := image.Job{Source: src, To: to, WAN: true}
	if _, _, _, err := s.Fetch(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	newer := raw(2 << 20)
	if err := os.WriteFile(strings.TrimPrefix(url, "file:"), newer, 0o644); err != nil {
		t.Fatal(err)
	}
	if img, changed, _, err := s.Fetch(t.Context(), job); err != nil || changed || img.Record.SHA256 != sum(older) {
		t.Errorf("not asked for: %v %v %v", img.Record, changed, err)
	}
	job.Anew = true
	if img, changed, _, err := s.Fetch(t.Context(), job); err != nil || !changed || img.Record.SHA256 != sum(newer) {
		t.Errorf("asked for: %v %v %v", img.Record, changed, err)
	}
	for _, content := range [][]byte{older, newer} {
		known := &homelabv1.ImageSource{Name: "noble", Url: url, Sha256: sum(content)}
		if _, ok := image.Find(known, to); !ok {
			t.Errorf("%s is gone", sum(content))
		}
	}
	// Another name for the same file needs no other file.
	if img, ok := image.Find(&homelabv1.ImageSource{Name: "ubuntu", Url: url, Sha256: sum(older)}, to); !ok || img.Record.SHA256 != sum(older) {
		t.Errorf("under another name: %v %v", img.Record, ok)
	}
}

func TestTwoAddressesThatDifferInTheirQueryAreTwoFiles(t *testing.T) {
	files := map[string][]byte{"file=a": noise(1<<20, 1), "file=b": noise(1<<20, 2)}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(files[r.URL.RawQuery]) }))
	defer srv.Close()
	g := newGround(t)
	for query, content := range files {
		src := from(srv.URL + "/get?" + query)
		if img, err := g.fetch(src); err != nil || img.Record.SHA256 != sum(content) {
			t.Errorf("%s: %+v, %v", query, img.Record, err)
		}
		g.holds(src, content)
	}
	for _, c := range image.List([]image.Folder{g.to}) {
		if c.GetUrl() != "" {
			t.Errorf("it is said to be the file of %s", c.GetUrl())
		}
	}
	if _, ok := image.Find(from(srv.URL+"/get"), g.to); ok {
		t.Error("one of them is taken for the file of the address without a query")
	}
}
