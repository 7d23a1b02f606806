package pve

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/homeiac/homelab/lab/disk"
)

// fastClock waits little where a program would wait long: time passes for the
// program, and real processes get a moment. An impatient one waits next to
// nothing, for what is going to run out of time anyway.
type fastClock struct {
	mu        sync.Mutex
	now       time.Time
	impatient bool
}

func (c *fastClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fastClock) Sleep(ctx context.Context, d time.Duration) error {
	c.mu.Lock()
	c.now = c.now.Add(d)
	wait := min(d, 10*time.Millisecond)
	if c.impatient {
		wait = min(d/100, time.Millisecond)
	}
	c.mu.Unlock()
	select {
	case <-time.After(wait):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// patient are limits that only a hung process reaches; hasty ones are for
// those that are meant to be reached.
var (
	patient = timeouts{qmpConnect: 10 * time.Second, qmpStatus: 10 * time.Second, qmpQuit: 10 * time.Second, agent: 10 * time.Second, kvmReady: 30 * time.Second}
	hasty   = timeouts{qmpConnect: 150 * time.Millisecond, qmpStatus: 100 * time.Millisecond, qmpQuit: 150 * time.Millisecond, agent: 150 * time.Millisecond, kvmReady: 30 * time.Second}
)

// world is a host to try programs on.
type world struct {
	*testing.T
	*Host
	dir string
}

func newWorld(t *testing.T, change ...func(*HostConfig)) *world {
	t.Helper()
	dir := t.TempDir()
	cfg := HostConfig{
		Name: "pve1", LabDir: dir, PVEVersion: "9.2.11", MemoryBytes: 24 << 30, CPUs: 2,
		Bridges:  []BridgeConfig{{Name: "vmbr0"}},
		Storages: []StorageConfig{{Name: "local", Type: "dir", Path: "/var/lib/vz", TotalBytes: 270553174016, ForeignBytes: 25 << 30}},
	}
	for _, c := range change {
		c(&cfg)
	}
	if err := NewHost(cfg); err != nil {
		t.Fatal(err)
	}
	return openWorld(t, dir, cfg.Name)
}

func openWorld(t *testing.T, dir, name string) *world {
	t.Helper()
	h, err := Open(filepath.Join(dir, "hosts", name))
	if err != nil {
		t.Fatal(err)
	}
	h.clock = &fastClock{now: time.Unix(1795374090, 0)}
	h.times = patient
	w := &world{T: t, Host: h, dir: dir}
	t.Cleanup(w.killAll)
	return w
}

// killAll ends the guests that the test left running.
func (w *world) killAll() {
	ids, _ := w.guests()
	files, _ := filepath.Glob(w.path("run/qemu-server", "*.pid"))
	for _, f := range files {
		ids = append(ids, strings.TrimSuffix(filepath.Base(f), ".pid"))
	}
	for _, id := range ids {
		if pid := w.running(id); pid != 0 {
			_ = w.terminate(pid, syscall.SIGKILL)
			for alive(pid) {
				time.Sleep(time.Millisecond)
			}
		}
	}
}

// result is what a program did.
type result struct {
	code        int
	out, stderr string
}

// try runs a program of the host.
func (w *world) try(argv ...string) result { return w.tryInput("", argv...) }

func (w *world) tryInput(stdin string, argv ...string) result {
	w.Helper()
	bin := map[string]string{"qm": "usr/sbin/qm", "pvesm": "usr/sbin/pvesm", "pvesh": "usr/bin/pvesh", "pveversion": "usr/bin/pveversion"}[argv[0]]
	if bin == "" {
		w.Fatalf("no program %s", argv[0])
	}
	// Settings are read anew by every program.
	h, err := Open(w.Host.dir)
	if err != nil {
		w.Fatal(err)
	}
	h.clock, h.times = w.clock, w.times
	var out, stderr bytes.Buffer
	code := h.Run(context.Background(), append([]string{w.path(bin)}, argv[1:]...), strings.NewReader(stdin), &out, &stderr)
	return result{code, out.String(), stderr.String()}
}

// must runs a program that has to succeed and returns its output.
func (w *world) must(argv ...string) string {
	w.Helper()
	got := w.try(argv...)
	if got.code != 0 {
		w.Fatalf("%s: exit %d\n%s%s", strings.Join(argv, " "), got.code, got.out, got.stderr)
	}
	return got.out
}

func (w *world) conf(vmid string) string {
	data, err := os.ReadFile(w.confPath(vmid))
	if err != nil {
		return ""
	}
	return string(data)
}

func (w *world) write(path, text string) {
	w.Helper()
	if err := os.MkdirAll(filepath.Dir(w.path(path)), 0o755); err != nil {
		w.Fatal(err)
	}
	if err := os.WriteFile(w.path(path), []byte(text), 0o644); err != nil {
		w.Fatal(err)
	}
}

// image makes a source file on the host.
func (w *world) image(path string, size int64) {
	w.Helper()
	w.write(path, "")
	if err := disk.MakeGuestImage(w.path(path), size); err != nil {
		w.Fatal(err)
	}
}

func (w *world) exists(path string) bool {
	_, err := os.Lstat(w.path(path))
	return err == nil
}
