package drivertest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

func startTwice(c *caller) {
	c.must(c.create(vmid))
	vm := c.must(c.start(Identity(vmid)))
	if vm.GetPower() != homelabv1.Power_POWER_RUNNING {
		c.t.Fatalf("after the start: %v %s", vm.GetPower(), vm.GetPowerReason())
	}
	seen, err := c.w.Driver.Observe(c.context(), false)
	if err != nil || len(seen.GetVms()) != 1 || seen.GetVms()[0].GetPower() != homelabv1.Power_POWER_RUNNING {
		c.t.Errorf("observed: %v, %v", seen, err)
	}
	if seen.GetGuestsMemoryBytes() != 256<<20 {
		c.t.Errorf("memory of running guests: %d", seen.GetGuestsMemoryBytes())
	}
	c.reset()
	before := c.w.Digest(vmid)
	c.must(c.start(Identity(vmid)))
	c.unchanged(before)
}

func startMissing(c *caller) {
	_, err := c.start(Identity(vmid))
	wantKind(c.t, err, rpc.ErrNotFound, "201")
}

func stopTwice(c *caller) {
	c.must(c.create(vmid))
	c.must(c.start(Identity(vmid)))
	if vm := c.must(c.stop(Identity(vmid))); vm.GetPower() != homelabv1.Power_POWER_STOPPED {
		c.t.Fatalf("after the stop: %v", vm)
	}
	c.reset()
	c.must(c.stop(Identity(vmid)))
	if vm := c.must(c.stop(Identity(another))); vm.GetPower() != homelabv1.Power_POWER_ABSENT {
		c.t.Errorf("a VM that is gone: %v", vm)
	}
	if got := c.changes(); len(got) > 0 {
		c.t.Errorf("changing calls were made: %q", got)
	}
}

func wrongIdentity(c *caller) {
	c.must(c.create(vmid))
	before := c.w.Digest(vmid)
	c.reset()
	otherUUID, otherMark := Identity(vmid), Identity(vmid)
	otherUUID.Uuid = "ffffffff-5b0a-4a51-9d8e-000000000201" // a clone: the mark is copied, the uuid is not
	otherMark.Mark = "hl1:home:g-201:2:ffeeddccbbaa99887766554433221100"
	for _, id := range []*homelabv1.Identity{otherUUID, otherMark} {
		req := Request(c.w, vmid)
		req.Identity = id
		_, err := c.w.Driver.Create(c.context(), req, c.report)
		wantKind(c.t, err, rpc.ErrRefused, "201")
		_, err = c.w.Driver.Update(c.context(), &driverv1.UpdateRequest{Identity: id, Hardware: req.GetHardware()}, c.report)
		wantKind(c.t, err, rpc.ErrRefused, "201")
		_, err = c.start(id)
		wantKind(c.t, err, rpc.ErrRefused, "201")
		_, err = c.stop(id)
		wantKind(c.t, err, rpc.ErrRefused, "201")
		_, err = c.destroy(&driverv1.DestroyRequest{Identity: id})
		wantKind(c.t, err, rpc.ErrRefused, "201")
		_, err = c.destroy(&driverv1.DestroyRequest{Identity: id, HalfBuilt: true})
		wantKind(c.t, err, rpc.ErrRefused, "201")
		_, err = c.destroy(&driverv1.DestroyRequest{Identity: id, Named: true, Purge: true})
		wantKind(c.t, err, rpc.ErrRefused, "201")
		_, err = c.w.Driver.Start(c.context(), &driverv1.StartRequest{Identity: id, Resume: true}, c.report)
		wantKind(c.t, err, rpc.ErrRefused, "201")
		_, err = c.w.Driver.Reset(c.context(), &driverv1.ResetRequest{Identity: id}, c.report)
		wantKind(c.t, err, rpc.ErrRefused, "201")
		_, err = c.w.Driver.Adopt(c.context(), &driverv1.AdoptRequest{Identity: id}, c.report)
		wantKind(c.t, err, rpc.ErrRefused, "201")
		_, err = c.w.Driver.CreateHolder(c.context(), &driverv1.CreateHolderRequest{Identity: id, Name: "hl-holder-x"}, c.report)
		wantKind(c.t, err, rpc.ErrRefused, "201")
		_, err = c.w.Driver.Config(c.context(), id)
		wantKind(c.t, err, rpc.ErrRefused, "201")
	}
	_, err := c.start(&homelabv1.Identity{Vmid: vmid})
	wantKind(c.t, err, rpc.ErrInvalid)
	c.unchanged(before)
}

