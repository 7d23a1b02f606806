package controller

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/homeiac/homelab/controller/plan"
	"github.com/homeiac/homelab/controller/store"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/mark"
	"github.com/homeiac/homelab/internal/spec"
)

var (
	oldDigest = strings.Repeat("1d", 32)
	newDigest = strings.Repeat("2e", 32)
)

// moving is specOf with an image at an address of which nothing is said.
func moving(n int) []byte {
	return bytes.Replace(specOf(n), []byte(`{url: "file:///var/lib/homelab/noble.img", sha256: `+strings.Repeat("b", 64)+`}`), []byte(`{url: "http://images.lan/noble.img"}`), 1)
}

// fetches are the requests of the latest fetch steps, by host.
func (f *fleet) fetches() map[string]*agentv1.RunRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make(map[string]*agentv1.RunRequest)
	for name, a := range f.agents {
		for id, req := range a.asked {
			if strings.HasPrefix(id, "fetch/") {
				all[name] = req
			}
		}
	}
	return all
}

func (r *running) images(t *testing.T, kind controllerv1.OperationKind, newest bool) outcome {
	t.Helper()
	return r.ask(t.Context(), &controllerv1.ApplyRequest{Operation: &controllerv1.Operation{Kind: kind, Newest: newest}, Yes: true})
}

func TestANameStandsForOneDigestInTheWholeFleet(t *testing.T) {
	f := newFleet(t, hostNames(4)...)
	f.source = oldDigest
	c := f.up()
	c.apply(t.Context(), moving(3), "", true).did(t)
	if f.read != 1 {
		t.Errorf("the source was read %d times", f.read)
	}
	readers := 0
	for host, req := range f.fetches() {
		if req.GetWan() && req.GetImage().GetSha256() == "" {
			readers++
			continue
		}
		if req.GetImage().GetSha256() != oldDigest || len(req.GetImagePeers()) == 0 || req.GetImage().GetVerification() != homelabv1.Verification_VERIFICATION_NO {
			t.Errorf("%s was asked for %v of %v", host, req.GetImage(), req.GetImagePeers())
		}
	}
	if readers != 1 {
		t.Errorf("%d hosts read the source without a digest", readers)
	}
	// The address has another file now. A new host gets the one that the name stands for.
	f.source = newDigest
	c.apply(t.Context(), moving(4), "", true).did(t)
	if req := f.fetches()["pve4"]; req.GetImage().GetSha256() != oldDigest || req.GetWan() {
		t.Errorf("pve4 was asked for %v, wan %v", req.GetImage(), req.GetWan())
	}
	status, err := c.viewer.Status(t.Context(), &controllerv1.StatusRequest{Fresh: true})
	if err != nil || len(status.GetImages()) != 4 {
		t.Fatalf("%v %v", status.GetImages(), err)
	}
	for _, i := range status.GetImages() {
		if i.GetSha256() != oldDigest || !i.GetCurrent() || i.GetBytes() != i.GetDoneBytes() || i.GetVerification() != homelabv1.Verification_VERIFICATION_NO {
			t.Errorf("%v", i)
		}
	}
}

