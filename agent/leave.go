package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/homeiac/homelab/agent/guest"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/k3s"
	"github.com/homeiac/homelab/internal/rpc"
)

// Limits of what is asked of the cluster.
const (
	drainLimit      = time.Minute
	deleteNodeLimit = 30 * time.Second
)

// drain moves the Node's pods away, as far as that goes: a drain whose end does not
// come (the kubelet there is dead) is said, and holds nothing up.
func (s *Service) drain(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	ref := req.GetMember()
	sh, err := s.open(ctx, req.GetThrough())
	if err != nil {
		return nil, err
	}
	defer sh.Close()
	node, err := nodeOf(ctx, sh, ref)
	if err != nil {
		return nil, err
	}
	if node == nil {
		return done(false, "Node %s is not there, so nothing runs on it", ref.GetNode()), nil
	}
	e.progress("draining", "no new pods for Node "+ref.GetNode())
	if err := runOnNode(ctx, sh, e, "cordon", ref.GetNode(), k3s.CordonScript(ref.GetNode())); err != nil {
		return nil, err
	}
	e.progress("draining", "moving the pods of Node "+ref.GetNode()+" away")
	ctx, cancel := context.WithTimeout(ctx, drainLimit+20*time.Second)
	defer cancel()
	if err := runOnNode(ctx, sh, e, "drain", ref.GetNode(), k3s.DrainScript(ref.GetNode(), drainLimit)); err != nil {
		return done(true, "Node %s takes no new pods, but was not drained to the end: %v", ref.GetNode(), err), nil
	}
	return done(true, "drained Node %s", ref.GetNode()), nil
}

// runOnNode runs a script that changes something of a Node.
func runOnNode(ctx context.Context, sh *guest.Shell, e emit, verb, name, script string) error {
	return e.call(callNode, []string{verb, name}, func() (int, error) {
		res, err := sh.Run(ctx, script, nil)
		if err != nil {
			return 0, err
		}
		if err := res.Check(verb + " " + name); err != nil {
			return res.Exit, rpc.Errorf(rpc.ErrUnavailable, "%w", err)
		}
		return 0, nil
	})
}

// nodeOf finds the Node that is meant; nil when it is not there. Another Node of
// that name, registered since, is Refused.
func nodeOf(ctx context.Context, sh *guest.Shell, ref *homelabv1.MemberRef) (*k3s.Node, error) {
	res, err := sh.Run(ctx, k3s.NodesScript, nil)
	if err != nil {
		return nil, err
	}
	if res.Exit != 0 {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "the k3s API does not answer: %s", guest.Tail(res.Stderr, 1))
	}
	nodes, err := k3s.ParseNodes(res.Stdout)
	if err != nil {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "the k3s API does not answer: %w", err)
	}
	for _, n := range nodes {
		switch {
		case n.Name != ref.GetNode():
			continue
		case n.UID != ref.GetNodeUid():
			return nil, rpc.Errorf(rpc.ErrRefused, "Node %s is another one than was planned with (uid %s, not %s), so it is left alone; see hlctl k3s status, and plan again: hlctl plan",
				n.Name, n.UID, cmp.Or(ref.GetNodeUid(), "none"))
		}
		return &n, nil
	}
	return nil, nil
}

// secretOf says whether the Node's password is remembered.
func secretOf(ctx context.Context, sh *guest.Shell, node string) (bool, error) {
	res, err := sh.Run(ctx, k3s.SecretScript(node), nil)
	if err != nil {
		return false, err
	}
	if res.Exit != 0 {
		return false, rpc.Errorf(rpc.ErrUnavailable, "the k3s API does not answer: %s", guest.Tail(res.Stderr, 1))
	}
	return strings.TrimSpace(string(res.Stdout)) != "", nil
}

// peersAt says whether a member's peer address is one of these.
func peersAt(m *homelabv1.EtcdMember, addresses []string) bool {
	return slices.ContainsFunc(m.GetPeerUrls(), func(raw string) bool {
		u, err := url.Parse(raw)
		return err == nil && slices.Contains(addresses, u.Hostname())
	})
}

