package k3s

import (
	"context"
	"errors"
	"net/url"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/homeiac/homelab/internal/pause"
)

// controllerTick is how often the leader looks at what is to be deleted.
const controllerTick = 300 * time.Millisecond

// control is k3s's managed-etcd-controller and node controller, on the server
// whose member leads: a deleted Node loses its etcd member (by name and
// address), its password, then itself.
func (p *process) control(ctx context.Context, e *embed.Etcd, c *clientv3.Client) {
	s := &store{c: c}
	for pause.For(ctx, controllerTick) {
		if !leads(e) {
			continue
		}
		rctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		if err := p.reconcile(rctx, s); err != nil && ctx.Err() == nil {
			p.logf("error", "error syncing nodes: %v", err)
			pause.For(ctx, time.Second)
		}
		cancel()
	}
}

func (p *process) reconcile(ctx context.Context, s *store) error {
	nodes, _, err := s.nodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		switch {
		case n.Meta.Deleted != nil:
			err = p.finish(ctx, s, n)
		case n.Meta.Annotations[annoEtcdRemove] == "true" && n.Meta.Annotations[annoEtcdName] != "":
			err = p.removeOnly(ctx, s, n)
		}
		if err != nil && !errors.Is(err, errMissing) {
			return err
		}
	}
	return nil
}

// finish carries out a deletion, one finalizer at a time.
func (p *process) finish(ctx context.Context, s *store, n node) error {
	drop := func(f string) error {
		_, err := s.changeNode(ctx, n.Meta.Name, func(n *node) error {
			n.Meta.Finalizers = slices.DeleteFunc(n.Meta.Finalizers, func(x string) bool { return x == f })
			return nil
		})
		return err
	}
	if slices.Contains(n.Meta.Finalizers, finalMember) {
		if err := p.removeMember(ctx, s, n); err != nil {
			return err
		}
		if err := drop(finalMember); err != nil {
			return err
		}
	}
	if slices.Contains(n.Meta.Finalizers, finalNode) {
		if err := s.dropSecret(ctx, "kube-system", passwordSecret(n.Meta.Name)); err != nil && !errors.Is(err, errMissing) {
			return err
		}
		if err := drop(finalNode); err != nil {
			return err
		}
	}
	return s.dropNode(ctx, n.Meta.Name)
}

// removeMember removes the etcd member that the node's annotations name, if
// there is one with that name and address.
func (p *process) removeMember(ctx context.Context, s *store, n node) error {
	name, addr := n.Meta.Annotations[annoEtcdName], n.Meta.Annotations[annoEtcdAddress]
	if name == "" {
		return nil
	}
	list, err := s.c.MemberList(ctx)
	if err != nil {
		return err
	}
	for _, m := range list.Members {
		if m.Name != name {
			continue
		}
		for _, raw := range m.PeerURLs {
			u, err := url.Parse(raw)
			if err != nil || u.Hostname() != addr {
				continue
			}
			p.info("Removing name=%s id=%d address=%s from etcd", name, m.ID, addr)
			if _, err := s.c.MemberRemove(ctx, m.ID); err != nil && !errors.Is(err, rpctypes.ErrMemberNotFound) {
				return err
			}
		}
	}
	return nil
}

// removeOnly answers the annotation that asks for the member's removal without
// the Node's.
func (p *process) removeOnly(ctx context.Context, s *store, n node) error {
	if err := p.removeMember(ctx, s, n); err != nil {
		return err
	}
	_, err := s.changeNode(ctx, n.Meta.Name, func(n *node) error {
		n.Meta.Annotations[annoEtcdRemoved] = n.Meta.Annotations[annoEtcdName]
		delete(n.Meta.Annotations, annoEtcdName)
		delete(n.Meta.Annotations, annoEtcdAddress)
		delete(n.Meta.Annotations, annoEtcdRemove)
		return nil
	})
	return err
}
