package cli

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/homeiac/homelab/cli/onhost"
	"github.com/homeiac/homelab/cli/onhost/onhosttest"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
)

// upgrading is a fleet of three, with the controller on the first, and hlctl with a
// package of version 1.3.0.
func upgrading(t *testing.T) (*rig, []*onhosttest.Host) {
	t.Helper()
	r := newRig(t)
	hosts := []*onhosttest.Host{r.member("pve1", "1.2.0"), r.member("pve2", "1.2.0"), r.member("pve3", "1.2.0")}
	hosts[0].HaveController("controller-1")
	if err := os.Mkdir(r.path("packages"), 0o700); err != nil {
		t.Fatal(err)
	}
	r.write("packages/homelab_1.3.0_amd64.deb", onhosttest.Deb("1.3.0"))
	return r, hosts
}

// upgrade runs it on the hosts, or with other arguments than their SSH addresses.
func (r *rig) upgrade(ctx context.Context, hosts []*onhosttest.Host, args ...string) ran {
	args = append([]string{"hosts", "upgrade", "--from", r.path("packages"), "--checksum", onhost.SHA256([]byte(onhosttest.Deb("1.3.0")))}, args...)
	for _, m := range hosts {
		args = append(args, "--ssh", sshTo(m))
	}
	return r.runWith(ctx, strings.NewReader(""), nil, args...)
}

// ailing makes hosts that do not get well with 1.3.0, which are given up on soon. Those
// that do have as long.
func (r *rig) ailing(hosts ...*onhosttest.Host) {
	r.ready.limit = time.Second
	for _, m := range hosts {
		m.Sick["1.3.0"] = true
	}
}

func TestHostsAreUpgradedOneAfterTheOtherWithTheControllerLast(t *testing.T) {
	r, hosts := upgrading(t)
	var order []string
	for _, m := range hosts {
		m.Before = func(argv []string) {
			if !slices.Contains(argv, "--install") {
				return
			}
			order = append(order, m.Hostname)
			r.mu.Lock()
			defer r.mu.Unlock()
			if !strings.Contains(r.paused, "hlctl hosts upgrade of pve2, pve3, pve1 to 1.3.0") {
				t.Errorf("%s is upgraded, and runs may begin: %q", m.Hostname, r.paused)
			}
		}
	}
	got := r.upgrade(t.Context(), hosts)
	if got.code != 0 || strings.Join(order, " ") != "pve2 pve3 pve1" {
		t.Fatalf("%v: %+v", order, got)
	}
	t.Log(got.out)
	if r.paused != "" {
		t.Errorf("still paused: %s", r.paused)
	}
	for i, did := range changedOn(hosts) {
		if did != "install homelab_1.3.0_amd64.deb" {
			t.Errorf("%s: %s", hosts[i].Hostname, did)
		}
	}
	if got := r.upgrade(t.Context(), hosts); got.code != 0 || strings.Join(changedOn(hosts), "") != "" || strings.Contains(got.out, "Paused") {
		t.Errorf("again: %+v", got)
	}
}

func TestAHostThatIsNotReadyGetsItsOldPackageAndNoOtherIsTouched(t *testing.T) {
	r, hosts := upgrading(t)
	r.ailing(hosts[1])
	got := r.upgrade(t.Context(), hosts)
	if got.code != 1 {
		t.Fatalf("%+v", got)
	}
	t.Log(got.out + got.err)
	if got := changedOn(hosts); got[0] != "" || got[1] != "install homelab_1.3.0_amd64.deb, install homelab_1.2.0_amd64.deb" || got[2] != "" {
		t.Errorf("%q", got)
	}
	if r.paused != "" {
		t.Errorf("still paused: %s", r.paused)
	}
	got = r.upgrade(t.Context(), hosts, "-o", "json")
	var docs []upgradeDoc
	if err := json.Unmarshal([]byte(got.out), &docs); err != nil || got.code != 1 || len(docs) != 3 || docs[0].Result != resultReverted || docs[1].Result != resultUntouched {
		t.Errorf("%v, %+v", docs, got)
	}
}

