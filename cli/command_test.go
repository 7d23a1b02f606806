package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
)

func wants(t *testing.T, got ran, code int, parts ...string) {
	t.Helper()
	wantsIn(t, got.out+got.err, got, code, parts)
}

// fails wants that a command failed, and these words in its error.
func fails(t *testing.T, got ran, parts ...string) {
	t.Helper()
	wantsIn(t, got.err, got, 1, parts)
}

// succeeds wants that it did not, and these words in what it shows.
func succeeds(t *testing.T, got ran, parts ...string) {
	t.Helper()
	wantsIn(t, got.out, got, 0, parts)
}

func wantsIn(t *testing.T, text string, got ran, code int, parts []string) {
	t.Helper()
	if got.code != code {
		t.Errorf("exit %d, want %d", got.code, code)
	}
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%q is not said", p)
		}
	}
	if t.Failed() {
		t.Logf("stdout:\n%sstderr:\n%s", got.out, got.err)
	}
}

func TestApplyJSONEndsWithExactlyTheContractsSummary(t *testing.T) {
	r := newRig(t)
	scenes["fresh"](r.fake)
	got := r.run("apply", "--yes", "-o", "json")
	wants(t, got, 0)
	lines := strings.Split(strings.TrimSuffix(got.out, "\n"), "\n")
	for _, line := range lines {
		var v map[string]any
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Errorf("not one document a line: %v: %s", err, line)
		}
	}
	const want = `{"summary":{"done":14,"failed":0,"skipped":0,"refused":0,"unchanged":0,"mutatingCalls":11,"seconds":100.2}}`
	if last := lines[len(lines)-1]; last != want {
		t.Errorf("last line %s\nwant %s", last, want)
	}
}

func TestSecondsInJSONAreToTheMillisecond(t *testing.T) {
	got, err := json.Marshal(seconds(durationpb.New(9399 * time.Millisecond)))
	if err != nil || string(got) != "9.399" {
		t.Errorf("%s, %v", got, err)
	}
}

func TestUnconfirmedApplyReachesNobody(t *testing.T) {
	r := newRig(t)
	scenes["partial"](r.fake)
	r.hold = func(context.Context, *controllerv1.ApplyResponse) { t.Error("apply was called") }
	wants(t, r.run("apply"), 1, "nothing was done", "--yes")
	wants(t, r.run("apply", "-o", "json"), 1, "nothing was done", "--yes")
}

func TestCtrlCAtTheQuestion(t *testing.T) {
	r := newRig(t)
	scenes["partial"](r.fake)
	r.hold = func(context.Context, *controllerv1.ApplyResponse) { t.Error("apply was called") }
	ctx, cancel := context.WithCancel(t.Context())
	never, w := io.Pipe() // nobody types
	defer w.Close()
	got := r.runWith(ctx, never, func(a *app) {
		a.inIsTerm = true
		a.errw.(*buffer).tell = func(all string) {
			if strings.HasSuffix(all, "[y/N] ") {
				cancel()
			}
		}
	}, "apply")
	wants(t, got, 1)
	if strings.Contains(got.out, "done") || !strings.Contains(got.err, "interrupted") {
		t.Errorf("stdout %q, stderr %q", got.out, got.err)
	}
}

func TestCtrlCInARunNamesWhatGoesOn(t *testing.T) {
	r := newRig(t)
	scenes["partial"](r.fake)
	ctx, cancel := context.WithCancel(t.Context())
	r.hold = func(call context.Context, part *controllerv1.ApplyResponse) {
		if part.GetEvent().GetKind() == homelabv1.EventKind_EVENT_KIND_STEP_DONE && part.GetEvent().GetStep() == "boot/pve4/k3s-4" {
			<-call.Done() // it would take for ever
		}
	}
	got := r.runWith(ctx, strings.NewReader(""), func(a *app) {
		a.out.(*buffer).tell = func(all string) {
			if strings.Contains(all, "cloud-init running") {
				cancel()
			}
		}
	}, "apply", "--yes")
	wants(t, got, 1, "error: interrupted: nothing new is begun; these finish on their hosts: k3s-4 (booting)", "the same command goes on from there")
}

func TestCtrlCWhileReadingStandardInput(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	never, w := io.Pipe()
	defer w.Close()
	cancel()
	wants(t, r.runWith(ctx, never, nil, "exec", "-i", "k3s-1", "--", "cat"), 255, "interrupted")
}

