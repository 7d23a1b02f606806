package plan

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/human"
	"github.com/homeiac/homelab/internal/spec"
)

// Images: a name stands for one digest in the whole fleet, from its first fetch
// on. A guest that is made anew is made of what it was made of, while that can be
// had; all others of what the name stands for now.

// Image is what an image's name stands for, remembered from its first fetch.
type Image struct {
	// Source is SourceOf the Spec's entry then. For another entry of that name it
	// says nothing.
	Source string
	// SHA256 and SHA512 are its digests in hex; SHA512 may be empty.
	SHA256, SHA512 string
	// Bytes is its size as published, VirtualBytes that of the disk in it, and
	// UnpackedBytes that of what is in a compressed file. 0 is not known.
	Bytes, VirtualBytes, UnpackedBytes int64
	// Verification is what the digest was compared with.
	Verification homelabv1.Verification
}

// SourceOf stands for where an image comes from and what it is known by, without
// user and password: an image of another source is another one, whatever its name.
func SourceOf(i *spec.Image) string {
	sum := sha256.Sum256([]byte(strings.Join([]string{string(i.Type), withoutUser(i.URL), withoutUser(i.Checksums), i.SHA256, i.SHA512}, "\n")))
	return hex.EncodeToString(sum[:16])
}

// Present is what an image of the Spec stands for now. Its SHA256 is empty while
// it is not resolved: the first fetch does that.
func (w Want) Present(i *spec.Image) Image {
	known, ok := w.Images[i.Name]
	switch {
	case i.SHA256 != "" && known.SHA256 != i.SHA256:
		return Image{SHA256: i.SHA256, Verification: homelabv1.Verification_VERIFICATION_SPEC}
	case i.SHA256 != "":
		known.Verification = homelabv1.Verification_VERIFICATION_SPEC
		return known
	case i.SHA512 != "" && (!ok || known.SHA512 != i.SHA512):
		return Image{SHA512: i.SHA512, Verification: homelabv1.Verification_VERIFICATION_SPEC}
	case ok && known.Source == SourceOf(i):
		return known
	}
	return Image{SHA512: i.SHA512}
}

// Address is an image's address as records and people are shown it: without user,
// password and query, which may hold a signature.
func Address(url string) string {
	url, _, _ = strings.Cut(url, "#")
	url, _, _ = strings.Cut(url, "?")
	return withoutUser(url)
}

// withoutUser is an address without user and password.
func withoutUser(url string) string {
	scheme, rest, ok := strings.Cut(url, "://")
	if !ok {
		return url
	}
	authority, path, slash := strings.Cut(rest, "/")
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		authority = authority[i+1:]
	}
	if slash {
		path = "/" + path
	}
	return scheme + "://" + authority + path
}

// choice is the image that a guest is to be made of.
type choice struct {
	image *spec.Image
	Image        // SHA256 is empty while it is not known
	old   bool   // it is not what the name stands for now
	why   string // why it is another one than the guest was made of; empty when it is not
}

// imageOf gives the image of a guest's system disk, or of the CD in its drive; nil
// when it has none, or the Spec has none of that name.
func (m *model) imageOf(g *guestView, cdrom bool) *choice {
	name, was, wasName := g.want.Image, g.mem.ImageSHA256, g.mem.Image
	if cdrom {
		name, was, wasName = g.want.CDROM, g.mem.CDROMSHA256, g.mem.CDROM
	}
	image := m.spec.Images[name]
	if image == nil {
		return nil
	}
	now := &choice{image: image, Image: m.present(image)}
	switch {
	case was == "" || was == now.SHA256 || wasName != "" && wasName != name:
		return now
	case m.copyOf(was) != nil:
		c := m.copyOf(was)
		return &choice{image: image, old: true, Image: Image{
			SHA256: was, SHA512: c.GetSha512(), Bytes: c.GetBytes(), VirtualBytes: c.GetVirtualBytes(), UnpackedBytes: c.GetUnpackedBytes(),
			Verification: c.GetVerification(),
		}}
	case !cdrom && m.templateAt(g, was) != nil:
		return &choice{image: image, old: true, Image: Image{SHA256: was}}
	}
	now.why = fmt.Sprintf("the image that it was made of (%s, sha256 %s…) is on no host that answers, and its source gives another one", name, short(was))
	return now
}

// present is Want.Present, found out once for each image.
func (m *model) present(i *spec.Image) Image {
	p, ok := m.presents[i.Name]
	if !ok {
		p = m.want.Present(i)
		m.presents[i.Name] = p
	}
	return p
}

func short(sha256 string) string { return sha256[:min(12, len(sha256))] }

// copyOf is a whole copy of the image with that digest, on any host that answers.
func (m *model) copyOf(sha256 string) *homelabv1.ImageCopy {
	if sha256 == "" {
		return nil
	}
	for _, h := range m.order {
		for _, c := range h.obs.GetImages() {
			if c.GetSha256() == sha256 {
				return c
			}
		}
	}
	return nil
}

// holds says whether a host has a whole copy on the storage where it is to be, and of
// the type that is wanted: the same bytes as an ISO file lie elsewhere.
func (h *hostView) holds(c *choice) bool {
	storage, iso := imageStorage(h.want, c.image), c.image.Type == spec.ImageISO
	return c.SHA256 != "" && slices.ContainsFunc(h.obs.GetImages(), func(held *homelabv1.ImageCopy) bool {
		return held.GetSha256() == c.SHA256 && held.GetStorage() == storage && (held.GetType() == homelabv1.ImageType_IMAGE_TYPE_ISO) == iso
	})
}

