// Command hl-lab is a datacenter on one machine, for tests and demos. Called
// under the name of one of Proxmox's programs it is that program, simulated.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/homeiac/homelab/lab"
	"github.com/homeiac/homelab/lab/guest"
	"github.com/homeiac/homelab/lab/pve"
)

func main() {
	switch filepath.Base(os.Args[0]) {
	case "qm", "pvesm", "pvesh", "pveversion":
		os.Exit(pve.Main(os.Args, os.Stdin, os.Stdout, os.Stderr))
	case "kvm":
		os.Exit(guest.KVM(os.Args))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := lab.Command().ExecuteContext(ctx); err != nil {
		if code, ok := lab.ExitCode(err); ok {
			os.Exit(code)
		}
		fmt.Fprintln(os.Stderr, "hl-lab:", err)
		os.Exit(1)
	}
}
