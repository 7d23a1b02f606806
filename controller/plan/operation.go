package plan

import (
	"fmt"
	"strings"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/human"
	"github.com/homeiac/homelab/internal/spec"
)

// OperationKind is one thing that a person asks for by name.
type OperationKind string

// The operations.
const (
	OpRecreate     OperationKind = "recreate"
	OpDelete       OperationKind = "delete"
	OpAdopt        OperationKind = "adopt"
	OpStart        OperationKind = "start"
	OpStop         OperationKind = "stop"
	OpRestart      OperationKind = "restart"
	OpJoin         OperationKind = "join"
	OpRemove       OperationKind = "remove"
	OpRejoin       OperationKind = "rejoin"
	OpSnapshot     OperationKind = "snapshot"
	OpClearOrphans OperationKind = "clear-orphans"
	OpFetchImages  OperationKind = "fetch-images"
	OpPruneImages  OperationKind = "prune-images"
)

// Operation is what a person asks for beside making the Spec so. The plan then
// holds its steps alone, under the same rules.
type Operation struct {
	Kind  OperationKind
	Guest string // empty for snapshot, clear-orphans and images
	// Host is that of the VM that is adopted, empty the guest's in the Spec; or the
	// one that images are fetched to, empty all that guests of them are wanted on.
	Host   string
	VMID   int32    // that is adopted; 0: the guest's in the Spec
	Images []string // that are fetched; empty: all of the Spec
	Newest bool     // their names are resolved anew
}

// planOperation plans one operation. What speaks against it is a note.
func (m *model) planOperation(op Operation) {
	switch op.Kind {
	case OpSnapshot:
		m.planSnapshotAlone()
		return
	case OpClearOrphans:
		m.planClearOrphans()
		return
	case OpFetchImages:
		m.planFetchImages(op)
		return
	case OpPruneImages:
		m.planPruneImages()
		return
	case OpRecreate, OpDelete, OpAdopt, OpStart, OpStop, OpRestart, OpJoin, OpRemove, OpRejoin:
	}
	g := m.view(op.Guest)
	if g == nil {
		m.note(homelabv1.NoteKind_NOTE_KIND_REFUSED, op.Guest, "", fmt.Sprintf("there is no guest %s in the Spec, and none of ours is remembered or seen; see: hlctl guests", op.Guest))
		return
	}
	v := m.operate(g, op)
	switch {
	case v.against():
		m.tell(g, v)
	case g.last == "":
		m.tell(g, verdict{homelabv1.NoteKind_NOTE_KIND_UNCHANGED, "nothing to do"})
	}
}

func (m *model) operate(g *guestView, op Operation) verdict {
	if op.Kind == OpAdopt {
		return m.planAdopt(g, op)
	}
	if g.host == nil {
		return refused(fmt.Sprintf("its host %s is not in the Spec", g.want.Host))
	}
	if op.Kind == OpRemove && g.host.obs == nil {
		return m.planRemoveSilent(g)
	}
	if g.why.against() {
		return g.why
	}
	switch op.Kind {
	case OpDelete:
		return m.planDelete(g)
	case OpRecreate:
		return m.planRecreateNamed(g)
	case OpStart, OpStop, OpRestart, OpJoin, OpRemove, OpRejoin:
	default:
		return refused(fmt.Sprintf("operation %q is not known", op.Kind))
	}
	if g.vm == nil {
		return refused("there is no VM of it; make it with: hlctl apply")
	}
	if v := m.allowed(g); v.against() {
		return v
	}
	switch op.Kind {
	case OpStart:
		return m.planStartNamed(g)
	case OpStop:
		return m.planStopNamed(g)
	case OpRestart:
		return m.planRestart(g)
	case OpJoin:
		return m.planJoinNamed(g)
	case OpRemove:
		return m.planRemove(g, false)
	default:
		return m.planRemove(g, true)
	}
}

