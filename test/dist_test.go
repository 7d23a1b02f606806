//go:build dist

package test

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"debug/macho"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// dist is the folder with all that is released, as make dist has made it.
func dist(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("HOMELAB_DIST")
	if dir == "" {
		dir = "../dist"
	}
	if _, err := os.Stat(filepath.Join(dir, "SHA256SUMS")); err != nil {
		t.Fatalf("%v; it is made by: make dist", err)
	}
	return dir
}

// one is the file of a pattern.
func one(t *testing.T, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dist(t), pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %v, %v", pattern, found, err)
	}
	return found[0]
}

// needs skips a test for the lack of a program, and gives its path.
func needs(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Skipf("no %s here", program)
	}
	return path
}

func says(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestDistEveryFileOfTheReleaseHasItsChecksum(t *testing.T) {
	dir := dist(t)
	data, err := os.ReadFile(filepath.Join(dir, "SHA256SUMS"))
	if err != nil {
		t.Fatal(err)
	}
	sums := map[string]string{}
	for line := range strings.Lines(string(data)) {
		sum, name, _ := strings.Cut(strings.TrimSpace(line), "  ")
		sums[name] = sum
	}
	var names []string
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		name, _ := filepath.Rel(dir, path)
		if err != nil || e.IsDir() || name == "SHA256SUMS" {
			return err
		}
		text, err := os.ReadFile(path)
		if sum := sha256.Sum256(text); err == nil && sums[name] != hex.EncodeToString(sum[:]) {
			t.Errorf("%s: its checksum is not in SHA256SUMS", name)
		}
		names = append(names, name)
		return err
	})
	if err != nil || len(sums) != len(names) {
		t.Errorf("%d files, %d checksums, %v", len(names), len(sums), err)
	}
	for _, want := range []string{
		"hlctl-linux-amd64", "hlctl-linux-arm64", "hlctl-darwin-amd64", "hlctl-darwin-arm64",
		"hl-agent-linux-amd64", "hl-agent-linux-arm64", "hl-controller-linux-amd64", "hl-controller-linux-arm64",
		"completions/hlctl.bash", "completions/_hlctl", "completions/hlctl.fish", "man/hlctl.1", "man/hl-agent.8", "man/hl-controller.8",
	} {
		if !slices.Contains(names, want) {
			t.Errorf("there is no %s", want)
		}
	}
}

func TestDistProgramsAreStaticAndForTheirMachine(t *testing.T) {
	for name, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		for _, program := range []string{"hlctl", "hl-agent", "hl-controller"} {
			f, err := elf.Open(one(t, program+"-linux-"+name))
			if err != nil {
				t.Fatal(err)
			}
			if f.Machine != machine || slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC }) {
				t.Errorf("%s for %s is for %s, or not static", program, name, f.Machine)
			}
			_ = f.Close()
		}
	}
	for name, cpu := range map[string]macho.Cpu{"amd64": macho.CpuAmd64, "arm64": macho.CpuArm64} {
		f, err := macho.Open(one(t, "hlctl-darwin-"+name))
		if err != nil {
			t.Fatal(err)
		}
		if f.Cpu != cpu {
			t.Errorf("hlctl of macOS for %s is for %s", name, f.Cpu)
		}
		_ = f.Close()
	}
}

func TestDistTheARM64ProgramsRun(t *testing.T) {
	qemu := ""
	if runtime.GOARCH != "arm64" {
		qemu = needs(t, "qemu-aarch64-static")
	}
	for _, program := range []string{"hlctl", "hl-agent", "hl-controller"} {
		var said []string
		for _, arch := range []string{"arm64", "amd64"} {
			// HOME, so that hlctl finds no configuration, and asks no controller.
			cmd := exec.CommandContext(t.Context(), one(t, program+"-linux-"+arch), "version")
			if arch != runtime.GOARCH {
				cmd = exec.CommandContext(t.Context(), qemu, one(t, program+"-linux-"+arch), "version")
			}
			cmd.Env = []string{"HOME=" + t.TempDir()}
			out, err := cmd.Output()
			if err != nil && program != "hlctl" {
				t.Fatalf("%s for %s: %v", program, arch, err)
			}
			said = append(said, string(out))
		}
		if said[0] == "" || said[0] != said[1] {
			t.Errorf("%s says %q on arm64 and %q on amd64", program, said[0], said[1])
		}
	}
}

