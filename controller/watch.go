package controller

import (
	"context"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/homeiac/homelab/controller/store"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/gossip"
	"github.com/homeiac/homelab/internal/spec"
)

// seenEvery is how old a remembered last sight of a host that answers may be.
const seenEvery = time.Minute

// watch keeps the status and the history of hosts and guests fresh until ctx ends.
// It changes nothing, but begins runs where the Spec lets the controller heal.
func (c *Controller) watch(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.watchGossip(ctx) })
	g.Go(func() error { return c.watchHosts(ctx) })
	return g.Wait()
}

// watchHosts asks all hosts in turns, and looks into the guests now and then: more
// often while something is wrong with one, or when the controller is to heal it.
func (c *Controller) watchHosts(ctx context.Context) error {
	tick := time.NewTicker(c.pace.watch)
	defer tick.Stop()
	var looked time.Time
	healer := &healer{c: c}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		looks := c.now().Sub(looked) >= c.pace.look || c.track.anyIll() || healer.on
		if looks {
			looked = c.now()
		}
		sp, w := c.background(ctx, nil, looks)
		if w != nil && ctx.Err() == nil {
			healer.heal(ctx, sp, *w)
		}
	}
}

// watchGossip asks the hosts whose agents come and go, at once and beside all
// else: a host that is slow to answer must not keep others from being noticed.
func (c *Controller) watchGossip(ctx context.Context) error {
	changed := c.seeing.peers.Watch(ctx)
	alive := make(map[string]bool)
	var asking sync.WaitGroup
	defer asking.Wait()
	for {
		if names := c.gossipNews(alive); len(names) > 0 {
			asking.Go(func() { c.background(ctx, names, false) })
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// gossipNews are the hosts whose agents came or went since the last call. Those
// that went are silent from now on; whether the host still lives is asked after.
func (c *Controller) gossipNews(alive map[string]bool) []string {
	var names []string
	for name, p := range c.seeing.agentPeers() {
		if was, known := alive[name]; known && was == p.Alive {
			continue
		}
		alive[name] = p.Alive
		names = append(names, name)
		if !p.Alive {
			c.seeing.lost(name, p)
		}
	}
	slices.Sort(names)
	return names
}

// background observes the named hosts, or all with none named, and remembers
// what changed. It returns the Spec and the world when it was looked into guests.
func (c *Controller) background(ctx context.Context, names []string, looks bool) (*spec.Spec, *world) {
	sp, w, err := c.refresh(ctx, names, looks)
	if err == nil {
		err = c.forgetRemoved(ctx, sp)
	}
	if err == nil {
		err = c.rememberHosts(ctx)
	}
	if err != nil && ctx.Err() == nil {
		c.log.Warn("background observation", "error", err)
	}
	return sp, w
}

func (c *Controller) refresh(ctx context.Context, names []string, looks bool) (*spec.Spec, *world, error) {
	sp, err := c.lastSpec(ctx)
	if err != nil {
		return nil, nil, err
	}
	if looks && sp != nil {
		mem, err := c.memory(ctx)
		if err != nil {
			return nil, nil, err
		}
		w := c.survey(ctx, sp, mem, c.spare(ctx, sp), true)
		return sp, &w, nil
	}
	var targets []target
	for _, t := range c.targets(ctx, sp) {
		if names == nil || slices.Contains(names, t.name) {
			targets = append(targets, t)
		}
	}
	c.seeing.observe(ctx, targets)
	return sp, nil, nil
}

// spare are the agents in the gossip that the Spec does not name. Those that were
// removed stay in the gossip for a while and are not.
func (c *Controller) spare(ctx context.Context, sp *spec.Spec) []target {
	var targets []target
	removed := c.removed(ctx)
	for name := range c.seeing.agentPeers() {
		if (sp == nil || sp.Hosts[name] == nil) && !removed[name] {
			targets = append(targets, target{name: name})
		}
	}
	return targets
}

// targets are the Spec's hosts and the spare ones, by name.
func (c *Controller) targets(ctx context.Context, sp *spec.Spec) []target {
	targets := c.spare(ctx, sp)
	if sp != nil {
		for _, name := range sp.HostNames() {
			targets = append(targets, hostTarget(sp.Hosts[name]))
		}
	}
	slices.SortFunc(targets, func(a, b target) int {
		if a.name < b.name {
			return -1
		}
		return 1
	})
	return targets
}

func hostTarget(h *spec.Host) target {
	t := target{name: h.Name, disabled: !h.Enabled, rate: h.Limits.Images}
	if h.Address.IsValid() {
		t.address = h.Address.String()
	}
	return t
}

// rememberHosts writes down hosts whose state changed, or whose last sight is old.
func (c *Controller) rememberHosts(ctx context.Context) error {
	for name, s := range c.seeing.all() {
		if s.seen.IsZero() {
			continue
		}
		h := store.Host{
			Seen: s.seen.UTC(), State: int32(s.state), Since: s.since.UTC(), Reason: s.reason,
			Address: s.address, Version: s.version, VMIDs: s.vmids,
		}
		c.mu.Lock()
		old, known := c.stored[name]
		c.mu.Unlock()
		if known && old.State == h.State && old.Address == h.Address && old.Version == h.Version &&
			slices.Equal(old.VMIDs, h.VMIDs) && h.Seen.Sub(old.Seen) < seenEvery {
			continue
		}
		if err := c.store.PutHost(ctx, name, h); err != nil {
			return err
		}
		c.mu.Lock()
		c.stored[name] = h
		c.mu.Unlock()
	}
	return nil
}

// notAsked is why nothing is known of a host that an earlier life of the
// controller has seen.
const notAsked = "not asked yet since this controller started"

// unasked says whether there is a host that this life has not asked yet, so that
// what was seen lately says less than could be known.
func (o *observer) unasked() bool {
	for _, s := range o.all() {
		if s.reason == notAsked {
			return true
		}
	}
	return false
}

// remember sets what an earlier life of the controller saw of a host.
func (o *observer) remember(name string, h store.Host) {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := sight{name: name, seen: h.Seen, address: h.Address, version: h.Version, vmids: h.VMIDs, reason: h.Reason}
	s.state, s.since = homelabv1.HostState(h.State), h.Since
	if s.state == homelabv1.HostState_HOST_STATE_ONLINE || s.state == homelabv1.HostState_HOST_STATE_DEGRADED {
		// It was there then; whether it is now is not known until it is asked.
		s.state, s.reason = homelabv1.HostState_HOST_STATE_UNKNOWN, notAsked
	}
	o.sights[name] = s
}

// lost notes that the gossip lost an agent. It is silent until a connection
// shows that its host answers.
func (o *observer) lost(name string, p gossip.Peer) {
	o.update(name, func(s sight) sight {
		if s.seen.IsZero() {
			return s
		}
		return enter(s, homelabv1.HostState_HOST_STATE_SILENT, "nothing answers at "+p.Address, silentSince(s, p, o.now()))
	})
}

// all are all hosts that were ever seen or asked for.
func (o *observer) all() map[string]sight {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := make(map[string]sight, len(o.sights))
	for name, s := range o.sights {
		out[name] = s
	}
	return out
}
