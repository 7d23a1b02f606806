package gossip

import (
	"context"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	rejoinTick = 500 * time.Millisecond
	// rejoinMax is the longest pause between two attempts at one address: how
	// long after a partition the two sides may still be apart.
	rejoinMax = 10 * time.Second
)

// rejoin asks seeds and remembered peers that are not alive, again and again.
// memberlist forgets a dead peer after half a minute; without this, the two
// sides of a partition, or a host that was off over night while all seeds
// changed, would never meet again.
type rejoin struct {
	peers *peers
	seeds []netip.AddrPort
	self  netip.AddrPort
	join  func(address string) error
}

// attempt is the state of one address, touched by run alone.
type attempt struct {
	next  time.Time
	pause time.Duration
	going bool
}

func (r *rejoin) run(ctx context.Context) error {
	var group errgroup.Group
	ended := make(chan netip.AddrPort)
	attempts := make(map[netip.AddrPort]*attempt)
	tick := time.NewTicker(rejoinTick)
	defer tick.Stop()
	for {
		for _, addr := range due(r.targets(), attempts, time.Now()) {
			group.Go(func() error {
				// A peer that answers becomes alive; why one does not answer is
				// memberlist's debug log.
				if r.join(addr.String()) == nil {
					r.peers.met(addr)
				}
				select {
				case ended <- addr:
				case <-ctx.Done():
				}
				return nil
			})
		}
		select {
		case <-ctx.Done():
			return group.Wait()
		case addr := <-ended:
			attempts[addr].ended(time.Now())
		case <-tick.C:
		}
	}
}

// targets are the addresses at which somebody may be who is not alive for us.
func (r *rejoin) targets() []netip.AddrPort {
	absent, alive := r.peers.addresses()
	var all []netip.AddrPort
	for _, a := range append(absent, r.seeds...) {
		if a != r.self && !alive[a] {
			all = append(all, a)
		}
	}
	return all
}

// due gives the targets to ask now, marks them as being asked, and forgets what
// is no target any more, so that it begins anew with short pauses.
func due(targets []netip.AddrPort, attempts map[netip.AddrPort]*attempt, now time.Time) []netip.AddrPort {
	wanted := make(map[netip.AddrPort]bool)
	var ask []netip.AddrPort
	for _, t := range targets {
		wanted[t] = true
		a := attempts[t]
		if a == nil {
			a = &attempt{pause: rejoinTick}
			attempts[t] = a
		}
		if !a.going && !now.Before(a.next) {
			a.going = true
			ask = append(ask, t)
		}
	}
	for t, a := range attempts {
		if !wanted[t] && !a.going {
			delete(attempts, t)
		}
	}
	return ask
}

func (a *attempt) ended(now time.Time) {
	a.going = false
	a.next = now.Add(a.pause)
	a.pause = min(2*a.pause, rejoinMax)
}
