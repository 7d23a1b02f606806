package agent

import (
	"context"
	"fmt"
	"os"
	"strings"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/mark"
	"github.com/homeiac/homelab/internal/rpc"
)

// carry does one step. Each action looks first and does only what is missing,
// so that a step may be repeated at any time, and judges its success by looking
// again. Errors do not say which step of which guest it was: whoever asked for it
// knows.
func (s *Service) carry(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	switch req.GetStep().GetAction() {
	case homelabv1.Action_ACTION_FETCH:
		return s.fetch(ctx, req, e)
	case homelabv1.Action_ACTION_ROLLBACK:
		if req.GetK3S() != nil {
			return s.takeBackLearner(ctx, req, e)
		}
		return s.rollback(ctx, req, e)
	case homelabv1.Action_ACTION_CREATE:
		return s.create(ctx, req, e)
	case homelabv1.Action_ACTION_START:
		return s.start(ctx, req, e)
	case homelabv1.Action_ACTION_BOOT:
		return s.boot(ctx, req, e)
	case homelabv1.Action_ACTION_INIT, homelabv1.Action_ACTION_JOIN:
		return s.join(ctx, req, e)
	case homelabv1.Action_ACTION_VERIFY:
		return s.verify(ctx, req, e)
	case homelabv1.Action_ACTION_HALT:
		return s.halt(ctx, req, e)
	case homelabv1.Action_ACTION_CLEAN:
		return s.clean(ctx, req, e)
	case homelabv1.Action_ACTION_SOAK:
		return s.soak(ctx, req, e)
	case homelabv1.Action_ACTION_TEMPLATE:
		return s.template(ctx, req, e)
	case homelabv1.Action_ACTION_PRUNE:
		return s.prune(ctx, req, e)
	}
	if isThrough(req) {
		return s.carryThrough(ctx, req, e)
	}
	return s.carryVM(ctx, req, e)
}

// carryThrough does the steps on the cluster, which a server on this host lends
// itself to; the guest that they are about is another host's, or gone.
func (s *Service) carryThrough(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	switch req.GetStep().GetAction() {
	case homelabv1.Action_ACTION_SNAPSHOT:
		return s.snapshot(ctx, req, e)
	case homelabv1.Action_ACTION_DRAIN:
		return s.drain(ctx, req, e)
	default:
		return s.leave(ctx, req, e)
	}
}

// carryVM does the steps on a VM that is there already.
func (s *Service) carryVM(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	switch req.GetStep().GetAction() {
	case homelabv1.Action_ACTION_SAVE:
		return s.save(ctx, req)
	case homelabv1.Action_ACTION_STOP:
		return s.stopVM(ctx, req, e)
	case homelabv1.Action_ACTION_DETACH:
		return s.detach(ctx, req, e)
	case homelabv1.Action_ACTION_DESTROY:
		return s.destroy(ctx, req, e)
	case homelabv1.Action_ACTION_ATTACH:
		return s.attach(ctx, req, e)
	case homelabv1.Action_ACTION_RESET:
		return s.reset(ctx, req, e)
	case homelabv1.Action_ACTION_RESUME:
		return s.resume(ctx, req, e)
	case homelabv1.Action_ACTION_ADOPT:
		return s.adopt(ctx, req, e)
	}
	return nil, rpc.Errorf(rpc.ErrUnsupported, "this agent does not know the action %s", req.GetStep().GetAction())
}

// flightKey is what a step has to itself while it is at work: its guest, or
// what it does with an image. A step through a server has the guest that it is
// about, wherever that is, and not the server: several may go through one. A
// snapshot that is about no guest is one at a time.
func flightKey(req *agentv1.RunRequest) string {
	switch {
	case isImageWork(req):
		return "image " + req.GetStep().GetId()
	case isTakeBack(req):
		// It works on the cluster through a server; the guest is another host's.
		return "etcd through " + req.GetWant().GetIdentity().GetGuest()
	case req.GetStep().GetGuest() == "":
		return "snapshot"
	}
	return "guest " + req.GetStep().GetGuest()
}

