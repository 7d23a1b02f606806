package plan

import (
	"fmt"
	"slices"
	"strings"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/human"
)

const systemSlot = "scsi0"

// noteDrift says how a VM of ours differs from the Spec. What was not seen is
// no difference.
func (m *model) noteDrift(g *guestView) {
	if g.vm == nil || g.vm.GetHalfBuilt() || !yes(g.vm.GetReadable()) || g.situation == Unfinished {
		return
	}
	if d := drift(g); len(d) > 0 {
		m.note(homelabv1.NoteKind_NOTE_KIND_INFO, g.name, g.host.name, "differs from the Spec: "+strings.Join(d, ", "))
	}
}

func drift(g *guestView) []string {
	vm, w := g.vm, g.want
	var d []string
	differs := func(what, has, wanted string) {
		if has != wanted {
			d = append(d, fmt.Sprintf("%s %s, wanted %s", what, has, wanted))
		}
	}
	if w.VMID != 0 {
		differs("VMID", fmt.Sprint(vm.GetVmid()), fmt.Sprint(w.VMID))
	}
	if vm.GetCpus() != 0 {
		differs("cpus", fmt.Sprint(vm.GetCpus()), fmt.Sprint(w.CPUs))
	}
	memory := w.Memory.Bytes
	if w.Memory.Percent > 0 {
		memory = g.mem.MemoryBytes // resolved once: it never drifts
	}
	if vm.GetMemoryBytes() != 0 && memory != 0 && memory != vm.GetMemoryBytes() {
		differs("memory", human.Size(vm.GetMemoryBytes()), human.Size(memory))
	}
	for _, disk := range vm.GetDisks() {
		if wanted := wantedDisk(g, disk.GetSlot()); wanted != 0 && disk.GetSizeBytes() != 0 && gib(wanted) != gib(disk.GetSizeBytes()) {
			differs("disk "+disk.GetSlot(), human.Size(disk.GetSizeBytes()), human.Size(wanted))
		}
	}
	var bridges []string
	for _, nic := range w.NICs {
		b, _ := g.host.want.Bridge(nic.Network)
		bridges = append(bridges, b)
	}
	if len(vm.GetBridges()) > 0 {
		differs("bridges", strings.Join(vm.GetBridges(), " "), strings.Join(bridges, " "))
	}
	has, wanted := slices.Clone(vm.GetTags()), slices.Clone(w.Tags)
	slices.Sort(has)
	slices.Sort(wanted)
	differs("tags", list(has), list(slices.Compact(wanted)))
	if vm.GetOnboot() != w.OnBoot {
		differs("onboot", fmt.Sprint(vm.GetOnboot()), fmt.Sprint(w.OnBoot))
	}
	return d
}

func wantedDisk(g *guestView, slot string) int64 {
	if slot == systemSlot {
		return g.want.Disk
	}
	for _, d := range g.want.DataDisks {
		if d.Slot == slot {
			return d.Size
		}
	}
	return 0
}

// gib rounds up to whole GiB, as disks are made.
func gib(bytes int64) int64 { return (bytes + 1<<30 - 1) >> 30 }

func list(words []string) string {
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, " ")
}

// noteDropped says what is ours and no longer in the Spec (rule 8).
func (m *model) noteDropped() {
	dropped := map[string]string{}
	for name, r := range m.want.Guests {
		if h := m.hosts[r.Host]; m.spec.Guests[name] == nil && r.VMID != 0 && h != nil && !m.shows(h) {
			dropped[name] = r.Host
		}
	}
	for name, there := range m.ours {
		guest, holder := HeldGuest(name)
		switch {
		case holder && m.spec.Guests[guest] == nil:
			m.note(homelabv1.NoteKind_NOTE_KIND_INFO, guest, there[0].host, fmt.Sprintf("holder VM %d keeps data disks of it (%s)", there[0].vm.GetVmid(), strings.Join(slotsOf(there[0].vm.GetDisks()), ", ")))
		case NoGuest(name):
		case m.spec.Guests[name] == nil:
			dropped[name] = there[0].host
		}
	}
	for name, open := range m.intents {
		if !NoGuest(name) && m.spec.Guests[name] == nil && len(m.ours[name]) == 0 {
			id := open[0].intent.GetIdentity()
			m.note(homelabv1.NoteKind_NOTE_KIND_INFO, name, open[0].host.name, fmt.Sprintf("no longer in the Spec; its creation as VM %d was begun and left; to undo it: hlctl orphans --delete", id.GetVmid()))
			delete(dropped, name)
		}
	}
	for name, host := range dropped {
		m.note(homelabv1.NoteKind_NOTE_KIND_INFO, name, host, "no longer in the Spec; it is left alone")
	}
}
