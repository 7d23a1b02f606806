package agent

import (
	"errors"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/homeiac/homelab/agent/guest/guesttest"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/k3s"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/sshexec/sshtest"
)

func TestAGuestIsAskedBeforeItsPowerIsCut(t *testing.T) {
	for _, tc := range []struct {
		name  string
		force bool
		power homelabv1.Power
		mute  bool // SSH
		agent bool // the guest agent answers
		hangs bool
		busy  bool // its k3s does not stop
		stops []string
		quiet int // how often its k3s was asked
		text  string
	}{
		{name: "well", power: homelabv1.Power_POWER_RUNNING, stops: []string{"shutdown"}, quiet: 1, text: "it shut down"},
		{name: "k3s does not stop", power: homelabv1.Power_POWER_RUNNING, busy: true, stops: []string{"shutdown"}, quiet: 1, text: "it shut down"},
		{name: "does not shut down", power: homelabv1.Power_POWER_RUNNING, hangs: true, stops: []string{"shutdown", "stop"}, quiet: 1, text: "its power was cut"},
		{name: "mute", power: homelabv1.Power_POWER_RUNNING, mute: true, stops: []string{"stop"}, text: "its power was cut"},
		{name: "mute, but its agent answers", power: homelabv1.Power_POWER_RUNNING, mute: true, agent: true, stops: []string{"shutdown"}, text: "it shut down"},
		{name: "paused", power: homelabv1.Power_POWER_PAUSED, stops: []string{"stop"}, text: "its power was cut"},
		{name: "forced", power: homelabv1.Power_POWER_RUNNING, force: true, stops: []string{"stop"}, text: "its power was cut"},
		{name: "stopped", power: homelabv1.Power_POWER_STOPPED, text: "is stopped"},
		{name: "absent", power: homelabv1.Power_POWER_ABSENT, text: "there is no VM 201"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			vm := running(w)
			vm.Power = tc.power
			if tc.agent {
				vm.GuestAgent = factYes("")
			}
			w.hyp.hangs = tc.hangs
			if w.hyp.vms[201] = vm; tc.power == homelabv1.Power_POWER_ABSENT {
				delete(w.hyp.vms, 201)
			}
			in := goodInside()
			var quiet atomic.Int32
			srv := w.guestOS(func(c sshtest.Command) int {
				if script, _ := guesttest.Script(c); script == k3s.QuietScript {
					quiet.Add(1)
					if tc.busy {
						return 1
					}
					return 0
				}
				return in.answer(c)
			})
			if tc.mute {
				srv.Stop()
			}
			req := w.request(stopStep)
			req.Force = tc.force
			s, err := w.do(req)
			if err != nil || !strings.Contains(s.result.GetText(), tc.text) || s.result.GetChanged() != (len(tc.stops) > 0) {
				t.Errorf("%v %v", s.result, err)
			}
			if !slices.Equal(w.hyp.stops, tc.stops) || int(quiet.Load()) != tc.quiet {
				t.Errorf("stops %v, k3s asked %d times", w.hyp.stops, quiet.Load())
			}
			w.hyp.stops = nil
			if s, err = w.do(req); err != nil || s.result.GetChanged() || len(w.hyp.stops) != 0 {
				t.Errorf("again: %v %v", s.result, err)
			}
		})
	}
}

func TestAVMOfUnknownPowerIsNotStopped(t *testing.T) {
	w := newWorld(t)
	w.hyp.vms[201] = running(w)
	w.hyp.vms[201].Power = homelabv1.Power_POWER_UNSPECIFIED
	if _, err := w.do(w.request(stopStep)); !errors.Is(err, rpc.ErrUnavailable) || len(w.hyp.stops) != 0 {
		t.Errorf("got %v", err)
	}
	req := w.request(stopStep)
	req.Force = true
	if _, err := w.do(req); !errors.Is(err, rpc.ErrUnavailable) || len(w.hyp.stops) != 0 {
		t.Errorf("forced, and nobody knows whether it has a process: %v", err)
	}
}

// TestAVMWhoseQEMUIsMuteIsStopped: only its power can be cut, when nobody in it
// answers either.
func TestAVMWhoseQEMUIsMuteIsStopped(t *testing.T) {
	w := newWorld(t)
	w.hyp.vms[201] = running(w)
	w.hyp.vms[201].Power, w.hyp.vms[201].Process = homelabv1.Power_POWER_UNSPECIFIED, factYes("")
	w.guestOS(goodInside().answer).Stop()
	s, err := w.do(w.request(stopStep))
	if err != nil || !slices.Equal(w.hyp.stops, []string{"stop"}) || w.hyp.vms[201].GetPower() != homelabv1.Power_POWER_STOPPED {
		t.Errorf("%v %v, stops %v", s.result, err, w.hyp.stops)
	}
}

