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

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/homeiac/homelab/cli/onhost"
	"github.com/homeiac/homelab/cli/onhost/onhosttest"
	"github.com/homeiac/homelab/internal/rpc"
)

// newBeginning is a fleet that init has made, whose controller is set up nowhere yet:
// it answers as soon as the host starts its service.
func newBeginning(t *testing.T) (*adder, *onhosttest.Host) {
	a, h := adding(t)
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
	h.Before = func(argv []string) {
		if strings.Join(argv, " ") == "systemctl enable --now "+onhost.ControllerService {
			a.configure(at, "127.0.0.1:8401")
		}
	}
	return a, h
}

func TestTheFirstHostGetsTheControllerToo(t *testing.T) {
	a, h := newBeginning(t)
	got := a.add(h)
	if got.code != 0 || !strings.Contains(got.out, "pve1  controller   0.0 s  c1, answers at 127.0.0.1:8401") || !strings.Contains(got.out, "! pve1: the controller's keys are on it now: delete DIR/controller-c1") ||
		!strings.Contains(got.out, "pve1 is online.") {
		t.Fatalf("%+v", got)
	}
	for _, name := range controllerFiles {
		file := "/var/lib/hl-controller/" + name
		local, err := os.ReadFile(filepath.Join(a.dir, "controller-c1", name))
		if err != nil || h.Files[file] != string(local) || h.Modes[file] != "0600" {
			t.Error(name, h.Modes[file], err)
		}
	}
	if !strings.Contains(h.Files[onhost.ControllerConfig], "name: c1\n") || h.Modes[onhost.ControllerConfig] != "0644" || !h.Units[onhost.ControllerService].Enabled {
		t.Error(h.Files[onhost.ControllerConfig])
	}
	before := maps.Clone(h.Files)
	h.Ran()
	if got := a.add(h); got.code != 0 || !strings.Contains(got.out, "nothing to do") || len(h.Ran()) > 0 || !maps.Equal(before, h.Files) {
		t.Errorf("%+v", got)
	}
}

func TestAFirstControllerThatIsCutOffIsFinishedAndKeepsWhatItHas(t *testing.T) {
	for _, at := range []string{"put /var/lib/hl-controller/issuing-ca.key", "put /etc/homelab/controller.yaml", "systemctl enable --now hl-controller"} {
		t.Run(filepath.Base(at), func(t *testing.T) {
			a, h := newBeginning(t)
			h.CutAt = at
			fails(t, a.add(h))
			h.Lock()
			h.CutAt = ""
			// A controller that ran already has renewed its certificate.
			const cert = "/var/lib/hl-controller/controller.crt"
			if h.Files[cert] != "" {
				h.Files[cert] = "renewed"
			}
			renewed := h.Files[cert]
			h.Unlock()
			succeeds(t, a.add(h), "pve1 is online.")
			if renewed != "" && h.Files[cert] != "renewed" {
				t.Error("its certificate was put over the one that it has")
			}
		})
	}
}