// isImageWork says whether a step is about an image or a template of one, and no
// guest.
func isImageWork(req *agentv1.RunRequest) bool {
	switch req.GetStep().GetAction() {
	case homelabv1.Action_ACTION_FETCH, homelabv1.Action_ACTION_TEMPLATE, homelabv1.Action_ACTION_PRUNE:
		return true
	}
	return false
}

func isTakeBack(req *agentv1.RunRequest) bool {
	return req.GetStep().GetAction() == homelabv1.Action_ACTION_ROLLBACK && req.GetK3S() != nil
}

// isThrough says whether a step is done on the cluster, through a server here.
func isThrough(req *agentv1.RunRequest) bool {
	switch req.GetStep().GetAction() {
	case homelabv1.Action_ACTION_SNAPSHOT, homelabv1.Action_ACTION_DRAIN, homelabv1.Action_ACTION_LEAVE:
		return true
	}
	return false
}

// checkRun finds requests that make no sense, or are meant for others.
func (s *Service) checkRun(req *agentv1.RunRequest) error {
	step, id := req.GetStep(), req.GetWant().GetIdentity()
	if err := checkFields(req); err != nil {
		return err
	}
	switch {
	case step.GetId() == "" || step.GetAction() == homelabv1.Action_ACTION_UNSPECIFIED:
		return rpc.Errorf(rpc.ErrInvalid, "the request names no step")
	case step.GetHost() != s.name:
		return rpc.Errorf(rpc.ErrInvalid, "step %s is for host %q, this is %s", step.GetId(), step.GetHost(), s.name)
	case req.GetFence().GetFleet() != s.fleet:
		return rpc.Errorf(rpc.ErrRefused, "step %s is of fleet %q, this host belongs to %s", step.GetId(), req.GetFence().GetFleet(), s.fleet)
	case isImageWork(req):
		return s.checkImageWork(req)
	case isThrough(req):
		return s.checkThrough(req)
	}
	if err := s.checkIdentity(step, id); err != nil {
		return err
	}
	if !isTakeBack(req) && id.GetGuest() != step.GetGuest() {
		return rpc.Errorf(rpc.ErrInvalid, "step %s is for guest %s, the identity is %s's", step.GetId(), step.GetGuest(), id.GetGuest())
	}
	if a := step.GetAction(); a == homelabv1.Action_ACTION_DETACH || a == homelabv1.Action_ACTION_ATTACH {
		return s.checkHolder(req)
	}
	return nil
}

// checkImageWork checks a step about an image or a template.
func (s *Service) checkImageWork(req *agentv1.RunRequest) error {
	step, template := req.GetStep(), req.GetTemplate()
	switch {
	case template == nil && (req.GetImage().GetName() == "" || req.GetImagesStorage() == ""):
		return rpc.Errorf(rpc.ErrInvalid, "step %s names no image or storage", step.GetId())
	case template == nil && step.GetAction() == homelabv1.Action_ACTION_TEMPLATE:
		return rpc.Errorf(rpc.ErrInvalid, "step %s names no template", step.GetId())
	case template == nil:
		return nil
	}
	if err := s.checkIdentity(step, template); err != nil {
		return err
	}
	if _, ok := mark.TemplateOf(template.GetGuest()); !ok {
		return rpc.Errorf(rpc.ErrInvalid, "step %s: VM %d is %s's and no template", step.GetId(), template.GetVmid(), template.GetGuest())
	}
	return nil
}

func (s *Service) checkIdentity(step *homelabv1.Step, id *homelabv1.Identity) error {
	switch {
	case id.GetFleet() != s.fleet:
		return rpc.Errorf(rpc.ErrRefused, "guest %s is of fleet %q, this host belongs to %s", id.GetGuest(), id.GetFleet(), s.fleet)
	case id.GetVmid() < 100 || id.GetUuid() == "" || id.GetMark() == "" || id.GetGuest() == "":
		return rpc.Errorf(rpc.ErrInvalid, "step %s: the identity of its guest is not whole", step.GetId())
	}
	return nil
}

