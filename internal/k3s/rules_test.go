package k3s

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"pgregory.net/rapid"
)

func TestVersions(t *testing.T) {
	for text, want := range map[string]Version{
		"v1.35.0+k3s1":      {1, 35, 0, "", 1},
		"v1.35.12-rc2+k3s3": {1, 35, 12, "rc2", 3},
	} {
		got, err := ParseVersion(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("%s: %+v %v", text, got, err)
		}
	}
	for _, text := range []string{"", "stable", "v1.35", "1.35.0+k3s1", "v1.35.0", "v1.35.0-k3s1", "v1.35.0+k3s0", "v1.35.0+rke2r1",
		"v01.35.0+k3s1", "v1.35.0+k3s1\n", "v1.35.0+k3s1; rm", "v99999999999.1.1+k3s1", "v1.35.0-+k3s1"} {
		if v, err := ParseVersion(text); err == nil {
			t.Errorf("%q is read as %v", text, v)
		}
	}
	got, err := ParseVersionOutput("k3s version v1.35.0+k3s1 (c2b2f0d1)\ngo version go1.25.1\n")
	if err != nil || got.Minor != 35 {
		t.Error(got, err)
	}
	for _, text := range []string{"", "k3s", "k3s version", "k3d version v1.35.0+k3s1", "k3s version dev (HEAD)"} {
		if _, err := ParseVersionOutput(text); err == nil {
			t.Errorf("%q is read", text)
		}
	}
}

