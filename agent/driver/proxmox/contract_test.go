package proxmox_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/homeiac/homelab/agent/driver"
	"github.com/homeiac/homelab/agent/driver/drivertest"
	"github.com/homeiac/homelab/lab/pve"
)

// TestContract is the driver's contract in process.
func TestContract(t *testing.T) {
	t.Parallel()
	drivertest.Run(t, func(t *testing.T) drivertest.World {
		h := newHost(t)
		return h.world(h.driver(), "local")
	})
}

// TestContractOfVolumes is what of it has to do with volumes, on other kinds of
// storage and on Proxmox VE 8.
func TestContractOfVolumes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, storage, version string }{
		{"zfspool", "local-zfs", "9.2.11"},
		{"lvmthin", "local-lvm", "9.2.11"},
		{"dir-on-pve8", "local", "8.4.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			drivertest.RunVolumes(t, func(t *testing.T) drivertest.World {
				h := newHost(t, func(cfg *pve.HostConfig) { cfg.PVEVersion = c.version })
				return h.world(h.driver(), c.storage)
			})
		})
	}
}

// TestContractAsPlugin is the contract through a plugin process.
func TestContractAsPlugin(t *testing.T) {
	t.Parallel()
	drivertest.Run(t, func(t *testing.T) drivertest.World {
		h := newHost(t)
		return h.world(h.plugin(), "local")
	})
}

// plugin starts the driver as a plugin process of this binary.
func (h *host) plugin() *driver.Process {
	h.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		h.t.Fatal(err)
	}
	// A binary with the race detector in it would take a second to end, each time.
	p := driver.New(driver.Config{Command: []string{"/usr/bin/env", "GORACE=atexit_sleep_ms=0",
		exe, "driver-plugin", h.path(), filepath.Join(h.lab, "state")}})
	ctx, cancel := context.WithCancel(h.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	h.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			h.t.Errorf("the supervision ended with %v", err)
		}
	})
	up, stop := context.WithTimeout(ctx, 20*time.Second)
	defer stop()
	if err := p.WaitUp(up); err != nil {
		h.t.Fatal(err)
	}
	return p
}
