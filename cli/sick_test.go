package cli

import (
	"time"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	arithmetic = "3 voters, 3 healthy -> 2 of 2 stay healthy, 2 needed"
	leaves     = "its etcd member, Node and node password must be gone before a new one joins (" + arithmetic + ")"
)

// through makes a step one that another server's host carries out.
func through(s *homelabv1.Step, guest string) *homelabv1.Step {
	s.Through = guest
	return s
}

// chain is the recreation of k3s-2 as its planner makes it.
func chain() []*homelabv1.Step {
	steps := []*homelabv1.Step{
		through(step("snapshot/pve1/k3s-2", "before a server is made anew"), "k3s-1"),
		step("save/pve2/k3s-2", "before it is destroyed", "snapshot/pve1/k3s-2"),
		through(step("drain/pve1/k3s-2", "its pods go elsewhere", "save/pve2/k3s-2"), "k3s-1"),
		step("stop/pve2/k3s-2", "stopped since 14:02 (qmstop by root@pam)", "drain/pve1/k3s-2"),
		through(step("leave/pve1/k3s-2", leaves, "stop/pve2/k3s-2"), "k3s-1"),
		step("destroy/pve2/k3s-2", "destroys VM 202 and its system disk", "leave/pve1/k3s-2"),
		step("create/pve2/k3s-2", "made anew", "destroy/pve2/k3s-2"),
		step("start/pve2/k3s-2", "it is to run", "create/pve2/k3s-2"),
		step("boot/pve2/k3s-2", "wait until it has booted", "start/pve2/k3s-2"),
		step("join/pve2/k3s-2", "as server, until it is a voter", "boot/pve2/k3s-2"),
	}
	for _, s := range steps {
		s.Vmid = 202
	}
	return steps
}

func recreation() *homelabv1.Plan {
	return &homelabv1.Plan{
		Digest: "recreation", Steps: chain(),
		Notes: []*homelabv1.Note{unchanged("k3s-1", "pve1"), unchanged("k3s-3", "pve3"), unchanged("k3s-4", "pve4"), silentNote("k3s-5", "pve5")},
	}
}

// byName is a plan that --yes alone does not confirm.
func byName(p *homelabv1.Plan) *homelabv1.Plan {
	p.Digest += " by name"
	p.ByName = []string{"k3s-2"}
	return p
}

// recreations are two of them, one after the other, the second with a data disk
// and an image that is not there yet.
func recreations() *homelabv1.Plan {
	p := recreation()
	p.Digest = "recreations"
	p.Steps = append(p.Steps, step("soak/pve2/k3s-2", "it stays well for 2m0s before the next guest is made anew", "join/pve2/k3s-2"), step("fetch/pve6/noble", "pve6 does not hold it yet"))
	second := []*homelabv1.Step{
		step("stop/pve6/k3s-6", "guest agent and SSH silent since 13:50 (12 min)", "soak/pve2/k3s-2", "fetch/pve6/noble"),
		step("detach/pve6/k3s-6", "its data disk outlives it", "stop/pve6/k3s-6"),
		step("destroy/pve6/k3s-6", "destroys VM 206 and its system disk", "detach/pve6/k3s-6"),
		step("create/pve6/k3s-6", "made anew", "destroy/pve6/k3s-6"),
		step("attach/pve6/k3s-6", "its data disk comes back", "create/pve6/k3s-6"),
		step("start/pve6/k3s-6", "it is to run", "attach/pve6/k3s-6"),
		step("boot/pve6/k3s-6", "wait until it has booted", "start/pve6/k3s-6"),
	}
	for _, s := range second {
		s.Vmid = 206
		if s.GetAction() == homelabv1.Action_ACTION_DETACH || s.GetAction() == homelabv1.Action_ACTION_ATTACH {
			s.HolderVmid, s.Slots = 9006, []string{"scsi1"}
		}
	}
	p.Steps = append(p.Steps, second...)
	return p
}

