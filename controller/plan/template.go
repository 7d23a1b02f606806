package plan

import (
	"fmt"
	"slices"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/mark"
	"github.com/homeiac/homelab/internal/spec"
)

// A template is a VM of ours without a guest, from whose disk guests are cloned.
// Its mark names the image's digest (mark.TemplateName); it is looked for by that
// mark alone, so nothing about it needs to be remembered.

// linking are the types of storage on which a disk can stand on another one.
var linking = []string{"dir", "nfs", "cifs", "btrfs", "zfspool", "lvmthin", "rbd"}

// cloneKind is how a guest's system disk is to come to be.
func (m *model) cloneKind(g *guestView) homelabv1.CloneKind {
	switch g.want.Clone {
	case spec.CloneLinked:
		return homelabv1.CloneKind_CLONE_KIND_LINKED
	case spec.CloneFull:
		return homelabv1.CloneKind_CLONE_KIND_FULL
	case spec.CloneOff:
		return homelabv1.CloneKind_CLONE_KIND_IMPORT
	}
	if m.siblings(g) < 2 || !m.canLink(g) {
		return homelabv1.CloneKind_CLONE_KIND_IMPORT
	}
	if c := m.imageOf(g, false); c == nil || m.templateVMID(g, c) == 0 {
		return homelabv1.CloneKind_CLONE_KIND_IMPORT
	}
	return homelabv1.CloneKind_CLONE_KIND_LINKED
}

func cloneWord(kind homelabv1.CloneKind) string {
	if kind == homelabv1.CloneKind_CLONE_KIND_FULL {
		return "full"
	}
	return "linked"
}

// reserveTemplates gives every template that may be needed its VMID, also those
// on hosts that are silent: nobody's VMID depends on what happens to be seen.
func (m *model) reserveTemplates() {
	for _, g := range m.guests {
		image := m.spec.Images[g.want.Image]
		if image == nil || g.host == nil || g.want.Clone == spec.CloneOff {
			continue
		}
		if g.want.Clone == spec.CloneLinked || g.want.Clone == spec.CloneFull || m.siblings(g) > 1 {
			m.templateVMID(g, &choice{image: image, Image: m.present(image)})
		}
	}
}

// siblings counts the guests of one image that are wanted on one host.
func (m *model) siblings(g *guestView) int {
	if m.perHost == nil {
		m.perHost = make(map[[2]string]int)
		for _, other := range m.spec.Guests {
			m.perHost[[2]string{other.Host, other.Image}]++
		}
	}
	return m.perHost[[2]string{g.want.Host, g.want.Image}]
}

func (m *model) canLink(g *guestView) bool {
	disks, _ := g.host.want.Storage(kindDisks)
	return slices.Contains(linking, g.host.storages[disks].GetType())
}

// cloning is what speaks against cloning a guest as the Spec says it must be.
func (m *model) cloning(g *guestView, f *findings) {
	disks, _ := g.host.want.Storage(kindDisks)
	if g.want.Clone == spec.CloneLinked && g.host.storages[disks] != nil && !m.canLink(g) {
		f.refuse("storage %s of %s (%s) cannot hold linked clones\n  %s", disks, g.host.name, g.host.storages[disks].GetType(), m.correct("guests."+g.name+".clone"))
	}
	if g.want.Clone != spec.CloneLinked && g.want.Clone != spec.CloneFull {
		return
	}
	if i := m.imageOf(g, false); i != nil && m.templateVMID(g, i) == 0 {
		f.refuse("no VMID is free in templates: %d-%d (%s)", m.spec.Templates.First, m.spec.Templates.Last, m.at("templates"))
	}
}

// templateRef is the template that guests are cloned from.
type templateRef struct {
	vmid int32  // 0 when none can be had
	uuid string // empty while it is still to be made
	step string // that makes or finishes it; empty when it is there
}

// templateAt is the template of that digest, on a guest's host and storage; nil
// when there is none that is whole.
func (m *model) templateAt(g *guestView, sha256 string) *homelabv1.VirtualMachine {
	if g.host == nil {
		return nil
	}
	disks, _ := g.host.want.Storage(kindDisks)
	for _, p := range m.ours[mark.TemplateName(sha256)] {
		if p.host == g.host.name && onStorage(p.vm, disks) && yes(p.vm.GetReadable()) && p.vm.GetTemplate() && !p.vm.GetHalfBuilt() {
			return p.vm
		}
	}
	return nil
}

func onStorage(vm *homelabv1.VirtualMachine, storage string) bool {
	return slices.ContainsFunc(vm.GetDisks(), func(d *homelabv1.Disk) bool { return d.GetStorage() == storage })
}

// template gives the template for a guest: one that is there, or one that this plan
// makes, once for all guests there.
func (m *model) template(g *guestView, c *choice) templateRef {
	key := templateKey(g, c)
	if t, ok := m.templates[key]; ok {
		return t
	}
	there := m.templateAt(g, c.SHA256)
	open := m.templateIntent(g.host.name, c.SHA256)
	if there != nil && open == nil {
		t := templateRef{vmid: there.GetVmid(), uuid: there.GetUuid()}
		m.templates[key] = t
		return t
	}
	return m.planTemplate(g, c, key, there, open)
}

func templateKey(g *guestView, c *choice) string {
	disks, _ := g.host.want.Storage(kindDisks)
	return imageStepID("template", g.host.name, c) + " " + disks
}

