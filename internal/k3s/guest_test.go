package k3s

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

// guest runs scripts as a guest would, with commands of its own: what each
// prints and its exit code, by its whole command line or by its name. What it
// does not know is exit 127.
type guest struct {
	commands map[string]reply
	ran      []string
	env      []string // INSTALL_K3S_* and K3S_* that the install script saw
	stdin    string
	files    map[string]string
}

type reply struct {
	out  string
	exit int
}

func (g *guest) run(t *testing.T, script string) []byte {
	t.Helper()
	if _, err := syntax.NewParser(syntax.Variant(syntax.LangPOSIX)).Parse(strings.NewReader(script), "script"); err != nil {
		t.Fatal(err)
	}
	// As bash, because the interpreter knows export only there.
	file, err := syntax.NewParser().Parse(strings.NewReader(script), "script")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	r, err := interp.New(
		interp.Env(expand.ListEnviron("PATH=/usr/bin", "HOME=/root", "K3S_TOKEN=hunter2", "K3S_URL=https://elsewhere:6443", "INSTALL_K3S_CHANNEL=testing")),
		interp.StdIO(strings.NewReader(g.stdin), &out, &out),
		interp.ExecHandlers(func(interp.ExecHandlerFunc) interp.ExecHandlerFunc { return g.exec }),
		interp.OpenHandler(func(_ context.Context, path string, _ int, _ os.FileMode) (io.ReadWriteCloser, error) {
			return &written{g: g, path: filepath.Clean(path)}, nil
		}),
		interp.CallHandler(func(_ context.Context, args []string) ([]string, error) {
			if args[0] == "umask" { // the interpreter has none
				g.ran = append(g.ran, strings.Join(args, " "))
				return []string{"true"}, nil
			}
			return args, nil
		}),
	)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Run(t.Context(), file); err != nil {
		t.Fatalf("the script ends with %v\n%s", err, out.String())
	}
	return out.Bytes()
}

type written struct {
	bytes.Buffer
	g    *guest
	path string
}

func (w *written) Close() error {
	if w.g.files == nil {
		w.g.files = map[string]string{}
	}
	w.g.files[w.path] = w.String()
	return nil
}

func (g *guest) exec(ctx context.Context, args []string) error {
	hc := interp.HandlerCtx(ctx)
	if args[0] == "timeout" {
		if args[1] != "-k" || len(args) < 5 {
			return interp.ExitStatus(125)
		}
		args = args[4:]
	}
	line := strings.Join(args, " ")
	g.ran = append(g.ran, line)
	if args[0] == "cat" && len(args) == 1 {
		_, err := io.Copy(hc.Stdout, hc.Stdin)
		return err
	}
	if args[0] == "sh" {
		hc.Env.Each(func(name string, _ expand.Variable) bool {
			v := hc.Env.Get(name) // an unset variable is listed as it was
			entry := name + "=" + v.String()
			if v.IsSet() && v.Exported && !slices.Contains(g.env, entry) && (strings.HasPrefix(name, "K3S_") || strings.HasPrefix(name, "INSTALL_")) {
				g.env = append(g.env, entry)
			}
			return true
		})
		slices.Sort(g.env)
	}
	r, ok := g.commands[line]
	if !ok {
		r, ok = g.commands[args[0]]
	}
	if !ok {
		r = reply{fmt.Sprintf("timeout: failed to run command '%s': No such file or directory\n", args[0]), 127}
	}
	_, _ = io.WriteString(hc.Stdout, r.out)
	if r.exit != 0 {
		return interp.ExitStatus(r.exit)
	}
	return nil
}

