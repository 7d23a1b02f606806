package proxmox_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/homeiac/homelab/agent/driver"
	"github.com/homeiac/homelab/agent/driver/drivertest"
	"github.com/homeiac/homelab/agent/driver/proxmox"
	"github.com/homeiac/homelab/lab/disk"
	"github.com/homeiac/homelab/lab/pve"
)

// sim is the binary that stands in for Proxmox's programs and for kvm. It is one of
// its own, so that a test binary with the race detector in it, which starts slowly,
// is not started hundreds of times.
var sim string

// TestMain makes this binary the driver's plugin, or the tests.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "driver-plugin" {
		driver.Serve(proxmox.New(proxmox.Config{Root: os.Args[2], Proc: "/proc", State: os.Args[3], Log: driver.PluginLog()}))
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "hlsim")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	sim = filepath.Join(dir, "sim")
	if out, err := exec.Command("go", "build", "-o", sim, "./testdata/sim").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the simulated programs: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// host is one simulated host under test.
type host struct {
	t    testing.TB
	lab  string
	name string
	pve  *pve.Host
}

const freeBytes = 100 << 30

// newHost lays a simulated host out, with one directory storage, ZFS and LVM-thin.
func newHost(t testing.TB, change ...func(*pve.HostConfig)) *host {
	t.Helper()
	lab := shortDir(t)
	cfg := pve.HostConfig{
		Name: "pve1", LabDir: lab, QMCost: "none", Binary: sim,
		Storages: []pve.StorageConfig{
			{Name: "local", Type: "dir", Path: "/var/lib/vz", Content: []string{"iso", "vztmpl", "backup", "snippets", "images", "rootdir", "import"}, TotalBytes: freeBytes},
			{Name: "local-zfs", Type: "zfspool", Pool: "rpool/data", Content: []string{"images", "rootdir"}, TotalBytes: freeBytes},
			{Name: "local-lvm", Type: "lvmthin", VG: "pve", ThinPool: "data", Content: []string{"images", "rootdir"}, TotalBytes: freeBytes},
		},
		Bridges: []pve.BridgeConfig{{Name: "vmbr0", Ports: []string{"eno1"}}},
	}
	for _, c := range change {
		c(&cfg)
	}
	if err := pve.NewHost(cfg); err != nil {
		t.Fatal(err)
	}
	p, err := pve.Open(filepath.Join(cfg.LabDir, "hosts", cfg.Name))
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, lab: cfg.LabDir, name: cfg.Name, pve: p}
	h.write("var/lib/vz/snippets/u.yaml", "#cloud-config\n")
	h.write("var/lib/vz/template/iso/tools-001122334455.iso", "CD001")
	if err := os.MkdirAll(h.path("var/lib/vz/template/homelab"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := disk.MakeGuestImage(h.path("var/lib/vz/template/homelab/noble.raw"), 64<<20); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.killGuests)
	return h
}

// shortDir is a temporary folder with a short path: the tests' names are long, and
// socket paths are not to be.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hl") //nolint:usetesting // t.TempDir holds the test's whole name
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (h *host) path(elem ...string) string {
	return filepath.Join(append([]string{h.lab, "hosts", h.name, "root"}, elem...)...)
}

func (h *host) write(name, text string) {
	h.t.Helper()
	if err := os.MkdirAll(filepath.Dir(h.path(name)), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(h.path(name), []byte(text), 0o640); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) read(name string) string {
	data, err := os.ReadFile(h.path(name))
	if err != nil {
		return ""
	}
	return string(data)
}

func (h *host) conf(vmid int32) string { return fmt.Sprintf("etc/pve/qemu-server/%d.conf", vmid) }

// qm is an administrator's hand.
func (h *host) qm(args ...string) {
	h.t.Helper()
	h.program("qm", args...)
}

func (h *host) program(name string, args ...string) {
	h.t.Helper()
	var out strings.Builder
	argv := append([]string{h.path("usr/sbin", name)}, args...)
	if code := h.pve.Run(h.t.Context(), argv, strings.NewReader(""), &out, &out); code != 0 {
		h.t.Fatalf("%s %v: exit %d: %s", name, args, code, out.String())
	}
}

// calls are the programs that were run, by the lab's own log.
func (h *host) calls() []string {
	data, err := os.ReadFile(filepath.Join(h.lab, "calls.jsonl"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		h.t.Fatal(err)
	}
	var all []string
	for line := range strings.Lines(string(data)) {
		var c struct {
			Argv        []string
			Environment []string
		}
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			h.t.Fatal(err)
		}
		all = append(all, filepath.Base(c.Argv[0])+" "+strings.Join(c.Argv[1:], " "))
	}
	return all
}

func (h *host) driver() *proxmox.Driver {
	return proxmox.New(proxmox.Config{Root: h.path(), Proc: "/proc", State: filepath.Join(h.lab, "state"),
		Log: slog.New(slog.NewTextHandler(testWriter{h.t}, nil))})
}

// testWriter sends the log to the test, until it has ended.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Log(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

// killGuests ends the kvm processes that the test left, by their pid files.
func (h *host) killGuests() {
	files, _ := filepath.Glob(h.path("run/qemu-server/*.pid"))
	for _, f := range files {
		data, _ := os.ReadFile(f)
		pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
		if err != nil || pid <= 1 {
			continue
		}
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if strings.HasPrefix(string(cmdline), h.path("usr/bin/kvm")) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// hold makes programs of that verb wait before they begin, until release.
func (h *host) hold(verb string) (held func() int, release func()) {
	dir := filepath.Join(h.lab, "hosts", h.name)
	if err := os.WriteFile(filepath.Join(dir, "hold-"+verb), nil, 0o644); err != nil {
		h.t.Fatal(err)
	}
	release = func() { _ = os.Remove(filepath.Join(dir, "hold-"+verb)) }
	h.t.Cleanup(release)
	return func() int {
		h.t.Helper()
		var pid int
		eventually(h.t, "the program is held", func() bool {
			data, err := os.ReadFile(filepath.Join(dir, "held-"+verb))
			pid, _ = strconv.Atoi(string(data))
			return err == nil && pid > 0
		})
		return pid
	}, release
}

// eventually polls for what real processes do.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it never came to be that %s", what)
		}
	}
}

