//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// One machine with everything on it, installed by hand as docs/install.md says, and what
// systemd does with the units then, in the order of a host's life.
func TestTheUnitsUnderARealSystemd(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, "--qm-cost", "real")
	m := s.machines[0]
	packages := t.TempDir()
	m.copy(buildPackage(t, packages, "1.0"), "/root/1.0.deb")
	m.copy(buildPackage(t, packages, "1.1"), "/root/1.1.deb")
	m.root("dpkg -i /root/1.0.deb")
	for _, part := range []struct {
		name string
		test func(*machine)
	}{
		{"without a certificate it does not start, nor try again", func(m *machine) { m.doesNotStart("hl-agent") }},
		{"installed by hand", func(m *machine) { m.s.install(m) }},
		{"both say how they are", (*machine).tellsItsState},
		{"the controller has nothing but its folder and the network", (*machine).controllerIsConfined},
		{"root on its host can issue an admin's certificate", (*machine).issuesAdmin},
		{"with a watchdog that waits for nothing", (*machine).impatient},
		{"an agent that is restarted waits for its qm, and the watchdog does not mind", (*machine).restartWaitsForQM},
		{"what is left of an earlier start is no hindrance", (*machine).startsAfterAKilledStart},
		{"what it starts is like what root starts", (*machine).childrenAreLikeRoots},
		{"killed, both come back", (*machine).comesBack},
		{"the watchdog ends one that is stuck", (*machine).watchdog},
		{"without its certificate it does not come back", (*machine).staysDownWithoutCertificate},
		{"a package's life", (*machine).packageLife},
	} {
		if !t.Run(part.name, func(t *testing.T) { part.test(m.in(t)) }) {
			t.FailNow() // each needs what those before have left
		}
	}
}

// in is the machine for a test within its test.
func (m *machine) in(t *testing.T) *machine {
	s := *m.s
	s.lab = s.lab.in(t)
	in := *m
	in.s = &s
	return &in
}

// install makes a fleet of the site by hand: the machine has the controller too.
func (s *site) install(first *machine) {
	s.t.Helper()
	s.mustHlctl("init", "homelab", "--controller", "c1@"+first.address, "--dir", s.path("home"), "--out", s.path("home", "homelab.yaml"))
	first.copy(s.path("home", "controller-c1"), "/var/lib/hl-controller")
	first.root("cd /var/lib/hl-controller && install -m 644 controller.yaml /etc/homelab/ && rm controller.yaml && systemctl enable --now hl-controller")
	s.enrol(first)
}

// enrol makes a machine a host of the fleet, with the line that is pasted there.
func (s *site) enrol(m *machine) {
	s.t.Helper()
	var token struct{ Command string }
	if err := json.Unmarshal([]byte(s.mustHlctl("token", "create", m.name, "--address", m.address, "-o", "json")), &token); err != nil {
		s.t.Fatal(err)
	}
	m.root(token.Command)
	m.root("systemctl enable --now hl-agent")
	m.awaitOnline()
}

func (m *machine) awaitOnline() {
	m.s.t.Helper()
	m.s.eventually(30*time.Second, m.name+" to be online", func() (bool, string) {
		state, r := m.s.state(m.name)
		return state == "online", r.String()
	})
}

// unit is a unit's properties.
func (m *machine) unit(name string) map[string]string {
	m.s.t.Helper()
	have := map[string]string{}
	for line := range strings.Lines(m.root("systemctl show " + name)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		have[key] = value
	}
	return have
}

// mustHave wants properties of a unit, as "NAME=VALUE".
func (m *machine) mustHave(unit string, want ...string) {
	m.s.t.Helper()
	have := m.unit(unit)
	for _, w := range want {
		name, value, _ := strings.Cut(w, "=")
		if have[name] != value {
			m.s.t.Errorf("%s has %s=%s, want %s", unit, name, have[name], value)
		}
	}
}

// awaitUnit waits until a unit has such properties.
func (m *machine) awaitUnit(unit string, limit time.Duration, want ...string) {
	m.s.t.Helper()
	m.s.eventually(limit, fmt.Sprintf("%s %q", unit, want), func() (bool, string) {
		have := m.unit(unit)
		var got []string
		for _, w := range want {
			name, _, _ := strings.Cut(w, "=")
			got = append(got, name+"="+have[name])
		}
		return slices.Equal(got, want), strings.Join(got, " ")
	})
}

