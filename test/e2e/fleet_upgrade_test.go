//go:build e2e

package e2e

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// fleetLife is what becomes of a fleet of three after its first apply: its packages are
// exchanged, and hosts leave and come back.
var fleetLife = []struct {
	name string
	test func(*site)
}{
	{"in mid-apply an upgrade is refused, and a package that is exchanged is no failure of the run", (*site).exchangesInMidApply},
	{"a package with which an agent does not come up goes back on the first host", (*site).goesBack},
	{"an upgrade is one host at a time, controllers last, and guests live on", (*site).upgrades},
	{"a host that is removed keeps its guests and leaves the fleet", (*site).removes},
	{"a host that is removed while it is off stays out when it is back", (*site).removesSilent},
}

// in is the site for a test within its test.
func (s *site) in(t *testing.T) *site {
	in := *s
	in.lab, in.machines = s.lab.in(t), nil
	for _, m := range s.machines {
		own := *m
		own.s = &in
		in.machines = append(in.machines, &own)
	}
	return &in
}

// packed are the flags that trust a package which was made before.
func (s *site) packed(version string) []string {
	s.t.Helper()
	dir := s.path("packages-" + version)
	data, err := os.ReadFile(filepath.Join(dir, "homelab_"+version+"_amd64.deb"))
	if err != nil {
		s.t.Fatal(err)
	}
	return []string{"--from", dir, "--checksum", fmt.Sprintf("%x", sha256.Sum256(data))}
}

// upgraded is what hlctl hosts upgrade -o json prints.
type upgraded []struct{ Name, From, To, Result, Reason string }

// upgrade is hlctl hosts upgrade, with its exit code.
func (s *site) upgrade(exit int, pack []string) (upgraded, result) {
	s.t.Helper()
	r := s.hlctl(append([]string{"hosts", "upgrade", "-o", "json"}, pack...)...)
	return decode[upgraded](s.lab, exit, r), r
}

// results are the hosts of an upgrade in their order, with what became of them.
func (u upgraded) results() string {
	var list []string
	for _, h := range u {
		list = append(list, fmt.Sprintf("%s %s->%s %s", h.Name, h.From, h.To, h.Result))
	}
	return strings.Join(list, ", ")
}

// alive are the processes that must outlive what is done to agents, guests' and members
// as they are.
func (s *site) alive() map[string]string {
	s.t.Helper()
	list := map[string]string{}
	for i, m := range s.machines {
		list[names(3)[i]] = fmt.Sprint("kvm ", m.kvm(201+i))
	}
	for _, m := range s.members() {
		list["member "+m.Name] = fmt.Sprintf("%s %s healthy %v", m.ID, m.Role, m.Healthy)
	}
	return list
}

func (s *site) mustLiveOn(before map[string]string) {
	s.t.Helper()
	if now := s.alive(); !maps.Equal(now, before) {
		s.t.Errorf("before: %v\nnow:    %v", before, now)
	}
}

// pids are the daemons of all machines.
func (s *site) pids() map[string]string {
	s.t.Helper()
	list := map[string]string{}
	for _, m := range s.machines {
		list[m.name] = m.unit("hl-agent")["MainPID"]
	}
	list["c1"] = s.machines[0].unit("hl-controller")["MainPID"]
	return list
}

// holdQM has qm create wait on the machine until release is called; working says whether
// one does.
func (m *machine) holdQM() (working func() (bool, string), release func()) {
	m.s.t.Helper()
	m.root("mkfifo /run/hold && mv /usr/sbin/qm /usr/sbin/qm.lab && cat >/usr/sbin/qm && chmod 755 /usr/sbin/qm",
		"#!/bin/bash\n[ \"$1\" != create ] || read -r </run/hold\nexec -a /usr/sbin/qm /opt/lab/hl-lab \"$@\"\n")
	working = func() (bool, string) {
		at := m.processes("system.slice/hl-agent.service")
		for _, argv := range at {
			if strings.Contains(strings.Join(argv, " "), "/usr/sbin/qm create") {
				return true, ""
			}
		}
		return false, fmt.Sprint(at)
	}
	return working, func() {
		m.s.t.Helper()
		m.root("mv /usr/sbin/qm.lab /usr/sbin/qm && echo >/run/hold && rm /run/hold")
	}
}

