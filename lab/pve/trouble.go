package pve

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Trouble is what is wrong with a host that its own files do not show. The lab
// puts it there and takes it away again.
type Trouble struct {
	// Hang keeps every program from doing anything, and pvestatd too: what they all
	// wait for does not come. They go on when it is over.
	Hang bool `json:"hang,omitempty"`
	// Fail are the commands of qm that end at once ("destroy", "disk move"), "*" for
	// all that change a VM.
	Fail []string `json:"fail,omitempty"`
	// Die is the point at which the next program that comes to it is killed: one that
	// reached tells of. It is killed once.
	Die string `json:"die,omitempty"`
	// StorageOff are storages that are away.
	StorageOff []string `json:"storageOff,omitempty"`
	// ClockSkew is how far the host's clock is ahead.
	ClockSkew time.Duration `json:"clockSkew,omitempty"`
}

// hangPoll is how often a hung program looks whether it may go on.
const hangPoll = 50 * time.Millisecond

// hung waits while the host's programs hang. What was read of the host before may
// have changed meanwhile, so it is read again.
func (h *Host) hung(wait func(time.Duration) error) error {
	for h.cfg.Trouble.Hang {
		if err := wait(hangPoll); err != nil {
			return err
		}
		fresh, err := Open(h.dir)
		if err != nil {
			return err
		}
		h.cfg = fresh.cfg
	}
	return nil
}

// failing is the refusal of a command that is to fail. All commands that change a VM
// take its lock first, so this is what a host says whose /run is full.
func (r *run) failing(lock string) error {
	for _, f := range r.cfg.Trouble.Fail {
		if f == "*" || f == r.verb {
			return fail(28, "can't lock file '%s' - can't open file - No space left on device", lock)
		}
	}
	return nil
}

// reached kills the program, as kill -9 would, at the point where it is to die.
func (r *run) reached(point string) {
	if r.cfg.Trouble.Die != point {
		return
	}
	_ = r.Update(func(c *HostConfig) { c.Trouble.Die = "" })
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // the signal is on its way
}

// away says why a storage that was taken away cannot be activated.
func (h *Host) away(s *storage) error {
	if !slices.Contains(h.cfg.Trouble.StorageOff, s.id) {
		return nil
	}
	switch s.typ {
	case "zfspool":
		pool, _, _ := strings.Cut(s.get("pool"), "/")
		return fail(255, "could not activate storage '%s', zfs error: cannot import '%s': no such pool available", s.id, pool)
	case "lvmthin":
		return fail(5, "no such logical volume %s/%s", s.get("vgname"), s.get("thinpool"))
	}
	if on, _ := parseBool(s.get("is_mountpoint")); on {
		return fail(255, "unable to activate storage '%s' - directory is expected to be a mount point but is not mounted: '%s'", s.id, s.get("path"))
	}
	return fail(255, "unable to activate storage '%s' - directory '%s' does not exist or is unreachable", s.id, s.get("path"))
}

// TakeStorage takes a storage with all that is on it away from the host, or brings
// it back as it was. It lies outside the host's root meanwhile.
func (h *Host) TakeStorage(id string, off bool) error {
	s, err := h.storage(id)
	if err != nil {
		return err
	}
	away := slices.Contains(h.cfg.Trouble.StorageOff, id)
	if away == off {
		return nil
	}
	if !s.onNode(h.cfg.NodeName) {
		return fmt.Errorf("the host has no storage %s", id)
	}
	here, there := h.path(s.base()), filepath.Join(h.dir, "away", id)
	if err := os.MkdirAll(filepath.Dir(there), 0o755); err != nil {
		return err
	}
	if off {
		// Said first: nobody makes the folder anew while it is on its way.
		if err := h.Update(func(c *HostConfig) { c.Trouble.StorageOff = append(c.Trouble.StorageOff, id) }); err != nil {
			return err
		}
		if err := os.Rename(here, there); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return errors.Join(h.WriteStat(h.clock.Now()), h.forgetStat("storage", h.cfg.NodeName+"/"+id))
	}
	// What was written to its mount point in between is hidden below it.
	if err := os.Rename(here, there+".under"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(there, here); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err = h.Update(func(c *HostConfig) {
		c.Trouble.StorageOff = slices.DeleteFunc(c.Trouble.StorageOff, func(x string) bool { return x == id })
	})
	return errors.Join(err, h.WriteStat(h.clock.Now()))
}

// forgetStat takes a line out of .rrd that would stay there, old, for minutes.
func (h *Host) forgetStat(what, id string) error {
	if !h.mounted() {
		return nil
	}
	unlock, err := lockFile(filepath.Join(h.pmxcfs(), ".rrd.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	path := filepath.Join(h.pmxcfs(), ".rrd")
	old, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var left strings.Builder
	for line := range strings.Lines(string(old)) {
		if !strings.HasPrefix(line, h.rrdKey(what, id)+":") {
			left.WriteString(line)
		}
	}
	return replaceFile(path, []byte(left.String()), 0o640)
}

// Now is the host's clock.
func (h *Host) Now() time.Time { return h.clock.Now() }

// QMVerbs are the commands of qm, for checking the name of one.
func QMVerbs() []string {
	var names []string
	for _, c := range qmCommands {
		names = append(names, c.name)
	}
	slices.Sort(names)
	return names
}
