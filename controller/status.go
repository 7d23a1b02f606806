package controller

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/homeiac/homelab/controller/plan"
	"github.com/homeiac/homelab/controller/store"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/spec"
)

// status is everything at once: as seen lately, or now.
func (c *Controller) status(ctx context.Context, fresh, looks bool) (*controllerv1.StatusResponse, error) {
	sp, err := c.lastSpec(ctx)
	if err != nil {
		return nil, err
	}
	run, err := c.goingOn(ctx)
	if err != nil {
		return nil, err
	}
	paused, err := c.paused(ctx)
	if err != nil {
		return nil, err
	}
	ending, err := c.ending(ctx)
	if err != nil {
		return nil, err
	}
	resp := &controllerv1.StatusResponse{Run: run, Paused: paused, Ending: ending}
	fresh = fresh || c.seeing.unasked()
	if sp == nil {
		// Before the first Spec there are only the agents in the gossip.
		targets := c.targets(ctx, nil)
		sights := c.seeing.snapshot(ctx, targets)
		if fresh {
			sights = c.seeing.observe(ctx, targets)
		}
		resp.Hosts, resp.At = hostStatuses(sights), oldest(sights, c.now())
		images, err := c.store.Images(ctx)
		if err != nil {
			return nil, err
		}
		resp.Images = c.imageStatuses(nil, world{sights: sights, recollection: recollection{images: images}})
		return resp, nil
	}
	w, err := c.present(ctx, sp, fresh, looks)
	if err != nil {
		return nil, err
	}
	resp.Fleet = c.fleet
	resp.Hosts, resp.At = hostStatuses(w.sights), oldest(w.sights, c.now())
	resp.Guests, resp.Cluster = c.guestStatuses(sp, w), c.clusterStatus(sp, w)
	resp.Images = c.imageStatuses(sp, w)
	return resp, nil
}

// goingOn is the run that is going on, at whichever controller; 0 is none.
func (c *Controller) goingOn(ctx context.Context) (int64, error) {
	_, held, err := c.store.Held(ctx)
	if err != nil || !held {
		return 0, err
	}
	latest, err := c.store.Runs(ctx, 1)
	if err != nil || len(latest) == 0 || latest[0].GetState() != store.StateRunning {
		return 0, err
	}
	return latest[0].GetRun(), nil
}

// present is the world as seen lately, or now, with looks into guests or without.
func (c *Controller) present(ctx context.Context, sp *spec.Spec, fresh, looks bool) (world, error) {
	mem, err := c.memory(ctx)
	if err != nil {
		return world{}, err
	}
	if looks {
		return c.survey(ctx, sp, mem, c.spare(ctx, sp), true), ctx.Err()
	}
	targets := c.targets(ctx, sp)
	w := world{recollection: mem}
	if fresh {
		w.sights = c.seeing.observe(ctx, targets)
	} else {
		w.sights = c.seeing.snapshot(ctx, targets)
	}
	return w, ctx.Err()
}