// exchangesInMidApply has one guest more made on pve2, and meanwhile what a person does
// (hlctl hosts upgrade) and what the host does (apt upgrade).
func (s *site) exchangesInMidApply() {
	t, m := s.t, s.machines[1]
	next := s.pack("1.0.1")
	deb := filepath.Join(next[1], "homelab_1.0.1_amd64.deb")
	m.copy(deb, "/var/cache/homelab/")
	if out, err := s.inside("ip", "-n", m.name, "address", "add", siteNet+".112/32", "dev", "vmbr0").CombinedOutput(); err != nil {
		t.Fatalf("ip: %v\n%s", err, out)
	}
	spec := s.edited(s.spec, func(d doc) {
		at(d, "guests")["k3s-4"] = doc{"host": m.name, "vmid": 204, "k3s": doc{"role": "agent"}, "networks": []any{doc{"network": "lan", "ip": siteNet + ".112/24"}}}
	})
	created := s.countCalls("create")
	before, agent := s.alive(), m.unit("hl-agent")["MainPID"]
	working, release := m.holdQM()
	a := s.startApply(s.config, spec, nil)
	s.eventually(30*time.Second, "qm create to be at work", working)

	r := s.hlctl(append([]string{"hosts", "upgrade"}, next...)...)
	for _, m := range s.machines {
		if v := m.root("dpkg-query -W homelab"); !strings.HasSuffix(v, "\t1.0") {
			t.Errorf("%s has %s", m.name, v)
		}
	}

	done := make(chan string, 1)
	go func() {
		out, ok := m.try("dpkg -i /var/cache/homelab/homelab_1.0.1_amd64.deb </dev/null")
		done <- fmt.Sprint(ok, " ", out)
	}()
	m.awaitUnit("hl-agent", 30*time.Second, "ActiveState=deactivating", "MainPID="+agent)
	release()
	out := a.wait()
	if out.exit != 0 || out.summary == nil || out.summary.Failed != 0 || out.summary.Done == 0 {
		t.Fatalf("the apply: %s", out)
	}
	if want := fmt.Sprintf("nothing was done: run %d is going on; wait for its end with: hlctl runs follow", out.events[0].Run); r.exit != 1 || !strings.Contains(r.stderr, want) {
		t.Errorf("want %s\n%s", want, r)
	}
	if out := <-done; !strings.HasPrefix(out, "true ") {
		t.Errorf("dpkg: %s", out)
	}
	m.mustHave("hl-agent", "ActiveState=active", "Result=success", "NRestarts=0")
	if m.unit("hl-agent")["MainPID"] == agent {
		t.Error("the agent was not exchanged")
	}
	if n := s.countCalls("create") - created; n != 1 {
		t.Errorf("qm create was called %d times", n)
	}
	s.mustBeHealthy(names(4)...)
	now := s.alive()
	maps.DeleteFunc(now, func(name, _ string) bool { return name == "member k3s-4" })
	if !maps.Equal(now, before) {
		t.Errorf("before: %v\nnow:    %v", before, now)
	}
	if err := os.Rename(spec, s.spec); err != nil { // it stays
		t.Fatal(err)
	}
	s.mustChangeNothing(s.spec)
}

