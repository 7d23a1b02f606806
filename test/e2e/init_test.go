//go:build e2e

package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// start starts a program that ends with the test, and gives its log's file.
func (l *lab) start(name, program string, args ...string) (log string) {
	l.t.Helper()
	log = l.path("log", name+".log")
	out, err := os.Create(log)
	if err != nil {
		l.t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(filepath.Join(bin, program), args...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			l.t.Errorf("%s: %v", name, err)
		}
	})
	return log
}

// pasted runs a line that is shown to people, with our programs.
func (l *lab) pasted(line string) result {
	l.t.Helper()
	cmd := exec.Command("sh", "-c", line)
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	r := result{argv: []string{line}, stdout: string(out)}
	if err != nil {
		r.exit, r.stderr = 1, err.Error()
	}
	return r
}

// A fleet of one controller and one host, from nothing, by the commands of
// docs/install.md. The lab lends the host; the fleet is another one than the lab's.
func TestAFleetFromNothing(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{hosts: 1})
	l.fault("agent-kill", "pve1")
	dir := l.path("home")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	in := func(elem ...string) string { return filepath.Join(append([]string{dir}, elem...)...) }
	l.config = in("conf", "hlctl.yaml")
	init := []string{"init", "home", "--controller", "c1@" + l.net + ".210", "--out", in("homelab.yaml")}
	if r := l.hlctl(init...); r.exit != 0 || !strings.Contains(r.stdout, "Back up") {
		t.Fatal(r)
	}
	if r := l.hlctl("validate", "-f", in("homelab.yaml")); r.exit != 0 {
		t.Error(r)
	}
	// Its folder goes to the controller's host.
	state := in("hl-controller")
	if err := os.Rename(in("conf", "controller-c1"), state); err != nil {
		t.Fatal(err)
	}
	replace(t, filepath.Join(state, "controller.yaml"), "/var/lib/hl-controller", state)
	l.start("c1", "hl-controller", "--config", filepath.Join(state, "controller.yaml"))
	var token struct{ Command string }
	l.eventually(20*time.Second, "a token", func() (bool, string) {
		r := l.hlctl("token", "create", "pve1", "--address", l.net+".1", "-o", "json")
		return r.exit == 0 && json.Unmarshal([]byte(r.stdout), &token) == nil, r.String()
	})
	// The line that is pasted on the host, where the package's configuration is.
	config := in("agent.yaml")
	packaged, err := os.ReadFile("../../deploy/packages/agent.yaml")
	if err == nil {
		err = os.WriteFile(config, packaged, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	line := token.Command + " --config " + config + " --state " + in("hl-agent")
	for range 2 {
		if r := l.pasted(line); r.exit != 0 || !strings.Contains(r.stdout, "enrolled as agent@pve1 of fleet home") {
			t.Fatal(r)
		}
	}
	// The token is worth nothing to another one, who has the line from a history.
	if r := l.pasted(strings.ReplaceAll(token.Command, "--token -", "--token - --config "+in("thief.yaml")+" --state "+in("thief"))); r.exit == 0 || !strings.Contains(r.stdout, "used") {
		t.Error(r)
	}
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, append(text, "root: "+l.host("pve1")+"\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	l.start("home-pve1", "hl-agent", "--config", config)
	l.eventually(30*time.Second, "pve1 to be online", func() (bool, string) {
		state, r := l.state("pve1")
		return state == "online", r.String()
	})
	if r := l.hlctl("trust"); r.exit != 0 || !strings.Contains(r.stdout, "c1") || !strings.Contains(r.stdout, "pve1") {
		t.Error(r)
	}
	// Its sentences are broken at the width of a terminal.
	if r := l.hlctl("audit"); r.exit != 0 || !strings.Contains(inOneLine(r.stdout), "for agent@pve1") || !strings.Contains(inOneLine(r.stdout), "was used by another key") {
		t.Error(r)
	}
	// Again: all that is there stays.
	if r := l.hlctl(init...); r.exit != 0 || strings.Contains(r.stdout, "Made for") {
		t.Error(r)
	}
	if state, r := l.state("pve1"); state != "online" {
		t.Error(r)
	}
}

// replace puts one text for another in a file.
func replace(t *testing.T, file, old, text string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, []byte(strings.ReplaceAll(string(data), old, text)), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func inOneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
