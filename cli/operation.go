package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/spf13/cobra"
)

// asked is what a person wants carried out: a Spec, or one thing by its name. Both
// go the same way: plan, show, confirm, carry out, tell.
type asked struct {
	spec      []byte
	specName  string
	operation *controllerv1.Operation // nil: the Spec is to be made so
	destroy   []string                // confirmed by name on the command line
	again     string                  // how its plan can be looked at
}

func askedBySpec(file string, destroy []string) (*asked, error) {
	f, err := specForController(file)
	if err != nil {
		return nil, err
	}
	return &asked{spec: f.text, specName: f.name, destroy: destroy, again: "hlctl plan -f " + file}, nil
}

func (q *asked) applyRequest(p *homelabv1.Plan, o applyOptions) *controllerv1.ApplyRequest {
	return &controllerv1.ApplyRequest{
		Spec: q.spec, SpecName: q.specName, Operation: q.operation, Digest: p.GetDigest(), Yes: o.yes, Destroy: o.destroy,
	}
}

// askPlan asks a controller for the plan. The controller is to be closed, unless
// there is an error.
func (a *app) askPlan(ctx context.Context, q *asked) (*controller, *controllerv1.PlanResponse, error) {
	c, err := a.connect(ctx)
	if err != nil {
		return nil, nil, err
	}
	resp, err := ask(ctx, c.Plan, &controllerv1.PlanRequest{Spec: q.spec, SpecName: q.specName, Operation: q.operation, Destroy: q.destroy})
	if err != nil {
		c.close()
		return nil, nil, err
	}
	return c, resp, nil
}

// tooMuch is the error of a plan that destroys more than was confirmed.
func (q *asked) tooMuch(guests string) error {
	return fmt.Errorf("the plan now destroys more than the one that was confirmed (of %s); look at it with %s", guests, q.again)
}

// carry is the whole way of what is asked.
func (a *app) carry(ctx context.Context, q *asked, o applyOptions) error {
	start := a.now()
	c, resp, err := a.askPlan(ctx, q)
	if err != nil {
		return err
	}
	defer c.close()
	plan := resp.GetPlan()
	// --yes plans again once, and once more when what was waited for has come.
	left, waited := 1, false
	for ; ; left-- {
		confirmed := o
		if confirmed.destroy, err = a.confirm(ctx, plan, o); err != nil {
			return err
		}
		changed, err := a.carryOut(ctx, c, q, plan, confirmed, start)
		if err != nil || changed == nil {
			return err
		}
		if len(awaited(plan)) > 0 {
			if !waited {
				left, waited = left+1, true
			}
			fmt.Fprintln(a.errw, "The wait is over; nothing was done yet. This is the plan now.")
		} else {
			fmt.Fprintln(a.errw, "The world changed since that plan was made; nothing was done.")
		}
		// --yes stands for what was shown, not for whatever comes.
		more := destroysMore(plan, changed)
		switch {
		case o.yes && more != "":
			return q.tooMuch(more)
		case o.yes && left == 0:
			return errors.New("it changed again and again; look what goes on with hlctl status, then the same command")
		}
		plan = changed
	}
}

// confirm shows a plan with steps and asks; a plan without steps needs neither. It
// gives the guests whose destruction is confirmed by name: those of the command
// line, and those that the person typed.
func (a *app) confirm(ctx context.Context, p *homelabv1.Plan, o applyOptions) ([]string, error) {
	if len(p.GetSteps()) == 0 {
		return o.destroy, nil
	}
	if a.format == "table" {
		a.showPlan(p, "")
	}
	var open []string
	flags := ""
	for _, guest := range p.GetByName() {
		if !slices.Contains(o.destroy, guest) {
			open = append(open, guest)
			flags += " --destroy " + guest
		}
	}
	switch {
	case o.yes && len(open) > 0:
		return nil, fmt.Errorf("nothing was done: --yes does not confirm that %s %s destroyed; the same command with%s does", enumerate(open), isAre(len(open)), flags)
	case o.yes:
		return o.destroy, nil
	case a.format != "table":
		return nil, fmt.Errorf("nothing was done: -o %s does not ask; confirm with --yes%s", a.format, flags)
	case !a.inIsTerm:
		return nil, fmt.Errorf("nothing was done: there is no terminal to ask on; confirm with --yes%s", flags)
	}
	if len(open) == 0 {
		answer, err := a.question(ctx, "Do it? [y/N] ")
		if err == nil && !strings.EqualFold(answer, "y") && !strings.EqualFold(answer, "yes") {
			err = errors.New("nothing was done: it was not confirmed")
		}
		return o.destroy, err
	}
	for _, guest := range open {
		answer, err := a.question(ctx, "Do it? Type "+guest+" to have it destroyed: ")
		if err != nil {
			return nil, err
		}
		if answer != guest {
			return nil, fmt.Errorf("nothing was done: %q is not %s", answer, guest)
		}
	}
	return append(slices.Clone(o.destroy), open...), nil
}

