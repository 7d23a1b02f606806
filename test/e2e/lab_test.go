//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// options of a lab; zero values are those of most tests.
type options struct {
	hosts       int // 3
	controllers int // 1
	// standalone hosts are no PVE cluster.
	standalone bool
	// real makes the simulated programs take their time.
	real bool
	// tick is how often learners are promoted, 500 ms.
	tick time.Duration
	// cloudInit is how long a guest's cloud-init takes; the lab's own time when 0.
	cloudInit time.Duration
	// more are further flags of hl-lab up.
	more []string
}

// lab is a running lab in a folder of its own.
type lab struct {
	t   *testing.T
	dir string
	// config is hlctl's configuration, spec the Spec that hl-lab wrote.
	config, spec string
	net          string // 127.X.Y
	specs        int
	// enter comes before hlctl where the lab has a network of its own, and a home.
	enter []string
	home  string
	mu    sync.Mutex
}

// newLab starts a lab. It ends with the test; then nothing of it may be left
// running, and nobody may have come to a host's API port.
func newLab(t *testing.T, o options) *lab {
	t.Helper()
	dir, err := os.MkdirTemp("", "hl") //nolint:usetesting // the sockets in it need a short path
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(undertaker, dir)
	l := &lab{t: t, dir: dir, config: filepath.Join(dir, "hlctl.yaml"), spec: filepath.Join(dir, "homelab.yaml")}
	t.Cleanup(l.end)
	if o.hosts == 0 {
		o.hosts = 3
	}
	if o.controllers == 0 {
		o.controllers = 1
	}
	if o.tick == 0 {
		o.tick = 500 * time.Millisecond
	}
	args := []string{"--hosts", strconv.Itoa(o.hosts), "--controllers", strconv.Itoa(o.controllers), "--learner-tick", o.tick.String()}
	if o.standalone {
		args = append(args, "--pve", "standalone")
	}
	if o.real {
		args = append(args, "--qm-cost", "real")
	}
	if o.cloudInit != 0 {
		args = append(args, "--cloud-init-time", o.cloudInit.String())
	}
	l.up(append(args, o.more...)...)
	l.net = l.readConfig().Net
	return l
}

// up is hl-lab up --detach.
func (l *lab) up(args ...string) {
	l.t.Helper()
	r := run(l.t, "hl-lab", append([]string{"up", "--dir", l.dir, "--detach"}, args...)...)
	if r.exit != 0 || strings.TrimSpace(r.stdout) != "ready" {
		l.t.Fatalf("hl-lab up: %s", r)
	}
}

// end takes the lab down. After a failure the ends of its logs are shown and
// the folder is kept.
func (l *lab) end() {
	down := exec.Command(filepath.Join(bin, "hl-lab"), "down", "--dir", l.dir)
	if out, err := down.CombinedOutput(); err != nil {
		l.t.Errorf("hl-lab down: %v: %s", err, out)
	}
	for _, p := range l.processes() {
		l.t.Errorf("hl-lab down left process %d running: %q", p.pid, p.argv)
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
	}
	visits, err := filepath.Glob(l.path("hosts", "*", "api-connections"))
	if err != nil {
		l.t.Error(err)
	}
	for _, file := range visits {
		text, _ := os.ReadFile(file)
		l.t.Errorf("somebody came to port 8006: %s: %s", file, text)
	}
	fmt.Fprintln(undertaker, "-"+l.dir)
	if l.t.Failed() && os.Getenv("HOMELAB_E2E_KEEP") != "" {
		l.t.Logf("the lab is kept in %s", l.dir)
		return
	}
	if l.t.Failed() {
		l.logTails()
	}
	removeAll(l.dir)
}

// logTails shows the end of each log of a daemon or of a guest's process.
func (l *lab) logTails() {
	logs, _ := filepath.Glob(l.path("log", "*.log"))
	kvm, _ := filepath.Glob(l.path("hosts/*/root/var/log/kvm/*.log"))
	for _, file := range append(logs, kvm...) {
		text, err := os.ReadFile(file)
		if err != nil || len(text) == 0 {
			continue
		}
		var tail strings.Builder
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		for _, line := range lines[max(0, len(lines)-8):] {
			fmt.Fprintf(&tail, "\n  %.200s", line)
		}
		l.t.Logf("%s:%s", filepath.Base(file), tail.String())
	}
}

func (l *lab) path(elem ...string) string { return filepath.Join(append([]string{l.dir}, elem...)...) }

func (l *lab) host(name string, elem ...string) string {
	return l.path(append([]string{"hosts", name, "root"}, elem...)...)
}

