package controller

import (
	"path/filepath"
	"testing"
	"time"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	trustv1 "github.com/homeiac/homelab/gen/homelab/trust/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/rpc/rpctest"
)

// itself is how a controller is called by strangers.
func (r *running) itself(f *fleet) rpctest.Server {
	ca, key := filepath.Join(f.dir, "ca.pem"), filepath.Join(f.dir, "ca.key")
	if err := f.ca.Write(ca, key); err != nil {
		f.t.Fatal(err)
	}
	return rpctest.Server{
		Address: r.address, Role: rpc.RoleController, Fleet: fleetName, CA: rpctest.LoadCA(f.t, ca, key),
		Services: []string{controllerv1.ControllerService_ServiceDesc.ServiceName, trustv1.TrustService_ServiceDesc.ServiceName},
		Revoke:   func(serial string) { r.revokeNow(f.t, serial) },
	}
}

func TestAControllerDoesNothingForStrangers(t *testing.T) {
	f := newFleet(t, "pve1")
	f.revoking()
	c := f.up()
	if o := c.apply(t.Context(), specOf(1), "", true); o.err != nil {
		t.Fatal(o.err)
	}
	steps, calls := len(f.steps), f.calls
	c.itself(f).TurnedAway(t)
	if len(f.steps) != steps || f.calls != calls {
		t.Errorf("something was done: %v", f.steps[steps:])
	}
	if paused, err := c.paused(t.Context()); err != nil || paused != "" {
		t.Errorf("a stranger paused everything: %s, %v", paused, err)
	}
	runs, err := c.client.ListRuns(t.Context(), &controllerv1.ListRunsRequest{})
	if err != nil || len(runs.GetRuns()) != 1 {
		t.Errorf("%v, %v", runs, err)
	}
	resp, err := c.client.ListAudit(t.Context(), &controllerv1.ListAuditRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range resp.GetEntries() {
		if e.GetResult() != "denied" && e.GetWho() != "admin@admin-1" {
			t.Errorf("%v", e)
		}
	}
}

func TestTheEnrolmentsPortHasNothingElseAndRenewsForNobodyWhoMayNot(t *testing.T) {
	f := newFleet(t, "pve1")
	f.enrolling(&clock{t: time.Now()})
	tune, hurried := f.tune, &clock{t: time.Now()}
	f.tune = func(c *Controller) {
		tune(c)
		// How many may call at once is another test's.
		c.now = func() time.Time { hurried.add(sourceEvery); return hurried.now() }
	}
	c := f.up()
	at := c.itself(f)
	at.Address, at.Services = c.enrolAt, []string{trustv1.EnrolService_ServiceDesc.ServiceName}
	at.Elsewhere(t)
	at.NotRenewed(t, trustv1.EnrolService_Renew_FullMethodName)
	issued, err := c.store.Issued(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range issued {
		if i.Name == "stranger" {
			t.Errorf("it got a certificate: %+v", i)
		}
	}
}

func TestAControllerLivesOnAfterWhatCannotBeRead(t *testing.T) {
	f := newFleet(t, "pve1")
	c := f.up()
	c.itself(f).Unharmed(t)
	if _, err := c.client.Version(t.Context(), &controllerv1.VersionRequest{}); err != nil {
		t.Error(err)
	}
	runs, err := c.client.ListRuns(t.Context(), &controllerv1.ListRunsRequest{})
	if err != nil || len(runs.GetRuns()) != 0 {
		t.Errorf("%v, %v", runs, err)
	}
}