// judgeLeave says, on values alone, which member of etcd goes (nil: none is there)
// and whether the others can do without it; reason holds the arithmetic. The member
// that goes has the id, a peer address and the name of the guest's, all three:
// others are never touched, and one that may be the guest's but was not planned with
// is a reason to plan again.
func judgeLeave(v *homelabv1.EtcdView, ref *homelabv1.MemberRef) (goes *homelabv1.EtcdMember, reason string, err error) {
	if !isYes(v.GetKnown()) {
		return nil, "", rpc.Errorf(rpc.ErrUnavailable, "etcd's members are not known, so none is removed: %s", v.GetKnown().GetReason())
	}
	voters, healthy := 0, 0
	for _, m := range v.GetMembers() {
		name, at := k3s.EtcdMemberOf(m.GetName(), ref.GetNode()), peersAt(m, ref.GetAddresses())
		switch {
		case ref.GetEtcdId() != "" && m.GetId() == strings.ToLower(ref.GetEtcdId()):
			goes = m
			if !at || m.GetName() != "" && !name || ref.GetEtcdName() != "" && m.GetName() != ref.GetEtcdName() {
				return nil, "", rpc.Errorf(rpc.ErrRefused, "etcd member %s is %s at %s and not Node %s's at %s, so it is left alone; see hlctl k3s members",
					m.GetId(), orUnnamed(m), strings.Join(m.GetPeerUrls(), ", "), ref.GetNode(), strings.Join(ref.GetAddresses(), ", "))
			}
		case name || at && m.GetName() == "":
			return nil, "", rpc.Errorf(rpc.ErrRefused, "etcd has a member of Node %s that was not planned with: %s, %s; plan again: hlctl plan (see hlctl k3s members)",
				ref.GetNode(), m.GetId(), orUnnamed(m))
		}
		if !m.GetLearner() {
			voters++
			if isYes(m.GetHealthy()) {
				healthy++
			}
		}
	}
	switch {
	case goes != nil && goes.GetId() == v.GetSelfId():
		return nil, "", rpc.Errorf(rpc.ErrRefused, "etcd member %s is that of the server which is asked, so it is not removed through it", goes.GetId())
	case goes != nil && isYes(goes.GetHealthy()):
		return nil, "", rpc.Errorf(rpc.ErrRefused, "etcd member %s (%s) still runs: removed now it would join again; stop its k3s first (see hlctl k3s members)", goes.GetId(), orUnnamed(goes))
	case goes != nil && !goes.GetLearner():
		ok, why := k3s.CanLose(voters, healthy, false)
		if !ok {
			return nil, "", rpc.Errorf(rpc.ErrRefused, "%s; see hlctl k3s members", why)
		}
		reason = why
	case k3s.Tolerance(voters, healthy) < 0:
		return nil, "", rpc.Errorf(rpc.ErrRefused, "%d voters, %d healthy: quorum needs %d; see hlctl k3s members", voters, healthy, k3s.Quorum(voters))
	}
	if healthy < int(ref.GetNeeded()) {
		return nil, "", rpc.Errorf(rpc.ErrRefused, "%d healthy voters would be there without Node %s, %d are needed; see hlctl k3s members", healthy, ref.GetNode(), ref.GetNeeded())
	}
	return goes, reason, nil
}

func orUnnamed(m *homelabv1.EtcdMember) string {
	if m.GetName() == "" {
		return "a member that never started"
	}
	return m.GetName()
}

