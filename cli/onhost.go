package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/homeiac/homelab/cli/remote"
	"github.com/homeiac/homelab/internal/rpc"
	"go.yaml.in/yaml/v3"
)

const (
	agentUnit      = "hl-agent.service"
	controllerUnit = "hl-controller.service"
	// dpkgTimeout bounds dpkg with its scripts: a unit that stops waits for a qm at work.
	dpkgTimeout  = 6 * time.Minute
	lookTimeout  = 30 * time.Second
	journalLines = 15
)

// onHost is a host whose root's shell is open, and what was found there.
type onHost struct {
	shell      *remote.Host
	dial       func(context.Context) (*remote.Host, error)
	installed  string // the package's version; empty when it is not
	program    string // the version that hl-agent says it is
	controller string // the name of the controller that is set up on it; empty is none
}

// lookAt opens a host's shell and looks what is there; it changes nothing.
func (a *app) lookAt(ctx context.Context, target string, flags sshFlags) (*onHost, error) {
	t, err := remote.ParseTarget(target)
	if err != nil {
		return nil, err
	}
	h := &onHost{dial: func(ctx context.Context) (*remote.Host, error) { return remote.Dial(ctx, t, a.sshOptions(flags)) }}
	if h.shell, err = h.dial(ctx); err != nil {
		return nil, err
	}
	if err := h.look(ctx); err != nil {
		_ = h.shell.Close()
		return nil, err
	}
	return h, nil
}

func (h *onHost) look(ctx context.Context) (err error) {
	if h.installed, err = h.installedNow(ctx); err != nil {
		return err
	}
	if h.installed == "" {
		return nil
	}
	var exit *remote.ExitError
	if h.program, err = h.programNow(ctx); err != nil && !errors.As(err, &exit) {
		return err // one that does not even run may be why we are here
	}
	h.controller, err = h.controllerNow(ctx)
	return err
}

// reconnect opens the shell again, in the place of one that was lost.
func (h *onHost) reconnect(ctx context.Context) error {
	shell, err := h.dial(ctx)
	if err != nil {
		return err
	}
	_ = h.shell.Close()
	h.shell = shell
	return nil
}

// lost says whether an error is the connection's, and not a program's.
func (h *onHost) lost(err error) bool {
	var exit *remote.ExitError
	return err != nil && !errors.As(err, &exit) && errors.Is(err, rpc.ErrUnavailable)
}

// run runs a program that takes no longer than a look.
func (h *onHost) run(ctx context.Context, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	out, err := h.shell.Run(ctx, nil, argv...)
	return strings.TrimSpace(string(out)), err
}

// installedNow is the version of the package; empty when it is not installed, or only
// its configuration is left.
func (h *onHost) installedNow(ctx context.Context) (string, error) {
	out, err := h.run(ctx, "dpkg-query", "--show", "--showformat=${db:Status-Status} ${Version}", "homelab")
	var exit *remote.ExitError
	if errors.As(err, &exit) && exit.Code == 1 {
		return "", nil
	}
	state, version, _ := strings.Cut(out, " ")
	if err != nil || state == "config-files" || state == "not-installed" {
		return "", err
	}
	return version, nil
}

func (h *onHost) programNow(ctx context.Context) (string, error) {
	return h.run(ctx, "/usr/sbin/hl-agent", "version")
}

// controllerNow is the name of the controller whose unit is enabled, or runs.
func (h *onHost) controllerNow(ctx context.Context) (string, error) {
	out, err := h.run(ctx, "systemctl", "show", "--property=ActiveState,UnitFileState", controllerUnit)
	if err != nil {
		return "", err
	}
	if !slices.ContainsFunc(strings.Fields(out), func(f string) bool {
		return slices.Contains([]string{"ActiveState=active", "ActiveState=activating", "ActiveState=reloading", "UnitFileState=enabled", "UnitFileState=enabled-runtime"}, f)
	}) {
		return "", nil
	}
	text, err := h.run(ctx, "cat", "/etc/homelab/controller.yaml")
	if err != nil {
		return "", err
	}
	var config struct{ Name string }
	if err := yaml.Unmarshal([]byte(text), &config); err != nil || config.Name == "" {
		return "", rpc.Errorf(rpc.ErrInvalid, "/etc/homelab/controller.yaml on it says no name: %v", err)
	}
	return config.Name, nil
}

