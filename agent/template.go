package agent

import (
	"context"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// template makes a template of an image, or finishes one.
func (s *Service) template(context.Context, *agentv1.RunRequest, emit) (*agentv1.StepResult, error) {
	return nil, rpc.Errorf(rpc.ErrUnsupported, "templates")
}

// pruneTemplate removes a template that nothing stands on.
func (s *Service) pruneTemplate(context.Context, *agentv1.RunRequest, emit) (*agentv1.StepResult, error) {
	return nil, rpc.Errorf(rpc.ErrUnsupported, "templates")
}
