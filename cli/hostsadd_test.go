package cli

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/homeiac/homelab/cli/onhost"
	"github.com/homeiac/homelab/cli/onhost/onhosttest"
	"github.com/homeiac/homelab/cli/remote/remotetest"
	"github.com/homeiac/homelab/internal/rpc"
)

// adder is somebody with hlctl, a package, and a fleet whose controller answers.
type adder struct {
	*rig
	sum string // of the package
}

func newAdder(t *testing.T) *adder {
	r := newRig(t)
	r.registry = newRegistry(t, r.ca)
	if err := os.Mkdir(r.path("dist"), 0o700); err != nil {
		t.Fatal(err)
	}
	r.write("dist/homelab_1.2.3_amd64.deb", onhosttest.Deb("1.2.3"))
	r.write("dist/homelab_1.2.3_arm64.deb", "!<arch>\nanother")
	return &adder{r, onhost.SHA256([]byte(onhosttest.Deb("1.2.3")))}
}

// adding is the same with an empty host, whose host key is known.
func adding(t *testing.T) (*adder, *onhosttest.Host) {
	a := newAdder(t)
	h := a.host("pve1")
	h.Know(t, a.dir)
	return a, h
}

// add runs hosts add for hosts, with flags.
func (a *adder) add(h *onhosttest.Host, args ...string) ran {
	a.t.Helper()
	got := a.run(append([]string{"hosts", "add", "--from", "dist", "--checksum", a.sum, "--ssh-config", "none", "--identity", a.path(".ssh/id_ed25519"), h.Target()}, args...)...)
	return ran{got.code, masked(h, got.out), masked(h, got.err)}
}

var firstTime = []string{
	"mkdir -p -m 755 /var/cache/homelab",
	"put /var/cache/homelab/homelab_1.2.3_amd64.deb 0644",
	"dpkg --install " + onhost.KeptAt("1.2.3"),
	"/usr/sbin/hl-agent enrol --controller 192.0.2.10:8402 --token -",
	"systemctl enable --now hl-agent.service",
}

func TestAHostIsAddedOnceAndTheSecondTimeNothingIsDone(t *testing.T) {
	a, h := adding(t)
	got := a.add(h)
	want := `pve1  looked       0.0 s  Proxmox VE 9.2.11, nothing of ours is installed
pve1  installed    0.0 s  homelab 1.2.3
pve1  enrolled     0.0 s  agent@pve1 of fleet homelab, at 127.0.0.1
pve1  started      0.0 s  hl-agent, now and at each boot
pve1  online       0.0 s  seen by gossip, answers as v1.2.3
pve1 is online.  (0.0 s)
`
	if diff := cmp.Diff(ran{0, want, ""}, got, cmp.AllowUnexported(ran{})); diff != "" {
		t.Fatal(diff)
	}
	if diff := cmp.Diff(firstTime, h.Ran()); diff != "" {
		t.Error(diff)
	}
	before := maps.Clone(h.Files)
	got = a.add(h)
	want = `pve1  looked       0.0 s  Proxmox VE 9.2.11, homelab 1.2.3, agent@pve1
pve1 is installed, enrolled and online already, nothing to do.  (0.0 s)
`
	if diff := cmp.Diff(ran{0, want, ""}, got, cmp.AllowUnexported(ran{})); diff != "" {
		t.Error(diff)
	}
	if left := h.Ran(); len(left) > 0 || !maps.Equal(before, h.Files) || len(a.registry.made) != 1 {
		t.Error(left, len(a.registry.made))
	}
	var docs []addedDoc
	if got = a.add(h, "-o", "json"); json.Unmarshal([]byte(got.out), &docs) != nil || len(docs) != 1 ||
		docs[0].Name != "pve1" || docs[0].Address != "127.0.0.1" || docs[0].Result != "unchanged" || len(docs[0].Steps) != 6 || docs[0].Error != "" {
		t.Errorf("%+v", got)
	}
}

func TestNothingIsRunOnAHostThatIsNotTheRightOne(t *testing.T) {
	a := newAdder(t)
	h := a.host("pve1")
	fails(t, a.add(h), "is not known, and there is no terminal", "--host-key SHA256:")
	known := a.path(".ssh/known_hosts")
	h.Know(t, a.dir)
	data, err := os.ReadFile(known)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(data), strings.TrimSpace(strings.SplitN(string(data), " ", 2)[1]), strings.TrimSpace(remotetest.Line(remotetest.NewKey(t).PublicKey())), 1)
	if err := os.WriteFile(known, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	fails(t, a.add(h, "--host-key", remotetest.Print(h.HostKey()), "--replace"), "has CHANGED", "ssh-keygen -f")
	if len(h.Calls)+len(h.Logins)+len(a.registry.made) > 0 {
		t.Error(h.Calls, h.Logins)
	}
	// With its fingerprint it is let through once it is unknown.
	if err := os.Remove(known); err != nil {
		t.Fatal(err)
	}
	succeeds(t, a.add(h, "--host-key", remotetest.Print(h.HostKey())))
}

