package cli

import (
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/homeiac/homelab/internal/rpc"
)

// newBeginning is a fleet that init has made, whose controller is set up nowhere yet:
// it answers as soon as the host starts its service.
func newBeginning(t *testing.T) (*adder, *proxmoxHost) {
	a := newAdder(t)
	h := newHost(t, a.registry)
	h.know(t, a.home)
	// The context's address is the real one; until the service runs nobody answers there.
	at := a.address
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	silent := closed.Addr().String()
	_ = closed.Close()
	f := &founding{fleet: "homelab", dir: a.dir, controller: "c1", address: netip.MustParseAddr("127.0.0.1")}
	a.write(fleetKeyFile, string(randomKey()))
	root, err := rpc.NewCA("homelab", time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := f.fillFolder(root, time.Now()); err != nil {
		t.Fatal(err)
	}
	// 8401 is where the folder's controller would be; a test has no port of its own.
	a.configure(silent, "127.0.0.1:8401")
	h.onStart = func(service string) error {
		if service == controllerService {
			a.configure(at, "127.0.0.1:8401")
		}
		return nil
	}
	return a, h
}

func TestTheFirstHostGetsTheControllerToo(t *testing.T) {
	a, h := newBeginning(t)
	got := a.add(h)
	if got.code != 0 || !strings.Contains(got.out, "pve1  controller   0.0 s  c1, answers at 127.0.0.1:8401") || !strings.Contains(got.out, "! pve1: its keys are on the host now: delete DIR/controller-c1") ||
		!strings.Contains(got.out, "pve1 is online.") {
		t.Fatalf("%+v", got)
	}
	for _, name := range controllerFiles {
		file := "/var/lib/hl-controller/" + name
		local, err := os.ReadFile(filepath.Join(a.dir, "controller-c1", name))
		if err != nil || h.files[file] != string(local) || h.modes[file] != "0600" {
			t.Error(name, h.modes[file], err)
		}
	}
	if !strings.Contains(h.files[controllerConfigFile], "name: c1\n") || h.modes[controllerConfigFile] != "0644" || !h.units[controllerService].enabled {
		t.Error(h.files[controllerConfigFile])
	}
	before := maps.Clone(h.files)
	h.ran()
	if got := a.add(h); got.code != 0 || !strings.Contains(got.out, "nothing to do") || len(h.ran()) > 0 || !maps.Equal(before, h.files) {
		t.Errorf("%+v", got)
	}
}

func TestAFirstControllerThatIsCutOffIsFinishedAndKeepsWhatItHas(t *testing.T) {
	for _, at := range []string{"put /var/lib/hl-controller/issuing-ca.key", "put /etc/homelab/controller.yaml", "systemctl enable --now hl-controller"} {
		t.Run(filepath.Base(at), func(t *testing.T) {
			a, h := newBeginning(t)
			h.cutAt = at
			if got := a.add(h); got.code != 1 {
				t.Fatalf("%+v", got)
			}
			h.mu.Lock()
			h.cutAt = ""
			// A controller that ran already has renewed its certificate.
			const cert = "/var/lib/hl-controller/controller.crt"
			if h.files[cert] != "" {
				h.files[cert] = "renewed"
			}
			renewed := h.files[cert]
			h.mu.Unlock()
			if got := a.add(h); got.code != 0 || !strings.Contains(got.out, "pve1 is online.") {
				t.Fatalf("%+v", got)
			}
			if renewed != "" && h.files[cert] != "renewed" {
				t.Error("its certificate was put over the one that it has")
			}
		})
	}
}

func TestAControllerOfAnotherFleetIsNotPutOver(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"its key":           {"/var/lib/hl-controller/fleet.key": "another"},
		"its configuration": {controllerConfigFile: "name: other\n"},
	} {
		t.Run(name, func(t *testing.T) {
			a, h := newBeginning(t)
			maps.Copy(h.files, files)
			if got := a.add(h); got.code != 1 || !strings.Contains(got.err, "another controller") && !strings.Contains(got.err, "that of a controller other") {
				t.Errorf("%+v", got)
			}
			for file, text := range files {
				if h.files[file] != text {
					t.Error(file)
				}
			}
			if slices.ContainsFunc(h.ran(), func(c string) bool { return strings.Contains(c, "hl-controller.service") }) {
				t.Error("it was started")
			}
		})
	}
}

func TestWithoutAControllerOnlyItsOwnHostCanBeAdded(t *testing.T) {
	a, h := newBeginning(t)
	// The folder is for a host of another address.
	file := filepath.Join(a.dir, "controller-c1", "controller.yaml")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	a.write("controller-c1/controller.yaml", strings.ReplaceAll(string(data), "127.0.0.1", "127.0.0.2"))
	a.configure("127.0.0.1:1", "127.0.0.2:8401")
	got := a.add(h)
	if got.code != 1 || !strings.Contains(got.err, "no controller answers") || !strings.Contains(got.err, "begin with its host: hlctl hosts add root@127.0.0.2") || len(h.ran()) > 0 {
		t.Errorf("%+v", got)
	}
	// Without a folder it is the controller's own trouble.
	if err := os.RemoveAll(filepath.Join(a.dir, "controller-c1")); err != nil {
		t.Fatal(err)
	}
	if got := a.add(h); got.code != 1 || !strings.Contains(got.err, "no controller answers") || strings.Contains(got.err, "begin with its host") || len(h.ran()) > 0 {
		t.Errorf("%+v", got)
	}
	// A certificate that nobody takes is no reason to set anything up.
	a.configure(a.address)
	a.issue("admin", rpc.Identity{Role: rpc.RoleAdmin, Name: "laptop"}, -time.Minute)
	if got := a.add(h); got.code != 1 || !strings.Contains(got.err, "hlctl trust renew") || len(h.calls) > 0 {
		t.Errorf("%+v", got)
	}
}