// doesNotStart wants a service that was not set up to say so once.
func (m *machine) doesNotStart(unit string) {
	m.s.t.Helper()
	if out, ok := m.try("systemctl start " + unit); ok {
		m.s.t.Errorf("%s started: %s", unit, out)
	}
	m.mustHave(unit, "ActiveState=failed", "ExecMainStatus=78", "NRestarts=0")
	if said := m.journal(unit); !strings.Contains(said, "nothing is set in it yet") || !strings.Contains(said, "hlctl hosts add") {
		m.s.t.Errorf("the journal does not say what to do:\n%s", said)
	}
}

func (m *machine) tellsItsState() {
	for unit, want := range map[string]string{"hl-agent": "host pve1 of fleet homelab", "hl-controller": "controller c1 of fleet homelab"} {
		status := m.root("systemctl --no-pager --full status " + unit)
		if !strings.Contains(status, "active (running)") || !strings.Contains(status, `Status: "`+want) {
			m.s.t.Errorf("status:\n%s", status)
		}
	}
}

func (m *machine) controllerIsConfined() {
	pid := m.unit("hl-controller")["MainPID"]
	have := m.root("grep -E '^(Uid|Cap|NoNewPrivs|Seccomp:)' /proc/" + pid + "/status")
	for _, want := range []string{`(?m)^Uid:\s+6\d{4}\s`, `(?m)^CapBnd:\s+0+$`, `(?m)^CapEff:\s+0+$`, `(?m)^NoNewPrivs:\s+1$`, `(?m)^Seccomp:\s+2$`} {
		if !regexp.MustCompile(want).MatchString(have) {
			m.s.t.Errorf("the controller's process has no %s:\n%s", want, have)
		}
	}
	// The folder that root brought is its own now, and nobody else's.
	if out := m.root("stat -Lc '%a %u' /var/lib/hl-controller/fleet.key /var/lib/hl-controller/"); !regexp.MustCompile(`^600 6\d{4}\n700 6\d{4}$`).MatchString(out) {
		m.s.t.Errorf("its folder: %s", out)
	}
}

// issuesAdmin is the way back of an admin who lost everything.
func (m *machine) issuesAdmin() {
	m.root("hl-controller issue-admin --out /root/admin && systemctl restart hl-controller")
	if out := m.root("find /var/lib/hl-controller/ ! -uid $(stat -Lc %u /var/lib/hl-controller/)"); out != "" {
		m.s.t.Errorf("what the controller cannot read any more: %s", out)
	}
	m.awaitOnline()
}

// processes are those in a control group of the machine, with their arguments, as they
// are numbered outside of it.
func (m *machine) processes(group string) map[int][]string {
	m.s.t.Helper()
	list := map[int][]string{}
	for _, g := range groups(m.s.top) {
		text, _ := os.ReadFile(filepath.Join(g, m.name, "payload", group, "cgroup.procs"))
		for word := range strings.FieldsSeq(string(text)) {
			pid, _ := strconv.Atoi(word)
			argv, err := os.ReadFile(filepath.Join("/proc", word, "cmdline"))
			if err == nil && len(argv) > 0 {
				list[pid] = strings.Split(strings.TrimSuffix(string(argv), "\x00"), "\x00")
			}
		}
	}
	return list
}

// awaitQM waits until the agent has started a qm and stops it where it stands, as one that
// hangs. a is what the qm is called for.
func (m *machine) awaitQM(a *applying, verb string) (pid int) {
	m.s.t.Helper()
	for limit := time.Now().Add(40 * time.Second); time.Now().Before(limit); time.Sleep(5 * time.Millisecond) {
		select {
		case <-a.done:
			m.s.t.Fatalf("it ended before it called qm %s: %s", verb, a.wait())
		default:
		}
		for pid, argv := range m.processes("system.slice/hl-agent.service") {
			if len(argv) > 1 && argv[0] == "/usr/sbin/qm" && argv[1] == verb {
				if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
					m.s.t.Fatal(err)
				}
				return pid
			}
		}
	}
	m.s.t.Fatalf("qm %s was not called on %s", verb, m.name)
	return 0
}

