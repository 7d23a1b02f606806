package agent

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/homeiac/homelab/agent/guest/guesttest"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/k3s"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/sshexec/sshtest"
)

const (
	leaveStep    = homelabv1.Action_ACTION_LEAVE
	drainStep    = homelabv1.Action_ACTION_DRAIN
	snapshotStep = homelabv1.Action_ACTION_SNAPSHOT
	fullToken    = "K10aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa::server:hunter2"
)

// cluster is a k3s cluster as the server k3s-1 in VM 201 shows it: its etcd is real,
// its API knows Nodes and Secrets.
type cluster struct {
	inside *inside
	pki    pki
	etcd   []*etcdNode

	mu      sync.Mutex
	nodes   map[string]string // uid by name
	secrets map[string]bool
	token   string
	silent  bool                   // the API does not answer
	fails   func(line string) bool // commands that do not succeed
	ran     []string               // changing commands
}

var kubectlLine = regexp.MustCompile(`k3s kubectl (.*)`)

func (c *cluster) answer(cmd sshtest.Command) int {
	script, _ := guesttest.Script(cmd)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case script == k3s.EtcdFilesScript:
		c.pki.files(cmd.Stdout)
		return 0
	case script == k3s.ReadFileScript(k3s.ServerToken):
		_, _ = io.WriteString(cmd.Stdout, c.token+"\n")
		return 0
	case script == k3s.VersionScript:
		_, _ = io.WriteString(cmd.Stdout, "k3s version "+release+" (abc)\ngo version go1.25.1\n")
		return 0
	case !strings.Contains(script, "k3s kubectl ") || script == k3s.ProbeScript:
		return c.inside.answer(cmd)
	case c.silent:
		_, _ = io.WriteString(cmd.Stderr, "The connection to the server 127.0.0.1:6443 was refused\n")
		return 1
	}
	line := strings.ReplaceAll(kubectlLine.FindStringSubmatch(script)[1], "'", "")
	words := strings.Fields(line)
	if words[0] != "get" && !strings.HasPrefix(line, "-n kube-system get") {
		c.ran = append(c.ran, line)
	}
	if c.fails != nil && c.fails(line) {
		_, _ = io.WriteString(cmd.Stderr, "error: timed out waiting for the condition\n")
		return 1
	}
	switch {
	case strings.HasPrefix(line, "get nodes"):
		var items []string
		for name, uid := range c.nodes {
			items = append(items, fmt.Sprintf(`{"kind":"Node","metadata":{"name":%q,"uid":%q}}`, name, uid))
		}
		_, _ = io.WriteString(cmd.Stdout, `{"kind":"List","items":[`+strings.Join(items, ",")+`]}`)
	case strings.HasPrefix(line, "-n kube-system get secret "):
		if c.secrets[words[4]] {
			_, _ = io.WriteString(cmd.Stdout, "secret/"+words[4]+"\n")
		}
	case strings.HasPrefix(line, "-n kube-system delete secret "):
		delete(c.secrets, words[4])
	case strings.HasPrefix(line, "delete node "):
		delete(c.nodes, words[2])
	case words[0] == "cordon", words[0] == "drain":
	default:
		return 127
	}
	return 0
}

// newCluster is one of n servers, k3s-1 of which is guest k3s-1 here.
func newCluster(t *testing.T, w *world, n int) *cluster {
	t.Helper()
	w.hyp.vms[201] = running(w)
	c := &cluster{inside: goodInside(), pki: newPKI(t), nodes: map[string]string{}, secrets: map[string]bool{}, token: fullToken}
	hosts := []string{"127.79.0.1", "127.79.0.2", "127.79.0.3"}[:n]
	c.etcd = etcdCluster(t, c.pki, hosts...)
	forward := map[string]string{"127.0.0.1": c.etcd[0].client}
	for i, host := range hosts {
		forward[host] = c.etcd[i].client
		name := fmt.Sprintf("k3s-%d", i+1)
		c.nodes[name], c.secrets[k3s.NodePasswordSecret(name)] = "uid-"+name, true
	}
	srv := w.guestOS(c.answer)
	srv.Lock()
	defer srv.Unlock()
	srv.Forward = forward
	return c
}

func (c *cluster) id(n int) string { return fmt.Sprintf("%x", uint64(c.etcd[n-1].Server.MemberID())) }