func TestOnATerminalAnUnknownHostKeyIsAskedAbout(t *testing.T) {
	a := newAdder(t)
	h := a.host("pve1")
	terminal := func(app *app) { app.inIsTerm = true }
	args := []string{"hosts", "add", "--from", "dist", "--checksum", a.sum, "--ssh-config", "none", "--identity", a.path(".ssh/id_ed25519"), h.Target()}
	for _, answer := range []string{"\n", "n\n", "yep\n"} {
		got := a.runWith(t.Context(), strings.NewReader(answer), terminal, args...)
		if got.code != 1 || !strings.Contains(got.err, remotetest.Print(h.HostKey())) || !strings.Contains(got.err, "was not accepted; nothing was sent to it") || len(h.Calls)+len(h.Logins) > 0 {
			t.Errorf("%+v", got)
		}
	}
	if got := a.runWith(t.Context(), strings.NewReader("yes\n"), terminal, args...); got.code != 0 || !strings.Contains(got.err, "Is it the right one? [y/N] ") {
		t.Errorf("%+v", got)
	}
	if got := a.run(args...); got.code != 0 || got.err != "" {
		t.Errorf("%+v", got)
	}
}

func TestWhatIsNoHostForUsIsRefusedAndLeftAsItIs(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*onhosttest.Host)
		args   []string
		says   string
	}{
		"no Proxmox":          {func(h *onhosttest.Host) { h.Missing = []string{"pveversion"} }, nil, "there is no Proxmox VE on it (no pveversion)"},
		"no qm":               {func(h *onhosttest.Host) { h.Missing = []string{"qm"} }, nil, "there is no Proxmox VE on it (no command -v qm)"},
		"all reasons at once": {func(h *onhosttest.Host) { h.Arch, h.Missing = "arm64", []string{"systemctl"} }, nil, "its architecture is arm64, the package is for amd64; it has no systemd"},
		"no Debian":           {func(h *onhosttest.Host) { h.Missing = []string{"dpkg"} }, nil, "it has no dpkg"},
		"not root":            {func(h *onhosttest.Host) { h.UID = "1000" }, nil, "is not root (uid 1000)"},
		"no name":             {func(h *onhosttest.Host) { h.Hostname = "PVE_1" }, nil, "--name NAME"},
		"not its address":     {func(*onhosttest.Host) {}, []string{"--address", "192.0.2.7"}, "192.0.2.7 is no address of the host itself, which has 127.0.0.1, 10.9.9.9"},
		"another fleet's": {func(h *onhosttest.Host) {
			ca, err := rpc.NewCA("elsewhere", 1e12, noon)
			if err != nil {
				panic(err)
			}
			pair, err := ca.Issue(rpc.Identity{Role: rpc.RoleAgent, Name: "pve1"}, 1e12, noon)
			if err != nil {
				panic(err)
			}
			h.Files[onhost.AgentConfig], h.Files["/etc/homelab/a.crt"] = "name: pve1\ncert: a.crt\n", string(pair.Cert)
		}, nil, "it is enrolled in another fleet, elsewhere"},
		"another name": {func(h *onhosttest.Host) { h.Files[onhost.AgentConfig] = "name: old\n" }, []string{"--name", "new"}, "a host keeps its name"},
	} {
		t.Run(name, func(t *testing.T) {
			a, h := adding(t)
			c.change(h)
			before := maps.Clone(h.Files)
			fails(t, a.add(h, c.args...), c.says)
			if left := h.Ran(); len(left) > 0 || !maps.Equal(before, h.Files) || len(a.registry.made) > 0 {
				t.Error(left)
			}
		})
	}
}

func TestAPackageThatIsNotTheRightOneGoesNowhere(t *testing.T) {
	a, h := adding(t)
	a.write("dist/homelab_1.2.3_amd64.deb", "!<arch>\nsomething else")
	if got := a.add(h); got.code != 1 || !strings.Contains(got.err, "no package in dist has the checksum "+a.sum) || len(h.Calls) > 0 {
		t.Errorf("%+v %v", got, h.Calls)
	}
}

func TestTheTokenIsInNoArgumentAndNoError(t *testing.T) {
	a, h := adding(t)
	h.Fails["/usr/sbin/hl-agent enrol"] = "hl-agent: enrol at 192.0.2.10:8402: connection refused"
	got := a.add(h)
	if got.code != 1 || !strings.Contains(got.err, "connection refused") || !strings.Contains(got.err, "hlctl hosts add root@HOST") {
		t.Errorf("%+v", got)
	}
	delete(h.Fails, "/usr/sbin/hl-agent enrol")
	again := a.add(h)
	if again.code != 0 {
		t.Errorf("%+v", again)
	}
	texts := a.registry.texts()
	if len(texts) != 2 {
		t.Fatal(len(texts))
	}
	for _, text := range texts {
		for what, is := range map[string]string{"the host's arguments and files": h.Everything(), "what is shown": got.out + got.err + again.out + again.err} {
			if strings.Contains(is, text) || strings.Contains(is, strings.TrimPrefix(text, "hl1_")) {
				t.Errorf("a token is in %s", what)
			}
		}
	}
}