func TestAControllerThatDoesNotComeBackGetsItsOldPackageToo(t *testing.T) {
	r, hosts := upgrading(t)
	r.ailing(hosts[0])
	fails(t, r.upgrade(t.Context(), hosts[:1], "pve1"), "controller controller-1 says that it is version v1.2.0, and not v1.3.0", "it has 1.2.0 again, and is online with it")
}

func TestAPackageThatDpkgRefusesChangesNothing(t *testing.T) {
	r, hosts := upgrading(t)
	hosts[1].Fails["dpkg --install "+onhost.KeptAt("1.3.0")] = "dpkg: error: the archive is damaged"
	fails(t, r.upgrade(t.Context(), hosts), "it has 1.2.0 as before: ", "the archive is damaged", "not touched: pve3, pve1")
	if did := strings.Join(changedOn(hosts), ""); did != "" || r.paused != "" {
		t.Errorf("done: %s, paused: %s", did, r.paused)
	}
}

func TestWithoutAWayBackItAsksFirst(t *testing.T) {
	r, hosts := upgrading(t)
	delete(hosts[2].Files, onhost.KeptAt("1.2.0"))
	hosts[1].Files[onhost.KeptAt("1.2.0")] = onhosttest.Deb("1.1.0") // another one than its name says
	fails(t, r.upgrade(t.Context(), hosts), "on pve2 and pve3 the package that is installed is not in /var/cache/homelab", "--no-way-back")
	if did := strings.Join(changedOn(hosts), ""); did != "" || r.paused != "" {
		t.Errorf("done: %s, paused: %s", did, r.paused)
	}
	r.ailing(hosts[2])
	got := r.upgrade(t.Context(), hosts, "--no-way-back")
	if got.code != 1 || !strings.Contains(got.err, "there is no old package on it to go back to") || strings.Join(changedOn(hosts), ",") != ",install homelab_1.3.0_amd64.deb,install homelab_1.3.0_amd64.deb" {
		t.Errorf("%+v", got)
	}
}

func TestNoHostIsUpgradedDuringARun(t *testing.T) {
	r, hosts := upgrading(t)
	r.status.Run = 7
	fails(t, r.upgrade(t.Context(), hosts), "nothing was done: run 7 is going on; wait for its end with: hlctl runs follow")
	// One that begins when all was looked at, and before the pause.
	r.status.Run = 0
	hosts[2].Before = func([]string) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.status.Run = 8
	}
	got := r.upgrade(t.Context(), hosts)
	if got.code != 1 || !strings.Contains(got.err, "nothing was done: run 8 is going on") || r.paused != "" {
		t.Errorf("%+v, paused %q", got, r.paused)
	}
	if did := strings.Join(changedOn(hosts), ""); did != "" {
		t.Errorf("done: %s", did)
	}
}

func TestAPauseOfAPersonServesAndStays(t *testing.T) {
	r, hosts := upgrading(t)
	r.paused = "moving house (by admin@laptop since 2026-03-01 14:00)"
	if got := r.upgrade(t.Context(), hosts[:1], "pve1"); got.code != 0 || !strings.HasPrefix(r.paused, "moving house") {
		t.Errorf("%+v, paused %q", got, r.paused)
	}
	r.paused = "hlctl hosts upgrade of pve1 to 1.3.0 (by admin@desk since 2026-03-01 14:00); end it with: hlctl resume"
	if got := r.upgrade(t.Context(), hosts); got.code != 1 || !strings.Contains(got.err, "somebody else is at it, or was and did not end") || changedOn(hosts)[1] != "" {
		t.Errorf("%+v", got)
	}
}

func TestTheUpgradeStopsWhenSomebodyEndsItsPause(t *testing.T) {
	r, hosts := upgrading(t)
	hosts[1].Before = func(argv []string) {
		if slices.Contains(argv, "--install") {
			_, _ = r.Resume(t.Context(), &controllerv1.ResumeRequest{})
		}
	}
	fails(t, r.upgrade(t.Context(), hosts), "somebody ended the pause (hlctl resume), and runs may begin\n  not touched: pve3, pve1")
	if got := changedOn(hosts); got[1] == "" || got[0]+got[2] != "" {
		t.Errorf("%q", got)
	}
}