func TestAControllerOfAnotherFleetIsNotPutOver(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"its key":           {"/var/lib/hl-controller/fleet.key": "another"},
		"its configuration": {onhost.ControllerConfig: "name: other\n"},
	} {
		t.Run(name, func(t *testing.T) {
			a, h := newBeginning(t)
			maps.Copy(h.Files, files)
			if got := a.add(h); got.code != 1 || !strings.Contains(got.err, "another controller") && !strings.Contains(got.err, "that of a controller other") {
				t.Errorf("%+v", got)
			}
			for file, text := range files {
				if h.Files[file] != text {
					t.Error(file)
				}
			}
			if slices.ContainsFunc(h.Ran(), func(c string) bool { return strings.Contains(c, "hl-controller.service") }) {
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
	if got.code != 1 || !strings.Contains(got.err, "no controller answers") || !strings.Contains(got.err, "begin with its host: hlctl hosts add root@127.0.0.2") || len(h.Ran()) > 0 {
		t.Errorf("%+v", got)
	}
	// Without a folder it is the controller's own trouble.
	if err := os.RemoveAll(filepath.Join(a.dir, "controller-c1")); err != nil {
		t.Fatal(err)
	}
	if got := a.add(h); got.code != 1 || !strings.Contains(got.err, "no controller answers") || strings.Contains(got.err, "begin with its host") || len(h.Ran()) > 0 {
		t.Errorf("%+v", got)
	}
	// A certificate that nobody takes is no reason to set anything up.
	a.configure(a.address)
	a.issue("admin", rpc.Identity{Role: rpc.RoleAdmin, Name: "laptop"}, -time.Minute)
	if got := a.add(h); got.code != 1 || !strings.Contains(got.err, "hlctl trust renew") || len(h.Calls) > 0 {
		t.Errorf("%+v", got)
	}
}

// further has hosts add --controller for a host on which the rig's controller would be.
func (a *adder) further(h *onhosttest.Host, change func(*hostsAdd)) ran {
	a.t.Helper()
	a.t.Chdir(a.dir)
	var out, errw buffer
	app := a.app(strings.NewReader(""), &out, &errw)
	app.config, app.format = a.path("hlctl.yaml"), "table"
	o := &hostsAdd{
		a: app, ssh: sshFlags{identity: a.path(".ssh/id_ed25519"), config: "none"}, from: "dist", checksum: a.sum, wantController: true,
		limit: 10 * time.Second, poll: time.Millisecond, port: netip.MustParseAddrPort(a.address).Port(),
		etcd: etcdFlags{endpoints: []string{"https://192.0.2.20:2379"}, ca: "e-ca", cert: "e-cert", key: "e-key"},
	}
	if change != nil {
		change(o)
	}
	err := o.run(a.t.Context(), []string{h.Target()})
	text := errw.String()
	if err != nil {
		text += err.Error()
	}
	return ran{exitCode(err), a.mask(out.String()), text}
}

// newSecond is a fleet with a controller, and a host for another one.
func newSecond(t *testing.T) (*adder, *onhosttest.Host) {
	a := newAdder(t)
	h := a.host("pve2")
	h.Know(t, a.dir)
	for _, name := range []string{"e-ca", "e-cert", "e-key"} {
		a.write(name, name)
	}
	a.write(fleetKeyFile, string(randomKey()))
	root, err := rpc.NewCA("homelab", time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := root.Write(a.path(rootCertFile), a.path(rootKeyFile)); err != nil {
		t.Fatal(err)
	}
	return a, h
}

func TestAFurtherControllerGetsAnIssuingCAOfItsOwn(t *testing.T) {
	a, h := newSecond(t)
	succeeds(t, a.further(h, nil), "pve2  controller   0.0 s  pve2, answers at 127.0.0.1:8401, and is in DIR/hlctl.yaml", "pve2 is online.")
	const state = "/var/lib/hl-controller/"
	key, err := os.ReadFile(a.path(fleetKeyFile))
	if err != nil || h.Files[state+fleetKeyFile] != string(key) || h.Files[state+"etcd.key"] != "e-key" || h.Modes[state+"issuing-ca.key"] != "0600" {
		t.Error(err, h.Modes)
	}
	a.write("i.pem", h.Files[state+"issuing-ca.pem"])
	a.write("i.key", h.Files[state+"issuing-ca.key"])
	ca, err := rpc.LoadCA(a.path("i.pem"), a.path("i.key"), nil)
	if err != nil || ca.IsRoot() || ca.Fleet() != "homelab" {
		t.Error(ca, err)
	}
	if !strings.Contains(h.Files[onhost.ControllerConfig], "--advertise 127.0.0.1 --etcd-endpoints https://192.0.2.20:2379") {
		t.Error(h.Files[onhost.ControllerConfig])
	}
	// Nothing of that key stays here.
	left, err := filepath.Glob(filepath.Join(a.dir, "controller-*"))
	if err != nil || len(left) > 0 {
		t.Error(left, err)
	}
	h.Ran()
	before := maps.Clone(h.Files)
	if got := a.further(h, nil); got.code != 0 || len(h.Ran()) > 0 || !maps.Equal(before, h.Files) || !strings.Contains(got.out, "nothing to do") {
		t.Errorf("%+v", got)
	}
}

func TestAFurtherControllerThatIsCutOffIsFinishedByTheNext(t *testing.T) {
	for _, at := range []string{"put /var/lib/hl-controller/issuing-ca.key", "/usr/sbin/hl-controller enrol", "systemctl enable --now hl-controller", onhosttest.PowerFails} {
		t.Run(filepath.Base(at), func(t *testing.T) {
			a, h := newSecond(t)
			h.CutAt = at
			fails(t, a.further(h, nil))
			h.Lock()
			h.CutAt = ""
			h.Unlock()
			if got := a.further(h, nil); got.code != 0 || !h.Units[onhost.ControllerService].Active || len(a.registry.held(rpc.RoleController, "pve2")) != 1 {
				t.Fatalf("%+v", got)
			}
		})
	}
}

// What is left of it on the host is of no use to anybody, but for the fleet's key.
func TestAControllerThatWasRemovedComesBackWithAnotherIssuingCA(t *testing.T) {
	a, h := newSecond(t)
	succeeds(t, a.further(h, nil))
	const state = "/var/lib/hl-controller/"
	before := maps.Clone(h.Files)
	for _, c := range a.registry.issued {
		if c.GetRole() == rpc.RoleController {
			c.Revoked = timestamppb.Now()
		}
	}
	h.Lock()
	h.Units[onhost.ControllerService].Active = false
	h.Unlock()
	succeeds(t, a.further(h, nil), "pve2, answers at 127.0.0.1:8401", "pve2 is online.")
	for _, name := range []string{"controller.crt", "issuing-ca.pem", "issuing-ca.key"} {
		if h.Files[state+name] == before[state+name] {
			t.Errorf("%s is as it was", name)
		}
	}
	if h.Files[state+fleetKeyFile] != before[state+fleetKeyFile] || len(a.registry.held(rpc.RoleController, "pve2")) != 1 {
		t.Error("the fleet's key is another one, or it has no certificate")
	}
}

func TestAFurtherControllerIsRefusedBeforeAnythingOfItIsThere(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*adder, *hostsAdd)
		says   string
	}{
		"no etcd":        {func(_ *adder, o *hostsAdd) { o.etcd = etcdFlags{} }, "say which with --etcd-endpoints"},
		"half an etcd":   {func(_ *adder, o *hostsAdd) { o.etcd.key = "" }, "needs all of"},
		"no such etcd":   {func(_ *adder, o *hostsAdd) { o.etcd.endpoints = []string{"http://192.0.2.1:2379"} }, "is not https://IP:PORT"},
		"without a word": {func(_ *adder, o *hostsAdd) { o.wantController = false }, "go with --controller"},
		"embedded store": {func(a *adder, _ *hostsAdd) { a.registry.alone = true }, "an etcd of its own"},
		"no root":        {func(a *adder, _ *hostsAdd) { _ = os.Remove(a.path(rootKeyFile)) }, "signed with the root's key"},
	} {
		t.Run(name, func(t *testing.T) {
			a, h := newSecond(t)
			got := a.further(h, func(o *hostsAdd) { c.change(a, o) })
			if got.code != 1 || !strings.Contains(got.err, c.says) {
				t.Errorf("%+v", got)
			}
			for file := range h.Files {
				if strings.HasPrefix(file, "/var/lib/hl-controller") {
					t.Error(file)
				}
			}
		})
	}
}
