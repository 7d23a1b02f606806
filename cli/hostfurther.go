package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/homeiac/homelab/internal/rpc"
)

// etcdFlags say which etcd a further controller shares with the others.
type etcdFlags struct{}

func (f *etcdFlags) add(*cobra.Command) {}

func (f *etcdFlags) check(bool) error { return nil }

func (h *addedHost) furtherController(context.Context) (string, bool, error) {
	return "", false, rpc.Errorf(rpc.ErrUnsupported, "not yet")
}