// goesBack wants the first host to have its old package again, and nothing else changed.
func (s *site) goesBack() {
	// What ends with 78 is not started again by systemd, nor by the package's scripts.
	pack := s.pack("1.2", "#!/bin/sh\necho 'hl-agent: it understands nothing' >&2\nexit 78\n")
	before, pids := s.alive(), s.pids()
	u, r := s.upgrade(1, pack)
	if got, want := u.results(), "pve2 1.0.1->1.0.1 reverted, pve3 1.0->1.0 untouched, pve1 1.0->1.0 untouched"; got != want {
		s.t.Errorf("%s, want %s", got, want)
	}
	for _, want := range []string{"host pve2 with package 1.2: ", "it has 1.0.1 again, and is online with it", "hl-agent: it understands nothing", "not touched: pve3, pve1"} {
		if !strings.Contains(r.stderr, want) {
			s.t.Errorf("it does not say %q: %s", want, r)
		}
	}
	now := s.pids()
	if now["pve2"] == pids["pve2"] {
		s.t.Error("the agent of pve2 was not exchanged")
	}
	pids["pve2"] = now["pve2"]
	if !maps.Equal(now, pids) {
		s.t.Errorf("daemons before: %v\nnow: %v", pids, now)
	}
	s.mustLiveOn(before)
	s.mustBeHealthy(names(4)...)
	s.mustChangeNothing(s.spec) // which a pause would not let it say
}

// upgrades brings all to 1.1.
func (s *site) upgrades() {
	pack := s.pack("1.1")
	before, pids := s.alive(), s.pids()
	u, r := s.upgrade(0, pack)
	if got, want := u.results(), "pve2 1.0.1->1.1 upgraded, pve3 1.0->1.1 upgraded, pve1 1.0->1.1 upgraded"; got != want {
		s.t.Errorf("%s, want %s", got, want)
	}
	s.t.Logf("upgraded after %.1f s", r.took.Seconds())
	// The machines have one clock. A host is begun when the one before is there.
	ready := int64(0)
	for _, i := range []int{1, 2, 0} {
		have := s.machines[i].unit("hl-agent")
		began, _ := strconv.ParseInt(have["ExecMainStartTimestampMonotonic"], 10, 64)
		if began <= ready {
			s.t.Errorf("pve%d was begun at %d, and the one before was ready at %d", i+1, began, ready)
		}
		ready, _ = strconv.ParseInt(have["ActiveEnterTimestampMonotonic"], 10, 64)
		if have["NRestarts"] != "0" {
			s.t.Errorf("the agent of pve%d was restarted %s times", i+1, have["NRestarts"])
		}
	}
	now := s.pids()
	for name, pid := range pids {
		if now[name] == pid {
			s.t.Errorf("%s was not exchanged", name)
		}
	}
	s.mustLiveOn(before)
	s.mustBeHealthy(names(4)...)
	s.mustChangeNothing(s.spec)
	u, _ = s.upgrade(0, pack)
	if got, want := u.results(), "pve2 1.1->1.1 unchanged, pve3 1.1->1.1 unchanged, pve1 1.1->1.1 unchanged"; got != want || !maps.Equal(s.pids(), now) {
		s.t.Errorf("again: %s, want %s", got, want)
	}
}

// removal is what hlctl hosts remove -o json prints.
type removal struct {
	Name, Package, Silent string
	Revoked, Late, Kept   []string
	Left                  []struct {
		Guest, Power string
		VMID         int
	}
}

func (s *site) remove(m *machine, flags ...string) removal {
	s.t.Helper()
	return decode[removal](s.lab, 0, s.hlctl(append([]string{"hosts", "remove", m.name, "--yes", "-o", "json"}, flags...)...))
}

// left are the guests that a removal says it leaves.
func (r removal) left() string {
	var list []string
	for _, l := range r.Left {
		list = append(list, fmt.Sprintf("%s (%d) %s", l.Guest, l.VMID, l.Power))
	}
	return strings.Join(list, ", ")
}

// without is the Spec without a host and the guests on it.
func (s *site) without(host string) string {
	return s.edited(s.spec, func(d doc) {
		delete(at(d, "hosts"), host)
		maps.DeleteFunc(at(d, "guests"), func(_ string, g any) bool { return g.(doc)["host"] == host })
	})
}