func TestControllerThatDiesInARun(t *testing.T) {
	r := newRig(t)
	scenes["partial"](r.fake)
	r.hold = func(_ context.Context, part *controllerv1.ApplyResponse) {
		if part.GetEvent().GetKind() == homelabv1.EventKind_EVENT_KIND_STEP_PROGRESS {
			panic("dies")
		}
	}
	wants(t, r.run("apply", "--yes"), 1, "internal error", "these finish on their hosts: k3s-4 (booting)", "the same command goes on from there")
}

func TestNoControllerAnswers(t *testing.T) {
	r := newRig(t)
	r.configure("127.0.0.1:1", "127.0.0.1:2")
	wants(t, r.run("hosts"), 1,
		"error: no controller answers\n  127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused\n  127.0.0.1:2: dial tcp 127.0.0.1:2: connect: connection refused\n",
		"systemctl status hl-controller", "DIR/hlctl.yaml")
	wants(t, r.run("exec", "k3s-1", "--", "true"), 255, "no controller answers")
	wants(t, r.run("version"), 1, "hlctl ", "no controller answers")
}

func TestAnotherControllerStandsIn(t *testing.T) {
	r := newRig(t)
	scenes["healthy"](r.fake)
	r.configure("127.0.0.1:1", r.address)
	wants(t, r.run("hosts"), 0, "pve1")
	r.configure(r.address, "127.0.0.1:1")
	wants(t, r.run("hosts"), 0, "pve1")
}

func TestExpiredCertificateIsOneClearError(t *testing.T) {
	r := newRig(t)
	r.configure(r.address, "127.0.0.1:1", "127.0.0.1:2")
	r.issue("admin", rpc.Identity{Role: rpc.RoleAdmin, Name: "laptop"}, -time.Minute)
	got := r.run("status")
	wants(t, got, 1, "the certificate DIR/admin.pem of admin@laptop expired on ", "hlctl trust renew", "hl-controller issue-admin")
	if n := strings.Count(got.err, "expired"); n != 1 {
		t.Errorf("it is said %d times:\n%s", n, got.err)
	}
}

func TestCertificateOfAnotherFleet(t *testing.T) {
	r := newRig(t)
	other, err := rpc.NewCA("other", time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r.write("ca.pem", string(other.Cert()))
	wants(t, r.run("status"), 1, "did not issue", "openssl x509")
}

func TestConfigurationIsStrict(t *testing.T) {
	good := func(address string) string {
		return fmt.Sprintf("contexts: {admin: {controllers: [%q], ca: ca.pem, cert: admin.pem, key: admin.key}}\n", address)
	}
	for name, c := range map[string]struct {
		text string
		args []string
		want string
	}{
		"empty":              {"", nil, "DIR/hlctl.yaml: it has no contexts"},
		"unknown key":        {"current: admin\nserver: x\n", nil, "DIR/hlctl.yaml:2: unknown key server"},
		"unknown inner key":  {"contexts:\n  a: {controller: x}\n", nil, "DIR/hlctl.yaml:2: unknown key controller"},
		"no contexts":        {"current: admin\n", nil, "it has no contexts; it looks like this"},
		"none is current":    {good("127.0.0.1:1"), nil, "no context is its current one; say which with --context NAME (it has: admin)"},
		"no such context":    {good("127.0.0.1:1"), []string{"--context", "x"}, `it has no context "x"; say which with --context NAME (it has: admin)`},
		"no controllers":     {"current: a\ncontexts: {a: {ca: a, cert: b, key: c}}\n", nil, "context a names no controllers"},
		"no key":             {"current: a\ncontexts: {a: {controllers: [\"127.0.0.1:1\"], ca: a, cert: b}}\n", nil, "context a needs ca, cert and key"},
		"a name":             {"current: admin\n" + good("controller:8401"), nil, `controller "controller:8401" is not IP:PORT`},
		"certificate absent": {"current: a\ncontexts: {a: {controllers: [\"127.0.0.1:1\"], ca: ca.pem, cert: none.pem, key: admin.key}}\n", nil, "DIR/none.pem: no such file or directory\n  correct ca, cert and key in DIR/hlctl.yaml"},
		"two documents":      {"current: admin\n" + good("127.0.0.1:1") + "---\ncurrent: b\n", nil, "a second document begins in it"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.write("hlctl.yaml", c.text)
			wants(t, r.run(append(c.args, "hosts")...), 1, "error: ", c.want)
		})
	}
	t.Run("absent", func(t *testing.T) {
		r := newRig(t)
		if err := os.Remove(r.path("hlctl.yaml")); err != nil {
			t.Fatal(err)
		}
		wants(t, r.run("hosts"), 1, "there is no client configuration DIR/hlctl.yaml", "hlctl init", "--config FILE", "contexts:")
	})
}

