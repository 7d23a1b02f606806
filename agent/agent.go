// Package agent is the daemon on a Proxmox host: it tells controllers what the
// host holds and carries out their steps, through a driver for the VMs, a shell
// in the guests and the files of the host. It decides nothing by itself: what is
// to be done, and in which order, is the controller's plan.
package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/homeiac/homelab/agent/driver"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	"github.com/homeiac/homelab/internal/daemon"
	"github.com/homeiac/homelab/internal/gossip"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/version"
)

// Agent is the daemon.
type Agent struct {
	cfg Config
	log *slog.Logger
}

// New makes an agent; it does nothing yet.
func New(cfg Config, log *slog.Logger) *Agent { return &Agent{cfg: cfg, log: log} }

// Run serves until ctx ends, and returns nil when the steps at work have ended: at
// once what waits or transfers, and what has a program at work on a VM when that
// ends or after stopGrace. Such a program goes on then, and is found again.
func (a *Agent) Run(ctx context.Context) (err error) {
	creds, err := rpc.LoadTLS(a.cfg.CA, a.cfg.Cert, a.cfg.Key)
	if err != nil {
		return err
	}
	creds.Log = a.log
	id := creds.Identity()
	if id.Role != rpc.RoleAgent || id.Name != a.cfg.Name {
		return rpc.Errorf(rpc.ErrInvalid, "the certificate %s is of %s, this is agent@%s; correct cert or name in the configuration", a.cfg.Cert, id, a.cfg.Name)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(a.cfg.State, "driver"), 0o700); err != nil {
		return err
	}
	creds.Log = a.log
	trust, err := openTrust(a.cfg, creds, a.log)
	if err != nil {
		return err
	}
	trust.begin(ctx)
	proc := driver.New(driver.Config{
		Command: a.cfg.driverCommand(self), Sockets: filepath.Join(a.cfg.State, "plugin"), Log: a.log.With("part", "driver"),
	})
	service, err := NewService(a.cfg, id.Fleet, proc, a.log)
	if err != nil {
		return err
	}
	service.trust = trust
	service.peers = &agents{credentials: creds, log: a.log}
	address := net.JoinHostPort(a.cfg.Advertise, strconv.Itoa(a.cfg.Port))
	server, err := rpc.Listen(ctx, rpc.ServerConfig{Address: address, Credentials: creds, Allow: allow(), Audit: journal(a.log), Log: a.log},
		func(r grpc.ServiceRegistrar) {
			agentv1.RegisterAgentServiceServer(r, service)
			agentv1.RegisterPeerServiceServer(r, &peerService{service: service})
		})
	if err != nil {
		return err
	}
	keys, err := gossip.ReadKeys(a.cfg.GossipKeys)
	if err != nil {
		_ = server.Close()
		return err
	}
	peers, err := gossip.New(gossip.Config{
		Name: a.cfg.Name, Role: rpc.RoleAgent, Advertise: a.cfg.Advertise, Port: a.cfg.GossipPort,
		RPCAddress: address, Version: version.String(), Seeds: a.cfg.Seeds, Keys: keys, Log: a.log,
	})
	if err != nil {
		_ = server.Close()
		return err
	}
	trust.setRing(peers.SetKeys)
	life, whole := daemon.Begin(a.cfg.State, a.log), ctx
	defer func() { life.End(whole, err) }()
	a.log.Info("agent starts", "name", a.cfg.Name, "fleet", id.Fleet, "address", address, "version", version.String(), "because", life.Because)
	supervisor := daemon.Supervised(a.log)
	service.flights.supervisor = supervisor
	g, ctx := errgroup.WithContext(ctx)
	context.AfterFunc(ctx, func() {
		supervisor.Ending("ends; what works on a VM is waited for, " + stopGrace.String() + " at most")
		proc.End()
	})
	// Who looks sees the agent and its last steps until these have ended: a host that
	// fell silent fails the run.
	base, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	g.Go(func() error { return proc.Run(base) })
	g.Go(func() error { defer end(); return service.Work(ctx) })
	g.Go(func() error { return server.Run(base) })
	g.Go(func() error { return peers.Run(base) })
	g.Go(func() error { return trust.follow(base, peers) })
	g.Go(func() error { return trust.keepAsking(base) })
	renewal := &rpc.Renewal{Credentials: creds, Renew: trust.renew, Wake: trust.roots, Log: a.log}
	g.Go(func() error { return renewal.Run(base) })
	g.Go(func() error {
		if answers(ctx, proc) {
			supervisor.Ready(fmt.Sprintf("host %s of fleet %s, serving on %s", a.cfg.Name, id.Fleet, address))
			a.log.Info("ready", "name", a.cfg.Name)
		}
		return nil
	})
	if err = g.Wait(); err != nil {
		return fmt.Errorf("agent %s: %w", a.cfg.Name, err)
	}
	return nil
}
