//go:build e2e

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// debian is the root folder of a Debian in which nothing runs.
type debian struct {
	t   *testing.T
	dir string
}

// debianTar is a small Debian, fetched once for all tests; it goes with their folder.
// HOMELAB_DEBIAN names one that was fetched before.
var debianTar = sync.OnceValues(func() (string, error) {
	if tar := os.Getenv("HOMELAB_DEBIAN"); tar != "" {
		return tar, nil
	}
	tar := filepath.Join(os.TempDir(), "debian.tar")
	cmd := exec.Command("mmdebstrap", "--quiet", "--mode=root", "--variant=essential", "--include=systemd,systemd-sysv,openssh-server,iproute2", "bookworm", tar)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("mmdebstrap: %w\n%s", err, out)
	}
	return tar, nil
})

// unpackedDebian is the folder of one that is not written to.
var unpackedDebian = sync.OnceValues(func() (string, error) {
	tar, err := debianTar()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(os.TempDir(), "debian")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	if out, err := exec.Command("tar", "-C", dir, "-xpf", tar).CombinedOutput(); err != nil {
		return "", fmt.Errorf("unpack %s: %w\n%s", tar, err, out)
	}
	// Each machine has a key of its own.
	keys, err := filepath.Glob(filepath.Join(dir, "etc/ssh/ssh_host_*"))
	for _, key := range keys {
		err = errors.Join(err, os.Remove(key))
	}
	return dir, err
})

// debianBase is what the machines of a site start from.
func debianBase(t *testing.T) string {
	t.Helper()
	needsDebian(t)
	dir, err := unpackedDebian()
	if err != nil {
		t.Skipf("no Debian can be had here: %v", err)
	}
	return dir
}

// needsDebian skips a test that cannot have a Debian with our package in it.
func needsDebian(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can make a Debian root folder")
	}
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		t.Skip("no mmdebstrap here")
	}
	if _, err := os.Stat(filepath.Join(bin, "nfpm")); err != nil {
		t.Skip("no bin/nfpm: make e2e builds it")
	}
}

func newDebian(t *testing.T) *debian {
	t.Helper()
	needsDebian(t)
	tar, err := debianTar()
	if err != nil {
		t.Skipf("no Debian can be had here: %v", err)
	}
	d := &debian{t: t, dir: filepath.Join(t.TempDir(), "root")}
	if err := os.Mkdir(d.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "tar", "-C", d.dir, "-xpf", tar).CombinedOutput(); err != nil {
		t.Fatalf("unpack %s: %v\n%s", tar, err, out)
	}
	return d
}

