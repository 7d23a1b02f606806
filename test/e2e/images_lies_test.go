//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/homeiac/homelab/lab/wan"
)

// lie is one way in which a server is no good, with what comes of it.
type lie struct {
	name string
	// proof is what the Spec says of the content: right, wrong or nothing.
	proof string
	// lies makes the server lie. It may put another file in the place of the content.
	lies func(s *wan.Server, content []byte)
	// mirror is what there is besides: nothing, a mirror that is good, or one that lies
	// alike.
	mirror string
	// fails are the words of which one fetch says each, empty when it completes.
	fails []string
	// sends is at most how many times the image the servers send.
	sends float64
	// check looks at the requests made to the server and to its mirror.
	check func(t *testing.T, source, mirror []wan.Request)
	// other says that it is the other file that is got.
	other bool
	// part says that what came may stay, to be gone on from.
	part bool
}

const lieSize = 8 * mib

// eighths cuts the connection after each eighth of the file.
func eighths(s *wan.Server, _ []byte) { s.DropEvery = lieSize / 8 }

// endsEarly cuts it at three quarters of the file, always.
func endsEarly(s *wan.Server, _ []byte) { s.EndsAt = lieSize / 4 * 3 }

// brokenOnce cuts the connection in the middle of the file, once, and then does then.
func brokenOnce(s *wan.Server, then func(s *wan.Server)) {
	s.DropEvery = lieSize / 2
	s.Gate = func(offset int64, _ <-chan struct{}) {
		if offset >= lieSize/2-wan.Step {
			s.Change(func(s *wan.Server) {
				s.DropEvery, s.Gate = 0, nil
				then(s)
			})
		}
	}
}

// resumed are the requests that asked for a range.
func resumed(requests []wan.Request) int {
	n := 0
	for _, r := range requests {
		if r.Range != "" {
			n++
		}
	}
	return n
}

func nothingResumed(t *testing.T, source, mirror []wan.Request) {
	t.Helper()
	if n := resumed(source) + resumed(mirror); n > 0 {
		t.Errorf("%d requests went on from something that nothing proves", n)
	}
}

var lies = []lie{
	{name: "drops-summed", proof: "right", lies: eighths, sends: 1.05},
	{name: "drops-etag", lies: eighths, sends: 1.05},
	{
		name: "stops", proof: "right", lies: endsEarly, mirror: "lies", part: true,
		fails: []string{"6 MiB of 8 MiB", "/stops.img", "/mirror/stops.img"}, sends: 1.05,
	},
	{name: "ends-mirrored", proof: "right", lies: endsEarly, mirror: "good", sends: 1.05},
	{
		name: "ends-unproven", lies: endsEarly, mirror: "good", sends: 1.8,
		check: func(t *testing.T, _, mirror []wan.Request) {
			if len(mirror) != 1 || mirror[0].Range != "" {
				t.Errorf("the mirror goes on with another server's part: %+v", mirror)
			}
		},
	},
	{name: "goes-on", proof: "right", lies: func(s *wan.Server, _ []byte) { s.GoesOn = 64 << 10 }, fails: []string{"goes on past its stated length"}, sends: 1.05},
	{
		name: "changes", other: true, sends: 1.55,
		lies: func(s *wan.Server, content []byte) {
			brokenOnce(s, func(s *wan.Server) { s.ETag = `"2"`; s.Replace(otherFile(content)) })
		},
		check: func(t *testing.T, source, _ []wan.Request) {
			if len(source) != 2 || source[1].IfRange != `"1"` || source[1].Sent != lieSize {
				t.Errorf("it was to be asked for the rest of the old file and to give the new one: %+v", source)
			}
		},
	},
	{
		name: "weak-etag", other: true, sends: 1.55, check: nothingResumed,
		lies: func(s *wan.Server, content []byte) {
			s.ETag = `W/"1"`
			brokenOnce(s, func(s *wan.Server) { s.Replace(otherFile(content)) })
		},
	},
	{
		name: "no-etag", sends: 1.55, check: nothingResumed,
		lies: func(s *wan.Server, _ []byte) { s.ETag = ""; brokenOnce(s, func(*wan.Server) {}) },
	},
	{name: "no-etag-drops", lies: func(s *wan.Server, _ []byte) { s.ETag = ""; s.DropEvery = lieSize / 8 }, fails: []string{"1 MiB of 8 MiB"}, sends: 20, check: nothingResumed},
	{name: "html", lies: func(s *wan.Server, _ []byte) { s.HTML = true }, fails: []string{"an HTML page, not an image"}, sends: 0.01},
	{
		name: "wrong-sum", proof: "wrong", lies: func(*wan.Server, []byte) {}, mirror: "good", fails: []string{"should be " + strings.Repeat("ab", 32)}, sends: 2.01,
		check: func(t *testing.T, source, mirror []wan.Request) {
			if len(source) != 1 || len(mirror) != 1 {
				t.Errorf("a file that is not the one was asked for again: %+v, %+v", source, mirror)
			}
		},
	},
}

