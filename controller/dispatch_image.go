package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/homeiac/homelab/controller/plan"
	"github.com/homeiac/homelab/controller/store"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/mark"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/spec"
)

// listLimit bounds the reading of a list of checksums through an agent.
const listLimit = 2 * time.Minute

// aboutImage says whether a step is about an image or a template, and no guest.
func aboutImage(a homelabv1.Action) bool {
	return a == homelabv1.Action_ACTION_FETCH || a == homelabv1.Action_ACTION_TEMPLATE || a == homelabv1.Action_ACTION_PRUNE
}

// imageStep is everything an agent needs for a step about an image.
func (d *dispatch) imageStep(ctx context.Context, s *homelabv1.Step, req *agentv1.RunRequest) error {
	if s.GetAction() == homelabv1.Action_ACTION_PRUNE {
		return d.prune(s, req)
	}
	image, host := d.sp.Images[s.GetImage()], d.sp.Hosts[s.GetHost()]
	if image == nil || host == nil {
		return rpc.Errorf(rpc.ErrInvalid, "image %s or host %s is not in the Spec", s.GetImage(), s.GetHost())
	}
	kind := "images"
	if image.Type == spec.ImageISO {
		kind = "iso"
	}
	req.ImagesStorage, _ = host.Storage(kind)
	if s.GetAction() == homelabv1.Action_ACTION_TEMPLATE {
		return d.template(s, image, host, req)
	}
	return d.fetch(ctx, s, image, req)
}

// imageKey is what an image is known by in a run: by name, and by its digest when
// that is not what the name stands for.
func imageKey(s *homelabv1.Step) string {
	_, key, _ := strings.Cut(strings.TrimPrefix(s.GetId(), "fetch/"), "/")
	return key
}

// fetch fills in where a host gets an image from.
func (d *dispatch) fetch(ctx context.Context, s *homelabv1.Step, image *spec.Image, req *agentv1.RunRequest) error {
	t := d.transfers.get(imageKey(s), func() *transfer { return d.transfer(s, image) })
	r, err := t.join(ctx, s.GetHost(), d.over, func(ctx context.Context) (plan.Image, error) { return d.readList(ctx, s.GetHost(), image) })
	if err != nil {
		return err
	}
	src := source(image, r.digest)
	if t.old {
		src.Url, src.Mirrors = "", nil
	}
	req.Image, req.Wan = src, r.wan
	for _, peer := range r.peers {
		if address := d.world.sights[peer].address; address != "" {
			req.ImagePeers = append(req.ImagePeers, &agentv1.ImagePeer{Host: peer, Address: address})
		}
	}
	req.Needs, req.DiskBytes = d.needs(s, r.digest)
	return nil
}

// transfer begins the transfer of a step's image.
func (d *dispatch) transfer(s *homelabv1.Step, image *spec.Image) *transfer {
	digest := d.c.want(d.sp, d.world).Present(image)
	before := ""
	old := s.GetImageSha256() != "" && s.GetImageSha256() != digest.SHA256
	switch {
	case old:
		digest = plan.Image{SHA256: s.GetImageSha256(), Verification: homelabv1.Verification_VERIFICATION_NO}
	case s.GetNewest():
		before, digest = digest.SHA256, plan.Image{}
	}
	var whole []string
	for _, name := range d.sp.HostNames() {
		if sight := d.world.sights[name]; answers(sight) && digest.SHA256 != "" && slices.ContainsFunc(sight.obs.GetImages(), func(c *homelabv1.ImageCopy) bool {
			return c.GetSha256() == digest.SHA256
		}) {
			whole = append(whole, name)
		}
	}
	t := newTransfer(image, digest, whole)
	t.old, t.newest, t.before, t.now = old, s.GetNewest(), before, d.c.now
	t.held = func(ctx context.Context, hosts []string) map[string]int64 { return d.partsHeld(ctx, hosts, t) }
	return t
}

// partsHeld asks hosts how much of an image they have; those that do not answer are
// left out.
func (d *dispatch) partsHeld(ctx context.Context, hosts []string, t *transfer) map[string]int64 {
	var targets []target
	for _, name := range hosts {
		if h := d.sp.Hosts[name]; h != nil {
			targets = append(targets, hostTarget(h))
		}
	}
	held := make(map[string]int64)
	for name, s := range d.c.seeing.observe(ctx, targets) {
		if !answers(s) {
			continue
		}
		held[name] = 0
		for _, p := range s.obs.GetImageParts() {
			if p.GetSha256() != "" && p.GetSha256() == t.digest.SHA256 || p.GetSha512() != "" && p.GetSha512() == t.digest.SHA512 {
				held[name] = max(held[name], p.GetDoneBytes())
			}
		}
	}
	return held
}

