package proxmox_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/homeiac/homelab/agent/driver/drivertest"
	"github.com/homeiac/homelab/agent/driver/proxmox"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/lab/pve"
)

// templated is a host with the tests' template, a VM of somebody else's that stands
// on it, and a volume of VMID 201 that nobody named before.
type templated struct {
	*host
	d   *proxmox.Driver
	old string
}

func newTemplated(t *testing.T) *templated {
	t.Helper()
	h := newHost(t)
	w := &templated{host: h, d: h.driver()}
	if _, err := w.d.CreateTemplate(t.Context(), drivertest.TemplateRequest(h.world(nil, "local")), quiet); err != nil {
		t.Fatal(err)
	}
	h.qm("clone", "9000", "300", "--name", "theirs")
	w.old = h.alloc("local", 201)
	return w
}

func (w *templated) clone(linked bool) error {
	_, err := w.d.Create(w.t.Context(), drivertest.CloneRequest(w.world(nil, "local"), 201, linked), quiet)
	return err
}

func (w *templated) back(change ...func(*driverv1.DestroyRequest)) error {
	req := &driverv1.DestroyRequest{Identity: drivertest.Identity(201), HalfBuilt: true, ClonedFrom: drivertest.Template(),
		VolumesBefore: []string{w.old}, Deadline: durationpb.New(20 * time.Second)}
	for _, f := range change {
		f(req)
	}
	_, err := w.d.Destroy(w.t.Context(), req, quiet)
	return err
}

// die has the next program be killed when it comes to a point of its work.
func (h *host) die(point string) {
	h.t.Helper()
	if err := h.pve.Update(func(c *pve.HostConfig) { c.Trouble.Die = point }); err != nil {
		h.t.Fatal(err)
	}
}

// images are the files of all VMs' volumes on storage local.
func (h *host) images() []string {
	var all []string
	_ = filepath.Walk(h.path("var/lib/vz/images"), func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			all = append(all, strings.TrimPrefix(path, h.path("var/lib/vz/images")+"/"))
		}
		return nil
	})
	return all
}

// TestACloneKilledAnywhereIsUndoneByNameAndMadeAgain: qm clone and qm set are killed
// at each point at which they leave something.
func TestACloneKilledAnywhereIsUndoneByNameAndMadeAgain(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"clone reserved", "clone copied", "clone drive", "before set", "set disks"} {
		for _, linked := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s-linked-%v", strings.ReplaceAll(point, " ", "-"), linked), func(t *testing.T) {
				w := newTemplated(t)
				files, template, theirs := w.images(), w.read(w.conf(9000)), w.read(w.conf(300))
				if point == "before set" {
					w.wrap("qm", `if [ "$1" = set ] && [ ! -e $HOST/once ]; then touch $HOST/once; kill -9 $$; fi`)
				} else {
					w.die(point)
				}
				if err := w.clone(linked); rpc.KindOf(err) != rpc.ErrUnavailable {
					t.Fatalf("the clone that was killed: %v", err)
				}
				left := w.read(w.conf(201))
				wantRefused(t, w.clone(linked), "half-built")
				wantRefused(t, w.back(func(r *driverv1.DestroyRequest) { r.HalfBuilt = false }), "201")
				if w.read(w.conf(201)) != left {
					t.Error("what refused it changed it")
				}
				if point != "clone reserved" {
					// Without the intent's word it is somebody's clone of a VM of ours.
					deadline := durationpb.New(300 * time.Millisecond)
					if err := w.back(func(r *driverv1.DestroyRequest) { r.ClonedFrom, r.Deadline = nil, deadline }); err == nil || w.read(w.conf(201)) != left {
						t.Errorf("rolled back without a template: %v", err)
					}
				}
				for range 2 {
					if err := w.back(); err != nil {
						t.Fatal(err)
					}
				}
				if got := w.images(); !slices.Equal(got, files) || w.read(w.conf(201)) != "" {
					t.Errorf("after it\n%v\nbefore\n%v", got, files)
				}
				if w.read(w.conf(9000)) != template || w.read(w.conf(300)) != theirs {
					t.Error("another VM was changed")
				}
				if err := w.clone(linked); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestACloneThatIsSeenWholeIsGoneOnWith although its qm clone was killed: what is
// seen counts.
func TestACloneThatIsSeenWholeIsGoneOnWith(t *testing.T) {
	w := newTemplated(t)
	w.die("clone done")
	if err := w.clone(true); err != nil {
		t.Fatal(err)
	}
	sets := 0
	for _, c := range w.calls() {
		if strings.HasPrefix(c, "qm set 201") {
			sets++
		}
	}
	if sets != 1 {
		t.Errorf("%d sets: %q", sets, w.calls())
	}
}

// TestACloneThatCannotBeConfiguredIsNotCalledRefused: that would say that nothing was
// changed.
func TestACloneThatCannotBeConfiguredIsNotCalledRefused(t *testing.T) {
	w := newTemplated(t)
	w.wrap("qm", `if [ "$1" = set ]; then echo "unable to create image: No space left on device" >&2; exit 2; fi`)
	if err := w.clone(true); rpc.KindOf(err) != rpc.ErrUnavailable || !strings.Contains(err.Error(), "No space left") {
		t.Fatalf("error %v", err)
	}
	if err := w.back(); err != nil {
		t.Error(err)
	}
}

// TestARollBackOfACloneLeavesWhatMayNotBeOurs: only what qm clone leaves, and nothing
// that ran, or that others name.
func TestARollBackOfACloneLeavesWhatMayNotBeOurs(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(w *templated)
		says   string
	}{
		"a mark among other words": {func(w *templated) {
			w.write(w.conf(201), "#my notes\n"+w.read(w.conf(201)))
		}, "uuid"},
		"another mark": {func(w *templated) {
			w.write(w.conf(201), strings.Replace(w.read(w.conf(201)), "g-201", "g-202", 1))
		}, "mark"},
		"a template":            {func(w *templated) { w.qm("template", "201") }, "uuid"},
		"one that runs":         {func(w *templated) { w.qm("start", "201") }, "runs"},
		"one that is protected": {func(w *templated) { w.qm("set", "201", "--protection", "1") }, "protection"},
		"a volume of before": {func(w *templated) {
			w.qm("set", "201", "--scsi5", w.old)
		}, "was there before"},
		"a volume that others name": {func(w *templated) {
			w.write(w.conf(300), w.read(w.conf(300))+"scsi7: local:201/vm-201-disk-1.raw,size=64M\n")
		}, "name it"},
		"a lock of another kind": {func(w *templated) { w.qm("set", "201", "--lock", "backup") }, "locked (backup)"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			w := newTemplated(t)
			w.wrap("qm", `if [ "$1" = set ] && [ ! -e $HOST/once ]; then touch $HOST/once; kill -9 $$; fi`)
			if err := w.clone(false); err == nil {
				t.Fatal("the set was killed")
			}
			c.change(w)
			before, files := w.read(w.conf(201)), w.images()
			err := w.back(func(r *driverv1.DestroyRequest) { r.Deadline = durationpb.New(500 * time.Millisecond) })
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v does not say %q", err, c.says)
			}
			if w.read(w.conf(201)) != before || !slices.Equal(w.images(), files) {
				t.Error("something was changed")
			}
		})
	}
}

