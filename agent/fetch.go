package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/homeiac/homelab/agent/image"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/human"
	"github.com/homeiac/homelab/internal/rpc"
)

// fetch brings an image to this host.
func (s *Service) fetch(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	src := req.GetImage()
	o := s.host.Observe(s.now())
	folder, free, err := s.imageFolder(o, req.GetImagesStorage())
	if err != nil {
		return nil, err
	}
	if img, ok := image.Find(src, folder); ok {
		r := done(false, "image %s is there", src.GetName())
		r.Learned.ImageSha256 = img.Record.SHA256
		return r, nil
	}
	if err := s.settled(o); err != nil {
		return nil, err
	}
	var img image.Image
	err = e.call(callImage, []string{"fetch", image.Masked(src.GetUrl()), folder.Host}, func() (int, error) {
		var said time.Time
		var err error
		img, _, err = s.images.Fetch(ctx, src, folder, free, func(n, total int64) {
			if now := time.Now(); now.Sub(said) >= 500*time.Millisecond {
				said = now
				e.progress("fetching", fmt.Sprintf("%s of %s", human.Size(n), totalSize(total)))
			}
		})
		return 0, err
	})
	if err != nil {
		return nil, err
	}
	text := "fetched image %s (%s, %s)"
	if !img.Record.Verified {
		text = "fetched image %s (%s, %s), not verified: the Spec gives no checksum"
	}
	r := done(true, text, src.GetName(), human.Size(img.Record.Bytes), img.Record.Format)
	r.Learned.ImageSha256 = img.Record.SHA256
	return r, nil
}

// imageFolder is where images lie on a storage, with its free bytes (-1 when
// they are not known).
func (s *Service) imageFolder(o *homelabv1.Observation, storage string) (image.Folder, int64, error) {
	st, err := usable(o, storage, "")
	if err != nil {
		return image.Folder{}, 0, err
	}
	if st.GetPath() == "" {
		return image.Folder{}, 0, rpc.Errorf(rpc.ErrRefused, "storage %s of host %s is of type %s; images need a directory storage", storage, s.name, st.GetType())
	}
	free := int64(-1)
	if isYes(st.GetSpaceKnown()) {
		free = st.GetFreeBytes()
	}
	return image.FolderOf(s.root, storage, st.GetPath()), free, nil
}
