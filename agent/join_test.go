package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/homeiac/homelab/agent/guest/guesttest"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/k3s"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/sshexec/sshtest"
)

const (
	joinStep = homelabv1.Action_ACTION_JOIN
	initStep = homelabv1.Action_ACTION_INIT
	release  = "v1.35.0+k3s1"
	caText   = "-----BEGIN CERTIFICATE-----\nCA\n-----END CERTIFICATE-----\n"
)

// k3sGuest is a guest in which k3s can be installed, as its files and units tell.
type k3sGuest struct {
	inside *inside
	srv    *sshtest.Server
	pki    pki // of its etcd, nil when there is none

	mu       sync.Mutex
	files    map[string]string
	unit     string // of k3s: "" no such unit
	version  string
	data     bool   // an etcd member lies there
	node     string // the Node's Ready condition, "" when it is not registered
	nodeVers string
	scripts  []string // the changing ones, in order
	// install is what the install script does; it gives what InstallScript's
	// install section prints, and its exit code.
	install func(*k3sGuest) (output string, exit string)
}

var renamed = regexp.MustCompile(`mv -f '.*' '(.*)'`)

func (g *k3sGuest) answer(c sshtest.Command) int {
	script, ok := guesttest.Script(c)
	if !ok {
		return g.inside.answer(c)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case script == k3s.ProbeScript:
		g.probe(c.Stdout)
	case script == k3s.EtcdFilesScript && g.unit == "active" && g.pki != nil:
		g.pki.files(c.Stdout)
	case script == k3s.EtcdFilesScript:
		_, _ = io.WriteString(c.Stdout, "@@hl begin ca\ncat: no such file\n@@hl end ca 1\n")
	case renamed.MatchString(script):
		data, _ := io.ReadAll(c.Stdin)
		file := renamed.FindStringSubmatch(script)[1]
		g.files[file] = string(data)
		g.scripts = append(g.scripts, "write "+file)
	case script == "cat "+ownPath+" 2>/dev/null || :":
		_, _ = io.WriteString(c.Stdout, g.files[ownPath])
	case script == "test -s "+k3s.TokenPath:
		if g.files[k3s.TokenPath] == "" {
			return 1
		}
	case script == k3s.ReadFileScript(k3s.CACerts), script == k3s.ReadFileScript(agentCA):
		_, _ = io.WriteString(c.Stdout, caText)
	case strings.Contains(script, "section uninstall"):
		g.scripts = append(g.scripts, "clean")
		g.unit, g.version, g.data = "", "", false
		fmt.Fprint(c.Stdout, "@@hl begin uninstall\n\n@@hl end uninstall 0\n@@hl begin unit\nunknown\n@@hl end unit 4\n@@hl begin files\n")
		for _, f := range []string{k3s.EtcdMember, k3s.SQLite, k3s.AgentData, k3s.NodePass} {
			fmt.Fprintf(c.Stdout, "ls: cannot access '%s': No such file or directory\n", f)
		}
		fmt.Fprint(c.Stdout, "@@hl end files 2\n")
	case strings.Contains(script, "section stop"):
		g.scripts = append(g.scripts, "stop")
		g.unit = "inactive"
		fmt.Fprint(c.Stdout, "@@hl begin unit\ninactive\n@@hl end unit 3\n")
	case strings.Contains(script, "section install"):
		g.scripts = append(g.scripts, "install")
		if !strings.Contains(script, "INSTALL_K3S_VERSION='"+release+"'") {
			return 99
		}
		output, exit := g.install(g)
		var s guesttest.Sections
		s.Add("install", output, exit)
		s.Add("unit", g.unit, "0")
		_, _ = c.Stdout.Write(s.Bytes())
	case strings.Contains(script, "kubectl get nodes"):
		if g.unit != "active" {
			_, _ = io.WriteString(c.Stderr, "The connection to the server 127.0.0.1:6443 was refused\n")
			return 1
		}
		_, _ = io.WriteString(c.Stdout, g.nodes())
	default:
		return g.inside.answer(c)
	}
	return 0
}

func (g *k3sGuest) nodes() string {
	if g.node == "" {
		return `{"kind":"List","items":[]}`
	}
	return fmt.Sprintf(`{"kind":"List","items":[{"kind":"Node","metadata":{"name":"k3s-1"},"status":{"conditions":[{"type":"Ready","status":%q,"reason":"KubeletNotReady"}],"nodeInfo":{"kubeletVersion":%q}}}]}`, g.node, g.nodeVers)
}

