package controller

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/gossip"
	"github.com/homeiac/homelab/internal/k3s"
	"github.com/homeiac/homelab/internal/rpc"
)

// guestAgent is a guest as it is to be found, and the agent of its host.
func (c *Controller) guestAgent(ctx context.Context, name string) (*homelabv1.GuestWant, string, agentv1.AgentServiceClient, error) {
	sp, err := c.lastSpec(ctx)
	if err != nil {
		return nil, "", nil, err
	}
	if sp == nil {
		return nil, "", nil, rpc.Errorf(rpc.ErrNotFound, "no Spec was applied yet; begin with: hlctl apply -f homelab.yaml")
	}
	if sp.Guests[name] == nil {
		return nil, "", nil, rpc.Errorf(rpc.ErrNotFound, "there is no guest %s in the Spec (there are %s); see: hlctl guests", name, strings.Join(sp.GuestNames(), ", "))
	}
	guests, err := c.store.Guests(ctx)
	if err != nil {
		return nil, "", nil, err
	}
	rec, ok := guests[name]
	if !ok || rec.UUID == "" {
		// The store may have been lost; the mark on the VM tells.
		w, err := c.present(ctx, sp, true, true)
		if err != nil {
			return nil, "", nil, err
		}
		if rec, ok = w.guests[name]; !ok || rec.UUID == "" {
			return nil, "", nil, rpc.Errorf(rpc.ErrNotFound, "guest %s does not exist yet; make it with: hlctl apply", name)
		}
	}
	want, err := c.signer.guestWant(sp, rec)
	if err != nil {
		return nil, "", nil, err
	}
	address := c.addressOf(rec.Host)
	if address == "" {
		return nil, "", nil, rpc.Errorf(rpc.ErrUnavailable, "host %s of guest %s was never seen; see: hlctl hosts", rec.Host, name)
	}
	client, err := c.agents.client(rec.Host, address)
	if err != nil {
		return nil, "", nil, fmt.Errorf("guest %s on %s: %w", name, rec.Host, err)
	}
	return want, rec.Host, client, nil
}

// unreached says which host it is that a call did not reach, and what is wrong with it: of gRPC's
// text people learn an address and no more. What the agent itself answered stays as it is.
func (c *Controller) unreached(ctx context.Context, host, guest string, err error) error {
	if !errors.Is(err, rpc.ErrUnavailable) || ctx.Err() != nil {
		return err
	}
	address := c.addressOf(host)
	switch gossip.Classify(knock(ctx, address)) {
	case gossip.Silent:
		return rpc.Errorf(rpc.ErrUnavailable, "guest %s on %s: host silent: nothing answers at %s; see: hlctl hosts", guest, host, address)
	case gossip.AgentGone:
		return rpc.Errorf(rpc.ErrUnavailable, "guest %s on %s: %s refuses the connection; on the host: systemctl status hl-agent", guest, host, address)
	}
	return err
}

// endpointURL is the address of the cluster's VIP or load balancer; the API's
// port is added where none is given.
func endpointURL(endpoint string) string {
	if _, err := netip.ParseAddr(endpoint); err == nil {
		return "https://" + net.JoinHostPort(endpoint, strconv.Itoa(k3s.APIPort))
	}
	if _, _, err := net.SplitHostPort(endpoint); err == nil {
		return "https://" + endpoint
	}
	return "https://" + net.JoinHostPort(endpoint, strconv.Itoa(k3s.APIPort))
}