// ripening is a fleet in which a silence has not lasted long enough.
func ripening() *homelabv1.Plan {
	n := note(homelabv1.NoteKind_NOTE_KIND_WAITING, "k3s-2", "pve2", "guest agent and SSH silent since 14:00 (2 min)")
	n.Until = timestamppb.New(noon.Add(3 * time.Minute))
	return &homelabv1.Plan{Digest: "ripening", Notes: []*homelabv1.Note{unchanged("k3s-1", "pve1"), unchanged("k3s-3", "pve3"), n}}
}

func ripeningEvents() []*homelabv1.Event {
	return []*homelabv1.Event{{
		Time: timestamppb.New(noon), Run: 7, Kind: homelabv1.EventKind_EVENT_KIND_WAITING,
		Text: "waiting: k3s-2 guest agent and SSH silent since 14:00 (2 min)", Limit: durationpb.New(3 * time.Minute),
	}}
}

// named is the plan of one thing asked for by name.
func named(digest string, steps ...*homelabv1.Step) *homelabv1.Plan {
	return &homelabv1.Plan{Digest: digest, Steps: steps}
}

func deleted() *homelabv1.Plan {
	detach := step("detach/pve2/k3s-2", "its data disks outlive it", "leave/pve1/k3s-2")
	detach.HolderVmid, detach.Slots = 9002, []string{"scsi1", "scsi2"}
	p := named("delete", append(chain()[:5], detach, step("destroy/pve2/k3s-2", "destroys VM 202 and its system disk, for good", "detach/pve2/k3s-2"))...)
	p.Steps[3].Reason = "deletion asked for by name"
	p.Steps[6].Vmid = 202
	p.Notes = []*homelabv1.Note{note(homelabv1.NoteKind_NOTE_KIND_WARNING, "k3s-2", "pve2", "2 voters stay: the loss of either stops the cluster")}
	return byName(p)
}

func adopted() *homelabv1.Plan {
	s := step("adopt/pve2/media", "VM 117 \"mediaserver\" on pve2, uuid 6a1ec9cb-1b58-4a5c-9a3a-000000000117, running, 4 CPUs, 8 GiB memory, "+
		"scsi0 32 GiB and scsi1 2 TiB on local-zfs, MAC BC:24:11:00:00:17 on vmbr0")
	s.Vmid, s.Generation = 117, 0
	p := named("adopt", s)
	p.Notes = []*homelabv1.Note{
		note(homelabv1.NoteKind_NOTE_KIND_INFO, "media", "pve2", "the Spec wants 16 GiB memory; the VM has 8 GiB and keeps them"),
		note(homelabv1.NoteKind_NOTE_KIND_INFO, "media", "pve2", "its policy will be report"),
	}
	return p
}

func stopped() *homelabv1.Plan {
	p := named("stop", step("stop/pve2/k3s-2", "asked for by name"))
	p.Notes = []*homelabv1.Note{
		note(homelabv1.NoteKind_NOTE_KIND_WARNING, "k3s-2", "pve2", "it is a voter: 3 voters, 3 healthy -> 2 healthy, 2 needed: none may fail until it is back"),
	}
	return p
}

func restarted() *homelabv1.Plan {
	return named("restart", step("stop/pve2/k3s-2", "asked for by name"), step("start/pve2/k3s-2", "it is to run", "stop/pve2/k3s-2"),
		step("boot/pve2/k3s-2", "wait until it has booted", "start/pve2/k3s-2"))
}

func removed() *homelabv1.Plan {
	return named("remove", through(step("drain/pve1/k3s-2", "its pods go elsewhere"), "k3s-1"), step("halt/pve2/k3s-2", "it leaves", "drain/pve1/k3s-2"),
		through(step("leave/pve1/k3s-2", "asked for by name ("+arithmetic+")", "halt/pve2/k3s-2"), "k3s-1"), step("clean/pve2/k3s-2", "it left", "leave/pve1/k3s-2"))
}

func rejoined() *homelabv1.Plan {
	p := removed()
	p.Digest = "rejoin"
	p.Steps = append(p.Steps, step("join/pve2/k3s-2", "as server, through k3s-1", "clean/pve2/k3s-2"))
	return p
}