// through is a step about guest k3s-N, whose VM is another host's, through k3s-1.
func (w *world) through(action homelabv1.Action, n int, c *cluster) *agentv1.RunRequest {
	req := w.request(action)
	req.Through = w.want()
	name := fmt.Sprintf("k3s-%d", n)
	req.Step.Guest, req.Step.Id, req.Step.Through, req.Step.Vmid = name, fmt.Sprintf("%s/pve1/%s", action, name), "k3s-1", int32(200+n)
	req.Want.Identity.Guest, req.Want.Identity.Vmid, req.Want.NodeName = name, int32(200+n), name
	req.Member = &homelabv1.MemberRef{
		Node: name, NodeUid: "uid-" + name, Addresses: []string{fmt.Sprintf("127.79.0.%d", n)}, Needed: 2,
		EtcdId: c.id(n), EtcdName: c.etcd[n-1].name,
	}
	return req
}

// members are the names of etcd's members, as the first of them has them.
func (c *cluster) members() []string {
	var names []string
	for _, m := range c.etcd[0].Server.Cluster().Members() {
		names = append(names, m.Name)
	}
	slices.Sort(names)
	return names
}

func TestAServerLeavesWithAllThatTheClusterHasOfIt(t *testing.T) {
	w := newWorld(t)
	c := newCluster(t, w, 3)
	all := c.members()
	for want, turn := range map[string]func(*agentv1.RunRequest){
		"still runs: removed now it would join again": func(*agentv1.RunRequest) {},
		"Node k3s-3 is another one than was planned":  func(r *agentv1.RunRequest) { r.Member.NodeUid = "uid-of-before" },
		"(uid uid-k3s-3, not none)":                   func(r *agentv1.RunRequest) { r.Member.NodeUid = "" },
		"that was not planned with":                   func(r *agentv1.RunRequest) { r.Member.EtcdId = "" },
		"is left alone":                               func(r *agentv1.RunRequest) { r.Member.Addresses = []string{"127.79.0.9"} },
		"cannot be taken out of the cluster through":  func(r *agentv1.RunRequest) { r.Member.Node = "k3s-1" },
		"the k3s API does not answer":                 func(*agentv1.RunRequest) { c.silent = true },
	} {
		req := w.through(leaveStep, 3, c)
		turn(req)
		s, err := w.do(req)
		if err == nil || !strings.Contains(err.Error(), want) || len(s.calls()) != 0 {
			t.Errorf("got %v (%v), want %q", err, s.calls(), want)
		}
		if c.silent = false; !slices.Equal(c.members(), all) || len(c.nodes) != 3 || len(c.secrets) != 3 {
			t.Errorf("%s: changed: members %v, nodes %v, secrets %v", want, c.members(), c.nodes, c.secrets)
		}
	}
	c.etcd[2].stop()
	// A Node whose finalizer does not end: what has been done stays done.
	c.fails = func(line string) bool { return strings.HasPrefix(line, "delete node") }
	s, err := w.do(w.through(leaveStep, 3, c))
	if !errors.Is(err, rpc.ErrUnavailable) || !strings.Contains(err.Error(), "Node k3s-3 is not seen gone") || !slices.Equal(s.calls(), []string{"etcd remove-member"}) && !slices.Equal(s.calls(), []string{"etcd remove-member", "node delete"}) {
		t.Errorf("got %v, calls %v", err, s.calls())
	}
	c.fails = nil
	s, err = w.do(w.through(leaveStep, 3, c))
	if err != nil || !slices.Equal(s.calls(), []string{"node delete", "node delete-password"}) {
		t.Errorf("again: %v, calls %v", err, s.calls())
	}
	if got := c.members(); !slices.Equal(got, all[:2]) || c.nodes["k3s-3"] != "" || len(c.nodes) != 2 || len(c.secrets) != 2 {
		t.Errorf("afterwards: members %v, nodes %v, secrets %v", got, c.nodes, c.secrets)
	}
	s, err = w.do(w.through(leaveStep, 3, c))
	if err != nil || s.result.GetChanged() || len(s.calls()) != 0 {
		t.Errorf("once more: %v %v", s.result, err)
	}
	// Of the two that are left one is lost: without quorum nothing leaves.
	c.etcd[1].stop()
	if s, err = w.do(w.through(leaveStep, 2, c)); err == nil || len(s.calls()) != 0 || c.nodes["k3s-2"] == "" {
		t.Errorf("below quorum: %v", err)
	}
}

