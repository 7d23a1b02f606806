//go:build e2e

package e2e

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/homeiac/homelab/lab/disk"
	"github.com/homeiac/homelab/lab/wan"
)

// internet is the WAN of a test: web servers that count, by path, at one address.
type internet struct {
	address string
	mux     *http.ServeMux
}

// newInternet is to be made before the lab, so that it ends after it.
func newInternet(t *testing.T) *internet {
	t.Helper()
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	t.Cleanup(func() {
		server.CloseClientConnections() // whoever waits at a gate goes on
		server.Close()
	})
	return &internet{strings.TrimPrefix(server.URL, "http://"), mux}
}

// serve puts a file at a path, with a strong ETag.
func (n *internet) serve(path string, content []byte) *wan.Server {
	s := wan.New(content)
	s.ETag = `"1"`
	n.mux.Handle(path, s)
	return s
}

func (n *internet) url(path string) string { return "http://" + n.address + path }

const mib = 1 << 20

// bootable is a disk image that the lab boots, of bytes that no other seed gives.
func bootable(seed uint64, size int) []byte {
	image := make([]byte, size)
	random := rand.New(rand.NewPCG(seed, 4))
	for at := 64 << 10; at < size; at += 8 {
		binary.LittleEndian.PutUint64(image[at:], random.Uint64())
	}
	copy(image[disk.MarkerOffset:], disk.Marker)
	image[510], image[511] = 0x55, 0xaa
	return image
}

func sha256Of(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// imaged is the lab's Spec with these images and guests instead of its own. What a
// guest does not say is that of a small VM that is in no cluster.
func (l *lab) imaged(images, guests doc, more ...func(doc)) string {
	l.t.Helper()
	return l.edited(l.spec, func(d doc) {
		d["images"], d["guests"] = images, guests
		delete(at(d, "defaults"), "image")
		at(d, "defaults")["memory"], at(d, "defaults")["cpus"], at(d, "defaults")["disk"] = "512MiB", 1, "1GiB"
		at(d, "defaults", "timeouts")["unwellAfter"], at(d, "defaults", "timeouts")["soak"] = "2s", "1s"
		delete(d, "k3s")
		given := 0 // those of a Spec before keep their addresses
		for name := range guests {
			if at(guests, name)["networks"] != nil {
				given++
			}
		}
		for _, name := range slices.Sorted(maps.Keys(guests)) {
			g := at(guests, name)
			if g["networks"] == nil {
				given++
				g["networks"] = []any{doc{"network": "lan", "ip": fmt.Sprintf("%s.%d/24", l.net, 100+given)}}
			}
			if g["state"] == "stopped" {
				g["onboot"] = false
			}
		}
		for _, change := range more {
			change(d)
		}
	})
}

// standby is a guest that is made and not started.
func standby(host, image string) doc { return doc{"host": host, "image": image, "state": "stopped"} }

// imageDoc is one line of hlctl images -o json.
type imageDoc struct {
	Name      string `json:"name"`
	Host      string `json:"host"`
	Storage   string `json:"storage"`
	Type      string `json:"type"`
	Format    string `json:"format"`
	Bytes     *int64 `json:"bytes"`
	DoneBytes int64  `json:"doneBytes"`
	SHA256    string `json:"sha256"`
	Verified  string `json:"verified"`
	Template  *int32 `json:"template"`
}

// images are the image files that hlctl shows, of one name.
func (l *lab) images(name string) []imageDoc {
	l.t.Helper()
	return slices.DeleteFunc(decode[[]imageDoc](l, 0, l.hlctl("images", "-o", "json")), func(d imageDoc) bool { return d.Name != name })
}

// imageFiles are the files of an image in a host's folder for them, also hidden ones.
func (l *lab) imageFiles(host, image string) []string {
	l.t.Helper()
	entries, err := os.ReadDir(l.host(host, "var/lib/vz/template/homelab"))
	if err != nil && !os.IsNotExist(err) {
		l.t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		if strings.HasPrefix(strings.TrimPrefix(e.Name(), "."), image+"-") || strings.HasPrefix(strings.TrimPrefix(e.Name(), "."), image+".") {
			list = append(list, e.Name())
		}
	}
	return list
}

// mustHoldImage wants hosts to have exactly one whole file of an image, with that
// content and its record, and nothing half-written.
func (l *lab) mustHoldImage(image string, content []byte, hosts ...string) {
	l.t.Helper()
	for _, host := range hosts {
		files := l.imageFiles(host, image)
		if len(files) != 2 || files[1] != files[0]+".json" || strings.HasPrefix(files[0], ".") {
			l.t.Errorf("%s has of image %s: %q; one file and its record are wanted", host, image, files)
			continue
		}
		got, err := os.ReadFile(l.host(host, "var/lib/vz/template/homelab", files[0]))
		if err != nil || sha256Of(got) != sha256Of(content) {
			l.t.Errorf("%s has another file as image %s: %d bytes, %v", host, image, len(got), err)
		}
	}
}

// mustHoldNoImage wants hosts to have nothing of an image.
func (l *lab) mustHoldNoImage(image string, hosts ...string) {
	l.t.Helper()
	for _, host := range hosts {
		if files := l.imageFiles(host, image); len(files) > 0 {
			l.t.Errorf("%s has of image %s: %q", host, image, files)
		}
	}
}

// mustHoldNoParts wants no host to have anything half-written or unpacked in its
// folders for images.
func (l *lab) mustHoldNoParts() {
	l.t.Helper()
	for _, pattern := range []string{"template/homelab/.*", "template/homelab/*.unpacked.*", "template/iso/.*"} {
		files, err := filepath.Glob(l.path("hosts/*/root/var/lib/vz", pattern))
		if err != nil {
			l.t.Fatal(err)
		}
		for _, file := range files {
			l.t.Errorf("%s is left", file)
		}
	}
}

// mustBeStandby wants guests to be made and stopped.
func (l *lab) mustBeStandby(names ...string) {
	l.t.Helper()
	guests := l.guests()
	for _, name := range names {
		if g := guests[name]; g.Health != "standby" || g.Power == nil || *g.Power != "stopped" {
			l.t.Errorf("%s is not on standby: %+v", name, g)
		}
	}
}

// mustNotBeMade wants no VM of a guest's name to be there.
func (l *lab) mustNotBeMade(guest string) {
	l.t.Helper()
	for _, c := range l.confs() {
		if c.name == guest {
			l.t.Errorf("%s was made, as VM %s on %s", guest, c.vmid, c.host)
		}
	}
}

// writeAt puts something onto a VM's disk, past the VM.
func (l *lab) writeAt(file string, at int64, data []byte) {
	l.t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, at); err != nil {
		l.t.Fatal(err)
	}
}

