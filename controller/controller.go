// Package controller finds the agents of a fleet, compares what they see with
// what a Spec asks for, and has them carry out the difference. What is to be
// done is decided by package plan alone, and what is remembered lies in package
// store; here is the asking, the order of the doing, and the service that hlctl
// calls.
package controller

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/homeiac/homelab/controller/plan"
	"github.com/homeiac/homelab/controller/store"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	trustv1 "github.com/homeiac/homelab/gen/homelab/trust/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/daemon"
	"github.com/homeiac/homelab/internal/gossip"
	"github.com/homeiac/homelab/internal/mark"
	"github.com/homeiac/homelab/internal/rpc"
)

// lastWords is how long the end of a run may take to be written down when the
// controller ends.
const lastWords = 3 * time.Second

// Controller is one controller process.
type Controller struct {
	cfg     Config
	version string
	log     *slog.Logger
	now     func() time.Time
	creds   *rpc.Credentials
	fleet   string
	signer  signer
	issuing issuing
	pusher  *pusher
	seldom  seldom
	// rotating is held by the one rotation of the gossip's keys, and rooting by the one
	// change of roots or issuing CAs.
	rotating, rooting sync.Mutex
	gossip            *gossip.Gossip // nil in tests that bring their own Peers
	agents            *agents
	seeing            *observer
	pace              pace
	track             *tracker
	// make is plan.Make but in tests that bring a planner of their own.
	make func(plan.Want, plan.Seen, time.Time) *homelabv1.Plan

	store *store.Store // open while Run is
	// life ends with the process; a run outlives the call that asked for it, but
	// not this.
	life context.Context
	runs sync.WaitGroup

	mu      sync.Mutex
	address string // of the gRPC server, once it listens
	enrolAt string // and of the one for those without a certificate
	stored  map[string]store.Host
	callers map[string]bool // whose certificates were remembered in this life
	atWork  map[string]bool // guests that a run of this controller works on
	listens chan struct{}
}

// New reads keys and certificates and prepares everything; it opens no
// connection. The version is the program's own, for people.
func New(cfg Config, version string, log *slog.Logger) (*Controller, error) {
	creds, err := rpc.LoadTLS(cfg.CA, cfg.Cert, cfg.Key)
	if err != nil {
		return nil, err
	}
	creds.Log = log
	id := creds.Identity()
	if id.Role != rpc.RoleController || id.Name != cfg.Name {
		return nil, rpc.Errorf(rpc.ErrInvalid, "%s is the certificate of %s, this is controller@%s; correct cert or name in the configuration", cfg.Cert, id, cfg.Name)
	}
	text, err := os.ReadFile(cfg.FleetKey)
	if err != nil {
		return nil, rpc.Errorf(rpc.ErrInvalid, "fleet key: %w", err)
	}
	key, err := mark.ParseKey(text)
	if err != nil {
		return nil, rpc.Errorf(rpc.ErrInvalid, "%s: %w", cfg.FleetKey, err)
	}
	gossipKeys, err := gossip.ReadKeys(cfg.GossipKeys)
	if err != nil {
		return nil, err
	}
	g, err := gossip.New(gossip.Config{
		Name: cfg.Name, Role: rpc.RoleController, Advertise: cfg.Advertise, Port: cfg.GossipPort,
		RPCAddress: net.JoinHostPort(cfg.Advertise, strconv.Itoa(cfg.Port)), Version: version,
		Seeds: cfg.Seeds, Keys: gossipKeys, Log: log,
	})
	if err != nil {
		return nil, err
	}
	ca, err := loadIssuing(cfg, id.Fleet)
	if err != nil {
		return nil, err
	}
	c := newController(cfg, version, log, creds, key, g)
	c.gossip = g
	return c, c.setIssuing(ca)
}

func newController(cfg Config, version string, log *slog.Logger, creds *rpc.Credentials, key mark.Key, peers Peers) *Controller {
	c := &Controller{
		cfg: cfg, version: version, log: log, now: time.Now, creds: creds, fleet: creds.Identity().Fleet,
		pace: usualPace, listens: make(chan struct{}), stored: make(map[string]store.Host), callers: make(map[string]bool),
		atWork: make(map[string]bool), make: plan.Make, track: newTracker(),
	}
	c.signer = signer{fleet: c.fleet, key: key}
	c.pusher = newPusher(c)
	c.agents = newAgents(creds, log)
	c.seeing = newObserver(c.agents, peers, log, func() time.Time { return c.now() })
	c.seeing.removed = c.removed
	return c
}

