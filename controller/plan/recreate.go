package plan

import (
	"fmt"
	"slices"
	"strings"
	"time"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
)

// Slots that every VM of ours may have beside its data disks.
var knownSlots = []string{systemSlot, "ide2", "efidisk0", "tpmstate0"}

// making is what is to become of a VM that is destroyed.
type making string

const (
	makeAnew  making = "anew"  // it is made again, with the same identity
	makeNever making = "never" // it goes for good
)

// mayDestroy is every reason against the destruction of a guest's VM, whatever
// it is for: rules 2, 4, 7, 9, 10 and, when it is to be made anew, 3 and 5. named
// says that the guest was named for it. The leaving is what the cluster holds.
func (m *model) mayDestroy(g *guestView, what making, named bool) (leaving, verdict) {
	var f findings
	f.add(m.allowed(g))
	brake := m.brake(g)
	f.add(brake)
	m.contents(g, named, &f)
	f.add(m.holding(g))
	if !brake.against() && len(g.travelling()) > 0 && m.chooseHolder(g) == 0 {
		f.refuse("its data disks need a holder VM, and no VMID is free in vmids: %d-%d (%s)", m.spec.VMIDs.First, m.spec.VMIDs.Last, m.at("vmids"))
	}
	var l leaving
	if m.inCluster(g) {
		var v verdict
		l, v = m.leave(g)
		f.add(v)
		// One that leaves counts, and one that is made again joins: neither beside a learner.
		if joins := what == makeAnew && g.want.IsServer() && g.want.IsMember(); joins || l.member != nil && !l.member.GetLearner() {
			f.add(m.strangeLearner(g))
		}
		if l.in() {
			_, v := m.through(g)
			f.add(v)
		}
	}
	if what == makeAnew {
		m.remaking(g, &f)
		if m.inCluster(g) {
			f.add(m.version())
			if g.want.IsServer() {
				f.add(g.host.clock())
			}
		}
	}
	return l, f.verdict()
}

// inCluster says whether a guest may be something to the cluster. A guest that
// never booted is not, and a standby only if it is seen there.
func (m *model) inCluster(g *guestView) bool {
	return g.want.K3s != nil && m.spec.K3s != nil && (m.existing() || len(m.cluster.found) > 0)
}

// onlyCopy is why a VM may hold what nobody else does, as far as can be told: a
// server while no cluster is known, or a guest of which it is not known whether it
// is a member, while the cluster cannot be asked. It is for what a person names:
// nothing else is destroyed while no cluster is known.
func (m *model) onlyCopy(g *guestView) verdict {
	if m.spec.K3s == nil || g.vm == nil || g.neverBooted() || g.mem.Recreating {
		return verdict{}
	}
	switch {
	case g.want.IsServer() && !m.inCluster(g) && !no(g.look.GetK3S().GetServerData()):
		return skipped("no cluster is known, and it may hold the only copy of one" + because(g.look.GetK3S().GetServerData()) +
			"\nstart it, so that it can be looked into: hlctl guests start " + g.name)
	case g.want.K3s == nil && m.spec.Guests[g.name] == nil && g.mem.NodeName == "" && !yes(m.cluster.API):
		return skipped("what it is to the cluster is not known: k3s API does not answer" + because(m.cluster.API))
	}
	return verdict{}
}

// strangeLearner is why no server may leave now: another one is just joining.
func (m *model) strangeLearner(g *guestView) verdict {
	for _, e := range m.cluster.Members {
		if e.GetLearner() && !memberOf(e, g.want.NodeName(), g.addresses()) {
			return skipped(fmt.Sprintf("learner %s is still in etcd: servers join and leave one at a time; k3s drops a stalled one after 5 min: run it again", learnerName(e)))
		}
	}
	return verdict{}
}

