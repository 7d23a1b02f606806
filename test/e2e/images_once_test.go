//go:build e2e

package e2e

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/homeiac/homelab/lab/wan"
)

// Five hosts get their images, and the WAN sends each once: with a checksum, with a
// list of them, with neither, and compressed. Nobody reads it a second time.
func TestTheWANSendsAnImageOnceToFiveHosts(t *testing.T) {
	t.Parallel()
	net := newInternet(t)
	l := newLab(t, options{hosts: 5})
	contents := map[string][]byte{"summed": bootable(1, 16*mib), "listed": bootable(2, 8*mib), "bare": bootable(3, 8*mib)}
	var packed bytes.Buffer
	z, _ := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	if _, err := z.Write(bootable(4, 8*mib)); err != nil || z.Close() != nil {
		t.Fatal(err)
	}
	contents["packed"] = packed.Bytes()
	servers, images, guests := map[string]*wan.Server{}, doc{}, doc{}
	for name, content := range contents {
		servers[name] = net.serve("/"+name+".img", content)
		images[name] = doc{"url": net.url("/" + name + ".img")}
		for i := 1; i <= 5; i++ {
			guests[fmt.Sprintf("%s-%d", name, i)] = standby(fmt.Sprintf("pve%d", i), name)
		}
	}
	list := net.serve("/SHA256SUMS", fmt.Appendf(nil, "%s *other.img\n%s *listed.img\n", strings.Repeat("0", 64), sha256Of(contents["listed"])))
	at(images, "summed")["sha256"] = sha256Of(contents["summed"])
	at(images, "packed")["sha256"] = sha256Of(contents["packed"])
	at(images, "listed")["checksums"] = net.url("/SHA256SUMS")
	var running []string
	for i := 1; i <= 5; i++ { // those of one image boot
		name := fmt.Sprintf("summed-%d", i)
		delete(at(guests, name), "state")
		running = append(running, name)
	}
	spec := l.imaged(images, guests)
	if _, exit := l.plan(spec); exit != 2 || len(servers["bare"].Requests()) != 0 {
		t.Errorf("a fresh plan: exit %d, and it read a URL", exit)
	}
	a := l.mustApply(spec, 0)
	requests := map[string]int{}
	for name, s := range servers {
		t.Run(name, func(t *testing.T) {
			l := l.in(t)
			if got, want := s.Count(), int64(len(contents[name])); got != want {
				t.Errorf("the WAN sent %d bytes of an image of %d\n%s", got, want, asked(s))
			}
			l.mustHoldImage(name, contents[name], l.hostNames()...)
			verified := map[string]string{"listed": "list", "bare": "no"}[name]
			if verified == "" {
				verified = "spec"
			}
			held := l.images(name)
			for _, d := range held {
				if d.Verified != verified || d.Format != "raw" || d.Type != "disk" || d.Storage != "local" || d.Template != nil ||
					d.Bytes == nil || *d.Bytes != int64(len(contents[name])) || d.DoneBytes != *d.Bytes || d.SHA256 != sha256Of(contents[name]) {
					t.Errorf("hlctl images shows %+v", d)
				}
			}
			if len(held) != 5 {
				t.Errorf("hlctl images shows %d files, there are 5", len(held))
			}
		})
		requests[name] = len(s.Requests())
	}
	if n := len(list.Requests()); n != 1 {
		t.Errorf("the list of checksums was read %d times\n%s", n, asked(list))
	}
	l.mustBeHealthy(running...)
	l.mustHoldNoParts()
	if !strings.Contains(a.told(), "not verified") {
		t.Errorf("it is not told that image bare was not verified\n%s", a)
	}
	l.mustChangeNothing(spec)
	if _, exit := l.plan(spec); exit != 0 {
		t.Errorf("plan of a finished fleet: exit %d", exit)
	}
	for name, s := range servers {
		if n := len(s.Requests()); n != requests[name] {
			t.Errorf("the second apply or plan read the URL of %s\n%s", name, asked(s))
		}
	}
	if n := len(list.Requests()); n != 1 {
		t.Errorf("the second apply or plan read the list of checksums\n%s", asked(list))
	}
}

// The host that reads the WAN dies when it has half of the image. The others get it
// all the same, in the same apply, and the WAN sends little more than once.
func TestTheHostThatReadsTheWANDiesHalfway(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name        string
		kill, mend  func(l *lab, host string)
		exit        int
		staysBehind bool
	}{
		{
			name: "its host is off", exit: 3, staysBehind: true,
			kill: func(l *lab, host string) { l.fault("host-off", host) },
			mend: func(l *lab, host string) { l.fault("host-on", host) },
		},
		{
			name: "its agent is killed and comes back",
			kill: func(l *lab, host string) { l.fault("agent-kill", host); l.fault("agent-start", host) },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			net := newInternet(t)
			l := newLab(t, options{hosts: 5})
			content := bootable(10, 32*mib)
			source := net.serve("/half.img", content)
			g := gated(source, 16*mib)
			defer g.release()
			guests := doc{}
			for i := 1; i <= 5; i++ {
				guests[fmt.Sprintf("half-%d", i)] = standby(fmt.Sprintf("pve%d", i), "half")
			}
			spec := l.imaged(doc{"half": doc{"url": net.url("/half.img"), "sha256": sha256Of(content)}}, guests)
			reader := make(chan string, 1)
			var once sync.Once
			a := l.startApply(l.config, spec, func(e eventDoc) {
				if strings.Contains(e.Text, "from its source") {
					once.Do(func() { reader <- e.Host })
				}
			})
			g.await(t, a)
			host := <-reader
			l.eventually(15*time.Second, "all have what was sent", func() (bool, string) {
				held := l.images("half")
				halves := slices.DeleteFunc(slices.Clone(held), func(d imageDoc) bool {
					share := float64(d.DoneBytes) / float64(len(content))
					return share < 0.4 || share > 0.6
				})
				return len(halves) == 5, fmt.Sprintf("%+v", held)
			})
			c.kill(l, host)
			g.release()
			out := a.wait()
			if out.exit != c.exit {
				t.Fatalf("exit %d expected\n%s", c.exit, out)
			}
			served(t, source, len(content), 1, 1.3)
			for i := 1; i <= 5; i++ {
				if name := fmt.Sprintf("pve%d", i); name != host || !c.staysBehind {
					l.mustHoldImage("half", content, name)
					l.mustBeStandby(fmt.Sprintf("half-%d", i))
				}
			}
			t.Logf("%s was killed; the WAN sent %.2f times the image, in %.1f s\n%s", host, float64(source.Count())/float64(len(content)), out.took.Seconds(), asked(source))
			if c.mend != nil {
				c.mend(l, host)
				l.awaitState(host, "online", 15*time.Second)
				l.mustApply(spec, 0)
			}
			l.mustHoldImage("half", content, l.hostNames()...)
			l.mustHoldNoParts()
			served(t, source, len(content), 1, 1.3)
			l.mustChangeNothing(spec)
		})
	}
}