// readList finds the digest in an image's list of checksums, through one host.
func (d *dispatch) readList(ctx context.Context, host string, image *spec.Image) (plan.Image, error) {
	client, err := d.c.agents.client(host, d.c.addressOf(host))
	if err != nil {
		return plan.Image{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, listLimit)
	defer cancel()
	src := source(image, plan.Image{})
	resp, err := client.ResolveImage(ctx, &agentv1.ResolveImageRequest{Image: src})
	if err != nil {
		return plan.Image{}, err
	}
	return plan.Image{SHA256: resp.GetSha256(), SHA512: resp.GetSha512(), Verification: homelabv1.Verification_VERIFICATION_LIST}, nil
}

// source is where an image comes from, with the digest that it must have.
func source(i *spec.Image, digest plan.Image) *homelabv1.ImageSource {
	src := &homelabv1.ImageSource{
		Name: i.Name, Url: i.URL, Mirrors: i.Mirrors, ChecksumsUrl: i.Checksums, Type: homelabv1.ImageType_IMAGE_TYPE_DISK,
		Sha256: digest.SHA256, Sha512: digest.SHA512, Verification: digest.Verification, Bytes: digest.Bytes,
	}
	if src.GetSha512() == "" {
		src.Sha512 = i.SHA512
	}
	if src.GetSha256() != "" || src.GetSha512() != "" {
		src.ChecksumsUrl = "" // it was read already
	}
	if i.Type == spec.ImageISO {
		src.Type = homelabv1.ImageType_IMAGE_TYPE_ISO
	}
	return src
}

// needs is how much the guests that this plan makes of an image on a host will take
// of its storages, with the smallest disk that the image must fit into.
func (d *dispatch) needs(s *homelabv1.Step, digest plan.Image) (needs []*agentv1.StorageNeed, disk int64) {
	host := d.sp.Hosts[s.GetHost()]
	disks, _ := host.Storage("disks")
	for _, step := range d.steps {
		switch {
		case step.GetHost() != s.GetHost():
		case step.GetAction() == homelabv1.Action_ACTION_TEMPLATE && slices.Contains(step.GetAfter(), s.GetId()):
			needs = append(needs, &agentv1.StorageNeed{Storage: disks, Bytes: digest.VirtualBytes, What: "a template"})
		case step.GetAction() == homelabv1.Action_ACTION_CREATE && step.GetImage() == s.GetImage() && !d.remade[step.GetGuest()]:
			g := d.sp.Guests[step.GetGuest()]
			if g == nil {
				continue
			}
			needs = append(needs, &agentv1.StorageNeed{Storage: disks, Bytes: g.Disk, What: "guest " + g.Name})
			for _, data := range g.DataDisks {
				if storage, ok := host.Storage(data.Storage); ok && !slices.Contains(step.GetSlots(), data.Slot) {
					needs = append(needs, &agentv1.StorageNeed{Storage: storage, Bytes: data.Size, What: data.Slot + " of guest " + g.Name})
				}
			}
			if disk == 0 || g.Disk < disk {
				disk = g.Disk
			}
		}
	}
	return needs, disk
}

// digestOf is the digest of a step's image: planned, or found out in this run. d.mu
// is held.
func (d *dispatch) digestOf(s *homelabv1.Step) string {
	if s.GetImageSha256() != "" {
		return s.GetImageSha256()
	}
	return d.images[s.GetHost()+"/"+s.GetImage()]
}

// template fills in which template is made of what.
func (d *dispatch) template(s *homelabv1.Step, image *spec.Image, host *spec.Host, req *agentv1.RunRequest) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	digest := d.digestOf(s)
	if digest == "" {
		return rpc.Errorf(rpc.ErrUnavailable, "what image %s is was not found out in this run", image.Name)
	}
	id := d.templates[s.GetId()]
	if id == nil {
		rec := store.Guest{Name: mark.TemplateName(digest), VMID: s.GetVmid(), UUID: s.GetUuid(), Generation: 1}
		if rec.UUID == "" {
			rec.UUID = uuid.NewString()
		}
		id = d.c.signer.identity(rec)
		d.templates[s.GetId()] = id
	}
	req.Template = id
	req.Image = source(image, plan.Image{SHA256: digest})
	req.DisksStorage, _ = host.Storage("disks")
	for _, step := range d.steps {
		if g := d.sp.Guests[step.GetGuest()]; g != nil && step.GetTemplateVmid() == s.GetVmid() && step.GetHost() == s.GetHost() && (req.GetDiskBytes() == 0 || g.Disk < req.GetDiskBytes()) {
			req.DiskBytes = g.Disk
		}
	}
	return nil
}

