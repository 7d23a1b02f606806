package agent

import (
	"context"
	"fmt"
	"os"
	"strings"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
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
	}
	return nil, rpc.Errorf(rpc.ErrUnsupported, "this agent does not know the action %s", req.GetStep().GetAction())
}

// flightKey is what a step has to itself while it is at work: its guest, or
// the image file that it writes.
func flightKey(req *agentv1.RunRequest) string {
	switch {
	case req.GetStep().GetAction() == homelabv1.Action_ACTION_FETCH:
		return "image " + req.GetImagesStorage() + "/" + req.GetImage().GetName()
	case isTakeBack(req):
		// It works on the cluster through a server; the guest is another host's.
		return "etcd through " + req.GetWant().GetIdentity().GetGuest()
	}
	return "guest " + req.GetStep().GetGuest()
}

func isTakeBack(req *agentv1.RunRequest) bool {
	return req.GetStep().GetAction() == homelabv1.Action_ACTION_ROLLBACK && req.GetK3S() != nil
}

// checkRun finds requests that make no sense, or are meant for others.
func (s *Service) checkRun(req *agentv1.RunRequest) error {
	step, id := req.GetStep(), req.GetWant().GetIdentity()
	fetch := step.GetAction() == homelabv1.Action_ACTION_FETCH
	switch {
	case step.GetId() == "" || step.GetAction() == homelabv1.Action_ACTION_UNSPECIFIED:
		return rpc.Errorf(rpc.ErrInvalid, "the request names no step")
	case step.GetHost() != s.name:
		return rpc.Errorf(rpc.ErrInvalid, "step %s is for host %q, this is %s", step.GetId(), step.GetHost(), s.name)
	case req.GetFence().GetFleet() != s.fleet:
		return rpc.Errorf(rpc.ErrRefused, "step %s is of fleet %q, this host belongs to %s", step.GetId(), req.GetFence().GetFleet(), s.fleet)
	case fetch && (req.GetImage().GetUrl() == "" || req.GetImagesStorage() == ""):
		return rpc.Errorf(rpc.ErrInvalid, "step %s names no image or storage", step.GetId())
	case fetch:
		return nil
	case id.GetFleet() != s.fleet:
		return rpc.Errorf(rpc.ErrRefused, "guest %s is of fleet %q, this host belongs to %s", id.GetGuest(), id.GetFleet(), s.fleet)
	case id.GetVmid() < 100 || id.GetUuid() == "" || id.GetMark() == "" || id.GetGuest() == "":
		return rpc.Errorf(rpc.ErrInvalid, "step %s: the identity of its guest is not whole", step.GetId())
	case !isTakeBack(req) && id.GetGuest() != step.GetGuest():
		return rpc.Errorf(rpc.ErrInvalid, "step %s is for guest %s, the identity is %s's", step.GetId(), step.GetGuest(), id.GetGuest())
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