func TestResetAndResume(t *testing.T) {
	w := newWorld(t)
	w.hyp.vms[201] = running(w)
	if s := w.must(resetStep); !slices.Equal(s.calls(), []string{"qm reset"}) || !s.result.GetChanged() {
		t.Errorf("%v %v", s.calls(), s.result)
	}
	if s := w.must(resumeStep); s.result.GetChanged() || len(s.calls()) != 0 {
		t.Errorf("one that runs: %v", s.result)
	}
	w.hyp.vms[201].Power = homelabv1.Power_POWER_PAUSED
	if s := w.must(resumeStep); !slices.Equal(s.calls(), []string{"qm resume"}) || !s.result.GetChanged() {
		t.Errorf("%v %v", s.calls(), s.result)
	}
	w.hyp.vms[201].Power = homelabv1.Power_POWER_PAUSED
	if s := w.must(resetStep); !slices.Equal(s.calls(), []string{"qm reset", "qm resume"}) || w.hyp.vms[201].GetPower() != homelabv1.Power_POWER_RUNNING {
		t.Errorf("one that crashed: %v %v", s.calls(), s.result)
	}
	w.hyp.vms[201].Power = homelabv1.Power_POWER_STOPPED
	for _, a := range []homelabv1.Action{resetStep, resumeStep} {
		if s, err := w.do(w.request(a)); !errors.Is(err, rpc.ErrRefused) || len(s.calls()) != 0 {
			t.Errorf("%s of a stopped VM: %v", a, err)
		}
	}
	delete(w.hyp.vms, 201)
	for _, a := range []homelabv1.Action{resetStep, resumeStep} {
		if _, err := w.do(w.request(a)); !errors.Is(err, rpc.ErrNotFound) {
			t.Errorf("%s of no VM: %v", a, err)
		}
	}
}

func TestAnAdoptionWritesTheMarkAndLooksOnly(t *testing.T) {
	w := newWorld(t)
	vm := running(w)
	vm.Mark, vm.Digest, vm.GuestAgent, vm.Addresses, vm.Macs = "", "abc", factYes(""), []string{"192.168.4.9"}, []string{"BC:24:11:00:00:09"}
	w.hyp.vms[201] = vm
	var scripts []string
	w.hyp.exec = func(req *driverv1.ExecRequest) (*driverv1.ExecResponse, error) {
		scripts = append(scripts, req.GetArgv()[2])
		return &driverv1.ExecResponse{Stdout: []byte("0123456789abcdef0123456789abcdef\nssh-ed25519 AAAAkey root@it\n-----BEGIN OPENSSH PRIVATE KEY-----\n")}, nil
	}
	req := w.request(adoptStep)
	req.Want.Identity.Generation, req.Want.Identity.Mark = 0, "hl1:home:k3s-1:0:abcd"
	s, err := w.do(req)
	if err != nil || !slices.Equal(s.calls(), []string{"qm set"}) || !s.result.GetChanged() {
		t.Fatalf("%v %v", s.calls(), err)
	}
	l := s.result.GetLearned()
	if !slices.Equal(l.GetHostKeys(), []string{"ssh-ed25519 AAAAkey"}) || l.GetMachineId() != "0123456789abcdef0123456789abcdef" || !slices.Equal(l.GetAddresses(), []string{"192.168.4.9"}) || l.GetUser() != "ubuntu" || len(l.GetMacs()) != 1 {
		t.Errorf("learned %v", l)
	}
	if !slices.Equal(scripts, []string{":", learnScript}) || strings.ContainsAny(learnScript, ">|") {
		t.Errorf("ran %q", scripts)
	}
	w.hyp.exec = nil
	if s, err = w.do(req); err != nil || s.result.GetChanged() || len(s.calls()) != 0 || !strings.Contains(s.result.GetText(), "does not tell its SSH host keys") {
		t.Errorf("again, its agent mute: %v %v", s.result, err)
	}
	req.Want.Identity.Mark = "hl1:home:k3s-1:0:ffff"
	if _, err = w.do(req); !errors.Is(err, rpc.ErrRefused) || vm.GetMark() != "hl1:home:k3s-1:0:abcd" {
		t.Errorf("another mark: %v", err)
	}
}

