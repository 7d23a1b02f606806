package controller

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/homeiac/homelab/controller/store"
	trustv1 "github.com/homeiac/homelab/gen/homelab/trust/v1"
	"github.com/homeiac/homelab/internal/config"
	"github.com/homeiac/homelab/internal/enrol"
	"github.com/homeiac/homelab/internal/rpc"
)

// Enrol gets a further controller its certificate. The fleet's key and its issuing CA,
// which no controller gives to another, must be in the state folder already. endpoints
// are for a configuration that is written: those of the etcd that all controllers share.
// It is safe to repeat.
func Enrol(ctx context.Context, q enrol.Request, endpoints []string) error {
	var cfg Config
	role := enrol.Role{
		Name: rpc.RoleController, Program: "hl-controller", Own: "this is a controller; make one with: hlctl token create NAME --role controller",
		State: "/var/lib/hl-controller",
		Load: func(file string) (_ config.Daemon, err error) {
			cfg, err = LoadConfig(file)
			return cfg.Daemon, err
		},
		New: func(d config.Daemon) error {
			if len(endpoints) == 0 {
				return rpc.Errorf(rpc.ErrInvalid, "a further controller shares an etcd with the others: --etcd-endpoints https://IP:2379,...")
			}
			for _, e := range endpoints {
				if err := store.CheckEndpoint(e); err != nil {
					return fmt.Errorf("--etcd-endpoints: %w", err)
				}
			}
			in := func(file string) string { return filepath.Join(d.State, file) }
			cfg.FleetKey, cfg.IssuingCA, cfg.IssuingKey = in("fleet.key"), in("issuing-ca.pem"), in("issuing-ca.key")
			cfg.Etcd = EtcdConfig{Endpoints: endpoints, CA: in("etcd-ca.crt"), Cert: in("etcd.crt"), Key: in("etcd.key")}
			return nil
		},
		Ready: func() error {
			for _, file := range []string{cfg.FleetKey, cfg.IssuingCA, cfg.IssuingKey} {
				if _, err := os.Stat(file); err != nil {
					return rpc.Errorf(rpc.ErrInvalid, "%w; hlctl hosts add --controller puts it there", err)
				}
			}
			return nil
		},
		Address: func() (string, error) {
			return "", rpc.Errorf(rpc.ErrInvalid, "neither the token nor --advertise says this controller's IP address")
		},
		Text: func() string {
			return fmt.Sprintf("# Not the agent's, which is on the same host.\ngossipPort: 7947\nfleetKey: %s\nissuingCA: %s\nissuingKey: %s\n"+
				"etcd:\n  endpoints: [%s]\n  ca: %s\n  cert: %s\n  key: %s\n", cfg.FleetKey, cfg.IssuingCA, cfg.IssuingKey,
				enrol.Quoted(cfg.Etcd.Endpoints), cfg.Etcd.CA, cfg.Etcd.Cert, cfg.Etcd.Key)
		},
		Mode: 0o644, // it holds no secret, and the controller's own user reads it
		Done: func(d config.Daemon, _ *trustv1.Trust) error { return give(d.State, d.Key, d.Cert, d.CA, d.GossipKeys) },
	}
	return role.Enrol(ctx, q)
}

// give gives files to who has the state folder: systemd gives a new folder with all in
// it to the controller's user at the first start, and what comes later it does not look
// at.
func give(state string, files ...string) error {
	st, err := os.Stat(state)
	if err != nil {
		return err
	}
	owner, ok := st.Sys().(*syscall.Stat_t)
	if !ok || int(owner.Uid) == os.Geteuid() {
		return nil
	}
	for _, file := range files {
		if err := os.Lchown(file, int(owner.Uid), int(owner.Gid)); err != nil {
			return err
		}
	}
	return nil
}