func destroyTwice(c *caller) {
	c.must(c.create(vmid))
	c.must(c.create(another))
	kept := c.w.AddVolume(vmid) // no configuration names it: not this VM's to free
	if vm := c.must(c.destroy(&driverv1.DestroyRequest{Identity: Identity(vmid)})); vm.GetPower() != homelabv1.Power_POWER_ABSENT {
		c.t.Fatalf("after the destroy: %v", vm)
	}
	all, err := c.w.Driver.Inspect(c.context(), vmid)
	if err != nil || all.GetVm().GetPower() != homelabv1.Power_POWER_ABSENT {
		c.t.Fatalf("inspection: %v, %v", all, err)
	}
	if got := volids(all.GetVolumes()); !slices.Equal(got, []string{kept}) {
		c.t.Errorf("volumes after the destroy: %v, want only %s", got, kept)
	}
	c.reset()
	c.must(c.destroy(&driverv1.DestroyRequest{Identity: Identity(vmid)}))
	if got := c.changes(); len(got) > 0 {
		c.t.Errorf("changing calls were made: %q", got)
	}
	seen, err := c.w.Driver.Observe(c.context(), false)
	if err != nil || len(seen.GetVms()) != 1 || seen.GetVms()[0].GetVmid() != another {
		c.t.Errorf("observed: %v, %v", seen, err)
	}
	if !slices.Equal(seen.GetLeftoverVmids(), []int32{vmid}) {
		c.t.Errorf("leftovers: %v", seen.GetLeftoverVmids())
	}
}

func destroyRefused(c *caller) {
	vm := c.must(c.create(vmid))
	c.must(c.start(Identity(vmid)))
	before := c.w.Digest(vmid)
	c.reset()
	_, err := c.destroy(&driverv1.DestroyRequest{Identity: Identity(vmid)})
	wantKind(c.t, err, rpc.ErrRefused, "runs")
	c.unchanged(before)
	c.must(c.stop(Identity(vmid)))
	c.reset()
	_, err = c.destroy(&driverv1.DestroyRequest{Identity: Identity(vmid), Keep: []string{vm.GetVolumes()[0].GetVolid()}})
	wantKind(c.t, err, rpc.ErrRefused, vm.GetVolumes()[0].GetVolid())
	c.unchanged(before)
	c.w.Protect(vmid)
	before = c.w.Digest(vmid)
	_, err = c.destroy(&driverv1.DestroyRequest{Identity: Identity(vmid)})
	wantKind(c.t, err, rpc.ErrRefused, "protection")
	c.unchanged(before)
}

func rollBack(c *caller) {
	old := c.w.AddVolume(vmid)
	left := c.w.BreakOff(vmid)
	seen, err := c.w.Driver.Observe(c.context(), false)
	if err != nil || len(seen.GetVms()) != 1 || !seen.GetVms()[0].GetHalfBuilt() {
		c.t.Fatalf("observed: %v, %v", seen, err)
	}
	if got := inspect(c, vmid); !slices.Contains(got, left) || !slices.Contains(got, old) {
		c.t.Fatalf("volumes before the rollback: %v", got)
	}
	// Without the intent's word it is nobody's to destroy.
	_, err = c.destroy(&driverv1.DestroyRequest{Identity: Identity(vmid)})
	wantKind(c.t, err, rpc.ErrRefused, "half-built")
	req := &driverv1.DestroyRequest{Identity: Identity(vmid), HalfBuilt: true, VolumesBefore: []string{old}}
	if vm := c.must(c.destroy(req)); vm.GetPower() != homelabv1.Power_POWER_ABSENT {
		c.t.Errorf("after the rollback: %v", vm)
	}
	if got := inspect(c, vmid); !slices.Equal(got, []string{old}) {
		c.t.Errorf("volumes after the rollback: %v, want only %s", got, old)
	}
	c.reset()
	c.must(c.destroy(req))
	if got := c.changes(); len(got) > 0 {
		c.t.Errorf("the second rollback made changing calls: %q", got)
	}
	c.must(c.create(vmid))
}

