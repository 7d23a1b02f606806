package cli

import (
	"strings"
	"time"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// step is one step from its id and the ids before it.
func step(id, reason string, after ...string) *homelabv1.Step {
	word, rest, _ := strings.Cut(id, "/")
	host, what, _ := strings.Cut(rest, "/")
	s := &homelabv1.Step{Id: id, Host: host, Guest: what, Reason: reason, After: after, Vmid: 201, Generation: 1}
	s.Action = homelabv1.Action(homelabv1.Action_value["ACTION_"+strings.ToUpper(word)])
	s.Destroys = word == "destroy" || word == "rollback"
	if onImage(s) {
		s.Guest, s.Image, s.Vmid, s.Generation = "", what, 0, 0
	}
	return s
}

func note(kind homelabv1.NoteKind, guest, host, text string) *homelabv1.Note {
	return &homelabv1.Note{Kind: kind, Guest: guest, Host: host, Text: text}
}

func unchanged(guest, host string) *homelabv1.Note {
	return note(homelabv1.NoteKind_NOTE_KIND_UNCHANGED, guest, host, "healthy")
}

func silentNote(guest, host string) *homelabv1.Note {
	return note(homelabv1.NoteKind_NOTE_KIND_SKIPPED, guest, host, "host silent since 13:58 (4 min)")
}

// making are the steps of a guest that is made, from its image on.
func making(guest, host, join, reason string, after ...string) []*homelabv1.Step {
	on := host + "/" + guest
	return []*homelabv1.Step{
		step("create/"+on, "VMID 201, 2 CPUs, 2 GiB, 10 GiB on local", "fetch/"+host+"/noble"),
		step("start/"+on, "so that it boots", "create/"+on),
		step("boot/"+on, "wait until it has booted", "start/"+on),
		step(join+"/"+on, reason, append([]string{"boot/" + on}, after...)...),
	}
}

// fresh is the plan for a fleet of which there is nothing yet; two guests share
// a host and its image.
func fresh() *homelabv1.Plan {
	p := &homelabv1.Plan{Digest: "fresh"}
	p.Steps = append(p.Steps, step("fetch/pve1/noble", "the host does not hold it"))
	p.Steps = append(p.Steps, making("k3s-1", "pve1", "init", "no cluster is remembered and no server was seen: it is the first")...)
	p.Steps = append(p.Steps, making("k3s-2", "pve1", "join", "as server, through k3s-1", "init/pve1/k3s-1")...)
	p.Steps = append(p.Steps, step("fetch/pve2/noble", "the host does not hold it"))
	p.Steps = append(p.Steps, making("k3s-3", "pve2", "join", "as server, through k3s-1", "join/pve1/k3s-2")...)
	return p
}

func healthyPlan() *homelabv1.Plan {
	return &homelabv1.Plan{Digest: "healthy", Notes: []*homelabv1.Note{
		unchanged("k3s-1", "pve1"), unchanged("k3s-2", "pve2"), unchanged("k3s-3", "pve3"), unchanged("k3s-4", "pve4"), unchanged("k3s-5", "pve5"),
	}}
}

// mixed has a little of everything.
func mixed() *homelabv1.Plan {
	return &homelabv1.Plan{
		Digest: "mixed",
		Steps: []*homelabv1.Step{
			step("rollback/pve2/k3s-2", "its creation was begun and left half-built"),
			step("create/pve2/k3s-2", "VMID 202, 2 CPUs, 2 GiB, 10 GiB on local", "rollback/pve2/k3s-2"),
			step("start/pve2/k3s-2", "so that it boots", "create/pve2/k3s-2"),
			step("start/pve4/k3s-4", "stopped since 14:02 (qm stop by root@pam)"),
			step("boot/pve4/k3s-4", "wait until it has booted", "start/pve4/k3s-4"),
		},
		Notes: []*homelabv1.Note{
			unchanged("k3s-1", "pve1"),
			silentNote("k3s-5", "pve5"),
			note(homelabv1.NoteKind_NOTE_KIND_REFUSED, "k3s-6", "pve2", "bridge vmbr25gbe is not there\n"+
				"network \"lan\" of host pve2 is mapped to vmbr25gbe; the host has vmbr0 (up), vmbr1 (down)\n"+
				"nothing was changed; correct hosts.pve2.bridges.lan in homelab.yaml:14, then hlctl plan"),
			note(homelabv1.NoteKind_NOTE_KIND_BUSY, "k3s-7", "pve1", "VM 207 is locked (backup)"),
			note(homelabv1.NoteKind_NOTE_KIND_WARNING, "", "", "two voters: the loss of either stops the cluster"),
			note(homelabv1.NoteKind_NOTE_KIND_INFO, "old", "pve1", "no longer in the Spec; left alone"),
		},
	}
}

// partial is a fleet with one host off.
func partial() *homelabv1.Plan {
	p := &homelabv1.Plan{Digest: "partial", Notes: []*homelabv1.Note{unchanged("k3s-1", "pve1"), silentNote("k3s-5", "pve5")}}
	p.Steps = []*homelabv1.Step{
		step("start/pve4/k3s-4", "stopped since 14:02 (qm stop by root@pam)"),
		step("boot/pve4/k3s-4", "wait until it has booted", "start/pve4/k3s-4"),
	}
	return p
}

func yesFact() *homelabv1.Fact { return &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_YES} }

