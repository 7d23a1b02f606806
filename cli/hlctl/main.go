// Command hlctl is the command line of the product.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/homeiac/homelab/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := cli.Command().ExecuteContext(ctx)
	if err != nil {
		if text := cli.Explain(err); text != "" {
			fmt.Fprintln(os.Stderr, text)
		}
	}
	os.Exit(cli.ExitCode(err))
}