func inspect(c *caller, vmid int32) []string {
	c.t.Helper()
	all, err := c.w.Driver.Inspect(c.context(), vmid)
	if err != nil || all.GetVolumesKnown().GetTruth() != homelabv1.Truth_TRUTH_YES {
		c.t.Fatalf("inspection: %v, %v", all, err)
	}
	return volids(all.GetVolumes())
}

func rollBackWhole(c *caller) {
	c.must(c.create(vmid))
	before := c.w.Digest(vmid)
	c.reset()
	_, err := c.destroy(&driverv1.DestroyRequest{Identity: Identity(vmid), HalfBuilt: true})
	wantKind(c.t, err, rpc.ErrRefused, "whole")
	c.unchanged(before)
}

func blind(c *caller) {
	c.must(c.create(vmid))
	before := c.w.Digest(vmid)
	c.reset()
	see := c.w.Blind()
	seen, err := c.w.Driver.Observe(c.context(), false)
	if err != nil || seen.GetVmsKnown().GetTruth() != homelabv1.Truth_TRUTH_UNKNOWN || seen.GetVmsKnown().GetReason() == "" ||
		seen.GetClusterVmidsKnown().GetTruth() != homelabv1.Truth_TRUTH_UNKNOWN || len(seen.GetVms()) != 0 {
		c.t.Errorf("observed: %v, %v", seen, err)
	}
	_, err = c.create(another)
	wantKind(c.t, err, rpc.ErrUnavailable)
	_, err = c.start(Identity(vmid))
	wantKind(c.t, err, rpc.ErrUnavailable)
	_, err = c.destroy(&driverv1.DestroyRequest{Identity: Identity(vmid)})
	wantKind(c.t, err, rpc.ErrUnavailable)
	_, err = c.destroy(&driverv1.DestroyRequest{Identity: Identity(another), HalfBuilt: true})
	wantKind(c.t, err, rpc.ErrUnavailable)
	_, err = c.w.Driver.Reset(c.context(), &driverv1.ResetRequest{Identity: Identity(vmid)}, c.report)
	wantKind(c.t, err, rpc.ErrUnavailable)
	_, err = c.w.Driver.Adopt(c.context(), &driverv1.AdoptRequest{Identity: Identity(vmid)}, c.report)
	wantKind(c.t, err, rpc.ErrUnavailable)
	_, err = c.holder()
	wantKind(c.t, err, rpc.ErrUnavailable)
	_, err = c.move(Identity(vmid), Holder())
	wantKind(c.t, err, rpc.ErrUnavailable)
	_, err = c.w.Driver.Config(c.context(), Identity(vmid))
	wantKind(c.t, err, rpc.ErrUnavailable)
	if all, err := c.w.Driver.Orphans(c.context()); err != nil || all.GetKnown().GetTruth() != homelabv1.Truth_TRUTH_UNKNOWN || len(all.GetOrphans()) != 0 {
		c.t.Errorf("orphans: %v, %v", all, err)
	}
	if _, err := c.w.Driver.Inspect(c.context(), vmid); rpc.KindOf(err) != rpc.ErrUnavailable {
		c.t.Errorf("inspection: %v", err)
	}
	see()
	c.unchanged(before)
}

