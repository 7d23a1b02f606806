package cli

import (
	"context"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/homeiac/homelab/cli/onhost/onhosttest"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// leaving is a fleet of two hosts whose certificates count, each of one serial number,
// and a controller that is on neither.
func leaving(t *testing.T) (*rig, []*onhosttest.Host) {
	t.Helper()
	r := newRig(t)
	hosts := []*onhosttest.Host{r.member("pve1", "1.2.0"), r.member("pve2", "1.2.0")}
	r.trust = &controllerv1.TrustResponse{Certificates: []*controllerv1.CertificateStatus{
		{Role: "admin", Name: "laptop", Serial: "1a"}, {Role: "agent", Name: "pve1", Serial: "1b"},
		{Role: "agent", Name: "pve2", Serial: "1c"}, {Role: "controller", Name: "controller-1", Serial: "1d"},
	}}
	r.guestsOn("pve2", "k3s-1", "k3s-2")
	r.status.Hosts[1].Observation = &homelabv1.Observation{Vms: []*homelabv1.VirtualMachine{
		{Vmid: 201, Mark: "hl1:homelab:k3s-1:1:00112233445566778899aabbccddeeff", Power: homelabv1.Power_POWER_RUNNING},
		{Vmid: 205, Mark: "hl1:homelab:old:3:00112233445566778899aabbccddeeff", Power: homelabv1.Power_POWER_STOPPED},
		{Vmid: 100, Power: homelabv1.Power_POWER_RUNNING},
	}}
	return r, hosts
}

// remove runs it with the host's SSH address.
func (r *rig) remove(m *onhosttest.Host, args ...string) ran {
	return r.run(append([]string{"hosts", "remove", m.Hostname, "--ssh", m.Target()}, args...)...)
}

// untouched fails the test unless nothing was done to the fleet.
func (r *rig) untouched(m *onhosttest.Host) {
	r.t.Helper()
	if did := m.Done(); did != "" || r.rotated != 0 || r.paused != "" || len(r.takenBack) != 0 {
		r.t.Errorf("done: %s, rotated: %d, revoked: %v, paused: %q", did, r.rotated, r.takenBack, r.paused)
	}
}

func TestARemovedHostHasNoPackageNoCertificateAndNoGossipKey(t *testing.T) {
	r, hosts := leaving(t)
	fails(t, r.remove(hosts[1]), "confirm with --yes")
	r.untouched(hosts[1])
	hosts[1].Before = func(argv []string) {
		if r.rotated != 0 || len(r.takenBack) != 0 {
			t.Errorf("%v runs when it is locked out already", argv)
		}
	}
	got := r.remove(hosts[1], "--yes")
	const want = `pve2: its daemons are ended, and package 1.2.0 is removed
  taken back: the certificates of agent@pve2
  left as they are, and no longer looked after:
    k3s-1 (VM 201), running
    k3s-2 (VM 202), running
    old (VM 205), stopped
pve2 is removed.
The new gossip key was not told yet, and is told again: pve4
The Spec names it still: take hosts.pve2 and the guests on it out of it, and apply it.
`
	if got.code != 0 || got.out != want || got.err != "" {
		t.Errorf("%d\n%s%s", got.code, got.out, got.err)
	}
	if did := hosts[1].Done(); did != "disable, remove homelab" || r.rotated != 1 || !slices.Equal(r.takenBack, []string{"agent@pve2"}) || r.paused != "" {
		t.Errorf("done: %s, rotated: %d, revoked: %v, paused: %q", did, r.rotated, r.takenBack, r.paused)
	}
	// Again: there is nothing left but its data, and an earlier attempt may have ended
	// before the rotation.
	hosts[1].Before = nil
	got = r.remove(hosts[1], "--yes", "--purge", "-o", "json")
	var doc removalDoc
	if err := json.Unmarshal([]byte(got.out), &doc); err != nil || got.code != 0 || doc.Package != "purged" || len(doc.Revoked) != 0 || len(doc.Kept) != 1 {
		t.Errorf("%v, %+v", doc, got)
	}
	if did := hosts[1].Done(); did != "purge homelab" || r.rotated != 2 {
		t.Errorf("again: %s, rotated %d", did, r.rotated)
	}
	fails(t, r.run("hosts", "remove", "pve9"), "no host pve9 is known (there are pve1, pve2)")
}

func TestASilentHostIsLockedOutOnly(t *testing.T) {
	r, hosts := leaving(t)
	hosts[1].PowerOff()
	got := r.remove(hosts[1], "--yes")
	if !strings.Contains(got.out, "no longer looked after (as they were seen last):\n    k3s-1 (VM 201), running\n") {
		t.Errorf("what is not seen now is said to be so: %s", got.out)
	}
	if got.code != 0 || !strings.Contains(got.out, "pve2 is only locked out, and what runs on it stays: ssh to 127.0.0.1:") || !strings.Contains(got.out, "Its daemons were not ended.") {
		t.Errorf("%+v", got)
	}
	if r.rotated != 1 || !slices.Equal(r.takenBack, []string{"agent@pve2"}) {
		t.Errorf("rotated: %d, revoked: %v", r.rotated, r.takenBack)
	}
	// Who is not let in has to decide that; whoever answers there may be another.
	hosts[0].Lock()
	hosts[0].Authorized = nil
	hosts[0].Unlock()
	got = r.remove(hosts[0], "--yes")
	if got.code != 1 || !strings.Contains(got.err, "hlctl hosts remove pve1 --no-ssh") || r.rotated != 1 {
		t.Errorf("%+v", got)
	}
	if got := r.run("hosts", "remove", "pve1", "--yes", "--no-ssh"); got.code != 0 || r.rotated != 2 || !slices.Contains(r.takenBack, "agent@pve1") {
		t.Errorf("%+v", got)
	}
}

func TestTheLastControllerIsNotRemoved(t *testing.T) {
	r, hosts := leaving(t)
	hosts[0].HaveController("controller-1")
	fails(t, r.remove(hosts[0], "--yes"), "nothing was done: pve1 has the last controller that answers (controller-1)", "hlctl hosts add --controller")
	r.untouched(hosts[0])
	// Silent, it is known by its address, or by its name.
	address, _, _ := strings.Cut(r.address, ":")
	r.status.Hosts[0].Address = address + ":8400"
	fails(t, r.run("hosts", "remove", "pve1", "--yes", "--no-ssh"), "the last controller")
	r.untouched(hosts[0])
}

// second is another controller of the same fleet.
type second struct{ *fake }

func (second) Version(context.Context, *controllerv1.VersionRequest) (*controllerv1.VersionResponse, error) {
	return &controllerv1.VersionResponse{Version: "v0.1.0", Name: "controller-2"}, nil
}

func (second) RevokeCertificate(context.Context, *controllerv1.RevokeCertificateRequest) (*controllerv1.RevokeCertificateResponse, error) {
	return nil, rpc.Errorf(rpc.ErrRefused, "it is asked to take back its own")
}

func TestOneOfTwoControllersIsRemovedByTheOther(t *testing.T) {
	r, hosts := leaving(t)
	hosts[0].HaveController("controller-2")
	r.issue("second", rpc.Identity{Role: rpc.RoleController, Name: "controller-2"}, time.Hour)
	r.trust.Certificates = append(r.trust.Certificates, &controllerv1.CertificateStatus{Role: "controller", Name: "controller-2", Serial: "1e"})
	issuing := rpc.IssuingName("controller-2", "homelab")
	r.trust.Authorities = append(r.trust.Authorities, &controllerv1.CertificateStatus{Role: "issuing", Name: issuing, Serial: "1f"})
	r.trust.Certificates = append(r.trust.Certificates, &controllerv1.CertificateStatus{Role: "agent", Name: "pve2", Serial: "20", Issuer: issuing})
	other := r.serve("second", second{r.fake})
	r.configure(other, r.address)
	got := r.remove(hosts[0], "--yes")
	if !strings.Contains(got.out, "Its issuing CA stays good, since it signed the certificates of agent@pve2") {
		t.Errorf("%+v", got)
	}
	if got.code != 0 || !strings.Contains(got.out, "Controller controller-2 is gone: "+other+" is taken out of DIR/hlctl.yaml") || !slices.Equal(r.takenBack, []string{"agent@pve1", "controller@controller-2"}) {
		t.Errorf("%v: %+v", r.takenBack, got)
	}
	text, err := os.ReadFile(r.path("hlctl.yaml"))
	if err != nil || strings.Count(string(text), other) != 1 || strings.Count(string(text), r.address) != 2 {
		t.Errorf("%v, of the admin's context alone: %s", err, text)
	}
}

func TestNoHostIsRemovedDuringARun(t *testing.T) {
	r, hosts := leaving(t)
	r.status.Run = 7
	fails(t, r.remove(hosts[1], "--yes"), "nothing was done: run 7 is going on")
	r.untouched(hosts[1])
	// One that begins at the last moment.
	r.status.Run = 0
	hosts[1].Before = func([]string) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.status.Run = 8
	}
	fails(t, r.remove(hosts[1], "--yes"), "nothing was done: run 8 is going on")
	r.untouched(hosts[1])
}

