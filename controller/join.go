package controller

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/homeiac/homelab/controller/plan"
	"github.com/homeiac/homelab/controller/store"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/k3s"
	"github.com/homeiac/homelab/internal/pause"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/spec"
)

// takebackTimeout bounds the taking back of a learner.
const takebackTimeout = 30 * time.Second

// server is a member that others can join through.
type server struct {
	guest   string
	rec     store.Guest
	address netip.Addr
	agent   string // IP:PORT of its host's agent
}

// join fills in how a guest joins: through which server, with which token.
func (d *dispatch) join(ctx context.Context, s *homelabv1.Step, req *agentv1.RunRequest) error {
	d.mu.Lock()
	cluster := d.cluster
	d.mu.Unlock()
	want, err := k3sWant(d.sp, s.GetGuest(), cluster)
	if err != nil {
		return err
	}
	token, through, err := d.token(ctx, s)
	if err != nil {
		return err
	}
	hash, err := caHash(token)
	if err != nil {
		return err
	}
	if have := cluster.GetCaHash(); have != "" && hash != "" && hash != have {
		return rpc.Errorf(rpc.ErrRefused, "the token names the CA %.12s…, the cluster's is remembered as %.12s…: the server asked belongs to another cluster; look at it with: hlctl k3s status", hash, have)
	}
	if want.GetCaHash() == "" {
		want.CaHash = hash
	}
	want.ServerUrl = k3s.ServerURL(through.address)
	req.K3S, req.Token = want, []byte(token.Reveal())
	if want.GetRole() == homelabv1.Role_ROLE_SERVER && through.guest != "" && d.leftBehind(s.GetGuest()) {
		// It would keep this one out: etcd allows one learner at a time.
		if err := d.takeback(ctx, s, through); err != nil {
			return fmt.Errorf("take back what an earlier join left: %w", err)
		}
	}
	return nil
}

// token reads the join token, with patience for a server whose host's agent is
// just being restarted.
func (d *dispatch) token(ctx context.Context, s *homelabv1.Step) (k3s.Secret, server, error) {
	until := d.c.now().Add(d.c.pace.gone)
	for {
		token, through, err := d.askToken(ctx, s)
		if errors.Is(err, errNoServer) {
			d.lookForServers(ctx)
			token, through, err = d.askToken(ctx, s)
		}
		if err == nil || !errors.Is(err, rpc.ErrUnavailable) || d.c.now().After(until) || !pause.For(ctx, d.c.pace.poll) {
			return token, through, err
		}
	}
}

// askToken reads the join token from the first healthy server that gives it, or
// from the existing cluster's.
func (d *dispatch) askToken(ctx context.Context, s *homelabv1.Step) (k3s.Secret, server, error) {
	var last error
	for _, sv := range d.healthyServers(s.GetGuest()) {
		secret, err := d.c.credentials(ctx, d.sp, sv, agentv1.CredentialsKind_CREDENTIALS_KIND_TOKEN)
		if err == nil {
			return secret, sv, nil
		}
		last = fmt.Errorf("read the join token from %s on %s: %w", sv.guest, sv.rec.Host, err)
	}
	if e := d.sp.K3s.Existing; e != nil {
		resp, err := d.c.askExternal(ctx, d.sp, d.world.sights)
		if err == nil {
			return k3s.NewSecret(string(resp.GetSecret())), server{address: e.Address}, nil
		}
		last = fmt.Errorf("read the join token from %s: %w", externalServer(e), err)
	}
	if last != nil {
		return k3s.Secret{}, server{}, last
	}
	return k3s.Secret{}, server{}, errNoServer
}

var errNoServer = rpc.Errorf(rpc.ErrUnavailable, "no healthy server to join through was seen; look at them with: hlctl k3s status")

// lookForServers sees who is a healthy server by now. Before the run there may have
// been none: a guest that is started may be what the quorum waited for.
func (d *dispatch) lookForServers(ctx context.Context) {
	mem, err := d.c.memory(ctx)
	if err != nil {
		return // asked again, like what it is for
	}
	names := d.c.healthyGuests(d.sp, d.c.survey(ctx, d.sp, mem, nil, false))
	d.mu.Lock()
	defer d.mu.Unlock()
	d.recovered = names
}

