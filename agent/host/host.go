// Package host reads what one Proxmox machine is: bridges, storages, memory,
// CPUs, its Proxmox cluster and devices. It reads files below a root and starts
// no process, so that looking costs nothing and works when Proxmox does not. What
// Proxmox's files say is read by package parse. It knows no guests; those are the
// driver's. It decides nothing.
package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// Host reads one machine. It keeps nothing between two looks.
type Host struct {
	root string
}

// New reads the machine whose file system is at root ("/" on a real one).
func New(root string) *Host { return &Host{root: root} }

// Path is where a file of the host lies for this process: host paths, as
// Proxmox prints them, are absolute on the host and so relative to its root.
func (h *Host) Path(elem ...string) string {
	return filepath.Join(append([]string{h.root}, elem...)...)
}

// Observe fills in what this package knows of an observation: everything about
// the machine, nothing about guests, steps or the agent. What could not be read
// is unknown with its reason, or zero where the field says so.
func (h *Host) Observe(now time.Time) *homelabv1.Observation {
	o := &homelabv1.Observation{
		At:              timestamppb.New(now),
		PveVersion:      h.pveVersion(),
		UptimeSeconds:   h.uptime(now),
		ShuttingDown:    h.shuttingDown(),
		MemoryBytes:     h.memory(),
		Cpus:            h.cpus(),
		CpuLoad:         -1,
		RootUsedPercent: h.rootUsed(),
		PciDevices:      h.pciDevices(),
		UsbDevices:      h.usbDevices(),
	}
	h.cluster(o)
	stat := h.stat()
	if n, ok := stat.nodes[o.NodeName]; ok && now.Sub(n.at) < statStale {
		o.CpuLoad, o.MemoryUsedBytes = n.cpu, n.memoryUsed
	}
	o.Bridges, o.BridgesKnown = h.bridges()
	o.Storages, o.StoragesKnown = h.storages(o, stat, now)
	return o
}

func yes(reason string) *homelabv1.Fact {
	return &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_YES, Reason: reason}
}

func no(format string, args ...any) *homelabv1.Fact {
	return &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_NO, Reason: fmt.Sprintf(format, args...)}
}

func unknown(format string, args ...any) *homelabv1.Fact {
	return &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_UNKNOWN, Reason: fmt.Sprintf(format, args...)}
}

// cause is an error of the file system as people should read it: with the path
// as the host names it, not with the root in front of it.
func (h *Host) cause(err error) string {
	var pe *fs.PathError
	if !errors.As(err, &pe) {
		return err.Error()
	}
	name := pe.Path
	if rel, rerr := filepath.Rel(h.root, pe.Path); rerr == nil && !strings.HasPrefix(rel, "..") {
		name = "/" + rel
	}
	if errors.Is(pe.Err, fs.ErrNotExist) {
		return name + " is not there"
	}
	return name + ": " + pe.Err.Error()
}

// text is a small file's content without the white space around it.
func (h *Host) text(elem ...string) (string, error) {
	data, err := os.ReadFile(h.Path(elem...))
	return strings.TrimSpace(string(data)), err
}