// otherFile is another image of the same size.
func otherFile(content []byte) []byte {
	other := slices.Clone(content)
	for i := mib; i < len(other); i += 4096 {
		other[i] ^= 0xff
	}
	return other
}

// Each server that lies costs its own image at most: what can be had is had without
// asking twice for the same bytes, what cannot is refused with the reason, nothing
// half-written stays, and everybody else's guests are made in the same apply.
func TestServersThatLie(t *testing.T) {
	t.Parallel()
	net := newInternet(t)
	l := newLab(t, options{})
	good := bootable(99, lieSize)
	net.serve("/good.img", good)
	images := doc{"good": doc{"url": net.url("/good.img"), "sha256": sha256Of(good)}}
	guests := doc{}
	for i := 1; i <= 3; i++ {
		guests[fmt.Sprintf("good-%d", i)] = doc{"host": fmt.Sprintf("pve%d", i), "image": "good"}
	}
	sources, mirrors := map[string]*wan.Server{}, map[string]*wan.Server{}
	contents := map[string][]byte{}
	for i, c := range lies {
		content := bootable(uint64(100+i), lieSize)
		s := net.serve("/"+c.name+".img", content)
		s.Change(func(s *wan.Server) { c.lies(s, content) })
		image := doc{"url": net.url("/" + c.name + ".img")}
		if c.mirror != "" {
			mirrors[c.name] = net.serve("/mirror/"+c.name+".img", content)
			if c.mirror == "lies" {
				mirrors[c.name].Change(func(s *wan.Server) { c.lies(s, content) })
			}
			image["mirrors"] = []any{net.url("/mirror/" + c.name + ".img")}
		}
		switch c.proof {
		case "right":
			image["sha256"] = sha256Of(content)
		case "wrong":
			image["sha256"] = strings.Repeat("ab", 32)
		}
		if c.other {
			content = otherFile(content)
		}
		images[c.name], sources[c.name], contents[c.name] = image, s, content
		guests[c.name+"-1"], guests[c.name+"-2"] = standby("pve1", c.name), standby("pve2", c.name)
	}
	a := l.mustApply(l.imaged(images, guests), 3)
	for _, c := range lies {
		t.Run(c.name, func(t *testing.T) {
			l := l.in(t)
			var asks, mirrored []wan.Request
			sent := sources[c.name].Count()
			asks = sources[c.name].Requests()
			if m := mirrors[c.name]; m != nil {
				mirrored = m.Requests()
				sent += m.Count()
			}
			if share := float64(sent) / lieSize; share > c.sends {
				t.Errorf("%.2f times the image was sent, at most %.2f times was wanted", share, c.sends)
			}
			if c.check != nil {
				c.check(t, asks, mirrored)
			}
			defer func() {
				if t.Failed() {
					t.Logf("asked for %+v, of the mirror %+v\n%s", asks, mirrored, a)
				}
			}()
			if c.fails == nil {
				l.mustHoldImage(c.name, contents[c.name], "pve1", "pve2")
				l.mustBeStandby(c.name+"-1", c.name+"-2")
				return
			}
			text := ""
			for line := range strings.SplitSeq(a.failures(), "fetch/") {
				if strings.Contains(line, "/"+c.name+":") {
					text += line
				}
			}
			for _, w := range c.fails {
				if !strings.Contains(text, w) {
					t.Errorf("the failure does not say %q: %s", w, text)
				}
			}
			for i, host := range []string{"pve1", "pve2"} {
				if !c.part {
					l.mustHoldNoImage(c.name, host)
				}
				for _, file := range l.imageFiles(host, c.name) {
					if !strings.HasPrefix(file, ".") {
						t.Errorf("%s is left on %s", file, host)
					}
				}
				guest := fmt.Sprintf("%s-%d", c.name, i+1)
				l.mustNotBeMade(guest)
				if !slices.ContainsFunc(a.events, func(e eventDoc) bool { return e.Kind == "step-skipped" && e.Guest == guest }) {
					t.Errorf("%s was not skipped", guest)
				}
			}
		})
	}
	l.mustBeHealthy("good-1", "good-2", "good-3")
}
