//go:build e2e

package e2e

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// bin is the folder of the programs under test.
var bin string

// undertaker takes the folders of labs, one a line, and ends what is left of
// them when the tests are gone, however they went: a timeout or Ctrl-C runs no
// cleanup.
var undertaker io.Writer

// undertakerVar makes the test binary the undertaker; it holds bin.
const undertakerVar = "HOMELAB_E2E_UNDERTAKER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(undertakerVar); dir != "" {
		bury(dir, os.Args[1])
		return
	}
	flag.Parse()
	// These tests wait more than they compute, also on two cores.
	if err := flag.Set("test.parallel", "3"); err != nil {
		panic(err)
	}
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// prepare finds the programs, makes one folder for all that these tests and the
// programs put into the temporary one, and starts the undertaker.
func prepare() error {
	dir := os.Getenv("HOMELAB_BIN")
	if dir == "" {
		dir = "../../bin"
	}
	var err error
	if bin, err = filepath.Abs(dir); err != nil {
		return err
	}
	for _, p := range []string{"hlctl", "hl-agent", "hl-controller", "hl-lab"} {
		if _, err := os.Stat(filepath.Join(bin, p)); err != nil {
			return fmt.Errorf("%w; make build makes it", err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "hl")
	if err != nil {
		return err
	}
	if err := os.Setenv("TMPDIR", tmp); err != nil {
		return err
	}
	cmd := exec.Command(self, tmp)
	cmd.Env = append(os.Environ(), undertakerVar+"="+bin)
	// A session of its own: Ctrl-C is not meant for it. Its output is not ours:
	// go test would wait for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	undertaker = in
	return cmd.Start()
}

// bury ends the labs whose folders were told and not taken back ("-" before
// the folder), and removes the tests' temporary folder, once the tests are gone.
func bury(bin, tmp string) {
	left := map[string]bool{}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		if dir, done := strings.CutPrefix(lines.Text(), "-"); done {
			delete(left, dir)
		} else {
			left[dir] = true
		}
	}
	for dir := range left {
		buryGroups(nil, dir)
		_ = exec.Command(filepath.Join(bin, "hl-lab"), "down", "--dir", dir).Run() // there is nobody left to tell
	}
	if os.Getenv("HOMELAB_E2E_KEEP") == "" {
		removeAll(tmp)
	}
}

// removeAll removes a lab's folder; guests make folders that cannot be written.
func removeAll(dir string) {
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, _ error) error {
		if d != nil && d.IsDir() {
			return os.Chmod(path, 0o700)
		}
		return nil
	})
	_ = os.RemoveAll(dir)
}
