package proxmox_test

import (
	"errors"
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

// wrap puts a shell script before a program: REAL is the program itself. It stands
// in for failures that the simulated one has no setting for.
func (h *host) wrap(program, script string) {
	h.t.Helper()
	path := h.path("usr/sbin", program)
	dir := filepath.Join(h.lab, "hosts", h.name)
	// The simulated program finds its host by its own path, so it stays where it is
	// under another folder of the same root.
	if err := os.MkdirAll(filepath.Join(h.path("usr"), "real"), 0o755); err != nil {
		h.t.Fatal(err)
	}
	moved := filepath.Join(h.path("usr"), "real", program)
	if err := os.Rename(path, moved); err != nil {
		h.t.Fatal(err)
	}
	text := "#!/bin/sh\nREAL=" + moved + "\nHOST=" + dir + "\n" + script + "\nexec $REAL \"$@\"\n"
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		h.t.Fatal(err)
	}
}

func create(t *testing.T, h *host, d *proxmox.Driver) {
	t.Helper()
	if _, err := d.Create(t.Context(), request(h), quiet); err != nil {
		t.Fatal(err)
	}
}

func destroy(t *testing.T, d *proxmox.Driver) error {
	_, err := d.Destroy(t.Context(), &driverv1.DestroyRequest{Identity: drivertest.Identity(201), Deadline: durationpb.New(20 * time.Second)}, quiet)
	return err
}

func wantRefused(t *testing.T, err error, says ...string) {
	t.Helper()
	if !errors.Is(err, rpc.ErrRefused) {
		t.Fatalf("error %v of kind %q", err, rpc.KindOf(err))
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%q does not say %q", err, s)
		}
	}
}

func TestAResizeThatFailsWithExitCodeZeroIsAFailure(t *testing.T) {
	h := newHost(t)
	h.wrap("qm", `if [ "$1 $2" = "disk resize" ]; then echo "qemu-img: Could not resize image: No space left on device" >&2; exit 0; fi`)
	_, err := h.driver().Create(t.Context(), request(h), quiet)
	wantRefused(t, err, "scsi0", "64 MiB", "1 GiB", "No space left on device")
}

func TestACreateThatIsFoundUnfinishedIsFinished(t *testing.T) {
	h := newHost(t)
	h.wrap("qm", `if [ "$1 $2" = "disk resize" ] && [ ! -e $HOST/again ]; then touch $HOST/again; kill -9 $$; fi`)
	d := h.driver()
	if _, err := d.Create(t.Context(), request(h), quiet); err == nil {
		t.Fatal("the resize was killed")
	}
	vm, err := d.Create(t.Context(), request(h), quiet)
	if err != nil {
		t.Fatal(err)
	}
	for _, disk := range vm.GetDisks() {
		if disk.GetSlot() == "scsi0" && disk.GetSizeBytes() != 1<<30 {
			t.Errorf("disk %v", disk)
		}
	}
	if n := h.creates(); n != 1 {
		t.Errorf("%d creates were run", n)
	}
}

func TestACreateKilledInTheMiddleIsRolledBackWhereverItStopped(t *testing.T) {
	h := newHost(t)
	d := h.driver()
	old := h.alloc("local", 201)
	seen, err := d.Inspect(t.Context(), 201)
	if err != nil || len(seen.GetVolumes()) != 1 {
		t.Fatalf("%v, %v", seen, err)
	}
	back := &driverv1.DestroyRequest{Identity: drivertest.Identity(201), HalfBuilt: true, VolumesBefore: []string{old}, Deadline: durationpb.New(20 * time.Second)}
	for name, leave := range map[string]func(){
		"nothing but the volume": func() {},
		"the lock":               func() { h.write(h.conf(201), "lock: create\n") },
		"an empty configuration": func() { h.write(h.conf(201), "") },
	} {
		left := h.alloc("local", 201)
		leave()
		h.program("pvesm", "status")
		if _, err := d.Destroy(t.Context(), back, quiet); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		seen, err := d.Inspect(t.Context(), 201)
		if err != nil || seen.GetVm().GetPower() != homelabv1.Power_POWER_ABSENT || len(seen.GetVolumes()) != 1 || seen.GetVolumes()[0].GetVolid() != old {
			t.Errorf("%s: %v, %v; %s should be gone and %s there", name, seen, err, left, old)
		}
	}
}

