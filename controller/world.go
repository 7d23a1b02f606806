package controller

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/homeiac/homelab/controller/plan"
	"github.com/homeiac/homelab/controller/store"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/spec"
)

// credentialsTimeout bounds the reading of a token or a kubeconfig.
const credentialsTimeout = 15 * time.Second

// recollection is what is remembered of earlier runs.
type recollection struct {
	guests    map[string]store.Guest
	images    map[string]store.Image
	cluster   *homelabv1.ClusterRecord // nil for none
	paused    string                   // why all changes are paused; empty when they are not
	histories map[string]plan.History  // since when guests are as they are
	asked     asked
}

// world is the fleet at one moment: what is remembered and what was seen.
type world struct {
	recollection
	// learned are guests of which more was seen than was remembered: recovered
	// from their mark, or a step's answer never came back.
	learned []string
	// learnedImages are names of images likewise.
	learnedImages []string
	sights        map[string]sight // every host of the Spec, and the spare ones
	external      *homelabv1.K3SLook
}

func (c *Controller) memory(ctx context.Context) (recollection, error) {
	guests, err := c.store.Guests(ctx)
	if err != nil {
		return recollection{}, err
	}
	images, err := c.store.Images(ctx)
	if err != nil {
		return recollection{}, err
	}
	cluster, err := c.store.Cluster(ctx)
	if err != nil {
		return recollection{}, err
	}
	paused, err := c.paused(ctx)
	if err != nil {
		return recollection{}, err
	}
	return recollection{guests: guests, images: images, cluster: cluster, paused: paused, histories: c.track.histories()}, nil
}

// lastSpec is the Spec of the last run; nil before the first.
func (c *Controller) lastSpec(ctx context.Context) (*spec.Spec, error) {
	text, ok, err := c.store.Spec(ctx)
	if err != nil || !ok {
		return nil, err
	}
	sp, faults := spec.Parse(text.Name, text.Text)
	if len(faults) > 0 {
		// It was without faults when it was stored: an older version of this
		// program is running. Status still tells what the gossip knows.
		c.log.Warn("the remembered Spec cannot be read", "faults", len(faults))
	}
	return sp, nil // nil with faults
}

// parseSpec reads a Spec that was sent. Its faults are told all at once.
// faultsError are the faults of a Spec, for whoever must not tell what they quote.
type faultsError struct{ faults spec.Faults }

func (e *faultsError) Error() string { return e.faults.String() }

func parseSpec(name string, text []byte) (*spec.Spec, error) {
	if name == "" {
		name = "homelab.yaml"
	}
	sp, faults := spec.Parse(name, text)
	if len(faults) > 0 {
		return nil, rpc.Errorf(rpc.ErrInvalid, "%w", &faultsError{faults})
	}
	for _, g := range sp.GuestNames() {
		if files := sp.Guests[g].KeyFiles; len(files) > 0 {
			return nil, rpc.Errorf(rpc.ErrInvalid, "%s: guests.%s.sshKeys: %s is a file, and its content was not sent; hlctl sends it", name, g, files[0])
		}
	}
	return sp, nil
}

// look surveys the world as it is now, for what is asked.
func (c *Controller) look(ctx context.Context, sp *spec.Spec, ask asked, keep bool) (world, error) {
	mem, err := c.memory(ctx)
	if err != nil {
		return world{}, err
	}
	mem.asked = ask
	return c.survey(ctx, sp, mem, nil, keep), nil
}

// survey observes all hosts of the Spec and looks into the guests that are
// remembered. Guests of ours that are not remembered, because the store was
// lost, are recovered from their marks and looked into as well. It changes
// nothing; what it recovered is only in what it returns. With keep, since when
// guests are as they are is remembered.
func (c *Controller) survey(ctx context.Context, sp *spec.Spec, mem recollection, spare []target, keep bool) world {
	w := world{recollection: mem}
	w.images = maps.Clone(mem.images)
	if w.guests = maps.Clone(mem.guests); w.guests == nil {
		w.guests = make(map[string]store.Guest)
	}
	targets := slices.Clone(spare)
	for _, name := range sp.HostNames() {
		t := hostTarget(sp.Hosts[name])
		t.looks = c.looks(sp, w.guests, name)
		targets = append(targets, t)
	}
	w.sights = c.seeing.observe(ctx, targets)

	again := c.recover(sp, &w)
	var more []target
	for _, t := range targets {
		if again[t.name] {
			t.looks = c.looks(sp, w.guests, t.name)
			more = append(more, t)
		}
	}
	if len(more) > 0 {
		maps.Copy(w.sights, c.seeing.observe(ctx, more))
	}
	c.recoverHolders(sp, &w)
	c.recoverDropped(sp, &w)
	c.recoverImages(sp, &w)
	w.external = c.external(ctx, sp, w.sights)
	for name, rec := range learnFromSight(sp, w) {
		w.guests[name] = rec
		w.learned = append(w.learned, name)
	}
	c.trackGuests(ctx, sp, &w, keep)
	return w
}

