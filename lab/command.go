package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// exitError carries the exit code of a simulated program through cobra.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit %d", int(e)) }

// ExitCode tells the exit code that an error of the command asks for, when it
// asks for one and nothing more is to be said.
func ExitCode(err error) (int, bool) {
	var e exitError
	ok := errors.As(err, &e)
	return int(e), ok
}

// Command is the hl-lab command line.
func Command() *cobra.Command {
	root := &cobra.Command{
		Use:   "hl-lab",
		Short: "A datacenter on one machine: simulated Proxmox hosts, real agents and controllers",
		Long: `hl-lab makes a datacenter in a folder: simulated Proxmox hosts with real hl-agent
processes, real hl-controller processes, and guests that are processes with an SSH
server and a simulated k3s above a real etcd. Everything listens on 127.x addresses
and nothing outside the folder is touched. It needs no root.

  hl-lab up --dir /tmp/lab --detach
  hlctl --config /tmp/lab/hlctl.yaml apply -f /tmp/lab/homelab.yaml
  hl-lab down --dir /tmp/lab`,
		SilenceUsage: true, SilenceErrors: true,
	}
	root.AddCommand(upCommand(), downCommand(), qmCommand(), faultCommand(), tourCommand(), demoCommand(), hostCommand(), etcdCommand(), impostorCommand(), furnishCommand())
	return root
}

func dirFlag(cmd *cobra.Command) *string {
	dir := cmd.Flags().String("dir", "", "the lab's folder")
	if err := cmd.MarkFlagRequired("dir"); err != nil {
		panic(err) // the flag was defined one line above
	}
	return dir
}

func upCommand() *cobra.Command {
	var o Options
	var detach bool
	cmd := &cobra.Command{
		Use: "up --dir DIR", Short: "Start a lab, or what is not running of it", Args: cobra.NoArgs,
		Long: `up makes a lab in DIR, or starts what is not running of the one there; with more
--hosts it adds them. It prints "ready" when every agent answers. DIR/hlctl.yaml is
the configuration for hlctl, DIR/homelab.yaml a Spec for the lab's hosts (and
DIR/homelab-N.yaml beside it when hosts were added).`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			l, err := Up(ctx, o)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "ready")
			if detach {
				return nil
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "Ctrl-C ends the lab.  hlctl --config %s hosts\n", l.path("hlctl.yaml"))
			l.awaitEnd(ctx)
			return l.Down()
		},
	}
	dir := dirFlag(cmd)
	cmd.PreRun = func(*cobra.Command, []string) { o.Dir = *dir }
	f := cmd.Flags()
	f.IntVar(&o.Hosts, "hosts", 0, "number of hosts (5 for a new lab)")
	f.IntVar(&o.Controllers, "controllers", 0, "number of controllers (1 for a new lab)")
	f.StringVar(&o.QMCost, "qm-cost", "", "real: simulated programs take the time the real ones were measured to take; none (a new lab's) does not")
	f.StringVar(&o.PVE, "pve", "", "cluster (a new lab's): one Proxmox cluster; standalone: each host for itself")
	f.DurationVar(&o.LearnerTick, "learner-tick", 0, "how often etcd learners are promoted (15s for a new lab, as in life)")
	f.DurationVar(&o.NodeGrace, "node-grace", 0, "until a Node whose kubelet is silent is not Ready (5s for a new lab; 40s in life)")
	f.IntVar(&o.AgentOutput, "agent-output", 0, "how many bytes of a command's output the guest agent keeps (16777216 for a new lab, as in life)")
	f.DurationVar(&o.Boot, "boot-time", 0, "how long a guest takes to boot (300ms for a new lab)")
	f.DurationVar(&o.CloudInit, "cloud-init-time", 0, "how long its cloud-init takes (500ms for a new lab)")
	f.BoolVar(&detach, "detach", false, "return when it is ready and leave it running")
	return cmd
}

// awaitEnd returns when ctx ends or somebody else has ended the lab.
func (l *Lab) awaitEnd(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if list, err := l.processes(l.Dir); err == nil && len(withoutCallers(list)) == 0 {
			return
		}
	}
}

func downCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "down --dir DIR", Short: "End a lab's processes; its folder stays", Args: cobra.NoArgs}
	dir := dirFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		l, err := Open(*dir)
		if err != nil {
			return err
		}
		return l.Down()
	}
	return cmd
}

