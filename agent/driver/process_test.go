package driver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/homeiac/homelab/agent/driver"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// TestMain makes this binary a plugin, or an agent that supervises one, or the tests.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "plugin" {
		s := &scripted{dir: os.Args[2], log: driver.PluginLog(), ending: make(chan os.Signal, 1)}
		signal.Notify(s.ending, syscall.SIGTERM)
		driver.Serve(s)
		return
	}
	if len(os.Args) > 2 && os.Args[1] == "agent" {
		_ = driver.New(driver.Config{Command: []string{os.Args[0], "plugin", os.Args[2]}}).Run(context.Background())
		return
	}
	os.Exit(m.Run())
}

// scripted is a driver whose calls do what their names say.
type scripted struct {
	driver.Driver
	dir    string
	log    *slog.Logger
	ending chan os.Signal
}

// Stop goes on until the process is told to end; asked with force it dies then.
func (s *scripted) Stop(_ context.Context, req *driverv1.StopRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	report(&homelabv1.Event{Text: "at work"})
	<-s.ending
	if req.GetForce() {
		os.Exit(0)
	}
	return &homelabv1.VirtualMachine{Vmid: 201}, nil
}

func (s *scripted) Observe(context.Context, bool) (*driverv1.ObserveResponse, error) {
	_ = os.WriteFile(filepath.Join(s.dir, "pid"), []byte(strconv.Itoa(os.Getpid())), 0o644)
	s.log.Warn("observed", "vms", 3)
	return &driverv1.ObserveResponse{LeftoverVmids: []int32{int32(os.Getpid())}}, nil
}

func (s *scripted) Inspect(_ context.Context, vmid int32) (*driverv1.InspectResponse, error) {
	return nil, fmt.Errorf("look at VM %d: %w", vmid, rpc.Errorf(rpc.Kind(kinds[vmid]), "this is why"))
}

var kinds = map[int32]string{1: "invalid", 2: "not found", 3: "exists", 4: "busy", 5: "unavailable", 6: "refused", 7: "denied", 8: "unsupported"}

func (s *scripted) Create(_ context.Context, _ *driverv1.CreateRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	for i := range 100 {
		report(&homelabv1.Event{Text: strconv.Itoa(i)})
	}
	return &homelabv1.VirtualMachine{Vmid: 201}, nil
}

// Start never ends by itself.
func (s *scripted) Start(ctx context.Context, _ *driverv1.StartRequest, report driver.Report) (*homelabv1.VirtualMachine, error) {
	report(&homelabv1.Event{Text: "at work"})
	<-ctx.Done()
	_ = os.WriteFile(filepath.Join(s.dir, "cancelled"), nil, 0o644)
	return nil, ctx.Err()
}

func supervised(t *testing.T, log *slog.Logger) (*driver.Process, string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	p := driver.New(driver.Config{Command: []string{exe, "plugin", dir}, Log: log})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	up(t, p)
	return p, dir
}

func up(t *testing.T, p *driver.Process) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := p.WaitUp(ctx); err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it never came to be that %s", what)
		}
	}
}

func TestKindsAndTextsSurviveThePlugin(t *testing.T) {
	p, _ := supervised(t, nil)
	for vmid, kind := range kinds {
		_, err := p.Inspect(t.Context(), vmid)
		if rpc.KindOf(err) != rpc.Kind(kind) || err.Error() != fmt.Sprintf("look at VM %d: this is why", vmid) {
			t.Errorf("%s: %v of kind %q", kind, err, rpc.KindOf(err))
		}
	}
}

func TestEventsComeInOrderAndTheVMLast(t *testing.T) {
	p, _ := supervised(t, nil)
	var got []string
	vm, err := p.Create(t.Context(), &driverv1.CreateRequest{}, func(e *homelabv1.Event) { got = append(got, e.GetText()) })
	if err != nil || vm.GetVmid() != 201 {
		t.Fatalf("%v, %v", vm, err)
	}
	if len(got) != 100 || got[0] != "0" || got[99] != "99" {
		t.Errorf("events %v", got)
	}
}

