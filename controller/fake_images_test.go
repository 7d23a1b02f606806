package controller

import (
	"fmt"
	"slices"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// carryImage does a step about an image or a template. The fleet's mutex is held.
func (a *fakeAgent) carryImage(req *agentv1.RunRequest, result *agentv1.StepResult, change func(string, ...string)) ([]*homelabv1.Event, error) {
	f, s := a.f, req.GetStep()
	switch s.GetAction() {
	case homelabv1.Action_ACTION_FETCH:
		return a.fetch(req, result, change)
	case homelabv1.Action_ACTION_TEMPLATE:
		id := req.GetTemplate()
		if vm := a.vms[id.GetVmid()]; vm != nil && vm.id.GetUuid() != id.GetUuid() {
			return nil, rpc.Errorf(rpc.ErrRefused, "VM %d is another one", id.GetVmid())
		}
		change("qm", "create", fmt.Sprint(id.GetVmid()))
		a.vms[id.GetVmid()] = &fakeVM{id: id, name: "hl-template-" + req.GetImage().GetName(), power: homelabv1.Power_POWER_STOPPED, template: true, hw: &homelabv1.Hardware{}, disks: map[string]string{"scsi0": "the image"}}
	case homelabv1.Action_ACTION_PRUNE:
		if id := req.GetTemplate(); id != nil {
			if vm := a.vms[id.GetVmid()]; vm == nil || !vm.template || vm.id.GetMark() != id.GetMark() {
				f.t.Errorf("%s removes VM %d, which is no template of ours", s.GetId(), id.GetVmid())
			}
			change("qm", "destroy", fmt.Sprint(id.GetVmid()))
			delete(a.vms, id.GetVmid())
			return nil, nil
		}
		change("image", "remove")
		a.images = slices.DeleteFunc(a.images, func(c *homelabv1.ImageCopy) bool { return c.GetSha256() == req.GetImage().GetSha256() })
	}
	return nil, nil
}

// fetch gives the host the image that is asked for: what a peer holds, else what
// the source has now.
func (a *fakeAgent) fetch(req *agentv1.RunRequest, result *agentv1.StepResult, change func(string, ...string)) ([]*homelabv1.Event, error) {
	f, want := a.f, req.GetImage().GetSha256()
	var held *homelabv1.ImageCopy
	for _, c := range a.images {
		if want != "" && c.GetSha256() == want {
			held = c
		}
	}
	source := want
	if f.source != "" {
		source = f.source
	}
	gives := func(peer *agentv1.ImagePeer) bool {
		return slices.ContainsFunc(f.agents[peer.GetHost()].images, func(c *homelabv1.ImageCopy) bool { return c.GetSha256() == want })
	}
	switch {
	case held != nil:
	case want != "" && slices.ContainsFunc(req.GetImagePeers(), gives):
		source = want
	case !req.GetWan():
		return nil, rpc.Errorf(rpc.ErrUnavailable, "no peer gives it")
	case f.fault != "":
		f.read++
		return []*homelabv1.Event{{Kind: homelabv1.EventKind_EVENT_KIND_STEP_PROGRESS, Step: req.GetStep().GetId(), Host: a.name, ImageFault: f.fault}},
			rpc.Errorf(rpc.ErrRefused, "%s", f.fault)
	default:
		if f.read++; want != "" && source != want {
			return nil, rpc.Errorf(rpc.ErrRefused, "its SHA-256 is %s and should be %s", source, want)
		}
	}
	if held == nil {
		change("image", "fetch")
		held = &homelabv1.ImageCopy{
			Name: req.GetImage().GetName(), Storage: req.GetImagesStorage(), Sha256: source, Bytes: 64 << 20,
			Verification: req.GetImage().GetVerification(), Url: req.GetImage().GetUrl(),
		}
		if held.GetVerification() == homelabv1.Verification_VERIFICATION_UNSPECIFIED {
			held.Verification = homelabv1.Verification_VERIFICATION_NO
		}
		a.images = append(a.images, held)
	}
	result.Learned.ImageSha256, result.Learned.Image = held.GetSha256(), held
	return nil, nil
}