// contents are the files in a package.
func contents(t *testing.T, pattern string) []string {
	t.Helper()
	needs(t, "dpkg-deb")
	var files []string
	for line := range strings.Lines(says(t, "dpkg-deb", "--contents", one(t, pattern))) {
		if f := strings.Fields(line); len(f) >= 6 && f[0][0] == '-' {
			files = append(files, strings.TrimPrefix(f[5], "./"))
		}
	}
	return files
}

func TestDistThePackagesHoldProgramsManualAndCompletions(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		for name, programs := range map[string][]string{"homelab": {"hl-agent", "hl-controller"}, "hlctl": {"hlctl"}} {
			files := contents(t, name+"_*_"+arch+".deb")
			section, folder := "8", "usr/sbin/"
			if name == "hlctl" {
				section, folder = "1", "usr/bin/"
			}
			want := []string{"usr/share/doc/" + name + "/copyright", "usr/share/doc/" + name + "/changelog.gz"}
			for _, p := range programs {
				want = append(want, folder+p, "usr/share/man/man"+section+"/"+p+"."+section+".gz",
					"usr/share/bash-completion/completions/"+p, "usr/share/zsh/vendor-completions/_"+p, "usr/share/fish/vendor_completions.d/"+p+".fish")
				// A page for each command, as beside the packages.
				pages, err := filepath.Glob(filepath.Join(dist(t), "man", p+"-*."+section))
				if err != nil || len(pages) == 0 {
					t.Errorf("no pages of %s: %v", p, err)
				}
				for _, page := range pages {
					want = append(want, "usr/share/man/man"+section+"/"+filepath.Base(page)+".gz")
				}
			}
			if name == "homelab" {
				want = append(want, "usr/lib/systemd/system/hl-agent.service", "usr/lib/systemd/system/hl-controller.service", "etc/homelab/agent.yaml", "etc/homelab/controller.yaml")
			}
			for _, file := range want {
				if !slices.Contains(files, file) {
					t.Errorf("%s for %s has no %s", name, arch, file)
				}
			}
		}
	}
}

func TestDistLintianFindsNoErrorInThePackages(t *testing.T) {
	lintian := needs(t, "lintian")
	for _, name := range []string{"homelab_*_amd64.deb", "homelab_*_arm64.deb", "hlctl_*_amd64.deb", "hlctl_*_arm64.deb"} {
		args := []string{"--fail-on", "error", "--tag-display-limit", "0"}
		if os.Getuid() == 0 {
			args = append(args, "--allow-root")
		}
		cmd := exec.CommandContext(t.Context(), lintian, append(args, one(t, name))...)
		out, err := cmd.CombinedOutput()
		if err != nil || bytes.Contains(out, []byte("mismatched-override")) || bytes.Contains(out, []byte("unused-override")) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

func TestDistEachOverrideOfLintianHasAReason(t *testing.T) {
	files, err := filepath.Glob("../deploy/packages/*.lintian")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		said := false
		for line := range strings.Lines(string(data)) {
			comment := strings.HasPrefix(line, "#")
			if !comment && !said {
				t.Errorf("%s: without a reason: %s", file, line)
			}
			said = comment || said
		}
	}
}

func TestDistTheBillOfMaterialsNamesWhatIsInTheProgram(t *testing.T) {
	for _, program := range []string{"hlctl", "hl-agent", "hl-controller"} {
		data, err := os.ReadFile(one(t, program+".cdx.json"))
		if err != nil {
			t.Fatal(err)
		}
		var bill struct {
			BOMFormat  string `json:"bomFormat"`
			Components []struct{ Name, Version string }
		}
		if err := json.Unmarshal(data, &bill); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"google.golang.org/grpc", "std"} {
			if i := slices.IndexFunc(bill.Components, func(c struct{ Name, Version string }) bool { return c.Name == name }); i < 0 || bill.Components[i].Version == "" {
				t.Errorf("the %s of %s has no %s among %d components", bill.BOMFormat, program, name, len(bill.Components))
			}
		}
	}
}

// It is by this that hlctl hosts add knows what it installs.
func TestDistHlctlKnowsTheChecksumsOfThePackages(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		deb := one(t, "homelab_*_"+arch+".deb")
		data, err := os.ReadFile(deb)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(data)
		for _, program := range []string{"hlctl-linux-amd64", "hlctl-linux-arm64", "hlctl-darwin-amd64", "hlctl-darwin-arm64"} {
			text, err := os.ReadFile(one(t, program))
			if err != nil || !bytes.Contains(text, []byte(filepath.Base(deb)+"="+hex.EncodeToString(sum[:]))) {
				t.Errorf("%s does not know %s: %v", program, filepath.Base(deb), err)
			}
		}
	}
}
