//go:build bench

package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/homeiac/homelab/controller/plan"
	"github.com/homeiac/homelab/controller/plan/plantest"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// The benches print one line each with its bound, and say MISSED where it does
// not hold; they fail only when they could not measure. They use the binaries of
// make build.

// figure prints one measured figure.
func figure(within bool, format string, args ...any) {
	word := "ok"
	if !within {
		word = "MISSED"
	}
	fmt.Printf("%-6s  %s\n", word, fmt.Sprintf(format, args...))
}

// bench is a running lab.
type bench struct {
	t    *testing.T
	bin  string
	dir  string
	net  string
	spec string
	runs atomic.Int64 // steps that were asked for past the controller
}

func newBench(t *testing.T, args ...string) *bench {
	t.Helper()
	bin := os.Getenv("HOMELAB_BIN")
	if bin == "" {
		bin = "../bin"
	}
	bin, err := filepath.Abs(bin)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "hl") //nolint:usetesting // the sockets in it need a short path
	if err != nil {
		t.Fatal(err)
	}
	own := t.TempDir()
	t.Setenv("TMPDIR", own) // a driver that is killed leaves its socket there
	linkPrograms(t, own)
	endWithTest(t, own, dir)
	b := &bench{t: t, bin: bin, dir: dir, spec: filepath.Join(dir, "homelab.yaml")}
	b.run(0, "hl-lab", append([]string{"up", "--dir", dir, "--detach"}, args...)...)
	var cfg struct {
		Net string `json:"net"`
	}
	if err := json.Unmarshal([]byte(read(t, filepath.Join(dir, "lab.json"))), &cfg); err != nil {
		t.Fatal(err)
	}
	b.net = cfg.Net
	return b
}

// run runs a program and gives its wall time and output.
func (b *bench) run(exit int, program string, args ...string) (time.Duration, string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(b.bin, program), args...)
	began := time.Now()
	out, err := cmd.CombinedOutput()
	took := time.Since(began)
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) || cmd.ProcessState.ExitCode() != exit {
		b.t.Fatalf("%s %q: exit %d, want %d: %v\n%s", program, args, cmd.ProcessState.ExitCode(), exit, err, out)
	}
	return took, string(out)
}

func (b *bench) apply() time.Duration {
	b.t.Helper()
	took, _ := b.run(0, "hlctl", "--config", filepath.Join(b.dir, "hlctl.yaml"), "apply", "-f", b.spec, "--yes", "-o", "json")
	return took
}

// dial calls a daemon of the lab as somebody of its trust.
func (b *bench) dial(as, role, address string) rpc.Target {
	b.t.Helper()
	creds, err := rpc.LoadTLS(filepath.Join(b.dir, "pki/ca.pem"), filepath.Join(b.dir, "pki", as+".pem"), filepath.Join(b.dir, "pki", as+".key"))
	if err != nil {
		b.t.Fatal(err)
	}
	return rpc.Target{Address: address, Role: role, Credentials: creds}
}

// The figures that need a fleet of five hosts: the first apply, the second, an
// observation, an idle agent, a host that goes off.
func TestBenchFiveHosts(t *testing.T) {
	b := newBench(t, "--hosts", "5", "--qm-cost", "real")
	b.firstApply()
	b.secondApply()
	b.observation()
	b.idle()
	b.detection()
}

// firstApply compares a fresh apply with the simulated waits in it that depend
// on each other.
func (b *bench) firstApply() {
	took := b.apply()
	var waits []wait
	for line := range strings.Lines(read(b.t, filepath.Join(b.dir, "waits.jsonl"))) {
		var w wait
		if err := json.Unmarshal([]byte(line), &w); err != nil {
			b.t.Fatal(err)
		}
		waits = append(waits, w)
	}
	chain := longestChain(waits, []string{"pve1", "pve2", "pve3"}, []string{"pve4", "pve5"})
	over := took - chain
	figure(over < 2*time.Second, "first apply, 5 hosts, --qm-cost real: %.1f s, of which %.1f s are the longest chain of simulated waits; %.1f s above it (bound 2 s)",
		took.Seconds(), chain.Seconds(), over.Seconds())
}