func qmCommand() *cobra.Command {
	// Its flags are qm's, so only --dir before HOST is ours.
	cmd := &cobra.Command{
		Use: "qm --dir DIR HOST ARGS...", Short: "Run qm on a host, as its administrator", DisableFlagParsing: true,
		Example: "  hl-lab qm --dir /tmp/lab pve2 stop 202",
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		dir, rest, err := dirFirst(args)
		if err != nil {
			return err
		}
		if dir == "" || len(rest) < 1 {
			return cmd.Help()
		}
		l, err := Open(dir)
		if err != nil {
			return err
		}
		if code := l.QM(cmd.Context(), rest[0], rest[1:], os.Stdin, cmd.OutOrStdout(), cmd.ErrOrStderr()); code != 0 {
			return exitError(code)
		}
		return nil
	}
	return cmd
}

// dirFirst takes --dir DIR or --dir=DIR from the front of args.
func dirFirst(args []string) (dir string, rest []string, err error) {
	switch {
	case len(args) > 0 && (args[0] == "-h" || args[0] == "--help"), len(args) == 0:
		return "", nil, nil
	case strings.HasPrefix(args[0], "--dir="):
		return strings.TrimPrefix(args[0], "--dir="), args[1:], nil
	case args[0] == "--dir" && len(args) > 1:
		return args[1], args[2:], nil
	}
	return "", nil, errors.New("--dir DIR comes first, as in: hl-lab qm --dir /tmp/lab pve2 stop 202")
}

func faultCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "fault --dir DIR KIND TARGET [VALUE]", Short: "Break something in a lab, or mend it",
		Long: "fault breaks something; the value off mends what has no opposite of its own.\n\n  " + strings.Join(FaultKinds(), "\n  "),
		Args: cobra.MinimumNArgs(2),
	}
	dir := dirFlag(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		l, err := Open(*dir)
		if err != nil {
			return err
		}
		return l.Fault(args[0], args[1], args[2:]...)
	}
	return cmd
}

func tourCommand() *cobra.Command {
	return &cobra.Command{
		Use: "tour", Short: "Show the main job from nothing, in under two minutes", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			bin, err := ownFolder()
			if err != nil {
				return err
			}
			return Tour(cmd.Context(), bin, cmd.OutOrStdout())
		},
	}
}

// furnishCommand makes a lab whose hosts are machines by themselves: nothing is started,
// and each machine makes its host with hl-lab host --own.
func furnishCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "furnish --dir DIR --net A.B.C", Hidden: true, Args: cobra.NoArgs}
	dir := dirFlag(cmd)
	var o Options
	f := cmd.Flags()
	f.StringVar(&o.Net, "net", "", "the first three numbers of the lab's addresses")
	f.IntVar(&o.Hosts, "hosts", 3, "number of hosts")
	f.DurationVar(&o.LearnerTick, "learner-tick", 0, "how often etcd learners are promoted")
	f.StringVar(&o.QMCost, "qm-cost", "", "real or none")
	cmd.RunE = func(*cobra.Command, []string) error {
		o.Dir, o.SSHPort = *dir, 22
		l, err := prepare(o)
		if err != nil {
			return err
		}
		return l.furnish(time.Now())
	}
	return cmd
}

// hostCommand, etcdCommand and impostorCommand are the lab's own daemons.
func hostCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "host --dir DIR NAME", Hidden: true, Args: cobra.ExactArgs(1)}
	dir := dirFlag(cmd)
	own := cmd.Flags().Bool("own", false, "this machine is the host; its /etc/pve and Proxmox's programs are made first")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		l, err := Open(*dir)
		if err != nil {
			return err
		}
		if *own {
			if err := l.layOwnHost(args[0], time.Now()); err != nil {
				return fmt.Errorf("make %s of this machine: %w", args[0], err)
			}
		}
		m, err := NewMachine(l, args[0], slog.New(slog.NewTextHandler(os.Stderr, nil)))
		if err != nil {
			return err
		}
		return m.Run(cmd.Context())
	}
	return cmd
}

func impostorCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "impostor --dir DIR GUEST", Hidden: true, Args: cobra.ExactArgs(1)}
	dir := dirFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		l, err := Open(*dir)
		if err != nil {
			return err
		}
		return l.RunImpostor(cmd.Context(), args[0])
	}
	return cmd
}

func etcdCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "etcd --dir DIR", Hidden: true, Args: cobra.NoArgs}
	dir := dirFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		l, err := Open(*dir)
		if err != nil {
			return err
		}
		return l.RunEtcd(cmd.Context())
	}
	return cmd
}