// served wants a server to have sent between the two shares of an image's size.
func served(t *testing.T, s *wan.Server, size int, least, most float64) {
	t.Helper()
	if share := float64(s.Count()) / float64(size); share < least || share > most {
		t.Errorf("the WAN sent %.4f times the image, %.2f to %.2f times was wanted\n%s", share, least, most, asked(s))
	}
}

// asked is what a server was asked for, for a failed test.
func asked(s *wan.Server) string {
	var b strings.Builder
	for _, r := range s.Requests() {
		fmt.Fprintf(&b, "  %s %s Range %q If-Range %s: %d bytes\n", r.Method, r.Path, r.Range, r.IfRange, r.Sent)
	}
	return b.String()
}

// gate holds a server up at an offset until it is opened. Who came to it first gets
// no further all the same: to the server a host without power looks like one that
// takes its time.
type gate struct {
	at            int64
	reached, open chan struct{}
	once, opening sync.Once
	first         <-chan struct{} // the end of its request
}

// gated closes a gate at an offset of what the server sends.
func gated(s *wan.Server, at int64) *gate {
	g := &gate{at: at, reached: make(chan struct{}), open: make(chan struct{})}
	s.Change(func(s *wan.Server) {
		s.Gate = func(offset int64, done <-chan struct{}) {
			if offset < g.at {
				return
			}
			g.once.Do(func() {
				g.first = done
				close(g.reached)
			})
			if done == g.first {
				<-done
				return
			}
			select {
			case <-g.open:
			case <-done:
			}
		}
	})
	return g
}

func (g *gate) release() { g.opening.Do(func() { close(g.open) }) }

// await waits until somebody stands at the gate.
func (g *gate) await(t *testing.T, a *applying) {
	t.Helper()
	select {
	case <-g.reached:
	case <-a.done:
		t.Fatalf("the apply ended before byte %d was asked for\n%s", g.at, a.wait())
	case <-time.After(time.Minute):
		t.Fatalf("byte %d was not asked for within a minute", g.at)
	}
}
