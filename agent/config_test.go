package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/homeiac/homelab/internal/config"
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

// load reads a configuration from a file of its own, and gives its folder too.
func load(t *testing.T, text string) (Config, string, error) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "agent.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := LoadConfig(file)
	return c, dir, err
}

func TestConfig(t *testing.T) {
	got, dir, err := load(t, goodConfig)
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Daemon: config.Daemon{
			Name: "pve1", Advertise: "127.9.1.1", Port: 8400, GossipPort: 7946, Seeds: []string{"127.9.1.201:7946"},
			CA: dir + "/ca.pem", Cert: dir + "/agent.pem", Key: "/etc/homelab/agent.key", GossipKeys: dir + "/gossip.keys", State: dir + "/state",
		},
		Root: "/", Proc: "/proc", SSHPort: 22, FileRoots: []string{"/var/lib/homelab"},
		Driver: "proxmox", PluginDir: "/usr/lib/homelab/drivers", PauseFile: "/etc/homelab/pause", // below root
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if cmd := strings.Join(got.driverCommand("/usr/bin/hl-agent"), " "); cmd != "/usr/bin/hl-agent driver proxmox --root / --proc /proc --state "+dir+"/state/driver" {
		t.Error(cmd)
	}
	got.Driver = "other"
	if cmd := got.driverCommand("/usr/bin/hl-agent"); cmd[0] != "/usr/lib/homelab/drivers/other" {
		t.Error(cmd)
	}
}

func TestConfigFaultsComeTogether(t *testing.T) {
	_, _, err := load(t, "name: pve1\nadvertise: pve1.lan\nport: 99999\nsshPort: 0\nseeds: [pve2]\ndriver: ../x\n")
	for _, want := range []string{"ca is missing", "key is missing", `advertise: "pve1.lan"`, "yaml:3: port: 99999", "yaml:4: sshPort: 0", `seeds: "pve2"`, `driver: "../x"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
	_, _, err = load(t, goodConfig+"stat: x\n")
	if err == nil || !strings.Contains(err.Error(), "agent.yaml:10: unknown key stat") {
		t.Errorf("unknown key: %v", err)
	}
}