func version(t interface{ Fatal(...any) }, s string) Version {
	v, err := ParseVersion(s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestVersionsAreOrderedByAge(t *testing.T) {
	ordered := []string{"v1.9.9+k3s9", "v1.34.9+k3s1", "v1.35.0-alpha1+k3s1", "v1.35.0-rc2+k3s1", "v1.35.0-rc10+k3s1", "v1.35.0+k3s1",
		"v1.35.0+k3s2", "v1.35.0+k3s10", "v1.35.2+k3s1", "v1.35.10+k3s1", "v2.0.0+k3s1"}
	for i, a := range ordered {
		for j, b := range ordered {
			want := 0
			switch {
			case i < j:
				want = -1
			case i > j:
				want = 1
			}
			if got := version(t, a).Compare(version(t, b)); got != want {
				t.Errorf("%s, %s: %d, want %d", a, b, got, want)
			}
		}
	}
}

func TestWhoMayJoin(t *testing.T) {
	for _, c := range []struct {
		cluster, want string
		role          Role
		reason        string // "" may join
	}{
		{"v1.35.0+k3s1", "v1.35.0+k3s1", Server, ""},
		{"v1.35.0+k3s1", "v1.35.0+k3s1", Agent, ""},
		{"v1.35.0+k3s1", "v1.35.0+k3s2", Server, "joins with the same version"},
		{"v1.35.0+k3s1", "v1.34.0+k3s1", Server, "joins with the same version"},
		{"v1.35.0+k3s1", "v1.34.9+k3s1", Agent, ""},
		{"v1.35.3+k3s1", "v1.35.0+k3s1", Agent, ""},
		{"v1.35.0+k3s1", "v1.33.9+k3s1", Agent, "more than one minor older"},
		{"v2.0.0+k3s1", "v1.99.0+k3s1", Agent, "more than one minor older"},
		{"v1.35.0+k3s1", "v1.35.0+k3s2", Agent, "is newer"},
		{"v1.35.0+k3s1", "v1.36.0+k3s1", Agent, "is newer"},
	} {
		ok, reason := CanJoin(version(t, c.cluster), version(t, c.want), c.role)
		if ok != (c.reason == "") || !strings.Contains(reason, c.reason) {
			t.Errorf("%+v: %v %q", c, ok, reason)
		}
	}
}

func TestUpgradesGoUpByAMinorAtMost(t *testing.T) {
	for _, c := range []struct{ from, to, reason string }{
		{"v1.35.0+k3s1", "v1.35.0+k3s1", ""},
		{"v1.35.0+k3s1", "v1.36.4+k3s1", ""},
		{"v1.35.0+k3s1", "v1.37.0+k3s1", "go to v1.36 first"},
		{"v1.35.0+k3s2", "v1.35.0+k3s1", "is older"},
		{"v1.35.0+k3s1", "v2.0.0+k3s1", "major"},
	} {
		ok, reason := CanUpgrade(version(t, c.from), version(t, c.to))
		if ok != (c.reason == "") || !strings.Contains(reason, c.reason) {
			t.Errorf("%+v: %v %q", c, ok, reason)
		}
	}
}

func TestQuorum(t *testing.T) {
	for voters, want := range []int{0, 1, 2, 2, 3, 3, 4, 4} {
		if got := Quorum(voters); got != want {
			t.Errorf("%d voters: %d, want %d", voters, got, want)
		}
	}
	if Tolerance(3, 3) != 1 || Tolerance(3, 2) != 0 || Tolerance(3, 1) != -1 || Quorum(-1) != 0 {
		t.Error("tolerance")
	}
	for _, c := range []struct {
		voters, healthy int
		leavingHealthy  bool
		ok              bool
		reason          string
	}{
		{3, 3, true, true, "3 voters, 3 healthy -> 2 of 2 stay healthy"},
		{3, 2, false, true, "3 voters, 2 healthy -> 2 of 2 stay healthy"},
		{3, 2, true, false, "3 voters, 2 healthy -> 1 of 2 would stay healthy, quorum of 2 needs 2"},
		{3, 1, false, false, "3 voters, 1 healthy: quorum of 3 needs 2, so nothing can be removed now"},
		{2, 2, true, true, "2 voters, 2 healthy -> 1 of 1 stay healthy"},
		{2, 1, false, false, "2 voters, 1 healthy: quorum of 2 needs 2, so nothing can be removed now"},
		{1, 1, true, false, "1 voter, 1 healthy: the only server is never removed"},
		{1, 0, false, false, "1 voter, 0 healthy: the only server is never removed"},
		{5, 4, true, true, "5 voters, 4 healthy -> 3 of 4 stay healthy"},
		{5, 3, true, false, "5 voters, 3 healthy -> 2 of 4 would stay healthy, quorum of 4 needs 3"},
		{0, 0, false, false, "0 voters, 0 healthy: these counts cannot be"},
		{3, 3, false, false, "3 voters, 3 healthy: these counts cannot be"},
		{3, 0, true, false, "3 voters, 0 healthy: these counts cannot be"},
		{3, 4, true, false, "3 voters, 4 healthy: these counts cannot be"},
	} {
		if ok, reason := CanLose(c.voters, c.healthy, c.leavingHealthy); ok != c.ok || reason != c.reason {
			t.Errorf("%+v: %v %q", c, ok, reason)
		}
	}
	for _, c := range []struct {
		voters, healthy int
		ok              bool
		reason          string
	}{
		{1, 1, true, "1 voter, 1 healthy -> 2 voters, quorum 2"},
		{3, 2, true, "3 voters, 2 healthy -> 4 voters, quorum 3"},
		{2, 1, false, "2 voters, 1 healthy: quorum of 2 needs 2, so nothing can join now"},
		{0, 0, false, "0 voters, 0 healthy: these counts cannot be"},
	} {
		if ok, reason := CanAdd(c.voters, c.healthy); ok != c.ok || reason != c.reason {
			t.Errorf("%+v: %v %q", c, ok, reason)
		}
	}
}

func TestWhoeverLeavesQuorumStays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		voters, healthy := rapid.IntRange(-1, 9).Draw(t, "voters"), rapid.IntRange(-1, 9).Draw(t, "healthy")
		leaving := rapid.Bool().Draw(t, "leavingHealthy")
		ok, reason := CanLose(voters, healthy, leaving)
		if reason == "" {
			t.Fatal("no reason")
		}
		if !ok {
			return
		}
		stay := healthy
		if leaving {
			stay--
		}
		if voters < 2 || Tolerance(voters, healthy) < 0 || Tolerance(voters-1, stay) < 0 {
			t.Fatal(reason)
		}
	})
}

