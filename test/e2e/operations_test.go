//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// clusterDoc is what is read of hlctl k3s status -o json.
type clusterDoc struct {
	Voters   int `json:"voters"`
	Findings []struct {
		Kind  string `json:"kind"`
		Guest string `json:"guest"`
		Name  string `json:"name"`
		Text  string `json:"text"`
	} `json:"findings"`
}

// found wants hlctl k3s status to tell of something.
func (l *lab) found(kind, name string) {
	l.t.Helper()
	c := decode[clusterDoc](l, 0, l.hlctl("k3s", "status", "-o", "json"))
	for _, f := range c.Findings {
		if f.Kind == kind && (f.Guest == name || f.Name == name) {
			return
		}
	}
	l.t.Errorf("k3s status does not tell %s of %s: %+v", kind, name, c)
}

func TestServersStopLeaveAndJoinByName(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{hosts: 4})
	spec := l.hasty(l.spec)
	l.mustApply(spec, 0)
	l.mustBeHealthy(names(4)...)

	r := l.hlctl("guests", "stop", "k3s-3")
	for _, w := range []string{"it is a voter", "3 voters, 2 healthy", "hlctl k3s remove k3s-3"} {
		if r.exit != 1 || !strings.Contains(strings.Join(strings.Fields(r.stdout), " "), w) {
			t.Errorf("stop warns of %q and asks\n%s", w, r)
		}
	}
	l.mustDo(0, "guests", "stop", "k3s-3")
	if out := l.qm("pve3", "status", "203"); strings.TrimSpace(out) != "status: stopped" {
		t.Errorf("k3s-3: %s", out)
	}
	l.found("stopped-voter", "k3s-3")
	l.mustDo(0, "guests", "start", "k3s-3")
	l.awaitHealthy(20*time.Second, names(4)...)
	boot := l.keep("203")
	l.mustDo(0, "guests", "restart", "k3s-3")
	l.awaitHealthy(20*time.Second, names(4)...)
	l.mustBeConfiguredAs(boot, "pve3/203")

	uid := l.uidOf("k3s-1", "k3s-3")
	l.mustDo(0, "k3s", "remove", "k3s-3")
	c := decode[clusterDoc](l, 0, l.hlctl("k3s", "status", "-o", "json"))
	if c.Voters != 2 {
		t.Errorf("after one of three has left: %+v", c)
	}
	l.found("two-servers", "")
	if out := l.qm("pve3", "status", "203"); strings.TrimSpace(out) != "status: running" {
		t.Errorf("its VM stays: %s", out)
	}
	if _, err := os.Stat(filepath.Join(l.guestFiles("k3s-3"), "var/lib/rancher/k3s")); err == nil {
		t.Error("k3s's data are left in it")
	}
	l.mustDo(0, "k3s", "join", "k3s-3")
	l.awaitHealthy(20*time.Second, names(4)...)
	if now := l.uidOf("k3s-1", "k3s-3"); now == uid {
		t.Error("its Node is the same object as before")
	}
	members := l.members()
	l.mustDo(0, "k3s", "rejoin", "k3s-2")
	l.awaitHealthy(20*time.Second, names(4)...)
	for _, now := range l.members() {
		for _, was := range members {
			if now.Guest == was.Guest && (now.ID == was.ID) != (now.Guest != "k3s-2") {
				t.Errorf("member %+v was %+v", now, was)
			}
		}
	}
	l.mustBeClean(names(3)...)
	l.mustChangeNothing(spec)

	// Dropped from the Spec it is left alone, and told of.
	fewer := l.edited(spec, func(d doc) { delete(at(d, "guests"), "k3s-4") })
	before := l.keep("204")
	l.mustTouchNothing(l.mustApply(fewer, 0))
	l.found("ghost-node", "k3s-4")
	l.mustBeConfiguredAs(before, "pve4/204")
	if a := l.byName("guests", "delete", "k3s-4"); a.exit != 1 || !strings.Contains(a.stderr, "--destroy k3s-4") {
		t.Errorf("--yes does not confirm that it is deleted\n%s", a)
	}
	l.mustDo(0, "guests", "delete", "k3s-4", "--destroy", "k3s-4")
	for _, conf := range l.confs() {
		if conf.vmid == "204" {
			t.Errorf("it is still there:\n%s", conf.text)
		}
	}
	l.mustBeClean(names(3)...)
	l.mustChangeNothing(fewer)
}

// orphansDoc is what is read of hlctl orphans -o json.
type orphansDoc struct {
	Orphans []struct {
		Host   string `json:"host"`
		Volume string `json:"volume"`
		Ours   *bool  `json:"ours"`
	} `json:"orphans"`
	Holders []struct {
		Guest string `json:"guest"`
		Disks []any  `json:"disks"`
	} `json:"holders"`
}