func (b *bench) secondApply() {
	const rounds = 10
	var all []time.Duration
	for range rounds {
		all = append(all, b.apply())
	}
	slices.Sort(all)
	median, worst := all[rounds/2], all[rounds-1]
	figure(median < time.Second, "second apply, 5 hosts, --qm-cost real, %d times: median %.2f s (bound 1 s), worst %.2f s", rounds, median.Seconds(), worst.Seconds())
}

// observation counts the processes that observations start: calls of simulated
// programs, and children that the agent or its driver waited for or still have.
func (b *bench) observation() {
	const times = 50
	conn, err := rpc.Dial(b.dial("controller-1", rpc.RoleAgent, b.net+".1:8400"))
	if err != nil {
		b.t.Fatal(err)
	}
	defer conn.Close()
	client := agentv1.NewAgentServiceClient(conn)
	agent, driver := b.agentOf("pve1")
	calls := strings.Count(read(b.t, filepath.Join(b.dir, "calls.jsonl")), "\n")
	before := childFaults(b.t, agent) + childFaults(b.t, driver)
	kids := len(children(b.t, agent)) + len(children(b.t, driver))
	if kids == 0 || childFaults(b.t, driver) == 0 {
		b.t.Fatal("children cannot be counted here: the agent has its driver, and that has called programs")
	}
	began := time.Now()
	for range times {
		ctx, cancel := context.WithTimeout(b.t.Context(), 10*time.Second)
		resp, err := client.Observe(ctx, &agentv1.ObserveRequest{})
		cancel()
		if err != nil {
			b.t.Fatal(err)
		}
		if len(resp.GetObservation().GetVms()) != 1 {
			b.t.Fatalf("the observation does not show the guest: %v", resp)
		}
	}
	took := time.Since(began)
	started := strings.Count(read(b.t, filepath.Join(b.dir, "calls.jsonl")), "\n") - calls
	ended := childFaults(b.t, agent) + childFaults(b.t, driver) - before
	more := len(children(b.t, agent)) + len(children(b.t, driver)) - kids
	figure(started == 0 && ended == 0 && more == 0,
		"processes started by %d observations: %d calls of programs, %d children (bound 0); %.1f ms each", times, started, min(int(ended), 1)+more, took.Seconds()*1000/times)
}

// idle measures each agent with its driver while nothing is asked of them but
// the controller's own background observation.
func (b *bench) idle() {
	const span = 30 * time.Second
	type pair struct{ agent, driver int }
	var pairs []pair
	var before []time.Duration
	for i := range 5 {
		a, d := b.agentOf(fmt.Sprintf("pve%d", i+1))
		pairs = append(pairs, pair{a, d})
		before = append(before, cpuTime(b.t, a)+cpuTime(b.t, d))
	}
	time.Sleep(span)
	var cpu float64
	var memory int64
	for i, p := range pairs {
		used := cpuTime(b.t, p.agent) + cpuTime(b.t, p.driver) - before[i]
		cpu = max(cpu, 100*used.Seconds()/span.Seconds())
		memory = max(memory, resident(b.t, p.agent)+resident(b.t, p.driver))
	}
	figure(cpu < 0.5 && memory < 60<<20, "idle agent with its driver, the most of 5: %.2f %% of a core (bound 0.5), %d MB resident (bound 60)", cpu, memory>>20)
}

// detection switches a host off again and again until the controller shows it
// silent.
func (b *bench) detection() {
	const rounds = 20
	conn, err := rpc.Dial(b.dial("admin", rpc.RoleController, b.net+".201:8401"))
	if err != nil {
		b.t.Fatal(err)
	}
	defer conn.Close()
	client := controllerv1.NewControllerServiceClient(conn)
	await := func(host string, state homelabv1.HostState) time.Duration {
		began := time.Now()
		for time.Since(began) < time.Minute {
			ctx, cancel := context.WithTimeout(b.t.Context(), 10*time.Second)
			resp, err := client.Status(ctx, &controllerv1.StatusRequest{})
			cancel()
			if err != nil {
				b.t.Fatal(err)
			}
			for _, h := range resp.GetHosts() {
				if h.GetName() == host && h.GetState() == state {
					return time.Since(began)
				}
			}
			time.Sleep(20 * time.Millisecond)
		}
		b.t.Fatalf("%s does not become %v", host, state)
		return 0
	}
	var took []time.Duration
	for i := range rounds {
		host := fmt.Sprintf("pve%d", 1+i%5)
		// It is off from the moment its processes stand still, some time after the
		// command begins: what is measured is the upper bound.
		began := time.Now()
		off := make(chan struct{})
		go func() {
			defer close(off)
			_ = exec.Command(filepath.Join(b.bin, "hl-lab"), "fault", "--dir", b.dir, "host-off", host).Run()
		}()
		await(host, homelabv1.HostState_HOST_STATE_SILENT)
		took = append(took, time.Since(began))
		<-off
		b.run(0, "hl-lab", "fault", "--dir", b.dir, "host-on", host, "20m", "0s")
		await(host, homelabv1.HostState_HOST_STATE_ONLINE)
	}
	slices.Sort(took)
	median, worst := took[rounds/2], took[rounds-1]
	figure(median <= 3*time.Second && worst <= 5*time.Second, "host off until hlctl hosts shows it silent, 5 hosts, %d times: median %.1f s (bound 3), worst %.1f s (bound 5)",
		rounds, median.Seconds(), worst.Seconds())
}

