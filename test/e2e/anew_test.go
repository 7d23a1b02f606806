//go:build e2e

package e2e

import (
	"bytes"
	"io/fs"
	"strings"
	"sync"
	"testing"
	"time"
)

// With the hosts' API ports closed, their certificates expired, a server is made
// anew as ever; nobody comes to the port (the end of every lab sees to that). The
// token leaks nowhere by it: where it is kept for a restore, root alone reads it.
func TestAServerIsMadeAnewWithoutTheAPIAndWithoutALeak(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{})
	spec := l.hasty(l.spec)
	apiPortIsWatched(l)
	l.mustApply(spec, 0)
	for _, host := range l.hostNames() {
		l.fault("api-close", host)
	}
	l.mustChangeNothing(spec)
	before, uid := l.guests()["k3s-2"], l.uidOf("k3s-1", "k3s-2")
	l.fault("guest-stop", "k3s-2")
	watch := l.watchProcesses()
	a := l.mustApply(spec, 0)
	processes := watch()
	for _, step := range []string{"save/pve2/k3s-2", "stop/pve2/k3s-2", "destroy/pve2/k3s-2", "create/pve2/k3s-2", "join/pve2/k3s-2"} {
		if !strings.Contains(strings.Join(a.steps(), " "), step) {
			t.Errorf("step %s was not begun: %q", step, a.steps())
		}
	}
	l.mustBeHealthy(names(3)...)
	l.mustBeClean(names(3)...)
	if after := l.guests()["k3s-2"]; after.UUID != before.UUID || *after.VMID != *before.VMID || after.Addresses[0] != before.Addresses[0] {
		t.Errorf("it became %+v, was %+v", after, before)
	}
	if now := l.uidOf("k3s-1", "k3s-2"); now == uid {
		t.Errorf("its Node is the same object as before: %s", uid)
	}
	l.mustChangeNothing(spec)
	l.mustDo(0, "k3s", "snapshot")
	secretIsKept(l, processes, a)
}

// secretIsKept looks for the secret part of the token in everything that the lab
// wrote and ran: it may stand in k3s's own folders, in files of guests that root
// alone reads, and beside the snapshots, which are of no use without it.
func secretIsKept(l *lab, processes []string, a applied) {
	l.t.Helper()
	secret := secretUntold(l, processes, a)
	for _, command := range [][]string{{"why", "k3s-2"}, {"runs", "show"}, {"k3s", "snapshot", "ls", "-o", "json"}, {"status", "-o", "json"}} {
		if r := l.hlctl(command...); strings.Contains(r.stdout+r.stderr, secret) {
			l.t.Errorf("hlctl %q printed the token", command)
		}
	}
	beside, guests := 0, 0
	l.walk(func(path string, info fs.FileInfo) {
		data, err := written(path)
		if err != nil || !bytes.Contains(data, []byte(secret)) {
			return
		}
		_, inside, isGuest := strings.Cut(path, ".fs/")
		switch {
		case isGuest && strings.HasPrefix(inside, "var/lib/rancher/k3s/server/"):
			guests++ // k3s's own data, in a folder of root's
		case info.Mode().Perm() != 0o600:
			l.t.Errorf("the token lies in %s with mode %v", path, info.Mode())
		case isGuest:
			guests++
		case strings.Contains(path, "/agent/state/snapshots/") && strings.HasSuffix(path, ".token"):
			beside++
		case strings.Contains(path, "/agent/state/snapshots/"): // etcd itself holds it
		default:
			l.t.Errorf("the token lies in %s", path)
		}
	})
	if beside < 2 || guests < 3 {
		l.t.Errorf("the token was found beside %d snapshots and in %d files of guests; this looks at the wrong thing", beside, guests)
	}
	snapshots := decode[struct {
		Snapshots []struct {
			Host, Path, SHA256 string
			Bytes              *int64
		} `json:"snapshots"`
	}](l, 0, l.hlctl("k3s", "snapshot", "ls", "-o", "json")).Snapshots
	if len(snapshots) != beside {
		l.t.Errorf("%d snapshots are shown, beside %d lies the token", len(snapshots), beside)
	}
	for _, s := range snapshots {
		if s.Host == "" || s.Path == "" || len(s.SHA256) != 64 || s.Bytes == nil {
			l.t.Errorf("snapshot %+v", s)
		}
	}
}

