package controller

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/homeiac/homelab/controller/plan"
	"github.com/homeiac/homelab/controller/store"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/spec"
)

// asked is what is asked for beside the Spec.
type asked struct {
	op      *plan.Operation // nil: the Spec is made so
	destroy map[string]bool // guests whose destruction was confirmed by name
	heal    bool            // the controller acts by itself
}

var operations = map[controllerv1.OperationKind]plan.OperationKind{
	controllerv1.OperationKind_OPERATION_KIND_RECREATE:      plan.OpRecreate,
	controllerv1.OperationKind_OPERATION_KIND_DELETE:        plan.OpDelete,
	controllerv1.OperationKind_OPERATION_KIND_ADOPT:         plan.OpAdopt,
	controllerv1.OperationKind_OPERATION_KIND_START:         plan.OpStart,
	controllerv1.OperationKind_OPERATION_KIND_STOP:          plan.OpStop,
	controllerv1.OperationKind_OPERATION_KIND_RESTART:       plan.OpRestart,
	controllerv1.OperationKind_OPERATION_KIND_JOIN:          plan.OpJoin,
	controllerv1.OperationKind_OPERATION_KIND_REMOVE:        plan.OpRemove,
	controllerv1.OperationKind_OPERATION_KIND_REJOIN:        plan.OpRejoin,
	controllerv1.OperationKind_OPERATION_KIND_SNAPSHOT:      plan.OpSnapshot,
	controllerv1.OperationKind_OPERATION_KIND_CLEAR_ORPHANS: plan.OpClearOrphans,
	controllerv1.OperationKind_OPERATION_KIND_FETCH_IMAGES:  plan.OpFetchImages,
	controllerv1.OperationKind_OPERATION_KIND_PRUNE_IMAGES:  plan.OpPruneImages,
}

// operation is what a request asks for beside the Spec; nil for nothing.
func operation(op *controllerv1.Operation) (*plan.Operation, error) {
	if op.GetKind() == controllerv1.OperationKind_OPERATION_KIND_UNSPECIFIED {
		return nil, nil //nolint:nilnil // no operation is the usual case
	}
	kind, ok := operations[op.GetKind()]
	if !ok {
		return nil, rpc.Errorf(rpc.ErrUnsupported, "this controller knows no operation %d; it is older than hlctl: hlctl version", op.GetKind())
	}
	fleet := kind == plan.OpSnapshot || kind == plan.OpClearOrphans || kind == plan.OpFetchImages || kind == plan.OpPruneImages
	if !fleet && op.GetGuest() == "" {
		return nil, rpc.Errorf(rpc.ErrInvalid, "%s of which guest? see: hlctl guests", kind)
	}
	return &plan.Operation{
		Kind: kind, Guest: op.GetGuest(), Host: op.GetHost(), VMID: op.GetVmid(), Images: op.GetImages(), Newest: op.GetNewest(),
	}, nil
}

// wanted is the Spec that a request is about, and what it asks for beside. An
// operation alone is about the Spec that was applied last; last says so.
func (c *Controller) wanted(ctx context.Context, name string, text []byte, op *controllerv1.Operation, destroy []string) (sp *spec.Spec, ask asked, last bool, err error) {
	if ask.op, err = operation(op); err != nil {
		return nil, ask, false, err
	}
	ask.destroy = make(map[string]bool, len(destroy))
	for _, guest := range destroy {
		ask.destroy[guest] = true
	}
	if last = ask.op != nil && len(text) == 0; !last {
		sp, err = parseSpec(name, text)
		return sp, ask, last, err
	}
	if sp, err = c.lastSpec(ctx); err == nil && sp == nil {
		err = rpc.Errorf(rpc.ErrNotFound, "no Spec was applied yet; begin with: hlctl apply -f homelab.yaml")
	}
	return sp, ask, last, err
}

// known says whether the guest of an operation is in the Spec, remembered, or
// was seen as one of ours.
func known(sp *spec.Spec, w world) error {
	op := w.asked.op
	if op != nil && op.Kind == plan.OpFetchImages {
		return knownImages(sp, op)
	}
	if op == nil || op.Guest == "" || sp.Guests[op.Guest] != nil {
		return nil
	}
	if _, ok := w.guests[op.Guest]; ok {
		return nil
	}
	names := sp.GuestNames()
	for name := range w.guests {
		if sp.Guests[name] == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return rpc.Errorf(rpc.ErrNotFound, "there is no guest %s (there are %s); see: hlctl guests", op.Guest, strings.Join(names, ", "))
}

// knownImages says whether the images and the host of an operation are in the Spec.
func knownImages(sp *spec.Spec, op *plan.Operation) error {
	for _, name := range op.Images {
		if sp.Images[name] == nil {
			return rpc.Errorf(rpc.ErrNotFound, "there is no image %s in the Spec (there are %s)", name, strings.Join(sp.ImageNames(), ", "))
		}
	}
	if op.Host != "" && sp.Hosts[op.Host] == nil {
		return rpc.Errorf(rpc.ErrNotFound, "there is no host %s in the Spec (there are %s)", op.Host, strings.Join(sp.HostNames(), ", "))
	}
	return nil
}

// paused is why all changes are paused, with who and since when; empty when they
// are not.
func (c *Controller) paused(ctx context.Context) (string, error) {
	p, on, err := c.store.Pause(ctx)
	if err != nil || !on {
		return "", err
	}
	return pauseText(p), nil
}

// resumeHint ends what is said of a pause.
const resumeHint = "; end it with: hlctl resume"

func pauseText(p store.Pause) string {
	text := fmt.Sprintf("by %s since %s", p.By, p.At.Local().Format("2006-01-02 15:04"))
	if p.Reason != "" {
		text = p.Reason + " (" + text + ")"
	}
	return text + resumeHint
}
