package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/gossip"
	"github.com/homeiac/homelab/internal/rpc"
)

const (
	// observeTimeout bounds one observation without looks.
	observeTimeout = 4 * time.Second
	// lookTimeout bounds one with looks: an agent gives each look 5 s, and a mute
	// guest must not make its host seem silent.
	lookTimeout = 7 * time.Second
	// knockTimeout is how long a host may leave a connection unanswered that the
	// gossip lost, or that did not answer a call.
	knockTimeout = 600 * time.Millisecond
	// agentPort is where an agent listens when the gossip does not say.
	agentPort = 8400
	// offsetAge is how long a clock offset from a quick answer is kept in
	// preference to one from a slow answer.
	offsetAge = time.Minute
	// quick is the longest round trip that gives a trustworthy clock offset.
	quick = 250 * time.Millisecond
)

// Peers is what the controller asks of the gossip: who is there and where, and
// when that changes. It authorises nothing.
type Peers interface {
	Peers() []gossip.Peer
	Watch(ctx context.Context) <-chan struct{}
}

// target is one host to ask.
type target struct {
	name     string
	address  string // from the Spec, IP; may be empty
	disabled bool
	looks    []*agentv1.LookRequest
	rate     int64 // of images, bytes a second; 0 is no limit
}

// sight is one host as it was seen last.
type sight struct {
	name        string
	state       homelabv1.HostState
	since       time.Time // of a state other than online; zero when not known
	onlineSince time.Time
	seen        time.Time // when its agent last answered; zero for never
	reason      string
	address     string // IP:PORT of its agent
	version     string
	obs         *homelabv1.Observation // the latest, its looks left out; nil for never
	at          time.Time              // when obs was asked for
	looks       map[string]*homelabv1.GuestLook
	looksAt     time.Time
	offset      time.Duration // the host's clock minus ours
	offsetAt    time.Time
	vmids       []int32 // in use when it was last seen
	removed     bool    // only of a snapshot: its agent has no certificate any more
}

// answer is what asking one host gave.
type answer struct {
	at      time.Time
	obs     *homelabv1.Observation
	wanted  bool // looks were asked for
	looked  bool // and given
	offset  time.Duration
	rtt     time.Duration
	address string
	peer    gossip.Peer  // zero when it is not in the gossip
	err     error        // of the call; nil with obs
	reach   gossip.State // with err: what a plain connection found
}

// observer asks agents what their hosts hold, and keeps what was seen last. It
// changes nothing anywhere.
type observer struct {
	agents *agents
	peers  Peers
	log    *slog.Logger
	now    func() time.Time
	// removed are the hosts that are not to be asked for anything; nil is none.
	removed func(context.Context) map[string]bool

	mu     sync.Mutex
	sights map[string]sight
}

func newObserver(agents *agents, peers Peers, log *slog.Logger, now func() time.Time) *observer {
	return &observer{agents: agents, peers: peers, log: log, now: now, sights: make(map[string]sight)}
}

// agentPeers are the agents in the gossip by host.
func (o *observer) agentPeers() map[string]gossip.Peer {
	peers := make(map[string]gossip.Peer)
	for _, p := range o.peers.Peers() {
		if p.Role == rpc.RoleAgent {
			peers[p.Name] = p
		}
	}
	return peers
}

// observe asks all targets at once and returns them as they answered; what is
// kept of them is the latest, which may come from somebody else who asked later.
// It takes as long as the slowest, which is bounded.
func (o *observer) observe(ctx context.Context, targets []target) map[string]sight {
	peers := o.agentPeers()
	before := o.snapshot(ctx, targets)
	answered := maps.Clone(before)
	var mu sync.Mutex // of answered
	var wg sync.WaitGroup
	for _, t := range targets {
		if t.disabled {
			o.update(t.name, func(s sight) sight { return enter(s, homelabv1.HostState_HOST_STATE_DISABLED, "", time.Time{}) })
			continue
		}
		if before[t.name].removed {
			o.update(t.name, func(s sight) sight { return asRemoved(s, o.now()) })
			continue
		}
		wg.Go(func() {
			peer, gossiped := peers[t.name]
			a := o.ask(ctx, t, peer, gossiped)
			if ctx.Err() != nil && a.err != nil {
				return // nobody waits for it, and it says nothing about the host
			}
			var now sight
			o.update(t.name, func(s sight) sight {
				now = judge(s, a, o.now())
				if a.at.Before(s.at) {
					return s // overtaken by a later question
				}
				return now
			})
			now.name = t.name
			mu.Lock()
			defer mu.Unlock()
			answered[t.name] = now
		})
	}
	wg.Wait()
	return answered
}

