package controller

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/gossip"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func wellObservation() *homelabv1.Observation {
	return &homelabv1.Observation{
		Host: "pve1", NodeName: "node1", PveCluster: yesFact(), Quorate: yesFact(), Driver: yesFact(),
		VmsKnown: yesFact(), ClusterVmidsKnown: yesFact(), Vms: []*homelabv1.VirtualMachine{{Vmid: 201}}, LeftoverVmids: []int32{150},
		ClusterVmids: []*homelabv1.ClusterVmid{{Vmid: 110, Node: "node1", Type: "lxc"}, {Vmid: 300, Node: "other"}},
	}
}

func TestTheStateOfAHostFollowsItsAnswers(t *testing.T) {
	mute := errors.New("no answer")
	was := sight{state: homelabv1.HostState_HOST_STATE_ONLINE, seen: noon.Add(-10 * time.Second), onlineSince: noon.Add(-time.Hour)}
	lostAt := gossip.Peer{Alive: false, Since: noon.Add(-3 * time.Second)}
	noDriver, noPVE, notTold := wellObservation(), wellObservation(), wellObservation()
	noDriver.Driver, noPVE.PveCluster, notTold.Quorate = noFact(), noFact(), nil
	for _, c := range []struct {
		name   string
		before sight
		answer answer
		state  homelabv1.HostState
		since  time.Time
	}{
		{"answers", sight{}, answer{at: noon, obs: wellObservation()}, homelabv1.HostState_HOST_STATE_ONLINE, time.Time{}},
		{"driver down", was, answer{at: noon, obs: noDriver}, homelabv1.HostState_HOST_STATE_DEGRADED, noon},
		{"/etc/pve gone", was, answer{at: noon, obs: noPVE}, homelabv1.HostState_HOST_STATE_DEGRADED, noon},
		{"a missing fact is unknown, not well", was, answer{at: noon, obs: notTold}, homelabv1.HostState_HOST_STATE_DEGRADED, noon},
		{"refused", was, answer{at: noon, err: mute, reach: gossip.AgentGone}, homelabv1.HostState_HOST_STATE_AGENT_GONE, was.seen},
		{"open but mute", was, answer{at: noon, err: mute, reach: gossip.Online}, homelabv1.HostState_HOST_STATE_AGENT_GONE, was.seen},
		{"silent", was, answer{at: noon, err: mute, reach: gossip.Silent}, homelabv1.HostState_HOST_STATE_SILENT, was.seen},
		{"silent since the gossip lost it", was, answer{at: noon, err: mute, reach: gossip.Silent, peer: lostAt}, homelabv1.HostState_HOST_STATE_SILENT, lostAt.Since},
		{
			"still silent", sight{state: homelabv1.HostState_HOST_STATE_SILENT, seen: noon.Add(-time.Hour), since: noon.Add(-time.Minute)},
			answer{at: noon, err: mute, reach: gossip.Silent}, homelabv1.HostState_HOST_STATE_SILENT, noon.Add(-time.Minute),
		},
		{"never seen", sight{}, answer{at: noon, err: mute, reach: gossip.Silent}, homelabv1.HostState_HOST_STATE_UNKNOWN, time.Time{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := judge(c.before, c.answer, noon)
			if got.state != c.state || !got.since.Equal(c.since) {
				t.Errorf("%s since %s, want %s since %s", got.state, got.since, c.state, c.since)
			}
			if (got.reason == "") != (c.state == homelabv1.HostState_HOST_STATE_ONLINE) {
				t.Errorf("reason %q", got.reason)
			}
		})
	}
}

func TestVMIDsOfAHostStayTakenWhileTheyCannotBeListed(t *testing.T) {
	s := judge(sight{}, answer{at: noon, obs: wellObservation()}, noon)
	if want := []int32{110, 150, 201}; !cmp.Equal(s.vmids, want) {
		t.Fatalf("VMIDs %v", s.vmids)
	}
	gone := wellObservation()
	gone.VmsKnown, gone.Vms, gone.ClusterVmids, gone.LeftoverVmids = noFact(), nil, nil, nil
	if s = judge(s, answer{at: noon, obs: gone}, noon); !cmp.Equal(s.vmids, []int32{110, 150, 201}) {
		t.Errorf("/etc/pve gone: VMIDs %v", s.vmids)
	}
	if s = judge(s, answer{at: noon, err: errors.New("x"), reach: gossip.Silent}, noon); len(s.vmids) != 3 {
		t.Errorf("silent: VMIDs %v", s.vmids)
	}
}

func TestLooksThatWereAskedForAndNotGivenAreNotReplacedByOldOnes(t *testing.T) {
	obs := wellObservation()
	obs.Looks = []*homelabv1.GuestLook{{Identity: &homelabv1.Identity{Guest: "k3s-1"}}}
	s := judge(sight{}, answer{at: noon, obs: obs, wanted: true, looked: true}, noon)
	if s.looks["k3s-1"] == nil || len(s.obs.GetLooks()) != 0 {
		t.Fatalf("looks %v", s.looks)
	}
	if kept := judge(s, answer{at: noon, obs: wellObservation()}, noon); kept.looks["k3s-1"] == nil {
		t.Error("a cheap observation dropped the looks")
	}
	if slow := judge(s, answer{at: noon, obs: wellObservation(), wanted: true}, noon); slow.looks["k3s-1"] != nil {
		t.Error("an old look passes for a new one")
	}
}

func TestTheClockOffsetIsWhatTheRoundTripDoesNotExplain(t *testing.T) {
	for _, c := range []struct{ rtt, theirs, want time.Duration }{
		{2 * time.Millisecond, time.Millisecond, 0},
		{2 * time.Second, 1500 * time.Millisecond, 0},
		{10 * time.Millisecond, 5005 * time.Millisecond, 5 * time.Second},
		{10 * time.Millisecond, -1995 * time.Millisecond, -2 * time.Second},
	} {
		if got := offset(noon, c.rtt, noon.Add(c.theirs)); got != c.want {
			t.Errorf("round trip %s, theirs %s: %s, want %s", c.rtt, c.theirs, got, c.want)
		}
	}
}