// prune fills in what is removed: a template, or a file.
func (d *dispatch) prune(s *homelabv1.Step, req *agentv1.RunRequest) error {
	if s.GetVmid() == 0 {
		req.Image = &homelabv1.ImageSource{Name: s.GetImage(), Sha256: s.GetImageSha256(), Type: s.GetImageType()}
		req.ImagesStorage = s.GetStorage()
		return nil
	}
	for _, vm := range d.world.sights[s.GetHost()].obs.GetVms() {
		if vm.GetVmid() != s.GetVmid() || vm.GetUuid() != s.GetUuid() {
			continue
		}
		m, err := mark.Parse(vm.GetMark())
		if err != nil {
			break
		}
		req.Template = d.c.signer.identity(store.Guest{Name: m.Guest, VMID: vm.GetVmid(), UUID: vm.GetUuid(), Generation: m.Generation})
		return nil
	}
	return rpc.Errorf(rpc.ErrRefused, "template %d was not seen on %s", s.GetVmid(), s.GetHost())
}

// made fills in what a guest's system disk is made of, and what is in its drive.
func (d *dispatch) madeOf(s *homelabv1.Step, rec store.Guest, want *homelabv1.GuestWant) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	g := d.sp.Guests[s.GetGuest()]
	if image := d.sp.Images[s.GetImage()]; image != nil && rec.ImageSHA256 != "" {
		want.Image = source(image, plan.Image{SHA256: rec.ImageSHA256})
	}
	if image := d.sp.Images[g.CDROM]; image != nil {
		want.Cdrom = source(image, plan.Image{SHA256: rec.CDROMSHA256})
		want.IsoStorage, _ = d.sp.Hosts[s.GetHost()].Storage("iso")
	}
	want.Clone = s.GetClone()
	if s.GetTemplateVmid() == 0 {
		return nil
	}
	if s.GetTemplateUuid() != "" {
		want.Template = d.c.signer.identity(store.Guest{Name: mark.TemplateName(rec.ImageSHA256), VMID: s.GetTemplateVmid(), UUID: s.GetTemplateUuid(), Generation: 1})
		return nil
	}
	for _, id := range d.templates {
		if id.GetVmid() == s.GetTemplateVmid() {
			want.Template = id
			return nil
		}
	}
	return rpc.Errorf(rpc.ErrUnavailable, "template %d was not made in this run", s.GetTemplateVmid())
}

// remadeOf fills in what a guest that is made again is made of, for the steps that look
// whether it can be before anything of it goes: it need not be what the Spec says now.
func (d *dispatch) remadeOf(s *homelabv1.Step, rec store.Guest, want *homelabv1.GuestWant) error {
	i := slices.IndexFunc(d.steps, func(o *homelabv1.Step) bool {
		return o.GetAction() == homelabv1.Action_ACTION_CREATE && o.GetGuest() == s.GetGuest() && o.GetHost() == s.GetHost()
	})
	g := d.sp.Guests[s.GetGuest()]
	if i < 0 || g == nil {
		return nil
	}
	d.mu.Lock()
	rec.ImageSHA256, rec.CDROMSHA256 = d.digestOf(d.steps[i]), d.cdromDigest(s.GetHost(), g, rec)
	d.mu.Unlock()
	return d.madeOf(d.steps[i], rec, want)
}