func TestASoakEndsWhenTheGuestFallsIll(t *testing.T) {
	soak := homelabv1.Action_ACTION_SOAK
	w := newWorld(t)
	w.svc.soakGrace = 200 * time.Millisecond
	g := newK3sGuest(t, w)
	g.unit, g.version, g.data, g.node, g.nodeVers = "active", release, true, "True", release
	req := w.joinRequest(soak)
	req.Token, req.Soak = nil, durationpb.New(300*time.Millisecond)
	s, err := w.do(req)
	if err != nil || s.result.GetChanged() || len(s.calls()) != 0 || !strings.Contains(s.result.GetText(), "stayed well for 300ms") {
		t.Fatalf("%v %v", s.result, err)
	}
	for _, tc := range []struct {
		name, want string
		turn, back func()
	}{
		{"its Node is not Ready", "it did not stay well: its Node is not Ready: KubeletNotReady", func() { g.node = "False" }, func() { g.node = "True" }},
		{"it is another version", "it runs k3s v1.34.0+k3s1", func() { g.nodeVers = "v1.34.0+k3s1" }, func() { g.nodeVers = release }},
		{"its etcd cannot be asked", "etcd's", func() { g.pki = nil }, nil},
	} {
		g.mu.Lock()
		kept := g.pki
		tc.turn()
		g.mu.Unlock()
		req.Soak = durationpb.New(time.Hour)
		if _, err := w.do(req); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", tc.name, err)
		}
		g.mu.Lock()
		if g.pki = kept; tc.back != nil {
			tc.back()
		}
		g.mu.Unlock()
	}
	w.hyp.vms[201].Power = homelabv1.Power_POWER_STOPPED
	if _, err := w.do(req); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "VM 201 is stopped") {
		t.Errorf("stopped: %v", err)
	}
	w.hyp.vms[201].Uuid = "other"
	if _, err := w.do(req); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "is not guest k3s-1") {
		t.Errorf("another VM: %v", err)
	}
}

func TestASoakWithoutK3sWantsTheGuestToAnswer(t *testing.T) {
	w := newWorld(t)
	w.svc.soakGrace = 200 * time.Millisecond
	w.hyp.vms[201] = running(w)
	in := goodInside()
	srv := w.guestOS(func(c sshtest.Command) int {
		if script, _ := guesttest.Script(c); script == ":" {
			return 0
		}
		return in.answer(c)
	})
	req := w.request(homelabv1.Action_ACTION_SOAK)
	req.Soak = durationpb.New(200 * time.Millisecond)
	if _, err := w.do(req); err != nil {
		t.Fatal(err)
	}
	srv.Stop()
	if _, err := w.do(req); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("mute: %v", err)
	}
}

// unitsGuest is a guest in which k3s runs or lies, as UnitsScript and the probe tell.
type unitsGuest struct {
	*k3sGuest
	enabled, pass, uninstall bool
	volumes                  string // of pods, in local-path storage
}

func (g *unitsGuest) answer(c sshtest.Command) int {
	script, _ := guesttest.Script(c)
	g.mu.Lock()
	switch {
	case script == k3s.UnitsScript:
		var s guesttest.Sections
		state, enabled := g.unit, "disabled"
		if state == "" {
			state = "inactive"
		}
		if g.enabled {
			enabled = "enabled"
		}
		s.Add("active-server", state, "0")
		s.Add("enabled-server", enabled, "0")
		s.Add("active-agent", "inactive", "3")
		s.Add("enabled-agent", "", "1")
		_, _ = c.Stdout.Write(s.Bytes())
		g.mu.Unlock()
		return 0
	case script == k3s.LocalVolumesScript:
		_, _ = io.WriteString(c.Stdout, g.volumes)
		g.mu.Unlock()
		return 0
	case strings.HasPrefix(script, "rm -f "+ownPath):
		delete(g.files, ownPath)
		g.mu.Unlock()
		return 0
	case script == k3s.ProbeScript:
		var b strings.Builder
		g.probe(&b)
		text := b.String()
		for file, there := range map[string]bool{k3s.NodePass: g.pass, k3s.Server.Uninstall(): g.uninstall} {
			if there {
				text = strings.Replace(text, "ls: cannot access '"+file+"': No such file or directory", file, 1)
			}
		}
		_, _ = io.WriteString(c.Stdout, text)
		g.mu.Unlock()
		return 0
	case strings.Contains(script, "rm -f "+k3s.NodePass):
		g.pass, g.uninstall, g.enabled = false, false, false
		g.mu.Unlock()
		g.k3sGuest.answer(c)
		return 0
	case strings.Contains(script, "section stop"):
		g.enabled = false
	}
	g.mu.Unlock()
	return g.k3sGuest.answer(c)
}

