package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/memberlist"

	"github.com/homeiac/homelab/internal/rpc"
)

// network is a 127.X.Y.0/24 of one test.
type network struct {
	t      *testing.T
	prefix string
	keys   [][]byte
}

func newNetwork(t *testing.T) *network {
	return &network{
		t: t, keys: [][]byte{NewKey()},
		prefix: fmt.Sprintf("127.%d.%d.", 64+rand.IntN(128), rand.IntN(256)),
	}
}

func (n *network) ip(host int) string { return fmt.Sprintf("%s%d", n.prefix, host) }

// process is a running Gossip that can be stopped or cut off.
type process struct {
	*Gossip
	stop  context.CancelFunc
	ended chan error
	cable *cable
}

func (n *network) start(host int, role, name string, change ...func(*Config)) *process {
	n.t.Helper()
	p := &process{cable: &cable{}, ended: make(chan error, 1)}
	cfg := Config{
		Name: name, Role: role, Advertise: n.ip(host), RPCAddress: n.ip(host) + ":7443", Version: "v1",
		Seeds: []string{n.ip(1), n.ip(2)}, Keys: n.keys, Log: slog.New(slog.DiscardHandler), wrap: p.cable.attach,
	}
	for _, c := range change {
		c(&cfg)
	}
	g, err := New(cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	p.Gossip = g
	ctx, stop := context.WithCancel(context.Background())
	p.stop = stop
	go func() { p.ended <- g.Run(ctx) }()
	n.t.Cleanup(func() { p.end(n.t) })
	return p
}

// end stops it politely; again is nothing.
func (p *process) end(t *testing.T) {
	t.Helper()
	p.stop()
	if err, ok := <-p.ended; ok {
		close(p.ended)
		if err != nil {
			t.Error(err)
		}
	}
}

// kill ends it without a word.
func (p *process) kill(t *testing.T) {
	p.cable.cut.Store(true)
	p.end(t)
}

// eventually waits until p sees what is wanted.
func (p *process) eventually(t *testing.T, what string, ok func([]Peer) bool) []Peer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	changes := p.Watch(ctx)
	for {
		peers := p.Peers()
		if ok(peers) {
			return peers
		}
		if _, more := <-changes; !more {
			t.Fatalf("%s: not seen by %s: %+v", what, p.cfg.Name, p.Peers())
		}
	}
}

func named(peers []Peer, name string) Peer {
	i := slices.IndexFunc(peers, func(p Peer) bool { return p.Name == name })
	if i < 0 {
		return Peer{}
	}
	return peers[i]
}

func alive(n int) func([]Peer) bool {
	return func(all []Peer) bool {
		return len(all) == n && !slices.ContainsFunc(all, func(p Peer) bool { return !p.Alive })
	}
}

func dead(name string) func([]Peer) bool {
	return func(all []Peer) bool { p := named(all, name); return p.Name != "" && !p.Alive }
}

// cable is a network connection that can be cut: nothing comes or goes, and
// nothing is refused.
type cable struct{ cut atomic.Bool }

func (c *cable) attach(t memberlist.NodeAwareTransport) memberlist.NodeAwareTransport {
	w := &cutTransport{NodeAwareTransport: t, cable: c, packets: make(chan *memberlist.Packet), streams: make(chan net.Conn)}
	go func() {
		for p := range t.PacketCh() {
			if !c.cut.Load() {
				w.packets <- p
			}
		}
	}()
	go func() {
		for s := range t.StreamCh() {
			if !c.cut.Load() {
				w.streams <- s
			}
			// Otherwise left open and unread, as in a full accept queue.
		}
	}()
	return w
}

type cutTransport struct {
	memberlist.NodeAwareTransport
	cable   *cable
	packets chan *memberlist.Packet
	streams chan net.Conn
}

func (w *cutTransport) PacketCh() <-chan *memberlist.Packet { return w.packets }
func (w *cutTransport) StreamCh() <-chan net.Conn           { return w.streams }

func (w *cutTransport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	if w.cable.cut.Load() {
		return time.Now(), nil
	}
	return w.NodeAwareTransport.WriteToAddress(b, a)
}

func (w *cutTransport) DialAddressTimeout(a memberlist.Address, d time.Duration) (net.Conn, error) {
	if w.cable.cut.Load() {
		return nil, os.ErrDeadlineExceeded
	}
	return w.NodeAwareTransport.DialAddressTimeout(a, d)
}

