package plantest

import (
	"slices"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/mark"
)

// fetch brings an image to a host.
func (w *World) fetch(h *Host, s *homelabv1.Step, how Outcome) {
	if how != Well && how != Unheard {
		return
	}
	i := w.Spec.Images[s.GetImage()]
	digest := s.GetImageSha256()
	if digest == "" {
		digest = i.SHA256
	}
	storage, _ := w.Spec.Hosts[h.Name].Storage("images")
	h.Images = append(h.Images, &homelabv1.ImageCopy{Name: i.Name, Storage: storage, Sha256: digest, Verified: true, Url: i.URL})
}

// template makes a template, or finishes one.
func (w *World) template(h *Host, s *homelabv1.Step, how Outcome) error {
	vm := h.VMs[s.GetVmid()]
	switch {
	case w.Spec.Protected(int(s.GetVmid())) || !w.Spec.Templates.Contains(int(s.GetVmid())):
		w.violate("step %s makes VMID %d, which is none for templates", s.GetId(), s.GetVmid())
		return errStep
	case vm != nil && (!vm.Ours || vm.UUID != s.GetUuid()):
		w.violate("step %s makes VM %d, where another VM is", s.GetId(), s.GetVmid())
		return errStep
	case vm == nil && !slices.ContainsFunc(h.Images, func(c *homelabv1.ImageCopy) bool { return c.GetSha256() == s.GetImageSha256() }):
		return errStep
	case vm == nil:
		w.mayMake(h, s)
	}
	if how == Fails {
		return nil
	}
	uuid := s.GetUuid()
	if uuid == "" {
		uuid = w.UUID()
	}
	name := mark.TemplateName(s.GetImageSha256())
	if vm == nil {
		vm = &VM{
			VMID: s.GetVmid(), Name: "hl-template-" + s.GetImage(), UUID: uuid, Mark: w.Mark(name, s.GetVmid(), uuid, 1), Ours: true,
			Power: homelabv1.Power_POWER_STOPPED, Disk: 1 << 30,
		}
	}
	intent := &homelabv1.Intent{
		Identity: &homelabv1.Identity{Fleet: Fleet, Guest: name, Generation: 1, Vmid: vm.VMID, Uuid: vm.UUID, Mark: vm.Mark},
		Step:     s.GetId(), Worker: No(""),
	}
	h.Intents = slices.DeleteFunc(slices.Clone(h.Intents), func(i *homelabv1.Intent) bool { return i.GetIdentity().GetVmid() == s.GetVmid() })
	switch {
	case how == Killed && h.VMs[vm.VMID] == nil && w.number%2 == 0:
		h.VMs[vm.VMID] = &VM{VMID: vm.VMID, Half: true, Lock: "create", Power: homelabv1.Power_POWER_STOPPED}
		h.Intents = append(h.Intents, intent)
		return nil
	case how == Killed: // it is whole, and no template yet
		h.VMs[vm.VMID] = vm
		h.Intents = append(h.Intents, intent)
		return nil
	case how == Unheard:
		h.Intents = append(h.Intents, intent)
	}
	vm.Template = true
	h.VMs[vm.VMID] = vm
	return nil
}

// cloned checks what a guest is cloned from.
func (w *World) cloned(h *Host, s *homelabv1.Step) error {
	if s.GetTemplateVmid() == 0 {
		return nil
	}
	t := h.VMs[s.GetTemplateVmid()]
	switch {
	case t == nil:
		return errStep
	case !t.Ours || !t.Template || s.GetTemplateUuid() != "" && s.GetTemplateUuid() != t.UUID:
		w.violate("step %s clones VM %d, which is no template of ours", s.GetId(), s.GetTemplateVmid())
		return errStep
	}
	return nil
}