func TestARemovalThatFailsOnTheHostTakesNothingBack(t *testing.T) {
	r, hosts := leaving(t)
	hosts[1].Fails["dpkg --remove"] = "dpkg: error: the archive is damaged"
	got := r.remove(hosts[1], "--yes")
	if got.code != 1 || !strings.Contains(got.err, "dpkg --remove: exit 2: dpkg: error: the archive is damaged\n  its daemons may be ended, and its certificates were not taken back yet; again: hlctl hosts remove pve2") || r.rotated != 0 || len(r.takenBack) != 0 || r.paused != "" {
		t.Errorf("%+v", got)
	}
	delete(hosts[1].Fails, "dpkg --remove")
	if got := r.remove(hosts[1], "--yes"); got.code != 0 || r.rotated != 1 {
		t.Errorf("%+v", got)
	}
}

func TestARemovalThatReachesNoControllerAnyMoreSaysWhatIsLeftToDo(t *testing.T) {
	r, hosts := leaving(t)
	r.ready.release = time.Millisecond
	hosts[1].Before = func(argv []string) {
		if slices.Contains(argv, "--remove") { // from here on nobody lets us in
			if err := os.Rename(r.path("admin.key"), r.path("lost.key")); err != nil {
				t.Error(err)
			}
		}
	}
	fails(t, r.remove(hosts[1], "--yes"), "its daemons are ended, and its certificates are not all taken back; again: hlctl hosts remove pve2")
	if did := hosts[1].Done(); did != "disable, remove homelab" || len(r.takenBack) != 0 {
		t.Errorf("done: %s, revoked: %v", did, r.takenBack)
	}
}