// imageLearned remembers what a fetch found out, before anybody else builds on it.
// d.mu is held.
func (d *dispatch) imageLearned(ctx context.Context, s *homelabv1.Step, l *agentv1.Learned) error {
	digest := l.GetImageSha256()
	if digest == "" {
		return nil
	}
	d.images[s.GetHost()+"/"+imageKey(s)] = digest
	image, t := d.sp.Images[s.GetImage()], d.transfers.of(imageKey(s))
	if image == nil || t == nil {
		return nil
	}
	rec := imageRecord(image, l.GetImage(), d.c.now())
	if rec.SHA256 == "" {
		rec.SHA256 = digest
	}
	known := d.known[image.Name]
	if !t.old && (known.SHA256 != digest || known.Source != rec.Source || known.Bytes == 0 && rec.Bytes > 0) {
		if err := d.c.store.PutImage(ctx, d.lock, rec); err != nil {
			return err
		}
		d.known[image.Name] = rec
	}
	if t.newest && !t.told {
		t.told = true
		d.emit(&homelabv1.Event{
			Time: timestamppb.New(d.c.now()), Kind: homelabv1.EventKind_EVENT_KIND_NOTE, Note: noteName(homelabv1.NoteKind_NOTE_KIND_INFO),
			Step: s.GetId(), Host: s.GetHost(), Text: resolvedText(image.Name, t.before, rec.SHA256),
		})
	}
	learned := recalledImages(map[string]store.Image{"": rec})[""]
	t.arrived(s.GetHost(), learned)
	return nil
}

// resolvedText says what a name stood for and stands for now.
func resolvedText(name, old, now string) string {
	switch old {
	case "":
		return fmt.Sprintf("image %s stands for sha256 %s now", name, now)
	case now:
		return fmt.Sprintf("image %s stands for sha256 %s as before", name, now)
	}
	return fmt.Sprintf("image %s stood for sha256 %s and stands for %s now; guests that exist stay what they are made of", name, old, now)
}

// imageRecord is what is remembered of an image that a host holds.
func imageRecord(i *spec.Image, held *homelabv1.ImageCopy, now time.Time) store.Image {
	return store.Image{
		Name: i.Name, Source: plan.SourceOf(i), SHA256: held.GetSha256(), SHA512: held.GetSha512(), Bytes: held.GetBytes(),
		VirtualBytes: held.GetVirtualBytes(), UnpackedBytes: held.GetUnpackedBytes(), Verification: held.GetVerification(), At: now.UTC(),
	}
}

// imageBroke says that an attempt of a fetch failed, so that others may read the
// source.
func (d *dispatch) imageBroke(ctx context.Context, s *homelabv1.Step, why error) {
	t, host := d.transfers.of(imageKey(s)), s.GetHost()
	if t == nil || s.GetAction() != homelabv1.Action_ACTION_FETCH {
		return
	}
	if errors.Is(why, rpc.ErrUnavailable) && t.reads(host) {
		// A host that is gone says nothing of the source.
		if held, there := d.partsHeld(ctx, []string{host}, t)[host]; there {
			t.readInVain(host, held, why)
		}
	}
	t.broke(host)
}

// imageEnded says that a step of a fetch is over, whatever came of it.
func (d *dispatch) imageEnded(s *homelabv1.Step) {
	if t := d.transfers.of(imageKey(s)); t != nil && s.GetAction() == homelabv1.Action_ACTION_FETCH {
		t.leave(s.GetHost())
	}
}

// imageEvent looks at an event of a step about an image: how far it is, and whether
// its source is at fault.
func (d *dispatch) imageEvent(e *homelabv1.Event) {
	if !strings.HasPrefix(e.GetStep(), "fetch/") {
		return
	}
	d.transfers.goesOn(e.GetStep(), d.c.now())
	if e.GetImageFault() == "" {
		return
	}
	if t := d.transfers.of(imageKey(&homelabv1.Step{Id: e.GetStep()})); t != nil {
		t.faulty(e.GetHost(), e.GetImageFault())
	}
}

// imagePatience is how long a fetch is tried again without having brought anything.
const imagePatience = 2 * time.Minute

// again says whether a step is sent once more after that many attempts. A fetch is
// as long as it brings something, or another host reads the source for it: sources
// and peers come and go.
func (d *dispatch) again(s *homelabv1.Step, attempts int) bool {
	if attempts < stepAttempts {
		return true
	}
	if s.GetAction() != homelabv1.Action_ACTION_FETCH {
		return false
	}
	if t := d.transfers.of(imageKey(s)); t != nil && t.readByAnother(s.GetHost()) {
		return true // what it waits for may just begin to come
	}
	return d.c.now().Sub(d.transfers.lastProgress(s.GetId())) < imagePatience
}
