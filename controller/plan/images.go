package plan

import (
	"fmt"
	"slices"
	"strings"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/human"
	"github.com/homeiac/homelab/internal/mark"
)

// planFetchImages brings images to hosts without making anything of them. With
// newest their names are resolved anew; guests that exist stay what they are.
func (m *model) planFetchImages(op Operation) {
	names, cannot := op.Images, homelabv1.NoteKind_NOTE_KIND_REFUSED
	if len(names) == 0 {
		// Of all there are, one for which there is nothing to do is no refusal.
		names, cannot = m.spec.ImageNames(), homelabv1.NoteKind_NOTE_KIND_INFO
	}
	for _, name := range names {
		image := m.spec.Images[name]
		switch {
		case image == nil:
			m.note(homelabv1.NoteKind_NOTE_KIND_REFUSED, "", "", fmt.Sprintf("there is no image %s in the Spec (there are %s)", name, list(m.spec.ImageNames())))
			continue
		case op.Newest && (image.SHA256 != "" || image.SHA512 != ""):
			m.note(cannot, "", "", fmt.Sprintf("image %s has its digest in the Spec (%s): write the new one there, then hlctl images fetch %s", name, m.at("images."+name), name))
			continue
		}
		hosts := m.hostsOf(name, op.Host)
		switch h := m.hosts[op.Host]; {
		case len(hosts) > 0:
		case h != nil && !h.want.Enabled:
			m.note(homelabv1.NoteKind_NOTE_KIND_REFUSED, "", h.name, fmt.Sprintf("host %s is disabled, so image %s is not fetched to it\n  %s", h.name, name, m.correct("hosts."+h.name+".enabled")))
		default:
			m.note(cannot, "", op.Host, fmt.Sprintf("no guest on a host that is enabled is made of image %s; name a host: hlctl images fetch %s --host HOST", name, name))
		}
		for _, h := range hosts {
			m.planFetchTo(h, &choice{image: image, Image: m.present(image)}, op.Newest)
		}
	}
}

