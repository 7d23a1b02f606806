package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/homeiac/homelab/agent/image"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// fleetCA gives certificates of one fleet.
type fleetCA struct {
	t   *testing.T
	ca  *rpc.CA
	dir string
}

func newFleet(t *testing.T) *fleetCA {
	t.Helper()
	ca, err := rpc.NewCA("home", time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	p := &fleetCA{t: t, ca: ca, dir: t.TempDir()}
	if err := ca.Write(filepath.Join(p.dir, "ca.crt"), filepath.Join(p.dir, "ca.key")); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *fleetCA) of(role, name string) *rpc.Credentials {
	p.t.Helper()
	pair, err := p.ca.Issue(rpc.Identity{Fleet: "home", Role: role, Name: name}, time.Hour, time.Now())
	if err != nil {
		p.t.Fatal(err)
	}
	base := filepath.Join(p.dir, role+"-"+name)
	if err := pair.Write(base+".crt", base+".key"); err != nil {
		p.t.Fatal(err)
	}
	c, err := rpc.LoadTLS(filepath.Join(p.dir, "ca.crt"), base+".crt", base+".key")
	if err != nil {
		p.t.Fatal(err)
	}
	return c
}

// listen serves a world's agent to others.
func (w *world) listen(creds *rpc.Credentials) string {
	w.t.Helper()
	srv, err := rpc.Listen(w.t.Context(), rpc.ServerConfig{Address: "127.0.0.1:0", Credentials: creds, Allow: allow(), Log: slog.New(slog.DiscardHandler)},
		func(r grpc.ServiceRegistrar) {
			agentv1.RegisterAgentServiceServer(r, w.svc)
			agentv1.RegisterPeerServiceServer(r, &peerService{service: w.svc})
		})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() {
		defer close(over)
		_ = srv.Run(ctx)
	}()
	w.t.Cleanup(func() { cancel(); <-over })
	return srv.Addr().String()
}

func TestAnImageComesFromAnotherAgent(t *testing.T) {
	p := newFleet(t)
	one, two := newWorld(t), newWorld(t)
	content := make([]byte, 3<<20)
	copy(content, imageFile())
	copy(content[1<<20:], "not a hole")
	one.put("../files/noble.img", string(content))
	digest := sha256.Sum256(content)
	sum := hex.EncodeToString(digest[:])
	fetched := one.must(homelabv1.Action_ACTION_FETCH)
	if got := fetched.result.GetLearned().GetImage(); got.GetSha256() != sum || got.GetFormat() != "raw" || got.GetStorage() != "local" {
		t.Errorf("learned %v", got)
	}
	if !strings.HasSuffix(fetched.result.GetText(), "from its source, not verified: the Spec gives no checksum") {
		t.Errorf("text %q", fetched.result.GetText())
	}
	address := one.listen(p.of(rpc.RoleAgent, "pve1"))

	two.svc.name, two.svc.peers = "pve2", &agents{credentials: p.of(rpc.RoleAgent, "pve2"), log: slog.New(slog.DiscardHandler)}
	req := two.request(homelabv1.Action_ACTION_FETCH)
	req.Step.Host, req.Wan = "pve2", false
	req.Image.Sha256, req.Image.Bytes, req.Image.Verification = sum, int64(len(content)), homelabv1.Verification_VERIFICATION_NO
	req.ImagePeers = []*agentv1.ImagePeer{{Host: "pve1", Address: address}}
	s, err := two.do(req)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(s.result.GetText(), "from pve1") || !slices.Equal(s.calls(), []string{"image fetch"}) {
		t.Errorf("%q, calls %v", s.result.GetText(), s.calls())
	}
	if c := s.events[len(s.events)-1].GetCall(); c.GetArgs()[1] != "peer:pve1" {
		t.Errorf("call %v", c)
	}
	o, err := two.svc.Observe(t.Context(), &agentv1.ObserveRequest{ImagesRate: 1 << 20})
	if err != nil || len(o.GetObservation().GetImages()) != 1 || len(o.GetObservation().GetImageParts()) != 0 {
		t.Errorf("observed %v %v", o, err)
	}

	// Only agents may pull.
	conn, err := rpc.Dial(rpc.Target{Address: address, Role: rpc.RoleAgent, Name: "pve1", Credentials: p.of(rpc.RoleController, "c"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := agentv1.NewPeerServiceClient(conn).Pull(t.Context(), &agentv1.PullRequest{Sha256: sum})
	if err == nil {
		_, err = stream.Recv()
	}
	if !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("a controller may pull: %v", err)
	}
}

// remembered is a peer of which is counted how often it was asked.
type remembered struct {
	asked int
	text  string
}

func (r *remembered) Pull(context.Context, *agentv1.ImagePeer, *agentv1.PullRequest) (image.Pulled, error) {
	r.asked++
	return image.Pulled{ReadCloser: readCloser{strings.NewReader(r.text)}, Bytes: int64(len(r.text)), Whole: true}, nil
}

type readCloser struct{ *strings.Reader }

func (readCloser) Close() error { return nil }

func TestALiarIsNotAskedAgainInThatRun(t *testing.T) {
	w := newWorld(t)
	liar := &remembered{text: string(imageFile())}
	w.svc.peers = liar
	req := w.request(homelabv1.Action_ACTION_FETCH)
	req.Wan, req.Image.Sha256 = false, strings.Repeat("0", 64)
	req.ImagePeers = []*agentv1.ImagePeer{{Host: "pve2", Address: "127.0.0.1:1"}}
	s, err := w.do(req)
	if !errors.Is(err, rpc.ErrUnavailable) || liar.asked != 1 {
		t.Fatalf("asked %d times: %v", liar.asked, err)
	}
	if !slices.ContainsFunc(s.events, func(e *homelabv1.Event) bool {
		return strings.HasPrefix(e.GetText(), "pve2 sent bytes that are not the image's: SHA-256 ")
	}) {
		t.Errorf("it is not named: %v", s.events)
	}
	if _, err := w.do(req); !errors.Is(err, rpc.ErrUnavailable) || liar.asked != 1 {
		t.Errorf("asked %d times: %v", liar.asked, err)
	}
	req.Fence.Run++
	if _, err := w.do(req); !errors.Is(err, rpc.ErrUnavailable) || liar.asked != 2 {
		t.Errorf("in the next run asked %d times: %v", liar.asked, err)
	}
}

func TestAnImageIsPruned(t *testing.T) {
	w := newWorld(t)
	sum := w.must(homelabv1.Action_ACTION_FETCH).result.GetLearned().GetImageSha256()
	req := w.request(homelabv1.Action_ACTION_FETCH)
	req.Step.Action, req.Step.Id = homelabv1.Action_ACTION_PRUNE, "prune/pve1/noble"
	req.Image.Sha256 = sum
	s, err := w.do(req)
	if err != nil || !s.result.GetChanged() || !slices.Equal(s.calls(), []string{"image remove"}) {
		t.Fatal(s.result, s.calls(), err)
	}
	if s, err = w.do(req); err != nil || s.result.GetChanged() {
		t.Error(s.result, err)
	}
}

// emptyStream takes what is sent to a peer.
type emptyStream struct {
	grpc.ServerStreamingServer[agentv1.PullResponse]
	ctx  context.Context
	sent chan struct{}
}

func (s *emptyStream) Context() context.Context { return s.ctx }

func (s *emptyStream) Send(*agentv1.PullResponse) error { return nil }

// SendMsg is as slow as the peer.
func (s *emptyStream) SendMsg(any) error {
	s.sent <- struct{}{}
	return nil
}

func TestWhatIsSentToAPeerEndsWithTheAgent(t *testing.T) {
	w := newWorld(t)
	w.put("../files/noble.img", strings.Repeat(string(imageFile()), 1000))
	w.must(fetchStep)
	sum := sha256.Sum256([]byte(strings.Repeat(string(imageFile()), 1000)))
	s := &emptyStream{ctx: t.Context(), sent: make(chan struct{})}
	ended := make(chan error, 1)
	go func() {
		ended <- (&peerService{service: w.svc}).Pull(&agentv1.PullRequest{Sha256: hex.EncodeToString(sum[:])}, s)
	}()
	select {
	case <-s.sent:
	case err := <-ended:
		t.Fatal(err)
	}
	w.stop()
	for {
		select {
		case <-s.sent:
		case err := <-ended:
			if !errors.Is(err, rpc.ErrUnavailable) || !strings.Contains(err.Error(), "the agent is ending") {
				t.Errorf("the transfer ended with %v", err)
			}
			return
		}
	}
}