// contents is what the VM holds that must not be destroyed, or not without being
// named (rule 9).
func (m *model) contents(g *guestView, named bool, f *findings) {
	vm := g.vm
	id := vm.GetVmid()
	if vm.GetTemplate() {
		f.refuse("VM %d is a template", id)
	}
	if len(vm.GetLinkedClones()) > 0 {
		f.refuse("other VMs stand on its disks: %s", strings.Join(vm.GetLinkedClones(), ", "))
	}
	for _, name := range m.volumeStorages(vm) {
		switch s := g.host.storages[name]; {
		case s == nil && !yes(g.host.obs.GetStoragesKnown()):
			f.unknown("the storages of %s are not known%s", g.host.name, because(g.host.obs.GetStoragesKnown()))
		case s == nil:
			f.refuse("its storage %s is not there on %s", name, g.host.name)
		case no(s.GetActive()):
			f.refuse("its storage %s is not active%s: its volumes would be left behind", name, because(s.GetActive()))
		case !yes(s.GetActive()):
			f.unknown("whether its storage %s is active is not known%s", name, because(s.GetActive()))
		}
	}
	if named {
		return
	}
	if g.host.obs.GetUptimeSeconds() == 0 {
		f.unknown("since when %s is up is not known: its guests may still be booting", g.host.name)
	}
	for _, what := range g.alongWithIt() {
		f.refuse("%s; name it to have that destroyed too: --destroy %s", what, g.name)
	}
}

// alongWithIt is what would go with a VM and is destroyed only when it is named.
func (g *guestView) alongWithIt() []string {
	var all []string
	if s := g.vm.GetSnapshots(); len(s) > 0 {
		all = append(all, "it has snapshots ("+strings.Join(s, ", ")+")")
	}
	if g.vm.GetPendingChanges() {
		all = append(all, fmt.Sprintf("changes of it wait for its next start (qm pending %d)", g.vm.GetVmid()))
	}
	data := g.dataSlots()
	own := g.ownDisk()
	for _, v := range g.vm.GetVolumes() {
		if g.adopted() && (v.GetSlot() == own || !diskIn(g.vm.GetDisks(), v.GetSlot()) && !strings.HasPrefix(v.GetSlot(), "unused")) {
			continue
		}
		if !slices.Contains(knownSlots, v.GetSlot()) && !slices.Contains(data, v.GetSlot()) {
			all = append(all, fmt.Sprintf("it holds volume %s (%s), which the Spec does not know", v.GetVolid(), v.GetSlot()))
		}
	}
	return all
}

// ownDisk is the slot of the disk that a VM which was made elsewhere boots from, as
// far as that can be told: its only one, wherever it is. What it has beside may be
// anybody's data.
func (g *guestView) ownDisk() string {
	var slots []string
	data := g.dataSlots()
	for _, d := range g.vm.GetDisks() {
		if d.GetSlot() != "efidisk0" && d.GetSlot() != "tpmstate0" && !slices.Contains(data, d.GetSlot()) {
			slots = append(slots, d.GetSlot())
		}
	}
	if len(slots) == 1 {
		return slots[0]
	}
	return systemSlot
}