// planRecreateNamed makes a guest anew, whatever its health. It must be confirmed
// by name where its policy would not do it, or more goes than its system disk.
func (m *model) planRecreateNamed(g *guestView) verdict {
	if g.vm == nil {
		return refused("there is no VM of it; make it with: hlctl apply")
	}
	if m.spec.Guests[g.name] == nil {
		return refused("the Spec does not name it, so it could not be made again; remove it with: hlctl guests delete " + g.name)
	}
	l, v := m.mayDestroy(g, makeAnew, true)
	if v.against() {
		return v
	}
	if v := m.onlyCopy(g); v.against() {
		return v
	}
	last := m.soaking()
	if v := last.unwatched(); v.against() {
		return v
	}
	along := g.alongWithIt()
	if len(along) > 0 || g.policy() == spec.PolicyReport {
		m.byNameOnly = append(m.byNameOnly, g.name)
	}
	for _, what := range along {
		m.note(homelabv1.NoteKind_NOTE_KIND_WARNING, g.name, g.host.name, what+"; that is destroyed too")
	}
	m.recreateAfter(last, g, l, "asked for by name")
	if m.verifies(g) {
		m.step(g, homelabv1.Action_ACTION_VERIFY, "verify", nil, "the Spec's commands must succeed in it")
	}
	return verdict{}
}

// planDelete destroys a guest for good, but for its data disks.
func (m *model) planDelete(g *guestView) verdict {
	m.byNameOnly = append(m.byNameOnly, g.name)
	if m.spec.Guests[g.name] != nil {
		m.note(homelabv1.NoteKind_NOTE_KIND_WARNING, g.name, g.host.name, fmt.Sprintf("it is still in the Spec: the next apply makes it again; take guests.%s out first (%s)", g.name, m.at("guests."+g.name)))
	}
	if g.vm == nil {
		if g.situation != Absent {
			if m.spec.Guests[g.name] == nil && len(m.intents[g.name]) > 0 {
				// An apply leaves alone what the Spec has dropped.
				return refused("it is not there as a whole: undo first what was begun and left of it: hlctl orphans --delete")
			}
			return refused("it is not there as a whole: run hlctl apply first, which undoes what was left")
		}
		if len(m.unseen) > 0 {
			return skipped("it may exist where nobody can look: " + firstLines(m.unseen, 3))
		}
		g.stays = true
		m.step(g, homelabv1.Action_ACTION_DESTROY, "destroy", nil, "there is no VM of it; what is remembered of it is forgotten")
		return verdict{}
	}
	l, v := m.mayDestroy(g, makeNever, true)
	if !v.against() {
		v = m.onlyCopy(g)
	}
	if v.against() {
		return v
	}
	for _, what := range g.alongWithIt() {
		m.note(homelabv1.NoteKind_NOTE_KIND_WARNING, g.name, g.host.name, what+"; that is destroyed too")
	}
	m.warnTolerance(g, l)
	m.planAway(g, l, nil, "deletion asked for by name", "it leaves the cluster for good")
	m.destroyed(g, fmt.Sprintf("VM %d and its system disk", g.vmid), false)
	return verdict{}
}

// warnTolerance says that a cluster bears less after a server has left.
func (m *model) warnTolerance(g *guestView, l leaving) {
	if l.member == nil || l.member.GetLearner() {
		return
	}
	left := l.healthy - l.needed
	if l.voters == 2 {
		m.note(homelabv1.NoteKind_NOTE_KIND_WARNING, g.name, g.want.Host, "two servers are left: when either fails the cluster stands still; one or three are better")
	} else if left < MayFail(m.cluster) {
		m.note(homelabv1.NoteKind_NOTE_KIND_WARNING, g.name, g.want.Host, fmt.Sprintf("afterwards %d voters may fail, now it is %d", max(left, 0), max(MayFail(m.cluster), 0)))
	}
}

func (m *model) planStartNamed(g *guestView) verdict {
	switch g.situation {
	case Paused:
		m.step(g, homelabv1.Action_ACTION_RESUME, "resume", nil, "asked for by name")
		m.boot(g)
		return verdict{}
	case Stopped:
	default:
		return verdict{}
	}
	if g.lacking.against() {
		return g.lacking
	}
	if why := m.outcast(g); why != "" {
		return refused(why)
	}
	if !m.planHeld(g) {
		return verdict{}
	}
	if g.want.Standby() {
		m.note(homelabv1.NoteKind_NOTE_KIND_WARNING, g.name, g.host.name, "the Spec says state: stopped; it is started, and does not join the cluster")
	}
	m.start(g, "asked for by name")
	m.back(g)
	return verdict{}
}

