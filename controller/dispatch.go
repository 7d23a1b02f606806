package controller

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/homeiac/homelab/controller/plan"
	"github.com/homeiac/homelab/controller/store"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/k3s"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/spec"
)

// dispatch turns the steps of one run into requests to agents: what a step
// leaves out (addresses, sizes, secrets) is resolved here, at the last moment,
// and what a create needs is remembered before it is sent.
type dispatch struct {
	c     *Controller
	sp    *spec.Spec
	lock  *store.Lock
	fence *homelabv1.Fence
	world world
	sizes map[string]int64 // memory in bytes of guests that the plan creates
	emit  func(*homelabv1.Event)

	remade    map[string]bool   // guests that the plan destroys and makes again
	steps     []*homelabv1.Step // of the plan
	over      <-chan struct{}   // closed when nothing new begins; nil is never
	transfers *transfers        // images on their way

	mu        sync.Mutex
	guests    map[string]store.Guest
	cluster   *homelabv1.ClusterRecord
	images    map[string]string               // digest of an image fetched in this run, by host/imageKey
	known     map[string]store.Image          // what images' names stand for
	templates map[string]*homelabv1.Identity  // made in this run, by step
	servers   []string                        // guests that became servers in this run, first to last
	recovered []string                        // servers seen healthy when no other was
	away      map[string]bool                 // guests that this run has stopped or taken out, and not brought back
	made      map[string]bool                 // guests whose VMs were made in this run
	anew      map[string]string               // uuids given to new guests in this run
	tookBack  map[string]bool                 // servers whose earlier join's remains were taken back in this run
	mayInit   bool                            // it was looked once more whether a cluster may be started
	allowed   map[string]bool                 // steps of which it was looked once more whether they may be carried out
	members   map[string]*homelabv1.MemberRef // what the cluster held of a guest before the step, by step
}

func (c *Controller) newDispatch(sp *spec.Spec, lock *store.Lock, fence *homelabv1.Fence, w world) *dispatch {
	known := maps.Clone(w.images)
	if known == nil {
		known = make(map[string]store.Image)
	}
	return &dispatch{
		c: c, sp: sp, lock: lock, fence: fence, world: w,
		sizes:  plan.MemorySizes(c.want(sp, w), seen(sp, w), c.now()),
		guests: maps.Clone(w.guests), cluster: w.cluster, images: make(map[string]string),
		known: known, templates: make(map[string]*homelabv1.Identity), transfers: newTransfers(),
		away: make(map[string]bool), made: make(map[string]bool), anew: make(map[string]string), tookBack: make(map[string]bool),
		allowed: make(map[string]bool), members: make(map[string]*homelabv1.MemberRef),
	}
}

// request is everything an agent needs for a step.
func (d *dispatch) request(ctx context.Context, s *homelabv1.Step) (*agentv1.RunRequest, error) {
	req := &agentv1.RunRequest{Fence: d.fence, Step: s}
	if aboutImage(s.GetAction()) {
		return req, d.imageStep(ctx, s, req)
	}
	w, err := d.guard(ctx, s)
	if err != nil {
		return nil, err
	}
	if err := d.begun(ctx, s); err != nil {
		return nil, err
	}
	rec, err := d.record(ctx, s, w)
	if err != nil {
		return nil, err
	}
	if req.Want, err = d.c.signer.guestWant(d.sp, rec); err != nil {
		return nil, err
	}
	switch s.GetAction() {
	case homelabv1.Action_ACTION_CREATE:
		h := req.GetWant().GetHardware()
		h.DataDisks = slices.DeleteFunc(h.GetDataDisks(), func(disk *homelabv1.Disk) bool { return slices.Contains(s.GetSlots(), disk.GetSlot()) })
		err = d.madeOf(s, rec, req.GetWant())
	case homelabv1.Action_ACTION_INIT:
		err = d.init(ctx, s, req)
	case homelabv1.Action_ACTION_JOIN:
		err = d.join(ctx, s, req)
	case homelabv1.Action_ACTION_SNAPSHOT, homelabv1.Action_ACTION_DRAIN, homelabv1.Action_ACTION_LEAVE:
		err = d.through(s, w, req)
	case homelabv1.Action_ACTION_STOP:
		req.Force = d.force(s, w)
	case homelabv1.Action_ACTION_DETACH, homelabv1.Action_ACTION_ATTACH:
		err = d.holder(ctx, s, req)
	case homelabv1.Action_ACTION_DESTROY:
		req.DataDisks = d.dataDisks(s.GetGuest(), append(slotsOf(rec.DataDisks), s.GetSlots()...))
		req.Named, req.Purge = d.named(s.GetGuest()), d.purges(s.GetGuest())
		err = d.remadeOf(s, rec, req.GetWant())
	case homelabv1.Action_ACTION_SAVE:
		err = d.remadeOf(s, rec, req.GetWant())
	case homelabv1.Action_ACTION_ROLLBACK:
		// Asked for by name, also what a person left of it when he removed the VM.
		req.Named = d.world.asked.op != nil && d.world.asked.op.Kind == plan.OpClearOrphans
	case homelabv1.Action_ACTION_SOAK:
		err = d.soak(s, req)
	default:
	}
	return req, err
}