// foreign is what is planned where a VM of somebody else has the guest's VMID.
func foreign() *homelabv1.Plan {
	return &homelabv1.Plan{Digest: "foreign", Notes: []*homelabv1.Note{
		note(homelabv1.NoteKind_NOTE_KIND_REFUSED, "k3s-2", "pve2", "VM 202 on pve2 is not ours: it has no mark"),
	}}
}

func snapshotPlan() *homelabv1.Plan {
	return named("snapshot", through(step("snapshot/pve1/k3s-1", "asked for by name; 3 voters, 3 healthy"), "k3s-1"))
}

func snapshots() *controllerv1.ListSnapshotsResponse {
	one := func(name, host string, at time.Duration, bytes int64) *homelabv1.Snapshot {
		return &homelabv1.Snapshot{
			Name: name, Host: host, Guest: "k3s-1", At: stamped(at), Bytes: bytes, K3SVersion: "v1.35.0+k3s1",
			Sha256: "ab12", Path: "/var/lib/hl-agent/snapshots/" + name,
		}
	}
	return &controllerv1.ListSnapshotsResponse{
		Snapshots: []*homelabv1.Snapshot{one("homelab-k3s-1-1772373660", "pve1", time.Minute, 12<<20), one("homelab-k3s-1-1772280060", "pve1", 26*time.Hour, 11<<20)},
		Unknown:   []*homelabv1.Note{note(homelabv1.NoteKind_NOTE_KIND_SKIPPED, "", "pve5", "host silent since 13:58 (4 min)")},
	}
}

func leftBehind() *controllerv1.OrphansResponse {
	fact := func(truth homelabv1.Truth, reason string) *homelabv1.Fact {
		return &homelabv1.Fact{Truth: truth, Reason: reason}
	}
	return &controllerv1.OrphansResponse{
		Orphans: []*homelabv1.Orphan{
			{
				Host: "pve1", Volid: "local-zfs:vm-202-disk-0", Vmid: 202, Storage: "local-zfs", SizeBytes: 10 << 30, Guest: "k3s-2",
				Ours: fact(homelabv1.Truth_TRUTH_YES, "left by the creation of k3s-2 that was cut off at 13:40"),
			},
			{
				Host: "pve1", Volid: "local:999/vm-999-disk-0.qcow2", Vmid: 999, Storage: "local", SizeBytes: 1 << 40,
				Ours: fact(homelabv1.Truth_TRUTH_NO, "nothing of ours ever named VM 999"),
			},
			{Host: "pve2", Volid: "nfs:backup-copy", Storage: "nfs", Ours: fact(homelabv1.Truth_TRUTH_UNKNOWN, "its name tells no VM")},
		},
		Unknown: []*homelabv1.Note{note(homelabv1.NoteKind_NOTE_KIND_SKIPPED, "", "pve5", "host silent since 13:58 (4 min)")},
		Holders: []*controllerv1.HolderStatus{
			{Host: "pve2", Vmid: 9002, Guest: "k3s-2", Disks: []*homelabv1.Disk{
				{Slot: "scsi1", Storage: "local-zfs", SizeBytes: 100 << 30}, {Slot: "scsi2", Storage: "local-zfs", SizeBytes: 2 << 40},
			}},
			{Host: "pve3", Vmid: 9003, Guest: "k3s-3"},
		},
	}
}

func clearing() *homelabv1.Plan {
	s := step("rollback/pve1/k3s-2", "frees local-zfs:vm-202-disk-0, left by its creation that was cut off at 13:40")
	s.Vmid = 202
	return named("clear", s)
}

