package cli

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const digest = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// held are the images of a fleet: whole ones, an older one, and parts.
func heldImages() *controllerv1.StatusResponse {
	s := fleet()
	image := func(name, host string) *controllerv1.ImageStatus {
		return &controllerv1.ImageStatus{
			Name: name, Host: host, Storage: "local", Type: homelabv1.ImageType_IMAGE_TYPE_DISK, Format: "qcow2", Bytes: 596 << 20, DoneBytes: 596 << 20,
			Sha256: digest, Verification: homelabv1.Verification_VERIFICATION_LIST, Current: true,
		}
	}
	one, older := image("noble", "pve1"), image("noble", "pve1")
	one.Template = 9000
	older.Sha256, older.Current = "f"+digest[1:], false
	coming := image("noble", "pve2")
	coming.DoneBytes, coming.Active, coming.Verification = 595<<20, true, homelabv1.Verification_VERIFICATION_UNSPECIFIED
	part := &controllerv1.ImageStatus{Name: "haos", Host: "pve2", Storage: "local", DoneBytes: 12 << 20}
	packed := image("haos", "pve1")
	packed.Format, packed.Compression, packed.Verification = "raw", "xz", homelabv1.Verification_VERIFICATION_NO
	iso := image("tools", "pve1")
	iso.Storage, iso.Format, iso.Type, iso.Verification = "isos", "iso", homelabv1.ImageType_IMAGE_TYPE_ISO, homelabv1.Verification_VERIFICATION_SPEC
	s.Images = []*controllerv1.ImageStatus{iso, coming, older, one, part, packed}
	return s
}

// fetching is the plan of images that are fetched, of which one is made a template.
func fetchingImages() *homelabv1.Plan {
	fetch := func(host, image string) *homelabv1.Step {
		return step("fetch/"+host+"/"+image, host+" does not hold it yet")
	}
	p := &homelabv1.Plan{Digest: "images", Steps: []*homelabv1.Step{
		fetch("pve1", "noble"), fetch("pve2", "noble"), fetch("pve3", "noble"), fetch("pve2", "tools"), madeTemplate("pve2", 9000),
	}}
	p.Steps[3].Reason = "it stands for another file now: 0123456789ab -> f123456789ab"
	return p
}

func madeTemplate(host string, vmid int32) *homelabv1.Step {
	s := step("template/"+host+"/noble", "2 guests are to be cloned from it", "fetch/"+host+"/noble")
	s.Vmid = vmid
	return s
}

// pruning removes a template and two files, and leaves one alone.
func pruning() *homelabv1.Plan {
	template, file, forgotten := step("prune/pve1/noble", "no disk stands on it"), step("prune/pve2/noble", "nobody is made of it"), step("prune/pve2/x", "no name stands for it")
	template.Vmid, template.ImageSha256 = 9000, digest
	file.Storage, file.ImageSha256 = "local", "f"+digest[1:]
	forgotten.Image, forgotten.Storage, forgotten.ImageSha256 = "", "local", digest
	return &homelabv1.Plan{
		Digest: "prune", Steps: []*homelabv1.Step{template, file, forgotten},
		Notes: []*homelabv1.Note{note(homelabv1.NoteKind_NOTE_KIND_INFO, "", "pve3", "template 9001 of noble stays: the disk of VM 117 stands on it")},
	}
}

// cloning makes a guest from a template of its host.
func cloning() *homelabv1.Plan {
	p := &homelabv1.Plan{Digest: "cloning", Steps: []*homelabv1.Step{step("fetch/pve1/noble", "pve1 does not hold it yet"), madeTemplate("pve1", 9000)}}
	for _, guest := range []string{"k3s-1", "k3s-2"} {
		create := step("create/pve1/"+guest, "there is no VM of it: VM 201, a linked clone of template 9000", "template/pve1/noble")
		create.Clone, create.TemplateVmid, create.Image, create.ImageSha256 = homelabv1.CloneKind_CLONE_KIND_LINKED, 9000, "noble", digest
		p.Steps = append(p.Steps, create, step("start/pve1/"+guest, "so that it boots", create.GetId()))
	}
	return p
}