func newUnitsGuest(t *testing.T, in *k3sGuest) *unitsGuest {
	t.Helper()
	g := &unitsGuest{k3sGuest: in}
	g.srv.Lock()
	defer g.srv.Unlock()
	g.srv.Run = g.answer
	return g
}

func TestHaltStopsAndDisablesOnce(t *testing.T) {
	w := newWorld(t)
	g := newUnitsGuest(t, newBareGuest(t, w))
	halt := homelabv1.Action_ACTION_HALT
	if s := w.must(halt); s.result.GetChanged() || len(s.calls()) != 0 {
		t.Errorf("without k3s: %v", s.result)
	}
	g.unit, g.enabled = "active", true
	if s := w.must(halt); !s.result.GetChanged() || !slices.Equal(s.calls(), []string{"guest stop"}) || g.unit != "inactive" || g.enabled {
		t.Errorf("%v %v", s.result, s.calls())
	}
	if s := w.must(halt); s.result.GetChanged() || len(s.calls()) != 0 {
		t.Errorf("again: %v", s.result)
	}
	g.enabled = true // stopped, but it would start with the guest
	if s := w.must(halt); !s.result.GetChanged() || g.enabled {
		t.Errorf("enabled: %v", s.result)
	}
}

func TestCleanRemovesAllOfK3sButNoneThatRuns(t *testing.T) {
	w := newWorld(t)
	g := newUnitsGuest(t, newBareGuest(t, w))
	clean := homelabv1.Action_ACTION_CLEAN
	if s := w.must(clean); s.result.GetChanged() || len(s.calls()) != 0 {
		t.Errorf("without k3s: %v", s.result)
	}
	g.unit, g.version, g.data, g.pass, g.uninstall, g.enabled = "active", release, true, true, true, true
	g.files[ownPath] = "x"
	if s, err := w.do(w.request(clean)); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "k3s is active or enabled") || len(s.calls()) != 0 || !g.data {
		t.Errorf("one that runs: %v", err)
	}
	g.unit, g.enabled = "inactive", false
	if s := w.must(clean); !s.result.GetChanged() || g.data || g.pass || g.files[ownPath] != "" {
		t.Errorf("%v, %+v", s.result, g)
	}
	g.pass = true // cut off before
	if s := w.must(clean); !s.result.GetChanged() || g.pass {
		t.Errorf("a password alone: %v", s.result)
	}
	g.data = true
	if s, err := w.do(w.request(clean)); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "no uninstall script") || len(s.calls()) != 0 {
		t.Errorf("data without an uninstall script: %v", err)
	}
}

// TestLeftoversOfAnOlderK3sAreRemovedBeforeAJoin, when there is nothing to lose.
func TestLeftoversOfAnOlderK3sAreRemovedBeforeAJoin(t *testing.T) {
	w := newWorld(t)
	g := newUnitsGuest(t, newK3sGuest(t, w))
	g.unit, g.version, g.uninstall = "failed", "v1.20.0+k3s1", true
	for name, turn := range map[string]func(bool){
		"a pod's volume": func(on bool) {
			if g.volumes = ""; on {
				g.volumes = "pvc-1\n"
			}
		},
		"a server's data":     func(on bool) { g.data = on },
		"a unit that starts":  func(on bool) { g.unit = map[bool]string{true: "activating", false: "failed"}[on] },
		"no uninstall script": func(on bool) { g.uninstall = !on },
		"a member that was ours": func(on bool) {
			g.files[ownPath] = map[bool]string{true: w.want().GetIdentity().GetMark() + " agent member", false: ""}[on]
		},
		"a member of ours, stopped": func(on bool) {
			g.files[ownPath] = map[bool]string{true: w.want().GetIdentity().GetMark() + " agent", false: ""}[on]
		},
	} {
		turn(true)
		s, err := w.do(w.joinRequest(joinStep))
		if !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "remove it first") || len(g.scripts) != 0 || len(s.calls()) != 0 {
			t.Errorf("%s: %v, scripts %v", name, err, g.scripts)
		}
		turn(false)
	}
	if _, err := w.do(w.joinRequest(joinStep)); err != nil || len(g.scripts) < 2 || g.scripts[0] != "clean" || !slices.Contains(g.scripts, "install") {
		t.Errorf("%v, scripts %v", err, g.scripts)
	}
}