// restartWaitsForQM is the main job on one host, with systemctl restart while qm hangs.
func (m *machine) restartWaitsForQM() {
	t, s := m.s.t, m.s
	// The simulated kvm changes some of what it inherits, as any Go program does, so it is
	// noted before it is one.
	m.root("cat >/root/attributes", attributes)
	m.root("rm /usr/bin/kvm && cat >/usr/bin/kvm && chmod 755 /usr/bin/kvm",
		"#!/bin/bash\n(. /root/attributes) >/root/kvm.attributes\nexec -a /usr/bin/kvm /opt/lab/hl-lab \"$@\"\n")
	a := s.startApply(s.config, s.spec, nil)
	qm := m.awaitQM(a, "create")
	before := m.unit("hl-agent")["MainPID"]
	time.Sleep(5 * time.Second) // the watchdog's patience, twice
	m.mustHave("hl-agent", "ActiveState=active", "MainPID="+before)
	m.root("systemctl restart --no-block hl-agent")
	m.awaitUnit("hl-agent", 5*time.Second, "ActiveState=deactivating", "MainPID="+before,
		"StatusText=ends; what works on a VM is waited for, 1m30s at most")
	if err := syscall.Kill(qm, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if out := a.wait(); out.exit != 0 || out.summary.Failed != 0 {
		t.Errorf("the apply: %s", out)
	}
	s.mustBeHealthy("k3s-1")
	if n := s.countCalls("create"); n != 1 {
		t.Errorf("qm create was called %d times", n)
	}
	if m.unit("hl-agent")["MainPID"] == before {
		t.Error("the agent was not restarted")
	}
	m.mustHave("hl-agent", "ActiveState=active", "Result=success", "NRestarts=0")
	said := m.journal("hl-agent.service")
	for _, want := range []string{"msg=stopping", `reason="terminated signal received"`, "msg=stopped", "msg=ready"} {
		if !strings.Contains(said, want) {
			t.Errorf("the journal has no %s:\n%s", want, said)
		}
	}
}

// A qm that hangs for longer than a stop may take is left alive, and the next agent finds it
// and does not start another.
func TestAQMThatHangsLongerThanAStopMayTakeIsFoundAgain(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, "--qm-cost", "real")
	m := s.machines[0]
	pack := s.pack("1.0")
	s.mustHlctl("init", "homelab", "--controller", "c1@"+m.address, "--out", s.path("home", "homelab.yaml"))
	s.add(m, pack...)
	a := s.startApply(s.config, s.spec, nil)
	qm := m.awaitQM(a, "create")
	a.kill()
	began := time.Now()
	m.root("systemctl stop --no-block hl-agent")
	m.awaitUnit("hl-agent", 110*time.Second, "ActiveState=inactive", "Result=success")
	if took := time.Since(began); took < 85*time.Second {
		t.Errorf("qm was waited for %s only", took)
	}
	if _, ok := m.processes("system.slice/hl-agent.service")[qm]; !ok {
		t.Error("qm did not live on")
	}
	m.root("systemctl start hl-agent")
	m.awaitOnline()
	if err := syscall.Kill(qm, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	s.convergeWithin(s.spec, 60*time.Second, "the agent was stopped in the middle of a qm create")
	s.mustBeHealthy("k3s-1")
	if n := s.countCalls("create"); n != 1 {
		t.Errorf("qm create was called %d times", n)
	}
}

// countCalls is how often a command of qm was called.
func (s *site) countCalls(verb string) int {
	n := 0
	for _, c := range s.calls() {
		if len(c.Argv) > 1 && c.Argv[1] == verb {
			n++
		}
	}
	return n
}

// inside is a process's number in the machine.
func inside(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(regexp.MustCompile(`(?m)^NSpid:.*$`).FindString(string(status)))
	n, err := strconv.Atoi(fields[len(fields)-1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// kvm is the guest's process, as the machine numbers it.
func (m *machine) kvm(vmid int) int {
	m.s.t.Helper()
	for pid, argv := range m.processes(fmt.Sprintf("qemu.slice/%d.scope", vmid)) {
		if argv[0] == "/usr/bin/kvm" && argv[1] == "-id" {
			return inside(m.s.t, pid)
		}
	}
	m.s.t.Fatalf("no kvm of VM %d in a scope of its own", vmid)
	return 0
}

// attributes is a script that shows what its shell hands down to its children. Ignored
// signals are left out: Proxmox's qm ignores some.
const attributes = `cd /proc/$$
readlink ns/mnt ns/net ns/ipc ns/uts ns/user ns/pid ns/time
echo "oom_score_adj $(cat oom_score_adj)"
grep -E '^(Umask|Uid|Gid|SigBlk|NoNewPrivs|Seccomp|Seccomp_filters|Cap...|Cpus_allowed|Mems_allowed|Speculation_Store_Bypass):' status
echo "priority $(cut -d' ' -f18,19,40,41 stat)"
cat limits
`

// differences are the lines in which two texts of as many lines differ.
func differences(have, want string) []string {
	var list []string
	theirs := strings.Split(want, "\n")
	for i, line := range strings.Split(have, "\n") {
		if i >= len(theirs) || theirs[i] != line {
			list = append(list, fmt.Sprintf("%q where a login has %q", line, theirs[min(i, len(theirs)-1)]))
		}
	}
	return list
}

// childrenAreLikeRoots compares kvm, which the agent's qm has started, with what root
// starts after a login.
func (m *machine) childrenAreLikeRoots() {
	login := m.root("bash /root/attributes")
	for _, line := range differences(m.root("cat /root/kvm.attributes"), login) {
		m.s.t.Errorf("kvm has %s", line)
	}
	environ := m.root(fmt.Sprintf("tr '\\0' '\\n' </proc/%d/environ", m.kvm(201)))
	if regexp.MustCompile(`NOTIFY_SOCKET|WATCHDOG|CREDENTIALS|STATE_DIRECTORY`).MatchString(environ) {
		m.s.t.Errorf("kvm has of the unit's environment:\n%s", environ)
	}
	// What the comparison sees: a unit that gives something of each kind.
	given := m.root("systemd-run --quiet -p Type=oneshot -p StandardOutput=file:/root/given -p OOMScoreAdjust=500 -p NoNewPrivileges=yes -p PrivateTmp=yes -p SystemCallFilter=~reboot -p LimitCORE=1 -p UMask=0077 -p CapabilityBoundingSet=~CAP_SYS_BOOT -p Nice=-5 bash /root/attributes && cat /root/given")
	seen := strings.Join(differences(given, login), "\n")
	for _, word := range []string{"mnt:", "oom_score_adj", "NoNewPrivs", "Seccomp_filters", "Max core", "Umask", "CapBnd", "priority"} {
		if !strings.Contains(seen, word) {
			m.s.t.Errorf("that a unit sets %s is not seen:\n%s", word, seen)
		}
	}
}

// startsAfterAKilledStart is about the lab's qm, which has to cope, as the real one has,
// with a scope whose start was killed: one that is empty, and one in which something lives.
func (m *machine) startsAfterAKilledStart() {
	const vmid = 900
	m.root("qm create 900 --name left --memory 64")
	for _, left := range []string{"kill -9 $!; wait $! || true", "true"} {
		m.root("systemd-run --quiet --scope --slice=qemu --unit=900 sleep infinity >/dev/null 2>&1 & " +
			"until systemctl is-active --quiet 900.scope && pgrep -x sleep; do sleep 0.1; done; " + left)
		m.root("qm start 900")
		m.kvm(vmid)
		m.root("qm stop 900")
	}
	m.root("qm destroy 900")
}

func (m *machine) comesBack() {
	kvm := m.kvm(201)
	for _, unit := range []string{"hl-agent", "hl-controller"} {
		before := m.unit(unit)["MainPID"]
		m.root("kill -9 " + before)
		m.awaitUnit(unit, 15*time.Second, "ActiveState=active", "SubState=running", "NRestarts=1")
		if m.unit(unit)["MainPID"] == before {
			m.s.t.Errorf("%s is the one that was killed", unit)
		}
		if said := m.journal(unit + ".service"); !strings.Contains(said, `because="the last one ended without a word`) {
			m.s.t.Errorf("the journal of %s does not say why it was started:\n%s", unit, said)
		}
	}
	m.awaitOnline()
	m.s.mustBeHealthy("k3s-1")
	if now := m.kvm(201); now != kvm {
		m.s.t.Errorf("the guest's process was %d and is %d", kvm, now)
	}
}

// impatient gives both a watchdog of two seconds.
func (m *machine) impatient() {
	for _, unit := range []string{"hl-agent", "hl-controller"} {
		// One that is stopped does not even hear the watchdog's SIGABRT.
		m.root("mkdir -p /run/systemd/system/"+unit+".service.d && cat >/run/systemd/system/"+unit+".service.d/short.conf",
			"[Service]\nWatchdogSec=2s\nTimeoutAbortSec=1s\n")
	}
	m.root("systemctl daemon-reload && systemctl restart hl-agent hl-controller")
	m.awaitOnline()
}

func (m *machine) watchdog() {
	for _, unit := range []string{"hl-agent", "hl-controller"} {
		before := m.unit(unit)
		m.root("kill -STOP " + before["MainPID"])
		restarts, _ := strconv.Atoi(before["NRestarts"])
		m.awaitUnit(unit, 20*time.Second, "ActiveState=active", "SubState=running", "NRestarts="+strconv.Itoa(restarts+1))
		if said := m.journal(unit + ".service"); !strings.Contains(said, "Watchdog timeout") {
			m.s.t.Errorf("the journal of %s says nothing of the watchdog:\n%s", unit, said)
		}
	}
	m.awaitOnline()
}

func (m *machine) staysDownWithoutCertificate() {
	for unit, file := range map[string]string{"hl-agent": "/var/lib/hl-agent/agent.crt", "hl-controller": "/var/lib/hl-controller/controller.crt"} {
		m.root("mv " + file + " " + file + ".away")
		if out, ok := m.try("systemctl restart " + unit); ok {
			m.s.t.Errorf("%s started: %s", unit, out)
		}
		m.mustHave(unit, "ActiveState=failed", "ExecMainStatus=78", "NRestarts=0")
		m.root("mv " + file + ".away " + file + " && systemctl start " + unit)
	}
	m.awaitOnline()
}

// packageLife is an upgrade, the removal and the purge while all of it runs.
func (m *machine) packageLife() {
	t, s := m.s.t, m.s
	kvm := m.kvm(201)
	m.root("echo '# mine' >>/etc/homelab/agent.yaml")
	agent, controller := m.unit("hl-agent")["MainPID"], m.unit("hl-controller")["MainPID"]
	config := m.root("cat /etc/homelab/agent.yaml /etc/homelab/controller.yaml")
	m.root("dpkg -i /root/1.1.deb </dev/null")
	m.mustHave("hl-agent", "ActiveState=active", "Result=success", "NRestarts=0")
	m.mustHave("hl-controller", "ActiveState=active", "Result=success", "NRestarts=0")
	if m.unit("hl-agent")["MainPID"] == agent || m.unit("hl-controller")["MainPID"] == controller {
		t.Error("the upgrade restarted nothing")
	}
	for _, unit := range []string{"hl-agent", "hl-controller"} {
		said := m.journal(unit + ".service")
		for _, want := range []string{`msg=stopping`, `reason="terminated signal received"`, `the last one was ended: terminated signal received`} {
			if !strings.Contains(said, want) {
				t.Errorf("the journal of %s has no %q:\n%s", unit, want, said)
			}
		}
	}
	if m.root("cat /etc/homelab/agent.yaml /etc/homelab/controller.yaml") != config {
		t.Error("the upgrade changed the configuration")
	}
	m.awaitOnline()
	s.mustBeHealthy("k3s-1")
	s.mustChangeNothing(s.spec)

	m.root("dpkg -r homelab")
	for _, unit := range []string{"hl-agent", "hl-controller"} {
		m.mustHave(unit, "ActiveState=inactive", "LoadState=not-found")
	}
	said := m.root("dpkg -P homelab")
	for _, want := range []string{"controller/fleet.key", "controller/issuing-ca.key", "agent/ssh_key"} {
		if !strings.Contains(said, want) {
			t.Errorf("purge did not keep %s:\n%s", want, said)
		}
	}
	if left := m.root("ls -d /var/lib/hl-* /var/lib/private/hl-* /etc/homelab /etc/systemd/system/multi-user.target.wants/hl-* 2>/dev/null || true"); left != "" {
		t.Errorf("purge left %s", left)
	}
	if failed := m.root("systemctl --failed --no-legend --plain"); strings.Contains(failed, "hl-") {
		t.Errorf("systemd still has %s", failed)
	}
	if now := m.kvm(201); now != kvm {
		t.Errorf("the guest's process was %d and is %d", kvm, now)
	}

	// Another life, begun with a controller that nobody has set up.
	m.root("dpkg -i /root/1.1.deb")
	m.doesNotStart("hl-controller")
	m.root("dpkg -P homelab")
}