func TestImageOperationsAskForWhatIsTyped(t *testing.T) {
	const fetch, prune = controllerv1.OperationKind_OPERATION_KIND_FETCH_IMAGES, controllerv1.OperationKind_OPERATION_KIND_PRUNE_IMAGES
	for command, want := range map[string]*controllerv1.Operation{
		"images fetch":                                {Kind: fetch},
		"images fetch noble tools --host pve2":        {Kind: fetch, Images: []string{"noble", "tools"}, Host: "pve2"},
		"images fetch noble --newest -f homelab.yaml": {Kind: fetch, Images: []string{"noble"}, Newest: true},
		"images prune":                                {Kind: prune},
	} {
		t.Run(command, func(t *testing.T) {
			r := newRig(t)
			r.plan = fetchingImages()
			r.hold = func(context.Context, *controllerv1.ApplyResponse) {
				t.Error("it was carried out without being confirmed")
			}
			wants(t, r.run(strings.Fields(command)...), 1, "nothing was done", "--yes")
			wants(t, r.run(append(strings.Fields(command), "-o", "json")...), 1, "nothing was done", "--yes")
			r.hold = nil
			wants(t, r.run(append(strings.Fields(command), "--yes")...), 0, "4 done")
			got := r.planned()
			if diff := cmp.Diff(want, got.GetOperation(), protocmp.Transform()); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if (len(got.GetSpec()) > 0) != strings.Contains(command, "-f") {
				t.Errorf("spec %q", got.GetSpec())
			}
		})
	}
}

func TestDryPruneReachesNoHost(t *testing.T) {
	r := newRig(t)
	scenes["prune"](r.fake)
	r.hold = func(context.Context, *controllerv1.ApplyResponse) { t.Error("apply was called") }
	wants(t, r.run("images", "prune", "--dry-run", "--yes"), 0, "1 template to remove, 2 image files to remove.   hlctl images prune")
	r.plan = &homelabv1.Plan{Notes: pruning().GetNotes()}
	wants(t, r.run("images", "prune", "--dry-run"), 0, "pve3: template 9001 of noble stays", "Nothing to remove.")
}

func TestPruneOfMoreThanWasShownIsNotConfirmed(t *testing.T) {
	r := newRig(t)
	scenes["prune"](r.fake)
	less := pruning()
	less.Digest, less.Steps = "less", less.GetSteps()[1:2]
	r.plan, r.drifts = less, []*homelabv1.Plan{pruning()}
	wants(t, r.run("images", "prune", "--yes"), 1, "destroys more than the one that was confirmed (of image 0123456789ab on pve2 and template 9000 of noble on pve1)")
	r.plan, r.drifts = pruning(), []*homelabv1.Plan{less}
	wants(t, r.run("images", "prune", "--yes"), 0, "image noble  removed on pve2")
}

// How far a transfer has come is told again every second; a log needs less.
func TestTransferIsALineNowAndThenInALog(t *testing.T) {
	var out buffer
	a := &app{out: &out, now: func() time.Time { return noon }, columns: 80}
	p := fetchingImages()
	s := newStory(p)
	l := &lineShow{a: a, story: s}
	for second := range 26 {
		e := &homelabv1.Event{
			Kind: homelabv1.EventKind_EVENT_KIND_STEP_PROGRESS, Step: "fetch/pve1/noble", Host: "pve1", Phase: "fetching",
			Time: timestamppb.New(noon.Add(time.Duration(second) * time.Second)), Text: fmt.Sprintf("%d MiB of 512 MiB", second*20),
		}
		if second == 0 {
			e.Kind = homelabv1.EventKind_EVENT_KIND_STEP_STARTED
		}
		l.event(e, s.event(e, noon))
	}
	const want = `14:02:00         pve1  fetching noble
14:02:10         pve1  fetching noble  200 MiB of 512 MiB
14:02:20         pve1  fetching noble  400 MiB of 512 MiB
`
	if got := out.String(); got != want {
		t.Errorf("-want +got:\n%s", cmp.Diff(want, got))
	}
}

