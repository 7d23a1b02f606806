package controller

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"

	"google.golang.org/grpc"

	agentv1 "github.com/homeiac/homelab/gen/homelab/agent/v1"
	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/rpc"
)

// agents are the connections to the agents, one for each host, kept open.
type agents struct {
	creds *rpc.Credentials
	log   *slog.Logger

	mu    sync.Mutex
	conns map[string]agentConn // by host
}

type agentConn struct {
	address string
	conn    *grpc.ClientConn
}

func newAgents(creds *rpc.Credentials, log *slog.Logger) *agents {
	return &agents{creds: creds, log: log, conns: make(map[string]agentConn)}
}

// client is the agent of a host at IP:PORT. The certificate found there must
// be that host's agent's.
func (a *agents) client(host, address string) (agentv1.AgentServiceClient, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c, ok := a.conns[host]; ok {
		if c.address == address {
			return agentv1.NewAgentServiceClient(c.conn), nil
		}
		_ = c.conn.Close()
		delete(a.conns, host)
	}
	conn, err := rpc.Dial(rpc.Target{
		Address: address, Role: rpc.RoleAgent, Name: host, Credentials: a.creds, Log: a.log,
		Reads: []string{
			agentv1.AgentService_Observe_FullMethodName, agentv1.AgentService_Credentials_FullMethodName,
			agentv1.AgentService_Orphans_FullMethodName, agentv1.AgentService_ListSnapshots_FullMethodName,
			agentv1.AgentService_ResolveImage_FullMethodName,
		},
	})
	if err != nil {
		return nil, err
	}
	a.conns[host] = agentConn{address: address, conn: conn}
	return agentv1.NewAgentServiceClient(conn), nil
}

func (a *agents) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for host, c := range a.conns {
		_ = c.conn.Close()
		delete(a.conns, host)
	}
}

// runStep sends one step to an agent, passes its events on, and returns the
// result. The step goes on at the agent when ctx ends.
func runStep(ctx context.Context, client agentv1.AgentServiceClient, req *agentv1.RunRequest, emit func(*homelabv1.Event)) (*agentv1.StepResult, error) {
	stream, err := client.Run(ctx, req)
	if err != nil {
		return nil, err
	}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil, rpc.Errorf(rpc.ErrUnavailable, "the agent ended the call without a result")
		}
		if err != nil {
			return nil, err
		}
		switch part := resp.GetPart().(type) {
		case *agentv1.RunResponse_Event:
			// An agent tells of the step that it was given, whatever it says.
			part.Event.Step, part.Event.Guest, part.Event.Host = req.GetStep().GetId(), req.GetStep().GetGuest(), req.GetStep().GetHost()
			emit(part.Event)
		case *agentv1.RunResponse_Result:
			return part.Result, nil
		}
	}
}
