package agent

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// volumeFile is the file of guest 1's volume in a slot of a VM, on its simulated host.
func (l *lab) volumeFile(vmid int32, slot string) string {
	l.t.Helper()
	r, err := l.agents[0].driver.Inspect(l.t.Context(), vmid)
	if err != nil {
		l.t.Fatal(err)
	}
	volid := slotOf(r.GetVm(), slot)
	if volid == "" {
		l.t.Fatalf("VM %d has no %s: %v", vmid, slot, r)
	}
	return filepath.Join(l.dir, "hosts/pve1/root/var/lib/vz/images", strings.TrimPrefix(volid, "local:"))
}

// TestAGuestIsMadeAgainWithItsData by the real driver on a simulated host.
func TestAGuestIsMadeAgainWithItsData(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	disks := []*homelabv1.Disk{{Slot: "scsi1", Storage: "local", SizeBytes: 1 << 30}}
	for _, a := range []homelabv1.Action{fetchStep, createStep, startStep, bootStep} {
		l.do(1, a, func(r *agentv1.RunRequest) {
			if a == createStep {
				r.Want.Hardware.DataDisks = disks
			}
		})
	}
	f, err := os.OpenFile(l.volumeFile(201, "scsi1"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(precious); err != nil || f.Close() != nil {
		t.Fatal(err)
	}
	there := func(vmid int32) {
		t.Helper()
		f, err := os.Open(l.volumeFile(vmid, "scsi1"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		text := make([]byte, len(precious))
		if _, err := io.ReadFull(f, text); err != nil || string(text) != precious {
			t.Errorf("VM %d: %q %v", vmid, text, err)
		}
	}
	holder := &homelabv1.Identity{Fleet: "home", Guest: "holder@k3s-1", Generation: 1, Vmid: 290, Uuid: "99999999-2222-4333-8444-000000000001", Mark: "hl1:home:holder@k3s-1:1:00112233445566778899aabbccddeeff"}
	next := func(r *agentv1.RunRequest) {
		r.DataDisks = disks
		switch r.GetStep().GetAction() {
		case detachStep, attachStep:
			r.Holder = holder
		}
		switch r.GetStep().GetAction() {
		case createStep, attachStep, startStep, bootStep:
			r.Want.Identity.Generation, r.Want.Identity.Mark = 2, strings.Replace(r.Want.Identity.GetMark(), ":1:", ":2:", 1)
		}
	}
	if s := l.do(1, saveStep, next); !strings.Contains(string(s.result.GetLearned().GetConfig()), "scsi1: ") {
		t.Errorf("saved %q", s.result.GetLearned().GetConfig())
	}
	l.do(1, stopStep, next)
	if _, err := l.try(1, destroyStep, next); err == nil || !strings.Contains(err.Error(), "still stands in VM 201") {
		t.Errorf("destroyed with its data: %v", err)
	}
	l.do(1, detachStep, next)
	there(290)
	for _, a := range []homelabv1.Action{destroyStep, createStep, attachStep, startStep, bootStep} {
		l.do(1, a, next)
	}
	there(201)
	if vm, _, err := l.agents[0].at(t.Context(), 290); err != nil || vm != nil {
		t.Errorf("the holder is still there: %v %v", vm, err)
	}
	if s := l.do(1, resetStep, next, func(r *agentv1.RunRequest) {
		r.Want.Identity.Generation, r.Want.Identity.Mark = 2, strings.Replace(r.Want.Identity.GetMark(), ":1:", ":2:", 1)
	}); !s.result.GetChanged() {
		t.Errorf("reset: %v", s.result)
	}
	r, err := l.agents[0].Orphans(t.Context(), &agentv1.OrphansRequest{})
	if err != nil || !isYes(r.GetKnown()) || len(r.GetOrphans()) != 0 {
		t.Errorf("orphans %v %v", r, err)
	}
}