// looks asks for a look into each guest that is remembered on a host.
func (c *Controller) looks(sp *spec.Spec, guests map[string]store.Guest, host string) []*agentv1.LookRequest {
	var looks []*agentv1.LookRequest
	for _, name := range slices.Sorted(maps.Keys(guests)) {
		rec := guests[name]
		if rec.Host != host || rec.UUID == "" || sp.Guests[name] == nil {
			continue
		}
		want, err := c.signer.guestWant(sp, rec)
		if err != nil {
			c.log.Debug("guest not looked into", "guest", name, "error", err)
			continue
		}
		looks = append(looks, &agentv1.LookRequest{Want: want, Cluster: sp.Guests[name].IsServer()})
	}
	return looks
}

func plainAddresses(list []string) []string {
	var out []string
	for _, a := range list {
		a, _, _ = strings.Cut(a, "/")
		out = append(out, a)
	}
	return out
}

// answers says whether a host's observation is of now.
func answers(s sight) bool {
	return s.obs != nil && (s.state == homelabv1.HostState_HOST_STATE_ONLINE || s.state == homelabv1.HostState_HOST_STATE_DEGRADED)
}

// external asks the server of a cluster that was made elsewhere for its Nodes,
// through the first agent that can; nil when there is none such or none can.
func (c *Controller) external(ctx context.Context, sp *spec.Spec, sights map[string]sight) *homelabv1.K3SLook {
	if sp.K3s == nil || sp.K3s.Existing == nil {
		return nil
	}
	resp, err := c.askExternal(ctx, sp, sights)
	if err != nil {
		why := &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_UNKNOWN, Reason: err.Error()}
		return &homelabv1.K3SLook{Looked: why, Nodes: &homelabv1.NodesView{Known: why}, Etcd: &homelabv1.EtcdView{Known: why}}
	}
	return &homelabv1.K3SLook{
		Looked: &homelabv1.Fact{Truth: homelabv1.Truth_TRUTH_YES}, Version: sp.K3s.Version, Nodes: resp.GetNodes(),
	}
}

// askExternal asks the existing cluster's server for its token and Nodes, through
// the first agent that it lets in: each has a key of its own, and one is enough.
func (c *Controller) askExternal(ctx context.Context, sp *spec.Spec, sights map[string]sight) (*agentv1.CredentialsResponse, error) {
	last := rpc.Errorf(rpc.ErrUnavailable, "no agent answers that could ask it")
	for _, host := range sp.HostNames() {
		if !answers(sights[host]) {
			continue
		}
		resp, err := c.askExternalFrom(ctx, sp, host, sights[host].address)
		if err == nil {
			return resp, nil
		}
		last = err
	}
	return nil, last
}

func (c *Controller) askExternalFrom(ctx context.Context, sp *spec.Spec, host, address string) (*agentv1.CredentialsResponse, error) {
	client, err := c.agents.client(host, address)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, credentialsTimeout)
	defer cancel()
	return client.Credentials(ctx, &agentv1.CredentialsRequest{
		Kind: agentv1.CredentialsKind_CREDENTIALS_KIND_TOKEN, ExternalServer: externalServer(sp.K3s.Existing),
		ExternalHostKey: sp.K3s.Existing.HostKey,
	})
}

// externalServer is user@address, with the port when it is not SSH's own.
func externalServer(e *spec.Existing) string {
	at := e.Address.String()
	if e.Port != 0 {
		at += ":" + strconv.Itoa(e.Port)
	}
	return e.User + "@" + at
}

