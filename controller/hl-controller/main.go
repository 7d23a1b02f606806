// Command hl-controller finds the agents of a fleet and carries out what a Spec
// asks for.
package main

import (
	"context"
	"log/slog"

	"github.com/homeiac/homelab/controller"
	"github.com/homeiac/homelab/internal/daemon"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/version"
)

func main() {
	daemon.Main(daemon.Command("hl-controller", "Finds the agents of a fleet and carries out what a Spec asks for", "/etc/homelab/controller.yaml", run))
}

func run(ctx context.Context, file string, log *slog.Logger) error {
	cfg, err := controller.LoadConfig(file)
	if err != nil {
		return rpc.Errorf(rpc.ErrInvalid, "%w", err)
	}
	c, err := controller.New(cfg, version.String(), log)
	if err != nil {
		return err
	}
	return c.Run(ctx)
}
