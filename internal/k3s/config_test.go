package k3s

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"flag"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the goldens anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s\n%s", name, diff)
	}
}

// homelab is the k3s.config of the example, with keys that an agent knows and
// keys that it does not.
func homelab() map[string]any {
	return map[string]any{
		"disable":               []string{"servicelb"},
		"write-kubeconfig-mode": "0644",
		"tls-san":               []string{"k3s.homelab"},
		"kubelet-arg":           []string{"max-pods=150", "v=2"},
		"secrets-encryption":    true,
		"flannel-iface":         "eth0",
	}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestConfigFiles(t *testing.T) {
	servers := []netip.Addr{addr("192.168.4.212"), addr("192.168.4.210"), addr("192.168.4.210"), {}}
	for name, c := range map[string]Config{
		"config-first-server.yaml": {Role: Server, Init: true, NodeName: "k3s-1", NodeIP: addr("192.168.4.210"),
			Labels: map[string]string{"node-role.homelab/quorum-only": "true", "a": ""}, Servers: servers, Endpoint: "192.168.4.79", User: homelab()},
		"config-server.yaml": {Role: Server, Join: addr("192.168.4.210"), NodeName: "k3s-2", NodeIP: addr("192.168.4.212"),
			Servers: servers, Endpoint: "192.168.4.79", User: homelab()},
		"config-agent.yaml": {Role: Agent, Join: addr("fd00::1"), NodeName: "k3s-3", Labels: map[string]string{"gpu": "nvidia"},
			Servers: servers, Endpoint: "192.168.4.79", User: homelab()},
		"config-least.yaml": {Role: Server, Init: true, NodeName: "123"},
	} {
		got, err := ConfigYAML(c)
		if err != nil {
			t.Fatal(name, err)
		}
		golden(t, name, string(got))
	}
}

func TestConfigsThatContradictThemselvesAreRefused(t *testing.T) {
	for want, c := range map[string]Config{
		"is not a role":               {Init: true, NodeName: "a"},
		"cannot start a cluster":      {Role: Agent, Init: true, NodeName: "a"},
		"either starts":               {Role: Server, Init: true, Join: addr("10.0.0.1"), NodeName: "a"},
		"a: a member either starts":   {Role: Server, NodeName: "a"},
		"no node name":                {Role: Server, Init: true},
		"k3s.config.token is a":       {Role: Server, Init: true, NodeName: "a", User: map[string]any{"token": "hunter2"}},
		"k3s.config.node-label+ belo": {Role: Agent, Join: addr("10.0.0.1"), NodeName: "a", User: map[string]any{"node-label+": "x"}},
	} {
		got, err := ConfigYAML(c)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %s %v", want, got, err)
		}
	}
}

func TestNamesForCertificatesComeFromEverywhereOnce(t *testing.T) {
	c := Config{Servers: []netip.Addr{addr("10.0.0.2"), addr("10.0.0.1")}, Endpoint: "vip", User: map[string]any{"tls-san": "b, a,vip"}}
	if diff := cmp.Diff([]string{"10.0.0.1", "10.0.0.2", "a", "b", "vip"}, c.TLSSAN()); diff != "" {
		t.Error(diff)
	}
}

const kubeconfig = `apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: Q0E=
    server: https://127.0.0.1:6443
  name: default
contexts:
- context:
    cluster: default
    user: default
  name: default
current-context: default
kind: Config
users:
- name: default
  user:
    client-certificate-data: Q0VSVA==
    client-key-data: aHVudGVyMg==
`

func TestAKubeconfigPointsElsewhere(t *testing.T) {
	got, err := RewriteKubeconfig([]byte(kubeconfig), ServerURL(addr("192.168.4.210")), "homelab")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "kubeconfig.yaml", string(got))
	again, err := RewriteKubeconfig(got, ServerURL(addr("fd00::1")), "other")
	if err != nil || !strings.Contains(string(again), "https://[fd00::1]:6443") || strings.Contains(string(again), "homelab") {
		t.Error(string(again), err)
	}
	for _, c := range []struct{ data, url, name string }{
		{kubeconfig, "http://a:6443", "n"}, {kubeconfig, "https://", "n"}, {kubeconfig, "https://a", ""},
		{"client-key-data: aHVudGVyMg==: x", "https://a", "n"}, {"", "https://a", "n"}, {"clusters: []", "https://a", "n"},
		{"clusters: [{cluster: 3}]", "https://a", "n"},
		{strings.Replace(kubeconfig, "  user:\n", "  usr:\n", 1), "https://a", "n"},
		{strings.Replace(kubeconfig, "- context:\n", "- ctx:\n", 1), "https://a", "n"},
	} {
		if out, err := RewriteKubeconfig([]byte(c.data), c.url, c.name); err == nil || strings.Contains(err.Error(), "aHVudGVyMg") {
			t.Errorf("%+v: %s %v", c, out, err)
		}
	}
}