func (o *observer) snapshot(ctx context.Context, targets []target) map[string]sight {
	var removed map[string]bool
	if o.removed != nil {
		removed = o.removed(ctx)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	out := make(map[string]sight, len(targets))
	for _, t := range targets {
		s := o.sights[t.name]
		s.name = t.name
		if s.state == homelabv1.HostState_HOST_STATE_UNSPECIFIED {
			s.state = homelabv1.HostState_HOST_STATE_UNKNOWN
			s.reason = "not seen yet"
		}
		switch {
		case t.disabled:
			s.state, s.reason = homelabv1.HostState_HOST_STATE_DISABLED, ""
		case removed[t.name]:
			s = asRemoved(s, o.now())
			s.removed = true
		}
		out[t.name] = s
	}
	return out
}

func (o *observer) update(name string, change func(sight) sight) {
	o.mu.Lock()
	defer o.mu.Unlock()
	before := o.sights[name]
	after := change(before)
	after.name = name
	o.sights[name] = after
	if before.state != after.state {
		o.log.Info("host state", "host", name, "state", stateName(after.state), "before", stateName(before.state), "reason", after.reason)
	}
}

// addressOf is where a host's agent is to be found: as the gossip says, as the
// Spec says, or where it was last; empty when nobody knows.
func (o *observer) addressOf(t target, peer gossip.Peer) string {
	if peer.Address != "" {
		return peer.Address
	}
	o.mu.Lock()
	last := o.sights[t.name].address
	o.mu.Unlock()
	if last != "" {
		return last
	}
	if t.address != "" {
		return t.address + ":" + strconv.Itoa(agentPort)
	}
	return ""
}

// ask asks one host. A host that the gossip has lost is only tried with a plain
// connection first, so that it costs no more than that when it is off.
func (o *observer) ask(ctx context.Context, t target, peer gossip.Peer, gossiped bool) answer {
	a := answer{at: o.now(), address: o.addressOf(t, peer), peer: peer, wanted: len(t.looks) > 0}
	if a.address == "" {
		a.err = rpc.Errorf(rpc.ErrUnavailable, "no agent of that name is in the gossip, and hosts.%s.address is not given", t.name)
		return a
	}
	if !gossiped || !peer.Alive {
		if err := knock(ctx, a.address); err != nil {
			a.err, a.reach = rpc.Errorf(rpc.ErrUnavailable, "%w", err), gossip.Classify(err)
			return a
		}
	}
	client, err := o.agents.client(t.name, a.address)
	if err != nil {
		a.err = err
		return a
	}
	a = o.call(ctx, client, t, t.looks, a)
	if a.err != nil && len(t.looks) > 0 && errors.Is(a.err, context.DeadlineExceeded) && ctx.Err() == nil {
		// A guest was too slow, not the host: what the host itself holds is
		// still known, its guests are not.
		a = o.call(ctx, client, t, nil, a)
	}
	if a.err != nil {
		a.reach = gossip.Classify(knock(ctx, a.address))
	}
	return a
}

// knock says whether anything is at an address, and not much later than a host
// of the same network would.
func knock(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, knockTimeout)
	defer cancel()
	return gossip.Knock(ctx, address)
}