// want and seen are the planner's input.
func (c *Controller) want(sp *spec.Spec, w world) plan.Want {
	guests := make(map[string]plan.Remembered, len(w.guests))
	for name, g := range w.guests {
		guests[name] = recalled(g)
	}
	vmids := make(map[string][]int32)
	for name, s := range c.seeing.all() {
		vmids[name] = s.vmids
	}
	return plan.Want{
		Spec: sp, Fleet: c.fleet, Guests: guests, Images: recalledImages(w.images), Cluster: w.cluster, LastVMIDs: vmids,
		Paused: w.paused, History: w.histories,
		Destroy: w.asked.destroy, Operation: w.asked.op, HealOnly: w.asked.heal,
		VerifyMark: plan.VerifyWith(c.signer.key, c.fleet),
	}
}

// recalled is what the planner is told of a guest's record.
func recalled(g store.Guest) plan.Remembered {
	r := plan.Remembered{
		Name: g.Name, Host: g.Host, VMID: g.VMID, UUID: g.UUID, Generation: g.Generation, MACs: g.MACs,
		HostKeys: g.HostKeys, MachineID: g.MachineID, Addresses: g.Addresses,
		Image: g.Image, ImageSHA256: g.ImageSHA256, CDROM: g.CDROM, CDROMSHA256: g.CDROMSHA256,
		MemoryBytes: g.MemoryBytes, Joined: g.Joined, Made: g.Made, Unverified: g.Unverified,
		NodeName: g.NodeName, Role: g.Role, Holder: plan.Holder{VMID: g.Holder.VMID, UUID: g.Holder.UUID},
		Began: g.Began, ReadyAt: g.ReadyAt, Failures: g.Failures, Resting: g.Resting, Recreating: g.Recreating,
	}
	r.DataDisks = protoDisks(g.DataDisks)
	for _, a := range g.Attempts {
		r.Attempts = append(r.Attempts, plan.Attempt{Action: a.Action, At: a.At})
	}
	return r
}

func seen(sp *spec.Spec, w world) plan.Seen {
	hosts := make(map[string]plan.Host, len(sp.Hosts))
	for name := range sp.Hosts {
		s := w.sights[name]
		hosts[name] = plan.Host{
			State: s.state, Since: s.since, Reason: s.reason, Observation: s.obs, ClockOffset: s.offset, Looked: s.looks,
		}
	}
	return plan.Seen{Hosts: hosts, External: w.external}
}

func (c *Controller) plan(sp *spec.Spec, w world) *homelabv1.Plan {
	return c.make(c.want(sp, w), seen(sp, w), c.now())
}

// inFlight are the steps that agents carry out now, by host and step.
func inFlight(sights map[string]sight) []*homelabv1.StepInFlight {
	var steps []*homelabv1.StepInFlight
	for _, name := range slices.Sorted(maps.Keys(sights)) {
		if s := sights[name]; answers(s) {
			steps = append(steps, s.obs.GetSteps()...)
		}
	}
	return steps
}

// newest is the highest fence of this fleet that any agent has accepted.
func newest(fleet string, sights map[string]sight) *homelabv1.Fence {
	highest := &homelabv1.Fence{Fleet: fleet}
	for _, s := range sights {
		if f := s.obs.GetFence(); f.GetFleet() == fleet && compareFences(f, highest) > 0 {
			highest = f
		}
	}
	return highest
}

func compareFences(a, b *homelabv1.Fence) int {
	return cmp.Or(cmp.Compare(a.GetEpoch(), b.GetEpoch()), cmp.Compare(a.GetRun(), b.GetRun()))
}

// fence is what orders the run before all that agents have seen: the present
// epoch, or a new one when the store was lost and agents know of later runs.
func (c *Controller) fence(ctx context.Context, run int64, sights map[string]sight) (*homelabv1.Fence, error) {
	epoch, err := c.store.Epoch(ctx)
	if err != nil {
		return nil, err
	}
	f := &homelabv1.Fence{Fleet: c.fleet, Epoch: epoch, Run: run}
	if high := newest(c.fleet, sights); compareFences(f, high) <= 0 {
		if f.Epoch, err = c.store.RaiseEpoch(ctx, high.GetEpoch()+1); err != nil {
			return nil, fmt.Errorf("a new epoch after %d: %w", high.GetEpoch(), err)
		}
	}
	return f, nil
}