// sick is a fleet with every trouble that a guest and a cluster can have.
func sick() *controllerv1.StatusResponse {
	s := well()
	host := s.GetHosts()[0]
	s.Hosts = nil
	for _, name := range []string{"pve1", "pve2", "pve3"} {
		h := proto.CloneOf(host)
		h.Name = name
		s.Hosts = append(s.Hosts, h)
	}
	one := s.GetGuests()[0]
	like := func(name, host string, vmid int32, change func(*controllerv1.GuestStatus)) *controllerv1.GuestStatus {
		g := proto.CloneOf(one)
		g.Name, g.NodeName, g.Host, g.Vmid, g.Policy = name, name, host, vmid, "recreate"
		change(g)
		return g
	}
	s.Guests = []*controllerv1.GuestStatus{
		like("k3s-1", "pve1", 201, func(*controllerv1.GuestStatus) {}),
		like("k3s-2", "pve2", 202, func(g *controllerv1.GuestStatus) {
			g.Power, g.Health, g.Reason = homelabv1.Power_POWER_STOPPED, controllerv1.Health_HEALTH_UNWELL, "stopped (qmstop by root@pam)"
			g.Since, g.Signal, g.Generation = stamped(4*time.Minute), "stopped", 3
			g.Parked = "parked: it was made 3 times in a row and never was well; look why with hlctl why k3s-2, then hlctl resume k3s-2"
		}),
		like("k3s-3", "pve3", 203, func(g *controllerv1.GuestStatus) {
			g.Health, g.Reason, g.Until = controllerv1.Health_HEALTH_BOOTING, "cloud-init runs", timestamppb.New(noon.Add(8*time.Minute))
		}),
		like("media", "pve1", 117, func(g *controllerv1.GuestStatus) {
			g.Health, g.Reason, g.Signal = controllerv1.Health_HEALTH_UNWELL, "guest agent and SSH silent", "silent"
			g.Since, g.Policy, g.Adopted, g.Generation = stamped(26*time.Hour), "report", true, 0
			g.NodeName, g.Role = "", homelabv1.Role_ROLE_UNSPECIFIED
		}),
	}
	c := s.GetCluster()
	c.Voters, c.HealthyVoters, c.Quorum, c.MayFail = 3, 1, 2, -1
	c.Findings = []*controllerv1.ClusterFinding{
		{Kind: "quorum", Bad: true, Text: "etcd has no quorum: 1 of 3 voters is healthy, 2 are needed; hlctl k3s status"},
		{Kind: "certificate", Guest: "k3s-1", Text: "the certificate of its API lacks k3s.home (k3s.endpoint)"},
		{Kind: "stopped-voter", Guest: "k3s-2", Name: "k3s-2-abcdef", Bad: true, Text: "it is stopped and still a voter; take it out with hlctl k3s remove k3s-2"},
		{Kind: "unknown", Guest: "k3s-3", Bad: true, Text: "it could not be asked: timeout"},
	}
	return s
}

// tales are the stories of guests.
func tales() map[string]*controllerv1.WhyResponse {
	entry := func(ago time.Duration, kind, text string, run int64) *controllerv1.WhyEntry {
		return &controllerv1.WhyEntry{Time: stamped(ago), Kind: kind, Text: text, Run: run}
	}
	guests := sick().GetGuests()
	healed := proto.CloneOf(guests[0])
	return map[string]*controllerv1.WhyResponse{
		"k3s-1": {Now: healed, Entries: []*controllerv1.WhyEntry{
			entry(9*time.Minute, "seen", "VM 201 stopped; task UPID:pve1:qmstop:201:root@pam: OK", 0),
			entry(5*time.Minute, "planned", "recreate: stopped, policy recreate (run 17, by admin@laptop)", 17),
			entry(4*time.Minute, "done", "etcd snapshot on k3s-3, 12 MiB, kept on pve3", 17),
			entry(3*time.Minute, "seen", "Ready, voter 3 of 3", 17),
		}},
		"k3s-2": {Now: guests[1], Entries: []*controllerv1.WhyEntry{
			entry(50*time.Hour, "seen", "guest agent and SSH silent", 0),
			entry(50*time.Hour-time.Minute, "skipped", "host pve2 is shutting down", 15),
			entry(26*time.Hour, "planned", "recreate: silent for 5 min, policy recreate", 16),
			entry(22*time.Minute, "failed", "create k3s-2 on pve2: no space left on device\nmake room on storage local of pve2, then hlctl apply", 17),
			entry(21*time.Minute, "parked", "its recreation failed 3 times; hlctl resume k3s-2 has it tried again", 17),
		}},
		"media": {Entries: nil},
	}
}