func TestASecretIsNeverPrinted(t *testing.T) {
	const text = "K10deadbeef::server:hunter2"
	type holder struct {
		Open   Secret
		hidden Secret
		ptr    *Secret
	}
	s := NewSecret(text)
	h := holder{s, s, &s}
	var printed []string
	for _, v := range []any{s, &s, h, &h, []Secret{s}, map[string]Secret{"a": s}, Token{Password: s}, fmt.Errorf("x: %v", s)} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			printed = append(printed, fmt.Sprintf(verb, v))
		}
		j, _ := json.Marshal(v)
		y, _ := yaml.Marshal(v)
		printed = append(printed, string(j), string(y))
	}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "s", s, "h", h)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "s", s, "h", h)
	printed = append(printed, log.String(), s.String(), s.GoString())
	for _, p := range printed {
		if strings.Contains(p, "hunter2") || strings.Contains(p, fmt.Sprintf("%x", "hunter2")) {
			t.Errorf("printed: %s", p)
		}
	}
	if s.Reveal() != text || s.IsZero() || !NewSecret("").IsZero() || NewSecret("").Reveal() != "" {
		t.Error("reveal")
	}
	if !s.Equal(NewSecret(text)) || s.Equal(NewSecret("other")) || !(Secret{}).Equal(NewSecret("")) {
		t.Error("equal")
	}
	if h.hidden.IsZero() || h.ptr.IsZero() {
		t.Error("holder")
	}
}

