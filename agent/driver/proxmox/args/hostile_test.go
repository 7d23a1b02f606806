package args_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/homeiac/homelab/agent/driver/proxmox/args"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// hostile texts would be another property, another argument, another file or another
// line where they are put between commas, after an option or into a path.
var hostile = []string{
	"x,import-from=/etc/shadow", "x,romfile=../../../etc/shadow", "x,file=/dev/sda", "--delete", "-x", "a b", "a\nb", "a\x00b", "$(id)", "a;rm -rf /", "../../x", "/x", "..",
	"local:snippets/../../x", "local:snippets/a/b", "local:100/vm-100-disk-0.raw", "a\x1b[2J",
}

func TestAHostileTextIsNoArgument(t *testing.T) {
	for name, put := range map[string]func(*driverv1.CreateRequest, string){
		"name":         func(r *driverv1.CreateRequest, s string) { r.Hardware.Name = s },
		"machine":      func(r *driverv1.CreateRequest, s string) { r.Hardware.Machine = s },
		"user":         func(r *driverv1.CreateRequest, s string) { r.User = s },
		"user-data":    func(r *driverv1.CreateRequest, s string) { r.UserData = s },
		"hook script":  func(r *driverv1.CreateRequest, s string) { r.Hardware.Hookscript = s },
		"ISO file":     func(r *driverv1.CreateRequest, s string) { r.Cdrom = s },
		"PCI device":   func(r *driverv1.CreateRequest, s string) { r.Hardware.Pci = []string{s} },
		"USB device":   func(r *driverv1.CreateRequest, s string) { r.Hardware.Usb = []string{s} },
		"tag":          func(r *driverv1.CreateRequest, s string) { r.Hardware.Tags = []string{s} },
		"DNS server":   func(r *driverv1.CreateRequest, s string) { r.Hardware.Dns = []string{s} },
		"address":      func(r *driverv1.CreateRequest, s string) { r.Hardware.Nics[0].Address = s },
		"gateway":      func(r *driverv1.CreateRequest, s string) { r.Hardware.Nics[0].Gateway = s },
		"bridge":       func(r *driverv1.CreateRequest, s string) { r.Hardware.Nics[0].Bridge = s },
		"mac":          func(r *driverv1.CreateRequest, s string) { r.Hardware.Nics[0].Mac = s },
		"slot":         func(r *driverv1.CreateRequest, s string) { r.Hardware.SystemDisk.Slot = s },
		"storage":      func(r *driverv1.CreateRequest, s string) { r.Hardware.SystemDisk.Storage = s },
		"data storage": func(r *driverv1.CreateRequest, s string) { r.Hardware.DataDisks[0].Storage = s },
		"uuid":         func(r *driverv1.CreateRequest, s string) { r.Identity.Uuid = s },
		"mark":         func(r *driverv1.CreateRequest, s string) { r.Identity.Mark = s },
	} {
		for _, text := range hostile {
			r := whole()
			put(r, text)
			call, err := args.Create(r)
			switch {
			case !errors.Is(err, rpc.ErrInvalid):
				t.Errorf("%s %q: %v %v", name, text, call.Args, err)
			}
			clone := cloned(true)
			put(clone, text)
			if _, err := args.Clone(clone, ""); !errors.Is(err, rpc.ErrInvalid) {
				t.Errorf("clone with %s %q: %v", name, text, err)
			}
		}
	}
	for _, path := range []string{"x,y", "/a,b", "/a\nb", "/a\x00b", "/a/../../etc/shadow", "x.img", "--x"} {
		r := whole()
		r.ImagePath = path
		if _, err := args.Create(r); !errors.Is(err, rpc.ErrInvalid) {
			t.Errorf("image path %q: %v", path, err)
		}
	}
}

// FuzzCreate: whatever a request says, the call that is built has the options that it
// is to have, each with one value, and no text begins a property of its own.
func FuzzCreate(f *testing.F) {
	for _, text := range hostile {
		f.Add(text, "0000:b3:00.0,pcie=1", "k3s")
	}
	f.Add("k3s-1", "mapping=gpu", "local:snippets/hook.sh")
	f.Fuzz(func(t *testing.T, one, two, three string) {
		r := proto.Clone(whole()).(*driverv1.CreateRequest)
		r.Hardware.Pci, r.Hardware.Usb = []string{two}, []string{one}
		r.Hardware.Hookscript, r.Hardware.Machine, r.Hardware.Tags = three, one, []string{one, three}
		r.Hardware.Nics = []*homelabv1.Nic{{Bridge: one, Mac: "BC:24:11:00:00:01", Address: two}}
		r.User = three
		call, err := args.Create(r)
		if err != nil {
			if !errors.Is(err, rpc.ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		for i := 2; i < len(call.Args); i += 2 {
			option, value := call.Args[i], call.Args[i+1]
			if !strings.HasPrefix(option, "--") || strings.HasPrefix(value, "-") || strings.ContainsAny(value, "\n\x00 $`;|&<>'\"\\") &&
				!slices.Contains([]string{"--tags", "--nameserver", "--hostpci0", "--usb0"}, option) || strings.Contains(value, "..") && strings.Contains(value, "/..") {
				t.Fatalf("%s %q", option, value)
			}
		}
		if net := call.Args[slices.Index(call.Args, "--net0")+1]; strings.Count(net, ",") != 1 {
			t.Fatalf("net0 %q", net)
		}
	})
}
