//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/homeiac/homelab/lab/wan"
)

// mustBeMadeOf wants the system disk of a guest to be that image.
func (l *lab) mustBeMadeOf(guest string, content []byte) {
	l.t.Helper()
	c := l.confOf(guest)
	_, rest, _ := strings.Cut(c.text, "\nscsi0: ")
	volid, _, _ := strings.Cut(rest, ",")
	f, err := os.Open(l.volumeFile(c.host, volid))
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, 64<<10)
	if _, err := f.ReadAt(got, mib); err != nil && err != io.EOF {
		l.t.Fatal(err)
	}
	if !bytes.Equal(got, content[mib:mib+len(got)]) {
		l.t.Errorf("the disk of %s (%s) is not of the image with SHA-256 %s", guest, volid, sha256Of(content))
	}
}

// What an image's name stands for is decided at its first fetch. When the file on the
// WAN becomes another one, nobody notices until --newest; and guests are made anew of
// what they were made of, which prune leaves where it is.
func TestANameStandsForTheSameFileUntilNewest(t *testing.T) {
	t.Parallel()
	net := newInternet(t)
	l := newLab(t, options{hosts: 2})
	older, newer := bootable(40, 8*mib), bootable(41, 8*mib)
	first, second := bootable(42, 8*mib), bootable(43, 8*mib)
	moving, lost := net.serve("/moving.img", older), net.serve("/lost.img", first)
	images := doc{"moving": doc{"url": net.url("/moving.img")}, "lost": doc{"url": net.url("/lost.img")}}
	guests := doc{"m-1": doc{"host": "pve1", "image": "moving"}, "m-2": doc{"host": "pve2", "image": "moving"}, "w-1": standby("pve1", "lost")}
	spec := l.imaged(images, guests)
	l.mustApply(spec, 0)
	l.mustBeHealthy("m-1", "m-2")
	for s, content := range map[*wan.Server][]byte{moving: newer, lost: second} {
		s.Change(func(s *wan.Server) { s.Replace(content); s.ETag = `"2"` })
	}
	l.mustChangeNothing(spec)
	if n := len(moving.Requests()) + len(lost.Requests()); n != 2 {
		t.Errorf("the second apply read a URL: %d requests", n)
	}

	t.Run("no host has it any more and its source has another one", func(t *testing.T) {
		l := l.in(t)
		files := l.imageFiles("pve1", "lost")
		for _, file := range files {
			if err := os.Remove(l.host("pve1", "var/lib/vz/template/homelab", file)); err != nil {
				t.Fatal(err)
			}
		}
		guests["w-2"] = standby("pve2", "lost")
		spec = l.imaged(images, guests)
		a := l.mustApply(spec, 3)
		l.mustTell(a, sha256Of(first), sha256Of(second), "hlctl images fetch lost --newest")
		l.mustNotBeMade("w-2")
		l.mustHoldNoImage("lost", "pve1", "pve2")
		l.mustBeStandby("w-1")
		l.mustBeHealthy("m-1", "m-2")
		l.mustDo(0, "images", "fetch", "lost", "--newest")
		l.mustApply(spec, 0)
		l.mustBeMadeOf("w-2", second)
	})

	still := l.still("m-1", "m-2")
	a := l.mustDo(0, "images", "fetch", "moving", "--newest")
	l.mustTell(a, sha256Of(older), sha256Of(newer))
	l.mustBeStill(still, "m-1", "m-2")
	l.mustBeHealthy("m-1", "m-2")
	served(t, moving, 16*mib, 1, 1) // both files, once each
	held := l.images("moving")
	for _, host := range []string{"pve1", "pve2"} {
		for _, content := range [][]byte{older, newer} {
			if !slices.ContainsFunc(held, func(d imageDoc) bool { return d.Host == host && d.SHA256 == sha256Of(content) }) {
				t.Errorf("%s does not hold %s: %+v", host, sha256Of(content), held)
			}
		}
	}
	l.mustChangeNothing(spec)
	prune := func() {
		t.Helper()
		if p := decode[planDoc](l, 0, l.hlctl("images", "prune", "--dry-run", "-o", "json")); len(p.Steps) != 0 {
			t.Errorf("a prune would remove what guests are made of: %+v", p.Steps)
		}
		l.mustTouchNothing(l.mustDo(0, "images", "prune"))
		if now := l.images("moving"); len(now) != len(held) {
			t.Errorf("the prune left %+v of %+v", now, held)
		}
	}
	prune()
	who := l.portrait("m-1")
	l.fault("guest-stop", "m-1")
	p, _ := l.plan(spec)
	if !slices.ContainsFunc(p.Steps, func(s stepDoc) bool {
		return s.ID == "create/pve1/m-1" && strings.Contains(s.Reason, sha256Of(older)[:12])
	}) {
		t.Errorf("the plan does not say of what it makes m-1 anew: %+v", p.Steps)
	}
	l.mustApply(spec, 0)
	who.mustBeMadeAnew(l, "m-1", false)
	l.mustBeMadeOf("m-1", older)
	l.mustBeHealthy("m-1", "m-2")
	prune()
	served(t, moving, 16*mib, 1, 1)

	// Another name for a file that is there needs no other file.
	images["same"], guests["s-2"] = doc{"url": net.url("/nowhere.img"), "sha256": sha256Of(newer)}, standby("pve2", "same")
	spec = l.imaged(images, guests)
	l.mustApply(spec, 0)
	l.mustBeMadeOf("s-2", newer)
	l.mustChangeNothing(spec)
	l.mustLeaveNothing()
}

