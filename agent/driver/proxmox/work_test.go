package proxmox

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestOutputsThatNobodyWaitsForAreRemoved(t *testing.T) {
	d := New(Config{Root: t.TempDir(), State: t.TempDir()})
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	kept := fmt.Sprintf("1-%d-1.out", os.Getpid())
	for _, name := range []string{kept, fmt.Sprintf("1-%d-1.out", gone.Process.Pid), fmt.Sprintf("1-%d-1.in", gone.Process.Pid)} {
		if err := os.MkdirAll(d.calls(), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d.calls(), name), []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d.sweepCalls()
	left, err := os.ReadDir(d.calls())
	if err != nil || len(left) != 1 || left[0].Name() != kept {
		t.Errorf("left %v, %v", left, err)
	}
}

func TestWhatIsGivenToAGuestNeverLiesOnADisk(t *testing.T) {
	f, err := nameless([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	text, err := io.ReadAll(f)
	if err != nil || string(text) != "secret" {
		t.Errorf("%q, %v", text, err)
	}
	if where, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd())); err != nil || !strings.HasPrefix(where, "/memfd:") {
		t.Errorf("it lies at %s (%v)", where, err)
	}
}
