package disk

import (
	"context"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func guestImage(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "guest.raw")
	if err := MakeGuestImage(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func mustHaveGuest(t *testing.T, path string) {
	t.Helper()
	if ok, err := HasGuest(path); err != nil || !ok {
		t.Errorf("%s carries no guest: %v", filepath.Base(path), err)
	}
}

func TestTheMarkerSurvivesEveryFormat(t *testing.T) {
	image := guestImage(t, 64<<20)
	dir := t.TempDir()
	q, back := filepath.Join(dir, "v.qcow2"), filepath.Join(dir, "v.raw")
	for _, step := range []struct{ to, from, format string }{{q, image, "qcow2"}, {back, q, "raw"}} {
		if err := Create(step.to, step.format, 64<<20, ""); err != nil {
			t.Fatal(err)
		}
		if err := Fill(context.Background(), step.to, step.from, math.MaxInt64, func(int64) {}); err != nil {
			t.Fatal(err)
		}
		mustHaveGuest(t, step.to)
		if format, size, err := Info(step.to); err != nil || format != step.format || size != 64<<20 {
			t.Errorf("%s: %s %d %v", step.to, format, size, err)
		}
		if err := Resize(step.to, 1<<30); err != nil {
			t.Fatal(err)
		}
		if _, size, _ := Info(step.to); size != 1<<30 {
			t.Errorf("size after the resize: %d", size)
		}
	}
	f, err := os.Open(back)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data := make([]byte, 512)
	if _, err := f.ReadAt(data, 0); err != nil || data[510] != 0x55 || data[511] != 0xAA || strings.HasPrefix(string(data[:4]), "QFI") {
		t.Errorf("first block % x, %v", data[:8], err)
	}
}

func TestFillStopsAtItsBudget(t *testing.T) {
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	if err := os.WriteFile(src, []byte(strings.Repeat("x", 3<<20)), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Create(dst, "raw", 3<<20, ""); err != nil {
		t.Fatal(err)
	}
	var full *Full
	if err := Fill(context.Background(), dst, src, 2<<20, func(int64) {}); !errors.As(err, &full) || full.At != 2<<20 {
		t.Errorf("got %v", err)
	}
}

func TestFileSizesAreThoseSeen(t *testing.T) {
	for size, want := range map[int64]int64{4 << 20: 4521984, 64 << 20: 67436544, 1 << 30: 1074135040, 1088 << 20: 1141309440} {
		if got := FileSize("qcow2", size); got != want {
			t.Errorf("qcow2 of %d: %d, seen %d", size, got, want)
		}
	}
}

func TestTheGuestsFilesGoWithTheVolume(t *testing.T) {
	v := guestImage(t, 1<<20)
	etc := filepath.Join(Tree(v), "etc")
	if err := os.MkdirAll(etc, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(etc, "hostname"), []byte("one\n"), 0o400); err != nil {
		t.Fatal(err)
	}
	if err := Snapshot(v, "s1"); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(etc, "hostname"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(etc, "hostname"), []byte("two\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(etc, 0o555); err != nil {
		t.Fatal(err)
	}
	moved := v + ".moved"
	if err := Rename(v, moved); err != nil {
		t.Fatal(err)
	}
	read := func() string {
		data, _ := os.ReadFile(filepath.Join(Tree(moved), "etc/hostname"))
		return string(data)
	}
	if got := read(); got != "two\n" {
		t.Errorf("after the move: %q", got)
	}
	if err := Rollback(moved, "s1"); err != nil {
		t.Fatal(err)
	}
	mustHaveGuest(t, moved)
	if got := read(); got != "one\n" {
		t.Errorf("after the rollback: %q", got)
	}
	if err := Remove(moved); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(filepath.Dir(moved)); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := Remove(moved); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removing it again: %v", err)
	}
}

func TestCloudInitVolumes(t *testing.T) {
	v := filepath.Join(t.TempDir(), "vm-1-cloudinit.qcow2")
	if err := Create(v, "qcow2", CloudInitSize, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadCloudInit(v); !errors.Is(err, ErrNoCloudInit) {
		t.Errorf("a blank volume: %v", err)
	}
	want := CloudInit{InstanceID: "1", UserData: "#cloud-config\n", NetworkConfig: "version: 1\n", MetaData: "instance-id: 1\n"}
	if err := WriteCloudInit(v, want); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadCloudInit(v); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, size, err := Info(v); err != nil || size != CloudInitSize {
		t.Errorf("size %d, %v", size, err)
	}
}

// TestALinkedVolumeShowsWhatItStandsOn, also from a snapshot and through a copy, and
// takes no space for it.
func TestALinkedVolumeShowsWhatItStandsOn(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"9000", "201"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	base, linked := filepath.Join(dir, "9000/base.raw"), filepath.Join(dir, "201/vm.qcow2")
	if err := MakeGuestImage(base, 4<<20); err != nil {
		t.Fatal(err)
	}
	if err := Create(linked, "qcow2", 4<<20, "../9000/base.raw"); err != nil {
		t.Fatal(err)
	}
	if err := Resize(linked, 8<<20); err != nil {
		t.Fatal(err)
	}
	mustHaveGuest(t, linked)
	if err := Snapshot(linked, "s1"); err != nil {
		t.Fatal(err)
	}
	mustHaveGuest(t, filepath.Join(snapshotDir(linked, "s1"), "vm.qcow2"))
	copied := filepath.Join(dir, "full.raw")
	if err := Create(copied, "raw", 8<<20, ""); err != nil {
		t.Fatal(err)
	}
	if err := Fill(context.Background(), copied, linked, math.MaxInt64, func(int64) {}); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Dir(base)); err != nil {
		t.Fatal(err)
	}
	mustHaveGuest(t, copied)
	if boot, err := os.ReadFile(copied); err != nil || boot[510] != 0x55 || boot[511] != 0xAA {
		t.Errorf("the boot signature is gone: %v", err)
	}
	if has, err := HasGuest(linked); has || err == nil {
		t.Errorf("without what it stands on: %v %v", has, err)
	}
}