// question asks where a person sees it, also when the plan goes to a file.
func (a *app) question(ctx context.Context, text string) (string, error) {
	fmt.Fprint(a.errw, text)
	answer, err := a.readLine(ctx)
	if err != nil {
		fmt.Fprintln(a.errw)
		return "", fmt.Errorf("nothing was done: %w", err)
	}
	return answer, nil
}

// operationText is how a command of an operation teaches.
type operationText struct {
	use, short, long, example string
}

// operationExits is the end of the help of every operation.
const operationExits = `

It shows the plan and asks first, as apply does; --yes does not ask. It works with
the last Spec that was applied, and nothing else is changed.

Exit codes: 0 done or nothing to do, 1 failed or nothing was done, 3 partial.`

// operationCommand is a command that asks for one thing by the name of a guest, or
// without one.
func (a *app) operationCommand(kind controllerv1.OperationKind, text operationText, args cobra.PositionalArgs) *cobra.Command {
	var o applyOptions
	op := &controllerv1.Operation{Kind: kind}
	cmd := &cobra.Command{
		Use: text.use, Short: text.short, Long: text.long + operationExits, Example: text.example, Args: args,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				op.Guest = args[0]
			}
			return a.carry(cmd.Context(), askedByName(op, o), o)
		},
	}
	applyFlags(cmd, &o)
	if kind == controllerv1.OperationKind_OPERATION_KIND_ADOPT {
		cmd.Flags().StringVar(&op.Host, "host", "", "the host of the VM (default the guest's in the Spec)")
		cmd.Flags().Int32Var(&op.Vmid, "vmid", 0, "the VMID of the VM (default the guest's in the Spec)")
	}
	return cmd
}

func askedByName(op *controllerv1.Operation, o applyOptions) *asked {
	return &asked{operation: op, destroy: o.destroy, again: "the same command without --yes"}
}

