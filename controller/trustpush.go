package controller

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	trustv1 "github.com/homeiac/homelab/gen/homelab/trust/v1"
	"github.com/homeiac/homelab/internal/gossip"
	"github.com/homeiac/homelab/internal/rpc"
)

const (
	// pushTimeout bounds telling one agent: everybody has to know within 5 s.
	pushTimeout = 2 * time.Second
	// pushAgain is how soon an agent is told again that did not take it, at first;
	// pushRarely is the longest that this becomes.
	pushAgain  = 500 * time.Millisecond
	pushRarely = 10 * time.Second
)

// pusher tells every agent the trust in force: at once when it changes, and those
// that did not answer again and again. Who is alive in the gossip is told first, but
// the others are tried too: somebody with nothing but the gossip's key could make a
// host look silent.
type pusher struct {
	c    *Controller
	news chan struct{}
	// hosts is touched by run alone.
	hosts map[string]*telling

	mu   sync.Mutex
	have map[string]string // the version that an agent took last, by host; empty for one that is not spoken to
	took chan struct{}     // closed when have changes, and then another one
}

// telling is how far one agent was told.
type telling struct {
	key   string // of the life of the agent and the trust that it has, or is being told
	wait  time.Duration
	next  time.Time // when it is told again; zero is never
	going bool
	done  bool
}

// pushed is how telling one agent ended.
type pushed struct {
	host, key, version string
	err                error
}

func newPusher(c *Controller) *pusher {
	return &pusher{c: c, news: make(chan struct{}, 1), hosts: make(map[string]*telling), have: make(map[string]string), took: make(chan struct{})}
}

// wake says that the trust may have changed.
func (p *pusher) wake() {
	select {
	case p.news <- struct{}{}:
	default: // one is waiting there already
	}
}

// run tells agents until ctx ends.
func (p *pusher) run(ctx context.Context) error {
	changed := p.c.seeing.peers.Watch(ctx)
	ended := make(chan pushed)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.news:
		case _, ok := <-changed:
			if !ok {
				changed = nil
			}
		case <-timer.C:
		case e := <-ended:
			p.ended(e, time.Now())
		}
		t, err := p.c.trust()
		if err != nil {
			p.c.log.Warn("trust cannot be told", "error", err)
			timer.Reset(pushRarely)
			continue
		}
		version, err := trustVersion(t)
		if err != nil {
			return err
		}
		for host, agent := range p.c.seeing.agentPeers() {
			key := lifeOf(agent) + " " + version
			// One that does not say where it is must not cost the connection to it.
			if agent.Address == "" || !p.begin(host, key, time.Now()) {
				continue
			}
			go func() {
				e := pushed{host: host, key: key, version: version, err: p.tell(ctx, host, agent.Address, t)}
				select {
				case ended <- e:
				case <-ctx.Done():
				}
			}()
		}
		timer.Reset(p.pause(time.Now()))
	}
}

// trustVersion differs between any two trusts.
func trustVersion(t *trustv1.Trust) (string, error) {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(t)
	sum := sha256.Sum256(data)
	return string(sum[:]), err
}

// lifeOf differs between two starts of one agent, and between gone and there.
func lifeOf(p gossip.Peer) string {
	return p.Address + " " + strconv.FormatInt(p.Started.UnixNano(), 36) + " " + strconv.FormatBool(p.Alive)
}

// begin says whether an agent is to be told now, and notes that it is.
func (p *pusher) begin(host, key string, now time.Time) bool {
	h := p.hosts[host]
	if h == nil {
		h = new(telling)
		p.hosts[host] = h
	}
	if h.key != key {
		*h = telling{key: key, wait: pushAgain, next: now, going: h.going}
	}
	if h.going || h.done || now.Before(h.next) {
		return false
	}
	h.going = true
	return true
}

func (p *pusher) ended(e pushed, now time.Time) {
	h := p.hosts[e.host]
	h.going = false
	if h.key != e.key {
		return // there is something else to tell by now
	}
	if e.err == nil {
		h.done = true
		p.note(e.host, e.version)
		return
	}
	if errors.Is(e.err, rpc.ErrDenied) {
		p.note(e.host, "")
	}
	p.c.log.Debug("agent was not told the trust in force", "host", e.host, "error", e.err)
	h.next = now.Add(h.wait)
	h.wait = min(2*h.wait, pushRarely)
}

// note keeps what an agent took, for those who wait for it.
func (p *pusher) note(host, version string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.have[host] = version
	close(p.took)
	p.took = make(chan struct{})
}

// pause is how long nobody has to be told.
func (p *pusher) pause(now time.Time) time.Duration {
	least := pushRarely
	for _, h := range p.hosts {
		if !h.done && !h.going {
			least = min(least, h.next.Sub(now))
		}
	}
	return max(least, 0)
}

// await waits until all agents that are alive in the gossip took the trust as it is
// now, and returns those that did not within limit. One that is revoked is alive there
// too, until it has no key, and is not waited for.
func (p *pusher) await(ctx context.Context, limit time.Duration) (late []string, err error) {
	t, err := p.c.trust()
	if err != nil {
		return nil, err
	}
	version, err := trustVersion(t)
	if err != nil {
		return nil, err
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		p.mu.Lock()
		late = nil
		for host, agent := range p.c.seeing.agentPeers() {
			has, told := p.have[host]
			if agent.Alive && has != version && !(told && has == "") {
				late = append(late, host)
			}
		}
		took := p.took
		p.mu.Unlock()
		slices.Sort(late)
		if len(late) == 0 {
			return nil, nil
		}
		select {
		case <-took:
		case <-timer.C:
			return late, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// tell tells one agent, and learns from it: it may know more than we do.
func (p *pusher) tell(ctx context.Context, host, address string, t *trustv1.Trust) error {
	ctx, cancel := context.WithTimeout(ctx, pushTimeout)
	defer cancel()
	client, err := p.c.agents.client(host, address)
	if err != nil {
		return err
	}
	var far peer.Peer
	resp, err := client.SetTrust(ctx, &agentv1.SetTrustRequest{Trust: t}, grpc.Peer(&far))
	if err != nil {
		return err
	}
	// Certificates that the root or a lost store gave are known from here on.
	if shown := rpc.ShownBy(&far); len(shown) > 0 {
		if err := p.c.store.PutIssued(ctx, p.c.issuedOf(shown, rpc.Identity{Role: rpc.RoleAgent, Name: host}, "seen")); err != nil {
			return err
		}
	}
	return p.c.learn(ctx, resp.GetRevocations())
}