// result is what a program left.
type result struct {
	argv           []string
	stdout, stderr string
	exit           int
	took           time.Duration
}

func (r result) String() string {
	return fmt.Sprintf("%s: exit %d after %.1f s\nstdout: %s\nstderr: %s", strings.Join(r.argv, " "), r.exit, r.took.Seconds(), r.stdout, r.stderr)
}

// commandLimit is how long one command of a test may take.
const commandLimit = 100 * time.Second

// run runs one of our programs to its end.
func run(t *testing.T, program string, args ...string) result {
	t.Helper()
	return runIn(t, nil, program, args...)
}

// runIn is run with a command before the program's.
func runIn(t *testing.T, enter []string, program string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	argv := append(append(slices.Clone(enter), filepath.Join(bin, program)), args...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	err := cmd.Run()
	r := result{append([]string{program}, args...), stdout.String(), stderr.String(), 0, time.Since(began)}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		t.Fatalf("%s did not end\n%s", program, r)
	case errors.As(err, &exit):
		r.exit = exit.ExitCode()
	case err != nil:
		t.Fatalf("%s: %v", program, err)
	}
	return r
}

// hlctl runs hlctl against the lab.
func (l *lab) hlctl(args ...string) result {
	l.t.Helper()
	return runIn(l.t, l.network(), "hlctl", append([]string{"--config", l.config}, args...)...)
}

// network is what comes before a program that is to be in the lab's network.
func (l *lab) network() []string {
	if l.enter == nil {
		return nil
	}
	return append(slices.Clone(l.enter), "--net", "--", "env", "HOME="+l.home)
}

// qm is an administrator's hand on a host; it must succeed.
func (l *lab) qm(host string, args ...string) string {
	l.t.Helper()
	r := run(l.t, "hl-lab", append([]string{"qm", "--dir", l.dir, host}, args...)...)
	if r.exit != 0 {
		l.t.Fatal(r)
	}
	return r.stdout
}

// fault breaks or mends something.
func (l *lab) fault(kind, target string, values ...string) {
	l.t.Helper()
	if r := run(l.t, "hl-lab", append([]string{"fault", "--dir", l.dir, kind, target}, values...)...); r.exit != 0 {
		l.t.Fatal(r)
	}
}

// eventually asks until ok says yes; what it says otherwise is told when the
// limit is over.
func (l *lab) eventually(limit time.Duration, what string, ok func() (bool, string)) {
	l.t.Helper()
	deadline := time.Now().Add(limit)
	for {
		is, why := ok()
		if is {
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("not within %s: %s: %s", limit, what, why)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// process is a running process of the lab.
type process struct {
	pid  int
	argv []string
}

// processes are those of our programs that name the lab's folder.
func (l *lab) processes() []process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		l.t.Fatal(err)
	}
	var list []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		text, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(text) == 0 || !bytes.Contains(text, []byte(l.dir)) {
			continue
		}
		exe, err := os.Readlink(filepath.Join("/proc", e.Name(), "exe"))
		if err != nil || !strings.HasPrefix(exe, bin+"/") {
			continue
		}
		list = append(list, process{pid, strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")})
	}
	return list
}

// find is the one process whose arguments match.
func (l *lab) find(what string, match func(argv string) bool) (int, bool) {
	var found []int
	for _, p := range l.processes() {
		if match(strings.Join(p.argv, " ")) {
			found = append(found, p.pid)
		}
	}
	if len(found) > 1 {
		l.t.Fatalf("%d processes are %s: %v", len(found), what, found)
	}
	if len(found) == 0 {
		return 0, false
	}
	return found[0], true
}

func (l *lab) agentPID(host string) (int, bool) {
	return l.find("the agent of "+host, func(argv string) bool {
		return strings.Contains(argv, "/hosts/"+host+"/agent/agent.yaml") && !strings.Contains(argv, " driver ")
	})
}

func (l *lab) driverPID(host string) (int, bool) {
	return l.find("the driver of "+host, func(argv string) bool {
		return strings.Contains(argv, " driver ") && strings.Contains(argv, "/hosts/"+host+"/")
	})
}

func (l *lab) controllerPID(name string) (int, bool) {
	return l.find(name, func(argv string) bool { return strings.Contains(argv, "/controllers/"+name+"/controller.yaml") })
}

// kill is kill -9, and waits until the process is gone.
func (l *lab) kill(pid int) {
	l.t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		l.t.Fatal(err)
	}
	l.eventually(5*time.Second, fmt.Sprintf("process %d gone", pid), func() (bool, string) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return true, ""
		}
		_, after, _ := strings.Cut(string(stat), ") ")
		return strings.HasPrefix(after, "Z"), "it runs"
	})
}