func (g *k3sGuest) probe(w io.Writer) {
	var b strings.Builder
	g.inside.probe(&b)
	text := b.String()
	if g.version != "" {
		text = strings.Replace(text, "sh: k3s: not found\n@@hl end version 127", "k3s version "+g.version+" (abc)\n@@hl end version 0", 1)
		text = strings.Replace(text, "ls: cannot access '"+k3s.BinaryPath+"': No such file or directory", k3s.BinaryPath, 1)
	}
	if g.data {
		text = strings.Replace(text, "ls: cannot access '"+k3s.EtcdMember+"': No such file or directory", k3s.EtcdMember, 1)
	}
	if g.unit != "" {
		text = strings.Replace(text, "@@hl begin unit-server\ninactive", "@@hl begin unit-server\n"+g.unit, 1)
	}
	_, _ = io.WriteString(w, text)
}

// comesUp is an install that succeeds.
func comesUp(g *k3sGuest) (string, string) {
	g.unit, g.version, g.data, g.node, g.nodeVers = "active", release, true, "True", release
	return "[INFO]  systemd: Starting k3s", "0"
}

// newK3sGuest is a running guest k3s-1 whose etcd, once k3s is active, is real.
func newK3sGuest(t *testing.T, w *world) *k3sGuest {
	t.Helper()
	g := newBareGuest(t, w)
	g.pki = newPKI(t)
	g.srv.Lock()
	defer g.srv.Unlock()
	g.srv.Forward = map[string]string{"127.0.0.1": etcdServer(t, g.pki)}
	return g
}

// newBareGuest is one in which no etcd will run.
func newBareGuest(t *testing.T, w *world) *k3sGuest {
	t.Helper()
	w.hyp.vms[201] = running(w)
	g := &k3sGuest{inside: goodInside(), files: map[string]string{}, install: comesUp}
	g.srv = w.guestOS(g.answer)
	w.put("../files/install.sh", "#!/bin/sh\n")
	w.put("../files/k3s", "binary")
	return g
}

func (w *world) joinRequest(action homelabv1.Action) *agentv1.RunRequest {
	req := w.request(action)
	req.Want.JoinTimeout = durationpb.New(40e9)
	req.K3S = &homelabv1.K3SWant{
		Role: homelabv1.Role_ROLE_SERVER, Version: release, TlsSans: []string{"127.0.0.1", "k3s.homelab"},
		ConfigYaml: "disable: [servicelb]\n", Labels: []string{"gpu=nvidia"},
		Script: filepath.Join(w.cfg.FileRoots[0], "install.sh"), Binary: filepath.Join(w.cfg.FileRoots[0], "k3s"),
	}
	if action == initStep {
		req.K3S.ClusterInit = true
		return req
	}
	req.K3S.ServerUrl = "https://127.0.0.9:6443"
	req.Token = []byte("K10" + k3s.CAHash([]byte(caText)) + "::server:secret")
	return req
}

func TestInitWritesEverythingBeforeTheScriptAndIsDoneOnce(t *testing.T) {
	w := newWorld(t)
	g := newK3sGuest(t, w)
	s, err := w.do(w.joinRequest(initStep))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"write " + ownPath, "write " + k3s.BinaryPath, "write " + k3s.ConfigPath, "write " + k3s.TokenPath, "write " + k3s.ScriptPath, "install", "write " + ownPath,
	}
	if !slices.Equal(g.scripts, want) {
		t.Errorf("scripts %v", g.scripts)
	}
	if got := s.result.GetLearned().GetCaHash(); got != k3s.CAHash([]byte(caText)) {
		t.Errorf("CA hash %q", got)
	}
	for _, line := range []string{"cluster-init: true", "node-name: k3s-1", "node-ip: 127.0.0.1", "- servicelb", "- k3s.homelab", "- gpu=nvidia", "token-file: " + k3s.TokenPath} {
		if !strings.Contains(g.files[k3s.ConfigPath], line) {
			t.Errorf("%q is not in config.yaml:\n%s", line, g.files[k3s.ConfigPath])
		}
	}
	token := strings.TrimSpace(g.files[k3s.TokenPath])
	if len(token) < 16 || strings.Contains(token, "::") {
		t.Errorf("the first server's token is a short one of our making")
	}
	for _, e := range s.events {
		if strings.Contains(e.String(), token) {
			t.Error("the token is in an event")
		}
	}
	g.scripts = nil
	if s, err = w.do(w.joinRequest(initStep)); err != nil || s.result.GetChanged() || len(g.scripts) != 0 || len(s.calls()) != 0 {
		t.Errorf("again: %v %v %v", s.result, g.scripts, err)
	}
	// A restart of an unfinished init keeps the token: k3s's data hangs on it.
	g.unit = "activating"
	if _, err = w.do(w.joinRequest(initStep)); err != nil || strings.TrimSpace(g.files[k3s.TokenPath]) != token {
		t.Errorf("token replaced: %v", err)
	}
}

