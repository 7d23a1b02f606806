//go:build e2e

package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// The main job as the README tells it, with five hosts, and what
// people ask of the cluster then.
func TestOneFileInAClusterOutAndTheSecondRunDoesNothing(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{hosts: 5})
	apiPortIsWatched(l)
	before := len(l.calls())
	p, exit := l.plan(l.spec)
	if exit != 2 || len(p.Steps) == 0 {
		t.Errorf("a fresh plan: exit %d with %d steps, want exit 2", exit, len(p.Steps))
	}
	if n := len(l.calls()); n != before {
		t.Errorf("plan called %d programs", n-before)
	}
	watch := l.watchProcesses()
	a := l.mustApply(l.spec, 0)
	lines := watch()
	if a.summary.Failed+a.summary.Skipped+a.summary.Refused != 0 {
		t.Errorf("not everything was done\n%s", a)
	}
	l.mustBeHealthy(names(5)...)
	l.mustBeClean("k3s-1", "k3s-2", "k3s-3")
	t.Run("the second apply calls nothing", func(t *testing.T) {
		l.in(t).mustChangeNothing(l.spec)
		if _, exit := l.in(t).plan(l.spec); exit != 0 {
			t.Errorf("plan of a finished fleet: exit %d", exit)
		}
	})
	t.Run("mutatingCalls is what calls.jsonl holds", func(t *testing.T) { mutatingCallsAgree(l.in(t), a) })
	t.Run("the join token is in no log, argument, environment or file", func(t *testing.T) { tokenIsNowhere(l.in(t), lines, a) })
	t.Run("one create makes a guest", func(t *testing.T) { oneCreateEach(l.in(t)) })
	t.Run("the members are known", func(t *testing.T) { membersAreKnown(l.in(t)) })
	t.Run("exec keeps arguments and exit codes", func(t *testing.T) { execIsFaithful(l.in(t)) })
	t.Run("kubeconfig is for the outside", func(t *testing.T) { kubeconfigWorks(l.in(t)) })
	t.Run("runs are remembered", func(t *testing.T) { runsAreRemembered(l.in(t)) })
	t.Run("a stopped guest is made anew", func(t *testing.T) { stoppedGuestIsMadeAnew(l.in(t)) })
}

// in is the lab for a test within its test.
func (l *lab) in(t *testing.T) *lab {
	return &lab{t: t, dir: l.dir, config: l.config, spec: l.spec, net: l.net, specs: l.specs + 100, enter: l.enter, home: l.home}
}

// mutatingCallsAgree compares what the agents counted with what the simulated
// programs wrote down, and with the files that were made.
func mutatingCallsAgree(l *lab, a applied) {
	counted := map[string]int{}
	all := 0
	for _, e := range a.events {
		if e.Call != nil && e.Call.Mutating {
			counted[e.Call.Program]++
			all++
		}
	}
	if all != a.summary.MutatingCalls {
		l.t.Errorf("the events hold %d mutating calls, the summary says %d", all, a.summary.MutatingCalls)
	}
	logged := map[string]int{}
	for _, c := range l.calls() {
		if c.mutating() && !c.byHand() {
			logged[filepath.Base(c.Argv[0])]++
		}
	}
	for _, program := range []string{"qm", "pvesm", "pvesh"} {
		if counted[program] != logged[program] {
			l.t.Errorf("%s: %d mutating calls were counted, calls.jsonl has %d", program, counted[program], logged[program])
		}
	}
	for program, pattern := range map[string]string{
		"snippet": "hosts/*/root/var/lib/vz/snippets/*.yaml",
		"image":   "hosts/*/root/var/lib/vz/template/homelab/*.raw",
	} {
		files, err := filepath.Glob(l.path(pattern))
		if err != nil {
			l.t.Fatal(err)
		}
		if counted[program] != len(files) || len(files) != 5 {
			l.t.Errorf("%s: %d writes were counted, there are %d files", program, counted[program], len(files))
		}
	}
	// Each guest takes its configuration, the binary, the script and the run of
	// it; all but the first the token as well.
	if want := 5*4 + 4; counted["guest"] < want {
		l.t.Errorf("only %d changing guest scripts were counted, there are at least %d", counted["guest"], want)
	}
}

