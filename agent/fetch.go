package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/homeiac/homelab/agent/image"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/human"
	"github.com/homeiac/homelab/internal/rpc"
)

// fetch brings an image to this host: from other hosts as far as they have it, and
// from its source when it may.
func (s *Service) fetch(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	src := req.GetImage()
	o := s.host.Observe(s.now())
	folder, _, err := s.imageFolder(o, req.GetImagesStorage())
	if err != nil {
		return nil, err
	}
	if img, ok := image.Find(src, folder); ok && !anew(req) {
		if err := fits(img.Record.Virtual, req); err != nil {
			return nil, fmt.Errorf("image %s: %w", src.GetName(), err)
		}
		return fetched(img, folder.Storage, done(false, "image %s is there", src.GetName())), nil
	}
	if err := s.settled(o); err != nil {
		return nil, err
	}
	room, err := s.roomOf(ctx, o, req)
	if err != nil {
		return nil, err
	}
	digest, run := src.GetSha256()+src.GetSha512(), req.GetFence().GetRun()
	job := image.Job{
		Source: src, To: folder, WAN: req.GetWan(), Anew: anew(req), Check: room.check,
		Peers: s.peersOf(req.GetImagePeers(), s.liars.of(run, digest)), Progress: speech(e),
		Wrong: func(peer, text string) {
			if peer != "" {
				s.liars.add(run, digest, peer)
			}
			e.progress("fetching", text)
		},
	}
	var img image.Image
	var from string
	args := []string{"fetch", image.Masked(src.GetUrl()), folder.Host}
	if len(job.Peers) > 0 && digest != "" {
		args[1] = "peer:" + job.Peers[0].Name()
	}
	err = e.call(callImage, args, func() (int, error) {
		var err error
		img, _, from, err = s.images.Fetch(ctx, job)
		return 0, err
	})
	if err != nil {
		if req.GetWan() && image.SourceFault(src, err) {
			e(&homelabv1.Event{
				Kind: homelabv1.EventKind_EVENT_KIND_STEP_PROGRESS, Phase: "fetching", Text: "its source does not give it", ImageFault: err.Error(),
			})
		}
		return nil, err
	}
	text := "fetched image %s (%s, %s) from %s"
	if img.Record.Proof() == homelabv1.Verification_VERIFICATION_NO {
		text = "fetched image %s (%s, %s) from %s, not verified: the Spec gives no checksum"
	}
	format := img.Record.Format
	if img.Record.Compression != "" {
		format += "." + img.Record.Compression
	}
	return fetched(img, folder.Storage, done(true, text, src.GetName(), human.Size(img.Record.Bytes), format, from)), nil
}

// anew says whether the source is to be read although a file of it is there.
func anew(req *agentv1.RunRequest) bool {
	return req.GetStep().GetNewest() && req.GetImage().GetSha256() == "" && req.GetImage().GetSha512() == ""
}

func fetched(img image.Image, storage string, r *agentv1.StepResult) *agentv1.StepResult {
	r.Learned.ImageSha256, r.Learned.Image = img.Record.SHA256, img.Record.Copy(storage)
	return r
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

// ResolveImage reads the list of checksums of an image's source.
func (s *Service) ResolveImage(ctx context.Context, req *agentv1.ResolveImageRequest) (*agentv1.ResolveImageResponse, error) {
	if err := checkFields(req); err != nil {
		return nil, err
	}
	d, err := s.images.Resolve(ctx, req.GetImage())
	if err != nil {
		return nil, err
	}
	return &agentv1.ResolveImageResponse{Sha256: d.SHA256, Sha512: d.SHA512}, nil
}

// speech tells people how far a fetch is, twice a second at most.
func speech(e emit) func(image.Told) {
	var said time.Time
	var m meter
	return func(t image.Told) {
		now := time.Now()
		m.add(now, t.Done)
		if now.Sub(said) < 500*time.Millisecond {
			return
		}
		said = now
		e.progress("fetching", m.text(t))
	}
}

// meterSpan is the time over which a rate is measured.
const meterSpan = 4 * time.Second

// meter measures the rate of a transfer over its last seconds.
type meter struct {
	at   []time.Time
	done []int64
}

func (m *meter) add(now time.Time, done int64) {
	n := len(m.at)
	if n > 0 && (done < m.done[n-1] || now.Sub(m.at[n-1]) < meterSpan/20) {
		if done >= m.done[n-1] {
			return
		}
		m.at, m.done = nil, nil // it began anew
	}
	m.at, m.done = append(m.at, now), append(m.done, done)
	for len(m.at) > 2 && now.Sub(m.at[0]) > meterSpan {
		m.at, m.done = m.at[1:], m.done[1:]
	}
}

// rate is in bytes a second, 0 when it is not known yet.
func (m *meter) rate() float64 {
	n := len(m.at)
	if n < 2 {
		return 0
	}
	return float64(m.done[n-1]-m.done[0]) / m.at[n-1].Sub(m.at[0]).Seconds()
}

// text is like: 212 MiB of 512 MiB, 48 MiB/s, 0:06 left, from pve2.
func (m *meter) text(t image.Told) string {
	out := human.Size(t.Done) + " of " + totalSize(t.Total)
	if r := m.rate(); r > 0 {
		out += ", " + human.Size(int64(r)) + "/s"
		if t.Total > 0 {
			out += ", " + human.Clock(time.Duration(float64(t.Total-t.Done)/r*float64(time.Second))) + " left"
		}
	}
	return out + ", from " + t.From
}

// liars are hosts that sent wrong bytes of an image in the present run, by its
// digest.
type liars struct {
	mu  sync.Mutex
	run int64
	who map[string]map[string]bool
}

func (l *liars) add(run int64, digest, host string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if run != l.run || l.who == nil {
		l.run, l.who = run, make(map[string]map[string]bool)
	}
	if l.who[digest] == nil {
		l.who[digest] = make(map[string]bool)
	}
	l.who[digest][host] = true
}

func (l *liars) of(run int64, digest string) map[string]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make(map[string]bool)
	if run == l.run {
		for host := range l.who[digest] {
			out[host] = true
		}
	}
	return out
}
