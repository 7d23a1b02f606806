// Package drivertest is the contract of agent/driver as tests. Every driver passes
// them, in process and as a plugin: Run with a World of its own.
package drivertest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/homeiac/homelab/agent/driver"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// World is one fresh host for a test, with the driver that manages it and the
// hands of an administrator. Its functions fail the test when they cannot do what
// they are asked.
type World struct {
	// Driver is what is tested.
	Driver driver.Full
	// Image is the path of an image on the host, smaller than 1 GiB.
	Image string
	// UserData is a snippet's volume; empty when the driver needs none.
	UserData string
	// ISO is the volume of an ISO file.
	ISO string
	// Storage holds disks and has some free space, less than 1 PiB.
	Storage string
	// Bridge is a bridge that is there and up.
	Bridge string
	// MakeForeign makes a VM of somebody else's.
	MakeForeign func(vmid int32, name string)
	// MakeElsewhere makes a VMID be used by a guest of another host or a container.
	MakeElsewhere func(vmid int32)
	// BreakOff leaves what a create that was killed leaves: a half-built VM and a
	// volume of it, whose id it gives.
	BreakOff func(vmid int32) (volume string)
	// AddVolume makes a volume of that VMID that no configuration names.
	AddVolume func(vmid int32) (volume string)
	// Lock makes the VM busy until unlock is called.
	Lock func(vmid int32) (unlock func())
	// Protect switches the VM's protection on.
	Protect func(vmid int32)
	// Pause pauses the VM, which runs.
	Pause func(vmid int32)
	// Snapshot makes a snapshot of the VM, which is stopped.
	Snapshot func(vmid int32, name string)
	// Blind makes it impossible to see VMs until see is called.
	Blind func() (see func())
	// Digest is a text that changes whenever the VM's configuration does.
	Digest func(vmid int32) string
}

// the VMIDs of the tests.
const (
	vmid    = int32(201)
	another = int32(202)
	gib     = int64(1) << 30
)

// limit is how long a call of a test may take.
const limit = 60 * time.Second

// caller calls a driver and keeps what it reported.
type caller struct {
	t      *testing.T
	w      World
	events []*homelabv1.Event
}

func (c *caller) report(e *homelabv1.Event) { c.events = append(c.events, e) }

// changes are the changing calls reported since the last reset.
func (c *caller) changes() []string {
	var all []string
	for _, e := range c.events {
		if e.GetCall().GetMutating() {
			all = append(all, e.GetCall().GetProgram()+" "+strings.Join(e.GetCall().GetArgs(), " "))
		}
	}
	return all
}

func (c *caller) reset() { c.events = nil }

func (c *caller) context() context.Context {
	ctx, cancel := context.WithTimeout(c.t.Context(), limit)
	c.t.Cleanup(cancel)
	return ctx
}

// Identity is the identity that the tests give a VM.
func Identity(vmid int32) *homelabv1.Identity {
	return &homelabv1.Identity{Fleet: "home", Guest: fmt.Sprintf("g-%d", vmid), Generation: 1, Vmid: vmid,
		Uuid: fmt.Sprintf("0c5a1c9e-5b0a-4a51-9d8e-%012d", vmid), Mark: fmt.Sprintf("hl1:home:g-%d:1:00112233445566778899aabbccddeeff", vmid)}
}

// Request asks for a VM with a system disk of 1 GiB and a data disk.
func Request(w World, vmid int32) *driverv1.CreateRequest {
	return &driverv1.CreateRequest{
		Identity: Identity(vmid), ImagePath: w.Image, UserData: w.UserData, User: "ubuntu", Deadline: durationpb.New(30 * time.Second),
		Hardware: &homelabv1.Hardware{
			Name: fmt.Sprintf("g-%d", vmid), Cpus: 1, MemoryBytes: 256 << 20,
			SystemDisk: &homelabv1.Disk{Slot: "scsi0", Storage: w.Storage, SizeBytes: gib},
			DataDisks:  []*homelabv1.Disk{{Slot: "scsi1", Storage: w.Storage, SizeBytes: 2 * gib}},
			Nics:       []*homelabv1.Nic{{Bridge: w.Bridge, Mac: fmt.Sprintf("BC:24:11:00:%02X:%02X", vmid/256, vmid%256)}},
			Tags:       []string{"homelab"},
		},
	}
}

func (c *caller) create(vmid int32) (*homelabv1.VirtualMachine, error) {
	return c.w.Driver.Create(c.context(), Request(c.w, vmid), c.report)
}