// Wherever it is cut off, the second time finishes it, and does nothing twice.
func TestAnAddThatIsCutOffIsFinishedByTheNext(t *testing.T) {
	for _, at := range []string{
		"hostname", "put /var/cache/homelab/homelab_1.2.3_amd64.deb", "dpkg --install", "/usr/sbin/hl-agent enrol", "systemctl enable --now hl-agent", onhosttest.PowerFails,
	} {
		t.Run(strings.SplitN(at, "\n", 2)[0], func(t *testing.T) {
			a, h := adding(t)
			h.CutAt = at
			fails(t, a.add(h))
			h.Lock()
			h.CutAt = ""
			key := h.Files["/var/lib/hl-agent/agent.key"]
			h.Unlock()
			succeeds(t, a.add(h), "pve1  looked")
			if h.Daemon(onhost.AgentService).Version == "" || len(a.registry.held(rpc.RoleAgent, "pve1")) != 1 {
				t.Error("it is not online with one certificate")
			}
			if key != "" && h.Files["/var/lib/hl-agent/agent.key"] != key {
				t.Error("the key is another one")
			}
			h.Ran()
			if got := a.add(h); got.code != 0 || len(h.Ran()) > 0 {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestANameThatSomebodyElseHoldsIsTakenOnPurposeOnly(t *testing.T) {
	a := newAdder(t)
	old := a.host("pve1")
	old.Know(t, a.dir)
	succeeds(t, a.add(old))
	// Another machine of that hostname and address, or the same one installed anew: one
	// that was cut off would have a key.
	h := a.host("pve1")
	h.Know(t, a.dir)
	fails(t, a.add(h), "hlctl hosts add root@HOST --replace")
	// A key is not enough while the other one answers.
	h.Files[onhost.AgentKey] = old.Files[onhost.AgentKey]
	fails(t, a.add(h), "--replace")
	succeeds(t, a.add(h, "--replace"), "what it had before is taken back")
	if held := a.registry.held(rpc.RoleAgent, "pve1"); len(held) != 1 {
		t.Error(held)
	}
	// The old one is out, and taken in again only in its own right.
	fails(t, a.add(old, "--name", "pve1"), "--replace")
	// On purpose also for one that is well: it gets another certificate, and is started anew.
	h.Ran()
	if got := a.add(h, "--replace"); got.code != 0 || !slices.Contains(h.Ran(), "systemctl restart hl-agent.service") {
		t.Errorf("%+v", got)
	}
}

func TestAHostAtWorkIsNotUpgradedByTheWay(t *testing.T) {
	a, h := adding(t)
	succeeds(t, a.add(h))
	h.Installed = "1.2.2"
	h.Ran()
	if got := a.add(h); got.code != 0 || len(h.Ran()) > 0 || !strings.Contains(got.out, "! pve1: homelab 1.2.2 is at work there, and this hlctl brings 1.2.3: hlctl hosts upgrade pve1") {
		t.Errorf("%+v", got)
	}
	// One that does not run is nobody's work.
	h.Units[onhost.AgentService].Active = false
	if got := a.add(h); got.code != 0 || h.Installed != "1.2.3" {
		t.Errorf("%+v", got)
	}
}

func TestAnAgentThatDoesNotComeIsToldWithItsLastWords(t *testing.T) {
	a, h := adding(t)
	h.Sick["1.2.3"] = true
	fails(t, a.add(h), "Job for hl-agent.service failed", "it went ?[31mwrong", "journalctl -u hl-agent")
	delete(h.Sick, "1.2.3")
	if got := a.add(h); got.code != 0 || strings.Contains(got.out, "enrolled") {
		t.Errorf("%+v", got)
	}
}

func TestAnAgentThatIsNotSeenIsTold(t *testing.T) {
	a, h := adding(t)
	a.hosts = nil
	fails(t, a.further(h, func(o *hostsAdd) { o.wantController, o.etcd, o.limit = false, etcdFlags{}, 20*time.Millisecond }), "not online after 0 s: the controller has not heard of it", "hl-agent[12]: ?[1mv1.2.3 begins")
}

func TestSeveralHostsGoOneByOneAndOneThatFailsHoldsUpNoOther(t *testing.T) {
	a := newAdder(t)
	one, two, three := a.host("pve1"), a.host("pve2"), a.host("pve3")
	for _, h := range []*onhosttest.Host{one, two, three} {
		h.Know(t, a.dir)
	}
	two.Arch = "arm64"
	got := a.add(one, two.Target(), three.Target())
	if got.code != exitPartial || !strings.Contains(got.out, "pve1 is online.") || !strings.Contains(got.out, "pve3 is online.") || !strings.Contains(got.err, "pve2 is no host for agents") {
		t.Errorf("%+v", got)
	}
	for _, args := range [][]string{{"--name", "x"}, {"--address", "127.0.0.1"}, {"--host-key", "SHA256:x"}} {
		if got := a.add(one, append(args, two.Target())...); got.code != 1 || !strings.Contains(got.err, args[0]+" is of one host") {
			t.Errorf("%+v", got)
		}
	}
	fails(t, a.add(one, "root@"), "is no root@HOST")
}
