//go:build e2e

package e2e

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// stop ends an agent as systemctl stop does, and gives its process.
func (l *lab) stop(host string) (pid int) {
	l.t.Helper()
	pid, ok := l.agentPID(host)
	if !ok {
		l.t.Fatalf("no agent of %s runs", host)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		l.t.Fatal(err)
	}
	return pid
}

func (l *lab) awaitEnd(pid int, limit time.Duration) {
	l.t.Helper()
	l.eventually(limit, "the agent has ended", func() (bool, string) {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		return err != nil, string(stat)
	})
}

// systemctl restart in the middle of a qm: the agent waits for it and is seen
// meanwhile, the qm is run once, and the run does not fail.
func TestAnAgentThatIsStoppedWaitsForItsQMAndTheRunGoesOn(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{real: true})
	a := l.startApply(l.config, l.spec, nil)
	qm := 0
	for limit := time.Now().Add(30 * time.Second); qm == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("qm create was never called on pve2")
		}
		qm = l.qmProcess("pve2", "create")
	}
	if err := syscall.Kill(qm, syscall.SIGSTOP); err != nil { // it hangs
		t.Fatal(err)
	}
	pid := l.stop("pve2")
	// Longer than a host may be silent in a run, were it silent.
	for end := time.Now().Add(25 * time.Second); time.Now().Before(end); time.Sleep(time.Second) {
		if h := l.hosts()["pve2"]; h.State != "online" {
			t.Fatalf("pve2 is %s while its agent waits for qm", h.State)
		}
	}
	if err := syscall.Kill(qm, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	l.awaitEnd(pid, 15*time.Second)
	l.up()
	if out := a.wait(); out.exit != 0 || out.summary.Failed != 0 {
		t.Errorf("the apply: %s", out)
	}
	l.mustBeHealthy(names(3)...)
	l.mustChangeNothing(l.spec)
}

// In the middle of a wait: it ends at once, and the run goes on with the next agent.
func TestAnAgentThatIsStoppedWhileAGuestBootsEndsAtOnce(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{})
	begun := make(chan struct{})
	a := l.startApply(l.config, l.spec, func(e eventDoc) {
		if e.Step == "boot/pve2/k3s-2" && e.Kind == "step-started" {
			close(begun)
		}
	})
	<-begun
	l.awaitEnd(l.stop("pve2"), 7*time.Second)
	l.up()
	if out := a.wait(); out.exit != 0 || out.summary.Failed != 0 {
		t.Errorf("the apply: %s", out)
	}
	l.mustBeHealthy(names(3)...)
}

// As systemd runs it: it hears that the agent is ready, lives and ends, in that order,
// and by its exit code that it was stopped.
func TestSystemdHearsOfAnAgent(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{hosts: 1})
	l.awaitEnd(l.stop("pve1"), 10*time.Second)
	socket := l.path("notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	agent := exec.CommandContext(t.Context(), filepath.Join(bin, "hl-agent"), "--config", l.path("hosts", "pve1", "agent", "agent.yaml"))
	agent.Env = append(os.Environ(), "NOTIFY_SOCKET="+socket, "WATCHDOG_USEC=100000")
	var log strings.Builder
	agent.Stderr = &log
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	hears := func(want string) {
		t.Helper()
		for range 100 {
			buf := make([]byte, 4096)
			_ = systemd.SetReadDeadline(time.Now().Add(20 * time.Second))
			n, err := systemd.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(string(buf[:n]), want) {
				return
			}
			if string(buf[:n]) != "WATCHDOG=1" {
				t.Fatalf("it hears %q, want %q", buf[:n], want)
			}
		}
		t.Fatalf("it never hears %q", want)
	}
	hears("READY=1\nSTATUS=host pve1 ")
	hears("WATCHDOG=1")
	if err := agent.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	hears("STOPPING=1\n")
	if err := agent.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
	for _, line := range []string{`msg="agent starts" name=pve1`, "msg=stopping", `reason="terminated signal received"`, "msg=stopped"} {
		if !strings.Contains(log.String(), line) {
			t.Errorf("its log does not say %s:\n%s", line, log.String())
		}
	}
	// What it was started with is gone: systemd is not to try again and again.
	if err := os.Remove(l.path("pki", "pve1.pem")); err != nil {
		t.Fatal(err)
	}
	out := run(t, "hl-agent", "--config", l.path("hosts", "pve1", "agent", "agent.yaml"))
	if out.exit != 78 || !strings.Contains(out.stderr, "hlctl hosts add") {
		t.Errorf("without a certificate: %s", out)
	}
}