func (c *caller) start(id *homelabv1.Identity) (*homelabv1.VirtualMachine, error) {
	return c.w.Driver.Start(c.context(), &driverv1.StartRequest{Identity: id, Deadline: durationpb.New(30 * time.Second)}, c.report)
}

func (c *caller) stop(id *homelabv1.Identity) (*homelabv1.VirtualMachine, error) {
	return c.w.Driver.Stop(c.context(), &driverv1.StopRequest{Identity: id, Force: true, Deadline: durationpb.New(30 * time.Second)}, c.report)
}

func (c *caller) destroy(req *driverv1.DestroyRequest) (*homelabv1.VirtualMachine, error) {
	req.Deadline = durationpb.New(30 * time.Second)
	return c.w.Driver.Destroy(c.context(), req, c.report)
}

// must fails the test on an error.
func (c *caller) must(vm *homelabv1.VirtualMachine, err error) *homelabv1.VirtualMachine {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
	return vm
}

// wantKind fails the test when the error is not of that kind, or does not say why.
func wantKind(t *testing.T, err error, kind rpc.Kind, says ...string) {
	t.Helper()
	if rpc.KindOf(err) != kind {
		t.Fatalf("error %v of kind %q, want kind %q", err, rpc.KindOf(err), kind)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("error %q does not say %q", err, s)
		}
	}
}

func (c *caller) unchanged(before string) {
	c.t.Helper()
	if after := c.w.Digest(vmid); after != before {
		c.t.Errorf("VM %d was changed", vmid)
	}
	if got := c.changes(); len(got) > 0 {
		c.t.Errorf("changing calls were made: %q", got)
	}
}

// contract is one sentence of the contract.
type contract struct {
	says string
	test func(*caller)
}

var aboutVolumes = []contract{
	{"a created VM has identity, disks and interfaces as asked for", createIsWhole},
	{"too little space is refused before any change", createTooLarge},
	{"a destroyed VM is gone with its volumes, also twice", destroyTwice},
	{"a half-built VM is rolled back without the volumes that were there before", rollBack},
	{"an update makes larger, never smaller", updates},
	{"a disk moves to another VM and back, also twice", moveDiskAndBack},
	{"a destroy that was broken off is ended by name", destroyBrokenOff},
	{"orphans are volumes that nobody names", orphansAreUnnamed},
}

var aboutTheRest = []contract{
	{"creating again changes nothing", createTwice},
	{"a VMID of somebody else is refused and left alone", createOverForeign},
	{"a VMID used on another host is refused", createUsedElsewhere},
	{"a half-built VM is not created over", createOverHalfBuilt},
	{"a storage that does not exist is refused before any change", createNoStorage},
	{"a request that makes no sense is invalid", createInvalid},
	{"a started VM runs, and is not started twice", startTwice},
	{"starting what is not there is not found", startMissing},
	{"a stopped VM is stopped, also twice and when it is gone", stopTwice},
	{"another identity changes nothing", wrongIdentity},
	{"a running or protected VM, or one that holds a volume to keep, is not destroyed", destroyRefused},
	{"a whole VM is not rolled back", rollBackWhole},
	{"what cannot be seen is unknown, and nothing is changed", blind},
	{"a busy VM is waited for, and busy at the deadline", busy},
	{"the end of the context ends the wait", cancelled},
	{"exec compares the identity too", execWrong},
	{"two calls for one VM come one after the other", twoAtOnce},
}

// Run tests a driver against the whole contract; newWorld gives a fresh host for
// each test and takes it away at the test's end.
func Run(t *testing.T, newWorld func(t *testing.T) World) {
	run(t, aboutVolumes, newWorld)
	run(t, aboutTheRest, newWorld)
	run(t, aboutPowers, newWorld)
	run(t, aboutClones, newWorld)
}

// RunVolumes tests what of the contract has to do with volumes, for a driver that
// passes the whole of it on one kind of storage and knows others.
func RunVolumes(t *testing.T, newWorld func(t *testing.T) World) { run(t, aboutVolumes, newWorld) }

func run(t *testing.T, all []contract, newWorld func(t *testing.T) World) {
	for _, c := range all {
		t.Run(strings.ReplaceAll(c.says, " ", "-"), func(t *testing.T) {
			c.test(&caller{t: t, w: newWorld(t)})
		})
	}
}

