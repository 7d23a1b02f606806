package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/homeiac/homelab/agent"
	"github.com/homeiac/homelab/agent/driver"
	"github.com/homeiac/homelab/agent/driver/proxmox"
	"github.com/homeiac/homelab/cli"
	"github.com/homeiac/homelab/controller"
	"github.com/homeiac/homelab/lab"
	"github.com/homeiac/homelab/lab/guest"
	"github.com/homeiac/homelab/lab/pve"
)

// TestMain makes this test binary each of the four programs too, by the name
// that it is called with: the main job runs in real processes, under the race
// detector, without building anything.
func TestMain(m *testing.M) {
	name := filepath.Base(os.Args[0])
	switch name {
	case "qm", "pvesm", "pvesh", "pveversion":
		pve.Exit(pve.Main(os.Args, os.Stdin, os.Stdout, os.Stderr))
	case "kvm":
		pve.Exit(guest.KVM(os.Args))
	}
	if program, ok := programs[name]; ok {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		code := program(ctx, os.Args[1:])
		stop()
		pve.Exit(code)
	}
	os.Exit(m.Run())
}

// programs do what the mains do; nothing may import those. Only the command
// lines that a lab uses are understood.
var programs = map[string]func(ctx context.Context, args []string) int{
	"hl-agent": func(ctx context.Context, args []string) int {
		if len(args) > 0 && args[0] == "driver" {
			signal.Ignore(os.Interrupt)
			cfg := proxmox.Config{Root: after(args, "--root"), Proc: after(args, "--proc"), State: after(args, "--state"), Log: driver.PluginLog()}
			d := proxmox.New(cfg)
			context.AfterFunc(ctx, d.End)
			driver.Serve(d)
			return 0
		}
		cfg, err := agent.LoadConfig(after(args, "--config"))
		if err != nil {
			return failed(err)
		}
		return failed(agent.New(cfg, slog.New(slog.NewTextHandler(os.Stderr, nil))).Run(ctx))
	},
	"hl-controller": func(ctx context.Context, args []string) int {
		cfg, err := controller.LoadConfig(after(args, "--config"))
		if err != nil {
			return failed(err)
		}
		c, err := controller.New(cfg, "test", slog.New(slog.NewTextHandler(os.Stderr, nil)))
		if err != nil {
			return failed(err)
		}
		return failed(c.Run(ctx))
	},
	"hl-lab": func(ctx context.Context, args []string) int {
		cmd := lab.Command()
		cmd.SetArgs(args)
		return failed(cmd.ExecuteContext(ctx))
	},
	"hlctl": func(ctx context.Context, args []string) int {
		return cli.Main(ctx, args, os.Stdin, os.Stdout, os.Stderr)
	},
	// hl-undertaker ends a lab when the test is gone, however it went: a timeout
	// and Ctrl-C run no cleanup.
	"hl-undertaker": func(_ context.Context, args []string) int {
		_, _ = io.Copy(io.Discard, os.Stdin)
		dir := after(args, "--dir")
		var down error
		if l, err := lab.Open(dir); err == nil {
			down = l.Down()
		}
		unlock(dir)
		return failed(errors.Join(down, os.RemoveAll(dir)))
	},
}

