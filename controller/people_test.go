package controller

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/homeiac/homelab/controller/store"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

type statusRequest = controllerv1.StatusRequest

func (r *running) pauseNow(t *testing.T, reason string) string {
	t.Helper()
	resp, err := r.client.Pause(t.Context(), &controllerv1.PauseRequest{Reason: reason})
	if err != nil {
		t.Error(err)
	}
	return resp.GetPaused()
}

func (r *running) resumeNow(t *testing.T, guest string) string {
	t.Helper()
	resp, err := r.client.Resume(t.Context(), &controllerv1.ResumeRequest{Guest: guest})
	if err != nil {
		t.Error(err)
	}
	return resp.GetText()
}

// story is what Why tells, as kind and text.
func (r *running) story(t *testing.T, guest string) (entries []string, now *controllerv1.GuestStatus) {
	t.Helper()
	resp, err := r.viewer.Why(t.Context(), &controllerv1.WhyRequest{Guest: guest})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range resp.GetEntries() {
		entries = append(entries, e.GetKind()+" "+e.GetText())
	}
	return entries, resp.GetNow()
}

// inOrder fails the test unless all parts are found in the entries, one after the
// other.
func inOrder(t *testing.T, entries []string, parts ...string) {
	t.Helper()
	i := 0
	for _, e := range entries {
		if i < len(parts) && strings.Contains(e, parts[i]) {
			i++
		}
	}
	if i < len(parts) {
		t.Errorf("%q is not told after what comes before it:\n%s", parts[i], strings.Join(entries, "\n"))
	}
}

func TestWhyTellsTheWholeStoryOfAGuest(t *testing.T) {
	f := newFleet(t, hostNames(3)...)
	c := whole(t, f)
	f.stopped()
	if _, now := c.story(t, "k3s-2"); now.GetHealth() != controllerv1.Health_HEALTH_UNWELL || now.GetSignal() != "stopped" {
		t.Errorf("now %v", now)
	}
	c.apply(t.Context(), withDisk(), "", true).did(t)
	entries, now := c.story(t, "k3s-2")
	inOrder(t, entries, "planned run 1 by admin@admin-1: create, start, boot, join", "done ", "seen healthy",
		"seen unwell (stopped): ", "planned run 2 by admin@admin-1: ", "done stop k3s-2 on pve2", "done destroy k3s-2 on pve2", "done join k3s-2 on pve2", "seen healthy")
	if now.GetHealth() != controllerv1.Health_HEALTH_HEALTHY {
		t.Errorf("now %v", now)
	}
	if n := len(slices.DeleteFunc(slices.Clone(entries), func(e string) bool { return !strings.HasPrefix(e, "seen unwell") })); n != 1 {
		t.Errorf("unwell is told %d times:\n%s", n, strings.Join(entries, "\n"))
	}
	if short, err := c.viewer.Why(t.Context(), &controllerv1.WhyRequest{Guest: "k3s-2", Limit: 1}); err != nil || len(short.GetEntries()) != 1 || short.GetEntries()[0].GetText() != "healthy" {
		t.Errorf("the latest: %v, %v", short.GetEntries(), err)
	}
	if _, err := c.viewer.Why(t.Context(), &controllerv1.WhyRequest{Guest: "nobody"}); !errors.Is(err, rpc.ErrNotFound) {
		t.Errorf("nobody: %v", err)
	}
}

