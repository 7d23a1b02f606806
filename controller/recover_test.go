package controller

import (
	"os"
	"path/filepath"
	"testing"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// lose drops all that a controller remembers; it must be down.
func (f *fleet) lose() {
	f.t.Helper()
	if err := os.RemoveAll(filepath.Join(f.dir, "state")); err != nil {
		f.t.Fatal(err)
	}
}

func TestDataDisksOutliveTheLossOfTheStoreInTheMiddleOfARecreation(t *testing.T) {
	for _, verb := range []string{"detach", "destroy", "create", "attach"} {
		t.Run(verb, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, hostNames(3)...)
			first := whole(t, f)
			f.stopped()
			killed := make(chan struct{})
			f.at = func(when, _ string, s *homelabv1.Step) {
				if when == "after" && verbOf(s) == verb {
					select {
					case <-killed:
					default:
						close(killed)
						first.end()
					}
				}
			}
			first.apply(t.Context(), withDisk(), "", true)
			<-killed
			first.kill()
			f.lose()
			c := f.up()
			c.apply(t.Context(), withDisk(), "", true).did(t)
			f.well(3, 3)
			f.mu.Lock()
			defer f.mu.Unlock()
			if vm := f.agents["pve2"].vms[202]; len(f.agents["pve2"].vms) != 1 || vm.disks["scsi1"] != "the photos" {
				t.Errorf("%d VMs, disks %v", len(f.agents["pve2"].vms), vm.disks)
			}
		})
	}
}

func TestAnAdoptedVMIsKnownByItsMarkAfterTheLossOfTheStore(t *testing.T) {
	f := newFleet(t, "pve1")
	f.agents["pve1"].vms[201] = &fakeVM{
		id: &homelabv1.Identity{Vmid: 201, Uuid: "99999999-2222-4333-8444-555555555555"}, name: "k3s-1", power: homelabv1.Power_POWER_RUNNING, booted: true,
		hw: &homelabv1.Hardware{Cpus: 2, MemoryBytes: 2 << 30}, address: "10.0.0.11",
	}
	c := f.up()
	c.apply(t.Context(), standalone(), "", true)
	c.operate(t, opAdopt, "k3s-1").did(t)
	c.kill()
	f.lose()
	c = f.up()
	if o := c.apply(t.Context(), standalone(), "", true); o.err != nil || o.summary.GetFailed()+o.summary.GetRefused() != 0 {
		t.Fatalf("%v, %v\n%s", o.err, o.summary, o.texts(homelabv1.EventKind_EVENT_KIND_NOTE))
	}
	if rec := c.guest(t, "k3s-1"); rec.Generation != 0 || rec.UUID != "99999999-2222-4333-8444-555555555555" || rec.Made {
		t.Errorf("remembered %+v", rec)
	}
	status, err := c.viewer.Status(t.Context(), &statusRequest{Fresh: true, Looks: true})
	if err != nil || !status.GetGuests()[0].GetAdopted() {
		t.Errorf("%v, %v", status.GetGuests(), err)
	}
}

func TestAGuestThatTheSpecDroppedIsKnownByItsMarkAfterTheLossOfTheStore(t *testing.T) {
	f := newFleet(t, hostNames(2)...)
	c := f.up()
	c.apply(t.Context(), specOf(2), "", true).did(t)
	f.mu.Lock()
	vm := f.agents["pve2"].vms[202]
	f.mu.Unlock()
	c.kill()
	f.lose()
	c = f.up()
	o := c.apply(t.Context(), specOf(1), "", true)
	if o.err != nil || o.summary.GetDone() != 0 {
		t.Fatalf("%v, %v", o.err, o.summary)
	}
	if rec := c.guest(t, "k3s-2"); rec.UUID != "" {
		t.Errorf("on a host that the Spec does not name either: %+v", rec)
	}
	f.mu.Lock()
	delete(f.agents["pve2"].vms, 202)
	f.agents["pve1"].vms[202] = vm
	f.mu.Unlock()
	c.apply(t.Context(), specOf(1), "", true)
	if rec := c.guest(t, "k3s-2"); rec.UUID != vm.id.GetUuid() || rec.Host != "pve1" || rec.Made {
		t.Errorf("remembered %+v", rec)
	}
}