func TestJoinPutsTheTokenIntoAFileOnly(t *testing.T) {
	w := newWorld(t)
	g := newK3sGuest(t, w)
	s, err := w.do(w.joinRequest(joinStep))
	if err != nil {
		t.Fatal(err)
	}
	if got := g.files[k3s.TokenPath]; got != string(w.joinRequest(joinStep).GetToken())+"\n" {
		t.Errorf("token file %q", got)
	}
	if !strings.Contains(g.files[k3s.ConfigPath], "server: https://127.0.0.9:6443") {
		t.Error(g.files[k3s.ConfigPath])
	}
	for _, e := range s.events {
		if strings.Contains(e.String(), "secret") {
			t.Errorf("the token is in an event: %v", e)
		}
	}
	err = filepath.WalkDir(filepath.Dir(w.root), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if data, err := os.ReadFile(path); err == nil && strings.Contains(string(data), "::server:secret") {
			t.Errorf("the token is in %s", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(s.result.GetText(), "a voter") || !slices.Equal(s.result.GetLearned().GetAddresses(), []string{"127.0.0.1"}) {
		t.Errorf("result %v", s.result)
	}
}

func TestAJoinIsRefusedBeforeAnyChange(t *testing.T) {
	for _, tc := range []struct {
		name, want string
		kind       rpc.Kind
		turn       func(*k3sGuest, *agentv1.RunRequest)
	}{
		{"cloud-init still runs", "it has not booted: cloud-init is running", rpc.ErrRefused, func(g *k3sGuest, _ *agentv1.RunRequest) {
			g.inside.cloudInit = `{"status":"running"}`
		}},
		{"another machine", "its hostname is ubuntu and should be k3s-1", rpc.ErrDenied, func(g *k3sGuest, _ *agentv1.RunRequest) { g.inside.hostname = "ubuntu" }},
		{"address outside of the subnet", "has not booted: on network lan it has 127.0.0.1", rpc.ErrRefused, func(_ *k3sGuest, r *agentv1.RunRequest) {
			n := r.Want.Hardware.Nics[0]
			n.Address, n.Subnet = "", "192.168.4.0/24"
			r.Want.KnownAddresses = []string{"127.0.0.1"}
		}},
		{"short token", "a short token names no CA", rpc.ErrRefused, func(_ *k3sGuest, r *agentv1.RunRequest) { r.Token = []byte("secret") }},
		{"another cluster's token", "the token is of another cluster", rpc.ErrRefused, func(_ *k3sGuest, r *agentv1.RunRequest) { r.K3S.CaHash = strings.Repeat("0", 64) }},
		{"unpinned", "is not a k3s version", rpc.ErrInvalid, func(_ *k3sGuest, r *agentv1.RunRequest) { r.K3S.Version = "stable" }},
		{"an older k3s", "it holds an older k3s (v1.20.0+k3s1)", rpc.ErrRefused, func(g *k3sGuest, _ *agentv1.RunRequest) { g.version, g.data, g.unit = "v1.20.0+k3s1", true, "failed" }},
		{"a member of another version", "it runs k3s v1.34.0+k3s1 and should run v1.35.0+k3s1", rpc.ErrRefused, func(g *k3sGuest, _ *agentv1.RunRequest) {
			comesUp(g)
			g.nodeVers = "v1.34.0+k3s1"
		}},
		{"a member of another cluster", "it is a member of another cluster", rpc.ErrRefused, func(g *k3sGuest, r *agentv1.RunRequest) {
			comesUp(g)
			r.K3S.CaHash = strings.Repeat("0", 64)
			r.Token = []byte("K10" + r.K3S.CaHash + "::server:secret")
		}},
		{"a script by http", "fetched by https: only", rpc.ErrRefused, func(_ *k3sGuest, r *agentv1.RunRequest) { r.K3S.Script = "http://x/install.sh" }},
		{"a binary by http", "fetched by https: only", rpc.ErrRefused, func(_ *k3sGuest, r *agentv1.RunRequest) { r.K3S.Binary = "http://x/k3s" }},
		{"a web page for a script", "is no script", rpc.ErrRefused, func(_ *k3sGuest, r *agentv1.RunRequest) { r.K3S.Script = r.K3S.Binary }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			make := newBareGuest
			if strings.HasPrefix(tc.name, "a member") {
				make = newK3sGuest
			}
			g := make(t, w)
			req := w.joinRequest(joinStep)
			tc.turn(g, req)
			s, err := w.do(req)
			if err == nil || !strings.Contains(err.Error(), tc.want) || rpc.KindOf(err) != tc.kind {
				t.Errorf("got %v (%s), want %q (%s)", err, rpc.KindOf(err), tc.want, tc.kind)
			}
			if len(g.scripts) != 0 || len(s.calls()) != 0 {
				t.Errorf("something was changed: %v", g.scripts)
			}
		})
	}
}

func TestAFailedJoinStopsItsUnitAndSaysWhy(t *testing.T) {
	w := newWorld(t)
	g := newK3sGuest(t, w)
	g.install = func(g *k3sGuest) (string, string) {
		g.unit, g.version = "activating", release
		return "level=fatal msg=\"token CA hash does not match the Cluster CA certificate hash: a != b\"", "124"
	}
	_, err := w.do(w.joinRequest(joinStep))
	if !errors.Is(err, rpc.ErrUnavailable) || !strings.Contains(err.Error(), "the token belongs to another cluster") || !strings.Contains(err.Error(), "its unit was stopped") {
		t.Errorf("got %v", err)
	}
	if g.unit != "inactive" || g.scripts[len(g.scripts)-1] != "stop" {
		t.Errorf("unit %s, scripts %v", g.unit, g.scripts)
	}
	// The next run finds its own unfinished join and does it again.
	g.install = comesUp
	if s, err := w.do(w.joinRequest(joinStep)); err != nil || !s.result.GetChanged() {
		t.Errorf("again: %v", err)
	}
}

func TestAJoinWhoseLearnerWasTakenBackStartsClean(t *testing.T) {
	w := newWorld(t)
	g := newK3sGuest(t, w)
	g.files[ownPath] = w.want().GetIdentity().GetMark() + " server\n"
	g.unit, g.version, g.data = "inactive", release, true
	g.install = func(g *k3sGuest) (string, string) {
		if g.data {
			g.unit = "failed"
			return "the member has been permanently removed from the cluster", "1"
		}
		return comesUp(g)
	}
	req := w.joinRequest(joinStep)
	req.Want.JoinTimeout = durationpb.New(120e9)
	s, err := w.do(req)
	if err != nil || !s.result.GetChanged() {
		t.Fatalf("%v, scripts %v", err, g.scripts)
	}
	var order []string
	for _, x := range g.scripts {
		if !strings.HasPrefix(x, "write") {
			order = append(order, x)
		}
	}
	if !slices.Equal(order, []string{"install", "clean", "install"}) {
		t.Errorf("scripts %v", g.scripts)
	}
}

func TestAServerWithAVoteIsLeftRunning(t *testing.T) {
	w := newWorld(t)
	g := newK3sGuest(t, w)
	g.install = func(g *k3sGuest) (string, string) {
		comesUp(g)
		g.node = "False"
		return "", "0"
	}
	req := w.joinRequest(joinStep)
	req.Want.JoinTimeout = durationpb.New(2e9)
	_, err := w.do(req)
	if err == nil || !strings.Contains(err.Error(), "its Node is not Ready: KubeletNotReady") || !strings.Contains(err.Error(), "has a vote, so k3s is left running") {
		t.Errorf("got %v", err)
	}
	if g.unit != "active" || slices.Contains(g.scripts, "stop") {
		t.Errorf("unit %s, scripts %v", g.unit, g.scripts)
	}
}

// TestWhatWasAMemberIsNeverCleanedAway: a server that does not come up may hold the
// only copy of the cluster, whatever its log says.
func TestWhatWasAMemberIsNeverCleanedAway(t *testing.T) {
	mark := newWorld(t).want().GetIdentity().GetMark()
	for name, tc := range map[string]struct{ word, says string }{
		"a member, removed by its log": {mark + " server member", "the member has been permanently removed from the cluster"},
		"an etcd that ended":           {mark + " server", "etcdserver: server stopped"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			g := newBareGuest(t, w)
			g.data, g.version, g.unit = true, release, "failed"
			g.files[ownPath] = tc.word + "\n"
			g.install = func(g *k3sGuest) (string, string) {
				g.unit = "activating"
				return tc.says, "1"
			}
			_, err := w.do(w.joinRequest(joinStep))
			if err == nil || slices.Contains(g.scripts, "clean") || !g.data {
				t.Errorf("got %v, scripts %v", err, g.scripts)
			}
			if got := strings.TrimSpace(g.files[ownPath]); got != tc.word {
				t.Errorf("the word is %q", got)
			}
		})
	}
}
