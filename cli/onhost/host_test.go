package onhost_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/homeiac/homelab/cli/onhost"
	"github.com/homeiac/homelab/cli/onhost/onhosttest"
	"github.com/homeiac/homelab/cli/remote"
	"github.com/homeiac/homelab/internal/rpc"
)

// open opens the shell of a host.
func open(t *testing.T, h *onhosttest.Host) *onhost.Host {
	t.Helper()
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("SSH_AUTH_SOCK", "")
	h.Know(t, home)
	target, err := remote.ParseTarget(h.Target())
	if err != nil {
		t.Fatal(err)
	}
	options := remote.Options{Identity: h.Identity(t, ""), Config: remote.NoConfig}
	on, err := onhost.Open(t.Context(), func(ctx context.Context) (*remote.Host, error) { return remote.Dial(ctx, target, options) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = on.Close() })
	return on
}

// member is a host with our package of version 1.2.0 at work.
func member(t *testing.T) (*onhosttest.Host, *onhost.Host) {
	h := onhosttest.Start(t, "pve1")
	h.Have("1.2.0")
	return h, open(t, h)
}

func TestWhatIsOnAHostIsFoundAndNothingIsChanged(t *testing.T) {
	h := onhosttest.Start(t, "pve1")
	h.Have("1.2.0")
	h.HaveController("c1")
	h.Units[onhost.AgentService].Enabled = false // it runs all the same
	on := open(t, h)
	if on.Installed != "1.2.0" || on.Broken || on.Program != "v1.2.0" || on.Controller != "c1" || !slices.Equal(on.Services, []string{onhost.AgentService, onhost.ControllerService}) {
		t.Errorf("%+v", on)
	}
	h.Half = true
	seen, err := onhost.Inspect(t.Context(), on.Root)
	if err != nil || seen.Hostname != "pve1" || seen.Proxmox != "9.2.11" || len(seen.Addresses) != 2 || !seen.Broken || seen.Cert != nil ||
		seen.Config.Name != "pve1" || seen.ControllerName != "c1" || seen.Agent != (onhost.Unit{Active: true}) || seen.Controller != (onhost.Unit{Active: true, Enabled: true}) {
		t.Errorf("%+v, %v", seen, err)
	}
	h.Files[onhost.AgentConfig] = "name: [\n"
	if _, err := onhost.Inspect(t.Context(), on.Root); !errors.Is(err, rpc.ErrInvalid) || !strings.Contains(err.Error(), "/etc/homelab/agent.yaml on pve1: ") {
		t.Error(err)
	}
	if left := h.Ran(); len(left) > 0 {
		t.Error(left)
	}
}

func TestADpkgThatAnotherOneLocksOutIsTriedAgain(t *testing.T) {
	h, on := member(t)
	h.Files[onhost.KeptAt("1.3.0")] = onhosttest.Deb("1.3.0")
	const install = "dpkg --install"
	h.Fails[install] = "dpkg: error: dpkg frontend lock was locked by another process with pid 71"
	tries := 0
	h.Before = func(argv []string) {
		if strings.HasPrefix(strings.Join(argv, " "), install) {
			if tries++; tries == 3 {
				delete(h.Fails, install)
			}
		}
	}
	root := on.Root.Impatient()
	if said, err := root.Dpkg(t.Context(), "--install", onhost.KeptAt("1.3.0")); err != nil || tries != 3 || said != "Setting up homelab (1.3.0) ..." {
		t.Errorf("%d tries: %q, %v", tries, said, err)
	}
	// Anything else that is wrong does not mend itself.
	h.Fails[install], tries = "dpkg: error: the archive is damaged", 3
	if _, err := root.Dpkg(t.Context(), "--install", onhost.KeptAt("1.3.0")); err == nil || tries != 4 || !strings.Contains(err.Error(), "dpkg --install: exit 2: dpkg: error: the archive is damaged") {
		t.Errorf("%d tries: %v", tries, err)
	}
}

