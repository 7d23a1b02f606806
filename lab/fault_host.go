package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/homeiac/homelab/lab/pve"
)

// part splits HOST/PART.
func (l *Lab) part(target string, values []string) (h *pve.Host, part string, off bool, err error) {
	host, part, ok := strings.Cut(target, "/")
	if !ok || part == "" {
		return nil, "", false, errors.New("the target is HOST/NAME, as in pve2/vmbr0")
	}
	if _, err := l.hostIndex(host); err != nil {
		return nil, "", false, err
	}
	if off, err = offValue(values); err != nil {
		return nil, "", false, err
	}
	h, err = pve.Open(l.hostDir(host))
	return h, part, off, err
}

func (l *Lab) faultBridgeDown(target string, values []string) error {
	h, bridge, off, err := l.part(target, values)
	if err != nil {
		return err
	}
	found := false
	err = h.Update(func(c *pve.HostConfig) {
		for i := range c.Bridges {
			if c.Bridges[i].Name == bridge {
				c.Bridges[i].Down, found = !off, true
			}
		}
	})
	if err == nil && !found {
		return fmt.Errorf("the host has no bridge %s", bridge)
	}
	return err
}

func (l *Lab) faultStorageFull(target string, values []string) error {
	h, storage, off, err := l.part(target, values)
	if err != nil {
		return err
	}
	found := false
	err = h.Update(func(c *pve.HostConfig) {
		for i, s := range c.Storages {
			if s.Name != storage {
				continue
			}
			found = true
			c.Storages[i].ForeignBytes = s.TotalBytes
			if off {
				c.Storages[i].ForeignBytes = foreignBytes
			}
		}
	})
	switch {
	case err != nil:
		return err
	case !found:
		return fmt.Errorf("the host has no storage %s", storage)
	}
	return h.WriteStat(h.Now())
}

func (l *Lab) faultStorageOff(target string, values []string) error {
	h, storage, off, err := l.part(target, values)
	if err != nil {
		return err
	}
	return h.TakeStorage(storage, !off)
}

// onHost opens a host for a fault that is switched on and off.
func (l *Lab) onHost(target string, values []string) (h *pve.Host, off bool, err error) {
	if _, err := l.hostIndex(target); err != nil {
		return nil, false, err
	}
	if off, err = offValue(values); err != nil {
		return nil, false, err
	}
	h, err = pve.Open(l.hostDir(target))
	return h, off, err
}

func (l *Lab) faultQMHang(target string, values []string) error {
	h, off, err := l.onHost(target, values)
	if err != nil {
		return err
	}
	return h.Update(func(c *pve.HostConfig) { c.Trouble.Hang = !off })
}

func (l *Lab) faultQMFail(target string, values []string) error {
	verb := strings.Join(values, " ") // "disk move" may come as two words
	if verb != "" && verb != "off" {
		if !slices.Contains(pve.QMVerbs(), verb) {
			return fmt.Errorf("qm has no command %q; it has: %s", verb, strings.Join(pve.QMVerbs(), ", "))
		}
		values = nil
	}
	h, off, err := l.onHost(target, values)
	if err != nil {
		return err
	}
	return h.Update(func(c *pve.HostConfig) {
		switch {
		case off:
			c.Trouble.Fail = nil
		case verb == "":
			c.Trouble.Fail = []string{"*"}
		case !slices.Contains(c.Trouble.Fail, verb):
			c.Trouble.Fail = append(c.Trouble.Fail, verb)
		}
	})
}

func (l *Lab) faultPVEClusterDown(target string, values []string) error {
	h, off, err := l.onHost(target, values)
	if err != nil {
		return err
	}
	if off {
		err = h.MountPmxcfs()
	} else {
		err = h.UnmountPmxcfs()
	}
	return errors.Join(err, l.refreshMembers())
}

// clockFile holds how far a host's clock is ahead; its agent reads it.
func (l *Lab) clockFile(host string) string { return filepath.Join(l.hostDir(host), "clock") }

func (l *Lab) faultClockSkew(target string, values []string) error {
	if len(values) != 1 {
		return errors.New("takes a DURATION, as 3s or -1h, or off")
	}
	var skew time.Duration
	if values[0] != "off" {
		var err error
		if skew, err = time.ParseDuration(values[0]); err != nil {
			return fmt.Errorf("%q is no duration (try 3s, -90s or 1h) and not off", values[0])
		}
	}
	h, _, err := l.onHost(target, nil)
	if err != nil {
		return err
	}
	if err := h.Update(func(c *pve.HostConfig) { c.Trouble.ClockSkew = skew }); err != nil {
		return err
	}
	return writeFile(l.clockFile(target), []byte(skew.String()+"\n"), 0o644)
}

// apiClosedFile is there while a host's API port is closed.
func (l *Lab) apiClosedFile(host string) string { return filepath.Join(l.hostDir(host), "api-closed") }

func (l *Lab) faultAPIClose(target string, values []string) error {
	_, off, err := l.onHost(target, values)
	if err != nil {
		return err
	}
	if off {
		if err := os.Remove(l.apiClosedFile(target)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	} else if err := writeFile(l.apiClosedFile(target), nil, 0o644); err != nil {
		return err
	}
	if _, ok := l.hostProcess(target); !ok || l.isOff(target) {
		return nil
	}
	i, err := l.hostIndex(target)
	if err != nil {
		return err
	}
	// Looked at by binding it: whoever connects is counted.
	return await(5*time.Second, fmt.Sprintf("port %d of %s to change", apiPort, target), func() bool {
		return portFree(l.hostAddress(i), apiPort) != off
	})
}

// await polls until done, at most limit.
func await(limit time.Duration, what string, done func() bool) error {
	for deadline := time.Now().Add(limit); !done(); {
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %s for %s", limit, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}
