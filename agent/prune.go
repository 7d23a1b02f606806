package agent

import (
	"context"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// prune removes what nobody needs: a template, or an image file.
func (s *Service) prune(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	if req.GetTemplate() != nil {
		return s.pruneTemplate(ctx, req, e)
	}
	return s.pruneImage(ctx, req, e)
}

// pruneImage removes an image file that no guest is made of.
func (s *Service) pruneImage(context.Context, *agentv1.RunRequest, emit) (*agentv1.StepResult, error) {
	return nil, rpc.Errorf(rpc.ErrUnsupported, "image files")
}
