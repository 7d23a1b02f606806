package image_test

import (
	"bytes"
	"context"
	"errors"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/homeiac/homelab/agent/image"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/lab/wan"
)

// noise is an image without holes.
func noise(size int, seed uint64) []byte {
	b := make([]byte, size)
	_, _ = wan.Synthetic{Seed: seed, Size: int64(size)}.ReadAt(b, 0)
	return b
}

// ground is a folder of one host, and what fetches into it.
type ground struct {
	t  *testing.T
	s  *image.Store
	to image.Folder
}

func newGround(t *testing.T) *ground {
	t.Helper()
	return &ground{t: t, s: image.New(nil).Hurry(2*time.Second, 2*time.Second), to: image.FolderOf(t.TempDir(), "local", "/var/lib/vz")}
}

// again is the ground after the agent was killed.
func (g *ground) again() *ground {
	return &ground{t: g.t, s: image.New(nil).Hurry(2*time.Second, 2*time.Second), to: g.to}
}

func (g *ground) fetch(src *homelabv1.ImageSource, peers ...image.Peer) (image.Image, error) {
	g.t.Helper()
	img, _, _, err := g.s.Fetch(g.t.Context(), image.Job{Source: src, To: g.to, WAN: true, Peers: peers})
	return img, err
}

// holds checks that the folder has that file, and nothing half-written.
func (g *ground) holds(src *homelabv1.ImageSource, content []byte) {
	g.t.Helper()
	img, ok := image.Find(src, g.to)
	if !ok {
		g.t.Fatal("it is not there")
	}
	got, err := os.ReadFile(filepath.Join(g.to.Local, filepath.Base(img.Path)))
	if err != nil || !bytes.Equal(got, content) {
		g.t.Errorf("the content differs: %v", err)
	}
	g.clean()
}

// clean checks that nothing half-written is left.
func (g *ground) clean() {
	g.t.Helper()
	if left, _ := filepath.Glob(filepath.Join(g.to.Local, ".*")); len(left) > 0 {
		g.t.Errorf("left over: %v", left)
	}
}

func serve(t *testing.T, s *wan.Server) string {
	t.Helper()
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	return srv.URL + "/noble.img"
}

func from(url string, mirrors ...string) *homelabv1.ImageSource {
	return &homelabv1.ImageSource{Name: "noble", Url: url, Mirrors: mirrors}
}

func (g *ground) refused(err error, texts ...string) {
	g.t.Helper()
	g.is(err, rpc.ErrRefused, texts...)
	g.clean()
}

func (g *ground) is(err error, kind rpc.Kind, texts ...string) {
	g.t.Helper()
	if rpc.KindOf(err) != kind {
		g.t.Errorf("kind %q, want %q: %v", rpc.KindOf(err), kind, err)
	}
	for _, text := range texts {
		if err == nil || !strings.Contains(err.Error(), text) {
			g.t.Errorf("%q is not in: %v", text, err)
		}
	}
}

const megs = 4 << 20

func TestAServerThatDropsEachEighthServesTheFileOnce(t *testing.T) {
	content := noise(megs, 1)
	for name, src := range map[string]func(*wan.Server) *homelabv1.ImageSource{
		"with a checksum":    func(*wan.Server) *homelabv1.ImageSource { return &homelabv1.ImageSource{Sha256: sum(content)} },
		"with a strong ETag": func(s *wan.Server) *homelabv1.ImageSource { s.ETag = `"1"`; return new(homelabv1.ImageSource) },
	} {
		t.Run(name, func(t *testing.T) {
			g, s := newGround(t), wan.New(content)
			s.DropEvery = megs / 8
			one := src(s)
			one.Name, one.Url = "noble", serve(t, s)
			if _, err := g.fetch(one); err != nil {
				t.Fatal(err)
			}
			g.holds(one, content)
			if n := float64(s.Count()) / megs; n > 1.05 {
				t.Errorf("the server sent %.2f times the file", n)
			}
		})
	}
}

func TestWithoutAStrongETagOrAChecksumNothingIsResumed(t *testing.T) {
	for _, etag := range []string{"", `W/"1"`} {
		g, s := newGround(t), wan.New(noise(megs, 1))
		s.ETag, s.DropEvery = etag, megs/8
		_, err := g.fetch(from(serve(t, s)))
		g.is(err, rpc.ErrUnavailable, "512 KiB of 4 MiB")
		g.clean()
		for _, r := range s.Requests() {
			if r.Range != "" {
				t.Errorf("ETag %s: asked for %s", etag, r.Range)
			}
		}
		if n := len(s.Requests()); n < 2 || n > 6 {
			t.Errorf("asked %d times", n)
		}
	}
}

