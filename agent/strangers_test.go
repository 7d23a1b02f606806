package agent

import (
	"path/filepath"
	"testing"
	"time"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/rpc/rpctest"
)

func TestAnAgentDoesNothingForStrangersAndLivesOn(t *testing.T) {
	p, w := newFleet(t), newWorld(t)
	creds := p.of(rpc.RoleAgent, "pve1")
	s := rpctest.Server{
		Address: w.listen(creds), Role: rpc.RoleAgent, Fleet: "home",
		CA:       rpctest.LoadCA(t, filepath.Join(p.dir, "ca.crt"), filepath.Join(p.dir, "ca.key")),
		Services: []string{agentv1.AgentService_ServiceDesc.ServiceName, agentv1.PeerService_ServiceDesc.ServiceName},
	}
	revoked := map[string]time.Time{}
	s.Revoke = func(serial string) {
		revoked[serial] = time.Now()
		list, err := p.ca.SignRevocations(int64(len(revoked)), revoked, time.Now())
		if err == nil {
			_, err = creds.Revoke(list.PEM())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	s.TurnedAway(t)
	s.Unharmed(t)
	if len(w.hyp.calls) != 0 {
		t.Errorf("qm was called: %v", w.hyp.calls)
	}
	w.must(homelabv1.Action_ACTION_FETCH)
}