// guestOperations are the operations on a guest's VM.
func (a *app) guestOperations() []*cobra.Command {
	one := func(kind controllerv1.OperationKind, text operationText) *cobra.Command {
		return a.operationCommand(kind, text, cobra.ExactArgs(1))
	}
	return []*cobra.Command{
		one(controllerv1.OperationKind_OPERATION_KIND_RECREATE, operationText{
			"recreate GUEST", "Destroy a guest and make it anew, keeping its identity",
			`recreate makes a guest anew, however it is: with the same VMID, MAC, uuid, addresses
and devices, and a fresh system disk from its image. Its configuration and an etcd
snapshot are saved first, it leaves the cluster in the safe order and joins it again,
and its data disks travel through a holder VM.

A guest whose policy is report, or of which more than its system disk is lost, must be
confirmed by its name: typed on a terminal, or --destroy GUEST.`,
			"  hlctl guests recreate k3s-2\n  hlctl guests recreate k3s-2 --yes --destroy k3s-2",
		}),
		one(controllerv1.OperationKind_OPERATION_KIND_DELETE, operationText{
			"delete GUEST", "Leave the cluster and destroy a guest for good",
			`delete has a guest leave the cluster and destroys its VM and its system disk. This is
the only way to destroy a guest that is no longer in the Spec.

Its data disks are not destroyed: they stay in its holder VM hl-holder-GUEST on the
same host; hlctl orphans shows it. As long as the guest is in the Spec, the next
apply makes it again and brings them back.

The guest's name must be confirmed: typed on a terminal, or --destroy GUEST.`,
			"  hlctl guests delete k3s-5\n  hlctl guests delete k3s-5 --yes --destroy k3s-5",
		}),
		one(controllerv1.OperationKind_OPERATION_KIND_ADOPT, operationText{
			"adopt GUEST", "Take over a VM that was made elsewhere",
			`adopt makes a VM that exists the guest GUEST of the Spec: it remembers the VM's uuid
and writes a mark into its description. Nothing else is changed, in the VM or in the
guest. It shows what it takes over, and where that differs from the Spec.

An adopted guest is never mended by itself: its policy is report, unless its own entry
in the Spec (not defaults) says otherwise.`,
			"  hlctl guests adopt media\n  hlctl guests adopt media --host pve2 --vmid 117",
		}),
		one(controllerv1.OperationKind_OPERATION_KIND_START, operationText{
			"start GUEST", "Start a guest's VM and wait until it has booted",
			"start starts the VM of a guest and waits until it has booted.", "  hlctl guests start k3s-2",
		}),
		one(controllerv1.OperationKind_OPERATION_KIND_STOP, operationText{
			"stop GUEST", "Stop a guest's VM",
			`stop shuts the VM of a guest down. The plan warns of what that means: of a server
whose vote is missed, and that the next apply starts it again unless the Spec wants it
stopped.`,
			"  hlctl guests stop k3s-2",
		}),
		one(controllerv1.OperationKind_OPERATION_KIND_RESTART, operationText{
			"restart GUEST", "Stop and start a guest's VM",
			`restart shuts the VM of a guest down, starts it and waits until it has booted and, as
a member, is Ready again.`,
			"  hlctl guests restart k3s-2 --yes",
		}),
	}
}

// k3sOperations are the operations on the membership in the cluster.
func (a *app) k3sOperations() []*cobra.Command {
	one := func(kind controllerv1.OperationKind, text operationText) *cobra.Command {
		return a.operationCommand(kind, text, cobra.ExactArgs(1))
	}
	snapshot := a.operationCommand(controllerv1.OperationKind_OPERATION_KIND_SNAPSHOT, operationText{
		"snapshot", "Take an etcd snapshot and keep it on a host",
		`snapshot takes an etcd snapshot through a healthy server and keeps it, with the server
token that a restore needs, on that server's host, where only root can read it.`,
		"  hlctl k3s snapshot\n  hlctl k3s snapshot ls",
	}, cobra.NoArgs)
	snapshot.AddCommand(a.snapshotListCommand())
	return []*cobra.Command{
		one(controllerv1.OperationKind_OPERATION_KIND_JOIN, operationText{
			"join GUEST", "Join a guest to the cluster",
			`join installs k3s in a guest and joins it as the Spec says, until its Node is Ready
and, for a server, until it is a voter. Leftovers of an older k3s in the guest are
removed first. A join that fails takes back what it added.`,
			"  hlctl k3s join k3s-3",
		}),
		one(controllerv1.OperationKind_OPERATION_KIND_REMOVE, operationText{
			"remove GUEST", "Have a guest leave the cluster; its VM stays",
			`remove has a guest leave the cluster in the safe order: drain, stop k3s and see it
stopped, remove its etcd member, its Node and its node password, and see all three
gone. The k3s in the guest is removed with its data; the VM stays.

It is refused where the cluster would lose its quorum, and the plan shows the
arithmetic. It works too when the VM or its host is gone.`,
			"  hlctl k3s remove k3s-3",
		}),
		one(controllerv1.OperationKind_OPERATION_KIND_REJOIN, operationText{
			"rejoin GUEST", "Leave the cluster and join it again",
			`rejoin has a guest leave the cluster as remove does, removes the k3s in it, and joins
it again. The VM stays as it is; for a new one: hlctl guests recreate GUEST.`,
			"  hlctl k3s rejoin k3s-3 --yes",
		}),
		snapshot,
	}
}