func TestPackagesAreKeptToGoBackTo(t *testing.T) {
	h, on := member(t)
	ctx := t.Context()
	for _, version := range []string{"1.0.0", "1.3.0"} {
		if err := on.PutPackage(ctx, onhost.Package{Version: version, Data: []byte(onhosttest.Deb(version))}); err != nil || h.Modes[onhost.KeptAt(version)] != "0644" {
			t.Error(h.Modes, err)
		}
	}
	h.Files[onhost.PackageFolder+"/notes"] = "a person's"
	h.Files[onhost.KeptAt("1.1.0")] = onhosttest.Deb("1.0.0")
	for version, want := range map[string]bool{"1.2.0": true, "1.3.0": true, "1.1.0": false, "0.9.0": false} {
		if kept, err := on.Keeps(ctx, version); kept != want || err != nil {
			t.Errorf("%s: %v, %v", version, kept, err)
		}
	}
	h.Ran()
	if err := on.DropPackages(ctx, "1.3.0", "1.2.0"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"rm -f -- " + onhost.KeptAt("1.0.0") + " " + onhost.KeptAt("1.1.0")}, h.Ran()); diff != "" {
		t.Error(diff)
	}
	if err := on.DropPackages(ctx, "1.3.0", "1.2.0"); err != nil || len(h.Ran()) > 0 {
		t.Error("again:", err)
	}
	if later, err := on.Later(ctx, "1.3.0", "1.2.0"); !later || err != nil {
		t.Error(later, err)
	}
}

func TestAServiceThatItsLastProgramEndedIsRevived(t *testing.T) {
	h, on := member(t)
	ctx := t.Context()
	h.Sick["1.3.0"] = true
	for _, version := range []string{"1.3.0", "1.2.0"} {
		if err := on.PutPackage(ctx, onhost.Package{Version: version, Data: []byte(onhosttest.Deb(version))}); err != nil {
			t.Fatal(err)
		}
		if _, err := on.Dpkg(ctx, "--install", onhost.KeptAt(version)); err != nil {
			t.Fatal(err)
		}
		if unit, err := on.UnitState(ctx, onhost.AgentService); unit != (onhost.Unit{Enabled: true}) || err != nil {
			t.Errorf("with %s: %+v, %v", version, unit, err)
		}
	}
	if err := on.Ready(ctx, onhost.AgentService); err == nil || !strings.Contains(err.Error(), "hl-agent.service is failed; on the host: journalctl -u hl-agent.service") {
		t.Error(err)
	}
	want := "\n    2026-03-01T14:02:00+00:00 pve1 hl-agent[12]: ?[1mv1.3.0 begins\n    2026-03-01T14:02:00+00:00 pve1 hl-agent[12]: it went ?[31mwrong"
	if diff := cmp.Diff(want, on.Journal(ctx, onhost.AgentService)); diff != "" {
		t.Error(diff)
	}
	for range 2 { // one that runs is left alone
		if err := on.Revive(ctx); err != nil {
			t.Error(err)
		}
	}
	if err := on.Ready(ctx, onhost.AgentService); err != nil {
		t.Error(err)
	}
	if ran := h.Ran(); ran[len(ran)-1] != "systemctl restart --no-block hl-agent.service" || strings.HasPrefix(ran[len(ran)-2], "systemctl") {
		t.Error(ran)
	}
	if on.Journal(ctx, onhost.ControllerService) != "" {
		t.Error("one that never ran has a journal")
	}
}

func TestAConnectionThatIsLostIsNoFaultOfTheProgram(t *testing.T) {
	h, on := member(t)
	h.CutAt = "hostname"
	if _, err := on.Look(t.Context(), "hostname"); !onhost.Lost(err) {
		t.Error(err)
	}
	h.Lock()
	h.CutAt = ""
	h.Unlock()
	if err := on.Reconnect(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := on.Look(t.Context(), "pvesh"); onhost.Lost(err) || !onhost.Failed(err) {
		t.Error(err)
	}
	if err := on.Disable(t.Context()); err != nil || h.Done() != "disable" || *h.Units[onhost.AgentService] != (onhosttest.Unit{}) {
		t.Error(err)
	}
}
