package args_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/homeiac/homelab/agent/driver/proxmox/args"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

var update = flag.Bool("update", false, "write the golden files anew")

const gib = int64(1) << 30

func whole() *driverv1.CreateRequest {
	return &driverv1.CreateRequest{
		Identity: &homelabv1.Identity{Fleet: "home", Guest: "k3s-1", Generation: 1, Vmid: 201,
			Uuid: "0c5a1c9e-5b0a-4a51-9d8e-3a3d5a9f7f10", Mark: "hl1:home:k3s-1:1:00112233445566778899aabbccddeeff"},
		ImagePath: "/var/lib/vz/template/homelab/noble-0011.img",
		UserData:  "local:snippets/hl-home-k3s-1-1.yaml",
		User:      "ubuntu",
		Hardware: &homelabv1.Hardware{
			Name: "k3s-1", Cpus: 4, MemoryBytes: 8*gib + 1, Firmware: homelabv1.Firmware_FIRMWARE_OVMF, Machine: "q35",
			SystemDisk: &homelabv1.Disk{Slot: "scsi0", Storage: "local-zfs", SizeBytes: 40 * gib},
			DataDisks:  []*homelabv1.Disk{{Slot: "scsi1", Storage: "hdd", SizeBytes: 500*gib + 1}},
			Nics: []*homelabv1.Nic{
				{Bridge: "vmbr25gbe", Mac: "BC:24:11:00:00:01", Vlan: 30, Mtu: 9000, Address: "192.168.4.212/24", Gateway: "192.168.4.1"},
				{Bridge: "vmbr1", Mac: "BC:24:11:00:00:02"},
				{Bridge: "vmbr2", Mac: "BC:24:11:00:00:03", Address: "10.0.0.5/24"},
			},
			Dns: []string{"192.168.4.53", "1.1.1.1"}, Pci: []string{"0000:b3:00.0,pcie=1"}, Usb: []string{"host=18d1:9302"},
			Hookscript: "local:snippets/hook.sh", Startup: &homelabv1.Startup{Order: 2, UpSeconds: 30, DownSeconds: 60},
			Tags: []string{"k3s", "homelab"}, Onboot: true, ExcludeFromBackup: true,
		},
	}
}

func least() *driverv1.CreateRequest {
	r := whole()
	r.UserData, r.User = "", ""
	hw := r.GetHardware()
	r.Hardware = &homelabv1.Hardware{Name: hw.GetName(), Cpus: 1, MemoryBytes: gib, SystemDisk: hw.GetSystemDisk(), Nics: hw.GetNics()[1:2]}
	return r
}

func TestOneCreateHoldsEverything(t *testing.T) {
	var b strings.Builder
	for _, r := range []*driverv1.CreateRequest{whole(), least()} {
		call, err := args.Create(r)
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(call.Program + " " + strings.Join(call.Args[:2], " ") + "\n")
		for i := 2; i < len(call.Args); i += 2 {
			b.WriteString("  " + call.Args[i] + " " + call.Args[i+1] + "\n")
		}
	}
	path := filepath.Join("testdata", "create.golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Error(diff)
	}
}