func TestAHalfBuiltVMWithALiveWorkerIsBusy(t *testing.T) {
	h := newHost(t)
	h.write(h.conf(201), "lock: create\n")
	h.flock(201)
	d := h.driver()
	for _, call := range []func() error{
		func() error {
			req := request(h)
			req.Deadline = durationpb.New(300 * time.Millisecond)
			_, err := d.Create(t.Context(), req, quiet)
			return err
		},
		func() error {
			_, err := d.Destroy(t.Context(), &driverv1.DestroyRequest{Identity: drivertest.Identity(201), HalfBuilt: true,
				Deadline: durationpb.New(300 * time.Millisecond)}, quiet)
			return err
		},
	} {
		if err := call(); !errors.Is(err, rpc.ErrBusy) {
			t.Errorf("error %v", err)
		}
	}
}

func TestARollBackLeavesVolumesOfTheVMIDsNewOwnerAlone(t *testing.T) {
	h := newHost(t)
	d := h.driver()
	back := &driverv1.DestroyRequest{Identity: drivertest.Identity(201), HalfBuilt: true, Deadline: durationpb.New(20 * time.Second)}
	h.qm("create", "201", "--name", "theirs", "--scsi0", "local:1")
	_, err := d.Destroy(t.Context(), back, quiet)
	wantRefused(t, err, "theirs")
	h.qm("destroy", "201")
	h.alloc("local", 201)
	h.write("etc/pve/nodes/other/qemu-server/201.conf", "name: theirs\n")
	h.program("pvesm", "status")
	_, err = d.Destroy(t.Context(), back, quiet)
	wantRefused(t, err, "theirs", "other")
	if slices.ContainsFunc(h.calls(), func(c string) bool { return strings.HasPrefix(c, "pvesm free") }) {
		t.Error("volumes were freed")
	}
}

func TestDestroyIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		make func(h *host)
		says []string
	}{
		"with snapshots": {func(h *host) {
			h.write(h.conf(201), h.read(h.conf(201))+"\n[before]\nmemory: 256\nsnaptime: 1795374472\n")
		}, []string{"snapshots", "before"}},
		"with pending changes": {func(h *host) { h.write(h.conf(201), h.read(h.conf(201))+"\n[PENDING]\nmemory: 300\n") }, []string{"memory"}},
		"under HA":             {func(h *host) { h.write("etc/pve/ha/resources.cfg", "vm: 201\n") }, []string{"HA"}},
		"with linked clones": {func(h *host) {
			h.qm("template", "201")
			h.qm("clone", "201", "300", "--name", "clone")
		}, []string{"300 (clone)"}},
		"with its storage disabled": {func(h *host) { h.program("pvesm", "set", "second", "--disable", "1") }, []string{"second", "disabled"}},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			h := newHost(t, func(cfg *pve.HostConfig) {
				cfg.Storages = append(cfg.Storages, pve.StorageConfig{Name: "second", Type: "dir", Path: "/mnt/second", Content: []string{"images"}, TotalBytes: freeBytes})
			})
			d := h.driver()
			req := request(h)
			req.Hardware.DataDisks[0].Storage = "second"
			if _, err := d.Create(t.Context(), req, quiet); err != nil {
				t.Fatal(err)
			}
			c.make(h)
			before := h.read(h.conf(201))
			wantRefused(t, destroy(t, d), append(c.says, "201")...)
			if h.read(h.conf(201)) != before {
				t.Error("the configuration was changed")
			}
			if slices.ContainsFunc(h.calls(), func(c string) bool { return strings.HasPrefix(c, "qm destroy") }) {
				t.Error("qm destroy was run")
			}
		})
	}
}

