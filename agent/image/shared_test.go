package image_test

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/homeiac/homelab/agent/image"
	"github.com/homeiac/homelab/lab/wan"
)

// On shared storage the agents of two hosts have one folder. Both began the same part,
// and one cut off what the other had written.
func TestOfTwoHostsWithOneFolderOneFetches(t *testing.T) {
	content := noise(megs, 1)
	s := wan.New(content)
	src := known(content)
	src.Url = serve(t, s)
	half, goOn := stopsHalfway(s)
	pve1 := newGround(t)
	pve2 := pve1.again()
	var all sync.WaitGroup
	all.Go(func() {
		if _, err := pve1.fetch(src); err != nil {
			t.Error("pve1:", err)
		}
	})
	<-half
	if parts := pve2.s.Parts([]image.Folder{pve2.to}); len(parts) > 0 && !parts[0].GetActive() {
		t.Error("pve2 takes what pve1 fetches for what nobody goes on with")
	}
	if err := pve2.s.Remove(src.GetSha256(), pve2.to); err != nil {
		t.Error(err)
	}
	var once sync.Once
	all.Go(func() {
		_, changed, _, err := pve2.s.Fetch(t.Context(), image.Job{
			Source: src, To: pve2.to, Peers: []image.Peer{&host{name: "pve1", g: pve1}}, WAN: true,
			Progress: func(image.Told) { once.Do(func() { close(goOn) }) },
		})
		if changed || err != nil {
			t.Errorf("pve2: changed %v, %v", changed, err)
		}
	})
	all.Wait()
	pve1.holds(src, content)
	if s.Count() != megs {
		t.Errorf("the source sent %d bytes", s.Count())
	}
}

func TestAnUnpackedCopyOfAnotherHostIsLeftToIt(t *testing.T) {
	content := noise(1<<20, 1)
	pve1 := newGround(t)
	pve2 := pve1.again()
	img, err := pve1.fetch(from(serve(t, wan.New(zipped(content)))))
	if err != nil {
		t.Fatal(err)
	}
	path, release, err := pve1.s.Importable(t.Context(), img, -1)
	if err != nil {
		t.Fatal(err)
	}
	_, others, err := pve2.s.Importable(t.Context(), img, -1)
	if err != nil {
		t.Fatal(err)
	}
	others()
	if got, err := os.ReadFile(filepath.Join(pve1.to.Local, filepath.Base(path))); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	release()
	if left, _ := filepath.Glob(filepath.Join(pve1.to.Local, "*.unpacked.*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

// Who began before it and got nothing takes the empty folder away with its part.
func TestAHostThatWaitedMakesTheFolderAgain(t *testing.T) {
	content := noise(megs, 1)
	src := known(content)
	src.Url = serve(t, wan.New(content))
	pve1 := newGround(t)
	pve2 := pve1.again()
	var all sync.WaitGroup
	asked, waits := make(chan struct{}), make(chan struct{})
	all.Go(func() {
		var once sync.Once
		nobody := &host{name: "pve3", g: newGround(t), asks: func() {
			once.Do(func() { close(asked) })
			<-waits
		}}
		if _, _, err := pve1.pull(src, nobody); err == nil {
			t.Error("pve1 got it from nobody")
		}
	})
	<-asked
	var once sync.Once
	all.Go(func() {
		_, _, _, err := pve2.s.Fetch(t.Context(), image.Job{
			Source: src, To: pve2.to, WAN: true, Progress: func(image.Told) { once.Do(func() { close(waits) }) },
		})
		if err != nil {
			t.Error("pve2:", err)
		}
	})
	all.Wait()
	pve2.holds(src, content)
}