// back waits until a member that was started is one again.
func (m *model) back(g *guestView) {
	if g.want.IsMember() && m.existing() && g.mem.Joined {
		m.step(g, homelabv1.Action_ACTION_JOIN, "join", nil, "wait until its Node is Ready again")
	}
}

func (m *model) planStopNamed(g *guestView) verdict {
	if g.situation == Stopped {
		return verdict{}
	}
	m.warnPowerOff(g)
	if !g.want.Standby() && m.spec.Guests[g.name] != nil {
		m.note(homelabv1.NoteKind_NOTE_KIND_WARNING, g.name, g.host.name, fmt.Sprintf("the Spec says state: running: the next apply starts it again; set guests.%s.state: stopped to keep it off", g.name))
	}
	m.step(g, homelabv1.Action_ACTION_STOP, "stop", nil, "asked for by name")
	return verdict{}
}

// warnPowerOff says what switching a voter off means for the cluster.
func (m *model) warnPowerOff(g *guestView) {
	l, v := m.leave(g)
	switch {
	case !m.inCluster(g):
	case v.against():
		m.note(homelabv1.NoteKind_NOTE_KIND_WARNING, g.name, g.host.name, "it is a voter of the cluster's etcd: "+v.text)
	case l.member != nil && !l.member.GetLearner():
		c := m.cluster
		text := fmt.Sprintf("it is a voter: switched off it still counts (%d voters, %d healthy then, %d needed)", c.Voters, l.healthy, c.Quorum)
		if l.healthy < c.Quorum {
			text += ": the cluster loses its quorum and stands still"
		}
		m.note(homelabv1.NoteKind_NOTE_KIND_WARNING, g.name, g.host.name, text+"\nto take it out of the cluster first: hlctl k3s remove "+g.name)
	}
}

func (m *model) planRestart(g *guestView) verdict {
	if m.inCluster(g) {
		if l, v := m.leave(g); v.against() && (l.in() || !yes(m.cluster.API)) {
			return v
		}
	}
	if why := m.outcast(g); why != "" {
		return refused(why)
	}
	if g.situation != Stopped {
		m.step(g, homelabv1.Action_ACTION_STOP, "stop", nil, "asked for by name")
	}
	if !m.planHeld(g) {
		return verdict{}
	}
	m.start(g, "asked for by name")
	m.back(g)
	return verdict{}
}

func (m *model) planJoinNamed(g *guestView) verdict {
	switch {
	case !g.want.IsMember() || m.spec.K3s == nil:
		return refused("it is no member by the Spec")
	case !m.existing():
		return refused("there is no cluster yet; start one with: hlctl apply")
	case g.situation != Booted:
		return refused("it has not booted" + because(g.look.GetBooted()) + "\nstart it with: hlctl guests start " + g.name)
	}
	m.planJoins([]*guestView{g}, nil, "")
	return verdict{}
}