// The plan of a large fleet: nothing made, half of it, all of it.
func TestBenchPlan(t *testing.T) {
	for _, made := range []int{0, 5000, 10000} {
		w := plantest.NewFleet(1000, 10000, made)
		want, seen := w.Want(), w.Seen()
		debug.FreeOSMemory()
		resetPeak(t)
		base := resident(t, os.Getpid())
		began := time.Now()
		p := plan.Make(want, seen, w.Now)
		took := time.Since(began)
		peak := peakResident(t)
		figure(took < time.Second && peak < 300<<20,
			"plan of 1,000 hosts with 10,000 guests, %d made: %.2f s (bound 1), %d MB at most with what was seen, %d MB without (bound 300); %d steps",
			made, took.Seconds(), peak>>20, max(0, peak-base)>>20, len(p.GetSteps()))
	}
}

// agentOf finds the agent of a host and its driver.
func (b *bench) agentOf(host string) (agent, driver int) {
	b.t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		b.t.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // gone
		}
		argv := strings.Split(string(data), "\x00")
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		switch {
		case filepath.Base(argv[0]) != "hl-agent":
		case slices.Contains(argv, "driver") && strings.Contains(string(data), b.dir+"/hosts/"+host+"/"):
			driver = pid
		case slices.Contains(argv, b.dir+"/hosts/"+host+"/agent/agent.yaml"):
			agent = pid
		}
	}
	if agent == 0 || driver == 0 {
		b.t.Fatalf("the agent of %s is process %d, its driver %d", host, agent, driver)
	}
	return agent, driver
}

// stat is a field of /proc/PID/stat, counted from 1 as in proc(5).
func stat(t *testing.T, pid, field int) int64 {
	t.Helper()
	_, after, ok := strings.Cut(read(t, fmt.Sprintf("/proc/%d/stat", pid)), ") ")
	fields := strings.Fields(after)
	if !ok || len(fields) < field-2 {
		t.Fatalf("/proc/%d/stat: %s", pid, after)
	}
	n, err := strconv.ParseInt(fields[field-3], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// childFaults counts the page faults of children that ended and were waited
// for: none can have been without any.
func childFaults(t *testing.T, pid int) int64 { return stat(t, pid, 11) }

func cpuTime(t *testing.T, pid int) time.Duration {
	const tick = 10 * time.Millisecond // USER_HZ is 100 wherever Go runs
	return time.Duration(stat(t, pid, 14)+stat(t, pid, 15)) * tick
}

// children are the processes that a process has now.
func children(t *testing.T, pid int) []string {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, file := range files {
		if data, err := os.ReadFile(file); err == nil {
			all = append(all, strings.Fields(string(data))...)
		}
	}
	return all
}

// status is a size in /proc/PID/status, in bytes.
func status(t *testing.T, pid int, key string) int64 {
	t.Helper()
	for line := range strings.Lines(read(t, fmt.Sprintf("/proc/%d/status", pid))) {
		if v, ok := strings.CutPrefix(line, key+":"); ok {
			n, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatalf("/proc/%d/status has no %s", pid, key)
	return 0
}

func resident(t *testing.T, pid int) int64 { return status(t, pid, "VmRSS") }

func peakResident(t *testing.T) int64 { return status(t, os.Getpid(), "VmHWM") }

// resetPeak makes the peak of this process what it holds now.
func resetPeak(t *testing.T) {
	t.Helper()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0o200); err != nil {
		t.Fatal(err)
	}
}
