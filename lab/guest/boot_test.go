package guest

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/homeiac/homelab/lab/guest/system"
)

func TestCloudInitMakesTheGuestOnce(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	g := l.guest(1, "web-1")
	g.machine.CloudInit.UserData += "- date +%s%N >> /var/lib/runs\nwrite_files:\n- {path: /etc/x.conf, content: aGk=, encoding: b64, permissions: '0640'}\n"
	g.start().booted()
	if got := g.must("hostname; cat /etc/hostname; id -un; sudo -n id -un; sudo cat /etc/x.conf; stat -c %a /etc/x.conf"); got != "web-1\nweb-1\nubuntu\nroot\nhi640\n" {
		t.Errorf("%q", got)
	}
	var st struct {
		Status, Datasource string
		Errors             []string
	}
	if err := json.Unmarshal([]byte(g.must("cloud-init status --wait --format json")), &st); err != nil || st.Status != "done" || len(st.Errors) != 0 || st.Datasource != "nocloud" {
		t.Errorf("%+v %v", st, err)
	}
	if got := g.must("cat /run/cloud-init/result.json"); !strings.Contains(got, `"errors": []`) {
		t.Errorf("result.json: %s", got)
	}
	id := g.must("cat /etc/machine-id")

	// The same instance: nothing per-instance runs again.
	g.kill()
	g.start().booted()
	if got := g.must("wc -l < /var/lib/runs; cat /etc/machine-id"); got != "1\n"+id {
		t.Errorf("second boot: %q", got)
	}

	// Another instance-id: everything again, with the new host keys.
	g.kill()
	ud, host := l.userData("web-2")
	g.machine.CloudInit.UserData, g.hostKey = ud, host
	g.machine.CloudInit.InstanceID = "another"
	g.start().booted()
	if got := g.must("hostname; ls /etc/ssh | grep -c host_ed"); got != "web-2\n2\n" {
		t.Errorf("new instance: %q", got)
	}
}

