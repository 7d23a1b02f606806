package system_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/homeiac/homelab/lab/guest/system"
)

func TestAFirstBootThatLostPowerIsDoneAgain(t *testing.T) {
	tree := t.TempDir()
	for _, d := range []string{"tmp", "var/tmp", "root"} {
		if err := os.MkdirAll(filepath.Join(tree, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("usr/bin", filepath.Join(tree, "bin")); err != nil {
		t.Fatal(err)
	}
	if _, err := system.New(system.Machine{Tree: tree, Name: "guest"}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(tree, "etc/os-release")); err != nil {
		t.Errorf("the image is not whole: %v", err)
	}
}