func TestCtrlCAtTheQuestionRemovesNothing(t *testing.T) {
	r, hosts := leaving(t)
	ctx, stop := context.WithCancel(t.Context())
	question := &buffer{tell: func(all string) {
		if strings.Contains(all, "Remove pve2 from the fleet?") {
			stop()
		}
	}}
	fails(t, r.runWith(ctx, forever{}, func(a *app) { a.inIsTerm, a.errw = true, question }, "hosts", "remove", "pve2", "--ssh", hosts[1].Target()))
	r.untouched(hosts[1])
	got := r.runWith(t.Context(), strings.NewReader("y\n"), func(a *app) { a.inIsTerm = true }, "hosts", "remove", "pve2", "--ssh", hosts[1].Target())
	if got.code != 0 || r.rotated != 1 {
		t.Errorf("%+v", got)
	}
}

// forever is standard input of a terminal at which nobody types.
type forever struct{}

func (forever) Read([]byte) (int, error) { select {} }

// revokes is a certificate of a holder that is taken back.
func (f *fake) revokes(holder string) []string {
	var serials []string
	for _, c := range f.trust.GetCertificates() {
		if c.GetRole()+"@"+c.GetName() == holder && c.GetRevoked() == nil {
			c.Revoked = timestamppb.New(f.clock.now())
			serials = append(serials, c.GetSerial())
		}
	}
	return serials
}

func TestAnotherHostIsNotRemovedInItsPlace(t *testing.T) {
	r, hosts := leaving(t)
	for _, purge := range [][]string{nil, {"--purge"}} {
		got := r.run(append([]string{"hosts", "remove", "pve1", "--ssh", hosts[1].Target(), "--yes"}, purge...)...)
		fails(t, got, "is not pve1: /etc/homelab/agent.yaml on it says that it is pve2", "nothing was done")
		r.untouched(hosts[1])
		// Its data are somebody's too, when the package is gone.
		succeeds(t, r.remove(hosts[1], "--yes"))
		hosts[1].Done()
		r.rotated, r.takenBack = 0, nil
	}
}
