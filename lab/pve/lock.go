package pve

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lockWait is how long a program waits for another's lock.
const lockWait = 10 * time.Second

// withLock runs work under the VM's lock. A lock that stays busy ends with exit
// code 4 outside a task.
func (r *run) withLock(vmid string, work func() error) error {
	path := "/var/lock/qemu-server/lock-" + vmid + ".conf"
	if err := r.failing(path); err != nil {
		return err
	}
	return r.withFlock(path, vmid, work)
}

// withStorageLock runs work under a storage's lock.
func (r *run) withStorageLock(id string, work func() error) error {
	return r.withFlock("/var/lock/pve-manager/pve-storage-"+id, "", work)
}

// withFlock takes an flock and says so when it must wait. The file stays, as
// it does on a real host.
func (r *run) withFlock(path, vmid string, work func() error) error {
	f, err := os.OpenFile(r.path(path), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return fail(255, "can't open lock file '%s' - %s", path, errnoText(err))
	}
	defer f.Close()
	if err := r.flock(f, path, vmid); err != nil {
		return err
	}
	return work()
}

func (r *run) flock(f *os.File, path, vmid string) error {
	err := tryLock(f)
	if err == nil || !errors.Is(err, unix.EWOULDBLOCK) {
		return err
	}
	r.warnf("trying to acquire lock...\n")
	start := r.clock.Now()
	defer func() {
		r.appendLine("waits.jsonl", map[string]any{
			"host": r.cfg.Name, "what": "lock " + path, "guest": vmid, "start": start.UTC(), "end": r.clock.Now().UTC(),
		})
	}()
	for r.clock.Now().Sub(start) < lockWait {
		if err := r.clock.Sleep(r.ctx, 20*time.Millisecond); err != nil {
			return err
		}
		if err := tryLock(f); err == nil {
			r.warnf(" OK\n")
			return nil
		} else if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
	}
	return fail(4, "can't lock file '%s' - got timeout", path)
}

func tryLock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