func TestInterruptedFetchNamesTheImage(t *testing.T) {
	s := newStory(fetchingImages())
	s.event(&homelabv1.Event{Kind: homelabv1.EventKind_EVENT_KIND_STEP_STARTED, Step: "fetch/pve3/noble", Host: "pve3"}, noon)
	if got := s.atWork(); !cmp.Equal(got, []string{"image noble on pve3 (fetching)"}) {
		t.Error(got)
	}
}

// TestInterruptedPruneNamesWhatIsLeftAtWork although another step of that image on that
// host has ended: its file is gone at once, its template takes qm.
func TestInterruptedPruneNamesWhatIsLeftAtWork(t *testing.T) {
	p := &homelabv1.Plan{Steps: []*homelabv1.Step{
		{Id: "prune/pve1/noble@0123456789ab", Action: homelabv1.Action_ACTION_PRUNE, Host: "pve1", Image: "noble", ImageSha256: "0123456789ab", Storage: "local"},
		{Id: "prune/pve1/template@0123456789ab/9000", Action: homelabv1.Action_ACTION_PRUNE, Host: "pve1", Image: "noble", ImageSha256: "0123456789ab", Vmid: 9000},
	}}
	s := newStory(p)
	tell := func(kind homelabv1.EventKind, step int) {
		s.event(&homelabv1.Event{Kind: kind, Step: p.GetSteps()[step].GetId(), Host: "pve1"}, noon)
	}
	tell(homelabv1.EventKind_EVENT_KIND_STEP_STARTED, 0)
	tell(homelabv1.EventKind_EVENT_KIND_STEP_STARTED, 1)
	tell(homelabv1.EventKind_EVENT_KIND_STEP_DONE, 0)
	if got := s.atWork(); !cmp.Equal(got, []string{"image noble on pve1 (removing)"}) {
		t.Error(got)
	}
	tell(homelabv1.EventKind_EVENT_KIND_STEP_DONE, 1)
	if got := s.atWork(); len(got) > 0 {
		t.Error(got)
	}
}

// TestWhatWasWaitedForIsNotCalledBusyInTheEnd: a plan without steps has the same digest
// before and after the wait.
func TestWhatWasWaitedForIsNotCalledBusyInTheEnd(t *testing.T) {
	r := newRig(t)
	r.plan = &homelabv1.Plan{Digest: "none", Notes: []*homelabv1.Note{note(homelabv1.NoteKind_NOTE_KIND_BUSY, "", "pve1", "step fetch/pve1/noble is in flight")}}
	r.drifts = []*homelabv1.Plan{{Digest: "none", Notes: []*homelabv1.Note{note(homelabv1.NoteKind_NOTE_KIND_UNCHANGED, "", "pve1", "holds image noble already")}}}
	got := r.run("images", "fetch", "--yes")
	wants(t, got, 0, "pve1: holds image noble already", "Nothing to do.")
	if strings.Contains(got.out, "busy") || strings.Contains(got.out, "skipped") {
		t.Error(got.out)
	}
}

// TestWhatADegradedHostHoldsIsNotCalledNothing: without /etc/pve it cannot tell what
// storages it has.
func TestWhatADegradedHostHoldsIsNotCalledNothing(t *testing.T) {
	r := newRig(t)
	r.status = &controllerv1.StatusResponse{Fleet: "homelab", Hosts: []*homelabv1.HostStatus{{Name: "pve1", State: homelabv1.HostState_HOST_STATE_DEGRADED}}}
	succeeds(t, r.run("images"), "! pve1 degraded", "its images are not shown")
}
