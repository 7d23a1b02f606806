package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/homeiac/homelab/agent/guest"
	"github.com/homeiac/homelab/agent/image"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/durable"
	"github.com/homeiac/homelab/internal/human"
	"github.com/homeiac/homelab/internal/rpc"
)

// remaining is what is left of the step's deadline, for the driver, which is to
// end before we do so that its reason is heard.
func remaining(ctx context.Context) *durationpb.Duration {
	end, ok := ctx.Deadline()
	if !ok {
		return nil
	}
	left := time.Until(end)
	return durationpb.New(left - min(left/10, 10*time.Second))
}

// fetch brings an image to this host.
func (s *Service) fetch(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	src := req.GetImage()
	o := s.host.Observe(s.now())
	folder, free, err := s.imageFolder(o, req.GetImagesStorage())
	if err != nil {
		return nil, err
	}
	if img, ok := image.Find(src, folder); ok {
		r := done(false, "image %s is there", src.GetName())
		r.Learned.ImageSha256 = img.Record.SHA256
		return r, nil
	}
	if err := s.settled(o); err != nil {
		return nil, err
	}
	var img image.Image
	err = e.call(callImage, []string{"fetch", image.Masked(src.GetUrl()), folder.Host}, func() (int, error) {
		var said time.Time
		var err error
		img, _, err = s.images.Fetch(ctx, src, folder, free, func(n, total int64) {
			if now := time.Now(); now.Sub(said) >= 500*time.Millisecond {
				said = now
				e.progress("fetching", fmt.Sprintf("%s of %s", human.Size(n), totalSize(total)))
			}
		})
		return 0, err
	})
	if err != nil {
		return nil, err
	}
	text := "fetched image %s (%s, %s)"
	if !img.Record.Verified {
		text = "fetched image %s (%s, %s), not verified: the Spec gives no checksum"
	}
	r := done(true, text, src.GetName(), human.Size(img.Record.Bytes), img.Record.Format)
	r.Learned.ImageSha256 = img.Record.SHA256
	return r, nil
}

// imageFolder is where images lie on a storage, with its free bytes (-1 when
// they are not known).
func (s *Service) imageFolder(o *homelabv1.Observation, storage string) (image.Folder, int64, error) {
	st, err := usable(o, storage, "")
	if err != nil {
		return image.Folder{}, 0, err
	}
	if st.GetPath() == "" {
		return image.Folder{}, 0, rpc.Errorf(rpc.ErrRefused, "storage %s of host %s is of type %s; images need a directory storage", storage, s.name, st.GetType())
	}
	free := int64(-1)
	if isYes(st.GetSpaceKnown()) {
		free = st.GetFreeBytes()
	}
	return image.FolderOf(s.root, storage, st.GetPath()), free, nil
}

// create makes the VM. Nothing is changed before all that it needs was seen.
func (s *Service) create(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	want := req.GetWant()
	id := want.GetIdentity()
	o := s.host.Observe(s.now())
	seen, err := s.driver.Observe(ctx)
	if err != nil {
		return nil, err
	}
	there, err := s.mayCreate(o, seen, want)
	if err != nil {
		return nil, err
	}
	folder, _, err := s.imageFolder(o, want.GetImagesStorage())
	if err != nil {
		return nil, err
	}
	img, ok := image.Find(want.GetImage(), folder)
	if !ok {
		return nil, rpc.Errorf(rpc.ErrRefused, "image %s is not on storage %s; it is fetched first", want.GetImage().GetName(), want.GetImagesStorage())
	}
	snippets, err := usable(o, want.GetSnippetsStorage(), "snippets")
	if err != nil {
		return nil, err
	}
	key, err := s.keys.MakeHostKey(id.GetFleet(), id.GetGuest(), id.GetGeneration())
	if err != nil {
		return nil, err
	}
	intent, err := s.intend(ctx, req)
	if err != nil {
		return nil, err
	}
	snip, written, err := s.placeUserData(want, snippets, key, there, e)
	if err != nil {
		return nil, err
	}
	vm, err := s.driver.Create(ctx, &driverv1.CreateRequest{
		Identity: id, Hardware: want.GetHardware(), ImagePath: img.Path, UserData: snip.volume,
		User: want.GetUser(), Deadline: remaining(ctx),
	}, e.report())
	if err != nil {
		if errors.Is(err, rpc.ErrRefused) && !there {
			// Refused means that nothing was changed, so that neither must we have.
			err = errors.Join(err, s.unintend(ctx, intent, snip, written, e))
		}
		return nil, err
	}
	if err := ours(vm, id); err != nil {
		return nil, err
	}
	if err := s.intents.close(id.GetVmid()); err != nil {
		return nil, err
	}
	r := done(true, "created VM %d", id.GetVmid())
	r.Learned.Macs, r.Learned.Volumes = vm.GetMacs(), vm.GetVolumes()
	r.Learned.HostKeys, r.Learned.ImageSha256 = []string{key.Public}, img.Record.SHA256
	return r, nil
}

