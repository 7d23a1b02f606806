package drivertest

import (
	"errors"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

var aboutPowers = []contract{
	{"a VM that is reset runs on, and a stopped one is refused", resets},
	{"a paused VM goes on only when it is asked for", resumes},
	{"a paused VM does not shut down, but its power can be cut", stopPaused},
	{"an adopted VM bears the mark below what stood there, also twice", adopts},
	{"a VM that is another one, or changed, or has another mark, is not adopted", adoptRefused},
	{"a holder VM has neither disks nor network, and is made once", holderTwice},
	{"a holder VM is made over nobody", holderRefused},
	{"a disk is moved only between stopped VMs that are both ours", moveRefused},
	{"a holder VM that holds a disk is not destroyed", holderKept},
	{"a disk in a slot to keep is not destroyed", slotKept},
	{"snapshots go along only when that is named", destroyNamed},
	{"a configuration is read as it is", configs},
	{"a VM of somebody else at a VMID of ours survives every call", foreignSurvives},
}

// holderID is the VMID of the tests' holder VM.
const holderID = int32(203)

// Holder is the identity of the tests' holder VM.
func Holder() *homelabv1.Identity {
	id := Identity(holderID)
	id.Guest, id.Mark = "holder@g-201", "hl1:home:holder@g-201:1:00112233445566778899aabbccddeeff"
	return id
}

func (c *caller) holder() (*homelabv1.VirtualMachine, error) {
	return c.w.Driver.CreateHolder(c.context(), &driverv1.CreateHolderRequest{
		Identity: Holder(), Name: "hl-holder-g-201", Deadline: durationpb.New(30 * time.Second)}, c.report)
}

func (c *caller) move(from, to *homelabv1.Identity) (*homelabv1.VirtualMachine, error) {
	return c.w.Driver.MoveDisk(c.context(), &driverv1.MoveDiskRequest{
		From: from, To: to, Slot: "scsi1", Deadline: durationpb.New(30 * time.Second)}, c.report)
}

func (c *caller) resume() (*homelabv1.VirtualMachine, error) {
	return c.w.Driver.Start(c.context(), &driverv1.StartRequest{
		Identity: Identity(vmid), Resume: true, Deadline: durationpb.New(30 * time.Second)}, c.report)
}

// size is the size of the disk at a slot; 0 when there is none.
func size(vm *homelabv1.VirtualMachine, slot string) int64 {
	for _, d := range vm.GetDisks() {
		if d.GetSlot() == slot {
			return d.GetSizeBytes()
		}
	}
	return 0
}

func resets(c *caller) {
	c.must(c.create(vmid))
	req := &driverv1.ResetRequest{Identity: Identity(vmid), Deadline: durationpb.New(30 * time.Second)}
	before := c.w.Digest(vmid)
	c.reset()
	_, err := c.w.Driver.Reset(c.context(), req, c.report)
	wantKind(c.t, err, rpc.ErrRefused, "stopped")
	c.unchanged(before)
	running := c.must(c.start(Identity(vmid)))
	for range 2 {
		vm := c.must(c.w.Driver.Reset(c.context(), req, c.report))
		if vm.GetPower() != homelabv1.Power_POWER_RUNNING || !vm.GetProcessStarted().AsTime().Equal(running.GetProcessStarted().AsTime()) {
			c.t.Errorf("after the reset: %v", vm)
		}
	}
	req.Identity = Identity(another)
	_, err = c.w.Driver.Reset(c.context(), req, c.report)
	wantKind(c.t, err, rpc.ErrNotFound)
}

func resumes(c *caller) {
	c.must(c.create(vmid))
	c.must(c.start(Identity(vmid)))
	c.w.Pause(vmid)
	before := c.w.Digest(vmid)
	c.reset()
	_, err := c.start(Identity(vmid))
	wantKind(c.t, err, rpc.ErrRefused, "paused")
	c.unchanged(before)
	if vm := c.must(c.resume()); vm.GetPower() != homelabv1.Power_POWER_RUNNING || vm.GetQemuStatus() != "running" {
		c.t.Errorf("after the resume: %v", vm)
	}
	c.reset()
	c.must(c.resume())
	c.unchanged(before)
	c.must(c.stop(Identity(vmid)))
	if vm := c.must(c.resume()); vm.GetPower() != homelabv1.Power_POWER_RUNNING {
		c.t.Errorf("a stopped VM is started all the same: %v", vm)
	}
}

func stopPaused(c *caller) {
	c.must(c.create(vmid))
	c.must(c.start(Identity(vmid)))
	c.w.Pause(vmid)
	before := c.w.Digest(vmid)
	c.reset()
	_, err := c.w.Driver.Stop(c.context(), &driverv1.StopRequest{Identity: Identity(vmid), Deadline: durationpb.New(30 * time.Second)}, c.report)
	wantKind(c.t, err, rpc.ErrRefused, "paused")
	c.unchanged(before)
	if vm := c.must(c.stop(Identity(vmid))); vm.GetPower() != homelabv1.Power_POWER_STOPPED {
		c.t.Errorf("after the stop: %v", vm)
	}
}

// foreign makes a VM of somebody else's and gives the identity that it would have.
func foreign(c *caller) (*homelabv1.Identity, *homelabv1.VirtualMachine) {
	c.t.Helper()
	c.w.MakeForeign(vmid, "dns")
	all, err := c.w.Driver.Inspect(c.context(), vmid)
	if err != nil {
		c.t.Fatal(err)
	}
	id := Identity(vmid)
	id.Generation, id.Uuid, id.Mark = 0, all.GetVm().GetUuid(), "hl1:home:g-201:0:ffeeddccbbaa99887766554433221100"
	return id, all.GetVm()
}

func adopts(c *caller) {
	id, was := foreign(c)
	req := &driverv1.AdoptRequest{Identity: id, Digest: was.GetDigest(), Deadline: durationpb.New(30 * time.Second)}
	vm := c.must(c.w.Driver.Adopt(c.context(), req, c.report))
	if vm.GetMark() != id.GetMark() || vm.GetUuid() != was.GetUuid() || vm.GetName() != was.GetName() || vm.GetMemoryBytes() != was.GetMemoryBytes() {
		c.t.Errorf("adopted: %v", vm)
	}
	c.reset()
	before := c.w.Digest(vmid)
	c.must(c.w.Driver.Adopt(c.context(), req, c.report))
	c.unchanged(before)
	// From now on it is ours.
	if vm := c.must(c.start(id)); vm.GetPower() != homelabv1.Power_POWER_RUNNING {
		c.t.Errorf("started: %v", vm)
	}
}

func adoptRefused(c *caller) {
	id, was := foreign(c)
	before := c.w.Digest(vmid)
	c.reset()
	adopt := func(id *homelabv1.Identity, digest string) error {
		_, err := c.w.Driver.Adopt(c.context(), &driverv1.AdoptRequest{Identity: id, Digest: digest, Deadline: durationpb.New(30 * time.Second)}, c.report)
		return err
	}
	wantKind(c.t, adopt(id, strings.Repeat("0", 40)), rpc.ErrRefused, "changed")
	other := Identity(vmid)
	wantKind(c.t, adopt(other, was.GetDigest()), rpc.ErrRefused, "uuid")
	bare := Identity(vmid)
	bare.Mark = ""
	wantKind(c.t, adopt(bare, was.GetDigest()), rpc.ErrInvalid)
	gone := Identity(another)
	wantKind(c.t, adopt(gone, ""), rpc.ErrNotFound)
	c.unchanged(before)
	c.w.Protect(vmid)
	before = c.w.Digest(vmid)
	wantKind(c.t, adopt(id, ""), rpc.ErrRefused, "protection")
	c.unchanged(before)
}

func holderTwice(c *caller) {
	vm := c.must(c.holder())
	if vm.GetMark() != Holder().GetMark() || vm.GetUuid() != Holder().GetUuid() || vm.GetName() != "hl-holder-g-201" {
		c.t.Errorf("identity: %v", vm)
	}
	if len(vm.GetVolumes()) > 0 || len(vm.GetMacs()) > 0 || vm.GetOnboot() || vm.GetPower() != homelabv1.Power_POWER_STOPPED {
		c.t.Errorf("holder: %v", vm)
	}
	seen, err := c.w.Driver.Observe(c.context(), false)
	if err != nil || len(seen.GetVms()) != 1 || seen.GetVms()[0].GetMark() != Holder().GetMark() {
		c.t.Errorf("observed: %v, %v", seen, err)
	}
	before := c.w.Digest(holderID)
	c.reset()
	c.must(c.holder())
	if got := c.changes(); len(got) > 0 || c.w.Digest(holderID) != before {
		c.t.Errorf("the second time changed it: %q", got)
	}
	if vm := c.must(c.destroy(&driverv1.DestroyRequest{Identity: Holder()})); vm.GetPower() != homelabv1.Power_POWER_ABSENT {
		c.t.Errorf("an empty holder is destroyed: %v", vm)
	}
}

func holderRefused(c *caller) {
	try := func(says string) {
		c.t.Helper()
		before := c.w.Digest(holderID)
		c.reset()
		_, err := c.holder()
		wantKind(c.t, err, rpc.ErrRefused, says)
		if got := c.changes(); len(got) > 0 || c.w.Digest(holderID) != before {
			c.t.Errorf("it was changed: %q", got)
		}
	}
	c.w.BreakOff(holderID)
	try("half-built")
	c.must(c.destroy(&driverv1.DestroyRequest{Identity: Holder(), HalfBuilt: true}))
	c.w.MakeForeign(holderID, "dns")
	try("dns")
	bad := Holder()
	bad.Uuid = "x"
	_, err := c.w.Driver.CreateHolder(c.context(), &driverv1.CreateHolderRequest{Identity: bad, Name: "hl-holder-g-201"}, c.report)
	wantKind(c.t, err, rpc.ErrInvalid)
}

func moveDiskAndBack(c *caller) {
	c.must(c.create(vmid))
	c.must(c.holder())
	vm := c.must(c.move(Identity(vmid), Holder()))
	if vm.GetVmid() != holderID || size(vm, "scsi1") != 2*gib {
		c.t.Fatalf("the holder: %v", vm)
	}
	left, err := c.w.Driver.Inspect(c.context(), vmid)
	if err != nil || size(left.GetVm(), "scsi1") != 0 || size(left.GetVm(), "scsi0") != gib {
		c.t.Fatalf("what it came from: %v, %v", left, err)
	}
	before := []string{c.w.Digest(vmid), c.w.Digest(holderID)}
	c.reset()
	c.must(c.move(Identity(vmid), Holder()))
	if got := c.changes(); len(got) > 0 || !slices.Equal(before, []string{c.w.Digest(vmid), c.w.Digest(holderID)}) {
		c.t.Errorf("the second move changed something: %q", got)
	}
	// The guest is made anew while the holder keeps its data.
	c.must(c.destroy(&driverv1.DestroyRequest{Identity: Identity(vmid), KeepSlots: []string{"scsi1"}}))
	c.must(c.move(Identity(vmid), Holder())) // gone, but there: moved
	req := Request(c.w, vmid)
	req.Hardware.DataDisks = nil
	c.must(c.w.Driver.Create(c.context(), req, c.report))
	if vm := c.must(c.move(Holder(), Identity(vmid))); vm.GetVmid() != vmid || size(vm, "scsi1") != 2*gib {
		c.t.Errorf("back again: %v", vm)
	}
	c.must(c.destroy(&driverv1.DestroyRequest{Identity: Holder()}))
	c.must(c.move(Holder(), Identity(vmid)))
	if got := inspect(c, holderID); len(got) != 0 {
		c.t.Errorf("the holder left %v", got)
	}
}

func moveRefused(c *caller) {
	c.must(c.create(vmid))
	c.must(c.create(another))
	c.must(c.holder())
	wrong := Holder()
	wrong.Uuid = Identity(another).GetUuid()
	wrongFrom := Identity(vmid)
	wrongFrom.Mark = Identity(another).GetMark()
	try := func(from, to *homelabv1.Identity, kind rpc.Kind, says ...string) {
		c.t.Helper()
		digests := func() string { return c.w.Digest(vmid) + c.w.Digest(another) + c.w.Digest(holderID) }
		before := digests()
		c.reset()
		_, err := c.move(from, to)
		wantKind(c.t, err, kind, says...)
		if got := c.changes(); len(got) > 0 || digests() != before {
			c.t.Errorf("something was changed: %q", got)
		}
	}
	try(Identity(vmid), wrong, rpc.ErrRefused, "203")
	try(wrongFrom, Holder(), rpc.ErrRefused, "201")
	try(Identity(vmid), Identity(another), rpc.ErrRefused, "both")
	try(Identity(vmid), Identity(vmid), rpc.ErrInvalid)
	try(Identity(vmid), Identity(204), rpc.ErrNotFound, "204")
	try(Identity(204), Holder(), rpc.ErrNotFound, "204")
	c.must(c.start(Identity(vmid)))
	try(Identity(vmid), Holder(), rpc.ErrRefused, "runs")
	c.must(c.stop(Identity(vmid)))
	c.must(c.move(Identity(vmid), Holder()))
	try(Holder(), Identity(another), rpc.ErrRefused, "both")
	c.must(c.destroy(&driverv1.DestroyRequest{Identity: Identity(another)}))
	unlock := c.w.Lock(holderID)
	_, err := c.w.Driver.MoveDisk(c.context(), &driverv1.MoveDiskRequest{From: Holder(), To: Identity(vmid), Slot: "scsi1",
		Deadline: durationpb.New(300 * time.Millisecond)}, c.report)
	wantKind(c.t, err, rpc.ErrBusy, "203")
	_, err = c.w.Driver.MoveDisk(c.context(), &driverv1.MoveDiskRequest{From: Identity(vmid), To: Holder(), Slot: "scsi1",
		Deadline: durationpb.New(300 * time.Millisecond)}, c.report)
	wantKind(c.t, err, rpc.ErrBusy, "203")
	unlock()
	c.must(c.move(Holder(), Identity(vmid)))
	c.must(c.holder())
	_, err = c.w.Driver.MoveDisk(c.context(), &driverv1.MoveDiskRequest{From: Identity(vmid), To: Holder(), Slot: "scsi7"}, c.report)
	wantKind(c.t, err, rpc.ErrNotFound, "scsi7")
}

func holderKept(c *caller) {
	c.must(c.create(vmid))
	c.must(c.holder())
	c.must(c.move(Identity(vmid), Holder()))
	before := c.w.Digest(holderID)
	c.reset()
	_, err := c.destroy(&driverv1.DestroyRequest{Identity: Holder(), Named: true})
	wantKind(c.t, err, rpc.ErrRefused, "holds")
	if got := c.changes(); len(got) > 0 || c.w.Digest(holderID) != before {
		c.t.Errorf("it was changed: %q", got)
	}
}

func slotKept(c *caller) {
	c.must(c.create(vmid))
	before := c.w.Digest(vmid)
	c.reset()
	req := &driverv1.DestroyRequest{Identity: Identity(vmid), KeepSlots: []string{"scsi1"}, Named: true}
	_, err := c.destroy(req)
	wantKind(c.t, err, rpc.ErrRefused, "scsi1")
	c.unchanged(before)
	req.KeepSlots = []string{"scsi2"}
	c.must(c.destroy(req))
}

func destroyNamed(c *caller) {
	c.must(c.create(vmid))
	c.w.Snapshot(vmid, "before")
	before := c.w.Digest(vmid)
	c.reset()
	_, err := c.destroy(&driverv1.DestroyRequest{Identity: Identity(vmid)})
	wantKind(c.t, err, rpc.ErrRefused, "before")
	c.unchanged(before)
	if vm := c.must(c.destroy(&driverv1.DestroyRequest{Identity: Identity(vmid), Named: true, Purge: true})); vm.GetPower() != homelabv1.Power_POWER_ABSENT {
		c.t.Errorf("after the destroy: %v", vm)
	}
	if got := inspect(c, vmid); len(got) != 0 {
		c.t.Errorf("volumes after the destroy: %v", got)
	}
}

// destroyBrokenOff is what a destroy leaves that was cut off after its VM was gone.
func destroyBrokenOff(c *caller) {
	c.must(c.create(another))
	before := inspect(c, another)
	old, left := c.w.AddVolume(vmid), c.w.AddVolume(vmid)
	req := &driverv1.DestroyRequest{Identity: Identity(vmid), HalfBuilt: true, VolumesBefore: []string{old}}
	if vm := c.must(c.destroy(req)); vm.GetPower() != homelabv1.Power_POWER_ABSENT {
		c.t.Errorf("after it: %v", vm)
	}
	if got := inspect(c, vmid); !slices.Equal(got, []string{old}) {
		c.t.Errorf("volumes %v; want %s gone and only %s there", got, left, old)
	}
	if got := inspect(c, another); !slices.Equal(got, before) {
		c.t.Errorf("another VM's volumes: %v", got)
	}
	c.w.MakeForeign(vmid, "dns")
	digest := c.w.Digest(vmid)
	kept := c.w.AddVolume(vmid)
	c.reset()
	_, err := c.destroy(req)
	wantKind(c.t, err, rpc.ErrRefused, "dns")
	c.unchanged(digest)
	if got := inspect(c, vmid); !slices.Contains(got, kept) {
		c.t.Errorf("the new owner's volumes: %v", got)
	}
}

func orphansAreUnnamed(c *caller) {
	c.must(c.create(vmid))
	c.must(c.holder())
	c.must(c.move(Identity(vmid), Holder()))
	extra, lone := c.w.AddVolume(vmid), c.w.AddVolume(300)
	c.w.BreakOff(another) // half-built: rolled back, no orphan
	c.reset()
	all, err := c.w.Driver.Orphans(c.context())
	if err != nil || all.GetKnown().GetTruth() != homelabv1.Truth_TRUTH_YES {
		c.t.Fatalf("%v, %v", all, err)
	}
	want := map[string]int32{extra: vmid, lone: 300}
	for _, o := range all.GetOrphans() {
		if want[o.GetVolid()] != o.GetVmid() || o.GetVmid() == 0 || o.GetStorage() != c.w.Storage || o.GetSizeBytes() != 64<<20 || o.GetHost() == "" {
			c.t.Errorf("orphan %v", o)
		}
		delete(want, o.GetVolid())
	}
	if len(want) > 0 {
		c.t.Errorf("missing: %v", want)
	}
}

func configs(c *caller) {
	_, err := c.w.Driver.Config(c.context(), Identity(vmid))
	wantKind(c.t, err, rpc.ErrNotFound, "201")
	c.must(c.create(vmid))
	text, err := c.w.Driver.Config(c.context(), Identity(vmid))
	if err != nil || !strings.Contains(string(text), Identity(vmid).GetUuid()) {
		c.t.Errorf("%s, %v", text, err)
	}
	_, err = c.w.Driver.Config(c.context(), &homelabv1.Identity{Vmid: vmid})
	if !errors.Is(err, rpc.ErrInvalid) {
		c.t.Errorf("error %v", err)
	}
}

func foreignSurvives(c *caller) {
	c.must(c.holder())
	c.w.MakeForeign(vmid, "dns")
	extra := c.w.AddVolume(vmid)
	before, volumes := c.w.Digest(vmid), inspect(c, vmid)
	holder := c.w.Digest(holderID)
	id, ctx, deadline := Identity(vmid), c.context(), durationpb.New(30*time.Second)
	for name, call := range map[string]func() error{
		"create":  func() error { _, err := c.create(vmid); return err },
		"start":   func() error { _, err := c.start(id); return err },
		"resume":  func() error { _, err := c.resume(); return err },
		"stop":    func() error { _, err := c.stop(id); return err },
		"destroy": func() error { _, err := c.destroy(&driverv1.DestroyRequest{Identity: id}); return err },
		"destroy named": func() error {
			_, err := c.destroy(&driverv1.DestroyRequest{Identity: id, Named: true, Purge: true})
			return err
		},
		"roll back": func() error { _, err := c.destroy(&driverv1.DestroyRequest{Identity: id, HalfBuilt: true}); return err },
		"move from": func() error { _, err := c.move(id, Holder()); return err },
		"move to":   func() error { _, err := c.move(Holder(), id); return err },
		"update": func() error {
			_, err := c.w.Driver.Update(ctx, &driverv1.UpdateRequest{Identity: id, Hardware: Request(c.w, vmid).GetHardware(), Deadline: deadline}, c.report)
			return err
		},
		"reset": func() error {
			_, err := c.w.Driver.Reset(ctx, &driverv1.ResetRequest{Identity: id, Deadline: deadline}, c.report)
			return err
		},
		"adopt": func() error {
			_, err := c.w.Driver.Adopt(ctx, &driverv1.AdoptRequest{Identity: id, Deadline: deadline}, c.report)
			return err
		},
		"clone": func() error { _, err := c.clone(vmid, true); return err },
		"clone from it": func() error {
			req := CloneRequest(c.w, another, true)
			req.Template = id
			_, err := c.w.Driver.Create(ctx, req, c.report)
			return err
		},
		"make a template": func() error {
			req := TemplateRequest(c.w)
			req.Identity = id
			_, err := c.w.Driver.CreateTemplate(ctx, req, c.report)
			return err
		},
		"remove a template": func() error { _, err := c.destroy(&driverv1.DestroyRequest{Identity: id, Template: true}); return err },
		"roll back a clone": func() error {
			_, err := c.destroy(&driverv1.DestroyRequest{Identity: id, HalfBuilt: true, ClonedFrom: Template()})
			return err
		},
		"hold": func() error {
			_, err := c.w.Driver.CreateHolder(ctx, &driverv1.CreateHolderRequest{Identity: id, Name: "hl-holder-x", Deadline: deadline}, c.report)
			return err
		},
		"exec": func() error {
			_, err := c.w.Driver.Exec(ctx, &driverv1.ExecRequest{Identity: id, Argv: []string{"true"}})
			return err
		},
		"config": func() error { _, err := c.w.Driver.Config(ctx, id); return err },
	} {
		c.reset()
		if err := call(); rpc.KindOf(err) != rpc.ErrRefused || !strings.Contains(err.Error(), "201") {
			c.t.Errorf("%s: %v", name, err)
		}
		c.unchanged(before)
		if got := inspect(c, vmid); !slices.Equal(got, volumes) || !slices.Contains(got, extra) || c.w.Digest(holderID) != holder {
			c.t.Errorf("%s: volumes %v, before %v", name, got, volumes)
		}
	}
}
