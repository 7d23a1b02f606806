package onhost

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/homeiac/homelab/internal/rpc"
)

func TestThePackageIsTheOneThatHlctlWasBuiltWith(t *testing.T) {
	dir := t.TempDir()
	const text = "a package"
	if err := os.WriteFile(filepath.Join(dir, "homelab_1.2.3_amd64.deb"), []byte(text+", another"), 0o600); err != nil {
		t.Fatal(err)
	}
	sum := SHA256([]byte(text))
	built := map[string]string{"homelab_1.2.3_amd64.deb": sum, "homelab_1.2.3_arm64.deb": "00"}
	w, err := wantedOf(built, dir, "")
	if err != nil || w.Version != "1.2.3" {
		t.Fatal(w, err)
	}
	if _, err := w.Read(); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "should be "+sum) {
		t.Error(err)
	}
	w.dir = t.TempDir()
	if _, err := w.Read(); !errors.Is(err, rpc.ErrNotFound) || !strings.Contains(err.Error(), "--from DIR") {
		t.Error(err)
	}
	if _, err := wantedOf(nil, "dist", ""); !errors.Is(err, rpc.ErrUnsupported) || !strings.Contains(err.Error(), "make dist") {
		t.Error(err)
	}
	for _, args := range [][2]string{{"", sum}, {"dist", "abc"}} {
		if _, err := wantedOf(nil, args[0], args[1]); !errors.Is(err, rpc.ErrInvalid) {
			t.Error(args, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "homelab_1.2.3_amd64.deb"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	w.dir = dir
	if p, err := w.Read(); err != nil || p.Version != "1.2.3" || string(p.Data) != text {
		t.Errorf("%+v, %v", p, err)
	}
}