// hostsOf are the hosts that an image is to be brought to.
func (m *model) hostsOf(image, only string) []*hostView {
	var hosts []*hostView
	for _, h := range m.order {
		wanted := slices.ContainsFunc(m.guests, func(g *guestView) bool {
			return g.want.Host == h.name && (g.want.Image == image || g.want.CDROM == image)
		})
		if h.want.Enabled && (only == h.name || only == "" && wanted) {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

func (m *model) planFetchTo(h *hostView, c *choice, newest bool) {
	storage := imageStorage(h.want, c.image)
	s := h.storages[storage]
	v := h.blocked
	switch {
	case h.obs == nil:
		v = skipped(h.silence(m.now))
	case v.against():
	case m.fetching[fetchID(h.name, c)]:
		v = busy("step " + fetchID(h.name, c) + " is in flight")
	case storage == "":
		v = refused(fmt.Sprintf("%s has no storage for image %s\n  %s", h.name, c.image.Name, m.correct("hosts."+h.name+".storage.images")))
	case s == nil && yes(h.obs.GetStoragesKnown()):
		v = refused(fmt.Sprintf("storage %s is not there on %s; it has %s\n  %s", storage, h.name, storageList(h.obs.GetStorages()), m.correct("hosts."+h.name+".storage.images")))
	case !yes(s.GetActive()):
		v = skipped(fmt.Sprintf("whether storage %s of %s is active is not known%s", storage, h.name, because(s.GetActive())))
	case !newest && h.holds(c):
		v = verdict{homelabv1.NoteKind_NOTE_KIND_UNCHANGED, "holds image " + c.image.Name + " already"}
	}
	if v.against() {
		m.note(v.kind, "", h.name, v.text)
		return
	}
	reason := "asked for by name"
	if newest {
		reason = "its name is resolved anew"
		if c.SHA256 != "" {
			reason += fmt.Sprintf("; now it stands for sha256 %s…", short(c.SHA256))
		}
		c = &choice{image: c.image}
	}
	m.addFetch(h, c, fetchID(h.name, c), reason).Newest = newest
}

// planPruneImages removes image files that no guest is made of and no name stands
// for, and templates of such images on which nothing stands.
func (m *model) planPruneImages() {
	needed := m.neededImages()
	for _, h := range m.order {
		switch {
		case !h.want.Enabled:
			continue
		case h.obs == nil:
			m.note(homelabv1.NoteKind_NOTE_KIND_SKIPPED, "", h.name, h.silence(m.now))
			continue
		case h.blocked.against():
			m.note(h.blocked.kind, "", h.name, h.blocked.text)
			continue
		case !yes(h.obs.GetVmsKnown()):
			m.note(homelabv1.NoteKind_NOTE_KIND_SKIPPED, "", h.name, "the VMs on "+h.name+" could not be listed"+because(h.obs.GetVmsKnown()))
			continue
		}
		planned := map[string]bool{}
		for _, c := range h.obs.GetImages() {
			id := fmt.Sprintf("prune/%s/%s@%s", h.name, c.GetName(), short(c.GetSha256()))
			if planned[id] {
				id += "@" + c.GetStorage() // another copy, on another storage
			}
			if planned[id] || needed.has(c.GetSha256(), c.GetName()) {
				continue
			}
			planned[id] = true
			m.add(&homelabv1.Step{
				Id: id, Action: homelabv1.Action_ACTION_PRUNE, Host: h.name,
				Image: c.GetName(), ImageSha256: c.GetSha256(), Storage: c.GetStorage(), ImageType: c.GetType(), Destroys: true,
				Reason: fmt.Sprintf("%s on %s: no guest is made of it, and no name stands for it", human.Size(c.GetBytes()), c.GetStorage()),
			})
		}
		m.planPruneParts(h, needed)
		m.planPruneTemplates(h, needed)
	}
}

// planPruneParts removes what is left of transfers that were cut off, of images that
// nobody will go on with. Beside a whole file it goes with that.
func (m *model) planPruneParts(h *hostView, needed *neededImages) {
	for _, p := range h.obs.GetImageParts() {
		whole := slices.ContainsFunc(h.obs.GetImages(), func(c *homelabv1.ImageCopy) bool {
			return c.GetSha256() == p.GetSha256() && c.GetStorage() == p.GetStorage()
		})
		id := fmt.Sprintf("prune/%s/%s@%s@%s.part", h.name, p.GetName(), short(p.GetSha256()), p.GetStorage())
		if p.GetActive() || p.GetSha256() == "" || whole || m.fetched[id] || needed.has(p.GetSha256(), p.GetName()) {
			continue
		}
		m.fetched[id] = true
		m.add(&homelabv1.Step{
			Id: id, Action: homelabv1.Action_ACTION_PRUNE, Host: h.name,
			Image: p.GetName(), ImageSha256: p.GetSha256(), Storage: p.GetStorage(), ImageType: p.GetType(), Destroys: true,
			Reason: fmt.Sprintf("a part of it on %s, %s: no guest is made of it, and no name stands for it", p.GetStorage(), human.Size(p.GetDoneBytes())),
		})
	}
}

func (m *model) planPruneTemplates(h *hostView, needed *neededImages) {
	for _, name := range sorted(m.ours) {
		digits, ok := mark.TemplateOf(name)
		if !ok || needed.has(digits, "") {
			continue
		}
		for _, p := range m.ours[name] {
			if p.host != h.name {
				continue
			}
			if why := m.keepsTemplate(p.vm); why != "" {
				m.note(homelabv1.NoteKind_NOTE_KIND_INFO, "", h.name, fmt.Sprintf("template %d%s stays: %s", p.vm.GetVmid(), quoted(p.vm.GetName()), why))
				continue
			}
			m.add(&homelabv1.Step{
				Id: fmt.Sprintf("prune/%s/%s/%d", h.name, name, p.vm.GetVmid()), Action: homelabv1.Action_ACTION_PRUNE, Host: h.name,
				Image: strings.TrimPrefix(p.vm.GetName(), "hl-template-"), ImageSha256: digits, Vmid: p.vm.GetVmid(), Uuid: p.vm.GetUuid(), Destroys: true,
				Generation: p.owner.Generation, Reason: fmt.Sprintf("template %d: nothing stands on it, no guest is made of its image, and no name stands for that", p.vm.GetVmid()),
			})
		}
	}
}

// keepsTemplate is why a template of ours is not removed now; empty when it may
// be. What stands on it is looked for again on the host, in every configuration.
func (m *model) keepsTemplate(vm *homelabv1.VirtualMachine) string {
	switch {
	case len(vm.GetLinkedClones()) > 0:
		return "VMs stand on its disk: " + strings.Join(vm.GetLinkedClones(), ", ")
	case !yes(vm.GetReadable()):
		return "its configuration cannot be read" + because(vm.GetReadable())
	case m.spec.Protected(int(vm.GetVmid())):
		return "it is in the Spec's protect list (" + m.at("protect") + ")"
	case vm.GetProtection() || vm.GetHaManaged():
		return "it is protected, or managed by Proxmox HA"
	case vm.GetLock() != "":
		return "it is locked (" + vm.GetLock() + ")"
	case len(vm.GetTasks()) > 0:
		return "a task works on it: " + vm.GetTasks()[0]
	}
	for name, open := range m.intents {
		if _, ok := mark.TemplateOf(name); ok && slices.ContainsFunc(open, func(i openIntent) bool {
			return i.intent.GetIdentity().GetUuid() == vm.GetUuid() && !i.intent.GetDestroying()
		}) {
			return "its making was not seen to end"
		}
	}
	return ""
}

// neededImages are the images that stay: by digest, by its first twelve digits
// (as templates know it), and by name where it is not known which digest counts.
type neededImages struct {
	digits map[string]bool
	names  map[string]string // with why
}

func (n *neededImages) has(sha256, name string) bool {
	return n.digits[short(sha256)] || n.names[name] != ""
}

func (n *neededImages) add(sha256 string) {
	if sha256 != "" {
		n.digits[short(sha256)] = true
	}
}

// neededImages finds what must stay: what a name of the Spec stands for, what a guest
// is remembered to be made of, and what is on its way. Of a guest of which that is
// not remembered all images of its name stay.
func (m *model) neededImages() *neededImages {
	n := &neededImages{digits: map[string]bool{}, names: map[string]string{}}
	for _, name := range m.spec.ImageNames() {
		p := m.present(m.spec.Images[name])
		if n.add(p.SHA256); p.SHA256 == "" {
			n.names[name] = "it is not known what it stands for"
		}
	}
	for _, r := range m.want.Guests {
		n.add(r.ImageSHA256)
		n.add(r.CDROMSHA256)
	}
	for _, g := range m.guests {
		if there := len(m.ours[g.name]) > 0 || g.mem.UUID != ""; !there {
			continue
		}
		if g.mem.ImageSHA256 == "" && g.mem.Generation > 0 {
			n.names[g.want.Image] = "it is not remembered which one " + g.name + " is made of"
		}
		if g.mem.CDROMSHA256 == "" && g.want.CDROM != "" {
			n.names[g.want.CDROM] = "it is not remembered which one " + g.name + " has"
		}
	}
	for _, h := range m.order {
		for _, p := range h.obs.GetImageParts() {
			switch {
			case !p.GetActive(): // a transfer that was cut off needs nothing
			case p.GetSha256() == "":
				n.names[p.GetName()] = "it is being fetched"
			default:
				n.add(p.GetSha256())
			}
		}
		for _, s := range h.obs.GetSteps() {
			if s.GetGuest() != "" {
				continue
			}
			if parts := strings.Split(s.GetStep(), "/"); len(parts) == 3 {
				name, _, _ := strings.Cut(parts[2], "@")
				n.names[name] = "step " + s.GetStep() + " is in flight"
			}
		}
	}
	return n
}