// world is the host as the contract's tests want it.
func (h *host) world(d driver.Full, storage string) drivertest.World {
	t := h.t
	return drivertest.World{
		Driver: d, Storage: storage, Bridge: "vmbr0", UserData: "local:snippets/u.yaml",
		Image: "/var/lib/vz/template/homelab/noble.raw", ISO: "local:iso/tools-001122334455.iso",
		MakeForeign: func(vmid int32, name string) {
			h.qm("create", fmt.Sprint(vmid), "--name", name, "--memory", "64")
		},
		MakeElsewhere: func(vmid int32) {
			h.write(fmt.Sprintf("etc/pve/nodes/other/qemu-server/%d.conf", vmid), "name: theirs\nmemory: 64\n")
			if err := pve.Refresh(filepath.Join(h.lab, "hosts", h.name, "root", "etc/pve", must(t)(os.Readlink(h.path("etc/pve/.vmlist"))), "..")); err != nil {
				t.Fatal(err)
			}
		},
		BreakOff: func(vmid int32) string {
			volume := h.alloc(storage, vmid)
			h.write(h.conf(vmid), "lock: create\n")
			h.program("pvesm", "status") // whatever runs brings .vmlist up to date
			return volume
		},
		AddVolume: func(vmid int32) string { return h.alloc(storage, vmid) },
		Lock: func(vmid int32) func() {
			h.qm("set", fmt.Sprint(vmid), "--lock", "backup")
			return func() { h.qm("unlock", fmt.Sprint(vmid)) }
		},
		Protect: func(vmid int32) { h.qm("set", fmt.Sprint(vmid), "--protection", "1") },
		Pause:   func(vmid int32) { h.qm("suspend", fmt.Sprint(vmid)) },
		Snapshot: func(vmid int32, name string) {
			// Raw images cannot have real ones.
			h.write(h.conf(vmid), h.read(h.conf(vmid))+"\n["+name+"]\nmemory: 256\nsnaptime: 1795374472\n")
		},
		Blind: func() func() {
			if err := h.pve.UnmountPmxcfs(); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := h.pve.MountPmxcfs(); err != nil {
					t.Fatal(err)
				}
			}
		},
		Digest: func(vmid int32) string { return h.read(h.conf(vmid)) },
	}
}

// alloc makes a volume by hand and gives its id.
func (h *host) alloc(storage string, vmid int32) string {
	h.t.Helper()
	var out strings.Builder
	argv := []string{h.path("usr/sbin/pvesm"), "alloc", storage, fmt.Sprint(vmid), "", "64M"}
	if code := h.pve.Run(h.t.Context(), argv, strings.NewReader(""), &out, io.Discard); code != 0 {
		h.t.Fatalf("alloc: exit %d: %s", code, out.String())
	}
	_, rest, ok := strings.Cut(out.String(), "successfully created '")
	volume, _, _ := strings.Cut(rest, "'")
	if !ok {
		h.t.Fatalf("alloc said %q", out.String())
	}
	return volume
}

func must(t testing.TB) func(string, error) string {
	return func(s string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
}

// flock holds a VM's lock file, as another qm would.
func (h *host) flock(vmid int32) (unlock func()) {
	h.t.Helper()
	f, err := os.OpenFile(h.path("var/lock/qemu-server", fmt.Sprintf("lock-%d.conf", vmid)), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = f.Close() })
	return func() { _ = unix.Flock(int(f.Fd()), unix.LOCK_UN) }
}