func TestAFileThatChangesUnderItsETagIsBegunAnew(t *testing.T) {
	g, old, content := newGround(t), noise(megs, 1), noise(megs, 2)
	s := wan.New(old)
	s.ETag, s.EndsAt = `"1"`, megs/2
	src := from(serve(t, s))
	s.Gate = func(offset int64, _ <-chan struct{}) {
		if offset+wan.Step >= megs/2 {
			s.Change(func(s *wan.Server) { s.Replace(content); s.ETag, s.EndsAt, s.Gate = `"2"`, 0, nil })
		}
	}
	if _, err := g.fetch(src); err != nil {
		t.Fatal(err)
	}
	g.holds(src, content)
	if r := s.Requests(); len(r) < 2 || r[1].IfRange != `"1"` {
		t.Errorf("asked: %+v", r)
	}
}

func TestAServerThatEndsEarlyIsLeftForAMirrorAndThenSaysHowMuchCame(t *testing.T) {
	content := noise(megs, 1)
	g, short, good := newGround(t), wan.New(content), wan.New(content)
	short.EndsAt = megs / 2
	src := from(serve(t, short), serve(t, good))
	if _, err := g.fetch(src); err != nil {
		t.Fatal(err)
	}
	g.holds(src, content)
	if r := good.Requests(); len(r) != 1 || r[0].Range != "" {
		t.Errorf("without a checksum no mirror goes on from another's part: %+v", r)
	}

	g = newGround(t)
	_, err := g.fetch(from(src.GetUrl()))
	g.is(err, rpc.ErrUnavailable, "2 MiB of 4 MiB")
	g.clean()

	// With a checksum it does, and what was there stays for the next time.
	g, again := newGround(t), wan.New(content)
	known := &homelabv1.ImageSource{Name: "noble", Url: src.GetUrl(), Sha256: sum(content)}
	_, err = g.fetch(known)
	g.is(err, rpc.ErrUnavailable, "2 MiB of 4 MiB")
	parts := g.again().s.Parts([]image.Folder{g.to})
	if len(parts) != 1 || parts[0].GetDoneBytes() != megs/2 || parts[0].GetBytes() != megs || parts[0].GetActive() || parts[0].GetSha256() != sum(content) {
		t.Errorf("parts %v", parts)
	}
	known.Mirrors = []string{serve(t, again)}
	if _, err := g.again().fetch(known); err != nil {
		t.Fatal(err)
	}
	g.holds(known, content)
	if n := again.Count(); n != megs/2 {
		t.Errorf("the mirror sent %d bytes", n)
	}
}

func TestAServerThatGoesOnIsRefused(t *testing.T) {
	content := noise(megs, 1)
	for _, with := range []string{"", sum(content)} {
		g, s := newGround(t), wan.New(content)
		s.GoesOn = 100
		src := from(serve(t, s))
		src.Sha256 = with
		_, err := g.fetch(src)
		g.refused(err, "goes on past its stated length of 4194304 bytes")
	}
	// One that states no length goes on past the one that the step knows.
	g, s := newGround(t), wan.New(noise(megs+100, 1))
	s.NoLength = true
	src := from(serve(t, s))
	src.Sha256, src.Bytes = sum(content), megs
	_, err := g.fetch(src)
	g.refused(err, "goes on past its stated length of 4194304 bytes")
}

func TestAnHTMLPageIsRefused(t *testing.T) {
	g, s := newGround(t), wan.New(noise(megs, 1))
	s.HTML = true
	src := from(serve(t, s))
	_, err := g.fetch(src)
	g.refused(err, "an HTML page, not an image")
	src.Sha256 = strings.Repeat("0", 64)
	_, err = g.fetch(src)
	g.refused(err, "an HTML page, not an image")
}

func TestAWrongChecksumIsRefusedAndThatAddressNotAskedAgain(t *testing.T) {
	content := noise(megs, 1)
	g, bad, good := newGround(t), wan.New(noise(megs, 2)), wan.New(content)
	src := from(serve(t, bad))
	src.Sha256 = sum(content)
	_, err := g.fetch(src)
	g.refused(err, sum(content), sum(noise(megs, 2)))
	if n := len(bad.Requests()); n != 1 {
		t.Errorf("asked %d times", n)
	}
	src.Mirrors = []string{serve(t, good)}
	if _, err := g.fetch(src); err != nil {
		t.Fatal(err)
	}
	g.holds(src, content)
}

func TestAPartOfAnotherFileIsDroppedBeforeTheServerIsJudged(t *testing.T) {
	content := noise(megs, 1)
	g, s := newGround(t), wan.New(noise(megs, 2))
	s.EndsAt = megs / 2
	s.Gate = func(offset int64, _ <-chan struct{}) {
		if offset+wan.Step >= megs/2 {
			s.Change(func(s *wan.Server) { s.Replace(content); s.EndsAt, s.Gate = 0, nil })
		}
	}
	src := from(serve(t, s))
	src.Sha256 = sum(content)
	if _, err := g.fetch(src); err != nil {
		t.Fatal(err)
	}
	g.holds(src, content)
}