func TestTokens(t *testing.T) {
	ca := []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
	hash := CAHash(ca)
	for text, want := range map[string]Token{
		"K10" + hash + "::server:secret:with:colons": {hash, "server", NewSecret("secret:with:colons")},
		"K10" + hash + "::node:x\n":                  {hash, "node", NewSecret("x")},
		"K10" + hash + "::abcdef.0123456789abcdef":   {hash, "", NewSecret("abcdef.0123456789abcdef")},
		"hunter2":  {"", "", NewSecret("hunter2")},
		"K10short": {"", "", NewSecret("K10short")},
	} {
		got, err := ParseToken(NewSecret(text))
		if err != nil || got.CAHash != want.CAHash || got.User != want.User || !got.Password.Equal(want.Password) {
			t.Errorf("%s: %+v %v", text, got, err)
		}
		if got.Full().Reveal() != strings.TrimSpace(text) {
			t.Errorf("%s: full %s", text, got.Full().Reveal())
		}
		if err := got.CheckCA(ca); (err == nil) != (got.CAHash != "") {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, text := range []string{"", " \n", "K10abc::server:hunter2", "hunter2::x", "K10" + hash + "::server:", "K10" + hash + "::", "hunter2 hunter2", "K10" + hash[:63] + "z::server:hunter2"} {
		if _, err := ParseToken(NewSecret(text)); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", text, err)
		}
	}
	other, _ := ParseToken(NewSecret("K10" + strings.Repeat("ab", 32) + "::server:hunter2"))
	if err := other.CheckCA(ca); err == nil || !strings.Contains(err.Error(), "abababababab…") || strings.Contains(err.Error(), "hunter2") {
		t.Error(err)
	}
}

func TestFailuresAreNamed(t *testing.T) {
	w := Where{Guest: "k3s-2", Node: "node-2", Server: "k3s-1"}
	for _, c := range []struct {
		text string
		kind FailureKind
		next string
	}{
		{`time="x" level=fatal msg="starting kubernetes: preparing server: token CA hash does not match the Cluster CA certificate hash: a != b"`, FailureCA, "hlctl k3s status"},
		{"[INFO]  systemd: Starting k3s-agent\nlevel=info msg=\"Waiting to retrieve agent configuration; server is not ready: Node password rejected, duplicate hostname or contents of '/etc/rancher/node/password' may not match server node-passwd entry\"\nlevel=info msg=\"server is not ready: connection refused\"", FailureNodePassword, "hlctl exec k3s-1 -- sudo k3s kubectl get node node-2"},
		{"level=fatal msg=\"ETCD join failed: duplicate node name found, please use a unique name for this node\"", FailureDuplicateName, "hlctl k3s members"},
		{"etcdserver: too many learner members in cluster", FailureLearners, "hlctl k3s members"},
		{"etcdserver: unhealthy cluster", FailureUnhealthy, "hlctl k3s members"},
		{"etcdserver: server stopped", FailureUnhealthy, "journalctl"},
		{"x509: certificate has expired or is not yet valid: current time 2020", FailureClock, "hlctl exec k3s-2 -- date"},
		{"server is not ready: https://127.0.0.1:6444/v1-k3s/config: 401 Unauthorized", FailureToken, "hlctl k3s status"},
		{"[ERROR]  Download sha256 does not match a, got b", FailureChecksum, "hlctl apply"},
		{"[ERROR]  Can not find curl or wget for downloading files", FailureSystem, "hlctl validate"},
		{"[ERROR]  Download failed", FailureDownload, "hlctl exec k3s-2 -- curl"},
		{"[ERROR]  Can not find systemd or openrc to use as a process supervisor for k3s", FailureSystem, "journalctl"},
		{"[ERROR]  Unsupported architecture riscv64", FailureSystem, "journalctl"},
		{"level=fatal msg=\"no default routes found in \\\"/proc/net/route\\\"\"", FailureSystem, "ip route"},
		{"[ERROR]  Executable k3s binary not found at /usr/local/bin/k3s", FailureSetup, "ls -l"},
		{"[ERROR]  Only https:// URLs are supported for K3S_URL (have http://x)", FailureSetup, "journalctl"},
		{"[ERROR]  Defaulted k3s exec command to 'agent' because K3S_URL is defined, but K3S_TOKEN or K3S_TOKEN_FILE is not defined.", FailureSetup, "journalctl"},
		{"[ERROR]  Invalid characters for system name: a b", FailureSetup, "journalctl"},
		{"level=info msg=\"Waiting to retrieve agent configuration; server is not ready: dial tcp 10.0.0.1:6443: connect: connection refused\"", FailureUnreachable, "hlctl k3s status"},
		{"all well\nlevel=error msg=\"something new\"\nall well again", FailureOther, "journalctl"},
		{"quiet", FailureOther, "journalctl"},
		{"", FailureOther, "journalctl"},
	} {
		f := Classify(c.text, w)
		if f.Kind != c.kind || !strings.Contains(f.Next, c.next) || f.Reason == "" || strings.ContainsAny(f.Reason+f.Next, "{}") {
			t.Errorf("%s\n%+v", c.text, f)
		}
		if f.Line != "" && !strings.Contains(c.text, f.Line) {
			t.Errorf("%q is not in %q", f.Line, c.text)
		}
	}
	if f := Classify("all well\nlevel=error msg=new\nwell again", w); f.Line != "level=error msg=new" {
		t.Errorf("%+v", f)
	}
	if f := Classify("node password rejected", Where{}); !strings.Contains(f.Next, "SERVER") || !strings.Contains(f.Error(), "next: hlctl exec") {
		t.Errorf("%+v", f)
	}
}

func TestEveryRuleIsReached(t *testing.T) {
	for i, r := range rules {
		for _, text := range r.texts {
			if text != strings.ToLower(text) {
				t.Errorf("%q is never found: texts are lower case", text)
			}
			if f := Classify(text, Where{}); f.Kind != r.kind {
				t.Errorf("rule %d, %q: %s, want %s", i, text, f.Kind, r.kind)
			}
		}
	}
}

func TestALineThatIsShownHoldsNoToken(t *testing.T) {
	for _, line := range []string{
		"error: token 'K10aa::server:hunter2' K10 refused", "error K10aa::hunter2", "K10 K10aa::server:hunter2, error",
	} {
		if f := Classify(line, Where{}); strings.Contains(f.Line, "hunter2") || !strings.Contains(f.Line, "***") {
			t.Errorf("%q", f.Line)
		}
	}
	if f := Classify("error "+strings.Repeat("ä", 500), Where{}); len([]rune(f.Line)) != 301 {
		t.Errorf("%q", f.Line)
	}
}

func TestLabelsThatAKubeletMayNotGiveItself(t *testing.T) {
	var refused []string
	for _, key := range []string{"gpu", "node-role.homelab/quorum-only", "node-role.kubernetes.io/worker", "kubernetes.io/hostname", "kubernetes.io/x",
		"node.kubernetes.io/instance-type", "foo.node.kubernetes.io/a", "k8s.io/a", "a.k8s.io/b", "topology.kubernetes.io/zone", "notkubernetes.io/a", "kubelet.kubernetes.io/x"} {
		if KubeletRefusesLabel(key) {
			refused = append(refused, key)
		}
	}
	if want := []string{"node-role.kubernetes.io/worker", "kubernetes.io/x", "k8s.io/a", "a.k8s.io/b"}; !slices.Equal(refused, want) {
		t.Error(refused)
	}
}
