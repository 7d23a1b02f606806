package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/lab/pve"
)

const (
	templateStep = homelabv1.Action_ACTION_TEMPLATE
	pruneStep    = homelabv1.Action_ACTION_PRUNE
)

func labTemplate() *homelabv1.Identity {
	return &homelabv1.Identity{
		Fleet: "home", Guest: "template@0011223344aa", Generation: 1, Vmid: 9000,
		Uuid: "99999999-2222-4333-8444-000000009000", Mark: "hl1:home:template@0011223344aa:1:00112233445566778899aabbccddeeff",
	}
}

// asTemplate turns a step into one about the template of the guests' image.
func (l *lab) asTemplate(r *agentv1.RunRequest) {
	r.Template, r.Image, r.ImagesStorage, r.DisksStorage = labTemplate(), l.guest(1).GetImage(), "local", "local"
	r.Step.Guest, r.Step.Vmid, r.Want = r.Template.GetGuest(), r.Template.GetVmid(), nil
	if r.GetStep().GetAction() == rollbackStep {
		r.Want, r.Template = &homelabv1.GuestWant{Identity: r.Template}, nil
	}
}

// asClone has the guest be cloned.
func asClone(kind homelabv1.CloneKind) func(*agentv1.RunRequest) {
	return func(r *agentv1.RunRequest) { r.Want.Clone, r.Want.Template = kind, labTemplate() }
}

// die has the next program of host pve1 be killed when it comes to a point.
func (l *lab) die(point string) {
	l.t.Helper()
	h, err := pve.Open(filepath.Join(l.dir, "hosts/pve1"))
	if err != nil {
		l.t.Fatal(err)
	}
	if err := h.Update(func(c *pve.HostConfig) { c.Trouble.Die = point }); err != nil {
		l.t.Fatal(err)
	}
}

// holdings are the VMs' files on host pve1: volumes, snippets and configurations.
func (l *lab) holdings() []string {
	var all []string
	root := filepath.Join(l.dir, "hosts/pve1/root")
	for _, dir := range []string{"var/lib/vz/images", "var/lib/vz/template/iso", "etc/pve/qemu-server/."} {
		_ = filepath.WalkDir(filepath.Join(root, dir)+"/", func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && strings.HasSuffix(path, ".fs") {
				return filepath.SkipDir
			}
			if err == nil && d.Type().IsRegular() {
				all = append(all, strings.TrimPrefix(path, root+"/"))
			}
			return nil
		})
	}
	return all
}

// seen is VM vmid as the agent observes it, and the open intents.
func (l *lab) seen(vmid int32) (*homelabv1.VirtualMachine, []*homelabv1.Intent) {
	l.t.Helper()
	r, err := l.agents[0].Observe(l.t.Context(), &agentv1.ObserveRequest{Fresh: true})
	if err != nil {
		l.t.Fatal(err)
	}
	for _, vm := range r.GetObservation().GetVms() {
		if vm.GetVmid() == vmid {
			return vm, r.GetObservation().GetIntents()
		}
	}
	return nil, r.GetObservation().GetIntents()
}