// planRemove has a guest leave the cluster, its VM staying; again joins it anew.
func (m *model) planRemove(g *guestView, again bool) verdict {
	if g.want.K3s == nil || m.spec.K3s == nil {
		return refused("it is no member by the Spec")
	}
	var f findings
	l, v := m.leave(g)
	f.add(v)
	if l.member != nil {
		f.add(m.strangeLearner(g))
	}
	var server *guestView
	if !v.against() && l.in() {
		var no verdict
		server, no = m.through(g)
		f.add(no)
	}
	reached := g.situation == Booted
	switch {
	case again && !reached:
		f.refuse("it cannot be reached%s; to make it anew: hlctl guests recreate %s", because(g.look.GetBooted()), g.name)
	case !reached && g.situation != Stopped:
		f.refuse("whether its k3s is stopped cannot be seen%s: a server that still runs would join again\nstop it first: hlctl guests stop %s", because(g.look.GetBooted()), g.name)
	case again && !g.want.IsMember():
		f.refuse("the Spec says state: stopped, so it is not to be a member")
	}
	if again {
		f.add(g.host.clock())
		f.add(m.version())
	}
	if v := f.verdict(); v.against() {
		return v
	}
	if !again {
		m.warnTolerance(g, l)
		m.warnMember(g)
	}
	if server != nil && g.want.IsServer() {
		m.planSnapshot(g, server, nil)
	}
	if server != nil {
		m.planDrain(g, l, server)
	}
	if reached {
		m.step(g, homelabv1.Action_ACTION_HALT, "halt", nil, "its k3s must be stopped before it leaves, or it joins again")
	}
	if server != nil {
		m.planLeave(g, l, server, nil, "asked for by name")
	}
	if reached {
		m.step(g, homelabv1.Action_ACTION_CLEAN, "clean", nil, "k3s and its data go from the guest, by its own uninstall script")
	} else {
		m.note(homelabv1.NoteKind_NOTE_KIND_WARNING, g.name, g.host.name, "it is stopped and still holds its k3s: started again it would try to join; hlctl guests recreate "+g.name+" makes it anew")
	}
	if again {
		m.step(g, homelabv1.Action_ACTION_JOIN, "join", nil, "again, as a new member")
	}
	return verdict{}
}

func (m *model) warnMember(g *guestView) {
	if g.want.IsMember() && m.spec.Guests[g.name] != nil {
		m.note(homelabv1.NoteKind_NOTE_KIND_WARNING, g.name, g.want.Host, fmt.Sprintf("the Spec still has it as a member: the next apply joins it again; take guests.%s.k3s out, or set state: stopped", g.name))
	}
}

// planRemoveSilent takes a guest out of the cluster whose host does not answer.
// Only what was seen not to be served may go then.
func (m *model) planRemoveSilent(g *guestView) verdict {
	if g.want.K3s == nil || m.spec.K3s == nil {
		return refused("it is no member by the Spec")
	}
	l, v := m.leave(g)
	switch {
	case v.against():
		return v
	case !l.in():
		return verdict{}
	case !l.vacant():
		return refused(g.host.silence(m.now) + ", and its Node or etcd member is still well: it is not taken out of the cluster under its hands")
	}
	server, v := m.through(g)
	if v.against() {
		return v
	}
	if v := m.strangeLearner(g); v.against() {
		return v
	}
	g.stays = true
	m.warnTolerance(g, l)
	m.warnMember(g)
	m.note(homelabv1.NoteKind_NOTE_KIND_WARNING, g.name, g.host.name, g.host.silence(m.now)+"; whether its k3s is stopped could not be seen: when it comes back it may try to join again, as a new member")
	if g.want.IsServer() {
		m.planSnapshot(g, server, nil)
	}
	m.planLeave(g, l, server, nil, "asked for by name")
	return verdict{}
}

// planSnapshotAlone takes an etcd snapshot through the first healthy server.
func (m *model) planSnapshotAlone() {
	server, v := m.through(nil)
	if v.against() {
		m.note(v.kind, "", "", strings.Replace(v.text, "no other server could be asked to let it go", "no server could be asked for a snapshot", 1))
		return
	}
	m.add(&homelabv1.Step{
		Id: "snapshot/" + server.host.name + "/" + server.name, Action: homelabv1.Action_ACTION_SNAPSHOT, Host: server.host.name,
		Through: server.name, Reason: "etcd's state is kept on " + server.host.name + ", taken through " + server.name,
	})
}

// planClearOrphans undoes creations and destructions that were begun and left,
// whose guests the Spec may have dropped: what they left is provably ours.
func (m *model) planClearOrphans() {
	for _, name := range sorted(m.intents) {
		for i := range m.intents[name] {
			open := &m.intents[name][i]
			id := open.intent.GetIdentity()
			there := open.host.vms[id.GetVmid()]
			switch {
			case !no(open.intent.GetWorker()), !yes(open.host.obs.GetVmsKnown()):
				m.note(homelabv1.NoteKind_NOTE_KIND_SKIPPED, name, open.host.name, fmt.Sprintf("somebody may still work on VM %d", id.GetVmid()))
			case there != nil && !there.GetHalfBuilt():
				m.note(homelabv1.NoteKind_NOTE_KIND_INFO, name, open.host.name, fmt.Sprintf("VM %d is there and whole: its volumes are no orphans", id.GetVmid()))
			default:
				g := &guestView{name: name, undo: open, want: &spec.Guest{Name: name, Host: open.host.name}, host: open.host}
				if m.planUndo(g); g.why.against() {
					m.tell(g, g.why)
				}
			}
		}
	}
}

