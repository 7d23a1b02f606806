package controller

import (
	"cmp"
	"slices"

	"github.com/homeiac/homelab/controller/plan"
	"github.com/homeiac/homelab/controller/store"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/mark"
	"github.com/homeiac/homelab/internal/spec"
)

// recalledImages is what the planner is told of the remembered images.
func recalledImages(images map[string]store.Image) map[string]plan.Image {
	out := make(map[string]plan.Image, len(images))
	for name, i := range images {
		out[name] = plan.Image{
			Source: i.Source, SHA256: i.SHA256, SHA512: i.SHA512, Bytes: i.Bytes,
			VirtualBytes: i.VirtualBytes, UnpackedBytes: i.UnpackedBytes, Verification: i.Verification,
		}
	}
	return out
}

// recoverImages finds out what names stand for that nobody remembers, from the
// files that the hosts hold: when all that came from an image's address are one.
// It gives those of which the sizes were not known too.
func (c *Controller) recoverImages(sp *spec.Spec, w *world) {
	for _, name := range sp.ImageNames() {
		i := sp.Images[name]
		present := plan.Want{Images: recalledImages(w.images)}.Present(i)
		if present.SHA256 != "" && present.Bytes > 0 {
			continue
		}
		var found *homelabv1.ImageCopy
		ambiguous := false
		for _, host := range sp.HostNames() {
			for _, held := range w.sights[host].obs.GetImages() {
				switch {
				case !isOf(held, i, present):
				case found != nil && found.GetSha256() != held.GetSha256():
					ambiguous = true
				default:
					found = held
				}
			}
		}
		if found == nil || ambiguous {
			continue
		}
		if w.images == nil {
			w.images = make(map[string]store.Image)
		}
		w.images[name] = imageRecord(i, found, c.now())
		w.learnedImages = append(w.learnedImages, name)
	}
}

// isOf says whether a file is what an image's name stands for: by its digest, or
// when that is not known by the address that it came from.
func isOf(held *homelabv1.ImageCopy, i *spec.Image, present plan.Image) bool {
	switch {
	case held.GetName() != i.Name:
		return false
	case present.SHA256 != "":
		return held.GetSha256() == present.SHA256
	case i.SHA512 != "":
		return held.GetSha512() == i.SHA512
	case i.Checksums != "" && !held.GetVerified():
		return false
	}
	return slices.ContainsFunc(append([]string{i.URL}, i.Mirrors...), func(url string) bool { return held.GetUrl() == plan.Address(url) })
}

// imageStatuses are the image files on the hosts that answer, for people.
func (c *Controller) imageStatuses(sp *spec.Spec, w world) []*controllerv1.ImageStatus {
	want := plan.Want{Images: recalledImages(w.images)}
	verify := plan.VerifyWith(c.signer.key, c.fleet)
	current := func(name, sha256 string) bool {
		// A name that no Spec that was applied has stands for what was fetched last.
		if sp == nil || sp.Images[name] == nil {
			return w.images[name].SHA256 == sha256
		}
		return sha256 != "" && want.Present(sp.Images[name]).SHA256 == sha256
	}
	var list []*controllerv1.ImageStatus
	for host, s := range w.sights {
		if !answers(s) {
			continue
		}
		templates := make(map[string]int32)
		for _, vm := range s.obs.GetVms() {
			m, err := mark.Parse(vm.GetMark())
			if err != nil || !vm.GetTemplate() {
				continue
			}
			if digits, ok := mark.TemplateOf(m.Guest); ok && verify(vm, m.Guest).Ours {
				templates[digits] = vm.GetVmid()
			}
		}
		for _, i := range s.obs.GetImages() {
			list = append(list, &controllerv1.ImageStatus{
				Name: i.GetName(), Host: host, Storage: i.GetStorage(), Type: i.GetType(), Format: i.GetFormat(), Bytes: i.GetBytes(),
				DoneBytes: i.GetBytes(), Sha256: i.GetSha256(), Verification: i.GetVerification(), Compression: i.GetCompression(),
				Template: templates[i.GetSha256()[:min(len(i.GetSha256()), 12)]], Current: current(i.GetName(), i.GetSha256()),
			})
		}
		for _, p := range s.obs.GetImageParts() {
			list = append(list, &controllerv1.ImageStatus{
				Name: p.GetName(), Host: host, Storage: p.GetStorage(), Type: p.GetType(), Bytes: p.GetBytes(), DoneBytes: p.GetDoneBytes(),
				Sha256: p.GetSha256(), Verification: homelabv1.Verification_VERIFICATION_NO, Active: p.GetActive(),
				Current: current(p.GetName(), p.GetSha256()),
			})
		}
	}
	slices.SortFunc(list, compareImages)
	return list
}

func compareImages(a, b *controllerv1.ImageStatus) int {
	return cmp.Or(cmp.Compare(a.GetName(), b.GetName()), cmp.Compare(a.GetHost(), b.GetHost()), cmp.Compare(a.GetStorage(), b.GetStorage()),
		cmp.Compare(a.GetSha256(), b.GetSha256()))
}
