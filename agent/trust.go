package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	trustv1 "github.com/homeiac/homelab/gen/homelab/trust/v1"
	"github.com/homeiac/homelab/internal/durable"
	"github.com/homeiac/homelab/internal/gossip"
	"github.com/homeiac/homelab/internal/rpc"
)

// askTimeout bounds asking the controllers for the trust in force at the start: the
// longest that an agent waits with nobody there.
const askTimeout = 5 * time.Second

// trust is who this agent goes by, as controllers tell it. What it is told is kept
// on disk, so that it holds from the start of the next life on.
type trust struct {
	creds       *rpc.Credentials
	gossipKeys  string // the file
	controllers string // the file with those that were ever seen
	log         *slog.Logger

	// roots is told that the bundle of roots has changed, and our certificate may have to.
	roots chan struct{}

	mu sync.Mutex
	// ring changes the keys of the gossip; nil before it is there.
	ring func([][]byte) error
	// told is whether any controller told us in this life who is trusted.
	told bool
}

// openTrust reads what was kept: before anything is called or served.
func openTrust(cfg Config, creds *rpc.Credentials, log *slog.Logger) (*trust, error) {
	t := &trust{
		creds: creds, gossipKeys: cfg.GossipKeys, controllers: filepath.Join(cfg.State, "controllers.json"), log: log, roots: make(chan struct{}, 1),
	}
	return t, creds.KeepRevocations(filepath.Join(cfg.State, "revocations.pem"))
}

// SetTrust is the rpc: who is trusted from now on.
func (s *Service) SetTrust(_ context.Context, req *agentv1.SetTrustRequest) (*agentv1.SetTrustResponse, error) {
	if s.trust == nil {
		return nil, rpc.Errorf(rpc.ErrUnsupported, "this agent keeps no list of revoked certificates")
	}
	if err := checkFields(req); err != nil {
		return nil, err
	}
	if err := s.trust.take(req.GetTrust()); err != nil {
		return nil, err
	}
	return &agentv1.SetTrustResponse{Revocations: s.trust.creds.Revocations().PEM()}, nil
}

// take keeps and applies what a controller tells. An older list is left aside: its
// teller learns from the answer.
func (t *trust) take(told *trustv1.Trust) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c := told.GetController(); c.GetName() != "" && c.GetAddress() != "" {
		if err := t.remember(known{c.GetName(), c.GetAddress(), c.GetEnrol()}); err != nil {
			t.log.Warn("a controller is not remembered", "controller", c.GetName(), "error", err)
		}
	}
	// The roots come first: the list may be signed below a new one.
	if len(told.GetRoots()) > 0 {
		if changed, err := t.creds.SetRoots(told.GetRoots()); err != nil {
			return err
		} else if changed {
			t.log.Info("the bundle of roots changed", "number", rpc.BundleNumber(told.GetRoots()))
			select {
			case t.roots <- struct{}{}:
			default: // one is waiting there already
			}
		}
	}
	if len(told.GetRevocations()) > 0 {
		changed, err := t.creds.Revoke(told.GetRevocations())
		switch {
		case errors.Is(err, rpc.ErrRefused):
			t.log.Warn("list of revoked certificates left aside", "error", err)
		case err != nil:
			return err
		case changed:
			t.log.Info("list of revoked certificates", "number", t.creds.Revocations().Number())
		}
	}
	t.told = true
	if len(told.GetGossipKeys()) == 0 {
		return nil
	}
	have, err := gossip.ReadKeys(t.gossipKeys)
	if err == nil && slices.EqualFunc(have, told.GetGossipKeys(), bytes.Equal) {
		return nil
	}
	if err := gossip.CheckKeys(told.GetGossipKeys()); err != nil {
		return err
	}
	if err := gossip.WriteKeys(t.gossipKeys, told.GetGossipKeys()); err != nil {
		return fmt.Errorf("gossip keys: %w", err)
	}
	t.log.Info("the gossip keys changed")
	if t.ring == nil {
		return nil
	}
	return t.ring(told.GetGossipKeys())
}

// setRing is told how the running gossip's keys are changed.
func (t *trust) setRing(ring func([][]byte) error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ring = ring
}

// known is a controller that was seen once.
type known struct {
	Name    string `json:"name"`
	Address string `json:"address"` // IP:PORT of its gRPC
	// Enrol is where certificates are renewed, IP:PORT; empty while it is not known.
	Enrol string `json:"enrol,omitempty"`
}

// ask asks the controllers that this agent has ever seen for the trust in force, and
// takes the first answer. It is bounded: with no controller there, what was kept
// holds. It comes before the agent serves and before it calls anybody else, so that
// one that was off knows whom not to trust by then.
func (t *trust) ask(ctx context.Context) error {
	controllers, err := t.remembered()
	if err != nil {
		t.log.Warn("controllers of earlier are not known", "error", err)
	}
	if len(controllers) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	type answer struct {
		trust *trustv1.Trust
		err   error
	}
	answers := make(chan answer, len(controllers))
	for _, c := range controllers {
		go func() {
			told, err := t.present(ctx, c)
			answers <- answer{told, err}
		}()
	}
	for range controllers {
		a := <-answers
		if a.err == nil {
			a.err = t.take(a.trust)
		}
		if a.err == nil {
			return nil
		}
		err = errors.Join(err, a.err)
	}
	return err
}

// present asks one controller.
func (t *trust) present(ctx context.Context, c known) (*trustv1.Trust, error) {
	conn, err := rpc.Dial(rpc.Target{Address: c.Address, Role: rpc.RoleController, Name: c.Name, Credentials: t.creds, Log: t.log})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	resp, err := trustv1.NewTrustServiceClient(conn).Present(ctx, &trustv1.PresentRequest{})
	return resp.GetTrust(), err
}

func (t *trust) remembered() ([]known, error) {
	data, err := os.ReadFile(t.controllers)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var all []known
	if err == nil {
		err = json.Unmarshal(data, &all)
	}
	return all, err
}

// follow remembers the controllers that are in the gossip, until ctx ends. Their
// certificates are checked when they are asked; the gossip is no proof.
func (t *trust) follow(ctx context.Context, g *gossip.Gossip) error {
	changed := g.Watch(ctx)
	for {
		if err := t.rememberAll(g.Peers()); err != nil {
			t.log.Warn("controllers are not remembered", "error", err)
		}
		if _, more := <-changed; !more {
			return nil
		}
	}
}

// rememberAll adds the controllers among the peers.
func (t *trust) rememberAll(peers []gossip.Peer) error {
	var all []known
	for _, p := range peers {
		if p.Role == rpc.RoleController && p.Alive && p.Address != "" {
			all = append(all, known{Name: p.Name, Address: p.Address})
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.remember(all...)
}

// maxKnown bounds the controllers that are remembered: anybody with the gossip's key
// can claim to be one.
const maxKnown = 16

// remember adds controllers, the latest first. The mutex is held.
func (t *trust) remember(all ...known) error {
	old, err := t.remembered()
	if err != nil {
		old = nil // written anew
	}
	for _, k := range old {
		i := slices.IndexFunc(all, func(n known) bool { return n.Name == k.Name })
		switch {
		case i < 0:
			all = append(all, k)
		case all[i].Enrol == "":
			all[i].Enrol = k.Enrol // the gossip does not say
		}
	}
	all = all[:min(len(all), maxKnown)]
	if len(all) == len(old) && !slices.ContainsFunc(all, func(k known) bool { return !slices.Contains(old, k) }) {
		return nil
	}
	data, err := json.Marshal(all)
	if err != nil {
		return err
	}
	return durable.Write(t.controllers, data)
}
