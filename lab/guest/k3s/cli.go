package k3s

import (
	"context"
	"fmt"
	"path"
	"strings"

	"github.com/homeiac/homelab/lab/guest/shell"
	"github.com/homeiac/homelab/lab/guest/system"
)

// Install adds k3s to a guest's shell: whatever file holds a stand-in binary is
// k3s, and kubectl when it is called by that name.
func Install(o *system.OS) {
	o.Shell.AddProgram("hl-lab-k3s", func(ctx context.Context, c *shell.Call) int { return command(ctx, c, o) })
}

func command(ctx context.Context, c *shell.Call, o *system.OS) int {
	args := c.Argv[1:]
	switch c.Name() {
	case "kubectl":
		return kubectl(ctx, c, o, args)
	case "crictl", "ctr":
		return c.Refuse("there are no containers")
	}
	if len(args) == 0 {
		c.Printf("NAME:\n   k3s - Kubernetes, but small and simple\n\nUSAGE:\n   k3s [global options] command [command options] [arguments...]\n")
		return 0
	}
	switch args[0] {
	case "--version", "-v":
		c.Printf("k3s version %s (%s)\ngo version go1.26.0\n", c.Rest, commit)
		return 0
	case "server", "agent":
		return daemon(ctx, c, o, args[0], args[1:])
	case "kubectl":
		return kubectl(ctx, c, o, args[1:])
	case "etcd-snapshot":
		return snapshot(ctx, c, o, args[1:])
	}
	return c.Refuse("command " + strings.Join(args, " "))
}

// daemon runs a server or an agent; its end is fatal, as systemd sees it.
func daemon(ctx context.Context, c *shell.Call, o *system.OS, role string, args []string) int {
	for _, a := range args {
		if strings.HasPrefix(a, "--cluster-reset") {
			return c.Refuse(a)
		}
	}
	p, err := newProcess(c, o, role, args)
	if err == nil {
		if role == "server" {
			err = p.serve(ctx)
		} else {
			err = p.runAgent(ctx)
		}
	}
	if ctx.Err() != nil {
		return 0 // SIGTERM is a clean end
	}
	if err != nil {
		p.logf("fatal", "%v", err)
	}
	return 1
}

// local makes the surroundings of a command that reads this server's files.
func local(c *shell.Call, o *system.OS) *process {
	return &process{o: o, v: c.FS(), out: c.Stderr, version: c.Rest, name: strings.ToLower(o.Hostname()), addr: o.Address()}
}

func usage(c *shell.Call, format string, a ...any) int {
	fmt.Fprintf(c.Stderr, format+"\n", a...)
	return 1
}

const snapshotDir = dataDir + "/server/db/snapshots"

func clean(dir, name string) string { return path.Join(dir, path.Base(name)) }
