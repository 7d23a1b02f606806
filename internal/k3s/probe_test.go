package k3s

import (
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var comparePrefix = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

// server is a healthy server.
func server(t *testing.T) *guest {
	return &guest{commands: map[string]reply{
		"hostname":                        {"k3s-2\n", 0},
		"cat /etc/machine-id":             {"0123456789abcdef0123456789abcdef\n", 0},
		"cloud-init status --format json": {data(t, "cloud-init.json"), 2},
		"cloud-init status --long":        {"status: done\n", 2},
		"ip -j addr":                      {data(t, "addr.json"), 0},
		"k3s --version":                   {"k3s version v1.35.0+k3s1 (c2b2f0d1)\ngo version go1.25.1\n", 0},
		"systemctl is-active k3s":         {"active\n", 0},
		"systemctl is-active k3s-agent":   {"inactive\n", 4},
		"sh":                              {"disable:\n- servicelb\n", 0}, // the config's filter
		"ls": {BinaryPath + "\n" + EtcdMember + "\n" + AgentData + "\n" + NodePass + "\n/usr/local/bin/k3s-uninstall.sh\n" +
			"ls: cannot access '/var/lib/rancher/k3s/server/db/state.db': No such file or directory\n" +
			"ls: /usr/local/bin/k3s-agent-uninstall.sh: No such file or directory\n", 2},
		"k3s kubectl get nodes -o json --request-timeout=4s": {"Warning: unavailable\n" + data(t, "nodes.json"), 0},
	}}
}

func probe(t *testing.T, g *guest) Probe {
	t.Helper()
	p, err := ParseProbe(g.run(t, ProbeScript))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAHealthyServerIsSeenWhole(t *testing.T) {
	got := probe(t, server(t))
	nodes, err := ParseNodes([]byte(data(t, "nodes.json")))
	if err != nil {
		t.Fatal(err)
	}
	want := Probe{
		Hostname: known("k3s-2"), MachineID: known("0123456789abcdef0123456789abcdef"),
		CloudInit: known(CloudInit{Status: "done", Detail: "DataSourceNoCloud [seed=/dev/sr0]", Errors: []string{"Running ['netplan', 'apply'] resulted in stderr output"}}),
		Addresses: known([]Address{
			{"eth0", "BC:24:11:00:00:01", netip.MustParsePrefix("192.168.4.212/24")},
			{"eth0", "BC:24:11:00:00:01", netip.MustParsePrefix("fd00::212/64")},
			{"wg0", "", netip.MustParsePrefix("10.9.0.2/32")},
		}),
		Version: known("v1.35.0+k3s1"), ServerUnit: known("active"), AgentUnit: known("inactive"),
		ServerData: known(true), AgentData: known(true), NodePassword: known(true),
		ServerUninstall: known(true), AgentUninstall: known(false), Nodes: known(nodes),
		Config: known("disable:\n    - servicelb\n"),
	}
	if diff := cmp.Diff(want, got, comparePrefix); diff != "" {
		t.Error(diff)
	}
	if !got.CloudInit.Value.Done() || got.CloudInit.Value.Failed() {
		t.Error(got.CloudInit)
	}
}

func TestAFreshGuestIsKnownToHoldNothing(t *testing.T) {
	g := server(t)
	delete(g.commands, "k3s --version")
	delete(g.commands, "k3s kubectl get nodes -o json --request-timeout=4s")
	g.commands["systemctl is-active k3s"] = reply{"inactive\n", 4}
	g.commands["ls"] = reply{gone, 2}
	got := probe(t, g)
	if diff := cmp.Diff([]Reading[bool]{known(false), known(false), known(false), known(false), known(false)},
		[]Reading[bool]{got.ServerData, got.AgentData, got.NodePassword, got.ServerUninstall, got.AgentUninstall}); diff != "" {
		t.Error(diff)
	}
	if got.Version != known("") || got.ServerUnit != known("inactive") {
		t.Errorf("%+v", got)
	}
	if got.Nodes.Known || got.Nodes.Reason != "nodes: k3s is not active here" {
		t.Errorf("%+v", got.Nodes)
	}
}

// Whatever is missing or fails, that and only that is unknown, with the reason.
func TestWhatCannotBeSeenIsUnknown(t *testing.T) {
	ioError := strings.Replace(gone, "member': No such file or directory", "member': Input/output error", 1)
	for name, c := range map[string]struct {
		command string
		reply   reply
		reason  func(Probe) string
		want    string
	}{
		"no hostname":     {"hostname", reply{"", 127}, func(p Probe) string { return p.Hostname.Reason }, "hostname: exit 127"},
		"two words":       {"hostname", reply{"a b\n", 0}, func(p Probe) string { return p.Hostname.Reason }, "hostname: is not one word"},
		"no machine-id":   {"cat /etc/machine-id", reply{"cat: /etc/machine-id: Permission denied\n", 1}, func(p Probe) string { return p.MachineID.Reason }, "machine-id: exit 1: cat: /etc/machine-id: Permission denied"},
		"hangs":           {"ip -j addr", reply{"", 124}, func(p Probe) string { return p.Addresses.Reason }, "addresses: no answer within its limit"},
		"killed":          {"ip -j addr", reply{"", 137}, func(p Probe) string { return p.Addresses.Reason }, "addresses: no answer within its limit"},
		"no JSON":         {"ip -j addr", reply{"1: lo\n", 0}, func(p Probe) string { return p.Addresses.Reason }, "addresses: no JSON in it"},
		"half a JSON":     {"ip -j addr", reply{"[{\n", 0}, func(p Probe) string { return p.Addresses.Reason }, "addresses: unexpected EOF"},
		"no version":      {"k3s --version", reply{"", 127}, func(p Probe) string { return p.Version.Reason }, "version: exit 127"},
		"other version":   {"k3s --version", reply{"k3s version dev (HEAD)\n", 0}, func(p Probe) string { return p.Version.Reason }, `version: "dev" is not a k3s version (as v1.35.0+k3s1)`},
		"no systemd":      {"systemctl is-active k3s-agent", reply{"System has not been booted with systemd\n", 1}, func(p Probe) string { return p.AgentUnit.Reason }, "unit-agent: systemctl said something else: System has not been booted with systemd"},
		"unit hangs":      {"systemctl is-active k3s-agent", reply{"", 124}, func(p Probe) string { return p.AgentUnit.Reason }, "unit-agent: no answer within its limit"},
		"I/O error":       {"ls", reply{ioError, 2}, func(p Probe) string { return p.ServerData.Reason }, "files: ls: cannot access '/var/lib/rancher/k3s/server/db/etcd/member': Input/output error"},
		"ls hangs":        {"ls", reply{"", 124}, func(p Probe) string { return p.ServerData.Reason }, "files: no answer within its limit"},
		"ls says nothing": {"ls", reply{"", 2}, func(p Probe) string { return p.AgentData.Reason }, "files: ls says nothing of " + AgentData},
		"API silent":      {"k3s kubectl get nodes -o json --request-timeout=4s", reply{"error: timed out\n", 1}, func(p Probe) string { return p.Nodes.Reason }, "nodes: exit 1: error: timed out"},
		"API says other":  {"k3s kubectl get nodes -o json --request-timeout=4s", reply{"{}\n", 0}, func(p Probe) string { return p.Nodes.Reason }, "nodes: list of nodes: it is none"},
	} {
		g := server(t)
		g.commands[c.command] = c.reply
		if got := c.reason(probe(t, g)); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestServerDataIsAbsentOnlyWhenBothAreSeenToBe(t *testing.T) {
	yes, no, unseen := known(true), known(false), unknown[bool]("x")
	for _, c := range []struct{ a, b, want Reading[bool] }{
		{yes, no, yes}, {no, yes, yes}, {no, no, no}, {yes, unseen, yes}, {unseen, yes, yes}, {no, unseen, unseen}, {unseen, no, unseen}, {unseen, unseen, unseen},
	} {
		if got := either(c.a, c.b); got != c.want {
			t.Errorf("%+v", c)
		}
	}
}

func TestCloudInitOfAllAges(t *testing.T) {
	for name, c := range map[string]struct {
		json, long reply
		want       Reading[CloudInit]
	}{
		"running":   {reply{`{"status": "running"}`, 0}, reply{}, known(CloudInit{Status: "running"})},
		"failed":    {reply{`{"status": "error", "detail": "x", "errors": ["a"]}`, 1}, reply{}, known(CloudInit{Status: "error", Detail: "x", Errors: []string{"a"}})},
		"old":       {reply{"usage: cloud-init\nunrecognized arguments: --format", 2}, reply{"\nstatus: done\ntime: x\ndetail: y\n", 0}, known(CloudInit{Status: "done", Detail: "y"})},
		"hangs":     {reply{"", 124}, reply{"", 124}, unknown[CloudInit]("cloud-init: no answer within its limit")},
		"none":      {reply{"timeout: failed to run command 'cloud-init': No such file or directory", 127}, reply{"", 127}, unknown[CloudInit]("cloud-init: exit 127: timeout: failed to run command 'cloud-init': No such file or directory")},
		"no status": {reply{`{}`, 0}, reply{}, unknown[CloudInit]("cloud-init: it did not print its status: {}")},
	} {
		g := server(t)
		g.commands["cloud-init status --format json"], g.commands["cloud-init status --long"] = c.json, c.long
		if diff := cmp.Diff(c.want, probe(t, g).CloudInit); diff != "" {
			t.Error(name, diff)
		}
	}
	if !(CloudInit{Status: "error"}).Failed() || (CloudInit{Status: "running"}).Done() || !(CloudInit{Status: "disabled"}).Done() {
		t.Error("states")
	}
}

func TestAProbeThatWasCutOffIsKnownUpToThere(t *testing.T) {
	whole := string(server(t).run(t, ProbeScript))
	all := probe(t, server(t))
	for at := 0; at < len(whole); at += 7 {
		p, err := ParseProbe([]byte(whole[:at]))
		if err != nil {
			continue
		}
		if p.Hostname.Known && p.Hostname != all.Hostname || p.ServerData.Known && !p.ServerData.Value || p.Version.Known && p.Version != all.Version {
			t.Fatalf("at %d: %+v", at, p)
		}
		if p.Nodes.Known && len(p.Nodes.Value) != len(all.Nodes.Value) {
			t.Fatalf("at %d: %+v", at, p.Nodes)
		}
	}
	cut, _, _ := strings.Cut(whole, "@@hl end version")
	p, err := ParseProbe([]byte(cut))
	if err != nil || p.Version.Reason != "version: was cut off" || p.ServerUnit.Reason != "unit-server: was not looked at" || !p.Hostname.Known {
		t.Errorf("%+v %v", p, err)
	}
	for _, text := range []string{"", "sudo: a password is required\n", "bash: line 1: x: command not found"} {
		if _, err := ParseProbe([]byte(text)); err == nil || !strings.Contains(err.Error(), strings.TrimSpace(text)) {
			t.Errorf("%q: %v", text, err)
		}
	}
	twice, err := ParseProbe([]byte(whole + whole))
	if err != nil || twice.Hostname.Reason != "hostname: was printed twice" || twice.ServerData.Known {
		t.Errorf("%+v %v", twice, err)
	}
	if p, err := ParseProbe([]byte(strings.ReplaceAll(whole, "\n", "\r\n"))); err != nil || p.Hostname != all.Hostname {
		t.Errorf("%+v %v", p, err)
	}
}

func TestTheProbesLimitsKeepItsPromise(t *testing.T) {
	total := time.Duration(0)
	for _, m := range regexp.MustCompile(`(?m)^\t?section \S+ (\d+) `).FindAllStringSubmatch(ProbeScript, -1) {
		seconds, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		total += time.Duration(seconds+1) * time.Second
	}
	if total == 0 || total > ProbeLimit {
		t.Errorf("%s, and %s are promised", total, ProbeLimit)
	}
}

func TestScripts(t *testing.T) {
	golden(t, "probe.sh", ProbeScript)
	golden(t, "install.sh", InstallScript(Install{Role: Server, Version: version(t, "v1.35.0+k3s1"), Timeout: 10 * time.Minute}))
	golden(t, "clean.sh", CleanScript(Agent))
	golden(t, "write-file.sh", WriteFileScript(TokenPath, 0o600))
	golden(t, "delete-node.sh", DeleteNodeScript("k3s-2", 30*time.Second))
	golden(t, "etcd-files.sh", EtcdFilesScript)
}

func TestNodes(t *testing.T) {
	nodes, err := ParseNodes([]byte(data(t, "nodes.json")))
	if err != nil {
		t.Fatal(err)
	}
	want := []Node{
		{Name: "k3s-1", UID: "1a", Ready: True, ReadyReason: "KubeletReady: kubelet is posting ready status", Version: "v1.33.1+k3s1", Server: true, Created: time.Date(2026, 11, 1, 9, 0, 0, 0, time.UTC)},
		{Name: "k3s-2", UID: "2b", Ready: Unknown, ReadyReason: "NodeStatusUnknown: Kubelet stopped posting node status.", Version: "v1.35.0+k3s1", Server: true, Etcd: true,
			EtcdName: "k3s-2-0a1b2c3d", EtcdAddress: "192.168.4.212", EtcdRemoved: "k3s-2-ffffffff", InternalIP: "192.168.4.212", Hostname: "k3s-2", Cordoned: true, Deleting: true,
			Created: time.Date(2026, 11, 1, 10, 0, 0, 0, time.UTC)},
		{Name: "k3s-3", Ready: False, ReadyReason: "KubeletNotReady"},
		{Name: "k3s-4", Ready: Unknown, ReadyReason: "it has no Ready condition"},
	}
	if diff := cmp.Diff(want, nodes); diff != "" {
		t.Error(diff)
	}
	if nodes, err := ParseNodes([]byte(`{"kind":"NodeList","items":[]}`)); err != nil || len(nodes) != 0 {
		t.Error(nodes, err)
	}
	for _, text := range []string{"", "{}", `{"kind":"List"}`, `{"kind":"Status","items":[]}`, `{"kind":"List","items":[{}]}`,
		`{"kind":"List","items":[{"kind":"Pod","metadata":{"name":"a"}}]}`, `{"kind":"List","items":[`, "error: x"} {
		if nodes, err := ParseNodes([]byte(text)); err == nil {
			t.Errorf("%q: %v", text, nodes)
		}
	}
}

func FuzzParseProbe(f *testing.F) {
	for _, s := range []string{"@@hl begin hostname\nk3s-1\n\n@@hl end hostname 0\n", "@@hl skip nodes x", "@@hl begin files\n" + gone + "@@hl end files 2\n",
		"@@hl begin version\n\n@@hl end version 127\n", "@@hl begin nodes\n{\"kind\":\"List\",\"items\":[]}\n@@hl end nodes 0"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, out []byte) {
		p, err := ParseProbe(out)
		if err != nil {
			return
		}
		check := func(known bool, reason string) {
			if known != (reason == "") {
				t.Fatalf("neither or both of a value and a reason: %+v", p)
			}
		}
		check(p.Hostname.Known, p.Hostname.Reason)
		check(p.MachineID.Known, p.MachineID.Reason)
		check(p.CloudInit.Known, p.CloudInit.Reason)
		check(p.Addresses.Known, p.Addresses.Reason)
		check(p.Version.Known, p.Version.Reason)
		check(p.ServerUnit.Known, p.ServerUnit.Reason)
		check(p.AgentUnit.Known, p.AgentUnit.Reason)
		check(p.Nodes.Known, p.Nodes.Reason)
		for _, b := range []Reading[bool]{p.ServerData, p.AgentData, p.NodePassword, p.ServerUninstall, p.AgentUninstall} {
			check(b.Known, b.Reason)
		}
		if p.Version.Known && p.Version.Value != "" && !strings.HasPrefix(p.Version.Value, "v") {
			t.Fatalf("%+v", p.Version)
		}
		ParseInstall(out)
		ParseStopped(out, true)
		_, _ = ParseEtcdFiles(out)
	})
}
