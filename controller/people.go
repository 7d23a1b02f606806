package controller

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/homeiac/homelab/controller/plan"
	"github.com/homeiac/homelab/controller/store"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/spec"
)

// listTimeout bounds the listing of volumes or snapshots on one host: it may start
// programs there.
const listTimeout = time.Minute

// Why tells the story of one guest, and how it is now.
func (s *service) Why(ctx context.Context, req *controllerv1.WhyRequest) (*controllerv1.WhyResponse, error) {
	limit := int(req.GetLimit())
	if limit <= 0 {
		limit = 100
	}
	c, name := s.c, req.GetGuest()
	sp, err := c.lastSpec(ctx)
	if err != nil {
		return nil, err
	}
	resp := new(controllerv1.WhyResponse)
	if sp != nil && sp.Guests[name] != nil {
		w, err := c.present(ctx, sp, true, true)
		if err != nil {
			return nil, err
		}
		for _, g := range c.guestStatuses(sp, w) {
			if g.GetName() == name {
				resp.Now = g
			}
		}
	}
	// After the look, so that what it found is in it.
	story, err := c.store.Story(ctx, name, limit)
	if err != nil {
		return nil, err
	}
	if resp.GetNow() == nil && len(story) == 0 {
		return nil, rpc.Errorf(rpc.ErrNotFound, "nothing is known of a guest %s; see: hlctl guests", name)
	}
	for _, e := range story {
		resp.Entries = append(resp.Entries, &controllerv1.WhyEntry{Time: timestamppb.New(e.At), Kind: e.Kind, Text: e.Text, Run: e.Run})
	}
	return resp, nil
}

// Pause stops all changes. Steps at work finish; no new one begins.
func (s *service) Pause(ctx context.Context, req *controllerv1.PauseRequest) (*controllerv1.PauseResponse, error) {
	id, err := rpc.PeerIdentity(ctx)
	if err != nil {
		return nil, err
	}
	p := store.Pause{By: id.String(), Reason: req.GetReason(), At: s.c.now().UTC()}
	if err := s.c.store.PutPause(ctx, p); err != nil {
		return nil, err
	}
	s.c.log.Info("paused", "by", p.By, "reason", p.Reason)
	return &controllerv1.PauseResponse{Paused: pauseText(p)}, nil
}

// Resume ends a pause, or the park of one guest.
func (s *service) Resume(ctx context.Context, req *controllerv1.ResumeRequest) (*controllerv1.ResumeResponse, error) {
	id, err := rpc.PeerIdentity(ctx)
	if err != nil {
		return nil, err
	}
	c, name := s.c, req.GetGuest()
	if name == "" {
		paused, err := c.paused(ctx)
		if err != nil {
			return nil, err
		}
		if paused == "" {
			return &controllerv1.ResumeResponse{Text: "changes were not paused"}, nil
		}
		if err := c.store.EndPause(ctx); err != nil {
			return nil, err
		}
		c.log.Info("resumed", "by", id.String())
		return &controllerv1.ResumeResponse{Text: "changes are possible again; they were paused: " + strings.TrimSuffix(paused, resumeHint)}, nil
	}
	_, err = c.store.ChangeGuest(ctx, nil, name, func(g *store.Guest) error {
		if g.UUID == "" {
			return rpc.Errorf(rpc.ErrNotFound, "guest %s is not remembered, so nothing was tried with it; see: hlctl guests", name)
		}
		g.Failures, g.Attempts = 0, nil
		return nil
	})
	if err != nil {
		return nil, err
	}
	text := name + " starts afresh: what failed before does not count any more"
	c.track.resumed(name)
	if err := c.store.AppendStory(ctx, name, store.Entry{At: c.now(), Kind: kindDone, Text: "resumed by " + id.String(), State: stateResumed}); err != nil {
		return nil, err
	}
	return &controllerv1.ResumeResponse{Text: text}, nil
}

// Orphans lists volumes that no configuration names, and holder VMs of ours.
func (s *service) Orphans(ctx context.Context, _ *controllerv1.OrphansRequest) (*controllerv1.OrphansResponse, error) {
	c, resp := s.c, new(controllerv1.OrphansResponse)
	sp, err := c.lastSpec(ctx)
	if err != nil {
		return nil, err
	}
	sights := c.seeing.observe(ctx, c.targets(ctx, sp))
	var mu sync.Mutex
	resp.Unknown = c.askAll(ctx, sights, func(ctx context.Context, host string, client agentv1.AgentServiceClient) error {
		got, err := client.Orphans(ctx, &agentv1.OrphansRequest{})
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		for _, o := range got.GetOrphans() {
			o.Host = host
			resp.Orphans = append(resp.Orphans, o)
		}
		if !yes(got.GetKnown()) {
			return rpc.Errorf(rpc.ErrUnavailable, "%s", because("not all of its volumes are known", got.GetKnown()))
		}
		return nil
	})
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	slices.SortFunc(resp.GetOrphans(), func(a, b *homelabv1.Orphan) int {
		return cmp.Or(cmp.Compare(a.GetHost(), b.GetHost()), cmp.Compare(a.GetVolid(), b.GetVolid()))
	})
	mem, err := c.memory(ctx)
	if err != nil {
		return nil, err
	}
	markData(resp.GetOrphans(), mem.guests)
	if sp != nil {
		resp.Holders = c.holders(sp, world{recollection: mem, sights: sights})
	}
	return resp, nil
}

