package tree

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestModesAndOwnersSurviveAReopening(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "t")
	tr, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	v := tr.Super()
	if err := errors.Join(
		v.Put("/a/ro", []byte("x"), 0o400), v.Chown("/a/ro", 1000, 1000), v.Mkdir("/closed", 0o000), v.Put("/closed/f", nil, 0o644),
		v.Rename("/a", "/b"), v.Symlink("/b/ro", "/link"),
	); err != nil {
		t.Fatal(err)
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	if tr, err = Open(dir); err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	fi, err := tr.Super().Stat("/link")
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode() != 0o400 || fi.UID != 1000 || fi.Name() != "link" {
		t.Errorf("%v %d %s", fi.Mode(), fi.UID, fi.Name())
	}
	if _, err := tr.As(1000, 1000).ReadFile("/closed/f"); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a closed folder: %v", err)
	}
	if err := tr.As(1000, 1000).WriteFile("/b/ro", nil, 0); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a read-only file: %v", err)
	}
	if err := tr.Super().RemoveAll("/b"); err != nil {
		t.Fatal(err)
	}
	if err := tr.Super().Put("/b/ro", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if fi, err := tr.Super().Stat("/b/ro"); err != nil || fi.Mode() != 0o644 || fi.UID != 0 {
		t.Errorf("a new file took over what the old one had: %v %v", fi, err)
	}
}

func TestLinksStayInside(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("s"), 0o644); err != nil {
		t.Fatal(err)
	}
	tr, err := Open(filepath.Join(dir, "t"))
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	v := tr.Super()
	if err := errors.Join(
		v.Symlink("../secret", "/up"), v.Symlink(filepath.Join(dir, "secret"), "/abs"), v.Symlink("/loop", "/loop"), v.Symlink("/.lab/meta.json", "/meta"),
	); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"/up", "/abs", "/loop", "/meta", "/.lab/meta.json", "/../secret", "/x/../../secret", "/.lab"} {
		if b, err := v.ReadFile(n); err == nil {
			t.Errorf("%s: %q", n, b)
		}
	}
	es, err := v.ReadDir("/")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range es {
		if e.Name() == reserved {
			t.Error("the lab's folder is shown")
		}
	}
	// A link that was put there behind the tree's back is no way out either.
	if err := os.Symlink(dir, filepath.Join(dir, "t/evil")); err != nil {
		t.Fatal(err)
	}
	if _, err := v.ReadFile("/evil/secret"); err == nil {
		t.Error("a real link led out")
	}
}