func TestPeersFindEachOther(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	before := time.Now()
	// pve2 starts before its seed is there: it asks again.
	two := n.start(2, rpc.RoleAgent, "pve2", func(c *Config) { c.Seeds = []string{n.ip(1)} })
	ctl := n.start(3, rpc.RoleController, "pve1") // a controller may be called as a host
	one := n.start(1, rpc.RoleAgent, "pve1")
	got := ctl.eventually(t, "both agents", alive(2))
	two.eventually(t, "all", alive(2))
	one.eventually(t, "all", alive(2))
	for i := range got {
		if got[i].Since.Before(before) || got[i].Started.Before(before.Truncate(time.Millisecond)) {
			t.Errorf("%s since %s, started %s: before the test", got[i].Name, got[i].Since, got[i].Started)
		}
		got[i].Since, got[i].Started = time.Time{}, time.Time{}
	}
	want := []Peer{
		{Name: "pve1", Role: rpc.RoleAgent, Address: n.ip(1) + ":7443", Version: "v1", Alive: true},
		{Name: "pve2", Role: rpc.RoleAgent, Address: n.ip(2) + ":7443", Version: "v1", Alive: true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}

	one.end(t)
	left := ctl.eventually(t, "pve1 gone", dead("pve1"))
	if !named(left, "pve1").LeftByItself {
		t.Error("a polite end was not taken for one")
	}
}

func TestAStrangerWithoutTheKeyIsNobody(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	one, two := n.start(1, rpc.RoleAgent, "pve1"), n.start(2, rpc.RoleAgent, "pve2")
	one.eventually(t, "pve2", alive(1))
	stranger := n.start(66, rpc.RoleAgent, "pve66", func(c *Config) { c.Keys = [][]byte{NewKey()} })
	// One who sends without encrypting.
	conf := memberlist.DefaultLANConfig()
	conf.Name, conf.BindAddr, conf.AdvertiseAddr = "agent/pve67", n.ip(67), n.ip(67)
	conf.Logger = newLogBridge(slog.New(slog.DiscardHandler))
	plain, err := memberlist.Create(conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = plain.Shutdown() })
	for range 3 {
		if _, err := plain.Join([]string{n.ip(1), n.ip(2)}); err == nil {
			t.Error("joined without encryption")
		}
	}
	// Somebody with the key who comes later is there: time enough has passed
	// for the strangers too.
	n.start(3, rpc.RoleAgent, "pve3")
	for _, p := range []*process{one, two} {
		p.eventually(t, "pve3 and no stranger", alive(2))
	}
	if got := stranger.Peers(); len(got) != 0 {
		t.Errorf("the stranger sees %+v", got)
	}
}

func TestKeysChangeOneHostAtATime(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	old, fresh := n.keys[0], NewKey()
	one := n.start(1, rpc.RoleAgent, "pve1", func(c *Config) { c.Keys = [][]byte{old, fresh} })
	two := n.start(2, rpc.RoleAgent, "pve2", func(c *Config) { c.Keys = [][]byte{fresh, old} })
	one.eventually(t, "pve2", alive(1))
	two.eventually(t, "pve1", alive(1))
}

func TestAHostThatGoesOffAndComesBack(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	ctl := n.start(10, rpc.RoleController, "controller-1")
	n.start(1, rpc.RoleAgent, "pve1")
	n.start(2, rpc.RoleAgent, "pve2")
	off := n.start(3, rpc.RoleAgent, "pve3")
	first := named(ctl.eventually(t, "all", alive(3)), "pve3")

	off.kill(t)
	start := time.Now()
	silent := named(ctl.eventually(t, "pve3 silent", dead("pve3")), "pve3")
	if silent.LeftByItself || silent.Since.Before(start) {
		t.Errorf("killed at %s: %+v", start, silent)
	}
	if d := time.Since(start); d > 8*time.Second { // 5 s, and a loaded machine
		t.Errorf("silent after %s", d)
	}
	n.start(3, rpc.RoleAgent, "pve3", func(c *Config) { c.Version = "v2" })
	back := named(ctl.eventually(t, "pve3 back", alive(3)), "pve3")
	if back.Version != "v2" || !back.Started.After(first.Started) || !back.Since.After(silent.Since) || back.Conflict != "" {
		t.Errorf("back as %+v", back)
	}
}

func TestAQuickRestartIsTheSamePeer(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	ctl := n.start(10, rpc.RoleController, "controller-1")
	n.start(1, rpc.RoleAgent, "pve1")
	two := n.start(2, rpc.RoleAgent, "pve2")
	ctl.eventually(t, "all", alive(2))
	two.kill(t)
	n.start(2, rpc.RoleAgent, "pve2", func(c *Config) { c.RPCAddress = n.ip(2) + ":7444" })
	got := ctl.eventually(t, "pve2 anew", func(all []Peer) bool {
		p := named(all, "pve2")
		return p.Alive && p.Address == n.ip(2)+":7444"
	})
	if len(got) != 2 || named(got, "pve2").Conflict != "" {
		t.Errorf("%+v", got)
	}
}

func TestWhoIsRestartedUnnoticedIsToldOfTheOthers(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	// The controller is the only one that the agents look for, and knows none of them
	// after its start.
	alone := func(c *Config) { c.Seeds = []string{n.ip(9)} }
	one := n.start(1, rpc.RoleAgent, "pve1", alone)
	two := n.start(2, rpc.RoleAgent, "pve2", alone)
	ctl := n.start(9, rpc.RoleController, "controller-1", alone)
	for _, p := range []*process{one, two, ctl} {
		p.eventually(t, "all", alive(2))
	}
	ctl.kill(t)
	began := time.Now()
	n.start(9, rpc.RoleController, "controller-1", alone).eventually(t, "the agents", alive(2))
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
	for _, p := range []*process{one, two} {
		if c := named(p.Peers(), "controller-1"); !c.Alive {
			t.Errorf("%s noticed it", p.cfg.Name)
		}
	}
}

