package pve

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// HostConfig are the settings of one simulated host, in DIR/hosts/NAME/host.json.
type HostConfig struct {
	// Name is the host's name in the lab, NodeName what Proxmox calls the node;
	// normally the same. NodeName is filled from Name when empty.
	Name     string `json:"name"`
	NodeName string `json:"nodeName"`
	// LabDir is the lab's folder.
	LabDir string `json:"labDir"`
	// Address is the host's IP address.
	Address string `json:"address"`
	// Cluster names the Proxmox cluster whose /etc/pve the host shares; empty
	// for a host that stands alone.
	Cluster string `json:"cluster"`
	// Binary is what usr/sbin/qm and the other programs are links to.
	Binary string `json:"binary"`
	// QMCost is "real" to make each program take the time that the real one
	// was measured to take, else "none".
	QMCost string `json:"qmCost"`
	// PVEVersion is the version of pve-manager, such as "9.2.11" or "8.4.1".
	PVEVersion  string          `json:"pveVersion"`
	Storages    []StorageConfig `json:"storages"`
	Bridges     []BridgeConfig  `json:"bridges"`
	MemoryBytes int64           `json:"memoryBytes"`
	CPUs        int             `json:"cpus"`
	// Boot is when the host was switched on; its uptime counts from there.
	Boot time.Time `json:"boot"`
	// Mounts are the paths that count as mounted file systems, for storages
	// with is_mountpoint.
	Mounts []string `json:"mounts,omitempty"`
	// NoQMEventd leaves run files of dead guests where they are.
	NoQMEventd bool `json:"noQMEventd,omitempty"`
	// Own is a host that is a machine by itself: its file system is the machine's, and
	// its processor, memory and bridges are the machine's too, which nobody writes.
	Own bool `json:"own,omitempty"`
	// Trouble is what is wrong with the host.
	Trouble Trouble `json:"trouble,omitzero"`
}

// StorageConfig is one storage as the host has it. Which storages exist is in
// storage.cfg, as on a real host; this adds how big they are here.
type StorageConfig struct {
	Name string `json:"name"`
	Type string `json:"type"` // dir, zfspool or lvmthin
	// Path is a dir's folder on the host; Pool a zfspool's pool; VG and
	// ThinPool name an lvmthin's.
	Path     string   `json:"path,omitempty"`
	Pool     string   `json:"pool,omitempty"`
	VG       string   `json:"vg,omitempty"`
	ThinPool string   `json:"thinPool,omitempty"`
	Content  []string `json:"content,omitempty"`
	// TotalBytes is its size, ForeignBytes what others use of it. A storage is
	// full when ForeignBytes is TotalBytes.
	TotalBytes   int64 `json:"totalBytes"`
	ForeignBytes int64 `json:"foreignBytes"`
}

// BridgeConfig is one Linux bridge of a host.
type BridgeConfig struct {
	Name string `json:"name"`
	// Ports are its physical interfaces.
	Ports     []string `json:"ports"`
	VLANAware bool     `json:"vlanAware,omitempty"`
	MTU       int      `json:"mtu,omitempty"` // 1500 when 0
	Down      bool     `json:"down,omitempty"`
}

// Host is one simulated host, as its programs and its daemons see it.
type Host struct {
	dir   string // DIR/hosts/NAME
	cfg   HostConfig
	clock clock
	times timeouts
	// newUUID and newMAC make what Proxmox makes at random.
	newUUID func() string
	newMAC  func() string
}

// timeouts are the limits of the real programs; tests shorten them.
type timeouts struct {
	qmpConnect time.Duration // until a QMP greeting
	qmpStatus  time.Duration // the same for qm status
	qmpQuit    time.Duration // the same for qm stop
	agent      time.Duration // until a guest agent answers a ping
	kvmReady   time.Duration // from exec of kvm to its pid file and QMP
	scopeGone  time.Duration // from the stop of a VM's scope until systemd knows of none
}

// Open reads a host that NewHost made. hostDir is DIR/hosts/NAME.
func Open(hostDir string) (*Host, error) {
	data, err := os.ReadFile(filepath.Join(hostDir, "host.json"))
	if err != nil {
		return nil, err
	}
	abs, err := filepath.Abs(hostDir)
	if err == nil {
		// One name for the folder: kvm's argv is compared with it.
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return nil, err
	}
	h := &Host{
		dir: abs, newUUID: randomUUID, newMAC: randomMAC,
		times: timeouts{
			qmpConnect: 5 * time.Second, qmpStatus: 3 * time.Second, qmpQuit: 5 * time.Second,
			agent: 3 * time.Second, kvmReady: 30 * time.Second, scopeGone: 20 * time.Second,
		},
	}
	if err := json.Unmarshal(data, &h.cfg); err != nil {
		return nil, fmt.Errorf("%s/host.json: %w", hostDir, err)
	}
	h.clock = wallClock{ahead: h.cfg.Trouble.ClockSkew}
	if h.cfg.QMCost == "real" {
		h.times.qmpQuit = 60 * time.Second // a hung kvm was stopped after 72 s
	}
	return h, nil
}

// Config returns the host's settings.
func (h *Host) Config() HostConfig { return h.cfg }

// Update changes the host's settings, also those that its files show (bridges,
// boot time). It is safe against other processes that do the same.
func (h *Host) Update(change func(*HostConfig)) error {
	unlock, err := lockFile(filepath.Join(h.dir, ".host.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	fresh, err := Open(h.dir)
	if err != nil {
		return err
	}
	change(&fresh.cfg)
	h.cfg = fresh.cfg
	if err := writeJSON(filepath.Join(h.dir, "host.json"), h.cfg); err != nil {
		return err
	}
	return errors.Join(h.writeBridges(), h.writeProc(h.clock.Now()))
}

// path is where a file of the host lies: path("/var/lib/vz") is below ROOT.
func (h *Host) path(elem ...string) string {
	if h.cfg.Own {
		return filepath.Join(append([]string{"/"}, elem...)...)
	}
	return filepath.Join(append([]string{h.dir, "root"}, elem...)...)
}

// Root is the folder that holds the host's file system.
func (h *Host) Root() string { return h.path() }

// nodeDir is the node's own folder in /etc/pve.
func (h *Host) nodeDir(elem ...string) string {
	return h.path(append([]string{"etc/pve/nodes", h.cfg.NodeName}, elem...)...)
}

// pmxcfs is the folder that stands for the cluster file system.
func (h *Host) pmxcfs() string { return pmxcfsDir(h.cfg) }

func pmxcfsDir(cfg HostConfig) string {
	if cfg.Cluster == "" {
		return filepath.Join(cfg.LabDir, "pmxcfs", cfg.Name)
	}
	return filepath.Join(cfg.LabDir, "pmxcfs")
}

func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(path, append(data, '\n'), 0o644)
}

// replaceFile writes data beside path and renames it there.
func replaceFile(path string, data []byte, mode os.FileMode) error {
	tmp := fmt.Sprintf("%s.tmp.%d", path, os.Getpid())
	if err := os.WriteFile(tmp, data, mode); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// lockFile waits for a short lock between the lab's own processes; it is no
// part of what is simulated.
func lockFile(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { f.Close() }, nil
}