// checkThrough checks a step that is done through a server. The guest that it is
// about may have no VM any more, or never had one that we know: of its identity
// only what is there must fit.
func (s *Service) checkThrough(req *agentv1.RunRequest) error {
	step, server, id := req.GetStep(), req.GetThrough().GetIdentity(), req.GetWant().GetIdentity()
	if err := s.checkIdentity(step, server); err != nil {
		return err
	}
	switch {
	case step.GetThrough() != "" && step.GetThrough() != server.GetGuest():
		return rpc.Errorf(rpc.ErrInvalid, "step %s goes through %s, the identity is %s's", step.GetId(), step.GetThrough(), server.GetGuest())
	case id != nil && id.GetFleet() != s.fleet:
		return rpc.Errorf(rpc.ErrRefused, "guest %s is of fleet %q, this host belongs to %s", id.GetGuest(), id.GetFleet(), s.fleet)
	case id != nil && step.GetGuest() != "" && id.GetGuest() != step.GetGuest():
		return rpc.Errorf(rpc.ErrInvalid, "step %s is for guest %s, the identity is %s's", step.GetId(), step.GetGuest(), id.GetGuest())
	case step.GetAction() == homelabv1.Action_ACTION_SNAPSHOT:
		return nil
	case req.GetMember().GetNode() == "":
		return rpc.Errorf(rpc.ErrInvalid, "step %s names no Node", step.GetId())
	case step.GetGuest() == server.GetGuest() || req.GetMember().GetNode() == req.GetThrough().GetNodeName():
		return rpc.Errorf(rpc.ErrRefused, "step %s: guest %s cannot be taken out of the cluster through itself", step.GetId(), step.GetGuest())
	}
	return nil
}

// holderName stands in the mark of a holder VM where the guest's name would.
func holderName(guest string) string { return "holder@" + guest }

func (s *Service) checkHolder(req *agentv1.RunRequest) error {
	step, h := req.GetStep(), req.GetHolder()
	if err := s.checkIdentity(step, h); err != nil {
		return err
	}
	switch {
	case h.GetGuest() != holderName(step.GetGuest()):
		return rpc.Errorf(rpc.ErrInvalid, "step %s: VM %d is %s's and no holder of guest %s", step.GetId(), h.GetVmid(), h.GetGuest(), step.GetGuest())
	case h.GetVmid() == req.GetWant().GetIdentity().GetVmid() || h.GetUuid() == req.GetWant().GetIdentity().GetUuid():
		return rpc.Errorf(rpc.ErrInvalid, "step %s: the holder is the guest's own VM", step.GetId())
	}
	for _, d := range req.GetDataDisks() {
		if d.GetSlot() == "" || d.GetSlot() == req.GetWant().GetHardware().GetSystemDisk().GetSlot() {
			return rpc.Errorf(rpc.ErrInvalid, "step %s: %q is no data disk's slot", step.GetId(), d.GetSlot())
		}
	}
	return nil
}

// paused says why this host changes nothing at present, "" when it may.
func (s *Service) paused() string {
	data, err := os.ReadFile(s.pauseFile)
	switch {
	case os.IsNotExist(err) || s.pauseFile == "":
		return ""
	case err != nil:
		return fmt.Sprintf("%s: %v", s.pauseFile, err)
	}
	if why := strings.TrimSpace(string(data)); why != "" {
		return why
	}
	return s.pauseFile + " is there"
}

// done is the good end of a step.
func done(changed bool, format string, args ...any) *agentv1.StepResult {
	return &agentv1.StepResult{Changed: changed, Text: fmt.Sprintf(format, args...), Learned: &agentv1.Learned{}}
}

// report passes the driver's events on.
func (e emit) report() func(*homelabv1.Event) {
	return func(ev *homelabv1.Event) { e(ev) }
}
