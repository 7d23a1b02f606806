package gossip

import (
	"cmp"
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// conflictFor is how long a conflict is shown after it was last noticed; while
// it lasts it is noticed about once a minute.
const conflictFor = 5 * time.Minute

// maxPeers bounds how many peers are remembered: with the gossip's key alone somebody
// can name as many as he likes. A fleet has some thousands at most.
const maxPeers = 10_000

// Peer is another process, as far as the gossip knows.
type Peer struct {
	// Name and Role are what it calls itself; TLS must confirm both.
	Name string
	Role string
	// Address is the IP:PORT of its gRPC server.
	Address string
	// Version is its program's.
	Version string
	// Started is when its process began, by its own clock.
	Started time.Time
	// Alive: it answers the peers' probes, or did until a few seconds ago.
	Alive bool
	// Since is since when this process has seen it alive without a break, or not
	// alive. A restart that is too quick to be noticed is no break.
	Since time.Time
	// LeftByItself: it is not alive because it was stopped in good order.
	LeftByItself bool
	// Conflict is the gossip address of another process that claims the same
	// name; empty when there is none. Address is the first one's.
	Conflict string
}

// member is a Peer with what only this package needs.
type member struct {
	Peer
	gossip     netip.AddrPort
	conflictAt time.Time
	// anew: its process began again and nobody missed it. It may know nobody.
	anew bool
}

// peers remembers whom memberlist has told of. memberlist calls it with its own
// lock held, so nothing here calls back.
type peers struct {
	self string
	log  *slog.Logger
	now  func() time.Time

	mu       sync.Mutex
	members  map[string]*member
	watchers map[chan struct{}]struct{}
}

func newPeers(self string, log *slog.Logger) *peers {
	return &peers{
		self: self, log: log, now: time.Now,
		members: make(map[string]*member), watchers: make(map[chan struct{}]struct{}),
	}
}

func (p *peers) list() []Peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]Peer, 0, len(p.members))
	for _, m := range p.members {
		peer := m.Peer
		// The announcement comes while it is still there.
		peer.LeftByItself = peer.LeftByItself && !peer.Alive
		if p.now().Sub(m.conflictAt) > conflictFor {
			peer.Conflict = ""
		}
		all = append(all, peer)
	}
	slices.SortFunc(all, func(a, b Peer) int {
		return cmp.Or(cmp.Compare(a.Role, b.Role), cmp.Compare(a.Name, b.Name))
	})
	return all
}

func (p *peers) watch(ctx context.Context) <-chan struct{} {
	c := make(chan struct{}, 1)
	p.mu.Lock()
	p.watchers[c] = struct{}{}
	p.mu.Unlock()
	context.AfterFunc(ctx, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.watchers, c)
		close(c)
	})
	return c
}

// changed is called with the lock held.
func (p *peers) changed() {
	for c := range p.watchers {
		select {
		case c <- struct{}{}:
		default: // one is waiting there already
		}
	}
}

// addresses gives the gossip addresses of those that are known and not alive, or alive
// and perhaps without knowing us, and all of the other alive ones.
func (p *peers) addresses() (absent []netip.AddrPort, alive map[netip.AddrPort]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	alive = make(map[netip.AddrPort]bool)
	for _, m := range p.members {
		if m.Alive && !m.anew {
			alive[m.gossip] = true
		} else {
			absent = append(absent, m.gossip)
		}
	}
	return absent, alive
}

// NotifyJoin implements memberlist.EventDelegate.
func (p *peers) NotifyJoin(n *memberlist.Node) { p.seen(n, "peer is there") }

// NotifyUpdate implements memberlist.EventDelegate: another start of the same
// peer, or its announcement to leave.
func (p *peers) NotifyUpdate(n *memberlist.Node) { p.seen(n, "") }

func (p *peers) seen(n *memberlist.Node, message string) {
	role, name, ok := splitMemberName(n.Name)
	if n.Name == p.self || !ok {
		return
	}
	var told meta
	if err := json.Unmarshal(n.Meta, &told); err != nil {
		// It holds the key, so it is ours, but speaks otherwise: a peer without
		// an address.
		p.log.Warn("peer tells of itself what cannot be read", "peer", n.Name, "error", err)
	}
	if a, err := netip.ParseAddrPort(told.RPC); err != nil || a.Port() == 0 || a.Addr().Zone() != "" {
		told.RPC = "" // nothing else is ever dialled
	}
	told.Version = versionText(told.Version)
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.members[n.Name]
	if m == nil && len(p.members) >= maxPeers {
		return
	}
	if m == nil {
		m = &member{Peer: Peer{Name: name, Role: role}}
		p.members[n.Name] = m
	}
	if !m.Alive {
		m.Alive, m.Since = true, p.now()
	} else if m.Started.UnixMilli() != told.Started {
		m.anew = true // it defended itself against us, which is no sign that it knows us
	}
	m.Address, m.Version, m.Started = told.RPC, told.Version, time.UnixMilli(told.Started)
	m.LeftByItself = told.Leaving
	m.gossip = gossipAddress(n)
	p.changed()
	if message != "" {
		p.log.Info(message, "peer", name, "role", role, "address", m.Address, "version", m.Version)
	}
}

// began notes when the process of a peer says that it began.
func (p *peers) began(name string, started time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m := p.members[name]; m != nil && !m.Started.Equal(started) {
		m.anew = true
	}
}

// met notes that the peer at an address was joined, and knows of us.
func (p *peers) met(address netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.members {
		if m.gossip == address {
			m.anew = false
		}
	}
}

// NotifyLeave implements memberlist.EventDelegate.
func (p *peers) NotifyLeave(n *memberlist.Node) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.members[n.Name]
	if m == nil || !m.Alive {
		return
	}
	// m.LeftByItself was set by the announcement that comes before.
	m.Alive, m.Since = false, p.now()
	p.changed()
	p.log.Info("peer is gone", "peer", m.Name, "role", m.Role, "leftByItself", m.LeftByItself)
}

// NotifyConflict implements memberlist.ConflictDelegate. memberlist goes on with
// the one it knew first.
func (p *peers) NotifyConflict(existing, other *memberlist.Node) {
	first, second := gossipAddress(existing), gossipAddress(other)
	if existing.Name == p.self {
		p.log.Error("another process has our name: give it, or us, another one", "name", existing.Name, "ours", first, "its", second)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.members[existing.Name]
	// A silent peer that comes back at another address is no conflict: it is
	// accepted after reclaimAfter.
	if m == nil || !m.Alive {
		return
	}
	news := m.Conflict != second.String() || p.now().Sub(m.conflictAt) > conflictFor
	m.Conflict, m.conflictAt = second.String(), p.now()
	if news {
		p.changed()
		p.log.Error("two processes have one name: give one another name", "name", existing.Name, "first", first, "second", second)
	}
}

// versionText is a version for people: one word, and nothing that moves a cursor.
func versionText(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) >= 0 {
		return ""
	}
	return s
}

func gossipAddress(n *memberlist.Node) netip.AddrPort {
	a, _ := netip.AddrFromSlice(n.Addr) // an invalid one equals nothing
	return netip.AddrPortFrom(a.Unmap(), n.Port)
}