func TestNewestResolvesANameAnewAndLeavesGuestsAsTheyAre(t *testing.T) {
	f := newFleet(t, hostNames(3)...)
	f.source = oldDigest
	c := f.up()
	c.apply(t.Context(), moving(3), "", true).did(t)
	before, err := c.store.Guests(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.source = newDigest
	c.images(t, controllerv1.OperationKind_OPERATION_KIND_FETCH_IMAGES, true).did(t)
	images, err := c.store.Images(t.Context())
	if err != nil || images["noble"].SHA256 != newDigest {
		t.Errorf("it stands for %+v, %v", images["noble"], err)
	}
	after, err := c.store.Guests(t.Context())
	if err != nil || after["k3s-1"].ImageSHA256 != oldDigest || after["k3s-1"].Generation != before["k3s-1"].Generation {
		t.Errorf("k3s-1 %+v, %v", after["k3s-1"], err)
	}
	if o := c.apply(t.Context(), moving(3), "", true); len(o.plan.GetSteps()) != 0 {
		t.Errorf("apply does something: %v", o.plan)
	}
	// One that is made anew is made of what it was made of, while a host holds it.
	f.mu.Lock()
	f.agents["pve3"].vms[203].power = homelabv1.Power_POWER_STOPPED
	f.mu.Unlock()
	c.apply(t.Context(), moving(3), "", true).did(t)
	if req := f.agents["pve3"].asked["create/pve3/k3s-3"]; req.GetWant().GetImage().GetSha256() != oldDigest {
		t.Errorf("made anew of %v", req.GetWant().GetImage())
	}
	// Both are needed now, so nothing is pruned.
	if o := c.images(t, controllerv1.OperationKind_OPERATION_KIND_PRUNE_IMAGES, false); len(o.plan.GetSteps()) != 0 {
		t.Errorf("pruned: %v", o.plan)
	}
}

func TestAGuestIsMadeAnewOfWhatItIsMadeOfAlsoWhenTheSpecHasAnotherDigest(t *testing.T) {
	f := newFleet(t, hostNames(3)...)
	c := f.up()
	c.apply(t.Context(), specOf(3), "", true).did(t)
	f.mu.Lock()
	f.agents["pve3"].vms[203].power = homelabv1.Power_POWER_STOPPED
	f.mu.Unlock()
	c.apply(t.Context(), bytes.Replace(specOf(3), []byte(strings.Repeat("b", 64)), []byte(newDigest), 1), "", true).did(t)
	for _, step := range []string{"save", "destroy", "create"} {
		if req := f.agents["pve3"].asked[step+"/pve3/k3s-3"]; req.GetWant().GetImage().GetSha256() != strings.Repeat("b", 64) {
			t.Errorf("%s is told of %v", step, req.GetWant().GetImage())
		}
	}
}

func TestWhatNobodyHoldsIsMadeOfWhatTheNameStandsForNow(t *testing.T) {
	f := newFleet(t, hostNames(3)...)
	f.source = oldDigest
	c := f.up()
	c.apply(t.Context(), moving(3), "", true).did(t)
	f.source = newDigest
	c.images(t, controllerv1.OperationKind_OPERATION_KIND_FETCH_IMAGES, true).did(t)
	f.mu.Lock()
	for _, a := range f.agents {
		a.images = slices.DeleteFunc(a.images, func(i *homelabv1.ImageCopy) bool { return i.GetSha256() == oldDigest })
	}
	f.agents["pve3"].vms[203].power = homelabv1.Power_POWER_STOPPED
	f.mu.Unlock()
	o := c.apply(t.Context(), moving(3), "", true)
	o.did(t)
	if req := f.agents["pve3"].asked["create/pve3/k3s-3"]; req.GetWant().GetImage().GetSha256() != newDigest || !strings.Contains(req.GetStep().GetReason(), "on no host that answers") {
		t.Errorf("made anew of %v: %s", req.GetWant().GetImage(), req.GetStep().GetReason())
	}
}

func TestWhenNeitherImageCanBeHadNothingIsDestroyed(t *testing.T) {
	f := newFleet(t, hostNames(3)...)
	f.source = oldDigest
	c := f.up()
	c.apply(t.Context(), moving(3), "", true).did(t)
	f.source = newDigest // and nobody said --newest
	f.mu.Lock()
	for _, a := range f.agents {
		a.images = nil
	}
	vm := f.agents["pve3"].vms[203]
	vm.power = homelabv1.Power_POWER_STOPPED
	f.mu.Unlock()
	o := c.apply(t.Context(), moving(3), "", true)
	if o.summary.GetFailed() != 1 || !strings.Contains(o.texts(homelabv1.EventKind_EVENT_KIND_STEP_FAILED), newDigest) || !strings.Contains(o.texts(homelabv1.EventKind_EVENT_KIND_STEP_FAILED), oldDigest) {
		t.Errorf("%v\n%s", o.summary, o.texts(homelabv1.EventKind_EVENT_KIND_STEP_FAILED))
	}
	if f.agents["pve3"].vms[203] != vm {
		t.Error("it was destroyed")
	}
}

func TestASourceAtFaultIsReadByOneHostOnly(t *testing.T) {
	f := newFleet(t, hostNames(3)...)
	f.fault = "it is an HTML page, not an image"
	c := f.up()
	o := c.apply(t.Context(), moving(3), "", true)
	if f.read != 1 || o.summary.GetFailed() != 3 || o.summary.GetDone() != 0 {
		t.Errorf("read %d times, %v", f.read, o.summary)
	}
	if text := o.texts(homelabv1.EventKind_EVENT_KIND_STEP_FAILED); strings.Count(text, "HTML page") != 3 {
		t.Errorf("%s", text)
	}
}

func TestGuestsOfOneImageOnAHostAreClonedFromOneTemplate(t *testing.T) {
	f := newFleet(t, hostNames(2)...)
	c := f.up()
	text := specOf(2)
	for i := 1; i <= 2; i++ {
		line := fmt.Sprintf("  web-%d: {host: pve1, vmid: %d, networks: [{network: lan, ip: 10.0.0.%d/24}]}\nk3s:", i, 250+i, 50+i)
		text = bytes.Replace(text, []byte("k3s: {version"), []byte(line+" {version"), 1)
	}
	c.apply(t.Context(), text, "", true).did(t)
	template := f.agents["pve1"].vms[9000]
	digest := strings.Repeat("b", 64)
	if template == nil || template.id.GetGuest() != mark.TemplateName(digest) {
		t.Fatalf("template %+v", template)
	}
	for _, name := range []string{"k3s-1", "web-1", "web-2"} {
		want := f.agents["pve1"].asked["create/pve1/"+name].GetWant()
		if want.GetClone() != homelabv1.CloneKind_CLONE_KIND_LINKED || want.GetTemplate().GetUuid() != template.id.GetUuid() || want.GetTemplate().GetMark() != template.id.GetMark() || want.GetImage().GetSha256() != digest {
			t.Errorf("%s is made of %v", name, want)
		}
	}
	if f.agents["pve2"].asked["create/pve2/k3s-2"].GetWant().GetTemplate() != nil {
		t.Error("the only guest of a host is cloned")
	}
	if o := c.apply(t.Context(), text, "", true); len(o.plan.GetSteps()) != 0 {
		t.Errorf("again: %v", o.plan)
	}
	// A template is no guest: it cannot be named as one.
	if o := c.operate(t, opDelete, mark.TemplateName(digest), mark.TemplateName(digest)); o.err == nil {
		t.Errorf("deleted as a guest: %v", o.summary)
	}
	// Another digest in the Spec: a guest is made anew of its own, from the template.
	f.mu.Lock()
	f.agents["pve1"].vms[251].power = homelabv1.Power_POWER_STOPPED
	f.agents["pve1"].images, f.agents["pve2"].images = nil, nil
	f.mu.Unlock()
	c.apply(t.Context(), bytes.Replace(text, []byte(digest), []byte(newDigest), 1), "", true).did(t)
	if want := f.agents["pve1"].asked["create/pve1/web-1"].GetWant(); want.GetTemplate().GetUuid() != template.id.GetUuid() || want.GetIdentity().GetGeneration() != 2 {
		t.Errorf("made anew of %v", want)
	}
}

func TestPruneRemovesATemplateAndAFileThatNobodyNeeds(t *testing.T) {
	f := newFleet(t, hostNames(2)...)
	c := f.up()
	c.apply(t.Context(), specOf(2), "", true).did(t)
	f.mu.Lock()
	id := c.signer.identity(storeTemplate(oldDigest, 9005))
	f.agents["pve1"].vms[9005] = &fakeVM{id: id, name: "hl-template-old", power: homelabv1.Power_POWER_STOPPED, template: true, hw: &homelabv1.Hardware{}}
	f.agents["pve1"].vms[9006] = &fakeVM{id: &homelabv1.Identity{Uuid: "x", Mark: id.GetMark()}, name: "a copy", power: homelabv1.Power_POWER_STOPPED, template: true, hw: &homelabv1.Hardware{}}
	f.agents["pve2"].images = append(f.agents["pve2"].images, &homelabv1.ImageCopy{Name: "noble", Storage: "local", Sha256: newDigest, Bytes: 5})
	f.mu.Unlock()
	o := c.images(t, controllerv1.OperationKind_OPERATION_KIND_PRUNE_IMAGES, false)
	o.did(t)
	if o.summary.GetDone() != 2 || f.agents["pve1"].vms[9005] != nil || f.agents["pve1"].vms[9006] == nil || len(f.agents["pve2"].images) != 1 || len(f.agents["pve1"].images) != 1 {
		t.Errorf("%v, %v", o.plan, o.summary)
	}
}

func storeTemplate(digest string, vmid int32) store.Guest {
	return store.Guest{Name: mark.TemplateName(digest), VMID: vmid, UUID: fmt.Sprintf("55555555-0000-4000-8000-%012d", vmid), Generation: 1}
}

func TestAFileIsNotKnownByAnAddressWithAQuery(t *testing.T) {
	held := &homelabv1.ImageCopy{Name: "noble", Url: "https://images.example/get"}
	if i := (&spec.Image{Name: "noble", URL: "https://me:secret@images.example/get"}); !isOf(held, i, plan.Image{}) {
		t.Error("the file of this very address is not known by it")
	}
	if i := (&spec.Image{Name: "noble", URL: "https://images.example/get?file=noble"}); isOf(held, i, plan.Image{}) {
		t.Error("a file is taken for that of an address of which nobody knows whether it came from there")
	}
}

// TestAnImageThatNoAppliedSpecHasIsWhatItsNameStandsFor: it was fetched ahead, for a Spec
// that is still to be applied.
func TestAnImageThatNoAppliedSpecHasIsWhatItsNameStandsFor(t *testing.T) {
	f := newFleet(t, hostNames(1)...)
	c := f.up()
	c.apply(t.Context(), specOf(1), "", true).did(t)
	f.source = newDigest
	ahead := bytes.Replace(moving(1), []byte("images:\n"), []byte("images:\n  ahead: {url: \"http://images.lan/ahead.img\"}\n"), 1)
	c.ask(t.Context(), &controllerv1.ApplyRequest{
		Spec: ahead, Yes: true,
		Operation: &controllerv1.Operation{Kind: controllerv1.OperationKind_OPERATION_KIND_FETCH_IMAGES, Images: []string{"ahead"}, Host: "pve1"},
	}).did(t)
	status, err := c.viewer.Status(t.Context(), &controllerv1.StatusRequest{Fresh: true})
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, i := range status.GetImages() {
		if i.GetName() == "ahead" {
			seen++
			if !i.GetCurrent() {
				t.Errorf("older than what its name stands for: %v", i)
			}
		}
	}
	if seen != 1 {
		t.Errorf("%v", status.GetImages())
	}
}