// oneCreateEach wants the guest to come from one qm create, resized and started.
func oneCreateEach(l *lab) {
	verbs := map[string][]string{}
	for _, c := range l.calls() {
		if !c.byHand() && c.mutating() {
			verbs[c.Host] = append(verbs[c.Host], c.Argv[1])
			for _, v := range c.Environment {
				if name, _, _ := strings.Cut(v, "="); name != "PATH" && name != "LANG" && name != "HOME" {
					l.t.Errorf("%q was called with %s in its environment", c.Argv, v)
				}
			}
		}
	}
	for i := range 5 {
		host := fmt.Sprintf("pve%d", i+1)
		if got := verbs[host]; !slices.Equal(got, []string{"create", "disk", "start"}) {
			l.t.Errorf("%s: qm was called for %q; one create, one resize and one start make a guest", host, got)
		}
	}
}

func membersAreKnown(l *lab) {
	var servers, agents []string
	for _, m := range l.members() {
		switch {
		case m.Role == "server" && m.Voter && !m.Learner && m.Healthy && m.ID != "" && strings.HasPrefix(m.Name, m.Guest+"-"):
			servers = append(servers, m.Guest)
		case m.Role == "agent" && !m.Voter && m.Healthy:
			agents = append(agents, m.Guest)
		default:
			l.t.Errorf("odd member %+v", m)
		}
	}
	slices.Sort(servers)
	slices.Sort(agents)
	if !slices.Equal(servers, names(3)) || !slices.Equal(agents, []string{"k3s-4", "k3s-5"}) {
		l.t.Errorf("servers %q, agents %q", servers, agents)
	}
	if r := l.hlctl("k3s", "status"); r.exit != 0 || !strings.Contains(r.stdout, "3 voters (1 may fail)") {
		l.t.Errorf("k3s status\n%s", r)
	}
	nodes := l.hlctl("exec", "k3s-1", "--", "sudo", "k3s", "kubectl", "get", "nodes", "-o", "name")
	for _, name := range names(5) {
		if !strings.Contains(nodes.stdout, "node/"+name+"\n") {
			l.t.Errorf("kubectl in k3s-1 does not show %s\n%s", name, nodes)
		}
	}
}

func execIsFaithful(l *lab) {
	odd := []string{"a b", "it's", `"quoted"`, "$HOME", "*", "", "-n", "two\nlines", `back\slash`, "tab\there", "ü"}
	r := l.hlctl(append([]string{"exec", "k3s-4", "--", "printf", "<%s>"}, odd...)...)
	if want := "<" + strings.Join(odd, "><") + ">"; r.exit != 0 || r.stdout != want {
		l.t.Errorf("the arguments arrived as %q, want %q\n%s", r.stdout, want, r)
	}
	for _, code := range []int{0, 1, 7, 100} {
		if r := l.hlctl("exec", "k3s-1", "--", "sh", "-c", fmt.Sprintf("echo out; echo err >&2; exit %d", code)); r.exit != code || r.stdout != "out\n" || r.stderr != "err\n" {
			l.t.Errorf("exit %d expected\n%s", code, r)
		}
	}
	if r := l.hlctl("exec", "k3s-1", "--", "no-such-command"); r.exit != 127 {
		l.t.Errorf("an unknown command is 127\n%s", r)
	}
	if r := l.hlctl("exec", "k3s-99", "--", "true"); r.exit != 255 || r.stderr == "" {
		l.t.Errorf("our own failures are 255, with a reason\n%s", r)
	}
	if r := l.hlctl("exec", "k3s-2", "--", "hostname"); r.stdout != "k3s-2\n" {
		l.t.Errorf("another guest answered\n%s", r)
	}
}

