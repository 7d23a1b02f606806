package durable_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/homeiac/homelab/internal/durable"
)

func TestAFileIsReplacedWholeAndNothingIsLeftBeside(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "intent.json")
	for _, text := range []string{"a longer first text", "second"} {
		if err := durable.Write(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != text {
			t.Errorf("%q, %v", got, err)
		}
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	// A folder in its place cannot be replaced by a file.
	taken := filepath.Join(dir, "taken")
	if err := os.MkdirAll(filepath.Join(taken, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := durable.Write(taken, []byte("x")); err == nil {
		t.Error("a folder was replaced by a file")
	}
	for range 2 { // removed already is removed
		if err := durable.Remove(path); err != nil {
			t.Error(err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != "taken" {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestWhatAKilledWriteLeftIsTidiedUp(t *testing.T) {
	dir := t.TempDir()
	began := time.Now()
	for name, at := range map[string]time.Time{".tmp-1": began.Add(-time.Second), ".tmp-2": began.Add(time.Second), "9000.json": began.Add(-time.Second)} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chtimes(path, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	if err := durable.Tidy(dir, began); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, ".tmp-1")); err == nil {
		t.Error(".tmp-1 is left")
	}
	for _, name := range []string{".tmp-2", "9000.json"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}