func data(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestAFileIsWrittenInOneStepAndNeverReadableInBetween(t *testing.T) {
	g := &guest{stdin: "K10::secret\n", commands: map[string]reply{"mkdir": {}, "chmod": {}, "mv": {}}}
	g.run(t, WriteFileScript(TokenPath, 0o600))
	want := []string{"mkdir -p /etc/rancher/k3s", "umask 077", "cat", "chmod 0600 /etc/rancher/k3s/token.hl-new", "mv -f /etc/rancher/k3s/token.hl-new /etc/rancher/k3s/token"}
	if !slices.Equal(g.ran, want) {
		t.Errorf("%q", g.ran)
	}
	if g.files["/etc/rancher/k3s/token.hl-new"] != "K10::secret\n" {
		t.Errorf("%q", g.files)
	}
	g = &guest{commands: map[string]reply{"cat": {out: "x"}}}
	if out := g.run(t, ReadFileScript("/a b/it's")); string(out) != "x" || g.ran[0] != "cat /a b/it's" {
		t.Errorf("%q %q", out, g.ran)
	}
}

func TestTheInstallScriptIsRunWithNothingButTheRole(t *testing.T) {
	g := &guest{commands: map[string]reply{
		"sh /var/lib/hl/k3s-install.sh":             {"[INFO]  Using v1.35.0+k3s1 as release\n", 0},
		"systemctl is-active k3s":                   {"active\n", 0},
		"journalctl -u k3s -n 40 --no-pager -o cat": {"Node ready\n", 0},
	}}
	got := ParseInstall(g.run(t, InstallScript(Install{Role: Server, Version: version(t, "v1.35.0+k3s1"), Timeout: 9 * time.Minute})))
	want := Installed{Active: true, Unit: "active", Output: "[INFO]  Using v1.35.0+k3s1 as release", Journal: "Node ready"}
	if got != want {
		t.Errorf("%+v", got)
	}
	if want := []string{"INSTALL_K3S_EXEC=server", "INSTALL_K3S_FORCE_RESTART=true", "INSTALL_K3S_VERSION=v1.35.0+k3s1"}; !slices.Equal(g.env, want) {
		t.Errorf("%q", g.env)
	}
	g = &guest{commands: map[string]reply{
		"sh":         {"[INFO]  systemd: Starting k3s-agent", 124},
		"systemctl":  {"activating\n", 3},
		"journalctl": {"Waiting to retrieve agent configuration; server is not ready", 0},
	}}
	got = ParseInstall(g.run(t, InstallScript(Install{Role: Agent, Version: version(t, "v1.35.0+k3s1"), Airgap: true})))
	want = Installed{Exit: 124, TimedOut: true, Unit: "activating", Output: "[INFO]  systemd: Starting k3s-agent", Journal: "Waiting to retrieve agent configuration; server is not ready"}
	if got != want {
		t.Errorf("%+v", got)
	}
	if !slices.Contains(g.env, "INSTALL_K3S_SKIP_DOWNLOAD=true") || !slices.Contains(g.ran, "systemctl is-active k3s-agent") {
		t.Errorf("%q %q", g.env, g.ran)
	}
	for text, want := range map[string]Installed{
		"":                                {Exit: -1, Reason: "install: was not run"},
		"@@hl begin install\n[INFO]  Fin": {Exit: -1, Output: "[INFO]  Fin", Reason: "install: was cut off"},
		"@@hl begin install\n\n@@hl end install 1\n": {Exit: 1, Reason: "unit: was not looked at"},
	} {
		if got := ParseInstall([]byte(text)); got != want {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

func TestAUnitIsSeenToStop(t *testing.T) {
	inactive, journal := reply{"inactive\n", 3}, reply{"last words\n", 0}
	g := &guest{commands: map[string]reply{"systemctl": {}, "systemctl is-active k3s": inactive, "journalctl": journal}}
	if got := ParseStopped(g.run(t, StopScript(Server)), false); got != (Stopped{Stopped: true, Unit: "inactive", Journal: "last words"}) {
		t.Errorf("%+v", got)
	}
	if slices.Contains(g.ran, "systemctl kill --signal=KILL k3s") {
		t.Errorf("%q", g.ran)
	}
	g = &guest{commands: map[string]reply{"systemctl": {}, "systemctl stop k3s": {"", 124}, "systemctl is-active k3s": {"deactivating\n", 3}, "journalctl": journal}}
	if got := ParseStopped(g.run(t, StopScript(Server)), false); got.Stopped || got.Reason != "the unit is still deactivating" {
		t.Errorf("%+v", got)
	}
	if want := []string{"systemctl stop k3s", "systemctl kill --signal=KILL k3s", "systemctl stop k3s", "systemctl disable k3s"}; !slices.Equal(g.ran[:4], want) {
		t.Errorf("%q", g.ran)
	}
	if got := ParseStopped(nil, false); got.Stopped || got.Reason != "unit: was not looked at" {
		t.Errorf("%+v", got)
	}
}

const gone = "ls: cannot access '/usr/local/bin/k3s': No such file or directory\n" +
	"ls: cannot access '/var/lib/rancher/k3s/server/db/etcd/member': No such file or directory\n" +
	"ls: cannot access '/var/lib/rancher/k3s/server/db/state.db': No such file or directory\n" +
	"ls: cannot access '/var/lib/rancher/k3s/agent/client-ca.crt': No such file or directory\n" +
	"ls: cannot access '/etc/rancher/node/password': No such file or directory\n" +
	"ls: cannot access '/usr/local/bin/k3s-uninstall.sh': No such file or directory\n" +
	"ls: cannot access '/usr/local/bin/k3s-agent-uninstall.sh': No such file or directory\n"

func TestAGuestIsSeenToBeClean(t *testing.T) {
	base := map[string]reply{"systemctl": {}, "systemctl is-active k3s-agent": {"inactive\n", 3}, "journalctl": {}}
	with := func(more map[string]reply) *guest {
		g := &guest{commands: map[string]reply{}}
		for _, m := range []map[string]reply{base, more} {
			for k, v := range m {
				g.commands[k] = v
			}
		}
		return g
	}
	uninstall := "/usr/local/bin/k3s-agent-uninstall.sh"
	for name, c := range map[string]struct {
		guest   *guest
		cleaned bool
		reason  string
	}{
		"uninstalled":     {with(map[string]reply{uninstall: {"+ rm -rf\n", 0}, "ls": {gone, 2}}), true, ""},
		"never installed": {with(map[string]reply{"ls": {gone, 2}}), true, ""},
		"fails":           {with(map[string]reply{uninstall: {"umount: busy\n", 1}, "ls": {gone, 2}}), false, "uninstall: exit 1: umount: busy"},
		"leaves data":     {with(map[string]reply{uninstall: {}, "ls": {strings.Replace(gone, "ls: cannot access '/var/lib/rancher/k3s/server/db/state.db': No such file or directory", SQLite, 1), 2}}), false, SQLite + " is still there"},
		"cannot look":     {with(map[string]reply{uninstall: {}}), false, "files: ls says nothing of " + EtcdMember},
		"still running":   {with(map[string]reply{"systemctl is-active k3s-agent": {"active\n", 0}}), false, "the unit is still active"},
	} {
		got := ParseStopped(c.guest.run(t, CleanScript(Agent)), true)
		if got.Cleaned != c.cleaned || got.Reason != c.reason {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestANodeIsDeletedWithinADeadline(t *testing.T) {
	g := &guest{commands: map[string]reply{"k3s": {"node \"a\" deleted\n", 0}}}
	g.run(t, DeleteNodeScript("a'; rm -rf /", 30*time.Second))
	if want := []string{"k3s kubectl delete node a'; rm -rf / --ignore-not-found --timeout=30s"}; !slices.Equal(g.ran, want) {
		t.Errorf("%q", g.ran)
	}
}

func TestEtcdFiles(t *testing.T) {
	pem := func(s string) reply { return reply{"-----BEGIN X-----\n" + s + "\n-----END X-----\n", 0} }
	g := &guest{commands: map[string]reply{"cat " + EtcdName: {"k3s-1-0a1b2c3d", 0}, "cat " + EtcdCA: pem("ca"), "cat " + EtcdCert: pem("cert"), "cat " + EtcdKey: pem("hunter2")}}
	f, err := ParseEtcdFiles(g.run(t, EtcdFilesScript))
	if err != nil || f.Member != "k3s-1-0a1b2c3d" || string(f.CA) != pem("ca").out || string(f.Cert) != pem("cert").out || f.Key.Reveal() != pem("hunter2").out {
		t.Errorf("%+v %v", f, err)
	}
	missing := reply{"cat: No such file or directory\n", 1}
	g = &guest{commands: map[string]reply{"cat": missing, "cat " + EtcdCA: pem("ca"), "cat " + etcdOtherCert: pem("cert2"), "cat " + etcdOtherKey: pem("key2")}}
	if f, err = ParseEtcdFiles(g.run(t, EtcdFilesScript)); err != nil || f.Member != "" || !strings.Contains(f.Key.Reveal(), "key2") || !strings.Contains(string(f.Cert), "cert2") {
		t.Errorf("%+v %v", f, err)
	}
	for _, which := range []string{EtcdCA, EtcdCert, EtcdKey} {
		g = &guest{commands: map[string]reply{"cat " + EtcdCA: pem("ca"), "cat " + EtcdCert: pem("cert"), "cat " + EtcdKey: pem("key"), "cat": missing}}
		g.commands["cat "+which] = reply{"hunter2", 0}
		if _, err := ParseEtcdFiles(g.run(t, EtcdFilesScript)); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", which, err)
		}
	}
}
