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
	return s.pruneImage(req, e)
}

// pruneImage removes an image file that no guest is made of.
func (s *Service) pruneImage(req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	src := req.GetImage()
	if len(src.GetSha256()) != 64 {
		return nil, rpc.Errorf(rpc.ErrInvalid, "the file to remove is not named by its SHA-256")
	}
	o := s.host.Observe(s.now())
	folder, _, err := s.imageFolder(o, req.GetImagesStorage())
	if err != nil {
		return nil, err
	}
	path := s.images.Where(src.GetSha256(), folder)
	if path == "" {
		return done(false, "image %s is gone from storage %s", src.GetName(), folder.Storage), nil
	}
	if err := s.settled(o); err != nil {
		return nil, err
	}
	if s.images.Fetching(src.GetSha256()) {
		return nil, rpc.Errorf(rpc.ErrBusy, "image %s is being fetched", src.GetName())
	}
	err = e.call(callImage, []string{"remove", path}, func() (int, error) {
		return 0, s.images.Remove(src.GetSha256(), folder)
	})
	if err != nil {
		return nil, err
	}
	return done(true, "removed image %s from storage %s", src.GetName(), folder.Storage), nil
}