// record is what is remembered of the guest that a step is for.
func (d *dispatch) record(ctx context.Context, s *homelabv1.Step, w world) (store.Guest, error) {
	switch s.GetAction() {
	case homelabv1.Action_ACTION_DESTROY:
		if d.purges(s.GetGuest()) {
			return d.deleted(s, w)
		}
		return d.remembered(s)
	case homelabv1.Action_ACTION_CREATE:
		return d.prepare(ctx, s)
	case homelabv1.Action_ACTION_ROLLBACK:
		return d.halfBuilt(s)
	case homelabv1.Action_ACTION_ADOPT:
		if s.GetVmid() == 0 || s.GetUuid() == "" {
			return store.Guest{}, rpc.Errorf(rpc.ErrRefused, "a VM without VMID and uuid cannot be adopted: whose it is could not be told later")
		}
		return d.adopted(s), nil
	case homelabv1.Action_ACTION_SNAPSHOT, homelabv1.Action_ACTION_DRAIN, homelabv1.Action_ACTION_LEAVE:
		return d.spokenOf(s)
	default:
		return d.remembered(s)
	}
}

// remembered is the record of a guest that exists, checked against the step.
func (d *dispatch) remembered(s *homelabv1.Step) (store.Guest, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	rec, ok := d.guests[s.GetGuest()]
	switch {
	case !ok:
		return rec, rpc.Errorf(rpc.ErrNotFound, "guest %s is not remembered", s.GetGuest())
	case rec.Host != s.GetHost() || rec.VMID != s.GetVmid() || s.GetUuid() != "" && rec.UUID != s.GetUuid():
		return rec, rpc.Errorf(rpc.ErrRefused, "guest %s is remembered as VM %d (%s) on %s, the step is for VM %d (%s) on %s",
			rec.Name, rec.VMID, rec.UUID, rec.Host, s.GetVmid(), s.GetUuid(), s.GetHost())
	case guarded(s.GetAction()) && rec.Generation != s.GetGeneration():
		// The old one is taken away, the new one is made: never the other way round.
		return rec, rpc.Errorf(rpc.ErrRefused, "guest %s is remembered in generation %d, the step is for generation %d", rec.Name, rec.Generation, s.GetGeneration())
	}
	return rec, nil
}

// halfBuilt is the guest as the intent on its host says it was being made: that
// may be an attempt that is no longer remembered.
func (d *dispatch) halfBuilt(s *homelabv1.Step) (store.Guest, error) {
	d.mu.Lock()
	rec := d.guests[s.GetGuest()]
	d.mu.Unlock()
	for _, i := range d.world.sights[s.GetHost()].obs.GetIntents() {
		if id := i.GetIdentity(); id.GetVmid() == s.GetVmid() && id.GetGuest() == s.GetGuest() {
			rec.Name, rec.Host, rec.VMID, rec.UUID, rec.Generation = id.GetGuest(), s.GetHost(), id.GetVmid(), id.GetUuid(), id.GetGeneration()
			return rec, nil
		}
	}
	return rec, rpc.Errorf(rpc.ErrRefused, "%s was not seen to have begun to create %s as VM %d", s.GetHost(), s.GetGuest(), s.GetVmid())
}

// madeNow are the guests whose VMs were made in this run so far, also those of which
// that was not heard yet: with a uuid that was drawn in this run there was none before.
func (d *dispatch) madeNow() map[string]bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	made := maps.Clone(d.made)
	for guest := range d.anew {
		made[guest] = true
	}
	return made
}

// init fills in how the first server starts the cluster, after one more look
// whether it may: the plan is as old as the boots it waited for. The look is not
// repeated when the step is, since its own first attempt is what it would find.
func (d *dispatch) init(ctx context.Context, s *homelabv1.Step, req *agentv1.RunRequest) error {
	if !d.mayInit {
		w, err := d.c.look(ctx, d.sp, d.world.asked, true)
		if err != nil {
			return err
		}
		if why := plan.InitBlocked(d.c.want(d.sp, w), seen(d.sp, w), d.madeNow(), d.c.now()); why != "" {
			return rpc.Errorf(rpc.ErrRefused, "no cluster is started: %s", why)
		}
		d.mayInit = true
	}
	want, err := k3sWant(d.sp, s.GetGuest(), nil)
	if err != nil {
		return err
	}
	want.ClusterInit = true
	req.K3S = want
	return d.clusterBegun(ctx, s.GetGuest())
}

// clusterBegun remembers that a cluster-init was begun: if the controller dies
// now, no second cluster is started elsewhere.
func (d *dispatch) clusterBegun(ctx context.Context, guest string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cluster != nil {
		return nil
	}
	record := &homelabv1.ClusterRecord{FirstGuest: guest, Version: d.sp.K3s.Version, Created: d.c.now().UTC().Format("2006-01-02T15:04:05Z07:00")}
	if err := d.c.store.PutCluster(ctx, d.lock, record); err != nil {
		return err
	}
	d.cluster = record
	return nil
}

// clusterSeen remembers the cluster's identity. d.mu is held.
func (d *dispatch) clusterSeen(ctx context.Context, caHash string) error {
	if caHash == "" || d.cluster.GetCaHash() == caHash {
		return nil
	}
	if have := d.cluster.GetCaHash(); have != "" {
		return rpc.Errorf(rpc.ErrRefused, "the cluster's CA is %.12s…, the one remembered is %.12s…: this is another cluster; look at it with: hlctl k3s status", caHash, have)
	}
	record := &homelabv1.ClusterRecord{CaHash: caHash, Version: d.sp.K3s.Version, FirstGuest: d.cluster.GetFirstGuest(), Created: d.cluster.GetCreated()}
	if err := d.c.store.PutCluster(ctx, d.lock, record); err != nil {
		return err
	}
	d.cluster = record
	return nil
}

// caHash is what a token says of its cluster's CA; empty when it says nothing.
func caHash(token k3s.Secret) (string, error) {
	t, err := k3s.ParseToken(token)
	if err != nil {
		return "", rpc.Errorf(rpc.ErrUnavailable, "join token: %w", err)
	}
	return t.CAHash, nil
}