// TestAGuestIsClonedBootsAndIsMadeAgain from a template, which stays as long as the
// guest stands on it.
func TestAGuestIsClonedBootsAndIsMadeAgain(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	linked := asClone(homelabv1.CloneKind_CLONE_KIND_LINKED)
	if _, err := l.try(1, templateStep, l.asTemplate); err == nil || !strings.Contains(err.Error(), "fetched first") {
		t.Errorf("without its image: %v", err)
	}
	l.do(1, fetchStep)
	if _, err := l.try(1, createStep, linked); err == nil || !strings.Contains(err.Error(), "template 9000") {
		t.Errorf("without its template: %v", err)
	}
	if _, intents := l.seen(9000); len(intents) != 0 {
		t.Errorf("what was refused left %v", intents)
	}
	s := l.do(1, templateStep, l.asTemplate)
	if !strings.HasPrefix(s.result.GetText(), "made template 9000 of image lab (") || s.result.GetLearned().GetImageSha256() == "" {
		t.Errorf("template: %v", s.result)
	}
	l.run++
	if s := l.do(1, templateStep, l.asTemplate); len(s.calls()) != 0 || s.result.GetChanged() {
		t.Errorf("again: %v %v", s.calls(), s.result)
	}
	withDigest := func(r *agentv1.RunRequest) { r.Want.Image.Sha256 = s.result.GetLearned().GetImageSha256() }
	s = l.do(1, createStep, linked, withDigest)
	if got := s.calls(); !slices.Equal(got, []string{"snippet write", "qm clone", "qm set", "qm disk"}) || s.result.GetLearned().GetImageSha256() == "" {
		t.Errorf("clone: %v %v", got, s.result)
	}
	if vm, intents := l.seen(201); !vm.GetLinkedClone() || vm.GetHalfBuilt() || len(intents) != 0 {
		t.Errorf("clone: %v %v", vm, intents)
	}
	l.do(1, startStep)
	l.do(1, bootStep)
	if b := l.look(1).GetBooted(); !isYes(b) {
		t.Fatalf("booted: %v", b)
	}
	l.run++
	if s := l.do(1, createStep, linked); len(s.calls()) != 0 {
		t.Errorf("again: %v", s.calls())
	}
	if _, err := l.try(1, pruneStep, l.asTemplate); err == nil || !strings.Contains(err.Error(), "201 (k3s-1)") {
		t.Errorf("pruned below its clone: %v", err)
	}
	// It is made again while its image is gone: the template serves as well.
	images, _ := filepath.Glob(filepath.Join(l.dir, "hosts/pve1/root/var/lib/vz/template/homelab/*"))
	for _, f := range images {
		if err := os.Rename(f, filepath.Join(l.dir, filepath.Base(f))); err != nil {
			t.Fatal(err)
		}
	}
	next := func(r *agentv1.RunRequest) {
		linked(r)
		if a := r.GetStep().GetAction(); a != stopStep && a != destroyStep {
			r.Want.Identity.Generation, r.Want.Identity.Mark = 2, strings.Replace(r.Want.Identity.GetMark(), ":1:", ":2:", 1)
		}
	}
	for _, a := range []homelabv1.Action{stopStep, destroyStep, createStep, startStep, bootStep} {
		l.do(1, a, next)
	}
	l.do(1, stopStep, next, func(r *agentv1.RunRequest) {
		r.Want.Identity.Generation, r.Want.Identity.Mark = 2, strings.Replace(r.Want.Identity.GetMark(), ":1:", ":2:", 1)
	})
	l.do(1, destroyStep, func(r *agentv1.RunRequest) {
		r.Want.Identity.Generation, r.Want.Identity.Mark = 2, strings.Replace(r.Want.Identity.GetMark(), ":1:", ":2:", 1)
		r.Purge, r.Named = true, true
	})
	if s := l.do(1, pruneStep, l.asTemplate); s.result.GetText() != "removed template 9000" {
		t.Errorf("prune: %v", s.result)
	}
	if s := l.do(1, pruneStep, l.asTemplate); s.result.GetChanged() {
		t.Errorf("prune again: %v", s.result)
	}
	if left := l.holdings(); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

// TestAQMKilledInATemplateOrACloneIsMadeGoodByTheNextRun, and the VM of
// somebody else that stands on the same template is not touched.
func TestAQMKilledInATemplateOrACloneIsMadeGoodByTheNextRun(t *testing.T) {
	t.Parallel()
	// The others are tried in test/e2e, with the built programs.
	for _, point := range []string{"template renamed", "clone drive"} {
		t.Run(strings.ReplaceAll(point, " ", "-"), func(t *testing.T) {
			l := newLab(t, 1)
			l.do(1, fetchStep)
			step, about := templateStep, l.asTemplate
			vmid := int32(9000)
			if strings.HasPrefix(point, "clone") || strings.HasPrefix(point, "set") {
				l.do(1, templateStep, l.asTemplate)
				step, about, vmid = createStep, asClone(homelabv1.CloneKind_CLONE_KIND_LINKED), 201
			}
			before := l.holdings()
			l.die(point)
			if _, err := l.try(1, step, about); err == nil {
				t.Fatal("it was killed")
			}
			l.run++
			vm, intents := l.seen(vmid)
			if len(intents) != 1 || intents[0].GetIdentity().GetVmid() != vmid || !vm.GetHalfBuilt() || !isNo(intents[0].GetWorker()) {
				t.Fatalf("seen %v, intents %v", vm, intents)
			}
			if step == createStep {
				if _, err := l.try(1, createStep, about); err == nil || !strings.Contains(err.Error(), "half-built") {
					t.Errorf("created over it: %v", err)
				}
			}
			l.do(1, rollbackStep, about)
			if left := l.holdings(); !slices.Equal(left, before) {
				t.Errorf("after the rollback %v, before %v", left, before)
			}
			if s := l.do(1, rollbackStep, about); s.result.GetChanged() {
				t.Errorf("again: %v", s.result)
			}
			l.do(1, step, about)
			if vm, intents := l.seen(vmid); vm == nil || vm.GetHalfBuilt() || len(intents) != 0 {
				t.Errorf("in the end %v, intents %v", vm, intents)
			}
		})
	}
}

// TestACloneOfSomebodyElsesIsNotOursWithoutAnIntent although it bears our mark.
func TestACloneOfSomebodyElsesIsNotOursWithoutAnIntent(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	l.do(1, fetchStep)
	l.do(1, templateStep, l.asTemplate)
	h, err := pve.Open(filepath.Join(l.dir, "hosts/pve1"))
	if err != nil {
		t.Fatal(err)
	}
	argv := []string{filepath.Join(h.Root(), "usr/sbin/qm"), "clone", "9000", "201", "--description", l.guest(1).GetIdentity().GetMark()}
	if code := h.Run(t.Context(), argv, strings.NewReader(""), t.Output(), t.Output()); code != 0 {
		t.Fatalf("exit %d", code)
	}
	before := l.holdings()
	if vm, _ := l.seen(201); vm.GetHalfBuilt() {
		t.Errorf("seen %v", vm)
	}
	about := asClone(homelabv1.CloneKind_CLONE_KIND_LINKED)
	for _, a := range []homelabv1.Action{createStep, rollbackStep, destroyStep} {
		if _, err := l.try(1, a, about); err == nil {
			t.Errorf("%s was done", a)
		}
	}
	if left := l.holdings(); !slices.Equal(left, before) {
		t.Errorf("left %v, before %v", left, before)
	}
}

// TestAPruneThatIsCutOffIsFinished by the next one.
func TestAPruneThatIsCutOffIsFinished(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	l.do(1, fetchStep)
	l.do(1, templateStep, l.asTemplate)
	svc := l.agents[0]
	id := labTemplate()
	if err := svc.intents.write(&homelabv1.Intent{Identity: id, Step: "prune/pve1/lab", Destroying: true}); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(l.dir, "hosts/pve1/root/etc/pve/qemu-server/9000.conf")
	if err := os.WriteFile(conf, []byte("lock: destroyed\n"), 0o640); err != nil { // its volume is still there
		t.Fatal(err)
	}
	if s := l.do(1, pruneStep, l.asTemplate); !s.result.GetChanged() {
		t.Errorf("prune: %v", s.result)
	}
	if left := l.holdings(); len(left) != 0 || len(svc.intents.list()) != 0 {
		t.Errorf("left %v, %v", left, svc.intents.list())
	}
}

// TestAnISOFileThatIsInADriveIsNotPruned, whosever the VM is, and also when it is
// only a snapshot of it that has the file: without it the VM would not start.
func TestAnISOFileThatIsInADriveIsNotPruned(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	content := make([]byte, 64<<10)
	copy(content[32769:], "CD001")
	l.write("files/tools.iso", content)
	iso := func(r *agentv1.RunRequest) {
		r.Want, r.ImagesStorage, r.Wan = nil, "local", true
		r.Image = &homelabv1.ImageSource{Name: "tools", Url: "file:" + filepath.Join(l.dir, "files/tools.iso"), Type: homelabv1.ImageType_IMAGE_TYPE_ISO}
	}
	sum := l.do(1, fetchStep, iso).result.GetLearned().GetImageSha256()
	named := func(r *agentv1.RunRequest) { iso(r); r.Image.Sha256 = sum }
	file := "tools-" + sum[:12] + ".iso"
	conf := filepath.Join(l.dir, "hosts/pve1/root/etc/pve/nodes/pve1/qemu-server/310.conf")
	for _, text := range []string{
		"name: theirs\nide2: local:iso/" + file + ",media=cdrom\n",
		"name: theirs\n\n[before]\nide2: local:iso/" + file + ",media=cdrom\nsnaptime: 1\n",
	} {
		if err := os.WriteFile(conf, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
		if _, err := l.try(1, pruneStep, named); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "VM 310") {
			t.Errorf("pruned below a VM that has it in its drive: %v", err)
		}
	}
	if err := os.Remove(conf); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(conf, 0o755); err != nil { // one that cannot be read
		t.Fatal(err)
	}
	if _, err := l.try(1, pruneStep, named); !errors.Is(err, rpc.ErrUnavailable) {
		t.Errorf("pruned while a configuration cannot be read: %v", err)
	}
	if err := os.Remove(conf); err != nil {
		t.Fatal(err)
	}
	if s := l.do(1, pruneStep, named); !s.result.GetChanged() {
		t.Errorf("prune: %v", s.result)
	}
}