// TestARollBackNeverFreesABaseVolume, not even one of the VMID itself.
func TestARollBackNeverFreesABaseVolume(t *testing.T) {
	w := newTemplated(t)
	base := w.path("var/lib/vz/images/201/base-201-disk-7.raw")
	if err := os.Rename(w.path("var/lib/vz/images", strings.TrimPrefix(w.old, "local:")), base); err != nil {
		t.Fatal(err)
	}
	w.write(w.conf(201), "# qmclone temporary file\nlock: clone\n")
	w.program("pvesm", "status")
	if err := w.back(func(r *driverv1.DestroyRequest) { r.VolumesBefore = nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(base); err != nil {
		t.Error(err)
	}
	for _, c := range w.calls() {
		if strings.HasPrefix(c, "pvesm free") {
			t.Errorf("%s was run", c)
		}
	}
}

// TestATemplateKilledAnywhereIsFinishedOrUndone at each point at which making one
// leaves something.
func TestATemplateKilledAnywhereIsFinishedOrUndone(t *testing.T) {
	for point, finishes := range map[string]bool{
		"create disks": false, "before template": true, "template marked": true, "template renamed": false,
	} {
		t.Run(strings.ReplaceAll(point, " ", "-"), func(t *testing.T) {
			h := newHost(t)
			d := h.driver()
			make := func() error {
				_, err := d.CreateTemplate(t.Context(), drivertest.TemplateRequest(h.world(nil, "local")), quiet)
				return err
			}
			if point == "before template" {
				h.wrap("qm", `if [ "$1" = template ] && [ ! -e $HOST/once ]; then touch $HOST/once; kill -9 $$; fi`)
			} else {
				h.die(point)
			}
			if err := make(); rpc.KindOf(err) != rpc.ErrUnavailable {
				t.Fatalf("what was killed: %v", err)
			}
			if finishes {
				if err := make(); err != nil {
					t.Error(err)
				}
				if n := h.creates(); n != 1 {
					t.Errorf("%d creates were run", n)
				}
				return
			}
			if err := make(); err == nil {
				t.Error("it was made over what is half-built")
			}
			back := &driverv1.DestroyRequest{Identity: drivertest.Template(), HalfBuilt: true, Template: true, Deadline: durationpb.New(20 * time.Second)}
			for range 2 {
				if _, err := d.Destroy(t.Context(), back, quiet); err != nil {
					t.Fatal(err)
				}
			}
			if left := h.images(); len(left) > 0 || h.read(h.conf(9000)) != "" {
				t.Errorf("left %v", left)
			}
			if err := make(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestATemplateStaysWhileAnyConfigurationNamesItsDisk, of anybody, in any part of it,
// on any node.
func TestATemplateStaysWhileAnyConfigurationNamesItsDisk(t *testing.T) {
	const base, clone = "local:9000/base-9000-disk-0.raw", "local:9000/base-9000-disk-0.raw/400/vm-400-disk-0.qcow2"
	here, other := "etc/pve/nodes/pve1/", "etc/pve/nodes/other/"
	for name, c := range map[string]struct{ file, text string }{
		"a linked clone":         {here + "qemu-server/400.conf", "name: x\nscsi0: " + clone + ",size=1G\n"},
		"one that is unused":     {here + "qemu-server/400.conf", "name: x\nunused0: " + clone + "\n"},
		"one that is pending":    {here + "qemu-server/400.conf", "name: x\n\n[PENDING]\nscsi0: " + clone + ",size=1G\n"},
		"one in a snapshot":      {here + "qemu-server/400.conf", "name: x\n\n[before]\nscsi0: " + clone + ",size=1G\nsnaptime: 1\n"},
		"one of another node":    {other + "qemu-server/400.conf", "name: x\nscsi0: " + clone + ",size=1G\n"},
		"the disk itself":        {other + "qemu-server/400.conf", "name: x\nscsi3: " + base + ",size=1G\n"},
		"its path":               {other + "qemu-server/400.conf", "name: x\nscsi3: /var/lib/vz/images/9000/base-9000-disk-0.raw\n"},
		"a container":            {here + "lxc/400.conf", "hostname: x\nrootfs: " + clone + ",size=1G\n"},
		"a container's mount":    {other + "lxc/400.conf", "hostname: x\nmp0: " + base + ",mp=/x\n"},
		"a container's snapshot": {other + "lxc/400.conf", "hostname: x\n\n[before]\nmp0: " + base + ",mp=/x\n"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			h := newHost(t)
			d := h.driver()
			if _, err := d.CreateTemplate(t.Context(), drivertest.TemplateRequest(h.world(nil, "local")), quiet); err != nil {
				t.Fatal(err)
			}
			h.write(c.file, c.text)
			h.program("pvesm", "status") // whatever runs brings .vmlist up to date
			before, files := h.read(h.conf(9000)), h.images()
			remove := func() error {
				_, err := d.Destroy(t.Context(), &driverv1.DestroyRequest{Identity: drivertest.Template(), Template: true, Deadline: durationpb.New(20 * time.Second)}, quiet)
				return err
			}
			if err := remove(); rpc.KindOf(err) != rpc.ErrRefused {
				t.Errorf("error %v", err)
			}
			// One that cannot be read is not one that names nothing.
			if err := os.Remove(h.path(c.file)); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(h.path(c.file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := remove(); rpc.KindOf(err) != rpc.ErrUnavailable {
				t.Errorf("unreadable: error %v", err)
			}
			if h.read(h.conf(9000)) != before || !slices.Equal(h.images(), files) {
				t.Error("something was changed")
			}
			for _, call := range h.calls() {
				if strings.HasPrefix(call, "qm destroy") || strings.HasPrefix(call, "qm set") || strings.HasPrefix(call, "pvesm free") {
					t.Errorf("%s was run", call)
				}
			}
		})
	}
}

// TestWhatSpeaksAgainstACloneIsSaidBeforeAnyChange, all of it at once.
func TestWhatSpeaksAgainstACloneIsSaidBeforeAnyChange(t *testing.T) {
	w := newTemplated(t)
	req := drivertest.CloneRequest(w.world(nil, "local"), 201, true)
	req.Hardware.SystemDisk.Storage, req.Hardware.SystemDisk.SizeBytes, req.UserData = "local-zfs", 1<<20, "local:snippets/gone.yaml"
	w.qm("set", "9000", "--scsi4", "local:1")
	_, err := w.d.Create(t.Context(), req, quiet)
	wantRefused(t, err, "local-zfs, but a linked clone of template 9000 is on local", "1 MiB", "scsi4", "gone.yaml")
	if w.read(w.conf(201)) != "" {
		t.Error("something was made")
	}
}

// TestALinkedCloneCostsNextToNothing in the storage's own measure.
func TestALinkedCloneCostsNextToNothing(t *testing.T) {
	w := newTemplated(t)
	free := func() int64 {
		all, err := w.d.Storages(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(all, func(s *homelabv1.Storage) bool { return s.GetName() == "local" })
		return all[i].GetFreeBytes()
	}
	before := free()
	if err := w.clone(true); err != nil {
		t.Fatal(err)
	}
	if took := before - free(); took > 64<<10 {
		t.Errorf("a linked clone took %d bytes", took)
	}
}
