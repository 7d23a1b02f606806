// Package gossip says which processes of a fleet are there, and where: the
// agents and the controllers find each other with memberlist, encrypted with the
// fleet's keys. It says nothing else. What it tells authorises nothing: whoever
// holds the key can claim any name, so a peer is believed only after mutual TLS
// (internal/rpc) has shown who it is.
package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/sync/errgroup"

	"github.com/homeiac/homelab/internal/rpc"
)

// DefaultPort is the port, UDP and TCP, where none is configured.
const DefaultPort = 7946

// The figures that decide how fast a host that went off is noticed (5 hosts:
// median under 3 s, worst under 5 s, see TestBenchDetection) and how long a host that
// is merely overloaded has to object.
const (
	probeInterval = 500 * time.Millisecond
	probeTimeout  = 300 * time.Millisecond
	// A suspect is given up after suspicionMult x probeInterval when a second
	// peer suspects it too, and after suspicionMaxMult times that when none does.
	suspicionMult    = 3
	suspicionMaxMult = 2
	// streamTimeout bounds an exchange over TCP, in which a peer tells all it knows.
	streamTimeout = 2 * time.Second
	// reclaimAfter is how long a name must have been silent at one address before
	// another address may have it: a host whose address was changed.
	reclaimAfter = 10 * time.Second
	// leaveTimeout bounds each of the two messages of a polite end.
	leaveTimeout = 500 * time.Millisecond
)

// Config says who we are and whom to ask first.
type Config struct {
	// Name is the host's name in the Spec for an agent, the controller's own
	// for a controller; unique among those of its role.
	Name string
	// Role is rpc.RoleAgent or rpc.RoleController.
	Role string
	// Advertise is the IP address at which others reach us. Never guessed: hosts
	// have several networks.
	Advertise string
	// Bind is the IP address to listen on; empty is Advertise.
	Bind string
	// Port is for both, UDP and TCP; 0 is DefaultPort.
	Port int
	// RPCAddress is the IP:PORT of our gRPC server, told to the others.
	RPCAddress string
	// Version is our program's version, told to the others.
	Version string
	// Seeds are addresses, IP or IP:PORT, of peers to find the others by. Any of
	// them will do, and ours may be among them. None is fine for the first.
	Seeds []string
	// Keys encrypt everything: 16, 24 or 32 bytes each. The first one is used to
	// send, all of them to receive, so keys can be changed one host at a time.
	Keys [][]byte
	// Log; memberlist's own lines are told at debug level. Nil is slog.Default().
	Log *slog.Logger

	// wrap lets tests cut the network.
	wrap func(memberlist.NodeAwareTransport) memberlist.NodeAwareTransport
}

// Gossip is this process among its peers.
type Gossip struct {
	cfg   Config
	self  netip.AddrPort
	seeds []netip.AddrPort
	peers *peers
	ring  *memberlist.Keyring
}

// New checks the configuration; Run does the work. Faults are rpc.ErrInvalid.
func New(cfg Config) (*Gossip, error) {
	if cfg.Port == 0 {
		cfg.Port = DefaultPort
	}
	if cfg.Bind == "" {
		cfg.Bind = cfg.Advertise
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Role != rpc.RoleAgent && cfg.Role != rpc.RoleController {
		return nil, rpc.Errorf(rpc.ErrInvalid, "gossip: role %q is not one of agent, controller", cfg.Role)
	}
	if cfg.Name == "" || strings.Contains(cfg.Name, "/") {
		return nil, rpc.Errorf(rpc.ErrInvalid, "gossip: name %q cannot be used", cfg.Name)
	}
	addr, err := netip.ParseAddr(cfg.Advertise)
	if err != nil || addr.IsUnspecified() {
		return nil, rpc.Errorf(rpc.ErrInvalid, "gossip: advertise address %q is no address of a host", cfg.Advertise)
	}
	if _, err := netip.ParseAddr(cfg.Bind); err != nil {
		return nil, rpc.Errorf(rpc.ErrInvalid, "gossip: bind address %q is no address", cfg.Bind)
	}
	if cfg.Port < 1 || cfg.Port > 65535 {
		return nil, rpc.Errorf(rpc.ErrInvalid, "gossip: port %d is not between 1 and 65535", cfg.Port)
	}
	if _, err := netip.ParseAddrPort(cfg.RPCAddress); err != nil {
		return nil, rpc.Errorf(rpc.ErrInvalid, "gossip: RPC address %q is not IP:PORT", cfg.RPCAddress)
	}
	ring, err := keyring(cfg.Keys)
	if err != nil {
		return nil, err
	}
	port := uint16(cfg.Port) // checked above
	g := &Gossip{cfg: cfg, self: netip.AddrPortFrom(addr, port), ring: ring}
	for _, s := range cfg.Seeds {
		a, err := parseSeed(s, port)
		if err != nil {
			return nil, rpc.Errorf(rpc.ErrInvalid, "gossip: seed %q is neither IP nor IP:PORT", s)
		}
		if a != g.self && !slices.Contains(g.seeds, a) {
			g.seeds = append(g.seeds, a)
		}
	}
	g.peers = newPeers(memberName(cfg.Role, cfg.Name), cfg.Log)
	if _, err := (meta{RPC: cfg.RPCAddress, Version: cfg.Version, Started: 1 << 40, Leaving: true}).encode(); err != nil {
		return nil, err
	}
	return g, nil
}

func parseSeed(s string, port uint16) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, port), nil
	}
	return netip.ParseAddrPort(s)
}

