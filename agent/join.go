package agent

import (
	"context"
	"errors"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/homeiac/homelab/agent/guest"
	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/k3s"
	"github.com/homeiac/homelab/internal/rpc"
)

// joining is one guest on its way into a cluster.
type joining struct {
	s     *Service
	e     emit
	sh    *guest.Shell
	want  *homelabv1.GuestWant
	k3s   *homelabv1.K3SWant
	role  k3s.Role
	token k3s.Secret
	init  bool
	until time.Time // the Spec's timeouts.join
	// began: an earlier attempt of this very join left its word in the guest.
	// learner: it was stopped as a learner, which is taken back since.
	// joined: it was a whole member once. What it holds may be all that there is of
	// the cluster, so it is never cleaned away.
	began, learner, joined bool
	// older is the role of a k3s which was there before and is cleaned away first.
	older k3s.Role
}

// join installs k3s and has the guest start or join the cluster, until its Node
// is Ready with the right version and, for a server, its etcd member has a vote.
// A join that does not get there stops its unit again, so that nothing of it
// goes on unseen; its learner is taken back through a healthy server (takeBack).
func (s *Service) join(ctx context.Context, req *agentv1.RunRequest, e emit) (*agentv1.StepResult, error) {
	j, err := s.newJoining(req, e)
	if err != nil {
		return nil, err
	}
	if j.sh, err = s.open(ctx, j.want); err != nil {
		return nil, err
	}
	defer func() { _ = j.sh.Close() }() // it may be another one by then
	p, err := j.probe(ctx)
	if err != nil {
		return nil, err
	}
	// The guest must be what booting promised: on a wrong hostname or network
	// k3s would register it wrongly, and for good.
	if v := guest.Judge(j.want, p); !v.Booted {
		return nil, rpc.Errorf(rpc.ErrRefused, "it has not booted: %s", v.Wrong+v.Waiting)
	}
	in, err := j.stand(ctx, p)
	if err != nil {
		return nil, err
	}
	if !in {
		if err := s.settled(s.host.Observe(s.now())); err != nil {
			return nil, err
		}
		if j.older != "" {
			if err := j.clean(ctx, j.older); err != nil {
				return nil, err
			}
		}
		if err := j.install(ctx, p); err != nil {
			return nil, err
		}
		if err := j.awaitMember(ctx, max(time.Until(j.until), j.reserve())); err != nil {
			return nil, j.giveUp(ctx, err)
		}
	}
	if !j.joined {
		if err := j.leaveWord(ctx, asMember); err != nil {
			return nil, err
		}
	}
	text := "is a member: Ready, " + j.k3s.GetVersion()
	if j.role == k3s.Server {
		text += ", a voter"
	}
	r := done(!in, "%s", text)
	r.Learned.Addresses, r.Learned.MachineId = guest.Addresses(j.want, p.Addresses.Value), p.MachineID.Value
	if r.Learned.CaHash, err = j.caHash(ctx); err != nil {
		return nil, err
	}
	return r, nil
}

// roleOf is the role that is wanted, "" for none.
func roleOf(want *homelabv1.K3SWant) k3s.Role {
	switch want.GetRole() {
	case homelabv1.Role_ROLE_SERVER:
		return k3s.Server
	case homelabv1.Role_ROLE_AGENT:
		return k3s.Agent
	}
	return ""
}

func (s *Service) newJoining(req *agentv1.RunRequest, e emit) (*joining, error) {
	j := &joining{
		s: s, e: e, want: req.GetWant(), k3s: req.GetK3S(), token: k3s.NewSecret(string(req.GetToken())),
		init:  req.GetStep().GetAction() == homelabv1.Action_ACTION_INIT,
		until: time.Now().Add(joinLimit(req.GetWant())),
	}
	if j.role = roleOf(j.k3s); j.role == "" {
		return nil, rpc.Errorf(rpc.ErrInvalid, "step %s names no role", req.GetStep().GetId())
	}
	if _, err := k3s.ParseVersion(j.k3s.GetVersion()); err != nil {
		return nil, rpc.Errorf(rpc.ErrInvalid, "step %s: %w", req.GetStep().GetId(), err)
	}
	for _, src := range []struct{ key, from string }{{"script", j.k3s.GetScript()}, {"binary", j.k3s.GetBinary()}, {"images", j.k3s.GetImages()}} {
		if strings.HasPrefix(src.from, "http://") {
			return nil, rpc.Errorf(rpc.ErrRefused, "k3s.source.%s: what runs as root is fetched by https: only", src.key)
		}
	}
	if j.init {
		if j.role != k3s.Server || !j.k3s.GetClusterInit() {
			return nil, rpc.Errorf(rpc.ErrInvalid, "step %s: only a server with cluster-init starts a cluster", req.GetStep().GetId())
		}
		return j, nil
	}
	t, err := k3s.ParseToken(j.token)
	switch {
	case err != nil:
		return nil, rpc.Errorf(rpc.ErrInvalid, "step %s: %w", req.GetStep().GetId(), err)
	case t.CAHash == "":
		return nil, rpc.Errorf(rpc.ErrRefused, "step %s: a short token names no CA: the guest would trust whoever answers", req.GetStep().GetId())
	case j.k3s.GetCaHash() != "" && t.CAHash != j.k3s.GetCaHash():
		return nil, rpc.Errorf(rpc.ErrRefused, "step %s: the token is of another cluster than the one remembered", req.GetStep().GetId())
	case j.k3s.GetServerUrl() == "":
		return nil, rpc.Errorf(rpc.ErrInvalid, "step %s names no server to join through", req.GetStep().GetId())
	}
	return j, nil
}

