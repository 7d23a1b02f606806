package controller

import (
	"errors"
	"strings"
	"testing"
	"time"

	controllerv1 "github.com/homeiac/homelab/gen/homelab/controller/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/gossip"
	"github.com/homeiac/homelab/internal/rpc"
)

// host is how the controller shows a host.
func (r *running) host(t *testing.T, name string) *homelabv1.HostStatus {
	t.Helper()
	status, err := r.client.Status(t.Context(), &controllerv1.StatusRequest{Fresh: true, Looks: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range status.GetHosts() {
		if h.GetName() == name {
			return h
		}
	}
	t.Fatalf("no host %s in %v", name, status.GetHosts())
	return nil
}

// unbelieved fails the test unless nothing is planned on the hosts, and the others go on.
func (r *running) unbelieved(t *testing.T, text []byte, hosts ...string) {
	t.Helper()
	p, err := r.client.Plan(t.Context(), &controllerv1.PlanRequest{Spec: text})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range p.GetPlan().GetSteps() {
		for _, h := range hosts {
			if s.GetHost() == h {
				t.Errorf("%s is planned on %s, which was not seen", s.GetId(), h)
			}
		}
	}
}

func TestAnAgentThatSaysItIsAnotherHostIsNotBelieved(t *testing.T) {
	f := newFleet(t, hostNames(3)...)
	f.agents["pve3"].lie = "pve1"
	c := f.up()
	c.unbelieved(t, specOf(3), "pve3")
	if o := c.apply(t.Context(), specOf(3), "", true); o.err != nil || o.summary.GetSkipped() == 0 {
		t.Fatalf("%v, %v", o.err, o.summary)
	}
	for _, s := range f.steps {
		if strings.Contains(s, "/pve3/") {
			t.Errorf("%s was done on a host that lies", s)
		}
	}
	h := c.host(t, "pve3")
	if answersState(h.GetState()) || !strings.Contains(h.GetReason(), `the agent of pve3 answers for "pve1" and is not believed`) {
		t.Errorf("%s: %s", h.GetState(), h.GetReason())
	}
}

func answersState(s homelabv1.HostState) bool {
	return s == homelabv1.HostState_HOST_STATE_ONLINE || s == homelabv1.HostState_HOST_STATE_DEGRADED
}

func TestAnAgentWithTheCertificateOfAnotherHostIsNotBelieved(t *testing.T) {
	f := newFleet(t, hostNames(2)...)
	c := f.up()
	if h := c.host1(t, specOf(2), "pve2"); !answersState(h.GetState()) {
		t.Fatalf("%v", h)
	}
	// pve1's agent at pve2's place: as a machine that took its address would be.
	f.mu.Lock()
	p := f.peers["pve2"]
	before := p.Address
	p.Address = f.peers["pve1"].Address
	f.peers["pve2"] = p
	f.mu.Unlock()
	c.unbelieved(t, specOf(2), "pve2")
	h := c.host(t, "pve2")
	if answersState(h.GetState()) || !strings.Contains(h.GetReason(), "should be agent@pve2 but is agent@pve1") {
		t.Errorf("%s: %s", h.GetState(), h.GetReason())
	}
	if h.GetAddress() != before {
		t.Errorf("the address %s was taken from the gossip alone, it was %s", h.GetAddress(), before)
	}
}

// host1 is host after the Spec was planned once, so that there are hosts.
func (r *running) host1(t *testing.T, text []byte, name string) *homelabv1.HostStatus {
	t.Helper()
	if o := r.apply(t.Context(), text, "", true); o.err != nil {
		t.Fatal(o.err)
	}
	return r.host(t, name)
}

// TestWhoHasTheGossipsKeyAloneCanOnlyMakeHostsLookSilent: all that can be said in the
// gossip is said there, wrong.
func TestWhoHasTheGossipsKeyAloneCanOnlyMakeHostsLookSilent(t *testing.T) {
	for name, lie := range map[string]gossip.Peer{
		"an address where nobody is":    {Name: "pve2", Role: rpc.RoleAgent, Address: "127.0.0.1:1", Alive: true},
		"no address":                    {Name: "pve2", Role: rpc.RoleAgent, Address: "nonsense", Alive: true},
		"a name of the resolver":        {Name: "pve2", Role: rpc.RoleAgent, Address: "unix:///run/x.sock", Alive: true},
		"the controller's own address":  {Name: "pve2", Role: rpc.RoleAgent, Address: "CONTROLLER", Alive: true},
		"that it is gone":               {Name: "pve2", Role: rpc.RoleAgent, Alive: false, Since: time.Now()},
		"a host that nobody asked for":  {Name: "pve9", Role: rpc.RoleAgent, Address: "127.0.0.1:1", Alive: true},
		"a host's name as a controller": {Name: "pve2", Role: rpc.RoleController, Address: "127.0.0.1:1", Alive: true},
		"an unknown role":               {Name: "pve2", Role: "root", Address: "127.0.0.1:1", Alive: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, hostNames(2)...)
			c := f.up()
			if o := c.apply(t.Context(), specOf(2), "", true); o.err != nil {
				t.Fatal(o.err)
			}
			steps := len(f.steps)
			if lie.Address == "CONTROLLER" {
				lie.Address = c.address
			}
			f.mu.Lock()
			f.peers[lie.Role+"/"+lie.Name] = lie
			if lie.Role == rpc.RoleAgent && lie.Name == "pve2" {
				f.peers["pve2"] = lie
				delete(f.peers, lie.Role+"/"+lie.Name)
			}
			f.changed()
			f.mu.Unlock()
			o := c.apply(t.Context(), specOf(2), "", true)
			if o.err != nil || o.summary.GetDone() != 0 || o.summary.GetFailed() != 0 || len(f.steps) != steps {
				t.Errorf("%v, %v, done: %v", o.err, o.summary, f.steps[steps:])
			}
			if h := c.host(t, "pve2"); h.GetAddress() == lie.Address {
				t.Errorf("the address %s was taken from the gossip alone", h.GetAddress())
			}
		})
	}
}

func TestAnObservationNamesItsHost(t *testing.T) {
	err := ofHost(&homelabv1.Observation{Host: "pve1"}, "pve2")
	if !errors.Is(err, rpc.ErrDenied) || !strings.Contains(err.Error(), "pve1") || !strings.Contains(err.Error(), "pve2") {
		t.Error(err)
	}
	if err := ofHost(nil, "pve2"); !errors.Is(err, rpc.ErrDenied) {
		t.Error(err)
	}
}