// removes takes out a host that answers, and takes it in again.
func (s *site) removes() {
	t, m := s.t, s.machines[1]
	before := s.alive()
	const kept = "sha256sum /var/lib/hl-agent/ssh_key /root/.ssh/authorized_keys /etc/homelab/agent.yaml"
	files := m.root(kept)
	if r := s.hlctl("hosts", "remove", m.name); r.exit != 1 || !strings.Contains(r.stderr, "confirm with --yes") {
		t.Errorf("unconfirmed: %s", r)
	}
	m.mustHave("hl-agent", "ActiveState=active")
	got := s.remove(m)
	if got.Package != "removed" || got.Silent != "" || len(got.Revoked) == 0 || !strings.HasPrefix(got.left(), "k3s-2 (202) running, k3s-4 (204) running, template@") {
		t.Errorf("%+v", got)
	}
	m.mustHave("hl-agent", "ActiveState=inactive", "LoadState=not-found")
	if at := m.processes("system.slice/hl-agent.service"); len(at) != 0 {
		t.Errorf("of the agent there is left: %v", at)
	}
	if now := m.root(kept); now != files {
		t.Errorf("kept\n%s\nwas\n%s", now, files)
	}
	// The Spec names it still, and then not.
	if r := s.hlctl("hosts"); !strings.Contains(strings.Join(strings.Fields(r.stdout), " "), "removed: its certificate was taken back; take it out of the Spec, or: hlctl hosts add") {
		t.Error(r)
	}
	s.mustChangeNothing(s.without(m.name))
	if all := s.hosts(); len(all) != 2 {
		t.Errorf("hosts: %v", all)
	}
	s.mustLiveOn(before)

	s.report(s.add(m, s.packed("1.1")...))
	s.mustChangeNothing(s.spec)
	s.mustBeHealthy(names(4)...)
	s.mustLiveOn(before)
}

// removesSilent takes out a host whose power is off, for good when it is on again, and
// takes it in again with what was kept on it.
func (s *site) removesSilent() {
	t, m := s.t, s.machines[2]
	m.powerOff()
	r := s.hlctl("hosts", "remove", m.name, "--yes")
	for _, want := range []string{"pve3 is only locked out, and what runs on it stays: ", "(as they were seen last):\n    k3s-3 (VM 203), running\n", "Its daemons were not ended. When it answers again: hlctl hosts remove pve3 --ssh root@HOST"} {
		if r.exit != 0 || !strings.Contains(r.stdout, want) {
			t.Errorf("it does not say %q: %s", want, r)
		}
	}
	m.powerOn()
	m.awaitUp()
	m.awaitUnit("hl-agent", 30*time.Second, "ActiveState=active")
	s.eventually(20*time.Second, "its agent to be told that it was removed", func() (bool, string) {
		said := m.root("journalctl --no-pager --boot -o cat -u hl-agent")
		return strings.Contains(said, "was revoked"), said
	})
	if r := s.hlctl("hosts", "-o", "json"); !strings.Contains(r.stdout, "removed: its certificate was taken back") || s.hosts()[m.name].State == "online" {
		t.Errorf("it is back: %s", r)
	}

	got := s.remove(m, "--ssh", "root@"+m.address, "--purge")
	keys := slices.DeleteFunc(got.Kept, func(f string) bool { return !strings.HasSuffix(f, "/agent/ssh_key") })
	if got.Package != "purged" || got.Silent != "" || len(keys) != 1 {
		t.Fatalf("%+v", got)
	}
	m.mustHave("hl-agent", "ActiveState=inactive", "LoadState=not-found")
	m.root("mkdir -m 700 /var/lib/hl-agent && cp -a " + filepath.Dir(keys[0]) + "/. /var/lib/hl-agent/")
	s.report(s.add(m, s.packed("1.1")...))
	s.eventually(60*time.Second, "k3s-3 to be healthy", func() (bool, string) {
		g := s.guests()["k3s-3"]
		return g.Health == "healthy", g.Reason
	})
	s.mustChangeNothing(s.spec)
	s.mustBeHealthy(names(4)...)
}