func (j *joining) probe(ctx context.Context) (k3s.Probe, error) {
	res, err := j.sh.Run(ctx, k3s.ProbeScript, nil)
	if err != nil {
		return k3s.Probe{}, err
	}
	p, err := k3s.ParseProbe(res.Stdout)
	if err != nil {
		return p, rpc.Errorf(rpc.ErrUnavailable, "%w", err)
	}
	return p, nil
}

// ownPath holds, in a guest, the mark under which this product began to join
// it: what of k3s is found beside it is ours, what is found without it is not.
const ownPath = "/var/lib/hl/joined-as"

// stand says whether the guest is a member already. It refuses a guest that
// holds another k3s than ours.
func (j *joining) stand(ctx context.Context, p k3s.Probe) (in bool, err error) {
	for _, r := range []struct {
		known  bool
		reason string
	}{
		{p.ServerData.Known, p.ServerData.Reason}, {p.AgentData.Known, p.AgentData.Reason},
		{p.ServerUnit.Known, p.ServerUnit.Reason}, {p.AgentUnit.Known, p.AgentUnit.Reason},
		{p.Version.Known, p.Version.Reason},
	} {
		if !r.known {
			return false, rpc.Errorf(rpc.ErrUnavailable, "what k3s there is in it is not known: %s", r.reason)
		}
	}
	present := p.ServerData.Value || p.AgentData.Value || unitThere(p.ServerUnit.Value) || unitThere(p.AgentUnit.Value)
	res, err := j.sh.Run(ctx, "cat "+ownPath+" 2>/dev/null || :", nil)
	if err != nil {
		return false, err
	}
	word := strings.TrimSpace(string(res.Stdout))
	j.learner = word == j.own()+asLearner
	j.joined = word == j.own()+asMember
	j.began = j.learner || j.joined || word == j.own()
	other := p.AgentUnit.Value
	if j.role == k3s.Agent {
		other = p.ServerUnit.Value
	}
	if present && unitThere(other) {
		if err := j.mayReplace(ctx, p, word); err != nil || j.older != "" {
			return false, err
		}
		return false, rpc.Errorf(rpc.ErrRefused, "it holds k3s in another role than %s; remove it first: hlctl exec %s -- sh -c 'k3s-uninstall.sh || k3s-agent-uninstall.sh'",
			j.role, j.want.GetIdentity().GetGuest())
	}
	if !present {
		return false, nil
	}
	if !j.began && j.k3s.GetCaHash() != "" {
		got, err := j.caHash(ctx)
		j.began = err == nil && got == j.k3s.GetCaHash()
	}
	if active(p, j.role) {
		missing, err := j.member(ctx)
		switch {
		case err != nil && !errors.Is(err, rpc.ErrUnavailable):
			return false, err
		case err == nil && missing == "":
			return true, j.checkCluster(ctx)
		}
	}
	if !j.began {
		if err := j.mayReplace(ctx, p, word); err != nil || j.older != "" {
			return false, err
		}
		return false, rpc.Errorf(rpc.ErrRefused, "it holds an older k3s (%s) that was not begun by this guest's own join; remove it first: hlctl exec %s -- sh -c 'k3s-uninstall.sh || k3s-agent-uninstall.sh'",
			orNone(p.Version.Value), j.want.GetIdentity().GetGuest())
	}
	if active(p, j.role) {
		return j.patience(ctx)
	}
	return false, nil
}

