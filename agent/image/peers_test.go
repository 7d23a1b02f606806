package image_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/homeiac/homelab/agent/image"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/lab/wan"
)

// host is another host's store as a peer: what is between them is left out.
type host struct {
	name string
	g    *ground
	// lies changes what it sends; dies ends what it sends after that many bytes.
	lies func(b []byte, offset int64)
	dies int64

	// asks is called when it is asked, before it answers.
	asks func()

	mu    sync.Mutex
	asked []int64 // offsets
}

func (h *host) Name() string { return h.name }

func (h *host) offsets() []int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.asked)
}

func (h *host) Pull(ctx context.Context, want image.Digests, offset int64) (image.Pulled, error) {
	h.mu.Lock()
	h.asked = append(h.asked, offset)
	h.mu.Unlock()
	if h.asks != nil {
		h.asks()
	}
	file, err := h.g.s.Pass(want, offset, []image.Folder{h.g.to})
	if err != nil {
		return image.Pulled{}, err
	}
	r, w := io.Pipe()
	go func() {
		defer file.Close()
		_ = w.CloseWithError(h.pass(ctx, file, offset, w))
	}()
	return image.Pulled{ReadCloser: r, Bytes: file.Bytes, Whole: file.Whole}, nil
}

// pass sends the file from an offset on, as far as the host lives.
func (h *host) pass(ctx context.Context, file *image.Passing, at int64, to io.Writer) error {
	for {
		b := make([]byte, 64<<10)
		n, err := file.Next(ctx, b)
		if err != nil {
			return err
		}
		if h.dies > 0 && at+int64(n) > h.dies {
			return rpc.Errorf(rpc.ErrUnavailable, "connection reset by peer")
		}
		if h.lies != nil {
			h.lies(b[:n], at)
		}
		at += int64(n)
		if _, err := to.Write(b[:n]); err != nil {
			return err
		}
	}
}

// holder is a host that has the file.
func holder(t *testing.T, name string, content []byte) *host {
	t.Helper()
	g := newGround(t)
	src := from(serve(t, wan.New(content)))
	src.Sha256 = sum(content)
	if _, err := g.fetch(src); err != nil {
		t.Fatal(err)
	}
	return &host{name: name, g: g}
}

// pull is a fetch from peers only; it gives what was said of liars.
func (g *ground) pull(src *homelabv1.ImageSource, peers ...image.Peer) (from string, liars map[string]string, err error) {
	g.t.Helper()
	liars = make(map[string]string)
	_, _, from, err = g.s.Fetch(g.t.Context(), image.Job{
		Source: src, To: g.to, Peers: peers, Wrong: func(peer, text string) { liars[peer] = text },
	})
	return from, liars, err
}

func known(content []byte) *homelabv1.ImageSource {
	return &homelabv1.ImageSource{Name: "noble", Url: "http://127.0.0.1:1/noble.img", Sha256: sum(content), Bytes: int64(len(content))}
}

func TestAFileComesFromAPeer(t *testing.T) {
	content := noise(megs, 1)
	g, pve2 := newGround(t), holder(t, "pve2", content)
	from, _, err := g.pull(known(content), pve2)
	if err != nil || from != "pve2" {
		t.Fatal(from, err)
	}
	g.holds(known(content), content)
}