func TestCtrlCEndsAnUpgradeAfterTheHostThatItIsAt(t *testing.T) {
	r, hosts := upgrading(t)
	ctx, stop := context.WithCancel(t.Context())
	hosts[1].Before = func(argv []string) {
		if slices.Contains(argv, "--install") {
			stop()
		}
	}
	got := r.upgrade(ctx, hosts)
	if got.code != 1 || !strings.Contains(got.out, "online with it after") || !strings.Contains(got.err, "interrupted: pve2 is finished first") || !strings.Contains(got.err, "not touched: pve3, pve1") {
		t.Errorf("%+v", got)
	}
	if got := changedOn(hosts); got[1] != "install homelab_1.3.0_amd64.deb" || got[0]+got[2] != "" {
		t.Errorf("%q", got)
	}
	if r.paused != "" {
		t.Errorf("still paused: %s", r.paused)
	}
}

func TestAConnectionThatBreaksDuringDpkgIsMadeAgain(t *testing.T) {
	r, hosts := upgrading(t)
	cut := false
	hosts[1].Before = func(argv []string) {
		if slices.Contains(argv, "--install") && !cut {
			cut = true
			hosts[1].Cut()
		}
	}
	succeeds(t, r.upgrade(t.Context(), hosts[1:2], "pve2"), "connecting again")
}

func TestAHostThatDoesNotAnswerIsSkipped(t *testing.T) {
	r, hosts := upgrading(t)
	hosts[1].Stop()
	got := r.upgrade(t.Context(), hosts)
	if got.code != 3 || !strings.Contains(got.out, "pve2 was left alone: ssh to 127.0.0.1:") {
		t.Errorf("%+v", got)
	}
	fails(t, r.upgrade(t.Context(), hosts[1:2], "pve2"))
	if got := changedOn(hosts); got[0] == "" || got[2] == "" {
		t.Errorf("%q", got)
	}
}

func TestAnEarlierPackageIsInstalledOnRequestOnly(t *testing.T) {
	r, hosts := upgrading(t)
	hosts[2].Have("1.4.0")
	got := r.upgrade(t.Context(), hosts)
	if got.code != 1 || !strings.Contains(got.err, "host pve3: it has package 1.4.0, which is later than 1.3.0") || strings.Join(changedOn(hosts), "") != "" {
		t.Errorf("%+v", got)
	}
	if got := r.upgrade(t.Context(), hosts, "--downgrade"); got.code != 0 || changedOn(hosts)[2] != "install homelab_1.3.0_amd64.deb" {
		t.Errorf("%+v", got)
	}
}

func TestAPauseThatCannotBeEndedIsSaid(t *testing.T) {
	r, hosts := upgrading(t)
	r.stuck = true
	ctx, stop := context.WithCancel(t.Context())
	stop()
	a := r.app(strings.NewReader(""), io.Discard, io.Discard)
	a.config = r.path("hlctl.yaml")
	a.ready.release = 10 * time.Millisecond
	h, err := a.hold(t.Context(), "upgrade of pve1")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.end(ctx, nil); err == nil || !strings.Contains(err.Error(), "all changes are still PAUSED") || !strings.Contains(err.Error(), "hlctl resume") {
		t.Errorf("%v", err)
	}
	_ = hosts
}

func TestAnotherHostIsNotUpgradedInItsPlace(t *testing.T) {
	r, hosts := upgrading(t)
	fails(t, r.upgrade(t.Context(), nil, "pve2", "--ssh", hosts[2].Target()), "is not pve2: /etc/homelab/agent.yaml on it says that it is pve3")
	if did := changedOn(hosts); strings.Join(did, "") != "" {
		t.Errorf("done: %v", did)
	}
}