// TestWhoLeavesEtcd: judged on values alone.
func TestWhoLeavesEtcd(t *testing.T) {
	member := func(id, name, host string, turn ...func(*homelabv1.EtcdMember)) *homelabv1.EtcdMember {
		m := &homelabv1.EtcdMember{Id: id, Name: name, PeerUrls: []string{"https://" + host + ":2380"}, Healthy: factYes("")}
		for _, f := range turn {
			f(m)
		}
		return m
	}
	ill := func(m *homelabv1.EtcdMember) { m.Healthy = factNo("it does not answer") }
	learner := func(m *homelabv1.EtcdMember) { m.Learner = true }
	one, two := member("1", "k3s-1-00000001", "10.0.0.1"), member("2", "k3s-2-00000002", "10.0.0.2")
	ref := func(turn ...func(*homelabv1.MemberRef)) *homelabv1.MemberRef {
		r := &homelabv1.MemberRef{Node: "k3s-3", EtcdId: "3", EtcdName: "k3s-3-00000003", Addresses: []string{"10.0.0.3"}, Needed: 2}
		for _, f := range turn {
			f(r)
		}
		return r
	}
	unknown := func(r *homelabv1.MemberRef) { r.EtcdId, r.EtcdName = "", "" }
	for _, tc := range []struct {
		name    string
		members []*homelabv1.EtcdMember
		ref     *homelabv1.MemberRef
		goes    string // its id
		want    string // of the error or the reason
		kind    rpc.Kind
	}{
		{"a voter that is down", []*homelabv1.EtcdMember{one, two, member("3", "k3s-3-00000003", "10.0.0.3", ill)}, ref(), "3", "3 voters, 2 healthy -> 2 of 2 stay healthy", ""},
		{"a learner that never started", []*homelabv1.EtcdMember{one, two, member("3", "", "10.0.0.3", ill, learner)}, ref(func(r *homelabv1.MemberRef) { r.EtcdName = "" }), "3", "", ""},
		{"gone already", []*homelabv1.EtcdMember{one, two}, ref(), "", "", ""},
		{"an agent", []*homelabv1.EtcdMember{one, two}, ref(unknown), "", "", ""},
		{"it runs", []*homelabv1.EtcdMember{one, two, member("3", "k3s-3-00000003", "10.0.0.3")}, ref(), "", "still runs", rpc.ErrRefused},
		{"another one is down too", []*homelabv1.EtcdMember{one, member("2", "k3s-2-00000002", "10.0.0.2", ill), member("3", "k3s-3-00000003", "10.0.0.3", ill)}, ref(), "", "quorum of 3 needs 2", rpc.ErrRefused},
		{"the id is another's", []*homelabv1.EtcdMember{one, two, member("3", "k3s-4-00000003", "10.0.0.3", ill)}, ref(), "", "left alone", rpc.ErrRefused},
		{"the id is at another address", []*homelabv1.EtcdMember{one, two, member("3", "k3s-3-00000003", "10.0.0.33", ill)}, ref(), "", "left alone", rpc.ErrRefused},
		{"it joined again since", []*homelabv1.EtcdMember{one, two, member("5", "k3s-3-00000005", "10.0.0.3", ill)}, ref(), "", "plan again", rpc.ErrRefused},
		{"an unknown learner at its address", []*homelabv1.EtcdMember{one, two, member("5", "", "10.0.0.3", ill, learner)}, ref(unknown), "", "plan again", rpc.ErrRefused},
		{"another's voter at an address it once had", []*homelabv1.EtcdMember{one, two, member("5", "k3s-5-00000005", "10.0.0.3")}, ref(unknown), "", "", ""},
		{"fewer than are needed", []*homelabv1.EtcdMember{one, member("3", "k3s-3-00000003", "10.0.0.3", ill, learner)}, ref(), "", "1 healthy voters would be there", rpc.ErrRefused},
		{"the one that is asked", []*homelabv1.EtcdMember{member("9", "k3s-3-00000003", "10.0.0.3", ill), one, two}, ref(func(r *homelabv1.MemberRef) { r.EtcdId = "9" }), "", "of the server which is asked", rpc.ErrRefused},
		{"the only server", []*homelabv1.EtcdMember{member("3", "k3s-3-00000003", "10.0.0.3", ill)}, ref(func(r *homelabv1.MemberRef) { r.Needed = 0 }), "", "the only server is never removed", rpc.ErrRefused},
	} {
		goes, reason, err := judgeLeave(&homelabv1.EtcdView{Known: factYes(""), SelfId: "9", Members: tc.members}, tc.ref)
		text := reason
		if err != nil {
			text = err.Error()
		}
		if goes.GetId() != tc.goes || rpc.KindOf(err) != tc.kind || !strings.Contains(text, tc.want) {
			t.Errorf("%s: %q goes, %q", tc.name, goes.GetId(), text)
		}
	}
	if _, _, err := judgeLeave(&homelabv1.EtcdView{Known: factUnknown("no leader")}, ref()); !errors.Is(err, rpc.ErrUnavailable) {
		t.Errorf("etcd silent: %v", err)
	}
}