// planAdopt takes over a VM that was made elsewhere.
func (m *model) planAdopt(g *guestView, op Operation) verdict {
	host, vmid := op.Host, op.VMID
	if host == "" {
		host = g.want.Host
	}
	if vmid == 0 {
		vmid = int32(g.want.VMID) //nolint:gosec // checked by the Spec
	}
	h := m.hosts[host]
	var f findings
	switch {
	case m.spec.Guests[g.name] == nil:
		return refused("the Spec does not name it: write what it is to be into guests." + g.name + " first, then hlctl plan")
	case host != g.want.Host:
		return refused(fmt.Sprintf("the Spec wants it on %s, and the VM is on %s: correct guests.%s.host (%s)", g.want.Host, host, g.name, m.at("guests."+g.name+".host")))
	case h == nil || h.obs == nil:
		return skipped("host " + host + " cannot be seen")
	case len(m.ours[g.name]) > 0:
		return refused("it exists already: " + places(m.ours[g.name]))
	case vmid == 0:
		return refused(fmt.Sprintf("which VM? give --vmid, or guests.%s.vmid (%s)", g.name, m.at("guests."+g.name)))
	}
	vm := h.vms[vmid]
	if vm == nil {
		return refused(fmt.Sprintf("there is no VM %d on %s", vmid, host))
	}
	g.vm, g.host, g.vmid, g.situation = vm, h, vmid, Stopped
	f.add(m.allowed(g))
	if len(m.unseen) > 0 {
		f.unknown("it may exist where nobody can look: %s", firstLines(m.unseen, 3))
	}
	switch {
	case !yes(vm.GetReadable()):
		f.unknown("the configuration of VM %d cannot be read%s", vmid, because(vm.GetReadable()))
	case vm.GetHalfBuilt():
		f.refuse("VM %d is half-built", vmid)
	case vm.GetTemplate():
		f.refuse("VM %d is a template", vmid)
	case vm.GetUuid() == "":
		f.refuse("VM %d has no uuid; give it one: qm set %d --smbios1 uuid=$(uuidgen)", vmid, vmid)
	case vm.GetMark() != "":
		for _, p := range m.used[vmid] {
			if p.vm == vm {
				f.refuse("VM %d carries a mark already: %s", vmid, p.not())
			}
		}
	}
	if v := f.verdict(); v.against() {
		return v
	}
	g.owner = Ownership{Ours: true}
	m.note(homelabv1.NoteKind_NOTE_KIND_INFO, g.name, host, m.takesOver(g))
	if d := drift(g); len(d) > 0 {
		m.note(homelabv1.NoteKind_NOTE_KIND_WARNING, g.name, host, "differs from the Spec: "+strings.Join(d, ", "))
	}
	m.step(g, homelabv1.Action_ACTION_ADOPT, "adopt", nil, "its mark is written into its description; nothing else of it is changed")
	return verdict{}
}

// takesOver is what an adoption takes over, for people.
func (m *model) takesOver(g *guestView) string {
	vm := g.vm
	var disks []string
	for _, d := range vm.GetDisks() {
		disks = append(disks, fmt.Sprintf("%s %s on %s", d.GetSlot(), human.Size(d.GetSizeBytes()), d.GetStorage()))
	}
	policy := "report, so that nothing is done to it by itself"
	if g.want.Own["onUnhealthy"] {
		policy = string(g.want.OnUnhealthy) + ", by its own entry"
	}
	return fmt.Sprintf("takes over VM %d%s: uuid %s, %d CPUs, %s memory, disks %s, interfaces %s on %s\nits policy is %s", vm.GetVmid(), quoted(vm.GetName()), vm.GetUuid(),
		vm.GetCpus(), human.Size(vm.GetMemoryBytes()), list(disks), list(vm.GetMacs()), list(vm.GetBridges()), policy)
}