// intend writes the intent, synced, before anything of the VM exists. One that
// is open already for the same VM stays: only it knows which volumes were there
// before the first attempt.
func (s *Service) intend(ctx context.Context, req *agentv1.RunRequest) (*homelabv1.Intent, error) {
	id := req.GetWant().GetIdentity()
	if open := s.intents.of(id.GetVmid()); open != nil {
		if !sameVM(open.GetIdentity(), id) {
			return nil, rpc.Errorf(rpc.ErrRefused, "VMID %d holds an unfinished create of guest %s, which must be rolled back first",
				id.GetVmid(), open.GetIdentity().GetGuest())
		}
		return open, nil
	}
	was, err := s.driver.Inspect(ctx, id.GetVmid())
	if err != nil {
		return nil, err
	}
	if !isYes(was.GetVolumesKnown()) {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "the volumes of VMID %d cannot be listed: %s", id.GetVmid(), was.GetVolumesKnown().GetReason())
	}
	intent := &homelabv1.Intent{Identity: id, Step: req.GetStep().GetId(), At: timestamppb.New(s.now())}
	for _, v := range was.GetVolumes() {
		intent.VolumesBefore = append(intent.VolumesBefore, v.GetVolid())
	}
	if err := s.intents.write(intent); err != nil {
		return nil, err
	}
	return intent, nil
}

// unintend takes back what a create that was refused had prepared. It looks
// first: with anything of that VMID there, the intent stays.
func (s *Service) unintend(ctx context.Context, intent *homelabv1.Intent, snip snippet, written bool, e emit) error {
	vmid := intent.GetIdentity().GetVmid()
	now, err := s.driver.Inspect(ctx, vmid)
	if err != nil || !isYes(now.GetVolumesKnown()) || now.GetVm().GetPower() != homelabv1.Power_POWER_ABSENT {
		return nil //nolint:nilerr // not known: the intent stays, the next run rolls back
	}
	for _, v := range now.GetVolumes() {
		if !slices.Contains(intent.GetVolumesBefore(), v.GetVolid()) {
			return nil
		}
	}
	if written {
		if err := s.removeSnippet(snip, e); err != nil {
			return err
		}
	}
	return s.intents.close(vmid)
}

// snippet is the user-data file of a guest's generation.
type snippet struct {
	volume string // as Proxmox names it: local:snippets/x.yaml
	local  string // the file, for this process
	host   string // the file, as the host names it
}

func (s *Service) snippetOf(id *homelabv1.Identity, st *homelabv1.Storage) (snippet, error) {
	name := fmt.Sprintf("hl-%s-%s-%d.yaml", id.GetFleet(), id.GetGuest(), id.GetGeneration())
	if !filepath.IsLocal(name) || strings.ContainsRune(name, filepath.Separator) {
		return snippet{}, rpc.Errorf(rpc.ErrInvalid, "fleet %q, guest %q", id.GetFleet(), id.GetGuest())
	}
	host := filepath.Join(st.GetPath(), "snippets", name)
	return snippet{volume: st.GetName() + ":snippets/" + name, host: host, local: s.host.Path(host)}, nil
}

// placeUserData writes the snippet, once per generation: with another content
// cloud-init would run everything again at the next boot. While there is no VM
// that could have read it, one left by an earlier attempt is replaced.
func (s *Service) placeUserData(want *homelabv1.GuestWant, st *homelabv1.Storage, key guest.HostKey, vmThere bool, e emit) (snippet, bool, error) {
	id := want.GetIdentity()
	snip, err := s.snippetOf(id, st)
	if err != nil {
		return snippet{}, false, err
	}
	text, err := guest.UserData{
		Hostname: want.GetNodeName(), User: want.GetUser(), HostKey: key, K3s: want.GetK3S(),
		AuthorizedKeys: append(slices.Clone(want.GetAuthorizedKeys()), s.keys.AgentLine()),
	}.Render()
	if err != nil {
		return snippet{}, false, err
	}
	old, err := os.ReadFile(snip.local)
	switch {
	case err == nil && (vmThere || string(old) == string(text)):
		return snip, false, nil
	case err != nil && !os.IsNotExist(err):
		return snippet{}, false, err
	}
	err = e.call(callSnippet, []string{"write", snip.host}, func() (int, error) {
		if err := os.MkdirAll(filepath.Dir(snip.local), 0o755); err != nil {
			return 0, err
		}
		return 0, durable.Write(snip.local, text) // 0600: it holds the guest's private host key
	})
	return snip, err == nil, err
}

