package plan

import (
	"slices"
	"strings"
	"time"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/human"
)

// claim is what guests of this plan will take of one host, above what the host
// shows as taken already.
type claim struct {
	memory  int64
	storage map[string]int64
	images  map[string]bool // that are counted in storage already, by storage and digest
}

const (
	mib           = int64(1) << 20
	leastMemory   = 256 * mib // below, a share of the memory is not worth a guest
	kindDisks     = "disks"
	kindImages    = "images"
	kindSnippets  = "snippets"
	kindISO       = "iso"
	contentImages = "images"
)

// claimResources sizes the guests that are to be made or started, in the order
// of their names, fixed sizes before shares, and finds what they lack. What is
// left out only because something is unknown or busy keeps its claim: others do
// not get its memory because of that.
func (m *model) claimResources() {
	for _, share := range []bool{false, true} {
		for _, g := range m.guests {
			if (g.want.Memory.Percent > 0 && g.mem.MemoryBytes == 0) == share {
				m.claim(g)
			}
		}
	}
}

func (m *model) claim(g *guestView) {
	if g.host == nil || g.host.obs == nil {
		return
	}
	var f findings
	c := m.claims[g.host.name]
	starts := !g.want.Standby()
	var memory int64
	switch g.situation {
	case Absent, HalfBuilt, InFlight, Unseen:
		if len(m.ours[g.name]) > 0 && g.situation != HalfBuilt {
			c.memory += g.unstarted()
			return
		}
		m.bridges(g, &f)
		m.devices(g, &f)
		m.storages(g, c, &f)
		m.size(g, c, &f)
		memory = g.memory
	case Stopped, Unfinished:
		if !starts || g.vm.GetPower() != homelabv1.Power_POWER_STOPPED {
			return
		}
		m.bridges(g, &f)
		if !g.vm.GetOnboot() { // with onboot the host counts it already
			memory = g.vm.GetMemoryBytes()
			m.fits(g, c, memory, &f)
		}
	case Unreadable:
		c.memory += g.unstarted()
		return
	default:
		return
	}
	g.lacking = f.verdict()
	if g.lacking.kind == homelabv1.NoteKind_NOTE_KIND_REFUSED {
		return
	}
	if g.situation != Stopped && g.situation != Unfinished {
		for name, bytes := range m.room(g, c) {
			c.storage[name] += bytes
		}
		m.claimImages(g, c)
	}
	if starts || g.want.OnBoot {
		c.memory += memory
	}
}

// unstarted is the memory that a VM of ours will need once it is started and
// that its host may not count yet.
func (g *guestView) unstarted() int64 {
	if g.vm == nil || g.want.Standby() || g.vm.GetOnboot() || g.vm.GetPower() == homelabv1.Power_POWER_RUNNING {
		return 0
	}
	return g.vm.GetMemoryBytes()
}

// size resolves the guest's memory and says whether the host has it.
func (m *model) size(g *guestView, c *claim, f *findings) {
	w := g.want.Memory
	switch {
	case g.mem.MemoryBytes > 0 && w.Percent > 0:
		g.memory = g.mem.MemoryBytes // what is relative is resolved once
	case w.Percent > 0:
		if g.host.obs.GetMemoryBytes() == 0 {
			f.unknown("the memory of %s is not known", g.host.name)
			return
		}
		g.memory = free(g.host, c) * int64(w.Percent) / 100 / mib * mib
		if g.memory < leastMemory {
			f.refuse("memory: %d %% of what %s has free is %s, less than %s", w.Percent, g.host.name, human.Size(max(g.memory, 0)), human.Size(leastMemory))
			return
		}
	default:
		g.memory = w.Bytes
	}
	m.fits(g, c, g.memory, f)
}

// free is what a host has for new guests: total minus reserve minus the guests
// that it counts and those that this plan adds.
func free(h *hostView, c *claim) int64 {
	return h.obs.GetMemoryBytes() - h.want.Reserve.Memory - h.obs.GetGuestsMemoryBytes() - c.memory
}

func (m *model) fits(g *guestView, c *claim, memory int64, f *findings) {
	h := g.host
	if h.obs.GetMemoryBytes() == 0 {
		f.unknown("the memory of %s is not known", h.name)
		return
	}
	if there := free(h, c); memory > there {
		f.refuse("memory: %s needed, %s has %s free (of %s%s)\n  %s", human.Size(memory), h.name, human.Size(max(there, 0)), human.Size(h.obs.GetMemoryBytes()),
			less("reserve", h.want.Reserve.Memory, "other guests", h.obs.GetGuestsMemoryBytes(), "guests of this plan", c.memory), m.correct("guests."+g.name+".memory"))
	}
}