func TestADrainHoldsNothingUp(t *testing.T) {
	w := newWorld(t)
	c := newCluster(t, w, 1)
	c.nodes["k3s-2"] = "uid-k3s-2"
	c.etcd = append(c.etcd, c.etcd[0]) // its etcd does not matter
	s, err := w.do(w.through(drainStep, 2, c))
	if err != nil || !slices.Equal(s.calls(), []string{"node cordon", "node drain"}) || !s.result.GetChanged() || s.result.GetText() != "drained Node k3s-2" {
		t.Errorf("%v %v %v", s.result, s.calls(), err)
	}
	want := []string{"cordon k3s-2", "drain k3s-2 --ignore-daemonsets --delete-emptydir-data --force --timeout=60s"}
	if !slices.Equal(c.ran, want) {
		t.Errorf("ran %q", c.ran)
	}
	c.fails = func(line string) bool { return strings.HasPrefix(line, "drain") }
	if s, err = w.do(w.through(drainStep, 2, c)); err != nil || !strings.Contains(s.result.GetText(), "not drained to the end: drain k3s-2: exit 1: error: timed out") {
		t.Errorf("a dead kubelet: %v %v", s.result, err)
	}
	delete(c.nodes, "k3s-2")
	if s, err = w.do(w.through(drainStep, 2, c)); err != nil || s.result.GetChanged() || len(s.calls()) != 0 {
		t.Errorf("no Node: %v %v", s.result, err)
	}
	c.nodes["k3s-2"] = "uid-other"
	if s, err = w.do(w.through(drainStep, 2, c)); !errors.Is(err, rpc.ErrRefused) || len(s.calls()) != 0 {
		t.Errorf("another Node: %v", err)
	}
	c.silent = true
	if _, err = w.do(w.through(drainStep, 2, c)); !errors.Is(err, rpc.ErrUnavailable) {
		t.Errorf("API silent: %v", err)
	}
	req := w.through(drainStep, 1, c)
	if _, err = w.do(req); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "through itself") {
		t.Errorf("through itself: %v", err)
	}
}

func TestALostQuorumIsToldWithItsArithmetic(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := newCluster(t, w, 3)
	etcd := func() *homelabv1.EtcdView { return w.observe(true).GetLooks()[0].GetK3S().GetEtcd() }
	c.etcd[1].stop()
	v := etcd()
	// Told by its port, and not by the end of the time that it had.
	if !slices.ContainsFunc(v.GetMembers(), func(m *homelabv1.EtcdMember) bool {
		return isNo(m.GetHealthy()) && strings.Contains(m.GetHealthy().GetReason(), "connection refused") && !strings.Contains(m.GetHealthy().GetReason(), "rpc error")
	}) {
		t.Errorf("the one that is gone: %v", v)
	}
	if healthy := slices.DeleteFunc(v.GetMembers(), func(m *homelabv1.EtcdMember) bool { return !isYes(m.GetHealthy()) }); !isYes(v.GetKnown()) || len(healthy) != 2 {
		t.Errorf("with one of three gone: %v", v)
	}
	c.etcd[2].stop()
	if v := etcd(); !isNo(v.GetKnown()) || v.GetKnown().GetReason() != "no quorum: 3 voters, 1 answering, 2 needed" {
		t.Errorf("with two of three gone: %v", v)
	}
	c.etcd[0].stop()
	// Refused, or taken up in the moment in which it ended.
	v = etcd()
	why := v.GetKnown().GetReason()
	if !isUnknown(v.GetKnown()) || !strings.Contains(why, "connection refused") && !strings.Contains(why, "members: authentication handshake failed") {
		t.Errorf("with all gone: %v", v)
	}
}
