package drivertest

import (
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

var aboutClones = []contract{
	{"a template is made once, of an image that is there", templateTwice},
	{"a template is made over nobody", templateRefused},
	{"a clone has everything that a create gives, linked and full", clonesAreWhole},
	{"a VM is cloned only from the very template that is meant", cloneRefused},
	{"a template goes only as one, and only when nothing stands on it", templateDestroyed},
	{"a guest that is a linked clone goes, and its base stays", linkedCloneDestroyed},
	{"an ISO file is in its drive and outlives the VM", cdromStays},
	{"the storages tell their space", storagesTellSpace},
}

// templateID is the VMID of the tests' template.
const templateID = int32(9000)

// Template is the identity of the tests' template.
func Template() *homelabv1.Identity {
	id := Identity(templateID)
	id.Guest, id.Mark = "template@0011223344aa", "hl1:home:template@0011223344aa:1:00112233445566778899aabbccddeeff"
	return id
}

// TemplateRequest asks for the tests' template.
func TemplateRequest(w World) *driverv1.CreateTemplateRequest {
	return &driverv1.CreateTemplateRequest{
		Identity: Template(), Name: "hl-template-noble", ImagePath: w.Image, Storage: w.Storage, Deadline: durationpb.New(30 * time.Second),
	}
}

// CloneRequest asks for a clone of the tests' template.
func CloneRequest(w World, vmid int32, linked bool) *driverv1.CreateRequest {
	req := Request(w, vmid)
	req.ImagePath, req.Template, req.Linked = "", Template(), linked
	return req
}

func (c *caller) template() (*homelabv1.VirtualMachine, error) {
	return c.w.Driver.CreateTemplate(c.context(), TemplateRequest(c.w), c.report)
}

func (c *caller) clone(vmid int32, linked bool) (*homelabv1.VirtualMachine, error) {
	return c.w.Driver.Create(c.context(), CloneRequest(c.w, vmid, linked), c.report)
}

func templateTwice(c *caller) {
	vm := c.must(c.template())
	if !vm.GetTemplate() || vm.GetMark() != Template().GetMark() || vm.GetUuid() != Template().GetUuid() || vm.GetName() != "hl-template-noble" {
		c.t.Errorf("template: %v", vm)
	}
	if len(vm.GetVolumes()) != 1 || len(vm.GetDisks()) != 1 || len(vm.GetMacs()) != 0 || vm.GetOnboot() || vm.GetHalfBuilt() {
		c.t.Errorf("it has more or less than one disk: %v", vm)
	}
	before := c.w.Digest(templateID)
	c.reset()
	c.must(c.template())
	if got := c.changes(); len(got) > 0 || c.w.Digest(templateID) != before {
		c.t.Errorf("the second time changed it: %q", got)
	}
	seen, err := c.w.Driver.Observe(c.context(), false)
	if err != nil || len(seen.GetVms()) != 1 || !seen.GetVms()[0].GetTemplate() || len(seen.GetLeftoverVmids()) > 0 {
		c.t.Errorf("observed: %v, %v", seen, err)
	}
}

func templateRefused(c *caller) {
	try := func(kind rpc.Kind, says string, spoil func(*driverv1.CreateTemplateRequest)) {
		c.t.Helper()
		before := c.w.Digest(templateID)
		c.reset()
		req := TemplateRequest(c.w)
		spoil(req)
		_, err := c.w.Driver.CreateTemplate(c.context(), req, c.report)
		wantKind(c.t, err, kind, says)
		if got := c.changes(); len(got) > 0 || c.w.Digest(templateID) != before {
			c.t.Errorf("something was changed: %q", got)
		}
	}
	asIs := func(*driverv1.CreateTemplateRequest) {}
	try(rpc.ErrInvalid, "uuid", func(r *driverv1.CreateTemplateRequest) { r.Identity.Uuid = "x" })
	try(rpc.ErrRefused, "/nowhere/x.img", func(r *driverv1.CreateTemplateRequest) { r.ImagePath = "/nowhere/x.img" })
	try(rpc.ErrRefused, "nosuch", func(r *driverv1.CreateTemplateRequest) { r.Storage = "nosuch" })
	c.w.BreakOff(templateID)
	try(rpc.ErrRefused, "half-built", asIs)
	c.must(c.destroy(&driverv1.DestroyRequest{Identity: Template(), HalfBuilt: true, Template: true}))
	if got := inspect(c, templateID); len(got) > 0 {
		c.t.Errorf("its rollback left %v", got)
	}
	c.w.MakeForeign(templateID, "dns")
	try(rpc.ErrRefused, "dns", asIs)
}

func clonesAreWhole(c *caller) {
	c.must(c.template())
	was := c.w.Digest(templateID)
	for id, linked := range map[int32]bool{vmid: true, another: false} {
		vm := c.must(c.clone(id, linked))
		want := CloneRequest(c.w, id, linked)
		if vm.GetMark() != want.GetIdentity().GetMark() || vm.GetUuid() != want.GetIdentity().GetUuid() || vm.GetName() != want.GetHardware().GetName() {
			c.t.Errorf("identity: %v", vm)
		}
		if vm.GetTemplate() || vm.GetHalfBuilt() || vm.GetLinkedClone() != linked || vm.GetCpus() != 1 || vm.GetMemoryBytes() != 256<<20 {
			c.t.Errorf("linked %v: %v", linked, vm)
		}
		if size(vm, "scsi0") != gib || size(vm, "scsi1") != 2*gib || !slices.Equal(vm.GetMacs(), []string{want.GetHardware().GetNics()[0].GetMac()}) {
			c.t.Errorf("disks and interfaces: %v", vm)
		}
		before := c.w.Digest(id)
		c.reset()
		c.must(c.clone(id, linked))
		if got := c.changes(); len(got) > 0 || c.w.Digest(id) != before {
			c.t.Errorf("the second time changed it: %q", got)
		}
		if vm := c.must(c.start(want.GetIdentity())); vm.GetPower() != homelabv1.Power_POWER_RUNNING {
			c.t.Errorf("started: %v", vm)
		}
	}
	if c.w.Digest(templateID) != was {
		c.t.Error("the template was changed")
	}
}

func cloneRefused(c *caller) {
	try := func(kind rpc.Kind, says string, spoil func(*driverv1.CreateRequest)) {
		c.t.Helper()
		before := c.w.Digest(vmid) + c.w.Digest(templateID)
		c.reset()
		req := CloneRequest(c.w, vmid, true)
		spoil(req)
		_, err := c.w.Driver.Create(c.context(), req, c.report)
		wantKind(c.t, err, kind, says)
		if got := c.changes(); len(got) > 0 || c.w.Digest(vmid)+c.w.Digest(templateID) != before {
			c.t.Errorf("something was changed: %q", got)
		}
	}
	asIs := func(*driverv1.CreateRequest) {}
	try(rpc.ErrRefused, "9000", asIs)
	c.w.MakeForeign(templateID, "dns")
	try(rpc.ErrRefused, "dns", asIs)
	c.must(c.create(another))
	try(rpc.ErrRefused, "no template", func(r *driverv1.CreateRequest) { r.Template = Identity(another) })
	try(rpc.ErrInvalid, "itself", func(r *driverv1.CreateRequest) { r.Template = Identity(vmid) })
}

func templateDestroyed(c *caller) {
	c.must(c.template())
	c.must(c.clone(vmid, true))
	try := func(says string, req *driverv1.DestroyRequest) {
		c.t.Helper()
		before, volumes := c.w.Digest(templateID)+c.w.Digest(vmid), inspect(c, templateID)
		c.reset()
		_, err := c.destroy(req)
		wantKind(c.t, err, rpc.ErrRefused, says)
		if got := c.changes(); len(got) > 0 || c.w.Digest(templateID)+c.w.Digest(vmid) != before || !slices.Equal(inspect(c, templateID), volumes) {
			c.t.Errorf("something was changed: %q", got)
		}
	}
	try("201", &driverv1.DestroyRequest{Identity: Template(), Template: true})
	try("whole", &driverv1.DestroyRequest{Identity: Template(), Template: true, HalfBuilt: true})
	try("no template", &driverv1.DestroyRequest{Identity: Identity(vmid), Template: true})
	c.must(c.destroy(&driverv1.DestroyRequest{Identity: Identity(vmid)}))
	try("it is a template", &driverv1.DestroyRequest{Identity: Template()})
	wrong := Template()
	wrong.Mark = Identity(vmid).GetMark()
	try("mark", &driverv1.DestroyRequest{Identity: wrong, Template: true})
	for range 2 {
		if vm := c.must(c.destroy(&driverv1.DestroyRequest{Identity: Template(), Template: true})); vm.GetPower() != homelabv1.Power_POWER_ABSENT {
			c.t.Errorf("after it: %v", vm)
		}
	}
	if got := inspect(c, templateID); len(got) > 0 {
		c.t.Errorf("volumes are left: %v", got)
	}
}

func linkedCloneDestroyed(c *caller) {
	c.must(c.template())
	was, base := c.w.Digest(templateID), inspect(c, templateID)
	c.must(c.clone(vmid, true))
	c.must(c.clone(another, true))
	c.must(c.destroy(&driverv1.DestroyRequest{Identity: Identity(vmid)}))
	if got := inspect(c, vmid); len(got) > 0 {
		c.t.Errorf("volumes are left: %v", got)
	}
	if c.w.Digest(templateID) != was || !slices.Equal(inspect(c, templateID), base) {
		c.t.Error("its template was touched")
	}
	if vm := c.must(c.start(Identity(another))); vm.GetPower() != homelabv1.Power_POWER_RUNNING {
		c.t.Errorf("the other clone: %v", vm)
	}
	c.must(c.clone(vmid, true)) // and again, as a recreation does
}

func cdromStays(c *caller) {
	c.must(c.template())
	for id, req := range map[int32]*driverv1.CreateRequest{vmid: Request(c.w, vmid), another: CloneRequest(c.w, another, true)} {
		req.Cdrom = strings.TrimSuffix(c.w.ISO, ".iso") + "-gone.iso"
		c.reset()
		_, err := c.w.Driver.Create(c.context(), req, c.report)
		wantKind(c.t, err, rpc.ErrRefused, "-gone.iso", "is not there")
		if got := c.changes(); len(got) > 0 {
			c.t.Errorf("something was changed: %q", got)
		}
		req.Cdrom = c.w.ISO
		vm := c.must(c.w.Driver.Create(c.context(), req, c.report))
		for _, v := range vm.GetVolumes() {
			if v.GetVolid() == c.w.ISO {
				c.t.Errorf("it counts as the VM's data: %v", vm.GetVolumes())
			}
		}
		c.must(c.w.Driver.Create(c.context(), req, c.report))
		c.must(c.destroy(&driverv1.DestroyRequest{Identity: Identity(id)}))
		// The next VM finds it there.
		c.must(c.w.Driver.Create(c.context(), req, c.report))
	}
	all, err := c.w.Driver.Orphans(c.context())
	if err != nil || len(all.GetOrphans()) > 0 {
		c.t.Errorf("orphans: %v, %v", all, err)
	}
}

func storagesTellSpace(c *caller) {
	all, err := c.w.Driver.Storages(c.context())
	if err != nil {
		c.t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(s *homelabv1.Storage) bool { return s.GetName() == c.w.Storage })
	if i < 0 {
		c.t.Fatalf("no %s among %v", c.w.Storage, all)
	}
	st := all[i]
	if st.GetActive().GetTruth() != homelabv1.Truth_TRUTH_YES || st.GetSpaceKnown().GetTruth() != homelabv1.Truth_TRUTH_YES ||
		st.GetFreeBytes() <= 0 || st.GetTotalBytes() < st.GetFreeBytes() || st.GetType() == "" || !slices.Contains(st.GetContent(), "images") {
		c.t.Errorf("storage %v", st)
	}
}
