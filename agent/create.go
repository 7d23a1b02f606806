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

	"github.com/homeiac/homelab/agent/guest"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/durable"
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

// create makes the VM. Nothing is changed before all that it needs was seen.
func (s *Service) create(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	want := req.GetWant()
	id := want.GetIdentity()
	o := s.host.Observe(s.now())
	seen, err := s.driver.Observe(ctx, false)
	if err != nil {
		return nil, err
	}
	s.unfinished(seen)
	there, err := s.mayCreate(o, seen, want)
	if err != nil {
		return nil, err
	}
	from, err := s.sourceOf(ctx, o, seen, want, there)
	if err != nil {
		return nil, err
	}
	defer from.release()
	snippets, err := usable(o, want.GetSnippetsStorage(), "snippets")
	if err != nil {
		return nil, err
	}
	key, err := s.keys.MakeHostKey(id.GetFleet(), id.GetGuest(), id.GetGeneration())
	if err != nil {
		return nil, err
	}
	intent, err := s.intend(ctx, id, req.GetStep().GetId(), from.template)
	if err != nil {
		return nil, err
	}
	snip, written, err := s.placeUserData(want, snippets, key, there, e)
	if err != nil {
		return nil, err
	}
	vm, err := s.driver.Create(ctx, &driverv1.CreateRequest{
		Identity: id, Hardware: want.GetHardware(), ImagePath: from.path, UserData: snip.volume,
		User: want.GetUser(), Deadline: remaining(ctx),
		Template: from.template, Linked: want.GetClone() == homelabv1.CloneKind_CLONE_KIND_LINKED, Cdrom: from.cdrom,
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
	if from.template != nil {
		r.Text = fmt.Sprintf("created VM %d from template %d", id.GetVmid(), from.template.GetVmid())
	}
	r.Learned.Macs, r.Learned.Volumes = vm.GetMacs(), vm.GetVolumes()
	r.Learned.HostKeys, r.Learned.ImageSha256 = []string{key.Public}, from.sha256
	r.Learned.CdromSha256 = from.cdromSHA256
	return r, nil
}

// source is what a VM is made of.
type source struct {
	path     string              // the file that its disk is imported from; empty for a clone
	template *homelabv1.Identity // what it is cloned from; nil for an import
	sha256   string              // of the image, in hex
	// cdrom is the volume in its drive, and the SHA-256 of that file; empty is none.
	cdrom, cdromSHA256 string
	release            func() // to be called when the VM is made
}

// sourceOf finds what the VM is made of, all of which must be here: the image, or the
// template of it, and the ISO file. For a VM that is there nothing is unpacked.
func (s *Service) sourceOf(
	ctx context.Context, o *homelabv1.Observation, seen *driverv1.ObserveResponse, want *homelabv1.GuestWant, there bool,
) (*source, error) {
	from := &source{release: func() {}}
	if iso := want.GetCdrom(); iso != nil {
		if _, err := usable(o, want.GetIsoStorage(), "iso"); err != nil {
			return nil, err
		}
		img, err := s.imageOn(o, iso, want.GetIsoStorage())
		if err != nil {
			return nil, err
		}
		from.cdrom, from.cdromSHA256 = isoVolume(want.GetIsoStorage(), img), img.Record.SHA256
	}
	switch want.GetClone() {
	case homelabv1.CloneKind_CLONE_KIND_LINKED, homelabv1.CloneKind_CLONE_KIND_FULL:
		id := want.GetTemplate()
		if !isTemplate(id) || id.GetFleet() != s.fleet {
			return nil, rpc.Errorf(rpc.ErrInvalid, "guest %s is to be cloned from VM %d, which is no template of fleet %s", want.GetIdentity().GetGuest(), id.GetVmid(), s.fleet)
		}
		if templateOf(seen, id) == nil {
			return nil, rpc.Errorf(rpc.ErrRefused, "template %d of image %s is not on this host; it is made first", id.GetVmid(), want.GetImage().GetName())
		}
		from.template, from.sha256 = id, want.GetImage().GetSha256()
		return from, nil
	}
	img, err := s.imageOn(o, want.GetImage(), want.GetImagesStorage())
	if err != nil {
		return nil, err
	}
	from.sha256, from.path = img.Record.SHA256, img.Path
	if !there {
		from.path, from.release, err = s.importable(ctx, o, img, want.GetImagesStorage())
	}
	return from, err
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

// start starts the VM.
func (s *Service) start(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	id := req.GetWant().GetIdentity()
	vm, err := s.vmNow(ctx, id)
	if err != nil {
		return nil, err
	}
	if vm.GetPower() == homelabv1.Power_POWER_RUNNING {
		return done(false, "VM %d runs", id.GetVmid()), s.liveOn(id)
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
	return done(true, "started VM %d", id.GetVmid()), s.liveOn(id)
}