func TestWhatProxmoxWouldNoticeHalfwayIsRefusedAllAtOnce(t *testing.T) {
	r := whole()
	r.ImagePath = "noble.img"
	r.Identity.Uuid = "UPPER"
	r.Hardware.Nics[0].Mac = "bc:24:11:00:00:01"
	r.Hardware.DataDisks[0].Slot = "scsi0"
	_, err := args.Create(r)
	if !errors.Is(err, rpc.ErrInvalid) {
		t.Fatalf("error %v", err)
	}
	for _, part := range []string{"noble.img", "UPPER", "bc:24:11:00:00:01", "two disks at scsi0"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not name %s", err, part)
		}
	}
	for name, spoil := range map[string]func(*driverv1.CreateRequest){
		"no mark":            func(r *driverv1.CreateRequest) { r.Identity.Mark = "" },
		"a mark of two":      func(r *driverv1.CreateRequest) { r.Identity.Mark += " x" },
		"VMID 99":            func(r *driverv1.CreateRequest) { r.Identity.Vmid = 99 },
		"no NIC":             func(r *driverv1.CreateRequest) { r.Hardware.Nics = nil },
		"no system disk":     func(r *driverv1.CreateRequest) { r.Hardware.SystemDisk = nil },
		"a comma in storage": func(r *driverv1.CreateRequest) { r.Hardware.SystemDisk.Storage = "a,import-from=/etc/shadow" },
		"a comma in image":   func(r *driverv1.CreateRequest) { r.ImagePath = "/x,y" },
		"a bad name":         func(r *driverv1.CreateRequest) { r.Hardware.Name = "a_b" },
	} {
		r := proto.Clone(whole()).(*driverv1.CreateRequest)
		spoil(r)
		if _, err := args.Create(r); !errors.Is(err, rpc.ErrInvalid) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// calls makes every call this package can build, from drawn values.
func calls(t *rapid.T) []args.Call {
	id := rapid.Int32Range(100, 999999999).Draw(t, "vmid")
	text := rapid.String().Draw(t, "text")
	n := rapid.Int64Range(0, 1<<50).Draw(t, "n")
	all := []args.Call{
		args.Start(id), args.Stop(id), args.Shutdown(id, int(n%1000)), args.Unlock(id), args.Destroy(id, false),
		args.StopOverruling(id), args.Reset(id), args.Resume(id), args.MoveDisk(id, "scsi1", "d", id+1, "e"),
		args.GuestExecStatus(id, n), args.Volumes("local", 0), args.Describe(id, text, "d"), args.Resize(id, "scsi0", n), args.Set(id, int32(n%100), n, "d"),
		args.Storages(), args.Volumes("local", id), args.Free("local:"+text, id), args.GuestExec(id, 5, true, []string{"sh", "-c", "x"}),
	}
	r := whole()
	r.Identity.Vmid = max(id, 102)
	create, err := args.Create(r)
	if err != nil {
		t.Fatal(err)
	}
	holder, err := args.CreateHolder(&driverv1.CreateHolderRequest{Identity: r.Identity, Name: "hl-holder-x"})
	if err != nil {
		t.Fatal(err)
	}
	template, err := args.CreateTemplate(&driverv1.CreateTemplateRequest{
		Identity: r.GetIdentity(), Name: "hl-template-x", ImagePath: r.GetImagePath(), Storage: "local"})
	if err != nil {
		t.Fatal(err)
	}
	r.Template = &homelabv1.Identity{Vmid: 100 + id%2, Uuid: r.GetIdentity().GetUuid(), Mark: "hl1:x"}
	r.Linked, r.Cdrom = n%2 == 0, "local:iso/x.iso"
	clone, err := args.Clone(r, "local")
	if err != nil {
		t.Fatal(err)
	}
	return append(all, create, holder, template, clone, args.Template(id), args.TemplateDisk(id, "scsi0"), args.Configure(r, "local:1/x.raw", "d"))
}

func cloned(linked bool) *driverv1.CreateRequest {
	r := whole()
	r.ImagePath, r.Linked, r.Cdrom = "", linked, "local:iso/tools.iso"
	r.Template = &homelabv1.Identity{Fleet: "home", Guest: "template@0011", Vmid: 9000, Uuid: "0c5a1c9e-5b0a-4a51-9d8e-000000009000", Mark: "hl1:home:template@0011:1:00ff"}
	return r
}

// TestACloneGetsAllThatACreateGives, in two calls: what qm create is told qm clone and
// qm set are told too, but for what the system disk is made of.
func TestACloneGetsAllThatACreateGives(t *testing.T) {
	for _, linked := range []bool{true, false} {
		r := cloned(linked)
		clone, err := args.Clone(r, "hdd")
		if err != nil {
			t.Fatal(err)
		}
		want := "clone 9000 201 --name k3s-1 --description " + r.GetIdentity().GetMark() + " --full 1 --storage hdd"
		if linked {
			want = strings.Replace(want, "1 --storage hdd", "0", 1)
		}
		if got := strings.Join(clone.Args, " "); got != want || !clone.Mutating() || !slices.Equal(clone.VMIDs(), []int32{201, 9000}) {
			t.Errorf("%s, want %s", got, want)
		}
		set := args.Configure(r, "local:9000/base-9000-disk-0.raw/201/vm-201-disk-0.qcow2", "aa")
		r.Template, r.ImagePath = nil, "/x.img"
		create, err := args.Create(r)
		if err != nil {
			t.Fatal(err)
		}
		given := map[string]string{}
		for _, argv := range [][]string{clone.Args[3:], set.Args[2:]} {
			for i := 0; i < len(argv); i += 2 {
				given[argv[i]] = argv[i+1]
			}
		}
		for i := 2; i < len(create.Args); i += 2 {
			key, value := create.Args[i], create.Args[i+1]
			if key == "--scsi0" {
				value = "local:9000/base-9000-disk-0.raw/201/vm-201-disk-0.qcow2,discard=on,backup=0"
			}
			if given[key] != value {
				t.Errorf("%s %q, a create says %q", key, given[key], value)
			}
			delete(given, key)
		}
		delete(given, "--full")
		delete(given, "--storage")
		if len(given) != 1 || given["--digest"] != "aa" || !slices.Contains(set.Args, "local:iso/tools.iso,media=cdrom") {
			t.Errorf("beyond that it is told %v", given)
		}
	}
}

func TestWhatCannotBeClonedIsInvalid(t *testing.T) {
	for name, spoil := range map[string]func(*driverv1.CreateRequest){
		"the template of nobody": func(r *driverv1.CreateRequest) { r.Template.Mark = "" },
		"itself":                 func(r *driverv1.CreateRequest) { r.Template.Vmid = r.GetIdentity().GetVmid() },
		"two ISO files":          func(r *driverv1.CreateRequest) { r.Cdrom = "local:iso/a.iso,file=/etc/shadow" },
		"without a network":      func(r *driverv1.CreateRequest) { r.Hardware.Nics = nil },
	} {
		r := cloned(true)
		spoil(r)
		if _, err := args.Clone(r, ""); !errors.Is(err, rpc.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestATemplateHasOneDiskAndNoNetwork(t *testing.T) {
	id := cloned(true).GetTemplate()
	req := &driverv1.CreateTemplateRequest{Identity: id, Name: "hl-template-noble", ImagePath: "/i.img", Storage: "local"}
	call, err := args.CreateTemplate(req)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(call.Args, " ")
	want := "create 9000 --name hl-template-noble --description hl1:home:template@0011:1:00ff --smbios1 uuid=" + id.GetUuid() +
		" --ostype l26 --cores 1 --memory 512 --scsihw virtio-scsi-single --scsi0 local:0,import-from=/i.img,discard=on" +
		" --boot order=scsi0 --serial0 socket --agent enabled=1 --onboot 0"
	if got != want || !args.Template(9000).Mutating() {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	req.Name, req.ImagePath = "a_b", "i.img"
	if _, err := args.CreateTemplate(req); !errors.Is(err, rpc.ErrInvalid) || !strings.Contains(err.Error(), "a_b") || !strings.Contains(err.Error(), "i.img") {
		t.Errorf("a bad one: %v", err)
	}
}

func TestAHolderVMHasNeitherDisksNorNetwork(t *testing.T) {
	id := whole().GetIdentity()
	id.Mark = "hl1:home:holder@k3s-1:2:00ff"
	call, err := args.CreateHolder(&driverv1.CreateHolderRequest{Identity: id, Name: "hl-holder-k3s-1"})
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(append([]string{call.Program}, call.Args...), " ")
	want := fmt.Sprintf("qm create %d --name hl-holder-k3s-1 --description hl1:home:holder@k3s-1:2:00ff --smbios1 uuid=%s"+
		" --ostype l26 --cores 1 --memory 16 --scsihw virtio-scsi-single --onboot 0", id.GetVmid(), id.GetUuid())
	if got != want || !call.Mutating() {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	if _, err := args.CreateHolder(&driverv1.CreateHolderRequest{Identity: id, Name: "a_b"}); !errors.Is(err, rpc.ErrInvalid) {
		t.Errorf("a bad name: %v", err)
	}
}

func TestAMoveNamesBothVMsAndTheirDigests(t *testing.T) {
	call := args.MoveDisk(201, "scsi1", "aa", 203, "bb")
	if got := strings.Join(call.Args, " "); got != "disk move 201 scsi1 --target-vmid 203 --target-disk scsi1 --digest aa --target-digest bb" {
		t.Error(got)
	}
	if !call.Mutating() || !slices.Equal(call.VMIDs(), []int32{201, 203}) {
		t.Errorf("%+v", call)
	}
	if args.GuestExecStatus(201, 7).Mutating() || !args.Reset(201).Mutating() || !args.Resume(201).Mutating() || !args.StopOverruling(201).Mutating() {
		t.Error("what changes something and what does not")
	}
}

func TestDestroyUnreferencedDisksIsNeverBuilt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		for _, c := range append(calls(t), args.Destroy(100, true)) {
			for _, a := range c.Args {
				// A text given as a value may say anything; as an option it may not.
				if strings.HasPrefix(a, "--destroy-unreferenced") || strings.HasPrefix(a, "-destroy-unreferenced") {
					i := slices.Index(c.Args, a)
					if i == 0 || c.Args[i-1] != "--description" {
						t.Fatalf("%v", c.Args)
					}
				}
			}
		}
	})
}

func TestNoSourceFileNamesDestroyUnreferencedDisksAsAnArgument(t *testing.T) {
	for _, pattern := range []string{"*.go", "../*.go", "../parse/*.go"} {
		files, _ := filepath.Glob(pattern)
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasSuffix(f, "_test.go") && strings.Contains(string(text), `"--destroy-unreferenced`) {
				t.Errorf("%s", f)
			}
		}
	}
}

func TestPurgeOnlyWhenAsked(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		for _, c := range calls(t) {
			if i := slices.Index(c.Args, "--purge"); i > 0 && c.Args[i-1] != "--description" {
				t.Fatalf("%v", c.Args)
			}
		}
	})
	if got := args.Destroy(201, true).Args; !slices.Contains(got, "--purge") {
		t.Errorf("%v", got)
	}
}