func kubeconfigWorks(l *lab) {
	r := l.hlctl("k3s", "kubeconfig")
	if r.exit != 0 || !strings.Contains(r.stdout, "server: https://"+l.net+".") || strings.Contains(r.stdout, "127.0.0.1") {
		l.t.Errorf("the kubeconfig names no server that others reach\n%s", r)
	}
	var config struct {
		Clusters []struct {
			Cluster struct {
				Server string `yaml:"server"`
				CA     string `yaml:"certificate-authority-data"`
			} `yaml:"cluster"`
		} `yaml:"clusters"`
		Users []struct {
			User struct {
				Cert string `yaml:"client-certificate-data"`
				Key  string `yaml:"client-key-data"`
			} `yaml:"user"`
		} `yaml:"users"`
	}
	if err := yaml.Unmarshal([]byte(r.stdout), &config); err != nil || len(config.Clusters) != 1 || len(config.Users) != 1 {
		l.t.Fatalf("the kubeconfig: %v\n%s", err, r)
	}
	plain := func(s string) []byte {
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			l.t.Error(err)
		}
		return b
	}
	pair, err := tls.X509KeyPair(plain(config.Users[0].User.Cert), plain(config.Users[0].User.Key))
	if err != nil {
		l.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(plain(config.Clusters[0].Cluster.CA))
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12},
	}}
	defer client.CloseIdleConnections()
	resp, err := client.Get(config.Clusters[0].Cluster.Server + "/api/v1/nodes")
	if err != nil {
		l.t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), "k3s-5") {
		l.t.Errorf("with the kubeconfig: %s %v %s", resp.Status, err, body)
	}
}

// apiPortIsWatched shows that somebody who came to a host's API port would be
// seen: every lab looks for that at its end.
func apiPortIsWatched(l *lab) {
	visits := l.path("hosts/pve1/api-connections")
	conn, err := tls.Dial("tcp", l.net+".1:8006", &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // nothing is said on it
	if err != nil {
		l.t.Fatal(err)
	}
	if end := conn.ConnectionState().PeerCertificates[0].NotAfter; end.After(time.Now()) {
		l.t.Errorf("the API port's certificate is good until %s", end)
	}
	_ = conn.Close()
	l.eventually(5*time.Second, "the visit is counted", func() (bool, string) {
		_, err := os.Stat(visits)
		return err == nil, fmt.Sprint(err)
	})
	if err := os.Remove(visits); err != nil {
		l.t.Fatal(err)
	}
}

func runsAreRemembered(l *lab) {
	type runDoc struct {
		Run     int64       `json:"run"`
		State   string      `json:"state"`
		Summary *summaryDoc `json:"summary"`
	}
	runs := decode[[]runDoc](l, 0, l.hlctl("runs", "-o", "json"))
	if len(runs) != 2 || runs[0].Run <= runs[1].Run || runs[0].State != "done" || runs[1].State != "done" {
		l.t.Fatalf("two runs that were done, the latest first: %+v", runs)
	}
	if runs[1].Summary == nil || runs[1].Summary.MutatingCalls == 0 || runs[0].Summary.MutatingCalls != 0 {
		l.t.Errorf("the sums of the runs: %+v, %+v", runs[0].Summary, runs[1].Summary)
	}
	r := l.hlctl("runs", "show", fmt.Sprint(runs[1].Run))
	if r.exit != 0 || !strings.Contains(r.stdout, "qm create 203") {
		l.t.Errorf("the story of the first run lacks its calls\n%s", r)
	}
}

func stoppedGuestIsMadeAnew(l *lab) {
	before := l.portrait("k3s-5")
	l.fault("guest-stop", "k3s-5")
	if g := l.guests()["k3s-5"]; g.Power == nil || *g.Power != "stopped" {
		l.t.Errorf("k3s-5 was stopped: %+v", g)
	}
	p, exit := l.plan(l.spec)
	if exit != 2 || !slices.ContainsFunc(p.Steps, func(s stepDoc) bool { return s.ID == "destroy/pve5/k3s-5" }) {
		l.t.Errorf("exit %d, plan %+v", exit, p)
	}
	a := l.mustApply(l.spec, 0)
	for _, s := range a.steps() {
		if !strings.HasSuffix(s, "/k3s-5") {
			l.t.Errorf("step %s was carried out", s)
		}
	}
	l.mustBeHealthy(names(5)...)
	before.mustBeMadeAnew(l, "k3s-5", false)
	l.mustChangeNothing(l.spec)
}