func TestBothSidesOfAPartitionMeetAgain(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	one := n.start(1, rpc.RoleAgent, "pve1")
	two := n.start(2, rpc.RoleAgent, "pve2", func(c *Config) { c.Seeds = nil })
	three := n.start(3, rpc.RoleAgent, "pve3", func(c *Config) { c.Seeds = []string{n.ip(1), n.ip(2)} })
	for _, p := range []*process{one, two, three} {
		p.eventually(t, "all", alive(2))
	}
	two.cable.cut.Store(true) // it knows no seeds: only what it remembers
	one.eventually(t, "pve2 gone", dead("pve2"))
	two.eventually(t, "all gone", func(all []Peer) bool { return dead("pve1")(all) && dead("pve3")(all) })
	two.cable.cut.Store(false)
	for _, p := range []*process{one, two, three} {
		p.eventually(t, "all again", alive(2))
	}
}

func TestTwoOfOneNameAreAConflict(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	one := n.start(1, rpc.RoleAgent, "pve1")
	two := n.start(2, rpc.RoleAgent, "pve2")
	one.eventually(t, "pve2", alive(1))
	two.eventually(t, "pve1", alive(1))
	n.start(9, rpc.RoleAgent, "pve2", func(c *Config) { c.Seeds = []string{n.ip(1)} })
	got := one.eventually(t, "conflict", func(all []Peer) bool { return named(all, "pve2").Conflict != "" })
	if p := named(got, "pve2"); p.Conflict != n.ip(9)+":7946" || p.Address != n.ip(2)+":7443" || len(got) != 1 {
		t.Errorf("%+v", got)
	}
}

func TestConfigFaults(t *testing.T) {
	good := Config{Name: "pve1", Role: rpc.RoleAgent, Advertise: "127.0.0.1", RPCAddress: "127.0.0.1:1", Keys: [][]byte{NewKey()}}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Config){
		"advertise":   func(c *Config) { c.Advertise = "0.0.0.0" },
		"bind":        func(c *Config) { c.Bind = "eth0" },
		"role":        func(c *Config) { c.Role = rpc.RoleAdmin },
		"name":        func(c *Config) { c.Name = "a/b" },
		"port":        func(c *Config) { c.Port = 70000 },
		"RPC address": func(c *Config) { c.RPCAddress = "pve1:1" },
		"no key":      func(c *Config) { c.Keys = nil },
		"a key must":  func(c *Config) { c.Keys = [][]byte{[]byte("short")} },
		"seed":        func(c *Config) { c.Seeds = []string{"pve2"} },
		"version":     func(c *Config) { c.Version = strings.Repeat("v", 600) },
	} {
		c := good
		change(&c)
		if _, err := New(c); !errors.Is(err, rpc.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestAnAddressInUseEndsRun(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", n.ip(1)+":7946")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	g, err := New(Config{Name: "pve1", Role: rpc.RoleAgent, Advertise: n.ip(1), RPCAddress: n.ip(1) + ":1", Keys: n.keys})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Error(err)
	}
}

func TestKeysFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "gossip.keys")
	keys := [][]byte{NewKey(), NewKey()}
	if err := WriteKeys(file, keys); err != nil {
		t.Fatal(err)
	}
	got, err := ReadKeys(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(keys, got); diff != "" {
		t.Error(diff)
	}
	for text, want := range map[string]string{
		"":                          "holds no key",
		"# only this\n":             "holds no key",
		"# a\n\nc2VjcmV0IQ==\n":     ":3 is not",
		"not base64, but a secret!": ":1 is not",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadKeys(file); !errors.Is(err, rpc.ErrInvalid) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestKeysChangeWhileItRuns(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	one, two := n.start(1, rpc.RoleController, "c1"), n.start(2, rpc.RoleAgent, "pve1")
	one.eventually(t, "both", alive(1))
	two.eventually(t, "both", alive(1))
	fresh := NewKey()
	// Everybody can receive with the new one before anybody sends with it.
	for _, keys := range [][][]byte{{n.keys[0], fresh}, {fresh, n.keys[0]}, {fresh}} {
		for _, p := range []*process{one, two} {
			if err := p.SetKeys(keys); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Who has the old key alone is nobody now, who has the new one is somebody.
	n.start(3, rpc.RoleAgent, "old")
	n.keys = [][]byte{fresh}
	n.start(4, rpc.RoleAgent, "new")
	peers := one.eventually(t, "the one with the new key", func(all []Peer) bool { return named(all, "new").Alive })
	if named(peers, "old").Name != "" || !named(peers, "pve1").Alive {
		t.Errorf("%+v", peers)
	}
	if err := one.SetKeys(nil); !errors.Is(err, rpc.ErrInvalid) {
		t.Errorf("no key: %v", err)
	}
}