func TestWithoutADigestNoPeerIsAsked(t *testing.T) {
	content := noise(megs, 1)
	g, pve2 := newGround(t), holder(t, "pve2", content)
	src := known(content)
	src.Sha256 = ""
	if _, _, err := g.pull(src, pve2); !errors.Is(err, rpc.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	if len(pve2.offsets()) > 0 {
		t.Error("it was asked")
	}
}

// stopsHalfway has a source of megs bytes say that it sent half of them, and go on when it
// is told to.
func stopsHalfway(s *wan.Server) (half, goOn chan struct{}) {
	half, goOn = make(chan struct{}), make(chan struct{})
	s.Gate = func(offset int64, _ <-chan struct{}) {
		if offset == megs/2 {
			close(half)
			<-goOn
		}
	}
	return half, goOn
}

// One host reads the source; a second takes the bytes from it as they come, and a
// third from the second.
func TestBytesArePassedOnAsTheyCome(t *testing.T) {
	content := noise(megs, 1)
	s := wan.New(content)
	src := known(content)
	src.Url = serve(t, s)
	half, goOn := stopsHalfway(s)
	first, second, third := newGround(t), newGround(t), newGround(t)
	var all sync.WaitGroup
	all.Go(func() {
		if _, err := first.fetch(src); err != nil {
			t.Error(err)
		}
	})
	all.Go(func() {
		if _, _, err := second.pull(src, &host{name: "pve1", g: first}); err != nil {
			t.Error(err)
		}
	})
	passed := make(chan struct{})
	var once sync.Once
	all.Go(func() {
		_, _, _, err := third.s.Fetch(t.Context(), image.Job{
			Source: src, To: third.to, Peers: []image.Peer{&host{name: "pve2", g: second}},
			Progress: func(told image.Told) {
				if told.Done >= megs/2 {
					once.Do(func() { close(passed) })
				}
			},
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-half
	<-passed // half of it reached the third while the source stood still
	close(goOn)
	all.Wait()
	for _, g := range []*ground{first, second, third} {
		g.holds(src, content)
	}
	if s.Count() != megs {
		t.Errorf("the source sent %d bytes", s.Count())
	}
}

// All hosts of a run begin at once, and the one that a host should take the file from
// may be a little later than itself.
func TestTheFirstPeerHasAMomentToBegin(t *testing.T) {
	content := noise(megs, 1)
	late, has := &host{name: "pve2", g: newGround(t)}, holder(t, "pve3", content)
	begun := make(chan struct{})
	begin := sync.OnceFunc(func() { close(begun) })
	late.asks = func() {
		if len(late.offsets()) == 2 {
			begin()
		}
	}
	g := newGround(t)
	g.s = image.New(nil).Hurry(2e9, 200e9) // nobody waits for all of it
	var all sync.WaitGroup
	all.Go(func() {
		<-begun
		if _, _, err := late.g.pull(known(content), has); err != nil {
			t.Error(err)
		}
	})
	other := &host{name: "pve4", g: has.g}
	if from, _, err := g.pull(known(content), late, other); err != nil || from != "pve2" || len(other.offsets()) > 0 {
		t.Errorf("it came from %q, pve4 was asked %d times: %v", from, len(other.offsets()), err)
	}
	begin()
	all.Wait()
	g.s = image.New(nil).Hurry(2e9, 1e9)
	g.to.Local = t.TempDir()
	if from, _, err := g.pull(known(content), &host{name: "pve5", g: newGround(t)}, other); err != nil || from != "pve4" {
		t.Errorf("the first never begins: from %q, %v", from, err)
	}
}

func TestWhenTheReaderDiesTheOneFurthestOnGoesOn(t *testing.T) {
	content := noise(megs, 1)
	s := wan.New(content)
	src := known(content)
	src.Url = serve(t, s)
	first, second := newGround(t), newGround(t)
	second.s = image.New(nil).Hurry(2e9, 0)
	ctx, kill := context.WithCancel(t.Context())
	s.Gate = func(offset int64, done <-chan struct{}) {
		if offset == megs/2 {
			<-done
		}
	}
	var all sync.WaitGroup
	all.Go(func() {
		if _, _, _, err := first.s.Fetch(ctx, image.Job{Source: src, To: first.to, WAN: true}); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	for len(first.s.Parts([]image.Folder{first.to})) == 0 {
	}
	_, _, _, err := second.s.Fetch(t.Context(), image.Job{
		Source: src, To: second.to, Peers: []image.Peer{&host{name: "pve1", g: first}},
		Progress: func(told image.Told) {
			if told.Done == megs/2 {
				kill()
			}
		},
	})
	all.Wait()
	second.is(err, rpc.ErrUnavailable, "2 MiB of 4 MiB, no peer gives it: pve1: ")
	s.Change(func(s *wan.Server) { s.Gate = nil })
	if _, err := second.fetch(src); err != nil {
		t.Fatal(err)
	}
	second.holds(src, content)
	if s.Count() > megs*105/100 {
		t.Errorf("the source sent %d bytes", s.Count())
	}
}

func TestAPeerThatBreaksOffIsFollowedByTheNext(t *testing.T) {
	content := noise(megs, 1)
	g, pve2, pve3 := newGround(t), holder(t, "pve2", content), holder(t, "pve3", content)
	pve2.dies = megs / 2
	from, _, err := g.pull(known(content), pve2, pve3)
	if err != nil || from != "pve2, pve3" {
		t.Fatal(from, err)
	}
	g.holds(known(content), content)
	if got := pve3.offsets(); len(got) != 1 || got[0] != megs/2 {
		t.Errorf("asked from %v on", got)
	}
}

func flip(b []byte, offset int64) {
	if offset <= megs/4 && offset+int64(len(b)) > megs/4 {
		b[megs/4-offset] ^= 1
	}
}

func TestAPeerThatLiesIsNamedAndNotAskedAgain(t *testing.T) {
	content := noise(megs, 1)
	g, pve2, pve3 := newGround(t), holder(t, "pve2", content), holder(t, "pve3", content)
	pve2.lies = flip
	from, liars, err := g.pull(known(content), pve2, pve3)
	if err != nil || from != "pve3" {
		t.Fatal(from, err)
	}
	g.holds(known(content), content)
	if text := liars["pve2"]; len(liars) != 1 || !strings.HasPrefix(text, "pve2 sent bytes that are not the image's: SHA-256 ") || !strings.HasSuffix(text, ", should be "+sum(content)) {
		t.Errorf("liars %v", liars)
	}
	if n := len(pve2.offsets()); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

func TestALiarAmongSeveralIsFound(t *testing.T) {
	content := noise(megs, 1)
	g, pve2, pve3, pve4 := newGround(t), holder(t, "pve2", content), holder(t, "pve3", content), holder(t, "pve4", content)
	pve2.dies = megs / 8
	pve3.lies = flip
	from, liars, err := g.pull(known(content), pve2, pve3, pve4)
	if err != nil || from != "pve4" {
		t.Fatal(from, err)
	}
	g.holds(known(content), content)
	if !strings.Contains(liars[""], "pve2 and pve3 together") || liars["pve3"] == "" || len(liars) != 2 {
		t.Errorf("liars %v", liars)
	}
}

func TestTheSourceMakesUpForALiar(t *testing.T) {
	content := noise(megs, 1)
	g, pve2, s := newGround(t), holder(t, "pve2", content), wan.New(content)
	pve2.lies = func(b []byte, _ int64) { copy(b, "<html>") }
	src := known(content)
	src.Url = serve(t, s)
	if _, err := g.fetch(src, pve2); err != nil {
		t.Fatal(err)
	}
	g.holds(src, content)
}

func TestFilesArePassedOnByDigestOnly(t *testing.T) {
	content := noise(megs, 1)
	pve2 := holder(t, "pve2", content)
	folders := []image.Folder{pve2.g.to}
	for _, want := range []image.Digests{{}, {SHA256: "noble"}, {SHA256: "../../etc/passwd"}, {SHA256: strings.ToUpper(sum(content))}} {
		if _, err := pve2.g.s.Pass(want, 0, folders); !errors.Is(err, rpc.ErrInvalid) {
			t.Errorf("%v: %v", want, err)
		}
	}
	if _, err := pve2.g.s.Pass(image.Digests{SHA256: strings.Repeat("0", 64)}, 0, folders); !errors.Is(err, rpc.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if _, err := pve2.g.s.Pass(image.Digests{SHA256: sum(content)}, megs+1, folders); !errors.Is(err, rpc.ErrInvalid) {
		t.Errorf("got %v", err)
	}
	var at []*image.Passing
	for {
		p, err := pve2.g.s.Pass(image.Digests{SHA256: sum(content)}, 0, folders)
		if err != nil {
			pve2.g.is(err, rpc.ErrBusy)
			break
		}
		at = append(at, p)
	}
	if len(at) != 8 {
		t.Errorf("%d at once", len(at))
	}
	if err := pve2.g.s.Remove(sum(content), pve2.g.to); !errors.Is(err, rpc.ErrBusy) {
		t.Errorf("removed while it was read: %v", err)
	}
	for _, p := range at {
		p.Close()
	}
	for range 2 {
		if err := pve2.g.s.Remove(sum(content), pve2.g.to); err != nil {
			t.Error(err)
		}
	}
	if n := len(image.List(folders)); n != 0 {
		t.Errorf("%d are listed", n)
	}
}

// TestTwoHostsThatHaveTheSameDoNotWaitForEachOther when the one that read the source
// was lost: that is soon told, so that one of them may read on.
func TestTwoHostsThatHaveTheSameDoNotWaitForEachOther(t *testing.T) {
	content := raw(1 << 20)
	whole := holder(t, "pve1", content)
	whole.dies = 512 << 10
	src := known(content)
	one, two := &host{name: "pve2", g: newGround(t)}, &host{name: "pve3", g: newGround(t)}
	for _, h := range []*host{one, two} {
		h.g.s.Hurry(time.Minute, time.Minute).Dry(20*time.Millisecond, 20*time.Millisecond)
	}
	var both sync.WaitGroup
	for mine, other := range map[*host]*host{one: two, two: one} {
		both.Go(func() {
			_, _, err := mine.g.pull(src, whole, other)
			if !errors.Is(err, rpc.ErrUnavailable) || !strings.Contains(err.Error(), "512 KiB of 1 MiB") {
				t.Errorf("%s: %v", mine.name, err)
			}
		})
	}
	both.Wait()
}

// TestWhatIsDroppedAsWrongIsKeptByNobody who was given it as it came.
func TestWhatIsDroppedAsWrongIsKeptByNobody(t *testing.T) {
	content := raw(1 << 20)
	src := known(content)
	server := wan.New(append(raw(1<<20-8), "another!"...))
	going := make(chan struct{})
	server.Gate = func(offset int64, done <-chan struct{}) {
		if offset >= 512<<10 {
			select {
			case <-going:
			case <-done:
			}
		}
	}
	src.Url = serve(t, server)
	reader, other := &host{name: "pve1", g: newGround(t)}, newGround(t)
	var both sync.WaitGroup
	both.Go(func() {
		if _, err := reader.g.fetch(src); !errors.Is(err, rpc.ErrRefused) {
			t.Errorf("a wrong file: %v", err)
		}
	})
	both.Go(func() {
		told := false
		_, _, _, err := other.s.Fetch(t.Context(), image.Job{
			Source: src, To: other.to, Peers: []image.Peer{reader},
			Progress: func(p image.Told) {
				if p.Done == 512<<10 && !told {
					told = true
					close(going)
				}
			},
		})
		if err == nil {
			t.Error("it was taken")
		}
	})
	both.Wait()
	for _, g := range []*ground{reader.g, other} {
		if parts := g.s.Parts([]image.Folder{g.to}); len(parts) > 0 {
			t.Errorf("kept %v", parts)
		}
	}
}

func TestWhoAsksBeforeTheSourceAnsweredIsToldHowLargeTheFileIs(t *testing.T) {
	content := noise(megs, 1)
	asked, answer := make(chan struct{}), make(chan struct{})
	files := wan.New(content)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(asked)
		<-answer
		files.ServeHTTP(w, r)
	}))
	defer srv.Close()
	g, src := newGround(t), known(content)
	src.Url, src.Bytes = srv.URL, 0
	fetched := make(chan error, 1)
	go func() {
		_, err := g.fetch(src)
		fetched <- err
	}()
	<-asked
	file, err := g.s.Pass(image.Digests{SHA256: sum(content)}, 0, []image.Folder{g.to})
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if file.Bytes != 0 {
		t.Errorf("%d bytes are known before the source answered", file.Bytes)
	}
	close(answer)
	if err := file.Ready(t.Context()); err != nil || file.Bytes != megs {
		t.Errorf("%d bytes, %v", file.Bytes, err)
	}
	if err := <-fetched; err != nil {
		t.Error(err)
	}
}
