package k3s

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMemberNamesAreTheNodesOnly(t *testing.T) {
	for name, want := range map[string]bool{
		"k3s-1-0a1b2c3d": true, "k3s-1": false, "k3s-1-0a1b2c3": false, "k3s-1-0a1b2c3g": false,
		"k3s-11-0a1b2c3d": false, "k3s-1-x-0a1b2c3d": false, "-0a1b2c3d": false, "": false,
	} {
		if got := EtcdMemberOf(name, "k3s-1"); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
	if EtcdMemberOf("-0a1b2c3d", "") {
		t.Error("a Node without a name has no member")
	}
}

// secretConfig has a secret in every form that a config.yaml can have one.
const secretConfig = `# token: hunter2
token: hunter2
cluster-init: true
agent-token: >-
  hunter2
  hunter2
disable:
- servicelb
# password: hunter2
- traefik
etcd-s3-secret-key: hunter2
etcd-s3-access-key: hunter2
"token": hunter2
node-password-file:
    - hunter2
datastore-endpoint: postgres://a:hunter2@b
secrets-encryption: true
{token: hunter2}
vpn-auth: name=tailscale,joinKey=hunter2
flannel-backend: vxlan`

// TestNoSecretOfAConfigLeavesTheGuest runs the very script, with the machine's own
// shell and a file of its own.
func TestNoSecretOfAConfigLeavesTheGuest(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(secretConfig), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sh", "-c", strings.ReplaceAll(prologue+configSection, ConfigPath, file)).CombinedOutput()
	if err != nil || strings.Contains(string(out), "hunter2") {
		t.Fatalf("%v\n%s", err, out)
	}
	got := readConfig(ParseSections(out))
	want := "cluster-init: true\ndisable:\n    - servicelb\n    - traefik\nflannel-backend: vxlan\nsecrets-encryption: true\n"
	if !got.Known || got.Value != want {
		t.Errorf("%+v", got)
	}
	// What got through all the same is not told either.
	got = readConfig(ParseSections([]byte("@@hl begin config\nagent-token: hunter2\na: b\n@@hl end config 0\n")))
	if got.Value != "a: b\n" {
		t.Errorf("%+v", got)
	}
	got = readConfig(ParseSections([]byte("@@hl begin config\na: b: hunter2\n@@hl end config 0\n")))
	if got.Known || strings.Contains(got.Reason, "hunter2") {
		t.Errorf("%+v", got)
	}
	got = readConfig(ParseSections([]byte("@@hl begin config\nsh: cannot open\n@@hl end config 2\n")))
	if got.Known {
		t.Errorf("%+v", got)
	}
}

func TestUnits(t *testing.T) {
	g := &guest{commands: map[string]reply{
		"systemctl is-active k3s": {"inactive\n", 3}, "systemctl is-enabled k3s": {"enabled\n", 0},
		"systemctl is-active k3s-agent": {"inactive\n", 4}, "systemctl is-enabled k3s-agent": {"Failed to get unit file state for k3s-agent.service: No such file or directory\n", 4},
	}}
	out := g.run(t, UnitsScript)
	if u, err := ParseUnits(out, Server); err != nil || u.Halted() || !u.Enabled {
		t.Errorf("%+v %v", u, err)
	}
	if u, err := ParseUnits(out, Agent); err != nil || !u.Halted() {
		t.Errorf("%+v %v", u, err)
	}
	if _, err := ParseUnits(nil, Server); err == nil {
		t.Error("units that were not looked at are known")
	}
	if (Unit{Active: "activating"}).Halted() {
		t.Error("a unit that starts is halted")
	}
}

func TestAWipedGuestHasNotEvenItsNodesPassword(t *testing.T) {
	gone := ""
	for _, f := range files {
		gone += "ls: cannot access '" + f + "': No such file or directory\n"
	}
	commands := map[string]reply{
		"systemctl stop k3s": {}, "systemctl disable k3s": {}, "systemctl is-active k3s": {"unknown\n", 4}, Server.Uninstall(): {}, "rm -f " + NodePass: {}, "ls": {gone, 2},
	}
	if got := ParseWiped((&guest{commands: commands}).run(t, WipeScript(Server))); !got.Cleaned {
		t.Errorf("%+v", got)
	}
	commands["ls"] = reply{strings.Replace(gone, "ls: cannot access '"+NodePass+"': No such file or directory", NodePass, 1), 2}
	if got := ParseWiped((&guest{commands: commands}).run(t, WipeScript(Server))); got.Cleaned || got.Reason != NodePass+" is still there" {
		t.Errorf("%+v", got)
	}
}

func TestNamesInScriptsAreWords(t *testing.T) {
	const evil = "a'; rm -rf /; '"
	for _, script := range []string{
		SecretScript(evil), DeleteSecretScript(evil), CordonScript(evil), DrainScript(evil, time.Minute),
	} {
		g := &guest{commands: map[string]reply{"k3s": {}}}
		g.run(t, script)
		if len(g.ran) != 1 || !strings.HasPrefix(g.ran[0], "k3s kubectl ") {
			t.Errorf("%q", g.ran)
		}
	}
	golden(t, "drain.sh", DrainScript("k3s-2", time.Minute))
	golden(t, "wipe.sh", WipeScript(Server))
	golden(t, "units.sh", UnitsScript)
}