func (s *Service) removeSnippet(snip snippet, e emit) error {
	return e.call(callSnippet, []string{"remove", snip.host}, func() (int, error) { return 0, durable.Remove(snip.local) })
}

// undoing stands for the step in the intent of a VM whose rollback was begun.
const undoing = "rollback"

// rollback undoes a half-built VM. Only an open intent of this very VM proves
// that it is ours; without one nothing is touched.
func (s *Service) rollback(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	id := req.GetWant().GetIdentity()
	intent := s.intents.of(id.GetVmid())
	switch {
	case intent == nil:
		now, err := s.driver.Inspect(ctx, id.GetVmid())
		if err != nil {
			return nil, err
		}
		if now.GetVm().GetPower() == homelabv1.Power_POWER_ABSENT {
			return done(false, "nothing of VM %d is there", id.GetVmid()), nil
		}
		return nil, rpc.Errorf(rpc.ErrRefused, "this agent has not begun to make VM %d, so it is left alone", id.GetVmid())
	case intent.GetIdentity().GetGuest() != id.GetGuest() || intent.GetIdentity().GetFleet() != id.GetFleet():
		return nil, rpc.Errorf(rpc.ErrRefused, "the unfinished create at VMID %d is guest %s's", id.GetVmid(), intent.GetIdentity().GetGuest())
	}
	if err := s.settled(s.host.Observe(s.now())); err != nil {
		return nil, err
	}
	if left, gone, err := s.undone(ctx, intent); gone || err != nil {
		if err == nil {
			err = s.intents.close(id.GetVmid())
		}
		return done(false, "nothing of half-built VM %d is there any more%s", id.GetVmid(), left), err
	}
	// From here on what is left of it is ours, also when the VM itself is gone.
	intent.Step = undoing
	if err := s.intents.write(intent); err != nil {
		return nil, err
	}
	e.progress("rolling back", fmt.Sprintf("removing half-built VM %d", id.GetVmid()))
	// The intent's identity, not the request's: what was begun is what is undone.
	_, err := s.driver.Destroy(ctx, &driverv1.DestroyRequest{
		Identity: intent.GetIdentity(), HalfBuilt: true, VolumesBefore: intent.GetVolumesBefore(), Deadline: remaining(ctx),
	}, e.report())
	if err != nil {
		return nil, err
	}
	if err := s.intents.close(id.GetVmid()); err != nil {
		return nil, err
	}
	return done(true, "removed half-built VM %d", id.GetVmid()), nil
}

// undone says whether the half-built VM is gone without a rollback of ours having
// removed it. Then a person did, and may have used the VMID since: volumes that
// were not there before our create are not proved to be ours, and stay. left names
// them.
func (s *Service) undone(ctx context.Context, intent *homelabv1.Intent) (left string, gone bool, err error) {
	if intent.GetStep() == undoing {
		return "", false, nil
	}
	now, err := s.driver.Inspect(ctx, intent.GetIdentity().GetVmid())
	if err != nil || now.GetVm().GetPower() != homelabv1.Power_POWER_ABSENT {
		return "", false, err
	}
	if !isYes(now.GetVolumesKnown()) {
		return "", false, rpc.Errorf(rpc.ErrUnavailable, "the volumes of VMID %d cannot be listed: %s", intent.GetIdentity().GetVmid(), now.GetVolumesKnown().GetReason())
	}
	for _, v := range now.GetVolumes() {
		if !slices.Contains(intent.GetVolumesBefore(), v.GetVolid()) {
			left += "; " + v.GetVolid() + " is left alone (pvesm free removes it)"
		}
	}
	return left, true, nil
}

// start starts the VM.
func (s *Service) start(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	id := req.GetWant().GetIdentity()
	vm, err := s.vm(ctx, id)
	if err != nil {
		return nil, err
	}
	if vm.GetPower() == homelabv1.Power_POWER_RUNNING {
		return done(false, "VM %d runs", id.GetVmid()), nil
	}
	o := s.host.Observe(s.now())
	if err := s.settled(o); err != nil {
		return nil, err
	}
	if err := networksReady(o, req.GetWant().GetHardware().GetNics()); err != nil {
		return nil, err
	}
	vm, err = s.driver.Start(ctx, &driverv1.StartRequest{Identity: id, Deadline: remaining(ctx)}, e.report())
	if err != nil {
		return nil, err
	}
	if vm.GetPower() != homelabv1.Power_POWER_RUNNING {
		return nil, rpc.Errorf(rpc.ErrUnavailable, "VM %d is %s", id.GetVmid(), powerText(vm))
	}
	return done(true, "started VM %d", id.GetVmid()), nil
}
