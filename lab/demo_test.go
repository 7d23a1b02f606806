package lab

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAGuestThatWasMadeAnewKeepsItsIdentityAndNothingElse(t *testing.T) {
	was := portrait{host: "pve2", vmid: 202, mac: "BC:24:11:00:00:02", uuid: "u", size: "8G", address: "127.9.9.102", mark: "hl1:f:k3s-2:1:a", node: "n1", member: 1, members: 3}
	now := was
	now.mark, now.node, now.member = "hl1:f:k3s-2:2:b", "n2", 2
	if err := was.madeAnew(now); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*portrait){
		"became VM 203":        func(p *portrait) { p.vmid = 203 },
		"identity changed":     func(p *portrait) { p.mac = "BC:24:11:00:00:03" },
		"not made anew":        func(p *portrait) { p.mark = was.mark },
		"same object":          func(p *portrait) { p.node = was.node },
		"etcd member is the":   func(p *portrait) { p.member = was.member },
		"has 4 members, was 3": func(p *portrait) { p.members = 4 },
	} {
		wrong := now
		change(&wrong)
		if err := was.madeAnew(wrong); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func TestTheDemoKnowsChangesFromLooks(t *testing.T) {
	for argv, want := range map[string]bool{
		"/r/usr/sbin/qm list": false, "/r/usr/sbin/qm config 201": false, "/r/usr/sbin/pvesm status": false, "/r/usr/bin/pvesh get /nodes": false,
		"/r/usr/sbin/qm start 201": true, "/r/usr/sbin/qm set 201 --memory 1": true, "/r/usr/sbin/pvesm free local:x": true, "/r/usr/sbin/qm listen": true,
	} {
		if got := (programCall{Argv: strings.Fields(argv)}).changes(); got != want {
			t.Errorf("%s changes: %v", argv, got)
		}
	}
}

func TestTheDemoFindsATokenWhereItMustNotBe(t *testing.T) {
	dir := t.TempDir()
	d := &demo{dir: dir}
	tree := filepath.Join(dir, "disk.fs")
	token := []byte("K10" + strings.Repeat("a", 64) + "::server:0123456789abcdef0123456789abcdef\n")
	put := func(path string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, token, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(filepath.Join(tree, "var/lib/rancher/k3s/server/token"))
	put(filepath.Join(tree, "etc/rancher/k3s/token"))
	if err := d.secret(token, []string{tree}); err != nil {
		t.Error(err)
	}
	for _, place := range []string{"calls.jsonl", "log/agent-pve1.log", "disk.fs/tmp/x"} {
		put(filepath.Join(dir, place))
		if err := d.secret(token, []string{tree}); err == nil || !strings.Contains(err.Error(), place) {
			t.Errorf("in %s: %v", place, err)
		}
		if err := os.Remove(filepath.Join(dir, place)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTheDemoHasTheScenariosThatPeopleAskFor(t *testing.T) {
	var names []string
	for _, s := range scenarios {
		names = append(names, s.name)
	}
	if got := strings.Join(names, " "); got != "stuck-vm new-node second-run api-closed join" {
		t.Errorf("scenarios: %s", got)
	}
	t.Setenv("TMPDIR", t.TempDir()) // what a failure keeps goes with the test
	var out strings.Builder
	if err := Demo(context.Background(), t.TempDir(), &out, "joins"); err == nil || !strings.Contains(err.Error(), "hl-lab demo --help") {
		t.Errorf("an unknown scenario: %v", err)
	}
	// Without its programs each fails, says why, and so does the whole.
	if err := Demo(context.Background(), t.TempDir(), &out, "join"); err == nil || !strings.Contains(out.String(), "FAILED") || !strings.Contains(out.String(), "hl-lab") {
		t.Errorf("%v\n%s", err, out.String())
	}
}