// volumeStorages are the storages of a VM's volumes.
func (m *model) volumeStorages(vm *homelabv1.VirtualMachine) []string {
	var names []string
	for _, v := range vm.GetVolumes() {
		name, _, ok := strings.Cut(v.GetVolid(), ":")
		if ok && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// remaking is what speaks against making the guest again as it is wanted: rule
// 3, and all that its creation would need. What it has now it may use again.
func (m *model) remaking(g *guestView, f *findings) {
	if len(m.unseen) > 0 {
		f.unknown("it is not made anew while VMs may exist where nobody can look: %s", firstLines(m.unseen, 3))
	}
	if named := g.besides(m.named[g.name]); len(named) > 0 {
		f.refuse("VM %d on %s has its name and is not it: %s", named[0].vm.GetVmid(), named[0].host, named[0].not())
	}
	if why := g.lost(); why != "" {
		f.refuse("%s", why)
	}
	m.images(g, f)
	if w := int32(g.want.VMID); w != 0 && w != g.vmid { //nolint:gosec // checked by the Spec
		f.refuse("it is VM %d, and the Spec gives it VMID %d: it keeps its VMID; correct guests.%s.vmid (%s)", g.vmid, w, g.name, m.at("guests."+g.name+".vmid"))
	}
	m.bridges(g, f)
	m.devices(g, f)
	c := g.reusing(m.claims[g.host.name])
	m.storages(g, c, f)
	m.size(g, c, f)
}

// reusing is a host's claim with what the guest's VM gives back when it goes.
func (g *guestView) reusing(c *claim) *claim {
	r := &claim{memory: c.memory, storage: map[string]int64{}, images: c.images}
	for name, bytes := range c.storage {
		r.storage[name] = bytes
	}
	if g.vm.GetPower() == homelabv1.Power_POWER_RUNNING || g.vm.GetPower() == homelabv1.Power_POWER_PAUSED || g.vm.GetOnboot() {
		r.memory -= g.vm.GetMemoryBytes()
	}
	for _, d := range g.vm.GetDisks() { // its data disks stay, and are not asked for again
		r.storage[d.GetStorage()] -= d.GetSizeBytes()
	}
	for _, d := range g.inHolder() {
		r.storage[d.GetStorage()] -= d.GetSizeBytes()
	}
	return r
}

// planRecreate makes the chain of one recreation (rule 5), up to its boot, after
// the steps given. It is allowed already.
func (m *model) planRecreate(g *guestView, l leaving, after []string, reason string) {
	needed, tell := m.gather(g)
	m.planAway(g, l, append(after, needed...), reason, "its "+l.what()+" must be gone before a new one joins")
	m.destroyed(g, "VM "+fmt.Sprint(g.vmid)+" and its system disk", true)
	g.remade = true
	s := m.step(g, homelabv1.Action_ACTION_CREATE, "create", nil, "again, with the same VMID, MACs and uuid: "+g.sketch())
	tell(s)
	s.Slots = g.travelling()
	m.planAttach(g, g.travelling())
	if g.want.Standby() {
		return
	}
	m.start(g, "it is to run")
}

// planAway takes a guest out of the cluster and stops its VM, everything saved
// first: what comes before a destruction.
func (m *model) planAway(g *guestView, l leaving, after []string, reason, leaving string) {
	var server *guestView
	if l.in() {
		server, _ = m.through(g)
	}
	if server != nil && g.want.IsServer() {
		m.planSnapshot(g, server, after)
		after = nil
	}
	m.step(g, homelabv1.Action_ACTION_SAVE, "save", after, "its configuration is kept on "+g.host.name)
	if server != nil {
		m.planDrain(g, l, server)
	}
	m.step(g, homelabv1.Action_ACTION_STOP, "stop", nil, reason)
	if server != nil {
		m.planLeave(g, l, server, nil, leaving)
	}
	m.planDetach(g)
}

// what names what the cluster holds of a guest.
func (l leaving) what() string {
	var words []string
	if l.member != nil {
		words = append(words, "etcd member")
	}
	if l.node != nil {
		words = append(words, "Node", "node password")
	}
	switch len(words) {
	case 0:
		return "remains"
	case 1:
		return words[0]
	}
	return strings.Join(words[:len(words)-1], ", ") + " and " + words[len(words)-1]
}

// destroyed adds the destruction of the guest's VM, without its data disks.
func (m *model) destroyed(g *guestView, what string, again bool) {
	reason := "destroys " + what
	if data := g.travelling(); len(data) > 0 {
		reason += "; its data disks (" + strings.Join(data, ", ") + ") are kept in holder VM " + fmt.Sprint(g.holder.VMID)
	}
	if !again {
		reason += ", for good"
	}
	s := m.step(g, homelabv1.Action_ACTION_DESTROY, "destroy", nil, reason)
	s.Destroys, s.Slots = true, g.dataSlots()
}

// planRecreations makes anew who is sick and may be, one after the other: the one
// before must have stayed well for its soak first (rule 7). It gives the last
// change of membership that it planned.
func (m *model) planRecreations() (previous string) {
	last := m.soaking()
	unwatched := last.unwatched()
	for _, g := range m.guests {
		if !g.sick {
			continue
		}
		named := m.want.Destroy[g.name]
		l, v := m.mayDestroy(g, makeAnew, named)
		if !v.against() {
			v = unwatched
		}
		if !v.against() && !named {
			v = m.backOff(g)
		}
		if v.against() {
			v = prefixed(m.unwellText(m.condition(g))+"\n", v)
			if g.situation == Stopped && v.kind == homelabv1.NoteKind_NOTE_KIND_REFUSED {
				v.text += "\nto start it as it is: hlctl guests start " + g.name
			}
			until := m.electing(g, v)
			if !until.IsZero() {
				v.kind = homelabv1.NoteKind_NOTE_KIND_WAITING
				v.text += fmt.Sprintf("\nit may have been the leader: etcd gets %s to elect another one, then it is looked at again", electionTime)
			}
			m.tellUntil(g, v, until)
			continue
		}
		previous = m.recreateAfter(last, g, l, m.unwellText(m.condition(g)))
		last = g
	}
	return previous
}

// electionTime is how long a cluster may be silent after the loss of its leader:
// k3s has etcd wait 5 s before it calls an election, which may need a second round.
const electionTime = 20 * time.Second

// electing is until when it may be for an election that the cluster does not tell
// who is in it, since this server was lost a short while ago; zero when that is not
// why.
func (m *model) electing(g *guestView, v verdict) time.Time {
	c := m.condition(g)
	if v.kind != homelabv1.NoteKind_NOTE_KIND_SKIPPED || !g.want.IsServer() || m.cluster.Split != "" ||
		c.since.IsZero() || yes(m.cluster.API) && yes(m.cluster.Etcd) {
		return time.Time{}
	}
	if until := c.since.Add(electionTime); until.After(m.now) {
		return until
	}
	return time.Time{}
}

// recreateAfter plans one recreation, join included, after another one has
// soaked; last is nil for none. It gives its last change of membership.
func (m *model) recreateAfter(last, g *guestView, l leaving, reason string) (previous string) {
	var after []string
	if last != nil {
		after = append(after, m.soak(last))
	}
	g.healed = true
	m.planRecreate(g, l, after, reason)
	if g.want.IsMember() && m.existing() {
		role := "as agent"
		if g.want.IsServer() {
			role = "as server, until it is a voter"
		}
		s := m.step(g, homelabv1.Action_ACTION_JOIN, "join", nil, role)
		m.rank[s.GetId()] = -1
		return s.GetId()
	}
	return ""
}

// soak waits until a guest has stayed well for a while, before the next one is
// made anew.
func (m *model) soak(g *guestView) string {
	reason := fmt.Sprintf("it stays well for %s before the next guest is made anew", g.want.Timeouts.Soak)
	return m.step(g, homelabv1.Action_ACTION_SOAK, "soak", nil, reason).GetId()
}

// unwatched is why it cannot be seen now whether a guest stays well that was made
// anew before: then the next one is not.
func (g *guestView) unwatched() verdict {
	switch {
	case g == nil:
		return verdict{}
	case g.vm == nil:
		return skipped(fmt.Sprintf("%s was made anew a short while ago and cannot be seen now; it must have stayed well for %s first", g.name, g.want.Timeouts.Soak))
	}
	return prefixed(fmt.Sprintf("%s was made anew a short while ago and must have stayed well for %s first: ", g.name, g.want.Timeouts.Soak), g.host.blocked)
}

// soaking is the guest that was made anew so short a while ago that it is not
// known to stay well; nil for none.
func (m *model) soaking() *guestView {
	for _, g := range m.guests {
		if g.mem.Generation > 1 && !g.sick && g.host != nil && g.last == "" && !g.mem.ReadyAt.IsZero() && g.mem.ReadyAt.Add(g.want.Timeouts.Soak).After(m.now) {
			return g
		}
	}
	return nil
}
