package controller

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/google/uuid"

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

	mu       sync.Mutex
	guests   map[string]store.Guest
	cluster  *homelabv1.ClusterRecord
	images   map[string]string // digest of an image fetched in this run, by host/image
	servers  []string          // guests that became servers in this run, first to last
	made     map[string]bool   // guests whose VMs were made in this run
	tookBack map[string]bool   // servers whose earlier join's remains were taken back in this run
	mayInit  bool              // it was looked once more whether a cluster may be started
}

func (c *Controller) newDispatch(sp *spec.Spec, lock *store.Lock, fence *homelabv1.Fence, w world) *dispatch {
	return &dispatch{
		c: c, sp: sp, lock: lock, fence: fence, world: w,
		sizes:  plan.MemorySizes(c.want(sp, w), seen(sp, w), c.now()),
		guests: maps.Clone(w.guests), cluster: w.cluster, images: make(map[string]string),
		made: make(map[string]bool), tookBack: make(map[string]bool),
	}
}

// request is everything an agent needs for a step.
func (d *dispatch) request(ctx context.Context, s *homelabv1.Step) (*agentv1.RunRequest, error) {
	req := &agentv1.RunRequest{Fence: d.fence, Step: s}
	var rec store.Guest
	var err error
	switch s.GetAction() {
	case homelabv1.Action_ACTION_FETCH:
		req.Image = image(d.sp, s.GetImage())
		host := d.sp.Hosts[s.GetHost()]
		if req.GetImage() == nil || host == nil {
			return nil, rpc.Errorf(rpc.ErrInvalid, "image %s or host %s is not in the Spec", s.GetImage(), s.GetHost())
		}
		req.ImagesStorage, _ = host.Storage("images")
		return req, nil
	case homelabv1.Action_ACTION_CREATE:
		rec, err = d.prepare(ctx, s)
	case homelabv1.Action_ACTION_ROLLBACK:
		rec, err = d.halfBuilt(s)
	default:
		rec, err = d.remembered(s)
	}
	if err != nil {
		return nil, err
	}
	if req.Want, err = d.c.signer.guestWant(d.sp, rec); err != nil {
		return nil, err
	}
	switch s.GetAction() {
	case homelabv1.Action_ACTION_INIT:
		err = d.init(ctx, s, req)
	case homelabv1.Action_ACTION_JOIN:
		err = d.join(ctx, s, req)
	default:
	}
	return req, err
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

// prepare remembers what the guest is created with, before it is: every further
// attempt then makes the same VM, and none makes a second one.
func (d *dispatch) prepare(ctx context.Context, s *homelabv1.Step) (store.Guest, error) {
	g := d.sp.Guests[s.GetGuest()]
	if g == nil {
		return store.Guest{}, rpc.Errorf(rpc.ErrInvalid, "guest %s is not in the Spec", s.GetGuest())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	rec, err := d.c.store.ChangeGuest(ctx, d.lock, s.GetGuest(), func(rec *store.Guest) error {
		// A VM recovered from its mark stays one of which nothing is proved.
		if s.GetUuid() != "" && rec.UUID == s.GetUuid() && !rec.Made {
			return nil
		}
		same := rec.UUID != "" && rec.Generation == s.GetGeneration() && rec.Host == s.GetHost() && rec.VMID == s.GetVmid()
		if !same && s.GetUuid() != "" {
			return rpc.Errorf(rpc.ErrRefused, "guest %s is remembered as VM %d (%s) on %s, the step is for VM %d (%s) on %s",
				rec.Name, rec.VMID, rec.UUID, rec.Host, s.GetVmid(), s.GetUuid(), s.GetHost())
		}
		if !same {
			// The hardware addresses stay: leases and reservations hang on them.
			*rec = store.Guest{
				Name: rec.Name, Host: s.GetHost(), VMID: s.GetVmid(), UUID: uuid.NewString(), Generation: s.GetGeneration(),
				MACs: rec.MACs, MemoryBytes: rec.MemoryBytes,
			}
		}
		rec.MACs = d.macs(g, *rec)
		if size := d.sizes[g.Name]; size > 0 {
			rec.MemoryBytes = size
		}
		if digest := d.imageDigest(s.GetHost(), g.Image); digest != "" {
			rec.ImageSHA256 = digest
		}
		rec.Made, rec.Unverified = true, len(g.Verify) > 0
		return nil
	})
	if err != nil {
		return rec, err
	}
	d.guests[rec.Name] = rec
	if memory(g, rec) == 0 {
		return rec, rpc.Errorf(rpc.ErrRefused, "memory %s of guest %s cannot be resolved: what %s has free is not known; give guests.%s.memory an amount", g.Memory, g.Name, g.Host, g.Name)
	}
	return rec, nil
}

// imageDigest is the image that a guest is made from: fetched in this run, or
// held by the host before. d.mu is held.
func (d *dispatch) imageDigest(host, image string) string {
	if digest := d.images[host+"/"+image]; digest != "" {
		return digest
	}
	for _, held := range d.world.sights[host].obs.GetImages() {
		if held.GetName() == image {
			return held.GetSha256()
		}
	}
	return ""
}

// macs are the hardware addresses of a guest: what the Spec states, what is
// remembered, and fresh ones for the rest. d.mu is held.
func (d *dispatch) macs(g *spec.Guest, rec store.Guest) []string {
	macs := make([]string, len(g.NICs))
	for i, n := range g.NICs {
		switch {
		case n.MAC != "":
			macs[i] = n.MAC
		case i < len(rec.MACs) && rec.MACs[i] != "":
			macs[i] = rec.MACs[i]
		default:
			macs[i] = d.freshMAC(macs[:i])
		}
	}
	return macs
}

// freshMAC draws an address that nobody was seen to have. BC:24:11 is
// Proxmox's own prefix.
func (d *dispatch) freshMAC(mine []string) string {
	for {
		b := make([]byte, 3)
		_, _ = rand.Read(b) // does not fail since Go 1.24
		mac := fmt.Sprintf("BC:24:11:%02X:%02X:%02X", b[0], b[1], b[2])
		if !slices.Contains(mine, mac) && !d.macTaken(mac) {
			return mac
		}
	}
}

func (d *dispatch) macTaken(mac string) bool {
	for _, rec := range d.guests {
		if slices.Contains(rec.MACs, mac) {
			return true
		}
	}
	for _, g := range d.sp.Guests {
		for _, n := range g.NICs {
			if strings.EqualFold(n.MAC, mac) {
				return true
			}
		}
	}
	for _, s := range d.world.sights {
		for _, vm := range s.obs.GetVms() {
			if slices.ContainsFunc(vm.GetMacs(), func(m string) bool { return strings.EqualFold(m, mac) }) {
				return true
			}
		}
	}
	return false
}

// learned remembers what a step that ended well found out.
func (d *dispatch) learned(ctx context.Context, s *homelabv1.Step, l *agentv1.Learned) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch s.GetAction() {
	case homelabv1.Action_ACTION_FETCH:
		if l.GetImageSha256() != "" {
			d.images[s.GetHost()+"/"+s.GetImage()] = l.GetImageSha256()
		}
		return nil
	case homelabv1.Action_ACTION_ROLLBACK:
		return nil
	case homelabv1.Action_ACTION_CREATE:
		d.made[s.GetGuest()] = true
	default:
	}
	rec, err := d.c.store.ChangeGuest(ctx, d.lock, s.GetGuest(), func(rec *store.Guest) error {
		if len(l.GetMacs()) > 0 {
			rec.MACs = l.GetMacs()
		}
		if len(l.GetHostKeys()) > 0 {
			rec.HostKeys = l.GetHostKeys()
		}
		if l.GetMachineId() != "" {
			rec.MachineID = l.GetMachineId()
		}
		if len(l.GetAddresses()) > 0 {
			rec.Addresses = l.GetAddresses()
		}
		if l.GetImageSha256() != "" {
			rec.ImageSHA256 = l.GetImageSha256()
		}
		switch s.GetAction() {
		case homelabv1.Action_ACTION_INIT, homelabv1.Action_ACTION_JOIN:
			rec.Joined = true
		case homelabv1.Action_ACTION_VERIFY:
			rec.Unverified = false
		default:
		}
		return nil
	})
	if err != nil {
		return err
	}
	d.guests[rec.Name] = rec
	if s.GetAction() == homelabv1.Action_ACTION_INIT || s.GetAction() == homelabv1.Action_ACTION_JOIN {
		if d.sp.Guests[s.GetGuest()].IsServer() {
			d.servers = append(d.servers, s.GetGuest())
		}
		return d.clusterSeen(ctx, l.GetCaHash())
	}
	return nil
}

// madeNow are the guests whose VMs were made in this run so far.
func (d *dispatch) madeNow() map[string]bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.made)
}

// init fills in how the first server starts the cluster, after one more look
// whether it may: the plan is as old as the boots it waited for. The look is not
// repeated when the step is, since its own first attempt is what it would find.
func (d *dispatch) init(ctx context.Context, s *homelabv1.Step, req *agentv1.RunRequest) error {
	if !d.mayInit {
		mem, err := d.c.memory(ctx)
		if err != nil {
			return err
		}
		w := d.c.survey(ctx, d.sp, mem, nil)
		if why := plan.InitBlocked(d.c.want(d.sp, w), seen(d.sp, w), d.madeNow(), d.c.now()); why != "" {
			return rpc.Errorf(rpc.ErrRefused, "no cluster is started: %s", why)
		}
		d.mayInit = true
	}
	want, err := k3sWant(d.sp, d.sp.Guests[s.GetGuest()], nil)
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
