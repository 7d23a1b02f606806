package guest

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// diskPoll is how often a machine looks whether its disks can be reached. In life
// it is the next write that finds out.
const diskPoll = 300 * time.Millisecond

// watchDisks stops the guest with an I/O error when the storage of a disk has gone,
// as QEMU does by werror=stop. It stays stopped until somebody says cont.
func (v *vm) watchDisks(ctx context.Context) {
	tick := time.NewTicker(diskPoll)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		id, gone := v.lostDisk()
		if !gone || v.Status() != "running" {
			continue
		}
		if err := v.signal(syscall.SIGSTOP); err != nil {
			continue
		}
		v.setStatus("io-error")
		v.event("BLOCK_IO_ERROR", map[string]any{"device": "drive-" + id, "operation": "write", "action": "stop", "reason": "Input/output error"})
		v.event("STOP", nil)
	}
}

// lostDisk finds a disk whose storage is not there. A single missing volume is none:
// a disk that was unplugged may be freed while the machine runs.
func (v *vm) lostDisk() (id string, gone bool) {
	for _, d := range v.c.drives {
		file := filepath.Join(v.c.root, d.file)
		if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		base := filepath.Dir(file)
		if filepath.Base(filepath.Dir(base)) == "images" {
			base = filepath.Dir(base) // the folder of one VM goes with its last volume
		}
		if _, err := os.Stat(base); errors.Is(err, fs.ErrNotExist) {
			return d.id, true
		}
	}
	return "", false
}