func stamped(ago time.Duration) *timestamppb.Timestamp { return timestamppb.New(noon.Add(-ago)) }

// fleet is a status with something of every state. The controller may give a
// since where the contract wants none; hlctl leaves it out.
func fleet() *controllerv1.StatusResponse {
	online := func(name, address string) *homelabv1.HostStatus {
		return &homelabv1.HostStatus{
			Name: name, State: homelabv1.HostState_HOST_STATE_ONLINE, Address: address, Version: "v0.1.0", OnlineSince: stamped(75 * time.Hour), ClockOffsetMs: 12,
			Since: stamped(75 * time.Hour), Observation: &homelabv1.Observation{
				PveVersion: "9.2.11", MemoryBytes: 31 << 30, MemoryUsedBytes: 9770000000, CpuLoad: 0.12,
			},
		}
	}
	degraded := online("pve2", "127.9.1.2")
	degraded.State, degraded.Since, degraded.OnlineSince = homelabv1.HostState_HOST_STATE_DEGRADED, stamped(90*time.Second), nil
	degraded.Reason, degraded.ClockOffsetMs = "/etc/pve is not quorate", -1500
	server := func(n rune, vmid int32, name, host string) *controllerv1.GuestStatus {
		return &controllerv1.GuestStatus{
			Name: name, Host: host, Vmid: vmid, Uuid: "6a1ec9cb-1b58-4a5c-9a3a-00000000020" + string('0'+n), Power: homelabv1.Power_POWER_RUNNING,
			Health: controllerv1.Health_HEALTH_HEALTHY, Addresses: []string{"127.9.1.10" + string('0'+n)}, NodeName: name,
			Role: homelabv1.Role_ROLE_SERVER, Generation: 1,
		}
	}
	two := server(2, 202, "k3s-2", "pve2")
	two.Health, two.Reason = controllerv1.Health_HEALTH_UNWELL, "Node k3s-2 is not Ready: kubelet stopped posting node status"
	two.Since, two.Signal, two.Policy = stamped(12*time.Minute), "not-ready", "recreate"
	three := server(3, 203, "k3s-3", "pve3")
	three.Power, three.Health, three.Reason = homelabv1.Power_POWER_UNSPECIFIED, controllerv1.Health_HEALTH_UNKNOWN, "host silent since 13:58 (4 min)"
	four := &controllerv1.GuestStatus{
		Name: "k3s-4", Host: "pve1", Power: homelabv1.Power_POWER_ABSENT, Health: controllerv1.Health_HEALTH_UNKNOWN, Reason: "absent",
		Role: homelabv1.Role_ROLE_AGENT, NodeName: "k3s-4",
	}
	cold := server(5, 205, "k3s-cold", "pve1")
	cold.Power, cold.Health, cold.Addresses = homelabv1.Power_POWER_STOPPED, controllerv1.Health_HEALTH_STANDBY, nil
	member := func(id, name, guest string, learner bool) *controllerv1.MemberStatus {
		return &controllerv1.MemberStatus{Member: &homelabv1.EtcdMember{Id: id, Name: name, Learner: learner, Healthy: yesFact()}, Guest: guest, Node: guest}
	}
	node := func(name, version string, ready homelabv1.Truth, server bool) *homelabv1.Node {
		return &homelabv1.Node{Name: name, Version: version, Server: server, Ready: &homelabv1.Fact{Truth: ready}, Address: "127.9.1.101"}
	}
	silent := member("3c", "k3s-3-c0ffee", "k3s-3", false)
	silent.Member.Healthy = &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_NO, Reason: "no answer"}
	return &controllerv1.StatusResponse{
		Fleet: "homelab", At: stamped(0),
		Hosts: []*homelabv1.HostStatus{
			online("pve1", "127.9.1.1"), degraded,
			{Name: "pve3", State: homelabv1.HostState_HOST_STATE_SILENT, Since: stamped(4 * time.Minute), Address: "127.9.1.3", Version: "v0.1.0", Reason: "last seen well"},
			{Name: "pve4", State: homelabv1.HostState_HOST_STATE_AGENT_GONE, Since: stamped(26 * time.Hour), Address: "127.9.1.4", Version: "v0.1.0", Reason: "port 8400 refuses"},
			{Name: "pve5", State: homelabv1.HostState_HOST_STATE_DISABLED, Since: stamped(time.Hour), Address: "127.9.1.5"},
			{Name: "pve6", State: homelabv1.HostState_HOST_STATE_UNKNOWN, Since: stamped(time.Hour), Address: "127.9.1.6"},
		},
		Guests: []*controllerv1.GuestStatus{server(1, 201, "k3s-1", "pve1"), two, three, four, cold},
		Cluster: &controllerv1.ClusterStatus{
			Api: yesFact(), Etcd: yesFact(), Version: "v1.35.0+k3s1", Voters: 3, HealthyVoters: 2, Quorum: 2, MayFail: 0,
			Findings: []*controllerv1.ClusterFinding{
				{Kind: "ghost-member", Name: "k3s-9-abcdef", Bad: true, Text: "etcd member k3s-9-abcdef (4d) belongs to no guest (ghost)"},
				{Kind: "ghost-node", Name: "left-over", Bad: true, Text: "node left-over belongs to no guest (ghost); kubectl delete node left-over"},
				{Kind: "learner", Name: "k3s-9-abcdef", Text: "k3s-9-abcdef is a learner, without a vote"},
				{Kind: "not-ready", Guest: "k3s-2", Name: "k3s-2", Bad: true, Text: "node k3s-2 is not Ready"},
				{Kind: "version", Guest: "k3s-2", Name: "k3s-2", Bad: true, Text: "node k3s-2 runs v1.34.1+k3s1; the Spec pins v1.35.0+k3s1"},
			},
			Nodes: []*homelabv1.Node{
				node("k3s-1", "v1.35.0+k3s1", homelabv1.Truth_TRUTH_YES, true), node("k3s-2", "v1.34.1+k3s1", homelabv1.Truth_TRUTH_NO, true),
				node("k3s-3", "v1.35.0+k3s1", homelabv1.Truth_TRUTH_UNKNOWN, true), node("left-over", "v1.35.0+k3s1", homelabv1.Truth_TRUTH_YES, false),
			},
			Members: []*controllerv1.MemberStatus{
				member("1a", "k3s-1-abcdef", "k3s-1", false), member("2b", "k3s-2-abcdef", "k3s-2", false), silent, member("4d", "k3s-9-abcdef", "", true),
			},
		},
	}
}

// well is a fleet with nothing wrong.
func well() *controllerv1.StatusResponse {
	s := fleet()
	s.Hosts, s.Guests = s.GetHosts()[:1], s.GetGuests()[:1]
	c := s.GetCluster()
	c.Nodes, c.Members, c.Voters, c.HealthyVoters, c.Quorum, c.Findings = c.GetNodes()[:1], c.GetMembers()[:1], 1, 1, 1, nil
	return s
}

// mute is a fleet whose k3s API does not answer.
func mute() *controllerv1.StatusResponse {
	s := well()
	no := &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_UNKNOWN, Reason: "no server could be asked"}
	s.Cluster = &controllerv1.ClusterStatus{Api: no, Etcd: no, Version: "v1.35.0+k3s1"}
	return s
}