// active is an error unless systemd says that a unit is there and ready.
func (h *onHost) active(ctx context.Context, unit string) error {
	if out, err := h.run(ctx, "systemctl", "is-active", unit); err != nil {
		return fmt.Errorf("%s is %s; see: journalctl -u %s", unit, cmp.Or(out, "not there"), unit)
	}
	return nil
}

// later says whether one version of a package is later than another, as dpkg counts.
func (h *onHost) later(ctx context.Context, one, other string) (bool, error) {
	_, err := h.run(ctx, "dpkg", "--compare-versions", one, "gt", other)
	var exit *remote.ExitError
	if errors.As(err, &exit) && exit.Code == 1 {
		return false, nil
	}
	return err == nil, err
}

// keptPackage is where the package of a version lies on the host; empty when it does
// not, or is another one than its name says.
func (h *onHost) keptPackage(ctx context.Context, version string) (string, error) {
	out, err := h.run(ctx, "dpkg-deb", "--field", keptAt(version), "Package", "Version")
	var exit *remote.ExitError
	if errors.As(err, &exit) {
		return "", nil
	}
	if err != nil || out != "Package: homelab\nVersion: "+version {
		return "", err
	}
	return keptAt(version), nil
}

// put puts a package beside those that are kept.
func (h *onHost) put(ctx context.Context, p debPackage) error {
	if _, err := h.run(ctx, "mkdir", "-p", "-m", "755", keepFolder); err != nil {
		return err
	}
	return h.shell.Put(ctx, keptAt(p.version), 0o644, bytes.NewReader(p.data), int64(len(p.data)))
}

// dpkgScript goes on when the connection is lost that it is told over: dpkg that is
// ended in the middle leaves half a package.
const dpkgScript = `trap '' HUP PIPE
log=$(mktemp) || exit 1
DEBIAN_FRONTEND=noninteractive dpkg --force-confdef --force-confold "$@" >"$log" 2>&1 </dev/null
code=$?
cat "$log"
rm -f "$log"
exit $code`

// dpkg runs dpkg with arguments and gives what it said. Configuration that people
// changed stays as it is.
func (h *onHost) dpkg(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, dpkgTimeout)
	defer cancel()
	out, err := h.shell.Run(ctx, nil, append([]string{"sh", "-c", dpkgScript, "dpkg"}, args...)...)
	var exit *remote.ExitError
	if errors.As(err, &exit) {
		exit.Program = "dpkg " + args[0]
	}
	return string(out), err
}

// install has dpkg put in a package that is on the host.
func (h *onHost) install(ctx context.Context, file string) error {
	_, err := h.dpkg(ctx, "--install", file)
	return err
}

// dropPackages removes packages that are kept and that nobody would go back to.
func (h *onHost) dropPackages(ctx context.Context, but ...string) error {
	out, err := h.run(ctx, "ls", "-1", keepFolder)
	if err != nil {
		return err
	}
	argv := []string{"rm", "-f", "--"}
	for name := range strings.Lines(out) {
		name = strings.TrimSpace(name)
		kept := slices.ContainsFunc(but, func(v string) bool { return keptAt(v) == keepFolder+"/"+name })
		if strings.HasPrefix(name, "homelab_") && strings.HasSuffix(name, ".deb") && !kept {
			argv = append(argv, keepFolder+"/"+name)
		}
	}
	if len(argv) == 3 {
		return nil
	}
	_, err = h.run(ctx, argv...)
	return err
}

// journal is the last that both daemons said; empty when it cannot be read.
func (h *onHost) journal(ctx context.Context) string {
	out, err := h.run(ctx, "journalctl", "--no-pager", "--quiet", "--output=short", fmt.Sprintf("--lines=%d", journalLines), "--unit="+agentUnit, "--unit="+controllerUnit)
	if err != nil {
		return ""
	}
	return printable(out)
}

// disable ends both daemons for good. A qm at work is waited for.
func (h *onHost) disable(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dpkgTimeout)
	defer cancel()
	_, err := h.shell.Run(ctx, nil, "systemctl", "disable", "--now", controllerUnit, agentUnit)
	return err
}

// uninstall has dpkg remove the package; how is --remove or --purge. It gives what was
// said.
func (h *onHost) uninstall(ctx context.Context, how string) (string, error) {
	out, err := h.dpkg(ctx, how, "homelab")
	return printable(out), err
}

// printable is what a program on a host said, fit for a terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}
