package agent

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/homeiac/homelab/agent/image"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	driverv1 "github.com/homeiac/homelab/gen/homelab/driver/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/version"
)

// Observe tells everything the host holds. It starts no process, and what
// cannot be seen is unknown in the answer rather than an error.
func (s *Service) Observe(ctx context.Context, req *agentv1.ObserveRequest) (*agentv1.ObserveResponse, error) {
	s.images.SetRate(req.GetImagesRate())
	// The steps first: one that ends while we look is told as in flight, and
	// nobody takes its half-done work for the whole.
	steps, intents := s.flights.list(), s.intents.list()
	o := s.host.Observe(s.now())
	o.Host, o.AgentVersion, o.Steps, o.Fence = s.name, version.String(), steps, s.fence.seen()
	o.Paused = s.paused() != ""
	seen, err := s.driver.Observe(ctx, req.GetFresh())
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		reason := "the driver: " + err.Error()
		o.Driver = factNo(err.Error())
		o.VmsKnown, o.ClusterVmidsKnown = factUnknown(reason), factUnknown(reason)
	} else {
		o.Driver = factYes("")
		s.unfinished(seen)
		o.Vms, o.VmsKnown = seen.GetVms(), seen.GetVmsKnown()
		o.ClusterVmids, o.ClusterVmidsKnown = seen.GetClusterVmids(), seen.GetClusterVmidsKnown()
		o.LeftoverVmids, o.GuestsMemoryBytes = seen.GetLeftoverVmids(), seen.GetGuestsMemoryBytes()
	}
	for _, i := range intents {
		i.Worker = s.worker(i, seen)
		o.Intents = append(o.Intents, i)
	}
	// Parts first: one that becomes a whole file while we look is told twice rather
	// than not at all.
	folders := s.imageFolders(o)
	o.ImageParts = s.images.Parts(folders)
	o.Images = image.List(folders)
	o.Looks = s.looks(ctx, req.GetLooks(), seen)
	return &agentv1.ObserveResponse{Observation: o}, nil
}

// worker says whether somebody still works on an intent: a step of ours, or a
// task of Proxmox that outlived it.
func (s *Service) worker(i *homelabv1.Intent, seen *driverv1.ObserveResponse) *homelabv1.Fact {
	vmid := i.GetIdentity().GetVmid()
	if step, yes := s.flights.works(vmid); yes {
		return factYes("step " + step)
	}
	if !isYes(seen.GetVmsKnown()) {
		return factUnknown("the host's VMs and tasks cannot be seen")
	}
	for _, vm := range seen.GetVms() {
		if vm.GetVmid() == vmid && len(vm.GetTasks()) > 0 {
			return factYes("task " + vm.GetTasks()[0])
		}
	}
	return factNo("")
}

// imageFolders are the folders for images on all directory storages.
func (s *Service) imageFolders(o *homelabv1.Observation) []image.Folder {
	var out []image.Folder
	for _, st := range o.GetStorages() {
		if st.GetPath() != "" && isYes(st.GetActive()) {
			out = append(out, image.FolderOf(s.root, st.GetName(), st.GetPath()))
		}
	}
	return out
}

// looks looks into the guests that were asked for and run here, all at once.
func (s *Service) looks(ctx context.Context, reqs []*agentv1.LookRequest, seen *driverv1.ObserveResponse) []*homelabv1.GuestLook {
	var (
		mu  sync.Mutex
		out []*homelabv1.GuestLook
		all sync.WaitGroup
	)
	for _, req := range reqs {
		id := req.GetWant().GetIdentity()
		i := slices.IndexFunc(seen.GetVms(), func(vm *homelabv1.VirtualMachine) bool {
			// With a mute QEMU the power is not known: whether the guest in it is mute
			// too is what the look is for.
			runs := vm.GetPower() == homelabv1.Power_POWER_RUNNING || vm.GetPower() == homelabv1.Power_POWER_UNSPECIFIED && isYes(vm.GetProcess())
			return vm.GetVmid() == id.GetVmid() && runs && ours(vm, id) == nil
		})
		if i < 0 {
			continue
		}
		all.Go(func() {
			l := s.look(ctx, req, seen.GetVms()[i])
			mu.Lock()
			defer mu.Unlock()
			out = append(out, l)
		})
	}
	all.Wait()
	slices.SortFunc(out, func(a, b *homelabv1.GuestLook) int {
		return cmp.Compare(a.GetIdentity().GetVmid(), b.GetIdentity().GetVmid())
	})
	return out
}