// An agent that is killed while it gets an image goes on from what was on its disk.
func TestAnAgentKilledInTheMiddleOfATransferGoesOn(t *testing.T) {
	t.Parallel()
	net := newInternet(t)
	l := newLab(t, options{hosts: 1})
	content := bootable(50, 32*mib)
	source := net.serve("/cut.img", content)
	spec := l.imaged(doc{"cut": doc{"url": net.url("/cut.img"), "sha256": sha256Of(content)}}, doc{"cut-1": standby("pve1", "cut")})
	noted := func() bool {
		files, _ := filepath.Glob(l.host("pve1", "var/lib/vz/template/homelab/.cut-*.part.json"))
		return len(files) == 1
	}
	reached := make(chan struct{})
	source.Change(func(s *wan.Server) {
		s.Gate = func(offset int64, done <-chan struct{}) {
			if offset < 8*mib || len(source.Requests()) > 1 {
				return
			}
			if noted() { // how far it is, on the disk
				close(reached)
				<-done
				return
			}
			select {
			case <-time.After(30 * time.Millisecond): // a slow line, until then
			case <-done:
			}
		}
	})
	pid, ok := l.agentPID("pve1")
	shoot := l.killer(pid, ok)
	a := l.startApply(l.config, spec, nil)
	select {
	case <-reached:
	case <-a.done:
		t.Fatalf("it was not noted how far the transfer is\n%s", a.wait())
	}
	shoot()
	l.up()
	a.wait()
	l.mustApply(spec, 0)
	requests := source.Requests()
	if len(requests) != 2 {
		t.Fatalf("two requests were wanted\n%s", asked(source))
	}
	from, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(requests[1].Range, "bytes="), "-"), 10, 64)
	if err != nil || from < 4*mib || from > requests[0].Sent || requests[1].Sent != int64(len(content))-from {
		t.Errorf("the second request was to go on from what was noted\n%s", asked(source))
	}
	l.mustHoldImage("cut", content, "pve1")
	l.mustBeStandby("cut-1")
	l.mustLeaveNothing()
	l.mustChangeNothing(spec)
}

// iso is an ISO file.
func iso(seed uint64) []byte {
	content := bootable(seed, mib)
	copy(content[32769:], "CD001")
	return content
}