func busy(c *caller) {
	c.must(c.create(vmid))
	unlock := c.w.Lock(vmid)
	c.reset()
	_, err := c.w.Driver.Start(c.context(), &driverv1.StartRequest{Identity: Identity(vmid), Deadline: durationpb.New(time.Second)}, c.report)
	wantKind(c.t, err, rpc.ErrBusy, "201")
	if !slices.ContainsFunc(c.events, func(e *homelabv1.Event) bool {
		return e.GetKind() == homelabv1.EventKind_EVENT_KIND_STEP_PROGRESS && strings.Contains(e.GetText(), "waiting")
	}) {
		c.t.Errorf("the wait was not told: %v", c.events)
	}
	var free sync.Once
	req := &driverv1.StartRequest{Identity: Identity(vmid), Deadline: durationpb.New(30 * time.Second)}
	vm, err := c.w.Driver.Start(c.context(), req, func(e *homelabv1.Event) {
		if strings.Contains(e.GetText(), "waiting") {
			free.Do(unlock)
		}
	})
	if c.must(vm, err).GetPower() != homelabv1.Power_POWER_RUNNING {
		c.t.Errorf("after the wait: %v", vm)
	}
}

func cancelled(c *caller) {
	c.must(c.create(vmid))
	unlock := c.w.Lock(vmid)
	defer unlock()
	ctx, cancel := context.WithCancel(c.context())
	defer cancel()
	_, err := c.w.Driver.Start(ctx, &driverv1.StartRequest{Identity: Identity(vmid), Deadline: durationpb.New(30 * time.Second)},
		func(e *homelabv1.Event) {
			if strings.Contains(e.GetText(), "waiting") {
				cancel()
			}
		})
	if !errors.Is(err, context.Canceled) {
		c.t.Errorf("error %v", err)
	}
}

func updates(c *caller) {
	c.must(c.create(vmid))
	req := &driverv1.UpdateRequest{Identity: Identity(vmid), Hardware: Request(c.w, vmid).GetHardware(), Deadline: durationpb.New(30 * time.Second)}
	c.reset()
	before := c.w.Digest(vmid)
	c.must(c.w.Driver.Update(c.context(), req, c.report))
	c.unchanged(before)
	req.Hardware.Cpus, req.Hardware.MemoryBytes = 2, 512<<20
	req.Hardware.SystemDisk.SizeBytes = 3 * gib
	vm := c.must(c.w.Driver.Update(c.context(), req, c.report))
	if vm.GetCpus() != 2 || vm.GetMemoryBytes() != 512<<20 {
		c.t.Errorf("after the update: %v", vm)
	}
	for _, d := range vm.GetDisks() {
		if d.GetSlot() == "scsi0" && d.GetSizeBytes() != 3*gib {
			c.t.Errorf("after the update: %v", d)
		}
	}
	c.reset()
	before = c.w.Digest(vmid)
	req.Hardware.MemoryBytes = 256 << 20
	_, err := c.w.Driver.Update(c.context(), req, c.report)
	wantKind(c.t, err, rpc.ErrRefused, "memory")
	req.Hardware.MemoryBytes, req.Hardware.SystemDisk.SizeBytes = 512<<20, gib
	_, err = c.w.Driver.Update(c.context(), req, c.report)
	wantKind(c.t, err, rpc.ErrRefused, "scsi0")
	c.unchanged(before)
}

func execWrong(c *caller) {
	c.must(c.create(vmid))
	id := Identity(vmid)
	id.Mark = "hl1:home:other:1:00"
	_, err := c.w.Driver.Exec(c.context(), &driverv1.ExecRequest{Identity: id, Argv: []string{"true"}})
	wantKind(c.t, err, rpc.ErrRefused, "201")
	_, err = c.w.Driver.Exec(c.context(), &driverv1.ExecRequest{Identity: Identity(another), Argv: []string{"true"}})
	wantKind(c.t, err, rpc.ErrNotFound)
}

func twoAtOnce(c *caller) {
	var wait sync.WaitGroup
	var mu sync.Mutex
	var creates int
	for range 2 {
		wait.Go(func() {
			_, err := c.w.Driver.Create(c.context(), Request(c.w, vmid), func(e *homelabv1.Event) {
				mu.Lock()
				defer mu.Unlock()
				if e.GetCall().GetMutating() && slices.Contains(e.GetCall().GetArgs(), "create") {
					creates++
				}
			})
			if err != nil {
				c.t.Error(err)
			}
		})
	}
	wait.Wait()
	if creates > 1 {
		c.t.Errorf("%d creates for one VM", creates)
	}
}