// markData says of which orphans a person should be careful: those that have the
// VMID of a guest with data disks, or of its holder, may be such a disk that a
// move which was cut off left without a configuration.
func markData(orphans []*homelabv1.Orphan, guests map[string]store.Guest) {
	for _, o := range orphans {
		if o.GetVmid() == 0 || yes(o.GetOurs()) {
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(guests)) {
			if g := guests[name]; len(g.DataDisks) > 0 && g.Host == o.GetHost() && (g.VMID == o.GetVmid() || g.Holder.VMID == o.GetVmid()) {
				o.Guest = name
				o.Ours = &homelabv1.Fact{Truth: o.GetOurs().GetTruth(), Reason: "it may be a data disk of " + name + ": keep it until that has all of its disks"}
			}
		}
	}
}

func (c *Controller) holders(sp *spec.Spec, w world) []*controllerv1.HolderStatus {
	var list []*controllerv1.HolderStatus
	for _, h := range plan.Holders(c.want(sp, w), seen(sp, w)) {
		s := &controllerv1.HolderStatus{Host: h.Host, Vmid: h.VM.GetVmid(), Guest: h.Guest, Disks: h.VM.GetDisks()}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b *controllerv1.HolderStatus) int {
		return cmp.Or(cmp.Compare(a.GetHost(), b.GetHost()), cmp.Compare(a.GetVmid(), b.GetVmid()))
	})
	return list
}

// ListSnapshots lists the etcd snapshots that the hosts keep.
func (s *service) ListSnapshots(ctx context.Context, _ *controllerv1.ListSnapshotsRequest) (*controllerv1.ListSnapshotsResponse, error) {
	c, resp := s.c, new(controllerv1.ListSnapshotsResponse)
	sp, err := c.lastSpec(ctx)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	resp.Unknown = c.askAll(ctx, c.seeing.observe(ctx, c.targets(ctx, sp)), func(ctx context.Context, host string, client agentv1.AgentServiceClient) error {
		got, err := client.ListSnapshots(ctx, &agentv1.ListSnapshotsRequest{})
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		for _, snapshot := range got.GetSnapshots() {
			snapshot.Host = host
			resp.Snapshots = append(resp.Snapshots, snapshot)
		}
		return nil
	})
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	slices.SortFunc(resp.GetSnapshots(), func(a, b *homelabv1.Snapshot) int {
		return cmp.Or(b.GetAt().AsTime().Compare(a.GetAt().AsTime()), cmp.Compare(a.GetHost(), b.GetHost()), cmp.Compare(a.GetName(), b.GetName()))
	})
	return resp, nil
}

// askAll asks the agents of all hosts that answer at once, and tells which could
// not be asked and why, by host. A host that the Spec disables is left out.
func (c *Controller) askAll(ctx context.Context, sights map[string]sight, ask func(context.Context, string, agentv1.AgentServiceClient) error) []*homelabv1.Note {
	var mu sync.Mutex
	var unknown []*homelabv1.Note
	var wg sync.WaitGroup
	for host, at := range sights {
		if at.state == homelabv1.HostState_HOST_STATE_DISABLED {
			continue
		}
		wg.Go(func() {
			err := rpc.Errorf(rpc.ErrUnavailable, "host %s: %s", stateName(at.state), at.reason)
			if answers(at) {
				var client agentv1.AgentServiceClient
				if client, err = c.agents.client(host, at.address); err == nil {
					ctx, cancel := context.WithTimeout(ctx, listTimeout)
					defer cancel()
					err = ask(ctx, host, client)
				}
			}
			if err == nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			unknown = append(unknown, &homelabv1.Note{Kind: homelabv1.NoteKind_NOTE_KIND_SKIPPED, Host: host, Text: err.Error()})
		})
	}
	wg.Wait()
	slices.SortFunc(unknown, func(a, b *homelabv1.Note) int { return cmp.Compare(a.GetHost(), b.GetHost()) })
	return unknown
}
