package agent

import (
	"path/filepath"
	"testing"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
	"github.com/homeiac/homelab/internal/rpc/rpctest"
)

func TestAnAgentDoesNothingForStrangersAndLivesOn(t *testing.T) {
	p, w := newFleet(t), newWorld(t)
	s := rpctest.Server{
		Address: w.listen(p.of(rpc.RoleAgent, "pve1")), Role: rpc.RoleAgent, Fleet: "home",
		CA:       rpctest.LoadCA(t, filepath.Join(p.dir, "ca.crt"), filepath.Join(p.dir, "ca.key")),
		Services: []string{agentv1.AgentService_ServiceDesc.ServiceName, agentv1.PeerService_ServiceDesc.ServiceName},
	}
	s.TurnedAway(t)
	s.Unharmed(t)
	if len(w.hyp.calls) != 0 {
		t.Errorf("qm was called: %v", w.hyp.calls)
	}
	w.must(homelabv1.Action_ACTION_FETCH)
}