func TestADestroyThatLeavesAVolumeFreesItByName(t *testing.T) {
	h := newHost(t)
	d := h.driver()
	create(t, h, d)
	h.wrap("qm", `if [ "$1" = destroy ]; then echo "WARN: Could not remove disk 'local:201/vm-201-disk-0.raw', check manually: busy"; echo "Task finished with 1 warning(s)!" >&2; rm $HOST/root/etc/pve/qemu-server/$2.conf; exit 0; fi`)
	if err := destroy(t, d); err != nil {
		t.Fatal(err)
	}
	seen, err := d.Inspect(t.Context(), 201)
	if err != nil || len(seen.GetVolumes()) != 0 {
		t.Errorf("%v, %v", seen, err)
	}
}

func TestAVMThatChangedSinceItWasLookedAtIsNotDestroyed(t *testing.T) {
	h := newHost(t)
	d := h.driver()
	create(t, h, d)
	// Somebody attaches a disk between the claim and the destroy.
	h.wrap("qm", fmt.Sprintf(`if [ "$1" = set ]; then $REAL "$@" || exit $?; echo "unused0: local:201/vm-201-disk-9.raw" >> %s; exit 0; fi`, h.path(h.conf(201))))
	wantRefused(t, destroy(t, d), "changed")
	if h.read(h.conf(201)) == "" {
		t.Error("it was destroyed")
	}
	// Somebody changes it between the look and the claim: it is looked at again.
	if err := os.Remove(h.path("usr/sbin/qm")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(h.path("usr/real/qm"), h.path("usr/sbin/qm")); err != nil {
		t.Fatal(err)
	}
	h.wrap("qm", fmt.Sprintf(`if [ "$1" = set ] && [ ! -e $HOST/once ]; then touch $HOST/once; echo "onboot: 1" >> %s; fi`, h.path(h.conf(201))))
	if err := destroy(t, d); err != nil {
		t.Fatal(err)
	}
	if h.read(h.conf(201)) != "" {
		t.Error("it is still there")
	}
}

func TestCreateIsRefusedWithAllReasonsBeforeAnyChange(t *testing.T) {
	h := newHost(t, func(cfg *pve.HostConfig) {
		cfg.Storages = append(cfg.Storages,
			pve.StorageConfig{Name: "isos", Type: "dir", Path: "/mnt/isos", Content: []string{"iso"}, TotalBytes: freeBytes},
			pve.StorageConfig{Name: "full", Type: "dir", Path: "/mnt/full", Content: []string{"images"}, TotalBytes: 10 << 30, ForeignBytes: 9 << 30})
	})
	req := request(h)
	req.Hardware.SystemDisk.Storage = "isos"
	req.Hardware.DataDisks[0].Storage = "full"
	req.ImagePath = "/var/lib/vz/none.raw"
	req.UserData = "local:snippets/none.yaml"
	_, err := h.driver().Create(t.Context(), req, quiet)
	wantRefused(t, err, "storage isos may not hold disk images", "storage full: 2 GiB needed, 1 GiB available", "none.raw", "none.yaml", "pve1")
	if calls := h.calls(); !slices.Equal(calls, []string{"pvesm status"}) {
		t.Errorf("calls %v", calls)
	}
	req = request(h)
	req.Hardware.SystemDisk.SizeBytes = 32 << 20
	_, err = h.driver().Create(t.Context(), req, quiet)
	wantRefused(t, err, "32 MiB", "64 MiB")
	h.write("var/lib/vz/images/201/vm-201-cloudinit.qcow2", "")
	_, err = h.driver().Create(t.Context(), request(h), quiet)
	wantRefused(t, err, "pvesm free local:201/vm-201-cloudinit.qcow2")
}

func TestWithoutQuorumNothingIsChanged(t *testing.T) {
	h := newHost(t, func(cfg *pve.HostConfig) { cfg.Cluster = "lab" })
	d := h.driver()
	create(t, h, d)
	if err := pve.SetMembers(filepath.Join(h.lab, "pmxcfs"), nil, false); err != nil {
		t.Fatal(err)
	}
	_, err := d.Create(t.Context(), drivertest.Request(h.world(nil, "local"), 202), quiet)
	if !errors.Is(err, rpc.ErrUnavailable) || !strings.Contains(err.Error(), "quorum") {
		t.Errorf("create: %v", err)
	}
	_, err = d.Start(t.Context(), &driverv1.StartRequest{Identity: drivertest.Identity(201)}, quiet)
	if !errors.Is(err, rpc.ErrUnavailable) || !strings.Contains(err.Error(), "quorum") {
		t.Errorf("start: %v", err)
	}
	if err := destroy(t, d); !errors.Is(err, rpc.ErrUnavailable) || h.read(h.conf(201)) == "" {
		t.Errorf("destroy: %v", err)
	}
}

func TestAFailedStartSaysWhy(t *testing.T) {
	h := newHost(t)
	d := h.driver()
	req := request(h)
	req.Hardware.Nics[0].Bridge = "vmbr9"
	if _, err := d.Create(t.Context(), req, quiet); err != nil {
		t.Fatal(err) // a missing bridge is noticed at the start only
	}
	_, err := d.Start(t.Context(), &driverv1.StartRequest{Identity: drivertest.Identity(201)}, quiet)
	wantRefused(t, err, "bridge 'vmbr9' does not exist")
}

func TestAPausedVMIsNotStarted(t *testing.T) {
	h := newHost(t)
	d := h.driver()
	create(t, h, d)
	h.qm("start", "201")
	if err := os.WriteFile(filepath.Join(h.lab, "hosts", h.name, "status-201"), []byte("io-error"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := d.Start(t.Context(), &driverv1.StartRequest{Identity: drivertest.Identity(201)}, quiet)
	wantRefused(t, err, "io-error", "qm resume 201")
}

func TestACopyTellsItsProgress(t *testing.T) {
	h := newHost(t)
	h.wrap("qm", `if [ "$1" = create ]; then echo "transferred 8.3 MiB of 64.0 MiB (12.93%)"; while [ ! -e $HOST/told ]; do sleep 0.02; done; fi`)
	var texts []string
	_, err := h.driver().Create(t.Context(), request(h), func(e *homelabv1.Event) {
		texts = append(texts, e.GetText())
		if strings.Contains(e.GetText(), "(13%)") {
			if err := os.WriteFile(filepath.Join(h.lab, "hosts", h.name, "told"), nil, 0o644); err != nil {
				t.Error(err)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(texts, "copied 8.3 MiB of 64.0 MiB (13%)") {
		t.Errorf("told %q", texts)
	}
}

func TestOVMFGetsItsEFIDisk(t *testing.T) {
	h := newHost(t)
	req := request(h)
	req.Hardware.Firmware, req.Hardware.Machine = homelabv1.Firmware_FIRMWARE_OVMF, "q35"
	vm, err := h.driver().Create(t.Context(), req, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(vm.GetVolumes(), func(v *homelabv1.Volume) bool { return v.GetSlot() == "efidisk0" }) {
		t.Errorf("volumes %v", vm.GetVolumes())
	}
}

// TestWhatIsHeldSinceItWasSeenIsNotChanged: the planner refuses such a VM, and it
// may have become one since.
func TestWhatIsHeldSinceItWasSeenIsNotChanged(t *testing.T) {
	for name, tc := range map[string]struct {
		hold func(*host)
		says string
	}{
		"under HA":   {func(h *host) { h.write("etc/pve/ha/resources.cfg", "vm: 201\n") }, "HA"},
		"protected":  {func(h *host) { h.qm("set", "201", "--protection", "1") }, "protection"},
		"a template": {func(h *host) { h.qm("template", "201") }, "template"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			d := h.driver()
			create(t, h, d)
			tc.hold(h)
			before := len(h.calls())
			_, err := d.Start(t.Context(), &driverv1.StartRequest{Identity: drivertest.Identity(201)}, quiet)
			wantRefused(t, err, tc.says)
			larger := request(h).GetHardware()
			larger.SystemDisk.SizeBytes += 1 << 30
			_, err = d.Update(t.Context(), &driverv1.UpdateRequest{Identity: drivertest.Identity(201), Hardware: larger}, quiet)
			wantRefused(t, err, tc.says)
			if calls := h.calls()[before:]; len(calls) != 0 {
				t.Errorf("calls %v", calls)
			}
		})
	}
}