// Peers lists the others that were ever seen by this process, the silent ones
// too, ordered by role and name.
func (g *Gossip) Peers() []Peer { return g.peers.list() }

// Watch gives a channel that receives whenever Peers would answer otherwise
// than before; changes that come together are told once. Call Peers after Watch
// for the state to begin with. It is closed when ctx ends.
func (g *Gossip) Watch(ctx context.Context) <-chan struct{} { return g.peers.watch(ctx) }

// Run takes part until ctx ends, then says so to the others and leaves. It
// returns nil when ctx was why. An address that cannot be listened on is an
// error; peers that cannot be reached are not, they are asked again and again.
func (g *Gossip) Run(ctx context.Context) error {
	// The network outlives ctx by the time it takes to say goodbye.
	netCtx, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	ml, self, err := g.create(netCtx)
	if err != nil {
		return err
	}
	group, runCtx := errgroup.WithContext(ctx)
	r := &rejoin{peers: g.peers, seeds: g.seeds, self: g.self, join: func(addr string) error {
		_, err := ml.Join([]string{addr})
		return err
	}}
	group.Go(func() error { return r.run(runCtx) })
	group.Go(func() error {
		<-runCtx.Done()
		// Others cannot see in a departure whether it was meant (memberlist
		// 0.7.0 does not tell), so it is announced first.
		self.leave()
		err := errors.Join(ml.UpdateNode(leaveTimeout), ml.Leave(leaveTimeout))
		if err != nil {
			g.cfg.Log.Debug("left without being heard", "error", err)
		}
		cut() // ends joins under way
		return nil
	})
	err = group.Wait()
	if e := ml.Shutdown(); err == nil && e != nil {
		err = fmt.Errorf("gossip: %w", e)
	}
	return err
}

func (g *Gossip) create(ctx context.Context) (*memberlist.Memberlist, *self, error) {
	bridge := newLogBridge(g.cfg.Log)
	at := netip.AddrPortFrom(netip.MustParseAddr(g.cfg.Bind), uint16(g.cfg.Port)) // New has checked both
	network, err := listen(ctx, at, g.ring, bridge)
	if err != nil {
		return nil, nil, fmt.Errorf("gossip on %s: %w", at, err)
	}
	var tr memberlist.NodeAwareTransport = network
	if g.cfg.wrap != nil {
		tr = g.cfg.wrap(tr)
	}
	me := &self{meta: meta{RPC: g.cfg.RPCAddress, Version: g.cfg.Version, Started: time.Now().UnixMilli()}}
	c := memberlist.DefaultLANConfig()
	c.Name = memberName(g.cfg.Role, g.cfg.Name)
	c.Transport = tr
	c.BindAddr, c.BindPort = g.cfg.Bind, g.cfg.Port
	c.AdvertiseAddr, c.AdvertisePort = g.cfg.Advertise, g.cfg.Port
	c.Keyring = g.ring
	c.Logger = bridge
	c.Delegate, c.Events, c.Conflict, c.Ping = me, g.peers, g.peers, pings{me, g.peers}
	c.ProbeInterval, c.ProbeTimeout = probeInterval, probeTimeout
	c.SuspicionMult, c.SuspicionMaxTimeoutMult = suspicionMult, suspicionMaxMult
	c.TCPTimeout = streamTimeout
	c.PushPullInterval = 15 * time.Second
	// A probe is some 50 bytes: compressing each was a sixth of what an idle agent did, in
	// time and in garbage. What others send compressed is read all the same.
	c.EnableCompression = false
	c.DeadNodeReclaimTime = reclaimAfter
	ml, err := memberlist.Create(c)
	if err != nil {
		_ = tr.Shutdown()
		return nil, nil, fmt.Errorf("gossip: %w", err)
	}
	return ml, me, nil
}

// memberName makes names unique over roles: a controller may be called as the
// host that it runs on.
func memberName(role, name string) string { return role + "/" + name }

func splitMemberName(s string) (role, name string, ok bool) {
	role, name, ok = strings.Cut(s, "/")
	// Whoever has the key chooses its name. What no certificate can have is nobody's.
	return role, name, ok && rpc.Identity{Fleet: "any", Role: role, Name: name}.Check() == nil
}