// mayReplace finds the leftovers of an older k3s that can be cleaned away: no
// server's data is among them, no unit runs or starts, no pod's volume lies there,
// its uninstall script is there, and it was not this guest's own join that made it.
// Anything else may be all that there is of a cluster, or of somebody's work.
func (j *joining) mayReplace(ctx context.Context, p k3s.Probe, word string) error {
	if p.ServerData.Value || active(p, k3s.Server) || active(p, k3s.Agent) || strings.HasPrefix(word, j.want.GetIdentity().GetMark()) {
		return nil
	}
	l, err := leftovers(p)
	if err != nil || len(l.roles) != 1 {
		return err
	}
	for _, state := range []string{p.ServerUnit.Value, p.AgentUnit.Value} {
		if unitThere(state) && state != "failed" {
			return nil
		}
	}
	res, err := j.sh.Run(ctx, k3s.LocalVolumesScript, nil)
	if err != nil {
		return err
	}
	if res.Exit == 0 && len(strings.TrimSpace(string(res.Stdout))) == 0 {
		j.older = l.roles[0]
	}
	return nil
}

// patience gives a member of ours that is up but not yet good some time, as after
// a boot, before it is installed and so restarted again. A server with a vote is
// not restarted at all: that would cost the cluster a voter for a while.
func (j *joining) patience(ctx context.Context) (in bool, err error) {
	if voter, _ := j.votes(ctx); voter {
		return true, j.awaitMember(ctx, time.Until(j.until))
	}
	return j.awaitMember(ctx, min(time.Minute, joinLimit(j.want)/3)) == nil, ctx.Err()
}

// What is added to the word: the join was stopped as a learner, or has ended well.
const (
	asLearner = " learner"
	asMember  = " member"
)

// own is the word at ownPath. Another generation of the guest has another mark.
func (j *joining) own() string { return j.want.GetIdentity().GetMark() + " " + string(j.role) }

func orNone(s string) string {
	if s == "" {
		return "no version"
	}
	return s
}

// unitThere says whether there is a unit, by what systemctl calls it: one that does
// not exist is inactive or unknown.
func unitThere(state string) bool { return state != "inactive" && state != "unknown" }

func active(p k3s.Probe, r k3s.Role) bool {
	if r == k3s.Agent {
		return p.AgentUnit.Value == "active"
	}
	return p.ServerUnit.Value == "active"
}

// agentCA is where an agent keeps the cluster's CA.
const agentCA = "/var/lib/rancher/k3s/agent/server-ca.crt"

// caHash is the SHA-256 of the cluster's CA as this member has it.
func (j *joining) caHash(ctx context.Context) (string, error) {
	file := k3s.CACerts
	if j.role == k3s.Agent {
		file = agentCA
	}
	res, err := j.sh.Run(ctx, k3s.ReadFileScript(file), nil)
	if err != nil {
		return "", err
	}
	if err := res.Check("read " + file); err != nil {
		return "", rpc.Errorf(rpc.ErrUnavailable, "%w", err)
	}
	return k3s.CAHash(res.Stdout), nil
}

// checkCluster refuses a member of another cluster.
func (j *joining) checkCluster(ctx context.Context) error {
	if j.k3s.GetCaHash() == "" {
		return nil
	}
	got, err := j.caHash(ctx)
	if err != nil {
		return err
	}
	if got != j.k3s.GetCaHash() {
		return rpc.Errorf(rpc.ErrRefused, "it is a member of another cluster (CA %.12s…, ours is %.12s…)", got, j.k3s.GetCaHash())
	}
	return nil
}

// config is the member's config.yaml.
func (j *joining) config(p k3s.Probe) ([]byte, error) {
	c := k3s.Config{Role: j.role, Init: j.init, NodeName: j.want.GetNodeName(), Labels: map[string]string{}}
	for _, l := range j.k3s.GetLabels() {
		key, value, _ := strings.Cut(l, "=")
		c.Labels[key] = value
	}
	if list := guest.Addresses(j.want, p.Addresses.Value); len(list) > 0 {
		c.NodeIP, _ = netip.ParseAddr(list[0])
	}
	if !j.init {
		u, err := url.Parse(j.k3s.GetServerUrl())
		if err != nil {
			return nil, rpc.Errorf(rpc.ErrInvalid, "server %q: %w", j.k3s.GetServerUrl(), err)
		}
		if c.Join, err = netip.ParseAddr(u.Hostname()); err != nil {
			return nil, rpc.Errorf(rpc.ErrInvalid, "server %q: %w", j.k3s.GetServerUrl(), err)
		}
	}
	if err := yaml.Unmarshal([]byte(j.k3s.GetConfigYaml()), &c.User); err != nil {
		return nil, rpc.Errorf(rpc.ErrInvalid, "k3s.config: %w", err)
	}
	// All names are in tls_sans, also those of k3s.config: the same on every server.
	if names := j.k3s.GetTlsSans(); len(names) > 0 {
		if c.User == nil {
			c.User = map[string]any{}
		}
		c.User["tls-san"] = names
	}
	text, err := k3s.ConfigYAML(c)
	if err != nil {
		return nil, rpc.Errorf(rpc.ErrInvalid, "%w", err)
	}
	return text, nil
}