// What breaks on a host keeps the guests there as they are, and is told; mended, all
// goes on.
func TestWhatBreaksOnAHostCostsNoGuest(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{})
	spec := l.hasty(l.spec)
	l.mustApply(spec, 0)
	l.mustBeHealthy(names(3)...)
	l.fault("guest-stop", "k3s-3")
	for _, c := range []struct {
		name       string
		fault, end []string
		kind       string
		want       []string
	}{
		{"/etc/pve is gone", []string{"pve-cluster-down", "pve3"}, []string{"pve-cluster-down", "pve3", "off"}, "", []string{"/etc/pve"}},
		{"the clock is off", []string{"clock-skew", "pve3", "5s"}, []string{"clock-skew", "pve3", "off"}, "refused", []string{"the clock of pve3 is off by", "more than 1 s is too much for etcd"}},
		{"its storage is away", []string{"storage-off", "pve3/local-lvm"}, []string{"storage-off", "pve3/local-lvm", "off"}, "refused", []string{"local-lvm", "not active"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := l.in(t)
			before := l.keep("203")
			l.fault(c.fault[0], c.fault[1], c.fault[2:]...)
			var a applied
			l.eventually(40*time.Second, "it is told", func() (bool, string) {
				a = l.apply(spec) // what is known of a storage may be some seconds old
				text := a.notes("refused", "k3s-3") + a.notes("skipped", "k3s-3")
				for _, w := range c.want {
					if !strings.Contains(text, w) {
						return false, a.String()
					}
				}
				return a.exit == 3, a.String()
			})
			l.mustTouchNothing(a)
			l.fault(c.end[0], c.end[1], c.end[2:]...)
			l.mustBeAsBefore(before, c.name, "203")
		})
	}
	t.Run("qm fails to destroy", func(t *testing.T) {
		l := l.in(t)
		l.fault("qm-fail", "pve3", "destroy")
		l.eventually(30*time.Second, "the destroy fails", func() (bool, string) {
			a := l.apply(spec)
			return strings.Contains(a.failures(), "destroy/pve3/k3s-3"), a.String()
		})
		for _, call := range l.calls() {
			if call.Host == "pve3" && !call.byHand() && call.Argv[1] == "create" && call.Time.After(time.Now().Add(-20*time.Second)) && strings.Contains(strings.Join(call.Argv, " "), "k3s-3:2") {
				t.Errorf("its work did not stop there: %q", call.Argv)
			}
		}
		if c := l.confOf("k3s-3"); c.vmid != "203" {
			t.Errorf("%+v", c)
		}
		l.fault("qm-fail", "pve3", "off")
		l.converge(spec)
		l.mustBeHealthy(names(3)...)
		l.mustBeClean(names(3)...)
		if c := l.confOf("k3s-3"); c.vmid != "203" || !strings.Contains(c.text, "k3s-3%3A2%3A") {
			t.Errorf("it was not made anew once:\n%s", c.text)
		}
	})
	t.Run("qm hangs for a while", func(t *testing.T) {
		l := l.in(t)
		l.fault("guest-stop", "k3s-3")
		l.fault("qm-hang", "pve3")
		hit := make(chan struct{})
		var once sync.Once
		a := l.startApply(l.config, spec, func(e eventDoc) {
			if e.Kind == "step-started" && e.Step == "destroy/pve3/k3s-3" {
				once.Do(func() { close(hit) })
			}
		})
		select {
		case <-hit:
		case <-a.done:
			t.Fatalf("nothing was to be destroyed\n%s", a.wait())
		}
		if again := l.apply(spec); again.exit != 1 || !strings.Contains(again.stderr, "admin") {
			t.Errorf("meanwhile another apply is refused\n%s", again)
		}
		l.mustBeHealthy("k3s-1", "k3s-2")
		l.confOf("k3s-3") // it is there, once
		l.fault("qm-hang", "pve3", "off")
		if out := a.wait(); out.exit != 0 {
			t.Errorf("it goes on when qm does\n%s", out)
		}
		l.mustBeHealthy(names(3)...)
		l.mustBeClean(names(3)...)
		l.mustChangeNothing(spec)
	})
}
