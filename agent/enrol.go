package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"

	trustv1 "github.com/homeiac/homelab/gen/homelab/trust/v1"
	"github.com/homeiac/homelab/internal/config"
	"github.com/homeiac/homelab/internal/enrol"
	"github.com/homeiac/homelab/internal/rpc"
)

// Enrol gets this host its certificate. It is safe to repeat.
func Enrol(ctx context.Context, q enrol.Request) error {
	role := enrol.Role{
		Name: rpc.RoleAgent, Program: "hl-agent", Own: "this is an agent; make one with: hlctl token create HOST", State: defaultState,
		Load: func(file string) (config.Daemon, error) {
			cfg, err := LoadConfig(file)
			return cfg.Daemon, err
		},
		New:   func(config.Daemon) error { return nil },
		Ready: func() error { return nil },
		Address: func() (string, error) {
			address, err := towards(q.Controller)
			if err == nil {
				fmt.Fprintf(q.Out, "this host is reached at %s, as it reaches the controller; if that is wrong, correct advertise in %s\n", address, q.Config)
			}
			return address, err
		},
		Text: func() string { return "" }, Mode: 0o600,
		Done: prime,
	}
	return role.Enrol(ctx, q)
}

// prime puts into the agent's state what it would be told at its first start:
// who is revoked, and which controller to ask.
func prime(d config.Daemon, told *trustv1.Trust) error {
	if err := os.MkdirAll(d.State, 0o700); err != nil {
		return err
	}
	creds, err := rpc.LoadTLS(d.CA, d.Cert, d.Key)
	if err != nil {
		return err
	}
	t, err := openTrust(Config{Daemon: d}, creds, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	return t.take(told)
}

// towards is our address on the way to another. No packet is sent.
func towards(address string) (string, error) {
	conn, err := net.Dial("udp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	host, _, err := net.SplitHostPort(conn.LocalAddr().String())
	return host, err
}