func TestAFailingRuncmdIsAnError(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	g := l.guest(1, "k3s-1")
	g.machine.CloudInit.UserData += "- echo what went wrong; false\n"
	g.start()
	eventually(t, "SSH", func() bool {
		c, err := g.dial()
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	out, code := g.run("cloud-init status --wait --long")
	if code != 1 || !strings.Contains(out, "status: error") {
		t.Errorf("%d %s", code, out)
	}
	if got := g.must("sudo tail -n 10 /var/log/cloud-init-output.log"); !strings.Contains(got, "what went wrong") {
		t.Errorf("log: %s", got)
	}
}

func TestAnUnknownPackageIsAnError(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	g := l.guest(1, "k3s-1")
	g.machine.CloudInit.UserData = strings.Replace(g.machine.CloudInit.UserData, "[qemu-guest-agent]", "[qemu-guest-agent, no-such-thing]", 1)
	g.start()
	eventually(t, "cloud-init's end", func() bool {
		c, err := g.dial()
		if err != nil {
			return false
		}
		c.Close()
		out, code := g.run("cloud-init status --wait --format json")
		return code == 1 && strings.Contains(out, "Unable to locate package no-such-thing")
	})
}

func TestSSHLetsInOnlyWhoIsAuthorized(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	g := l.guest(1, "k3s-1").start().booted()
	other := newLab(t)
	for name, cfg := range map[string]*ssh.ClientConfig{
		"another key":      {User: "ubuntu", Auth: []ssh.AuthMethod{ssh.PublicKeys(other.key)}, HostKeyCallback: ssh.FixedHostKey(g.hostKey)},
		"another user":     {User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(g.key)}, HostKeyCallback: ssh.FixedHostKey(g.hostKey)},
		"a password":       {User: "ubuntu", Auth: []ssh.AuthMethod{ssh.Password("x")}, HostKeyCallback: ssh.FixedHostKey(g.hostKey)},
		"another host key": {User: "ubuntu", Auth: []ssh.AuthMethod{ssh.PublicKeys(g.key)}, HostKeyCallback: ssh.FixedHostKey(other.key.PublicKey())},
	} {
		if c, err := ssh.Dial("tcp", g.addr+":2222", cfg); err == nil {
			c.Close()
			t.Errorf("%s was let in", name)
		}
	}
	c, err := g.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// Forwarding reaches the guest's own ports and nothing outside the lab.
	for _, addr := range []string{"127.0.0.1:1", "192.0.2.1:80", "example.com:80", "127.0.0.53:53"} {
		if conn, err := c.Dial("tcp", addr); err == nil {
			conn.Close()
			t.Errorf("forwarded to %s", addr)
		}
	}
	conn, err := c.Dial("tcp", "127.0.0.1:2222")
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "SSH-2.0-") {
		t.Errorf("%q %v", line, err)
	}
	conn.Close()
	// A signal ends a command.
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start("sleep 1000"); err != nil {
		t.Fatal(err)
	}
	if err := s.Signal(ssh.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := s.Wait(); err == nil || !strings.Contains(err.Error(), "143") {
		t.Errorf("killed: %v", err)
	}
}

func TestSudoNeedsItsRule(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	g := l.guest(1, "k3s-1")
	g.machine.CloudInit.UserData = strings.Replace(g.machine.CloudInit.UserData, "  sudo: ALL=(ALL) NOPASSWD:ALL\n", "", 1)
	g.start().booted()
	if out, code := g.run("sudo -n true"); code != 1 || !strings.Contains(out, "a password is required") {
		t.Errorf("%d %s", code, out)
	}
}

// call asks the guest agent of an in-process guest.
func (g *testGuest) call(t *testing.T, r *bufio.Reader, cmd string, args any) map[string]any {
	t.Helper()
	b, err := json.Marshal(map[string]any{"execute": cmd, "arguments": args})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.agent.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := g.agent.Write(append(b, '\n')); err != nil {
		t.Fatal(err)
	}
	line, err := r.ReadBytes('\n')
	if err != nil {
		t.Fatalf("%s: %v", cmd, err)
	}
	var out map[string]any
	if err := json.Unmarshal(line, &out); err != nil {
		t.Fatalf("%s: %s", cmd, line)
	}
	return out
}

func TestTheGuestAgentRunsCommandsAndReadsFiles(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	g := l.guest(1, "k3s-1").start().booted()
	r := bufio.NewReader(g.agent)
	out := g.call(t, r, "guest-exec", map[string]any{
		"path": "/bin/sh", "arg": []string{"-c", "cat; echo err >&2; exit 3"}, "input-data": base64.StdEncoding.EncodeToString([]byte("in")), "capture-output": true,
	})
	pid := out["return"].(map[string]any)["pid"]
	var st map[string]any
	eventually(t, "the command's end", func() bool {
		st = g.call(t, r, "guest-exec-status", map[string]any{"pid": pid})["return"].(map[string]any)
		return st["exited"] == true
	})
	if st["exitcode"] != 3.0 || st["out-data"] != base64.StdEncoding.EncodeToString([]byte("in")) || st["err-data"] != base64.StdEncoding.EncodeToString([]byte("err\n")) {
		t.Errorf("%v", st)
	}
	if out := g.call(t, r, "guest-exec-status", map[string]any{"pid": pid}); out["error"] == nil {
		t.Errorf("a result was handed out twice: %v", out)
	}
	if out := g.call(t, r, "guest-exec", map[string]any{"path": "/bin/none"}); !strings.Contains(fmt.Sprint(out["error"]), "Failed to execute child process") {
		t.Errorf("%v", out)
	}
	h := g.call(t, r, "guest-file-open", map[string]any{"path": "/etc/hostname"})["return"]
	got := g.call(t, r, "guest-file-read", map[string]any{"handle": h})["return"].(map[string]any)
	if got["buf-b64"] != base64.StdEncoding.EncodeToString([]byte("k3s-1\n")) {
		t.Errorf("%v", got)
	}
	g.call(t, r, "guest-file-close", map[string]any{"handle": h})
	if out := g.call(t, r, "guest-get-host-name", nil); fmt.Sprint(out["return"]) != "map[host-name:k3s-1]" {
		t.Errorf("%v", out)
	}
	if out := g.call(t, r, "guest-bogus", nil); !strings.Contains(fmt.Sprint(out), "CommandNotFound") {
		t.Errorf("%v", out)
	}
}

func TestDHCPLeasesAreKept(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a, b := l.guest(1, "a"), l.guest(2, "b")
	for _, g := range []*testGuest{a, b} {
		g.machine.CloudInit.NetworkConfig = fmt.Sprintf("version: 1\nconfig:\n- {type: physical, name: eth0, mac_address: '%s', subnets: [{type: dhcp4}]}\n", g.machine.NICs[0].MAC)
		g.start()
		eventually(t, "an address", func() bool { return g.os.Address() != "" })
		g.addr = g.os.Address()
		g.booted()
	}
	if a.addr == b.addr || !strings.HasPrefix(a.addr, l.prefix+".15") {
		t.Errorf("%s %s", a.addr, b.addr)
	}
	was := a.addr
	a.kill()
	a.start().booted()
	if a.os.Address() != was {
		t.Errorf("%s became %s", was, a.os.Address())
	}
}

// An address that is not in the bridge's network is configured, and nobody can
// reach it.
func TestAForeignAddressIsShownButNotServed(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	g := l.guest(1, "k3s-1")
	g.machine.CloudInit.NetworkConfig = networkConfig(g.machine.NICs[0].MAC, "10.9.9.9")
	g.start()
	eventually(t, "the interface", func() bool {
		return slices.ContainsFunc(g.os.Interfaces(), func(i system.NetIface) bool { return slices.Contains(i.Addresses, "10.9.9.9/24") })
	})
	if got := g.os.Address(); got != "" {
		t.Errorf("reachable at %s", got)
	}
}

func TestEveryWaitIsLogged(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.guest(1, "k3s-1").start().booted()
	b, err := os.ReadFile(filepath.Join(l.dir, "waits.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var what []string
	for line := range strings.Lines(string(b)) {
		var w system.Wait
		if err := json.Unmarshal([]byte(line), &w); err != nil {
			t.Fatal(err)
		}
		if w.Host != "pve1" || w.Guest != "k3s-1" || w.End.Before(w.Start) {
			t.Errorf("%+v", w)
		}
		what = append(what, w.What)
	}
	if !slices.Equal(what, []string{"boot", "cloud-init"}) {
		t.Errorf("%v", what)
	}
}

func TestServicesFollowTheirUnits(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	g := l.guest(1, "k3s-1").start().booted()
	unit := "[Unit]\\nDescription=Naps\\n[Service]\\nExecStart=/bin/sleep 1000\\nRestart=always\\nRestartSec=5s\\n[Install]\\nWantedBy=multi-user.target\\n"
	g.must("printf '" + unit + "' | sudo tee /etc/systemd/system/nap.service")
	if out, code := g.run("systemctl is-active nap; systemctl is-enabled nap; systemctl start nap 2>/dev/null"); code != 1 || out != "inactive\ndisabled\n" {
		t.Errorf("%d %s", code, out)
	}
	g.must("sudo systemctl enable --now nap")
	g.must("systemctl is-active --quiet nap")
	g.must("sudo systemctl kill --signal=KILL nap")
	eventually(t, "the restart", func() bool {
		return g.must("systemctl show -p ActiveState,NRestarts nap") == "ActiveState=active\nNRestarts=1\n"
	})
	if out := g.must("sudo journalctl -u nap -o cat --no-pager"); !strings.Contains(out, "Main process exited, code=exited, status=137") {
		t.Errorf("journal: %s", out)
	}
	// It is part of the boot until it is disabled.
	g.kill()
	g.start().booted()
	g.must("systemctl is-active nap")
	g.must("sudo systemctl disable --now nap")
	if out, code := g.run("systemctl is-active nap"); code != 3 || out != "inactive\n" {
		t.Errorf("%d %s", code, out)
	}
	if out, code := g.run("sudo systemctl start nothing"); code != 5 || !strings.Contains(out, "Unit nothing.service not found") {
		t.Errorf("%d %s", code, out)
	}
}