func failed(err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// after is the value of a flag.
func after(args []string, flag string) string {
	for i, a := range args {
		if v, ok := strings.CutPrefix(a, flag+"="); ok {
			return v
		}
		if a == flag && i+1 < len(args) {
			return args[i+1]
		}
	}
	return ""
}

// linkPrograms puts this test binary into a folder under the programs' names.
// Hard links, so that a process is known by its executable's name as well.
func linkPrograms(t *testing.T, dir string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name := range programs {
		if err := os.Link(self, filepath.Join(dir, name)); err == nil {
			continue
		}
		data, err := os.ReadFile(self) // on another file system
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), data, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// endWithTest ends the lab in dir, and removes it, when the test has ended or was
// ended. Cleanups registered after it see the lab's files.
func endWithTest(t *testing.T, bin, dir string) {
	t.Helper()
	undertaker := exec.Command(filepath.Join(bin, "hl-undertaker"), "--dir", dir)
	undertaker.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	lifeline, err := undertaker.StdinPipe()
	if err == nil {
		err = undertaker.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = lifeline.Close()
		if err := undertaker.Wait(); err != nil {
			t.Errorf("the lab in %s was not ended: %v", dir, err)
		}
	})
}

// The main job once, in real processes: three hosts, one file in, a cluster
// out, and the second run does nothing.
func TestMainJob(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts some twenty processes")
	}
	dir, err := os.MkdirTemp("", "hl") //nolint:usetesting // the sockets in it need a short path
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	linkPrograms(t, bin)
	endWithTest(t, bin, dir)
	o := lab.Options{
		Dir: dir, Hosts: 3, Bin: bin, LearnerTick: 500 * time.Millisecond, Boot: 100 * time.Millisecond, CloudInit: 100 * time.Millisecond,
		Settle: time.Minute,
	}
	t.Cleanup(func() {
		if l, err := lab.Open(dir); err == nil {
			if err := l.Down(); err != nil {
				t.Error(err)
			}
		}
		racesIn(t, dir)
	})
	if _, err := lab.Up(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	spec := filepath.Join(dir, "homelab.yaml")
	hlctl := func(exit int, args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, filepath.Join(bin, "hlctl"), append([]string{"--config", filepath.Join(dir, "hlctl.yaml")}, args...)...)
		var out, errw bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errw
		err := cmd.Run()
		var ended *exec.ExitError
		if err != nil && !errors.As(err, &ended) {
			t.Fatal(err)
		}
		if cmd.ProcessState.ExitCode() != exit {
			t.Fatalf("hlctl %s: exit %d, want %d\n%s%s", strings.Join(args, " "), cmd.ProcessState.ExitCode(), exit, out.String(), errw.String())
		}
		return out.String()
	}
	hlctl(2, "plan", "-f", spec)
	hlctl(0, "apply", "-f", spec, "--yes", "-o", "json")
	var guests []struct{ Name, Health string }
	if err := json.Unmarshal([]byte(hlctl(0, "guests", "-o", "json")), &guests); err != nil {
		t.Fatal(err)
	}
	for _, g := range guests {
		if g.Health != "healthy" {
			t.Errorf("%s is %s", g.Name, g.Health)
		}
	}
	if len(guests) != 3 {
		t.Errorf("guests: %+v", guests)
	}
	calls := read(t, filepath.Join(dir, "calls.jsonl"))
	if again := hlctl(0, "apply", "-f", spec, "--yes", "-o", "json"); !strings.Contains(again, `"mutatingCalls":0,`) {
		t.Errorf("the second apply changed something:\n%s", again)
	}
	if read(t, filepath.Join(dir, "calls.jsonl")) != calls {
		t.Error("the second apply called programs")
	}
	hlctl(0, "plan", "-f", spec)
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// racesIn looks for what the race detector found in the lab's processes, and
// after a failure shows the end of each log.
func racesIn(t *testing.T, dir string) {
	t.Helper()
	logs, _ := filepath.Glob(filepath.Join(dir, "log/*.log"))
	guests, _ := filepath.Glob(filepath.Join(dir, "hosts/*/root/var/log/kvm/*.log"))
	for _, file := range append(logs, guests...) {
		text := read(t, file)
		if i := strings.Index(text, "DATA RACE"); i >= 0 {
			t.Errorf("%s: %.4000s", file, text[i:])
		}
		if t.Failed() && text != "" {
			t.Logf("%s: ... %s", filepath.Base(file), text[max(0, len(text)-1500):])
		}
	}
}

// unlock makes the folders of guests writable, which they are not always.
func unlock(dir string) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, _ error) error {
		if d != nil && d.IsDir() {
			return os.Chmod(path, 0o700)
		}
		return nil
	})
}
