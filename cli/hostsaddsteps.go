package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/homeiac/homelab/cli/onhost"
	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/pause"
	"github.com/homeiac/homelab/internal/rpc"
)

const (
	// degradedLimit is how long an agent that has just begun may be without its Proxmox.
	degradedLimit = 15 * time.Second
	// enrolToken is how long a token of ours is good for.
	enrolToken = 5 * time.Minute
)

// install brings the package. Where something of ours is at work that is left to hosts
// upgrade, which waits for runs and has a way back.
func (h *addedHost) install(ctx context.Context) (string, bool, error) {
	s, want := &h.seen, h.wanted.Version
	there := s.Installed != "" && !s.Broken
	switch {
	case there && s.Installed == want:
		return "homelab " + want, false, nil
	case there && (s.Agent.Active || s.Controller.Active):
		h.warn("homelab %s is at work there, and this hlctl brings %s: hlctl hosts upgrade %s", s.Installed, want, h.name)
		return "homelab " + s.Installed, false, nil
	}
	pkg, err := h.wanted.Read()
	if err != nil {
		return "", false, err
	}
	if err := h.on.PutPackage(ctx, pkg); err != nil {
		return "", false, err
	}
	if _, err := h.on.Dpkg(ctx, "--install", onhost.KeptAt(pkg.Version)); err != nil {
		return "", false, fmt.Errorf("install homelab %s: %w\n  mend that on the host, then again: hlctl hosts add %s", pkg.Version, err, h.target)
	}
	if s.Installed, s.Broken, err = h.on.Package(ctx); err != nil {
		return "", false, err
	}
	if s.Installed != pkg.Version || s.Broken {
		return "", false, fmt.Errorf("install homelab %s: dpkg ended well, and yet %q is installed; on the host: dpkg --audit", pkg.Version, s.Installed)
	}
	return "homelab " + pkg.Version, true, nil
}

// enrol gets the host its certificate. One that it has, and that was not taken back,
// stays: the agent renews it, also some time after its end.
func (h *addedHost) enrol(ctx context.Context) (string, bool, error) {
	s := &h.seen
	id := rpc.Identity{Fleet: h.fleet, Role: rpc.RoleAgent, Name: h.name}
	text := fmt.Sprintf("%s of fleet %s, at %s", id, h.fleet, h.address)
	if s.Cert != nil && s.ID == id && !h.replace {
		revoked, err := h.revoked(ctx, rpc.Serial(s.Cert))
		if err != nil || !revoked {
			return text, false, err
		}
	}
	resp, err := h.token(ctx, &controllerv1.CreateTokenRequest{
		Name: h.name, Role: rpc.RoleAgent, Addresses: []string{h.address}, Ttl: durationpb.New(enrolToken), Replace: h.replace,
	}, func() (bool, error) { return h.agentCutOff(ctx) })
	if err != nil {
		return "", false, err
	}
	if err := h.on.Enrol(ctx, rpc.RoleAgent, resp.GetEnrol(), resp.GetToken()); err != nil {
		return "", false, fmt.Errorf("enrol: %w\n  the host must reach the controller at %s; then again: hlctl hosts add %s", err, resp.GetEnrol(), h.target)
	}
	h.fresh = true
	if resp.GetStatus().GetReplace() {
		text += "; what it had before is taken back"
	}
	return text, true, nil
}

// revoked says whether a certificate was taken back.
func (h *addedHost) revoked(ctx context.Context, serial string) (bool, error) {
	resp, err := ask(ctx, h.conn.Trust, &controllerv1.TrustRequest{})
	return slices.ContainsFunc(resp.GetCertificates(), func(c *controllerv1.CertificateStatus) bool {
		return c.GetSerial() == serial && c.GetRevoked() != nil
	}), err
}

// token has a token made. A name that has a certificate gets one only on purpose, or to
// finish an enrolment that was cut off: cut says whether the host looks like that.
func (h *addedHost) token(ctx context.Context, req *controllerv1.CreateTokenRequest, cut func() (bool, error)) (*controllerv1.CreateTokenResponse, error) {
	resp, err := ask(ctx, h.conn.CreateToken, req)
	if !errors.Is(err, rpc.ErrExists) {
		return resp, err
	}
	was, cerr := cut()
	if was && cerr == nil {
		was, cerr = h.ours(ctx, req)
	}
	if cerr != nil {
		return nil, cerr
	}
	if !was {
		return nil, rpc.Errorf(rpc.ErrExists, "%s@%s has a certificate already, and this host does not hold it\n  if it is that host, installed anew, or takes its place: hlctl hosts add %s --replace\n  if it is another one, give it another name with --name",
			req.GetRole(), h.name, h.target)
	}
	req.Replace = true
	return ask(ctx, h.conn.CreateToken, req)
}