// leave takes a guest out of the cluster through a healthy server: its etcd member,
// then its Node, then the Node's password, and sees all three gone. Its k3s has been
// stopped before, or it would come back by itself.
func (s *Service) leave(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	ref := req.GetMember()
	sh, err := s.open(ctx, req.GetThrough())
	if err != nil {
		return nil, err
	}
	defer sh.Close()
	m, err := openEtcd(ctx, sh)
	if err != nil {
		return nil, err
	}
	defer m.close()
	// All of it is looked at before anything is done: half a leave is worse than none.
	node, err := nodeOf(ctx, sh, ref)
	if err != nil {
		return nil, err
	}
	secret, err := secretOf(ctx, sh, ref.GetNode())
	if err != nil {
		return nil, err
	}
	// Judged by removeMember, immediately before.
	var removed []string
	what, err := m.removeMember(ctx, ref, e)
	if err != nil {
		return nil, err
	}
	if what != "" {
		removed = append(removed, what)
	}
	if node != nil {
		e.progress("leaving", "deleting Node "+node.Name)
		// kubectl has its own limit; the finalizer may still end after it, so that
		// only looking tells.
		err := runOnNode(ctx, sh, e, "delete", node.Name, k3s.DeleteNodeScript(node.Name, deleteNodeLimit))
		if now, lookErr := nodeOf(ctx, sh, ref); lookErr != nil || now != nil {
			return nil, rpc.Errorf(rpc.ErrUnavailable, "Node %s is not seen gone (%v); see hlctl k3s status", node.Name, cmp.Or(err, lookErr, errStillThere))
		}
		removed = append(removed, "Node "+node.Name)
		// The Node's end usually takes its password along.
		if secret, err = secretOf(ctx, sh, ref.GetNode()); err != nil {
			return nil, err
		}
	}
	if secret {
		e.progress("leaving", "deleting the Node's password")
		if err := runOnNode(ctx, sh, e, "delete-password", ref.GetNode(), k3s.DeleteSecretScript(ref.GetNode())); err != nil {
			return nil, err
		}
		removed = append(removed, "its password")
	}
	if err := m.seeLeft(ctx, sh, req.GetThrough().GetIdentity().GetGuest(), ref); err != nil {
		return nil, err
	}
	if len(removed) == 0 {
		return done(false, "nothing of Node %s is in the cluster", ref.GetNode()), nil
	}
	return done(true, "removed %s", strings.Join(removed, ", ")), nil
}

var errStillThere = errors.New("it is still there")

// removeMember removes the member that goes, judged again immediately before. what
// names it, "" when there is none.
func (m *etcdMember) removeMember(ctx context.Context, ref *homelabv1.MemberRef, e emit) (what string, err error) {
	goes, reason, err := judgeLeave(m.view(ctx), ref)
	if err != nil || goes == nil {
		return "", err
	}
	id, err := strconv.ParseUint(goes.GetId(), 16, 64)
	if err != nil {
		return "", rpc.Errorf(rpc.ErrInvalid, "etcd member %q: %w", goes.GetId(), err)
	}
	if reason != "" {
		reason = " (" + reason + ")"
	}
	e.progress("leaving", fmt.Sprintf("removing etcd member %s%s", orUnnamed(goes), reason))
	err = e.call(callEtcd, []string{"remove-member", orUnnamed(goes), goes.GetId()}, func() (int, error) {
		ctx, cancel := context.WithTimeout(ctx, 2*etcdLimit)
		defer cancel()
		_, err := m.client.MemberRemove(ctx, id)
		return 0, err
	})
	if err != nil {
		// It may be gone all the same: the answer can be lost.
		v := m.view(ctx)
		there := slices.ContainsFunc(v.GetMembers(), func(one *homelabv1.EtcdMember) bool { return one.GetId() == goes.GetId() })
		if !isYes(v.GetKnown()) || there {
			return "", rpc.Errorf(rpc.ErrUnavailable, "etcd does not remove member %s: %w; see hlctl k3s members", orUnnamed(goes), err)
		}
	}
	return fmt.Sprintf("etcd member %s%s", orUnnamed(goes), reason), nil
}

// seeLeft sees that nothing of the guest is in the cluster any more.
func (m *etcdMember) seeLeft(ctx context.Context, sh *guest.Shell, server string, ref *homelabv1.MemberRef) error {
	list, err := m.members(ctx)
	if err != nil {
		return err
	}
	for _, one := range list.Members {
		if fmt.Sprintf("%x", one.ID) == strings.ToLower(ref.GetEtcdId()) || k3s.EtcdMemberOf(one.Name, ref.GetNode()) {
			return rpc.Errorf(rpc.ErrUnavailable, "etcd member %s is still there; see hlctl k3s members", one.Name)
		}
	}
	node, err := nodeOf(ctx, sh, ref)
	if err != nil {
		return err
	}
	if node != nil {
		return rpc.Errorf(rpc.ErrUnavailable, "Node %s is still there; see hlctl k3s status", node.Name)
	}
	secret, err := secretOf(ctx, sh, ref.GetNode())
	if err != nil {
		return err
	}
	if secret {
		return rpc.Errorf(rpc.ErrUnavailable, "the password of Node %s is still there: hlctl exec %s -- sudo k3s kubectl -n kube-system get secret %s",
			ref.GetNode(), server, k3s.NodePasswordSecret(ref.GetNode()))
	}
	return nil
}
