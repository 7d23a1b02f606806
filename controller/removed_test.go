package controller

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// host is what Status says of a host; nil when it does not name it.
func (r *running) shown(t *testing.T, name string) *homelabv1.HostStatus {
	t.Helper()
	resp, err := r.client.Status(t.Context(), &controllerv1.StatusRequest{Fresh: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range resp.GetHosts() {
		if h.GetName() == name {
			return h
		}
	}
	return nil
}

// takesBack revokes what an agent has, once it is known.
func (r *running) takesBack(t *testing.T, host string) {
	t.Helper()
	r.toldUntil(func() bool {
		_, err := r.client.RevokeCertificate(t.Context(), &controllerv1.RevokeCertificateRequest{Holder: "agent@" + host})
		if err != nil && !errors.Is(err, rpc.ErrNotFound) {
			t.Fatal(err)
		}
		return err == nil
	})
}

func TestAHostThatWasRemovedIsShownAsLongAsTheSpecNamesIt(t *testing.T) {
	f := newFleet(t, hostNames(3)...)
	f.enrolling(&clock{t: time.Now()})
	c := f.up()
	f.within(0, hostNames(3)...)
	if o := c.apply(t.Context(), specOf(2), "", true); o.err != nil {
		t.Fatal(o.err)
	}
	if got := c.shown(t, "pve3"); got.GetState() != homelabv1.HostState_HOST_STATE_ONLINE {
		t.Fatalf("before: %v", got)
	}
	c.takesBack(t, "pve2")
	c.takesBack(t, "pve3")
	// Both are alive in the gossip still, and pve2's agent runs on.
	if got := c.shown(t, "pve3"); got != nil {
		t.Errorf("the Spec does not name it: %v", got)
	}
	if got := c.shown(t, "pve2"); got.GetState() != homelabv1.HostState_HOST_STATE_AGENT_GONE || !strings.Contains(got.GetReason(), "take it out of the Spec, or: hlctl hosts add") {
		t.Errorf("the Spec names it: %v", got)
	}
	// The last that was seen of it is forgotten, so that its VMIDs are free; also by a
	// controller that starts afresh.
	c.background(t.Context(), nil, false)
	for range 2 {
		hosts, err := c.store.Hosts(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := hosts["pve3"]; ok || len(hosts) == 0 || !c.seeing.all()["pve3"].seen.IsZero() {
			t.Errorf("remembered: %v", hosts)
		}
		c.kill()
		c = f.up()
	}
	if got := c.shown(t, "pve2"); got.GetState() != homelabv1.HostState_HOST_STATE_AGENT_GONE || !strings.Contains(got.GetReason(), "removed") {
		t.Errorf("after a restart: %v", got)
	}
	// Enrolled again it is as before.
	f.stop("pve3")
	f.issue(rpc.RoleAgent, "pve3")
	f.start("pve3")
	c.toldUntil(func() bool { return c.shown(t, "pve3").GetState() == homelabv1.HostState_HOST_STATE_ONLINE })
}
