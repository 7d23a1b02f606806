package pve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/homeiac/homelab/lab/disk"
)

// run is one call of a program.
type run struct {
	*Host
	ctx   context.Context
	stdin io.Reader
	// out and warn are where the work prints: the program's streams, and in a
	// task both the task's output.
	out, warn io.Writer
	stderr    io.Writer
	synopsis  string // of the command, for failed parameters
	verb      string // of qm: "disk move"
	upid      string // of the last task
	inTask    bool
	warnings  *int // of the task
}

func (r *run) printf(format string, a ...any) { fmt.Fprintf(r.out, format, a...) }
func (r *run) warnf(format string, a ...any)  { fmt.Fprintf(r.warn, format, a...) }

// errInterrupted is the cause of a context that a signal ended.
var errInterrupted = errors.New("interrupted by signal")

// Main is the entry of the simulated programs. argv[0] is the program's path
// on the host, DIR/hosts/NAME/root/usr/sbin/qm and the like: nothing else says
// which host it is. It returns the exit code.
func Main(argv []string, stdin io.Reader, stdout, stderr io.Writer) int {
	// The death of whoever reads the output, or of the session it was started
	// in, does not stop Proxmox's worker processes.
	signal.Ignore(syscall.SIGPIPE, syscall.SIGHUP)
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		if _, ok := <-stop; ok {
			cancel(errInterrupted)
		}
	}()
	dir, err := hostOf(argv[0])
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", argv[0], err)
		return 127
	}
	h, err := Open(dir)
	if err != nil {
		fmt.Fprintf(stderr, "%s: no simulated host: %v\n", argv[0], err)
		return 127
	}
	return h.Run(ctx, argv, stdin, stdout, stderr)
}

// hostOf finds the host's folder above the program's path.
func hostOf(program string) (string, error) {
	if !strings.Contains(program, "/") {
		path, err := exec.LookPath(program)
		if err != nil {
			return "", err
		}
		program = path
	}
	abs, err := filepath.Abs(program)
	if err != nil {
		return "", err
	}
	for d := filepath.Dir(abs); d != "/"; d = filepath.Dir(d) {
		if filepath.Base(d) == "root" {
			if _, err := os.Stat(filepath.Join(filepath.Dir(d), "host.json")); err == nil {
				return filepath.Dir(d), nil
			}
		}
	}
	if own, err := os.Readlink(disk.OwnHost); err == nil {
		return own, nil
	}
	return "", errors.New("does not lie on a simulated host")
}

// Run is one call of a program on this host, by the name in argv[0].
func (h *Host) Run(ctx context.Context, argv []string, stdin io.Reader, stdout, stderr io.Writer) int {
	begin := h.clock.Now()
	r := &run{Host: h, ctx: ctx, stdin: stdin, out: stdout, warn: stderr, stderr: stderr}
	name := filepath.Base(argv[0])
	cost := h.cost(name, argv[1:])
	err := h.pay(ctx, name, cost.startup)
	if err == nil && name != "pveversion" {
		err = h.hung(func(d time.Duration) error { return h.clock.Sleep(ctx, d) })
	}
	if err == nil {
		err = r.dispatch(name, argv[1:])
	}
	code := codeOf(err)
	if err != nil && err.Error() != "" {
		text := err.Error()
		var b *badParams
		if errors.As(err, &b) {
			text += r.synopsis
		}
		fmt.Fprintln(stderr, strings.TrimSuffix(text, "\n"))
	}
	_ = h.pay(ctx, name, cost.work)
	h.logCall(argv, begin, code)
	return code
}

func (r *run) dispatch(name string, args []string) error {
	if name == "pveversion" {
		return r.pveversion(args)
	}
	if !r.mounted() {
		return fail(111, "%s", ipcRefused("Connection refused"))
	}
	if err := Refresh(r.pmxcfs()); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	switch name {
	case "qm":
		return r.command("qm", qmUsage, qmCommands, args)
	case "pvesm":
		return r.command("pvesm", pvesmUsage, pvesmCommands, args)
	case "pvesh":
		return r.pvesh(args)
	}
	return notSimulated("the program %s", name)
}

// ipcRefused is what every program says when pmxcfs does not answer.
func ipcRefused(why string) string {
	var b strings.Builder
	for i := 1; i <= 3; i++ {
		fmt.Fprintf(&b, "ipcc_send_rec[%d] failed: %s\n", i, why)
	}
	return b.String() + "Unable to load access control list: " + why
}

// secretOptions are never written to calls.jsonl.
var secretOptions = []string{"cipassword", "password", "content"}

// logCall appends one line to DIR/calls.jsonl, in a single write.
func (h *Host) logCall(argv []string, begin time.Time, code int) {
	type call struct {
		Time        time.Time `json:"time"`
		Host        string    `json:"host"`
		Argv        []string  `json:"argv"`
		Environment []string  `json:"environment"`
		Exit        int       `json:"exit"`
		WallMS      int64     `json:"wall_ms"`
		PID         int       `json:"pid"`
	}
	env := os.Environ()
	if env == nil {
		env = []string{}
	}
	h.appendLine("calls.jsonl", call{
		Time: begin.UTC(), Host: h.cfg.Name, Argv: maskSecrets(argv), Environment: env, Exit: code,
		WallMS: h.clock.Now().Sub(begin).Milliseconds(), PID: os.Getpid(),
	})
}

func maskSecrets(argv []string) []string {
	masked := slices.Clone(argv)
	for i, a := range masked {
		if !strings.HasPrefix(a, "-") {
			continue
		}
		name, _, withValue := strings.Cut(strings.TrimLeft(a, "-"), "=")
		if !slices.Contains(secretOptions, name) {
			continue
		}
		if withValue {
			masked[i] = "--" + name + "=***"
		} else if i+1 < len(masked) {
			masked[i+1] = "***"
		}
	}
	return masked
}

func (h *Host) appendLine(file string, v any) {
	line, err := json.Marshal(v)
	if err != nil {
		return
	}
	f, err := os.OpenFile(filepath.Join(h.cfg.LabDir, file), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return
	}
	defer f.Close()
	_, _ = f.Write(append(line, '\n'))
}

// wait sleeps for a simulated reason and logs the interval to DIR/waits.jsonl.
func (h *Host) wait(ctx context.Context, what, vmid string, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	start := h.clock.Now()
	err := h.clock.Sleep(ctx, d)
	h.appendLine("waits.jsonl", map[string]any{
		"host": h.cfg.Name, "what": what, "guest": vmid, "start": start.UTC(), "end": h.clock.Now().UTC(),
	})
	return err
}