func TestAnotherFileThanTheRecordedOneIsRefused(t *testing.T) {
	content := noise(megs, 1)
	g, s := newGround(t), wan.New(noise(megs/2, 2))
	src := from(serve(t, s))
	src.Sha256, src.Verification, src.Bytes = sum(content), homelabv1.Verification_VERIFICATION_NO, megs
	_, err := g.fetch(src)
	g.refused(err, sum(content), sum(noise(megs/2, 2)), "hlctl images fetch noble --newest")
}

func TestAnswersOfServers(t *testing.T) {
	content := noise(megs, 1)
	g, s := newGround(t), wan.New(content)
	s.Status, s.Times = 503, 2
	src := from(serve(t, s))
	if _, err := g.fetch(src); err != nil {
		t.Fatal(err)
	}
	g.holds(src, content)

	for status, kind := range map[int]rpc.Kind{404: rpc.ErrNotFound, 403: rpc.ErrUnavailable, 500: rpc.ErrUnavailable} {
		g, s := newGround(t), wan.New(content)
		s.Status = status
		_, err := g.fetch(from(serve(t, s)))
		g.is(err, kind)
		g.clean()
		if n := len(s.Requests()); status == 500 && n != 5 || status != 500 && n != 1 {
			t.Errorf("%d: asked %d times", status, n)
		}
	}

	// All of them are named, and one that refused counts.
	g = newGround(t)
	missing, page := wan.New(nil), wan.New(nil)
	missing.Status, page.HTML = 404, true
	src = from(serve(t, missing), serve(t, page))
	_, err := g.fetch(src)
	g.refused(err, src.GetUrl(), "404", src.GetMirrors()[0], "an HTML page")
}

func TestUserAndPasswordAreSentAndNeverTold(t *testing.T) {
	content := noise(megs, 1)
	g, s := newGround(t), wan.New(content)
	s.User, s.Password = "me", "hush"
	url := strings.Replace(serve(t, s), "http://", "http://me:hush@", 1)
	src := from(url)
	img, err := g.fetch(src)
	if err != nil || strings.Contains(img.Record.URL, "hush") {
		t.Fatal(img.Record.URL, err)
	}
	s.Change(func(s *wan.Server) { s.Password = "other" })
	src.Name = "other"
	if _, err := g.fetch(src); err == nil || strings.Contains(err.Error(), "hush") || !strings.Contains(err.Error(), "401") {
		t.Errorf("got %v", err)
	}
}

func TestRedirectsAreFollowed(t *testing.T) {
	content := noise(megs, 1)
	g, s, away := newGround(t), wan.New(content), wan.New(nil)
	away.Redirect = serve(t, s)
	src := from(serve(t, away))
	if _, err := g.fetch(src); err != nil {
		t.Fatal(err)
	}
	g.holds(src, content)
}

func TestAServerThatStandsStillEndsAnAttempt(t *testing.T) {
	content := noise(megs, 1)
	g, s := newGround(t), wan.New(content)
	g.s.Hurry(300*time.Millisecond, 0)
	stood := false
	s.ETag = `"1"`
	s.Gate = func(offset int64, done <-chan struct{}) {
		if offset >= megs/2 && !stood {
			stood = true
			<-done
		}
	}
	src := from(serve(t, s))
	if _, err := g.fetch(src); err != nil {
		t.Fatal(err)
	}
	g.holds(src, content)
	if r := s.Requests(); len(r) < 2 || r[1].Range == "" {
		t.Errorf("asked: %+v", r)
	}
}

// cutOff fetches until about half of the file is there, as an agent that is killed
// then, and gives how much the part holds.
func (g *ground) cutOff(src *homelabv1.ImageSource, s *wan.Server) {
	g.t.Helper()
	ctx, kill := context.WithCancel(g.t.Context())
	defer kill()
	reached := make(chan struct{})
	s.Change(func(s *wan.Server) {
		s.Gate = func(offset int64, done <-chan struct{}) {
			if offset == megs/2 {
				close(reached)
				<-done
			}
		}
	})
	go func() {
		<-reached
		for { // what was sent is there
			if p := g.s.Parts([]image.Folder{g.to}); len(p) == 1 && p[0].GetDoneBytes() >= megs/2 && p[0].GetActive() {
				kill()
				return
			}
		}
	}()
	if _, _, _, err := g.s.Fetch(ctx, image.Job{Source: src, To: g.to, WAN: true}); !errors.Is(err, context.Canceled) {
		g.t.Fatal(err)
	}
	s.Change(func(s *wan.Server) { s.Gate = nil })
}