// imageStorage is where a host keeps an image.
func imageStorage(h *spec.Host, i *spec.Image) string {
	kind := kindImages
	if i.Type == spec.ImageISO {
		kind = kindISO
	}
	storage, _ := h.Storage(kind)
	return storage
}

// fetchID is the id of the step that brings an image to a host. What is not what
// the name stands for now has its digest in it: both may be needed on one host.
func fetchID(host string, c *choice) string { return imageStepID("fetch", host, c) }

func imageStepID(verb, host string, c *choice) string {
	id := verb + "/" + host + "/" + c.image.Name
	if c.old {
		id += "@" + short(c.SHA256)
	}
	return id
}

// fetch adds the step that brings an image to a host, once for all guests there,
// and gives what must be waited for.
func (m *model) fetch(h *hostView, c *choice) []string {
	if c == nil || h.holds(c) {
		return nil
	}
	id := fetchID(h.name, c)
	if !m.fetched[id] {
		m.fetched[id] = true
		reason := h.name + " does not hold it yet"
		if c.SHA256 == "" {
			reason += "; the first fetch decides what it is"
		}
		if c.old {
			reason = fmt.Sprintf("a guest of %s is made of it (sha256 %s…), and it is not what the name stands for now", h.name, short(c.SHA256))
		}
		m.addFetch(h, c, id, reason)
	}
	return []string{id}
}

func (m *model) addFetch(h *hostView, c *choice, id, reason string) *homelabv1.Step {
	s := &homelabv1.Step{
		Id: id, Action: homelabv1.Action_ACTION_FETCH, Host: h.name, Image: c.image.Name, ImageSha256: c.SHA256,
		Reason: reason, ImageType: homelabv1.ImageType_IMAGE_TYPE_DISK,
	}
	if c.image.Type == spec.ImageISO {
		s.ImageType = homelabv1.ImageType_IMAGE_TYPE_ISO
	}
	m.add(s)
	return s
}

// gather adds the steps that bring what a guest is made of to its host: image, CD
// and template. It gives what the creation must wait for, and what it is told of
// them.
func (m *model) gather(g *guestView) (after []string, tell func(*homelabv1.Step)) {
	disk, cd := m.imageOf(g, false), m.imageOf(g, true)
	if g.situation == Unfinished {
		// What it was made of is in it already; the rest of its creation needs no image.
		return nil, func(s *homelabv1.Step) {
			s.Image, s.ImageSha256 = g.want.Image, g.mem.ImageSHA256
		}
	}
	after = m.fetch(g.host, cd)
	kind := m.cloneKind(g)
	if kind == homelabv1.CloneKind_CLONE_KIND_IMPORT || disk == nil {
		after = append(after, m.fetch(g.host, disk)...)
		return after, func(s *homelabv1.Step) { describeImage(s, g, disk, kind) }
	}
	t := m.template(g, disk)
	if t.step != "" {
		after = append(after, t.step)
	}
	return after, func(s *homelabv1.Step) {
		describeImage(s, g, disk, kind)
		s.TemplateVmid, s.TemplateUuid = t.vmid, t.uuid
		s.Reason += fmt.Sprintf(", %s clone of template %d", cloneWord(kind), t.vmid)
	}
}

func describeImage(s *homelabv1.Step, g *guestView, disk *choice, kind homelabv1.CloneKind) {
	s.Image, s.Clone = g.want.Image, kind
	if disk == nil {
		return
	}
	s.ImageSha256 = disk.SHA256
	switch {
	case disk.why != "":
		s.Reason += "; " + disk.why
	case disk.old:
		s.Reason += fmt.Sprintf("; of the image that it was made of (sha256 %s…), which is not what %s stands for now", short(disk.SHA256), disk.image.Name)
	}
}

// imageRoom adds what the images of a guest will take of its host's storages, as
// far as that is known, to need; what another guest of this plan has claimed already
// is not counted again.
func (m *model) imageRoom(g *guestView, c *claim, need map[string]int64) {
	for _, cd := range []bool{false, true} {
		i := m.imageOf(g, cd)
		if i == nil || i.Bytes == 0 || g.situation == Unfinished {
			continue
		}
		storage := imageStorage(g.host.want, i.image)
		if key := storage + "/" + i.SHA256; !g.host.holds(i) && !c.images[key] {
			need[storage] += i.Bytes
		}
		if !cd && i.UnpackedBytes > 0 {
			need[storage] += i.UnpackedBytes
		}
		if kind := m.cloneKind(g); !cd && kind != homelabv1.CloneKind_CLONE_KIND_IMPORT && m.templateAt(g, i.SHA256) == nil {
			disks, _ := g.host.want.Storage(kindDisks)
			if !c.images["template/"+i.SHA256] {
				need[disks] += i.VirtualBytes
			}
		}
	}
}

// claimImages notes that the images of a guest are counted.
func (m *model) claimImages(g *guestView, c *claim) {
	for _, cd := range []bool{false, true} {
		if i := m.imageOf(g, cd); i != nil {
			c.images[imageStorage(g.host.want, i.image)+"/"+i.SHA256] = true
			if !cd {
				c.images["template/"+i.SHA256] = true
			}
		}
	}
}

// imageFits says that the image is larger than the disk that it is to become.
func (m *model) imageFits(g *guestView, f *findings) {
	if i := m.imageOf(g, false); i != nil && i.VirtualBytes > g.want.Disk {
		f.refuse("image %s holds a disk of %s, and the guest's is to have %s\n  %s", i.image.Name, human.Size(i.VirtualBytes), human.Size(g.want.Disk), m.correct("guests."+g.name+".disk"))
	}
}