func TestWhatCountsAsAChange(t *testing.T) {
	for text, want := range map[string]bool{
		"qm create 201": true, "qm set 201 --x 1": true, "qm start 201": true, "qm stop 201": true, "qm shutdown 201": true,
		"qm destroy 201": true, "qm clone 9000 201": true, "qm template 9000": true, "qm unlock 201": true, "qm disk resize 201 scsi0 4G": true, "qm cloudinit update 201": true,
		"qm something-new 201": true, "pvesm free local:x": true, "pvesm alloc local 1 x 1G": true, "pvesh create /x": true, "pvesh set /x": true,
		"qm config 201": false, "qm list": false, "qm cloudinit dump 201 user": false, "qm guest exec 201 -- sh": false,
		"pvesm status": false, "pvesm list local": false, "pvesh get /x": false, "qm": true,
	} {
		f := strings.Fields(text)
		if got := (args.Call{Program: f[0], Args: f[1:]}).Mutating(); got != want {
			t.Errorf("%s: mutating %v", text, got)
		}
	}
}

func TestSecretsAreMasked(t *testing.T) {
	for text, want := range map[string]string{
		"set 201 --cipassword geheim --name x":                  "set 201 --cipassword *** --name x",
		"set 201 --x a=1,password=geheim,b=2":                   "set 201 --x a=1,password=***,b=2",
		"guest exec 201 --timeout 5 -- sh -c geheim":            "guest exec 201 --timeout 5 -- sh ***",
		"create 201 --scsi0 local:0,import-from=/x --name key1": "create 201 --scsi0 local:0,import-from=/x --name key1",
	} {
		c := args.Call{Program: "qm", Args: strings.Fields(text)}
		if got := strings.Join(c.Masked(), " "); got != want {
			t.Errorf("%s\n got %s\nwant %s", text, got, want)
		}
		if !slices.Equal(c.Args, strings.Fields(text)) {
			t.Error("masking changed the arguments themselves")
		}
	}
}

func TestSizesAreWrittenInTheLargestUnit(t *testing.T) {
	for bytes, want := range map[int64]string{40 << 30: "40G", 1088 << 20: "1088M", 98 << 10: "98K", 1: "1K", (1 << 30) + 1: "1048577K"} {
		if got := args.Size(bytes); got != want {
			t.Errorf("%d: %s", bytes, got)
		}
	}
}
