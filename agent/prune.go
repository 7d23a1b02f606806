package agent

import (
	"context"
	"path/filepath"
	"slices"
	"strings"

	"github.com/homeiac/homelab/agent/image"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
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
	paths := s.images.Where(src.GetSha256(), folder)
	if len(paths) == 0 {
		return done(false, "image %s is gone from storage %s", src.GetName(), folder.Storage), nil
	}
	if err := s.settled(o); err != nil {
		return nil, err
	}
	if s.images.Fetching(src.GetSha256()) {
		return nil, rpc.Errorf(rpc.ErrBusy, "image %s is being fetched", src.GetName())
	}
	for _, path := range paths {
		if err := s.inNoDrive(o, src, folder, path); err != nil {
			return nil, err
		}
	}
	err = e.call(callImage, append([]string{"remove"}, paths...), func() (int, error) {
		return 0, s.images.Remove(src.GetSha256(), folder)
	})
	if err != nil {
		return nil, err
	}
	return done(true, "removed image %s from storage %s", src.GetName(), folder.Storage), nil
}

// inNoDrive wants an ISO file to be in no VM's drive, whosever it is: Proxmox starts
// none whose ISO file is gone.
func (s *Service) inNoDrive(o *homelabv1.Observation, src *homelabv1.ImageSource, in image.Folder, path string) error {
	if filepath.Ext(path) != ".iso" {
		return nil // a disk image is in no drive: its bytes were copied out of it
	}
	node := o.GetNodeName()
	if i := slices.IndexFunc(o.GetStorages(), func(st *homelabv1.Storage) bool { return st.GetName() == in.Storage }); i >= 0 && o.GetStorages()[i].GetShared() {
		node = "" // VMs of all nodes may have it
	}
	vms, err := s.host.NamedBy(path, node)
	switch {
	case err != nil:
		return rpc.Errorf(rpc.ErrUnavailable, "which VMs have image %s in a drive: %w", src.GetName(), err)
	case len(vms) > 0:
		return rpc.Errorf(rpc.ErrRefused, "image %s is in a drive of %s, which would not start without it; take it out first: qm set VMID --DRIVE none,media=cdrom",
			src.GetName(), strings.Join(vms, ", "))
	}
	return nil
}
