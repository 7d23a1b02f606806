package agent

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const goodConfig = `
name: pve1
advertise: 127.9.1.1
seeds: ["127.9.1.201:7946"]
ca: ca.pem
cert: agent.pem
key: /etc/homelab/agent.key
gossipKeys: gossip.keys
state: state
`

func TestConfig(t *testing.T) {
	got, err := parseConfig([]byte(goodConfig), "/lab/pve1")
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Name: "pve1", Advertise: "127.9.1.1", Port: 8400, GossipPort: 7946, Seeds: []string{"127.9.1.201:7946"},
		CA: "/lab/pve1/ca.pem", Cert: "/lab/pve1/agent.pem", Key: "/etc/homelab/agent.key", GossipKeys: "/lab/pve1/gossip.keys",
		State: "/lab/pve1/state", Root: "/", Proc: "/proc", SSHPort: 22, FileRoots: []string{"/var/lib/homelab"},
		Driver: "proxmox", PluginDir: "/usr/lib/homelab/drivers", PauseFile: "/etc/homelab/pause", // below root
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if cmd := strings.Join(got.driverCommand("/usr/bin/hl-agent"), " "); cmd != "/usr/bin/hl-agent driver proxmox --root / --proc /proc --state /lab/pve1/state/driver" {
		t.Error(cmd)
	}
	got.Driver = "other"
	if cmd := got.driverCommand("/usr/bin/hl-agent"); cmd[0] != "/usr/lib/homelab/drivers/other" {
		t.Error(cmd)
	}
}

func TestConfigFaultsComeTogether(t *testing.T) {
	_, err := parseConfig([]byte("name: pve1\nadvertise: pve1.lan\nport: 99999\nseeds: [pve2]\ndriver: ../x\n"), "/")
	for _, want := range []string{"ca is missing", "key is missing", `advertise: "pve1.lan"`, "port: 99999", `seeds: "pve2"`, `driver: "../x"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
	_, err = parseConfig([]byte(goodConfig+"stat: x\n"), "/")
	if err == nil || !strings.Contains(err.Error(), "line 10") || !strings.Contains(err.Error(), "stat") {
		t.Errorf("unknown key: %v", err)
	}
}