func TestAKilledFetchGoesOnFromItsPart(t *testing.T) {
	content := noise(megs, 1)
	g, s := newGround(t), wan.New(content)
	src := from(serve(t, s))
	src.Sha512 = ""
	s.ETag = `"1"`
	g.cutOff(src, s)
	if _, err := g.again().fetch(src); err != nil {
		t.Fatal(err)
	}
	g.holds(src, content)
	if n := s.Count(); n > megs*105/100 {
		t.Errorf("%d bytes", n)
	}
}

// TestWhatIsLeftOfAFetchIsRemovedWithTheDigest, also where there is no whole file.
func TestWhatIsLeftOfAFetchIsRemovedWithTheDigest(t *testing.T) {
	content := noise(megs, 1)
	g, s := newGround(t), wan.New(content)
	src := from(serve(t, s))
	src.Sha256 = sum(content)
	g.cutOff(src, s)
	if got := g.s.Where(sum(noise(megs, 2)), g.to); len(got) > 0 {
		t.Errorf("of another digest: %v", got)
	}
	if got := g.s.Where(sum(content), g.to); len(got) != 1 || filepath.Dir(got[0]) != g.to.Host {
		t.Errorf("where: %v", got)
	}
	for range 2 {
		if err := g.s.Remove(sum(content), g.to); err != nil {
			t.Fatal(err)
		}
	}
	g.clean()
}

// What a power cut leaves is what was synced before the sidecar was written.
func TestAFetchThatWasNotEndedInOrderGoesOnFromItsSidecar(t *testing.T) {
	content := noise(megs, 1)
	g, s := newGround(t), wan.New(content)
	src := from(serve(t, s))
	src.Sha256 = sum(content)
	goOn := make(chan struct{})
	s.Gate = func(offset int64, _ <-chan struct{}) {
		if offset == megs/2 {
			<-goOn
		}
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		_, _, _, _ = g.s.Fetch(t.Context(), image.Job{Source: src, To: g.to, WAN: true})
	}()
	after := newGround(t)
	var done int64
	for done == 0 { // as the disk has it
		if p := g.again().s.Parts([]image.Folder{g.to}); len(p) == 1 {
			done = p[0].GetDoneBytes()
		}
	}
	if err := os.MkdirAll(after.to.Local, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{".*.part.json", ".*.part"} { // the part may be further on, as after a power cut
		paths, _ := filepath.Glob(filepath.Join(g.to.Local, kind))
		for _, path := range paths {
			data, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(filepath.Join(after.to.Local, filepath.Base(path)), data, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	before := s.Requests()
	close(goOn)
	<-over
	if _, err := after.fetch(src); err != nil {
		t.Fatal(err)
	}
	after.holds(src, content)
	if r := s.Requests(); len(r) != len(before)+1 || r[1].Range == "" || r[1].Sent > megs-done {
		t.Errorf("%d bytes were there, asked: %+v", done, r)
	}
}

func TestAPartWithADamagedBeginningIsNotGoneOnFrom(t *testing.T) {
	content := noise(megs, 1)
	g, s := newGround(t), wan.New(content)
	src := from(serve(t, s))
	src.Sha256 = sum(content)
	g.cutOff(src, s)
	parts, _ := filepath.Glob(filepath.Join(g.to.Local, ".*.part"))
	if len(parts) != 1 {
		t.Fatalf("parts %v", parts)
	}
	f, err := os.OpenFile(parts[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.WriteAt([]byte("damage"), megs/4)
	_ = f.Close()
	if _, err := g.again().fetch(src); err != nil {
		t.Fatal(err)
	}
	g.holds(src, content)
	if r := s.Requests(); len(r) != 2 || r[1].Range != "" {
		t.Errorf("asked: %+v", r)
	}
}

func TestWhatIsKnownIsRefusedBeforeTheBodyIsRead(t *testing.T) {
	g := newGround(t)
	s := wan.Of(wan.Synthetic{Seed: 1, Size: 1 << 30}, 1<<30)
	src := from(serve(t, s))
	var seen image.Seen
	_, _, _, err := g.s.Fetch(t.Context(), image.Job{Source: src, To: g.to, WAN: true, Check: func(s image.Seen) (int64, error) {
		seen = s
		return 0, rpc.Errorf(rpc.ErrRefused, "no room for it")
	}})
	g.refused(err, "no room for it")
	if seen.Bytes != 1<<30 || seen.Format != "raw" || seen.VirtualBytes != 1<<30 {
		t.Errorf("seen %+v", seen)
	}
	if n := len(s.Requests()); n != 1 {
		t.Errorf("asked %d times", n)
	}
}