// An ISO file lies where Proxmox looks for it, is in the guest's drive, and is there
// again when the guest is made anew.
func TestAnISOFileIsInTheDrive(t *testing.T) {
	t.Parallel()
	net := newInternet(t)
	l := newLab(t, options{hosts: 2})
	content := iso(60)
	source := net.serve("/tools.iso", content)
	guests := doc{"cd-1": doc{"host": "pve1", "image": "lab", "cdrom": "tools"}, "cd-2": doc{"host": "pve2", "image": "lab", "cdrom": "tools", "state": "stopped"}}
	spec := l.imaged(doc{
		"lab": doc{"url": "file:" + l.path("files/lab.img")}, "tools": doc{"url": net.url("/tools.iso"), "type": "iso", "sha256": sha256Of(content)},
	}, guests)
	l.mustApply(spec, 0)
	l.mustBeHealthy("cd-1")
	l.mustBeStandby("cd-2")
	inDrive := func() {
		t.Helper()
		volume := "local:iso/tools-" + sha256Of(content)[:12] + ".iso"
		for host, vmid := range map[string]string{"pve1": l.confOf("cd-1").vmid, "pve2": l.confOf("cd-2").vmid} {
			found := false
			for line := range strings.Lines(l.qm(host, "config", vmid)) {
				found = found || strings.Contains(line, volume) && strings.Contains(line, "media=cdrom")
			}
			if !found {
				t.Errorf("%s is in no drive of VM %s:\n%s", volume, vmid, l.qm(host, "config", vmid))
			}
			if got, err := os.ReadFile(l.host(host, "var/lib/vz/template/iso/tools-"+sha256Of(content)[:12]+".iso")); err != nil || !bytes.Equal(got, content) {
				t.Errorf("the file on %s: %d bytes, %v", host, len(got), err)
			}
		}
	}
	inDrive()
	held := l.images("tools")
	if len(held) != 2 || held[0].Type != "iso" || held[0].Format != "iso" || held[0].Verified != "spec" || held[0].Template != nil {
		t.Errorf("hlctl images shows %+v", held)
	}
	who := l.portrait("cd-1")
	l.fault("guest-stop", "cd-1")
	l.mustApply(spec, 0)
	who.mustBeMadeAnew(l, "cd-1", false)
	l.mustBeHealthy("cd-1")
	inDrive()
	served(t, source, len(content), 1, 1)
	l.mustChangeNothing(spec)
	l.mustLeaveNothing()
}

// What a host lacks for an image is refused before the image is fetched: no more of it
// is read than its beginning. The other guests are made.
func TestWhatAHostLacksForAnImageIsRefusedBeforeItIsFetched(t *testing.T) {
	t.Parallel()
	net := newInternet(t)
	l := newLab(t, options{})
	const head = 128 << 10
	shut := make(map[string]*gate)
	serve := func(path string, content []byte) doc {
		s := net.serve(path, content)
		shut[path] = gated(s, head)
		t.Cleanup(func() {
			if n := s.Count(); n > head {
				t.Errorf("the WAN sent %d bytes of %s\n%s", n, path, asked(s))
			}
		})
		return doc{"url": net.url(path), "sha256": sha256Of(content)}
	}
	large := bootable(70, 8*mib)
	copy(large, qcow2Header(20<<30))
	disc := serve("/disc.iso", iso(72))
	disc["type"] = "iso"
	guests := doc{
		"big": standby("pve1", "big"), "full": standby("pve2", "full"), "disc": doc{"host": "pve3", "image": "lab", "cdrom": "disc", "state": "stopped"},
		"ok-1": doc{"host": "pve1", "image": "lab"}, "ok-3": doc{"host": "pve3", "image": "lab", "clone": "off"},
	}
	spec := l.imaged(doc{
		"lab": doc{"url": "file:" + l.path("files/lab.img")},
		"big": serve("/big.img", large), "full": serve("/full.img", bootable(71, 8*mib)), "disc": disc,
	}, guests, func(d doc) { at(d, "guests", "disc")["clone"] = "off" })
	config := l.path("pmxcfs/storage.cfg")
	text := l.read("pmxcfs/storage.cfg")
	if !strings.Contains(text, ",iso,") {
		t.Fatalf("storage.cfg: %s", text)
	}
	if err := os.WriteFile(config, []byte(strings.Replace(text, ",iso,", ",", 1)), 0o640); err != nil {
		t.Fatal(err)
	}
	l.fault("storage-full", "pve2/local")
	a := l.mustApply(spec, 3)
	l.mustBeHealthy("ok-1", "ok-3")
	for guest, words := range map[string][]string{
		"big":  {"20 GiB", "1 GiB", "disk"},
		"full": {"local", "pve2", "8 MiB"},
		"disc": {"local", "pve3", "pvesm set local --content"},
	} {
		l.mustNotBeMade(guest)
		text := a.notes("refused", guest)
		for _, e := range a.events {
			if e.Kind == "step-failed" && strings.HasSuffix(e.Step, "/"+guest) {
				text += e.Text
			}
		}
		for _, w := range words {
			if !strings.Contains(text, w) {
				t.Errorf("the refusal of %s does not say %q: %s\n%s", guest, w, text, a)
			}
		}
		l.mustHoldNoImage(guest, l.hostNames()...)
	}
	l.mustLeaveNothing()
}