// hostStatuses are the hosts for people, by name.
func hostStatuses(sights map[string]sight) []*homelabv1.HostStatus {
	list := make([]*homelabv1.HostStatus, 0, len(sights))
	for name, s := range sights {
		h := &homelabv1.HostStatus{
			Name: name, State: s.state, Address: s.address, Version: s.version, Reason: s.reason, Observation: s.obs,
			ClockOffsetMs: s.offset.Milliseconds(), Since: stamp(s.since), OnlineSince: stamp(s.onlineSince),
		}
		list = append(list, h)
	}
	slices.SortFunc(list, func(a, b *homelabv1.HostStatus) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return list
}

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// oldest is when the least fresh of the observations that count was made.
func oldest(sights map[string]sight, now time.Time) *timestamppb.Timestamp {
	at := now
	for _, s := range sights {
		if answers(s) && s.at.Before(at) {
			at = s.at
		}
	}
	return timestamppb.New(at)
}

// guestStatuses are the Spec's guests for people, by name.
func (c *Controller) guestStatuses(sp *spec.Spec, w world) []*controllerv1.GuestStatus {
	var list []*controllerv1.GuestStatus
	for _, g := range plan.Survey(c.want(sp, w), seen(sp, w), c.now()) {
		rec := w.guests[g.Name]
		s := &controllerv1.GuestStatus{
			Name: g.Name, Host: g.Want.Host, Vmid: rec.VMID, Uuid: rec.UUID, Generation: g.Generation,
			Health: healths[g.Health], Reason: g.Reason, Role: role(g.Want), Look: g.Look,
			Addresses: statusAddresses(g),
			Since:     stamp(g.Since), Signal: string(g.Signal), Until: stamp(g.Until),
			Parked: g.Parked, Policy: string(g.Policy), Adopted: g.Adopted,
		}
		if s.GetVmid() == 0 {
			s.Vmid = int32(g.Want.VMID) //nolint:gosec // checked by the Spec
		}
		if g.VM != nil {
			s.Vmid, s.Uuid, s.Power = g.VM.GetVmid(), g.VM.GetUuid(), g.VM.GetPower()
		}
		if g.Situation == plan.Absent {
			s.Power = homelabv1.Power_POWER_ABSENT
		}
		if g.Want.K3s != nil {
			s.NodeName = g.Want.NodeName()
		}
		if len(s.GetAddresses()) == 0 {
			s.Addresses = rec.Addresses
		}
		list = append(list, s)
	}
	return list
}

var healths = map[plan.Health]controllerv1.Health{
	plan.Healthy:  controllerv1.Health_HEALTH_HEALTHY,
	plan.OnItsWay: controllerv1.Health_HEALTH_BOOTING,
	plan.Unwell:   controllerv1.Health_HEALTH_UNWELL,
	plan.Standby:  controllerv1.Health_HEALTH_STANDBY,
	plan.Unknown:  controllerv1.Health_HEALTH_UNKNOWN,
}

// statusAddresses are a guest's addresses as seen inside it, or as its guest
// agent told them.
func statusAddresses(g plan.GuestState) []string {
	if list := plainAddresses(g.Look.GetAddresses()); len(list) > 0 {
		return list
	}
	return g.VM.GetAddresses()
}

// clusterStatus is the cluster for people; nil when the Spec has none.
func (c *Controller) clusterStatus(sp *spec.Spec, w world) *controllerv1.ClusterStatus {
	if sp.K3s == nil {
		return nil
	}
	cluster := plan.ClusterOf(c.want(sp, w), seen(sp, w))
	s := &controllerv1.ClusterStatus{
		Api: cluster.API, Etcd: cluster.Etcd, Nodes: cluster.Nodes, Version: sp.K3s.Version,
		Voters: int32(cluster.Voters), HealthyVoters: int32(cluster.Healthy), Quorum: int32(cluster.Quorum), //nolint:gosec // counts of members
	}
	s.MayFail = int32(plan.MayFail(cluster)) //nolint:gosec // a count of members
	for _, f := range plan.Findings(c.want(sp, w), seen(sp, w), c.now()) {
		s.Findings = append(s.Findings, &controllerv1.ClusterFinding{Kind: f.Kind, Guest: f.Guest, Name: f.Name, Text: f.Text, Bad: f.Bad})
	}
	for _, m := range cluster.Members {
		s.Members = append(s.Members, c.member(sp, w, cluster, m))
	}
	slices.SortStableFunc(s.Members, func(a, b *controllerv1.MemberStatus) int {
		return cmp.Or(cmp.Compare(a.GetMember().GetName(), b.GetMember().GetName()), cmp.Compare(a.GetMember().GetId(), b.GetMember().GetId()))
	})
	return s
}

// member finds the guest and the Node of an etcd member. Without a guest it is
// a ghost.
func (c *Controller) member(sp *spec.Spec, w world, cluster *plan.Cluster, m *homelabv1.EtcdMember) *controllerv1.MemberStatus {
	s := &controllerv1.MemberStatus{Member: m}
	for _, n := range cluster.Nodes {
		if n.GetEtcdName() != "" && n.GetEtcdName() == m.GetName() {
			s.Node = n.GetName()
		}
	}
	for _, name := range sp.GuestNames() {
		g := sp.Guests[name]
		if !g.IsServer() {
			continue
		}
		if found := cluster.Member(g.NodeName(), addresses(sp, g, w.guests[name])); found.GetId() == m.GetId() {
			s.Guest = name
			if s.GetNode() == "" && strings.HasPrefix(m.GetName(), g.NodeName()+"-") && cluster.Node(g.NodeName()) != nil {
				s.Node = g.NodeName()
			}
		}
	}
	return s
}