// Run serves until ctx ends: then nothing new is begun, steps that agents carry
// out go on there, and the run is remembered as interrupted. It returns nil when
// ctx was why.
func (c *Controller) Run(ctx context.Context) (err error) {
	// In force before anything is called or served.
	if err := os.MkdirAll(c.cfg.State, 0o700); err != nil {
		return err
	}
	if err := c.creds.KeepRevocations(filepath.Join(c.cfg.State, "revocations.pem")); err != nil {
		return err
	}
	st, err := store.Open(ctx, store.Config{
		Dir: filepath.Join(c.cfg.State, "store"), Endpoints: c.cfg.Etcd.Endpoints,
		CA: c.cfg.Etcd.CA, Cert: c.cfg.Etcd.Cert, Key: c.cfg.Etcd.Key,
		Fleet: c.fleet, Controller: c.cfg.Name, Log: c.log,
	})
	if err != nil {
		return err
	}
	defer st.Close()
	defer c.agents.close()
	c.store = st
	life, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(errEnding)
	c.life = life
	if err := c.recall(ctx); err != nil {
		return err
	}
	// Before anybody is served or called.
	err = c.syncTrust(ctx)
	// First whether it was removed: then no root in the store need be one of its own, which
	// would have it started again and again.
	if err := cmp.Or(c.takenBack(ctx), err); err != nil {
		return err
	}
	if err := c.standAlone(ctx); err != nil {
		return err
	}
	server, err := rpc.Listen(ctx, rpc.ServerConfig{
		Address:     net.JoinHostPort(c.cfg.Advertise, strconv.Itoa(c.cfg.Port)),
		Credentials: c.creds,
		Allow:       rpc.AllowOf(controllerv1.ControllerService_ServiceDesc.ServiceName, trustv1.TrustService_ServiceDesc.ServiceName),
		Audit:       c.auditor(), Grace: lastWords + time.Second, Log: c.log,
	}, func(r grpc.ServiceRegistrar) {
		controllerv1.RegisterControllerServiceServer(r, &service{c: c})
		trustv1.RegisterTrustServiceServer(r, &trustService{c: c})
	})
	if err != nil {
		return err
	}
	enrol, err := c.listenEnrol(ctx)
	if err != nil {
		_ = server.Close()
		return err
	}
	c.mu.Lock()
	c.address = server.Addr().String()
	if enrol != nil {
		c.enrolAt = enrol.Addr().String()
	}
	c.mu.Unlock()
	close(c.listens)
	began, whole := daemon.Begin(c.cfg.State, c.log), ctx
	defer func() { began.End(whole, err) }()
	c.log.Info("serving", "name", c.cfg.Name, "address", server.Addr().String(), "fleet", c.fleet, "version", c.version, "because", began.Because)
	supervisor := daemon.Supervised(c.log)
	supervisor.Ready(fmt.Sprintf("controller %s of fleet %s, serving on %s", c.cfg.Name, c.fleet, server.Addr()))
	context.AfterFunc(ctx, func() {
		supervisor.Ending("ends; what agents carry out goes on there")
		end(errEnding)
	})

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return server.Run(ctx) })
	g.Go(func() error { return c.watch(ctx) })
	g.Go(func() error { return c.pulse(ctx, supervisor) })
	g.Go(func() error { return c.watchTrust(ctx) })
	g.Go(func() error { return c.pusher.run(ctx) })
	if enrol != nil {
		g.Go(func() error { return enrol.Run(ctx) })
		renewal := &rpc.Renewal{Credentials: c.creds, Renew: c.renewOwn, Log: c.log}
		g.Go(func() error { return renewal.Run(ctx) })
	}
	if c.gossip != nil {
		g.Go(func() error { return c.gossip.Run(ctx) })
	}
	err = g.Wait()
	end(errEnding)
	c.runs.Wait()
	return err
}

var errEnding = fmt.Errorf("the controller is ending; run it again when it is back: hlctl apply")

// recall reads what was remembered: a new epoch begins, runs of a life that was
// killed are marked, and hosts and guests have their last state.
func (c *Controller) recall(ctx context.Context) error {
	if _, err := c.store.RaiseEpoch(ctx, 0); err != nil {
		return err
	}
	if err := c.store.Interrupt(ctx, c.now()); err != nil {
		return err
	}
	if err := c.store.InterruptActs(ctx); err != nil {
		return err
	}
	hosts, err := c.store.Hosts(ctx)
	if err != nil {
		return err
	}
	histories, err := c.store.Histories(ctx)
	if err != nil {
		return err
	}
	c.track.recall(histories)
	c.stored = hosts
	for name, h := range hosts {
		c.seeing.remember(name, h)
	}
	return nil
}