// credentials reads a secret from a server guest.
func (c *Controller) credentials(ctx context.Context, sp *spec.Spec, sv server, kind agentv1.CredentialsKind) (k3s.Secret, error) {
	want, err := c.signer.guestWant(sp, sv.rec)
	if err != nil {
		return k3s.Secret{}, err
	}
	client, err := c.agents.client(sv.rec.Host, sv.agent)
	if err != nil {
		return k3s.Secret{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, credentialsTimeout)
	defer cancel()
	resp, err := client.Credentials(ctx, &agentv1.CredentialsRequest{Want: want, Kind: kind})
	if err != nil {
		return k3s.Secret{}, err
	}
	return k3s.NewSecret(string(resp.GetSecret())), nil
}

// healthyServers are the guests to join through, but for the one that joins:
// those that became servers in this run, then those seen healthy before it, or since.
func (d *dispatch) healthyServers(joining string) []server {
	d.mu.Lock()
	defer d.mu.Unlock()
	names := slices.Clone(d.servers)
	for _, name := range append(d.c.healthyGuests(d.sp, d.world), d.recovered...) {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	var servers []server
	for _, name := range names {
		rec := d.guests[name]
		address, known := guestAddress(d.sp, d.sp.Guests[name], rec.Addresses)
		if name != joining && known && !d.away[name] {
			servers = append(servers, server{guest: name, rec: rec, address: address, agent: d.c.addressOf(rec.Host)})
		}
	}
	return servers
}

// addressOf is where a host's agent answered last, or is said to be.
func (c *Controller) addressOf(host string) string {
	return c.seeing.addressOf(target{name: host}, c.seeing.agentPeers()[host])
}

// healthyGuests are the server guests whose Node is Ready and whose etcd member
// is a healthy voter, as seen, the cluster's first guest first.
func (c *Controller) healthyGuests(sp *spec.Spec, w world) []string {
	cluster := plan.ClusterOf(c.want(sp, w), seen(sp, w))
	var names []string
	for _, name := range sp.GuestNames() {
		g, rec := sp.Guests[name], w.guests[name]
		if !g.IsServer() || rec.Name == "" {
			continue
		}
		if !answers(w.sights[rec.Host]) || !yes(cluster.Node(g.NodeName()).GetReady()) {
			continue
		}
		member := cluster.Member(g.NodeName(), addresses(sp, g, rec))
		if member == nil || member.GetLearner() || !yes(member.GetHealthy()) {
			continue
		}
		if name == w.cluster.GetFirstGuest() {
			names = slices.Insert(names, 0, name)
		} else {
			names = append(names, name)
		}
	}
	return names
}

// addresses are all addresses by which a guest is known, without prefix length.
func addresses(sp *spec.Spec, g *spec.Guest, rec store.Guest) []string {
	list := slices.Clone(rec.Addresses)
	if a, ok := guestAddress(sp, g, nil); ok {
		list = append(list, a.String())
	}
	return list
}

// leftBehind says, once a run, whether an earlier join of a server left a learner,
// or a member that never started, which no k3s of it serves any more. One that is
// being served must not be taken away: it will be promoted.
func (d *dispatch) leftBehind(guest string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tookBack[guest] {
		return false
	}
	g, rec := d.sp.Guests[guest], d.guests[guest]
	all := seen(d.sp, d.world)
	member := plan.ClusterOf(d.c.want(d.sp, d.world), all).Member(g.NodeName(), addresses(d.sp, g, rec))
	if member == nil || !member.GetLearner() && member.GetName() != "" {
		return false
	}
	k := all.Hosts[rec.Host].Looked[guest].GetK3S()
	if !d.made[guest] && k.GetServerActive().GetTruth() != homelabv1.Truth_TRUTH_NO {
		return false
	}
	d.tookBack[guest] = true
	return true
}

// takeback has a healthy server's host remove the learner, or the member that
// never started, that a join of this guest left behind. Never a voter.
func (d *dispatch) takeback(ctx context.Context, s *homelabv1.Step, through server) error {
	d.mu.Lock()
	rec := d.guests[s.GetGuest()]
	d.mu.Unlock()
	g := d.sp.Guests[s.GetGuest()]
	address, known := guestAddress(d.sp, g, rec.Addresses)
	if !known {
		return nil // it never had an address, so it never joined
	}
	want, err := d.c.signer.guestWant(d.sp, through.rec)
	if err != nil {
		return err
	}
	client, err := d.c.agents.client(through.rec.Host, through.agent)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, takebackTimeout)
	defer cancel()
	_, err = runStep(ctx, client, &agentv1.RunRequest{
		Fence: d.fence, Want: want,
		Step: &homelabv1.Step{
			Id: "takeback/" + through.rec.Host + "/" + s.GetGuest(), Action: homelabv1.Action_ACTION_ROLLBACK,
			Guest: s.GetGuest(), Host: through.rec.Host, Reason: "what a join that did not end left in etcd", Generation: rec.Generation,
		},
		K3S: &homelabv1.K3SWant{Role: homelabv1.Role_ROLE_SERVER, Version: d.sp.K3s.Version, ServerUrl: k3s.ServerURL(address)},
	}, func(e *homelabv1.Event) { d.emit(e) })
	return err
}

// takeBackFailed takes back what a failed join of a server left, so that the
// cluster stays well and the next one can join. It is tried on each healthy
// server once.
func (d *dispatch) takeBackFailed(ctx context.Context, s *homelabv1.Step) error {
	if s.GetAction() != homelabv1.Action_ACTION_JOIN {
		return nil
	}
	if g := d.sp.Guests[s.GetGuest()]; g == nil || !g.IsServer() {
		return nil
	}
	var errs []error
	for _, sv := range d.healthyServers(s.GetGuest()) {
		err := d.takeback(ctx, s, sv)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