// agentCutOff says whether the host looks as one that enrolled and was cut off before
// the certificate was written: it has a key and no certificate, and nobody of its name
// answers.
func (h *addedHost) agentCutOff(ctx context.Context) (bool, error) {
	if h.seen.Cert != nil {
		return false, nil
	}
	if has, err := h.on.HasAgentKey(ctx); err != nil || !has {
		return false, err
	}
	status, err := ask(ctx, h.conn.Status, &controllerv1.StatusRequest{Fresh: true})
	there := slices.ContainsFunc(status.GetHosts(), func(is *homelabv1.HostStatus) bool { return is.GetName() == h.name && answers(is) })
	return err == nil && !there, err
}

// ours says whether all certificates that the name has were given for tokens of this
// very address, so that nobody else can hold them.
func (h *addedHost) ours(ctx context.Context, req *controllerv1.CreateTokenRequest) (bool, error) {
	tokens, err := ask(ctx, h.conn.ListTokens, &controllerv1.ListTokensRequest{})
	if err != nil {
		return false, err
	}
	trust, err := ask(ctx, h.conn.Trust, &controllerv1.TrustRequest{})
	if err != nil {
		return false, err
	}
	given := make(map[string]bool)
	for _, t := range tokens.GetTokens() {
		if t.GetName() == req.GetName() && t.GetRole() == req.GetRole() && t.GetSerial() != "" && slices.Equal(t.GetAddresses(), req.GetAddresses()) {
			given[t.GetSerial()] = true
		}
	}
	for _, c := range trust.GetCertificates() {
		if c.GetName() == req.GetName() && c.GetRole() == req.GetRole() && c.GetRevoked() == nil && time.Now().Before(timeOf(c.GetNotAfter())) && !given[c.GetSerial()] {
			return false, nil
		}
	}
	return len(given) > 0, nil
}

// start starts the agent, now and at each boot.
func (h *addedHost) start(ctx context.Context) (string, bool, error) {
	s := h.seen.Agent
	if s.Active && s.Enabled && !h.fresh {
		return "hl-agent", false, nil
	}
	if err := h.begin(ctx, onhost.AgentService, s.Active); err != nil {
		return "", false, err
	}
	return "hl-agent, now and at each boot", true, nil
}

// begin starts a service, now and at each boot, or starts it anew.
func (h *addedHost) begin(ctx context.Context, service string, active bool) error {
	if err := h.on.Begin(ctx, service, active); err != nil {
		return fmt.Errorf("%w\n  on the host: journalctl -u %s; then again: hlctl hosts add %s", err, service, h.target)
	}
	return nil
}

// wait waits until the controller has found the agent by gossip and got an answer.
func (h *addedHost) wait(ctx context.Context) (string, bool, error) {
	began := h.fresh || !h.seen.Agent.Active
	bounded, cancel := context.WithTimeout(ctx, h.limit)
	defer cancel()
	last := "the controller has not heard of it"
	var degraded time.Time
	for {
		resp, err := ask(bounded, h.conn.Status, &controllerv1.StatusRequest{Fresh: true})
		if err != nil && bounded.Err() == nil {
			last = err.Error()
		}
		for _, is := range resp.GetHosts() {
			if is.GetName() != h.name {
				continue
			}
			last = "the controller shows it as " + strings.TrimSuffix(hostState(is)+": "+is.GetReason(), ": ")
			switch hostState(is) {
			case "online":
				return "seen by gossip, answers as " + is.GetVersion(), began, nil
			case "degraded":
				if degraded.IsZero() {
					degraded = time.Now()
				}
				if began && time.Since(degraded) < degradedLimit {
					break
				}
				h.warn("its agent answers and is degraded: %s", is.GetReason())
				return "seen by gossip, answers as " + is.GetVersion(), began, nil
			}
		}
		if !pause.For(bounded, h.poll) {
			break
		}
	}
	if ctx.Err() != nil {
		return "", false, ctx.Err()
	}
	return "", false, rpc.Errorf(rpc.ErrUnavailable, "hl-agent is started and not online after %.0f s: %s%s\n  on the host: journalctl -u hl-agent; then again: hlctl hosts add %s, with --replace if its certificate is not taken any more",
		h.limit.Seconds(), last, h.on.Journal(ctx, onhost.AgentService), h.target)
}