func createIsWhole(c *caller) {
	vm := c.must(c.create(vmid))
	id := Identity(vmid)
	if vm.GetUuid() != id.GetUuid() || vm.GetMark() != id.GetMark() || vm.GetVmid() != vmid || vm.GetName() != "g-201" {
		c.t.Errorf("identity: %v", vm)
	}
	if vm.GetPower() != homelabv1.Power_POWER_STOPPED || vm.GetHalfBuilt() || vm.GetLock() != "" {
		c.t.Errorf("state: %v", vm)
	}
	if vm.GetMemoryBytes() != 256<<20 || vm.GetCpus() != 1 || !slices.Equal(vm.GetMacs(), []string{"BC:24:11:00:00:C9"}) ||
		!slices.Equal(vm.GetBridges(), []string{c.w.Bridge}) || !slices.Equal(vm.GetTags(), []string{"homelab"}) {
		c.t.Errorf("hardware: %v", vm)
	}
	sizes := map[string]int64{}
	for _, d := range vm.GetDisks() {
		sizes[d.GetSlot()] = d.GetSizeBytes()
		if d.GetStorage() != c.w.Storage {
			c.t.Errorf("disk %v", d)
		}
	}
	if len(sizes) != 2 || sizes["scsi0"] != gib || sizes["scsi1"] != 2*gib {
		c.t.Errorf("disks: %v", sizes)
	}
	seen, err := c.w.Driver.Observe(c.context(), false)
	if err != nil || seen.GetVmsKnown().GetTruth() != homelabv1.Truth_TRUTH_YES || len(seen.GetVms()) != 1 {
		c.t.Fatalf("observation: %v, %v", seen, err)
	}
	if got := seen.GetVms()[0]; got.GetUuid() != id.GetUuid() || got.GetDigest() != vm.GetDigest() {
		c.t.Errorf("observed: %v", got)
	}
	if len(seen.GetLeftoverVmids()) != 0 {
		c.t.Errorf("leftovers: %v", seen.GetLeftoverVmids())
	}
	all, err := c.w.Driver.Inspect(c.context(), vmid)
	if err != nil || all.GetVolumesKnown().GetTruth() != homelabv1.Truth_TRUTH_YES {
		c.t.Fatalf("inspection: %v, %v", all, err)
	}
	if got, named := volids(all.GetVolumes()), volids(vm.GetVolumes()); !slices.Equal(got, named) || len(got) < 2 {
		c.t.Errorf("volumes: %v, the VM names %v", got, named)
	}
}

func volids(volumes []*homelabv1.Volume) []string {
	var all []string
	for _, v := range volumes {
		all = append(all, v.GetVolid())
	}
	slices.Sort(all)
	return all
}

func createTwice(c *caller) {
	c.must(c.create(vmid))
	if got := c.changes(); len(got) == 0 {
		c.t.Error("no changing call was reported for a create")
	}
	c.reset()
	before := c.w.Digest(vmid)
	c.must(c.create(vmid))
	c.unchanged(before)
}

func createOverForeign(c *caller) {
	c.w.MakeForeign(vmid, "dns")
	before := c.w.Digest(vmid)
	_, err := c.create(vmid)
	wantKind(c.t, err, rpc.ErrRefused, "dns", "201")
	c.unchanged(before)
}

func createUsedElsewhere(c *caller) {
	c.w.MakeElsewhere(vmid)
	_, err := c.create(vmid)
	wantKind(c.t, err, rpc.ErrRefused, "201", "taken")
	c.unchanged(c.w.Digest(vmid))
}

func createOverHalfBuilt(c *caller) {
	c.w.BreakOff(vmid)
	before := c.w.Digest(vmid)
	_, err := c.create(vmid)
	wantKind(c.t, err, rpc.ErrRefused, "half-built")
	c.unchanged(before)
}

func createTooLarge(c *caller) {
	req := Request(c.w, vmid)
	req.Hardware.DataDisks[0].SizeBytes = 1 << 50
	_, err := c.w.Driver.Create(c.context(), req, c.report)
	wantKind(c.t, err, rpc.ErrRefused, c.w.Storage, "needed", "available", "PiB")
	c.unchanged(c.w.Digest(vmid))
}

func createNoStorage(c *caller) {
	req := Request(c.w, vmid)
	req.Hardware.SystemDisk.Storage = "nosuch"
	_, err := c.w.Driver.Create(c.context(), req, c.report)
	wantKind(c.t, err, rpc.ErrRefused, "nosuch")
	c.unchanged(c.w.Digest(vmid))
}

func createInvalid(c *caller) {
	req := Request(c.w, vmid)
	req.Hardware.Nics[0].Mac = ""
	_, err := c.w.Driver.Create(c.context(), req, c.report)
	wantKind(c.t, err, rpc.ErrInvalid)
	c.unchanged(c.w.Digest(vmid))
}