// disks is how much the guest needs of each storage, in bytes.
func (m *model) disks(g *guestView) map[string]int64 {
	need := map[string]int64{}
	if name, ok := g.host.want.Storage(kindDisks); ok {
		need[name] += g.want.Disk
	}
	for _, d := range g.want.DataDisks {
		if name, ok := g.host.want.Storage(d.Storage); ok {
			need[name] += d.Size
		}
	}
	return need
}

// room is how much the guest needs of each storage with what it is made of.
func (m *model) room(g *guestView, c *claim) map[string]int64 {
	need := m.disks(g)
	m.imageRoom(g, c, need)
	return need
}

// images are the preconditions of what the guest is made of.
func (m *model) images(g *guestView, f *findings) {
	if m.spec.Images[g.want.Image] == nil {
		f.refuse("image %q is not in the Spec", g.want.Image)
	}
	if g.want.CDROM != "" && m.spec.Images[g.want.CDROM] == nil {
		f.refuse("image %q is not in the Spec", g.want.CDROM)
	}
}

// storages are the preconditions of everything that is stored for the guest.
func (m *model) storages(g *guestView, c *claim, f *findings) {
	h := g.host
	if !yes(h.obs.GetStoragesKnown()) {
		f.unknown("the storages of %s are not known%s", h.name, because(h.obs.GetStoragesKnown()))
		return
	}
	kinds := []string{kindDisks, kindImages, kindSnippets}
	if g.want.CDROM != "" {
		kinds = append(kinds, kindISO)
	}
	for _, d := range g.want.DataDisks {
		if !slices.Contains(kinds, d.Storage) {
			kinds = append(kinds, d.Storage)
		}
	}
	for _, kind := range kinds {
		key := "hosts." + h.name + ".storage." + kind
		name, ok := h.want.Storage(kind)
		if !ok {
			f.refuse("%s has no storage for %s\n  %s", h.name, kind, m.correct(key))
			continue
		}
		s := h.storages[name]
		switch {
		case s == nil:
			f.refuse("storage %s (%s) is not there on %s; it has %s\n  %s", name, kind, h.name, storageList(h.obs.GetStorages()), m.correct(key))
		case no(s.GetActive()):
			f.refuse("storage %s (%s) of %s is not active%s", name, kind, h.name, because(s.GetActive()))
		case !yes(s.GetActive()):
			f.unknown("whether storage %s (%s) of %s is active is not known%s", name, kind, h.name, because(s.GetActive()))
		default:
			m.storage(h, s, kind, key, f)
		}
	}
	m.cloning(g, f)
	m.imageFits(g, f)
	need := m.room(g, c)
	for _, name := range sorted(need) {
		s := h.storages[name]
		if s == nil || !yes(s.GetActive()) {
			continue
		}
		if !yes(s.GetSpaceKnown()) {
			f.unknown("the free space of storage %s of %s is not known%s", name, h.name, because(s.GetSpaceKnown()))
		} else if there := s.GetFreeBytes() - c.storage[name]; need[name] > there {
			f.refuse("storage %s of %s: %s needed, %s free%s\n  %s", name, h.name, human.Size(need[name]), human.Size(max(there, 0)),
				less("guests of this plan", c.storage[name]), m.correct("guests."+g.name+".disk"))
		}
	}
}

// storage says whether a storage may hold what its kind is for.
func (m *model) storage(h *hostView, s *homelabv1.Storage, kind, key string, f *findings) {
	content := contentImages
	switch kind {
	case kindImages: // a plain folder is used, of no content type
		if s.GetPath() == "" {
			f.refuse("storage %s (images) of %s is no directory (%s)\n  %s", s.GetName(), h.name, s.GetType(), m.correct(key))
		}
		return
	case kindSnippets, kindISO:
		content = kind
		if kind == kindISO && s.GetPath() == "" {
			f.refuse("storage %s (iso) of %s is no directory (%s)\n  %s", s.GetName(), h.name, s.GetType(), m.correct(key))
			return
		}
	}
	if !slices.Contains(s.GetContent(), content) {
		f.refuse("storage %s (%s) of %s does not allow content %q\n  allow it on the host (pvesm set %s --content %s), or correct %s in %s, then hlctl plan", s.GetName(), kind, h.name, content,
			s.GetName(), strings.Join(append(slices.Clone(s.GetContent()), content), ","), key, m.at(key))
	}
}

func storageList(storages []*homelabv1.Storage) string {
	words := make([]string, len(storages))
	for i, s := range storages {
		words[i] = s.GetName()
	}
	slices.Sort(words)
	return firstLines(words, 6)
}

// MemorySizes is the memory in bytes of every guest that the plan of the same
// arguments creates, shares resolved. It is to be remembered before the create.
func MemorySizes(want Want, seen Seen, now time.Time) map[string]int64 {
	m := newModel(want, seen, now)
	sizes := map[string]int64{}
	for _, g := range m.guests {
		if (g.situation == Absent || g.situation == HalfBuilt) && !g.lacking.against() {
			sizes[g.name] = g.memory
		}
	}
	return sizes
}
