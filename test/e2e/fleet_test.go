//go:build e2e

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// added is what hlctl hosts add -o json prints.
type added []struct {
	Name, Result, Error string
	Warnings            []string
	Seconds             float64
	Steps               []struct {
		Step    string
		Changed bool
		Text    string
		Seconds float64
	}
}

// pack makes the package of a version, and gives the flags by which hlctl hosts trusts it.
// agent is what takes the place of hl-agent, if anything does.
func (s *site) pack(version string, agent ...string) []string {
	s.t.Helper()
	dir := s.path("packages-" + version)
	if err := os.Mkdir(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	data, err := os.ReadFile(buildPackage(s.t, dir, version, agent...))
	if err != nil {
		s.t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	return []string{"--from", dir, "--checksum", hex.EncodeToString(sum[:])}
}

// add is hlctl hosts add of one machine, which must succeed.
func (s *site) add(m *machine, flags ...string) added {
	s.t.Helper()
	r := s.hlctl(append([]string{"hosts", "add", "root@" + m.address, "-o", "json"}, flags...)...)
	var docs added
	if err := json.Unmarshal([]byte(r.stdout), &docs); err != nil || r.exit != 0 || len(docs) != 1 || docs[0].Name != m.name {
		s.t.Fatalf("%v\n%s", err, r)
	}
	return docs
}

// Three empty hosts, one file and one command each: agents and a controller under systemd,
// then a cluster of three servers, while daemons are killed and a host reboots.
func TestThreeEmptyHostsBecomeACluster(t *testing.T) {
	t.Parallel()
	s := newSite(t, 3)
	pack := s.pack("1.0")
	first := s.machines[0]
	s.mustHlctl("init", "homelab", "--controller", "c1@"+first.address, "--out", s.path("home", "homelab.yaml"))

	// A host whose key nobody has seen yet.
	known := s.path("home", ".ssh", "known_hosts")
	text, err := os.ReadFile(known)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(known, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := s.hlctl(append([]string{"hosts", "add", "root@" + first.address}, pack...)...); r.exit == 0 || !strings.Contains(r.stderr, "--host-key SHA256:") {
		t.Errorf("a host with an unknown key is refused without a terminal\n%s", r)
	}
	if out := first.beside("dpkg-query -W homelab"); !strings.Contains(out, "no packages found") {
		t.Errorf("something was installed: %s", out)
	}
	print, err := exec.CommandContext(t.Context(), "ssh-keygen", "-lf", first.file("etc/ssh/ssh_host_ed25519_key.pub")).Output()
	if err != nil {
		t.Fatal(err)
	}
	s.report(s.add(first, append(pack, "--host-key", strings.Fields(string(print))[1])...))
	if err := os.WriteFile(known, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, m := range s.machines[1:] {
		s.report(s.add(m, pack...))
	}
	for _, m := range s.machines {
		m.mustHave("hl-agent", "ActiveState=active", "UnitFileState=enabled", "NRestarts=0")
		if docs := s.add(m, pack...); docs[0].Result != "unchanged" {
			t.Errorf("again, it changes something: %+v", docs)
		}
		if keys := m.root("cat /root/.ssh/authorized_keys"); strings.Count(keys, "\n") != 0 {
			t.Errorf("%s has more keys than before:\n%s", m.name, keys)
		}
	}
	first.mustHave("hl-controller", "ActiveState=active", "UnitFileState=enabled", "NRestarts=0")

	s.convergesAgainst(map[string]trouble{
		"create/pve2/k3s-2": {"the agent is killed", func() (string, bool) { return s.machines[1].try("systemctl kill -s KILL hl-agent") }},
		"boot/pve3/k3s-3":   {"the host reboots", func() (string, bool) { return s.machines[2].try("systemctl reboot") }},
		"join/pve2/k3s-2":   {"the controller is killed", func() (string, bool) { return first.try("systemctl kill -s KILL hl-controller") }},
	})
	s.mustBeHealthy(names(3)...)
	s.mustChangeNothing(s.spec)
	if boots := s.machines[2].root("journalctl --list-boots --no-pager | grep -cE '^ *-?[0-9]'"); boots != "2" {
		t.Errorf("pve3 booted %s times", boots)
	}
	if servers := s.members(); len(servers) != 3 {
		t.Errorf("members: %+v", servers)
	}

	t.Run("a host whose power is cut comes back by itself", func(t *testing.T) {
		m := s.machines[2].in(t)
		m.powerOff()
		m.s.awaitState(m.name, "silent", 60*time.Second)
		m.powerOn()
		m.awaitUp()
		m.awaitOnline()
		m.s.eventually(60*time.Second, "k3s-3 to be healthy", func() (bool, string) {
			g := m.s.guests()["k3s-3"]
			return g.Health == "healthy", g.Reason
		})
		m.s.mustChangeNothing(m.s.spec)
	})
	for _, part := range fleetLife {
		if !t.Run(part.name, func(t *testing.T) { part.test(s.in(t)) }) {
			t.FailNow() // each needs what those before have left
		}
	}
}

// trouble is what is done to a host.
type trouble struct {
	what string
	make func() (string, bool)
}

// convergesAgainst applies the Spec, makes trouble at the beginnings of steps, and applies
// it again until all of it is there.
func (s *site) convergesAgainst(troubles map[string]trouble) {
	s.t.Helper()
	var made sync.WaitGroup
	var mu sync.Mutex
	var story []string
	tell := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		story = append(story, fmt.Sprintf(format, args...))
	}
	began := time.Now()
	for done := false; !done; {
		if time.Since(began) > 3*time.Minute {
			s.t.Fatalf("it does not converge\n%s", strings.Join(story, "\n"))
		}
		a := s.startApply(s.config, s.spec, func(e eventDoc) {
			if e.Kind != "step-started" {
				return
			}
			if trouble, ok := troubles[e.Step]; ok {
				delete(troubles, e.Step)
				made.Go(func() {
					out, ok := trouble.make()
					tell("at %s, after %.1f s, %s: %v %s", e.Step, time.Since(began).Seconds(), trouble.what, ok, out)
				})
			}
		}).wait()
		made.Wait()
		tell("%s", a)
		done = a.exit == 0
		if !done {
			time.Sleep(time.Second)
		}
	}
	for step, trouble := range troubles {
		s.t.Errorf("step %s never began, so it was not seen what happens when %s", step, trouble.what)
	}
	s.t.Logf("it is there after %.1f s\n%s", time.Since(began).Seconds(), strings.Join(story, "\n"))
}

// report says how long the parts of hosts add took.
func (s *site) report(docs added) {
	s.t.Helper()
	var steps []string
	for _, step := range docs[0].Steps {
		steps = append(steps, fmt.Sprintf("%s %.1f s", step.Step, step.Seconds))
	}
	s.t.Logf("%s %s after %.1f s: %s", docs[0].Name, docs[0].Result, docs[0].Seconds, strings.Join(steps, ", "))
}

// beside runs a command on the machine's files, whether or not it can be logged in.
func (m *machine) beside(command string) string {
	out, _ := m.s.inside("chroot", filepath.Join("/run/site", m.name, "root"), "sh", "-c", command).CombinedOutput()
	return string(out)
}