// planTemplate adds the step that makes a template, or finishes one.
func (m *model) planTemplate(g *guestView, c *choice, key string, there *homelabv1.VirtualMachine, open *openIntent) templateRef {
	h := g.host
	if there == nil {
		there = m.unfinishedTemplate(g, c.SHA256)
	}
	var after []string
	t := templateRef{vmid: m.templateVMID(g, c)}
	reason := "guests of " + h.name + " are cloned from it"
	if there != nil {
		t.uuid = there.GetUuid()
		reason = "its making was not seen to end"
	}
	if there == nil || !there.GetTemplate() {
		after = m.fetch(h, c)
	}
	if open != nil && there == nil {
		after = append(after, m.undoTemplate(open))
	}
	t.step = m.add(&homelabv1.Step{
		Id: imageStepID("template", h.name, c), Action: homelabv1.Action_ACTION_TEMPLATE, Host: h.name, Image: c.image.Name,
		ImageSha256: c.SHA256, Vmid: t.vmid, Uuid: t.uuid, After: slices.DeleteFunc(after, func(id string) bool { return id == "" }), Reason: reason,
	})
	m.templates[key] = t
	return t
}

// unfinishedTemplate is a VM that is to become the template and is whole; nil for
// none.
func (m *model) unfinishedTemplate(g *guestView, sha256 string) *homelabv1.VirtualMachine {
	disks, _ := g.host.want.Storage(kindDisks)
	for _, p := range m.ours[mark.TemplateName(sha256)] {
		if p.host == g.host.name && onStorage(p.vm, disks) && yes(p.vm.GetReadable()) && !p.vm.GetHalfBuilt() && p.vm.GetLock() == "" {
			return p.vm
		}
	}
	return nil
}

// templateIntent is the making of a template on a host that was begun and not seen
// to end; nil for none.
func (m *model) templateIntent(host, sha256 string) *openIntent {
	name := mark.TemplateName(sha256)
	for i := range m.intents[name] {
		if m.intents[name][i].host.name == host && !m.intents[name][i].intent.GetDestroying() {
			return &m.intents[name][i]
		}
	}
	return nil
}

// templateVMID is the VMID that a template has or will have: the lowest of the
// Spec's range that nobody has, had, or is to have. 0 when none is free.
func (m *model) templateVMID(g *guestView, c *choice) int32 {
	if there := m.templateAt(g, c.SHA256); there != nil {
		return there.GetVmid()
	}
	if there := m.unfinishedTemplate(g, c.SHA256); there != nil {
		return there.GetVmid()
	}
	if open := m.templateIntent(g.host.name, c.SHA256); open != nil && m.mayUndo(open) {
		return open.intent.GetIdentity().GetVmid() // it is undone first
	}
	key := templateKey(g, c)
	if vmid, ok := m.templateVMIDs[key]; ok {
		return vmid
	}
	taken := m.takenNow()
	for n := m.spec.Templates.First; m.spec.Templates.Contains(n); n++ {
		vmid := int32(n) //nolint:gosec // checked by the Spec
		if !taken[vmid] && !m.spec.Protected(n) && !m.spec.VMIDs.Contains(n) {
			taken[vmid] = true
			m.templateVMIDs[key] = vmid
			return vmid
		}
	}
	m.templateVMIDs[key] = 0
	return 0
}

// takenNow are the VMIDs that no holder and no template may get; what this plan
// gives is added to them.
func (m *model) takenNow() map[int32]bool {
	if m.taken == nil {
		m.taken, m.free = m.takenVMIDs(), m.spec.VMIDs.First
		for _, other := range m.guests {
			m.taken[other.vmid], m.taken[other.holder.VMID] = true, true
		}
	}
	return m.taken
}

// planTemplateUndo rolls back every template that was begun and left half-built,
// also those that nobody needs any more: nothing of ours is left over.
func (m *model) planTemplateUndo() {
	for _, name := range sorted(m.intents) {
		if _, ok := mark.TemplateOf(name); !ok {
			continue
		}
		for i := range m.intents[name] {
			open := &m.intents[name][i]
			m.undoTemplate(open)
		}
	}
}

// mayUndo says whether what is left of a template may be undone now.
func (m *model) mayUndo(open *openIntent) bool {
	vmid := open.intent.GetIdentity().GetVmid()
	there := open.host.vms[vmid]
	return no(open.intent.GetWorker()) && yes(open.host.obs.GetVmsKnown()) && !open.host.blocked.against() && !m.spec.Protected(int(vmid)) &&
		(there == nil || there.GetHalfBuilt() && !there.GetHaManaged() && !there.GetProtection() && len(there.GetTasks()) == 0)
}

// undoTemplate adds the step that undoes the making of a template, once; it gives
// its id, empty when it must not be.
func (m *model) undoTemplate(open *openIntent) string {
	name, id := open.intent.GetIdentity().GetGuest(), open.intent.GetIdentity()
	step := "rollback/" + open.host.name + "/" + name
	if m.fetched[step] {
		return step
	}
	if there := open.host.vms[id.GetVmid()]; there != nil && !there.GetHalfBuilt() {
		return "" // whatever it is, it is whole
	}
	if !m.mayUndo(open) {
		m.note(homelabv1.NoteKind_NOTE_KIND_BUSY, "", open.host.name, fmt.Sprintf("somebody may still work on template %d", id.GetVmid()))
		return ""
	}
	g := &guestView{name: name, undo: open, want: &spec.Guest{Name: name, Host: open.host.name}, host: open.host}
	if m.planUndo(g); g.why.against() {
		m.note(g.why.kind, "", open.host.name, g.why.text)
		return ""
	}
	m.fetched[step] = true
	return g.last
}
