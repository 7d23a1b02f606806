package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/homeiac/homelab/cli/remote/remotetest"
	"github.com/homeiac/homelab/internal/spec"
	"github.com/homeiac/homelab/lab/pve"
)

// labHost is a host of the lab behind an SSH server: Proxmox's programs are the
// simulated ones, and what else is asked is played.
type labHost struct {
	t   *testing.T
	pve *pve.Host
	ssh *remotetest.Server
	// addresses are those of vmbr0.
	addresses []string

	mu  sync.Mutex
	ran [][]string
}

func startLabHost(t *testing.T, dir, name, cluster, address string) *labHost {
	t.Helper()
	err := pve.NewHost(pve.HostConfig{
		Name: name, LabDir: dir, Address: address, Cluster: cluster, MemoryBytes: 16 << 30, CPUs: 8,
		Bridges: []pve.BridgeConfig{{Name: "vmbr0", Ports: []string{"eno1"}, VLANAware: true}},
		Storages: []pve.StorageConfig{
			{Name: "local", Type: "dir", Path: "/var/lib/vz", TotalBytes: 100 << 30},
			{Name: "local-zfs", Type: "zfspool", Pool: "rpool/data", TotalBytes: 200 << 30},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	h := &labHost{t: t, ssh: remotetest.Start(t), addresses: []string{address}}
	if h.pve, err = pve.Open(filepath.Join(dir, "hosts", name)); err != nil {
		t.Fatal(err)
	}
	h.ssh.Run = h.play
	return h
}

func (h *labHost) play(c remotetest.Command) int {
	h.mu.Lock()
	h.ran = append(h.ran, c.Argv)
	h.mu.Unlock()
	switch c.Argv[0] {
	case "cat":
		for _, name := range c.Argv[1:] {
			data, err := os.ReadFile(filepath.Join(h.pve.Root(), name))
			if err != nil {
				fmt.Fprintf(c.Stderr, "cat: %s: No such file or directory\n", name)
				return 1
			}
			_, _ = c.Stdout.Write(data)
		}
		return 0
	case "ip":
		var infos []map[string]any
		for _, a := range h.addresses {
			infos = append(infos, map[string]any{"family": "inet", "local": a, "prefixlen": 24, "scope": "global"})
		}
		_ = json.NewEncoder(c.Stdout).Encode(map[string]any{
			"ip -j addr":               []any{map[string]any{"ifname": "vmbr0", "addr_info": infos}},
			"ip -j route show default": []any{map[string]any{"dst": "default", "gateway": "192.0.2.1", "dev": "vmbr0"}},
			"ip -j neigh":              []any{},
		}[strings.Join(c.Argv, " ")])
		return 0
	}
	return h.pve.Run(h.t.Context(), c.Argv, c.Stdin, c.Stdout, c.Stderr)
}

func (h *labHost) qm(args ...string) {
	h.t.Helper()
	var errs bytes.Buffer
	if code := h.pve.Run(h.t.Context(), append([]string{"qm"}, args...), strings.NewReader(""), io.Discard, &errs); code != 0 {
		h.t.Fatalf("qm %v: %d %s", args, code, &errs)
	}
}

func (h *labHost) target() string { return "root@" + h.ssh.At() }

// labFiles are all files of the lab with what is in them, but for what programs that read
// write down too.
func labFiles(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.HasSuffix(path, ".jsonl") || strings.HasSuffix(path, ".lock") || strings.HasSuffix(path, "/.rrd") {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Size() > 1<<20 { // a disk, with nothing in it
			all[path] = fmt.Sprint(info.Size(), info.ModTime())
			return nil
		}
		data, err := os.ReadFile(path)
		all[path] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// fleetOfHosts is a beginner with a cluster of three, of which two are named.
func fleetOfHosts(t *testing.T) (f *beginner, hosts []*labHost, dir, identity string) {
	dir = t.TempDir()
	for i, name := range []string{"pve1", "pve2", "pve3"} {
		hosts = append(hosts, startLabHost(t, dir, name, "lab", fmt.Sprintf("192.0.2.1%d", i+1)))
	}
	hosts[0].qm("create", "201", "--name", "k3s-1", "--cores", "2", "--memory", "4096", "--scsi0", "local-zfs:8", "--net0", "virtio=BC:24:11:00:00:01,bridge=vmbr0",
		"--ipconfig0", "ip=192.0.2.101/24,gw=192.0.2.1", "--onboot", "1")
	hosts[1].qm("create", "9000", "--name", "noble", "--memory", "512", "--scsi0", "local-zfs:3")
	hosts[1].qm("template", "9000")
	identity = hosts[0].ssh.Identity(t, "")
	for _, h := range hosts[1:] {
		h.ssh.Authorized = hosts[0].ssh.Authorized
	}
	f = newBeginner(t)
	t.Setenv("HOME", f.dir)
	return f, hosts, dir, identity
}

func initFrom(identity string, hosts ...*labHost) []string {
	var targets []string
	args := []string{"init", "home", "--controller", "pve1@192.0.2.11", "--identity", identity, "--ssh-config", "none"}
	for _, h := range hosts {
		targets = append(targets, h.target())
		args = append(args, "--host-key", ssh.FingerprintSHA256(h.ssh.HostKey()))
	}
	return append(args, "--from-hosts", strings.Join(targets, ","))
}

func TestAFleetIsBegunFromTheHostsThatAreThere(t *testing.T) {
	f, hosts, dir, identity := fleetOfHosts(t)
	before := labFiles(t, dir)
	got := f.run("", initFrom(identity, hosts[1], hosts[0])...)
	if got.code != 0 {
		t.Fatalf("%+v", got)
	}
	next := "hlctl hosts add " + hosts[0].target() + " " + hosts[1].target() + "\n"
	for _, want := range []string{"pve1", "Proxmox VE 9.2.11, 1 VM, 0 containers", "pve2", next} {
		if !strings.Contains(got.out, want) {
			t.Errorf("%q is not said:\n%s", want, got.out)
		}
	}
	text := f.files()["homelab.yaml"]
	parsed, faults := spec.Parse("homelab.yaml", []byte(text))
	if len(faults) > 0 {
		t.Fatalf("%v\n%s", faults, text)
	}
	lan := parsed.Networks["lan"]
	if lan == nil || lan.Subnet != netip.MustParsePrefix("192.0.2.0/24") || lan.Gateway != netip.MustParseAddr("192.0.2.1") {
		t.Errorf("%+v", lan)
	}
	for i, name := range []string{"pve1", "pve2"} {
		host := parsed.Hosts[name]
		if host == nil || host.Address.String() != hosts[i].addresses[0] || host.Bridges["lan"] != "vmbr0" ||
			!maps.Equal(host.Storages, map[string]string{"disks": "local-zfs", "images": "local", "snippets": "local"}) {
			t.Errorf("%s: %+v", name, host)
		}
	}
	for _, want := range []string{
		"#   k3s-1: ", "#     vmid: 201\n", `{network: lan, ip: 192.0.2.101/24, mac: "BC:24:11:00:00:01"}`, "protect: [9000]",
		"# pve3 is in the Proxmox cluster of pve2 too and was not asked: --from-hosts root@192.0.2.13", "# template 9000 on pve2: noble",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in it:\n%s", want, text)
		}
	}
	if !maps.Equal(before, labFiles(t, dir)) {
		t.Error("something was changed on the hosts")
	}
	for _, h := range hosts {
		for _, argv := range h.ran {
			if line := strings.Join(argv, " "); !strings.HasPrefix(line, "pvesh get ") && !strings.HasPrefix(line, "cat /etc/pve/") && !strings.HasPrefix(line, "ip -j ") {
				t.Errorf("%s was run", line)
			}
		}
		h.ran = nil
	}
	// Again: the Spec is there, and nobody need be asked. Another file is filled anew.
	if got := f.run("", initFrom(identity, hosts[:2]...)...); got.code != 0 || !strings.Contains(got.out, "no host was asked") || len(hosts[0].ran) > 0 {
		t.Errorf("%+v", got)
	}
	if got := f.run("", append(initFrom(identity, hosts[:2]...), "--out", "second.yaml", "-o", "json")...); got.code != 0 || f.files()["second.yaml"] == "" || !strings.Contains(got.out, `"name": "pve2"`) {
		t.Errorf("%+v", got)
	}
}

func TestNothingIsMadeWhenAHostCannotBeLookedAt(t *testing.T) {
	f, hosts, _, identity := fleetOfHosts(t)
	nothing := f.files()
	strange := remotetest.Start(t)
	strange.Authorized = hosts[0].ssh.Authorized
	debian := &labHost{t: t, ssh: strange}
	off := &labHost{t: t, ssh: remotetest.Start(t)}
	off.ssh.Stop()
	for _, c := range []struct {
		what string
		args func() []string
		says string
	}{
		{"no Proxmox", func() []string { return initFrom(identity, hosts[0], debian) }, debian.target() + ": it is no Proxmox VE host"},
		{"off", func() []string { return initFrom(identity, hosts[0], off) }, off.target() + ": ssh to"},
		{"two are wrong", func() []string { return initFrom(identity, debian, off) }, off.target()},
		{"named twice", func() []string { return initFrom(identity, hosts[0], hosts[0]) }, "twice"},
		{"no host's name", func() []string { return append(initFrom(identity), "--from-hosts", "root@a;reboot") }, "is no root@HOST"},
		{"keys and hosts", func() []string { return append(initFrom(identity, hosts[0]), "--host-key", "SHA256:x") }, "one for each"},
		{"the same by two addresses", func() []string {
			twin := remotetest.Start(t)
			twin.Authorized, twin.Run = strange.Authorized, hosts[0].play
			return initFrom(identity, hosts[0], &labHost{t: t, ssh: twin})
		}, "it is the same host as"},
		{"two of one name", func() []string {
			clone := startLabHost(t, t.TempDir(), "pve1", "", "192.0.2.99")
			clone.ssh.Authorized = strange.Authorized
			return initFrom(identity, hosts[0], clone)
		}, "hosts need names of their own"},
		{"pmxcfs is down", func() []string {
			if err := hosts[1].pve.UnmountPmxcfs(); err != nil {
				t.Fatal(err)
			}
			return initFrom(identity, hosts[0], hosts[1])
		}, "systemctl status pve-cluster"},
		{"what it says is no JSON", func() []string {
			strange.Run = func(c remotetest.Command) int { fmt.Fprint(c.Stdout, "\x1b[2J<html>"); return 0 }
			return initFrom(identity, debian)
		}, "no JSON that is understood"},
		{"it says no end", func() []string {
			strange.Run = func(c remotetest.Command) int {
				_, _ = c.Stdout.Write(bytes.Repeat([]byte(" "), 5<<20))
				return 0
			}
			return initFrom(identity, debian)
		}, "which no host has reason to"},
	} {
		got := f.run("", c.args()...)
		if got.code != 1 || !strings.Contains(got.err, c.says) || strings.Contains(got.err, "\x1b") {
			t.Errorf("%s: %+v", c.what, got)
		}
		made := f.files()
		delete(made, ".ssh/known_hosts") // that a key was accepted is remembered
		if !slices.Equal(slices.Sorted(maps.Keys(made)), slices.Sorted(maps.Keys(nothing))) {
			t.Errorf("%s: there is %q", c.what, slices.Sorted(maps.Keys(made)))
		}
	}
}
