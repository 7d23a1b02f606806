package test

import (
	"bytes"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/homeiac/homelab/agent"
	"github.com/homeiac/homelab/controller"
)

var units = []string{"hl-agent.service", "hl-controller.service"}

func analyze(t *testing.T, args ...string) string {
	t.Helper()
	program, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("no systemd-analyze here")
	}
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "SYSTEMD_PAGER=", "COLUMNS=300", "SYSTEMD_COLORS=0")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Errorf("systemd-analyze %s: %v\n%s", strings.Join(args, " "), err, out.String())
	}
	return out.String()
}

func unit(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "deploy", "systemd", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestSystemdUnderstandsTheUnits(t *testing.T) {
	for _, name := range units {
		// The program is not installed where this runs.
		text := regexp.MustCompile(`(?m)^ExecStart=\S+`).ReplaceAllString(unit(t, name), "ExecStart=/bin/true")
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(analyze(t, "verify", "--man=no", file)) {
			// Older than 254, as the unit says.
			if !strings.Contains(line, "'RestartSteps'") && !strings.Contains(line, "'RestartMaxDelaySec'") {
				t.Errorf("%s: %s", name, line)
			}
		}
	}
}

func TestEachPointThatSystemdCountsAgainstAUnitIsExplainedInIt(t *testing.T) {
	for _, name := range units {
		text := unit(t, name)
		said := regexp.MustCompile(`[A-Z][A-Za-z]+\*?`).FindAllString(strings.Join(regexp.MustCompile(`(?m)^#.*$`).FindAllString(text, -1), "\n"), -1)
		report := analyze(t, "security", "--offline=yes", "--no-pager", filepath.Join("..", "deploy", "systemd", name))
		counted := regexp.MustCompile(`(?m)^\W*✗ ([A-Za-z]+)=`).FindAllStringSubmatch(report, -1)
		if len(counted) == 0 {
			t.Errorf("%s: no points in:\n%s", name, report)
		}
		for _, m := range counted {
			if !slices.ContainsFunc(said, func(word string) bool { ok, _ := path.Match(word, m[1]); return ok }) {
				t.Errorf("%s: nothing is said of %s", name, m[1])
			}
		}
		if name == "hl-controller.service" && !strings.Contains(report, "OK") {
			t.Errorf("the controller is not hardened:\n%s", report)
		}
	}
}

// What a guest would inherit for life, and what would kill a qm at work.
func TestTheAgentsUnitGivesNothingToItsChildren(t *testing.T) {
	text := unit(t, "hl-agent.service")
	inherited := regexp.MustCompile(`(?m)^(User|Group|DynamicUser|Private\w+|Protect\w+|Restrict[A-QS-Z]\w+|ReadOnlyPaths|ReadWritePaths|InaccessiblePaths|BindPaths|RootDirectory|` +
		`NoNewPrivileges|SystemCall\w+|LockPersonality|MemoryDenyWriteExecute|CapabilityBoundingSet|AmbientCapabilities|SecureBits|Limit\w+|OOMScoreAdjust|UMask|` +
		`Nice|CPUScheduling\w+|CPUAffinity|IOScheduling\w+|NUMA\w+|Personality|Device\w+|IPAddress\w+|Memory\w+|Tasks\w+|CPUQuota|Environment\w*|PAMName)=`)
	if found := inherited.FindAllString(text, -1); found != nil {
		t.Errorf("children would inherit %v", found)
	}
	for _, line := range []string{"KillMode=process", "OOMPolicy=continue", "Type=notify", "RestartPreventExitStatus=78"} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("%s is missing", line)
		}
	}
	if strings.Contains(text, "=pve-cluster") {
		t.Error("it waits for pve-cluster, which may be what is broken")
	}
}

// The configurations in the package hold nothing but comments: a setting is one whose
// mark is followed by no space. With all of them in force they must be right.
func TestTheConfigurationsInThePackageAreRight(t *testing.T) {
	for name, load := range map[string]func(string) error{
		"agent.yaml":      func(f string) error { _, err := agent.LoadConfig(f); return err },
		"controller.yaml": func(f string) error { _, err := controller.LoadConfig(f); return err },
	} {
		text, err := os.ReadFile(filepath.Join("..", "deploy", "packages", name))
		if err != nil {
			t.Fatal(err)
		}
		if left := regexp.MustCompile(`(?m)^[^#\n].*$`).FindString(string(text)); left != "" {
			t.Errorf("%s: %q is in force before the host is enrolled", name, left)
		}
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, regexp.MustCompile(`(?m)^#(\w| +\w+: )`).ReplaceAll(text, []byte("$1")), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := load(file); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