// run runs a program in the root folder and gives what it says.
func (d *debian) run(args ...string) string {
	d.t.Helper()
	cmd := exec.CommandContext(d.t.Context(), "chroot", append([]string{d.dir}, args...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		d.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (d *debian) write(name, text string) {
	d.t.Helper()
	file := filepath.Join(d.dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

// read is a file's text, and nothing for one that is not there.
func (d *debian) read(name string) string {
	data, _ := os.ReadFile(filepath.Join(d.dir, name))
	return string(data)
}

// files are all below the root folder but what dpkg writes for itself.
func (d *debian) files() []string {
	d.t.Helper()
	var all []string
	err := filepath.WalkDir(d.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(d.dir, path)
		if e.IsDir() && (name == "var/lib/dpkg" || name == "var/log" || name == "packages") {
			return filepath.SkipDir
		}
		all = append(all, name)
		return nil
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return all
}

// build makes the package of a version with the programs under test, and gives its
// path in the root folder.
func (d *debian) build(version string) string {
	d.t.Helper()
	dir := filepath.Join(d.dir, "packages")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		d.t.Fatal(err)
	}
	return "/packages/" + filepath.Base(buildPackage(d.t, dir, version))
}

// buildPackage makes the package of a version in a folder, and gives its path. agent is
// what takes the place of hl-agent, if anything does.
func buildPackage(t *testing.T, dir, version string, agent ...string) string {
	t.Helper()
	stage := t.TempDir()
	for _, p := range []string{"hl-agent", "hl-controller"} {
		if p == "hl-agent" && agent != nil {
			if err := os.WriteFile(filepath.Join(stage, p), []byte(agent[0]), 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.Link(filepath.Join(bin, p), filepath.Join(stage, p)); err != nil {
			data, err := os.ReadFile(filepath.Join(bin, p))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(stage, p), data, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.MkdirAll(filepath.Join(stage, "homelab", "doc", "homelab"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(stage, "homelab", "doc", "homelab", "copyright"), []byte("Apache-2.0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile("../../deploy/packages/homelab.yaml")
	if err == nil { // gzip, as what is released has it, takes nfpm twenty seconds
		err = os.WriteFile(filepath.Join(stage, "homelab.yaml"), append(config, "deb: {compression: zstd}\n"...), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "homelab_"+version+"_amd64.deb")
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "nfpm"), "package", "--config", filepath.Join(stage, "homelab.yaml"), "--packager", "deb", "--target", name)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "ARCH=amd64", "DEB_VERSION="+version, "STAGE="+stage)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nfpm: %v\n%s", err, out)
	}
	return name
}

// The life of a package where no systemd runs, as in a chroot.
func TestThePackageIsInstalledUpgradedRemovedAndPurged(t *testing.T) {
	t.Parallel()
	d := newDebian(t)
	before := d.files()
	first, second := d.build("1.0"), d.build("1.1")

	d.run("dpkg", "-i", first)
	d.run("/usr/sbin/hl-agent", "version")
	d.run("/usr/sbin/hl-controller", "version")
	if links := slices.DeleteFunc(d.files(), func(f string) bool { return !strings.Contains(f, ".wants/hl-") }); len(links) != 0 {
		t.Errorf("enabled before there is a certificate: %v", links)
	}

	// As an enrolled host has it after a while.
	state := map[string]string{
		"var/lib/hl-agent/ssh_key": "agent key", "var/lib/hl-agent/intents/201.json": "{}", "var/lib/hl-agent/saved/k3s-1.conf": "memory: 2048",
		"var/lib/hl-agent/snapshots/a.db": "etcd", "var/lib/hl-agent/snapshots/a.token": "K10", "var/lib/hl-agent/agent.key": "renewable",
		"var/lib/private/hl-controller/fleet.key": "fleet key", "var/lib/private/hl-controller/issuing.key": "issuing key", "var/lib/private/hl-controller/store/db": "bbolt",
	}
	for name, text := range state {
		d.write(name, text)
	}
	if err := os.Symlink("private/hl-controller", filepath.Join(d.dir, "var/lib/hl-controller")); err != nil {
		t.Fatal(err)
	}
	d.write("etc/homelab/agent.yaml", "name: pve1\n")
	d.write("etc/homelab/pause", "disk swap\n")
	d.write("var/cache/homelab/homelab_1.0_amd64.deb", "for the way back")

	d.run("dpkg", "-i", second)
	if got := d.read("etc/homelab/agent.yaml"); got != "name: pve1\n" {
		t.Errorf("after the upgrade the configuration is %q", got)
	}

	d.run("dpkg", "-r", "homelab")
	if d.read("usr/sbin/hl-agent") != "" || d.read("etc/homelab/agent.yaml") != "name: pve1\n" {
		t.Error("removal takes the programs and leaves the configuration")
	}
	for name, text := range state {
		if d.read(name) != text {
			t.Errorf("removal took %s", name)
		}
	}

	said := d.run("dpkg", "-P", "homelab")
	kept := regexp.MustCompile(`(?m)^  /(\S+)$`).FindAllStringSubmatch(said, -1)
	var names []string
	for _, m := range kept {
		names = append(names, strings.TrimPrefix(m[1], filepath.Dir(filepath.Dir(m[1]))+"/"))
		if !strings.HasPrefix(m[1], "var/lib/homelab-keep/") {
			t.Errorf("kept at %s", m[1])
		}
	}
	slices.Sort(names)
	if want := []string{"agent/intents", "agent/saved", "agent/snapshots", "agent/ssh_key", "controller/fleet.key", "controller/issuing.key"}; !slices.Equal(names, want) {
		t.Errorf("kept %v, want %v; it said:\n%s", names, want, said)
	}
	left := slices.DeleteFunc(d.files(), func(f string) bool { return slices.Contains(before, f) })
	for _, f := range left {
		switch {
		case f == "etc/homelab", f == "etc/homelab/pause": // made by people
		case f == "var/lib/private": // systemd's
		case f == "var/lib/homelab-keep", strings.HasPrefix(f, "var/lib/homelab-keep/"):
		default:
			t.Errorf("purge left %s", f)
		}
	}
	if info, err := os.Stat(filepath.Join(d.dir, "var/lib/homelab-keep")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the keep folder: %v, %v", info, err)
	}

	// Another life: what was kept of the first one stays beside it.
	d.run("dpkg", "-i", second)
	d.write("var/lib/hl-agent/ssh_key", "second key")
	d.run("dpkg", "-P", "homelab")
	keys, err := filepath.Glob(filepath.Join(d.dir, "var/lib/homelab-keep/*/agent/ssh_key"))
	if err != nil || len(keys) != 2 {
		t.Errorf("SSH keys kept: %v, %v", keys, err)
	}
	// And one in which there was nothing to keep says nothing.
	d.run("dpkg", "-i", second)
	if said := d.run("dpkg", "-P", "homelab"); strings.Contains(said, "kept") {
		t.Errorf("nothing was there: %s", said)
	}
}

// Snapshots are large, and may have a disk of their own.
func TestAPurgeLeavesWhatIsMountedInTheAgentsFolder(t *testing.T) {
	t.Parallel()
	d := newDebian(t)
	d.run("dpkg", "-i", d.build("1.0"))
	d.write("var/lib/hl-agent/agent.key", "renewable")
	d.write("var/lib/hl-agent/saved/k3s-1.conf", "memory: 2048")
	const script = `cd /var/lib/hl-agent && mkdir snapshots && mount -t tmpfs disk snapshots && echo etcd >snapshots/a.db
cd / && dpkg -P homelab && echo "left: $(ls -A /var/lib/hl-agent) $(cat /var/lib/hl-agent/snapshots/a.db)"`
	out, err := exec.CommandContext(t.Context(), "unshare", "--mount", "chroot", d.dir, "/bin/sh", "-c", "PATH=/usr/sbin:/usr/bin:/sbin:/bin; "+script).CombinedOutput()
	said := string(out)
	if err != nil || !strings.Contains(said, "\n  /var/lib/hl-agent/snapshots\n") || !strings.Contains(said, "/agent/saved\n") || !strings.Contains(said, "left: snapshots etcd\n") {
		t.Errorf("%v\n%s", err, said)
	}
}

// What systemd is asked for, where it runs: by a stand-in that writes it down.
func TestAnUpgradeRestartsWhatRunsAndARemovalStopsIt(t *testing.T) {
	t.Parallel()
	d := newDebian(t)
	first, second := d.build("1.0"), d.build("1.1")
	d.write("run/systemd/system/.keep", "")
	d.write("usr/bin/systemctl", "#!/bin/sh\necho \"$*\" >>/asked\n[ \"$2\" != try-restart ] || [ \"$3\" != hl-agent.service ]\n")
	if err := os.Chmod(filepath.Join(d.dir, "usr/bin/systemctl"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args  []string
		asked string
	}{
		{[]string{"-i", first}, "daemon-reload; try-restart hl-agent.service; try-restart hl-controller.service"},
		{[]string{"-i", second}, "daemon-reload; try-restart hl-agent.service; try-restart hl-controller.service"},
		{[]string{"-r", "homelab"}, "stop hl-controller.service hl-agent.service; daemon-reload"},
		{[]string{"-P", "homelab"}, "daemon-reload; reset-failed hl-agent.service hl-controller.service"},
	} {
		d.write("asked", "")
		said := d.run(append([]string{"dpkg"}, c.args...)...)
		var lines [][]byte
		for line := range bytes.Lines([]byte(d.read("asked"))) {
			lines = append(lines, bytes.TrimPrefix(bytes.TrimSpace(line), []byte("--system ")))
		}
		if asked := string(bytes.Join(lines, []byte("; "))); asked != c.asked {
			t.Errorf("dpkg %v asked systemd: %s\nwant %s", c.args, asked, c.asked)
		}
		// An agent that does not come back leaves the package configured, and is named.
		if c.args[0] == "-i" && !strings.Contains(said, "hl-agent.service was not restarted") {
			t.Errorf("dpkg %v says:\n%s", c.args, said)
		}
	}
}
