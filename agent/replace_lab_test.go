package agent

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// member is what the cluster has of guest n, as k3s-1 tells it.
func (l *lab) member(n int) *homelabv1.MemberRef {
	l.t.Helper()
	k := l.look(1).GetK3S()
	name := l.guest(n).GetNodeName()
	ref := &homelabv1.MemberRef{Node: name, Addresses: []string{strings.TrimSuffix(l.guest(n).GetHardware().GetNics()[0].GetAddress(), "/24")}, Needed: 1}
	for _, node := range k.GetNodes().GetNodes() {
		if node.GetName() == name {
			ref.NodeUid = node.GetUid()
		}
	}
	for _, m := range k.GetEtcd().GetMembers() {
		if strings.HasPrefix(m.GetName(), name+"-") {
			ref.EtcdId, ref.EtcdName = m.GetId(), m.GetName()
		}
	}
	if ref.GetNodeUid() == "" || ref.GetEtcdId() == "" {
		l.t.Fatalf("the cluster has no %s: %v", name, k)
	}
	return ref
}

// about turns a step of host pve1 into one about guest n, through k3s-1.
func (l *lab) about(n int, ref *homelabv1.MemberRef) func(*agentv1.RunRequest) {
	return func(r *agentv1.RunRequest) {
		r.Through, r.Want = l.guest(1), l.guest(n)
		r.Step.Guest, r.Step.Through, r.Member = r.Want.GetIdentity().GetGuest(), "k3s-1", ref
	}
}

// TestAServerIsReplacedAndAnotherJoinsAgain walks the whole of it on three simulated
// servers: one VM is destroyed and made again, and one guest loses its k3s.
func TestAServerIsReplacedAndAnotherJoinsAgain(t *testing.T) {
	t.Parallel()
	l := newLab(t, 3)
	for n := 1; n <= 3; n++ {
		for _, a := range []homelabv1.Action{fetchStep, createStep, startStep, bootStep} {
			l.do(n, a)
		}
	}
	l.do(1, initStep)
	through := l.through()
	for n := 2; n <= 3; n++ {
		l.do(n, joinStep, through)
	}
	voters := func() int {
		n := 0
		for _, m := range l.look(1).GetK3S().GetEtcd().GetMembers() {
			if !m.GetLearner() && isYes(m.GetHealthy()) {
				n++
			}
		}
		return n
	}
	if names := l.look(1).GetK3S().GetServingNames(); !slices.Contains(names, l.subnet+".101") {
		t.Errorf("serving names %q", names)
	}
	if config := l.look(1).GetK3S().GetConfigYaml(); !strings.Contains(config, "cluster-init: true") || strings.Contains(config, "token") {
		t.Errorf("config %q", config)
	}

	// The VM of k3s-3 is made again.
	snap := l.do(1, snapshotStep, l.about(3, nil)).result.GetLearned().GetSnapshot()
	if snap.GetBytes() == 0 || snap.GetK3SVersion() != release {
		t.Errorf("snapshot %v", snap)
	}
	ref := l.member(3)
	ref.Needed = 2
	l.do(1, drainStep, l.about(3, ref))
	if s, err := l.try(1, leaveStep, l.about(3, ref)); err == nil || !strings.Contains(err.Error(), "still runs") || len(s.calls()) != 0 {
		t.Errorf("a member that runs: %v", err)
	}
	if s := l.do(3, stopStep); !strings.Contains(s.result.GetText(), "shut down") {
		t.Errorf("stop: %v", s.result)
	}
	l.do(1, leaveStep, l.about(3, ref))
	next := func(r *agentv1.RunRequest) {
		r.Want.Identity.Generation, r.Want.Identity.Mark = 2, strings.Replace(r.Want.Identity.GetMark(), ":1:", ":2:", 1)
	}
	l.do(3, destroyStep)
	for _, a := range []homelabv1.Action{createStep, startStep, bootStep} {
		l.do(3, a, next)
	}
	l.do(3, joinStep, through, next)
	if got := voters(); got != 3 {
		t.Fatalf("%d voters after the replacement", got)
	}
	if again := l.member(3); again.GetNodeUid() == ref.GetNodeUid() || again.GetEtcdId() == ref.GetEtcdId() {
		t.Errorf("the new VM is the old member: %v", again)
	}
	l.do(3, homelabv1.Action_ACTION_SOAK, next, func(r *agentv1.RunRequest) {
		r.Soak = durationpb.New(500 * time.Millisecond)
		r.K3S = &homelabv1.K3SWant{Role: homelabv1.Role_ROLE_SERVER, Version: release}
	})

	// k3s-2 loses its k3s and joins again.
	ref = l.member(2)
	for range 2 {
		l.do(2, homelabv1.Action_ACTION_HALT)
		l.do(1, leaveStep, l.about(2, ref))
		l.do(2, homelabv1.Action_ACTION_CLEAN)
	}
	if k := l.look(2).GetK3S(); !isNo(k.GetServerData()) || !isNo(k.GetServerActive()) || k.GetVersion() != "" {
		t.Errorf("after the clean: %v", k)
	}
	l.do(2, joinStep, through)
	if got := voters(); got != 3 {
		t.Errorf("%d voters in the end", got)
	}
}