func (o *observer) call(ctx context.Context, client agentv1.AgentServiceClient, t target, looks []*agentv1.LookRequest, a answer) answer {
	timeout := observeTimeout
	if len(looks) > 0 {
		timeout = lookTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	start := o.now()
	resp, err := client.Observe(ctx, &agentv1.ObserveRequest{
		// Who looks into guests decides on what is seen, and that must be of now.
		Looks: looks, Fresh: len(looks) > 0, ImagesRate: t.rate,
	})
	if err != nil {
		a.err = err
		return a
	}
	if err := ofHost(resp.GetObservation(), t.name); err != nil {
		a.err = err
		return a
	}
	a.err, a.obs, a.looked = nil, resp.GetObservation(), len(looks) > 0
	a.rtt = o.now().Sub(start)
	a.offset = offset(start, a.rtt, a.obs.GetAt().AsTime())
	return a
}

// ofHost refuses an observation of another host than was asked, whoever gave it: what
// one host holds would be taken for what another does.
func ofHost(obs *homelabv1.Observation, host string) error {
	if obs.GetHost() == host {
		return nil
	}
	return rpc.Errorf(rpc.ErrDenied, "the agent of %s answers for %q and is not believed; on the host: hl-agent's name in its configuration", host, obs.GetHost())
}

// offset is how far the host's clock is ahead of ours, taking its answer as
// made in the middle of the round trip. What the round trip explains is nothing.
func offset(start time.Time, rtt time.Duration, theirs time.Time) time.Duration {
	d := theirs.Sub(start.Add(rtt / 2))
	if d.Abs() <= rtt/2 {
		return 0
	}
	return d
}

// judge is how a host is seen after an answer. It decides on values alone.
func judge(s sight, a answer, now time.Time) sight {
	// What only the gossip says is no host's address before its certificate was seen there.
	if a.address != "" && (a.err == nil || a.address != a.peer.Address) {
		s.address = a.address
	}
	if a.err != nil {
		return enter(s, failed(s, a), failure(s, a), silentSince(s, a.peer, now))
	}
	s.seen, s.obs, s.at, s.version = now, withoutLooks(a.obs), a.at, a.obs.GetAgentVersion()
	s.vmids = usedVMIDs(s.vmids, a.obs)
	if a.rtt <= quick || now.Sub(s.offsetAt) > offsetAge {
		s.offset, s.offsetAt = a.offset, now
	}
	if a.wanted && !a.looked {
		s.looks = nil // what was seen before is not what is there now
	}
	if a.looked {
		s.looksAt = a.at
		s.looks = make(map[string]*homelabv1.GuestLook, len(a.obs.GetLooks()))
		for _, l := range a.obs.GetLooks() {
			s.looks[l.GetIdentity().GetGuest()] = l
		}
	}
	if reason := degraded(a.obs); reason != "" {
		return enter(s, homelabv1.HostState_HOST_STATE_DEGRADED, reason, now)
	}
	return enter(s, homelabv1.HostState_HOST_STATE_ONLINE, "", now)
}

// enter gives a sight its state. Since stays when the state does.
func enter(s sight, state homelabv1.HostState, reason string, since time.Time) sight {
	if s.state != state {
		s.since, s.onlineSince = time.Time{}, time.Time{}
		switch state {
		case homelabv1.HostState_HOST_STATE_ONLINE:
			s.onlineSince = since
		case homelabv1.HostState_HOST_STATE_UNKNOWN, homelabv1.HostState_HOST_STATE_DISABLED:
		default:
			s.since = since
		}
	}
	s.state, s.reason = state, reason
	return s
}

// silentSince is when a host that does not answer was last known to be there:
// when it last answered, or when the gossip lost it.
func silentSince(s sight, p gossip.Peer, now time.Time) time.Time {
	since := s.seen
	if !p.Alive && p.Since.After(since) {
		since = p.Since
	}
	if since.IsZero() {
		return now
	}
	return since
}

// failed is the state of a host that gave no observation.
func failed(s sight, a answer) homelabv1.HostState {
	switch {
	case s.seen.IsZero():
		return homelabv1.HostState_HOST_STATE_UNKNOWN
	case a.reach == gossip.Silent:
		return homelabv1.HostState_HOST_STATE_SILENT
	}
	return homelabv1.HostState_HOST_STATE_AGENT_GONE
}

func failure(s sight, a answer) string {
	switch {
	case s.seen.IsZero():
		return a.err.Error()
	case a.reach == gossip.Silent:
		return "nothing answers at " + a.address
	case a.reach == gossip.AgentGone:
		return fmt.Sprintf("%s refuses the connection; on the host: systemctl status hl-agent", a.address)
	}
	return fmt.Sprintf("its agent does not answer as it should: %v", a.err)
}

// degraded is why a host that answers does not work; empty when it does. What
// could not be seen counts as not working: it is a warning, not an action.
func degraded(obs *homelabv1.Observation) string {
	for _, f := range []struct {
		fact *homelabv1.Fact
		what string
	}{
		{obs.GetPveCluster(), "/etc/pve is not there"},
		{obs.GetQuorate(), "/etc/pve has no quorum"},
		{obs.GetDriver(), "the driver does not work"},
	} {
		switch f.fact.GetTruth() {
		case homelabv1.Truth_TRUTH_YES:
			continue
		case homelabv1.Truth_TRUTH_NO:
			return because(f.what, f.fact)
		}
		return because("not known whether "+f.what, f.fact)
	}
	return ""
}

func yes(f *homelabv1.Fact) bool { return f.GetTruth() == homelabv1.Truth_TRUTH_YES }

func because(what string, f *homelabv1.Fact) string {
	if f.GetReason() == "" {
		return what
	}
	return what + ": " + f.GetReason()
}

// usedVMIDs are the VMIDs in use on the host, containers and leftover volumes
// too, sorted. Those of before stay while a list could not be read.
func usedVMIDs(before []int32, obs *homelabv1.Observation) []int32 {
	used := make(map[int32]bool)
	if !yes(obs.GetVmsKnown()) || !yes(obs.GetClusterVmidsKnown()) {
		for _, id := range before {
			used[id] = true
		}
	}
	for _, vm := range obs.GetVms() {
		used[vm.GetVmid()] = true
	}
	for _, c := range obs.GetClusterVmids() {
		if c.GetNode() == obs.GetNodeName() {
			used[c.GetVmid()] = true
		}
	}
	for _, id := range obs.GetLeftoverVmids() {
		used[id] = true
	}
	return slices.Sorted(maps.Keys(used))
}

func withoutLooks(obs *homelabv1.Observation) *homelabv1.Observation {
	out := proto.CloneOf(obs)
	out.Looks = nil
	return out
}

// stateName is a host's state as the command contract writes it.
func stateName(s homelabv1.HostState) string {
	switch s {
	case homelabv1.HostState_HOST_STATE_ONLINE:
		return "online"
	case homelabv1.HostState_HOST_STATE_SILENT:
		return "silent"
	case homelabv1.HostState_HOST_STATE_AGENT_GONE:
		return "agent-gone"
	case homelabv1.HostState_HOST_STATE_DEGRADED:
		return "degraded"
	case homelabv1.HostState_HOST_STATE_DISABLED:
		return "disabled"
	}
	return "unknown"
}