// qcow2Header is the beginning of a qcow2 image of that virtual size.
func qcow2Header(size uint64) []byte {
	h := make([]byte, 104)
	copy(h, "QFI\xfb\x00\x00\x00\x03")
	h[23] = 16
	for i := range 8 {
		h[24+i] = byte(size >> (56 - 8*i))
	}
	h[99], h[103] = 4, 104
	return h
}

// User, password and signature of an address are in nothing that anybody is shown or
// that lies anywhere, but in the Spec itself.
func TestTheSecretsOfAnAddressAreNowhere(t *testing.T) {
	t.Parallel()
	net := newInternet(t)
	l := newLab(t, options{hosts: 2})
	content := bootable(80, 8*mib)
	secrets := []string{"keeper-of-images", "very-hidden-word", "another-hidden-word", "signed-by-somebody"}
	address := func(password, path string) string {
		return fmt.Sprintf("http://%s:%s@%s%s?signature=%s", secrets[0], password, net.address, path, secrets[3])
	}
	for _, path := range []string{"/locked.img", "/SUMS", "/denied.img", "/lying.img"} {
		s := net.serve(path, content)
		if path == "/SUMS" {
			s.Change(func(s *wan.Server) { s.Replace(fmt.Appendf(nil, "%s  locked.img\n", sha256Of(content))) })
		}
		s.Change(func(s *wan.Server) { s.User, s.Password = secrets[0], secrets[1] })
	}
	images := doc{
		"locked": doc{"url": address(secrets[1], "/locked.img"), "checksums": address(secrets[1], "/SUMS")},
		"denied": doc{"url": address(secrets[2], "/denied.img"), "mirrors": []any{strings.Replace(address(secrets[1], "/nobody.img"), net.address, l.net+".250:9", 1)}},
		"lying":  doc{"url": address(secrets[1], "/lying.img"), "sha256": strings.Repeat("ab", 32)},
	}
	guests := doc{"l-1": standby("pve1", "locked"), "l-2": standby("pve2", "locked"), "d-1": standby("pve1", "denied"), "y-2": standby("pve2", "lying")}
	spec := l.imaged(images, guests)
	watch := l.watchProcesses()
	a := l.mustApply(spec, 3)
	seen := strings.Join(watch(), "\n")
	l.mustBeStandby("l-1", "l-2")
	l.mustTell(a, "401", "/denied.img")
	shown := map[string]string{"the processes": seen, "apply": a.told() + fmt.Sprintf("%+v", a.events)}
	for _, e := range a.events {
		if e.Call != nil {
			shown["apply"] += strings.Join(e.Call.Args, " ") + e.Call.Error
		}
	}
	for _, args := range [][]string{
		{"plan", "-f", spec}, {"images"}, {"images", "-o", "json"}, {"runs"}, {"runs", "show", "1"}, {"runs", "show", "1", "-o", "json"}, {"status"}, {"why", "d-1"},
		{"images", "fetch", "locked", "--newest", "--yes"}, {"images", "fetch", "denied", "--yes"}, {"images", "prune", "--dry-run"},
	} {
		r := l.hlctl(args...)
		shown["hlctl "+strings.Join(args, " ")] = r.stdout + r.stderr
	}
	if !strings.Contains(shown["hlctl runs show 1"], "/locked.img") {
		t.Errorf("hlctl runs show 1 does not name the address: this looks at the wrong thing\n%s", shown["hlctl runs show 1"])
	}
	for what, text := range shown {
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%s: %q is shown: %.2000s", what, secret, text)
			}
		}
	}
	l.walk(func(path string, _ os.FileInfo) {
		rel, _ := filepath.Rel(l.dir, path)
		if strings.HasPrefix(rel, "spec-") {
			return // the Spec itself
		}
		data, err := written(path)
		for _, secret := range secrets {
			if err == nil && bytes.Contains(data, []byte(secret)) {
				t.Errorf("%q lies in %s", secret, rel)
			}
		}
	})
}
