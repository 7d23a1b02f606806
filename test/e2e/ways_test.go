//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// A guest whose SSH refuses, times out, or is another machine's is reached through
// its guest agent, with arguments and exit codes as they are; on the other machine
// nothing is run. None of it is a reason to destroy the guest.
func TestAGuestWithoutSSHIsReachedThroughItsGuestAgent(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{more: []string{"--agent-output", "1048576"}})
	spec := l.hasty(l.spec, oneServer)
	l.mustApply(spec, 0)
	l.mustBeHealthy(names(3)...)
	before := l.keep("203")

	l.fault("ssh-filter", "k3s-2")
	t.Run("more than 30 seconds", func(t *testing.T) {
		l := l.in(t)
		if r := l.hlctl("exec", "k3s-2", "--", "sh", "-c", "sleep 32; echo slept; exit 3"); r.exit != 3 || r.stdout != "slept\n" || r.took < 32*time.Second {
			t.Errorf("a long command\n%s", r)
		}
	})
	t.Run("more output than the guest agent keeps", func(t *testing.T) {
		l := l.in(t)
		const lines = 20000
		line := strings.Repeat("-", 100) + "\n" // all of them are twice as much
		r := l.hlctl("exec", "k3s-2", "--", "sh", "-c", fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo $0; i=$((i+1)); done; echo end >&2; exit 5", lines), strings.TrimSpace(line))
		if r.exit != 5 || r.stdout != strings.Repeat(line, lines) || r.stderr != "end\n" {
			t.Errorf("exit %d, %d bytes, %d lines, stderr %q", r.exit, len(r.stdout), strings.Count(r.stdout, "\n"), r.stderr)
		}
	})
	l.fault("ssh-filter", "k3s-2", "off")

	t.Run("refused", func(t *testing.T) {
		l := l.in(t)
		l.fault("ssh-refuse", "k3s-3")
		throughTheAgent(l, "k3s-3")
		g := l.awaitHealth(20*time.Second, "k3s-3", "unwell")
		if !strings.Contains(g.Reason, "refused") {
			t.Errorf("%+v", g)
		}
		a := l.mustApply(spec, 3)
		l.mustTouchNothing(a)
		if text := a.notes("refused", "k3s-3"); !strings.Contains(text, "no reason to destroy it") || !strings.Contains(text, "hlctl exec k3s-3") {
			t.Errorf("%q\n%s", text, a)
		}
		l.fault("ssh-refuse", "k3s-3", "off")
		l.awaitHealthy(20*time.Second, names(3)...)
	})
	t.Run("another machine", func(t *testing.T) {
		l := l.in(t)
		l.fault("ssh-wrong", "k3s-3")
		throughTheAgent(l, "k3s-3")
		g := l.awaitHealth(20*time.Second, "k3s-3", "unwell")
		if !strings.Contains(g.Reason, "another machine") && !strings.Contains(g.Reason, "host key") {
			t.Errorf("%+v", g)
		}
		a := l.mustApply(spec, 3)
		l.mustTouchNothing(a)
		if text := a.notes("refused", "k3s-3"); !strings.Contains(text, "look which machine has its address") {
			t.Errorf("%q\n%s", text, a)
		}
		if told, err := os.ReadFile(l.path("impostors/k3s-3.jsonl")); err == nil || !os.IsNotExist(err) {
			t.Errorf("the other machine was told something: %v\n%s", err, told)
		}
		l.fault("ssh-wrong", "k3s-3", "off")
		l.awaitHealthy(20*time.Second, names(3)...)
	})
	t.Run("neither way", func(t *testing.T) {
		l := l.in(t)
		l.fault("guest-hang", "k3s-3")
		r := l.hlctl("exec", "k3s-3", "--", "true")
		if r.exit != 255 || !strings.Contains(r.stderr, "ssh at "+l.net+".103") || !strings.Contains(r.stderr, "guest agent") {
			t.Errorf("it does not say which way failed how\n%s", r)
		}
		l.fault("guest-hang", "k3s-3", "off")
		l.awaitHealthy(20*time.Second, names(3)...)
	})
	l.mustBeConfiguredAs(before, "pve3/203")
	l.mustChangeNothing(spec)
}

// throughTheAgent runs commands in a guest that SSH does not reach.
func throughTheAgent(l *lab, guest string) {
	l.t.Helper()
	odd := []string{"a b", "it's", `"quoted"`, "$HOME", "*", "", "-n", "two\nlines", `back\slash`, "tab\there", "ü"}
	r := l.hlctl(append([]string{"exec", guest, "--", "printf", "<%s>"}, odd...)...)
	if want := "<" + strings.Join(odd, "><") + ">"; r.exit != 0 || r.stdout != want {
		l.t.Errorf("the arguments arrived as %q, want %q\n%s", r.stdout, want, r)
	}
	for _, code := range []int{0, 7, 100} {
		if r := l.hlctl("exec", guest, "--", "sh", "-c", fmt.Sprintf("echo out; echo err >&2; exit %d", code)); r.exit != code || r.stdout != "out\n" || r.stderr != "err\n" {
			l.t.Errorf("exit %d expected\n%s", code, r)
		}
	}
	if r := l.hlctl("exec", guest, "--", "no-such-command"); r.exit != 127 {
		l.t.Errorf("an unknown command is 127\n%s", r)
	}
	if r := l.hlctl("exec", guest, "--", "hostname"); r.stdout != guest+"\n" {
		l.t.Errorf("another machine answered\n%s", r)
	}
	if r := l.hlctl("exec", guest, "--", "whoami"); r.stdout != "root\n" {
		l.t.Errorf("it is run as root, as over SSH\n%s", r)
	}
}