func TestAVMIsAdoptedAndDataOutlivesADeletion(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{})
	spec := l.hasty(l.spec, oneServer, func(d doc) {
		at(d, "guests", "k3s-2")["dataDisks"] = []any{doc{"slot": "scsi1", "storage": "disks", "size": "1GiB"}}
		delete(at(d, "guests", "k3s-3"), "k3s")
	})
	l.qm("pve3", "create", "203", "--name", "media", "--memory", "4096", "--cores", "2", "--scsi0", "local-lvm:8", "--net0", "virtio,bridge=vmbr0", "--description", "by hand")
	before := l.keep("203")
	a := l.mustApply(spec, 3)
	l.mustBeAsBefore(before, "apply before it is adopted", "203")
	if text := a.notes("refused", "k3s-3"); !strings.Contains(text, "hlctl guests adopt") {
		t.Errorf("its adoption is not offered: %q\n%s", text, a)
	}
	l.mustTell(l.mustDo(0, "guests", "adopt", "k3s-3"), "its policy is report")
	conf := l.confOf("media")
	_, was, _ := strings.Cut(before["configuration pve3/203"], "\n")
	if desc, now, _ := strings.Cut(conf.text, "\n"); !strings.Contains(conf.text, "hl1%3Ahomelab%3Ak3s-3%3A0%3A") || !strings.HasSuffix(now, was) {
		t.Errorf("more than its description was changed: %s\nbefore:\n%s\nnow:\n%s", desc, before["configuration pve3/203"], conf.text)
	}
	a = l.mustApply(spec, 3)
	l.mustTouchNothing(a)
	l.mustTell(a, "its policy is report", "hlctl guests start k3s-3")
	l.mustDo(0, "guests", "recreate", "k3s-3", "--destroy", "k3s-3")
	l.mustBeHealthy(names(3)...)

	// Data written into a disk lies in the holder when its guest is deleted, and is
	// there again when it is made again.
	l.writeData("k3s-2")
	l.mustDo(0, "guests", "delete", "k3s-2", "--destroy", "k3s-2")
	stray := l.host("pve1", "var/lib/vz/images/777/vm-777-disk-0.raw")
	if err := os.MkdirAll(filepath.Dir(stray), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(stray, []byte("these are all photos of the family"), 0o640); err != nil {
		t.Fatal(err)
	}
	o := decode[orphansDoc](l, 0, l.hlctl("orphans", "-o", "json"))
	if len(o.Holders) != 1 || o.Holders[0].Guest != "k3s-2" || len(o.Holders[0].Disks) != 1 {
		t.Errorf("the holder of its disk: %+v", o)
	}
	if len(o.Orphans) != 1 || o.Orphans[0].Volume != "local:777/vm-777-disk-0.raw" || o.Orphans[0].Ours == nil || *o.Orphans[0].Ours {
		t.Errorf("the volume of nobody: %+v", o)
	}
	holder := l.keep(l.confOf("hl-holder-k3s-2").vmid, "777")
	l.mustDo(0, "orphans", "--delete")
	l.mustBeAsBefore(holder, "orphans --delete", l.confOf("hl-holder-k3s-2").vmid, "777")
	l.mustApply(spec, 0)
	l.mustBeHealthy(names(3)...)
	l.mustHoldData("k3s-2")
	if o := decode[orphansDoc](l, 0, l.hlctl("orphans", "-o", "json")); len(o.Holders) != 0 {
		t.Errorf("its holder is left: %+v", o)
	}
	l.mustChangeNothing(spec)
}

// One hand at a time, whichever controller it asks; and what a person changes in the
// middle with qm is noticed before anything of the guest is destroyed.
func TestOneHandAtATime(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{controllers: 2})
	spec := l.hasty(l.spec, oneServer)
	l.mustApply(spec, 0)
	through := l.through(2)
	l.fault("guest-stop", "k3s-3")
	before := l.keep("202")
	var once sync.Once
	hit, goOn := make(chan struct{}), make(chan struct{})
	a := l.startApply(l.config, spec, func(e eventDoc) {
		if e.Kind == "step-started" && e.Step == "boot/pve3/k3s-3" {
			once.Do(func() { close(hit); <-goOn })
		}
	})
	select {
	case <-hit:
	case <-a.done:
		t.Fatalf("it was not made anew\n%s", a.wait())
	}
	for _, other := range []applied{
		l.startApply(through, spec, nil).wait(),
		l.startRun(through, nil, "guests", "delete", "k3s-2", "--destroy", "k3s-2").wait(),
		l.byName("guests", "delete", "k3s-2", "--destroy", "k3s-2"),
	} {
		if other.exit != 1 || !strings.Contains(other.stderr, "another run is going on, asked for by admin") {
			t.Errorf("the second is refused, naming the first\n%s", other)
		}
	}
	close(goOn)
	if out := a.wait(); out.exit != 0 {
		t.Errorf("the first goes on\n%s", out)
	}
	l.mustBeConfiguredAs(before, "pve2/202")
	l.mustBeHealthy(names(3)...)

	l.fault("guest-stop", "k3s-2")
	var hand sync.Once
	var byHand sync.WaitGroup
	done := make(chan struct{})
	a = l.startApply(l.config, spec, func(e eventDoc) {
		if e.Kind == "step-started" && e.Step == "save/pve2/k3s-2" {
			hand.Do(func() { byHand.Go(func() { l.qm("pve2", "set", "202", "--protection", "1"); close(done) }) })
			<-done
		}
	})
	out := a.wait()
	byHand.Wait()
	if c := l.confOf("k3s-2"); out.exit != 3 || !strings.Contains(c.text, "protection: 1") || !strings.Contains(c.text, "k3s-2%3A1%3A") {
		t.Errorf("a VM that a person protects in the middle stays: %s\n%s", c.text, out)
	}
	// What is set waits for a moment before it is in force, and is seen then too.
	if !strings.Contains(out.String(), "protection") && !strings.Contains(out.String(), "wait for its next start") {
		t.Errorf("the reason is not said\n%s", out)
	}
	l.qm("pve2", "set", "202", "--protection", "0")
	l.converge(spec)
	l.mustBeHealthy(names(3)...)
	l.mustBeClean("k3s-1")
}