func TestAGuestIsTakenOutOfItsPark(t *testing.T) {
	f := newFleet(t, "pve1")
	c := f.up()
	c.apply(t.Context(), specOf(1), "", true).did(t)
	_, err := c.store.ChangeGuest(t.Context(), nil, "k3s-1", func(g *store.Guest) error {
		g.Failures, g.Attempts = 3, []store.Attempt{{Action: homelabv1.Action_ACTION_START, At: noon}}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if text := c.resumeNow(t, "k3s-1"); !strings.Contains(text, "k3s-1") {
		t.Errorf("said %q", text)
	}
	if rec := c.guest(t, "k3s-1"); rec.Failures != 0 || len(rec.Attempts) != 0 {
		t.Errorf("remembered %+v", rec)
	}
	entries, _ := c.story(t, "k3s-1")
	inOrder(t, entries, "done resumed by admin@admin-1")
	if _, err := c.client.Resume(t.Context(), &controllerv1.ResumeRequest{Guest: "nobody"}); !errors.Is(err, rpc.ErrNotFound) {
		t.Errorf("nobody: %v", err)
	}
	if rec := c.guest(t, "nobody"); rec.Name != "" {
		t.Errorf("remembered now: %+v", rec)
	}
	if text := c.resumeNow(t, ""); text != "changes were not paused" {
		t.Errorf("said %q", text)
	}
}

func TestAGuestThatNeverGetsWellIsParkedWithOneNotice(t *testing.T) {
	f := newFleet(t, hostNames(3)...)
	c := whole(t, f)
	f.stopped()
	// The third making in a row came to nothing.
	rec, err := c.store.ChangeGuest(t.Context(), nil, "k3s-2", func(g *store.Guest) error {
		g.Generation, g.ReadyAt, g.Failures, g.Began = 4, time.Time{}, 2, c.now()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	f.agents["pve2"].vms[202].id = c.signer.identity(rec)
	f.mu.Unlock()
	for range 2 {
		if o := c.apply(t.Context(), withDisk(), "", true); o.err != nil || o.summary.GetRefused() != 1 || len(o.plan.GetSteps()) != 0 {
			t.Fatalf("%v, %v", o.err, o.summary)
		}
	}
	entries, now := c.story(t, "k3s-2")
	if now.GetParked() == "" {
		t.Errorf("now %v", now)
	}
	for _, kind := range []string{"parked ", "refused "} {
		if n := len(slices.DeleteFunc(slices.Clone(entries), func(e string) bool { return !strings.HasPrefix(e, kind) })); n != 1 {
			t.Errorf("%q is told %d times:\n%s", kind, n, strings.Join(entries, "\n"))
		}
	}
	c.resumeNow(t, "k3s-2")
	if _, now := c.story(t, "k3s-2"); now.GetParked() != "" {
		t.Errorf("still parked: %v", now)
	}
}

func TestAViewerMayAskWhyAndPauseNothing(t *testing.T) {
	f := newFleet(t, "pve1")
	c := f.up()
	if _, err := c.viewer.Pause(t.Context(), &controllerv1.PauseRequest{}); !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("pause: %v", err)
	}
	if _, err := c.viewer.Resume(t.Context(), &controllerv1.ResumeRequest{}); !errors.Is(err, rpc.ErrDenied) {
		t.Errorf("resume: %v", err)
	}
	if _, err := c.viewer.Why(t.Context(), &controllerv1.WhyRequest{Guest: "k3s-1"}); !errors.Is(err, rpc.ErrNotFound) {
		t.Errorf("why: %v", err)
	}
	if _, err := c.viewer.Orphans(t.Context(), &controllerv1.OrphansRequest{}); err != nil {
		t.Errorf("orphans: %v", err)
	}
	if _, err := c.viewer.ListSnapshots(t.Context(), &controllerv1.ListSnapshotsRequest{}); err != nil {
		t.Errorf("snapshots: %v", err)
	}
}

func TestWhatAStoryTellsLast(t *testing.T) {
	seen := func(state string) store.Entry { return store.Entry{Kind: kindSeen, State: state} }
	parked, resumed := store.Entry{Kind: kindParked, State: stateParked}, store.Entry{Kind: kindDone, State: stateResumed}
	for _, c := range []struct {
		name  string
		story []store.Entry
		want  told
	}{
		{"nothing", nil, told{}},
		{"seen", []store.Entry{seen("healthy"), {Kind: kindDone, Text: "x"}, seen("unwell/stopped")}, told{state: "unwell/stopped"}},
		{"parked", []store.Entry{seen("unwell/stopped"), parked}, told{state: "unwell/stopped", parked: true}},
		{"parked and resumed", []store.Entry{seen("unwell/stopped"), parked, resumed}, told{state: "unwell/stopped"}},
		{"parked and well again", []store.Entry{parked, seen("healthy")}, told{state: "healthy"}},
	} {
		if got := toldBy(c.story); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

// A volume that may be a data disk of ours is never offered to be freed.
func TestAnOrphanThatMayBeDataIsSaidToBeKept(t *testing.T) {
	guests := map[string]store.Guest{
		"k3s-2": {Name: "k3s-2", Host: "pve2", VMID: 202, Holder: store.HolderVM{VMID: 210}, DataDisks: []store.Disk{{Slot: "scsi1"}}},
		"k3s-3": {Name: "k3s-3", Host: "pve3", VMID: 203},
	}
	no := &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_NO}
	for _, c := range []struct {
		host  string
		vmid  int32
		guest string
	}{{"pve2", 202, "k3s-2"}, {"pve2", 210, "k3s-2"}, {"pve1", 202, ""}, {"pve3", 203, ""}, {"pve2", 0, ""}} {
		o := &homelabv1.Orphan{Host: c.host, Vmid: c.vmid, Ours: no}
		markData([]*homelabv1.Orphan{o}, guests)
		if o.GetGuest() != c.guest || (c.guest != "") != strings.Contains(o.GetOurs().GetReason(), "keep it") {
			t.Errorf("VMID %d on %s: %v", c.vmid, c.host, o)
		}
	}
}

func TestAViewerIsToldWhatFailedAndNothingOutOfAGuest(t *testing.T) {
	f := newFleet(t, "pve1")
	const said = "the guest's log: password=hunter2"
	f.fail = func(step *homelabv1.Step) error {
		if step.GetAction() == homelabv1.Action_ACTION_BOOT {
			return rpc.Errorf(rpc.ErrUnavailable, "not booted within 5m\n%s", said)
		}
		return nil
	}
	c := f.up()
	c.apply(t.Context(), specOf(1), "", true)
	hears := func(who controllerv1.ControllerServiceClient) string {
		var all []string
		stream, err := who.FollowRun(t.Context(), &controllerv1.FollowRunRequest{})
		for err == nil {
			var part *controllerv1.FollowRunResponse
			if part, err = stream.Recv(); err == nil {
				all = append(all, part.String())
			}
		}
		if !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		why, err := who.Why(t.Context(), &controllerv1.WhyRequest{Guest: "k3s-1"})
		if err != nil {
			t.Fatal(err)
		}
		runs, err := who.ListRuns(t.Context(), &controllerv1.ListRunsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(append(all, why.String(), runs.String()), "\n")
	}
	if got := hears(c.client); !strings.Contains(got, said) {
		t.Errorf("an admin is not told: %s", got)
	}
	if got := hears(c.viewer); strings.Contains(got, said) || !strings.Contains(got, "not booted within 5m") {
		t.Errorf("a viewer hears: %s", got)
	}
	if got := hears(c.client); !strings.Contains(got, said) {
		t.Errorf("an admin is not told any more: %s", got)
	}
}