func TestValidate(t *testing.T) {
	r := newRig(t)
	good, err := os.ReadFile(r.path("homelab.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	spec := func(old, replacement string) {
		r.write("homelab.yaml", strings.Replace(string(good), old, replacement, 1))
	}
	wants(t, r.run("validate"), 0, "homelab.yaml is well: 2 hosts, 3 guests.   hlctl plan -f homelab.yaml")

	spec("guests:", "sshKey: x\nguests:")
	spec2 := strings.Replace(string(good), "memory: 2GiB", "memory: 4GBB", 1)
	r.write("homelab.yaml", strings.Replace(spec2, `sshKeys: [`, `sshKeys: [~/none/id.pub, `, 1))
	t.Setenv("HOME", r.dir)
	got := r.run("validate")
	wants(t, got, 1, `homelab.yaml:22:11: defaults.memory: "4GBB" is not a size`, "1 fault.", "warning: homelab.yaml:19:13:", "~/none/id.pub does not exist")
	if strings.Contains(got.err, "error:") {
		t.Errorf("faults stand for themselves:\n%s", got.err)
	}
	wants(t, r.run("plan"), 1, `"4GBB" is not a size`, "~/none/id.pub does not exist", "2 faults.")

	got = r.run("validate", "-o", "json")
	wants(t, got, 1)
	var doc struct {
		Faults, Warnings []struct {
			Line    int
			Message string
		}
	}
	if err := json.Unmarshal([]byte(got.out), &doc); err != nil || len(doc.Faults) != 1 || doc.Faults[0].Line != 22 || len(doc.Warnings) != 1 {
		t.Errorf("%v: %s", err, got.out)
	}

	// Only the key file is missing: well with a warning, a fault for those who
	// would send it. A key file beside the Spec is found from any folder.
	spec(`sshKeys: [`, `sshKeys: [./id.pub, `)
	wants(t, r.run("validate"), 0, "is well", "warning: ", "./id.pub does not exist")
	wants(t, r.run("apply", "--yes"), 1, "./id.pub does not exist", "1 fault.")
	_, key, _ := strings.Cut(string(good), `sshKeys: ["`)
	key, _, _ = strings.Cut(key, `"]`)
	r.write("id.pub", key+"\n")
	wants(t, r.run("validate", "-f", r.path("homelab.yaml")), 0, "is well")
}

func TestPlanExitCodes(t *testing.T) {
	skip, healthy := silentNote("k3s-5", "pve5"), unchanged("k3s-1", "pve1")
	someStep := step("start/pve1/k3s-1", "stopped")
	for name, c := range map[string]struct {
		plan   *homelabv1.Plan
		guests []*controllerv1.GuestStatus
		want   int
	}{
		"nothing to do":             {&homelabv1.Plan{Notes: []*homelabv1.Note{healthy}}, nil, 0},
		"steps":                     {&homelabv1.Plan{Steps: []*homelabv1.Step{someStep}}, nil, 2},
		"steps and skipped":         {&homelabv1.Plan{Steps: []*homelabv1.Step{someStep}, Notes: []*homelabv1.Note{skip}}, nil, 2},
		"skipped, the rest is well": {&homelabv1.Plan{Notes: []*homelabv1.Note{skip, healthy}}, nil, 3},
		"skipped, nothing is well":  {&homelabv1.Plan{Notes: []*homelabv1.Note{skip}}, nil, 1},
		"waiting, the rest is well": {&homelabv1.Plan{Notes: []*homelabv1.Note{{Kind: homelabv1.NoteKind_NOTE_KIND_WAITING, Guest: "k3s-5"}, healthy}}, nil, 3},
		"skipped, a guest is well":  {&homelabv1.Plan{Notes: []*homelabv1.Note{skip}}, []*controllerv1.GuestStatus{{Health: controllerv1.Health_HEALTH_HEALTHY}}, 3},
	} {
		if got := exitCode(planExit(c.plan, c.guests)); got != c.want {
			t.Errorf("%s: exit %d, want %d", name, got, c.want)
		}
	}
}

func TestApplyExitCodes(t *testing.T) {
	for name, c := range map[string]struct {
		sum  *homelabv1.Summary
		want int
	}{
		"nothing to do":              {&homelabv1.Summary{Unchanged: 5, SomethingHealthy: true}, 0},
		"done":                       {&homelabv1.Summary{Done: 5}, 0},
		"failed, something done":     {&homelabv1.Summary{Done: 1, Failed: 1}, 3},
		"skipped, something healthy": {&homelabv1.Summary{Skipped: 1, SomethingHealthy: true}, 3},
		"nothing done nor healthy":   {&homelabv1.Summary{Failed: 1, Skipped: 3}, 1},
		"refused alone":              {&homelabv1.Summary{Refused: 1}, 1},
		"API silent":                 {&homelabv1.Summary{Unchanged: 5, ApiSilent: true}, 3},
	} {
		if got := exitCode(applyExit(c.sum)); got != c.want {
			t.Errorf("%s: exit %d, want %d", name, got, c.want)
		}
	}
}

func TestEveryCommandTeaches(t *testing.T) {
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" || c.Long == "" || c.Example == "" {
			t.Errorf("%s: short %t, long %t, example %t", c.CommandPath(), c.Short != "", c.Long != "", c.Example != "")
		}
		for _, line := range strings.Split(c.Long+"\n"+c.Example+"\n"+c.Short, "\n") {
			if len(line) > 88 {
				t.Errorf("%s: a line of %d: %s", c.CommandPath(), len(line), line)
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newApp(os.Stdin, os.Stdout, os.Stderr).command())
}

// TestCommandsOfTheContract holds what scripts rely on: a command that is missing
// here was removed or renamed.
func TestCommandsOfTheContract(t *testing.T) {
	var got []string
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Runnable() {
			got = append(got, strings.TrimPrefix(c.CommandPath(), "hlctl "))
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newApp(os.Stdin, os.Stdout, os.Stderr).command())
	slices.Sort(got)
	want := []string{
		"apply", "audit", "exec",
		"guests", "guests adopt", "guests delete", "guests ip", "guests recreate", "guests restart", "guests show", "guests start", "guests stop",
		"hosts", "hosts add", "hosts remove", "hosts upgrade",
		"images", "images fetch", "images prune", "init",
		"k3s join", "k3s kubeconfig", "k3s members", "k3s rejoin", "k3s remove", "k3s snapshot", "k3s snapshot ls", "k3s status",
		"orphans", "pause", "plan", "resume", "runs", "runs follow", "runs show", "status",
		"token create", "token ls", "token revoke", "trust", "trust renew", "trust revoke", "trust rotate-ca", "trust rotate-gossip", "validate", "version", "why",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestCompletion(t *testing.T) {
	r := newRig(t)
	for _, shell := range []string{"bash", "zsh", "fish"} {
		wants(t, r.run("completion", shell), 0, "hlctl")
	}
	wants(t, r.run("__complete", "hosts", "-o", ""), 0, "json\n", "yaml\n")
}

func TestTablesFitEightyColumns(t *testing.T) {
	r := newRig(t)
	scenes["fleet"](r.fake)
	// Names as long as those of a typical fleet.
	c := r.status.GetCluster()
	c.Members, c.Nodes = c.GetMembers()[:3], c.GetNodes()[:3]
	for i := range 3 {
		name := strings.Replace(c.GetNodes()[i].GetName(), "k3s", "k3s-vm-pumped-pigl", 1)
		c.Nodes[i].Name, c.Members[i].Node, c.Members[i].Guest = name, name, name
	}
	for _, g := range r.status.GetGuests() {
		if g.GetName() != "k3s-4" && g.GetName() != "k3s-cold" {
			g.Name, g.Host = strings.Replace(g.GetName(), "k3s", "k3s-vm-pumped-pigl", 1), strings.Replace(g.GetHost(), "pve", "pumped-pigl", 1)
			g.Addresses, g.NodeName = []string{"192.168.40.212"}, g.GetName()
		}
	}
	for _, command := range []string{"status", "guests", "hosts", "k3s status"} {
		for line := range strings.Lines(r.run(strings.Fields(command)...).out) {
			if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > 80 {
				t.Errorf("%s: %d columns: %s", command, n, line)
			}
		}
	}
}

func TestAMistypedCommandIsAMisuseInEveryGroup(t *testing.T) {
	r, groups := newRig(t), 0
	var try func(cmd *cobra.Command, args ...string)
	try = func(cmd *cobra.Command, args ...string) {
		for _, sub := range cmd.Commands() {
			if !sub.HasSubCommands() {
				continue
			}
			groups++
			path := append(slices.Clone(args), sub.Name())
			wants(t, r.run(append(slices.Clone(path), "creat")...), 1, `unknown command "creat"`, "--help")
			try(sub, path...)
		}
	}
	root := newApp(os.Stdin, os.Stdout, os.Stderr).command()
	root.InitDefaultCompletionCmd()
	try(root)
	if groups < 9 {
		t.Errorf("%d groups of commands were found", groups)
	}
	for _, args := range [][]string{{"token"}, {"k3s"}, {"completion"}} {
		succeeds(t, r.run(args...), "Available Commands:")
	}
}