func TestAKilledDriverIsRelaunchedAndTheCallInFlightIsUnavailable(t *testing.T) {
	p, _ := supervised(t, nil)
	first := p.PID()
	sockets := environmentOf(t, first, "PLUGIN_UNIX_SOCKET_DIR")
	_, err := p.Start(t.Context(), &driverv1.StartRequest{}, func(*homelabv1.Event) {
		if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
	})
	if !errors.Is(err, rpc.ErrUnavailable) {
		t.Fatalf("the call in flight: %v", err)
	}
	eventually(t, "its socket's folder is gone", func() bool {
		_, err := os.Stat(sockets)
		return errors.Is(err, os.ErrNotExist)
	})
	eventually(t, "another driver runs", func() bool { return p.PID() != 0 && p.PID() != first })
	seen, err := p.Observe(t.Context(), false)
	if err != nil || seen.GetLeftoverVmids()[0] == int32(first) {
		t.Errorf("after the relaunch: %v, %v", seen, err)
	}
}

func TestTheCallersEndReachesTheDriver(t *testing.T) {
	p, dir := supervised(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := p.Start(ctx, &driverv1.StartRequest{}, func(*homelabv1.Event) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	eventually(t, "the driver's context has ended", func() bool {
		_, err := os.Stat(filepath.Join(dir, "cancelled"))
		return err == nil
	})
}

func TestADriverThatCannotBeLaunchedIsUnavailableAndSaysWhy(t *testing.T) {
	p := driver.New(driver.Config{Command: []string{"/nowhere/driver"}})
	if _, err := p.Observe(t.Context(), false); !errors.Is(err, rpc.ErrUnavailable) {
		t.Errorf("before Run: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	eventually(t, "the reason is known", func() bool {
		_, err := p.Observe(t.Context(), false)
		return errors.Is(err, rpc.ErrUnavailable) && strings.Contains(err.Error(), "/nowhere/driver")
	})
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestTheDriverEndsWithAKilledAgent(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	agent, err := os.StartProcess(exe, []string{exe, "agent", dir}, &os.ProcAttr{Env: os.Environ(), Files: []*os.File{nil, nil, nil}})
	if err != nil {
		t.Fatal(err)
	}
	var plugin int
	eventually(t, "the agent has a driver", func() bool {
		plugin = childOf(agent.Pid)
		return plugin != 0
	})
	if err := agent.Kill(); err != nil {
		t.Fatal(err)
	}
	_, _ = agent.Wait()
	eventually(t, "the driver has ended too", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", plugin))
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}

// environmentOf reads one variable of a process.
func environmentOf(t *testing.T, pid int, name string) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		t.Fatal(err)
	}
	for v := range strings.SplitSeq(string(data), "\x00") {
		if value, ok := strings.CutPrefix(v, name+"="); ok {
			return value
		}
	}
	t.Fatalf("process %d has no %s", pid, name)
	return ""
}

// childOf finds a process whose parent is pid.
func childOf(pid int) int {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(data), ") ")
		if f := strings.Fields(rest); len(f) > 1 && f[1] == strconv.Itoa(pid) {
			child, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			return child
		}
	}
	return 0
}

// kept is a log that can be read while it is written.
type kept struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (k *kept) Write(p []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.b.Write(p)
}

func (k *kept) String() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.b.String()
}

func TestTheDriversLogComesThroughWithLevelAndPairs(t *testing.T) {
	var log kept
	p, _ := supervised(t, slog.New(slog.NewTextHandler(&log, nil)))
	if _, err := p.Observe(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the line is logged", func() bool { return strings.Contains(log.String(), "level=WARN msg=observed vms=3") })
}

func TestADriverThatIsToEndFinishesItsCallsAndIsNotLaunchedAgain(t *testing.T) {
	for _, dies := range []bool{false, true} {
		p, _ := supervised(t, nil)
		pid := p.PID()
		vm, err := p.Stop(t.Context(), &driverv1.StopRequest{Force: dies}, func(*homelabv1.Event) { p.End() })
		if dies {
			if !errors.Is(err, rpc.ErrUnavailable) {
				t.Errorf("the call of a driver that died: %v", err)
			}
			eventually(t, "the driver is down for good", func() bool {
				_, err := p.Observe(t.Context(), false)
				return err != nil && strings.Contains(err.Error(), "the agent is ending")
			})
			continue
		}
		if err != nil || vm.GetVmid() != 201 {
			t.Errorf("the call at work: %v, %v", vm, err)
		}
		if _, err := p.Observe(t.Context(), false); err != nil || p.PID() != pid {
			t.Errorf("it is there until the agent has ended: %v", err)
		}
	}
}
